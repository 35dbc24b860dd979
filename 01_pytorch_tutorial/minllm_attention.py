"""注意（attention）とは何かを、3 つのトークンと長さ 2 のベクトルで、電卓で確かめられる数として見る。次に、注意を訓練する。

前のレッスン（learn_overfitting.py）との違い: 入力が、トークン（文章を区切った 1 単位。ここでは単語）の並びになる。
これまでの層は入力を 1 件ずつ別々に処理した。注意は、並んだトークンの間で情報を渡す。次の minllm.py の中心になる。

実行: python minllm_attention.py
結果（2 コアの CPU で約 5 秒）:
    weights of sleep: 0.77 0.05 0.19, output: 7.23 1.87
    1 head, 3 back: 100.0%
    1 head, 3 back, no positions: 33.1%
説明: このフォルダの README.md
試してみよう:
    - W_QUERY の 4 つの数をすべて 0.0 にすると、sleep の重みはいくつになるか。
    - attend の / math.sqrt(head_size) を消すと、sleep の出力は、手の計算の 7.23 からいくつに変わるか。
    - VOCAB_SIZE を 2 にすると、no attention の正解率はいくつになるか。
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
TOKENS = ["cats", "never", "sleep"]
X = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]  # トークンごとのベクトル。1 つ目はどれだけ物らしいか、2 つ目はどれだけ動作らしいか
# 3 つの行列の数は、人が選んだ。後半では、ほかの重みと同じように訓練で決まる
W_QUERY = [[0.0, 1.0], [1.0, 0.0]]  # 2 つの数を入れ替える。動作は物を探し、物は動作を探す
W_KEY = [[2.0, 0.0], [0.0, 2.0]]  # 2 倍する
W_VALUE = [[10.0, 0.0], [0.0, 10.0]]  # 10 倍する
VOCAB_SIZE = 8  # 訓練に使うトークンの種類の数
BLOCK_SIZE = 16  # 1 本の系列に並ぶトークンの数
N_EMBD = 32  # 1 トークンを表すベクトルの長さ
FIRST = 3  # 答えを出し始める位置。最も遠い答えが 3 つ前なので、位置 0、1、2 には答えがない
STEPS = 200  # 重みを更新する回数
BATCH_SIZE = 64  # 1 回の更新に使う系列の本数
LEARNING_RATE = 1e-2
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_attention.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


def show(name, matrix):
    """行列 (T, N) を、小数第 2 位までの表にして表示する。"""
    print(name)
    for row in matrix.tolist():
        print("".join(f"{number:8.2f}" for number in row))


# %% 1. 自分と自分より前のトークンを、等しい重みで混ぜる
x = torch.tensor(X).to(device)  # (T, 2)、T は 3
T = len(TOKENS)
lower = torch.ones(T, T).tril().to(device)  # 下三角行列: 列が行より後なら 0、ほかは 1
equal_weights = lower / lower.sum(dim=1, keepdim=True)  # 行ごとに、和を 1 にする
show("equal weights", equal_weights)
show("averages", equal_weights @ x)  # (T, T) @ (T, 2) -> (T, 2)。i 行目は、i 番目までの x の平均になる

# %% 2. 同じ重みを、スコア（どれだけ強く見るか）の softmax で作る
# 自分と自分より前のスコアがすべて 0 なら、重みは等しい。未来のスコアを -inf にすると exp(-inf) = 0 なので、重みは 0 になる。
# これを因果マスク（causal mask）という。次のトークンを予測するモデルで未来を見せると、答えそのものを見せることになる
future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1).to(device)  # 列が行より後なら True
zero_scores = torch.zeros(T, T).to(device).masked_fill(future, -math.inf)
difference = (zero_scores.softmax(dim=1) - equal_weights).abs().max().item()
print(f"softmax of scores 0 and -inf: largest difference from the equal weights {difference:.1e}")

# %% 3. スコアを query と key で決める
# 1 つの x から、3 つの行列で別々のベクトルを作る。query は何を探すか、key は何を持つか、value は渡す中身である
query = x @ torch.tensor(W_QUERY).to(device).T  # バイアスのない nn.Linear と同じ計算: (T, 2) -> (T, 2)
key = x @ torch.tensor(W_KEY).to(device).T
value = x @ torch.tensor(W_VALUE).to(device).T
print("token       x          query        key           value")
for i in range(T):
    vectors = [x[i].tolist(), query[i].tolist(), key[i].tolist(), value[i].tolist()]
    print(f"{TOKENS[i]:6s} " + "  ".join(f"({first:4.0f}, {second:3.0f})" for first, second in vectors))

# 最後のトークン sleep の 1 行を、電卓でもできる計算で求める。スコアは query と key の内積（対応する数の積の和）である。
# 内積が大きい相手ほど、その value を多く混ぜる。内積を √head_size で割る理由は、6. で見る
head_size = 2  # query と key の長さ
q_first, q_second = query[2].tolist()
exponentials = []
for i in range(T):
    k_first, k_second = key[i].tolist()
    score = q_first * k_first + q_second * k_second
    divided = score / math.sqrt(head_size)
    exponentials.append(math.exp(divided))
    dot_product = f"{q_first:.0f} * {k_first:.0f} + {q_second:.0f} * {k_second:.0f}"
    print(f"sleep looks at {TOKENS[i]:5s}  {dot_product} = {score:.0f}, "
          f"divided by sqrt(2) {divided:.2f}, exp {exponentials[i]:.2f}")
hand_weights = [exponential / sum(exponentials) for exponential in exponentials]  # softmax: 和で割ると、和が 1 になる
hand_output = [0.0, 0.0]
for weight, (v_first, v_second) in zip(hand_weights, value.tolist()):
    hand_output[0] += weight * v_first
    hand_output[1] += weight * v_second
print(f"weights of sleep: {' '.join(f'{weight:.2f}' for weight in hand_weights)}, "
      f"output: {' '.join(f'{number:.2f}' for number in hand_output)}")


# %% 4. すべての行を一度に計算する
def attend(query, key, value, causal):
    """query, key, value (..., T, head_size) -> 出力 (..., T, head_size) と、注意（混ぜる重み）(..., T, T)

    出典: https://arxiv.org/abs/1706.03762 の式 (1)
    """
    T, head_size = query.shape[-2:]
    scores = query @ key.transpose(-2, -1) / math.sqrt(head_size)  # (..., T, T)、行の位置が列の位置を見る強さ
    if causal:
        future = torch.ones(T, T, dtype=torch.bool, device=query.device).triu(diagonal=1)
        scores = scores.masked_fill(future, -math.inf)
    attention = scores.softmax(dim=-1)  # 各行の和は 1
    return attention @ value, attention


open_output, open_attention = attend(query, key, value, causal=False)
output, attention = attend(query, key, value, causal=True)
show("attention without the mask", open_attention)
show("attention with the mask", attention)  # cats が探していた動作 sleep は、後にあるので見えなくなる
show("outputs with the mask", output)
difference = (output[2] - torch.tensor(hand_output).to(device)).abs().max().item()
print(f"last row by hand: largest difference {difference:.1e}")
# PyTorch の関数とも等しい。None を添えて、(B, n_head, T, head_size) の形で渡す
by_torch = F.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None], is_causal=True)
print(f"F.scaled_dot_product_attention: largest difference {(output - by_torch).abs().max().item():.1e}")

# %% 5. 注意だけでは、順序が分からない
swapped = [1, 0, 2]  # never cats sleep
open_moved, _ = attend(query[swapped], key[swapped], value[swapped], causal=False)
moved, _ = attend(query[swapped], key[swapped], value[swapped], causal=True)
# マスクがなければ、トークンを入れ替えると、出力も同じように入れ替わるだけで、値は変わらない
difference = (open_moved - open_output[swapped]).abs().max().item()
print(f"swap two tokens, no mask: the outputs swap, difference {difference:.1e}")
# マスクが教えるのは、前にあるかどうかだけで、いくつ前かではない。どちらも前にある sleep の出力は、変わらない
difference = (moved[2] - output[2]).abs().max().item()
print(f"swap two tokens, mask: the output of sleep stays, difference {difference:.1e}")

# %% 6. √head_size で割る理由: ベクトルが長いほど内積が大きくなり、softmax が 1 つに偏る
for size in (2, 64):
    products = torch.randn(10000, size) * torch.randn(10000, size)  # 平均 0、標準偏差 1 の乱数どうしの積
    deviation = products.sum(dim=1).std().item()  # 内積 10,000 個の標準偏差
    print(f"head_size {size:2d}: standard deviation of q @ k {deviation:.2f}, sqrt {math.sqrt(size):.2f}")
# head_size が 64 のときによくある大きさのスコアと、それを √64 = 8 で割ったスコアで、softmax を比べる
for scores in ([8.0, 0.0, -8.0], [1.0, 0.0, -1.0]):
    before = torch.tensor(scores).softmax(dim=0).tolist()
    after = torch.tensor([scores[0] + 0.1, scores[1], scores[2]]).softmax(dim=0).tolist()
    print(f"softmax of {scores}: {before[0]:.4f} {before[1]:.4f} {before[2]:.4f}, "
          f"first score + 0.1: first weight + {after[0] - before[0]:.5f}")
# 偏った softmax では、スコアを動かしても重みがほとんど動かない。勾配がほぼ 0 なので、query と key の訓練が進まない


# %% 7. 訓練: 3 つ前のトークンを答える
class Head(nn.Module):
    """注意を計算する 1 組。ヘッドという。"""

    def __init__(self, head_size):
        super().__init__()
        self.query = nn.Linear(N_EMBD, head_size, bias=False)
        self.key = nn.Linear(N_EMBD, head_size, bias=False)
        self.value = nn.Linear(N_EMBD, head_size, bias=False)

    def forward(self, x):
        """(B, T, N_EMBD) -> (B, T, head_size)"""
        x, attention = attend(self.query(x), self.key(x), self.value(x), causal=True)
        self.attention = attention.detach()  # (B, T, T)、図に描くために残す
        return x


class TinyModel(nn.Module):
    """埋め込み、n_head 個のヘッド、全結合層を順に並べたモデル。位置ごとに n_answer 個のトークンを答える。"""

    def __init__(self, n_head, n_answer, positions=True):
        super().__init__()
        self.n_answer = n_answer
        self.positions = positions
        # nn.Embedding は、番号 i を渡すと i 行目のベクトルを返す表である。表の数は、ほかの重みと同じように訓練で決まる
        self.wte = nn.Embedding(VOCAB_SIZE, N_EMBD)  # トークンの埋め込み
        self.wpe = nn.Embedding(BLOCK_SIZE, N_EMBD)  # 位置の埋め込み。何番目にあるかを、注意に教える
        self.heads = nn.ModuleList(Head(N_EMBD // n_head) for _ in range(n_head))
        self.lm_head = nn.Linear(N_EMBD, n_answer * VOCAB_SIZE)

    def forward(self, idx):
        """トークン番号 (B, T) -> ロジット (B, T, n_answer, VOCAB_SIZE)"""
        x = self.wte(idx)  # (B, T) -> (B, T, N_EMBD)
        if self.positions:
            x = x + self.wpe(torch.arange(BLOCK_SIZE, device=idx.device))  # (B, T, N_EMBD) + (T, N_EMBD)
        if len(self.heads) > 0:
            x = torch.cat([head(x) for head in self.heads], dim=2)  # ヘッドの出力を横につなぐ: (B, T, N_EMBD)
        logits = self.lm_head(x)  # (B, T, N_EMBD) -> (B, T, n_answer * VOCAB_SIZE)
        return logits.unflatten(2, (self.n_answer, VOCAB_SIZE))


def make_data(n, distances):
    """でたらめな系列 (n, T) と、distances だけ前にあるトークン (n, T - FIRST, n_answer) を返す。"""
    idx = torch.randint(VOCAB_SIZE, (n, BLOCK_SIZE)).to(device)
    answers = [idx[:, FIRST - distance:BLOCK_SIZE - distance] for distance in distances]
    return idx, torch.stack(answers, dim=2)


accuracies = {}


def train(name, model, distances):
    """model を訓練し、訓練に使わない系列 1,000 本で、すべての答えが正しい位置の割合を表示する。"""
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        idx, answers = make_data(BATCH_SIZE, distances)
        logits = model(idx)[:, FIRST:]  # (B, T - FIRST, n_answer, VOCAB_SIZE)
        loss = F.cross_entropy(logits.flatten(0, 2), answers.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    idx, answers = make_data(1000, distances)
    with torch.no_grad():
        predictions = model(idx)[:, FIRST:].argmax(dim=3)  # (1000, T - FIRST, n_answer)
    accuracies[name] = 100 * (predictions == answers).all(dim=2).float().mean().item()
    print(f"{name}: {accuracies[name]:.1f}%", flush=True)
    return model


one_head = train("1 head, 3 back", TinyModel(n_head=1, n_answer=1), [3])
no_positions = train("1 head, 3 back, no positions", TinyModel(n_head=1, n_answer=1, positions=False), [3])
no_attention = train("no attention, 3 back", TinyModel(n_head=0, n_answer=1), [3])  # 8 つから 1 つを選ぶ、でたらめと同じ
# 1 つのヘッドが 1 つの位置から作る重みは、1 組しかない。別々の 2 か所から別々の答えを受け取るには、2 組が必要になる
one_for_two = train("1 head, 1 and 3 back", TinyModel(n_head=1, n_answer=2), [1, 3])
two_heads = train("2 heads, 1 and 3 back", TinyModel(n_head=2, n_answer=2), [1, 3])

# %% 評価: 注意は、本当に 3 つ前を見ているか
idx, _ = make_data(1000, [3])
changed = idx.clone()
changed[:, 5] = (changed[:, 5] + 1) % VOCAB_SIZE  # どの系列でも、位置 5 のトークンだけを別のものに変える
with torch.no_grad():
    before = one_head(idx).argmax(dim=3)  # (1000, T, 1)
    after = one_head(changed).argmax(dim=3)
changes = (before != after).sum(dim=(0, 2)).tolist()  # 位置ごとに、答えが変わった系列の本数
print(f"change the token at position 5: changed answers at positions 0 to 15: {changes}")
# 位置の埋め込みがないモデルは、前にどのトークンがいくつあったかしか知らない。最も多いトークンを答える規則と比べる
counts = F.one_hot(idx, VOCAB_SIZE).cumsum(dim=1)  # (1000, T, VOCAB_SIZE)、その位置までに現れた回数
most_frequent = counts.argmax(dim=2)[:, FIRST:]
accuracy = 100 * (most_frequent == idx[:, :-FIRST]).float().mean().item()
print(f"say the most frequent token so far: {accuracy:.1f}%")

# %% 図
panels = [  # 題、描くヘッド、答えが何個前にあるか
    ("1 head, 3 back", one_head.heads[0], [3]),
    ("1 head, 3 back, no positions", no_positions.heads[0], [3]),
    ("2 heads, 1 and 3 back", two_heads.heads[0], [1, 3]),
    ("2 heads, 1 and 3 back", two_heads.heads[1], [1, 3]),
]
fig, axes = plt.subplots(2, 2, figsize=(8.5, 8.5), sharex=True, sharey=True, layout="constrained")
fig.suptitle("Attention of one head (dark = 1, white = 0). Circles: where the answers stand")
for one, (name, head, distances) in zip(axes.flat, panels):
    mean_attention = head.attention.mean(dim=0)  # 1,000 本の系列での平均: (1000, T, T) -> (T, T)
    one.imshow(mean_attention.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    rows = range(FIRST, BLOCK_SIZE)
    for distance in distances:
        one.plot([row - distance for row in rows], rows, "o", color="#D55E00", fillstyle="none", markeredgewidth=1.5)
    one.set_title(f"{name}: {accuracies[name]:.1f}%")
for number, one in enumerate(axes[1]):
    one.set_xlabel(f"position looked at by head {number}")
for one in axes[:, 0]:
    one.set_ylabel("position that looks")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
