"""おかしな入力には、何がおかしくてどうすればよいかを 1 行で答え、何も書かず、何も壊さない。"""

import os
import pickle
import random
import shutil

import pytest
import torch
from PIL import Image

from conftest import LESSONS, ROOT, lesson, load, run_python, tree

POSIX = os.name == "posix"
FOLDER = ROOT / "02_pytorch_mnist"


@pytest.fixture
def refuses(fails, tmp_path):
    """fails と同じだが、レッスンのフォルダと画像と tmp_path に何の変化もないことも確かめる。"""

    def snapshot():
        return [tree(folder) for folder in (ROOT / "images", *{path.parent for path in LESSONS})], tree(tmp_path)

    def check(name, *args):
        before = snapshot()
        message = fails(lesson(name).main, args)
        assert snapshot() == before
        return message

    return check


# 引数


WITH_SEED = [path.stem for path in LESSONS if '"--seed"' in path.read_text(encoding="utf-8")]
WITH_OUTPUT = [path.stem for path in LESSONS if '"--output"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", [path.stem for path in LESSONS])
@pytest.mark.parametrize("args", [["-d", "tpu"], ["-d", ""], ["-d"], ["--no-such-option"], ["stray"]])
def test_unknown_arguments(refuses, name, args):
    assert (args[0] if args[0] != "-d" else "--device") in refuses(name, *args)


@pytest.mark.parametrize("name", WITH_SEED)
@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "nan", "1e400", "9" * 30, "9" * 5000])
def test_bad_seed(refuses, name, value):
    assert "--seed" in refuses(name, "--seed", value)


@pytest.mark.parametrize("name, option, value", [
    *[("mnist", option, value) for option in ("--epochs", "--batch-size", "--lr")
      for value in ("0", "-1", "x", "", "nan", "inf", "-inf", "1e400", "9" * 30)],
    ("mnist", "--epochs", "1.5"), ("mnist", "--batch-size", "60001"), ("mnist", "--lr", "2"),
    ("mnist", "--model-type", "rnn"), ("mnist", "--model-type", ""),
    *[("load_and_infer", "--count", value) for value in ("0", "-1", "x", "", "1.5", "nan", "1e400")],
    *[("load_and_infer", "--start-index", value) for value in ("-1", "10000", "x", "", "nan", "9" * 30)],
    ("load_and_infer", "--model-type", "rnn"),
    *[("minllm_addition", "--steps", value) for value in ("0", "-5", "x", "", "nan", "9" * 30)],
    *[("minllm_addition", "--question", value)
      for value in ("", "a+b", "100+1", "1+100", "1+", "+", "12", "1-2", "1+2+3", "-1+2", "１+２")],
])
def test_bad_values(refuses, name, option, value):
    assert option in refuses(name, f"{option}={value}")


def bad_places(tmp_path):
    """書き込めない場所と、それを表す名前。"""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    places = {
        "no such folder": tmp_path / "none" / "out.png",
        "a folder": tmp_path / "folder.png",
        "inside a file": tmp_path / "file" / "out.png",
        "too long a name": tmp_path / ("x" * 300 + ".png"),
        "too long a path": tmp_path / ("x" * 5000 + ".png"),
        "empty": "",
        "no extension": tmp_path / "out",
        "unknown extension": tmp_path / "out.xyz",
    }
    if POSIX:
        (tmp_path / "loop.png").symlink_to("loop.png")
        os.mkfifo(tmp_path / "pipe.png")
        places |= {"a loop": tmp_path / "loop.png", "a pipe": tmp_path / "pipe.png", "a device": "/dev/null",
                   "a place that can't be written": "/proc/out.png"}
    return places


@pytest.mark.parametrize("name", WITH_OUTPUT)
def test_bad_output(refuses, name, tmp_path):
    for place in bad_places(tmp_path).values():
        refuses(name, "-o", place)


def test_bad_place_for_trained_weights(refuses, tmp_path):
    places = bad_places(tmp_path)
    for place in set(places) - {"no extension", "unknown extension", "empty"}:
        assert str(places[place]) in refuses("mnist", "-w", places[place], "-o", tmp_path / "curve.png")


def test_a_bad_output_does_not_cost_the_old_picture(refuses, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"old")
    refuses("mnist", "-w", tmp_path / "w.pth", "-o", tmp_path / "none" / "out.png")
    assert (tmp_path / "w.pth").read_bytes() == b"old"


def test_spaces_japanese_and_emoji_in_a_path_work(tmp_path):
    folder = tmp_path / "数字 の 画像 \N{GRINNING FACE}"
    folder.mkdir()
    shutil.copy(FOLDER / "mnist_mlp.pth", folder / "重み 1.pth")
    result = run_python(
        FOLDER / "load_and_infer.py", "-n", "1", "-w", folder / "重み 1.pth", "-o", folder / "結果 \N{GRINNING FACE}.png",
        cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii() and Image.open(folder / "結果 \N{GRINNING FACE}.png").width > 600


def test_the_line_reaches_stderr_and_the_exit_code_is_not_zero(tmp_path):
    result = run_python(FOLDER / "load_and_infer.py", "-n", "0", cwd=tmp_path, env={"PYTHONIOENCODING": "utf-8"})
    assert result.returncode == 1 and result.stdout == ""
    line, = result.stderr.splitlines()
    assert line == "エラー: 引数が正しくない（--count は 1 以上の整数にする）。使い方は --help で見られる"


# 重みのファイル


class CreatesAFile:
    """pickle として読み込まれると、ファイルを作ってしまう物。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def mlp_weights():
    return torch.load(FOLDER / "mnist_mlp.pth", weights_only=True)


def with_nan(value=float("nan")):
    weights = mlp_weights()
    weights["fc1.weight"][3, 4] = value
    return weights


def bad_state_dicts():
    weights = mlp_weights()
    short = {key: value for key, value in weights.items() if key != "fc2.bias"}
    return {
        "a tensor": torch.zeros(3),
        "a list": [1, 2, 3],
        "None": None,
        "an empty dict": {},
        "keys that are numbers": {1: torch.zeros(2)},
        "a missing key": short,
        "an extra key": {**weights, "extra": torch.zeros(1)},
        "a wrong shape": {**weights, "fc2.bias": torch.zeros(11)},
        "a transposed weight": {**weights, "fc1.weight": weights["fc1.weight"].T},
        "a number in place of a tensor": {**weights, "fc2.bias": 1.0},
        "integers": {**weights, "fc2.bias": torch.zeros(10, dtype=torch.int64)},
        "booleans": {**weights, "fc2.bias": torch.zeros(10, dtype=torch.bool)},
        "complex numbers": {**weights, "fc2.bias": torch.zeros(10, dtype=torch.complex64)},
        "a sparse tensor": {**weights, "fc2.bias": torch.zeros(10).to_sparse()},
        "NaN": with_nan(),
        "infinity": with_nan(float("inf")),
        "beyond float32": {**weights, "fc2.bias": torch.full((10,), 1e300, dtype=torch.float64)},
    }


@pytest.mark.parametrize("kind", bad_state_dicts())
def test_a_file_that_does_not_hold_the_weights(refuses, tmp_path, kind):
    path = tmp_path / "w.pth"
    torch.save(bad_state_dicts()[kind], path)
    message = refuses("load_and_infer", "-w", path, "-o", tmp_path / "out.png")
    assert str(path) in message and "mnist.py" in message


def test_a_file_that_is_no_state_dict(refuses, tmp_path):
    module = lesson("load_and_infer")
    shipped = (FOLDER / "mnist_mlp.pth").read_bytes()
    trap = tmp_path / "trap"
    contents = {
        "empty": b"",
        "one byte": b"\x80",
        "cut short": shipped[: len(shipped) // 2],
        "the last byte missing": shipped[:-1],
        "random": random.Random(0).randbytes(10_000),
        "text": "重み".encode(),
        "a picture": (ROOT / "images" / "mnistview.png").read_bytes(),
        "a pickle that creates a file": pickle.dumps(CreatesAFile(trap)),
        "a pickle of a dict that creates a file": pickle.dumps({"fc1.weight": CreatesAFile(trap)}),
    }
    path = tmp_path / "w.pth"
    for kind, content in contents.items():
        path.write_bytes(content)
        assert str(path) in refuses("load_and_infer", "-w", path, "-o", tmp_path / "out.png"), kind
    for saved in (CreatesAFile(trap), {"fc1.weight": CreatesAFile(trap)}, torch.nn.Linear(2, 2)):
        torch.save(saved, path)
        assert str(path) in refuses("load_and_infer", "-w", path, "-o", tmp_path / "out.png")
    assert not trap.exists()
    assert module.MAX_WEIGHTS_BYTES > 2 * (FOLDER / "mnist_cnn.pth").stat().st_size  # float64 の CNN も入る


def test_weights_that_are_not_a_regular_file(refuses, tmp_path):
    places = {"missing": tmp_path / "none.pth", "a folder": tmp_path, "empty": "", "too long": "x" * 5000}
    if POSIX:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        places |= {"a pipe": tmp_path / "pipe", "a loop": tmp_path / "loop", "null": "/dev/null", "zero": "/dev/zero"}
    for kind, place in places.items():
        message = refuses("load_and_infer", "-w", place, "-o", tmp_path / "out.png")
        assert "重みのファイル" in message and "-w" in message, kind


def test_a_huge_file_is_refused_by_its_size(refuses, tmp_path, monkeypatch):
    path = tmp_path / "huge.pth"
    with open(path, "wb") as file:
        file.truncate(2 * 1024**3)  # 穴あきのファイルなので、ディスクは使わない
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("the file was read"))
    assert "大きすぎ" in refuses("load_and_infer", "-w", path, "-o", tmp_path / "out.png")


def test_weights_of_the_other_model_are_named(refuses, tmp_path):
    assert "-m cnn" in refuses("load_and_infer", "-w", FOLDER / "mnist_cnn.pth", "-o", tmp_path / "out.png")
    assert "-m mlp" in refuses("load_and_infer", "-w", FOLDER / "mnist_mlp.pth", "-m", "cnn", "-o", tmp_path / "o.png")


@pytest.mark.parametrize("change", [
    lambda weights: {key: value.half() for key, value in weights.items()},
    lambda weights: {key: value.double() for key, value in weights.items()},
    lambda weights: {f"module.{key}": value for key, value in weights.items()},
    lambda weights: {key: torch.nn.Parameter(value) for key, value in weights.items()},
    lambda weights: dict(reversed(weights.items())),
], ids=["float16", "float64", "module. prefix", "parameters", "another order"])
def test_weights_in_another_form_work(change, tmp_path):
    module = lesson("load_and_infer")
    torch.save(change(mlp_weights()), tmp_path / "w.pth")
    model = module.MLP()
    module.load_weights(model, tmp_path / "w.pth")
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, mlp_weights()[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["mlp", "cnn"])
def test_damaged_weights_are_read_or_refused_but_never_crash(model_type, tmp_path):
    # 別のプロセスで、種を固定した 150 通りの壊し方を試す。メモリは 1.5 GB を超えてはならない
    script = f"""
import random, sys
from pathlib import Path
sys.path.insert(0, {str(FOLDER)!r})
import load_and_infer as module

shipped = ({str(FOLDER)!r} / Path("mnist_{model_type}.pth")).read_bytes()
path = Path({str(tmp_path)!r}) / "w.pth"
rng = random.Random(0)
refused = 0
for i in range(150):
    data = bytearray(shipped)
    if i % 3 == 0:
        del data[rng.randrange(len(data)):]
    else:  # 見出しと目次のある両端を、重みの値が並ぶ真ん中より多く壊す
        for _ in range(rng.choice([1, 3, 20])):
            position = rng.choice([rng.randrange(2000), -1 - rng.randrange(2000), rng.randrange(len(data))])
            data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    try:
        module.load_weights(module.MODELS["{model_type}"](), path)
    except SystemExit as error:
        assert error.code.startswith("エラー: ") and "\\n" not in error.code, error.code
        refused += 1
assert 50 <= refused < 150, refused
if sys.platform != "win32":
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform != "darwin" else 1024**3)
    assert peak < 1.5, peak
"""
    result = run_python("-c", script, cwd=tmp_path, env={"PYTHONIOENCODING": "utf-8"})
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


# MNIST のデータ


@pytest.mark.parametrize("name", [path.stem for path in LESSONS if "load_mnist" in path.read_text(encoding="utf-8")])
def test_damaged_data_files(name, tmp_path, fails, monkeypatch):
    module = load(FOLDER / f"{name}.py")
    shutil.copytree(FOLDER / "data", tmp_path / "data")
    monkeypatch.setattr(module, "DATA_DIR", tmp_path / "data")
    folder = tmp_path / "data" / "MNIST" / "raw"
    train = name in ("mnist", "mnistview")
    for file in (folder / f"{'train' if train else 't10k'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")):
        content = file.read_bytes()
        for damaged in (None, b"", content[:3], content[:10], content[: len(content) // 2], b"\0" * 100):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            before = tree(tmp_path)
            with pytest.raises(SystemExit) as exit_info:
                module.load_mnist(train)
            assert exit_info.value.code.startswith("エラー: MNIST のデータ") and "git restore" in exit_info.value.code
            assert str(folder) in exit_info.value.code
            assert tree(tmp_path) == before
            file.write_bytes(content)
    assert len(module.load_mnist(train)[0]) == (60_000 if train else 10_000)
