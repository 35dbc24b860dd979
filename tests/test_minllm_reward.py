"""報酬だけで held-out の正解率が上がり、1 の位だけに払うとほかの位が崩れ、差のない報酬では何も動かない。"""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

SUM, TENS, ONES = 1, 3, 4  # history の列


def test_rewards_raise_the_accuracy_on_the_sums_that_were_kept_back(run):
    lesson = run("minllm_reward")
    assert lesson.held_out_texts == run("minllm_addition", STEPS=20).held_out_texts
    pairs = [
        {tuple(sorted(text[:5].split("+"))) for text in texts}
        for texts in (lesson.train_texts, lesson.held_out_texts)
    ]
    assert len(pairs[1]) == 500 and not pairs[0] & pairs[1]
    assert lesson.history[0][SUM] > 60 and lesson.history[-1][SUM] > lesson.history[0][SUM] + 3


def test_what_is_not_paid_for_is_lost(run):
    first, *_, last = run("minllm_reward").ones_history
    assert last[ONES] > first[ONES] + 3 and last[TENS] < first[TENS] - 20 and last[SUM] < first[SUM] - 15


def test_an_update_follows_the_better_answers_of_each_question(run):
    lesson = run("minllm_reward")
    model, seen = copy.deepcopy(lesson.start_model), []

    def pay(written, sums):
        seen.append(written)
        return lesson.pay_for_sum(written, sums)

    gradients = []
    optimizer = SimpleNamespace(
        step=lambda: gradients.extend(parameter.grad for parameter in model.parameters()),
        zero_grad=lambda: model.zero_grad(set_to_none=True),
    )
    rewards, advantages = lesson.update(model, optimizer, pay)
    written = seen[0]
    assert all(len({tuple(row[:6].tolist()) for row in group}) == 1 for group in written.split(8))
    for group, advantage in zip(rewards, advantages):
        mean = sum(group.tolist()) / 8
        deviation = (sum((reward - mean) ** 2 for reward in group.tolist()) / 7) ** 0.5
        expected = [(reward - mean) / (deviation + 1e-4) for reward in group.tolist()]
        assert advantage.tolist() == pytest.approx(expected, abs=1e-4)
    losses = F.cross_entropy(model(written[:, :-1]).transpose(1, 2), written[:, 1:], reduction="none")
    (losses[:, 5:].sum(dim=1) * advantages.flatten()).mean().backward()
    mine = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    theirs = torch.cat([gradient.flatten() for gradient in gradients])
    assert F.cosine_similarity(mine, theirs, dim=0) > 0.999 and theirs.norm() < 1.001


def test_equal_rewards_move_no_weight(run):
    lesson = run("minllm_reward")
    assert lesson.all_wrong == lesson.unmoved >= 5
    for paid in (0.0, 1.0):
        model = copy.deepcopy(lesson.start_model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        lesson.update(model, optimizer, lambda written, sums: torch.full((len(sums),), paid))
        for after, before in zip(model.parameters(), lesson.start_model.parameters()):
            assert torch.equal(after, before)


@pytest.mark.parametrize("wrong", ["(advantage * log_probability)", "-log_probability", "-advantage"])
def test_another_loss_fails_the_proof(run, capsys, wrong):
    lesson = run("minllm_reward")
    proof = lesson.path.read_text(encoding="utf-8").split("# %% 確かめる")[1].split("# %% モデル")[0]
    right = "-(advantage * log_probability)"
    assert proof.count(right) == 1
    loss = "(-advantage * log_probability.exp())" if wrong == "-advantage" else f"({wrong})"
    exec("# " + proof.replace(right, loss), dict(vars(lesson)))
    assert capsys.readouterr().out.count("0.01: False") == 2


def test_the_picture_shows_the_accuracies(run):
    lesson = run("minllm_reward")
    left, right = lesson.fig.axes
    assert list(left.lines[0].get_ydata()) == [row[SUM] for row in lesson.history]
    for column, line in enumerate(right.lines, start=SUM):
        assert list(line.get_ydata()) == [row[column] for row in lesson.ones_history]
