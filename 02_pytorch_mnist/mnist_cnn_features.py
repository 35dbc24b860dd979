"""訓練済みの CNN の中を見る。1 段目の値は 3×3 画素の縁に、2 段目の値は 8×8 画素の、より大きな形に反応する。

前のレッスン（mnist_errors.py）との違い: 予測の結果ではなく、途中の値を見る。mnist_convolution.py では人が
フィルタを決めたが、ここでは訓練で決まったフィルタを使い、強く反応した 4 つを 2 つの段のそれぞれで描く。

実行: python mnist_cnn_features.py（2 コアの CPU で約 4 秒）
結果:
    filter 14  largest 0.695 at row 20, column 13  nine products + bias -0.034 = 0.695
    map 10  largest 2.718 at row 4, column 5  by its 8 x 8 pixels alone 2.718
試してみよう:
    - -s 5 で別の数字を入力すると、選ばれる 4 個のフィルタはどれに変わるか。
    - どこでも 0 だったフィルタの番号を表示する。正の重みの和にバイアスを足すと、いくつになるか。
解説: mnist_cnn_features.md
"""

# %% 準備
import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

SHOWN = 4  # 段ごとに描く数
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnist_cnn_features.png"

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-s", "--start-index", type=int, default=0, help="入力するテスト画像の番号（既定: 0）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
if not 0 <= args.start_index < 10_000:
    parser.error("--start-index は 0 以上 9999 以下にする")


# %% モデル（mnist.py と同じ。読み飛ばしてよい）
class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x)


model = CNN()
model.load_state_dict(torch.load(HERE / "mnist_cnn.pth", map_location="cpu", weights_only=True))
model.eval()

# %% データ
test_set = MNIST(HERE / "data", train=False)
images = test_set.data[args.start_index].reshape(1, 1, 28, 28) / 255  # (28, 28) -> (1, 1, 28, 28)
label = test_set.targets[args.start_index].item()

# %% 層を 1 つずつ通し、確かめる: model(images) と同じロジットになる
outputs = []  # 層ごとの出力 (C, H, W)
x = images
print("layer                 shape          mean   zeros")
with torch.no_grad():
    for i, layer in enumerate(model.features):  # Sequential は、中の層を順に呼ぶだけである
        x = layer(x)
        output = x[0]
        outputs.append(output)
        name = f"features.{i} {type(layer).__qualname__}"
        zeros = (output == 0).float().mean()  # ちょうど 0 の値の割合
        print(f"{name:21s} {str(tuple(output.shape)):13s} {output.mean():+.3f}  {zeros:.1%}")
    logits = model.classifier(x)  # (1, 64, 7, 7) -> (1, 10)
    difference = (logits - model(images)).abs().max()
print(f"test image #{args.start_index}, label {label}, predicted {logits.argmax()}")
print(f"layer by layer and model(images): the same logits, to 1e-4: {(difference < 1e-4).item()}")

# %% 1 段目: 3×3 画素を見る
filters = model.features[0].weight.detach()  # (32, 1, 3, 3)
biases = model.features[0].bias.detach()  # (32,)
maps = outputs[1]  # features.1 ReLU の特徴マップ: (32, 28, 28)
largest = maps.amax(dim=(1, 2))  # 特徴マップごとの最大値: (32, 28, 28) -> (32,)
chosen = largest.topk(SHOWN).indices.tolist()  # 最大値の大きい順
print(f"bias > 0, not 0 on blank paper: {(biases > 0).sum()} of {len(filters)} filters")
print(f"0 everywhere on this image: {(largest == 0).sum()} of {len(filters)} filters")
image = images[0, 0]  # (28, 28)
padded = F.pad(image, (1, 1, 1, 1))  # padding=1 と同じく 0 で囲む: (28, 28) -> (30, 30)
for i in chosen:
    row, column = divmod(maps[i].argmax().item(), 28)  # argmax は 784 個の通し番号なので、行と列に分ける
    patch = padded[row : row + 3, column : column + 3]  # 最も強く反応した 9 画素: (3, 3)
    by_hand = (patch * filters[i, 0]).sum() + biases[i]
    place = f"largest {largest[i]:.3f} at row {row}, column {column}"
    print(f"filter {i:2d}  {place}  nine products + bias {biases[i]:+.3f} = {by_hand:.3f}")

# %% 2 段目: 8×8 画素を見る
maps2 = outputs[4]  # features.4 ReLU の特徴マップ: (64, 14, 14)
largest2 = maps2.amax(dim=(1, 2))  # (64, 14, 14) -> (64,)
chosen2 = largest2.topk(SHOWN).indices.tolist()
padded = F.pad(image, (3, 3, 3, 3))  # 8×8 画素が端からはみ出してもよいように囲む: (28, 28) -> (34, 34)
patches = []
for i in chosen2:
    row, column = divmod(maps2[i].argmax().item(), 14)
    rows = slice(2 * row, 2 * row + 8)  # padded の中での位置。プーリングで半分になったので、2 倍する
    columns = slice(2 * column, 2 * column + 8)
    patches.append(padded[rows, columns])  # (8, 8)
    alone = torch.zeros(34, 34)  # その 8×8 画素だけを残し、ほかを消した画像
    alone[rows, columns] = padded[rows, columns]
    alone = alone[3:31, 3:31].reshape(1, 1, 28, 28)
    with torch.no_grad():
        again = model.features[:5](alone)  # features.4 まで: (1, 1, 28, 28) -> (1, 64, 14, 14)
    place = f"largest {largest2[i]:.3f} at row {row}, column {column}"
    print(f"map {i:2d}  {place}  by its 8 x 8 pixels alone {again[0, i, row, column]:.3f}")

# %% 図
fig, axes = plt.subplots(4, SHOWN + 1, figsize=(9, 8.2), layout="constrained")
limit = filters.abs().max().item()
for position in range(SHOWN):
    filter_axes, map_axes, patch_axes, map2_axes = axes[:, position + 1]
    i = chosen[position]
    filter_axes.imshow(filters[i, 0].numpy(), cmap="gray_r", vmin=-limit, vmax=limit)
    filter_axes.set_title(f"filter {i}, bias {biases[i]:+.3f}", fontsize=10)
    map_axes.imshow(maps[i].numpy(), cmap="gray_r", vmin=0)
    map_axes.set_title(f"its map, largest {largest[i]:.2f}", fontsize=10)
    i = chosen2[position]
    patch_axes.imshow(patches[position].numpy(), cmap="gray_r", vmin=0, vmax=1)
    patch_axes.set_title(f"what map {i} saw", fontsize=10)
    map2_axes.imshow(maps2[i].numpy(), cmap="gray_r", vmin=0)
    map2_axes.set_title(f"map {i}, largest {largest2[i]:.2f}", fontsize=10)
axes[0, 0].imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
axes[0, 0].set_title(f"input: label {label}", fontsize=10)
for row in (1, 2, 3):
    axes[row, 0].axis("off")
for panel in axes.flat:
    panel.set(xticks=[], yticks=[])
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
