"""どのレッスンも守る約束。レッスンは自分で見つけるので、フォルダに置くだけで調べられる。"""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from conftest import LESSONS, ROOT

every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)

CEILINGS = {  # 行数の上限。長くなったレッスンは、2 つに分ける
    "simplenet": 65, "learn": 90, "learn_classify": 90, "learn_class_decision_boundary": 100,
    "minllm": 160, "minllm_addition": 240, "minllm_tokenizer": 100, "minllm_novel": 200, "minllm_write": 170,
    "mnistview": 40, "mnistview100": 45, "mnist_dummydata_weightconfirm": 80, "mnist": 165, "load_and_infer": 130,
    "mnist_errors": 135, "mnist_cnn_features": 160, "mnist_handwriting": 190, "mnist_draw": 130, "mnist_ddp": 150,
}
# 1 度しか呼ばないが、名前が教材である関数
TAUGHT = {"generate", "encode", "decode", "read_picture", "extract_ink", "scale_and_center", "render", "on_event"}
QUICK = {  # 訓練の長いレッスンを短く済ませる定数
    "minllm_addition": {"STEPS": 100}, "minllm_tokenizer": {"NUM_MERGES": 100},
    "minllm_novel": {"EPOCHS": 1, "n_embd": 16}, "mnist": {"EPOCHS": {"mlp": 1, "cnn": 1}},
}
DEVICE_IDIOM = '''\
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
'''
PICTURE_END = ["fig.savefig", "print", "plt.show"]  # 図のあるレッスンの、最後の 3 つの文


def source_of(path):
    return path.read_text(encoding="utf-8")


# 書き方


def test_the_lessons_are_found():
    assert {path.parent.name for path in LESSONS} == {"01_pytorch_tutorial", "02_pytorch_mnist"}
    assert {path.stem for path in LESSONS} == set(CEILINGS)


@every_lesson
def test_a_lesson_is_a_page(path):
    source = source_of(path)
    lines = source.splitlines()
    assert len(lines) <= CEILINGS[path.stem] and max(map(len, lines)) <= 120
    assert '\n"""\n\n# %% 準備\nimport ' in source or '\n"""\n\n# %% 準備\nfrom ' in source
    sections = re.findall(r"(\n+)# %% (.*)", source)
    assert len(sections) >= 3 and all(len(blank) in (2, 3) for blank, _ in sections)
    assert "__name__" not in source and "def main" not in source
    assert source.count(DEVICE_IDIOM) == source.count("is_available") // 2 <= 1
    body = ast.parse(source).body
    if "plt" in source and path.stem != "mnist_draw":  # 書き終えた絵を残すので、窓を先に開く
        assert [ast.unparse(node.value.func) for node in body[-3:]] == PICTURE_END
        assert source.count("plt.show") == source.count("savefig") == 1


@every_lesson
def test_the_docstring_says_what_how_and_what_to_try(path):
    doc = ast.get_docstring(ast.parse(source_of(path)))
    title, blank, *rest = doc.splitlines()
    assert title.endswith("。") and blank == "" and 9 <= len(doc.splitlines()) <= 16
    parts = [doc.index(part) for part in (f"実行: python {path.name}", "結果（", "試してみよう:\n    - ")]
    assert parts == sorted(parts)
    doc.encode("cp932")  # 日本語の Windows の端末でも --help が読める


@every_lesson
def test_only_the_promised_packages_are_used(path):
    tree = ast.parse(source_of(path))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    packages = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports}
    assert packages <= {*sys.stdlib_module_names, "torch", "torchvision", "matplotlib", "numpy"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for alias in (alias for node in imports for alias in node.names):
        assert (alias.asname or alias.name).split(".")[0] in names, f"{alias.name} is imported and not used"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)


@every_lesson
def test_a_definition_has_a_docstring_and_is_used_twice(path):
    tree = ast.parse(source_of(path))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef) and node.name not in TAUGHT:
            assert sum(getattr(other, "id", "") == node.name for other in ast.walk(tree)) >= 2, node.name


FAST_GPT = {"minllm_novel", "minllm_write"}  # 注意を PyTorch に任せ、lm_head と wte が重みを共有する


def test_lessons_share_nothing_but_identical_models():
    functions, classes = {}, {}
    for path in LESSONS:
        for node in ast.parse(source_of(path)).body:
            if isinstance(node, ast.FunctionDef):
                functions.setdefault(ast.dump(node), []).append((path.stem, node.name))
            if isinstance(node, ast.ClassDef):
                fast = path.stem in FAST_GPT and node.name in ("GPTConfig", "CausalSelfAttention", "GPT")
                if node.name != "GPTConfig" or fast:  # 大きさだけは、レッスンごとに選ぶ
                    copies = classes.setdefault((path.parent, node.name, fast), {})
                    copies.setdefault(ast.dump(node), []).append(path.stem)
    assert [places for places in functions.values() if len(places) > 1] == []
    assert [versions for versions in classes.values() if len(versions) > 1] == []


# 実行


@every_lesson
def test_runs_from_another_folder_without_a_network(path, run):
    lesson = run(path.stem)
    assert lesson.stdout.isascii() or "reconfigure" in source_of(path)  # 小説のレッスンだけは、日本語を表示する
    saved = re.findall(r"^saved: (.*)$", lesson.stdout, re.M)
    assert {os.path.relpath(file, run.checkout).replace(os.sep, "/") for file in saved} == lesson.changed
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


@pytest.mark.parametrize("name", [path.stem for path in LESSONS if "argparse" in source_of(path)])
def test_help_is_the_docstring(name, run):
    with pytest.raises(SystemExit) as exit_info:
        run.execute(name, "--help", runner=print_help)
    assert exit_info.value.code == 0


def print_help(path, run_name):
    """--help の出力が docstring で始まることを確かめながら実行する。"""
    try:
        exec(compile(source := open(path, encoding="utf-8").read(), path, "exec"), {"__file__": path, "__name__": run_name})
    finally:
        assert ast.get_docstring(ast.parse(source)) in sys.stdout.getvalue()


def test_a_process_of_its_own_with_an_ascii_terminal():
    offline = ["unshare", "-rn"] if shutil.which("unshare") and not subprocess.call(["unshare", "-rn", "true"]) else []
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    lesson = next(path for path in LESSONS if path.stem == "simplenet")
    result = subprocess.run([*offline, sys.executable, lesson], cwd=ROOT.anchor, env=env, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("device: ")


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
        assert process.poll() is None  # 窓が閉じられるまで待っている
    finally:
        process.kill()
        server.kill()
        process.wait()
        server.wait()
