"""訓練済みの CNN の中をのぞく。学んだフィルタと、1 枚の画像が各層でどう変わるかを描く。

前のレッスン（mnist_errors.py）との違い: 予測の結果ではなく途中を見る。モデルのコードを変えずに途中の出力を取り出す
forward hook を使う。また、値が 1 方向へ増える絵を見せて、フィルタがどの向きの変化に反応するかを調べる。

実行: python mnist_cnn_features.py （別の画像は python mnist_cnn_features.py -s 5）
結果（2 コアの CPU で約 4 秒）:
    features.0 Conv2d     (32, 28, 28)  -0.0484
    features.5 MaxPool2d  (64, 7, 7)    0.0542
試してみよう:
    - -s を変えて別の数字を入力し、特徴マップがどう変わるかを見る。
    - model.load_state_dict の行を pass に替えて、訓練前のフィルタと比べる。
"""

# %% 準備
import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST
from torchvision.utils import make_grid

DIRECTIONS = ["right", "lower right", "bottom", "lower left", "left", "upper left", "top", "upper right"]  # 45 度ごと
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_cnn.pth"
PICTURE = HERE.parent / "images" / "mnist_cnn_features.png"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-s", "--start-index", type=int, default=0, help="入力するテスト画像の番号（既定: 0）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
if not 0 <= args.start_index < 10_000:
    parser.error("--start-index は 0 以上 9999 以下にする")
if not WEIGHTS.exists():
    parser.error(f"重みのファイル {WEIGHTS} がない。mnist.py -m cnn で訓練して作る")

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")


# %% モデル（mnist.py と同じ）
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


# %% 重みの読み込み
model = CNN()
try:
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{WEIGHTS} は cnn の重みとして読めない。mnist.py -m cnn で訓練し直す: {error!r}")
model = model.to(device, memory_format=torch.channels_last).eval()

# %% 各層の出力
test_set = MNIST(HERE / "data", train=False, download=True)  # 同梱のファイルを使い、無いときだけダウンロードする
image = test_set.data[args.start_index].reshape(1, 1, 28, 28) / 255  # (28, 28) -> (1, 1, 28, 28)、値は [0, 1]
label = test_set.targets[args.start_index].item()
outputs = {}  # {層の名前: 出力（特徴マップ） (C, H, W)}
hooks = []  # hook は、その層の順伝播が終わるたびに (層, 入力, 出力) を渡されて呼ばれる
for i, layer in enumerate(model.features):
    name = f"features.{i} {layer}".split("(")[0]  # "features.0 Conv2d"
    hooks.append(layer.register_forward_hook(
        lambda layer, inputs, output, name=name: outputs.update({name: output[0].cpu()})))  # name=name で、その回の名前を覚える
with torch.no_grad():
    logits = model(image.to(device))  # (1, 1, 28, 28) -> (1, 10)
for hook in hooks:  # 外さないと、以後の順伝播でも呼ばれ続ける
    hook.remove()
print(f"test image #{args.start_index}, label {label}, read as {logits.argmax()}")
print("stage                 shape         mean   zeros")
for name, maps in outputs.items():
    zeros = f"{(maps == 0).float().mean():.1%}" if "ReLU" in name else ""  # ReLU が 0 にした値の割合
    print(f"{name:21s} {str(tuple(maps.shape)):13s} {maps.mean():.4f}  {zeros}".rstrip())

# %% フィルタの反応
# 画素の値が 1 方向へ増えていく（図では黒くなっていく）3×3 の絵を、8 方向について作り、32 個のフィルタに見せる
filters = model.features[0].weight.detach().cpu()  # (32, 1, 3, 3)
y, x = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")  # 画像の座標では、y は下向き
angles = torch.arange(8) * math.pi / 4
ramps = torch.stack([x * angle.cos() + y * angle.sin() for angle in angles]).unsqueeze(1)  # (8, 1, 3, 3)
responses = F.conv2d(ramps, filters).flatten(start_dim=1)  # (8, 1, 3, 3) -> (8, 32)
strongest, directions = responses.max(dim=0)  # (32,) が 2 つ
print("the 3 filters that respond most to a change of pixel value:")
for i in strongest.argsort(descending=True)[:3]:
    print(f"filter {i:2d}: {strongest[i]:.2f} where pixel values rise toward the {DIRECTIONS[directions[i]]}")

# %% 図
fig = plt.figure(figsize=(14, 7.5), layout="constrained")
fig.suptitle(f"What the CNN sees: test image #{args.start_index}, label {label}")
top, bottom = fig.subfigures(2, 1, height_ratios=[4, 5])
input_axes, filter_axes, relu_axes = top.subplots(1, 3, width_ratios=[1, 2, 2])
input_axes.imshow(image[0, 0], cmap="gray_r")
input_axes.set_title("input: 1 x 28 x 28")
limit = filters.abs().max()
# 8 列に並べた 1 枚にする: (32, 1, 3, 3) -> (3, 17, 33) の先頭 (17, 33)。間の 1 画素は NaN で、何も描かれない
filter_axes.imshow(make_grid(filters, padding=1, pad_value=math.nan)[0], cmap="PuOr", vmin=-limit, vmax=limit)
filter_axes.set_title("features.0 filters: 32 x 1 x 3 x 3 (purple > 0, orange < 0)")
stages = [name for name in outputs if "Conv2d" not in name]  # ReLU の前の値は描かない
for axes, name in zip([relu_axes, *bottom.subplots(1, 3, width_ratios=[2, 1, 1])], stages):
    maps = outputs[name].unsqueeze(1)  # (C, H, W) -> (C, 1, H, W)
    axes.imshow(make_grid(maps, padding=1, pad_value=math.nan)[0], cmap="gray_r")
    axes.set_title(f"{name}: " + " x ".join(map(str, outputs[name].shape)))
for axes in fig.axes:
    axes.set(xticks=[], yticks=[], facecolor="#BFDDF2")  # NaN の隙間から見える色
filter_axes.set_xticks(range(2, 34, 4), [f"+{i}" for i in range(8)])  # フィルタの番号は、行の目盛り + 列の目盛り
filter_axes.set_yticks(range(2, 18, 4), range(0, 32, 8))
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
