"""GPT を組み立てて足し算を学ぶレッスンが、教えるとおりのことを学び、表示する。"""

import math
import re

import numpy as np
import pytest
import torch

from conftest import drawn_images

every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


# minllm.py


@pytest.mark.parametrize("seed", [1, 2])
def test_an_untrained_gpt_guesses_and_never_sees_the_future(run, seed):
    lesson = run("minllm", SEED=seed)
    assert abs(lesson.first_loss - math.log(1000)) < 0.1
    future = torch.ones(32, 32, dtype=torch.bool).triu(diagonal=1)
    for changes in lesson.changes, lesson.changes_without:
        assert changes[future].eq(0).all() and changes[~future].gt(0).all()
    assert lesson.changes.argmax(dim=1).tolist() == list(range(32))  # 自分のトークンが最も影響する
    assert lesson.changes[-1, -1] > 50 * lesson.changes_without[-1, -1]
    for axes, changes in zip(drawn_images(lesson.fig), (lesson.changes, lesson.changes_without)):
        np.testing.assert_array_equal(axes.images[0].get_array(), changes)


@pytest.mark.parametrize("batch, length", [(1, 1), (3, 7)])
def test_gpt_takes_any_batch_and_length(run, batch, length):
    assert run("minllm").model(torch.randint(1000, (batch, length))).shape == (batch, length, 1000)


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


# minllm_addition.py


def test_addition_learns_sums_it_has_not_seen(run):
    lesson = run("minllm_addition")
    train, held_out = (set(map(tuple, sums.tolist())) for sums in (lesson.train_data, lesson.held_out))
    assert len(train) + len(held_out) == 10_000 and not train & held_out
    right = 0
    for tokens in lesson.generate(lesson.held_out[:, :6]).tolist():
        first, second, answer = re.split(r"[+=]", lesson.decode(tokens))
        right += int(first) + int(second) == int(answer)
    assert right >= 0.99 * len(held_out)


@every_seed
def test_addition_never_trains_on_the_mirror_of_a_held_out_sum(run, seed):
    lesson = run("minllm_addition", SEED=seed, STEPS=20)
    train, held_out = ({text[:5] for text in texts} for texts in (lesson.train_texts, lesson.held_out_texts))
    assert 950 < len(held_out) < 1000
    for text in held_out:
        mirror = text[3:] + "+" + text[:2]
        assert mirror in held_out and mirror not in train


def test_addition_trains_on_the_answers_alone(run):
    lesson = run("minllm_addition", STEPS=20)
    assert lesson.losses[0] == pytest.approx(math.log(12), abs=0.2)  # 学ぶ前は当てずっぽう
    assert lesson.answers.equal(lesson.sums[:, 6:]) and lesson.answer_logits.shape == (
        lesson.BATCH_SIZE,
        3,
        12,
    )


def test_addition_states_the_probability_of_each_character(run):
    lesson = run("minllm_addition", "-q", "12+34", "-q", "5+6", STEPS=20)
    for prompt in ("47+85=", "12+34=", "05+06="):
        text = re.search(rf"question: ({re.escape(prompt)}.+) \(", lesson.stdout)[1]
        for length in (6, 7, 8):
            with torch.no_grad():
                logits = lesson.model(torch.tensor([lesson.encode(text[:length])]))[0, -1]
            row = f"{text[:length]:8s} -> {text[length]}  (probability {logits.softmax(dim=0).max():.4f})"
            assert row in lesson.stdout


def test_addition_looks_at_the_digits_it_adds(run):
    lesson = run("minllm_addition")
    torch.testing.assert_close(lesson.attention.sum(dim=3), torch.ones(len(lesson.held_out), 4, 8))
    hundreds, tens, ones = lesson.mean_attention[:, 5:].mean(dim=0)
    assert ones[[1, 4]].sum() > 0.5 and ones[[0, 3]].sum() < 0.02
    for row in (hundreds, tens):
        assert row[[0, 3]].sum() > row[[1, 4]].sum()
    for position, axes in zip([5, 6, 7], drawn_images(lesson.fig)):
        np.testing.assert_allclose(axes.images[0].get_array(), lesson.mean_attention[:, position])
        framed = [
            round(patch.get_path().get_extents(patch.get_patch_transform()).x0 + 0.5)
            for patch in axes.patches
        ]
        assert framed == ([1, 4] if axes.get_title() == "writing the ones" else [0, 3])


@pytest.mark.parametrize("question", ["", "a+b", "100+1", "1+", "12", "1-2", "1+2+3", "１+２"])
def test_addition_refuses_what_is_not_a_sum(refuse, question):
    assert f"{question!r} は足し算ではない" in refuse("minllm_addition", "-q", question)
