"""畳み込みのレッスンと、訓練済みの CNN の中を見るレッスンが、本当の値を表示し、描く。"""

import re

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from conftest import drawn_images, read_mnist


def convolved(images, weights):
    """numpy で計算した、(C, H, W) の画像に (C, 3, 3) の重みを当てた結果 (H - 2, W - 2)。"""
    windows = sliding_window_view(images, (3, 3), axis=(1, 2))  # (C, H - 2, W - 2, 3, 3)
    return np.einsum("chwij,cij->hw", windows, weights)


# mnist_convolution.py


def test_convolution_notices_another_calculation(run):
    source = run.path_of("mnist_convolution").read_text(encoding="utf-8")
    flipped = source.replace("F.conv2d(images, weight)", "F.conv2d(images, weight.flip(3))")
    assert "equal: False" in run.execute("mnist_convolution", source=flipped).stdout


def test_padding_keeps_the_size_and_relu_one_side_of_a_line(run):
    lesson = run("mnist_convolution")
    pixels = np.pad(read_mnist("t10k")[0][lesson.INDEX].astype(int), 1)
    for weights, response, feature_map in zip(lesson.FILTERS.values(), lesson.responses[0], lesson.maps[0]):
        expected = convolved(pixels[None], np.array([weights]))
        np.testing.assert_array_equal(response, expected)
        np.testing.assert_array_equal(feature_map, np.maximum(expected, 0))
        assert feature_map.shape == (28, 28) and expected.min() < -700 and expected.max() > 700


def test_pooling_hides_a_part_of_a_move_by_one_pixel(run):
    lesson = run("mnist_convolution")
    for maps, pooled in (lesson.maps, lesson.pooled), (lesson.moved_maps, lesson.moved_pooled):
        np.testing.assert_array_equal(pooled, maps.reshape(1, 3, 14, 2, 14, 2).amax(dim=(3, 5)))
    assert torch.equal(lesson.moved_maps, lesson.maps.roll(1, dims=3))  # 特徴マップは、数字と同じだけ動く
    assert lesson.pooled_change < 0.6 * lesson.map_change
    by_two = run("mnist_convolution", MOVE=2)
    assert torch.equal(by_two.moved_pooled, lesson.pooled.roll(1, dims=3))


def test_convolution_picture_shows_each_filter_where_its_line_is(run):
    lesson = run("mnist_convolution")
    drawn = drawn_images(lesson.fig)
    pictures = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in drawn]
    digit, *filters, strongest = pictures[:5]
    np.testing.assert_array_equal(digit, read_mnist("t10k")[0][lesson.INDEX])
    np.testing.assert_array_equal(filters, list(lesson.FILTERS.values()))
    np.testing.assert_array_equal(pictures[5:], lesson.maps[0])
    horizontal, vertical, diagonal = range(3)
    assert (strongest[17, 9:14] == horizontal).all()  # 横棒の上の縁
    assert (strongest[8:16, 16] == vertical).all()  # 縦棒の左の縁
    assert (strongest[[8, 10, 12, 14], [11, 9, 8, 6]] == diagonal).all()  # 右上がりの線の、左上の縁
    nine, one = (drawn[i].patches[0].get_bbox().extents + 0.5 for i in (0, 6))  # 画素の番号にする
    left, top, right, bottom = nine.astype(int)
    marked = digit[top:bottom, left:right] * lesson.FILTERS["vertical"]
    left, top, right, bottom = one.astype(int)
    assert marked.sum() == pictures[6][top:bottom, left:right].item()  # 枠の 9 画素から、枠の 1 画素ができる


# mnist_cnn_features.py


def test_features_chooses_the_filters_that_respond_most(run):
    lesson = run("mnist_cnn_features")
    padded = np.pad(read_mnist("t10k")[0][0] / 255, 1)
    responses = [convolved(padded[None], weights) for weights in lesson.filters.numpy()]
    maps = np.maximum(np.array(responses) + lesson.biases.numpy()[:, None, None], 0)
    assert lesson.chosen == np.argsort(-maps.max(axis=(1, 2)))[:4].tolist()
    line = r"^filter +(\d+)  largest (\S+) at row (\d+), column (\d+) .* = (\S+)$"
    rows = re.findall(line, lesson.stdout, re.M)
    assert [int(i) for i, *_ in rows] == lesson.chosen
    for i, value, row, column, by_hand in rows:
        assert value == by_hand
        np.testing.assert_allclose(maps[int(i), int(row), int(column)], float(value), atol=6e-4)


def pairs_of(stdout):
    """2 段目の行の (最大値, 8×8 画素だけから計算した値)。表示のままの文字列。"""
    return re.findall(r"^map .*largest (\S+) at .* alone (\S+)$", stdout, re.M)


def test_a_value_of_the_second_stage_sees_8_by_8_pixels(run):
    lesson = run("mnist_cnn_features")
    assert len(pairs_of(lesson.stdout)) == 4
    assert all(value == alone for value, alone in pairs_of(lesson.stdout))
    for i in lesson.chosen2:
        row, column = divmod(lesson.maps2[i].argmax().item(), 14)
        image = lesson.images.clone().requires_grad_()
        lesson.model.features[:4](image)[0, i, row, column].backward()
        seen = (
            image.grad[0, 0].nonzero() + 3 - 2 * torch.tensor([row, column])
        )  # 値を変える画素の、枠の中での位置
        assert seen.min() >= 0 and seen.max() <= 7


def test_fewer_pixels_give_another_value(run):
    source = run.path_of("mnist_cnn_features").read_text(encoding="utf-8")
    assert source.count("2 * row + 8") == 1
    lesson = run.execute("mnist_cnn_features", source=source.replace("2 * row + 8", "2 * row + 6"))
    assert any(value != alone for value, alone in pairs_of(lesson.stdout))


def test_features_picture_shows_each_map_below_its_filter_or_pixels(run):
    lesson = run("mnist_cnn_features")
    pictures = [axes.images[0].get_array() for axes in drawn_images(lesson.fig)]
    np.testing.assert_array_equal(pictures[0], lesson.images[0, 0])
    np.testing.assert_array_equal(pictures[1:5], lesson.filters[lesson.chosen, 0])
    np.testing.assert_array_equal(pictures[5:9], lesson.outputs[1][lesson.chosen])
    np.testing.assert_array_equal(pictures[9:13], torch.stack(lesson.patches))
    np.testing.assert_array_equal(pictures[13:], lesson.outputs[4][lesson.chosen2])
