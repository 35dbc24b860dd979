"""テストの土台。レッスンを、リポジトリの写しの中で、読者の python SCRIPT.py と同じように実行する。"""

import contextlib
import functools
import io
import os
import re
import runpy
import shutil
import socket
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # 小さなモデルには、2 スレッドより、2 つのプロセスのほうが速い
# スレッドがコアより多いと、互いを待つ間の長い空回りが計算を何倍も遅くするので、早めに眠らせる
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

plt.switch_backend("Agg")  # テストの間はウィンドウを開かない
ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(ROOT.glob("0*_*/*.py"))
RAW = ROOT / "02_pytorch_mnist" / "data" / "MNIST" / "raw"


class ByLesson(LoadScopeScheduling):
    """同じレッスンのテストは、同じプロセスに集める。レッスンの実行は、そこで一度で済む。"""

    def _split_scope(self, nodeid):
        named = [path.stem for path in LESSONS if path.stem in nodeid]
        return max(named, key=len, default="learn")


def pytest_xdist_make_scheduler(config, log):
    return ByLesson(config, log)


def read_mnist(kind):
    """torchvision を通さずに読んだ、画像 (N, 28, 28)（uint8）とラベル (N,)。kind は "train" か "t10k"。"""
    images = np.frombuffer((RAW / f"{kind}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(
        -1, 28, 28
    )
    labels = np.frombuffer((RAW / f"{kind}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images, labels


def drawn_images(fig):
    """図の中の、画像のある区画。"""
    return [axes for axes in fig.axes if axes.images]


def files_in(folder):
    """folder の中の全ファイルの {相対パス: (大きさ, 更新時刻)}。何かが作られたり変わったりしたかを比べる。"""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def no_network(*args, **kwargs):
    raise AssertionError("the network was asked")


def with_constants(source, constants):
    """source の `名前 = …` の行を、constants の値に書き換える。クラスの n_embd: int = 128 のような行も。"""
    for constant, value in constants.items():
        source, count = re.subn(rf"^( *{constant}(?:: int)?) = .*", rf"\1 = {value!r}", source, flags=re.M)
        assert count == 1, constant
    return source


def section(lesson, start, end):
    """スクリプトの、start の区切りから end の区切りの前まで。lesson の変数の中で、もう一度実行できる。"""
    source = lesson.path.read_text(encoding="utf-8")
    return source[source.index(f"# %% {start}") : source.index(f"# %% {end}")]


class Reader:
    """レッスンを実行する読者。同じ実行は一度しかせず、結果を覚えている。"""

    def __init__(self, checkout, elsewhere):
        self.checkout, self.elsewhere, self.results = checkout, elsewhere, {}

    def execute(self, name, *args, runner=runpy.run_path, source=None, on_cpu=True, **constants):
        """レッスン name を実行し、残った変数と、stdout、変わったファイル changed、path を持つ名前空間を返す。

        constants は、写しの中で `名前 = …` の行をどう書き換えるかである。source は、写しの全体と替える。
        レッスンの行が出す警告は、例外になる。
        """
        path = self.path_of(name)
        original = path.read_text(encoding="utf-8")
        source = with_constants(source or original, constants)
        if source != original:
            path.write_text(source, encoding="utf-8", newline="\n")
        before, stdout = files_in(self.checkout), io.StringIO()
        try:
            with (
                pytest.MonkeyPatch.context() as patch,
                contextlib.redirect_stdout(stdout),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("error")
                patch.chdir(self.elsewhere)
                patch.setattr(sys, "argv", [str(path), *map(str, args)])
                patch.setattr(socket.socket, "connect", no_network)
                patch.setattr(socket, "getaddrinfo", no_network)
                patch.setattr(plt, "show", lambda: None)
                if on_cpu:
                    patch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: False))
                    patch.setattr(torch.cuda, "is_available", functools.cache(lambda: False))
                variables = runner(str(path), run_name="__main__")
        finally:
            after = files_in(self.checkout)
            plt.close("all")
            if source != original:
                path.write_text(original, encoding="utf-8", newline="\n")
        changed = {file for file in after if after[file] != before.get(file)}
        for file in changed:
            if file.endswith(".pth") and (ROOT / file).exists():
                shutil.copy(ROOT / file, self.checkout / file)  # 後のレッスンは、同梱の重みを読み込む
        return SimpleNamespace(**{**variables, "stdout": stdout.getvalue(), "changed": changed, "path": path})

    def path_of(self, name):
        """写しの中の、レッスン name のスクリプト。"""
        return next(self.checkout.glob(f"0*_*/{name}.py"))

    def __call__(self, name, *args, **constants):
        source = with_constants(self.path_of(name).read_text(encoding="utf-8"), constants)
        key = args, source  # SEED=0 は、もとの値と同じである
        if key not in self.results:
            self.results[key] = self.execute(name, *args, **constants)
        return self.results[key]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """レッスンと画像の写し。書き換えてよい。ほかのもの（何ギガバイトもある仮想環境など）は写さない。"""
    copy = tmp_path_factory.mktemp("checkout") / "llm-tutorial"
    for folder in (*ROOT.glob("0*_*"), ROOT / "images"):
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="session")
def run(checkout, tmp_path_factory):
    """run("learn", SEED=1) や run("mnist", "-m", "cnn") のように使う。返すものは Reader.execute を見る。"""
    return Reader(checkout, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def refuse(run, checkout, capsys):
    """refuse("mnist", "-e", "0") が何も書かずに parser.error で終わることを確かめ、メッセージを返す。"""

    def check(name, *args):
        before = files_in(checkout)
        with pytest.raises(SystemExit) as exit_info:
            run.execute(name, *args)
        _, _, message = capsys.readouterr().err.partition(f"{name}.py: error: ")
        assert exit_info.value.code == 2 and message and "Traceback" not in message
        assert files_in(checkout) == before
        return message

    return check
