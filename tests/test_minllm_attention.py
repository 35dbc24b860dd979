"""注意のレッスンの数が、別の計算と合い、訓練した注意が答えの位置だけを見る。"""

import re

import numpy as np
import torch

from conftest import drawn_images


def numpy_attention(x, matrices, scale, causal):
    """numpy だけで計算した、注意 (T, T) と出力 (T, 2)。"""
    query, key, value = (x @ np.array(matrix).T for matrix in matrices)
    weights = np.exp(query @ key.T / scale)
    if causal:
        weights = np.tril(weights)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, weights @ value


def test_attention_of_three_tokens_equals_numpy(run):
    lesson = run("minllm_attention")
    matrices = lesson.W_QUERY, lesson.W_KEY, lesson.W_VALUE
    for weights, output, causal in ((lesson.open_attention, lesson.open_output, False),
                                    (lesson.attention, lesson.output, True)):
        expected_weights, expected_output = numpy_attention(np.array(lesson.X), matrices, 2**0.5, causal)
        np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
        np.testing.assert_allclose(output, expected_output, atol=1e-5)
    np.testing.assert_allclose(lesson.hand_weights, expected_weights[2], atol=1e-6)
    assert "weights of sleep: 0.77 0.05 0.19, output: 7.23 1.87\n" in lesson.stdout
    assert lesson.open_attention[0].argmax() == 2 and lesson.attention[0].tolist() == [1, 0, 0]


def test_two_ways_agree_and_order_is_not_seen(run):
    stdout = run("minllm_attention").stdout
    differences = [float(number) for number in re.findall(r"difference.* (\S+e[+-]\d+)$", stdout, re.M)]
    assert len(differences) == 5 and max(differences) < 1e-5


def test_dividing_by_the_root_keeps_softmax_movable(run):
    stdout = run("minllm_attention").stdout
    deviations = re.findall(r"head_size +\d+: standard deviation of q @ k (\S+), sqrt (\S+)", stdout)
    np.testing.assert_allclose(*np.array(deviations, dtype=float).T, rtol=0.05)
    large, divided = map(float, re.findall(r"first weight \+ (\S+)", stdout))
    assert divided > 500 * large


def test_positions_attention_and_a_second_head_are_needed(run):
    lesson = run("minllm_heads")
    accuracies = lesson.accuracies
    assert accuracies["1 head, 3 back"] > 99.5 and accuracies["2 heads, 1 and 3 back"] > 99.5
    assert 28 < accuracies["1 head, 3 back, no positions"] < 40
    assert abs(accuracies["no attention, 3 back"] - 100 / 8) < 2
    assert accuracies["1 head, 1 and 3 back"] < 40
    assert lesson.changes == [0] * 8 + [1000] + [0] * 7


def test_heads_picture_is_the_diagonal_of_the_answers(run):
    lesson = run("minllm_heads")
    one_head, no_positions, *two_heads = [np.asarray(axes.images[0].get_array()) for axes in drawn_images(lesson.fig)]
    assert (one_head.diagonal(-3) > 0.9).all() and (no_positions.diagonal(-3)[3:] < 0.3).all()
    first, third = sorted(two_heads, key=lambda picture: picture.diagonal(-3).mean())
    assert (first.diagonal(-1)[2:] > 0.9).all() and (third.diagonal(-3) > 0.9).all()
    for picture in one_head, no_positions, first, third:
        assert not np.triu(picture, 1).any()
        np.testing.assert_allclose(picture.sum(axis=1), 1, atol=1e-5)


def test_attention_picture_shows_the_weights(run):
    lesson = run("minllm_attention")
    for axes, weights in zip(drawn_images(lesson.fig), (lesson.equal_weights, lesson.open_attention, lesson.attention)):
        np.testing.assert_array_equal(axes.images[0].get_array(), weights)
        written = [float(text.get_text()) for text in axes.texts]
        np.testing.assert_allclose(written, weights.flatten(), atol=0.005)


def test_a_query_of_zero_averages(run):
    lesson = run("minllm_attention", W_QUERY=[[0.0, 0.0], [0.0, 0.0]])
    assert "weights of sleep: 0.33 0.33 0.33, output: 0.00 3.33\n" in lesson.stdout
    torch.testing.assert_close(lesson.attention, lesson.equal_weights)
