"""レシピのレッスンが、検証データで選び、テストデータを最後に 1 度だけ使う。"""

import re

import numpy as np
import pytest
import torch


@pytest.fixture
def lesson(run):
    return run("mnist_recipe")


def test_validation_images_are_not_trained_on(lesson):
    assert sorted([*lesson.validation.tolist(), *lesson.rest.tolist()]) == list(range(60_000))
    images = lesson.train_set.data.unsqueeze(1) / 255
    assert len(lesson.validation_images) == 10_000
    assert torch.equal(lesson.validation_images, images[lesson.validation])
    assert torch.equal(lesson.train_images, images[lesson.rest])
    assert torch.equal(lesson.train_labels, lesson.train_set.targets[lesson.rest])


def test_a_change_is_kept_when_its_worst_seed_beats_the_best_before(lesson):
    kept, recipe, highest = [], {"learning_rate": 0.01, "one_cycle": False}, 0
    for name, setting, value in lesson.CHANGES:
        row = re.search(rf"^{name} +(\S+) +(\S+) +(\S+) +(\S+)  (\w+)$", lesson.stdout, re.M)
        *accuracies, mean = [float(row[i]) for i in (1, 2, 3, 4)]
        assert mean == pytest.approx(np.mean(accuracies), abs=0.006)
        assert row[5] == ("kept" if min(accuracies) > highest else "dropped")
        if row[5] == "kept":
            kept.append(name)
            recipe[setting], highest = value, max(accuracies)
    assert kept == [
        "constant rate 0.01",
        "rate raised and lowered",
        "shifts by a pixel",
        "hidden layer of 300",
    ]
    assert lesson.recipe == {"weight_decay": 0, **recipe}


def test_the_chosen_models_are_measured_on_the_test_images(lesson):
    with torch.no_grad():
        for model, accuracy in zip(lesson.chosen_models, lesson.test_accuracies):
            right = (model(lesson.test_images).argmax(dim=1) == lesson.test_labels).sum().item()
            assert accuracy == pytest.approx(right / 100) and right > 9780


def test_the_picture_shows_the_loss_settling_when_the_rate_is_lowered(lesson):
    (axes,) = lesson.fig.axes
    large, small, one_cycle = [line.get_ydata()[-5:] for line in axes.lines]
    assert np.mean(one_cycle) < 0.7 * np.mean(large) < np.mean(small)
