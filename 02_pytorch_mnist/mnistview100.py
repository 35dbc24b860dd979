"""テスト画像の先頭 100 枚を 10 行 10 列の 1 枚の画像に並べ、番号とラベルをまとめて見る。

前のレッスン（mnistview.py）との違い: 訓練データのバッチの代わりに、テストデータの先頭 100 枚を順に使う。
1 枚ずつ描くのではなく、make_grid で 1 枚の大きな画像につないでから描く。

実行: python mnistview100.py（2 コアの CPU で約 4 秒）
結果:
    digit  0  1  2  3  4  5  6  7  8  9
    count  8 14  8 11 14  7 10 15  2 11
    one image (291, 291); images found in their places: 100 of 100
試してみよう:
    - START_INDEX を 9900 にして、最後の 100 枚を見る。8 は何枚あるか。
    - GAP を 8 にすると、つないだ画像は縦横何画素になるか。
解説: mnistview100.md
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torchvision.datasets import MNIST
from torchvision.utils import make_grid

START_INDEX = 0  # 最初の画像の番号（0 から 9900）
GAP = 1  # 画像と画像の間（画素）。細い枠になる
STEP = 28 + GAP  # 隣の画像までの距離（画素）
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnistview100.png"

# %% データ
test_set = MNIST(HERE / "data", train=False)  # 訓練に使わない 10,000 枚
end_index = START_INDEX + 100
pixels = test_set.data[START_INDEX:end_index] / 255  # (100, 28, 28)、値は [0, 1]
images = pixels.unsqueeze(1)  # (100, 28, 28) -> (100, 1, 28, 28)
labels = test_set.targets[START_INDEX:end_index]  # (100,)
counts = labels.bincount(minlength=10)  # 数字 0 から 9 が、それぞれ何枚あるか: (10,)
print("digit " + " ".join(f"{digit:2d}" for digit in range(10)))
print("count " + " ".join(f"{count:2d}" for count in counts))

# %% 1 枚の画像につなぐ
grid = make_grid(images, nrow=10, padding=GAP, pad_value=0.5)  # (100, 1, 28, 28) -> (3, 291, 291)
mosaic = grid[0]  # make_grid は同じ値の 3 チャネルにして返すので、1 つ目だけを使う: (291, 291)

# %% 確かめる: 計算した位置から切り出すと、元の画像と等しい
found = 0
for i in range(100):
    row = i // 10
    column = i % 10
    top = GAP + STEP * row
    left = GAP + STEP * column
    cut = mosaic[top : top + 28, left : left + 28]
    if torch.equal(cut, images[i, 0]):
        found += 1
print(f"one image {tuple(mosaic.shape)}; images found in their places: {found} of 100")

# %% 図
fig, axes = plt.subplots(figsize=(7.5, 7.4), layout="constrained")
axes.imshow(mosaic.numpy(), cmap="gray_r", interpolation="nearest")  # 隣の画素と混ぜずに描く
for i in range(100):
    top = GAP + STEP * (i // 10)
    left = GAP + STEP * (i % 10)
    axes.text(left + 1, top + 1, labels[i].item(), va="top", color="#D55E00", fontsize=10)
centers = [GAP + 14 + STEP * i for i in range(10)]  # 行と列の中心（画素）
axes.set_xticks(centers, [f"+{column}" for column in range(10)])
axes.set_yticks(centers, [START_INDEX + 10 * row for row in range(10)])
axes.set_title("MNIST test images: index = row + column, label in orange")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
