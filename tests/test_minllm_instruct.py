"""訓練に使わなかった言葉の質問に答え、小説を混ぜれば書き方を忘れず、採点と損失の確かめは間違いを見つける。"""

import re

import pytest
import torch

from conftest import section


def test_unseen_words_are_answered_and_the_novel_is_kept_by_mixing(run):
    results = run("minllm_instruct").results
    exact_matches, novel_losses = zip(*results.values())
    assert exact_matches[0] == [0, 0, 0, 0, 0] and min(exact_matches[1]) > 60 and min(exact_matches[2]) > 85
    assert novel_losses[0] == pytest.approx(3.602, abs=2e-3)
    assert novel_losses[1] > 7.71 and 3.6 < novel_losses[2] < 4


def test_no_question_about_a_held_out_word_is_trained_on(run):
    lesson = run("minllm_instruct")
    assert not set(lesson.train_words) & set(lesson.held_out_words) and len(lesson.held_out_words) == 1000
    assert all(word in lesson.train_text for word in lesson.words)
    trained = {lesson.decode(example) for example in lesson.train_examples}
    asked = {re.fullmatch("<問>(.+)、.+<答>.+<終>", text)[1] for text in trained}
    assert asked == set(lesson.train_words) and len(trained) == 5 * len(asked)


def test_the_answers_are_right_and_fit_the_vocabulary(run):
    lesson = run("minllm_instruct")
    answers = [lesson.answer_of(command, "吾輩猫") for command in lesson.COMMANDS]
    assert answers == ["猫輩吾", "吾", "猫", "吾輩猫吾輩猫", "三"]
    assert not any(lesson.token_ids["〓"] in example for example in lesson.train_examples)
    assert lesson.ANSWER not in lesson.encode("<答>")  # 打った文字は、特別なトークンにならない


def test_three_more_rows_leave_the_other_logits_as_they_were(run):
    lesson, novel = run("minllm_instruct"), run("minllm_write").model
    idx = lesson.held_out_windows[:3, :-1]
    torch.testing.assert_close(lesson.before(idx)[:, :, :-3], novel(idx), atol=1e-4, rtol=0)
    assert lesson.before.lm_head.weight is lesson.before.wte.weight


def test_the_proofs_fail_when_the_scores_or_the_mask_are_wrong(run, capsys):
    lesson = run("minllm_instruct")
    assert lesson.stdout.count(": True") == 2 and ": False" not in lesson.stdout

    def loss_of_all_tokens(model, inputs, targets):
        everything = torch.cat([inputs[:, 1:], targets[:, -1:]], dim=1)
        return lesson.answer_loss_of(model, inputs, everything)

    wrong = {"answer_loss_of": loss_of_all_tokens, "exact_match_of": lambda model, command, words: 0}
    exec(section(lesson, "確かめる", "尋ねる"), {**vars(lesson), **wrong})
    assert capsys.readouterr().out.count(": False") == 2


def test_a_question_may_be_typed_in_either_order(run):
    lesson = run("minllm_instruct", "-q", "逆から 書生", "-q", "<答>、頭", STEPS=20, NUM_HELD_OUT_WORDS=50)
    assert lesson.questions[-2:] == ["書生、逆から", "<答>、頭"]
    assert "\n書生、逆から\n" in lesson.stdout
    assert "\n<答>、頭 (unknown, replaced by 〓: <>)\n" in lesson.stdout


@pytest.mark.parametrize("question", ["", "吾輩", "逆から吾輩", "逆から 吾輩 猫", "吾輩" * 20 + " 頭"])
def test_a_question_of_another_form_is_refused(refuse, question):
    message = refuse("minllm_instruct", "-q", question)
    assert "質問ではない" in message and message.count("\n") == 1


def test_the_picture_shows_the_results(run):
    lesson = run("minllm_instruct")
    left, right = lesson.fig.axes
    for bars, (exact_matches, _) in zip(left.containers, lesson.results.values()):
        assert [bar.get_height() for bar in bars] == exact_matches
    assert [bar.get_height() for bar in right.patches] == [loss for _, loss in lesson.results.values()]
