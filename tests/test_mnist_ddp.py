"""mnist_ddp.py が、プロセスの数やマシンの数を変えても、同じ訓練をする。"""

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from conftest import ROOT
from test_pages import FOLDED, apply, blocks_of, check, docstring_of, text_of

FOLDER = ROOT / "02_pytorch_mnist"
LESSON = FOLDER / "mnist_ddp.py"
PAGE = LESSON.with_suffix(".md")
ONE_MACHINE = ["--standalone", "--local-addr", "127.0.0.1"]


def no_torchrun():
    """torchrun が待ち合わせのサーバーを立てられなければ、その理由を返す（libuv のない Windows など）。"""
    try:
        dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        return str(error).splitlines()[0]


pytestmark = pytest.mark.skipif(no_torchrun() is not None, reason=f"torchrun: {no_torchrun()}")


class Copy:
    """lines のように書き換えた、mnist_ddp.py の写し。"""

    def __init__(self, folder, source=None, lines={}):
        self.script, self.weights = folder / "mnist_ddp.py", folder / "mnist_ddp.pth"
        source = source or text_of(LESSON)
        for old, new in {'HERE / "data"': f"Path({str(FOLDER / 'data')!r})", **lines}.items():
            assert old in source, old
            source = source.replace(old, new)
        self.script.write_text(source, encoding="utf-8")

    def start(self, *torchrun_args, **env):
        """torchrun（引数がなければ、ただの python）で起動し、Popen を返す。"""
        launcher = ["-m", "torch.distributed.run", *map(str, torchrun_args)] if torchrun_args else []
        env = {
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            **env,
        }
        return subprocess.Popen(
            [sys.executable, *launcher, str(self.script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=env,
        )

    def run(self, *torchrun_args, **env):
        """終わるまで待ち、(終了コード, stdout, stderr) を返す。"""
        process = self.start(*torchrun_args, **env)
        stdout, stderr = process.communicate(timeout=400)
        return process.returncode, stdout, stderr


# 文書に引用された出力


def test_the_real_run_prints_what_the_page_and_the_docstring_quote(tmp_path):
    status, stdout, stderr = Copy(tmp_path).run(RANK="0")  # クラスタには、RANK が初めからあることがある
    assert (status, stderr) == (0, "")
    quoted = next(output for language, output in blocks_of(text_of(PAGE)) if language == "text")
    check(quoted.splitlines(), stdout.splitlines(), "mnist_ddp")
    quoted = re.search(r"^結果:\n(.*)^試してみよう", docstring_of(LESSON), re.M | re.S)[1]
    check([line.strip() for line in quoted.splitlines()], stdout.splitlines(), "mnist_ddp")


@pytest.mark.parametrize(
    "answer", FOLDED.findall(text_of(PAGE))[:3], ids=["four", "not averaged", "accumulated"]
)
def test_an_experiment_gives_its_answer(answer, tmp_path):
    (_, diff), (_, output) = blocks_of(answer)
    source = apply(diff, text_of(LESSON))
    num_processes = re.search(r"^NUM_PROCESSES = (\d+)", source, re.M)[1]
    process = Copy(tmp_path, source).start(*ONE_MACHINE, "--nproc-per-node", num_processes)
    printed, quoted = [], output.splitlines()
    for line in process.stdout:
        printed.append(line.rstrip())
        if printed[-1].startswith(quoted[-1][:30]):  # 答えの行が出れば、残りの訓練は待たない
            break
    process.terminate()  # torchrun は、自分のプロセスをすべて終わらせる
    process.communicate(timeout=60)
    check(quoted, printed, "mnist_ddp")


# 短い訓練で調べること

SHORT = {
    "EPOCHS = 2": "EPOCHS = 1",
    "DistributedSampler(train_set,": "DistributedSampler(range(1280),",  # 20 バッチ分
    "step % 100": "step % 5",
    "rank::world_size": "rank:1001:world_size",  # テスト画像 1,001 枚。2 でも 4 でも割り切れない
    "len(test_set)": "1001",
    "/ 255).to": "/ 255).double().to",  # float64 なら、足す順序による丸めの差が、訓練の間に育たない
    "model = CNN()": "model = CNN().double()",
}


@pytest.fixture
def short(tmp_path):
    return Copy(tmp_path, lines=SHORT)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """1 つのプロセスでの短い訓練。(正解率, 重み)"""
    copy = Copy(tmp_path_factory.mktemp("alone"), lines=SHORT)
    _, stdout, _ = copy.run(*ONE_MACHINE, "--nproc-per-node", 1)
    return accuracy_of(stdout), torch.load(copy.weights, weights_only=True)


def accuracy_of(stdout):
    return re.search(r"test accuracy (\S+%)", stdout)[1]


def assert_same_training(copy, stdout, alone):
    assert "below 1e-12: True" in stdout and re.search(r"weights of \d processes: 0.0000$", stdout, re.M)
    accuracy, weights = alone
    shared = torch.load(copy.weights, weights_only=True)
    assert shared.keys() == weights.keys()  # module. が付いていない
    for key, value in shared.items():
        assert torch.allclose(value, weights[key], atol=1e-8), key
    assert accuracy_of(stdout) == accuracy


def test_four_processes_make_the_same_training_as_one(short, alone):
    status, stdout, stderr = short.run(*ONE_MACHINE, "--nproc-per-node", 4)
    assert status == 0, stderr
    assert stdout.count("saved:") == 1, "rank 0 だけが表示し、保存する"
    assert_same_training(short, stdout, alone)


def test_two_nodes_on_one_machine(short, alone):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    nodes = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    other = short.start(*nodes)
    status, stdout, _ = short.run(*nodes)
    other_stdout, other_stderr = other.communicate(timeout=60)
    assert (status, other.returncode) == (0, 0), other_stderr
    assert_same_training(short, stdout + other_stdout, alone)  # どちらが rank 0 になるかは決まっていない


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.call(["unshare", "-rnu", "true"]) != 0, reason="needs unshare"
)
def test_a_machine_whose_own_name_does_not_resolve(short):
    shell = 'ip link set lo up && echo nosuch > /proc/sys/kernel/hostname && exec "$@"'
    command = ["unshare", "-rnu", "sh", "-c", shell, "sh", sys.executable, str(short.script)]
    assert "saved:" in subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=200).stdout


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(short):
    status, _, stderr = short.run(*ONE_MACHINE, "--nproc-per-node", 3)
    message = "エラー: 64 枚を 3 プロセスで等分できない。プロセスの数を変える"
    assert status != 0 and not short.weights.exists()
    assert stderr.count("エラー: ") == stderr.count(message) > 0  # 3 つのプロセスの行は、混ざることがある
