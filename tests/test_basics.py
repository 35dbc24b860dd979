"""simplenet.py から learn_overfitting.py までのレッスンが、教えるとおりのことを学び、表示する。"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


def contour(axes, level=0.5):
    """axes に引かれた、値が level の線の頂点 (N, 2)。"""
    (line,) = [c for c in axes.collections if list(getattr(c, "levels", [])) == [level]]
    return np.concatenate([path.vertices for path in line.get_paths()])


def class_points(axes):
    """axes に散らした点を、すべてまとめた (N, 2)。"""
    return np.concatenate([c.get_offsets() for c in axes.collections if c.get_offsets().size > 2])


# learn_gradient.py


@pytest.mark.parametrize("share_of_border, converges", [(0.98, True), (1.02, False)])
def test_gradient_walk_diverges_beyond_the_border(run, share_of_border, converges):
    rates = {"too small": 0.005, "good": 0.05, "too large": share_of_border / 7}
    walk = run("learn_gradient", LEARNING_RATES=rates).walks["too large"]
    distances = np.abs(np.array(walk) - 2)
    assert (np.diff(distances) < 0).all() if converges else (np.diff(distances) > 0).all()


# learn.py


@every_seed
def test_learn_finds_the_true_values_and_leaves_the_noise(run, seed):
    lesson = run("learn", SEED=seed)
    assert "learned within 1e-5 of least squares: True" in lesson.stdout
    standard_error = lesson.NOISE_STD / math.sqrt(lesson.NUM_SAMPLES)
    np.testing.assert_allclose(lesson.learned, [2, -3, 0.5, 1], atol=4 * standard_error)
    # 4 つの値が 500 個の雑音に合う分だけ、雑音の 2 乗の平均より小さい（平均で 4 / 500）
    assert 0.96 < lesson.losses[-1] / lesson.noise_mean_square < 1


# learn_classify.py


@every_seed
def test_classify_is_right_on_animals_it_has_not_seen(run, seed):
    lesson = run("learn_classify", SEED=seed)
    predictions = lesson.model(lesson.held_out_features).argmax(dim=1)
    correct = (predictions == lesson.held_out_labels).float().mean().item()
    assert correct >= 0.95 and lesson.held_out_accuracy == pytest.approx(100 * correct)
    trained = set(map(tuple, lesson.train_features.tolist()))
    assert not trained & set(map(tuple, lesson.held_out_features.tolist()))


# learn_class_decision_boundary.py


def test_boundary_has_the_animals_of_the_lesson_before(run):
    before, lesson = run("learn_classify"), run("learn_class_decision_boundary")
    assert torch.equal(before.train_features, lesson.train_features)
    assert torch.equal(before.held_out_labels, lesson.held_out_labels)


@every_seed
def test_boundary_line_agrees_with_the_drawn_line(run, seed):
    lesson = run("learn_class_decision_boundary", SEED=seed)
    vertices = contour(lesson.axes)
    assert len(vertices) > 50
    np.testing.assert_allclose(vertices[:, 1], lesson.slope * vertices[:, 0] + lesson.intercept, atol=0.02)


@every_seed
def test_boundary_picture_shows_every_animal_and_rings_the_wrong_ones(run, seed):
    lesson = run("learn_class_decision_boundary", SEED=seed)
    features, labels = lesson.train_features, lesson.train_labels
    wrong = lesson.model(features).argmax(dim=1) != labels
    drawn = {c.get_label(): c.get_offsets() for c in lesson.axes.collections}
    np.testing.assert_allclose(drawn["dog"], features[labels == 0])
    np.testing.assert_allclose(drawn["cat"], features[labels == 1])
    np.testing.assert_allclose(drawn["misclassified"], features[wrong])
    assert wrong.any() and f"misclassified: {wrong.sum()} of 600 training animals" in lesson.stdout
    corner = torch.tensor([lesson.axes.get_xlim()[1], lesson.axes.get_ylim()[1]])
    assert (features > 0).all() and (features < corner).all()  # 図からはみ出す動物はいない


# learn_hidden_layer.py


@every_seed
def test_hidden_layer_needs_relu(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    accuracies = lesson.accuracies
    assert accuracies["one layer"] < 60 and accuracies["two layers"] < 60
    # 1 本の直線でも、訓練が行き着いた所よりはよい
    assert accuracies["line x = 1.2"] > accuracies["one layer"] + 5
    assert accuracies["two layers and ReLU"] > 90 and accuracies["circle, radius 1.5"] > 90


@every_seed
def test_hidden_layer_boundary_bends_only_where_a_unit_s_line_crosses_it(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    first, _, second = lesson.with_relu
    straight, bent = 0, 0
    vertices = torch.tensor(contour(lesson.bent_axes), dtype=torch.float)
    for a, b, c in zip(vertices, vertices[4:], vertices[8:]):  # 境界の上の、少し離れた 3 点
        if (c - a).norm() > 0.5:
            continue  # 別の線へ移る所
        (u, v), (p, q) = (b - a).tolist(), (c - b).tolist()
        angle = abs(np.degrees(np.arctan2(u * q - v * p, u * p + v * q)))
        crossed = ((first(a) > 0) != (first(c) > 0)).any()
        straight += not crossed
        bent += bool(crossed) and angle > 15
        assert crossed or angle < 6
    assert straight > 50 and bent >= 3


@every_seed
def test_hidden_layer_draws_each_unit_s_line(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    lines = [c for c in lesson.bent_axes.collections if list(getattr(c, "levels", [])) == [0]]
    units = set()
    for line in lines:
        vertices = torch.tensor(line.get_paths()[0].vertices, dtype=torch.float)
        values = lesson.with_relu[0](vertices).abs().amax(dim=0)  # ユニットごとの、線の上での最大
        assert values.min() < 1e-3
        units.add(values.argmin().item())
    assert len(lines) == len(units) >= 3
    for axes in (lesson.straight_axes, lesson.bent_axes):
        assert len(class_points(axes)) == lesson.NUM_TRAIN


# learn_overfitting.py


@every_seed
def test_overfitting_training_loss_vanishes_and_validation_loss_turns(run, seed):
    lesson = run("learn_overfitting", SEED=seed)
    validation = lesson.validation_losses[lesson.chosen_rate]
    assert lesson.last_train_loss < 0.1 and lesson.chosen_epoch < lesson.EPOCHS / 2
    assert validation[0] > 1.5 * lesson.lowest_loss and validation[-1] > 1.3 * lesson.lowest_loss
    assert lesson.last_wrong.sum() == 0 < lesson.circle_wrong.sum()  # 円からはみ出した点まで覚えた
    assert sum(lesson.largest) > 0.8 * sum(lesson.point_losses)


@every_seed
def test_overfitting_choice_is_the_lowest_validation_loss_and_holds_on_test_data(run, seed):
    lesson = run("learn_overfitting", SEED=seed)
    lowest = {rate: min(losses) for rate, losses in lesson.validation_losses.items()}
    assert lesson.chosen_rate == min(lowest, key=lowest.get) and max(lowest, key=lowest.get) == 0.1
    for model, expected in (
        (lesson.chosen_model, min(lowest.values())),
        (lesson.last_model, lesson.last_validation_loss),
    ):
        loss = F.cross_entropy(model(lesson.validation_features), lesson.validation_labels).item()
        assert loss == pytest.approx(expected, rel=1e-4)
    last = F.cross_entropy(lesson.last_model(lesson.test_features), lesson.test_labels).item()
    assert 0.8 * lesson.lowest_loss < lesson.test_loss < min(1.4 * lesson.lowest_loss, last)


def test_overfitting_no_circle_is_better_than_that_of_radius_1_5(run):
    lesson = run("learn_overfitting", SEED=0)
    distances, outer = lesson.features.norm(dim=1), lesson.labels == 1
    wrong = {radius: ((distances > radius) != outer).sum() for radius in (1.2, 1.5, 1.8)}
    assert min(wrong, key=wrong.get) == 1.5
