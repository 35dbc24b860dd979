"""ミニ GPT をゼロから訓練し、2 桁までの足し算を覚えさせる。

前のレッスン（minllm.py）との違い: 同じモデルが初めて学ぶ。教えるのは「次の文字を予測する」ことだけである。
新しいのは、1 文字ずつ書く自己回帰、ミニバッチ、AdamW、学習率の上げ下げ、勾配の大きさの制限である。

実行: python minllm_addition.py（2 コアの CPU で約 12 秒）
結果:
    step 1000  loss 0.001  held-out 100.0%
    one pass equals writing one character at a time: True
    question: 37+97=134 (in the training data: False)
試してみよう:
    - NUM_HELD_OUT_PAIRS を 5000、STEPS を 300 にすると、最後の loss と held-out はいくつになるか。
    - STEPS を 500 にし、masked_fill の行を消すと、最後の loss と held-out はどうなるか。
解説: minllm_addition.md
"""

# %% 準備
import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
VOCABULARY = "0123456789+="  # 1 文字が 1 トークン。番号は、この並びで何番目か
PROMPT_LENGTH = 6  # "47+85=" の文字数
ANSWER_LENGTH = 3  # 和の桁数。足りない桁は 0 で埋める
NUM_HELD_OUT_PAIRS = 500  # 訓練に使わず、評価のために取り分ける（held-out）数の組。全部で 5,050 組ある
STEPS = 1000  # 重みを更新する回数
BATCH_SIZE = 128  # 1 回の更新に使う足し算の数
LEARNING_RATE = 3e-3  # 学習率の最大値
QUESTIONS = ["47+85", "37+97"]  # SEED が 0 なら、1 つ目は訓練に使い、2 つ目は使わない
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_addition.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-q", "--question", action="append", default=QUESTIONS, help="加える足し算（何度でも）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
for question in args.question:
    if not re.fullmatch(r"[0-9]{1,2}\+[0-9]{1,2}", question):
        parser.error(f"{question!r} は足し算ではない。47+85 のように、2 桁までの数を 2 つ + でつなぐ")

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ
def write_sum(a, b):
    """(5, 6) なら "05+06=011"。どの足し算も 9 文字になる。"""
    return f"{a:02d}+{b:02d}={a + b:03d}"


def write_both_orders(pairs):
    """数の組のリスト -> 足し算のリスト。どの組 (a, b) からも、a + b と b + a を作る。"""
    texts = []
    for a, b in pairs:
        texts.append(write_sum(a, b))
        if a != b:
            texts.append(write_sum(b, a))
    return texts


def encode(text):
    """文字列 -> トークン番号のリスト。"""
    return [VOCABULARY.index(character) for character in text]


def decode(tokens):
    """トークン番号のリスト -> 文字列。"""
    return "".join(VOCABULARY[token] for token in tokens)


# 順序を問わない組で分ける。37+97 を取り分けるなら、左右を入れ替えた 97+37 も訓練に使わない
pairs = []
for a in range(100):
    for b in range(a, 100):
        pairs.append((a, b))
shuffled = [pairs[i] for i in torch.randperm(len(pairs)).tolist()]
held_out_texts = write_both_orders(shuffled[:NUM_HELD_OUT_PAIRS])
train_texts = write_both_orders(shuffled[NUM_HELD_OUT_PAIRS:])
in_both = set(train_texts) & set(held_out_texts)
print(f"data: {len(train_texts)} sums for training, {len(held_out_texts)} held out, {len(in_both)} in both")
train_data = torch.tensor([encode(text) for text in train_texts]).to(device)  # (9014, 9)
held_out = torch.tensor([encode(text) for text in held_out_texts]).to(device)  # (986, 9)


# %% モデル（minllm.py と同じ。読み飛ばしてよい）
@dataclass
class GPTConfig:
    vocab_size: int = len(VOCABULARY)
    block_size: int = PROMPT_LENGTH + ANSWER_LENGTH - 1  # 最後の文字は、予測するだけで入力しない
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        B, T, C = x.shape
        head_size = C // self.n_head
        query, key, value = self.c_attn(x).split(C, dim=2)

        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)

        scores = query @ key.transpose(2, 3) / math.sqrt(head_size)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)
        scores = scores.masked_fill(future, -math.inf)
        attention = scores.softmax(dim=3)
        self.attention = attention.detach()
        x = attention @ value

        x = x.transpose(1, 2).reshape(B, T, C)
        return self.c_proj(x)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = self.c_fc(x)
        x = F.gelu(x, approximate="tanh")
        return self.c_proj(x)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)
        x = self.wte(idx) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


model = GPT(GPTConfig()).to(device)
print(f"model: {sum(p.numel() for p in model.parameters())} parameters")


# %% 生成
@torch.no_grad()
def generate(idx):
    """問題 (B, 6) に、答えを 1 文字ずつ書き足して (B, 9) にする。"""
    for _ in range(ANSWER_LENGTH):
        logits = model(idx)  # (B, T) -> (B, T, vocab_size)
        last_logits = logits[:, -1]  # 最後の位置が、まだ書かれていない文字を予測する: (B, vocab_size)
        next_token = last_logits.argmax(dim=1, keepdim=True)  # 最も確率の高い文字: (B, 1)
        idx = torch.cat([idx, next_token], dim=1)  # (B, T) -> (B, T + 1)
    return idx


# %% 訓練
optimizer = torch.optim.AdamW(model.parameters())
# 学習率を、初めの 3 割で最大値まで上げ、残りでほぼ 0 まで下げる。出典: https://arxiv.org/abs/1708.07120
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
losses = []  # 毎ステップの訓練の損失
for step in range(1, STEPS + 1):
    batch = torch.randint(len(train_data), (BATCH_SIZE,)).to(device)  # 足し算の番号 (B,)
    sums = train_data[batch]  # (B, 9)
    logits = model(sums[:, :-1])  # (B, 8) -> (B, 8, vocab_size)。どの位置も、その次の文字を予測する
    answer_logits = logits[:, -ANSWER_LENGTH:]  # (B, 3, vocab_size)。問題の部分の予測は使わない
    answers = sums[:, -ANSWER_LENGTH:]  # (B, 3)
    loss = F.cross_entropy(answer_logits.flatten(0, 1), answers.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # 勾配の大きさを 1 までにする
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()

    losses.append(loss.item())
    if step % 250 == 0 or step == STEPS:
        written = generate(held_out[:, :PROMPT_LENGTH])  # (N, 6) -> (N, 9)
        correct = (written == held_out).all(dim=1)  # (N,)、9 文字がすべて一致すれば True
        exact_match = 100 * correct.float().mean().item()
        print(f"step {step:4d}  loss {loss.item():.3f}  held-out {exact_match:5.1f}%", flush=True)

# %% 確かめる: 訓練で使う 1 回の順伝播は、1 文字ずつ書くときと同じロジットを出す
with torch.no_grad():
    at_once = model(written[:, :-1])  # (N, 8) -> (N, 8, vocab_size)
attention = model.h[0].attn.attention  # 後で調べる、layer 0（1 つ目のブロック）の注意: (N, n_head, 8, 8)
largest_difference = 0
for length in range(PROMPT_LENGTH, PROMPT_LENGTH + ANSWER_LENGTH):
    with torch.no_grad():
        one_by_one = model(written[:, :length])  # (N, T) -> (N, T, vocab_size)
    difference = (at_once[:, length - 1] - one_by_one[:, -1]).abs().max().item()
    largest_difference = max(largest_difference, difference)
print(f"one pass equals writing one character at a time: {largest_difference < 1e-3}")

# %% 質問に答える
for question in args.question:
    a, b = map(int, question.split("+"))
    prompt = write_sum(a, b)[:PROMPT_LENGTH]
    idx = generate(torch.tensor([encode(prompt)]).to(device))  # (1, 6) -> (1, 9)
    tokens = idx[0].tolist()
    text = decode(tokens)
    print(f"question: {text} (in the training data: {write_sum(a, b) in train_texts})")
    with torch.no_grad():
        probabilities = model(idx[:, :-1])[0].softmax(dim=1)  # (8, vocab_size)、行 i は文字 i + 1 の予測
    for i in range(PROMPT_LENGTH, len(text)):
        probability = probabilities[i - 1, tokens[i]].item()
        print(f"  {text[:i]:8s} -> {text[i]}  (probability {probability:.4f})")

# %% どこを見て答えたか（held-out の全部の平均）
COLUMNS = ["10", "1", "+", "10", "1", "=", "100", "10"]  # 見られる 8 文字の、位の名前
TENS = [0, 3]
ONES = [1, 4]
panels = [("hundreds", TENS), ("tens", TENS), ("ones", ONES)]  # 書く位、図で枠を付ける列
mean_attention = attention.mean(dim=0).cpu()  # (N, n_head, 8, 8) -> (n_head, 8, 8)
print("layer 0 looks at      tens  ones")
for i in range(ANSWER_LENGTH):
    place, _ = panels[i]
    weights = mean_attention[:, PROMPT_LENGTH - 1 + i].mean(dim=0)  # ヘッドの平均: (8,)、和は 1
    print(f"to write the {place:8s} {weights[TENS].sum():.2f}  {weights[ONES].sum():.2f}")

# %% 図
rows = [["loss", "loss", "loss"], ["hundreds", "tens", "ones"]]
fig, axes = plt.subplot_mosaic(rows, figsize=(8.5, 7), layout="constrained")
axes["loss"].plot(range(1, STEPS + 1), losses, linewidth=0.8, color="#0072B2")
axes["loss"].set(title="Training", xlabel="step", ylabel="cross-entropy loss", yscale="log")
for i in range(ANSWER_LENGTH):
    place, columns = panels[i]
    weights = mean_attention[:, PROMPT_LENGTH - 1 + i]  # (n_head, 8)、各行の和は 1
    axes[place].imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for column in columns:
        axes[place].axvspan(column - 0.5, column + 0.5, fill=False, edgecolor="#D55E00", linewidth=2)
    axes[place].set(title=f"writing the {place}", xlabel="character looked at", ylabel="head")
    axes[place].set_xticks(range(len(COLUMNS)), COLUMNS)
    axes[place].set_yticks(range(len(weights)))
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
