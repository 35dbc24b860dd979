"""ミニ GPT を組み立て、トークン番号がロジットになるまでの形と、未来を見ない仕組みを確かめる。

前のレッスン（learn_class_decision_boundary.py）との違い: GPT-2 と同じ部品（埋め込み、因果的自己注意、GELU の MLP、
各部品の手前に置く LayerNorm）を小さく組む。訓練は次の minllm_addition.py で行う。

実行: python minllm.py （終わった後も調べるなら python -i minllm.py。model や logits が残っている）
結果（2 コアの CPU で約 2 秒）:
    lm_head         (2, 32, 1000)
    first loss 6.9258, ln(1000) = 6.9078
    change the last token: the logits before it differ by 0.0
試してみよう:
    - n_layer を 4 にすると、パラメータはいくつ増えるか。
    - CausalSelfAttention の masked_fill の行を消すと、最後の行の 0.0 はどんな値になるか。
    - std=0.02 を 1.0 にすると、最初の損失はなぜ ln(1000) から離れるか。
"""

# %% 準備
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

SEED = 0

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% モデル
@dataclass
class GPTConfig:
    """モデルの大きさ。GPT-2 small の値は順に 50257, 1024, 12, 12, 768 である。"""

    vocab_size: int = 1000  # トークン（文章を区切った 1 単位）の種類の数
    block_size: int = 32  # 一度に読めるトークンの最大の長さ
    n_layer: int = 2  # ブロックの数
    n_head: int = 4  # 注意のヘッドの数
    n_embd: int = 64  # 1 トークンを表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """自分と自分より前のトークンだけを見る、マルチヘッド自己注意。出典: https://arxiv.org/abs/1706.03762"""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query（何を探すか）、key（何を持つか）、value（渡す中身）
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape
        head_size = C // self.n_head
        query, key, value = self.c_attn(x).split(C, dim=2)  # (B, T, 3C) -> (B, T, C) が 3 つ
        # ヘッドごとに別々の注意を計算できる並びにする: (B, T, C) -> (B, n_head, T, head_size)
        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)
        # 内積の分散は head_size に比例する。softmax が 1 点に偏らないように √head_size で割る
        scores = query @ key.transpose(2, 3) / math.sqrt(head_size)  # (B, n_head, T, T)、行の位置が列の位置を見る強さ
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)  # 列が行より後なら True
        scores = scores.masked_fill(future, -math.inf)  # -inf は softmax で 0 になるので、未来のトークンは混ざらない
        self.attention = scores.softmax(dim=3)  # 各行の和は 1。どこを見たかを後で調べられるように残す
        x = self.attention @ value  # (B, n_head, T, T) @ (B, n_head, T, head_size) -> (B, n_head, T, head_size)
        x = x.transpose(1, 2).reshape(B, T, C)  # ヘッドを横につなぐ
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。中間層は 4 倍に広い。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = F.gelu(self.c_fc(x), approximate="tanh")  # GELU は滑らかな ReLU: (B, T, n_embd) -> (B, T, 4 * n_embd)
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で他のトークンから情報を集め、MLP で加工する。"""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)  # トークンごとに、ベクトルの平均を 0、分散を 1 に揃える
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = x + self.attn(self.ln_1(x))  # x をそのまま足す道（残差接続）があるので、層を重ねても勾配が届く
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 の形のモデル。ただし dropout、wte と lm_head の重みの共有、残差に足す層の初期値の縮小 1/√(2·n_layer) は省く。"""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み（番号ごとに 1 本のベクトルを持つ表）
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # 位置の埋め込み
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        # 小さな値から始めるとロジットが 0 に近く、どのトークンの確率もほぼ 1/vocab_size になる
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        x = self.wte(idx) + self.wpe(torch.arange(T, device=idx.device))  # (B, T, n_embd) + (T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


config = GPTConfig()
model = GPT(config).to(device).eval()
for name, part in model.named_children():  # 部品ごとのパラメータ（訓練で動く数）の個数
    print(f"{name:8s} {sum(p.numel() for p in part.parameters()):7d}")
print(f"total    {sum(p.numel() for p in model.parameters()):7d}")

# %% 形
idx = torch.randint(config.vocab_size, (2, config.block_size)).to(device)  # (B, T)、でたらめなトークン番号の系列が 2 本
print(f"{'token ids':15s} {tuple(idx.shape)}")
hooks = []  # hook は、その部品の順伝播が終わるたびに (部品, 入力, 出力) を渡されて呼ばれる
for name, part in model.named_modules():  # モデル自身（名前は空）も含む。name=name は、その回の名前を覚えさせる
    hooks.append(part.register_forward_hook(
        lambda part, args, output, name=name: print(f"{name or 'logits':15s} {tuple(output.shape)}")))
with torch.no_grad():
    logits = model(idx)  # (B, T) -> (B, T, vocab_size)
for hook in hooks:
    hook.remove()

# %% 最初の損失
# どの位置でも次のトークンを当てるので、正解は idx を 1 つずらしたもの。flatten で (62, 1000) と (62,) にする
first_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).item()
print(f"first loss {first_loss:.4f}, ln({config.vocab_size}) = {math.log(config.vocab_size):.4f}")

# %% 未来を見ない証拠
changed = idx.clone()
changed[:, -1] = (changed[:, -1] + 1) % config.vocab_size  # 最後のトークンだけを別のものに変える
with torch.no_grad():
    difference = (model(changed) - logits)[:, :-1].abs().max().item()
print(f"change the last token: the logits before it differ by {difference}")
