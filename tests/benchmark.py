"""速さを、よくある書き方や計算の下限と並べて測る。手で実行し、pytest には含めない。結果は BENCHMARK.md に置く。

比べるものを交互に測って中央値を取るので、マシンが混んでいても、比は大きく狂わない。
レッスンは写しの中で実行し、リポジトリには何も書かない。

実行: python tests/benchmark.py （一部だけなら python tests/benchmark.py --only lessons inference）
結果: Markdown の表が stdout に出る。
"""

import argparse
import ast
import contextlib
import math
import os
import platform
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision
from matplotlib.backend_bases import FigureCanvasBase, MouseEvent
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
COPY = Path(tempfile.mkdtemp()) / "llm-tutorial"  # レッスンが重みや図を書き換えるので、写しで測る
SINGLE_IMAGES = 500  # 1 枚ずつの推論に使う枚数


def run(*command):
    """python を別のプロセスで実行し、[秒, 1 エポックの秒（なければ nan）, stdout] を返す。"""
    env = {**os.environ, "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], env=env, stdout=subprocess.PIPE, text=True)
    lines, epoch_ends = [], []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch "):
            epoch_ends.append(time.perf_counter())
    if process.wait() != 0:
        sys.exit(f"エラー: {command} が失敗した")
    epochs = [end - begin for begin, end in zip(epoch_ends, epoch_ends[1:])]
    return [time.perf_counter() - start, statistics.median(epochs or [float("nan")]), "".join(lines)]


def alternate(runs, repeats):
    """{名前: 関数} を順番に 1 回ずつ、それを repeats 周し、{名前: 返した値の、要素ごとの中央値} を返す。"""
    results = {name: [] for name in runs}
    for _ in range(repeats):
        for name, function in runs.items():
            results[name].append(function())
    return {name: [statistics.median(values) for values in zip(*rows)] for name, rows in results.items()}


def print_table(title, note, header, rows):
    """Markdown の表を、終わった順に出す。"""
    lines = [header, ["---"] * len(header), *rows]
    print(f"\n## {title}\n\n{note}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def floor_seconds(model, batch_size):
    """60,000 枚の訓練に要る行列積だけを、用意済みのメモリに書いて計算する秒数。畳み込みは im2col の行列積と数える。"""
    products = []

    def add_products(layer, _, output):
        N, K = layer.weight.flatten(start_dim=1).shape
        M = output.numel() // N
        x, weight, gradient = (torch.randn(shape) for shape in ((M, K), (N, K), (M, N)))
        if products:  # 最初の層の入力は画像なので、入力の勾配は要らない
            products.append((gradient, weight, torch.empty_like(x)))
        products.append((x, weight.T, torch.empty_like(gradient)))  # 順伝播
        products.append((gradient.T, x, torch.empty_like(weight)))  # 重みの勾配

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add_products)
    with torch.no_grad():
        model(torch.zeros(batch_size, 1, 28, 28))
    start = time.perf_counter()
    for _ in range(50):
        for left, right, out in products:
            torch.mm(left, right, out=out)
    return (time.perf_counter() - start) * 60_000 / batch_size / 50


def measure_training(repeats):
    """mnist.py と、目標の正解率に届くまでのよくある書き方を、プロセスの始めから終わりまで比べる。"""
    rows = []
    page = read_page("load_and_infer", "-n", "1")
    for model_type, batch_size in (("mlp", 128), ("cnn", 64)):
        recipes = {"ours": [COPY / "02_pytorch_mnist" / "mnist.py", "-m", model_type],
                   "common": [ROOT / "tests" / "common_recipe.py", model_type]}
        medians = alternate({recipe: lambda command=command: trained(run(*command))
                             for recipe, command in recipes.items()}, repeats)
        floor = floor_seconds(page["MODELS"][model_type](), batch_size)
        for recipe, (seconds, epoch_seconds, epochs, accuracy) in medians.items():
            rows.append([model_type, recipe, f"{seconds:.1f}", f"{epochs:.0f}", f"{accuracy:.2f}%",
                         f"{seconds / medians['common'][0]:.2f}", f"{epoch_seconds:.2f}",
                         f"{epoch_seconds / medians['common'][1]:.2f}", f"{epoch_seconds / floor:.2f}"])
    print_table(
        "Training", "ours: `mnist.py`. common: `common_recipe.py` (per-sample ToTensor, batch 64, Adam 1e-3) until 98.0% "
        f"(mlp) or 99.2% (cnn), at most 15 epochs. Whole process, medians of {repeats}; an epoch includes its evaluation. "
        "floor: bare `torch.mm` for the same products (convolutions as im2col).",
        ["model", "recipe", "seconds", "epochs", "accuracy", "/ common", "s/epoch", "/ common", "/ floor"], rows)


def trained(result):
    """run の結果から、[秒, 1 エポックの秒, エポック数, 最後の正解率 %]。"""
    epoch, accuracy = re.findall(r"^epoch (\d+)/.*test accuracy ([\d.]+)%", result[2], re.M)[-1]
    return [*result[:2], int(epoch), float(accuracy)]


def measure_lessons(repeats):
    """どのレッスンについても、起動から終わりまでの時間を、import だけの時間と比べる。"""
    rows = []
    for path in sorted(COPY.glob("0*_*/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
        (lesson,), (floor,) = alternate({"lesson": lambda: run(path)[:1],
                                         "imports": lambda: run("-c", imports)[:1]}, repeats).values()
        rows.append([path.name, f"{lesson:.1f}", f"{floor:.1f}"])
    print_table("Lessons", f"Whole process, beside a process that only runs its imports. Medians of {repeats}.",
                ["lesson", "seconds", "import-only seconds"], rows)


def read_page(name, *args):
    """レッスンをこのプロセスで実行し、残った変数を返す。"""
    sys.argv[1:] = args
    with contextlib.redirect_stdout(None):
        return runpy.run_path(str(next(COPY.glob(f"0*_*/{name}.py"))), run_name="__main__")


def measure_inference(repeats):
    """同梱の重みでの推論を、1 枚ずつの推論と比べる。"""
    rows = []
    for model_type in ("mlp", "cnn"):
        page = read_page("load_and_infer", "-m", model_type, "-n", "10000")
        model, images = page["model"], page["images"].to(page["device"])

        def images_per_second(batches):
            start = time.perf_counter()
            with torch.no_grad():
                for batch in batches:
                    model(batch)
            return [sum(map(len, batches)) / (time.perf_counter() - start)]

        medians = alternate({"batched": lambda: images_per_second(images.split(200)),
                             "single": lambda: images_per_second(images[:SINGLE_IMAGES].split(1))}, repeats)
        (batched,), (single,) = medians.values()
        rows.append([model_type, f"{batched:.0f}", f"{single:.0f}", f"{batched / single:.1f}"])
    print_table("Inference", f"10,000 test images in batches of 200, beside {SINGLE_IMAGES} one at a time. "
                f"Medians of {repeats}.", ["model", "batched images/s", "one at a time images/s", "ratio"], rows)


def measure_frame(repeats):
    """mnist_draw.py の 1 コマ（点を足し、画像を作り、予測し、描き直す）の時間を測る。"""
    FigureCanvasBase.required_interactive_framework = "tk"  # ウィンドウがあるときの、3 列 1 行の図で測る
    page = read_page("mnist_draw")

    def frame(name, angle):
        x, y = page["grid"][0, 0].transData.transform((0.5 + 0.3 * math.sin(angle), 0.5 + 0.3 * math.cos(1.7 * angle)))
        event = MouseEvent(name, page["fig"].canvas, x, y, button=1)
        start = time.perf_counter()
        page["fig"].canvas.callbacks.process(name, event)
        return time.perf_counter() - start

    frame("button_press_event", 0)
    seconds = [frame("motion_notify_event", step / 20) for step in range(100 * repeats)]
    print_table("Drawing", f"One frame of `mnist_draw.py` with the Agg backend, {len(seconds)} frames.",
                ["median ms", "95th percentile ms"],
                [[f"{1000 * statistics.median(seconds):.0f}", f"{1000 * sorted(seconds)[len(seconds) * 95 // 100]:.0f}"]])


SECTIONS = {"training": measure_training, "lessons": measure_lessons, "inference": measure_inference,
            "drawing": measure_frame}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="測る節（既定: 全部）")
parser.add_argument("--repeats", type=int, default=3, help="くり返しの回数（既定: 3）")
args = parser.parse_args()
plt.switch_backend("Agg")  # ウィンドウを開いて待たない
shutil.copytree(ROOT, COPY, ignore=shutil.ignore_patterns(".git", ".venv*"))
print(f"# Benchmark\n\n{platform.system()}, {os.cpu_count()} cores, {torch.get_num_threads()} PyTorch threads, "
      f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}", flush=True)
for section in args.only:
    SECTIONS[section](args.repeats)
shutil.rmtree(COPY.parent)
