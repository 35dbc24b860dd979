"""訓練済みの重みを読み込み、テスト画像の数字を予測して、正解と比べる。

前のレッスン（mnist.py）との違い: 訓練はしない。mnist.py が保存した重みを、同じ形のモデルに読み込み、
予測（推論）だけをする。

実行: python load_and_infer.py（2 コアの CPU で約 4 秒）
結果:
    model: mlp
    #18 true 3 predicted 8 (55.9%)
    Correct: 19  Incorrect: 1  (accuracy 95.00%)
試してみよう:
    - -n 10000 を付けて、すべてのテスト画像を予測する。何枚を間違えるか。-m cnn も付けると、何枚に減るか。
    - 画像を 3 画素右へずらす。正解率は、MLP と CNN でそれぞれ何 % に下がるか。
解説: load_and_infer.md
"""

# %% 準備
import argparse
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-s", "--start-index", type=int, default=0, help="最初のテスト画像の番号（既定: 0）")
parser.add_argument("-n", "--count", type=int, default=20, help="枚数（既定: 20、描くのは 100 枚まで）")
parser.add_argument("-w", "--weights", type=Path, help="重みのファイル（既定: 隣の mnist_モデル.pth）")
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="mlp", help="既定: mlp")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
model_type = args.model_type
start, count = args.start_index, args.count
weights = args.weights or HERE / f"mnist_{model_type}.pth"
if not 0 <= start < 10_000:
    parser.error("--start-index は 0 以上 9999 以下にする")
if count < 1:
    parser.error("--count は 1 以上にする")
if not weights.is_file():
    parser.error(f"重みのファイル {weights} がない。mnist.py -m {model_type} -w {weights} で訓練して作る")
source = weights.stem.removeprefix("mnist_")  # mnist_mlp.pth -> mlp
PICTURE = HERE.parent / "images" / f"load_and_infer_{source}_{start}_{count}.png"

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")


# %% モデル（mnist.py と同じ。読み飛ばしてよい）
class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x):
        x = x.flatten(start_dim=1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


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


# %% 重みの読み込み
MODELS = {"mlp": MLP, "cnn": CNN}
model = MODELS[model_type]()  # この時点の重みは、乱数で決めた初期値である
state_dict = torch.load(weights, map_location="cpu", weights_only=True)  # 名前 -> 重みかバイアスのテンソル
if state_dict.keys() != model.state_dict().keys():
    parser.error(f"{weights} は {model_type} の重みではない。-m mlp か -m cnn を選び直す")
model.load_state_dict(state_dict)
model = model.to(device)
model.eval()
print(f"model: {model_type}")
for name, tensor in state_dict.items():
    print(f"  {name:19s} {tuple(tensor.shape)}")

# %% データ（start から count 枚。終わりを越えた分は、なくなる）
test_set = MNIST(HERE / "data", train=False)
pixels = test_set.data[start : start + count] / 255  # (N, 28, 28)、値は [0, 1]
labels = test_set.targets[start : start + count]  # 正解の数字: (N,)
images = pixels.unsqueeze(1)  # チャネルの軸を加える: (N, 28, 28) -> (N, 1, 28, 28)

# %% 予測
with torch.no_grad():  # メモリを節約するため、200 枚ずつ通して、つなぐ
    logits = torch.cat([model(part.to(device)).cpu() for part in images.split(200)])  # (N, 10)
digit_probabilities = logits.softmax(dim=1)  # 数字ごとの確率: (N, 10)
probabilities, predictions = digit_probabilities.max(dim=1)  # 最大の確率 (N,) と、それを持つ数字 (N,)

is_correct = predictions == labels  # (N,)
for i in range(len(labels)):
    if not is_correct[i]:
        print(f"#{start + i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")
correct = is_correct.sum().item()
incorrect = len(labels) - correct
print(f"Correct: {correct}  Incorrect: {incorrect}  (accuracy {100 * correct / len(labels):.2f}%)")

# %% 確かめる: 最も迷った画像のロジットと確率を、ファイルの重みから自分で計算する（MLP のとき）
if model_type == "mlp":
    i = probabilities.argmin().item()
    x = images[i].flatten()  # (1, 28, 28) -> (784,)
    hidden = F.relu(state_dict["fc1.weight"] @ x + state_dict["fc1.bias"])  # (100, 784) @ (784,) -> (100,)
    by_hand = state_dict["fc2.weight"] @ hidden + state_dict["fc2.bias"]  # (10, 100) @ (100,) -> (10,)
    exponentials = by_hand.exp()
    probability = exponentials.max() / exponentials.sum()
    print(f"#{start + i} logits by hand:", " ".join(f"{logit:.1f}" for logit in by_hand))
    print(f"largest probability by hand {probability:.1%}, by the model {probabilities[i]:.1%}")

# %% 図
num_drawn = min(len(images), 100)  # 描くのは 100 枚まで
rows = math.ceil(num_drawn / 10)  # 1 行に 10 枚
fig = plt.figure(figsize=(10, 1.4 * rows), layout="constrained")
for i in range(num_drawn):
    axes = fig.add_subplot(rows, 10, i + 1, xticks=[], yticks=[])
    axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)  # 0 を白、1 を黒で描く
    color, linewidth = ("#0072B2", 1) if is_correct[i] else ("#D55E00", 4)
    axes.spines[:].set(color=color, linewidth=linewidth)
    title = f"#{start + i} true {labels[i]}\nread {predictions[i]} ({probabilities[i]:.0%})"
    axes.set_title(title, fontsize=9, color=color)
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
