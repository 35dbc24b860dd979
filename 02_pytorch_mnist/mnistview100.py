"""テスト画像の先頭 100 枚を 1 枚の図に並べ、番号とラベルを読めるようにする。

前のレッスン（mnistview.py）との違い: 1 枚ずつ描くのではなく、(100, 1, 28, 28) のテンソルを並べ替えて、
10 行 10 列の 1 枚の大きな画像にしてから描く。

実行: python mnistview100.py
結果（2 コアの CPU で約 4 秒）:
    digit  0  1  2  3  4  5  6  7  8  9
    count  8 14  8 11 14  7 10 15  2 11
試してみよう:
    - START_INDEX を変えて、別の 100 枚を見る。
    - 自分なら読み違えそうな番号を控え、load_and_infer.py -n 100 の結果と比べる。
    - make_mosaic の .permute(0, 2, 1, 3) だけを消すと、並びはどう崩れるか。
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent
DATA_DIR = HERE / "data"
OUTPUT = HERE.parent / "images" / "mnistview100.png"

START_INDEX = 0  # 最初の画像の番号（0 から 9900）
GAP = 8  # 画像と画像の間（画素）。ラベルを書く場所になる
CELL = 28 + GAP  # 1 枚が占める幅（画素）


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


def make_mosaic(images):
    """画像 (100, 1, 28, 28) を、10 行 10 列に並べた 1 枚の画像 (10 * CELL, 10 * CELL) にする。"""
    cells = F.pad(images, (0, GAP, GAP, 0))  # 右と上に余白を付ける: (100, 1, 28, 28) -> (100, 1, CELL, CELL)
    cells = cells.reshape(10, 10, CELL, CELL)  # (行, 列, 縦, 横)
    return cells.permute(0, 2, 1, 3).reshape(10 * CELL, 10 * CELL)  # (行, 縦, 列, 横) の順に並べてからつなぐ


def draw(mosaic, labels):
    """並べた画像に、番号の目盛りと 1 枚ごとのラベルを添えた Figure を返す。"""
    fig, axes = plt.subplots(figsize=(7, 7), dpi=100, layout="constrained")
    axes.imshow(mosaic.numpy(), cmap="gray_r", vmin=0, vmax=1)
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(i, 10)
        axes.text(column * CELL + 1, row * CELL + 1, label, color="#D55E00", fontsize=9, verticalalignment="top")
    borders = [i * CELL - 0.5 for i in range(1, 10)]
    axes.hlines(borders, -0.5, 10 * CELL - 0.5, color="0.8", linewidth=0.8)
    axes.vlines(borders, -0.5, 10 * CELL - 0.5, color="0.8", linewidth=0.8)
    centers = [i * CELL + CELL / 2 for i in range(10)]
    axes.set_xticks(centers, [f"+{i}" for i in range(10)])
    axes.set_yticks(centers, [START_INDEX + 10 * i for i in range(10)])
    axes.xaxis.tick_top()
    axes.set_title("MNIST test images: index = row + column, label at top left")
    axes.tick_params(length=0)
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
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT,
                        help="図の保存先（既定: images/mnistview100.png）")
    args = parser.parse_args(argv)
    if args.output.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error("--output の拡張子は .png、.jpg、.pdf、.svg のどれかにする")
    check_writable(args.output)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    print(f"device: {device}")

    images, labels = load_mnist(train=False)
    images = images[START_INDEX:START_INDEX + 100].to(device)
    labels = labels[START_INDEX:START_INDEX + 100]
    counts = labels.bincount(minlength=10).tolist()
    print(f"images shape {tuple(images.shape)}, first index {START_INDEX}")
    print("digit " + " ".join(f"{digit:2d}" for digit in range(10)))
    print("count " + " ".join(f"{count:2d}" for count in counts))

    mosaic = make_mosaic(images).cpu()
    print(f"mosaic shape {tuple(mosaic.shape)}")
    fig = draw(mosaic, labels)
    save_figure(fig, args.output)
    return {"images": images, "labels": labels, "counts": counts, "mosaic": mosaic, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
