"""訓練済みの重みを読み込み、テスト画像の数字を予測して、正解と比べる。

前のレッスン（mnist.py）との違い: 訓練はしない。mnist.py が保存した重みを同じ形のモデルに読み込み、予測（推論）だけをする。

実行: python load_and_infer.py
      python load_and_infer.py -m cnn -s 240 -n 100 -w mnist_cnn.pth
結果（2 コアの CPU で約 4 秒）:
    model: mlp
    #18 true 3 predicted 8 (55.9%)
    Correct: 19  Incorrect: 1  (accuracy 95.00%)
説明: このフォルダの README.md
試してみよう:
    - -n 10000 を付けて、すべてのテスト画像を予測する。何枚を間違えるか。-m cnn も付けると、何枚に減るか。
    - torch.load の後に、state_dict の名前と形をすべて表示する。fc1.weight の形は何か。
    - images を .roll(3, dims=3) で 3 画素右へずらし、-n 10000 を付ける。正解率は、MLP と CNN でそれぞれ何 % に下がるか。
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

COLUMNS = 10  # 図の 1 行に描く枚数
MAX_DRAWN = 100  # これより多いと図が縦に長くなりすぎるので、先頭だけを描く
HERE = Path(__file__).resolve().parent

if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-s", "--start-index", type=int, default=0, help="最初のテスト画像の番号（既定: 0）")
parser.add_argument("-n", "--count", type=int, default=20, help="予測する枚数（既定: 20、描くのは 100 枚まで）")
parser.add_argument("-w", "--weights", type=Path, help="重みのファイル（既定: このスクリプトの隣の mnist_モデル.pth）")
parser.add_argument("-m", "--model-type", choices=["mlp", "cnn"], default="mlp", help="モデルの種類（既定: mlp）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
if not 0 <= args.start_index < 10_000:
    parser.error("--start-index は 0 以上 9999 以下にする")
if args.count < 1:
    parser.error("--count は 1 以上にする")
# 図の名前で、どの実行の図かがわかるようにする
picture_name = f"load_and_infer_{args.model_type}_{args.start_index}_{args.count}"
if args.weights is None:
    weights = HERE / f"mnist_{args.model_type}.pth"
else:
    weights = args.weights
    picture_name += f"_{weights.stem}"  # 拡張子 .pth を除いたファイル名
PICTURE = HERE.parent / "images" / f"{picture_name}.png"
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
model = MODELS[args.model_type]()  # この時点の重みは、乱数で決めた初期値である
try:
    # state_dict は、fc1.weight のような名前から値を引ける、重みとバイアスの辞書。mnist.py が保存したのは、これだけである
    # map_location="cpu" は、GPU で訓練した重みも CPU に読み込む。GPU のないマシンでも使える
    # weights_only=True は、テンソルと単純な値だけを読み込み、ファイルに仕込まれたコードを実行しない
    state_dict = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(state_dict)  # モデルの重みとバイアスを、名前ごとに置き換える
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{weights} は {args.model_type} の重みとして読み込めない。"
                 f"-m mlp か -m cnn を選び直すか、mnist.py で訓練し直す: {error!r}")
model = model.to(device)
model.eval()  # 訓練と推論で働きの違う層を推論用にする。このモデルにはそういう層がないが、習慣にする
print(f"model: {args.model_type}")

# %% データ
try:
    test_set = MNIST(HERE / "data", train=False, download=True)  # データは同梱なので、ダウンロードは起こらない
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
end_index = args.start_index + args.count  # 10000 を越えてもよい。次の 2 行は、最後の画像までを取り出す
pixels = test_set.data[args.start_index:end_index] / 255  # (N, 28, 28)、値は [0, 1]
labels = test_set.targets[args.start_index:end_index]  # 正解の数字: (N,)
images = pixels.unsqueeze(1)  # チャネルの軸を加える: (N, 28, 28) -> (N, 1, 28, 28)

# %% 予測
batch_logits = []
with torch.no_grad():  # 勾配は使わないので、その準備を省く
    for batch in images.split(200):  # 一度に通すと途中の値がメモリを占めるので、200 枚ずつに分ける
        logits = model(batch.to(device))  # (B, 1, 28, 28) -> (B, 10)
        batch_logits.append(logits.cpu())
logits = torch.cat(batch_logits)  # (N, 10)
digit_probabilities = logits.softmax(dim=1)  # 数字ごとの確率: (N, 10)
probabilities, predictions = digit_probabilities.max(dim=1)  # 最大の確率 (N,) と、それを持つ数字、つまり予測 (N,)

is_correct = predictions == labels  # (N,)
for i in range(len(labels)):
    if not is_correct[i]:
        print(f"#{args.start_index + i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")
correct = is_correct.sum().item()
incorrect = len(labels) - correct
accuracy = correct / len(labels)
print(f"Correct: {correct}  Incorrect: {incorrect}  (accuracy {accuracy:.2%})")

# %% 図
num_drawn = min(len(images), MAX_DRAWN)
rows = math.ceil(num_drawn / COLUMNS)
fig = plt.figure(figsize=(10, 0.5 + 1.4 * rows), layout="constrained")
fig.suptitle(f"{args.model_type.upper()}: {correct} correct, {incorrect} incorrect ({num_drawn} drawn)")
for i in range(num_drawn):
    axes = fig.add_subplot(rows, COLUMNS, i + 1, xticks=[], yticks=[])
    axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)  # (28, 28)。0 を白、1 を黒で描く
    if is_correct[i]:
        mark, color, linewidth, fontweight = "\N{CHECK MARK}", "#0072B2", 1, "normal"
    else:  # 間違いは、太い橙色の枠で目立たせる
        mark, color, linewidth, fontweight = "\N{BALLOT X}", "#D55E00", 4, "bold"
    axes.spines[:].set(color=color, linewidth=linewidth)
    title = f"#{args.start_index + i} true {labels[i]}\n{mark} {predictions[i]} ({probabilities[i]:.0%})"
    axes.set_title(title, fontsize=9, color=color, fontweight=fontweight)
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
