"""mnist_handwriting.py の準備を、条件を変えた合成写真で測る。使い方: python tests/handwriting_conditions.py [枚数]

無作為に選んだテスト画像を 8 倍から 20 倍に拡大し、別の紙に置き直して、保存した画像から読ませる。
乱数の種は画像ごとに決めてあるので、何度測っても同じ画像になる。
"""

import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.datasets import MNIST

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parent.parent
SIZE = 800  # 作る画像の一辺（画素）
WHITE, GRAY, BLACK = (255, 255, 255), (60, 60, 60), (0, 0, 0)
FONTS = ["DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral", "cmr10"]  # matplotlib に入っている書体


def place(digit, rng):
    """テスト画像 (28, 28)（uint8）を拡大し、ずらして置く。線の濃さ (SIZE, SIZE)、[0, 1]"""
    side = int(28 * rng.uniform(8, 20))
    top, left = rng.integers(40, SIZE - 40 - side, size=2)
    ink = np.zeros((SIZE, SIZE))
    ink[top:top + side, left:left + side] = np.asarray(Image.fromarray(digit).resize((side, side), 3)) / 255
    return ink


def skeleton(mask):
    """真偽値 (H, W) の線を、太さ 1 画素まで細らせる。出典: Zhang and Suen, CACM 27(3), 1984"""
    ring = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]  # 上から時計回り
    mask, changed = np.pad(mask, 1), True
    while changed:
        changed = False
        for a, b in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            near = np.stack([np.roll(mask, (-y, -x), (0, 1)) for y, x in ring])
            steps = (~near & np.roll(near, -1, axis=0)).sum(axis=0)
            remove = (mask & (near.sum(axis=0) >= 2) & (near.sum(axis=0) <= 6) & (steps == 1)
                      & ~near[list(a)].all(axis=0) & ~near[list(b)].all(axis=0))
            mask = mask & ~remove
            changed |= remove.any()
    return mask[1:-1, 1:-1]


def trace(digit, rng, width):
    """テスト画像の線の中心を、太さ width 画素のペンでなぞる。線の濃さ (SIZE, SIZE)、[0, 1]"""
    side = int(28 * rng.uniform(8, 20))
    top, left = rng.integers(40, SIZE - 40 - side, size=2)
    line = skeleton(np.asarray(Image.fromarray(digit).resize((112, 112), 3)) > 110)
    image = Image.new("L", (2 * SIZE, 2 * SIZE))  # 2 倍で描いて縮めると、縁が滑らかになる
    pen = ImageDraw.Draw(image)
    for y, x in np.argwhere(line):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            if y + dy < 112 and 0 <= x + dx < 112 and line[y + dy, x + dx]:
                ends = np.array([[x, y], [x + dx, y + dy]]) * side / 112 + (left, top)
                pen.line((2 * ends).flatten().tolist(), fill=255, width=2 * width)
                pen.circle(tuple(2 * ends[0]), width, fill=255)
                pen.circle(tuple(2 * ends[1]), width, fill=255)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255


def uneven_paper(rng):
    """右へ暗くなり、柔らかい影の落ちた、ざらつきのある灰色の紙 (SIZE, SIZE, 1)、[0, 255]"""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    shadow = 1 / (1 + np.exp((y + rng.uniform(-1, 1) * x - rng.uniform(0.2, 0.8)) / 0.06))
    return (215 - 60 * x - 35 * shadow + rng.normal(0, 8, (SIZE, SIZE)))[..., None]


def write(paper, ink, color):
    """紙（色 (3,) か、明るさ (SIZE, SIZE, 1) か、色 (SIZE, SIZE, 3)）の上に、色 color の線を重ねた画像"""
    ink = ink[..., None]
    mixed = np.asarray(paper) * (1 - ink) + np.asarray(color) * ink
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def framed(ink, rng):
    image = write(WHITE, ink, BLACK)
    ImageDraw.Draw(image).rectangle((3, 3, SIZE - 4, SIZE - 4), outline=(40, 40, 40), width=8)
    return image


def transparent(ink, rng):
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[..., 3] = 255 * ink
    return Image.fromarray(pixels)


def ruled(ink, rng, axes=(0,)):
    """罫線のある紙。少し傾けて撮る"""
    steps = np.arange(SIZE) + rng.uniform(-0.02, 0.02) * np.arange(SIZE)[:, None]  # 最大で約 1.1 度
    spacing, offset, width = rng.uniform(45, 110), rng.uniform(0, 100), rng.uniform(2, 5)
    lines = np.zeros((SIZE, SIZE))
    for axis in axes:
        lines = np.maximum(lines, ((steps.T if axis == 0 else steps) + offset) % spacing < width)
    paper = np.array([248, 246, 240]) * (1 - rng.uniform(0.2, 0.8) * lines[..., None] * [1, 0.8, 0.45])
    return write(paper + rng.normal(0, 4, (SIZE, SIZE, 1)), 0.9 * ink, (30, 40, 90))


def on_desk(ink, rng):
    """机の上の、少し傾いた紙"""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    grain = 12 * np.sin(y / 7 + 3 * np.sin(x / 90)) + rng.normal(0, 5, (SIZE, SIZE))
    desk = np.array([150, 110, 75]) * rng.uniform(0.4, 1.1) + grain[..., None]
    sheet = Image.new("L", (SIZE, SIZE))
    low, high = rng.uniform(0.06, 0.12, 4) * SIZE, rng.uniform(0.88, 0.94, 4) * SIZE
    ImageDraw.Draw(sheet).polygon([low[0], low[1], high[0], low[2], high[1], high[2], low[3], high[3]], fill=255)
    sheet = (np.asarray(sheet) / 255)[..., None]
    small = Image.fromarray((255 * ink).astype(np.uint8)).resize((SIZE * 7 // 10, SIZE * 7 // 10))
    ink = np.pad(np.asarray(small) / 255, SIZE * 15 // 100)
    return write(sheet * (uneven_paper(rng) + 25) + (1 - sheet) * desk, ink, (40, 40, 60))


def pen(width):
    """太さ width 画素のペンでなぞる関数"""
    return lambda digit, rng: trace(digit, rng, width)


CONDITIONS = {  # 名前: (線の描き方, 画像の作り方, ファイルの形式)
    "dark on white": (place, lambda ink, rng: write(WHITE, ink, BLACK), "PNG"),
    "light on black": (place, lambda ink, rng: write(BLACK, ink, WHITE), "PNG"),
    "uneven light, noise, JPEG": (place, lambda ink, rng: write(uneven_paper(rng), ink, GRAY), "JPEG"),
    "pale pencil (35 %)": (place, lambda ink, rng: write(uneven_paper(rng) + 30, 0.35 * ink, GRAY), "PNG"),
    "thin border": (place, framed, "PNG"),
    "blue pen": (place, lambda ink, rng: write((250, 248, 240), ink, (30, 50, 150)), "JPEG"),
    "transparent": (place, transparent, "PNG"),
    "28x28, light on black": (lambda digit, rng: digit, lambda digit, rng: Image.fromarray(digit), "PNG"),
    "desk around": (place, on_desk, "JPEG"),
    "traced, 24 px pen": (pen(24), lambda ink, rng: write(WHITE, ink, BLACK), "PNG"),  # 下の 3 つの比較の基準
    "traced, 3 px pen": (pen(3), lambda ink, rng: write(uneven_paper(rng), ink, GRAY), "JPEG"),
    "traced, 6 px, ruled": (pen(6), ruled, "JPEG"),
    "traced, 6 px, squared": (pen(6), lambda ink, rng: ruled(ink, rng, (0, 1)), "JPEG"),
}


def read(page, image, file_format):
    """画像を保存し、mnist_handwriting.py の手順で (1, 1, 28, 28) にして返す。読めなければ真っ白"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digit"
        image.save(path, file_format)
        try:
            ink = page.find_ink(page.divide_by_paper(page.read_picture(path)))
            digit, _ = page.choose_digit(ink)
            return page.center_of_mass(page.fit(digit))
        except ValueError:
            return torch.zeros(1, 1, 28, 28)


@torch.no_grad()
def answers(page, digits):
    """数字の画像 (1, 1, 28, 28) のリストを読んだ結果 (N,)"""
    return page.model(torch.cat(digits).to(page.device)).argmax(dim=1).cpu()


def choose(count):
    """無作為に選んだテスト画像 (count, 28, 28)（uint8）とラベル (count,)"""
    test_set = MNIST(ROOT / "02_pytorch_mnist" / "data", train=False)
    chosen = np.random.default_rng(0).permutation(10_000)[:count]
    return test_set.data[chosen], test_set.targets[chosen]


def measure(page, name, count):
    """条件 name で count 枚を読ませ、正しく読んだ枚数を返す。"""
    draw, make, file_format = CONDITIONS[name]
    images, labels = choose(count)
    digits = []
    for i, image in enumerate(images.numpy()):
        rng = np.random.default_rng(i)
        digits.append(read(page, make(draw(image, rng), rng), file_format))
    return (answers(page, digits) == labels).sum().item()


def measure_fonts(page):
    """5 書体の活字 50 字のうち、正しく読んだ数を返す。"""
    digits = []
    for name in FONTS:
        font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf", 200)
        for digit in range(10):
            image = Image.new("L", (300, 300), 255)
            ImageDraw.Draw(image).text((150, 150), str(digit), font=font, fill=0, anchor="mm")
            digits.append(read(page, image, "PNG"))
    return (answers(page, digits) == torch.arange(10).repeat(len(FONTS))).sum().item()


if __name__ == "__main__":
    count = int(sys.argv.pop()) if len(sys.argv) > 1 else 1000
    page = SimpleNamespace(**runpy.run_path(str(ROOT / "02_pytorch_mnist" / "mnist_handwriting.py")))
    print(f"printed digits: {measure_fonts(page)} of 50")
    images, labels = choose(count)
    right = (answers(page, list((images / 255).reshape(-1, 1, 1, 28, 28))) == labels).sum().item()
    print(f"{'the test images':26s} {right / count:.1%}")
    for name in CONDITIONS:
        print(f"{name:26s} {measure(page, name, count) / count:.1%}", flush=True)
