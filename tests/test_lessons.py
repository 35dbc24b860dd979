"""どのレッスンも守る約束。レッスンは自分で見つけるので、フォルダに置くだけで調べられる。"""

import ast
import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from conftest import LESSONS, ROOT
from pretend_device import DEVICE, DEVICE_IDIOM, run_cells_on_pretended_device

every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
OWN_PROCESSES = "mnist_ddp"  # test_mnist_ddp.py が、いくつものプロセスとして実行する

QUICK = {  # 訓練の長いレッスンを短く済ませる定数
    "minllm_addition": {"STEPS": 20},
    "minllm_tokenizer": {"NUM_MERGES": 20},
    "minllm_novel": {"EPOCHS": 1, "BATCH_SIZE": 1024, "MIN_COUNT": 300, "n_embd": 16},
    "minllm_llama": {"EPOCHS": 1, "BATCH_SIZE": 1024, "MIN_COUNT": 300, "hidden_size": 16},
    "minllm_cache": {"COUNT": 16},
    "minllm_scaling": {"WIDTHS": (16, 32, 64), "TRAIN_WINDOWS": 80, "SEEDS": (0,)},
    "minllm_instruct": {"STEPS": 20, "NUM_HELD_OUT_WORDS": 10},
    "minllm_lora": {"STEPS": 10, "NUM_HELD_OUT_WORDS": 10},
    "minllm_facts": {"STEPS": 20},
    "minllm_thinking": {"STEPS": 8, "NUM_HELD_OUT": 20, "NUM_SAMPLES": 3},
    "minllm_reward": {"STEPS": 20, "UPDATES": 4, "ONES_UPDATES": 4, "NUM_HELD_OUT_PAIRS": 20},
    "minllm_tools": {"STEPS": 20, "NUM_HELD_OUT_PAIRS": 5},
    "mnist": {"EPOCHS": {"mlp": 1, "cnn": 1}},
    "learn_overfitting": {"EPOCHS": 20},
    "minllm_heads": {"STEPS": 20},
    "mnist_recipe": {"EPOCHS": 1, "VALIDATION_SIZE": 50_000, "SEEDS": [0]},
}


def source_of(path):
    return path.read_text(encoding="utf-8")


USES_DEVICE = [path for path in LESSONS if DEVICE_IDIOM.search(source_of(path))]


def test_ruff_finds_nothing():
    config = ["--config", str(ROOT / "tests" / "ruff.toml"), "--no-cache", str(ROOT)]
    for command in (["check"], ["format", "--check", "--diff"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config], capture_output=True, encoding="utf-8"
        )
        assert result.returncode == 0, result.stdout


@every_lesson
def test_only_the_promised_packages_are_used(path):
    imports = [
        node
        for node in ast.walk(ast.parse(source_of(path)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    packages = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports}
    assert packages <= {*sys.stdlib_module_names, "torch", "torchvision", "matplotlib", "numpy", "PIL"}
    assert source_of(path).count("torch.load(") == source_of(path).count("weights_only=True")


# 同じ名前のモデル

# 小説の GPT は注意を PyTorch に任せ、lm_head と wte が重みを共有する
# minllm_cache の Llama は、キャッシュを受け取る
VARIANTS = {}
for name in ("minllm_novel", "minllm_write", "minllm_quantize", "minllm_instruct", "minllm_lora"):
    VARIANTS |= {(name, "CausalSelfAttention"): "novel", (name, "GPT"): "novel"}
for kind in ("LlamaAttention", "LlamaDecoderLayer", "LlamaModel", "LlamaForCausalLM"):
    VARIANTS["minllm_cache", kind] = "cache"


def code_of(node):
    """クラスのコードから docstring を除いたもの。"""
    for part in ast.walk(node):
        if isinstance(part, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(part):
            del part.body[0]
    return ast.unparse(node)


def models():
    """(フォルダ, クラスの名前, 変種) -> {コード: それを持つレッスン}。"""
    found = {}
    for path in LESSONS:
        for node in ast.parse(source_of(path)).body:
            if isinstance(node, ast.ClassDef) and node.name != "GPTConfig":  # 大きさは、レッスンごとに選ぶ
                key = path.parent.name, node.name, VARIANTS.get((path.stem, node.name))
                found.setdefault(key, {}).setdefault(code_of(node), []).append(path.stem)
    return found


def test_the_same_model_is_the_same_code_in_every_lesson():
    assert [copies for copies in models().values() if len(copies) > 1] == []


def test_the_models_of_the_novel_differ_in_the_attention_call_and_the_tied_weights_alone():
    added = []
    for kind in ("CausalSelfAttention", "GPT"):
        (first,), (novel,) = (models()["01_pytorch_tutorial", kind, variant] for variant in (None, "novel"))
        added += [line.strip() for line in novel.splitlines() if line not in first.splitlines()]
    assert added == [
        "x = F.scaled_dot_product_attention(query, key, value, is_causal=True)",
        "self.lm_head.weight = self.wte.weight",
    ]


COPY = re.compile(r"^# %% .*（(\w+)\.py と同じ。読み飛ばしてよい）\n(.*?)(?=^# %%|\Z)", re.M | re.S)


def functions_of(source):
    return {node.name: code_of(node) for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


@every_lesson
def test_a_copied_section_has_the_functions_of_the_lesson_it_names(path):
    for original, section in COPY.findall(source_of(path)):
        original_functions = functions_of(source_of(path.with_name(f"{original}.py")))
        for name, code in functions_of(section).items():
            assert code == original_functions[name]


# 実行


@every_lesson
def test_runs_from_another_folder_without_a_network(path, run):
    if path.stem == OWN_PROCESSES:
        pytest.skip("test_mnist_ddp.py starts its processes")
    lesson = run(path.stem)
    saved = {file for file in re.findall(r"^saved: (.*)$", lesson.stdout, re.M)}
    assert {
        os.path.relpath(run.checkout / file, run.checkout).replace(os.sep, "/") for file in saved
    } == lesson.changed
    for file in lesson.changed:
        if file.endswith(".png"):
            assert Image.open(run.checkout / file).width >= 600
            assert (ROOT / file).stat().st_size < 200_000  # ページで見せる画像は軽くする


def without_times(stdout):
    """計算にかかった時間は、実行のたびに違う。"""
    return re.sub(r"[\d.]+ (ms|s|times)\b", r"0 \1", stdout)


@pytest.mark.parametrize("path", USES_DEVICE, ids=lambda path: path.stem)
def test_the_cells_print_the_same_on_a_pretended_accelerator(path, run):
    constants = QUICK.get(path.stem, {})
    there = run.execute(path.stem, runner=run_cells_on_pretended_device, **constants)
    here = run(path.stem, **constants)
    stdout = there.stdout.replace(f"device: {DEVICE}", "device: cpu")
    assert without_times(stdout) == without_times(here.stdout)


@pytest.mark.parametrize("mistake", ["", ".to(device)", ".cpu()"])
def test_the_pretended_accelerator_refuses_a_forgotten_move(mistake, run):
    source = """\
import torch
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
x = torch.randn(2, 3).to(device)
layer = torch.nn.Linear(3, 1).to(device)
print(layer(x).detach().cpu().numpy())
"""
    refused = pytest.raises((RuntimeError, TypeError)) if mistake else contextlib.nullcontext()
    with refused:
        run.execute(
            "simplenet",
            runner=run_cells_on_pretended_device,
            source=source.replace(mistake, "", 1) if mistake else source,
        )


@pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="no accelerator"
)
@pytest.mark.parametrize("path", USES_DEVICE, ids=lambda path: path.stem)
def test_runs_on_the_real_accelerator(path, run):
    lesson = run.execute(path.stem, on_cpu=False, **QUICK.get(path.stem, {}))
    assert "device: cpu" not in lesson.stdout


@pytest.mark.parametrize(
    "path", [path for path in LESSONS if "argparse" in source_of(path)], ids=lambda path: path.stem
)
def test_help_is_the_docstring(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(path))
    assert ast.get_docstring(ast.parse(source_of(path))) in capsys.readouterr().out


def test_alone_in_a_japanese_folder_on_a_terminal_without_japanese(tmp_path):
    folder = tmp_path / "山田" / "lessons"
    folder.mkdir(parents=True)
    env = {**os.environ, "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "ascii"}
    for name, args, printed in (
        ("learn", [], b"saved: images/learn.png"),
        ("mnist_errors", ["--help"], b"???"),
    ):
        script = shutil.copy(next(path for path in LESSONS if path.stem == name), folder)
        result = subprocess.run(
            [sys.executable, script, *args], cwd=ROOT.anchor, env=env, capture_output=True
        )
        assert (result.returncode, result.stderr) == (0, b"") and printed in result.stdout
