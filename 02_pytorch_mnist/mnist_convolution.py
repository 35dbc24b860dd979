"""手書き数字に 3×3 のフィルタを当てる。1 か所は手で計算し、すべての位置は F.conv2d で計算する。

前のレッスン（mnist_dummydata_weightconfirm.py）との違い: 画素を 1 列に並べず、縦横の並びのまま使う。
訓練はせず、フィルタの重みは人が決める。次の mnist.py の CNN では、同じ形の重みが訓練で決まる。

実行: python mnist_convolution.py（2 コアの CPU で約 4 秒）
結果:
    sum of the nine products: 759
    loops and F.conv2d: both (26, 26), equal: True
    sum of the changes / sum of the values: 0.80 before pooling, 0.44 after
試してみよう:
    - 線の左ではなく右の縁だけを残すには、FILTERS の "vertical" の 9 個の重みをどう書けばよいか。
    - MOVE を 2 にすると、プーリング後の 3 つの値はどう変わるか。
解説: mnist_convolution.md
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from torchvision.datasets import MNIST

INDEX = 4575  # テスト画像の番号。横線、縦線、斜めの線がそろった 4 を選んだ
ROW, COLUMN = 11, 15  # 手で計算する 9 画素の、左上の位置（0 から数える）
FILTERS = {  # フィルタの重み。和はどれも 0 である
    "horizontal": [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],  # 横線の上の縁で大きくなる
    "vertical": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],  # 縦線の左の縁で大きくなる
    "diagonal": [[-1, -1, 0], [-1, 0, 1], [0, 1, 1]],  # 右上がりの線の、左上の縁で大きくなる
}
COLORS = ["#0072B2", "#D55E00", "#009E73"]  # フィルタごとの色
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnist_convolution.png"

# %% データ
test_set = MNIST(HERE / "data", train=False)
image = test_set.data[INDEX].float()  # 手で計算しやすいように、255 で割らない: (28, 28)
print(f"test image #{INDEX}, label {test_set.targets[INDEX]}")

# %% 1 か所を手で計算する
vertical = torch.tensor(FILTERS["vertical"]).float()  # (3, 3)
patch = image[ROW : ROW + 3, COLUMN : COLUMN + 3]  # フィルタを重ねる 9 画素: (3, 3)
products = patch * vertical  # 重なった画素と重みの、9 個の積: (3, 3)
print(f"9 pixels from row {ROW}, column {COLUMN}, times the vertical filter:")
for i in range(3):
    print(f"  {patch[i].int().tolist()} * {FILTERS['vertical'][i]} = {products[i].int().tolist()}")
print(f"sum of the nine products: {products.sum():.0f}")

# %% すべての位置で計算し、確かめる: F.conv2d は、同じ掛け算と足し算をする
by_loops = torch.zeros(26, 26)  # 左上を置ける位置は、縦にも横にも 28 - 3 + 1 = 26 通り
for row in range(26):
    for column in range(26):
        by_loops[row, column] = (image[row : row + 3, column : column + 3] * vertical).sum()
images = image.reshape(1, 1, 28, 28)  # (B, C, H, W)。C はチャネルの数
weight = vertical.reshape(1, 1, 3, 3)  # (出力のチャネルの数, 入力のチャネルの数, 縦, 横)
by_conv2d = F.conv2d(images, weight)[0, 0]  # (1, 1, 28, 28) -> (1, 1, 26, 26)、その 1 枚は (26, 26)
equal = torch.equal(by_loops, by_conv2d)  # どちらも整数なので、丸めの差は出ない
print(f"loops and F.conv2d: both {tuple(by_loops.shape)}, equal: {equal}")

# %% 3 つのフィルタ、パディング、ReLU
filters = torch.tensor(list(FILTERS.values())).float()  # (3, 3, 3)
filters = filters.unsqueeze(1)  # 入力のチャネルは 1 つ: (3, 3, 3) -> (3, 1, 3, 3)
responses = F.conv2d(images, filters, padding=1)  # 周りを 0 で囲む: (1, 1, 28, 28) -> (1, 3, 28, 28)
maps = F.relu(responses)  # 特徴マップ: (1, 3, 28, 28)。番号 0 が horizontal、1 が vertical、2 が diagonal
for name, picture in [("before ReLU", responses), ("after ReLU", maps)]:
    print(f"vertical {name}: from {picture[0, 1].min():.0f} to {picture[0, 1].max():.0f}")

# %% 最大値プーリング
MOVE = 1  # 数字を右へ動かす画素数
pooled = F.max_pool2d(maps, 2)  # 2×2 の 4 つの値の最大だけを残す: (1, 3, 28, 28) -> (1, 3, 14, 14)
moved_images = images.roll(MOVE, dims=3)  # 右端からはみ出した余白は、左端に入る
moved_maps = F.relu(F.conv2d(moved_images, filters, padding=1))  # (1, 3, 28, 28)
moved_pooled = F.max_pool2d(moved_maps, 2)  # (1, 3, 14, 14)
print(f"vertical map, rows 12 and 13, columns 14 to 19, and when the digit moves right by {MOVE}:")
for row in (12, 13):
    print(f"  {maps[0, 1, row, 14:20].int().tolist()}  {moved_maps[0, 1, row, 14:20].int().tolist()}")
print("after max pooling, row 6, columns 7 to 9:")
print(f"  {pooled[0, 1, 6, 7:10].int().tolist()}  {moved_pooled[0, 1, 6, 7:10].int().tolist()}")
map_change = (moved_maps - maps).abs().sum() / maps.sum()
pooled_change = (moved_pooled - pooled).abs().sum() / pooled.sum()
print(f"sum of the changes / sum of the values: {map_change:.2f} before pooling, {pooled_change:.2f} after")

# %% 入力のチャネルが 3 つのとき: チャネルごとに別の 9 個の重みを持ち、27 個の積を 1 つの数に足す
crossing = [  # 横線と縦線が交わる所を探す、3 × 9 = 27 個の重み
    [[0, 0, 0], [1, 1, 1], [0, 0, 0]],  # horizontal の特徴マップが、横に続いて大きいか
    [[0, 1, 0], [0, 1, 0], [0, 1, 0]],  # vertical の特徴マップが、縦に続いて大きいか
    [[0, 0, 0], [0, 0, 0], [0, 0, 0]],  # diagonal の特徴マップは見ない
]
crossing = torch.tensor(crossing).float()  # (3, 3, 3)
scores = F.conv2d(pooled, crossing.unsqueeze(0), padding=1)  # (1, 3, 14, 14) -> (1, 1, 14, 14)
total = 0
for i, name in enumerate(FILTERS):
    products = pooled[0, i, 7:10, 7:10] * crossing[i]  # 行 8、列 8 を中心とする 9 個の積: (3, 3)
    total = total + products.sum()
    print(f"channel {name:10s} sum of its nine products: {products.sum():.0f}")
print(f"all three added: {total:.0f}, largest of the 14 x 14 by F.conv2d: {scores.max():.0f}")

# %% 図
fig, axes = plt.subplots(2, 4, figsize=(10, 5.6), layout="constrained")
axes[0, 0].imshow(image.numpy(), cmap="gray_r")
axes[0, 0].add_patch(plt.Rectangle((COLUMN - 0.5, ROW - 0.5), 3, 3, fill=False, color=COLORS[1], linewidth=2))
axes[0, 0].set_title("input digit, the nine pixels")
strength, strongest = maps[0].max(dim=0)  # 位置ごとの最大の値と、そのフィルタの番号: どちらも (28, 28)
weak = strength < strength.max() / 2  # 最大の半分に届かない所は、色を塗らない
colored = strongest.float().masked_fill(weak, float("nan"))
axes[1, 0].imshow(colored.numpy(), cmap=ListedColormap(COLORS), vmin=0, vmax=2)
axes[1, 0].set_title("strongest filter, by color")
for i, name in enumerate(FILTERS):
    filter_axes, map_axes = axes[0, i + 1], axes[1, i + 1]
    filter_axes.imshow(FILTERS[name], cmap="gray_r", vmin=-1, vmax=3)
    filter_axes.set_title(f"{name} filter", color=COLORS[i])
    for row in range(3):
        for column in range(3):
            filter_axes.text(column, row, FILTERS[name][row][column], fontsize=20, ha="center", va="center")
    map_axes.imshow(maps[0, i].numpy(), cmap="gray_r", vmin=0, vmax=3 * 255)  # 3 * 255 が最大
    map_axes.set_title("feature map", color=COLORS[i])
axes[1, 2].add_patch(plt.Rectangle((COLUMN + 0.5, ROW + 0.5), 1, 1, fill=False, color=COLORS[1], linewidth=2))
for i in range(8):
    axes.flat[i].set(xticks=[], yticks=[])
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
