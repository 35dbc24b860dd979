"""畳み込みのレッスンと、訓練済みの CNN の中を見るレッスンが、本当の値を表示し、描く。"""

import re

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from conftest import ROOT, drawn_images, read_mnist


def convolved(images, weights):
    """numpy で計算した、(C, H, W) の画像に (C, 3, 3) の重みを当てた結果 (H - 2, W - 2)。"""
    windows = sliding_window_view(images, (3, 3), axis=(1, 2))  # (C, H - 2, W - 2, 3, 3)
    return np.einsum("chwij,cij->hw", windows, weights)


# mnist_convolution.py


def test_convolution_by_hand_by_loops_and_by_conv2d_agree(run):
    lesson = run("mnist_convolution")
    pixels = read_mnist("t10k")[0][lesson.INDEX].astype(int)
    products = [[int(number) for number in row.split(", ")] for row in re.findall(r"\] = \[(.*)\]", lesson.stdout)]
    expected = pixels[lesson.ROW:lesson.ROW + 3, lesson.COLUMN:lesson.COLUMN + 3] * [-1, 0, 1]
    np.testing.assert_array_equal(products, expected)
    assert f"sum of the nine products: {expected.sum()}\n" in lesson.stdout and np.count_nonzero(expected) >= 5
    everywhere = convolved(pixels[None], np.array([lesson.FILTERS["vertical"]]))
    np.testing.assert_array_equal(lesson.by_loops, everywhere)
    np.testing.assert_array_equal(lesson.by_conv2d[0, 0], everywhere)
    assert everywhere[lesson.ROW, lesson.COLUMN] == expected.sum()
    assert "both (26, 26), largest difference 0\n" in lesson.stdout


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
    assert "\n  [0, 354, 759, 285, 0, 0]  [0, 0, 354, 759, 285, 0]\n" in lesson.stdout
    assert "\n  [354, 760, 0]  [0, 760, 286]\n" in lesson.stdout  # 最大の 760 は、同じ所に残る
    assert lesson.pooled_change < 0.6 * lesson.map_change
    by_two = run("mnist_convolution", MOVE=2)
    assert torch.equal(by_two.moved_pooled, lesson.pooled.roll(1, dims=3))


def test_channels_have_weights_of_their_own_and_are_added(run):
    lesson = run("mnist_convolution")
    padded = np.pad(lesson.pooled[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    expected = convolved(padded, lesson.crossing.numpy())
    np.testing.assert_array_equal(lesson.scores[0, 0], expected)
    sums = [int(value) for value in re.findall(r"sum of its nine products: (\S+)", lesson.stdout)]
    assert len(sums) == 3 and sum(sums) == expected[8, 8] == expected.max()  # 4 の横棒と縦棒が交わる所
    assert f"all three added: {sum(sums)}, F.conv2d: {sum(sums)}," in lesson.stdout


def test_parameters_are_counted_as_in_the_shipped_cnn(run):
    counts = re.findall(r"Conv2d\((\d+), (\d+)\): .* = (\d+) parameters", run("mnist_convolution").stdout)
    weights = torch.load(ROOT / "02_pytorch_mnist" / "mnist_cnn.pth", weights_only=True)
    assert [int(count) for *_, count in counts] == [320, 18_496] == [
        weights[f"features.{i}.weight"].numel() + weights[f"features.{i}.bias"].numel() for i in (0, 3)]


def test_convolution_picture_shows_each_filter_where_its_line_is(run):
    lesson = run("mnist_convolution")
    pictures = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in drawn_images(lesson.fig)]
    digit, *filters, strongest = pictures[:5]
    np.testing.assert_array_equal(digit, read_mnist("t10k")[0][lesson.INDEX])
    np.testing.assert_array_equal(filters, list(lesson.FILTERS.values()))
    np.testing.assert_array_equal(pictures[5:], lesson.maps[0])
    horizontal, vertical, diagonal = range(3)
    assert (strongest[17, 9:14] == horizontal).all()  # 横棒の上の縁
    assert (strongest[8:16, 16] == vertical).all()  # 縦棒の左の縁
    assert (strongest[[8, 10, 12, 14], [11, 9, 8, 6]] == diagonal).all()  # 右上がりの線の、左上の縁


# mnist_cnn_features.py


@torch.no_grad()
def test_features_are_the_outputs_of_each_stage(run):
    lesson = run("mnist_cnn_features", "-s", 5)
    assert torch.equal(lesson.images[0, 0], torch.from_numpy(read_mnist("t10k")[0][5] / np.float32(255)))
    expected = []
    for layer in lesson.model.features:  # 1 段ずつ呼ばずに、モデルの順伝播の途中で記録する
        layer.register_forward_hook(lambda layer, inputs, output: expected.append(output[0]))
    lesson.model(lesson.images)
    assert len(expected) == len(lesson.outputs) == 6
    for (name, maps), recorded in zip(lesson.outputs.items(), expected):
        torch.testing.assert_close(maps, recorded)
        row = rf"^{name} +{re.escape(str(tuple(maps.shape)))} +{maps.mean():.4f}"
        if "ReLU" in name:
            row += f"  {100 * (maps == 0).float().mean():.1f}%"
        assert re.search(row + "$", lesson.stdout, re.M)
    difference = re.search(r"model\(images\): largest difference (\S+)", lesson.stdout)[1]
    assert float(difference) < 1e-4


def test_features_chooses_the_filters_that_respond_most(run):
    lesson = run("mnist_cnn_features")
    padded = np.pad(read_mnist("t10k")[0][0] / 255, 1)
    weights, biases = lesson.filters.numpy(), lesson.biases.numpy()
    maps = np.array([np.maximum(convolved(padded[None], weight) + bias, 0) for weight, bias in zip(weights, biases)])
    largest = maps.max(axis=(1, 2))
    assert lesson.chosen == np.argsort(-largest)[:4].tolist()
    rows = re.findall(r"^filter +(\d+)  largest (\S+) at row (\d+), column (\d+) .* = (\S+)$", lesson.stdout, re.M)
    assert [int(i) for i, *_ in rows] == lesson.chosen
    for i, value, row, column, by_hand in rows:
        assert value == by_hand
        np.testing.assert_allclose(float(value), [largest[int(i)], maps[int(i), int(row), int(column)]], atol=6e-4)
    assert f"blank paper: {(biases > 0).sum()} of 32 filters" in lesson.stdout
    assert f"this image: {(largest == 0).sum()} of 32 filters" in lesson.stdout


def test_features_picture_shows_each_map_below_its_filter(run):
    lesson = run("mnist_cnn_features")
    pictures = [axes.images[0].get_array() for axes in drawn_images(lesson.fig)]
    np.testing.assert_array_equal(pictures[:4], lesson.filters[lesson.chosen, 0])
    np.testing.assert_array_equal(pictures[4], lesson.images[0, 0])
    np.testing.assert_array_equal(pictures[5:], lesson.outputs["features.1 ReLU"][lesson.chosen])
