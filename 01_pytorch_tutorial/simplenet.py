"""全結合層（nn.Linear）が何を計算しているのかを、数値で確かめる。

ここが出発点である。入力に重みを掛けてバイアスを足すだけの層を、PyTorch と手計算の両方で動かす。

実行: python simplenet.py
結果（2 コアの CPU で約 2 秒）:
    ReLU set 6 of 10 values to 0, at [row, column] [[0, 0], [0, 3], [0, 4], [1, 0], [1, 2], [1, 3]]
    output shape: (4, 2)
試してみよう:
    - --seed を変えると、ReLU が 0 にする位置も変わる。
    - main の nn.Linear(3, 2) を nn.Linear(300, 2) にすると、重みの範囲はどれだけ狭くなるか。
    - F.relu を torch.sigmoid に変えると、出力はどんな範囲に収まるか。0 になる値は残るか。
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZE = 2  # SimpleNet に一度に通すサンプルの数


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


class SimpleNet(nn.Module):
    """全結合層 1 つと ReLU だけのネットワーク。"""

    def __init__(self, in_features=10, out_features=5):
        super().__init__()
        self.fc = nn.Linear(in_features, out_features)

    def forward(self, x):
        """入力 (B, in_features) -> 出力 (B, out_features)、値は 0 以上"""
        x = self.fc(x)  # (B, 10) -> (B, 5)
        return F.relu(x)  # (B, 5)、負の値は 0 になる


def show(name, tensor):
    """テンソルの名前、形、値を表示する。"""
    print(f"{name}, shape {tuple(tensor.shape)}:\n{tensor.detach().cpu()}")


def initial_bound(layer):
    """nn.Linear の初期値の範囲 k を返す。重みとバイアスは [-k, k] の一様分布から選ばれ、k = 1/√in_features である。

    出典: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    return 1 / math.sqrt(layer.in_features)


def parse_args(argv):
    """コマンドラインの引数を調べて返す。正しくない引数は 1 行で知らせて終わる（SystemExit）。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse の英語のエラーを、日本語の 1 行に置き換える
    parser.error = lambda message: sys.exit(f"エラー: 引数が正しくない（{message}）。使い方は --help で見られる")
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("--seed", type=int, default=0, help="乱数のシード（既定: 0）")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**32:
        parser.error("--seed は 0 以上 2**32 未満の整数にする")
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    torch.manual_seed(args.seed)
    print(f"device: {device}")

    print("\n== nn.Linear(10, 5) and ReLU ==")
    # CPU で作ってから移すと、どのデバイスでも同じシードから同じ値が出る
    net = SimpleNet().to(device)
    samples = torch.randn(BATCH_SIZE, net.fc.in_features).to(device)
    with torch.no_grad():  # 学習しないので、勾配の準備はいらない
        before_relu = net.fc(samples)
        after_relu = net(samples)
    show("input", samples)
    show("before ReLU", before_relu)
    show("output after ReLU", after_relu)
    zeroed = (after_relu == 0).nonzero().tolist()
    print(f"ReLU set {len(zeroed)} of {after_relu.numel()} values to 0, at [row, column] {zeroed}")

    layer = nn.Linear(3, 2).to(device)
    print(f"\n== nn.Linear({layer.in_features}, {layer.out_features}) by hand ==")
    show("weight", layer.weight)
    show("bias", layer.bias)
    bound = initial_bound(layer)
    largest = max(layer.weight.abs().max(), layer.bias.abs().max()).item()
    print(f"initial values are uniform in +-1/sqrt({layer.in_features}) = +-{bound:.4f}; "
          f"the largest here is {largest:.4f}")

    x = torch.randn(4, layer.in_features).to(device)
    with torch.no_grad():
        y = layer(x)
        by_hand = x @ layer.weight.T + layer.bias  # (4, 3) @ (3, 2) + (2,) -> (4, 2)
    show("x", x)
    show("layer(x)", y)
    show("x @ W.T + b", by_hand)
    difference = (y - by_hand).abs().max().item()
    print(f"output shape: {tuple(y.shape)}")
    print(f"largest difference from x @ W.T + b: {difference:.1e}")
    return {"before_relu": before_relu, "after_relu": after_relu, "zeroed": zeroed, "layer": layer,
            "bound": bound, "x": x, "y": y, "by_hand": by_hand, "difference": difference}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
