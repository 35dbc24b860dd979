"""訓練済みのモデルがどの数字をどう読み違えるかを、混同行列（正解と予測の組ごとの枚数の表）と画像で調べる。

前のレッスン（load_and_infer.py）との違い: 正解率という 1 つの数ではなく、正解と予測の組ごとに枚数を数える。
さらに、予測に付いた確率が、当たる割合に等しいかを調べる。

実行: python mnist_errors.py（2 コアの CPU で約 6 秒）
結果:
    Correct: 9942  Incorrect: 58  (accuracy 99.42%)
     probability  images  wrong  mean probability   right
     70% to  90%     148     17            81.89%  88.51%
試してみよう:
    - -m mlp を付けると、読み違いは何枚になるか。最も多いのは、どの数字をどの数字と読み違えた組か。
    - MLP で、訓練に使った 60,000 枚を予測する。正解率は、テスト画像より何ポイント高いか。
    - 画像を 3 画素右へずらすと、70 % から 90 % の予測は、何 % 当たるか。
解説: mnist_errors.md
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

EDGES = [0, 0.5, 0.7, 0.9, 0.98, 1]  # 予測を、確率でこの 5 つの組に分ける
HERE = Path(__file__).resolve().parent

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="cnn", help="既定: cnn")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
WEIGHTS = HERE / f"mnist_{args.model_type}.pth"
PICTURE = HERE.parent / "images" / f"mnist_errors_{args.model_type}.png"

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


MODELS = {"mlp": MLP, "cnn": CNN}
model = MODELS[args.model_type]()
model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
model = model.to(device).eval()

# %% 予測（load_and_infer.py と同じ）
test_set = MNIST(HERE / "data", train=False)
images = test_set.data.unsqueeze(1) / 255  # (N, 28, 28) -> (N, 1, 28, 28)、値は [0, 1]
labels = test_set.targets  # 正解の数字: (N,)
with torch.no_grad():
    logits = torch.cat([model(part.to(device)).cpu() for part in images.split(200)])  # (N, 10)
probabilities, predictions = logits.softmax(dim=1).max(dim=1)  # 最大の確率 (N,) と、それを持つ数字 (N,)
is_correct = predictions == labels  # (N,)
correct = is_correct.sum().item()
incorrect = len(labels) - correct
print(f"Correct: {correct}  Incorrect: {incorrect}  (accuracy {100 * correct / len(labels):.2f}%)")

# %% 混同行列
matrix = torch.zeros(10, 10, dtype=torch.int64)
for label, prediction in zip(labels.tolist(), predictions.tolist()):
    matrix[label, prediction] += 1  # 行が正解、列が予測

# %% 確かめる: bincount で数えても、同じ表になる
pairs = 10 * labels + predictions  # 正解 9、予測 4 なら 94: (N,)
recount = torch.bincount(pairs, minlength=100)  # 0 から 99 が、それぞれいくつあるか: (100,)
recount = recount.reshape(10, 10)
print(f"the same table by bincount: {torch.equal(recount, matrix)}")

# %% 確率は、当たる割合に等しいか
print(" probability  images  wrong  mean probability   right")
for low, high in zip(EDGES[:-1], EDGES[1:]):
    inside = (probabilities > low) & (probabilities <= high)  # (N,)
    num_wrong = (inside & ~is_correct).sum().item()
    mean = probabilities[inside].mean()
    right = is_correct[inside].float().mean()
    print(f"{low:4.0%} to {high:4.0%} {inside.sum():7d} {num_wrong:6d} {mean:17.2%} {right:7.2%}")

# %% 図
order = probabilities.argsort(descending=True, stable=True).tolist()  # 確率の高い順の番号
most_confident = [i for i in order if not is_correct[i]][:12]  # 3 枚ずつ 4 行
fig = plt.figure(figsize=(10, 6), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=[1.35, 1])
axes = left.subplots()
errors = matrix.clone().fill_diagonal_(0)  # 対角の約 1,000 を除くと、読み違いの濃淡が見える
axes.imshow(errors.numpy(), cmap="Oranges", vmin=0, vmax=2 * errors.max().item())  # 黒い字が読める濃さまで
for i in range(10):
    axes.add_patch(plt.Rectangle((i - 0.5, i - 0.5), 1, 1, color="#56B4E9"))  # 対角は青
    for j in range(10):
        if matrix[i, j] > 0:
            axes.text(j, i, matrix[i, j].item(), ha="center", va="center")
axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10))
for position, i in enumerate(most_confident, start=1):
    axes = right.add_subplot(4, 3, position, xticks=[], yticks=[])
    axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(f"#{i} true {labels[i]}\npredicted {predictions[i]} ({probabilities[i]:.0%})", fontsize=9)
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
