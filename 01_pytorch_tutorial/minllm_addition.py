"""ミニ GPT をゼロから訓練し、2 桁までの足し算を覚えさせる。

前のレッスン（minllm.py）との違い: 同じ構造のモデルが初めて学ぶ。「次の文字を当てる」訓練だけで、見たことのない問題も解ける。

実行: python minllm_addition.py （質問を加えるなら -q "8+56"）
結果（2 コアの CPU で約 20 秒）:
    held-out exact match: 100.0% of 1000 sums
試してみよう:
    - NUM_HELD_OUT を 9000 に増やし、1,000 問だけで訓練すると、損失と held-out の正解率はどう食い違うか。
"""

# %% 準備
import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
VOCABULARY = "0123456789+="  # 1 文字が 1 トークン。番号はこの並びでの位置
PROMPT_LENGTH = 6  # "47+85=" の文字数
ANSWER_LENGTH = 3  # 和は 3 桁。足りない桁は 0 で埋める
NUM_HELD_OUT = 1000  # 訓練に使わない問題の数。丸暗記では解けない（ただし、左右を入れ替えた式は訓練に入りうる）
STEPS = 1000
BATCH_SIZE = 128  # 1 回の更新に使う問題の数
LEARNING_RATE = 3e-3  # 学習率の最大値。訓練の途中で上げ下げする
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_addition.png"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-q", "--question", action="append", default=["47+85"], help="47+85 に続けて解かせる足し算（何度でも）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
for question in args.question:
    if not re.fullmatch(r"[0-9]{1,2}\+[0-9]{1,2}", question):
        parser.error(f"--question の {question!r} は読めない。47+85 のように、2 桁までの数を 2 つ + でつなぐ")

torch.set_num_threads(1)  # 行列が小さければ 1 スレッドでも大差なく、ほかのプログラムが動いていても遅くなりにくい
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ
def encode(a, b):
    """問題と答えを 9 個のトークン番号のリストにする。(47, 85) は "47+85=231" である。"""
    # 和を 1 の位から逆向きに書く。上の桁から書くと、下の桁の繰り上がりを先回りして計算しなければならない
    text = f"{a:02d}+{b:02d}=" + f"{a + b:03d}"[::-1]
    return [VOCABULARY.index(character) for character in text]


def decode(tokens):
    """トークン番号 (9,) を、答えを普通の向きに直した文字列 "47+85=132" にする。"""
    text = "".join(VOCABULARY[token] for token in tokens)
    return text[:PROMPT_LENGTH] + text[PROMPT_LENGTH:][::-1]


sums = torch.tensor([encode(a, b) for a in range(100) for b in range(100)])  # (10000, 9)
sums = sums[torch.randperm(len(sums))].to(device)
held_out, train_data = sums[:NUM_HELD_OUT], sums[NUM_HELD_OUT:]  # (1000, 9) と (9000, 9)
print(f"data: {len(train_data)} sums for training, {len(held_out)} held out")


# %% モデル（GPTConfig の値のほかは minllm.py と同じなので、読み飛ばしてよい）
@dataclass
class GPTConfig:
    """モデルの大きさ。最後の文字は当てるだけで読まないので、block_size は 1 文字少なくてよい。"""

    vocab_size: int = len(VOCABULARY)
    block_size: int = PROMPT_LENGTH + ANSWER_LENGTH - 1
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


model = GPT(GPTConfig()).to(device)
print(f"model: {sum(p.numel() for p in model.parameters())} parameters")


# %% 生成
@torch.no_grad()
def generate(idx):
    """問題 (B, 6) に答えを 1 文字ずつ書き足して (B, 9) にする。書いた文字を次の入力に加えることを、自己回帰という。"""
    model.eval()
    for _ in range(ANSWER_LENGTH):
        logits = model(idx)[:, -1]  # 最後の位置だけが、まだ書かれていない文字を予測する: (B, vocab_size)
        next_token = logits.argmax(dim=1, keepdim=True)  # 最も確率の高い文字を選ぶ: (B, 1)
        idx = torch.cat([idx, next_token], dim=1)
    return idx


# %% 訓練
optimizer = torch.optim.AdamW(model.parameters())  # Adam に重みの減衰を加えたもの。学習率は scheduler が決める
# 学習率を最初の 3 割で頂点まで上げ、残りでほぼ 0 まで下げる。出典: https://arxiv.org/abs/1708.07120
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
losses, exact_matches = [], {}  # 毎ステップの損失と、{ステップ: 訓練に使わない問題の正解率（%）}
for step in range(1, STEPS + 1):
    model.train()
    batch = train_data[torch.randint(len(train_data), (BATCH_SIZE,)).to(device)]  # 無作為に選ぶ（ミニバッチ）: (B, 9)
    # 因果マスクのおかげで、どの位置も後ろの文字を見ていない。だから 1 回の順伝播で、答えの 3 文字をまとめて訓練できる
    logits = model(batch[:, :-1])  # (B, 8) -> (B, 8, vocab_size)。どの位置も 1 文字先を当てる
    answer_logits = logits[:, -ANSWER_LENGTH:]  # 問題の部分は損失に入れない。2 つの数は乱数で、当てようがない
    loss = F.cross_entropy(answer_logits.flatten(0, 1), batch[:, -ANSWER_LENGTH:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # 大きすぎる勾配が、覚えかけたものを壊すのを防ぐ
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()

    losses.append(loss.item())
    if step % 100 == 0 or step == STEPS:
        written = generate(held_out[:, :PROMPT_LENGTH])  # (1000, 9)
        exact_matches[step] = 100 * (written == held_out).all(dim=1).float().mean().item()  # 9 文字すべてが一致した割合
        samples = "  ".join(decode(row) for row in written[:4])
        print(f"step {step:4d}  loss {loss.item():.4f}  held-out {exact_matches[step]:5.1f}%  {samples}", flush=True)
print(f"held-out exact match: {exact_matches[STEPS]:.1f}% of {len(held_out)} sums")

# %% 質問に答える
for question in args.question:
    a, b = map(int, question.split("+"))
    prompt = torch.tensor([encode(a, b)[:PROMPT_LENGTH]]).to(device)  # (1, 6)
    tokens = generate(prompt)  # (1, 6) -> (1, 9)
    with torch.no_grad():
        probabilities = model(tokens[:, :-1])[0].softmax(dim=1)  # (1, 8) -> (8, vocab_size)
    text = "".join(VOCABULARY[token] for token in tokens[0])  # 書いた順の文字
    print(f"question: {decode(tokens[0])}")
    for i in range(PROMPT_LENGTH, len(text)):
        print(f"  {text[:i]:8s} -> {text[i]}  (probability {probabilities[i - 1, tokens[0, i]]:.4f})")
# 最後の順伝播（最後の質問）で、答えを書く 3 つの位置が各文字をどれだけ見たか: (n_layer, n_head, 3, T)
attention = torch.cat([block.attn.attention for block in model.h])[:, :, -ANSWER_LENGTH:].cpu()

# %% 図
fig = plt.figure(figsize=(14, 5), layout="constrained")
curves, maps = fig.subfigures(1, 2, width_ratios=[1, 2.6])
loss_axes, exact_axes = curves.subplots(2, 1, sharex=True)
loss_axes.plot(range(1, STEPS + 1), losses, linewidth=0.8, color="#0072B2")
loss_axes.set(ylabel="cross-entropy loss", yscale="log", title="Training")
exact_axes.plot(exact_matches.keys(), exact_matches.values(), "o-", markersize=3, color="#D55E00")
exact_axes.set(xlabel="step", ylabel="held-out exact match (%)", ylim=(-3, 103))
n_layer, n_head = attention.shape[:2]
grid = maps.subplots(n_layer, n_head, sharex=True, sharey=True, squeeze=False)
for i, (axes, weights) in enumerate(zip(grid.flat, attention.flatten(0, 1))):
    image = axes.imshow(weights, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_title(f"layer {i // n_head}, head {i % n_head}", fontsize=10)
    axes.set_xticks(range(len(text) - 1), text[:-1])
    axes.set_yticks(range(3), [f"ones: {text[6]}", f"tens: {text[7]}", f"hundreds: {text[8]}"])
maps.suptitle(f"Attention while writing {text}: rows are the digits written, columns the characters looked at")
maps.colorbar(image, ax=grid, label="attention (each row sums to 1)")
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
