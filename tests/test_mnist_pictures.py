"""MNIST の画像や、重みの動きを見るレッスンが、本当の値を表示し、描く。"""

import re

import numpy as np
import pytest

from conftest import drawn_images, read_mnist


# mnistview.py と mnistview100.py


def test_mnistview_draws_the_batch_it_prints(run):
    lesson = run("mnistview")
    assert "images shape (4, 1, 28, 28), values from 0.0 to 1.0" in lesson.stdout
    assert f"values {lesson.labels.tolist()}" in lesson.stdout
    assert "in the dataset with the same label: [True, True, True, True]" in lesson.stdout
    train_images, train_labels = read_mnist("train")
    drawn = drawn_images(lesson.fig)
    assert len(drawn) == 4
    for axes, image, label in zip(drawn, lesson.images.numpy(), lesson.labels.tolist()):
        assert axes.get_title() == f"label {label}"
        np.testing.assert_array_equal(axes.images[0].get_array(), image[0])
        same = np.flatnonzero((train_images == (255 * image).round()).all(axis=(1, 2)))
        assert len(same) == 1 and train_labels[same] == label  # ラベルは、その画像のものである


def test_mnistview_notices_labels_of_other_images(run):
    path = run.checkout / "02_pytorch_mnist" / "mnistview.py"
    pairs = "TensorDataset(all_images, all_labels)"
    swapped = path.read_text(encoding="utf-8").replace(pairs, pairs.replace("all_labels", "all_labels.roll(1)"))
    lesson = run.execute("mnistview", source=swapped)
    assert False in lesson.same_labels


def test_mnistview100_draws_every_image_under_its_index(run):
    lesson = run("mnistview100")
    images, labels = read_mnist("t10k")
    axes, = drawn_images(lesson.fig)
    mosaic = np.asarray(axes.images[0].get_array())
    assert [text.get_text() for text in axes.texts] == [str(label) for label in labels[:100]]
    rows, columns = ([int(tick.get_text()) for tick in ticks] for ticks in
                     (axes.get_yticklabels(), axes.get_xticklabels()))
    for i in range(100):
        assert rows[i // 10] + columns[i % 10] == i
        left, top = axes.get_xticks()[i % 10] - 14, axes.get_yticks()[i // 10] - 14
        np.testing.assert_array_equal(mosaic[top:top + 28, left:left + 28], images[i] / np.float32(255))
        text_x, text_y = axes.texts[i].get_position()
        assert left <= text_x < left + 5 and top <= text_y < top + 5  # ラベルは、その画像の左上の隅にある
    assert "images found in their places: 100 of 100" in lesson.stdout
    counts = " ".join(f"{(labels[:100] == digit).sum():2d}" for digit in range(10))
    assert f"count {counts}\n" in lesson.stdout


# mnist_dummydata_weightconfirm.py


def test_dummydata_every_weight_moves_by_minus_lr_times_gradient(run):
    lesson = run("mnist_dummydata_weightconfirm")
    assert len(lesson.differences) == 300 and max(lesson.differences) < 1e-8
    assert f"largest difference in all 300 steps: {max(lesson.differences):.1e}\n" in lesson.stdout
    rows = re.findall(r"^step +(\d+) .* change (\S+)  -lr\*grad (\S+)  difference (\S+)$", lesson.stdout, re.M)
    assert [int(step) for step, *_ in rows] == [*range(1, 11), *range(20, 301, 10)]
    for _, change, expected, difference in rows:
        assert float(change) == pytest.approx(float(expected), rel=1e-2, abs=1e-9)
        assert float(difference) < 1e-8
    assert abs(float(rows[0][1])) > 1e-5  # 比べているのは 0 どうしではない
    points = lesson.fig.axes[0].lines[0]
    np.testing.assert_array_equal(points.get_xdata(), lesson.expected.flatten())
    np.testing.assert_array_equal(points.get_ydata(), lesson.change.flatten())
    assert len(points.get_xdata()) == 78_400 and np.ptp(points.get_ydata()) > 1e-5


def test_dummydata_sees_when_weights_move_by_something_else(run):
    path = run.checkout / "02_pytorch_mnist" / "mnist_dummydata_weightconfirm.py"
    adam = path.read_text(encoding="utf-8").replace("= torch.optim.SGD", "= torch.optim.AdamW")
    lesson = run.execute("mnist_dummydata_weightconfirm", source=adam, STEPS=1)
    assert lesson.differences[0] == pytest.approx(lesson.LEARNING_RATE, rel=0.1)


def test_dummydata_memorizes_random_labels(run):
    lesson = run("mnist_dummydata_weightconfirm")
    assert lesson.losses[0] == pytest.approx(np.log(10), abs=0.2) and lesson.losses[-1] < 0.05
    assert "memorized: 64 of 64 random labels" in lesson.stdout
    _, weight_axes, loss_axes = lesson.fig.axes
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), lesson.losses)
    np.testing.assert_allclose(weight_axes.lines[0].get_ydata(), lesson.weight_means)


# mnist_errors.py


@pytest.mark.parametrize("model_type", ["mlp", "cnn"])
def test_errors_counts_every_image_and_shows_the_most_confident(run, model_type):
    lesson = run("mnist_errors", "-m", model_type)
    images, labels = read_mnist("t10k")
    predictions, probabilities = lesson.predictions.numpy(), lesson.probabilities.numpy()
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predictions), 1)
    for digit in range(10):
        assert f"{digit:4d} " + " ".join(f"{count:4d}" for count in expected[digit]) in lesson.stdout
    wrong = np.flatnonzero(predictions != labels)
    assert f"sum of the diagonal: {10_000 - len(wrong)}  sum of the rest: {len(wrong)}" in lesson.stdout
    assert f"images/mnist_errors_{model_type}.png" in lesson.changed
    most_confident = sorted(wrong, key=lambda i: -probabilities[i])[:12]
    assert lesson.most_confident == most_confident
    assert f"Correct: {10_000 - len(wrong)}  Incorrect: {len(wrong)}" in lesson.stdout

    matrix_axes, *drawn = drawn_images(lesson.fig)
    colors = matrix_axes.images[0].get_array()
    assert np.trace(colors) == 0 and colors.sum() == len(wrong)  # 対角が、読み違いの濃淡を消さない
    texts = {tuple(map(int, text.get_position())): int(text.get_text()) for text in matrix_axes.texts}
    assert texts == {(j, i): expected[i, j] for i, j in np.argwhere(expected)}
    assert len(drawn) == 12
    for i, axes in zip(most_confident, drawn):
        np.testing.assert_allclose(axes.images[0].get_array(), images[i] / np.float32(255))
        assert axes.get_title().startswith(f"#{i} true {labels[i]}\npredicted {predictions[i]} ")
