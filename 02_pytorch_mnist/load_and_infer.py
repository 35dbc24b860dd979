"""訓練済みの重みを読み込み、テスト画像の数字を読ませて正解と比べる。

前のレッスン（mnist.py）との違い: 訓練はしない。mnist.py が残した重みを同じ形のモデルに読み込み、まとめて予測する。

実行: python load_and_infer.py （CNN は python load_and_infer.py -m cnn）
結果（2 コアの CPU で約 4 秒）:
    model: mlp
    Correct: 20  Incorrect: 0  (accuracy 100.00%)
試してみよう:
    - -n 10000 で全部のテスト画像を読ませ、-m cnn と読み違いの数を比べる。
    - 1 周だけ訓練したモデルはどう読むか。mnist.py -e 1 -w try.pth の後に -n 10000 -w try.pth を付ける。
"""

# %% 準備
import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

MAX_DRAWN = 100  # これより多いと図が縦に長くなりすぎるので、先頭だけを描く
HERE = Path(__file__).resolve().parent

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-s", "--start-index", type=int, default=0, help="最初のテスト画像の番号（既定: 0）")
parser.add_argument("-n", "--count", type=int, default=20, help="読ませる枚数（既定: 20、描くのは 100 枚まで）")
parser.add_argument("-w", "--weights", type=Path, help="重みのファイル（既定: このスクリプトの隣の mnist_モデル.pth）")
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="mlp", help="モデルの種類（既定: mlp）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
weights = args.weights or HERE / f"mnist_{args.model_type}.pth"
picture = HERE.parent / "images" / f"load_and_infer_{args.model_type}_{args.start_index}.png"
if not 0 <= args.start_index < 10_000:
    parser.error("--start-index は 0 以上 9999 以下にする")
if args.count < 1:
    parser.error("--count は 1 以上にする")
if not weights.exists():
    parser.error(f"重みのファイル {weights} がない。mnist.py -m {args.model_type} -w {weights} で訓練して作る")

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
    # weights_only=True は、テンソルと単純な値だけを読み、ファイルに仕込まれたコードを実行しない
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{weights} は {args.model_type} の重みとして読めない。-m mlp か -m cnn を選び直すか、mnist.py で訓練し直す: {error!r}")
model = model.to(device, memory_format=torch.channels_last).eval()  # eval() は、訓練と推論で働きの違う層を推論用にする
print(f"model: {args.model_type}")

# %% データ
test_set = MNIST(HERE / "data", train=False, download=True)  # 同梱のファイルを使い、無いときだけダウンロードする
chosen = slice(args.start_index, args.start_index + args.count)  # 最後の画像を越えた分は、切り捨てられる
images = test_set.data[chosen].unsqueeze(1) / 255  # (10000, 28, 28) -> (N, 1, 28, 28)、値は [0, 1]
labels = test_set.targets[chosen]  # (N,)

# %% 予測
with torch.no_grad():
    logits = torch.cat([model(batch.to(device)) for batch in images.split(200)]).cpu()  # 小分けにして、メモリを抑える
probabilities, predictions = logits.softmax(dim=1).max(dim=1)  # (N, 10) -> 最大の確率 (N,) と、その番号、つまり予測した数字 (N,)
wrong = predictions != labels
for i in wrong.nonzero().flatten().tolist():
    print(f"#{args.start_index + i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")
correct = (~wrong).sum().item()
print(f"Correct: {correct}  Incorrect: {len(labels) - correct}  (accuracy {correct / len(labels):.2%})")

# %% 図
drawn = images[:MAX_DRAWN]
rows = math.ceil(len(drawn) / 10)
fig = plt.figure(figsize=(12, 0.5 + 1.55 * rows), layout="constrained")
fig.suptitle(f"{args.model_type.upper()}: {correct} correct, {len(labels) - correct} incorrect ({len(drawn)} drawn)")
for i, image in enumerate(drawn):
    color, mark = ("#D55E00", "\N{BALLOT X}") if wrong[i] else ("#0072B2", "\N{CHECK MARK}")
    axes = fig.add_subplot(rows, 10, i + 1, xticks=[], yticks=[])
    axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)  # 0 を白、1 を黒で描く
    axes.set_title(f"#{args.start_index + i}  true {labels[i]}\n{mark} {predictions[i]} ({probabilities[i]:.0%})",
                   fontsize=9, color=color, fontweight="bold" if wrong[i] else "normal")
    axes.spines[:].set(color=color, linewidth=3 if wrong[i] else 1)
fig.savefig(picture)
print(f"saved: {picture}")
plt.show()
