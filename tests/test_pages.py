"""README.md、フォルダの README.md、レッスンごとのページに書いてあることは、すべて本当である。"""

import ast
import re
import shlex

import pytest

from conftest import LESSONS, ROOT

README, TROUBLES = ROOT / "README.md", ROOT / "TROUBLESHOOTING.md"
CHAPTERS = [ROOT / "01_pytorch_tutorial" / "README.md", ROOT / "02_pytorch_mnist" / "README.md"]
PAGES = [path.with_suffix(".md") for path in LESSONS]
BOOK = [README, TROUBLES, *CHAPTERS, *(page for page in PAGES if page.exists())]
DOCUMENTS = [*BOOK, *ROOT.glob("tests/*.md"), *ROOT.glob("0*_*/data/README.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FOLDED = re.compile(r"<details><summary>答え</summary>\n(.*?)</details>", re.S)
OWN_PROCESSES = "mnist_ddp"  # いくつものプロセスで動くので、test_mnist_ddp.py が実行する

# 訓練の結果はマシンの丸めで変わる。{レッスン: {行の初め: (百分率の差 [ポイント], ほかの数の差の割合)}}。
# 行の初めが合う最後のものを使う。値は、run_machines.sh の 5 つの設定と 3 つのシードで測った幅である。
# ここにないレッスンの出力は、どのマシンでも一字一句同じである
TOLERANCES = {
    "learn_overfitting": {"": (0.5, 0.03)},
    "minllm_heads": {"": (3.5, 0)},
    "minllm_addition": {"": (6, 0.1), "step": (15, 0.7), "to write": (1, 0.7)},
    "minllm_novel": {"": (1, 0.02)},
    "minllm_llama": {"": (1, 0.02)},
    "minllm_cache": {"": (1, 0.02)},
    "minllm_scaling": {"": (2, 0.015), "seed 0 slope": (2, 0.05), "seed 1 slope": (2, 0.05)},
    "minllm_instruct": {"": (8, 0.2)},
    "minllm_lora": {"": (8, 0.2), "step": (25, 0.2)},
    "minllm_facts": {
        "": (8, 0.2),
        "(b) known": (35, 0.3),
        "(b) never": (20, 0.2),
        "(c) never met ": (20, 0.2),
        "(a) above": (0, 0.9),
        "hidden: the town": (0, 1.5),
        "layer": (0, 0.5),
    },
    "minllm_thinking": {
        "": (6, 0.1),
        "at once": (10, 0.1),
        "in steps step": (45, 3),
        "half-trained": (12, 0),
        "majority": (12, 0),
        "each of": (12, 0),
        "correct": (0, 0),
        "flipped": (0, 0),
        "1048576": (0, 0),
    },
    "minllm_reward": {
        "": (0, 0),
        "step": (40, 0.7),
        "update": (30, 0),
        "mean reward": (0, 1),
    },
    "minllm_tools": {"": (2, 0.3)},
    "mnist": {"": (0.2, 0.1)},
    "mnist_recipe": {"": (0.4, 0.01)},
    "mnist_ddp": {"": (0.15, 0.1), "largest difference between the weights": (0, 0.7)},
}
# 訓練したばかりの GPT が書いた部分。行のほかの部分だけを比べる（中身は、レッスンごとのテストが調べる）
JAPANESE = r"[^\x00-\x7f].*"
WRITTEN = {
    "minllm_novel": JAPANESE,
    "minllm_facts": JAPANESE,
    "minllm_instruct": JAPANESE,
    "minllm_reward": r"=\d{3} .*",  # 24+97=111 (right: 121)
}


def text_of(document):
    return document.read_text(encoding="utf-8")


def blocks_of(text):
    """囲まれた部分の [(言語, 中身), …]。"""
    return FENCE.findall(text)


def prose_of(text):
    return FENCE.sub("", text)


# 引用された出力

STEP = re.compile(r"(?:step|epoch|update) +\d+")  # 何番目かを示す番号に、許す差はない
STOPS_BY_ACCURACY = {"minllm_reward"}  # 正解率で訓練を止めるので、止まるステップが変わる
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w\()")


def distance(quoted, printed, name):
    """2 つの行の数の差の、許す差に対する比の最大。言葉が違えば無限大。1 以下なら同じとみなす。"""
    if quoted == printed:
        return 0
    if name not in TOLERANCES:
        return float("inf")
    if name in WRITTEN:
        quoted, printed = (re.sub(WRITTEN[name], "", line) for line in (quoted, printed))
    words = [re.sub(r"\s+", " ", NUMBER.sub("0", line)) for line in (quoted, printed)]
    if words[0] != words[1]:
        return float("inf")
    if name not in STOPS_BY_ACCURACY and STEP.findall(quoted) != STEP.findall(printed):
        return float("inf")
    points, share = [tolerance for start, tolerance in TOLERANCES[name].items() if quoted.startswith(start)][
        -1
    ]
    worst = 0
    for mine, other in zip(NUMBER.finditer(quoted), NUMBER.finditer(printed)):
        a, b = float(mine[0]), float(other[0])
        last_digit = 10.0 ** -len(mine[0].partition(".")[2])
        if re.match(r" (ms|s|times)\b", quoted[mine.end() :]):  # 計算の時間は、マシンによって何倍も違う
            continue
        is_percentage = quoted[mine.end() :].lstrip().startswith("%")
        allowed = max(points, last_digit) if is_percentage else share * abs(a) + last_digit
        worst = max(worst, abs(a - b) / (allowed * (1 + 1e-9)))
    return worst


def check(quoted, printed, name):
    """quoted は、レッスン name の出力 printed の抜粋で、順序は同じである。"""
    for line in quoted:
        distances = [distance(line, other, name) for other in printed]
        nearest = min(range(len(printed)), key=distances.__getitem__, default=None)
        assert nearest is not None and distances[nearest] <= 1, (
            f"{line!r} is not printed, but:\n" + "\n".join(printed)
        )
        printed = printed[nearest + 1 :]


# コマンドと実験


def command_of(block, folder):
    """bash の囲み `python レッスン.py 引数` の (レッスン, 引数)。README.md では `cd フォルダ && ` が付く。"""
    change, _, call = block.strip().rpartition(" && ")
    folder = ROOT / change.removeprefix("cd ") if change else folder
    python, script, *args = shlex.split(call)
    assert python == "python" and (folder / script).exists(), block
    return script.removesuffix(".py"), [
        str(folder / arg) if (folder / arg).is_file() else arg for arg in args
    ]


def commands():
    """どの文書にもある、(レッスン, 引数, 直後に引用された出力)。"""
    for document in BOOK:
        found = blocks_of(text_of(document))
        for (language, block), (following, output) in zip(found, [*found[1:], ("", "")]):
            if (
                language == "bash"
                and block.count("&&") < 2
                and "python3" not in block
                and "torchrun" not in block
            ):
                name, args = command_of(block, document.parent)
                if name != OWN_PROCESSES:
                    quoted = output.splitlines() if following == "text" else []
                    yield pytest.param(
                        name, args, quoted, id=" ".join([document.name, name, *map(str, args)])[-80:]
                    )


def run_in_checkout(run, name, args):
    return run(name, *[arg.replace(str(ROOT), str(run.checkout)) for arg in args])


@pytest.mark.parametrize("name, args, quoted", list(commands()))
def test_every_command_prints_what_is_quoted(name, args, quoted, run):
    assert quoted, f"no output is quoted after {name} {args}"
    check(quoted, run_in_checkout(run, name, args).stdout.splitlines(), name)


@pytest.mark.parametrize(
    "number, names",
    [(0, ["minllm_novel"]), (1, ["minllm_instruct"]), (2, ["mnist", "load_and_infer"])],
    ids=["minllm_novel", "minllm_instruct", "mnist"],
)
def test_the_samples_of_the_front_door_are_printed(number, names, run):
    quoted = [output for language, output in blocks_of(text_of(README)) if language == "text"][number]
    printed = "".join(run(name).stdout for name in names)
    check(quoted.splitlines(), printed.splitlines(), names[0])


def docstring_of(path):
    return ast.get_docstring(ast.parse(text_of(path)))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_docstring_shows_real_output(path, run):
    parts = re.search(
        rf"^実行: python {path.name}.*?^結果.*?:\n(.*?)^試してみよう:\n    - .*^解説: {path.stem}.md$",
        docstring_of(path),
        re.M | re.S,
    )
    if path.stem != OWN_PROCESSES:
        lines = run(path.stem).stdout.splitlines()
        check([line.strip() for line in parts[1].splitlines()], [line.strip() for line in lines], path.stem)


def apply(diff, source):
    """source に diff を当てる。続いた - の行を、続いた + の行に替える。- の並びは、ただ 1 か所あること。"""
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
    """(レッスン, diff, 引用された出力)。答えの中のコマンドは commands() に入っている。"""
    for path, page in zip(LESSONS, PAGES):
        for answer in FOLDED.findall(text_of(page)) if page.exists() else []:
            found = blocks_of(answer)
            for (language, diff), (following, output) in zip(found, [*found[1:], ("", "")]):
                if language == "diff" and path.stem != OWN_PROCESSES:
                    change = [line for line in diff.splitlines() if line[:1] in "+-"]
                    quoted = output.splitlines() if following == "text" else []
                    yield pytest.param(path, diff, quoted, id=f"{path.stem} {change[-1][:50]}")


@pytest.mark.parametrize("path, diff, quoted", list(experiments()))
def test_an_experiment_gives_its_answer(path, diff, quoted, run):
    assert quoted, f"no output is quoted in an answer of {path.stem}"
    printed = run.execute(path.stem, source=apply(diff, text_of(path))).stdout
    check(quoted, printed.splitlines(), path.stem)


def test_the_other_python_blocks_run_and_print_what_their_comments_say(capsys):
    for document in BOOK:
        for language, text in blocks_of(text_of(document)):
            if language == "python":
                exec(compile(text, document.name, "exec"), {})
                expected = re.findall(r"print\(.*\)  # (.+?)(?:、.*)?$", text, re.M)
                assert expected and capsys.readouterr().out.splitlines() == expected


# 形


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_parts(page):
    text = text_of(page)
    parts = [
        "# ",
        f"]({page.stem}.py)",
        "**問い。**",
        "```bash",
        "## 説明\n",
        "## 試してみよう",
        "## 説明できるか",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    asked = docstring_of(page.with_suffix(".py")).split("試してみよう:\n")[1].count("    - ")
    experiments, questions = text.split("## 試してみよう")[1].split("## 説明できるか")
    assert (len(FOLDED.findall(experiments)), len(FOLDED.findall(questions))) == (asked, 2)
    for picture, caption in re.findall(r"^!\[.+\]\((.+)\)\n\n?(.*)$", text, re.M):
        assert re.fullmatch(r"\*[^*].*。\*", caption), f"no caption under {picture}"


def test_pages_link_the_one_before_and_the_one_after():
    rows = re.findall(r"^\| \[`?(\w+)(?:\.py)?`?\]\((0\w+)/\w+\.md\)", text_of(README), re.M)
    assert sorted(name for name, _ in rows) == sorted(path.stem for path in LESSONS)
    for (name, folder), (following, its_folder) in zip(rows, rows[1:]):
        if folder == its_folder:
            assert re.search(rf"次: .*\]\({following}\.md\)", text_of(ROOT / folder / f"{name}.md")), name
            assert re.search(rf"前: .*\]\({name}\.md\)", text_of(ROOT / folder / f"{following}.md")), (
                following
            )
    for chapter in CHAPTERS:
        order = [name for name, folder in rows if folder == chapter.parent.name]
        assert re.findall(r"^\| \[(\w+)\]\(\1\.md\)", text_of(chapter), re.M) == order


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


def pictures_of(page):
    return set(re.findall(r"!\[[^\]]+\]\(\.\./(images/\S+\.png)\)", prose_of(text_of(page))))


def test_every_picture_is_shown_on_the_page_of_its_lesson():
    shown = set().union(*map(pictures_of, PAGES))
    assert shown == {f"images/{path.name}" for path in (ROOT / "images").glob("*.png")}


@pytest.mark.parametrize("page", list(filter(pictures_of, PAGES)), ids=lambda page: page.stem)
def test_the_commands_make_the_pictures_of_the_page(page, run):
    made = set()
    for parameters in commands():
        name, args, _ = parameters.values
        if name == page.stem:
            made |= run_in_checkout(run, name, args).changed
    assert pictures_of(page) <= made


# README.md の表と数


@pytest.mark.parametrize(
    "file, pattern",
    [(".ci/run", r"grep -E '(.+?)' README.md"), (".github/workflows/test.yml", r"-Pattern '(.+?)'")],
)
def test_ci_runs_the_test_command_of_the_readme(file, pattern):
    pattern = re.search(pattern, text_of(ROOT / file))[1]
    (command,) = [line for line in text_of(README).splitlines() if re.search(pattern, line)]
    assert "-r tests/requirements.txt" in command and command.endswith("pytest")


def test_the_torchrun_commands_are_understood():
    from torch.distributed.run import get_args_parser

    found = [
        block for document in BOOK for language, block in blocks_of(text_of(document)) if language == "bash"
    ]
    for command in [block for block in found if "torchrun" in block]:
        options = get_args_parser().parse_args(shlex.split(command.replace("\\\n", ""))[1:])
        assert options.training_script == "mnist_ddp.py"


def test_the_table_states_the_time_of_each_lesson():
    rows = re.findall(
        r"^\| \[`?(\w+)(?:\.py)?`?\]\((0\w+)/\w+\.md\).*\| ([^|]*秒[^|]*) \|", text_of(README), re.M
    )
    assert len(rows) == len(LESSONS)
    for name, folder, time in rows:
        stated = re.search(
            r"^実行: .*（2 コアの CPU で(.+?)）", docstring_of(ROOT / folder / f"{name}.py"), re.M
        )[1]
        assert re.findall(r"(\d+) 秒", time) == re.findall(r"(\d+) 秒", stated), name


def test_the_table_of_options_is_that_of_the_script():
    source = text_of(ROOT / "02_pytorch_mnist" / "load_and_infer.py")
    rows = re.findall(r"^\| `(-\w)`, `(--[\w-]+)` \|", prose_of(text_of(README)), re.M)
    assert rows == re.findall(r'add_argument\(\s*"(-\w)", "(--[\w-]+)"', source)


def test_the_stated_accuracies_and_sizes_are_those_of_the_shipped_weights(run):
    stated = re.findall(r"^\| (MLP|CNN) \| ([\d,]+) \| (\d+\.\d+) % \|$", text_of(README), re.M)
    assert [kind for kind, _, _ in stated] == ["MLP", "CNN"]
    for kind, parameters, accuracy in stated:
        lesson = run("load_and_infer", "-m", kind.lower(), "-n", 10_000)
        size = sum(parameter.numel() for parameter in lesson.model.parameters())
        assert (f"{size:,}", f"{lesson.correct / 100:.2f}") == (parameters, accuracy)
