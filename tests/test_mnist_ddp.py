"""mnist_ddp.py が、プロセスの数やマシンの数を変えても同じ訓練をし、途中で倒れても後を濁さない。"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from conftest import ROOT

FOLDER = ROOT / "02_pytorch_mnist"


def no_torchrun():
    """torchrun がこのマシンで待ち合わせのサーバーを立てられなければ、その理由を返す（Windows の libuv のない版など）。"""
    try:
        dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        return str(error).splitlines()[0]


NO_TORCHRUN = no_torchrun()
needs_torchrun = pytest.mark.skipif(bool(NO_TORCHRUN), reason=f"torchrun: {NO_TORCHRUN}")


ONE_MACHINE = ["--standalone", "--local-addr", "127.0.0.1"]


def free_port():
    """今は使われていないポートの番号。"""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Launcher:
    """mnist_ddp.py の写しを短い訓練に書き換えて、torchrun で起動する。"""

    def __init__(self, folder):
        self.folder = folder
        self.page = folder / "mnist_ddp.py"
        self.weights = folder / "mnist_ddp.pth"
        self.write()

    def write(self, lines={}):
        """短い訓練にするための書き換えと、lines の書き換えをして、写しを保存する。"""
        source = (FOLDER / "mnist_ddp.py").read_text(encoding="utf-8")
        short = {
            "EPOCHS = 2": "EPOCHS = 1",
            'HERE / "data"': f"Path({str(FOLDER / 'data')!r})",
            "DistributedSampler(train_set,": "DistributedSampler(range(1280),",  # 20 バッチ分
            "step % 100": "step % 5",
            "rank::world_size": "rank:1001:world_size",  # テスト画像 1,001 枚。2 でも 4 でも割り切れない
            "len(test_set)": "1001",
            "/ 255).to": "/ 255).double().to",  # float64 なら、足す順序による丸めの差が、訓練の間に育たない
            "model = CNN()": "model = CNN().double()",
        }
        for old, new in (short | lines).items():
            assert old in source, old
            source = source.replace(old, new)
        self.page.write_text(source, encoding="utf-8")
        return self

    def start(self, *torchrun_args, before=()):
        """torchrun（引数がなければ、ただの python）で起動し、Popen を返す。before は、その前に置くコマンドである。"""
        launcher = ["-m", "torch.distributed.run", *map(str, torchrun_args)] if torchrun_args else []
        return subprocess.Popen(
            [*before, sys.executable, *launcher, str(self.page)], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )

    def run(self, *torchrun_args, before=()):
        """終わるまで待ち、(終了コード, stdout, stderr, 重み) を返す。"""
        process = self.start(*torchrun_args, before=before)
        stdout, stderr = process.communicate(timeout=120)
        weights = torch.load(self.weights, weights_only=True) if self.weights.exists() else None
        return SimpleNamespace(status=process.returncode, stdout=stdout, stderr=stderr, weights=weights)


@pytest.fixture
def launcher(tmp_path):
    return Launcher(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """1 つのプロセスでの訓練。"""
    return Launcher(tmp_path_factory.mktemp("alone")).run(*ONE_MACHINE, "--nproc-per-node", 1)


def difference(stdout, line):
    """line で始まる行に表示された差。"""
    return float(re.search(rf"^{line}.* (\S+)$", stdout, re.MULTILINE)[1])


def accuracy_of(run):
    return re.search(r"test accuracy (\S+%)", run.stdout)[1]


def assert_same_training(run, alone):
    assert run.status == 0, run.stderr
    assert run.stdout.count("saved:") == 1, "rank 0 だけが表示し、保存する"
    assert difference(run.stdout, "one step") < 1e-6
    assert difference(run.stdout, "largest difference between the weights") == 0
    assert run.weights.keys() == alone.weights.keys()  # module. が付いていない
    for key, value in run.weights.items():
        assert torch.allclose(value, alone.weights[key], atol=1e-8), key
    assert accuracy_of(run) == accuracy_of(alone)


@needs_torchrun
def test_python_starts_two_processes(launcher, alone):
    run = launcher.run()
    assert_same_training(run, alone)
    assert "processes: 2, each takes 32 of the 64 images" in run.stdout and run.stderr == ""


@needs_torchrun
def test_four_processes_make_the_same_training(launcher, alone):
    run = launcher.run(*ONE_MACHINE, "--nproc-per-node", 4)
    assert_same_training(run, alone)
    assert "processes: 4, each takes 16 of the 64 images" in run.stdout


@needs_torchrun
@pytest.mark.skipif(not shutil.which("unshare") or subprocess.call(["unshare", "-rnu", "true"]) != 0, reason="needs unshare")
def test_a_machine_whose_own_name_does_not_resolve(launcher, alone):
    shell = 'ip link set lo up && echo nosuch > /proc/sys/kernel/hostname && exec "$@"'
    assert_same_training(launcher.run(before=["unshare", "-rnu", "sh", "-c", shell, "sh"]), alone)


@needs_torchrun
def test_two_nodes_on_one_machine(launcher, alone):
    endpoint = f"localhost:{free_port()}"
    nodes = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    other = launcher.start(*nodes)
    run = launcher.run(*nodes)
    other_stdout, other_stderr = other.communicate(timeout=60)
    assert other.returncode == 0, other_stderr
    run.stdout += other_stdout  # どちらが rank 0 になるかは決まっていない
    assert_same_training(run, alone)


@needs_torchrun
def test_load_and_infer_reads_the_weights_and_agrees(alone, run, tmp_path):
    torch.save(alone.weights, tmp_path / "mnist_ddp.pth")
    inferred = run("load_and_infer", "-m", "cnn", "-w", tmp_path / "mnist_ddp.pth", "-n", 1001)
    assert f"(accuracy {accuracy_of(alone)})" in inferred.stdout


@needs_torchrun
def test_without_averaging_the_proofs_fail(launcher):
    launcher.write(lines={"ddp_shared(my_images)": "shared(my_images)", "= ddp_model(images": "= model(images"})
    run = launcher.run(*ONE_MACHINE, "--nproc-per-node", 2)
    assert difference(run.stdout, "one step") > 1e-4
    assert difference(run.stdout, "largest difference between the weights") > 1e-3


@needs_torchrun
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="この OS には SIGKILL がない")
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_run(launcher, victim):
    launcher.weights.write_bytes(b"old weights")
    launcher.write(lines={
        "EPOCHS = 2": "EPOCHS = 10_000",
        "torch.manual_seed(SEED)": "torch.manual_seed(SEED); (HERE / f'{rank}.pid').write_text(str(os.getpid()))",
    })
    process = launcher.start(*ONE_MACHINE, "--nproc-per-node", 2)
    for line in process.stdout:
        if line.startswith("  batch"):  # 訓練の途中である
            break
    pids = [int((launcher.folder / f"{rank}.pid").read_text()) for rank in (0, 1)]
    os.kill(pids[victim], signal.SIGKILL)
    start = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode != 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert launcher.weights.read_bytes() == b"old weights"


@needs_torchrun
def test_batch_that_cannot_be_shared_is_refused_in_one_line(launcher):
    run = launcher.run(*ONE_MACHINE, "--nproc-per-node", 3)
    assert run.status != 0 and run.weights is None
    message = "エラー: 64 枚を 3 プロセスで等分できない。プロセスの数を変える"
    assert run.stderr.count("エラー: ") == run.stderr.count(message) > 0  # 3 つのプロセスの行は、混ざることがある
