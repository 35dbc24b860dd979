"""どのレッスンも守る約束。レッスンは自分で見つけるので、フォルダに置くだけで調べられる。"""

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import LESSONS, RAW, ROOT
from pretend_device import DEVICE, run_on_pretended_device

every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)

QUICK = {  # 訓練の長いレッスンを短く済ませる定数
    "minllm_addition": {"STEPS": 20}, "minllm_tokenizer": {"NUM_MERGES": 100},
    "minllm_novel": {"EPOCHS": 1, "BATCH_SIZE": 256, "n_embd": 16}, "mnist": {"EPOCHS": {"mlp": 1, "cnn": 1}},
    "learn_overfitting": {"EPOCHS": 20}, "minllm_heads": {"STEPS": 20}, "mnist_recipe": {"EPOCHS": 1, "VALIDATION_SIZE": 50_000},
}
DEVICE_IDIOM = '''\
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
'''
PICTURE_END = '''\
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
'''


def source_of(path):
    return path.read_text(encoding="utf-8")


USES_DEVICE = [path for path in LESSONS if DEVICE_IDIOM in source_of(path)]

# 書き方


def test_the_lessons_are_found():
    assert {path.parent.name for path in LESSONS} == {"01_pytorch_tutorial", "02_pytorch_mnist"} and len(LESSONS) > 15


@every_lesson
def test_a_lesson_is_a_page_of_cells(path):
    source = source_of(path)
    assert source.count("\n# %% ") >= 3 and '\n"""\n\n# %% 準備\n' in source
    assert "__name__" not in source
    if path.stem != "mnist_ddp":  # プロセスごとに、番号でデバイスを選ぶ
        assert source.count("is_available") == 2 * source.count(DEVICE_IDIOM)
    if "plt.show" in source and path.stem != "mnist_draw":  # 書き終えた絵を残すので、ウィンドウを先に開く
        assert source.endswith("\n" + PICTURE_END)


@every_lesson
def test_the_docstring_says_what_is_new_how_to_run_and_what_to_try(path):
    doc = ast.get_docstring(ast.parse(source_of(path)))
    parts = ["との違い: ", f"実行: python {path.name}", "結果（", "試してみよう:\n    - "]
    if path.stem == "simplenet":  # 最初のレッスンである
        del parts[0]
    places = [doc.index(part) for part in parts]
    assert places == sorted(places)
    doc.encode("cp932")  # 日本語の Windows の端末でも --help が読める


@every_lesson
def test_only_the_promised_packages_are_used(path):
    tree = ast.parse(source_of(path))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    packages = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports}
    assert packages <= {*sys.stdlib_module_names, "torch", "torchvision", "matplotlib", "numpy", "PIL"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for alias in (alias for node in imports for alias in node.names):
        assert (alias.asname or alias.name).split(".")[0] in names, f"{alias.name} is imported and not used"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)


# 小説のレッスンは注意を PyTorch に任せ、lm_head と wte が重みを共有する
DIFFERENT_MODELS = {("minllm_novel", "CausalSelfAttention"), ("minllm_novel", "GPT"),
                    ("minllm_write", "CausalSelfAttention"), ("minllm_write", "GPT")}


def test_the_same_model_is_the_same_code_in_every_lesson():
    versions = {}
    for path in LESSONS:
        for node in ast.parse(source_of(path)).body:
            if isinstance(node, ast.ClassDef) and node.name != "GPTConfig":  # 大きさは、レッスンごとに選ぶ
                version = path.parent, node.name, (path.stem, node.name) in DIFFERENT_MODELS
                versions.setdefault(version, {}).setdefault(ast.dump(node), []).append(path.stem)
    assert [copies for copies in versions.values() if len(copies) > 1] == []


def code_of(name, class_name):
    """レッスン name のクラスの、コメントと docstring を除いた行。"""
    tree = ast.parse(source_of(next(path for path in LESSONS if path.stem == name)))
    lines = ast.unparse(next(node for node in tree.body if getattr(node, "name", "") == class_name)).splitlines()
    return re.sub(r'"""(.|\n)*?"""', "", "\n".join(lines)).splitlines()


def test_the_models_of_the_novel_differ_in_the_attention_call_and_the_tied_weights_alone():
    added = [line.strip() for name in ("CausalSelfAttention", "GPT") for line in code_of("minllm_novel", name)
             if line not in code_of("minllm", name)]
    assert added == ["x = F.scaled_dot_product_attention(query, key, value, is_causal=True)",
                     "self.lm_head.weight = self.wte.weight"]


# 実行


@every_lesson
def test_runs_from_another_folder_without_a_network(path, run):
    if path.stem == "mnist_ddp":
        pytest.skip("test_mnist_ddp.py starts its processes")
    lesson = run(path.stem)
    assert lesson.stdout.isascii() or "reconfigure" in source_of(path)
    saved = re.findall(r"^saved: (.*)$", lesson.stdout, re.M)
    assert {os.path.relpath(run.checkout / file, run.checkout).replace(os.sep, "/") for file in saved} == lesson.changed
    for file in lesson.changed:
        if file.endswith(".png"):
            assert Image.open(run.checkout / file).width >= 600
            assert (ROOT / file).stat().st_size < 200_000  # README で見せる画像は軽くする


def run_cells(path, run_name):
    """VS Code や Jupyter のように、# %% で区切ったセルを 1 つずつ、同じ名前空間で実行する。"""
    variables = {"__name__": run_name, "__file__": path}
    with open(path, encoding="utf-8") as file:
        for cell in re.split(r"^(?=# %%)", file.read(), flags=re.M):
            exec(compile(cell, path, "exec"), variables)
    return variables


@every_lesson
def test_cell_by_cell_prints_the_same_numbers_again(path, run):
    if path.stem == "mnist_ddp":
        pytest.skip("this lesson is run as processes, not as cells")
    constants = QUICK.get(path.stem, {})
    again = run.execute(path.stem, runner=run_cells, **constants)
    assert again.stdout == run(path.stem, **constants).stdout


@pytest.mark.parametrize("path", USES_DEVICE, ids=lambda path: path.stem)
def test_the_same_numbers_come_from_a_pretended_accelerator(path, run):
    constants = QUICK.get(path.stem, {})
    there = run.execute(path.stem, runner=run_on_pretended_device, **constants)
    here = run(path.stem, **constants)
    assert there.stdout.replace(f"device: {DEVICE}", "device: cpu") == here.stdout


@pytest.mark.parametrize("mistake", ["", ".to(device)", ".cpu()"])
def test_the_pretended_accelerator_refuses_a_forgotten_move(mistake, run):
    source = """\
import torch
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
x = torch.randn(2, 3).to(device)
layer = torch.nn.Linear(3, 1).to(device)
print(layer(x).detach().cpu().numpy())
"""
    refused = pytest.raises((RuntimeError, TypeError)) if mistake else contextlib.nullcontext()
    with refused:
        run.execute("simplenet", runner=run_on_pretended_device, source=source.replace(mistake, "", 1) if mistake else source)


@pytest.mark.skipif(not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="no accelerator")
@pytest.mark.parametrize("path", USES_DEVICE, ids=lambda path: path.stem)
def test_runs_on_the_real_accelerator(path, run):
    lesson = run.execute(path.stem, on_cpu=False, **QUICK.get(path.stem, {}))
    assert "device: cpu" not in lesson.stdout


@pytest.mark.parametrize("name", [path.stem for path in LESSONS if "argparse" in source_of(path)])
def test_help_is_the_docstring(name, run):
    with pytest.raises(SystemExit) as exit_info:
        run.execute(name, "--help", runner=print_help)
    assert exit_info.value.code == 0


def print_help(path, run_name):
    """--help の出力が docstring で始まることを確かめながら実行する。"""
    source = Path(path).read_text(encoding="utf-8")
    try:
        exec(compile(source, path, "exec"), {"__file__": path, "__name__": run_name})
    finally:
        assert ast.get_docstring(ast.parse(source)) in sys.stdout.getvalue()


def start(path, *args, **env):
    """レッスンを、自分のプロセスで、できればネットワークを断って実行する。"""
    offline = ["unshare", "-rn"] if shutil.which("unshare") and not subprocess.call(["unshare", "-rn", "true"]) else []
    env = {**os.environ, "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "", **env}
    return subprocess.run([*offline, sys.executable, path, *args], cwd=ROOT.anchor, env=env, capture_output=True)


@pytest.fixture
def alone(tmp_path):
    """alone("learn") は、レッスンを山田というフォルダに、そのスクリプトだけ写した場所。"""

    def copy(name):
        folder = tmp_path / "山田" / "lessons"
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.copy(next(path for path in LESSONS if path.stem == name), folder)

    return copy


def test_a_terminal_that_cannot_show_japanese_shows_question_marks(alone):
    result = start(alone("learn"), PYTHONIOENCODING="cp1252")
    assert (result.returncode, result.stderr) == (0, b"") and b"saved: images/learn.png" in result.stdout
    result = start(alone("mnist_errors"), "--help", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"") and b"???" in result.stdout


def test_a_missing_folder_of_pictures_is_made_and_an_unwritable_one_is_told(alone):
    script = alone("learn")
    pictures = Path(script).parent.parent / "images"
    assert start(script).returncode == 0 and (pictures / "learn.png").exists()
    shutil.rmtree(pictures)
    pictures.write_text("a file, not a folder")
    result = start(script)
    assert (result.returncode, result.stderr) == (0, b"") and b"\nnot saved: " in result.stdout


@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "a Git LFS pointer"])
@pytest.mark.parametrize("path", [path for path in LESSONS if "MNIST(" in source_of(path)], ids=lambda path: path.stem)
def test_damaged_mnist_files_end_in_one_line_with_the_remedy(path, damage, checkout, run, capsys, monkeypatch):
    if path.stem == "mnist_ddp":
        monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
        monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    raw = checkout / "02_pytorch_mnist" / "data" / "MNIST" / "raw"
    for kind in ("train", "t10k"):
        images = raw / f"{kind}-images-idx3-ubyte"
        spoil(images, damage)
    try:
        with pytest.raises(SystemExit) as exit_info:
            run.execute(path.stem)
        message = capsys.readouterr().err + str(exit_info.value.code)
        assert exit_info.value.code not in (0, None) and "MNIST が壊れている。git restore で戻す" in message
    finally:
        for kind in ("train", "t10k"):
            shutil.copy(RAW / f"{kind}-images-idx3-ubyte", raw)


def spoil(file, damage):
    content = file.read_bytes()
    file.unlink()
    if damage == "empty":
        file.touch()
    if damage == "cut short":
        file.write_bytes(content[:100_000])
    if damage == "a Git LFS pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 47040016\n")


def test_a_real_window_opens(checkout):
    if not shutil.which("Xvfb") or not shutil.which("xdotool"):
        pytest.skip("needs Xvfb and xdotool")
    pytest.importorskip("tkinter")
    server = subprocess.Popen(["Xvfb", "-displayfd", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    display = ":" + server.stdout.readline().strip()  # 空いている番号を選び、用意ができたら知らせてくる
    env = {**os.environ, "DISPLAY": display, "MPLBACKEND": "TkAgg"}
    script = checkout / "01_pytorch_tutorial" / "learn.py"
    process = subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.DEVNULL)
    try:
        subprocess.run(["xdotool", "search", "--sync", "--name", "Figure 1"], env=env, check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
        assert process.poll() is None  # ウィンドウが閉じられるまで待っている
    finally:
        process.kill()
        server.kill()
        process.wait()
        server.wait()
