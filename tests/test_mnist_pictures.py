"""MNIST の画像や、重みの動きを見るレッスンが、本当の値を表示し、描く。"""

import numpy as np
import pytest

from conftest import drawn_images, read_mnist

# mnistview.py と mnistview100.py


def test_mnistview_draws_the_batch_it_prints(run):
    lesson = run("mnistview")
    train_images, train_labels = read_mnist("train")
    drawn = drawn_images(lesson.fig)
    assert len(drawn) == 4 and f"values {lesson.labels.tolist()}" in lesson.stdout
    for axes, image, label in zip(drawn, lesson.images.numpy(), lesson.labels.tolist()):
        assert axes.get_title() == f"label {label}"
        np.testing.assert_array_equal(axes.images[0].get_array(), image[0])
        same = np.flatnonzero((train_images == (255 * image).round()).all(axis=(1, 2)))
        assert len(same) == 1 and train_labels[same] == label  # ラベルは、その画像のものである


def test_mnistview_notices_labels_of_other_images(run):
    pairs = "TensorDataset(all_images, all_labels)"
    source = run.path_of("mnistview").read_text(encoding="utf-8")
    other_pairs = pairs.replace("all_labels", "all_labels.roll(1)")
    lesson = run.execute("mnistview", source=source.replace(pairs, other_pairs))
    assert False in lesson.same_labels


def test_mnistview100_draws_every_image_under_its_index(run):
    lesson = run("mnistview100")
    images, labels = read_mnist("t10k")
    (axes,) = lesson.fig.axes
    mosaic = axes.images[0].get_array()
    rows = [int(tick.get_text()) for tick in axes.get_yticklabels()]
    columns = [int(tick.get_text()) for tick in axes.get_xticklabels()]
    for i in range(100):
        assert rows[i // 10] + columns[i % 10] == i
        left, top = axes.get_xticks()[i % 10] - 14, axes.get_yticks()[i // 10] - 14
        np.testing.assert_array_equal(mosaic[top : top + 28, left : left + 28], images[i] / np.float32(255))
        text_x, text_y = axes.texts[i].get_position()
        assert left <= text_x < left + 5 and top <= text_y < top + 5  # ラベルは、その画像の左上の隅にある
        assert axes.texts[i].get_text() == str(labels[i])
    np.testing.assert_array_equal(lesson.counts, np.bincount(labels[:100]))


def test_mnistview100_notices_a_wrong_place(run):
    assert run("mnistview100", STEP=28).found < 100


# mnist_dummydata_weightconfirm.py


@pytest.mark.parametrize("seed", [0, 1])
def test_random_labels_are_memorized_and_teach_no_rule(run, seed):
    lesson = run("mnist_dummydata_weightconfirm", SEED=seed)
    assert len(lesson.differences) == 300 and max(lesson.differences) < 1e-8
    assert lesson.expected.abs().max() > 1e-5  # 比べているのは 0 どうしではない
    assert lesson.accuracies[-1] == 100 and 7 < lesson.new_accuracies[-1] < 13
    trained, new = lesson.axes.lines
    np.testing.assert_array_equal(trained.get_ydata(), lesson.accuracies)
    np.testing.assert_array_equal(new.get_ydata(), lesson.new_accuracies)
