"""初めての足し算にも答え、足す数字を見て、足し算でないものは断る。"""

import re

import pytest
import torch


def test_addition_learns_sums_it_has_not_seen(run):
    lesson = run("minllm_addition")
    train, held_out = (set(map(tuple, sums.tolist())) for sums in (lesson.train_data, lesson.held_out))
    assert len(train) + len(held_out) == 10_000 and not train & held_out
    right = 0
    for tokens in lesson.generate(lesson.held_out[:, :6]).tolist():
        first, second, answer = re.split(r"[+=]", lesson.decode(tokens))
        right += int(first) + int(second) == int(answer)
    assert right >= 0.99 * len(held_out)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_addition_never_trains_on_the_mirror_of_a_held_out_sum(run, seed):
    lesson = run("minllm_addition", SEED=seed, STEPS=20)
    train, held_out = ({text[:5] for text in texts} for texts in (lesson.train_texts, lesson.held_out_texts))
    assert 950 < len(held_out) < 1000
    for text in held_out:
        mirror = text[3:] + "+" + text[:2]
        assert mirror in held_out and mirror not in train


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


@pytest.mark.parametrize("question", ["", "a+b", "100+1", "1+", "12", "1-2", "1+2+3", "１+２"])
def test_addition_refuses_what_is_not_a_sum(refuse, question):
    assert f"{question!r} は足し算ではない" in refuse("minllm_addition", "-q", question)
