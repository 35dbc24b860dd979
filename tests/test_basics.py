"""simplenet.py から learn_overfitting.py までのレッスンが、教えるとおりのことを学び、表示する。"""

import math
import re

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


# simplenet.py


@every_seed
def test_simplenet_layer_is_x_times_w_plus_b(run, seed):
    lesson = run("simplenet", SEED=seed)
    expected = lesson.x.numpy() @ lesson.weight.numpy().T + lesson.bias.numpy()
    np.testing.assert_allclose(lesson.y, expected, atol=1e-6)
    assert "x @ W.T + b below 1e-6: True" in lesson.stdout
    formulas = re.findall(r"y\[3, \d\] = (.*) = (\S+)", lesson.stdout)
    assert [float(result) for _, result in formulas] == pytest.approx(lesson.y[3].tolist(), abs=1e-4)
    for formula, result in formulas:
        assert eval(formula) == pytest.approx(float(result), abs=3e-4)  # 読者が電卓に打つ式


# learn_gradient.py


def squared_error(w):
    return np.mean([(w * x - 2 * x) ** 2 for x in (1, 2, 4)])


@pytest.mark.parametrize("start, gradient", [(1.0, -14), (3.0, 14), (2.5, 7)])
def test_gradient_is_the_same_by_three_ways(run, start, gradient):
    lesson = run("learn_gradient", W_START=start)
    assert [lesson.by_chain, lesson.by_backward] == pytest.approx([gradient, gradient], abs=1e-5)
    assert lesson.by_nudge == pytest.approx(gradient, abs=1e-3)
    assert lesson.not_cleared == pytest.approx(2 * gradient, abs=1e-5)


def test_gradient_chain_holds_what_pytorch_has_at_each_step(run):
    lesson = run("learn_gradient")
    w = torch.tensor(lesson.W_START, requires_grad=True)
    prediction = w * lesson.x
    error = prediction - lesson.y
    squared = error**2
    by_torch = torch.autograd.grad(squared.mean(), [squared, error, prediction])
    torch.testing.assert_close((lesson.after_mean, lesson.after_square, lesson.after_subtraction), by_torch)


def test_gradient_walks_are_w_minus_rate_times_gradient(run):
    lesson = run("learn_gradient")
    for name, rate in {"too small": 0.005, "good": 0.05, "too large": 0.15}.items():
        expected = [2 - (1 - 14 * rate) ** step for step in range(6)]
        np.testing.assert_allclose(lesson.walks[name], expected, atol=1e-4)
    np.testing.assert_allclose(lesson.sgd_walk, lesson.walks["good"], atol=1e-6)


@pytest.mark.parametrize("share_of_border, converges", [(0.98, True), (1.02, False)])
def test_gradient_walk_diverges_beyond_the_border(run, share_of_border, converges):
    rates = {"too small": 0.005, "good": 0.05, "too large": share_of_border / 7}
    walk = run("learn_gradient", LEARNING_RATES=rates).walks["too large"]
    distances = np.abs(np.array(walk) - 2)
    assert (np.diff(distances) < 0).all() if converges else (np.diff(distances) > 0).all()


def test_gradient_picture_has_the_walks_on_the_curve_and_the_slope_at_the_start(run):
    lesson = run("learn_gradient")
    slope_axes, *walk_axes = lesson.fig.axes
    assert slope_axes.lines[1].get_slope() == pytest.approx(-14) and slope_axes.lines[1].get_xy1() == (1, 7)
    for axes, walk in zip(walk_axes, lesson.walks.values()):
        curve, drawn = axes.lines[0].get_data(), axes.lines[1].get_data()
        np.testing.assert_allclose(curve[1], [squared_error(w) for w in curve[0]], atol=1e-4)
        np.testing.assert_allclose(drawn, [walk, [squared_error(w) for w in walk]], atol=1e-4)


# learn.py


@every_seed
def test_learn_reaches_the_least_squares_values_close_to_the_true_ones(run, seed):
    lesson = run("learn", SEED=seed)
    inputs = np.column_stack([lesson.x, np.ones(lesson.NUM_SAMPLES)]).astype(float)
    expected = np.linalg.lstsq(inputs, lesson.y.double().numpy(), rcond=None)[0][:, 0]
    np.testing.assert_allclose(lesson.solved, expected, atol=1e-5)
    np.testing.assert_allclose(lesson.learned, expected, atol=1e-5)
    standard_error = lesson.NOISE_STD / math.sqrt(lesson.NUM_SAMPLES)
    np.testing.assert_allclose(lesson.learned, [2, -3, 0.5, 1], atol=4 * standard_error)


@every_seed
def test_learn_stops_just_under_the_mean_square_of_the_noise(run, seed):
    lesson = run("learn", SEED=seed)
    residual = lesson.y - lesson.x @ lesson.TRUE_WEIGHT.T - lesson.TRUE_BIAS
    assert lesson.noise_mean_square == pytest.approx((residual**2).mean().item(), rel=1e-3)
    ratio = lesson.losses[-1] / lesson.noise_mean_square
    assert 0.96 < ratio < 1  # 4 つの値が 500 個の雑音に合う分は、平均で 4 / 500


def test_learn_draws_the_losses_and_the_way_to_the_true_values(run):
    lesson = run("learn")
    np.testing.assert_allclose(lesson.loss_axes.lines[0].get_ydata(), lesson.losses)
    drawn = {line.get_label(): line.get_ydata() for line in lesson.path_axes.lines}
    for name, learned, true in zip(lesson.NAMES, lesson.learned, [2, -3, 0.5, 1]):
        assert drawn[name][-1] == pytest.approx(learned)
        assert abs(drawn[name][0] - true) > 0.3  # 初めは遠い


# learn_classify.py


@every_seed
def test_classify_is_right_on_animals_it_has_not_seen(run, seed):
    lesson = run("learn_classify", SEED=seed)
    predictions = lesson.model(lesson.held_out_features).argmax(dim=1)
    correct = (predictions == lesson.held_out_labels).float().mean().item()
    assert correct >= 0.95 and lesson.held_out_accuracy == pytest.approx(100 * correct)
    trained = set(map(tuple, lesson.train_features.tolist()))
    assert not trained & set(map(tuple, lesson.held_out_features.tolist()))


@every_seed
def test_classify_shows_the_loss_of_one_animal_by_formula(run, seed):
    lesson = run("learn_classify", SEED=seed)
    probabilities = lesson.new_logits[3].softmax(dim=0)
    assert lesson.by_formula == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert 0.3 < probabilities[1] < 0.7  # 迷う 1 匹
    assert lesson.probabilities[:3].max(dim=1).values.min() > 0.95
    losses = re.findall(r"if it is a \w+: -ln (\S+) = (\S+), F.cross_entropy (\S+)", lesson.stdout)
    for (p, by_hand, by_torch), probability in zip(losses, probabilities, strict=True):
        assert float(p) == pytest.approx(probability.item(), abs=1e-4)
        assert float(by_hand) == pytest.approx(float(by_torch), abs=1e-3)
        assert float(by_hand) == pytest.approx(-math.log(probability), abs=1e-3)


def test_classify_draws_the_losses_against_the_probability_and_the_gap(run):
    lesson = run("learn_classify")
    for axes in (lesson.p_axes, lesson.gap_axes):
        positions, log_losses = axes.lines[0].get_data()
        p = positions if axes is lesson.p_axes else 1 / (1 + np.exp(-positions))
        np.testing.assert_allclose(log_losses, -np.log(p), atol=1e-3)
        np.testing.assert_allclose(axes.lines[1].get_ydata(), 1 - p, atol=1e-5)
    marked = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lesson.p_axes.lines[2:]]
    assert sorted(p for p, _ in marked) == pytest.approx(sorted([0.01, *lesson.by_formula]))
    for p, height in marked:
        assert height == pytest.approx(-math.log(p))


# learn_class_decision_boundary.py


def test_boundary_has_the_animals_of_the_lesson_before(run):
    before, lesson = run("learn_classify"), run("learn_class_decision_boundary")
    assert torch.equal(before.train_features, lesson.train_features)
    assert torch.equal(before.held_out_labels, lesson.held_out_labels)


@every_seed
def test_boundary_line_agrees_with_the_drawn_line(run, seed):
    lesson = run("learn_class_decision_boundary", SEED=seed)
    muzzle = torch.linspace(0, 12, 7)
    on_line = torch.stack([muzzle, lesson.slope * muzzle + lesson.intercept], dim=1)
    torch.testing.assert_close(
        lesson.model(on_line).softmax(dim=1), torch.full((7, 2), 0.5), atol=1e-3, rtol=0
    )
    vertices = contour(lesson.axes)
    assert len(vertices) > 50
    np.testing.assert_allclose(vertices[:, 1], lesson.slope * vertices[:, 0] + lesson.intercept, atol=0.02)
    (drawn_line,) = [drawn for drawn in lesson.axes.lines if drawn.get_label() == "line from the weights"]
    assert drawn_line.get_slope() == lesson.slope and drawn_line.get_xy1() == (0, lesson.intercept)


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


def test_hidden_layer_bends_the_line_of_one_input_with_relu_alone(run):
    lesson = run("learn_hidden_layer")
    assert lesson.bent == [abs(x) - 1.5 for x in lesson.line_x]
    assert lesson.straight == [-1.5] * len(lesson.line_x)
    assert [list(line.get_ydata()) for line in lesson.fig.axes[0].lines[1:]] == [lesson.straight, lesson.bent]


@every_seed
def test_hidden_layer_needs_relu(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    accuracies = lesson.accuracies
    assert accuracies["one layer"] < 60 and accuracies["two layers"] < 60
    # 1 本の直線でも、訓練が行き着いた所よりはよい
    assert accuracies["line x = 1.2"] > accuracies["one layer"] + 5
    assert accuracies["two layers and ReLU"] > 90 and accuracies["circle, radius 1.5"] > 90


@every_seed
def test_hidden_layer_two_layers_are_one_only_without_relu(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    x = 10 * torch.randn(3, 2)
    for name, same in {"two layers": True, "two layers and ReLU": False}.items():
        assert f"{name}: the same logits as the one layer W2 @ W1, within 1e-4: {same}\n" in lesson.stdout
        middle = lesson.models[name]((x[0] + x[1]) / 2)  # 1 層なら、中点のロジットはロジットの中点になる
        mean = (lesson.models[name](x[0]) + lesson.models[name](x[1])) / 2
        assert torch.allclose(middle, mean, atol=1e-4, rtol=1e-4) == same


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


def test_overfitting_shares_no_point_between_the_three_parts(run):
    lesson = run("learn_overfitting", SEED=0)
    parts = [
        set(map(tuple, part.tolist()))
        for part in (lesson.train_features, lesson.validation_features, lesson.test_features)
    ]
    assert [len(part) for part in parts] == lesson.sizes and len(set.union(*parts)) == sum(lesson.sizes)


def test_overfitting_no_circle_is_better_than_that_of_radius_1_5(run):
    lesson = run("learn_overfitting", SEED=0)
    distances, outer = lesson.features.norm(dim=1), lesson.labels == 1
    wrong = {radius: ((distances > radius) != outer).sum() for radius in (1.2, 1.5, 1.8)}
    assert min(wrong, key=wrong.get) == 1.5


def test_overfitting_picture_shows_the_losses_and_both_models(run):
    lesson = run("learn_overfitting", SEED=0)
    axes = lesson.axes
    validation, train, chosen = axes["loss"].lines
    np.testing.assert_allclose(validation.get_ydata(), lesson.validation_losses[lesson.chosen_rate])
    np.testing.assert_allclose(train.get_ydata(), lesson.train_losses[lesson.chosen_rate])
    assert chosen.get_xdata()[0] == lesson.chosen_epoch
    for name, model in (("chosen", lesson.chosen_model), ("last", lesson.last_model)):
        on_line = torch.tensor(contour(axes[name]), dtype=torch.float)
        error = (model(on_line).softmax(dim=1)[:, 1] - 0.5).abs()
        assert error.median() < 0.1
        assert len(class_points(axes[name])) == lesson.NUM_TRAIN
