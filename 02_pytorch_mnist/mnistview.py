"""MNIST の画像を DataLoader から 4 枚取り出し、ラベルとともに眺める。

前のレッスンまでとの違い: 手書き数字の画像 60,000 枚が入力になる。訓練の前に、形と値の範囲とラベルを目で確かめる。

実行: python mnistview.py
結果（2 コアの CPU で約 4 秒）:
    labels shape (4,), values [6, 8, 8, 7]
試してみよう:
    - SEED を変えて、別の 4 枚を見る。BATCH_SIZE を 8 にすると、形はどう変わるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

SEED = 0
BATCH_SIZE = 4  # 一度に取り出す枚数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "mnistview.png"
torch.manual_seed(SEED)

# %% データ
dataset = MNIST(Path(__file__).resolve().parent / "data", train=True, download=True)  # 同梱のファイルを使い、無いときだけダウンロードする
pixels = dataset.data.unsqueeze(1) / 255  # チャネルの軸を足す: (60000, 28, 28)、0 から 255 -> (60000, 1, 28, 28)、0 から 1
train_loader = DataLoader(TensorDataset(pixels, dataset.targets), batch_size=BATCH_SIZE, shuffle=True)
images, labels = next(iter(train_loader))  # 最初のバッチだけを使う
print(f"images shape {tuple(images.shape)}, values from {images.min()} to {images.max()}")
print(f"labels shape {tuple(labels.shape)}, values {labels.tolist()}")

# %% 図
fig, grid = plt.subplots(1, BATCH_SIZE, figsize=(2.5 * BATCH_SIZE, 2.9), layout="constrained")
for axes, image, label in zip(grid, images, labels):
    axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)  # (1, 28, 28) -> (28, 28)。0 を白、1 を黒で描く
    axes.set(title=f"label {label}", xticks=[0, 27], yticks=[0, 27])
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
