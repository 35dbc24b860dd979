"""訓練済みの CNN の中をのぞく。学んだフィルタと、1 枚の画像が各層でどう変わるかを描く。

前のレッスン（mnist_errors.py）との違い: 予測の結果ではなく途中を見る。モデルのコードを変えずに途中の出力を取り出す
forward hook を使い、フィルタがどの向きのエッジに反応するかを、その重みから計算する。

実行: python mnist_cnn_features.py
結果（2 コアの CPU で約 4 秒）:
    features.0 Conv2d     (32, 28, 28)  -0.0307
    features.5 MaxPool2d  (64, 7, 7)    0.1104
試してみよう:
    - -s を変えて別の数字を入力し、特徴マップがどう変わるかを見る。
    - NUM_STRONGEST を 32 にして、エッジと言えないフィルタがいくつあるかを数える。
    - main の load_weights の行を消して -o untrained.png を付け、訓練前のフィルタと比べる。
"""

import argparse
import math
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
WEIGHTS = HERE / "mnist_cnn.pth"
OUTPUT = HERE.parent / "images" / "mnist_cnn_features.png"

NUM_TEST_IMAGES = 10_000
NUM_STRONGEST = 3  # 反応するエッジの向きを調べるフィルタの数
EDGES = ["vertical edges", "diagonal edges", "horizontal edges", "diagonal edges"]  # 傾きの向きが 0、45、90、135 度
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


MODELS = {"cnn": CNN}


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
def stage_outputs(model, image):
    """画像 (1, 28, 28) を読ませ、features の各段の {名前: 出力 (C, H, W)} を CPU のテンソルで返す。"""
    outputs = {}

    def keep(name):
        # hook は、その層の順伝播が終わるたびに、層と入力と出力を受け取って呼ばれる
        return lambda layer, inputs, output: outputs.update({name: output[0].cpu()})

    hooks = [layer.register_forward_hook(keep(f"features.{i} {type(layer).__name__}"))
             for i, layer in enumerate(model.features)]
    model.eval()
    model(image[None])
    for hook in hooks:  # 外さないと、以後の順伝播でも呼ばれ続ける
        hook.remove()
    return outputs


def edge_slope(filters):
    """フィルタ (N, 3, 3) の重みの傾きの強さ (N,)、向き (N,)（度、右が 0 で下が 90）、エッジらしさ (N,) を返す。

    向きは、重みが増えていく方向である。エッジらしさは、重みの 2 乗和のうち傾いた平面で表せる割合（0 から 1）で、
    1 に近いほど、明るさの変わらない所や点には反応しない。
    """
    ramp = torch.tensor([-1.0, 0.0, 1.0])
    right = (filters * ramp).sum(dim=(1, 2))  # 左の列から右の列への増え方
    down = (filters * ramp[:, None]).sum(dim=(1, 2))  # 上の行から下の行への増え方
    edge_share = (right**2 + down**2) / 6 / filters.square().sum(dim=(1, 2))  # 6 は ramp を 3 つ並べた 9 個の 2 乗和
    return torch.hypot(right, down), torch.rad2deg(torch.atan2(down, right)), edge_share


def tile_maps(maps, columns):
    """(C, H, W) の C 枚を columns 列に並べた 1 枚の画像にする。間の 1 画素は NaN で、何も描かれない。"""
    cells = F.pad(maps, (0, 1, 0, 1), value=math.nan)  # (C, H + 1, W + 1)
    C, H, W = cells.shape
    cells = cells.reshape(C // columns, columns, H, W)  # (行, 列, 縦, 横)
    return cells.permute(0, 2, 1, 3).reshape(C // columns * H, columns * W)


def draw(image, filters, outputs):
    """入力、32 個のフィルタ、ReLU とプーリングの後の特徴マップを並べた Figure を返す。"""
    fig, grid = plt.subplots(2, 3, figsize=(14, 7.5), dpi=100, layout="constrained", height_ratios=[1, 1.2])
    grid[0, 0].imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    grid[0, 0].set_title("input: 1 x 28 x 28")
    limit = filters.abs().max().item()
    picture = grid[0, 1].imshow(tile_maps(filters, 8).numpy(), cmap="PuOr", vmin=-limit, vmax=limit)
    grid[0, 1].set_title("features.0 filters: 32 x 1 x 3 x 3")
    fig.colorbar(picture, ax=grid[0, 1], shrink=0.5, label="weight")
    stages = [name for name in outputs if "Conv2d" not in name]
    for axes, name in zip([grid[0, 2], *grid[1]], stages):
        maps = outputs[name]
        axes.imshow(tile_maps(maps, 8).numpy(), cmap="gray_r")
        axes.set_title(f"{name}: " + " x ".join(map(str, maps.shape)))
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], facecolor="#BFDDF2")  # NaN の隙間から見える色
    grid[0, 1].set_xticks([4 * i + 1 for i in range(8)], [f"+{i}" for i in range(8)])
    grid[0, 1].set_yticks([4 * i + 1 for i in range(4)], [8 * i for i in range(4)])
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
    parser.add_argument("-s", "--start-index", type=int, default=0, help="入力するテスト画像の番号（既定: 0）")
    parser.add_argument("-w", "--weights", type=Path, default=WEIGHTS,
                        help="重みのファイル（既定: このスクリプトの隣の mnist_cnn.pth）")
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT,
                        help="図の保存先（既定: images/mnist_cnn_features.png）")
    args = parser.parse_args(argv)

    if not 0 <= args.start_index < NUM_TEST_IMAGES:
        parser.error(f"--start-index は 0 以上 {NUM_TEST_IMAGES} 未満の整数にする")
    if args.output.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error("--output の拡張子は .png、.jpg、.pdf、.svg のどれかにする")
    check_writable(args.output)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    model = CNN()
    load_weights(model, args.weights)
    model.to(device, memory_format=torch.channels_last)
    print(f"device: {device}")
    print(f"weights: {args.weights}")

    images, labels = load_mnist(train=False)
    image, label = images[args.start_index], labels[args.start_index].item()
    outputs = stage_outputs(model, image.to(device))
    print(f"test image #{args.start_index}, label {label}")
    print("stage                 shape         mean   zeros")
    for name, maps in outputs.items():
        zeros = f"{(maps == 0).float().mean():6.1%}" if "ReLU" in name else ""
        print(f"{name:21s} {str(tuple(maps.shape)):13s} {maps.mean():.4f}  {zeros}".rstrip())

    filters = model.features[0].weight.detach().cpu()[:, 0]  # (32, 1, 3, 3) -> (32, 3, 3)
    strength, direction, edge_share = edge_slope(filters)
    print(f"the {NUM_STRONGEST} filters with the steepest slope:")
    strongest = strength.argsort(descending=True)[:NUM_STRONGEST].tolist()
    for i in strongest:
        # エッジは重みの傾きと直角に走る。向きが 180 度違うフィルタは、明暗が逆の同じエッジに反応する
        edges = EDGES[round(direction[i].item() / 45) % 4]
        print(f"filter {i:2d}: slope {strength[i]:.2f} toward {direction[i]:4.0f} degrees, "
              f"responds to {edges} ({edge_share[i]:.0%} of the filter)")

    fig = draw(image, filters, outputs)
    fig.suptitle(f"What the CNN sees: test image #{args.start_index}, label {label}")
    save_figure(fig, args.output)
    return {"outputs": outputs, "filters": filters, "strongest": strongest, "direction": direction, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
