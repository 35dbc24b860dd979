"""MNIST の手書き数字を DataLoader で 4 枚取り出し、画像の形、値の範囲、ラベルを、訓練の前に目で確かめる。

前のレッスン（01_pytorch_tutorial/learn_overfitting.py）との違い: 1 つのデータが、2 つの数で表した点から、
縦 28 × 横 28 画素の手書き数字の画像になる。クラスは 0 から 9 の 10 個、訓練データは 60,000 枚である。

実行: python mnistview.py（2 コアの CPU で約 4 秒）
結果:
    images shape (4, 1, 28, 28), values from 0.0 to 1.0
    labels shape (4,), values [6, 8, 8, 7]
    each image is in the dataset with the same label: [True, True, True, True]
試してみよう:
    - BATCH_SIZE を 7 にすると、60,000 枚は何個のバッチに分かれるか。
    - データの / 255 を消すと、値はいくつからいくつまでになるか。図の画素はなぜ黒と白だけになるか。
    - DataLoader を使わずに 4 枚を取り出すには、どう書けばよいか。
解説: mnistview.md
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

SEED = 0
BATCH_SIZE = 4  # 一度に取り出す枚数
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnistview.png"
torch.manual_seed(SEED)

# %% データ
train_set = MNIST(HERE / "data", train=True)
pixels = train_set.data / 255  # 0 から 255 の整数 -> 0 から 1 の小数: (60000, 28, 28)
all_images = pixels.unsqueeze(1)  # チャネルの軸を加える: (60000, 28, 28) -> (60000, 1, 28, 28)
all_labels = train_set.targets  # 画像に書かれた数字: (60000,)
train_dataset = TensorDataset(all_images, all_labels)  # i 番目の画像と、i 番目のラベルを組にする
train_loader = DataLoader(train_dataset, batch_size=BATCH_SIZE, shuffle=True)  # 混ぜて、まとめて渡す
print(f"{len(train_dataset)} images in {len(train_loader)} batches")

# %% 最初のバッチ
batches = iter(train_loader)
images, labels = next(batches)  # 1 つ目のバッチだけを取り出す
print(f"images shape {tuple(images.shape)}, values from {images.min().item()} to {images.max().item()}")
print(f"labels shape {tuple(labels.shape)}, values {labels.tolist()}")

# %% 確かめる: 混ぜても、画像とラベルの組は崩れない
same_labels = []
for image, label in zip(images, labels):
    pixels_are_equal = all_images == image  # (60000, 1, 28, 28)
    image_is_equal = pixels_are_equal.flatten(start_dim=1).all(dim=1)  # 784 画素がすべて等しいか: (60000,)
    index = image_is_equal.nonzero().item()  # ただ 1 枚の、等しい画像の番号
    same_labels.append(all_labels[index].item() == label.item())
print(f"each image is in the dataset with the same label: {same_labels}")

# %% 図
fig = plt.figure(figsize=(2.4 * BATCH_SIZE, 2.5), layout="constrained")
for i in range(BATCH_SIZE):
    axes = fig.add_subplot(1, BATCH_SIZE, i + 1)
    picture = axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)  # 0 を白、1 を黒で描く
    axes.set(title=f"label {labels[i]}", xticks=[0, 27], yticks=[0, 27])
fig.colorbar(picture, ax=fig.axes, label="pixel value", shrink=0.65)
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
