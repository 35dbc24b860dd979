"""MNIST の手書き数字で、本物の画像分類器（MLP か CNN）を訓練し、重みをファイルに残す。

前のレッスン（mnist_convolution.py）との違い: 手で決めたフィルタの代わりに、フィルタも重みも訓練で決める。60,000 枚を一度には
通さず、少しずつ（ミニバッチに）分けて、そのたびに重みを更新する。学習率は途中で上げ下げし、画像を少しずらして訓練する。

実行: python mnist.py
      python mnist.py -m cnn
結果（2 コアの CPU で MLP は約 7 秒、CNN は約 33 秒）:
    model: mlp (79510 parameters)
    epoch 8/8  train loss 0.0575  test loss 0.0483  test accuracy 98.41%
説明: このフォルダの README.md
試してみよう:
    - python mnist.py -e 1 -w try.pth で 1 エポックだけ訓練すると、正解率は、8 エポックの訓練の 1 エポック目より高いか。
    - EPOCHS の mlp を 1、BATCH_SIZE の mlp を 6000 にして -w try.pth を付けると、更新は何回になるか。正解率は何 % か。
    - EPOCHS の mlp を 1、LEARNING_RATE の mlp を 1e-4 にして -w try.pth を付けると、正解率は何 % か。
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
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="mlp", help="モデルの種類（既定: mlp）")
parser.add_argument("-e", "--epochs", type=int, help="訓練データを何周するか（既定: mlp は 8、cnn は 2）")
parser.add_argument("-w", "--weights", type=Path, help="重みの保存先（既定: mnist.py の隣の mnist_モデル.pth）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
epochs = EPOCHS[args.model_type] if args.epochs is None else args.epochs
weights = args.weights or HERE / f"mnist_{args.model_type}.pth"
PICTURE = HERE.parent / "images" / f"{weights.stem}.png"
if epochs < 1:
    parser.error("--epochs は 1 以上にする")
if weights.is_dir() or not os.access(weights.parent, os.W_OK):
    parser.error(f"--weights の {weights} には保存できない。書き込めるフォルダの中のファイル名を指定する")

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
try:
    train_set = MNIST(HERE / "data", train=True, download=True)  # データは同梱なので、ダウンロードは起こらない
    test_set = MNIST(HERE / "data", train=False, download=True)
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
# ここで一度だけ、全部を浮動小数点数にする: (N, 28, 28)、0 から 255 -> (N, 1, 28, 28)、0 から 1
train_images = (train_set.data.unsqueeze(1) / 255).to(device)
train_labels = train_set.targets.to(device)
test_images = (test_set.data.unsqueeze(1) / 255).to(device)
test_labels = test_set.targets.to(device)
print(f"data: {len(train_images)} training images, {len(test_images)} test images")


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
model = MODELS[args.model_type]().to(device)
print(f"model: {args.model_type} ({sum(p.numel() for p in model.parameters())} parameters)")

# %% 訓練
batch_size = BATCH_SIZE[args.model_type]
steps_per_epoch = math.ceil(len(train_images) / batch_size)  # 最後のミニバッチには、余りが入る
# AdamW は、パラメータごとに更新の幅を調整する Adam に、重み減衰を加えたもの。fused=True は、同じ計算を速く行う
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY[args.model_type], fused=True)
# 学習率を最初の 3 割で最大値まで上げ、残りでほぼ 0 まで下げる。一定の学習率とは mnist_recipe.py で比べる
# 出典: https://arxiv.org/abs/1708.07120
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=LEARNING_RATE[args.model_type], total_steps=epochs * steps_per_epoch)
batch_losses = []  # ミニバッチごとの、訓練の損失
test_losses, test_accuracies = [], []  # エポックごとの値
for epoch in range(1, epochs + 1):
    model.train()
    epoch_losses = []
    # エポックごとに順番を変えて、batch_size 枚ずつに分ける。メモリに収まらないデータなら、ここで DataLoader を使う
    for batch in torch.randperm(len(train_images)).split(batch_size):  # batch は画像の番号 (B,)
        images = train_images[batch]  # (B, 1, 28, 28)
        labels = train_labels[batch]  # (B,)
        # データ拡張: ミニバッチごとに縦横へ -1、0、1 画素ずらし、位置の違いに強くする
        # roll ではみ出した端は反対側に回るが、縁に線のある画像は 60,000 枚のうち 813 枚しかない
        down, right = torch.randint(-1, 2, (2,)).tolist()
        images = images.roll((down, right), dims=(2, 3))

        logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # 学習率は、エポックごとではなく更新のたびに動かす

        epoch_losses.append(loss.detach())  # item() は GPU の計算が終わるのを待つので、表示のときだけ呼ぶ
        if len(epoch_losses) % 100 == 0:
            print(f"  batch {len(epoch_losses)}/{steps_per_epoch}  loss {loss.item():.4f}", flush=True)
    batch_losses += epoch_losses
    train_loss = torch.stack(epoch_losses).mean().item()

    model.eval()
    with torch.no_grad():
        # 一度に通すと途中の値がメモリを占めるので、200 枚ずつに分けて通し、つなぐ
        test_logits = torch.cat([model(images) for images in test_images.split(200)])  # (10000, 10)
    test_loss = F.cross_entropy(test_logits, test_labels).item()
    predictions = test_logits.argmax(dim=1)  # (10000, 10) -> (10000,)
    test_accuracy = 100 * (predictions == test_labels).float().mean().item()
    test_losses.append(test_loss)
    test_accuracies.append(test_accuracy)
    print(f"epoch {epoch}/{epochs}  train loss {train_loss:.4f}  "
          f"test loss {test_loss:.4f}  test accuracy {test_accuracy:.2f}%", flush=True)
    if not loss.isfinite():
        raise SystemExit("エラー: 損失が発散した。重みは保存しない。LEARNING_RATE を小さくする")

# %% 保存
# 隣に書き終えてから置き換えるので、途中で止めても前の重みは壊れない
torch.save(model.state_dict(), f"{weights}.tmp")
os.replace(f"{weights}.tmp", weights)
print(f"saved: {weights}")

# %% 図
fig, (loss_axes, accuracy_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
steps = torch.arange(1, len(batch_losses) + 1) / steps_per_epoch  # 横軸の単位をエポックに揃える
loss_axes.plot(steps.numpy(), torch.stack(batch_losses).cpu().numpy(), color="#56B4E9", linewidth=0.5,
               label="training batch (shifted images)")
loss_axes.plot(range(1, epochs + 1), test_losses, "o", color="#D55E00", label="test images")
loss_axes.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log", title="Loss")
loss_axes.legend()
accuracy_axes.plot(range(1, epochs + 1), test_accuracies, "o", color="#D55E00")
for epoch, test_accuracy in enumerate(test_accuracies, start=1):
    accuracy_axes.annotate(f"{test_accuracy:.2f}%", (epoch, test_accuracy), xytext=(0, 6), textcoords="offset points",
                           ha="center", fontsize=9)
accuracy_axes.set(xlabel="epoch", ylabel="test accuracy (%)", xticks=range(1, epochs + 1), title="Accuracy")
accuracy_axes.margins(0.1)
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
