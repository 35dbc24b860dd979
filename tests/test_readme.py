"""README.md と 2 つのフォルダの README.md に書いてあることは、すべて本当である。"""

import ast
import re
import shlex

import pytest
import torch
from torch import nn

from conftest import LESSONS, ROOT, without_numbers

CHAPTERS = [ROOT / "01_pytorch_tutorial" / "README.md", ROOT / "02_pytorch_mnist" / "README.md"]
BOOK = [ROOT / "README.md", *CHAPTERS]
DOCUMENTS = [*BOOK, *ROOT.glob("tests/*.md"), *ROOT.glob("0*_*/data/README.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def text_of(document):
    return document.read_text(encoding="utf-8")


def blocks_of(text):
    """囲まれた部分の [(言語, 中身), …]。"""
    return FENCE.findall(text)


def prose_of(text):
    return FENCE.sub("", text)


def blocks(language):
    """3 つの文書の、language の囲みの中身。"""
    return [text for document in BOOK for name, text in blocks_of(text_of(document)) if name == language]


README = text_of(ROOT / "README.md")
SECTIONS = {}  # レッスンの名前 -> その節の文章
for chapter in CHAPTERS:
    for heading, body in re.findall(r"^## (\w+)\.py\n(.*?)(?=^## |\Z)", text_of(chapter), re.M | re.S):
        SECTIONS[heading] = body

# 引用された出力


@pytest.fixture(scope="session")
def alike(run):
    """文書を書いたマシンと、丸めまで同じ計算になるか。違えば、訓練の結果は少しずつずれ、GPT の書く文章は途中から変わる。"""
    lines = blocks_of(README)[0][1].splitlines()
    return all(line in run("minllm_novel").stdout.splitlines() for line in lines)


def same(quoted, printed, alike):
    """一字一句同じか。丸めの違うマシンでは、数のほかが同じか。"""
    return quoted == printed or (not alike and without_numbers(quoted) == without_numbers(printed))


def check(quoted, printed, alike):
    """引用は、出力の抜粋で、順序は同じである。"""
    for line in quoted:
        found = [i for i, other in enumerate(printed) if same(line, other, alike)]
        assert found, f"{line!r} is not printed (any more)"
        printed = printed[found[0] + 1:]


# コマンド


def commands_of(document, text=None):
    """document のコマンドを (フォルダ, レッスン, 引数, 直後に引用された出力) の順に返す。README.md のコマンドは cd で始まる。"""
    found = blocks_of(text or text_of(document))
    for (language, command), (following, output) in zip(found, [*found[1:], ("", "")]):
        if language != "bash" or "python3" in command or "torchrun" in command or command.count("&&") > 1:
            continue
        change, _, call = command.strip().rpartition(" && ")
        folder = ROOT / change.removeprefix("cd ") if change else document.parent
        python, script, *args = shlex.split(call)
        assert python == "python" and (folder / script).exists(), command
        yield folder, script.removesuffix(".py"), args, output.splitlines() if following == "text" else []


COMMANDS = [command for document in BOOK for command in commands_of(document)]


@pytest.mark.parametrize("folder, name, args, quoted", COMMANDS, ids=lambda value: str(value) if isinstance(value, list) else None)
def test_every_command_prints_what_is_quoted(folder, name, args, quoted, run, alike):
    assert quoted or name in ("mnist_draw", "mnist_ddp"), f"no output is quoted after {name} {args}"
    if name == "mnist_ddp":
        pytest.skip("test_mnist_ddp.py runs its processes")
    args = [str(run.checkout / folder.name / arg) if (folder / arg).is_file() else arg for arg in args]
    check(quoted, run(name, *args).stdout.splitlines(), alike)


def test_the_run_command_prints_what_is_quoted(run, alike):
    languages = [language for language, _ in blocks_of(README)]
    quoted = blocks_of(README)[languages.index("text", 1)][1].splitlines()
    check(quoted, (run("mnist").stdout + run("load_and_infer").stdout).splitlines(), alike)


def test_the_samples_at_the_top_are_printed(run, alike):
    check(blocks_of(README)[0][1].splitlines(), run("minllm_novel").stdout.splitlines(), alike)


@pytest.mark.parametrize("file, pattern", [(".ci/run", r"grep -E '(.+?)' README.md"),
                                           (".github/workflows/test.yml", r"-Pattern '(.+?)'")])
def test_ci_runs_the_test_command_of_the_readme(file, pattern):
    pattern = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))[1]
    command, = [line for line in README.splitlines() if re.search(pattern, line)]
    assert "-r tests/requirements.txt" in command and command.endswith("pytest")


def test_commands_can_be_read_whole_on_a_page_832_pixels_wide():
    assert [line for name in ("bash", "powershell") for text in blocks(name) for line in text.splitlines() if len(line) > 98] == []


def test_the_torchrun_commands_are_understood():
    from torch.distributed.run import get_args_parser
    commands = [text.strip() for text in blocks("bash") if "torchrun" in text]
    assert commands
    for command in commands:
        options = get_args_parser().parse_args(shlex.split(command.replace("\\\n", ""))[1:])
        assert options.training_script == "mnist_ddp.py"


def test_the_lesson_outputs_quoted_in_docstrings_are_printed(run, alike):
    for path in LESSONS:
        doc = ast.get_docstring(ast.parse(text_of(path)))
        quoted = re.search(r"^結果（.*?:\n(.*?)^説明: このフォルダの README.md$", doc, re.M | re.S)[1]
        if path.stem == "mnist_ddp":
            continue  # 2 つのプロセスで、test_mnist_ddp.py が確かめる
        printed = run(path.stem).stdout.splitlines()
        for line in quoted.splitlines():
            assert any(same(line.strip(), other.strip(), alike) for other in printed), (path.name, line)


# 実験（試してみよう）とその答え


def apply(diff, source):
    """source に diff を当てる。続いた - の行を、続いた + の行に替える。- の並びは、source にただ 1 か所あること。"""
    removed, added = [], []
    for line in [*diff.splitlines(), " "]:
        if line.startswith("-"):
            removed.append(line[1:])
        elif line.startswith("+"):
            added.append(line[1:])
        elif removed:
            old, new = "".join(line + "\n" for line in removed), "".join(line + "\n" for line in added)
            assert ("\n" + source).count("\n" + old) == 1, f"the diff does not apply: {old}"
            source = ("\n" + source).replace("\n" + old, "\n" + new)[1:]
            removed, added = [], []
    return source


def experiments():
    """(レッスン, 言語, diff かコマンド, 引用された出力) を、節の順に返す。"""
    for name, section in SECTIONS.items():
        for answer in re.findall(r"<details><summary>答え</summary>\n(.*?)</details>", section, re.S):
            found = blocks_of(answer)
            for (language, change), (following, output) in zip(found, found[1:]):
                if language in ("diff", "bash"):
                    assert following == "text", f"no output is quoted in an answer of {name}"
                    yield pytest.param(name, language, change, output.splitlines(), id=f"{name}-{change.splitlines()[-1][:40]}")


@pytest.mark.parametrize("name, language, change, quoted", list(experiments()))
def test_an_experiment_gives_its_answer(name, language, change, quoted, run, alike):
    path = next(path for path in LESSONS if path.stem == name)
    if language == "bash":
        (_, name, args, _), = commands_of(path, f"```bash\n{change}```\n")
        printed = run(name, *args).stdout
    elif name == "mnist_ddp":
        pytest.skip("test_mnist_ddp.py runs its processes")
    else:
        printed = run.execute(name, source=apply(change, text_of(path))).stdout
    check(quoted, printed.splitlines(), alike)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_lesson_has_a_section_that_answers_what_it_asks(path):
    section = SECTIONS[path.stem]
    asked = ast.get_docstring(ast.parse(text_of(path))).split("試してみよう:\n")[1].count("    - ")
    assert section.count("<details><summary>答え</summary>") == section.count("</details>") == asked
    parts = [section.index(part) for part in ("**問い。**", "```bash", "**説明。**", "**試してみよう。**")]
    assert parts == sorted(parts)
    assert f"]({path.name})" in section


def test_sections_stand_in_the_order_of_the_table():
    names = [name for name, _ in re.findall(r"^\| \[`(\w+)\.py`\]\(([^)]+)\)", README, re.M)]
    assert names == list(SECTIONS) and sorted(names) == sorted(path.stem for path in LESSONS)


# 表、リンク、図


def anchors(text):
    """見出しの行に GitHub が付けるアンカー。"""
    headings = re.findall(r"^#+ (.+)$", prose_of(text), re.M)
    found = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(found)) == len(found)  # 同じ見出しが 2 つあると、リンクは先のほうへ飛ぶ
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_images_resolve(document):
    text = prose_of(text_of(document))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img [^>]*src="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = document.parent / file if file else document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(text_of(linked)), target


def test_every_picture_is_shown_with_alt_text_and_made_by_a_lesson(run):
    shown = {}
    for document in BOOK:
        for alt, target in re.findall(r"!\[([^\]]*)\]\((\S+\.png)\)", prose_of(text_of(document))):
            shown[(document.parent / target).resolve()] = alt
    assert all(len(alt) > 5 for alt in shown.values())
    pictures = set((ROOT / "images").glob("*.png"))
    assert set(shown) == pictures
    made = set().union(*[run(path.stem).changed for path in LESSONS if path.stem != "mnist_ddp"],
                       *[run(name, *[str(run.checkout / folder.name / arg) if (folder / arg).is_file() else arg for arg in args]).changed
                         for folder, name, args, _ in COMMANDS if name != "mnist_ddp"])
    assert {f"images/{picture.name}" for picture in pictures} <= made


def test_the_table_states_the_time_of_each_lesson():
    for name, link, cells in re.findall(r"^\| \[`(\w+)\.py`\]\(([^)]+)\)(.*)\|$", README, re.M):
        path = ROOT / link
        assert path.stem == name
        stated = re.search(r"^結果（2 コアの CPU で(.+?)）", text_of(path), re.M)[1]  # 約 4 秒、MLP は約 10 秒、CNN は約 50 秒
        time = cells.split("|")[2]
        assert re.findall(r"\d+", time) == re.findall(r"\d+", stated), link


def test_the_table_of_options_is_that_of_the_script():
    source = text_of(ROOT / "02_pytorch_mnist" / "load_and_infer.py")
    rows = re.findall(r"^\| `(-\w)`, `(--[\w-]+)` \| .+? \| (.+?) \|$", prose_of(README), re.M)
    assert [(short, long) for short, long, _ in rows] == re.findall(r'add_argument\("(-\w)", "(--[\w-]+)"', source)


def test_the_table_of_training_parts_is_that_of_the_scripts():
    for scripts, loss, method, rate in re.findall(r"^\| (`\w+\.py`.*?) \| (.*?) \| (.*?) \| (一定|上げてから下げる) \|$", README, re.M):
        for name in re.findall(r"`(\w+)\.py`", scripts):
            source = text_of(next(path for path in LESSONS if path.stem == name))
            assert ("MSELoss" in source) == ("MSELoss" in loss), name
            assert f"torch.optim.{method.split('、')[0]}(" in source, name
            assert ("clip_grad_norm_" in source) == ("上限" in method), name
            assert ("OneCycleLR" in source) == (rate == "上げてから下げる"), name


# コードの引用


def test_quoted_code_stands_in_its_script():
    quoted = [text for text in blocks("python") if text.startswith("# 0")]
    assert quoted
    for text in quoted:
        first, _, code = text.partition("\n")
        lines = [line.strip() for line in text_of(ROOT / first.removeprefix("# ")).splitlines()]
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


def test_the_cnn_tables_are_the_real_network(run):
    model = run("mnist_cnn_features").CNN()
    x = torch.zeros(1, 1, 28, 28)
    for name, sequence in (("features", model.features), ("classifier", model.classifier)):
        for i, layer in enumerate(sequence):
            before, x = x, layer(x)
            row, = re.findall(rf"^\| `{name}\.{i}`.*$", README, re.M)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert f"`{type(layer).__name__}(" in cells[0]
            shapes = " → ".join("×".join(map(str, tensor.shape[1:])) for tensor in (before, x))
            assert cells[0].split("<br>")[1] == shapes and cells[1] == f"{count(layer):,}"
            if isinstance(layer, nn.Conv2d):
                by_formula = (layer.in_channels * 3 * 3 + 1) * layer.out_channels
                assert count(layer) == by_formula
                assert f"({layer.in_channels} × 3 × 3 + 1) × {layer.out_channels} = {by_formula:,} 個" in README
    assert f"全部で {count(model):,} 個で、その 95 % が" in README and round(100 * count(model.classifier[1]) / count(model)) == 95


def test_the_mlp_numbers_are_the_real_network(run):
    model = run("mnist_dummydata_weightconfirm").MLP()
    assert f"784 × 100 + 100 = {count(model.fc1):,} 個" in README
    assert f"100 × 10 + 10 = {count(model.fc2):,} 個で、全部で {count(model):,} 個" in README


def test_the_gpt_table_is_the_real_network(run):
    lesson = run("minllm")
    model = lesson.GPT(lesson.GPTConfig())
    rows = re.findall(r"^\| .* \| (`.+`) \| `(\(.*\))` \| ([\d,]+)(?: × 2)? \|$", text_of(CHAPTERS[0]), re.M)
    assert len(rows) == 5
    for parts, _, parameters in rows:
        for name in re.findall(r"`([\w.]+)`", parts):
            assert f"{count(model.get_submodule(name)):,}" == parameters, name


def test_the_stated_accuracies_are_those_of_the_shipped_weights(run):
    stated = re.findall(r"^\| (MLP|CNN) \| ([\d,]+) \| (\d+\.\d+) % \|$", README, re.M)
    assert len(stated) == 2
    for model_type, parameters, accuracy in stated:
        lesson = run("load_and_infer", "-m", model_type.lower(), "-n", 10_000)
        assert (f"{count(lesson.model):,}", f"{lesson.correct / 100:.2f}") == (parameters, accuracy)
