"""線形回帰で、データに隠れた重みとバイアスを訓練によって見つける。

前のレッスン（simplenet.py）との違い: 重みが初めて動く。順伝播、損失、逆伝播、更新、勾配の消去の 5 行を繰り返すと、
nn.Linear の値が、データを作ったときの値へ近づいていく。

実行: python learn.py
結果（2 コアの CPU で約 3 秒）:
    epoch 100  loss 0.0091
             true  learned  least squares
    w[0]   2.0000   2.0074         2.0074
試してみよう:
    - NOISE_STD を 1.0 にすると、損失はどこで下げ止まるか。
    - LEARNING_RATE を 0.01 や 1.1 にすると、損失の曲線はどうなるか。
    - NUM_SAMPLES を 10 に減らすと、学んだ重みは真の重みからどれだけ外れるか。損失はどうなるか。
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

OUTPUT = Path(__file__).resolve().parent.parent / "images" / "learn.png"

TRUE_WEIGHT = [2.0, -3.0, 0.5]  # 訓練で見つけたい値
TRUE_BIAS = 1.0
NOISE_STD = 0.1  # 目標値に混ぜる雑音の標準偏差。予測できないので、損失は雑音の分散の近くで止まる
NUM_SAMPLES = 500
LEARNING_RATE = 0.1
EPOCHS = 100
LOG_INTERVAL = 10  # 損失を表示する間隔（エポック）
NEW_SAMPLE = [1.0, 2.0, 3.0]


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


def make_data():
    """入力 x (N, 3) と目標値 y (N, 1) を作る。y は x の線形結合に、平均 0 の雑音を足したものである。"""
    x = torch.randn(NUM_SAMPLES, 3)
    noise = NOISE_STD * torch.randn(NUM_SAMPLES, 1)
    y = x @ torch.tensor(TRUE_WEIGHT).unsqueeze(1) + TRUE_BIAS + noise  # (N, 3) @ (3, 1) -> (N, 1)
    return x, y


def train(model, x, y):
    """全データを一度に使って EPOCHS 回更新し、更新前の損失のリストを返す。"""
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for epoch in range(1, EPOCHS + 1):
        prediction = model(x)  # (N, 3) -> (N, 1)
        loss = criterion(prediction, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        losses.append(loss.item())
        if epoch == 1 or epoch % LOG_INTERVAL == 0:
            print(f"epoch {epoch:3d}  loss {loss.item():.4f}")
    return losses


def least_squares(x, y):
    """損失を最小にする重み (3,) とバイアス () を、訓練せずに方程式から求める。"""
    ones = torch.ones(len(x), 1)  # 1 の列に掛かる係数がバイアスになる
    solution = torch.linalg.lstsq(torch.cat([x, ones], dim=1), y).solution  # (4, 1)
    return solution[:3, 0], solution[3, 0]


def draw(losses, y, prediction):
    """損失の曲線と、予測値と目標値の散布図を並べた Figure を返す。"""
    fig, (loss_axes, fit_axes) = plt.subplots(1, 2, figsize=(10, 4), dpi=100, layout="constrained")
    loss_axes.plot(range(1, len(losses) + 1), losses, color="#0072B2", label="training loss")
    loss_axes.axhline(NOISE_STD**2, color="#D55E00", linestyle="--", label="noise variance")
    loss_axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log", title="Loss")
    limits = [y.min().item(), y.max().item()]
    fit_axes.plot(limits, limits, color="#D55E00", linestyle="--", label="prediction = target")
    fit_axes.scatter(y.numpy(), prediction.numpy(), s=8, color="#0072B2", alpha=0.5, label="samples")
    fit_axes.set(xlabel="target value", ylabel="predicted value", title="Prediction after training")
    for axes in (loss_axes, fit_axes):
        axes.grid(alpha=0.3)
        axes.legend()
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
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="図の保存先（既定: images/learn.png）")
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

    x, y = make_data()
    model = nn.Linear(3, 1).to(device)
    losses = train(model, x.to(device), y.to(device))

    learned = [*model.weight[0].tolist(), model.bias.item()]
    solved_weight, solved_bias = least_squares(x, y)
    solved = [*solved_weight.tolist(), solved_bias.item()]
    print("         true  learned  least squares")
    for name, *values in zip(["w[0]", "w[1]", "w[2]", "b"], [*TRUE_WEIGHT, TRUE_BIAS], learned, solved):
        print("{:4s} {:8.4f} {:8.4f} {:14.4f}".format(name, *values))
    difference = max(abs(a - b) for a, b in zip(learned, solved))
    print(f"largest difference between learned and least squares: {difference:.1e}")
    print(f"final loss {losses[-1]:.4f}, noise variance {NOISE_STD**2:.4f}")

    with torch.no_grad():  # ここからは予測だけなので、勾配はいらない
        new_prediction = model(torch.tensor([NEW_SAMPLE]).to(device)).item()
        prediction = model(x.to(device)).cpu()
    true_value = sum(w * value for w, value in zip(TRUE_WEIGHT, NEW_SAMPLE)) + TRUE_BIAS
    print(f"new sample {NEW_SAMPLE}: predicted {new_prediction:.4f}, without noise {true_value:.4f}")

    fig = draw(losses, y, prediction)
    save_figure(fig, args.output)
    return {"losses": losses, "learned": learned, "solved": solved, "new_prediction": new_prediction, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
