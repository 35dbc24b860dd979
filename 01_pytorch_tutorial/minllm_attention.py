"""注意（attention）とは何かを、3 つのトークンと長さ 2 のベクトルで、電卓で確かめられる数として見る。

前のレッスン（learn_overfitting.py）との違い: 入力が、トークン（文章を区切った 1 単位。ここでは単語）の並びに
なる。これまでの層は入力を 1 件ずつ別々に処理した。注意は、並んだトークンの間で情報を渡す。訓練は、次の
minllm_heads.py で行う。

実行: python minllm_attention.py（2 コアの CPU で約 3 秒）
結果:
    chase looks at cats: 1 * 2 + 0 * 0 = 2, score 1.41, exp 4.11
    weights of chase: 0.58 0.28 0.14, output: 1.44 0.14
試してみよう:
    - W_QUERY の 4 つの数をすべて 0.0 にすると、chase の重みはいくつになるか。
    - W_KEY の 1.0 を 2 つとも 10.0 にすると、chase の重みと出力はどう変わるか。W_VALUE ならどうか。
解説: minllm_attention.md
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

SEED = 0
TOKENS = ["cats", "mice", "chase"]  # 「猫 ネズミ 追う」。日本語の語順で並べた
X = [[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]  # トークンごとの 2 つの数: 物としての大きさ、動作らしさ
# 次の 3 つの行列は、人が選んだ。minllm_heads.py では訓練で決まる
W_QUERY = [[0.0, 1.0], [1.0, 0.0]]  # 2 つの数を入れ替える。動作は大きな物を探し、物は動作を探す
W_KEY = [[1.0, 0.0], [0.0, 1.0]]  # そのまま
W_VALUE = [[1.0, 0.0], [0.0, 1.0]]  # そのまま
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_attention.png"
torch.manual_seed(SEED)


def show(name, matrix):
    """行列 (T, N) を、小数第 2 位までの表にして表示する。"""
    print(name)
    for row in matrix.tolist():
        print("".join(f"{number:8.2f}" for number in row))


def compare(name, first, second):
    """同じ形の 2 つのテンソルの差が、丸め誤差しかないかを表示する。"""
    difference = (first - second).abs().max().item()
    print(f"{name}: largest difference below 1e-6: {difference < 1e-6}")


# %% 1. 自分と自分より前のトークンを、等しい重みで混ぜる
x = torch.tensor(X)  # (T, 2)、T は 3
T = len(TOKENS)
lower = torch.ones(T, T).tril()  # 下三角行列: 列が行より後なら 0、ほかは 1
equal_weights = lower / lower.sum(dim=1, keepdim=True)  # 行ごとに、和を 1 にする
show("equal weights", equal_weights)
show("averages", equal_weights @ x)  # (T, T) @ (T, 2) -> (T, 2)。行 i は、位置 0 から i までの x の平均になる

# %% 2. スコアを query と key で決める
query = x @ torch.tensor(W_QUERY).T  # 何を探すか。バイアスのない nn.Linear と同じ計算: (T, 2) -> (T, 2)
key = x @ torch.tensor(W_KEY).T  # 何を持つか
value = x @ torch.tensor(W_VALUE).T  # 渡す中身
show("query", query)

# 最後のトークン chase の 1 行を、電卓でもできる計算で求める
head_size = 2  # query と key の長さ
q_first, q_second = query[2].tolist()
exponentials = []
for i in range(T):
    k_first, k_second = key[i].tolist()
    dot_product = q_first * k_first + q_second * k_second
    score = dot_product / math.sqrt(head_size)
    exponential = math.exp(score)
    exponentials.append(exponential)
    products = f"{q_first:.0f} * {k_first:.0f} + {q_second:.0f} * {k_second:.0f}"
    result = f"{dot_product:.0f}, score {score:.2f}, exp {exponential:.2f}"
    print(f"chase looks at {TOKENS[i]}: {products} = {result}")
total = sum(exponentials)
hand_weights = [exponential / total for exponential in exponentials]  # softmax: 和で割ると、和が 1 になる
hand_output = [0.0, 0.0]
for i in range(T):
    v_first, v_second = value[i].tolist()
    hand_output[0] += hand_weights[i] * v_first
    hand_output[1] += hand_weights[i] * v_second
weights_text = " ".join(f"{weight:.2f}" for weight in hand_weights)
print(f"weights of chase: {weights_text}, output: {hand_output[0]:.2f} {hand_output[1]:.2f}")


# %% 3. すべての行を一度に計算する
def attend(query, key, value, causal):
    """query, key, value (T, head_size) -> 出力 (T, head_size) と、注意の重み (T, T)。

    出典: https://arxiv.org/abs/1706.03762 の式 (1)
    """
    T, head_size = query.shape
    scores = query @ key.T / math.sqrt(head_size)  # (T, T)、行の位置が列の位置を見る強さ
    if causal:
        future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)  # 列が行より後なら True
        scores = scores.masked_fill(future, -math.inf)  # exp(-inf) = 0 なので、未来の重みは 0 になる
    attention = scores.softmax(dim=1)  # (T, T)、各行の和は 1
    return attention @ value, attention


_, open_attention = attend(query, key, value, causal=False)
output, attention = attend(query, key, value, causal=True)
show("attention without the mask", open_attention)
show("attention with the mask", attention)
compare("last row, and by hand", output[2], torch.tensor(hand_output))
by_torch = F.scaled_dot_product_attention(query, key, value, is_causal=True)
compare("all rows, and F.scaled_dot_product_attention", output, by_torch)

# %% 4. 1 段の注意では、順序が分からない
swapped = [1, 0, 2]  # mice cats chase（ネズミ 猫 追う）
moved, _ = attend(query[swapped], key[swapped], value[swapped], causal=True)
compare("swap cats and mice, mask, output of chase stays", moved[2], output[2])

# %% 5. √head_size で割る理由
for size in (2, 64):
    products = torch.randn(10000, size) * torch.randn(10000, size)  # 平均 0、標準偏差 1 の乱数どうしの積
    deviation = products.sum(dim=1).std().item()  # 内積 10,000 個の標準偏差
    print(f"head_size {size:2d}: standard deviation of q @ k {deviation:.1f}, sqrt {math.sqrt(size):.1f}")
for divisor in (1, 8):
    dot_products = torch.tensor([8.0, 0.0, -8.0], requires_grad=True)  # head_size が 64 なら、よくある大きさ
    weights = (dot_products / divisor).softmax(dim=0)
    weights[0].backward()  # 1 つ目の重みを、内積で微分する
    weights_text = " ".join(f"{weight:.4f}" for weight in weights.tolist())
    print(f"softmax of [8, 0, -8] / {divisor}: {weights_text}, gradient {dot_products.grad[0].item():.5f}")

# %% 図: 行のトークンが、列のトークンの value を混ぜる重み
panels = [
    ("equal weights", equal_weights),
    ("attention without the mask", open_attention),
    ("attention with the mask", attention),
]
fig, all_axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for axes, (name, weights) in zip(all_axes, panels):
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(T), TOKENS)
    axes.set_yticks(range(T), TOKENS)
    axes.set(title=name, xlabel="token looked at", ylabel="token that looks")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
