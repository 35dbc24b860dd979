"""マウスや指で書いた数字を CNN で予測する。線が伸びるにつれて、10 個の確率が動く。

前のレッスン（mnist_handwriting.py）との違い: 写真の代わりに筆跡を使う。筆跡は点の列なので、線を探さずに、画像へ直接描ける。

実行: python mnist_draw.py （ウィンドウのない環境では、見本の 3 を書いて終わる）
結果（2 コアの CPU で約 4 秒）:
    17 points: read as 7 (86.4%)
    34 points: read as 2 (81.0%)
    50 points: read as 3 (100.0%)
説明: このフォルダの README.md
試してみよう:
    - RADIUS を 3 にして線を太くすると、書き終えた見本の 3 は何と予測されるか。0.5 ではどうか。
    - FIT を 10 にして、数字を半分の大きさに収めると、書き終えた見本の 3 の確率は何 % に下がるか。
"""

# %% 準備
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.widgets import Button
from torch import nn

FIT = 20  # 数字を収める正方形の一辺（画素）。MNIST と同じ
RADIUS = 1.3  # 28×28 の画像での線の太さの半分（画素）。測ると MNIST の線の 9 割は、太さ 1.3 から 3.1 である
MIN_SIZE = 0.05  # 筆跡の大きさの下限（紙の一辺が 1）。点を打っただけのときに、大きく引き伸ばさない
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_cnn.pth"
PICTURE = HERE.parent / "images" / "mnist_draw.png"

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
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
    raise SystemExit(f"エラー: {WEIGHTS} がないか、cnn の重みとして読み込めない。mnist.py -m cnn で訓練する: {error!r}")
model = model.to(device).eval()


# %% 筆跡を 20×20 に収めて描く
def distance_to_segment(x, y, x0, y0, x1, y1):
    """画素 (x, y) から、始点 (x0, y0) と終点 (x1, y1) を結ぶ線分までの距離。(h, w, 1) と (S,) から (h, w, S)"""
    dx = x1 - x0
    dy = y1 - y0
    length_squared = (dx ** 2 + dy ** 2).clamp(min=1e-9)  # 1 点だけの線分で 0 で割らない
    along = ((x - x0) * dx + (y - y0) * dy) / length_squared  # 画素に最も近いのは線分のどこか。始点が 0、終点が 1
    along = along.clamp(0, 1)  # 線分の外なら、近いほうの端
    nearest_x = x0 + along * dx
    nearest_y = y0 + along * dy
    return ((x - nearest_x) ** 2 + (y - nearest_y) ** 2).sqrt()


def fit(strokes):
    """筆跡（画の list。1 画は点 (x, y) の list）を、縦横の比を保って FIT×FIT に収めて描く。(1, 1, 高さ, 幅)"""
    segments = []  # 隣り合う 2 点を結ぶ線分 [x0, y0, x1, y1] の list
    for stroke in strokes:
        previous = stroke[0]
        for point in stroke:
            segments.append([*previous, *point])
            previous = point
    x0, y0, x1, y1 = torch.tensor(segments, dtype=torch.float32).unbind(dim=1)  # (S, 4) -> それぞれ (S,)
    left, right = x1.min(), x1.max()
    top, bottom = y1.min(), y1.max()
    scale = (FIT - 2 * RADIUS) / max(right - left, bottom - top, MIN_SIZE)  # 線の太さのぶんを残して収める
    x0 = (x0 - left) * scale + RADIUS  # 紙の座標から、画像の画素へ
    x1 = (x1 - left) * scale + RADIUS
    y0 = (y0 - top) * scale + RADIUS
    y1 = (y1 - top) * scale + RADIUS
    height = round((y1.max() + RADIUS).item())
    width = round((x1.max() + RADIUS).item())
    y = torch.arange(height).view(height, 1, 1) + 0.5  # 画素の中心
    x = torch.arange(width).view(1, width, 1) + 0.5
    distances = distance_to_segment(x, y, x0, y0, x1, y1)  # (height, width, S)
    distance = distances.amin(dim=2)  # 最も近い線分までの距離 (height, width)
    ink = (RADIUS + 0.5 - distance).clamp(0, 1)  # 線の縁の 1 画素は、なだらかに薄くする
    return ink[None, None]


# %% 重心を中央に置く（mnist_handwriting.py と同じ）
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


# %% ウィンドウ
fig = plt.figure(layout="constrained")
has_window = fig.canvas.required_interactive_framework is not None
n_rows = 1 if has_window else 3  # ウィンドウのない環境では、見本が伸びる途中の 3 つの場面を、上から順に描く
fig.set_size_inches(9, 3 * n_rows + 0.6)
button_height = 0.5 / (3 * n_rows + 0.6)  # 図の高さに対する割合
fig.get_layout_engine().set(rect=(0, button_height, 1, 1 - button_height))  # 下に、ボタンの場所を空ける
grid = fig.subplots(n_rows, 3, squeeze=False)
lines, views, charts = [], [], []  # 行ごとの、筆跡の線、28×28 の画像、10 本の棒
for paper, seen, chart in grid:
    paper.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal", title="draw a digit here")
    lines += paper.plot([], [], color="black", linewidth=9, solid_capstyle="round", solid_joinstyle="round")
    seen.set(xticks=[], yticks=[], title="what the network sees")
    views.append(seen.imshow(torch.zeros(28, 28).numpy(), cmap="gray_r", vmin=0, vmax=1))
    chart.set(xticks=range(10), ylim=(0, 1), ylabel="probability")
    charts.append(chart.bar(range(10), 10 * [0]))
clear_button = Button(fig.add_axes((0.02, 0.1 * button_height, 0.12, 0.8 * button_height)), "clear")
strokes = []  # 書いた画の list。1 画は点 (x, y) の list で、紙の左上が (0, 0)、右下が (1, 1)
is_drawing = False  # 紙の上で押してから離すまで True


def show(row):
    """筆跡 strokes で予測し、図の row 行目を描き直す。結果を 1 行の文字列で返す。"""
    image = torch.zeros(1, 1, 28, 28)
    probabilities = torch.zeros(10)
    title = "nothing is drawn"  # 何も書いていなければ、予測しない
    if strokes:
        image = center_of_mass(fit(strokes))  # (1, 1, 28, 28)
        with torch.no_grad():
            probabilities = model(image.to(device)).softmax(dim=1)[0].cpu()  # (1, 10) -> (10,)
        title = f"read as {probabilities.argmax()} ({probabilities.max():.1%})"
    xs, ys = [], []
    for stroke in strokes:
        for x, y in stroke:
            xs.append(x)
            ys.append(y)
        xs.append(float("nan"))  # 線は nan で切れる
        ys.append(float("nan"))
    lines[row].set_data(xs, ys)
    views[row].set_data(image[0, 0].numpy())
    for digit, bar in enumerate(charts[row]):
        bar.set_height(probabilities[digit].item())
        bar.set_color("#D55E00" if digit == probabilities.argmax() else "#0072B2")
    grid[row, 2].set_title(title)
    fig.canvas.draw_idle()
    return title


def press(event):
    """紙の上で押したら、新しい画を始める。"""
    global is_drawing
    if event.inaxes is grid[0, 0]:
        is_drawing = True
        strokes.append([(event.xdata, event.ydata)])
        show(0)


def move(event):
    """押したまま紙の上を動いたら、点を足す。"""
    if is_drawing and event.inaxes is grid[0, 0]:
        strokes[-1].append((event.xdata, event.ydata))
        show(0)


def release(event):
    """離したら、1 画を終えて、結果を表示する。"""
    global is_drawing
    if is_drawing:
        is_drawing = False
        print(show(0), flush=True)


def clear(event):
    """ボタンを押したら、全部の画を消す。"""
    strokes.clear()
    show(0)


fig.canvas.mpl_connect("button_press_event", press)
fig.canvas.mpl_connect("motion_notify_event", move)
fig.canvas.mpl_connect("button_release_event", release)
clear_button.on_clicked(clear)

# %% 実行
if has_window:
    plt.show()  # ウィンドウが閉じるまで待つ
else:
    print("no window: drawing an example")
    stroke = []  # 見本の 3 は、上と下の 2 つの弧でできている
    for degrees in range(-150, 91, 10):  # 右が 0 度、下が 90 度
        angle = math.radians(degrees)
        stroke.append((0.47 + 0.19 * math.cos(angle), 0.30 + 0.19 * math.sin(angle)))
    for degrees in range(-90, 151, 10):
        angle = math.radians(degrees)
        stroke.append((0.47 + 0.22 * math.cos(angle), 0.71 + 0.22 * math.sin(angle)))
    for row, n_points in enumerate([17, 34, len(stroke)]):
        strokes = [stroke[:n_points]]
        print(f"{n_points} points: {show(row)}")

# %% 図
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:
    print(f"not saved: {error.strerror}")
