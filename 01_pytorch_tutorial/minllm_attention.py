"""注意（attention）とは何かを、3 つのトークンと長さ 2 のベクトルで、電卓で確かめられる数として見る。

前のレッスン（learn_overfitting.py）との違い: 入力が、トークン（文章を区切った 1 単位。ここでは単語）の並びになる。
これまでの層は入力を 1 件ずつ別々に処理した。注意は、並んだトークンの間で情報を渡す。訓練は、次の minllm_heads.py で行う。

実行: python minllm_attention.py
結果（2 コアの CPU で約 3 秒）:
    sleep looks at cats   1 * 2 + 0 * 0 = 2, divided by sqrt(2) 1.41, exp 4.11
    weights of sleep: 0.77 0.05 0.19, output: 7.23 1.87
説明: このフォルダの README.md
試してみよう:
    - W_QUERY の 4 つの数をすべて 0.0 にすると、sleep の重みはいくつになるか。
    - attend の / math.sqrt(head_size) を消すと、sleep の出力は、手の計算の 7.23 からいくつに変わるか。
    - W_KEY の 2.0 を 2 つとも 20.0 にすると、sleep の重みはいくつになるか。
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

SEED = 0
TOKENS = ["cats", "never", "sleep"]
X = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]  # トークンごとのベクトル。1 つ目はどれだけ物らしいか、2 つ目はどれだけ動作らしいか
# never の -1 は、打ち消す語なので、cats と逆向きに選んだ。次の 3 つの行列の数も人が選んだ（minllm_heads.py では訓練で決まる）
W_QUERY = [[0.0, 1.0], [1.0, 0.0]]  # 2 つの数を入れ替える。動作は物を探し、物は動作を探す
W_KEY = [[2.0, 0.0], [0.0, 2.0]]  # 2 倍する
W_VALUE = [[10.0, 0.0], [0.0, 10.0]]  # 10 倍する
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
show("averages", equal_weights @ x)  # (T, T) @ (T, 2) -> (T, 2)。行 i は、位置 0 から i までの x の平均になる

# %% 2. 同じ重みを、スコア（どれだけ強く見るか）の softmax で作る
# 自分と自分より前のスコアがすべて 0 なら、重みは等しい。未来（自分より後のトークン）のスコアを -inf にすると、exp(-inf) = 0
# なので、重みは 0 になる。これを因果マスク（causal mask）という。次のトークンを予測するモデルに未来を見せると、答えを見せることに
# なるからである
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

# 最後のトークン sleep の 1 行を、電卓でもできる計算で求める。スコアは、query と key の内積（対応する数の積の和）を √head_size で
# 割った数である。スコアが大きい相手ほど、その value を多く混ぜる。割る理由は、6. で見る
head_size = 2  # query と key の長さ
q_first, q_second = query[2].tolist()
exponentials = []
for i in range(T):
    k_first, k_second = key[i].tolist()
    dot_product = q_first * k_first + q_second * k_second
    score = dot_product / math.sqrt(head_size)
    exponentials.append(math.exp(score))
    products = f"{q_first:.0f} * {k_first:.0f} + {q_second:.0f} * {k_second:.0f}"
    print(f"sleep looks at {TOKENS[i]:5s}  {products} = {dot_product:.0f}, "
          f"divided by sqrt(2) {score:.2f}, exp {exponentials[i]:.2f}")
hand_weights = [exponential / sum(exponentials) for exponential in exponentials]  # softmax: 和で割ると、和が 1 になる
hand_output = [0.0, 0.0]
for weight, (v_first, v_second) in zip(hand_weights, value.tolist()):
    hand_output[0] += weight * v_first
    hand_output[1] += weight * v_second
weights_text = " ".join(f"{weight:.2f}" for weight in hand_weights)
output_text = " ".join(f"{number:.2f}" for number in hand_output)
print(f"weights of sleep: {weights_text}, output: {output_text}")


# %% 4. すべての行を一度に計算する
def attend(query, key, value, causal):
    """query, key, value (..., T, head_size) -> 出力 (..., T, head_size) と、注意の重み (..., T, T)。T は系列の長さ

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
# PyTorch の関数とも等しい。（系列の本数、ヘッドの数、T、head_size）の形で渡すので、None で長さ 1 の次元を 2 つ足す
by_torch = F.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None], is_causal=True)
print(f"F.scaled_dot_product_attention: largest difference {(output - by_torch).abs().max().item():.1e}")

# %% 5. 注意だけでは、順序が分からない
swapped = [1, 0, 2]  # never cats sleep
open_moved, _ = attend(query[swapped], key[swapped], value[swapped], causal=False)
moved, _ = attend(query[swapped], key[swapped], value[swapped], causal=True)
# マスクがなければ、トークンを入れ替えると、出力も同じように入れ替わるだけで、値は変わらない
difference = (open_moved - open_output[swapped]).abs().max().item()
print(f"swap two tokens, no mask: the outputs swap, difference {difference:.1e}")
# マスクが教えるのは、前にあるかどうかだけで、いくつ前かではない。cats も never も sleep より前なので、sleep の出力は変わらない
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
# 偏った softmax では、スコアを動かしても重みがほとんど動かない。勾配がほぼ 0 なので、query と key の訓練が進みにくい

# %% 図: 行のトークンが、列のトークンの value を混ぜる重み
panels = [
    ("1. equal weights", equal_weights),
    ("4. attention without the mask", open_attention),
    ("4. attention with the mask", attention),
]
fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for one, (name, weights) in zip(axes, panels):
    one.imshow(weights.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    for row in range(T):
        for column in range(T):
            weight = weights[row, column].item()
            one.text(column, row, f"{weight:.2f}", ha="center", va="center", color="white" if weight > 0.5 else "black")
    one.set(title=name, xticks=range(T), xticklabels=TOKENS, yticks=range(T), yticklabels=TOKENS,
            xlabel="token looked at", ylabel="token that looks")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
