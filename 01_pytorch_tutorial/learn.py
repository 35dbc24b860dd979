"""線形回帰で、データに隠れた重みとバイアスを訓練によって見つける。

前のレッスン（simplenet.py）との違い: 重みが初めて動く。5 行の訓練ループを繰り返し、真の値へ近づけていく。

実行: python learn.py （終わった後も調べるなら python -i learn.py。図を閉じると、model や losses が残っている）
結果（2 コアの CPU で約 3 秒）:
    epoch 100  loss 0.0091
             true  learned  least squares
    w[0]   2.0000   2.0074         2.0074
試してみよう:
    - NOISE_STD を 1.0 にすると、損失はどこで下げ止まるか。さらに NUM_SAMPLES を 10 にすると、重みは真の値からどれだけ外れるか。
    - LEARNING_RATE を 0.01 にすると、100 エポックでは収束しない。1.1 にすると発散する。損失の曲線はどう違うか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
TRUE_WEIGHT = torch.tensor([[2.0, -3.0, 0.5]])  # 訓練で見つけたい値
TRUE_BIAS = torch.tensor([1.0])
NOISE_STD = 0.1  # 目標値に混ぜる雑音の標準偏差
NUM_SAMPLES = 500
LEARNING_RATE = 0.1  # 学習率。1 回の更新でどれだけ動かすかを決める
EPOCHS = 100  # 全データを 1 回使うことを 1 エポックという
NEW_SAMPLE = torch.tensor([[1.0, 2.0, 3.0]])  # 訓練の後で予測する、新しい入力
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
x = torch.randn(NUM_SAMPLES, 3)  # 1 行が 1 サンプルで、3 つの入力を持つ
noise = NOISE_STD * torch.randn(NUM_SAMPLES, 1)
y = x @ TRUE_WEIGHT.T + TRUE_BIAS + noise  # (N, 3) @ (3, 1) + (1,) + (N, 1) -> (N, 1)
x, y = x.to(device), y.to(device)

# %% 訓練
model = nn.Linear(3, 1).to(device)
criterion = nn.MSELoss()  # 数値を当てる回帰なので、誤差の 2 乗の平均を損失にする
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)  # 勾配を使って、重みとバイアスを更新する
losses = []
for epoch in range(1, EPOCHS + 1):
    prediction = model(x)  # 順伝播: (N, 3) -> (N, 1)
    loss = criterion(prediction, y)  # 損失（予測が目標値からどれだけ外れたか。小さいほどよい）
    loss.backward()  # 逆伝播（勾配、つまり重みやバイアスを少し増やすと損失がどれだけ増えるかを求める）
    optimizer.step()  # 更新（勾配と逆の向きに、重みとバイアスを少し動かす）
    optimizer.zero_grad()  # 勾配の消去（消さないと次の勾配に足される）

    losses.append(loss.item())
    if epoch == 1 or epoch % 10 == 0:
        print(f"epoch {epoch:3d}  loss {loss.item():.4f}")

# %% 最小二乗法と比べる
# 平均二乗誤差を最小にする値は、訓練を繰り返さなくても、最小二乗法で一度に求まる。1 の列に掛かる係数がバイアスになる
design = torch.cat([x, torch.ones_like(y)], dim=1).cpu()  # (N, 4)
solved = torch.linalg.lstsq(design, y.cpu()).solution.squeeze(1)  # (4, 1) -> (4,)
learned = torch.cat([model.weight[0], model.bias]).detach().cpu()  # (4,)。detach は勾配の記録から切り離す
true = torch.cat([TRUE_WEIGHT[0], TRUE_BIAS])  # (4,)
print("         true  learned  least squares")
for i, name in enumerate(["w[0]", "w[1]", "w[2]", "b"]):
    print(f"{name:4s} {true[i]:8.4f} {learned[i]:8.4f} {solved[i]:14.4f}")
difference = (learned - solved).abs().max().item()
print(f"largest difference between learned and least squares: {difference:.1e}")
print(f"last loss {losses[-1]:.4f}, noise variance {NOISE_STD**2:.4f}")  # 雑音は予測できないので、0 には近づかない

# %% 予測
with torch.no_grad():  # ここからは予測だけなので、勾配はいらない
    new_prediction = model(NEW_SAMPLE.to(device)).item()
    predictions = model(x)  # (N, 1)
without_noise = (NEW_SAMPLE @ TRUE_WEIGHT.T + TRUE_BIAS).item()
print(f"new sample {NEW_SAMPLE[0].tolist()}: predicted {new_prediction:.4f}, without noise {without_noise:.4f}")

# %% 図
fig, (loss_axes, fit_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
loss_axes.plot(range(1, EPOCHS + 1), losses, color="#0072B2", label="training loss")
loss_axes.axhline(NOISE_STD**2, color="#D55E00", linestyle="--", label="noise variance")
loss_axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log", title="Loss")
fit_axes.scatter(y.cpu(), predictions.cpu(), s=8, color="#0072B2", alpha=0.5, label="samples")
fit_axes.axline((0, 0), slope=1, color="#D55E00", linestyle="--", label="prediction = target")
fit_axes.set(xlabel="target value", ylabel="predicted value", title="Prediction after training")
loss_axes.legend()
fit_axes.legend()
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
