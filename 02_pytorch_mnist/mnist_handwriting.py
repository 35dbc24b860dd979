"""紙に書いた数字の写真を、6 段で MNIST と同じ形に整え、訓練済みの CNN で読む。

前のレッスン（mnist_recipe.py）との違い: 訓練しない。自分の写真を、訓練に使った画像に似せる（前処理）。

実行: python mnist_handwriting.py 写真.jpg …（2 コアの CPU で約 6 秒。写真を省くと見本の 5 枚）
結果:
    marker_7.png: read as 7 (100.0%)
    pen_3.png: read as 3 (100.0%)
試してみよう:
    - THICKNESS を 0 にすると、細い線の pen_3.png の確率は何 % になるか。
    - 紙の明るさを 1 つの数にすると、影のある写真はどうなるか。
解説: mnist_handwriting.md
"""

# %% 準備
import argparse
import glob
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps
from torch import nn
from torchvision.datasets import MNIST
from torchvision.transforms.functional import to_tensor

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parent / "images" / "digits" / "*.png"
PICTURE = HERE.parent / "images" / "mnist_handwriting.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("files", nargs="*", metavar="写真", default=[str(SAMPLES)], help="省くと、見本の 5 枚")
args = parser.parse_args()


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


model = CNN().requires_grad_(False)  # 訓練しないので、勾配は要らない
model.load_state_dict(torch.load(HERE / "mnist_cnn.pth", map_location="cpu", weights_only=True))

# %% 第 1 段: 写真を開く
Image.MAX_IMAGE_PIXELS = None  # Pillow の上限の代わりに、下で調べる
ImageFile.LOAD_TRUNCATED_IMAGES = True  # 末尾の欠けた画像も、ある所まで開く


def open_picture(path):
    """画像を開き、正しい向きの明るさ (1, 1, H, W)、[0, 1] にする。長い辺は 400 画素。"""
    with Image.open(path) as file:
        if file.width * file.height > 150_000_000:  # 開くだけでメモリを使い切ることがある
            raise ValueError("大きすぎる。数字の周りを切り抜くか、縮小する")
        file.draft("RGB", (800, 800))  # JPEG は、縮めながら開くと速い
        image = ImageOps.exif_transpose(file)  # 写真に記録された向きに回す
    image = ImageOps.contain(image.convert("RGBA"), (400, 400))
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)  # 透明な所は白くする
    return to_tensor(image.convert("L")).unsqueeze(0)  # (1, H, W) -> (1, 1, H, W)


# %% 第 2 段: 紙の明るさで割る
def dilate(x, size):
    """膨張。(1, 1, H, W) の各画素を、周り size×size 画素の最大値にする。size は奇数。"""
    return F.max_pool2d(x, size, stride=1, padding=size // 2)


def flatten(gray):
    """明るさ (1, 1, H, W) を紙の明るさで割る。影が消え、紙は 1 に、線は 1 より小さくなる。"""
    height, width = gray.shape[2:]
    is_edge = torch.ones(height, width, dtype=torch.bool)
    is_edge[height // 8 : -(height // 8), width // 8 : -(width // 8)] = False
    typical = gray[0, 0, is_edge].median()  # 縁に写っているのは、紙である
    if typical < (gray.min() + gray.max()) / 2:  # 黒板のように、紙が暗く線が明るい
        gray = 1 - gray
    window = 17  # 1/8 に縮めた写真で、これより細い所を線とみなす（画素、奇数）
    small = F.interpolate(gray, scale_factor=1 / 8, mode="area")  # (1, 1, H/8, W/8)
    small = F.pad(small, [window] * 4, mode="replicate")  # 縁の明るさが、写真の外まで続くとみなす
    filled = dilate(small, window)  # 細い線は、周りの紙の明るさで埋まる
    closed = -dilate(-filled, window)  # 同じだけ収縮（最小値に）させて、埋まらなかった所を元に戻す
    paper = F.interpolate(closed[..., window:-window, window:-window], (height, width), mode="bilinear")
    return (gray / paper.clamp(min=0.05)).clamp(max=1)  # 真っ黒な所で 0 で割らない


# %% 第 3 段: 線と紙を分ける
def find_ink(flat):
    """平らにした明るさ (1, 1, H, W) の、線の画素を 1、紙の画素を 0 にする。"""
    darkness = 1 - F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)  # ざらつきを均す
    darkest = darkness.quantile(0.999)  # 最も濃い 0.1 % の境。1 つの黒い点には左右されない
    if darkest < 0.1:
        raise ValueError("何も書かれていないように見える。もっと濃く書く")
    return (darkness > 0.45 * darkest).float()


# %% 第 4 段: 数字を選ぶ
def connected_components(mask):
    """0 か 1 の (1, 1, h, w) の、つながった 1 の画素に同じ番号を付ける。0 の画素は 0 のまま。"""
    labels = mask * torch.arange(1, mask.numel() + 1).view_as(mask)  # 初めは、どの画素も違う番号
    while True:
        spread = dilate(labels, 3) * mask  # 自分と隣の 8 画素のうち、最も大きい番号にする
        if spread.equal(labels):
            return labels
        labels = spread


def choose_digit(ink):
    """線 (1, 1, H, W) のかたまりのうち、大きくて中央に近い 1 つだけを残す。"""
    coarse = F.max_pool2d(ink, 4, ceil_mode=True)  # (1, 1, H/4, W/4)
    labels = connected_components(dilate(coarse, 9))  # 太らせてから分けるので、小さな切れ目はつながる
    height, width = coarse.shape[2:]
    centrality = torch.outer(torch.bartlett_window(height), torch.bartlett_window(width))  # 中央で 1、縁で 0
    scores = torch.bincount(labels.long().flatten(), weights=(coarse * centrality).flatten())  # 番号 -> 合計
    mask = (labels == scores.argmax()).float()
    return ink * F.interpolate(mask, ink.shape[2:])


# %% 第 5 段: 20×20 に収める
THICKNESS = 1.5  # 縮めた後の線の太さの下限（画素）。測ると MNIST の線の 9 割は 1.3 から 3.1 である


def fit(digit):
    """数字 (1, 1, H, W) を切り出し、細ければ太らせ、縦横の比を保って縮める。長い辺は 20 画素。"""
    rows, columns = digit[0, 0].nonzero(as_tuple=True)
    digit = digit[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    digit = F.pad(digit, [1] * 4)
    outline = dilate(digit, 3) - digit  # 数字を囲む 1 画素の線。線の両側にあるので、長さは線の約 2 倍
    thickness = digit.sum() / (outline.sum() / 2)  # 太さ = 面積 ÷ 長さ
    wanted = THICKNESS * max(digit.shape) / 20  # 縮めると THICKNESS になる太さ
    grow = max(0, round((wanted - thickness).item() / 2))  # 両側に、これだけ太らせる
    digit = dilate(F.pad(digit, [grow] * 4), 2 * grow + 1)
    height, width = digit.shape[2:]
    scale = 20 / max(height, width)
    size = round(scale * height), round(scale * width)
    return F.interpolate(digit, size, mode="bilinear", antialias=True).clamp(0, 1)


# %% 第 6 段: 重心を中央に置く
def center_of_mass(digit):
    """数字 (1, 1, h, w) を、重心が中央に来るように 28×28 に置く。出典: yann.lecun.com/exdb/mnist"""
    height, width = digit.shape[2:]
    row_weights = digit.sum(dim=(0, 1, 3))  # 行ごとの線の量 (h,)
    column_weights = digit.sum(dim=(0, 1, 2))  # 列ごとの線の量 (w,)
    row = (row_weights * torch.arange(height)).sum() / digit.sum()  # 線の量で重み付けした、行の番号の平均
    column = (column_weights * torch.arange(width)).sum() / digit.sum()
    top = 14 - round(row.item())  # 重心が 14 行目、14 列目に来るように、上と左に空ける画素の数
    left = 14 - round(column.item())
    return F.pad(digit, [left, 28 - width - left, top, 28 - height - top])


# %% 写真を読む
def prepare(gray):
    """明るさ (1, 1, H, W) から、6 つの段の画像のリスト。最後が (1, 1, 28, 28)。"""
    flat = flatten(gray)
    ink = find_ink(flat)
    digit = choose_digit(ink)
    small = fit(digit)  # (1, 1, 20 以下, 20 以下)
    return [gray, flat, ink, digit, small, center_of_mass(small)]


paths = []
for name in args.files:
    if "*" in name:  # Windows の端末は *.jpg を展開しない
        paths += sorted(glob.glob(name))
    else:
        paths.append(name)
results = []  # 写真ごとの (6 つの段の画像, 予測した数字)
for path in paths:
    try:
        stages = prepare(open_picture(path))
    except Exception as error:  # 開けない画像の例外は、形式によって違う
        print(f"{path}: 読めない: {error}", file=sys.stderr)
        continue
    probability, answer = model(stages[-1]).softmax(dim=1)[0].max(dim=0)  # (1, 10) のうちの最大の確率
    print(f"{Path(path).name}: read as {answer} ({probability:.1%})", flush=True)
    results.append((stages, answer.item()))
if not results:
    sys.exit("読めた写真が 1 枚もない")

# %% 確かめる: MNIST の画像を影のある紙に書いても、6 段を通すと元に戻る
originals = MNIST(HERE / "data", train=False).data[:100].unsqueeze(1) / 255  # (100, 1, 28, 28)
answers = model(originals).argmax(dim=1)  # (100,)
light = torch.linspace(0.9, 0.4, 400)  # 紙の明るさ。右ほど影が濃い
large = F.interpolate(originals, scale_factor=8, mode="bilinear")  # (100, 1, 224, 224)
photos = light * (1 - 0.6 * F.pad(large, [150, 26, 20, 156]))  # 右上に寄せて書く (100, 1, 400, 400)
shrunk = 1 - F.interpolate(photos, size=(28, 28), mode="area")  # 縮めて、白黒を逆にしただけ
restored = torch.cat([prepare(photo)[-1] for photo in photos.split(1)])
for name, images in [("shrunk to 28x28", shrunk), ("all six stages", restored)]:
    n_same = (model(images).argmax(dim=1) == answers).sum()
    difference = (images - originals).abs().mean()
    print(f"{name}: {n_same} of 100 read as the originals  mean difference of pixels {difference:.2f}")

# %% 図
TITLES = ["gray", "flat", "ink", "digit", "fit in 20×20", "28×28"]
n_rows = min(len(results), 10)
fig, grid = plt.subplots(n_rows, 6, figsize=(9, 1.6 * n_rows), layout="constrained", squeeze=False)
for row, (stages, answer) in zip(grid, results):
    for axes, stage, title in zip(row, stages, TITLES):
        colormap = "gray" if title in ("gray", "flat") else "gray_r"  # 第 3 段からは、線が 1 である
        axes.imshow(stage[0, 0].numpy(), cmap=colormap, vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], title=title)
    row[5].set_title(f"28×28, read as {answer}")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
