"""README.md に書いてあることは、すべて本当である。"""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import LESSONS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(match[1], match[2]) for match in FENCE.finditer(README)]
PROSE = FENCE.sub("", README)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def test_fenced_blocks_are_closed_and_name_their_language():
    assert README.count("```") == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"bash", "powershell", "text", "python", "mermaid"}


# コマンドと出力


INSTALL = [text for text in blocks("bash") if "pip install" in text]
COMMANDS = [text.strip() for text in blocks("bash") if "pip install" not in text]


def quoted_output(command):
    """README で command の直後に引用されている出力の行。"""
    languages = [block for block in BLOCKS if block[0] in ("bash", "text")]
    index = languages.index(("bash", command + "\n"))
    assert languages[index + 1][0] == "text", f"no output is quoted after {command}"
    return languages[index + 1][1].splitlines()


def test_the_two_commands():
    run, test = INSTALL
    for command in INSTALL:
        assert len(command.splitlines()) == 1
        assert command.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -r ")
    assert run.endswith("requirements.txt && cd 02_pytorch_mnist && python mnist.py && python load_and_infer.py\n")
    assert test.endswith("tests/requirements.txt && python -m pytest\n")
    windows_run, windows_test = blocks("powershell")[0].splitlines()
    for command, windows in ((run, windows_run), (test, windows_test)):
        unix_steps = command.strip().split(" && ")[2:]
        assert windows.split("; ") == ["python -m venv .venv", ".venv\\Scripts\\Activate.ps1", *unix_steps]


def test_ci_runs_the_test_command_of_the_readme():
    pattern = re.search(r"grep -E '(.+?)' README.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))[1]
    lines = [line for line in README.splitlines() if re.search(pattern, line)]
    assert lines == [INSTALL[1].strip()]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    pattern = re.search(r"-Pattern '(.+?)'", workflow)[1]
    lines = [line for line in README.splitlines() if re.search(pattern, line)]
    assert lines == [blocks("powershell")[0].splitlines()[1]]


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# 学習の結果は、同じ乱数からでも CPU の種類によって少しずれる。
# 許す差を、行の初めごとに決める。ほかの行は一字一句同じでなければならない
TOLERANCE = [("epoch ", 0.5), ("test accuracy", 0.5), ("boundary", 0.05), ("misclassified", 2),
             ("w[", 0.01), ("held-out exact match", 10), ("first loss", 0.01)]
CHAOTIC = ("most confused",)  # 数十枚の読み違いの内訳は、わずかなずれでも変わる


def same(quoted, printed):
    if quoted == printed:
        return True
    tolerance = next((tolerance for start, tolerance in TOLERANCE if quoted.startswith(start)), None)
    if tolerance is None or NUMBER.sub("", quoted).split() != NUMBER.sub("", printed).split():
        return False
    return all(abs(float(a) - float(b)) <= tolerance for a, b in zip(NUMBER.findall(quoted), NUMBER.findall(printed)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_what_is_quoted(command, run, monkeypatch):
    change, call = command.split(" && ")
    folder, (python, script, *args) = change.removeprefix("cd "), shlex.split(call)
    assert python == "python" and (ROOT / folder / script).exists()
    args = [str(run.checkout / folder / arg) if (ROOT / folder / arg).is_file() else arg for arg in args]
    printed = run(Path(script).stem, *args).stdout.splitlines()
    for line in quoted_output(command):  # 引用は出力の抜き書きで、順序は同じである
        if line.startswith(CHAOTIC):
            assert any(other.startswith(line.split(":")[0]) for other in printed)
            continue
        found = [i for i, other in enumerate(printed) if same(line, other)]
        assert found, f"{line!r} is not printed (any more)"
        printed = printed[found[0] + 1:]


def test_the_lesson_outputs_quoted_in_docstrings_are_printed(run):
    for path in LESSONS:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        quoted = re.search(r"^結果（.*?:\n(.*?)^試してみよう", doc, re.M | re.S)[1]
        printed = run(path.stem).stdout.splitlines()
        for line in quoted.splitlines():
            assert any(same(line.strip(), other.strip()) for other in printed), (path.name, line)


# 表、リンク、図


def test_links_and_images_resolve():
    targets = re.findall(r"\]\(([^)\s]+)\)", PROSE)
    assert targets
    for target in targets:
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_every_picture_is_shown_with_alt_text_and_made_by_a_lesson(run):
    assert all(len(alt) > 5 for alt in re.findall(r"!\[([^\]]*)\]", PROSE))
    pictures = {path.name for path in (ROOT / "images").glob("*.png")}
    assert set(re.findall(r"\]\(images/([^)/]+)\)", PROSE)) - {"digits"} == pictures
    made = set().union(*[run(path.stem).changed for path in LESSONS], run("mnist", "-m", "cnn").changed)
    assert {f"images/{name}" for name in pictures} == {file for file in made if file.endswith(".png")}


def test_the_table_lists_every_lesson_in_the_folders():
    rows = re.findall(r"^\| \[`(\w+\.py)`\]\((\S+)\) \|", PROSE, re.M)
    assert sorted(link for _, link in rows) == [path.relative_to(ROOT).as_posix() for path in LESSONS]
    assert all(Path(link).name == name for name, link in rows)


def test_the_folder_tree_is_true():
    tree = next(text for text in blocks("text") if text.startswith("01_pytorch_tutorial/"))
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "02_pytorch_mnist" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), line
    assert len(list((ROOT / "01_pytorch_tutorial").glob("*.py"))) == 6 and "6 つ" in tree
    assert len(list((ROOT / "02_pytorch_mnist").glob("*.py"))) == 8 and "8 つ" in tree


def test_the_table_of_options_is_that_of_the_script():
    source = (ROOT / "02_pytorch_mnist" / "load_and_infer.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(-\w)`, `(--[\w-]+)` \| .+? \| (.+?) \|$", PROSE, re.M)
    assert [(short, long) for short, long, _ in rows] == re.findall(r'add_argument\("(-\w)", "(--[\w-]+)"', source)
    for _, long, default in rows:
        if default.strip("`") in ("0", "20", "mlp"):
            assert re.search(rf'"{long}".*default="?{default.strip("`")}\b', source)


def test_options_named_in_the_text_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in LESSONS)
    for option in set(re.findall(r"`(--?[a-z][\w-]*)[ `]", PROSE)) - {"--upgrade"}:
        assert f'"{option}"' in sources or option in ("--help", "-i"), option


# コードの引用


def test_quoted_code_stands_in_its_script():
    quoted = [text for text in blocks("python") if text.startswith("# 0")]
    assert len(quoted) >= 8
    for text in quoted:
        first, _, code = text.partition("\n")
        source = (ROOT / first.removeprefix("# ")).read_text(encoding="utf-8")
        lines = [line.strip() for line in source.splitlines()]
        wanted = [line.strip() for line in code.strip().splitlines()]
        assert any(lines[i:i + len(wanted)] == wanted for i in range(len(lines))), text


def test_the_other_python_blocks_run_and_print_what_their_comments_say(capsys):
    for text in blocks("python"):
        if not text.startswith("# 0"):
            exec(compile(text, "README.md", "exec"), {})
            expected = re.findall(r"print\(.*\)  # (.+?)(?:、.*)?$", text, re.M)
            assert expected and capsys.readouterr().out.splitlines() == expected


# 形と数


def count(module):
    return sum(p.numel() for p in module.parameters())


def stage_shapes(model, module, x):
    """module の各段の出力の形（バッチの次元を除く）。"""
    shapes = []
    hooks = [layer.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape[1:]))) for layer in module]
    model(x)
    for hook in hooks:
        hook.remove()
    return shapes


def test_the_cnn_tables_are_the_real_network(run):
    model = run("mnist_cnn_features").CNN()
    for name, sequence in (("features", model.features), ("classifier", model.classifier)):
        shapes = stage_shapes(model, sequence, torch.zeros(1, 1, 28, 28))
        for i, (layer, shape) in enumerate(zip(sequence, shapes)):
            row, = re.findall(rf"^\| `{name}\.{i}`.*$", PROSE, re.M)
            cells = [cell.strip(" `") for cell in row.strip("|").split("|")]
            assert type(layer).__name__ in row
            assert "×".join(map(str, shape)) in cells
            assert f"{count(layer):,}" in cells
            if isinstance(layer, nn.Conv2d):
                assert f"`Conv2d({layer.in_channels}, {layer.out_channels}, 3, padding=1)`" in row
                (kernel_height, kernel_width), padding = layer.kernel_size, layer.padding
                assert (kernel_height, kernel_width, padding) == (3, 3, (1, 1))
                by_formula = (layer.in_channels * kernel_height * kernel_width + 1) * layer.out_channels
                assert count(layer) == by_formula
                assert f"({layer.in_channels} × 3 × 3 + 1) × {layer.out_channels} = {by_formula:,} 個" in PROSE
            if isinstance(layer, nn.Linear):
                assert f"`Linear({layer.in_features}, {layer.out_features})`" in row
    diagram = blocks("mermaid")[0]
    assert re.findall(r"\d+×\d+×\d+", diagram) == ["1×28×28", "32×28×28", "32×14×14", "64×14×14", "64×7×7"]
    assert f"CNN のパラメータは全部で {count(model):,} 個で、その 95 % が `classifier.1` にある" in PROSE
    assert round(100 * count(model.classifier[1]) / count(model)) == 95
    assert nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 28, 28)).shape[-1] == 26 and "28 − 3 + 1 = 26 通り" in PROSE


def test_the_mlp_numbers_are_the_real_network(run):
    model = run("mnist_dummydata_weightconfirm").MLP()
    assert f"784 × 100 + 100 = {count(model.fc1):,} 個" in PROSE
    assert f"100 × 10 + 10 = {count(model.fc2):,} 個で、全部で {count(model):,} 個" in PROSE
    layer = nn.Linear(7, 4)
    x = torch.zeros(5, 7)
    shapes = {"B": 5, "in_features": 7, "out_features": 4}
    for symbol, tensor in (("x", x), ("W", layer.weight), ("b", layer.bias), ("y", layer(x))):
        row, = re.findall(rf"^\| \${symbol}\$ \| .* \| `\((.+?),?\)` \|$", PROSE, re.M)
        assert tuple(shapes[name] for name in row.split(", ")) == tuple(tensor.shape)
    assert count(layer) == 7 * 4 + 4 and "`in_features * out_features + out_features` 個" in PROSE


def test_the_gpt_table_is_the_real_network(run):
    lesson = run("minllm")
    model = lesson.GPT(lesson.GPTConfig())
    shapes = {}
    for name, part in model.named_modules():
        part.register_forward_hook(lambda part, args, output, name=name: shapes.update({name: tuple(output.shape)}))
    model(torch.zeros(2, 32, dtype=torch.long))
    rows = re.findall(r"^\| .* \| (.+) \| `(\(2, 32, \d+\))` \| ([\d,]+)(?: × 2)? \|$", PROSE, re.M)
    assert len(rows) == 5
    for parts, shape, parameters in rows:
        for name in re.findall(r"`([\w.]+)`", parts):
            expected = shapes[name] if name != "wpe" else (2, *shapes[name])
            assert str(expected) == shape, name
            assert f"{count(model.get_submodule(name)):,}" == parameters, name
    assert f"全部で {count(model):,} 個" in PROSE


def test_the_stated_accuracies_are_those_of_the_shipped_weights(run):
    stated = re.findall(r"(MLP|CNN) は (\d+\.\d+) %", PROSE)
    assert stated
    for model_type, accuracy in stated:
        lesson = run("load_and_infer", "-m", model_type.lower(), "-n", 10_000)
        assert f"{lesson.correct / 100:.2f}" == accuracy
