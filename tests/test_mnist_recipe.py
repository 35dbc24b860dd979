"""レシピのレッスンが、検証用の画像で選び、テスト画像を最後に 1 度だけ使う。"""

import re

import numpy as np
import torch


def test_recipes_differ_from_the_one_they_are_compared_with_in_one_setting(run):
    recipes = run("mnist_recipe").RECIPES
    for previous, recipe in recipes.values():
        if previous is not None:
            before = recipes[previous][1]
            assert before.keys() == recipe.keys() and sum(before[key] != recipe[key] for key in recipe) == 1


def test_validation_images_are_not_trained_on(run):
    lesson = run("mnist_recipe")
    assert sorted(lesson.order.tolist()) == list(range(60_000))
    assert len(lesson.validation_images) == 10_000 and len(lesson.train_images) == 50_000
    images = lesson.train_set.data.unsqueeze(1) / 255
    assert torch.equal(lesson.validation_images, images[lesson.order[:10_000]])
    assert torch.equal(lesson.train_images, images[lesson.order[10_000:]])
    assert torch.equal(lesson.train_labels, lesson.train_set.targets[lesson.order[10_000:]])


def test_table_says_what_each_change_brought(run):
    lesson = run("mnist_recipe")
    means = {name: np.mean(values) for name, values in lesson.accuracies.items()}
    for name, (previous, _) in lesson.RECIPES.items():
        row = re.search(rf"^{re.escape(name)} +(\S+) +(\S+) +(\S+)(?: +(\S+)  (.*))?$", lesson.stdout, re.M)
        printed = [float(row[i]) for i in (1, 2, 3)]
        np.testing.assert_allclose(printed, [*lesson.accuracies[name], means[name]], atol=0.006)
        assert row[5] == previous
        if previous is not None:
            np.testing.assert_allclose(float(row[4]), means[name] - means[previous], atol=0.006)
    assert means["rate raised and lowered"] - means["ten times the rate"] > 0.6
    assert abs(means["label smoothing"] - means["shifts by a pixel"]) < 0.2
    assert means["hidden layer of 300"] > means["Adam, constant rate 0.001"] + 1.5


def test_winner_is_chosen_by_validation_and_measured_on_the_test_images(run):
    lesson = run("mnist_recipe")
    assert lesson.means[lesson.winner] == max(lesson.means.values())
    model = lesson.models[lesson.winner]
    with torch.no_grad():
        right = (model(lesson.test_images).argmax(dim=1) == lesson.test_labels).sum().item()
    assert f", test {right / 100:.2f}%\n" in lesson.stdout and right > 9750
    np.testing.assert_allclose(lesson.standard_error, np.sqrt(right * (10_000 - right)) / 10_000, rtol=1e-4)


def test_recipe_picture_shows_the_rate_lowered_and_the_loss_settling(run):
    lesson = run("mnist_recipe")
    losses, rates = lesson.axes["loss"].lines, lesson.axes["rate"].lines
    constant_small, constant, one_cycle = [line.get_ydata() for line in losses]
    assert one_cycle[-5:].mean() < 0.7 * constant[-5:].mean() < constant_small[-5:].mean()
    small_rate, rate, cycle = [np.asarray(line.get_ydata()) for line in rates]
    assert set(small_rate) == {1e-3} and set(rate) == {1e-2}
    assert cycle.max() <= 1e-2 < 1.01 * cycle.max() and cycle[-1] < 1e-6 < cycle[0] < 1e-3
    marks = [line.get_xdata() for line in lesson.axes["table"].lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(marks, list(lesson.accuracies.values()))
