"""線形回帰で、データに隠れた重みとバイアスを訓練によって見つける。

前のレッスン（learn_gradient.py）との違い: 動かすのは重み 1 つではなく、重み 3 つとバイアス 1 つである。データには雑音が混ざる。
式を手で書く代わりに、モデルを nn.Linear で、損失を nn.MSELoss で、更新を torch.optim.SGD で書く。

実行: python learn.py
結果（2 コアの CPU で約 3 秒）:
             true  learned  least squares
    w[0]   2.0000   2.0074         2.0074
    last loss 0.00914, mean square of this noise 0.00923, noise variance 0.01000
説明: このフォルダの README.md
試してみよう:
    - NUM_SAMPLES を 10 にすると、最後の損失はいくつになるか。重みは、真の値に近づくか、遠ざかるか。
    - LEARNING_RATE を 0.01 にすると、100 エポックの後の w[1] はいくつか。
    - LEARNING_RATE を 1.1 にすると、損失は 10 エポックごとに何倍になるか。最後は何と表示されるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
TRUE_WEIGHT = torch.tensor([[2.0, -3.0, 0.5]])  # 訓練で見つけたい重み
TRUE_BIAS = torch.tensor([1.0])  # 訓練で見つけたいバイアス
NOISE_STD = 0.1  # 目標値に混ぜる雑音の標準偏差
NUM_SAMPLES = 500
LEARNING_RATE = 0.1  # 学習率（勾配の何倍だけ重みとバイアスを動かすか）
EPOCHS = 100  # 全データを 1 回使うことを 1 エポックという
NEW_SAMPLE = torch.tensor([[1.0, 2.0, 3.0]])  # 訓練の後で予測する、新しい入力
NAMES = ["w[0]", "w[1]", "w[2]", "b"]
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
x = torch.randn(NUM_SAMPLES, 3)  # 1 行が 1 サンプルで、3 つの入力を持つ
noise = NOISE_STD * torch.randn(NUM_SAMPLES, 1)
y = x @ TRUE_WEIGHT.T + TRUE_BIAS + noise  # (N, 3) @ (3, 1) + (1,) + (N, 1) -> (N, 1)
x = x.to(device)
y = y.to(device)

# %% 訓練
model = nn.Linear(3, 1).to(device)
criterion = nn.MSELoss()  # 平均二乗誤差。数値を予測する問題（回帰）の損失である
# SGD は本来、ランダムに選んだ一部のデータで勾配を求める方法である。ここでは毎回すべてのデータを使うので、ただの勾配降下法になる
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
losses = []  # エポックごとの損失
history = []  # エポックごとの、重み 3 つとバイアス 1 つ
for epoch in range(1, EPOCHS + 1):
    prediction = model(x)  # 順伝播: (N, 3) -> (N, 1)
    loss = criterion(prediction, y)  # 損失
    loss.backward()  # 逆伝播。重み 3 つとバイアス 1 つの勾配を、一度に求める
    optimizer.step()  # 更新。w -= 学習率 * w.grad を、4 つのそれぞれに行う
    optimizer.zero_grad()  # 勾配の消去。消さないと、次の勾配に足される

    losses.append(loss.item())
    history.append(model.weight[0].tolist() + model.bias.tolist())  # リストどうしの + は、つなげる
    if epoch == 1 or epoch % 10 == 0:
        print(f"epoch {epoch:3d}  loss {loss.item():.4f}")

# %% 最小二乗法と比べる
# 平均二乗誤差を最小にする値は、最小二乗法でも求まる。それは方程式を解くので、訓練も学習率も使わない
# 求めるのは x @ w + 1 * b を y に近づける w と b である。1 だけの列を x に並べると、その列に掛かる 4 つ目の係数が b になる
ones = torch.ones(NUM_SAMPLES, 1)
x_and_ones = torch.cat([x.cpu(), ones], dim=1)  # (N, 3) と (N, 1) -> (N, 4)
solution = torch.linalg.lstsq(x_and_ones, y.cpu()).solution  # (4, 1)
solved = solution[:, 0].tolist()  # 数値 4 つ
learned = history[-1]
true = TRUE_WEIGHT[0].tolist() + TRUE_BIAS.tolist()
print("         true  learned  least squares")
for i in range(4):
    print(f"{NAMES[i]:4s} {true[i]:8.4f} {learned[i]:8.4f} {solved[i]:14.4f}")
difference = max(abs(learned[i] - solved[i]) for i in range(4))
print(f"largest difference between learned and least squares: {difference:.5f}")

# %% 損失はなぜ 0 にならないのか
# 雑音は予測できない。真の重みとバイアスで予測しても、誤差は雑音そのもので、損失は雑音の 2 乗の平均になる
# それは、雑音の分散（限りなく多く作ったときの 2 乗の平均）に近いが、作った雑音によって少し違う
# 訓練が見つけるのは損失が最小になる値なので、損失はそれよりもわずかに小さい。その差は、4 つの値が雑音にも少し合ったことによる
noise_mean_square = (noise**2).mean().item()
print(f"last loss {losses[-1]:.5f}, mean square of this noise {noise_mean_square:.5f}, "
      f"noise variance {NOISE_STD**2:.5f}")

# %% 予測
with torch.no_grad():  # 予測には勾配を使わないので、そのための記録を省く
    new_prediction = model(NEW_SAMPLE.to(device)).item()  # (1, 3) -> (1, 1) -> 数値
without_noise = (NEW_SAMPLE @ TRUE_WEIGHT.T + TRUE_BIAS).item()
print(f"new sample {NEW_SAMPLE[0].tolist()}: predicted {new_prediction:.4f}, without noise {without_noise:.4f}")

# %% 図
epochs = range(1, EPOCHS + 1)
colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
fig, (loss_axes, path_axes) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
loss_axes.plot(epochs, losses, color="#0072B2", linewidth=2, label="training loss")
loss_axes.axhline(noise_mean_square, color="black", linestyle="--", linewidth=1, label="mean square of the noise")
loss_axes.set(xlabel="epoch", ylabel="mean squared error (log scale)", yscale="log")
loss_axes.set_title("the loss falls as far as the noise lets it")
loss_axes.legend()
for i in range(4):
    values = [parameters[i] for parameters in history]
    path_axes.plot(epochs, values, color=colors[i], linewidth=2, label=NAMES[i])
    path_axes.axhline(true[i], color=colors[i], linestyle="--", linewidth=1)
path_axes.set(xlabel="epoch", ylabel="value")
path_axes.set_title("weights and bias reach the true values (dashed)")
path_axes.legend(loc="center right")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
