"""どのレッスンも守る約束。レッスンは自分で見つけるので、フォルダに置くだけで調べられる。"""

import ast
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import LESSONS, ROOT, lesson, tree

POSIX = os.name == "posix"
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def help_text(path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        lesson(path.stem).main(["--help"])
    assert exit_info.value.code == 0
    return capsys.readouterr().out


def quick_args(text):
    """時間のかかるレッスンを短く済ませる引数。text は --help の出力である。"""
    return [*(["-e", "1"] if "--epochs" in text else []), *(["-s", "20"] if "--steps" in text else [])]


def output_args(text, folder, name="out"):
    """書き出すファイルをすべて folder の中に向ける引数。"""
    args = ["-o", str(folder / f"{name}.png")] if "--output" in text else []
    if "--weights" in text and "--epochs" in text:
        args += ["-w", str(folder / f"{name}.pth")]
    return args


# 構成


def test_the_lessons_are_found():
    assert {path.parent.name for path in LESSONS} == {"01_pytorch_tutorial", "02_pytorch_mnist"}
    assert len(LESSONS) >= 10


@every_lesson
def test_structure(path):
    source = path.read_text(encoding="utf-8")
    module = ast.parse(source)
    doc = ast.get_docstring(module)
    parts = [doc.index(part) for part in ("実行: python " + path.name, "結果（", "試してみよう:")]
    assert parts == sorted(parts) and doc.splitlines()[1] == ""
    assert 1 <= doc[parts[2]:].count("\n    - ") <= 3
    doc.encode("cp932")

    kinds = [type(node).__name__ for node in module.body]
    imports = [i for i, node in enumerate(module.body) if isinstance(node, (ast.Import, ast.ImportFrom))]
    functions = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
    assert imports == list(range(1, len(imports) + 1)) and "Assign" in kinds
    assert functions[0] == "select_device" and functions[-2:] == ["parse_args", "main"]
    assert ast.unparse(module.body[-1].test) == "__name__ == '__main__'"
    main = next(node for node in module.body if getattr(node, "name", "") == "main")
    assert ast.unparse(main.args) == "argv=None"
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "main":
            assert ast.get_docstring(node), node.name

    imported = {alias.name.split(".")[0] for node in ast.walk(module) if isinstance(node, ast.Import)
                for alias in node.names}
    imported |= {node.module.split(".")[0] for node in ast.walk(module) if isinstance(node, ast.ImportFrom)}
    assert imported <= {*sys.stdlib_module_names, "torch", "torchvision", "matplotlib", "numpy", "PIL"}
    assert ("torchvision" in imported) == ("load_mnist" in functions)
    names = [node.id for node in ast.walk(module) if isinstance(node, ast.Name)]
    for alias in (alias for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))
                  for alias in node.names):
        assert (alias.asname or alias.name).split(".")[0] in names, f"{alias.name} is imported and not used"
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)
    assert all(len(line) <= 120 for line in source.splitlines())


# 同じ名前でも、レッスンごとに中身の違ってよいもの
OWN = {"main", "parse_args", "draw", "train", "make_data", "GPTConfig"}
LITERAL = [  # それでも、この 2 つのレッスンの間では一字一句同じもの
    ("learn_classify", "learn_class_decision_boundary", {"make_data", "train", "accuracy"}),
]


def test_copies_are_identical():
    copies = {}
    for path in LESSONS:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                # MLP は 2 つのフォルダで別のモデルである
                key = (path.parent.name, node.name) if node.name == "MLP" else node.name
                copies.setdefault(key, {}).setdefault(ast.dump(node), []).append(path.stem)
    for name, versions in copies.items():
        if name not in OWN:
            assert len(versions) == 1, f"{name} differs between {list(versions.values())}"
    assert len(next(iter(copies["select_device"].values()))) == len(LESSONS)
    for first, second, names in LITERAL:
        for name in names:
            assert any({first, second} <= set(stems) for stems in copies[name].values()), name


@pytest.mark.parametrize("option", ["--device", "--seed"])
def test_shared_options_are_worded_alike(option):
    calls = {ast.unparse(node) for path in LESSONS for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
             and any(getattr(arg, "value", "") == option for arg in node.args)}
    assert len(calls) == 1


def test_the_two_animal_lessons_share_their_data():
    first, second = lesson("learn_classify"), lesson("learn_class_decision_boundary")
    for name in ("CLASSES", "DOG_MEAN", "DOG_STD", "CAT_MEAN", "CAT_STD", "NUM_PER_CLASS", "NUM_TRAIN",
                 "LEARNING_RATE", "EPOCHS", "LOG_INTERVAL"):
        assert getattr(first, name) == getattr(second, name)


# 実行


@every_lesson
@pytest.mark.parametrize("run_name", ["imported", "__mp_main__"])  # 後者は Windows の作業プロセスでの名前
def test_importing_does_nothing(path, run_name, capsys):
    before = tree(ROOT / "images"), tree(path.parent)
    runpy.run_path(str(path), run_name=run_name)
    assert capsys.readouterr() == ("", "")
    assert (tree(ROOT / "images"), tree(path.parent)) == before


@every_lesson
def test_runs_as_on_a_reader_s_machine(path, reader, capsys):
    text = help_text(path, capsys)
    stdout, stderr, changed = reader(path.relative_to(ROOT).as_posix())
    assert stdout.isascii() and stdout.startswith("device: ")
    assert re.fullmatch(r"(elapsed: \d+\.\d s\n)?", stderr)
    saved = [os.path.relpath(line.removeprefix("saved: "), reader.checkout) for line in stdout.splitlines()
             if line.startswith("saved: ")]
    assert {name.replace(os.sep, "/") for name in saved} == changed
    assert ("--output" in text) == any(name.endswith(".png") for name in changed)
    for name in changed:
        if name.endswith(".png"):
            assert Image.open(reader.checkout / name).width >= 600
            assert (ROOT / name).stat().st_size < 200_000  # README で見せる画像は軽くする


@every_lesson
def test_same_seed_same_result_even_two_at_once_in_a_read_only_checkout(path, checkout, tmp_path, capsys):
    text = help_text(path, capsys)
    script = checkout / path.relative_to(ROOT)
    before = tree(checkout)
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        args = ["-d", "cpu", *quick_args(text), *output_args(text, tmp_path / name)]
        runs.append(subprocess.Popen(
            [sys.executable, script, *args], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        ))
    outputs = [process.communicate(timeout=300) for process in runs]
    assert [process.returncode for process in runs] == [0, 0], outputs
    first, second = (stdout for stdout, _ in outputs)
    assert first == second.replace(str(tmp_path / "second"), str(tmp_path / "first"))
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
    assert tree(checkout) == before

    if "--seed" in text:
        lesson(path.stem).main(["-d", "cpu", "--seed", "1", *quick_args(text), *output_args(text, tmp_path)])
        assert capsys.readouterr().out != first.replace(str(tmp_path / "first"), str(tmp_path))


@every_lesson
def test_help_is_the_docstring_in_any_japanese_terminal(path, capsys):
    text = help_text(path, capsys)
    assert lesson(path.stem).__doc__.strip() in text
    assert "--device {auto,cpu,cuda,mps}" in text
    text.encode("cp932")


def test_help_in_a_cp932_terminal():
    result = subprocess.run(
        [sys.executable, LESSONS[0], "--help"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp932"}
    )
    assert result.returncode == 0 and "試してみよう" in result.stdout.decode("cp932")


@every_lesson
def test_the_picture_is_on_disk_before_the_window_opens(path, tmp_path, capsys, monkeypatch):
    text = help_text(path, capsys)
    if "--output" not in text:
        pytest.skip("this lesson makes no picture")
    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "tkagg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(Image.open(tmp_path / "out.png").size))
    lesson(path.stem).main(["-d", "cpu", *quick_args(text), *output_args(text, tmp_path)])
    assert len(shown) == 1


def test_a_real_window_opens(tmp_path):
    if not shutil.which("Xvfb") or not shutil.which("xdotool"):
        pytest.skip("needs Xvfb and xdotool")
    pytest.importorskip("tkinter")
    server = subprocess.Popen(["Xvfb", "-displayfd", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    display = ":" + server.stdout.readline().strip()  # 空いている番号を選び、用意ができたら知らせてくる
    env = {**os.environ, "DISPLAY": display, "MPLBACKEND": "TkAgg"}
    script = next(path for path in LESSONS if path.stem == "learn")
    process = subprocess.Popen([sys.executable, script, "-o", tmp_path / "out.png"], env=env, stdout=subprocess.DEVNULL)
    try:
        subprocess.run(["xdotool", "search", "--sync", "--name", "Figure 1"], env=env, check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
        assert Image.open(tmp_path / "out.png").size == (1000, 400)
        assert process.poll() is None  # 窓が閉じられるまで待っている
    finally:
        process.kill()
        server.kill()


# デバイス


def absent_devices():
    return [*([] if torch.cuda.is_available() else ["cuda"]), *([] if torch.backends.mps.is_available() else ["mps"])]


@every_lesson
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_absent_device_gets_one_line(path, device, fails):
    if device not in absent_devices():
        pytest.skip(f"{device} is here")
    before = tree(ROOT / "images"), tree(path.parent)
    assert f"デバイス {device} は" in fails(lesson(path.stem).main, ["-d", device])
    assert (tree(ROOT / "images"), tree(path.parent)) == before


@pytest.mark.parametrize("available, expected", [
    ({"mps", "cuda"}, "mps"), ({"cuda"}, "cuda"), (set(), "cpu"),
])
def test_auto_prefers_mps_then_cuda_then_cpu(monkeypatch, available, expected):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in available)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in available)
    assert lesson("simplenet").select_device("auto") == torch.device(expected)


# 学習を伴わない計算と、短い学習の結果。GPU では足す順序が変わるので、CPU とは最後の桁が異なる
@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("name, key, tolerance", [
    ("simplenet", "y", 1e-5), ("learn", "learned", 1e-4), ("learn_classify", "batch", 1e-3),
    ("learn_class_decision_boundary", "predictions", 0), ("minllm", "logits", 1e-4),
    ("load_and_infer", "probabilities", 1e-3), ("mnistview100", "mosaic", 0),
])
def test_an_accelerator_agrees_with_the_cpu(name, key, tolerance, device, tmp_path, capsys):
    if device in absent_devices():
        pytest.skip(f"no {device} on this machine")
    text = help_text(ROOT / name, capsys)
    on_cpu, on_device = (
        torch.as_tensor(lesson(name).main(["-d", where, *output_args(text, tmp_path)])[key]).detach().cpu().numpy()
        for where in ("cpu", device)
    )
    np.testing.assert_allclose(on_device, on_cpu, atol=tolerance, rtol=0)


def test_nothing_needs_float64():
    for path in LESSONS:
        assert not re.search(r"float64\)|\.double\(|torch\.float64", path.read_text(encoding="utf-8")), path


# 途中で止まっても


@pytest.fixture
def old_weights(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"the old weights")
    return path


@pytest.mark.skipif(not POSIX, reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_during_training_leaves_the_old_weights(old_weights, tmp_path):
    script = next(path for path in LESSONS if path.stem == "mnist")
    process = subprocess.Popen(
        [sys.executable, script, "-w", old_weights, "-o", tmp_path / "curve.png"],
        env={**os.environ, "MPLBACKEND": "Agg"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8",
    )
    while "batch" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert stderr == "中断した。保存済みの重みは壊れていない\n"
    assert old_weights.read_bytes() == b"the old weights"
    assert os.listdir(tmp_path) == ["weights.pth"]


@pytest.mark.skipif(not POSIX, reason="needs a limit on the size of a file")
def test_a_full_disk_leaves_the_old_weights(old_weights):
    import resource

    module = lesson("mnist")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # MLP の重みは 320 KB ある
    try:
        with pytest.raises(SystemExit) as exit_info:
            module.save_weights(module.MLP(), old_weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert exit_info.value.code.startswith("エラー: 重みを") and "\n" not in exit_info.value.code
    assert old_weights.read_bytes() == b"the old weights"
    assert os.listdir(old_weights.parent) == ["weights.pth"]


def test_an_interruption_while_saving_leaves_the_old_weights(old_weights, monkeypatch):
    module = lesson("mnist")

    def interrupted(state_dict, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.save_weights(module.MLP(), old_weights)
    assert old_weights.read_bytes() == b"the old weights"
    assert os.listdir(old_weights.parent) == ["weights.pth"]
