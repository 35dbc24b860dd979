"""重みの更新を 1 回ずつ観察する。1 回の更新で、どの重みも -(学習率) × (勾配) だけ動く。

前のレッスン（mnistview100.py）との違い: 画像を見るだけでなく、MLP（全結合層を重ねたネットワーク）を訓練する。
ただし画像もラベルも乱数で、対応に規則はない。重みの更新をたどるための、ダミーデータである。

実行: python mnist_dummydata_weightconfirm.py（2 コアの CPU で約 4 秒）
結果:
    every weight moved by -lr*gradient, to 1e-8, in all 300 steps: True
    accuracy on the 64 images: 100%
    accuracy on 2000 new images: 10%
試してみよう:
    - before の .clone() を消すと、moved はいくつになるか。
    - images を 255 倍にすると、最初の損失はいくつになるか。64 枚を覚えられるか。
    - torch.optim.SGD を torch.optim.AdamW に変えると、moved はいくつになるか。
解説: mnist_dummydata_weightconfirm.md
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

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
images = torch.rand(BATCH_SIZE, 1, 28, 28).to(device)  # MNIST と同じ形と値の範囲の、乱数の画像
labels = torch.randint(10, (BATCH_SIZE,)).to(device)  # 0 から 9 の、乱数のラベル


# %% モデル
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


model = MLP().to(device)
weight = model.fc1.weight  # 観察する 78,400 個の重み: (100, 784)

new_images = torch.rand(2000, 1, 28, 28).to(device)  # 訓練に使わない、乱数の画像
new_labels = torch.randint(10, (2000,)).to(device)


def accuracy(images, labels):
    """画像 (B, 1, 28, 28) とラベル (B,) -> 正解率 [%]"""
    with torch.no_grad():
        predictions = model(images).argmax(dim=1)  # (B, 10) -> (B,)
    return 100 * (predictions == labels).float().mean().item()


# %% 訓練と、確かめ: 動いた量は -lr × 勾配に等しい
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
differences = []  # 更新ごとの、動いた量と動くはずの量との差。78,400 個のうちの最大
accuracies, new_accuracies = [], []  # [%]
for step in range(1, STEPS + 1):
    logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
    loss = F.cross_entropy(logits, labels)
    loss.backward()

    before = weight.detach().clone()  # 更新の前の値をコピーする
    expected = -LEARNING_RATE * weight.grad  # 動くはずの量。勾配を消す前に計算する: (100, 784)
    optimizer.step()
    change = weight.detach() - before  # 実際に動いた量: (100, 784)
    if step == 1:
        print(f"fc1.weight[0, 0]: before {before[0, 0]:.5f}  gradient {weight.grad[0, 0]:.5f}")
        print(f"                  moved {change[0, 0]:.5f}  after {weight[0, 0]:.5f}")
    optimizer.zero_grad()

    difference = (change - expected).abs().max().item()
    differences.append(difference)
    accuracies.append(accuracy(images, labels))
    new_accuracies.append(accuracy(new_images, new_labels))
    if step in (1, 10, 100, STEPS):
        print(f"step {step:3d}  loss {loss:.2f}")
print(f"every weight moved by -lr*gradient, to 1e-8, in all {STEPS} steps: {max(differences) < 1e-8}")
print(f"accuracy on the {BATCH_SIZE} images: {accuracies[-1]:.0f}%")
print(f"accuracy on {len(new_images)} new images: {new_accuracies[-1]:.0f}%")

# %% 図
fig, axes = plt.subplots(figsize=(7, 4), layout="constrained")
steps = range(1, STEPS + 1)
axes.plot(steps, accuracies, color="#0072B2", label=f"the {BATCH_SIZE} images it was trained on")
axes.plot(steps, new_accuracies, color="#D55E00", label=f"{len(new_images)} new images")
axes.set(xlabel="step", ylabel="accuracy [%]", ylim=(0, 105))
axes.set_title("Random labels: memorized, not learned")
axes.legend(loc="center right")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
