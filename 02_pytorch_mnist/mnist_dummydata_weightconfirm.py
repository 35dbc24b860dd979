"""重みの更新を内側から観察する。乱数の画像とラベルを MLP に丸暗記させ、fc1.weight の平均を追う。

前のレッスン（mnistview100.py）との違い: 1 回の更新で重みがどれだけ動くかを測り、-(学習率) × (勾配) と一致することを
確かめる。モデルは mnist.py の MLP で、データは乱数なので読み込まない。

実行: python mnist_dummydata_weightconfirm.py
結果（2 コアの CPU で約 4 秒）:
    memorized: 64 of 64 random labels
試してみよう:
    - LEARNING_RATE を 0.01 にすると、重みの平均の動きと損失の下がり方はどうなるか。
    - BATCH_SIZE を 1000 に増やすと丸暗記できるか。STEPS も 10 倍にするとどうか。
    - torch.optim.SGD を AdamW に変えると、最後の 2 列はなぜ一致しなくなるか。
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

OUTPUT = Path(__file__).resolve().parent.parent / "images" / "mnist_dummydata_weightconfirm.png"

BATCH_SIZE = 64  # 丸暗記させる画像の枚数
LEARNING_RATE = 0.1
STEPS = 300
LOG_INTERVAL = 10  # 最初の 10 ステップより後で、値を表示する間隔（ステップ）


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


def train(model, images, labels):
    """同じバッチで STEPS 回更新し、各ステップの記録 (損失, 重みの平均, 勾配の平均, 平均の変化) のリストを返す。"""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    weight = model.fc1.weight
    records = []
    model.train()
    print("step    loss  mean weight    mean grad  mean change  -lr * mean grad")
    for step in range(1, STEPS + 1):
        logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        before = weight.detach().clone()
        optimizer.step()
        mean_gradient = weight.grad.mean().item()  # zero_grad() の前に読む
        optimizer.zero_grad()

        after = weight.detach()
        mean_change = (after - before).mean().item()
        records.append((loss.item(), after.mean().item(), mean_gradient, mean_change))
        if step <= 10 or step % LOG_INTERVAL == 0:
            print(f"{step:4d}  {loss.item():6.4f}  {after.mean().item():+11.4e}  {mean_gradient:+11.4e}  "
                  f"{mean_change:+11.4e}  {-LEARNING_RATE * mean_gradient:+15.4e}")
    return records


def draw(records):
    """損失と、fc1.weight の平均の移り変わりを描いた Figure を返す。"""
    losses, weight_means, _, _ = zip(*records)
    steps = range(1, len(records) + 1)
    fig, (loss_axes, weight_axes) = plt.subplots(1, 2, figsize=(10, 4), dpi=100, layout="constrained")
    loss_axes.plot(steps, losses, color="#0072B2")
    loss_axes.set(xlabel="step", ylabel="cross-entropy loss", yscale="log", title="Loss on random labels")
    weight_axes.plot(steps, weight_means, color="#D55E00")
    weight_axes.set(xlabel="step", ylabel="mean of fc1.weight", title="Mean of fc1.weight")
    for axes in (loss_axes, weight_axes):
        axes.grid(alpha=0.3)
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
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT,
                        help="図の保存先（既定: images/mnist_dummydata_weightconfirm.png）")
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

    # ラベルは画像と無関係な乱数である。規則がなくても、この枚数なら MLP は丸暗記できる。
    # だから訓練データでの損失が小さいだけでは、学べたとは言えない
    images = torch.rand(BATCH_SIZE, 1, 28, 28).to(device)
    labels = torch.randint(10, (BATCH_SIZE,)).to(device)
    model = MLP().to(device)
    records = train(model, images, labels)

    with torch.no_grad():
        correct = (model(images).argmax(dim=1) == labels).sum().item()
    print(f"memorized: {correct} of {BATCH_SIZE} random labels")
    fig = draw(records)
    save_figure(fig, args.output)
    return {"model": model, "records": records, "correct": correct, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
