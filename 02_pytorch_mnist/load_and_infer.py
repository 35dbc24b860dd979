"""訓練済みの重みを読み込み、テスト画像の数字を読ませて正解と比べる。

前のレッスン（mnist.py）との違い: 訓練はしない。mnist.py が残した重みのファイルを同じ形のモデルに読み込み、
model.eval() と勾配なしの順伝播で、まとめて予測する。-i を付けると、自分で書いた数字の写真を読む。

実行: python load_and_infer.py （CNN は -m cnn、手書きの画像は -i ../images/digits/pen_3.png を付ける）
結果（2 コアの CPU で約 4 秒）:
    model: mlp
    Correct: 20  Incorrect: 0  (accuracy 100.00%)
試してみよう:
    - -n 10000 で全部のテスト画像を読ませ、-m cnn と読み違いの数を比べる。
    - -s を変えて、人間でも迷う数字を探す。
    - 1 周だけ訓練したモデルはどう読むか。mnist.py -e 1 -w try.pth -o try.png の後に -w try.pth を付ける。
"""

import argparse
import math
import os
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent
DATA_DIR = HERE / "data"
OUTPUT = HERE.parent / "images" / "load_and_infer01.png"
HANDWRITING_OUTPUT = HERE.parent / "images" / "load_and_infer_handwriting.png"

NUM_TEST_IMAGES = 10_000
MAX_DRAWN = 100  # これより多いと 1 枚 1 枚が小さすぎる
MAX_FILES = 20  # -i で一度に読む画像の数
MAX_PIXELS = 50_000_000  # これより大きな画像は、展開する前に断る
WORK_SIZE = 140  # 手書きの画像は、長い辺をこの画素数まで縮めてから処理する
MIN_CONTRAST = 0.1  # 紙との明るさの差がこれより小さければ、何も書かれていないとみなす
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


def read_image(path):
    """PNG か JPEG の画像を読み、明るさ (H, W)（float32、[0, 1]）を返す。透明な部分は、線と反対の明るさにする。

    Raises:
        SystemExit: 画像として読めないとき、または大きすぎるとき。
    """
    if not os.path.isfile(path):
        sys.exit(f"エラー: 画像のファイル {path} がない。-i で正しい場所を指定する")
    Image.MAX_IMAGE_PIXELS = None  # 大きさは、ファイルの見出しを読んだところで自分で調べる
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                sys.exit(f"エラー: 画像 {path} は大きすぎる（{image.width}×{image.height}）。縮めてから指定する")
            image = ImageOps.exif_transpose(image)  # スマートフォンの写真は、向きが別に記録されている
            if image.mode.startswith("I"):  # 16 ビットの灰色
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            image = image.convert("RGB" if image.mode == "CMYK" else "RGBA").convert("LA")
            image.thumbnail((WORK_SIZE, WORK_SIZE))
    except Exception:  # 壊れ方によって例外の種類が変わる
        sys.exit(f"エラー: {path} は画像として読めない。PNG か JPEG のファイルを指定する")
    gray, alpha = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).unbind(dim=2)
    ink_is_dark = (gray * alpha).sum() < 0.5 * alpha.sum()
    return gray * alpha + ink_is_dark * (1 - alpha)


def dilate(x, size):
    """(1, 1, H, W) の各画素を、周り size×size 画素の最大値に置き換える。"""
    return F.max_pool2d(x, size, stride=1, padding=size // 2)


def connected_components(mask):
    """0 と 1 の (1, 1, H, W) で、つながった 1 の画素に同じ番号（1 以上）を付けた int64 のテンソルを返す。"""
    labels = mask * torch.arange(1, mask.numel() + 1).view_as(mask)
    while True:
        spread = dilate(labels, 3) * mask  # 隣の画素の大きいほうの番号に染まっていく
        if spread.equal(labels):
            return labels.long()
        labels = spread


def extract_ink(gray):
    """明るさ (H, W) から線だけを取り出し、濃さ (1, 1, H, W)（背景が 0、線が 1）にする。何もなければ None を返す。"""
    gray = gray[None, None]
    size = gray.shape[2:]
    small = F.interpolate(gray, scale_factor=min(1, 48 / max(size)), mode="area")
    # 線は画素の少数派なので、周りの平均からのずれの 3 乗の符号で、暗い線か明るい線かが分かる
    surroundings = F.avg_pool2d(F.pad(small, [7] * 4, mode="replicate"), 15, stride=1)
    if ((small - surroundings) ** 3).mean() > 0:
        gray, small = 1 - gray, 1 - small
    # 周りで最も明るい所を紙とみなし、紙との比を取ると、影や明るさのむらが消える
    paper = F.interpolate(-dilate(-dilate(small, 17), 17), size, mode="bilinear")
    ink = F.avg_pool2d((paper - gray).clamp(min=0), 3, stride=1, padding=1)  # 細かなざらつきを均す
    if ink.quantile(0.9995) < MIN_CONTRAST:
        return None
    ink = ink / paper.clamp(min=0.01)

    mask = (ink > ink.quantile(0.9995) / 2).float()
    labels = connected_components(mask)
    areas = labels.flatten().bincount()
    areas[0] = 0  # 背景
    rim = max(size) // 32
    edge = labels.clone()
    edge[..., rim:-rim, rim:-rim] = 0
    inside = areas.clone()
    inside[edge] = 0
    if inside.max() > 0.001 * mask.numel():
        areas = inside  # 縁に触れているものは、紙の端や枠である
    kept = (areas >= 0.1 * areas.max())[labels].float()  # 小さな汚れを捨てる
    return (ink * dilate(kept, 5) / ink[mask * kept > 0].median()).clamp(max=1)


def prepare_digit(gray):
    """明るさ (H, W) の手書き数字を、MNIST と同じ作り方で (1, 28, 28) にする。何も書かれていなければ None を返す。

    線を囲む最小の長方形を切り出し、縦横比を保って 20×20 に収め、重心を 28×28 の中央に置く。
    出典: http://yann.lecun.com/exdb/mnist/
    """
    ink = extract_ink(gray)
    if ink is None:
        return None
    mask = (ink > 0.5).float()
    rows, columns = (ink[0, 0] > 0.25).nonzero().unbind(dim=1)
    scale = 20 / (1 + max(rows.max() - rows.min(), columns.max() - columns.min())).item()
    # 細い線は縮めると薄れて消えるので、縮めた後に 1.6 画素になるまで太らせておく
    thickness = 2 * mask.sum() / (dilate(mask, 3) - mask).sum().clamp(min=1)  # 面積 ÷ 周の長さの半分
    grow = max(0, int((1.6 / scale - thickness) / 2))
    ink = dilate(F.pad(ink, [grow] * 4), 2 * grow + 1)

    rows, columns = (ink[0, 0] > 0.25).nonzero().unbind(dim=1)
    ink = ink[:, :, rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    height, width = (max(1, round(20 * side / max(ink.shape))) for side in ink.shape[2:])
    ink = F.interpolate(ink, (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)  # (1, height, width)
    center_y = (ink.sum(dim=(0, 2)) * torch.arange(height)).sum() / ink.sum()
    center_x = (ink.sum(dim=(0, 1)) * torch.arange(width)).sum() / ink.sum()
    top = min(max(round(14 - center_y.item()), 0), 28 - height)
    left = min(max(round(14 - center_x.item()), 0), 28 - width)
    digit = torch.zeros(1, 28, 28)
    digit[:, top:top + height, left:left + width] = ink
    return digit


def draw_predictions(images, labels, predictions, probabilities, start_index):
    """画像を 10 枚ずつ並べ、正解と予測を添えた Figure を返す。読み違いは色と×印と枠で示す。"""
    rows = math.ceil(len(images) / 10)
    fig, grid = plt.subplots(rows, 10, figsize=(12, 0.5 + 1.55 * rows), dpi=100, layout="constrained", squeeze=False)
    for i, axes in enumerate(grid.flat):
        axes.set(xticks=[], yticks=[])
        if i >= len(images):
            axes.set_visible(False)
            continue
        correct = predictions[i] == labels[i]
        color, mark = ("#0072B2", "\N{CHECK MARK}") if correct else ("#D55E00", "\N{BALLOT X}")
        axes.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(
            f"#{start_index + i}  true {labels[i]}\n{mark} {predictions[i]} ({probabilities[i]:.0%})",
            fontsize=9, color=color, fontweight="normal" if correct else "bold",
        )
        axes.spines[:].set(color=color, linewidth=1 if correct else 3)
    return fig


def draw_handwriting(grays, digits, probabilities, names):
    """1 枚ごとに、元の画像、ネットワークの見る 28×28、10 個の確率を横に並べた Figure を返す。"""
    rows = len(grays)
    fig, grid = plt.subplots(rows, 3, figsize=(9, 2.4 * rows), dpi=100, layout="constrained", squeeze=False)
    for i, (original, seen, bars) in enumerate(grid):
        original.imshow(grays[i].numpy(), cmap="gray", vmin=0, vmax=1)
        original.set(xticks=[], yticks=[], title=names[i].encode("ascii", "replace").decode()[-40:])
        seen.imshow(digits[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        seen.set(xticks=[], yticks=[], title="what the network sees")
        prediction = probabilities[i].argmax().item()
        bars.bar(range(10), probabilities[i].tolist(),
                 color=["#D55E00" if digit == prediction else "#0072B2" for digit in range(10)])
        bars.set(xticks=range(10), ylim=(0, 1), title=f"read as {prediction} ({probabilities[i, prediction]:.0%})")
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


def read_test_images(model, device, args):
    """MNIST のテスト画像を読ませ、正解と比べる。結果の辞書を返す。"""
    images, labels = load_mnist(train=False)
    images = images[args.start_index:][:args.count]  # 終わりを越えた分は、最後の画像で止まる
    labels = labels[args.start_index:][:args.count]
    predictions, probabilities = predict(model, images.to(device))

    wrong = predictions != labels
    for i in wrong.nonzero().flatten().tolist():
        print(f"#{args.start_index + i} true {labels[i]} predicted {predictions[i]} ({probabilities[i]:.1%})")
    incorrect = wrong.sum().item()
    correct = len(labels) - incorrect
    print(f"Correct: {correct}  Incorrect: {incorrect}  (accuracy {correct / len(labels):.2%})")

    if len(images) > MAX_DRAWN:
        print(f"drawing the first {MAX_DRAWN} of {len(images)} images")
    drawn = slice(MAX_DRAWN)
    fig = draw_predictions(images[drawn], labels[drawn], predictions[drawn], probabilities[drawn], args.start_index)
    fig.suptitle(f"{args.model_type.upper()}: {correct} correct, {incorrect} incorrect")
    save_figure(fig, args.output)
    return {"predictions": predictions, "probabilities": probabilities, "labels": labels, "figure": fig}


@torch.no_grad()
def read_handwriting(model, device, args):
    """手書き数字の画像を読ませる。結果の辞書を返す。"""
    grays = [read_image(path) for path in args.image]
    digits = [prepare_digit(gray) for gray in grays]
    for path, digit in zip(args.image, digits):
        if digit is None:
            sys.exit(f"エラー: 画像 {path} には何も書かれていないように見える。もっと濃く書いた画像を指定する")
    digits = torch.stack(digits)  # (B, 1, 28, 28)
    model.eval()
    probabilities = model(digits.to(device)).softmax(dim=1).cpu()  # (B, 10)
    predictions = probabilities.argmax(dim=1)
    for path, prediction, row in zip(args.image, predictions, probabilities):
        print(f"{path}: read as {prediction} ({row[prediction]:.1%})")

    fig = draw_handwriting(grays, digits, probabilities, [path.name for path in args.image])
    save_figure(fig, args.output)
    return {"digits": digits, "predictions": predictions, "probabilities": probabilities, "figure": fig}


def parse_args(argv):
    """コマンドラインの引数を調べて返す。正しくない引数は 1 行で知らせて終わる（SystemExit）。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse の英語のエラーを、日本語の 1 行に置き換える
    parser.error = lambda message: sys.exit(f"エラー: 引数が正しくない（{message}）。使い方は --help で見られる")
    parser.add_argument("-s", "--start-index", type=int, help="最初のテスト画像の番号（既定: 0）")
    parser.add_argument("-n", "--count", type=int, help="読ませる枚数（既定: 20）")
    parser.add_argument("-i", "--image", type=Path, nargs="+", metavar="FILE",
                        help="テスト画像の代わりに読む、手書き数字の PNG か JPEG")
    parser.add_argument("-m", "--model-type", choices=MODELS, default="mlp", help="モデルの種類（既定: mlp）")
    parser.add_argument("-w", "--weights", type=Path, help="重みのファイル（既定: このスクリプトの隣の mnist_モデル.pth）")
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("-o", "--output", type=Path, help="図の保存先（既定: images/load_and_infer01.png、"
                        "-i では images/load_and_infer_handwriting.png）")
    args = parser.parse_args(argv)

    if args.image and (args.start_index is not None or args.count is not None):
        parser.error("--image は --start-index や --count と一緒には使えない")
    if args.image and len(args.image) > MAX_FILES:
        parser.error(f"--image に指定できるのは {MAX_FILES} 枚までにする")
    args.start_index = 0 if args.start_index is None else args.start_index
    args.count = 20 if args.count is None else args.count
    args.weights = args.weights or HERE / f"mnist_{args.model_type}.pth"
    args.output = args.output or (HANDWRITING_OUTPUT if args.image else OUTPUT)
    if not 0 <= args.start_index < NUM_TEST_IMAGES:
        parser.error(f"--start-index は 0 以上 {NUM_TEST_IMAGES} 未満の整数にする")
    if args.count < 1:
        parser.error("--count は 1 以上の整数にする")
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

    if args.image:
        return read_handwriting(model, device, args)
    return read_test_images(model, device, args)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
