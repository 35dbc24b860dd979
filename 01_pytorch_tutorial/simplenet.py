"""全結合層（nn.Linear）が入力から出力をどう計算するかを、掛け算と足し算だけで確かめる。

これが最初のレッスンである。

実行: python simplenet.py（2 コアの CPU で約 2 秒）
結果:
    y[3, 0] = 1 * -0.0043 + 2 * 0.3097 + -1 * -0.4752 + -0.0114 = 1.0789
    largest difference between layer(x) and x @ W.T + b below 1e-6: True
試してみよう:
    - by_hand の式から + bias を消すと、どの行がどれだけずれるか。
    - x の最後のサンプルを 2 倍の [2, 4, -2] にすると、出力も 2 倍になるか。
解説: simplenet.md
"""

# %% 準備
import torch
from torch import nn

SEED = 0  # 乱数のシード。同じシードからは同じ乱数が出る

torch.manual_seed(SEED)

# %% 全結合層に、4 個のサンプルを通す
x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 2.0, -1.0]])  # (4, 3)、1 行が 1 個
layer = nn.Linear(3, 2)  # 入力は 3 つ、出力は 2 つ。重みとバイアスは、訓練するまでは乱数である
y = layer(x).detach()  # (4, 3) -> (4, 2)。detach は、訓練のための記録を外して、値だけにする
weight = layer.weight.detach()  # (2, 3)、1 行が出力 1 つのための重み
bias = layer.bias.detach()  # (2,)
print(f"x, shape {tuple(x.shape)}:\n{x}")
print(f"weight W, shape {tuple(weight.shape)}:\n{weight}")
print(f"bias b, shape {tuple(bias.shape)}:\n{bias}")
print(f"layer(x), shape {tuple(y.shape)}:\n{y}")

# %% 最後のサンプルの出力 2 つを、掛け算と足し算で求める
for j in range(2):
    total = bias[j].item()
    formula = ""
    for i in range(3):
        total += x[3, i].item() * weight[j, i].item()
        formula += f"{x[3, i]:.0f} * {weight[j, i]:.4f} + "
    print(f"y[3, {j}] = {formula}{bias[j]:.4f} = {total:.4f}")

# %% すべての出力を、行列の積で一度に求める
by_hand = x @ weight.T + bias  # (4, 3) @ (3, 2) + (2,) -> (4, 2)。W.T は W の行と列を入れ替えたもの
difference = (y - by_hand).abs().max().item()  # 丸めの違いは 1e-7 ほど
print(f"x @ W.T + b:\n{by_hand}")
print(f"largest difference between layer(x) and x @ W.T + b below 1e-6: {difference < 1e-6}")
