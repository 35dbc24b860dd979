"""重みの更新を 1 回ずつ観察する。1 回の更新で、どの重みも -(学習率) × (勾配) だけ動く。

前のレッスン（mnistview100.py）との違い: 画像を見るだけでなく、MLP（全結合層を重ねたネットワーク）を訓練する。ただし画像も
ラベルも乱数で、対応に規則はない。重みの更新をたどるための、ダミーデータである。

実行: python mnist_dummydata_weightconfirm.py
結果（2 コアの CPU で約 4 秒）:
    largest difference in all 300 steps: 3.7e-09
    memorized: 64 of 64 random labels
    correct on new random images: 95 of 1000
説明: このフォルダの README.md
試してみよう:
    - before の .clone() を消すと、change の平均はいくつになるか。
    - LEARNING_RATE を 0.01 にすると、300 回の更新で 64 枚のうち何枚を覚えるか。
    - torch.optim.SGD を torch.optim.AdamW に変えると、1 回目の difference はいくつになるか（損失は跳ね上がる）。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
BATCH_SIZE = 64  # 丸暗記させる画像の枚数
LEARNING_RATE = 0.1
STEPS = 300  # 更新の回数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "mnist_dummydata_weightconfirm.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
images = torch.rand(BATCH_SIZE, 1, 28, 28).to(device)  # MNIST と同じ形と値の範囲の、乱数の画像
labels = torch.randint(10, (BATCH_SIZE,)).to(device)  # 0 から 9 の、乱数のラベル


# %% モデル（mnist.py と同じ）
class MLP(nn.Module):
    """画素を一列に並べて読む、2 層の全結合ネットワーク（79,510 パラメータ）。"""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x):
        """画像 (B, 1, 28, 28)、値は [0, 1] -> ロジット (B, 10)"""
        x = x.flatten(start_dim=1)  # (B, 1, 28, 28) -> (B, 784)
        x = F.relu(self.fc1(x))  # (B, 784) -> (B, 100)
        return self.fc2(x)  # (B, 100) -> (B, 10)


# %% 訓練
model = MLP().to(device)
weight = model.fc1.weight  # 観察する重み。78,400 個ある: (100, 784)
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
print("means of the 78,400 weights, their changes and -lr*grad; largest difference of the last two")
losses = []
weight_means = []  # 78,400 個の重みを 1 つの数にまとめて、動きを追う
differences = []  # 動いた量と、動くはずの量との差。78,400 個のうちの最大
model.train()
for step in range(1, STEPS + 1):
    logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
    loss = F.cross_entropy(logits, labels)
    loss.backward()

    before = weight.detach().clone()  # 更新の前の値を写しておく。clone() がないと、before も step() で一緒に動く
    expected = -LEARNING_RATE * weight.grad  # 動くはずの量。勾配を消す前に計算する: (100, 784)
    optimizer.step()
    change = weight.detach() - before  # 実際に動いた量: (100, 784)
    optimizer.zero_grad()

    difference = (change - expected).abs().max().item()
    weight_mean = weight.mean().item()
    losses.append(loss.item())
    weight_means.append(weight_mean)
    differences.append(difference)
    if step <= 10 or step % 10 == 0:
        print(f"step {step:3d}  loss {loss.item():.4f}  mean {weight_mean:+.3e}  "
              f"change {change.mean():+.3e}  -lr*grad {expected.mean():+.3e}  difference {difference:.1e}")
# float32 の有効桁は 7 桁ほどなので、丸め誤差の分だけ違う
print(f"largest difference in all {STEPS} steps: {max(differences):.1e}")

# %% 評価
# 規則のないラベルも丸暗記できる。訓練に使ったデータで正解しても、規則を学んだとは言えない。新しい画像では、でたらめと同じになる
new_images = torch.rand(1000, 1, 28, 28).to(device)  # 訓練に使わなかった、新しい乱数の画像とラベル
new_labels = torch.randint(10, (1000,)).to(device)
model.eval()
with torch.no_grad():
    predictions = model(images).argmax(dim=1)  # (B, 10) -> (B,)
    new_predictions = model(new_images).argmax(dim=1)  # (1000, 10) -> (1000,)
memorized = (predictions == labels).sum().item()
print(f"memorized: {memorized} of {BATCH_SIZE} random labels")
print(f"correct on new random images: {(new_predictions == new_labels).sum()} of 1000")

# %% 図
fig, (change_axes, mean_axes, loss_axes) = plt.subplots(1, 3, figsize=(11, 4), width_ratios=[1.4, 1, 1],
                                                       layout="constrained")
# 最後の更新での、78,400 個の重み 1 つずつの点
expected_values = expected.flatten().cpu().numpy()  # (100, 784) -> (78400,)
change_values = change.flatten().cpu().numpy()
limits = [expected_values.min(), expected_values.max()]
change_axes.plot(expected_values, change_values, ".", color="#56B4E9", markersize=4, label="78,400 weights of fc1")
change_axes.plot(limits, limits, "--", color="black", linewidth=1, label="change = -lr * gradient")
change_axes.set(xlabel="-lr * gradient", ylabel="change of the weight", title=f"Every weight at step {STEPS}")
change_axes.legend()
steps = range(1, STEPS + 1)
mean_axes.plot(steps, weight_means, color="#D55E00")
mean_axes.set(xlabel="step", ylabel="mean of fc1.weight", title="Mean of fc1.weight")
loss_axes.plot(steps, losses, color="#0072B2")
loss_axes.set(xlabel="step", ylabel="cross-entropy loss", yscale="log", title="Loss on random labels")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
