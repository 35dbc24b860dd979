"""ミニ GPT をゼロから訓練し、2 桁までの足し算を覚えさせる。

前のレッスン（minllm.py）との違い: 同じモデルが初めて学ぶ。教えるのは「次の文字を予測する」ことだけで、計算の規則は
与えない。それでも、訓練に使わなかった問題に答えられるようになる。新しいのは、1 文字ずつ書く自己回帰、ミニバッチ、AdamW、
学習率の上げ下げ、勾配の大きさの制限である。どれも、初めて出てくる行で説明する。

実行: python minllm_addition.py （質問を加えるなら -q "8+56"）
結果（2 コアの CPU で約 20 秒）:
    held-out exact match: 100.0% of 986 sums
    question: 47+85=132
説明: このフォルダの README.md
試してみよう:
    - NUM_HELD_OUT_PAIRS を 5000、STEPS を 300 にして、50 組だけで訓練すると、最後の loss と held-out はいくつになるか。
    - STEPS を 300 にして、答えを逆に書くのをやめる（2 か所の [::-1] を消す）と、held-out はいくつになるか。
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
BATCH_SIZE = 128  # 1 回の更新に使う問題の数
LEARNING_RATE = 3e-3  # 学習率の最大値。訓練の途中で上げ下げする
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_addition.png"

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-q", "--question", action="append", default=["47+85"], help="47+85 に続けて解かせる足し算（何度でも）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
for question in args.question:
    if not re.fullmatch(r"[0-9]{1,2}\+[0-9]{1,2}", question):
        parser.error(f"--question の {question!r} は足し算ではない。47+85 のように、2 桁までの数を 2 つ + でつなぐ")

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ
def write_sum(a, b):
    """a + b の問題と答えを、9 文字で書く。(47, 85) なら "47+85=231" である。"""
    # 答えは、筆算のように 1 の位から逆向きに書く。どの桁を書くときにも、その下の桁はもう書いてある
    answer = f"{a + b:03d}"
    return f"{a:02d}+{b:02d}=" + answer[::-1]


def readable(text):
    """逆向きの答えを普通の向きに直す。"47+85=231" なら "47+85=132" である。"""
    answer = text[PROMPT_LENGTH:]
    return text[:PROMPT_LENGTH] + answer[::-1]


def encode(text):
    """文字列を、トークン番号のリストにする。"""
    return [VOCABULARY.index(character) for character in text]


def decode(tokens):
    """トークン番号のリストを、文字列に戻す。"""
    return "".join(VOCABULARY[token] for token in tokens)


def make_data(pairs):
    """数の組のリストを、足し算のトークン番号 (N, 9) にする。どの組 (a, b) からも、a + b と b + a を作る。"""
    rows = []
    for a, b in pairs:
        rows.append(encode(write_sum(a, b)))
        if a != b:
            rows.append(encode(write_sum(b, a)))
    return torch.tensor(rows).to(device)


# 順序を問わない組で分ける。37+97 を評価に使うなら、左右を入れ替えた 97+37 も評価に使い、訓練には入れない
pairs = []
for a in range(100):
    for b in range(a, 100):
        pairs.append((a, b))
shuffled = [pairs[i] for i in torch.randperm(len(pairs)).tolist()]
held_out = make_data(shuffled[:NUM_HELD_OUT_PAIRS])  # (およそ 1000, 9)
train_data = make_data(shuffled[NUM_HELD_OUT_PAIRS:])  # (およそ 9000, 9)
print(f"data: {len(train_data)} sums for training, {len(held_out)} held out")


# %% モデル（GPTConfig の値のほかは minllm.py と同じなので、読み飛ばしてよい）
@dataclass
class GPTConfig:
    """モデルの大きさ。最後の文字は予測するだけで入力しないので、block_size は 9 より 1 つ少ない。"""

    vocab_size: int = len(VOCABULARY)
    block_size: int = PROMPT_LENGTH + ANSWER_LENGTH - 1
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64


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


model = GPT(GPTConfig()).to(device)
print(f"model: {sum(p.numel() for p in model.parameters())} parameters")


# %% 生成
def generate(idx):
    """問題 (B, 6) に、答えを 1 文字ずつ書き足して (B, 9) にする。書いた文字を次の入力に加えることを、自己回帰という。"""
    for _ in range(ANSWER_LENGTH):
        with torch.no_grad():
            logits = model(idx)  # (B, T) -> (B, T, vocab_size)
        last_logits = logits[:, -1]  # 最後の位置だけが、まだ書かれていない文字を予測する: (B, vocab_size)
        next_token = last_logits.argmax(dim=1, keepdim=True)  # 最も確率の高い文字を選ぶ: (B, 1)
        idx = torch.cat([idx, next_token], dim=1)  # (B, T) -> (B, T + 1)
    return idx


# %% 訓練
# AdamW は、更新のたびに重みを 0 へ少し引き戻す処理（重み減衰）を、Adam に加えたものである
optimizer = torch.optim.AdamW(model.parameters())
# 学習率は scheduler が決める。初めの 3 割のステップで最大値まで上げ、残りでほぼ 0 まで下げる。Adam の β1（勾配の移動平均に、過去を
# どれだけ残すか）も逆向きに動かすが、ここでは気にしなくてよい。出典: https://arxiv.org/abs/1708.07120
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
losses = []  # 毎ステップの訓練の損失
checked_steps = []  # held-out の問題を解かせたステップ
exact_matches = []  # そのときの正解率（%）
model.train()
for step in range(1, STEPS + 1):
    chosen = torch.randint(len(train_data), (BATCH_SIZE,)).to(device)
    batch = train_data[chosen]  # (B, 9)。全部を使わず、無作為に選んだ少数で 1 回更新する。これをミニバッチという
    # 因果マスクがあるので、どの位置も後ろの文字を見ない。だから 1 回の順伝播で、答えの 3 文字をまとめて訓練できる
    logits = model(batch[:, :-1])  # (B, 8) -> (B, 8, vocab_size)。どの位置も、その次の文字を予測する
    # 問題の部分は損失に入れない。2 つの数は無作為なので、予測しようがない
    answer_logits = logits[:, -ANSWER_LENGTH:]  # (B, 3, vocab_size)
    answers = batch[:, -ANSWER_LENGTH:]  # (B, 3)
    loss = F.cross_entropy(answer_logits.flatten(0, 1), answers.flatten())
    loss.backward()
    # 勾配の大きさ（全パラメータの勾配の 2 乗和の平方根）が 1 を超えたら、1 に縮める。1 回の更新が大きくなりすぎない
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()

    losses.append(loss.detach())
    if step % 100 == 0 or step == STEPS:
        model.eval()
        written = generate(held_out[:, :PROMPT_LENGTH])  # (N, 6) -> (N, 9)
        model.train()
        correct = (written == held_out).all(dim=1)  # (N,)、9 文字がすべて一致すれば True
        exact_match = 100 * correct.float().mean().item()
        checked_steps.append(step)
        exact_matches.append(exact_match)
        samples = "  ".join(readable(decode(tokens)) for tokens in written[:4].tolist())
        print(f"step {step:4d}  loss {loss.item():.4f}  held-out {exact_match:5.1f}%  {samples}", flush=True)
print(f"held-out exact match: {exact_match:.1f}% of {len(held_out)} sums")

# %% 質問に答える
model.eval()
# 訓練に使った問題のこともある（SEED が 0 のとき、47+85 は訓練に入っている）
for question in args.question:
    left, right = question.split("+")
    prompt = f"{int(left):02d}+{int(right):02d}="
    idx = torch.tensor([encode(prompt)]).to(device)  # (1, 6)
    idx = generate(idx)  # (1, 6) -> (1, 9)
    tokens = idx[0].tolist()
    text = decode(tokens)  # 書いた順の 9 文字
    print(f"question: {readable(text)}")
    with torch.no_grad():
        logits = model(idx[:, :-1])  # (1, 8) -> (1, 8, vocab_size)
    probabilities = logits[0].softmax(dim=1).tolist()  # i 行目は、i + 1 番目の文字の予測
    for i in range(PROMPT_LENGTH, len(text)):
        probability = probabilities[i - 1][tokens[i]]
        print(f"  {text[:i]:8s} -> {text[i]}  (probability {probability:.4f})")
# 最後の質問で、各位置がどの文字を見たか
attention = torch.stack([block.attn.attention[0] for block in model.h]).cpu()  # (n_layer, n_head, 8, 8)

# %% 図
fig = plt.figure(figsize=(8.5, 7), layout="constrained")
upper, lower = fig.subfigures(2, 1)
loss_axes, exact_axes = upper.subplots(1, 2)
loss_axes.plot(range(1, STEPS + 1), torch.stack(losses).cpu().numpy(), linewidth=0.8, color="#0072B2")
loss_axes.set(title="Training", xlabel="step", ylabel="cross-entropy loss", yscale="log")
exact_axes.plot(checked_steps, exact_matches, "o-", color="#D55E00")
exact_axes.set(title=f"{len(held_out)} held-out sums", xlabel="step", ylabel="exact match (%)", ylim=(-3, 103))

# 答えの 1 文字を書くごとに 1 枚。行は layer 0（1 つ目のブロック）のヘッド、列は見られる文字
panels = [  # 書く桁の名前、問題の中で同じ桁の数字がある列
    ("ones", [1, 4]),
    ("tens", [0, 3]),
    ("hundreds", []),
]
maps = lower.subplots(1, ANSWER_LENGTH, sharey=True)
for i in range(ANSWER_LENGTH):
    place, columns = panels[i]
    position = PROMPT_LENGTH + i - 1  # この位置が、次の文字 text[position + 1] を予測する
    weights = attention[0, :, position]  # (n_head, 8)、各行の和は 1
    maps[i].imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for column in columns:
        maps[i].axvspan(column - 0.5, column + 0.5, fill=False, edgecolor="#D55E00", linewidth=2)
    maps[i].set(title=f"writing the {place}: {text[position + 1]}", xlabel="character looked at")
    maps[i].set_xticks(range(len(text) - 1), text[:-1], fontsize=12)
    maps[i].set_yticks(range(len(weights)))
maps[0].set_ylabel("head")
lower.suptitle(f"{readable(text)}: attention of layer 0 (dark = 1, white = 0). Frames: digits of the same place")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
