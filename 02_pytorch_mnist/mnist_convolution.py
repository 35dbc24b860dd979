"""畳み込みは何を計算するのか。1 枚の手書き数字に 3×3 のフィルタを当て、1 か所は手で、すべての位置は F.conv2d で計算する。

前のレッスン（mnist_dummydata_weightconfirm.py）との違い: 画素を 1 列に並べず、縦横の並びのまま使う。訓練はせず、
フィルタの重みは人が決める。次の mnist.py の CNN では、同じ形の重みが訓練で決まる。

実行: python mnist_convolution.py
結果（2 コアの CPU で約 4 秒）:
    sum of the nine products: 271
    loops and F.conv2d: both (26, 26), largest difference 0
    Conv2d(32, 64): 64 x 32 x 9 weights + 64 biases = 18496 parameters
説明: このフォルダの README.md
試してみよう:
    - FILTERS の "vertical" の -1 と 1 を入れ替えると、sum of the nine products はいくつになるか。図にはどの縁が残るか。
    - MOVE を 2 にすると、プーリング後の 3 つの値はどう変わるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from torch import nn
from torchvision.datasets import MNIST

INDEX = 4575  # テスト画像の番号。横線、縦線、斜めの線がそろった 4 を選んだ
# フィルタ（カーネルともいう）の重み。和が 0 なので、どの画素も同じ値の所では結果が 0 になる
FILTERS = {  # 向きが 45 度違う縁にも、弱く反応する
    "horizontal": [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],  # 横線の上の縁（エッジ）で大きくなる
    "vertical": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],  # 縦線の左の縁で大きくなる
    "diagonal": [[-1, -1, 0], [-1, 0, 1], [0, 1, 1]],  # 右上がりの線の、左上の縁で大きくなる
}
COLORS = ["#0072B2", "#D55E00", "#009E73"]  # フィルタごとの色
ROW, COLUMN = 12, 7  # 手で計算する 9 画素の、左上の位置
MOVE = 1  # 数字を右へ動かす画素数
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnist_convolution.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")

# %% データ
try:
    test_set = MNIST(HERE / "data", train=False, download=True)  # データは同梱なので、ダウンロードは起こらない
except Exception as error:  # 壊れ方によって例外の種類が変わる
    raise SystemExit(f"エラー: {HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
# 手で計算しやすいように、255 で割らず、0（余白）から 255（インク）までの整数の値のまま使う
image = test_set.data[INDEX].float().to(device)  # (28, 28)
print(f"test image #{INDEX}, label {test_set.targets[INDEX]}")

# %% 1 か所を手で計算する
vertical = torch.tensor(FILTERS["vertical"], dtype=torch.float32).to(device)  # (3, 3)
patch = image[ROW:ROW + 3, COLUMN:COLUMN + 3]  # フィルタを重ねる 9 画素: (3, 3)
products = patch * vertical  # 重なった画素と重みを掛けた、9 個の積: (3, 3)
print(f"9 pixels from row {ROW}, column {COLUMN}, times the vertical filter:")
for i in range(3):
    print(f"  {patch[i].int().tolist()} * {vertical[i].int().tolist()} = {products[i].int().tolist()}")
print(f"sum of the nine products: {products.sum():.0f}")

# %% すべての位置で計算する
by_loops = torch.zeros(26, 26).to(device)  # フィルタの左上を置ける位置は、縦にも横にも 28 - 3 + 1 = 26 通り
for row in range(26):
    for column in range(26):
        by_loops[row, column] = (image[row:row + 3, column:column + 3] * vertical).sum()
images = image.reshape(1, 1, 28, 28)  # (B, C, H, W)。C はチャネルの数、つまり何枚の値を重ねたか（白黒の画像は 1）
weight = vertical.reshape(1, 1, 3, 3)  # (出力のチャネルの数, 入力のチャネルの数, 縦, 横)
by_conv2d = F.conv2d(images, weight)  # 畳み込み: (1, 1, 28, 28) -> (1, 1, 26, 26)
difference = (by_loops - by_conv2d[0, 0]).abs().max()
print(f"loops and F.conv2d: both {tuple(by_loops.shape)}, largest difference {difference:.0f}")

# %% 3 つのフィルタ、パディング、ReLU
filters = torch.tensor(list(FILTERS.values()), dtype=torch.float32).to(device)  # (3, 3, 3)
filters = filters.unsqueeze(1)  # 入力のチャネルは 1 つ: (3, 3, 3) -> (3, 1, 3, 3)
# パディング: 画像の周りを 0 で 1 画素ずつ囲んでから畳み込むと、縦横の大きさが 28 のまま変わらない
responses = F.conv2d(images, filters, padding=1)  # フィルタごとに 1 枚: (1, 1, 28, 28) -> (1, 3, 28, 28)
print(f"three filters with padding=1: {tuple(responses.shape)}")
# ReLU は、負の値（線の反対側の縁）を 0 にする。フィルタの反応の強さを場所ごとに並べたものを、特徴マップという
maps = F.relu(responses)  # (1, 3, 28, 28)。番号 0 が horizontal、1 が vertical、2 が diagonal
print(f"vertical: from {responses[0, 1].min():.0f} to {responses[0, 1].max():.0f}, "
      f"after ReLU from {maps[0, 1].min():.0f} to {maps[0, 1].max():.0f}")

# %% 最大値プーリング
pooled = F.max_pool2d(maps, 2)  # 2×2 の 4 つの値のうち、最大の値だけを残す: (1, 3, 28, 28) -> (1, 3, 14, 14)
moved_images = images.roll(MOVE, dims=3)  # 数字を右へ動かす。右端からはみ出した余白は、左端に入る
moved_maps = F.relu(F.conv2d(moved_images, filters, padding=1))  # (1, 3, 28, 28)
moved_pooled = F.max_pool2d(moved_maps, 2)  # (1, 3, 14, 14)
print(f"vertical map, rows 12 and 13, columns 14 to 19, and the same when the digit moves right by {MOVE}:")
for row in (12, 13):
    print(f"  {maps[0, 1, row, 14:20].int().tolist()}  {moved_maps[0, 1, row, 14:20].int().tolist()}")
print("after max pooling, row 6, columns 7 to 9:")
print(f"  {pooled[0, 1, 6, 7:10].int().tolist()}  {moved_pooled[0, 1, 6, 7:10].int().tolist()}")
map_change = (moved_maps - maps).abs().sum() / maps.sum()
pooled_change = (moved_pooled - pooled).abs().sum() / pooled.sum()
print(f"sum of the changes / sum of the values: {map_change:.2f} before pooling, {pooled_change:.2f} after")

# %% 入力のチャネルが 3 つのとき
# 3 枚の特徴マップを入力にするフィルタは、チャネルごとに別の 9 個の重みを持つ。次の 27 個は、横線と縦線が交わる所を探す
crossing = torch.tensor([
    [[0, 0, 0], [1, 1, 1], [0, 0, 0]],  # horizontal の特徴マップが、横に続いて大きいほどよい
    [[0, 1, 0], [0, 1, 0], [0, 1, 0]],  # vertical の特徴マップが、縦に続いて大きいほどよい
    [[0, 0, -1], [0, -1, 0], [-1, 0, 0]],  # diagonal の特徴マップが、斜めに続いて大きい所は除く
], dtype=torch.float32).to(device)  # (3, 3, 3)
scores = F.conv2d(pooled, crossing.unsqueeze(0), padding=1)  # (1, 3, 14, 14) -> (1, 1, 14, 14)。入力が 3 枚でも、出力は 1 枚である
total = 0
for i, name in enumerate(FILTERS):
    products = pooled[0, i, 7:10, 7:10] * crossing[i]  # 行 8、列 8 を中心とする 9 個の積: (3, 3)
    total = total + products.sum()
    print(f"channel {name:10s} sum of its nine products: {products.sum():.0f}")
print(f"all three added: {total:.0f}, F.conv2d: {scores[0, 0, 8, 8]:.0f}, largest of 14 x 14: {scores.max():.0f}")

# %% パラメータを数える
# 出力のチャネル 1 つごとに、入力のチャネルの数 × 9 個の重みと、最後に足すバイアス 1 個を持つ。次は mnist.py の 2 つの層である
for conv in (nn.Conv2d(1, 32, kernel_size=3, padding=1), nn.Conv2d(32, 64, kernel_size=3, padding=1)):
    parameters = conv.weight.numel() + conv.bias.numel()
    print(f"Conv2d({conv.in_channels}, {conv.out_channels}): {conv.out_channels} x {conv.in_channels} x 9 weights "
          f"+ {conv.out_channels} biases = {parameters} parameters")

# %% 図
fig, axes = plt.subplots(2, 4, figsize=(10, 5.6), layout="constrained")
axes[0, 0].imshow(image.cpu().numpy(), cmap="gray_r")
axes[0, 0].set_title("input digit")
strength, strongest = maps[0].cpu().max(dim=0)  # 位置ごとに、3 枚のうちの最大の値と、その番号: どちらも (28, 28)
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
    map_axes.imshow(maps[0, i].cpu().numpy(), cmap="gray_r", vmin=0, vmax=3 * 255)  # 3 * 255 は、とりうる最大の値
    map_axes.set_title("feature map", color=COLORS[i])
for one in axes.flat:
    one.set(xticks=[], yticks=[])
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
