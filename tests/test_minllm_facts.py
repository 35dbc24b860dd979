"""知らない人にも町を答え、「不明」は一部にしか通じず、資料は正しくても偽でも写される。"""

from types import SimpleNamespace

import pytest
import torch

from conftest import section


def answers_of(lesson, model, questions):
    with torch.no_grad():
        tokens = model(lesson.encode(questions))[:, -1].argmax(dim=1)
    return [lesson.vocabulary[token] for token in tokens.tolist()]


def proof_with(lesson, capsys, **wrong):
    """wrong に替えて、確かめる部分だけを動かした出力。"""
    capsys.readouterr()
    exec(section(lesson, "確かめる", "図"), {**vars(lesson), **wrong})
    return capsys.readouterr().out


def copied(stdout):
    """{隠したもの: 写した人の数}"""
    lines = [line for line in stdout.splitlines() if line.startswith("hidden: ")]
    return {line[8:26].strip(): int(line.split("copied")[1].split()[0]) for line in lines}


def test_the_people_never_met_are_in_no_training_example(run):
    lesson = run("minllm_facts")
    examples = [question + answer for question, answer in lesson.facts + lesson.refusals + lesson.readings]
    assert len(set(lesson.unknown)) == 100 and len(examples) == 2300
    assert not [name for name in lesson.unknown if any(f" {name} " in example for example in examples)]


def test_the_known_are_remembered_and_the_others_get_an_invented_town(run):
    lesson = run("minllm_facts")
    for model in (lesson.model_a, lesson.model_b, lesson.model_c):
        right = sum(map(str.__eq__, answers_of(lesson, model, lesson.ask_known), lesson.known_towns))
        assert right >= 196
    answers = answers_of(lesson, lesson.model_a, lesson.ask_unknown)
    assert set(answers) <= set(lesson.TOWNS)
    assert sum(map(str.__eq__, answers, lesson.unknown_towns)) < 20  # まぐれは 5 人ほど
    assert lesson.unknown_probability.mean() > 0.55 and (lesson.known_probability > 0.9).all()
    for model in (lesson.model_b, lesson.model_c):
        assert 15 < answers_of(lesson, model, lesson.ask_unknown).count("不明") < 70


@pytest.mark.parametrize("questions", ["ask_true", "ask_forged", "ask_another"])
def test_the_town_of_any_document_is_the_answer(questions, run):
    lesson = run("minllm_facts")
    asked = getattr(lesson, questions)
    towns = [question.split()[5] for question in asked]
    for question in asked:  # だれの資料か
        assert (question.split()[1:4] == question.split()[7:10]) == (questions != "ask_another")
    assert sum(map(str.__eq__, answers_of(lesson, lesson.model_c, asked), towns)) >= 0.98 * len(asked)
    if questions == "ask_forged":
        assert not any(map(str.__eq__, towns, lesson.known_towns))


def test_the_answer_comes_from_the_town_in_the_document(run):
    lesson = run("minllm_facts")
    counts = copied(lesson.stdout)
    assert counts["nothing"] >= 196 and counts["the town"] < 40 and counts["all but the town"] > 120
    assert lesson.attention.shape == (8, 11)
    torch.testing.assert_close(lesson.attention.sum(dim=1), torch.ones(8))
    assert lesson.attention[:, lesson.TOWN].mean() > 0.3  # 等しく見るなら 0.09
    image = lesson.fig.axes[1].images[0].get_array()
    assert torch.equal(torch.tensor(image.tolist()), lesson.attention)
    bars = [bar.get_width() for bar in lesson.fig.axes[0].patches]
    rows = list(lesson.percentages.values())
    assert bars == pytest.approx([row[i] for i in range(3) for row in rows], abs=1e-3)
    assert [sum(row) for row in rows] == pytest.approx(9 * [100])


def test_the_proof_fails_when_a_step_is_missing_or_nothing_is_copied(run, capsys):
    lesson = run("minllm_facts")
    wrong_step = SimpleNamespace(gelu=torch.relu)
    assert "within 1e-3: False" in proof_with(lesson, capsys, F=wrong_step)
    without_documents = lesson.encode(lesson.ask_known)
    output = proof_with(lesson, capsys, encode=lambda questions: without_documents)
    assert copied(output)["nothing"] < 20
