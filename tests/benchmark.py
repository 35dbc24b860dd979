"""速さを測る。手で実行し、pytest には含めない。結果は BENCHMARK.md に置く。

mnist.py とよくある書き方（common_recipe.py）を交互に測るので、マシンが混んでいても、時間の比は狂いにくい。
続けて、どのレッスンも 1 回ずつ実行し、時間を測る。レッスンは写しの中で実行し、リポジトリには何も書かない。

実行: python tests/benchmark.py
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command):
    """python を別のプロセスで実行し、(秒, stdout) を返す。"""
    start = time.perf_counter()
    env = {**os.environ, "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, *map(str, command)], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - start, result.stdout


with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / "llm-tutorial"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*"))
    print("| model | recipe | seconds | epochs | test accuracy |\n| --- | --- | --- | --- | --- |")
    for model_type in ("mlp", "cnn"):
        ours = [copy / "02_pytorch_mnist" / "mnist.py", "-m", model_type]
        common = [ROOT / "tests" / "common_recipe.py", model_type]
        for recipe, command in [("mnist.py", ours), ("common", common)]:
            seconds, stdout = run(*command)
            epoch, accuracy = re.findall(r"^epoch +(\d+)/.*test accuracy ([\d.]+)%", stdout, re.M)[-1]
            print(f"| {model_type} | {recipe} | {seconds:.1f} | {epoch} | {accuracy} % |", flush=True)
    print("\n| lesson | seconds |\n| --- | --- |")
    for path in sorted(copy.glob("0*_*/*.py")):
        seconds, _ = run(path)
        print(f"| {path.stem} | {seconds:.1f} |", flush=True)
