"""訓練済みのモデルがどの数字をどう読み違えるかを、混同行列と画像で調べる。

前のレッスン（load_and_infer.py）との違い: 正解率という 1 つの数ではなく、10,000 枚の予測を（正解, 予測）の組ごとに数え、
さらに、高い確率で読み違えた画像を見る。

実行: python mnist_errors.py （MLP は python mnist_errors.py -m mlp）
結果（2 コアの CPU で約 6 秒）:
    Correct: 9940  Incorrect: 60  (accuracy 99.40%)
試してみよう:
    - -m mlp の結果と比べると、CNN ではどの組の読み違いが減ったか。
    - train=False を True にすると、訓練に使った 60,000 枚では、読み違いの割合はどれだけ低いか。
    - print(matrix.diagonal() / matrix.sum(dim=1)) を加えて、いちばん読みにくい数字を探す。
"""

# %% 準備
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

NUM_DRAWN = 20  # 表示して描く読み違いの枚数（5 枚ずつ 4 行）
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnist_errors.png"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="cnn", help="モデルの種類（既定: cnn）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
weights = HERE / f"mnist_{args.model_type}.pth"
if not weights.exists():
    parser.error(f"重みのファイル {weights} がない。mnist.py -m {args.model_type} で訓練して作る")

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")


# %% モデル（mnist.py と同じ）
class MLP(nn.Module):
    """画素を一列に並べて読む、2 層の全結合ネットワーク（79,510 パラメータ）。"""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x):
        """画像 (B, 1, 28, 28)、値は [0, 1] -> ロジット (B, 10)"""
        x = x.flatten(start_dim=1)  # (B, 1, 28, 28) -> (B, 784)
        x = F.relu(self.fc1(x))  # (B, 784) -> (B, 100)
        return self.fc2(x)  # (B, 100) -> (B, 10)


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
MODELS = {"mlp": MLP, "cnn": CNN}
model = MODELS[args.model_type]()
try:
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{weights} は {args.model_type} の重みとして読めない。mnist.py -m {args.model_type} で訓練し直す: {error!r}")
model = model.to(device, memory_format=torch.channels_last).eval()
print(f"model: {args.model_type}")

# %% 予測
test_set = MNIST(HERE / "data", train=False, download=True)  # 同梱のファイルを使い、無いときだけダウンロードする
images, labels = test_set.data.unsqueeze(1) / 255, test_set.targets  # 画像 (N, 1, 28, 28)、値は [0, 1]。ラベル (N,)
with torch.no_grad():
    logits = torch.cat([model(batch.to(device)) for batch in images.split(200)]).cpu()  # 小分けにして、メモリを抑える
probabilities, predictions = logits.softmax(dim=1).max(dim=1)  # (N, 10) -> 最大の確率 (N,) と、その番号、つまり予測した数字 (N,)
wrong = (predictions != labels).nonzero().flatten()  # 読み違えた画像の番号
correct = len(labels) - len(wrong)
print(f"Correct: {correct}  Incorrect: {len(wrong)}  (accuracy {correct / len(labels):.2%})")

# %% 混同行列
# 正解が i で予測が j だった枚数を i 行 j 列に置く: 組 (i, j) を 1 つの番号 10 * i + j にして数える
matrix = (10 * labels + predictions).bincount(minlength=100).reshape(10, 10)
print("rows: true, columns: predicted")
print("     " + " ".join(f"{digit:4d}" for digit in range(10)))
for digit, row in enumerate(matrix):
    print(f"{digit:4d} " + " ".join(f"{count:4d}" for count in row))

# %% 自信のある読み違い
most_confident = wrong[probabilities[wrong].argsort(descending=True, stable=True)][:NUM_DRAWN].tolist()  # 予測の確率が高い順
print("most confidently wrong:")
for i in most_confident:
    print(f"#{i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")

# %% 図
fig = plt.figure(figsize=(14, 6.5), layout="constrained")
fig.suptitle(f"{args.model_type.upper()}: {correct} correct, {len(wrong)} incorrect")
left, right = fig.subfigures(1, 2, width_ratios=[1, 1.1])
errors = matrix.clone().fill_diagonal_(0)  # 対角の約 1,000 を除くと、読み違いの濃淡が見える
axes = left.subplots()
axes.imshow(errors, cmap="Oranges")
for i, j in matrix.nonzero():
    color = "0.6" if i == j else "white" if errors[i, j] > 0.6 * errors.max() else "black"  # 対角は灰色、濃い地の上は白
    axes.text(j, i, matrix[i, j].item(), ha="center", va="center", color=color, fontsize=9)
axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10))
axes.set_title("Confusion matrix (color: errors only)")
right.suptitle("Most confidently wrong")
for position, i in enumerate(most_confident, start=1):
    axes = right.add_subplot(4, 5, position, xticks=[], yticks=[])
    axes.imshow(images[i, 0], cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(f"#{i}  true {labels[i]}\npredicted {predictions[i]} ({probabilities[i]:.0%})", fontsize=9)
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
