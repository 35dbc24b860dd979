"""重みの更新を 1 回ずつ観察する。乱数のラベルを MLP に丸暗記させ、fc1.weight の平均を表示する。

前のレッスン（mnistview100.py）との違い: 1 回の更新で重みが動いた量は、丸め誤差を除けば -(学習率) × (勾配) に等しい。

実行: python mnist_dummydata_weightconfirm.py
結果（2 コアの CPU で約 4 秒）:
    memorized: 64 of 64 random labels
試してみよう:
    - torch.optim.SGD を AdamW に変えると、1 回目の largest difference はなぜ LEARNING_RATE とほぼ同じになるか。
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
STEPS = 300
PICTURE = Path(__file__).resolve().parent.parent / "images" / "mnist_dummydata_weightconfirm.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


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
# 画像もラベルも乱数で、対応に規則はない。それでも損失は 0 に近づくので、訓練の損失が小さいだけでは学べたとは言えない
images = torch.rand(BATCH_SIZE, 1, 28, 28).to(device)
labels = torch.randint(10, (BATCH_SIZE,)).to(device)
model = MLP().to(device)
weight = model.fc1.weight  # (100, 784)
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
losses, weight_means = [], []
for step in range(1, STEPS + 1):
    logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    before = weight.detach().clone()  # 写しを取る。clone() がないと、before も step() で一緒に動く
    optimizer.step()
    change = weight.detach() - before  # 実際に動いた量: (100, 784)
    expected = -LEARNING_RATE * weight.grad  # 動くはずの量。勾配を消す前に読む: (100, 784)
    optimizer.zero_grad()

    losses.append(loss.item())
    weight_means.append(weight.mean().item())
    if step <= 10 or step % 10 == 0:
        print(f"step {step:3d}  loss {loss:.4f}  means: weight {weight_means[-1]:+.4e}  change {change.mean():+.4e}"
              f"  -lr*grad {expected.mean():+.4e}  largest difference {(change - expected).abs().max():.1e}")
print(f"memorized: {(logits.argmax(dim=1) == labels).sum()} of {BATCH_SIZE} random labels")

# %% 図
fig, (loss_axes, weight_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
loss_axes.plot(range(1, STEPS + 1), losses, color="#0072B2")
loss_axes.set(xlabel="step", ylabel="cross-entropy loss", yscale="log", title="Loss on random labels")
weight_axes.plot(range(1, STEPS + 1), weight_means, color="#D55E00")
weight_axes.set(xlabel="step", ylabel="mean of fc1.weight", title="Mean of fc1.weight")
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
