"""紙に書いた数字の写真を、段階を追って MNIST と同じ形に整え、訓練済みの CNN で予測する。

load_and_infer.py との違い: 自分の写真を使う。MNIST の画像に似せる準備（前処理）が加わる。

実行: python mnist_handwriting.py 写真.jpg … （省くと、手書きに似せて描いた images/digits の 5 枚を使う）
結果（2 コアの CPU で約 4 秒）:
    marker_7.png: read as 7 (100.0%)
    pen_3.png: read as 3 (100.0%)
説明: このフォルダの README.md
1 枚の写真に、数字を 1 つだけ書く。机や隣の字や罫線は、なるべく写らないように切り抜く。
試してみよう:
    - THICKNESS を 0 にすると、細い線の pen_3.png は 28×28 でどう見え、確率は何 % になるか。
    - center_of_mass の top と left をどちらも 0 にして左上に寄せると、5 枚のうち何枚が外れるか。
"""

# %% 準備
import argparse
import glob
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torchvision.transforms.functional import to_tensor

LONG_SIDE = 400  # 写真の長い辺を、この画素数に揃える。これより小さいと細い線が消える
PAPER_SCALE = 8  # 紙の明るさは粗く分かればよいので、1/8 に縮めて調べる
PAPER_WINDOW = 17  # 紙の明るさを調べる範囲の一辺（縮めた画素、奇数）。これより細いものを線とみなす
RULE_LENGTH = 25  # 横（縦）にこれだけ続く線は、罫線かもしれない（画素、奇数）
RULE_TILT = 9  # 少し傾いて写った罫線も消えるように、上下にこの幅の中で線を探す（画素、奇数）
MIN_DARKNESS = 0.1  # 最も濃い所でも、紙より 10 % 以上暗くなければ、何も書かれていないとみなす
MIN_CONTRAST = 7  # 最も濃い所が、紙のざらつきの何倍より濃いか。測ると、白紙では 5 倍以下、書いた紙では 9 倍以上だった
THRESHOLD = 0.5  # 線の濃さの半分、つまり紙との真ん中より濃い画素を、線とする。薄い鉛筆でもペンでも、同じ割合でよい
BLOB_SCALE = 4  # かたまりは 1/4 に縮めて調べる。速くなり、線の小さな切れ目もつながる
EDGE_WEIGHT = 0.1  # 写真の縁に触れるかたまりは隣の字や机であることが多いので、面積を 1/10 に数える
SPECK = 0.2  # 囲まれたものの高さが、囲むものの高さのこの割合以下なら、枠の中の数字ではなく、汚れとみなす
ALIKE = 0.6  # 選んだ数字の高さのこの割合以上のものがほかにあれば、数字が 2 つあるとみなす
FIT = 20  # 数字を収める正方形の一辺（画素）。MNIST と同じ
THICKNESS = 1.5  # 28×28 の画像での線の太さの下限（画素）。測ると MNIST の線の 9 割は 1.3 から 3.1 である
UNSURE = 0.6  # 確率がこれより低ければ、自信がないと書く
MAX_ROWS = 20  # 図に描く枚数の上限
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_cnn.pth"
PICTURE = HERE.parent / "images" / "mnist_handwriting.png"

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("files", nargs="*", metavar="FILE", default=[str(HERE.parent / "images" / "digits" / "*.png")],
                    help="JPEG、PNG、WebP など、Pillow が開ける画像（既定: images/digits の 5 枚）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする

# 小さな計算の繰り返しなので、スレッドを増やすと待ち合わせが増える（混んだ 2 コアで 400 枚: 1 スレッドで 76 秒、2 スレッドで 252 秒）
torch.set_num_threads(1)
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


model = CNN()
try:
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{WEIGHTS} がないか、cnn の重みとして読み込めない。mnist.py -m cnn で訓練する: {error!r}")
model = model.to(device).eval()


# %% 第 1 段: 写真を開く
def read_picture(path):
    """画像を開き、正しい向きの明るさ (1, 1, H, W)、[0, 1] にする。長い辺は LONG_SIDE 画素"""
    with Image.open(path) as file:
        file.draft("L", (LONG_SIDE, LONG_SIDE))  # JPEG は、縮めながら復号すると速い
        image = ImageOps.exif_transpose(file)  # 写真に記録された向きに回す
    if image.mode.startswith("I"):  # 16 ビットの白黒は 65535 が白なので、255 が白の 8 ビットにする
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    image = ImageOps.contain(image.convert("LA"), (LONG_SIDE, LONG_SIDE))  # LA は、明るさと不透明度の 2 チャネル
    gray, alpha = to_tensor(image).unsqueeze(1).unsqueeze(1)  # (2, H, W) -> それぞれ (1, 1, H, W)
    if min(gray.shape[2:]) < PAPER_SCALE:
        raise ValueError("細長すぎる。数字の周りを切り抜く")
    # 透明な背景に書いた画像では、不透明な部分が線である。背景は、線と反対の明るさにする
    ink_is_dark = (gray * alpha).sum() < 0.5 * alpha.sum()
    background = 1.0 if ink_is_dark else 0.0
    return gray * alpha + background * (1 - alpha)


# %% 第 2 段: 紙の明るさで割る
def dilate(x, height, width):
    """膨張。(1, 1, H, W) の各画素を、周り height×width 画素の最大値にする。"""
    return F.max_pool2d(x, (height, width), stride=1, padding=(height // 2, width // 2))


def erode(x, height, width):
    """収縮。(1, 1, H, W) の各画素を、周り height×width 画素の最小値にする。"""
    return -dilate(-x, height, width)


def ink_is_light(small):
    """縮めた明るさ (1, 1, h, w) で、黒板のように線が明るければ True"""
    height, width = small.shape[2:]
    center = small[..., height // 8 : height - height // 8, width // 8 : width - width // 8]  # 縁の机や枠は見ない
    around = F.avg_pool2d(center, PAPER_WINDOW, stride=1, padding=PAPER_WINDOW // 2, count_include_pad=False)
    deviation = center - around
    # 線は細いので、周りの平均から大きく外れるのは、紙ではなく線である。3 乗すると大きなずれが残り、符号が線の側を示す
    # たとえば、ずれが紙で +0.06、線で -0.54 なら、3 乗は +0.0002 と -0.157 で、平均は負になる。つまり、線が暗い
    return (deviation ** 3).mean() > 0


def divide_by_paper(gray):
    """明るさ (1, 1, H, W) を、その場所の紙の明るさで割る。影が消え、紙は 1 に、線は 1 より小さくなる。"""
    small = F.interpolate(gray, scale_factor=1 / PAPER_SCALE, mode="area")  # (1, 1, H, W) -> (1, 1, H/8, W/8)
    if ink_is_light(small):
        gray, small = 1 - gray, 1 - small  # 白黒を逆にして、線を暗くする
    # 縁の暗い机を線としないように、縁と同じ明るさが写真の外まで続くとみなす
    small = F.pad(small, [PAPER_WINDOW] * 4, mode="replicate")
    # クロージング: 明るい所を広げてから同じだけ縮めると、線のような細い暗い所だけが埋まり、紙の明るさが残る
    paper = erode(dilate(small, PAPER_WINDOW, PAPER_WINDOW), PAPER_WINDOW, PAPER_WINDOW)
    paper = paper[..., PAPER_WINDOW:-PAPER_WINDOW, PAPER_WINDOW:-PAPER_WINDOW]  # 足した外側を取り除く
    paper = F.interpolate(paper, gray.shape[2:], mode="bilinear")  # (1, 1, H/8, W/8) -> (1, 1, H, W)
    return (gray / paper.clamp(min=0.05)).clamp(max=1)  # 真っ黒な紙で 0 で割らない


# %% 第 3 段: 線と紙を分ける
def find_rules(darkness):
    """濃さ (1, 1, H, W) のうち、端から端まで続く横線（罫線）の濃さ (1, 1, H, W)"""
    # オープニング: 横に縮めてから同じだけ広げると、横に RULE_LENGTH 以上続く線だけが残る
    long_lines = dilate(erode(darkness, 1, RULE_LENGTH), 1, RULE_LENGTH)
    whole_rows = dilate(long_lines, RULE_TILT, 1).amin(dim=3, keepdim=True)  # その行の、最も薄い所の濃さ (1, 1, H, 1)
    # 0.6 0.6 0.6 と続く行なら 0.6 で、罫線である。0.6 0.6 0 と途中で切れる行なら 0 で、4 や 7 の横棒は残る
    rules = torch.minimum(long_lines, whole_rows)
    return dilate(rules, 3, 1)


def find_ink(flat):
    """平らにした明るさ (1, 1, H, W) の、線の画素を 1、紙の画素を 0 にする。何も書かれていなければ ValueError"""
    darkness = 1 - F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)  # 濃さは 1 - 明るさ。細かなざらつきは均す
    horizontal = find_rules(darkness)
    vertical = find_rules(darkness.mT).mT  # 縦横を入れ替えれば、同じ手順で縦線が見つかる
    darkness = darkness - torch.maximum(horizontal, vertical)
    darkest = darkness.quantile(0.9995)  # 最も濃い 0.05 % の画素の濃さ。1 つの黒い点には左右されない
    roughness = darkness.median()  # 画素の半分より多くは紙なので、中央値は紙のざらつきを表す
    if darkest < MIN_DARKNESS or darkest < MIN_CONTRAST * roughness:
        raise ValueError("何も書かれていないように見える。もっと濃く書く")
    # ぼけた線では、最も濃いのは中心だけである。まずその半分で分けて、残った画素の濃さの中央値を求め、中央値の半分で分け直す
    typical = darkness[darkness > THRESHOLD * darkest].median()
    return (darkness > THRESHOLD * typical).float()


# %% 第 4 段: 数字を選ぶ
class Blob(NamedTuple):
    """つながった線のかたまり。位置と面積の単位は、1/4 に縮めた画像の画素"""

    mask: torch.Tensor  # (h, w) の真偽値
    top: int
    bottom: int
    left: int
    right: int
    area: float
    at_edge: bool  # 写真の縁に触れるか

    def height(self):
        """高さ"""
        return self.bottom - self.top + 1

    def encloses(self, other):
        """other が汚れではなく、囲む長方形どうしで比べて、すっかりこの中にあれば True。このかたまりは、数字を囲む枠である"""
        is_inside = (self.top < other.top and other.bottom < self.bottom
                     and self.left < other.left and other.right < self.right)
        return is_inside and other.height() > SPECK * self.height()


def connected_components(mask):
    """0 か 1 の (1, 1, h, w) の、つながった 1 の画素に同じ番号を付ける。0 の画素は 0 のまま"""
    labels = mask * torch.arange(1, mask.numel() + 1).view_as(mask)  # 初めは、どの画素も違う番号
    while True:
        wider = dilate(labels, 3, 3) * mask  # 自分と隣の 8 画素のうち、最も大きい番号にする
        if wider.equal(labels):  # もう変わらなければ、つながった画素は同じ番号になっている
            return labels
        labels = wider


def find_blobs(ink):
    """線 (1, 1, H, W) を、Blob の list に分ける。"""
    coarse = F.max_pool2d(ink, BLOB_SCALE, ceil_mode=True)  # (1, 1, H, W) -> (1, 1, H/4, W/4)
    share = F.avg_pool2d(ink, BLOB_SCALE, ceil_mode=True)[0, 0]  # 縮めた 1 画素のうち、線が占める割合 (H/4, W/4)
    labels = connected_components(dilate(coarse, 3, 3))[0, 0]  # (H/4, W/4)。太らせて、切れ目をつないでから分ける
    height, width = labels.shape
    blobs = []
    for label in labels.unique()[1:]:  # 先頭の 0 は紙である
        mask = labels == label
        rows, columns = mask.nonzero(as_tuple=True)
        top, bottom = rows.min().item(), rows.max().item()
        left, right = columns.min().item(), columns.max().item()
        at_edge = top == 0 or left == 0 or bottom == height - 1 or right == width - 1
        blobs.append(Blob(mask, top, bottom, left, right, share[mask].sum().item(), at_edge))
    return blobs


def weighted_area(blob):
    """数字らしさを比べるための面積"""
    return EDGE_WEIGHT * blob.area if blob.at_edge else blob.area


def choose_digit(ink):
    """線 (1, 1, H, W) から最も大きなかたまりだけを残したものと、それと同じくらいの高さのかたまりの数

    数には、選んだかたまりも入れ、縁に触れるものは入れない。
    """
    blobs = find_blobs(ink)
    candidates = []
    for blob in blobs:
        if not any(blob.encloses(other) for other in blobs):  # ほかを 1 つでも囲むものは、数字ではなく枠である
            candidates.append(blob)
    largest = max(candidates, key=weighted_area)
    n_alike = 0
    for blob in candidates:
        if not blob.at_edge and blob.height() >= ALIKE * largest.height():
            n_alike += 1
    mask = F.interpolate(largest.mask[None, None].float(), ink.shape[2:])  # (h, w) -> (1, 1, H, W)
    return ink * mask, n_alike


# %% 第 5 段: 20×20 に収める
def fit(digit):
    """数字 (1, 1, H, W) を囲む長方形を切り出し、細い線を太らせ、縦横の比を保って FIT×FIT に収める。"""
    rows, columns = digit[0, 0].nonzero(as_tuple=True)
    digit = digit[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    digit = F.pad(digit, [1] * 4)
    outline = dilate(digit, 3, 3) - digit  # 数字のすぐ外を囲む 1 画素の線。長さは、数字の線の長さの約 2 倍になる
    thickness = digit.sum() / (outline.sum() / 2)  # 線の太さ = 面積 ÷ 線の長さ
    wanted = THICKNESS * max(digit.shape) / FIT  # 縮めた後に THICKNESS になる太さ
    grow = max(0, round((wanted - thickness).item() / 2))  # 細い線は縮めると消えるので、両側にこれだけ太らせる
    digit = dilate(F.pad(digit, [grow] * 4), 2 * grow + 1, 2 * grow + 1)
    height, width = digit.shape[2:]
    scale = FIT / max(height, width)
    size = max(1, round(scale * height)), max(1, round(scale * width))  # 長い辺が FIT になる
    return F.interpolate(digit, size, mode="bilinear", antialias=True).clamp(0, 1)


# %% 第 6 段: 重心を中央に置く
def center_of_mass(digit):
    """20×20 に収めた数字 (1, 1, h, w) を、重心が中央に来るように 28×28 に置く。出典: yann.lecun.com/exdb/mnist"""
    height, width = digit.shape[2:]
    row_weights = digit.sum(dim=(0, 1, 3))  # 行ごとの線の量 (h,)
    column_weights = digit.sum(dim=(0, 1, 2))  # 列ごとの線の量 (w,)
    row = (row_weights * torch.arange(height)).sum() / digit.sum()  # 重心の行。線の量で重み付けした、行の番号の平均
    column = (column_weights * torch.arange(width)).sum() / digit.sum()
    top = 14 - round(row.item())  # 重心が 14 行目、14 列目に来るように、上と左に空ける画素の数
    left = 14 - round(column.item())
    return F.pad(digit, [left, 28 - width - left, top, 28 - height - top])


# %% 予測
paths = []
for name in args.files:
    if Path(name).exists():
        paths.append(Path(name))
    else:  # Windows の端末は *.jpg をファイルの名前に展開しないので、ここで展開する
        matches = sorted(glob.glob(name)) or [name]  # 1 つもなければ、名前をそのまま残す。下で「ない」と分かる
        paths += [Path(match) for match in matches]

answers = {}  # 写真のパス -> 予測した数字
shown = []  # 図に描く写真の (名前, 6 つの段階の画像, 確率)
for path in paths:
    try:
        gray = read_picture(path)  # (1, 1, H, W)
        flat = divide_by_paper(gray)
        ink = find_ink(flat)
        digit, n_alike = choose_digit(ink)
        small = fit(digit)  # (1, 1, H, W) -> (1, 1, 20 以下, 20 以下)
        image = center_of_mass(small)  # -> (1, 1, 28, 28)
    except UnidentifiedImageError:
        print(f"{parser.prog}: error: {path} は、Pillow で開ける画像ではない。iPhone の HEIC なら、JPEG で書き出すか、"
              "「設定 > カメラ > フォーマット」を「互換性優先」にして撮る", file=sys.stderr)
        continue
    except Exception as error:  # 壊れ方によって例外の種類が変わる。1 枚が読めなくても、次へ進む
        print(f"{parser.prog}: error: {path} を読めない: {error}", file=sys.stderr)
        continue
    with torch.no_grad():
        probabilities = model(image.to(device)).softmax(dim=1)[0].cpu()  # (1, 10) -> (10,)
    answer = probabilities.argmax().item()
    confidence = probabilities[answer].item()
    line = f"{path.name}: read as {answer} ({confidence:.1%})"
    if confidence < UNSURE:
        line += " 自信がない"
    if n_alike > 1:
        line += f" 数字が {n_alike} つ見える。1 つずつ切り抜く"
    print(line, flush=True)
    answers[path] = answer
    if len(shown) < MAX_ROWS:
        shown.append((path.name, [gray, flat, 1 - ink, 1 - digit, 1 - small, 1 - image], probabilities))
if not answers:
    sys.exit(2)
if len(answers) > MAX_ROWS:
    print(f"the figure shows the first {MAX_ROWS} of {len(answers)}")

# %% 図
TITLES = ["gray", "flat", "ink", "digit", "fit in 20×20", "28×28"]
fig, grid = plt.subplots(len(shown), 7, figsize=(11, 1.45 * len(shown) + 0.3), layout="constrained", squeeze=False)
for row, (name, stages, probabilities) in zip(grid, shown):
    for axes, stage in zip(row, stages):
        axes.imshow(stage[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(ascii(name[-16:])[1:-1], fontsize=10, parse_math=False)  # 図のフォントに漢字はない
    bars = row[6].bar(range(10), probabilities.tolist(), color="#0072B2")
    answer = probabilities.argmax().item()
    bars[answer].set_color("#D55E00")
    row[6].set(xticks=range(10), yticks=[0, 1], ylim=(0, 1))
    row[6].set_title(f"read as {answer} ({probabilities[answer]:.0%})", fontsize=11)
for axes, title in zip(grid[0], TITLES):
    axes.set_title(title, fontsize=12)
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
