"""訓練済みのモデルがどの数字をどう読み違えるかを、混同行列と画像で調べる。

前のレッスン（load_and_infer.py）との違い: 正解率という 1 つの数ではなく、10,000 枚の予測を（正解, 予測）の組ごとに数え、
さらに、高い確率で読み違えた画像を見る。

実行: python mnist_errors.py （MLP は python mnist_errors.py -m mlp）
結果（2 コアの CPU で約 6 秒）:
    Correct: 9929  Incorrect: 71  (accuracy 99.29%)
試してみよう:
    - -m mlp -o mlp.png の結果と比べると、CNN ではどの組の読み違いが減ったか。
    - load_mnist(train=False) の False を True にすると、訓練に使った画像の読み違いはどれだけ少ないか。
    - print(matrix.diagonal() / matrix.sum(dim=1)) を加えて、いちばん読みにくい数字を探す。
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent
DATA_DIR = HERE / "data"
OUTPUT = HERE.parent / "images" / "mnist_errors.png"

NUM_DRAWN = 20  # 描く読み違いの枚数（4 の倍数）
EVAL_BATCH_SIZE = 200  # 評価は勾配を残さないので、まとめて流せる
MAX_WEIGHTS_BYTES = 16 * 1024**2  # CNN の重み（1.7 MB）を float64 で保存しても十分に収まる


def select_device(name):
    """計算に使う torch.device を返す。auto なら MPS、CUDA、CPU の順に、使えるものを選ぶ。

    Raises:
        SystemExit: 指定されたデバイスがこのマシンで使えないとき。
    """
    available = {
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device in available if available[device])
    if not available[name]:
        sys.exit(f"エラー: デバイス {name} はこのマシンでは使えない。-d auto か -d cpu を指定する")
    return torch.device(name)


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


MODELS = {"mlp": MLP, "cnn": CNN}


def load_weights(model, path):
    """path にある state_dict を model に読み込む。float16 や float64 の値は float32 に直される。

    weights_only=True なので、ファイルに仕込まれたコードが実行されることはない。
    出典: https://docs.pytorch.org/docs/stable/notes/serialization.html

    Raises:
        SystemExit: ファイルが読めないとき、または model の重みではないとき。
    """
    if not os.path.isfile(path):
        sys.exit(f"エラー: 重みのファイル {path} がない。mnist.py で訓練して作るか、-w で正しい場所を指定する")
    if os.path.getsize(path) > MAX_WEIGHTS_BYTES:
        sys.exit(f"エラー: {path} は大きすぎて、このモデルの重みではない。-w で正しいファイルを指定する")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 読めないときは、下の 1 行だけで知らせる
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
        # DistributedDataParallel で訓練したモデルは、どのキーにも module. が付く
        state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    except Exception:  # 壊れ方によって例外の種類が変わる
        sys.exit(f"エラー: {path} は state_dict として読めない。mnist.py で訓練し直すか、-w で別のファイルを指定する")

    for model_type, model_class in MODELS.items():
        if not isinstance(model, model_class) and set(state_dict) == set(model_class().state_dict()):
            sys.exit(f"エラー: {path} は {model_type.upper()} の重みである。-m {model_type} を付けて実行する")
    expected = model.state_dict()
    if mismatched := sorted(set(state_dict) ^ set(expected)):
        problem = "が足りない" if mismatched[0] in expected else "は余計である"
        sys.exit(f"エラー: {path} はこのモデルの重みではない（キー {mismatched[0]!r} {problem}）。"
                 "mnist.py で保存した重みを -w で指定する")
    for key, tensor in state_dict.items():
        if not (isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
                and tensor.shape == expected[key].shape and tensor.float().isfinite().all()):
            shape = tuple(expected[key].shape)
            sys.exit(f"エラー: {path} の {key} が、形 {shape} の有限な実数のテンソルではない。"
                     "mnist.py で保存した重みを -w で指定する")
    model.load_state_dict(state_dict)


def load_mnist(train):
    """MNIST を読み、画像 (N, 1, 28, 28)（float32、[0, 1]）とラベル (N,)（int64）を返す。

    エポックのたびに 1 枚ずつ変換するのではなく、ここで一度だけ全部をテンソルにする。

    Args:
        train: True なら訓練用の 60,000 枚、False ならテスト用の 10,000 枚。
    Raises:
        SystemExit: データのファイルが欠けているか、壊れているとき。
    """
    try:
        dataset = MNIST(DATA_DIR, train=train)
    except Exception:  # 壊れ方によって例外の種類が変わる
        files = DATA_DIR / "MNIST" / "raw" / ("train-*-ubyte" if train else "t10k-*-ubyte")
        sys.exit(
            f"エラー: MNIST のデータ {files} が欠けているか壊れている。"
            "git restore 02_pytorch_mnist/data をリポジトリの最上位で実行して元に戻す"
        )
    return dataset.data.unsqueeze(1) / 255, dataset.targets  # uint8 を割ると float32 になる


@torch.no_grad()
def predict(model, images):
    """画像 (N, 1, 28, 28) を読み、予測した数字 (N,) とその確率 (N,) を CPU のテンソルで返す。"""
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(EVAL_BATCH_SIZE)])  # (N, 10)
    probabilities, predictions = F.softmax(logits, dim=1).max(dim=1)
    return predictions.cpu(), probabilities.cpu()


def confusion_matrix(labels, predictions):
    """正解が i で予測が j だった枚数を i 行 j 列に持つ、(10, 10) のテンソルを返す。"""
    return (10 * labels + predictions).bincount(minlength=100).reshape(10, 10)


def draw(matrix, images, labels, predictions, probabilities, indices):
    """左に混同行列、右に読み違えた画像を並べた Figure を返す。indices はその画像の番号である。"""
    fig = plt.figure(figsize=(14, 6.5), dpi=100, layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=[1, 1.1])

    axes = left.subplots()
    errors = matrix.clone().fill_diagonal_(0)  # 対角の約 1,000 を除くと、読み違いの濃淡が見える
    axes.imshow(errors.numpy(), cmap="Oranges", vmin=0, vmax=max(1, errors.max().item()))
    for label in range(10):
        for prediction in range(10):
            count = matrix[label, prediction].item()
            dark = errors[label, prediction] > 0.6 * errors.max()
            axes.text(prediction, label, count or "", horizontalalignment="center", verticalalignment="center",
                      color="0.6" if label == prediction else "white" if dark else "black", fontsize=9)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10),
             title="Confusion matrix (color: errors only)")

    grid = right.subplots(4, NUM_DRAWN // 4)
    right.suptitle("Most confidently wrong")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_visible(False)
    for axes, i in zip(grid.flat, indices.tolist()):
        axes.set_visible(True)
        axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(f"#{i}  true {labels[i]}\npredicted {predictions[i]} ({probabilities[i]:.0%})", fontsize=9)
    return fig


def save_figure(fig, path):
    """図を path に保存し、画面のある環境ではウィンドウにも表示する（閉じるまで待つ）。"""
    fig.savefig(path)
    print(f"saved: {path}", flush=True)
    if plt.get_backend().lower() != "agg":  # agg は画面のない環境で選ばれる
        plt.show()


def check_writable(path):
    """path に書き込めることを、時間のかかる計算の前に確かめる。

    Raises:
        SystemExit: 書き込めないとき。
    """
    try:
        existed = path.exists()
        if existed and not path.is_file():
            raise OSError("not a file")
        with open(path, "ab"):  # 追記で開くだけなので、今ある中身は変わらない
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        sys.exit(
            f"エラー: {path} に書き込めない（{error.strerror or error}）。"
            "書き込めるフォルダの中のファイル名を指定する"
        )


def parse_args(argv):
    """コマンドラインの引数を調べて返す。正しくない引数は 1 行で知らせて終わる（SystemExit）。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse の英語のエラーを、日本語の 1 行に置き換える
    parser.error = lambda message: sys.exit(f"エラー: 引数が正しくない（{message}）。使い方は --help で見られる")
    parser.add_argument("-m", "--model-type", choices=MODELS, default="cnn", help="モデルの種類（既定: cnn）")
    parser.add_argument("-w", "--weights", type=Path, help="重みのファイル（既定: このスクリプトの隣の mnist_モデル.pth）")
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT,
                        help="図の保存先（既定: images/mnist_errors.png）")
    args = parser.parse_args(argv)

    args.weights = args.weights or HERE / f"mnist_{args.model_type}.pth"
    if args.output.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error("--output の拡張子は .png、.jpg、.pdf、.svg のどれかにする")
    check_writable(args.output)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    model = MODELS[args.model_type]()
    load_weights(model, args.weights)
    model.to(device, memory_format=torch.channels_last)
    print(f"device: {device}")
    print(f"weights: {args.weights}")
    print(f"model: {args.model_type}")

    images, labels = load_mnist(train=False)
    predictions, probabilities = predict(model, images.to(device))
    correct = (predictions == labels).sum().item()
    print(f"Correct: {correct}  Incorrect: {len(labels) - correct}  (accuracy {correct / len(labels):.2%})")

    matrix = confusion_matrix(labels, predictions)
    print("rows: true, columns: predicted")
    print("     " + " ".join(f"{digit:4d}" for digit in range(10)))
    for digit, row in enumerate(matrix.tolist()):
        print(f"{digit:4d} " + " ".join(f"{count:4d}" for count in row))

    wrong = (predictions != labels).nonzero().flatten()
    most_confident = wrong[probabilities[wrong].sort(descending=True, stable=True).indices][:NUM_DRAWN]
    print("most confidently wrong:")
    for i in most_confident.tolist():
        print(f"#{i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")

    fig = draw(matrix, images, labels, predictions, probabilities, most_confident)
    fig.suptitle(f"{args.model_type.upper()}: {correct} correct, {len(labels) - correct} incorrect")
    save_figure(fig, args.output)
    return {"matrix": matrix, "labels": labels, "predictions": predictions, "probabilities": probabilities,
            "most_confident": most_confident, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
