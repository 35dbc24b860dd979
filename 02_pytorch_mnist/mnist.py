"""MNIST の手書き数字で、画像分類器（MLP か CNN）を訓練し、重みをファイルに残す。

前のレッスン（mnist_convolution.py）との違い: 手で決めたフィルタの代わりに、フィルタも重みも訓練で決める。
60,000 枚を一度には通さず、少しずつ（ミニバッチに）分けて、そのたびに重みを更新する。

実行: python mnist.py（2 コアの CPU で約 7 秒、-m cnn を付けると約 28 秒）
結果:
    model: mlp (79510 parameters)
    epoch 8/8  train loss 0.0575  test loss 0.0483  test accuracy 98.41%
試してみよう:
    - 1 エポックだけ訓練する。ミニバッチを 6,000 枚にすると、更新は何回になり、正解率は何 % に下がるか。
    - 画像をずらす行を消すと、訓練の損失とテストの損失は、それぞれ上がるか、下がるか。
    - MLP の隠れ層を 530 に広げ、パラメータを CNN と同じくらいに増やす。正解率は CNN に追いつくか。
解説: mnist.md
"""

# %% 準備
import argparse
import math
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

SEED = 0
EPOCHS = {"mlp": 8, "cnn": 2}  # 訓練データを何周するか
BATCH_SIZE = {"mlp": 128, "cnn": 64}  # ミニバッチの枚数。1 回の更新に使う
LEARNING_RATE = {"mlp": 1e-2, "cnn": 8e-3}  # 学習率の最大値。訓練の途中で上げ下げする
WEIGHT_DECAY = {"mlp": 0.05, "cnn": 0.1}  # 重み減衰: 更新のたびに、重みを 0 へ少し引き戻す強さ
HERE = Path(__file__).resolve().parent

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="mlp", help="既定: mlp")
parser.add_argument("-e", "--epochs", type=int, help="訓練データを何周するか（既定: mlp は 8、cnn は 2）")
parser.add_argument("-w", "--weights", type=Path, help="重みの保存先（既定: 隣の mnist_モデル.pth）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
model_type = args.model_type
epochs = EPOCHS[model_type] if args.epochs is None else args.epochs
weights = args.weights or HERE / f"mnist_{model_type}.pth"
PICTURE = HERE.parent / "images" / f"{weights.stem}.png"
if epochs < 1:
    parser.error("--epochs は 1 以上にする")
if weights.is_dir() or not weights.parent.is_dir():
    parser.error(f"--weights の {weights} には保存できない。今あるフォルダの中の、ファイルの名前にする")

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ: (N, 28, 28)、0 から 255 の整数 -> (N, 1, 28, 28)、0 から 1
train_set = MNIST(HERE / "data", train=True)
test_set = MNIST(HERE / "data", train=False)
train_images = (train_set.data.unsqueeze(1) / 255).to(device)
train_labels = train_set.targets.to(device)
test_images = (test_set.data.unsqueeze(1) / 255).to(device)
test_labels = test_set.targets.to(device)
print(f"data: {len(train_images)} training images, {len(test_images)} test images")


# %% モデル（MLP は mnist_dummydata_weightconfirm.py と同じ）
class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x):
        x = x.flatten(start_dim=1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


class CNN(nn.Module):
    """画像の縦横の並びを保ったまま読む、畳み込みネットワーク（421,642 パラメータ）。"""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),  # (B, 1, 28, 28) -> (B, 32, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 32, 28, 28) -> (B, 32, 14, 14)
            nn.Conv2d(32, 64, kernel_size=3, padding=1),  # (B, 32, 14, 14) -> (B, 64, 14, 14)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 64, 14, 14) -> (B, 64, 7, 7)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (B, 64, 7, 7) -> (B, 3136)
            nn.Linear(64 * 7 * 7, 128),  # (B, 3136) -> (B, 128)
            nn.ReLU(),
            nn.Linear(128, 10),  # (B, 128) -> (B, 10)
        )

    def forward(self, x):
        """画像 (B, 1, 28, 28)、値は [0, 1] -> ロジット (B, 10)"""
        x = self.features(x)  # (B, 1, 28, 28) -> (B, 64, 7, 7)
        return self.classifier(x)  # (B, 64, 7, 7) -> (B, 10)


MODELS = {"mlp": MLP, "cnn": CNN}
model = MODELS[model_type]().to(device)
print(f"model: {model_type} ({sum(p.numel() for p in model.parameters())} parameters)")

# %% 訓練
batch_size = BATCH_SIZE[model_type]
learning_rate = LEARNING_RATE[model_type]
weight_decay = WEIGHT_DECAY[model_type]
steps_per_epoch = math.ceil(len(train_images) / batch_size)  # 最後のミニバッチには、余りが入る
total_steps = epochs * steps_per_epoch
# 学習率は、更新のたびに scheduler が決める。fused=True は、同じ計算を速く行う
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay, fused=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps)
batch_losses, rates = [], []  # 更新ごとの、訓練の損失と学習率
test_losses = []  # エポックごとの、テスト画像での損失
for epoch in range(1, epochs + 1):
    model.train()
    order = torch.randperm(len(train_images))  # エポックごとに順番を変える
    for batch in order.split(batch_size):  # batch は画像の番号 (B,)
        images = train_images[batch]  # (B, 1, 28, 28)
        labels = train_labels[batch]  # (B,)
        down, right = torch.randint(-1, 2, (2,)).tolist()  # データ拡張: 縦横に -1、0、1 画素ずらす
        images = images.roll((down, right), dims=(2, 3))

        logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step()

        batch_losses.append(loss.detach())  # item() は GPU の計算が終わるのを待つので、ここでは呼ばない
        if len(batch_losses) % 300 == 0:
            print(f"  step {len(batch_losses)}  loss {loss.item():.4f}", flush=True)
    train_loss = torch.stack(batch_losses[-steps_per_epoch:]).mean().item()

    model.eval()
    with torch.no_grad():  # メモリを節約するため、200 枚ずつ通して、つなぐ
        test_logits = torch.cat([model(images) for images in test_images.split(200)])  # (10000, 10)
    test_loss = F.cross_entropy(test_logits, test_labels).item()
    predictions = test_logits.argmax(dim=1)  # (10000, 10) -> (10000,)
    test_accuracy = 100 * (predictions == test_labels).float().mean().item()
    test_losses.append(test_loss)
    print(f"epoch {epoch}/{epochs}  train loss {train_loss:.4f}", end="")
    print(f"  test loss {test_loss:.4f}  test accuracy {test_accuracy:.2f}%", flush=True)

# %% 保存（隣に書き終えてから置き換えるので、途中で止めても前の重みは壊れない）
torch.save(model.state_dict(), f"{weights}.tmp")
os.replace(f"{weights}.tmp", weights)
print(f"saved: {weights}")

# %% 確かめる: 更新の回数、初めの損失、AdamW の 1 回目の更新
print(f"updates: {len(batch_losses)}, epochs x batches: {epochs} x {steps_per_epoch}")
print(f"first loss {batch_losses[0]:.1f}, ln 10 = {math.log(10):.1f}")
fresh = MODELS[model_type]().to(device)  # 訓練していないモデルを、1 回だけ更新する
optimizer = torch.optim.AdamW(fresh.parameters(), lr=learning_rate, weight_decay=weight_decay)
loss = F.cross_entropy(fresh(images), labels)
loss.backward()
weight = list(fresh.parameters())[-2]  # 最後の全結合層の重み: (10, 100) か (10, 128)
before = weight.detach().clone()
decay = learning_rate * weight_decay * before
step = learning_rate * weight.grad / (weight.grad.abs() + 1e-8)  # 1e-8 は、0 で割らないため
by_hand = before - decay - step
optimizer.step()
difference = (weight - by_hand).abs().max()
print(f"a weight {before[0, 0]:+.6f}, its gradient {weight.grad[0, 0]:+.6f}")
print(f"by hand {-decay[0, 0]:+.6f} (decay) {-step[0, 0]:+.6f} (step) = {by_hand[0, 0]:+.6f}")
print(f"AdamW {weight[0, 0]:+.6f}; all {weight.numel()} as by hand, to 1e-6: {(difference < 1e-6).item()}")

# %% 図
fig, axes = plt.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=[2, 1], layout="constrained")
losses = torch.stack(batch_losses).cpu().numpy()
axes[0].plot(losses, color="#56B4E9", linewidth=0.5, alpha=0.5, label="one mini-batch, shifted")
epoch_ends = range(steps_per_epoch, total_steps + 1, steps_per_epoch)
axes[0].plot(epoch_ends, test_losses, "o", color="#D55E00", label="test images")
axes[0].set(ylabel="cross-entropy loss", yscale="log", title=f"{model_type.upper()}: loss at every update")
axes[0].legend()
axes[1].plot(rates, color="#009E73")
axes[1].set(xlabel="update", ylabel="learning rate")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
