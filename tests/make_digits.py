"""images/digits/ の手書き風の数字を描く。使い方: python tests/make_digits.py [保存先のフォルダ]

mnist_handwriting.py を試すための画像である。筆跡は下の折れ線を滑らかにしたもので、MNIST の画像は使っていない。
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 320  # 画像の一辺（画素）
STROKES = {  # 0 から 1 の座標（x は右、y は下）で表した筆跡
    2: [[(0.22, 0.30), (0.30, 0.12), (0.52, 0.05), (0.74, 0.16),
         (0.76, 0.36), (0.60, 0.58), (0.38, 0.78), (0.20, 0.94)],
        [(0.20, 0.94), (0.45, 0.90), (0.66, 0.93), (0.84, 0.90)]],
    3: [[(0.24, 0.16), (0.42, 0.05), (0.66, 0.08), (0.72, 0.26), (0.60, 0.42), (0.42, 0.47)],
        [(0.42, 0.47), (0.66, 0.52), (0.78, 0.70), (0.66, 0.90), (0.42, 0.96), (0.20, 0.86)]],
    4: [[(0.52, 0.04), (0.40, 0.30), (0.20, 0.60), (0.50, 0.60), (0.86, 0.57)],
        [(0.66, 0.30), (0.64, 0.60), (0.60, 0.97)]],
    5: [[(0.76, 0.07), (0.52, 0.08), (0.32, 0.10)],
        [(0.32, 0.10), (0.30, 0.28), (0.27, 0.45)],
        [(0.27, 0.45), (0.50, 0.38), (0.73, 0.50), (0.75, 0.74), (0.56, 0.93), (0.34, 0.94), (0.20, 0.86)]],
    7: [[(0.18, 0.12), (0.40, 0.10), (0.62, 0.11), (0.82, 0.08)],
        [(0.82, 0.08), (0.66, 0.36), (0.52, 0.64), (0.42, 0.96)]],
}


def ink_of(digit, width, rng):
    """数字を幅 width 画素の線で描き、濃さ (SIZE, SIZE)、[0, 1] を返す。"""
    picture = Image.new("L", (2 * SIZE, 2 * SIZE))  # 2 倍で描いて縮めると、縁が滑らかになる
    pen = ImageDraw.Draw(picture)
    tilt, (dx, dy) = rng.uniform(-0.08, 0.08), rng.uniform(0.12, 0.26, size=2)
    for stroke in STROKES[digit]:
        points = np.array(stroke) + rng.normal(0, 0.008, (len(stroke), 2))
        steps = np.linspace(0, len(points) - 1, 60)
        smooth = np.stack([np.interp(steps, range(len(points)), points[:, axis]) for axis in (0, 1)], axis=1)
        for _ in range(30):  # 両端を止めて、隣との平均を繰り返すと、角が取れる
            smooth[1:-1] = (smooth[:-2] + 2 * smooth[1:-1] + smooth[2:]) / 4
        smooth[:, 0] += tilt * (0.5 - smooth[:, 1])
        smooth = 2 * SIZE * (0.62 * smooth + (dx, dy))
        for (x, y), pressure in zip(smooth, 1 + 0.15 * np.sin(steps * 3)):
            radius = width * pressure
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        pen.line([tuple(point) for point in smooth], fill=255, width=round(2 * width))
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)) / 255


def paper(rng, brightness, noise):
    """明るさのむらと影とざらつきのある面の明るさ (SIZE, SIZE) を返す。"""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    shadow = 1 / (1 + np.exp(-(x + 0.6 * y - 1.1) / 0.05))
    return brightness * (1 - 0.25 * x - 0.2 * shadow) + rng.normal(0, noise, (SIZE, SIZE))


def blend(surface, ink, color):
    """面 (SIZE, SIZE) か色の上に、color の線を重ねた RGB の画像を返す。"""
    surface = np.broadcast_to(np.asarray(surface, dtype=float).reshape(*np.shape(surface)[:2], -1), (SIZE, SIZE, 3))
    mixed = surface * (1 - ink[..., None]) + np.array(color) * ink[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def main(folder):
    rng = np.random.default_rng(0)
    white = np.full((SIZE, SIZE), 255.0)
    transparent = np.zeros((SIZE, SIZE, 4), np.uint8)
    transparent[..., 3] = 255 * ink_of(4, 9, rng)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    rules = 0.3 * ((rows + columns // 100) % 50 < 2)  # 少し傾いた罫線
    pen = 0.85 * ink_of(3, 4, rng)
    marker = ink_of(7, 12, rng)
    neighbour = np.roll(marker, 150, axis=1) * (columns > 200)  # 右の縁で切れた、隣の数字
    box = 0.7 * ((abs(rows - SIZE / 2) < 145) & (abs(columns - SIZE / 2) < 145)
                 & ((abs(rows - SIZE / 2) > 140) | (abs(columns - SIZE / 2) > 140)))  # 印刷された枠
    pictures = {
        "pen_3.png": blend(paper(rng, 235, 3), np.maximum(pen, rules), (30, 50, 140)),
        "marker_7.png": blend(white, np.maximum(marker, neighbour), (20, 20, 20)),
        "chalk_2.png": blend(paper(rng, 70, 4), 0.8 * ink_of(2, 7, rng), (235, 235, 225)),
        "pencil_5.png": blend(paper(rng, 225, 4), np.maximum(0.55 * ink_of(5, 5, rng), box), (70, 70, 75)),
        "paint_4.png": Image.fromarray(transparent),
    }
    for name, picture in pictures.items():
        picture.quantize(64).save(folder / name) if picture.mode == "RGB" else picture.save(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "images" / "digits")
