"""線形回帰で、データに隠れた重みとバイアスを訓練によって見つける。

前のレッスン（learn_gradient.py）との違い: 動かすのは重み 1 つではなく、重み 3 つとバイアス 1 つである。
データには雑音が混ざる。式を手で書く代わりに、モデルを nn.Linear で、損失を nn.MSELoss で書く。

実行: python learn.py（2 コアの CPU で約 3 秒）
結果:
             true  learned  least squares
    w[0]   2.0000   2.0074         2.0074
    last loss 0.00914, mean square of this noise 0.00923
試してみよう:
    - NOISE_STD を 0 にすると、損失は 0 になるか。
    - NUM_SAMPLES を 10 にすると、訓練は最小二乗法の値に届くか。届くまで訓練すると、真の値に近づくか。
解説: learn.md
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
TRUE_WEIGHT = torch.tensor([[2.0, -3.0, 0.5]])  # 訓練で見つけたい重み: (1, 3)
TRUE_BIAS = torch.tensor([1.0])  # 訓練で見つけたいバイアス: (1,)
NOISE_STD = 0.1  # 目標値に混ぜる雑音の標準偏差（ばらつきの大きさ）
NUM_SAMPLES = 500
LEARNING_RATE = 0.1
EPOCHS = 100  # 全データを 1 回使うことを 1 エポックという
NAMES = ["w[0]", "w[1]", "w[2]", "b"]
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn.png"

# テンソルを置いて計算する装置をデバイスという。mps は Apple の GPU、cuda は NVIDIA の GPU である
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
x = torch.randn(NUM_SAMPLES, 3)  # 平均 0、標準偏差 1 の正規分布の乱数。1 行が 1 サンプルである: (N, 3)
noise = NOISE_STD * torch.randn(NUM_SAMPLES, 1)  # (N, 1)
y = x @ TRUE_WEIGHT.T + TRUE_BIAS + noise  # (N, 3) @ (3, 1) + (1,) + (N, 1) -> (N, 1)
x = x.to(device)
y = y.to(device)

# %% 訓練
model = nn.Linear(3, 1).to(device)
criterion = nn.MSELoss()  # 平均二乗誤差
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
losses = []  # エポックごとの、更新の前の損失
history = []  # エポックごとの、更新の後の重み 3 つとバイアス 1 つ
for epoch in range(1, EPOCHS + 1):
    prediction = model(x)  # 順伝播: (N, 3) -> (N, 1)
    loss = criterion(prediction, y)  # 損失
    loss.backward()  # 逆伝播。4 つの勾配を一度に求める
    optimizer.step()  # 更新
    optimizer.zero_grad()  # 勾配の消去

    losses.append(loss.item())
    history.append(model.weight[0].tolist() + model.bias.tolist())  # リストどうしの + は、つなげる
    if epoch == 1 or epoch % 20 == 0:
        print(f"epoch {epoch:3d}  loss {loss.item():.4f}")

# %% 確かめる: 最小二乗法（訓練せずに、損失が最小になる値を連立方程式で求める）
ones = torch.ones(NUM_SAMPLES, 1)
inputs = torch.cat([x.cpu(), ones], dim=1)  # バイアスは、いつも 1 である 4 つ目の入力の重みと同じ: (N, 4)
# 4 つの勾配が 0 になるのは inputs.T @ (inputs @ w - y) = 0 のとき。w について解く
coefficients = inputs.T @ inputs  # (4, N) @ (N, 4) -> (4, 4)
constants = inputs.T @ y.cpu()  # (4, N) @ (N, 1) -> (4, 1)
solution = torch.linalg.solve(coefficients, constants)  # coefficients @ solution = constants となる (4, 1)
solved = solution[:, 0].tolist()
learned = history[-1]
true = TRUE_WEIGHT[0].tolist() + TRUE_BIAS.tolist()
print("         true  learned  least squares")
for i in range(4):
    print(f"{NAMES[i]:4s} {true[i]:8.4f} {learned[i]:8.4f} {solved[i]:14.4f}")
difference = max(abs(learned[i] - solved[i]) for i in range(4))
print(f"learned within 1e-5 of least squares: {difference < 1e-5}")

# %% 損失はなぜ 0 にならないのか
noise_mean_square = (noise**2).mean().item()  # 真の重みとバイアスで予測したときの損失
print(f"last loss {losses[-1]:.5f}, mean square of this noise {noise_mean_square:.5f}")

# %% 図
epochs = range(1, EPOCHS + 1)
colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
fig, (loss_axes, path_axes) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
loss_axes.plot(epochs, losses, color="#0072B2", linewidth=2, label="training loss")
loss_axes.axhline(noise_mean_square, color="black", linestyle="--", label="mean square of the noise")
loss_axes.set(xlabel="epoch", ylabel="mean squared error (log scale)", yscale="log")
loss_axes.set_title("the loss falls as far as the noise lets it")
loss_axes.legend()
for i in range(4):
    values = [parameters[i] for parameters in history]
    path_axes.plot(epochs, values, color=colors[i], linewidth=2, label=NAMES[i])
    path_axes.axhline(true[i], color=colors[i], linestyle="--")
path_axes.set(xlabel="epoch", ylabel="value")
path_axes.set_title("weights and bias reach the dashed true values")
path_axes.legend(loc="center right")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
