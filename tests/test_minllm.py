"""GPT を組み立てるレッスンの GPT が、先を見ず、ページの言うとおりの大きさである。"""

import math
import re

import pytest
import torch


@pytest.mark.parametrize("seed", [1, 2])
def test_an_untrained_gpt_guesses_and_never_sees_the_future(run, seed):
    lesson = run("minllm", SEED=seed)
    assert abs(lesson.first_loss - math.log(1000)) < 0.1
    future = torch.ones(32, 32, dtype=torch.bool).triu(diagonal=1)
    for changes in lesson.changes, lesson.changes_without:
        assert changes[future].eq(0).all() and changes[~future].gt(0).all()
    assert lesson.changes.argmax(dim=1).tolist() == list(range(32))  # 自分のトークンが最も影響する
    assert lesson.changes[-1, -1] > 50 * lesson.changes_without[-1, -1]


def test_the_page_counts_the_parameters_of_every_part(run):
    lesson = run("minllm")
    page = lesson.path.with_suffix(".md").read_text(encoding="utf-8")
    parts = dict(lesson.model.named_modules())
    rows = re.findall(r"^\| (.*?`([\w.]+)`.*?) \| .* \| (.+) = ([\d,]+) \|$", page, re.M)
    assert len(rows) == 10
    for names, name, product, count in rows:
        part = parts.get(name) or parts[f"h.0.{name}"]
        number = sum(parameter.numel() for parameter in part.parameters()) * len(names.split("、"))
        assert eval(product.replace("×", "*").replace(",", "")) == number == int(count.replace(",", "")), name


@pytest.mark.parametrize(
    "right, wrong", [(" / math.sqrt(head_size)", ""), ("self.attn(self.ln_1(x))", "self.attn(x)")]
)
def test_pytorch_s_layer_is_not_equal_to_another_block(run, right, wrong):
    source = run("minllm").path.read_text(encoding="utf-8")
    assert source.count(right) == 1
    lesson = run.execute("minllm", source=source.replace(right, wrong))
    assert "nn.TransformerEncoderLayer and Block: largest difference below 1e-4: False" in lesson.stdout
