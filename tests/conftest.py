"""テストの土台。レッスンを見つけ、写しの中で読者と同じように実行する。"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

# 混んだマシンでは、他のスレッドを待つ間の長い空回りが計算を何倍も遅くするので、早めに眠らせる
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import matplotlib

matplotlib.use("Agg")  # テストの間は窓を開かない

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(ROOT.glob("0*_*/*.py"))


def load(path):
    """レッスンをモジュールとして読み込む。"""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def lesson(name):
    """名前（拡張子なし）で、リポジトリのレッスンを読み込む。"""
    return load(next(path for path in LESSONS if path.stem == name))


def tree(folder):
    """folder の中の全ファイルの {相対パス: (大きさ, 更新時刻)}。何かが作られたり変わったりしたかを比べるために使う。"""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """リポジトリの写し。画像や重みを書き換えてよい。"""
    copy = tmp_path_factory.mktemp("checkout") / "llm-tutorial"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".pytest_cache"))
    return copy


def run_python(*args, cwd, env=None, prefix=(), timeout=300):
    """別のプロセスで python を実行し、CompletedProcess（stdout と stderr は str）を返す。"""
    return subprocess.run(
        [*prefix, sys.executable, *map(str, args)],
        cwd=cwd, env={**os.environ, "MPLBACKEND": "Agg", "DISPLAY": "", **(env or {})}, timeout=timeout,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
    )


@functools.cache
def offline():
    """ネットワークのない名前空間でコマンドを実行するための前置き。使えない OS では空になる。"""
    prefix = ("unshare", "-rn")
    works = shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if works else ()


class Reader:
    """読者のマシンを再現して、写しの中のレッスンを実行する。同じ実行は一度しかしない。

    ネットワークも画面もなく、ASCII しか表示できない端末で、UserWarning とエンコーディングの警告はエラーになる。
    """

    def __init__(self, checkout, no_network):
        self.checkout = checkout
        self.results = {}
        self.env = {
            "PYTHONIOENCODING": "ascii", "PYTHONWARNDEFAULTENCODING": "1", "PYTHONPATH": str(no_network),
        }

    def __call__(self, script, *args):
        """(stdout, stderr, 作られたか変わったファイルの集合) を返す。引数がなければ、リポジトリの外から実行する。"""
        if (script, args) not in self.results:
            path = self.checkout / script
            before = tree(self.checkout)
            result = run_python(
                "-W", "error::UserWarning", "-W", "ignore::EncodingWarning", "-W", "error::EncodingWarning:__main__",
                path, *args,
                cwd=path.parent if args else self.checkout.anchor, env=self.env, prefix=offline(),
            )
            assert result.returncode == 0, result.stderr
            after = tree(self.checkout)
            changed = {name for name in after if after[name] != before.get(name)}
            for name in changed:
                if name.endswith(".pth"):  # 後の実行は、同梱の重みで行う
                    shutil.copy(ROOT / name, self.checkout / name)
            self.results[script, args] = result.stdout, result.stderr, changed
        return self.results[script, args]


@pytest.fixture(scope="session")
def reader(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("no_network")
    (folder / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n",
        encoding="utf-8",
    )
    return Reader(checkout, folder)


@pytest.fixture(autouse=True)
def close_figures():
    """開いた図を、テストごとに閉じる。"""
    yield
    plt.close("all")


@pytest.fixture
def fails(capsys):
    """main(args) が、日本語 1 行を stderr に出して 0 以外で終わることを確かめ、その行を返す関数。"""

    def check(main, args):
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        message = exit_info.value.code
        assert isinstance(message, str), message  # sys.exit(文字列) は stderr に書いて 1 で終わる
        assert message.startswith("エラー: ") and message.endswith(("する", "みる", "戻す", "見られる", "確かめる")), message
        assert "\n" not in message
        assert "saved:" not in capsys.readouterr().out
        return message

    return check
