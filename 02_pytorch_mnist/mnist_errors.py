"""訓練済みのモデルがどの数字をどう読み違えるかを、混同行列（正解と予測の組ごとに枚数を数えた表）と画像で調べる。

前のレッスン（load_and_infer.py）との違い: 正解率という 1 つの数ではなく、10,000 枚の予測を（正解, 予測）の組ごとに数える。
さらに、高い確率で読み違えた画像を見る。

実行: python mnist_errors.py
      python mnist_errors.py -m mlp
結果（2 コアの CPU で約 6 秒）:
    Correct: 9942  Incorrect: 58  (accuracy 99.42%)
    most confidently wrong:
    #9729 true 5 predicted 6 (99.0%)
説明: このフォルダの README.md
試してみよう:
    - -m mlp を付けると、読み違いは何枚になるか。いちばん多いのは、どの数字をどの数字と読み違えた組か。
    - train=False を True にして -m mlp を付け、訓練に使った 60,000 枚を予測する。正解率は、テスト画像より何ポイント高いか。
    - 確率が 0.9 以上だった予測（probabilities >= 0.9）を数える。何枚あり、そのうち何枚が読み違いか。
"""

# %% 準備
import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

NUM_DRAWN = 12  # 表示して描く、高い確率で読み違えた画像の枚数（3 枚ずつ 4 行）
HERE = Path(__file__).resolve().parent

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="cnn", help="モデルの種類（既定: cnn）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
weights = HERE / f"mnist_{args.model_type}.pth"
PICTURE = HERE.parent / "images" / f"mnist_errors_{args.model_type}.png"
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
    state_dict = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(state_dict)
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{weights} は {args.model_type} の重みとして読み込めない。"
                 f"mnist.py -m {args.model_type} で訓練し直す: {error!r}")
model = model.to(device)
model.eval()
print(f"model: {args.model_type}")

# %% データ
try:
    test_set = MNIST(HERE / "data", train=False, download=True)  # データは同梱なので、ダウンロードは起こらない
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
images = test_set.data.unsqueeze(1) / 255  # (N, 28, 28) -> (N, 1, 28, 28)、値は [0, 1]
labels = test_set.targets  # 正解の数字: (N,)

# %% 予測
batch_logits = []
with torch.no_grad():
    for batch in images.split(200):  # 一度に通すと途中の値がメモリを占めるので、200 枚ずつに分ける
        logits = model(batch.to(device))  # (B, 1, 28, 28) -> (B, 10)
        batch_logits.append(logits.cpu())
logits = torch.cat(batch_logits)  # (N, 10)
digit_probabilities = logits.softmax(dim=1)  # 数字ごとの確率: (N, 10)
probabilities, predictions = digit_probabilities.max(dim=1)  # 最大の確率 (N,) と、それを持つ数字、つまり予測 (N,)
is_wrong = predictions != labels  # (N,)
incorrect = is_wrong.sum().item()
correct = len(labels) - incorrect
print(f"Correct: {correct}  Incorrect: {incorrect}  (accuracy {correct / len(labels):.2%})")

# %% 混同行列
# 正解が i で予測が j だった枚数を、i 行 j 列に数える。正しい予測は、行と列の等しい対角に集まる
matrix = torch.zeros(10, 10, dtype=torch.int64)
for label, prediction in zip(labels.tolist(), predictions.tolist()):
    matrix[label, prediction] += 1
print("rows: true, columns: predicted")
print("     " + " ".join(f"{digit:4d}" for digit in range(10)))
for digit in range(10):
    print(f"{digit:4d} " + " ".join(f"{count:4d}" for count in matrix[digit]))
print(f"sum of the diagonal: {matrix.diagonal().sum()}  sum of the rest: {matrix.sum() - matrix.diagonal().sum()}")

# %% 高い確率で読み違えた画像
wrong = is_wrong.nonzero().flatten()  # 読み違えた画像の番号。nonzero() は True の位置を (枚数, 1) で返す -> (枚数,)
wrong_probabilities = probabilities[wrong]  # (枚数,)
order = wrong_probabilities.argsort(descending=True, stable=True)  # 確率の高い順に並べたときの、wrong の中での位置
wrong_in_order = wrong[order]  # 確率の高い順に並べた番号
most_confident = wrong_in_order[:NUM_DRAWN].tolist()
print("most confidently wrong:")
for i in most_confident:
    print(f"#{i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")

# %% 図
fig = plt.figure(figsize=(10, 6), layout="constrained")
fig.suptitle(f"{args.model_type.upper()}: {correct} correct, {incorrect} incorrect")
left, right = fig.subfigures(1, 2, width_ratios=[1.35, 1])

axes = left.subplots()
errors = matrix.clone()
errors.fill_diagonal_(0)  # 対角の約 1,000 を除くと、読み違いの濃淡が見える
# 最も濃い色を最大値の 2 倍に割り当て、どのます目でも黒い字が読めるようにする
axes.imshow(errors.numpy(), cmap="Oranges", vmin=0, vmax=2 * errors.max().item())
for i in range(10):
    axes.add_patch(plt.Rectangle((i - 0.5, i - 0.5), 1, 1, color="#56B4E9"))  # 対角は青
    for j in range(10):
        if matrix[i, j] > 0:
            axes.text(j, i, matrix[i, j].item(), ha="center", va="center", fontsize=10)
axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10))
axes.set_title("Confusion matrix (blue: correct, orange: wrong)")

right.suptitle("Most confidently wrong")
for position, i in enumerate(most_confident, start=1):
    axes = right.add_subplot(4, 3, position, xticks=[], yticks=[])
    axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(f"#{i} true {labels[i]}\npredicted {predictions[i]} ({probabilities[i]:.0%})", fontsize=9)
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
