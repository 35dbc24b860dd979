"""1 歩ずつ書けば解け、一度には解けない。書いた文字は次の計算に使われ、間違いは終わりまで続く。"""

import pytest
import torch


def test_every_string_of_bits_is_either_trained_or_held_out(run):
    lesson = run("minllm_thinking")
    everything = {f"{number:016b}" for number in range(65_536)}
    train, held_out = set(lesson.train_questions), set(lesson.held_out_questions)
    assert train | held_out == everything and not train & held_out
    assert len(lesson.train_questions) == len(train) and len(lesson.held_out_questions) == 300


def test_the_parity_is_learnt_in_steps_and_not_at_once(run):
    lesson = run("minllm_thinking")
    assert lesson.in_steps[200] > 98 and 38 < lesson.at_once[600] < 62
    questions = ["0000000000000000", "1111111111111110"] + lesson.held_out_questions
    prompts = torch.tensor([lesson.encode(question + "=") for question in questions])
    written = [lesson.decode(row) for row in lesson.generate(lesson.model, prompts, 16).tolist()]
    right = [text[-1] == str(text[:16].count("1") % 2) for text in written]
    assert sum(right) > 0.98 * len(right)


def test_a_flipped_character_flips_the_rest(run):
    lesson = run("minllm_thinking")
    assert lesson.agreement[:7].min() > 97 and lesson.agreement[7] < 3 and lesson.agreement[8:].max() < 5


def test_a_character_needs_the_one_before_and_its_input_bit_and_nothing_else(run):
    both, *one = run("minllm_thinking").kept_accuracies.values()
    assert both > 96 and one == pytest.approx([50, 50], abs=5)


def test_a_majority_of_the_half_trained_beats_one_sample(run):
    lesson = run("minllm_thinking")
    assert lesson.half_trained is not lesson.model and 55 < lesson.mean_alone < 98
    assert lesson.votes[9] > lesson.mean_alone and len(set(lesson.alone)) > 1


def test_wrong_steps_fail_the_proof(run, capsys):
    lesson = run("minllm_thinking")
    proof = lesson.path.read_text(encoding="utf-8").split("# %% 確かめる")[1].split("# %% 図")[0]
    wrong = dict(vars(lesson), running_parity=lambda question: "0" + lesson.running_parity(question)[:-1])
    exec("# " + proof, wrong)
    assert f"{16 * 65_536} of {16 * 65_536}" not in capsys.readouterr().out
    exec("# " + proof, dict(vars(lesson)))
    assert f"{16 * 65_536} of {16 * 65_536}" in capsys.readouterr().out


def test_the_picture_shows_both_ways_the_flip_and_the_votes(run):
    lesson = run("minllm_thinking")
    left, middle, right = lesson.fig.axes
    for line, accuracies in zip(left.lines, (lesson.at_once, lesson.in_steps)):
        assert dict(zip(line.get_xdata(), line.get_ydata())) == accuracies
    assert [bar.get_height() for bar in middle.patches] == lesson.agreement.tolist()
    assert list(right.lines[0].get_ydata()) == list(lesson.votes.values())
