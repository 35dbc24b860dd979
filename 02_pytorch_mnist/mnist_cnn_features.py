"""訓練済みの CNN の中を見る。1 枚の画像が各段でどう変わるかと、訓練で決まったフィルタが何を取り出すかが分かる。

前のレッスン（mnist_errors.py）との違い: 予測の結果ではなく、途中の値を見る。mnist_convolution.py では人がフィルタを
決めたが、ここでは訓練で決まった 32 個から、この画像に最も強く反応した 4 個を選び、特徴マップと並べて描く。

実行: python mnist_cnn_features.py （別の画像は python mnist_cnn_features.py -s 5）
結果（2 コアの CPU で約 4 秒）:
    features.0 Conv2d     (32, 28, 28)  -0.0609
    features.5 MaxPool2d  (64, 7, 7)    0.0666
説明: このフォルダの README.md
試してみよう:
    - -s 5 で別の数字を入力すると、選ばれる 4 個のフィルタはどれに変わるか。
    - images を torch.zeros(1, 1, 28, 28) に替えて白紙を入力すると、4 個のフィルタの反応は何に等しくなるか。
    - どこでも 0 だったフィルタの番号を表示する。正の重みの和にバイアスを足すと、いくつになるか。
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

SHOWN = 4  # 描くフィルタの数
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_cnn.pth"
PICTURE = HERE.parent / "images" / "mnist_cnn_features.png"

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
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
    parser.error(f"{WEIGHTS} は cnn の重みとして読み込めない。mnist.py -m cnn で訓練し直す: {error!r}")
model = model.to(device).eval()

# %% データ
try:
    test_set = MNIST(HERE / "data", train=False, download=True)  # データは同梱なので、ダウンロードは起こらない
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
images = test_set.data[args.start_index].reshape(1, 1, 28, 28) / 255  # (28, 28) -> (1, 1, 28, 28)、値は [0, 1]
images = images.to(device)
label = test_set.targets[args.start_index].item()

# %% 各段の出力
outputs = {}  # {段の名前: 出力 (C, H, W)}
x = images
with torch.no_grad():
    for i, layer in enumerate(model.features):  # Sequential は、中の層を順に呼ぶだけなので、1 段ずつ自分で呼べる
        x = layer(x)
        name = f"features.{i} {type(layer).__qualname__}"  # クラスの名前を付けて "features.0 Conv2d" とする
        outputs[name] = x[0].cpu()
    logits = model.classifier(x)  # (1, 64, 7, 7) -> (1, 10)
    difference = (logits - model(images)).abs().max()
print(f"test image #{args.start_index}, label {label}, predicted {logits.argmax()}")
print(f"stage by stage and model(images): largest difference {difference:.1e}")
print("stage                 shape         mean   zeros")
for name, maps in outputs.items():
    zeros = ""
    if "ReLU" in name:
        zeros = f"  {(maps == 0).float().mean():.1%}"  # ReLU が 0 にした値の割合
    print(f"{name:21s} {str(tuple(maps.shape)):13s} {maps.mean():.4f}{zeros}")

# %% 強く反応したフィルタ
filters = model.features[0].weight.detach().cpu()  # (32, 1, 3, 3)
biases = model.features[0].bias.detach().cpu()  # (32,)
maps = outputs["features.1 ReLU"]  # フィルタごとの特徴マップ: (32, 28, 28)
largest = maps.amax(dim=(1, 2))  # 特徴マップごとの最大値: (32, 28, 28) -> (32,)
chosen = largest.topk(SHOWN).indices.tolist()  # 最大値の大きい順
# 余白では 9 画素がどれも 0 なので、畳み込みの結果はバイアスに等しい。バイアスが正のフィルタでは、余白も 0 にならず、
# 図で灰色になる。逆に、この画像のどこでも ReLU の後が 0 になるフィルタもある
print(f"bias > 0, not 0 on blank paper: {(biases > 0).sum()} of {len(filters)} filters")
print(f"0 everywhere on this image: {(largest == 0).sum()} of {len(filters)} filters")
padded_image = F.pad(images[0, 0].cpu(), (1, 1, 1, 1))  # padding=1 と同じく 0 で囲む: (28, 28) -> (30, 30)
for i in chosen:
    row, column = divmod(maps[i].argmax().item(), 28)  # argmax は 784 個の通し番号なので、行と列に分ける
    patch = padded_image[row:row + 3, column:column + 3]  # 最も強く反応した 9 画素: (3, 3)
    by_hand = (patch * filters[i, 0]).sum() + biases[i]
    print(f"filter {i:2d}  largest {largest[i]:.3f} at row {row}, column {column}  "
          f"nine products + bias {biases[i]:+.3f} = {by_hand:.3f}")

# %% 図
fig, axes = plt.subplots(2, SHOWN + 1, figsize=(10, 4.6), layout="constrained")
axes[0, 0].axis("off")
axes[1, 0].imshow(images[0, 0].cpu().numpy(), cmap="gray_r")
axes[1, 0].set_title(f"input: label {label}")
limit = filters.abs().max().item()
for position, i in enumerate(chosen, start=1):
    filter_axes, map_axes = axes[0, position], axes[1, position]
    # 画像と同じく、大きい値ほど黒い。黒い所にインクがあり、白い所にないとき、強く反応する
    filter_axes.imshow(filters[i, 0].numpy(), cmap="gray_r", vmin=-limit, vmax=3 * limit)
    filter_axes.set_title(f"filter {i}\nbias {biases[i]:+.3f}")
    for row in range(3):
        for column in range(3):
            filter_axes.text(column, row, f"{filters[i, 0, row, column]:+.1f}", fontsize=12, ha="center", va="center")
    map_axes.imshow(maps[i].numpy(), cmap="gray_r", vmin=0)
    map_axes.set_title(f"feature map\nlargest {largest[i]:.2f}")
for one in axes.flat:
    one.set(xticks=[], yticks=[])
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
