"""README.md に書いてあることは、すべて本当である。"""

import ast
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import LESSONS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(match[1], match[2]) for match in FENCE.finditer(README)]
PROSE = FENCE.sub("", README)
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("tests/*.md"), *ROOT.glob("0*_*/data/README.md")]


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def test_fenced_blocks_are_closed_and_name_their_language():
    assert README.count("```") == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"bash", "powershell", "text", "python", "math", "mermaid"}


def test_japanese_paragraphs_stand_on_one_line():
    lines = PROSE.splitlines()  # GitHub は、段落の中の改行を空白として見せる
    for line, following in zip(lines, lines[1:]):
        if line and following and not line.startswith("#"):
            assert following.startswith(("|", "- ", "1. ", "2. ", "3. ", "4. ")), following


# コマンドと出力


CPU, RUN, TEST = (text.strip() for text in blocks("bash") if "pip install" in text)
COMMANDS = [text.strip() for text in blocks("bash") if "pip install" not in text]
WITHOUT_OUTPUT = {"mnist_draw.py", "--rdzv-backend"}  # 窓を待つものと、2 台のマシンが要るもの


def quoted_output(command):
    """README で command の直後に引用されている出力の行。"""
    languages = [block for block in BLOCKS if block[0] in ("bash", "text")]
    index = languages.index(("bash", command + "\n"))
    if WITHOUT_OUTPUT & set(command.split()):
        return []
    assert languages[index + 1][0] == "text", f"no output is quoted after {command}"
    return languages[index + 1][1].splitlines()


def test_the_install_commands():
    for command in (CPU, RUN, TEST):
        assert len(command.splitlines()) == 1
        assert command.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")
    assert RUN.endswith("-r requirements.txt && cd 02_pytorch_mnist && python mnist.py && python load_and_infer.py")
    assert TEST.endswith("-r tests/requirements.txt && python -m pytest")
    windows_run, windows_test = blocks("powershell")[0].splitlines()
    for command, windows in ((RUN, windows_run), (TEST, windows_test)):
        unix_steps = command.split(" && ")[2:]
        assert windows.split("; ") == ["python -m venv .venv", ".venv\\Scripts\\Activate.ps1", *unix_steps]


def test_ci_runs_the_test_command_of_the_readme():
    pattern = re.search(r"grep -E '(.+?)' README.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))[1]
    lines = [line for line in README.splitlines() if re.search(pattern, line)]
    assert lines == [TEST]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    pattern = re.search(r"-Pattern '(.+?)'", workflow)[1]
    lines = [line for line in README.splitlines() if re.search(pattern, line)]
    assert lines == [blocks("powershell")[0].splitlines()[1]]


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
# 学習の結果は、同じ乱数からでも CPU の種類によって少しずれる。
# 許す差を、行の初めごとに決める。ほかの行は一字一句同じでなければならない
TOLERANCE = [("epoch ", 0.5), ("test accuracy", 0.5), ("boundary", 0.05), ("misclassified", 2), ("w[", 0.01),
             ("held-out exact match", 10), ("first loss", 0.01), ("this model", 3)]
WRITTEN = re.compile("step \\d+ |主人は|longest run found in the novel: ")  # GPT の書いた文章を含む行の初め


@pytest.fixture(scope="session")
def alike(run):
    """README を書いたマシンと、丸めまで同じ計算になるか。違えば、GPT の書く文章は途中から変わる。"""
    return blocks("text")[0].splitlines()[0] in run("minllm_novel").stdout.splitlines()


def same(quoted, printed, alike):
    if quoted == printed:
        return True
    if not alike and (start := WRITTEN.match(quoted)):  # 文章の前にある数だけを比べる
        numbers, printed_numbers = (re.sub(r"[^\x00-\x7f].*", "", line) for line in (quoted, printed))
        tolerance = 10 if start[0].startswith("longest") else 0.3
        return printed.startswith(start[0]) and same_numbers(numbers, printed_numbers, tolerance)
    tolerance = next((tolerance for start, tolerance in TOLERANCE if quoted.startswith(start)), None)
    return tolerance is not None and same_numbers(quoted, printed, tolerance)


def same_numbers(quoted, printed, tolerance):
    """数のほかは同じで、数の差が tolerance までか。"""
    words = NUMBER.sub("", quoted).split() == NUMBER.sub("", printed).split()
    numbers = zip(NUMBER.findall(quoted), NUMBER.findall(printed))
    return words and all(abs(float(a) - float(b)) <= tolerance for a, b in numbers)


def check(quoted, printed, alike):
    """引用は、出力の抜き書きで、順序は同じである。"""
    for line in quoted:
        found = [i for i, other in enumerate(printed) if same(line, other, alike)]
        assert found, f"{line!r} is not printed (any more)"
        printed = printed[found[0] + 1:]


@pytest.mark.parametrize("command", [command for command in COMMANDS if "torchrun" not in command])
def test_every_command_prints_what_is_quoted(command, run, alike):
    change, call = command.split(" && ")
    folder, (python, script, *args) = change.removeprefix("cd "), shlex.split(call)
    assert python == "python" and (ROOT / folder / script).exists()
    args = [str(run.checkout / folder / arg) if (ROOT / folder / arg).is_file() else arg for arg in args]
    check(quoted_output(command), run(Path(script).stem, *args).stdout.splitlines(), alike)


def test_the_run_command_prints_what_is_quoted(run, alike):
    check(quoted_output(RUN), (run("mnist").stdout + run("load_and_infer").stdout).splitlines(), alike)


def test_the_samples_at_the_top_are_printed(run, alike):
    top = blocks("text")[0].splitlines()
    assert README.index(top[0]) < README.index("## 1 分で動かす")
    check(top, run("minllm_novel").stdout.splitlines(), alike)


def test_the_torchrun_commands(run):
    """何プロセスでも同じ訓練になるので、1 プロセスの出力と、数だけが違う。"""
    one, two_machines = (command for command in COMMANDS if "torchrun" in command)
    assert quoted_output(two_machines) == []
    from torch.distributed.run import get_args_parser
    options = get_args_parser().parse_args(shlex.split(two_machines.split(" && ")[1])[1:])
    assert (options.nnodes, options.nproc_per_node, options.training_script) == ("2", "4", "mnist_ddp.py")
    options = get_args_parser().parse_args(shlex.split(one.split(" && ")[1])[1:])
    assert (options.nproc_per_node, options.training_script) == ("2", "mnist_ddp.py")
    printed = run("mnist_ddp").stdout.splitlines()
    for line in quoted_output(one):
        assert any(same_numbers(line.replace("processes: 2, each takes 32", "processes: 1, each takes 64")
                                .replace(" 2 processes", " 1 processes"), other, 0.5) for other in printed), line


def test_the_lesson_outputs_quoted_in_docstrings_are_printed(run, alike):
    for path in LESSONS:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        quoted = re.search(r"^結果（.*?:\n(.*?)^試してみよう", doc, re.M | re.S)[1]
        if "torchrun" in doc.split("結果（")[0].splitlines()[-1]:
            continue  # 2 プロセスでの出力である
        printed = run(path.stem).stdout.splitlines()
        for line in quoted.splitlines():
            assert any(same(line.strip(), other.strip(), alike) for other in printed), (path.name, line)


# 表、リンク、図


def anchors(text):
    """見出しの行に GitHub が付けるアンカー。"""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    found = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(found)) == len(found)  # 同じ見出しが 2 つあると、リンクは先のほうへ飛ぶ
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_images_resolve(document):
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors(text), target
        elif not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def test_every_picture_is_shown_with_alt_text_and_made_by_a_lesson(run):
    assert all(len(alt) > 5 for alt in re.findall(r"!\[([^\]]*)\]", PROSE))
    pictures = {path.name for path in (ROOT / "images").glob("*.png")}
    assert set(re.findall(r"\]\(images/([^)/]+)\)", PROSE)) - {"digits"} == pictures
    made = set().union(*[run(path.stem).changed for path in LESSONS], run("mnist", "-m", "cnn").changed,
                       run("load_and_infer", "-s", "240", "-n", "20").changed)
    assert {f"images/{name}" for name in pictures} == {file for file in made if file.endswith(".png")}


def lesson_rows():
    """レッスンの表の {スクリプトの相対パス: [すること, 学ぶこと, 時間, 見る]}。"""
    rows = re.findall(r"^\| \[`(\w+\.py)`\]\(([^)]+)\)<br>(.*)\|$", PROSE, re.M)
    assert all(Path(link).name == name for name, link, _ in rows)
    return {link: [cell.strip() for cell in cells.split("|")] for _, link, cells in rows}


def test_the_table_lists_every_lesson_in_the_folders():
    rows = lesson_rows()
    assert sorted(rows) == [path.relative_to(ROOT).as_posix() for path in LESSONS]
    for link, (does, teaches, time, picture) in rows.items():
        source = (ROOT / link).read_text(encoding="utf-8")
        assert does and teaches
        stated = re.search(r"^結果（2 コアの CPU で(.+?)）", source, re.M)[1]  # 約 4 秒、MLP は約 10 秒、CNN は約 50 秒
        assert re.findall(r"\d+", time) == re.findall(r"\d+", stated), link
        assert ("savefig" in source) == ("](images/" in picture), link


def test_the_table_of_options_is_that_of_the_script():
    source = (ROOT / "02_pytorch_mnist" / "load_and_infer.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(-\w)`, `(--[\w-]+)` \| .+? \| (.+?) \|$", PROSE, re.M)
    assert [(short, long) for short, long, _ in rows] == re.findall(r'add_argument\("(-\w)", "(--[\w-]+)"', source)
    for _, long, default in rows:
        if default.strip("`") in ("0", "20", "mlp"):
            assert re.search(rf'"{long}".*default="?{default.strip("`")}\b', source)


def test_options_named_in_the_text_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in LESSONS)
    for option in set(re.findall(r"`(--?[a-z][\w-]*)[ `]", PROSE)) - {"--help", "--standalone"}:  # argparse と torchrun のもの
        assert f'"{option}"' in sources, option


def test_the_table_of_training_parts_is_that_of_the_scripts():
    table = re.findall(r"^\| (`\w+\.py`.*?) \| (.*?) \| (.*?) \| (一定|上げてから下げる) \|$", PROSE, re.M)
    assert len(table) == 5
    listed = set()
    for scripts, loss, method, rate in table:
        for name in re.findall(r"`(\w+)\.py`", scripts):
            source = next(path for path in LESSONS if path.stem == name).read_text(encoding="utf-8")
            assert (("MSELoss" in source), ("MSELoss" in loss)) in [(True, True), (False, False)], name
            assert f"torch.optim.{method.split('、')[0]}(" in source, name
            assert ("clip_grad_norm_" in source) == ("上限" in method), name
            assert ("OneCycleLR" in source) == (rate == "上げてから下げる"), name
            assert ("label_smoothing" in source) == ("平滑化" in loss), name
            listed.add(name)
    training = {path.stem for path in LESSONS if "loss.backward()" in path.read_text(encoding="utf-8")}
    assert training - listed == {"learn_class_decision_boundary"}  # learn_classify.py など犬と猫


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


def test_the_cnn_tables_are_the_real_network(run):
    model = run("mnist_cnn_features").CNN()
    x = torch.zeros(1, 1, 28, 28)
    for name, sequence in (("features", model.features), ("classifier", model.classifier)):
        for i, layer in enumerate(sequence):
            before, x = x, layer(x)
            row, = re.findall(rf"^\| `{name}\.{i}`.*$", PROSE, re.M)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert f"`{type(layer).__name__}(" in cells[0]
            shapes = " → ".join("×".join(map(str, tensor.shape[1:])) for tensor in (before, x))
            assert cells[0].split("<br>")[1] == shapes and cells[1] == f"{count(layer):,}"
            if isinstance(layer, nn.Conv2d):
                assert f"`Conv2d({layer.in_channels}, {layer.out_channels}, 3, padding=1)`" in row
                assert (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))
                by_formula = (layer.in_channels * 3 * 3 + 1) * layer.out_channels
                assert count(layer) == by_formula
                assert f"({layer.in_channels} × 3 × 3 + 1) × {layer.out_channels} = {by_formula:,} 個" in PROSE
            if isinstance(layer, nn.Linear):
                assert f"`Linear({layer.in_features}, {layer.out_features})`" in row
    first = model.features[0]
    assert "1 × 3 × 3 = 9 個の重みと 1 個のバイアスで、合わせて 10 個" in PROSE
    assert first.weight[0].numel() == 9 and first.weight[0].numel() + first.bias[0].numel() == 10
    assert f"CNN のパラメータは全部で {count(model):,} 個で、その 95 % が `classifier.1` にある" in PROSE
    assert round(100 * count(model.classifier[1]) / count(model)) == 95
    assert nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 28, 28)).shape[-1] == 26 and "28 − 3 + 1 = 26 通り" in PROSE


def test_the_diagrams_are_the_real_network(run):
    flow, maps, shares = blocks("mermaid")
    model = run("mnist_cnn_features").CNN()
    x = torch.zeros(1, 1, 28, 28)
    shapes = [x.shape[1:]]
    for part in (model.features[:3], model.features[3:], *(model.classifier[i] for i in (0, 1, 3))):
        x = part(x)
        shapes.append(x.shape[1:])
    assert re.findall(r"<br>([\d×]+)", flow) == ["×".join(map(str, shape)) for shape in shapes]
    first = model.features[0]
    assert f"画像 {first.in_channels}×28×28" in maps and f"重ねて {first.out_channels}×28×28" in maps
    assert f"フィルタ {first.out_channels - 1}" in maps and f"マップ {first.out_channels - 1}" in maps
    batch = run("mnist_ddp").BATCH_SIZE
    assert f"バッチ {batch} 枚" in shares and shares.count(f"{batch // 2} 枚") == 2


def test_the_mlp_numbers_are_the_real_network(run):
    model = run("mnist_dummydata_weightconfirm").MLP()
    assert f"784 × 100 + 100 = {count(model.fc1):,} 個" in PROSE
    assert f"100 × 10 + 10 = {count(model.fc2):,} 個で、全部で {count(model):,} 個" in PROSE
    assert f"{model.fc1.weight.numel():,} 個の重みがすべて" in PROSE
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


def test_the_numbers_of_the_training_section(run):
    mnist = run("mnist")
    assert f"MLP が {mnist.BATCH_SIZE['mlp']} 枚、CNN が {mnist.BATCH_SIZE['cnn']} 枚" in PROSE
    target = torch.full((10,), mnist.LABEL_SMOOTHING / 10)
    target[0] += 1 - mnist.LABEL_SMOOTHING
    lowest = F.cross_entropy(target.log().unsqueeze(0), torch.tensor([0]), label_smoothing=mnist.LABEL_SMOOTHING)
    assert f"訓練の損失は {lowest:.2f} までしか下がらない" in PROSE
    assert f"ln 10 = {math.log(10):.3f}" in PROSE


def test_the_numbers_of_the_novel(run):
    novel, tokenizer = run("minllm_novel"), run("minllm_tokenizer")
    for name, note in (("uniform", "等しい確率で選べば損失は"), ("single characters", "文字の多さだけで選べば"),
                       ("pairs of characters", "直前の 1 文字を見て選べば")):
        loss = novel.baselines[name]
        assert f"{note} {loss:.2f}（{math.exp(loss):,.0f}択）" in PROSE.replace(" 択", "択"), name
    counted = novel.pairs - 0.1  # ならすために足した分を除く
    pair = (counted / counted.sum(dim=1, keepdim=True).clamp(min=1))[novel.held_out[:-1], novel.held_out[1:]]
    single = (novel.single / novel.single.sum())[novel.held_out[1:]]
    assert f"85 対 15 でうまく混ぜても {-(0.85 * pair + 0.15 * single).log().mean():.2f} である" in PROSE
    stated, choices = re.search(r"GPT は (\d\.\d\d)（(\d+) 択）", PROSE).groups()
    assert abs(list(novel.held_out_losses.values())[-1] - float(stated)) < 0.05
    assert abs(math.exp(float(stated)) - int(choices)) < 1
    assert f"{novel.V:,} 種類の文字" in PROSE and f"{novel.config.block_size} 文字より前" in PROSE
    for sentence, tokens in zip(tokenizer.SENTENCES, ("48 個", "34 個")):
        assert sentence in PROSE and tokens == f"{len(sentence.encode())} 個"
    learned = [len(tokenizer.encode(sentence)) for sentence in tokenizer.SENTENCES]
    assert f"日本語の文は {learned[0]} 個に減り、英語の文は {learned[1]} 個のまま" in PROSE


def test_the_stated_accuracies_are_those_of_the_shipped_weights(run):
    stated = re.findall(r"(MLP|CNN) は (\d+\.\d+) %", PROSE)
    assert len(stated) == 2
    for model_type, accuracy in stated:
        lesson = run("load_and_infer", "-m", model_type.lower(), "-n", 10_000)
        assert f"{lesson.correct / 100:.2f}" == accuracy


def test_the_most_frequent_error_is_stated(run):
    errors = run("mnist_errors").matrix.clone().fill_diagonal_(0)
    true, predicted = divmod(errors.argmax().item(), 10)
    assert f"最も多いのは、{true} を {predicted} と読んだ {errors.max()} 枚である" in PROSE
