"""マウスや指で書いた数字を CNN で読む。線が伸びるにつれて、10 個の確率が動く。

前のレッスン（mnist_handwriting.py）との違い: 写真の代わりに筆跡を使う。点の列なので、
線を探さずに画像へ直接描ける。

実行: python mnist_draw.py（2 コアの CPU で約 4 秒。ウィンドウが開けば、閉じるまで書ける）
結果:
    17 points: read as 7 (86.4%)
    34 points: read as 2 (86.8%)
    50 points: read as 3 (100.0%)
試してみよう:
    - RADIUS を 3 にして線を太くすると、書き終えた見本の 3 は何と予測されるか。
    - FIT を 10 にして、数字を半分の大きさに収めると、書き終えた見本の 3 の確率は何 % に下がるか。
解説: mnist_draw.md
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.widgets import Button
from torch import nn

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnist_draw.png"


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

# %% 筆跡を 20×20 に収める
FIT = 20  # 数字を収める正方形の一辺（画素）。MNIST と同じ
RADIUS = 1.3  # 28×28 の画像での線の太さの半分（画素）。測ると MNIST の線の 9 割は、太さ 1.3 から 3.1 である


def fit(strokes):
    """筆跡（画の list。1 画は点 (x, y) の list）を、FIT×FIT 画素に収めた線分の両端 (S, 2, 2) にする。"""
    segments = []
    for stroke in strokes:
        for i, point in enumerate(stroke):
            previous = stroke[max(i - 1, 0)]  # 1 画の初めの点は、自分自身と結ぶ
            segments.append([previous, point])
    ends = torch.tensor(segments, dtype=torch.float32)  # (線分 S, 始点と終点 2, x と y 2)
    top_left = ends.amin(dim=(0, 1))  # (2,)
    bottom_right = ends.amax(dim=(0, 1))
    size = (bottom_right - top_left).max().clamp(min=0.05)  # 点を打っただけのときに、大きく引き伸ばさない
    scale = (FIT - 2 * RADIUS) / size  # 線の太さの分を残す
    return (ends - top_left) * scale + RADIUS


# %% 画像に描く
y, x = torch.meshgrid(torch.arange(FIT), torch.arange(FIT), indexing="ij")
pixels = torch.stack([x.flatten(), y.flatten()], dim=1) + 0.5  # 画素の中心の (x, y)、上の行から (FIT×FIT, 2)


def distance_to_strokes(pixels, ends):
    """画素 (P, 2) から、最も近い線分 (S, 2, 2) までの距離 (P,)"""
    start, end = ends.unbind(dim=1)  # それぞれ (S, 2)
    vector = end - start
    pixels = pixels.unsqueeze(1)  # (P, 1, 2)
    along = ((pixels - start) * vector).sum(dim=2)  # 始点からの矢印どうしの内積 (P, S)
    length_squared = (vector**2).sum(dim=1).clamp(min=1e-9)  # 1 点だけの線分で 0 で割らない (S,)
    along = (along / length_squared).clamp(0, 1)  # 最も近いのは線分のどこか。始点が 0、終点が 1
    nearest = start + along.unsqueeze(2) * vector  # (P, S, 2)
    return (pixels - nearest).norm(dim=2).amin(dim=1)


def paint(ends):
    """線分 (S, 2, 2) から RADIUS より近い画素を 1 にした画像 (1, 1, FIT, FIT)"""
    distance = distance_to_strokes(pixels, ends)
    ink = (RADIUS + 0.5 - distance).clamp(0, 1)  # 線の縁の 1 画素は、なだらかに薄くする
    return ink.view(1, 1, FIT, FIT)


# %% 重心を中央に置く（mnist_handwriting.py と同じ。読み飛ばしてよい）
def center_of_mass(digit):
    height, width = digit.shape[2:]
    row_weights = digit.sum(dim=(0, 1, 3))
    column_weights = digit.sum(dim=(0, 1, 2))
    row = (row_weights * torch.arange(height)).sum() / digit.sum()
    column = (column_weights * torch.arange(width)).sum() / digit.sum()
    top = 14 - round(row.item())
    left = 14 - round(column.item())
    return F.pad(digit, [left, 28 - width - left, top, 28 - height - top])


# %% 予測して、紙、28×28 の画像、確率の棒を描く
def show(row, strokes):
    """筆跡を予測し、3 つの Axes に、筆跡、28×28 の画像、確率の棒を描き直す。結果の文を返す。"""
    image = torch.zeros(1, 1, 28, 28)
    probabilities = torch.zeros(10)
    result = "nothing is drawn"  # 白紙は予測しない
    if any(strokes):
        image = center_of_mass(paint(fit(strokes)))  # (1, 1, 28, 28)
        probabilities = model(image).softmax(dim=1)[0]  # (10,)
        result = f"read as {probabilities.argmax()} ({probabilities.max():.1%})"
    for axes in row:
        axes.clear()
    paper, seen, chart = row
    paper.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal", title="draw a digit here")
    for stroke in strokes:
        xs = [x for x, y in stroke]
        ys = [y for x, y in stroke]
        paper.plot(xs, ys, color="black", linewidth=9, solid_capstyle="round")
    seen.set(xticks=[], yticks=[], title="what the network sees")
    seen.imshow(image[0, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    chart.set(xticks=range(10), ylim=(0, 1), ylabel="probability", title=result)
    chart.bar(range(10), probabilities.numpy(), color="#0072B2")
    return result


# %% 見本の 3（上と下の 2 つの弧）を、途中の 2 か所と、書き終えた所で予測する
example = []
for degrees in range(-150, 91, 10):  # 右が 0 度、下が 90 度
    angle = math.radians(degrees)
    example.append((0.47 + 0.19 * math.cos(angle), 0.30 + 0.19 * math.sin(angle)))
for degrees in range(-90, 151, 10):
    angle = math.radians(degrees)
    example.append((0.47 + 0.22 * math.cos(angle), 0.71 + 0.22 * math.sin(angle)))

fig, grid = plt.subplots(3, 3, figsize=(9, 9.6), layout="constrained")
for row, n_points in zip(grid, [17, 34, 50]):
    result = show(row, [example[:n_points]])
    row[0].set_title(f"{n_points} points")
    print(f"{n_points} points: {result}")

# %% 確かめる: 線分までの距離は、線分の上に並べた 1,001 個の点のうち、最も近い点までの距離である
ends = fit([example])  # (50, 2, 2)
start, end = ends.unbind(dim=1)
nearest = torch.full((FIT * FIT,), torch.inf)  # 今までで最も近い点までの距離
for step in range(1001):
    dots = start + step / 1000 * (end - start)  # 線分ごとに 1 点 (50, 2)
    distance = (pixels.unsqueeze(1) - dots).norm(dim=2).amin(dim=1)
    nearest = torch.minimum(nearest, distance)
difference = (distance_to_strokes(pixels, ends) - nearest).abs().max()
print(f"distance to segments vs to 1,001 dots on each: largest difference below 0.001: {difference < 0.001}")

# %% 自分で書くウィンドウ
window, panels = plt.subplots(1, 3, figsize=(10, 4), num="draw")
paper, seen, chart = panels
window.subplots_adjust(bottom=0.2)
clear_button = Button(window.add_axes((0.02, 0.02, 0.1, 0.1)), "clear")
strokes = []  # 書いた画の list。1 画は点 (x, y) の list で、紙の左上が (0, 0)、右下が (1, 1)


def redraw():
    show(panels, strokes)
    window.canvas.draw_idle()


def press(event):
    strokes.append([])  # 新しい画
    move(event)


def move(event):
    if event.inaxes is paper and event.button == 1:  # 左のボタンを押したまま、紙の上を動いた
        strokes[-1].append((event.xdata, event.ydata))
        redraw()


def release(event):
    if event.inaxes is paper:
        print(chart.get_title(), flush=True)


def clear(event):
    strokes.clear()
    redraw()


redraw()
window.canvas.mpl_connect("button_press_event", press)
window.canvas.mpl_connect("motion_notify_event", move)
window.canvas.mpl_connect("button_release_event", release)
clear_button.on_clicked(clear)

# %% 図
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
