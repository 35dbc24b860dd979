"""訓練したヘッドが、答えの位置だけを見る。"""

import numpy as np
import pytest

from conftest import drawn_images


@pytest.mark.parametrize("seed", [0, 1])
def test_positions_attention_and_a_second_head_are_needed(run, seed):
    lesson = run("minllm_heads", SEED=seed)
    accuracies = lesson.accuracies
    assert accuracies["1 head, 3 back"] > 99.5 and accuracies["2 heads, 1 and 3 back"] > 99.5
    assert abs(accuracies["no attention, 3 back"] - 100 / 8) < 2
    assert abs(accuracies["1 head, 3 back, no positions"] - lesson.rule_accuracy) < 2
    assert 15 < accuracies["1 head, 1 and 3 back"] < 35
    assert lesson.changes == [0] * 8 + [1000] + [0] * 7


@pytest.mark.parametrize("seed", [0, 1])
def test_heads_picture_shows_who_looks_at_the_answers(run, seed):
    lesson = run("minllm_heads", SEED=seed)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in drawn_images(lesson.fig)]
    one_head, no_positions, shared, *two_heads = drawn
    assert (one_head.diagonal(-3) > 0.9).all() and (no_positions.diagonal(-3)[3:] < 0.3).all()
    for distance in (1, 3):  # 2 か所を、ほぼ半分ずつ見る
        assert 0.35 < shared.diagonal(-distance)[3 - distance :].mean() < 0.65
    first, third = sorted(two_heads, key=lambda picture: picture.diagonal(-3).mean())
    assert (first.diagonal(-1)[2:] > 0.9).all() and (third.diagonal(-3) > 0.9).all()
    for picture in drawn:
        assert not np.triu(picture, 1).any()
        np.testing.assert_allclose(picture.sum(axis=1), 1, atol=1e-5)
