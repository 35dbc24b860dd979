"""マウスで書いた数字を CNN に読ませる。線が伸びるにつれて、10 個の確率が動く。

前のレッスン（mnist_handwriting.py）との違い: 写真の代わりに、筆跡を読む。筆跡は点の列なので、線を探さずに画像へ直接描ける。

実行: python mnist_draw.py （画面のない環境では、見本の 7 を読んで終わる）
結果（2 コアの CPU で約 4 秒）:
    read as 7 (95.0%)
試してみよう:
    - RADIUS を 0.5 や 3 にする。訓練の画像と太さが違うと、答えはどう変わるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.backend_bases import MouseEvent
from torch import nn

RADIUS = 1.3  # 28×28 の画像での線の太さの半分（画素）。MNIST の線は太さ 2 から 4 画素である
WEIGHTS = Path(__file__).resolve().parent / "mnist_cnn.pth"
PICTURE = Path(__file__).resolve().parent.parent / "images" / "mnist_draw.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.set_num_threads(1)  # 1 枚だけを読むので、複数のスレッドは待ち合わせで遅くなる


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
    raise SystemExit(f"エラー: {WEIGHTS} がないか、cnn の重みとして読めない。mnist.py -m cnn で訓練する: {error!r}")
model = model.to(device).eval()


# %% 筆跡を画像にする
def render(strokes):
    """筆跡（画ごとの点 x + yi の列）を 20×20 に収め、重心を中央に置いた (1, 1, 28, 28) に描く。値は [0, 1]"""
    end = torch.tensor([point for stroke in strokes for point in stroke])  # 線分の終点 (S,)
    start = torch.tensor([point for stroke in strokes for point in stroke[:1] + stroke[:-1]])  # 始点 (S,)
    size = max(end.real.max() - end.real.min(), end.imag.max() - end.imag.min(), 0.05)  # 点を大きく引き伸ばさない
    start, end = start * (20 - 2 * RADIUS) / size, end * (20 - 2 * RADIUS) / size
    line = end - start
    length = line.abs().clamp(min=1e-6)
    center = ((start + end) / 2 * length).sum() / length.sum()  # 線の重心
    pixels = torch.complex(*torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="xy"))  # (28, 28)
    offset = (pixels - (14 + 14j) + center).unsqueeze(2) - start  # 始点から画素へ (28, 28, S)
    along = (offset * line.conj()).real / length.square()  # 画素に最も近いのは線分のどこか。始点が 0、終点が 1
    distance = (offset - along.clamp(0, 1) * line).abs().amin(dim=2)  # 最も近い線分までの距離（画素） (28, 28)
    return (RADIUS + 0.5 - distance).clamp(0, 1)[None, None]  # 線の縁の 1 画素は、なだらかに薄くする


# %% 窓
fig, (paper, seen, chart) = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
paper.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal", title="draw a digit here (c: clear)")
line, = paper.plot([], [], color="black", linewidth=12, solid_capstyle="round")
seen.set(xticks=[], yticks=[], title="what the network sees")
view = seen.imshow(torch.zeros(28, 28), cmap="gray_r", vmin=0, vmax=1)
chart.set(xticks=range(10), ylim=(0, 1), ylabel="probability")
bars = chart.bar(range(10), 10 * [0])
strokes = []  # 1 画が 1 つの点の列 [x + yi, ...]
drawing = False  # 押してから離すまで True


def on_event(event):
    """押すと新しい画を始め、動かすと点を足し、離すと結果を表示する。c のキーで全部を消す。そのたびに読み直す。"""
    global drawing
    if event.name == "button_press_event" and event.inaxes is paper:
        drawing = True
        strokes.append([])
    elif event.name == "key_press_event" and event.key == "c":
        strokes.clear()
    elif not drawing:
        return
    if strokes and drawing and event.inaxes is paper:
        strokes[-1].append(complex(event.xdata, event.ydata))
    digit = render(strokes) if strokes else torch.zeros(1, 1, 28, 28)
    with torch.no_grad():
        probabilities = model(digit.to(device)).softmax(dim=1)[0].cpu()  # (1, 10) -> (10,)
    points = [point for stroke in strokes for point in [*stroke, complex("nan")]]  # 線は nan で切れる
    line.set_data([point.real for point in points], [point.imag for point in points])
    view.set_data(digit[0, 0].numpy())
    for bar, probability in zip(bars, probabilities.tolist()):
        bar.set(height=probability, color="#D55E00" if probability == probabilities.max() else "#0072B2")
    chart.set_title(f"read as {probabilities.argmax()} ({probabilities.max():.1%})")
    fig.canvas.draw_idle()
    if event.name == "button_release_event":
        drawing = False
        print(chart.get_title(), flush=True)


# %% 実行
EVENTS = ["button_press_event", "motion_notify_event", "button_release_event"]
for name in [*EVENTS, "key_press_event"]:
    fig.canvas.mpl_connect(name, on_event)
if fig.canvas.required_interactive_framework is None:
    print("no display: reading an example instead of your drawing")
    for name, point in zip(EVENTS, [(0.3, 0.2), (0.7, 0.2), (0.45, 0.85)]):  # 見本の 7。左上が (0, 0)
        fig.canvas.callbacks.process(name, MouseEvent(name, fig.canvas, *paper.transData.transform(point), button=1))
plt.show()  # 窓が閉じるまで待つ
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
