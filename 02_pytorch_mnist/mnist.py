"""MNIST の手書き数字で、本物の画像分類器を訓練する。

前のレッスン（mnist_dummydata_weightconfirm.py）との違い: 60,000 枚の画像をミニバッチに分けて学び、学習率をスケジュールで動かし、
重みをファイルに残す。モデルは全結合の MLP と、畳み込みの CNN から選ぶ。

実行: python mnist.py （CNN は python mnist.py -m cnn）
結果（2 コアの CPU で MLP は約 12 秒、CNN は約 65 秒）:
    model: mlp (79510 parameters)
    epoch 10/10  train loss 0.0193  test loss 0.0584  test accuracy 98.19%
試してみよう:
    - --lr を 10 倍や 1/10 にし、-w try.pth -o try.png を付けると、学習曲線はどう変わるか。
    - -m cnn -e 1 -w try.pth -o try.png だけで、CNN はどこまで届くか。
    - MLP の 100 を 2 か所とも 20 に減らして同じように訓練すると、正解率はいくつ下がるか。
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torchvision.datasets import MNIST

HERE = Path(__file__).resolve().parent
DATA_DIR = HERE / "data"
IMAGES_DIR = HERE.parent / "images"

EPOCHS = {"mlp": 10, "cnn": 3}  # 訓練データを何周するか
BATCH_SIZE = {"mlp": 128, "cnn": 64}  # 1 回の更新に使う画像の枚数
LEARNING_RATE = {"mlp": 8e-3, "cnn": 4e-3}  # スケジュールの頂点での学習率
WEIGHT_DECAY = 0.1  # 重みを 0 へ引き戻す強さ。丸暗記を抑える
LOG_INTERVAL = 100  # 進み具合を表示する間隔（バッチ）
EVAL_BATCH_SIZE = 500  # 評価は勾配を残さないので、まとめて流せる


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


def train_one_epoch(model, train_loader, optimizer, scheduler):
    """訓練データを 1 周し、バッチごとの損失（float のリスト）と、全画像の平均損失（float）を返す。"""
    model.train()
    batch_losses = []
    total_loss = 0.0
    for step, (images, labels) in enumerate(train_loader, start=1):
        logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # 学習率は、エポックごとではなく更新のたびに動かす

        # item() は GPU の計算が終わるのを待つので、表示のときだけ呼ぶ
        batch_losses.append(loss.detach())
        total_loss += loss.detach() * len(images)  # 最後のバッチは小さいので、枚数で重み付けする
        if step % LOG_INTERVAL == 0:
            print(f"  batch {step}/{len(train_loader)}  loss {loss.item():.4f}", flush=True)
    return torch.stack(batch_losses).tolist(), total_loss.item() / len(train_loader.dataset)


@torch.no_grad()
def evaluate(model, images, labels):
    """全画像の平均損失（float）と、予測した数字 (N,) を返す。"""
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(EVAL_BATCH_SIZE)])  # (N, 10)
    return F.cross_entropy(logits, labels).item(), logits.argmax(dim=1)


def confused_pairs(predictions, labels, count=3):
    """多かった読み違いを (正解, 予測, 枚数) のリストで、多い順に count 個まで返す。"""
    predictions, labels = predictions.cpu(), labels.cpu()  # unique(dim=0) は、MPS では使えない版がある
    wrong = predictions != labels
    pairs = torch.stack([labels[wrong], predictions[wrong]], dim=1)
    unique_pairs, numbers = pairs.unique(dim=0, return_counts=True)
    order = numbers.argsort(descending=True, stable=True)[:count].tolist()
    return [(*unique_pairs[i].tolist(), numbers[i].item()) for i in order]


def draw(history):
    """損失とテスト正解率の移り変わりを描いた Figure を返す。"""
    fig, (loss_axes, accuracy_axes) = plt.subplots(1, 2, figsize=(10, 4), dpi=100, layout="constrained")
    epochs = range(1, len(history["test_loss"]) + 1)
    batches_per_epoch = len(history["batch_loss"]) // len(epochs)
    steps = [step / batches_per_epoch for step in range(1, len(history["batch_loss"]) + 1)]
    loss_axes.plot(steps, history["batch_loss"], color="0.8", linewidth=0.5, label="training, each batch")
    loss_axes.plot(epochs, history["train_loss"], "o-", color="#0072B2", label="training, epoch mean")
    loss_axes.plot(epochs, history["test_loss"], "s--", color="#D55E00", label="test")
    loss_axes.set(xlabel="epoch", ylabel="cross-entropy loss", title="Loss", yscale="log")
    accuracy_axes.plot(epochs, history["test_accuracy"], "s--", color="#D55E00", label="test")
    accuracy_axes.set(xlabel="epoch", ylabel="accuracy (%)", title="Accuracy")
    for axes in (loss_axes, accuracy_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return fig


def save_figure(fig, path):
    """図を path に保存し、画面のある環境ではウィンドウにも表示する（閉じるまで待つ）。"""
    fig.savefig(path)
    print(f"saved: {path}", flush=True)
    if plt.get_backend().lower() != "agg":  # agg は画面のない環境で選ばれる
        plt.show()


def save_weights(model, path):
    """model の state_dict を path に保存する。途中で止まっても、path には前の重みがそのまま残る。

    隣の一時ファイルに書き終えてから、os.replace で一瞬のうちに置き換える。

    Raises:
        SystemExit: ディスクが一杯などで書けないとき。
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(model.state_dict(), file)
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        sys.exit(f"エラー: 重みを {path} に保存できない（前の重みは元のまま）。ディスクの空きを確かめる")
    finally:
        temporary.unlink(missing_ok=True)
    print(f"saved: {path}", flush=True)


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
    parser.add_argument("-m", "--model-type", choices=MODELS, default="mlp", help="モデルの種類（既定: mlp）")
    parser.add_argument("-e", "--epochs", type=int, help="訓練データを何周するか（既定: mlp は 10、cnn は 3）")
    parser.add_argument("-b", "--batch-size", type=int, help="バッチの枚数（既定: mlp は 128、cnn は 64）")
    parser.add_argument("--lr", type=float, help="学習率の頂点（既定: mlp は 8e-3、cnn は 4e-3）")
    parser.add_argument("-w", "--weights", type=Path, help="重みの保存先（既定: mnist.py の隣の mnist_モデル.pth）")
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("--seed", type=int, default=0, help="乱数のシード（既定: 0）")
    parser.add_argument("-o", "--output", type=Path, help="図の保存先（既定: images/mnist_モデル.png）")
    args = parser.parse_args(argv)

    args.epochs = EPOCHS[args.model_type] if args.epochs is None else args.epochs
    args.batch_size = BATCH_SIZE[args.model_type] if args.batch_size is None else args.batch_size
    args.lr = LEARNING_RATE[args.model_type] if args.lr is None else args.lr
    args.weights = args.weights or HERE / f"mnist_{args.model_type}.pth"
    args.output = args.output or IMAGES_DIR / f"mnist_{args.model_type}.png"
    if not 1 <= args.epochs <= 1000:
        parser.error("--epochs は 1 以上 1000 以下の整数にする")
    if not 1 <= args.batch_size <= 60000:
        parser.error("--batch-size は 1 以上 60000 以下の整数にする")
    if not 0 < args.lr <= 1:
        parser.error("--lr は 0 より大きく 1 以下の数にする")
    if not 0 <= args.seed < 2**32:
        parser.error("--seed は 0 以上 2**32 未満の整数にする")
    if args.output.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error("--output の拡張子は .png、.jpg、.pdf、.svg のどれかにする")
    check_writable(args.weights)
    check_writable(args.output)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    print(f"device: {device}")

    train_images, train_labels = (tensor.to(device) for tensor in load_mnist(train=True))
    test_images, test_labels = (tensor.to(device) for tensor in load_mnist(train=False))
    # channels_last は画素ごとにチャネルを隣り合わせに置く並べ方で、畳み込みが速くなる。MLP には影響しない
    model = MODELS[args.model_type]().to(device, memory_format=torch.channels_last)
    print(f"data: {len(train_images)} training images, {len(test_images)} test images")
    print(f"model: {args.model_type} ({sum(p.numel() for p in model.parameters())} parameters)")

    # 1 枚ずつ取り出して積み重ねる代わりに、1 バッチ分の番号を渡して、テンソルからまとめて取り出す（batch_size=None）
    # 出典: https://docs.pytorch.org/docs/stable/data.html#disable-automatic-batching
    dataset = TensorDataset(train_images, train_labels)
    batch_sampler = BatchSampler(RandomSampler(dataset), args.batch_size, drop_last=False)
    train_loader = DataLoader(dataset, sampler=batch_sampler, batch_size=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=WEIGHT_DECAY)
    # 学習率を最初の 3 割で頂点まで上げ、残りでほぼ 0 まで下げる。出典: https://arxiv.org/abs/1708.07120
    total_steps = args.epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=total_steps)

    history = {"batch_loss": [], "train_loss": [], "test_loss": [], "test_accuracy": []}
    for epoch in range(1, args.epochs + 1):
        batch_losses, train_loss = train_one_epoch(model, train_loader, optimizer, scheduler)
        test_loss, predictions = evaluate(model, test_images, test_labels)
        test_accuracy = 100 * (predictions == test_labels).float().mean().item()
        print(f"epoch {epoch}/{args.epochs}  train loss {train_loss:.4f}  "
              f"test loss {test_loss:.4f}  test accuracy {test_accuracy:.2f}%", flush=True)
        if not math.isfinite(test_loss):
            sys.exit("エラー: 損失が発散した。重みは保存しない。--lr を小さくする")
        history["batch_loss"] += batch_losses
        history["train_loss"].append(train_loss)
        history["test_loss"].append(test_loss)
        history["test_accuracy"].append(test_accuracy)

    save_weights(model, args.weights)
    print(f"test accuracy: {test_accuracy:.2f}%")
    pairs = confused_pairs(predictions, test_labels)
    print("most confused: " + ", ".join(f"{label} read as {prediction} ({n})" for label, prediction, n in pairs))
    print(f"elapsed: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    fig = draw(history)
    save_figure(fig, args.output)
    return {"model": model, "history": history, "pairs": pairs, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("中断した。保存済みの重みは壊れていない")
