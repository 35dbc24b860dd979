"""ミニ GPT を組み立て、トークン番号がロジットになるまでの形と、未来が見えないことを確かめる。

前のレッスン（minllm_heads.py）との違い: 注意と埋め込みに、MLP、LayerNorm、残差接続を組み合わせ、GPT-2 と同じ
構造のモデルにする。訓練は、次の minllm_addition.py で行う。

実行: python minllm.py（2 コアの CPU で約 3 秒）
結果:
    logits             (2, 32, 1000)
    first loss 6.9258, ln(1000) = 6.9078
    change a token: the logits before it change by 0
試してみよう:
    - CausalSelfAttention の masked_fill の行を消すと、未来が見えることは、損失から分かるか。
    - std=0.02 を 1.0 にすると、最初の損失はいくつになるか。lm_head だけを 0.02 に戻すとどうか。
解説: minllm.md
"""

# %% 準備
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm.png"

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


# %% モデル
@dataclass
class GPTConfig:
    """モデルの大きさ。GPT-2 small の値は順に 50257, 1024, 12, 12, 768 である。"""

    vocab_size: int = 1000  # 語彙（使うトークンの種類）の大きさ
    block_size: int = 32  # 一度に入力できるトークンの個数の上限
    n_layer: int = 2  # Block を何段重ねるか
    n_head: int = 4  # 1 つの注意を、いくつのヘッドに分けて計算するか。n_embd を割り切る数にする
    n_embd: int = 64  # 1 トークンを表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """因果マスク付きのマルチヘッド自己注意。出典: https://arxiv.org/abs/1706.03762"""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query、key、value を 1 つの層で作る
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)  # 横につないだヘッドの出力を混ぜる

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape  # 系列の本数、系列の長さ、n_embd
        head_size = C // self.n_head  # 1 つのヘッドが使うベクトルの長さ
        query, key, value = self.c_attn(x).split(C, dim=2)  # (B, T, 3 * C) -> (B, T, C) が 3 つ

        # ヘッドごとに分ける: (B, T, C) -> (B, T, n_head, head_size) -> (B, n_head, T, head_size)
        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)

        scores = query @ key.transpose(2, 3) / math.sqrt(head_size)  # (B, n_head, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)  # 列が行より後なら True
        scores = scores.masked_fill(future, -math.inf)
        attention = scores.softmax(dim=3)  # (B, n_head, T, T)、各行の和は 1
        self.attention = attention.detach()  # どこを見たかを、後で調べるために残す
        x = attention @ value  # (B, n_head, T, T) @ (B, n_head, T, head_size) -> (B, n_head, T, head_size)

        # ヘッドを横につなぐ: (B, n_head, T, head_size) -> (B, T, n_head, head_size) -> (B, T, C)
        x = x.transpose(1, 2).reshape(B, T, C)
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = self.c_fc(x)  # (B, T, n_embd) -> (B, T, 4 * n_embd)
        x = F.gelu(x, approximate="tanh")  # GELU は滑らかな ReLU。GPT-2 と同じ近似式で計算する
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で集め、MLP で加工する。どちらの結果も x に足す（残差接続）。"""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 を小さくしたモデル。部品の名前も GPT-2 の実装に合わせた。"""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # 位置の埋め込み（minllm_heads.py）
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)  # ベクトル -> ロジット
        self.apply(self._init_weights)  # どの部品にも _init_weights を実行する

    def _init_weights(self, module):
        """重みを、平均 0、標準偏差 0.02（GPT-2 と同じ）の正規分布から選び、バイアスを 0 にする。"""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)  # 0, 1, …, T - 1
        x = self.wte(idx) + self.wpe(positions)  # (B, T, n_embd) + (T, n_embd) -> (B, T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd) -> (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


config = GPTConfig()
model = GPT(config).to(device)
for name, part in model.named_children():  # 部品ごとのパラメータの個数
    print(f"{name:8s} {sum(p.numel() for p in part.parameters()):7d}")
print(f"total    {sum(p.numel() for p in model.parameters()):7d}")


# %% 形: GPT の forward と同じ計算を、部品を 1 つずつ呼んで行う
def show(name, tensor):
    """名前と形を 1 行に表示する。"""
    print(f"{name:18s} {tuple(tensor.shape)}")


T = config.block_size
idx = torch.randint(config.vocab_size, (2, T)).to(device)  # (B, T)、でたらめなトークン番号の系列が 2 本
show("token ids", idx)
with torch.no_grad():
    x = model.wte(idx) + model.wpe(torch.arange(T).to(device))
    show("wte + wpe", x)

    block = model.h[0]  # 1 つ目のブロックは、中まで見る
    x_norm = block.ln_1(x)
    show("h.0.attn.c_attn", block.attn.c_attn(x_norm))
    x = x + block.attn(x_norm)
    show("h.0.attn.attention", block.attn.attention)
    x_norm = block.ln_2(x)
    show("h.0.mlp.c_fc", block.mlp.c_fc(x_norm))
    x = x + block.mlp(x_norm)
    show("h.0", x)

    x = model.h[1](x)
    show("h.1", x)
    step_by_step = model.lm_head(model.ln_f(x))
    show("logits", step_by_step)
    logits = model(idx)  # (B, T) -> (B, T, vocab_size)
difference = (logits - step_by_step).abs().max().item()
print(f"model(idx) and the steps above: largest difference below 1e-6: {difference < 1e-6}")

# %% 最初の損失
targets = idx[:, 1:]  # (B, T - 1)。位置 t の正解は、位置 t + 1 のトークンである
predictions = logits[:, :-1]  # (B, T - 1, vocab_size)。最後の位置には正解がない
print("input ", *idx[0, :8].tolist())  # 先頭の 8 つだけを並べる
print("target", *targets[0, :8].tolist())
# 系列と位置を 1 つの次元にする: (B * (T - 1), vocab_size) と (B * (T - 1),)
first_loss = F.cross_entropy(predictions.flatten(0, 1), targets.flatten()).item()
print(f"first loss {first_loss:.4f}, ln({config.vocab_size}) = {math.log(config.vocab_size):.4f}")
print(f"standard deviation of the logits {logits.std().item():.2f}")


# %% 確かめる: 1 つのトークンを変えると、どの位置のロジットが変わるか
def influence(forward):
    """列の位置のトークンを変えたときの、行の位置のロジットの変化のうち、最も大きいもの (T, T)。"""
    changes = torch.zeros(T, T)
    with torch.no_grad():
        logits = forward(idx)
        for position in range(T):
            changed = idx.clone()
            changed[:, position] = (changed[:, position] + 1) % config.vocab_size  # 別のトークンにする
            difference = (forward(changed) - logits).abs()  # (B, T, vocab_size)
            changes[:, position] = difference.amax(dim=(0, 2))  # (T,)
    return changes


def without_residual(idx):
    """model と同じ計算から、残差接続（x に足すこと）を除いたもの。"""
    x = model.wte(idx) + model.wpe(torch.arange(T).to(device))
    for block in model.h:
        x = block.attn(block.ln_1(x))
        x = block.mlp(block.ln_2(x))
    return model.lm_head(model.ln_f(x))


weights = model.h[0].attn.attention[:, :, -1]  # (B, n_head, T)、最後のトークンがほかを見る重み
lowest, highest = weights.min().item(), weights.max().item()
print(f"weights of the last token: {lowest:.3f} to {highest:.3f}, 1/{T} = {1 / T:.3f}")
changes = influence(model)
changes_without = influence(without_residual)
print(f"change a token: the logits before it change by {changes.triu(diagonal=1).max().item():.2g}")
print(f"change the last token: its own logits change by {changes[-1, -1].item():.2g}")
print(f"the same without the residual connections: {changes_without[-1, -1].item():.2g}")

# %% 確かめる: PyTorch の nn.TransformerEncoderLayer は、Block と同じ計算をする
block = Block(config).to(device)
with torch.no_grad():
    for parameter in block.parameters():  # LayerNorm の倍率 1 とバイアス 0 も、ほかの値にする
        parameter.add_(0.1 * torch.randn(parameter.shape).to(device))

C = config.n_embd
gelu = nn.GELU(approximate="tanh")  # MLP と同じ近似式
layer = nn.TransformerEncoderLayer(
    C, config.n_head, 4 * C, dropout=0, activation=gelu, batch_first=True, norm_first=True
).to(device)
# 名前を対応させて、部品を block のものに取り替える
layer.norm1 = block.ln_1
layer.self_attn.in_proj_weight = block.attn.c_attn.weight
layer.self_attn.in_proj_bias = block.attn.c_attn.bias
layer.self_attn.out_proj = block.attn.c_proj
layer.norm2 = block.ln_2
layer.linear1 = block.mlp.c_fc
layer.linear2 = block.mlp.c_proj
mask = nn.Transformer.generate_square_subsequent_mask(T).to(device)  # (T, T)、未来は -inf、ほかは 0
x = torch.randn(2, T, C).to(device)
by_torch = layer(x, src_mask=mask, is_causal=True)  # (B, T, n_embd) -> (B, T, n_embd)
difference = (by_torch - block(x)).abs().max().item()
print(f"nn.TransformerEncoderLayer and Block: largest difference below 1e-4: {difference < 1e-4}")

# %% 図
panels = [("with residual connections", changes), ("without residual connections", changes_without)]
fig, both_axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
for axes, (name, shown) in zip(both_axes, panels):
    picture = axes.imshow(shown.numpy(), cmap="Blues", norm="log", vmin=1e-4, vmax=1)
    axes.set(title=name, xlabel="position of the changed token", ylabel="position of the logits")
fig.colorbar(picture, ax=both_axes, label="largest change of a logit")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
