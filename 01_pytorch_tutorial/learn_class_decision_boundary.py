"""犬と猫の分類器が引いた境界線を、図に描いて確かめる。

前のレッスン（learn_classify.py）との違い: データと分類器は learn_classify.py と同じである。平面を細かい格子に区切り、
すべての点で P(cat) を計算して塗り分けると、分類器の判断が目に見える。

実行: python learn_class_decision_boundary.py
結果（2 コアの CPU で約 4 秒）:
    boundary: whiskers = 1.17 * muzzle -0.82
試してみよう:
    - CAT_STD を大きくすると、誤って分類される点はどこに現れるか。
    - EPOCHS を 20 にすると、境界の両側の色の変わり方はどうなるか。
    - 2 つのクラスの平均を同じひげの長さにすると、境界の傾きはどうなるか。
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

OUTPUT = Path(__file__).resolve().parent.parent / "images" / "learn_class_decision_boundary.png"

# 架空のデータである。特徴量は鼻づらの長さとひげの長さ（どちらも cm）
CLASSES = ["dog", "cat"]
DOG_MEAN, DOG_STD = [7.5, 4.0], [1.3, 1.2]
CAT_MEAN, CAT_STD = [3.5, 6.5], [0.9, 1.2]
NUM_PER_CLASS = 500
NUM_TRAIN = 600  # 残りの 400 匹は訓練に使わず、正解率を測るために取っておく
LEARNING_RATE = 0.1
EPOCHS = 200
LOG_INTERVAL = 20  # 損失を表示する間隔（エポック）
GRID_SIZE = 200  # 格子の 1 辺の点の数


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
    """特徴量 (N, 2)（単位は cm）とクラスの番号 (N,) を作り、訓練用と検証用に分けて返す。"""
    dogs = torch.tensor(DOG_MEAN) + torch.tensor(DOG_STD) * torch.randn(NUM_PER_CLASS, 2)
    cats = torch.tensor(CAT_MEAN) + torch.tensor(CAT_STD) * torch.randn(NUM_PER_CLASS, 2)
    features = torch.cat([dogs, cats])
    labels = torch.tensor([0] * NUM_PER_CLASS + [1] * NUM_PER_CLASS)
    order = torch.randperm(len(features))  # 分ける前に、犬と猫を混ぜる
    train, held_out = order[:NUM_TRAIN], order[NUM_TRAIN:]
    return features[train], labels[train], features[held_out], labels[held_out]


@torch.no_grad()
def accuracy(model, features, labels):
    """ロジットの最も大きいクラスが正解と一致した割合を、% で返す。"""
    model.eval()
    predictions = model(features).argmax(dim=1)  # (N, 2) -> (N,)
    return 100 * (predictions == labels).float().mean().item()


def train(model, features, labels, held_out_features, held_out_labels):
    """全データを一度に使って EPOCHS 回更新し、途中の損失と正解率を表示する。"""
    criterion = nn.CrossEntropyLoss()  # ロジットを受け取り、softmax はこの中で行う
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for epoch in range(1, EPOCHS + 1):
        model.train()  # Dropout などを訓練用に切り替える。nn.Linear では変わらないが、いつも書く
        logits = model(features)  # (N, 2) -> (N, 2)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        if epoch == 1 or epoch % LOG_INTERVAL == 0:
            print(f"epoch {epoch:3d}  loss {loss.item():.4f}  "
                  f"train accuracy {accuracy(model, features, labels):.1f}%  "
                  f"held-out accuracy {accuracy(model, held_out_features, held_out_labels):.1f}%")


def boundary_line(model):
    """P(cat) = 0.5 となる直線 whiskers = slope * muzzle + intercept の slope と intercept を返す。

    2 つのロジットが等しい点の集まりなので、重みとバイアスの差 w, b から
    w[0] * muzzle + w[1] * whiskers + b = 0 を解けばよい。
    """
    w = (model.weight[1] - model.weight[0]).tolist()
    b = (model.bias[1] - model.bias[0]).item()
    return -w[0] / w[1], -b / w[1]


@torch.no_grad()
def cat_probability_grid(model, features, device):
    """features (N, 2) を囲む格子の座標と、そこでの P(cat) を、3 つの (GRID_SIZE, GRID_SIZE) の配列で返す。"""
    model.eval()
    low = (features.min(dim=0).values - 0.5).tolist()
    high = (features.max(dim=0).values + 0.5).tolist()
    muzzle, whiskers = np.meshgrid(
        np.linspace(low[0], high[0], GRID_SIZE, dtype=np.float32),
        np.linspace(low[1], high[1], GRID_SIZE, dtype=np.float32),
    )
    points = torch.from_numpy(np.stack([muzzle.ravel(), whiskers.ravel()], axis=1))  # (GRID_SIZE**2, 2)
    probabilities = model(points.to(device)).softmax(dim=1)[:, 1]  # (GRID_SIZE**2,)
    return muzzle, whiskers, probabilities.cpu().numpy().reshape(muzzle.shape)


def draw(muzzle, whiskers, probabilities, features, labels, predictions):
    """P(cat) の塗り分け、境界線、訓練用の点を描いた Figure を返す。誤って分類された点は丸で囲む。"""
    fig, axes = plt.subplots(figsize=(8, 6), dpi=100, layout="constrained")
    contour = axes.contourf(muzzle, whiskers, probabilities, levels=np.linspace(0, 1, 11), cmap="PuOr", alpha=0.5)
    fig.colorbar(contour, label="P(cat)")
    axes.contour(muzzle, whiskers, probabilities, levels=[0.5], colors="black")
    for index, (marker, color) in enumerate([("o", "#B35806"), ("^", "#542788")]):
        points = features[labels == index].numpy()
        axes.scatter(points[:, 0], points[:, 1], s=18, marker=marker, color=color,
                     edgecolors="white", linewidths=0.4, label=CLASSES[index])
    wrong = features[predictions != labels].numpy()
    axes.scatter(wrong[:, 0], wrong[:, 1], s=110, facecolors="none", edgecolors="black", label="misclassified")
    axes.plot([], [], color="black", label="P(cat) = 0.5")
    axes.set(xlabel="muzzle length (cm)", ylabel="whisker length (cm)", title="Decision boundary: dog or cat")
    fig.legend(loc="outside lower center", ncols=4)  # 点を隠さないように、図の外に置く
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
                        help="図の保存先（既定: images/learn_class_decision_boundary.png）")
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

    features, labels, held_out_features, held_out_labels = (tensor.to(device) for tensor in make_data())
    print(f"data: {len(features)} for training, {len(held_out_features)} held out")
    model = nn.Linear(2, 2).to(device)  # 入力は 2 つの特徴量、出力は 2 つのクラスのロジット
    train(model, features, labels, held_out_features, held_out_labels)

    slope, intercept = boundary_line(model)
    print(f"boundary: whiskers = {slope:.2f} * muzzle {intercept:+.2f}")
    with torch.no_grad():
        predictions = model(features).argmax(dim=1).cpu()  # (N, 2) -> (N,)
    features, labels = features.cpu(), labels.cpu()
    print(f"misclassified: {(predictions != labels).sum().item()} of {len(labels)} training animals")

    grid = cat_probability_grid(model, features, device)
    fig = draw(*grid, features, labels, predictions)
    save_figure(fig, args.output)
    return {"model": model, "slope": slope, "intercept": intercept, "grid": grid,
            "features": features, "labels": labels, "predictions": predictions, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
