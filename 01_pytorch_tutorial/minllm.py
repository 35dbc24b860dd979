"""ミニ GPT を組み立て、トークン番号がロジットになるまでの形と、因果マスクの働きを確かめる。

前のレッスン（minllm_heads.py）との違い: 注意と埋め込みに、MLP、LayerNorm、残差接続を組み合わせ、GPT-2 と同じ構造の
モデルにする。次のトークンを予測するモデルなので、未来（自分より後のトークン）が見えないことも確かめる。訓練は、次の
minllm_addition.py で行う。

実行: python minllm.py （終わった後も調べるなら python -i minllm.py。model や logits が残っている）
結果（2 コアの CPU で約 2 秒）:
    logits             (2, 32, 1000)
    first loss 6.9258, ln(1000) = 6.9078
    change the last token: the logits before it differ by 0
説明: このフォルダの README.md
試してみよう:
    - 末尾の [:, :-1] を [:, -1] に変えて、最後の位置のロジットの差を表示する。Block の 2 つの x + を消すと（残差接続を
      なくすと）、その差はいくつからいくつに変わるか。
    - CausalSelfAttention の masked_fill の行を消すと、表示の最後の行の 0 はいくつになるか。
    - std=0.02 を 1.0 にすると、最初の損失はいくつになるか。lm_head だけを 0.02 に戻すとどうか。
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

    vocab_size: int = 1000  # 語彙（使うトークンの種類）の大きさ
    block_size: int = 32  # 一度に入力できるトークンの個数の上限
    n_layer: int = 2  # Block を何段重ねるか
    n_head: int = 4  # 1 つの注意を、いくつのヘッドに分けて計算するか。n_embd を割り切る数にする
    n_embd: int = 64  # 1 トークンを表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """因果マスク付きのマルチヘッド自己注意。各トークンが、自分と自分より前のトークンから value を集めて混ぜる。

    query と key の内積が大きい相手ほど、その value を多く混ぜる。出典: https://arxiv.org/abs/1706.03762
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        # query（何を探すか）、key（何を持つか）、value（渡す中身）を、1 つの層でまとめて作る
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)  # 各ヘッドの出力を 1 つのベクトルにまとめる

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape  # 系列の本数、系列の長さ、n_embd
        head_size = C // self.n_head  # 1 つのヘッドが使うベクトルの長さ
        query, key, value = self.c_attn(x).split(C, dim=2)  # (B, T, 3 * C) -> (B, T, C) が 3 つ

        # ヘッドごとに別々に計算できる並びにする: (B, T, C) -> (B, T, n_head, head_size) -> (B, n_head, T, head_size)
        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)

        # 内積の分散は head_size に比例する。softmax が 1 点に偏らないように √head_size で割る
        scores = query @ key.transpose(2, 3) / math.sqrt(head_size)  # (B, n_head, T, T)、行の位置が列の位置を見る強さ
        # 因果マスク: 未来のスコアを -inf にする。exp(-inf) = 0 なので、softmax の後の重みは 0 になる
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)  # 列が行より後なら True
        scores = scores.masked_fill(future, -math.inf)
        attention = scores.softmax(dim=3)  # (B, n_head, T, T)、各行の和は 1
        self.attention = attention.detach()  # どこを見たかを後で調べるために、勾配の計算から切り離して残す
        x = attention @ value  # (B, n_head, T, T) @ (B, n_head, T, head_size) -> (B, n_head, T, head_size)

        x = x.transpose(1, 2).reshape(B, T, C)  # ヘッドを横につなぐ: -> (B, T, n_head, head_size) -> (B, T, C)
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。中間層は 4 倍に広い。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = self.c_fc(x)  # (B, T, n_embd) -> (B, T, 4 * n_embd)
        x = F.gelu(x, approximate="tanh")  # GELU は滑らかな ReLU。GPT-2 は、tanh による近似式で計算する
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で自分と自分より前のトークンから情報を集め、MLP でトークンごとに加工する。"""

    def __init__(self, config):
        super().__init__()
        # LayerNorm は、トークンごとにベクトルの平均を 0、分散を 1 に揃え、訓練で決まる倍率を要素ごとに掛け、バイアスを足す
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        # 計算の結果を x に足す。これを残差接続といい、深く重ねたモデルを訓練しやすくする。出典: https://arxiv.org/abs/1512.03385
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 を小さくしたモデル。部品の名前も GPT-2 の実装に合わせた。GPT-2 との違いは 3 つある。

    - dropout（訓練中に、値の一部を無作為に 0 にする）を省く。
    - wte と lm_head は、重みを共有しない。
    - 残差接続で足す層（c_proj）の初期値を、1/√(2·n_layer) 倍に縮めない。
    """

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み（番号ごとに 1 本のベクトルを持つ表）
        # 位置の埋め込み。注意だけでは、トークンが何番目にあるかが分からない（minllm_heads.py で確かめた）
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)  # ベクトルを、次のトークンのロジットにする
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """重みを、平均 0、標準偏差 0.02（GPT-2 と同じ）の正規分布から選び、バイアスを 0 にする。"""
        # ln_f がベクトルの大きさを揃えるので、最初の損失を左右するのは lm_head の重みの大きさだけである。
        # それが小さいとロジットは 0 に近く、どのトークンの確率もほぼ 1/vocab_size になる
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
model = GPT(config).to(device).eval()
# 部品ごとのパラメータ（訓練で決まる数）の個数。ln_f の 128 個は、64 個の倍率と 64 個のバイアスである
for name, part in model.named_children():
    print(f"{name:8s} {sum(p.numel() for p in part.parameters()):7d}")
print(f"total    {sum(p.numel() for p in model.parameters()):7d}")


# %% 形
def show(name, tensor):
    """名前と形を 1 行に表示する。"""
    print(f"{name:18s} {tuple(tensor.shape)}")


T = config.block_size
idx = torch.randint(config.vocab_size, (2, T)).to(device)  # (B, T)、でたらめなトークン番号の系列が 2 本
show("token ids", idx)
with torch.no_grad():
    # GPT の forward と同じ計算を、部品を 1 つずつ呼んで行う
    tokens = model.wte(idx)
    show("wte", tokens)
    positions = model.wpe(torch.arange(T).to(device))
    show("wpe", positions)
    x = tokens + positions  # どの系列にも、同じ位置の埋め込みが足される
    show("wte + wpe", x)

    block = model.h[0]  # 1 つ目のブロックは、中まで見る
    x_norm = block.ln_1(x)
    show("h.0.ln_1", x_norm)
    show("h.0.attn.c_attn", block.attn.c_attn(x_norm))  # query、key、value を横に並べたもの
    attn_output = block.attn(x_norm)
    show("h.0.attn.attention", block.attn.attention)  # 系列とヘッドごとに、T 個のトークンが T 個のトークンを見る重み
    show("h.0.attn", attn_output)
    x = x + attn_output
    x_norm = block.ln_2(x)
    show("h.0.ln_2", x_norm)
    show("h.0.mlp.c_fc", block.mlp.c_fc(x_norm))
    mlp_output = block.mlp(x_norm)
    show("h.0.mlp", mlp_output)
    x = x + mlp_output
    show("h.0", x)

    for i in range(1, config.n_layer):
        x = model.h[i](x)
        show(f"h.{i}", x)
    x = model.ln_f(x)
    show("ln_f", x)
    step_by_step = model.lm_head(x)
    show("logits", step_by_step)

    logits = model(idx)  # (B, T) -> (B, T, vocab_size)
print(f"model(idx) and the steps above differ by {(logits - step_by_step).abs().max().item():.3g}")

# %% 最初の損失
# 位置 t の正解は、位置 t + 1 のトークンである。最後の位置には正解がない
predictions = logits[:, :-1]  # (B, T - 1, vocab_size)
targets = idx[:, 1:]  # (B, T - 1)
# 系列と位置を 1 つの次元にまとめて、cross_entropy に渡す: (B * (T - 1), vocab_size) と (B * (T - 1),)
first_loss = F.cross_entropy(predictions.flatten(0, 1), targets.flatten()).item()
# どのトークンにも等しい確率 1/1000 を与えるなら、損失は -ln(1/1000) = ln(1000) になる
print(f"first loss {first_loss:.4f}, ln({config.vocab_size}) = {math.log(config.vocab_size):.4f}")

# %% 未来を見ない証拠
changed = idx.clone()
changed[:, -1] = (changed[:, -1] + 1) % config.vocab_size  # 最後のトークンだけを別のものに変える
with torch.no_grad():
    changed_logits = model(changed)
difference = (changed_logits - logits)[:, :-1].abs().max().item()  # 最後の位置を除いて比べる
print(f"change the last token: the logits before it differ by {difference:.3g}")
