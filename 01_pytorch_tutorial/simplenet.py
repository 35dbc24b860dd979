"""全結合層（nn.Linear）が計算する y = x @ W.T + b を、自分でも計算して確かめる。

これが最初のレッスンである。全結合層は、入力の数値のそれぞれに重み W を掛けて足し合わせ、バイアス b を加えることを、
出力の数値ごとに行う。

実行: python simplenet.py （python -i simplenet.py とすると、終わった後も net や layer を調べられる）
結果（2 コアの CPU で約 2 秒）:
    ReLU set 6 of 10 values to 0, at [row, column] [[0, 0], [0, 3], [0, 4], [1, 0], [1, 2], [1, 3]]
    y[0, 0] = -0.5065 * 0.2920 + -1.4561 * 0.4133 + 2.2925 * 0.2159 + 0.1208 = -0.1339
    largest difference from x @ W.T + b: 0.0e+00
説明: このフォルダの README.md
試してみよう:
    - by_hand の式から + bias を消すと、差（largest difference）はいくつになるか。その数は、ほかのどこに表示されているか。
    - F.relu(x) を F.relu(-x) に変えると、0 になる値は 10 個のうちいくつになるか。
    - IN_FEATURES を 4 倍の 12 にすると、初期値の範囲は何倍になるか。
"""

# %% 準備
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0  # 乱数のシード。同じシードからは同じ乱数が出る
IN_FEATURES = 3  # 式と比べる層の、入力の数値の個数
OUT_FEATURES = 2  # 同じ層の、出力の数値の個数

# テンソル（数値の配列）を置いて計算する装置をデバイスという。mps は Apple の GPU、cuda は NVIDIA の GPU である
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% モデル
class SimpleNet(nn.Module):
    """全結合層 1 つと ReLU だけのネットワーク。(B, 10) -> (B, 5)。B は一度に通すサンプルの数（バッチ）である。"""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        """x: (B, 10) -> (B, 5)"""
        x = self.fc(x)  # (B, 10) -> (B, 5)
        return F.relu(x)  # (B, 5)。ReLU は負の値を 0 にする。その働きは learn_hidden_layer.py で確かめる


# %% 全結合層と ReLU
net = SimpleNet().to(device)  # CPU で作ってから移すと、どのデバイスでも同じシードから同じ値が出る
samples = torch.randn(2, 10).to(device)  # 2 個のサンプルを一度に通す
# 訓練では、勾配（次のレッスンで学ぶ）を求めるために、途中の値が記録される。ここでは訓練しないので、記録しない
with torch.no_grad():
    before_relu = net.fc(samples)  # (2, 10) -> (2, 5)
    after_relu = net(samples)  # net(...) と呼ぶと、forward(...) が実行される: (2, 10) -> (2, 5)
print(f"input, shape {tuple(samples.shape)}:\n{samples}")
print(f"before ReLU, shape {tuple(before_relu.shape)}:\n{before_relu}")
print(f"after ReLU, shape {tuple(after_relu.shape)}:\n{after_relu}")

zeroed = []  # ReLU の後で 0 になった位置 [行, 列]
for row in range(2):
    for column in range(5):
        if after_relu[row, column] == 0:
            zeroed.append([row, column])
print(f"ReLU set {len(zeroed)} of {after_relu.numel()} values to 0, at [row, column] {zeroed}")

# %% 全結合層の出力
layer = nn.Linear(IN_FEATURES, OUT_FEATURES).to(device)
x = torch.randn(4, IN_FEATURES).to(device)  # 4 個のサンプル
with torch.no_grad():
    y = layer(x)  # (4, IN_FEATURES) -> (4, OUT_FEATURES)
weight = layer.weight.detach()  # (OUT_FEATURES, IN_FEATURES)。detach は、勾配のための記録から切り離す
bias = layer.bias.detach()  # (OUT_FEATURES,)
print(f"\nweight W:\n{weight}")
print(f"bias b:\n{bias}")
print(f"x:\n{x}")
print(f"layer(x), shape {tuple(y.shape)}:\n{y}")

# %% 出力 1 つを、掛け算と足し算で求める
# W の 1 行が、出力 1 つのための重みである。y[0, 0] は、x の行 0 と W の行 0 を順に掛けて足し、b[0] を加えたものになる
total = bias[0].item()
terms = []
for i in range(IN_FEATURES):
    total += x[0, i].item() * weight[0, i].item()
    terms.append(f"{x[0, i].item():.4f} * {weight[0, i].item():.4f}")
print(f"y[0, 0] = {' + '.join(terms)} + {bias[0].item():.4f} = {total:.4f}")

# %% すべての出力を、行列の積で一度に求める
# 行列の積 A @ B は、A の行と B の列を順に掛けて足す。使いたいのは W の行なので、行と列を入れ替えた W.T を使う
# (4, IN_FEATURES) @ (IN_FEATURES, OUT_FEATURES) + (OUT_FEATURES,) -> (4, OUT_FEATURES)。バイアスは 4 行のそれぞれに足される
by_hand = x @ weight.T + bias
difference = (y - by_hand).abs().max().item()  # 環境や大きさによっては、丸めで 1e-7 ほどの差が出る
print(f"x @ W.T + b:\n{by_hand}")
print(f"largest difference from x @ W.T + b: {difference:.1e}")

# %% 初期値の範囲
# 重みもバイアスも -√k から √k まで（k = 1 / in_features）の一様乱数で始まる
# 出典: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
k = 1 / IN_FEATURES
bound = k**0.5
largest_weight = weight.abs().max().item()
largest_bias = bias.abs().max().item()
largest = max(largest_weight, largest_bias)
print(f"initial values lie within +-sqrt({k:.4f}) = +-{bound:.4f}; the largest here is {largest:.4f}")
