"""全結合層（nn.Linear）が何を計算しているのかを、その式を自分で書いて計算した値と比べて確かめる。

実行: python simplenet.py （終わった後も調べるなら python -i simplenet.py。net や layer が残っている）
結果（2 コアの CPU で約 2 秒）:
    ReLU set 6 of 10 values to 0, at [row, column] [[0, 0], [0, 3], [0, 4], [1, 0], [1, 2], [1, 3]]
    largest difference from x @ W.T + b: 0.0e+00
試してみよう:
    - SEED を変えると、ReLU が 0 にする位置も変わる。
    - nn.Linear(3, 2) を nn.Linear(300, 2) に、randn(4, 3) を randn(4, 300) にすると、重みの範囲はどれだけ狭くなるか。
    - F.relu を torch.sigmoid に変えると、出力はどんな範囲に収まるか。0 になる値は残るか。
"""

# %% 準備
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0  # 乱数のシード。同じシードからは同じ乱数が出る

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
        x = self.fc(x)  # (B, 10) -> (B, 5)
        return F.relu(x)  # (B, 5)、負の値は 0 になる


# %% 全結合層と ReLU
net = SimpleNet().to(device)  # CPU で作ってから移すと、どのデバイスでも同じシードから同じ値が出る
samples = torch.randn(2, 10).to(device)  # 2 個のサンプルを一度に通す
with torch.no_grad():  # 訓練しないので、勾配（次のレッスンで使う）を求める準備を省く
    before_relu = net.fc(samples)
    after_relu = net(samples)  # net(...) と呼ぶと、forward(...) が実行される
zeroed = (after_relu == 0).nonzero().tolist()  # 条件が成り立つ位置 [行, 列] のリスト
print(f"input, shape {tuple(samples.shape)}:\n{samples}")
print(f"before ReLU, shape {tuple(before_relu.shape)}:\n{before_relu}")
print(f"after ReLU, shape {tuple(after_relu.shape)}:\n{after_relu}")
print(f"ReLU set {len(zeroed)} of {after_relu.numel()} values to 0, at [row, column] {zeroed}")

# %% 式で計算した値と比べる
layer = nn.Linear(3, 2).to(device)
x = torch.randn(4, 3).to(device)
with torch.no_grad():
    y = layer(x)  # (4, 3) -> (4, 2)
    by_hand = x @ layer.weight.T + layer.bias  # (4, 3) @ (3, 2) + (2,) -> (4, 2)。バイアスは 4 行すべてに足される
difference = (y - by_hand).abs().max().item()  # 環境や大きさによっては、丸めで 1e-7 ほどの差が出る
print(f"\nweight W:\n{layer.weight.data}\nbias b:\n{layer.bias.data}")
print(f"x:\n{x}\nlayer(x), shape {tuple(y.shape)}:\n{y}\nx @ W.T + b:\n{by_hand}")
print(f"largest difference from x @ W.T + b: {difference:.1e}")

# %% 初期値の範囲
# 重みもバイアスも ±√k（k = 1/in_features）の一様乱数で始まる。出典: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
k = 1 / layer.in_features
largest = max(layer.weight.abs().max(), layer.bias.abs().max()).item()
print(f"initial values lie within +-sqrt({k:.4f}) = +-{k**0.5:.4f}; the largest here is {largest:.4f}")
