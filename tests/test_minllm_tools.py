"""モデルは見たことのない組でも道具を呼び、道具は決まった形だけを計算し、答えは道具の書いたものに従う。"""

import re

import pytest


def test_the_held_out_pairs_never_occur_in_training(run):
    lesson = run("minllm_tools")
    held_out = {frozenset(pair) for pair in lesson.held_out}
    trained = {frozenset(pair) for pair in lesson.train_pairs}
    assert len(held_out) == 500 and held_out | trained == {frozenset(pair) for pair in lesson.pairs}
    assert not held_out & trained


@pytest.mark.parametrize("question, with_tool, text, in_loss", [
    ("05*07", True, "05*07?<05*07=0035>0035.", "      <05*07=     0035."),
    ("05*07", False, "05*07?0035.", "      0035."),
    ("05~07", True, "05~07?0705.", "      0705."),
])  # fmt: skip
def test_only_what_the_model_writes_is_in_the_loss(run, question, with_tool, text, in_loss):
    assert run("minllm_tools").write(question, with_tool) == (text, in_loss)


def test_the_model_calls_only_where_it_must(run):
    lesson = run("minllm_tools")
    for (a, b), swap, product in zip(
        lesson.held_out, lesson.texts_of["with a tool", "~"], lesson.texts_of["with a tool", "*"]
    ):
        assert swap == f"{a:02d}~{b:02d}?{b:02d}{a:02d}."
        assert product == f"{a:02d}*{b:02d}?<{a:02d}*{b:02d}={a * b:04d}>{a * b:04d}."
    right = sum(
        text.endswith(f"?{a * b:04d}.")
        for (a, b), text in zip(lesson.held_out, lesson.texts_of["at once", "*"])
    )
    assert right < 50


@pytest.mark.parametrize("call", [
    "9**9**9", "47*850", "47+85", "4*85", "47*85\n", "", "４７*85", "__import__('os').remove('notes.txt')"
])  # fmt: skip
def test_the_tool_refuses_every_other_form_and_the_loop_ends(run, call):
    lesson = run("minllm_tools")
    assert lesson.calculate(call) is None
    asked = []

    def refuse(call):
        asked.append(call)

    assert lesson.answer(lesson.tool_model, "47*85?", refuse) == "47*85?<47*85=" and asked == ["47*85"]


def test_the_proof_fails_where_the_tool_is_not_believed(run, capsys):
    lesson = run("minllm_tools")
    proof = re.search(r"# %% 確かめる.*?(?=# %% 図)", lesson.path.read_text(encoding="utf-8"), re.S)[0]
    exec(proof, dict(vars(lesson)))
    assert capsys.readouterr().out.count("True") == 2
    exec(proof, {**vars(lesson), "tool_model": lesson.at_once_model})
    assert capsys.readouterr().out.count("False") == 2


def test_the_picture_shows_the_answers(run):
    lesson = run("minllm_tools")
    at_once, with_tool, forged = [dots.get_offsets() for axes in lesson.fig.axes for dots in axes.collections]
    assert (with_tool[:, 0] == with_tool[:, 1]).all() and (forged[:, 0] == forged[:, 1]).all()
    assert [f"{x:.0f}" for x in with_tool[:, 0]] == [str(a * b) for a, b in lesson.held_out]
    assert (at_once[:, 0] != at_once[:, 1]).sum() > 450
