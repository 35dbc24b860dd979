"""MNIST の画像を DataLoader から 4 枚取り出し、ラベルとともに眺める。

前のレッスン（minllm_addition.py）との違い: 作り物のデータに代わって、手書き数字の画像 60,000 枚が入力になる。
学習の前に、テンソルの形と値の範囲とラベルを自分の目で確かめる。

実行: python mnistview.py
結果（2 コアの CPU で約 4 秒）:
    images shape (4, 1, 28, 28), values from 0.0 to 1.0
    labels shape (4,), values [6, 8, 8, 7]
試してみよう:
    - --seed を変えて、別の 4 枚を見る。
    - BATCH_SIZE を 8 にすると、形はどう変わるか。
    - shuffle=True を消して、並び順がどうなるかを見る。
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent
DATA_DIR = HERE / "data"
OUTPUT = HERE.parent / "images" / "mnistview.png"

BATCH_SIZE = 4  # 一度に取り出す枚数


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


def draw(images, labels):
    """画像 (B, 1, 28, 28) を横に並べ、ラベルをタイトルにした Figure を返す。"""
    fig, grid = plt.subplots(1, len(images), figsize=(2.5 * len(images), 2.9), dpi=100, layout="constrained",
                             squeeze=False)
    for axes, image, label in zip(grid[0], images, labels):
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)  # 0 を白、1 を黒で描く
        axes.set(title=f"label {label}", xticks=[0, 27], yticks=[0, 27])
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
    parser.add_argument("--seed", type=int, default=0, help="乱数のシード（既定: 0）")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="図の保存先（既定: images/mnistview.png）")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**32:
        parser.error("--seed は 0 以上 2**32 未満の整数にする")
    if args.output.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error("--output の拡張子は .png、.jpg、.pdf、.svg のどれかにする")
    check_writable(args.output)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    torch.manual_seed(args.seed)
    print(f"device: {device}")

    all_images, all_labels = load_mnist(train=True)
    print(f"data: {len(all_images)} training images")
    loader = DataLoader(TensorDataset(all_images, all_labels), batch_size=BATCH_SIZE, shuffle=True)
    images, labels = next(iter(loader))  # 最初のバッチだけを使う
    images, labels = images.to(device), labels.to(device)
    print(f"images shape {tuple(images.shape)}, values from {images.min()} to {images.max()}")
    print(f"labels shape {tuple(labels.shape)}, values {labels.tolist()}")

    fig = draw(images.cpu(), labels.cpu())
    save_figure(fig, args.output)
    return {"images": images, "labels": labels, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
