"""テスト画像の先頭 100 枚を 10 行 10 列の 1 枚の図に並べ、番号とラベルを読めるようにする。

前のレッスン（mnistview.py）との違い: 1 枚ずつ描くのではなく、100 枚を 1 枚の大きな画像につないでから描く。

実行: python mnistview100.py
結果（2 コアの CPU で約 4 秒）:
    digit  0  1  2  3  4  5  6  7  8  9
    count  8 14  8 11 14  7 10 15  2 11
試してみよう:
    - 自分なら読み違えそうな番号を控え、後のレッスンの load_and_infer.py -n 100 が示す確率と比べる。
    - START_INDEX を変えて、別の 100 枚を見る。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
from torchvision.datasets import MNIST
from torchvision.utils import make_grid

START_INDEX = 0  # 最初の画像の番号（0 から 9900）
GAP = 8  # 画像と画像の間（画素）。ラベルを書く場所になる
PICTURE = Path(__file__).resolve().parent.parent / "images" / "mnistview100.png"

# %% データ
dataset = MNIST(Path(__file__).resolve().parent / "data", train=False, download=True)  # train=False はテスト用の 10,000 枚
images = dataset.data[START_INDEX:START_INDEX + 100].unsqueeze(1) / 255  # (100, 1, 28, 28)、値は [0, 1]
labels = dataset.targets[START_INDEX:START_INDEX + 100]  # (100,)
print("digit " + " ".join(f"{digit:2d}" for digit in range(10)))
print("count " + " ".join(f"{count:2d}" for count in labels.bincount(minlength=10)))

# %% 図
mosaic = make_grid(images, nrow=10, padding=GAP)[0]  # (100, 1, 28, 28) -> (3, 368, 368) の先頭のチャネル。白黒なので 3 つとも同じ
fig, axes = plt.subplots(figsize=(7, 7), layout="constrained")
axes.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1)
for i, label in enumerate(labels.tolist()):
    row, column = divmod(i, 10)
    axes.text(GAP + (28 + GAP) * column, GAP + (28 + GAP) * row, label, color="#D55E00", fontsize=9)
centers = range(GAP + 14, len(mosaic), 28 + GAP)
axes.set_xticks(centers, [f"+{i}" for i in range(10)])
axes.set_yticks(centers, [START_INDEX + 10 * i for i in range(10)])
axes.set_title("MNIST test images: index = row + column, label at top left")
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
