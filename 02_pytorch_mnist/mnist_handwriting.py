"""紙に書いた数字の写真から線を取り出し、MNIST と同じ形に整えて、訓練済みの CNN に読ませる。

前のレッスン（load_and_infer.py）との違い: 写真やスキャンを読む。訓練の画像に似せる準備が、正解率を決める。

実行: python mnist_handwriting.py 写真.jpg （何枚でも並べられる。省くと images/digits の 5 枚を読む）
結果（2 コアの CPU で約 4 秒）:
    pen_3.png: read as 3 (92.6%)
試してみよう:
    - THICKNESS を 0 にすると、pen_3.png の細い線はどう見え、確率はどう変わるか。
"""

# %% 準備
import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.io import ImageReadMode, decode_image

WORK_SIZE = 400  # 写真の長い辺を、まずこの画素数にそろえる。これより小さいと細い線が消える
MIN_CONTRAST = 0.1  # 紙と線の明るさの差がこれより小さければ、何も書かれていないとみなす
THICKNESS = 2  # 28×28 の画像での線の太さの下限（画素）。MNIST の線は 2 から 4 画素である
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_cnn.pth"
PICTURE = HERE.parent / "images" / "mnist_handwriting.png"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="PNG か JPEG（既定: images/digits の 5 枚）",
                    default=sorted((HERE.parent / "images" / "digits").glob("*.png")))
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする

torch.set_num_threads(1)  # 小さな計算の繰り返しなので、1 スレッドのほうが速い（実測）
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
    parser.error(f"{WEIGHTS} がないか、cnn の重みとして読めない。mnist.py -m cnn で訓練する: {error!r}")
model = model.to(device).eval().requires_grad_(False)  # 読むだけなので、勾配はいらない


# %% 写真を読む
def read_picture(path):
    """PNG か JPEG を、写真に記録された向きで読み、長い辺が WORK_SIZE の明るさ (1, 1, H, W)、[0, 1] にする。"""
    data = path.read_bytes()
    is_png = data.startswith(b"\x89PNG")
    if is_png and int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big") > 50_000_000:  # 幅 × 高さ
        raise ValueError("5000 万画素を超えている。縮めてから指定する")
    has_alpha = is_png and (data[25:26] in (b"\4", b"\6") or b"tRNS" in data)  # 色の種類に透明度があるか、透明な色の表がある
    mode = ImageReadMode.GRAY_ALPHA if has_alpha else ImageReadMode.GRAY
    picture = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode, apply_exif_orientation=True)
    picture = picture.unsqueeze(0).float() / torch.iinfo(picture.dtype).max  # (1, 1 か 2, 元の高さ, 元の幅)
    picture = F.interpolate(picture, scale_factor=WORK_SIZE / max(picture.shape), mode="bilinear", antialias=True)
    gray, alpha = picture[:, :1], picture[:, 1:] if has_alpha else torch.ones_like(picture)
    ink_is_dark = (gray * alpha).sum() < 0.5 * alpha.sum()
    return gray * alpha + ink_is_dark * (1 - alpha)  # 透明な部分は、線と反対の明るさにする


# %% 線を取り出し、大きさと位置を揃える
def dilate(x, size):
    """各画素を、周り size×size 画素の最大値にする。明るい所が広がる。"""
    return F.max_pool2d(x, size, stride=1, padding=size // 2)


def spread(seed, mask):
    """seed の値を、mask が 1 の画素を伝って、つながった所すべてに広げる。大きい値が勝つ。"""
    while not (wider := dilate(seed, 3) * mask).equal(seed):
        seed = wider
    return seed


def bounding_box(mask):
    """(1, 1, H, W) の 0 でない画素を囲む、最小の長方形の添字。"""
    rows, columns = mask[0, 0].nonzero().unbind(dim=1)
    return ..., slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


def extract_ink(gray):
    """写真の明るさ (1, 1, H, W) から、線の濃さ (1, 1, H', W')（紙が 0、線が 1）を取り出す。"""
    small = F.interpolate(gray, scale_factor=0.25, mode="area")
    small = -dilate(-dilate(small, 7), 7)  # 明るい所を広げてから縮めると、文字や罫線のような細い暗い所が埋まる
    edge = 1 - F.pad(torch.ones_like(small[..., 1:-1, 1:-1]), [1] * 4)  # 写真の縁だけが 1
    desk_level, paper_level = small[edge > 0].median(), small.quantile(0.6)
    dark = (small < (desk_level + paper_level) / 2).float()
    desk = spread(edge * dark, dark)  # 縁から暗い所を伝って行ける範囲。広ければ机とみなし、紙だけを切り出す
    if desk_level < 0.8 * paper_level and (desk * edge).sum() > 0.75 * edge.sum():  # 影は、机ほど暗くも広くもない
        paper = F.interpolate(1 - dilate(desk, 5), gray.shape[2:])  # 紙の縁は除く
        gray = torch.where(paper > 0, gray, gray[paper > 0].median())[bounding_box(paper)]

    size = gray.shape[2:]
    small = F.interpolate(gray, scale_factor=48 / max(size), mode="area")
    around = F.avg_pool2d(F.pad(small, [7] * 4, mode="replicate"), 15, stride=1)
    if ((gray - F.interpolate(around, size, mode="bilinear")) ** 3).mean() > 0:  # 線は少数派なので、ずれの 3 乗の符号で、明るい線と分かる
        gray, small = 1 - gray, 1 - small
    paper = F.interpolate(-dilate(-dilate(small, 17), 17), size, mode="bilinear")  # 線を埋めると、紙だけが残る
    ink = F.avg_pool2d((paper - gray).clamp(min=0), 3, stride=1, padding=1)  # 細かなざらつきを均す
    rules = []  # 端から端まで続く横線と縦線は罫線である。16 本の帯のどこでも線がある所を、後で引く
    for view in (ink, ink.mT):
        strips = -F.max_pool2d(-view, (1, view.shape[3] // 16))  # 帯の中での最小値
        everywhere = F.max_pool2d(strips, (9, 1), stride=1, padding=(4, 0)).amin(dim=3, keepdim=True)  # 少しの傾きは許す
        rules.append(F.interpolate(dilate(torch.minimum(strips, everywhere), 3), view.shape[2:]))
    ink = (ink - torch.maximum(rules[0], rules[1].mT)).clamp(min=0)
    if ink.quantile(0.9995) < MIN_CONTRAST:
        raise ValueError("何も書かれていないように見える。もっと濃く書く")
    ink = ink / paper.clamp(min=0.01)  # 紙との比を取ると、影や明るさのむらが消える

    strong = ink > ink.quantile(0.9995) / 2
    blobs = dilate(F.max_pool2d(strong.float(), 4, ceil_mode=True), 5)  # (1, 1, H/4, W/4)。太らせて、切れ目をつなぐ
    inside = blobs - spread(blobs - F.pad(blobs[..., 4:-4, 4:-4], [4] * 4), blobs)
    blobs = inside if inside.any() else blobs  # 縁に触れるものは紙の端や枠なので、ほかに何もないときだけ選ぶ
    labels = spread(blobs * torch.arange(1, blobs.numel() + 1).view_as(blobs), blobs)  # かたまりごとに違う番号。最も多い番号が数字
    digit = F.interpolate((labels == labels[labels > 0].mode().values).float(), scale_factor=4)[..., :size[0], :size[1]]
    return ((ink / ink[strong & (digit > 0)].median() - 0.35) / 0.4).clamp(0, 1) * digit  # 薄い汚れを 0 に、線の中を 1 にする


def scale_and_center(ink):
    """線 (1, 1, H, W) を 20×20 に収め、重心を中央に置いた (1, 1, 28, 28) にする。出典: yann.lecun.com/exdb/mnist"""
    ink = F.pad(ink[bounding_box(ink > 0.5)], [1] * 4)
    mask = (ink > 0.5).float()
    thickness = 2 * mask.sum() / (dilate(mask, 3) - mask).sum()  # 面積 ÷ 周の長さの半分（画素）
    grow = max(0, round((THICKNESS * max(ink.shape) / 20 - thickness.item()) / 2))  # 細い線は縮めると消えるので、太らせる
    ink = dilate(F.pad(ink, [grow] * 4), 2 * grow + 1)
    height, width = (max(1, round(20 * side / max(ink.shape))) for side in ink.shape[2:])
    ink = F.interpolate(ink, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
    top = 14 - round(((ink.sum(dim=3) * torch.arange(height)).sum() / ink.sum()).item())  # 14 - 重心
    left = 14 - round(((ink.sum(dim=2) * torch.arange(width)).sum() / ink.sum()).item())
    return F.pad(ink, [left, 28 - width - left, top, 28 - height - top])


# %% 予測
results = []  # 写真ごとの (名前, 明るさ, 28×28 の画像, 確率)
for path in args.files:
    try:
        picture = read_picture(path)
        digit = scale_and_center(extract_ink(picture))  # (1, 1, 28, 28)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{parser.prog}: error: {path} を読めない: {error}", file=sys.stderr)
        continue
    probabilities = model(digit.to(device)).softmax(dim=1)[0].cpu()  # (1, 10) -> (10,)
    results.append((path.name, picture, digit, probabilities))
    print(f"{path.name}: read as {probabilities.argmax()} ({probabilities.max():.1%})")
if not results:
    sys.exit(2)

# %% 図
fig, grid = plt.subplots(len(results), 3, figsize=(9, 1.8 * len(results)), layout="constrained", squeeze=False)
for (original, seen, bars), (name, picture, digit, probabilities) in zip(grid, results):
    original.imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1)
    original.set_title(ascii(name)[1:-1], parse_math=False)  # 図のフォントに漢字はない
    seen.imshow(digit[0, 0], cmap="gray_r", vmin=0, vmax=1)
    seen.set(xticks=[0, 27], yticks=[0, 27], title="what the network sees")
    bars.bar(range(10), probabilities.tolist(), color="#0072B2")
    bars.patches[probabilities.argmax()].set_facecolor("#D55E00")
    bars.set(xticks=range(10), ylim=(0, 1), title=f"read as {probabilities.argmax()} ({probabilities.max():.0%})")
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
