"""速さを、よくある書き方や計算の下限と並べて測る。手で実行し、pytest には含めない。

比べるものを交互に測って中央値を取るので、マシンが混んでいても、比は大きく狂わない。
スレッド数は PyTorch の既定に任せる。重みや画像は一時フォルダに書き、リポジトリには何も書かない。

実行: python tests/benchmark.py （一部だけなら python tests/benchmark.py --only epoch inference）
結果: Markdown の表が stdout に、進み具合が stderr に出る。os.wait4 を使うので Windows では動かない。
"""

import argparse
import ast
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "02_pytorch_mnist"))
sys.dont_write_bytecode = True  # レッスンの隣に __pycache__ を作らない
os.environ["MPLBACKEND"] = "Agg"  # 子プロセスのレッスンも、窓を開いて待たない

import load_and_infer
import mnist

LESSONS = {path.stem: path for path in sorted(ROOT.glob("0*_*/*.py"))}
LONG_LESSONS = {"mnist", "minllm_addition"}  # 訓練が長いので 1 回だけ測る
COMMON_BATCH_SIZE = 64
COMMON_MAX_EPOCHS = 15
TARGET = {"mlp": 98.0, "cnn": 99.2}  # よくある書き方は、このテスト正解率（%）に届いたら終わる
NUM_TRAIN = 60_000
EPOCH_IMAGES = {"mlp": NUM_TRAIN, "cnn": 150 * 64}  # CNN の 1 エポックは長いので、一部を測って引き延ばす
SINGLE_IMAGES = 500  # 1 枚ずつの推論に使う枚数

# 最大メモリの記録は、起動した側のプロセスの大きさを下回らない。そこで、torch を読んだこのプロセスからではなく、
# 小さなプロセスから起動し、結果を stderr の最後の行で受け取る
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_python(*args):
    """別のプロセスで python を最後まで実行し、(秒, 最大メモリ MB, stdout) を返す。"""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, *map(str, args)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    if result.returncode != 0:
        sys.exit(f"エラー: {command[4:]} が失敗した\n{result.stderr}")
    seconds, max_rss = map(float, result.stderr.splitlines()[-1].split())
    return seconds, max_rss * (1 if sys.platform == "darwin" else 1024) / 1e6, result.stdout  # Linux は KiB 単位


def run_training(*args):
    """訓練するプロセスを実行し、(秒, エポック数, 最後の正解率 %) を返す。"""
    seconds, _, stdout = run_python(*args)
    epoch, accuracy = re.findall(r"^epoch (\d+)/.*test accuracy ([\d.]+)%", stdout, re.MULTILINE)[-1]
    return seconds, int(epoch), float(accuracy)


def timed(device, function, *args):
    """function(*args) の秒数を返す。GPU は計算の終わりを待たずに次へ進むので、前後で待ち合わせる。"""
    synchronize = getattr(torch, device.type).synchronize  # torch.cpu.synchronize は何もしない
    synchronize()
    start = time.perf_counter()
    function(*args)
    synchronize()
    return time.perf_counter() - start


def alternate(runs, repeats):
    """{名前: 関数} を順番に 1 回ずつ、それを repeats 周し、{名前: 返した数値の組の、要素ごとの中央値} を返す。

    関数は、何周目か（0 から）を受け取る。
    """
    results = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, run in runs.items():
            print(f"{repeat + 1}/{repeats}", *name, file=sys.stderr, flush=True)
            results[name].append(run(repeat))
    return {name: [statistics.median(values) for values in zip(*rows)] for name, rows in results.items()}


def print_table(title, note, header, rows):
    """Markdown の表を出す。長い計測の途中でも、終わった表は読めるように、すぐ書き出す。"""
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    print(f"\n## {title}\n\n{note}\n\n{table}", flush=True)


def common_loader(train, num_images=None):
    """1 枚ずつ変換する DataLoader。訓練データはシャッフルし、先頭の num_images 枚（None なら全部）を使う。"""
    dataset = torchvision.datasets.MNIST(mnist.DATA_DIR, train=train, transform=torchvision.transforms.ToTensor())
    if not train:
        return DataLoader(dataset, batch_size=mnist.EVAL_BATCH_SIZE)
    # num_samples が None なら shuffle=True と同じである
    return DataLoader(dataset, COMMON_BATCH_SIZE, sampler=RandomSampler(dataset, num_samples=num_images))


def common_epoch(model, optimizer, loader, device):
    """よくある書き方で、訓練データを 1 周する。"""
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def common_training(model_type, seed, device):
    """よくある書き方で、目標の正解率まで訓練する。mnist.py のプロセスと比べる、別のプロセスの中身である。"""
    torch.manual_seed(seed)
    train_loader, test_loader = common_loader(train=True), common_loader(train=False)
    model = mnist.MODELS[model_type]().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, COMMON_MAX_EPOCHS + 1):
        common_epoch(model, optimizer, train_loader, device)
        model.eval()
        with torch.no_grad():
            correct = sum((model(images.to(device)).argmax(dim=1) == labels.to(device)).sum().item()
                          for images, labels in test_loader)
        accuracy = 100 * correct / len(test_loader.dataset)
        print(f"epoch {epoch}/{COMMON_MAX_EPOCHS}  test accuracy {accuracy:.2f}%", flush=True)
        if accuracy >= TARGET[model_type]:
            break


def benchmark_training(args):
    """mnist.py と、目標の正解率に届くまでのよくある書き方を、プロセスの始めから終わりまで比べる。"""
    rows = []
    for m in TARGET:
        ours = [LESSONS["mnist"], "-m", m, "-d", args.device, "-w", "out.pth", "-o", "out.png", "--seed"]
        common = [__file__, "-d", args.device, "--common", m]
        medians = alternate({
            (m, "ours"): lambda seed: run_training(*ours, seed),
            (m, "common"): lambda seed: run_training(*common, seed),
        }, args.cnn_repeats if m == "cnn" else args.repeats)
        for name, (seconds, epochs, accuracy) in medians.items():
            ratio = seconds / medians[m, "common"][0]
            rows.append([*name, f"{seconds:.1f}", f"{epochs:g}", f"{accuracy:.2f}%", f"{seconds / epochs:.2f}",
                         f"{ratio:.2f}"])
    print_table(
        "Training, whole process",
        f"ours: `mnist.py`, all its epochs. common: per-sample ToTensor, batch {COMMON_BATCH_SIZE}, Adam 1e-3, until "
        f"{TARGET['mlp']}% (mlp) or {TARGET['cnn']}% (cnn), at most {COMMON_MAX_EPOCHS} epochs. Medians of "
        f"{args.repeats} (mlp) and {args.cnn_repeats} (cnn), a new seed each. "
        "s/epoch includes start-up and evaluation.",
        ["model", "recipe", "seconds", "epochs", "accuracy", "s/epoch", "seconds / common"], rows,
    )


def our_epoch_seconds(model_type, batch_size, images, labels, device):
    """mnist.py の main と同じ設定で、EPOCH_IMAGES 枚を訓練する秒数を返す。"""
    model = mnist.MODELS[model_type]().to(device, memory_format=torch.channels_last)
    dataset = TensorDataset(images, labels)
    sampler = RandomSampler(dataset, num_samples=EPOCH_IMAGES[model_type])
    loader = DataLoader(dataset, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)
    max_lr, total_steps = mnist.LEARNING_RATE[model_type], mnist.EPOCHS[model_type] * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=max_lr, weight_decay=mnist.WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=total_steps)
    with contextlib.redirect_stdout(None):
        return timed(device, mnist.train_one_epoch, model, loader, optimizer, scheduler)


def common_epoch_seconds(model_type, loader, device):
    """よくある書き方で、loader の EPOCH_IMAGES 枚を訓練する秒数を返す。"""
    model = mnist.MODELS[model_type]().to(device)
    return timed(device, common_epoch, model, torch.optim.Adam(model.parameters(), lr=1e-3), loader, device)


def floor_seconds(model_type, batch_size, device):
    """EPOCH_IMAGES 枚の訓練に要る行列積だけを、用意済みのメモリに書いて計算する秒数を返す。"""
    products = []

    def add_products(layer, _, output):
        N, K = layer.weight.flatten(start_dim=1).shape  # 畳み込みは、im2col にした行列積として数える
        M = output.numel() // N
        x, weight, gradient = (torch.randn(shape, device=device) for shape in ((M, K), (N, K), (M, N)))
        if products:  # 最初の層の入力は画像なので、入力の勾配は要らない
            products.append((gradient, weight, torch.empty_like(x)))
        products.append((x, weight.T, torch.empty_like(gradient)))  # 順伝播
        products.append((gradient.T, x, torch.empty_like(weight)))  # 重みの勾配

    def multiply(num_batches):
        for _ in range(num_batches):
            for left, right, out in products:
                torch.mm(left, right, out=out)

    model = mnist.MODELS[model_type]()
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add_products)
    with torch.no_grad():
        model(torch.zeros(batch_size, 1, 28, 28))
    return timed(device, multiply, round(EPOCH_IMAGES[model_type] / batch_size))


def benchmark_epoch(args):
    """訓練の 1 エポックを、よくある書き方と、行列積だけの時間とに比べる。"""
    device = args.device
    images, labels = (tensor.to(device) for tensor in mnist.load_mnist(train=True))
    rows = []
    for m, num_images in EPOCH_IMAGES.items():
        loader = common_loader(train=True, num_images=num_images)
        runs = {(m, "common"): lambda _: [common_epoch_seconds(m, loader, device)]}
        batch_sizes = sorted({mnist.BATCH_SIZE[m], COMMON_BATCH_SIZE}, reverse=True)
        for b in batch_sizes:
            runs[m, "ours", b] = lambda _, b=b: [our_epoch_seconds(m, b, images, labels, device)]
            runs[m, "floor", b] = lambda _, b=b: [floor_seconds(m, b, device)]
        seconds = {name: median * NUM_TRAIN / num_images for name, (median,) in alternate(runs, args.repeats).items()}
        for b in batch_sizes:
            ours, common, floor = seconds[m, "ours", b], seconds[m, "common"], seconds[m, "floor", b]
            rows.append([m, f"{b} (default)" if b == mnist.BATCH_SIZE[m] else b, f"{ours:.2f}", f"{common:.2f}",
                         f"{ours / common:.2f}", f"{floor:.2f}", f"{ours / floor:.2f}"])
    print_table(
        "One training epoch",
        f"common is always batch {COMMON_BATCH_SIZE}. floor: bare `torch.mm` for the same products (forward, both "
        "gradients; convolutions as im2col, which a direct convolution may undercut). Medians of "
        f"{args.repeats}; the cnn is measured on {EPOCH_IMAGES['cnn']} images and scaled to {NUM_TRAIN}.",
        ["model", "batch", "ours s/epoch", "common s/epoch", "ours / common", "floor s/epoch", "ours / floor"], rows,
    )


def benchmark_batch(args):
    """バッチの枚数を 8 倍や 1/8 にしたときの、時間と正解率を測る。"""
    runs = {}
    for m, default in mnist.BATCH_SIZE.items():
        for b in (default // 8, default, default * 8):
            command = [LESSONS["mnist"], "-m", m, "-b", b, "-d", args.device, "-w", "out.pth", "-o", "out.png"]
            runs[m, b] = lambda _, command=command + (["-e", 1] if m == "cnn" else []): run_training(*command)
    rows = [[*name, epochs, f"{seconds:.1f}", f"{accuracy:.2f}%"]
            for name, (seconds, epochs, accuracy) in alternate(runs, 1).items()]
    print_table(
        "Batch size",
        "`mnist.py -b` at 1/8, 1 and 8 times the default, whole process, one run each. The cnn with `-e 1`.",
        ["model", "batch", "epochs", "seconds", "accuracy"], rows,
    )


def benchmark_lessons(args):
    """どのレッスンについても、起動から終わりまでの時間を、import だけの時間と比べる。"""
    rows = []
    for name, path in LESSONS.items():
        source = path.read_text(encoding="utf-8")
        imports = "\n".join(ast.unparse(node) for node in ast.parse(source).body
                            if isinstance(node, (ast.Import, ast.ImportFrom)))
        command = [path, "-d", args.device]
        command += ["-o", "out.png"] if '"--output"' in source else []
        command += ["-w", "out.pth"] if '"--epochs"' in source else []  # 訓練しないレッスンの -w は入力である
        medians = alternate({
            (name, "lesson"): lambda _: run_python(*command)[:2],
            (name, "imports"): lambda _: run_python("-c", imports)[:2],
        }, 1 if name in LONG_LESSONS else args.repeats)
        (seconds, peak), (floor, _) = medians.values()
        rows.append([path.relative_to(ROOT).as_posix() + (" (once)" if name in LONG_LESSONS else ""),
                     f"{seconds:.2f}", f"{floor:.2f}", f"{seconds - floor:.2f}", f"{peak:.0f}"])
    print_table(
        "Lessons, whole process",
        f"Beside a process that only runs the imports of the lesson. Medians of {args.repeats}.",
        ["lesson", "seconds", "import-only seconds", "difference", "peak MB"], rows,
    )


def benchmark_inference(args):
    """同梱の重みでの推論を、1 枚ずつの推論と比べる。"""
    images = load_and_infer.load_mnist(train=False)[0].to(args.device)
    rows = []
    for m in load_and_infer.MODELS:
        model = load_and_infer.MODELS[m]()
        load_and_infer.load_weights(model, load_and_infer.HERE / f"mnist_{m}.pth")
        model.to(args.device, memory_format=torch.channels_last)

        def one_at_a_time():
            for image in images[:SINGLE_IMAGES].split(1):
                load_and_infer.predict(model, image)

        script = [LESSONS["load_and_infer"], "-m", m, "-n", len(images), "-d", args.device, "-o", "out.png"]
        medians = alternate({
            (m, "batched"): lambda _: [timed(args.device, load_and_infer.predict, model, images)],
            (m, "one at a time"): lambda _: [timed(args.device, one_at_a_time)],
            (m, "process"): lambda _: run_python(*script)[:1],
        }, args.repeats)
        (batched,), (single,), (process,) = medians.values()
        batched, single = len(images) / batched, SINGLE_IMAGES / single
        rows.append([m, f"{batched:.0f}", f"{single:.0f}", f"{batched / single:.1f}", f"{process:.2f}"])
    print_table(
        "Inference",
        f"`load_and_infer.predict` on {len(images)} test images, in batches of {load_and_infer.EVAL_BATCH_SIZE}, "
        f"beside {SINGLE_IMAGES} of them one at a time. Medians of {args.repeats}.",
        ["model", "batched images/s", "one at a time images/s", "ratio", "load_and_infer.py -n 10000, seconds"], rows,
    )


SECTIONS = {"training": benchmark_training, "epoch": benchmark_epoch, "batch": benchmark_batch,
            "lessons": benchmark_lessons, "inference": benchmark_inference}


def print_machine(device):
    """秒数は、どのマシンのものかが分からなければ意味がない。"""
    cpu = platform.machine()
    if sys.platform == "darwin":
        cpu = subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    elif match := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
        cpu = match[1]
    gpu = f" ({torch.cuda.get_device_name()})" if device.type == "cuda" else ""
    print(f"# Benchmark\n\n- CPU: {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} PyTorch threads\n"
          f"- device: {device}{gpu}\n- {platform.system()}, Python {platform.python_version()}, "
          f"torch {torch.__version__}, torchvision {torchvision.__version__}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="測る節（既定: 全部）")
    parser.add_argument("--repeats", type=int, default=3, help="くり返しの回数（既定: 3）")
    parser.add_argument("--cnn-repeats", type=int, default=1, help="training での CNN のくり返しの回数（既定: 1）")
    parser.add_argument("-d", "--device", choices=["cpu", "cuda", "mps"], default="cpu", help="デバイス（既定: cpu）")
    parser.add_argument("--common", nargs=2, help=argparse.SUPPRESS)  # よくある書き方のプロセス: モデルとシード
    args = parser.parse_args()
    if min(args.repeats, args.cnn_repeats) < 1:
        parser.error("--repeats と --cnn-repeats は 1 以上にする")
    args.device = mnist.select_device(args.device)
    if args.common:
        common_training(args.common[0], int(args.common[1]), args.device)
        return
    print_machine(args.device)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # レッスンの書き出すファイルは、ここに作られて消える
        for section in args.only:
            print(section, file=sys.stderr)
            SECTIONS[section](args)


if __name__ == "__main__":
    main()
