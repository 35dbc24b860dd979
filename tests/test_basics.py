"""simplenet.py から learn_overfitting.py までのレッスンが、教えるとおりのことを学び、表示する。"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


def contour(axes, level=0.5):
    """axes に引かれた、値が level の線の頂点 (N, 2)。"""
    line, = [c for c in axes.collections if list(getattr(c, "levels", [])) == [level]]
    return np.concatenate([path.vertices for path in line.get_paths()])


def class_points(axes):
    """axes に散らした点を、すべてまとめた (N, 2)。"""
    return np.concatenate([c.get_offsets() for c in axes.collections if c.get_offsets().size > 2])


# simplenet.py


@every_seed
def test_simplenet_layer_is_x_times_w_plus_b(run, seed):
    lesson = run("simplenet", SEED=seed)
    layer, x = lesson.layer, lesson.x
    expected = np.array([[sum(x[i, k].item() * layer.weight[j, k].item() for k in range(3)) + layer.bias[j].item()
                          for j in range(2)] for i in range(4)])
    np.testing.assert_allclose(lesson.y, expected, atol=1e-6)
    np.testing.assert_allclose(lesson.by_hand, expected, atol=1e-6)
    assert f"largest difference from x @ W.T + b: {lesson.difference:.1e}" in lesson.stdout
    shown, result = re.search(r"y\[0, 0\] = (.*) = (\S+)", lesson.stdout).groups()
    assert eval(shown) == pytest.approx(float(result), abs=1e-3)  # 読者が電卓に打つ式
    assert float(result) == pytest.approx(expected[0, 0], abs=1e-4)


@every_seed
def test_simplenet_names_the_values_that_relu_set_to_zero(run, seed):
    lesson = run("simplenet", SEED=seed)
    zeros = [[i, j] for i in range(2) for j in range(5) if lesson.before_relu[i, j] < 0]
    assert zeros and torch.equal(lesson.after_relu, lesson.before_relu.clamp(min=0))
    assert f"ReLU set {len(zeros)} of 10 values to 0, at [row, column] {zeros}" in lesson.stdout


def test_simplenet_initial_values_fill_the_stated_range(run):
    bound = float(re.search(r"within .* = \+-([\d.]+);", run("simplenet").stdout)[1])
    assert bound == pytest.approx(3**-0.5, abs=1e-4)
    torch.manual_seed(0)
    layer = nn.Linear(3, 5000)
    values = torch.cat([layer.weight.flatten(), layer.bias]).detach()
    assert values.abs().max() <= 3**-0.5 and values.std().item() == pytest.approx(3**-0.5 / math.sqrt(3), rel=0.02)


# learn_gradient.py


def squared_error(w):
    return np.mean([(w * x - 2 * x) ** 2 for x in (1, 2, 4)])


@pytest.mark.parametrize("start, gradient", [(1.0, -14), (3.0, 14), (2.5, 7)])
def test_gradient_is_the_same_by_three_ways(run, start, gradient):
    lesson = run("learn_gradient", W_START=start)
    assert lesson.by_formula == lesson.by_backward == gradient
    assert lesson.by_nudge == pytest.approx(gradient, abs=1e-3)
    assert lesson.not_cleared == 2 * gradient


def test_gradient_prints_what_a_pocket_calculator_gives(run):
    stdout = run("learn_gradient").stdout
    rows = re.findall(r"step \d  w +(\S+)  loss +(\S+)  gradient +(\S+)", stdout)
    assert len(rows) == 15
    for row in rows:
        w, loss, gradient = map(float, row)
        assert loss == pytest.approx(squared_error(w), abs=0.01)
        assert gradient == pytest.approx(14 * (w - 2), abs=0.01)


def test_gradient_walks_are_w_minus_rate_times_gradient(run):
    lesson = run("learn_gradient")
    for name, rate in {"too small": 0.005, "good": 0.05, "too large": 0.15}.items():
        expected = [2 - (1 - 14 * rate) ** step for step in range(6)]
        np.testing.assert_allclose(lesson.walks[name], expected, atol=1e-4)
    np.testing.assert_allclose(lesson.sgd_walk, lesson.walks["good"], rtol=2e-7)


@pytest.mark.parametrize("share_of_border, converges", [(0.98, True), (1.02, False)])
def test_gradient_walk_diverges_beyond_the_border(run, share_of_border, converges):
    border = run("learn_gradient").border
    rates = {"too small": 0.005, "good": 0.05, "too large": share_of_border * border}
    walk = run("learn_gradient", LEARNING_RATES=rates).walks["too large"]
    distances = np.abs(np.array(walk) - 2)
    assert (np.diff(distances) < 0).all() if converges else (np.diff(distances) > 0).all()


def test_gradient_picture_has_the_walks_on_the_curve_and_the_slope_at_the_start(run):
    lesson = run("learn_gradient")
    slope_axes, *walk_axes = lesson.fig.axes
    assert slope_axes.lines[1].get_slope() == -14 and slope_axes.lines[1].get_xy1() == (1, 7)
    for axes, walk in zip(walk_axes, lesson.walks.values()):
        curve, drawn = axes.lines[0].get_data(), axes.lines[1].get_data()
        np.testing.assert_allclose(curve[1], [squared_error(w) for w in curve[0]], atol=1e-4)
        np.testing.assert_allclose(drawn, [walk, [squared_error(w) for w in walk]], atol=1e-4)


# learn.py


@every_seed
def test_learn_recovers_the_weights(run, seed):
    lesson = run("learn", SEED=seed)
    standard_error = lesson.NOISE_STD / math.sqrt(lesson.NUM_SAMPLES)
    assert lesson.true == pytest.approx([2, -3, 0.5, 1])
    np.testing.assert_allclose(lesson.learned, lesson.true, atol=4 * standard_error)
    assert lesson.losses[-1] == pytest.approx(lesson.NOISE_STD**2, rel=0.25)
    assert lesson.new_prediction == pytest.approx(2 * 1 - 3 * 2 + 0.5 * 3 + 1, abs=0.1)


@every_seed
def test_learn_agrees_with_least_squares(run, seed):
    lesson = run("learn", SEED=seed)
    design = np.column_stack([lesson.x, np.ones(lesson.NUM_SAMPLES)]).astype(float)
    expected = np.linalg.lstsq(design, lesson.y.double().numpy(), rcond=None)[0][:, 0]
    np.testing.assert_allclose(lesson.solved, expected, atol=1e-5)
    np.testing.assert_allclose(lesson.learned, expected, atol=1e-3)


@every_seed
def test_learn_stops_just_under_the_mean_square_of_the_noise(run, seed):
    lesson = run("learn", SEED=seed)
    residual = lesson.y - lesson.x @ lesson.TRUE_WEIGHT.T - lesson.TRUE_BIAS
    assert lesson.noise_mean_square == pytest.approx((residual**2).mean().item(), rel=1e-3)
    assert 0.96 < lesson.losses[-1] / lesson.noise_mean_square < 1  # 4 つの値が 500 個の雑音に合う分は、平均で 4 / 500
    assert f"last loss {lesson.losses[-1]:.5f}, mean square of this noise {lesson.noise_mean_square:.5f}" in lesson.stdout


def test_learn_draws_the_losses_and_the_way_to_the_true_values(run):
    lesson = run("learn")
    loss_axes, path_axes = lesson.fig.axes
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), lesson.losses)
    drawn = {line.get_label(): line.get_ydata() for line in path_axes.lines}
    weight, bias = lesson.model.weight.detach(), lesson.model.bias.detach()
    for name, learned, true in zip(["w[0]", "w[1]", "w[2]", "b"], [*weight[0], bias[0]], [2, -3, 0.5, 1]):
        assert drawn[name][-1] == pytest.approx(learned.item())
        assert abs(drawn[name][0] - true) > 0.3  # 初めは遠い
    assert {line.get_ydata()[0] for line in path_axes.lines if line.get_linestyle() == "--"} == {2, -3, 0.5, 1}


# learn_classify.py


@every_seed
def test_classify_is_right_on_animals_it_has_not_seen(run, seed):
    lesson = run("learn_classify", SEED=seed)
    correct = (lesson.model(lesson.held_out_features).argmax(dim=1) == lesson.held_out_labels).float().mean().item()
    assert correct >= 0.95
    assert f"held-out accuracy {100 * correct:.1f}%\nmuzzle" in lesson.stdout
    assert not set(map(tuple, lesson.train_features.tolist())) & set(map(tuple, lesson.held_out_features.tolist()))


def test_classify_prints_loss_and_accuracy_of_the_same_weights(run):
    lesson = run("learn_classify")
    loss = F.cross_entropy(lesson.model(lesson.train_features), lesson.train_labels).item()
    assert f"epoch {lesson.EPOCHS}  loss {loss:.4f}  " in lesson.stdout


def test_classify_clusters_overlap(run):
    lesson = run("learn_classify")
    assert lesson.features.min() > 0  # 長さである
    for dogs, cats in zip(lesson.dogs.T, lesson.cats.T):  # どちらの特徴量も、1 つだけでは 2 つのクラスを分けられない
        assert max(dogs.min(), cats.min()) < min(dogs.max(), cats.max())


def test_classify_prints_probabilities_that_sum_to_one_and_a_doubtful_animal(run):
    lesson = run("learn_classify")
    rows = re.findall(r"logits \[ *(\S+), +(\S+)\]  P\(dog\) (\S+) \+ P\(cat\) (\S+) = 1.000  (\w+)", lesson.stdout)
    assert len(rows) == 4
    for *numbers, name in rows:
        dog_logit, cat_logit, dog, cat = map(float, numbers)
        assert cat == pytest.approx(1 / (1 + math.exp(dog_logit - cat_logit)), abs=0.01)
        assert name == ("cat" if cat > dog else "dog")
    assert lesson.probabilities[:3].max(dim=1).values.min() > 0.95
    assert 0.3 < lesson.probabilities[3, 1] < 0.7  # 迷う 1 匹


@every_seed
def test_classify_shows_the_loss_of_one_animal_by_formula(run, seed):
    lesson = run("learn_classify", SEED=seed)
    shown = re.search(r"logits \[(\S+), (\S+)\] -> exp \[(\S+), (\S+)\], sum (\S+) -> P\(dog\) (\S+), P\(cat\) (\S+)",
                      lesson.stdout)
    dog_logit, cat_logit, dog_exp, cat_exp, exp_sum, dog, cat = map(float, shown.groups())
    assert [dog_logit, cat_logit] == pytest.approx(lesson.new_logits[3].tolist(), abs=0.006)
    assert [dog_exp, cat_exp] == pytest.approx([math.exp(dog_logit), math.exp(cat_logit)], rel=0.02)
    assert [dog_exp + cat_exp, dog_exp / exp_sum, cat_exp / exp_sum] == pytest.approx([exp_sum, dog, cat], abs=2e-3)
    for label, probability in enumerate([dog, cat]):
        by_hand, by_torch = re.search(rf"a {['dog', 'cat'][label]}: -ln \S+ = (\S+), F.cross_entropy (\S+)",
                                      lesson.stdout).groups()
        assert by_hand == by_torch and float(by_hand) == pytest.approx(-math.log(probability), abs=0.01)
    difference, alone = re.search(r"P\(cat\) from the difference (\S+) alone: (\S+)", lesson.stdout).groups()
    assert float(difference) == pytest.approx(cat_logit - dog_logit, abs=0.02) and float(alone) == cat


def test_classify_reads_the_weights_as_the_data_were_made(run):
    lesson = run("learn_classify")
    muzzle, whiskers = lesson.cat_minus_dog
    assert muzzle < 0 < whiskers  # マズルは犬のほうが、ひげは猫のほうが長い
    assert f"muzzle adds {muzzle:+.2f} to (cat logit - dog logit): evidence for dog" in lesson.stdout
    assert f"whiskers adds {whiskers:+.2f} to (cat logit - dog logit): evidence for cat" in lesson.stdout


# learn_class_decision_boundary.py


def test_boundary_has_the_classifier_of_the_lesson_before(run):
    before, lesson = run("learn_classify"), run("learn_class_decision_boundary")
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, lesson.model.state_dict()[name])


@every_seed
def test_boundary_line_agrees_with_the_drawn_line(run, seed):
    lesson = run("learn_class_decision_boundary", SEED=seed)
    muzzle = torch.linspace(0, 12, 7)
    on_line = torch.stack([muzzle, lesson.slope * muzzle + lesson.intercept], dim=1)
    torch.testing.assert_close(lesson.model(on_line).softmax(dim=1), torch.full((7, 2), 0.5), atol=1e-3, rtol=0)
    assert f"boundary: whiskers = {lesson.slope:.2f} * muzzle {lesson.intercept:+.2f}" in lesson.stdout
    assert "P(cat) on that line: 0.5000 0.5000 0.5000" in lesson.stdout

    line, = [c for c in lesson.fig.axes[0].collections if list(getattr(c, "levels", [])) == [0.5]]
    vertices = np.concatenate([path.vertices for path in line.get_paths()])
    assert len(vertices) > 50
    np.testing.assert_allclose(vertices[:, 1], lesson.slope * vertices[:, 0] + lesson.intercept, atol=0.02)
    drawn_line, = [drawn for drawn in lesson.fig.axes[0].lines if drawn.get_label() == "line from the weights"]
    assert drawn_line.get_slope() == lesson.slope and drawn_line.get_xy1() == (0, lesson.intercept)


def test_boundary_picture_shows_every_animal_and_rings_the_wrong_ones(run):
    lesson = run("learn_class_decision_boundary")
    features, labels = lesson.train_features, lesson.train_labels
    wrong = lesson.model(features).argmax(dim=1) != labels
    drawn = {c.get_label(): c.get_offsets() for c in lesson.fig.axes[0].collections}
    np.testing.assert_allclose(drawn["dog"], features[labels == 0])
    np.testing.assert_allclose(drawn["cat"], features[labels == 1])
    np.testing.assert_allclose(drawn["misclassified"], features[wrong])
    assert wrong.any() and f"misclassified: {wrong.sum()} of 600 training animals" in lesson.stdout


def test_boundary_grid_holds_the_model_s_probabilities(run):
    lesson = run("learn_class_decision_boundary")
    for row, column in [(0, 0), (17, 130), (199, 60)]:
        point = torch.tensor([lesson.muzzle_ticks[column], lesson.whisker_ticks[row]])
        expected = lesson.model(point).softmax(dim=0)[1].item()
        assert lesson.cat_probability[row, column] == pytest.approx(expected, abs=1e-5)


# learn_hidden_layer.py


@every_seed
def test_hidden_layer_needs_relu(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    accuracies = lesson.accuracies
    assert accuracies["one layer"] < 65 and accuracies["two layers"] < 65 and accuracies["two layers and ReLU"] > 90
    correct = (lesson.with_relu(lesson.held_out_features).argmax(dim=1) == lesson.held_out_labels).float().mean().item()
    assert f"two layers and ReLU  held-out accuracy {100 * correct:.1f}%" in lesson.stdout


@every_seed
def test_hidden_layer_two_layers_are_one(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    assert lesson.merged_weight.shape == (2, 2) and lesson.merged_bias.shape == (2,)
    x = 10 * torch.randn(50, 2)
    torch.testing.assert_close(lesson.two_layers(x), F.linear(x, lesson.merged_weight, lesson.merged_bias), atol=1e-4, rtol=1e-4)
    assert lesson.merged_difference < 1e-5 and lesson.relu_difference < 1e-4


@every_seed
def test_hidden_layer_boundary_bends_only_where_a_unit_s_line_crosses_it(run, seed):
    lesson = run("learn_hidden_layer", SEED=seed)
    first, _, second = lesson.with_relu
    straight, bent = 0, 0
    vertices = torch.tensor(contour(lesson.fig.axes[1]), dtype=torch.float)
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


def test_hidden_layer_draws_each_unit_s_line(run):
    lesson = run("learn_hidden_layer", SEED=0)
    first = lesson.with_relu[0]
    lines = [line for line in lesson.fig.axes[1].lines if hasattr(line, "get_xy1")]
    assert len(lines) == lesson.HIDDEN
    for unit, line in enumerate(lines):
        ends = torch.tensor([line.get_xy1(), line.get_xy2()])
        torch.testing.assert_close(first(ends)[:, unit], torch.zeros(2), atol=1e-4, rtol=0)
    for axes in lesson.fig.axes:
        assert len(class_points(axes)) == lesson.NUM_TRAIN


# learn_overfitting.py


@every_seed
def test_overfitting_training_loss_vanishes_and_validation_loss_turns(run, seed):
    lesson = run("learn_overfitting", SEED=seed)
    validation = lesson.validation_losses
    lowest = min(validation)
    assert lesson.train_losses[-1] < 0.2 * lesson.true_train_loss
    assert lesson.chosen_epoch == validation.index(lowest) + 1 < lesson.EPOCHS / 2
    assert validation[0] > 1.5 * lowest and validation[-1] > 1.3 * lowest


@every_seed
def test_overfitting_choice_is_the_lowest_validation_loss_and_holds_on_test_data(run, seed):
    lesson = run("learn_overfitting", SEED=seed)
    assert min(lesson.validation_losses) == min(min(losses) for _, losses, _, _ in lesson.runs.values())
    chosen = F.cross_entropy(lesson.chosen_model(lesson.validation_features), lesson.validation_labels).item()
    assert chosen == pytest.approx(min(lesson.validation_losses), abs=1e-5)
    last = F.cross_entropy(lesson.last_model(lesson.test_features), lesson.test_labels).item()
    assert lesson.true_test_loss < lesson.test_loss < 1.4 * lesson.true_test_loss and lesson.test_loss < last
    assert f"test loss {lesson.test_loss:.3f} ({lesson.true_test_loss:.3f} with" in lesson.stdout


def test_overfitting_shares_no_point_between_the_three_parts(run):
    lesson = run("learn_overfitting", SEED=0)
    parts = [set(map(tuple, part.tolist()))
             for part in (lesson.train_features, lesson.validation_features, lesson.test_features)]
    assert [len(part) for part in parts] == lesson.sizes and len(set.union(*parts)) == sum(lesson.sizes)


def test_overfitting_true_probability_is_the_share_of_outer_points(run):
    lesson = run("learn_overfitting", SEED=0)
    torch.manual_seed(0)
    labels = torch.randint(2, (200_000,))
    radii = labels + 1 + lesson.RADIUS_STD * torch.randn(len(labels))
    for radius in (1.3, 1.5, 1.8):
        near = (radii - radius).abs() < 0.02
        probability = lesson.true_logits(torch.tensor([[0, radius]])).softmax(dim=1)[0, 1].item()
        assert labels[near].float().mean().item() == pytest.approx(probability, abs=0.03)


@every_seed
def test_overfitting_dropout_differs_in_train_only_and_slows_the_rise(run, seed):
    lesson = run("learn_overfitting", SEED=seed)
    assert lesson.train_difference > 0.01 and lesson.eval_difference == 0
    for lowest, last, lowest_with_dropout, last_with_dropout in lesson.dropout_rows:
        assert last_with_dropout < last
        assert abs(lowest_with_dropout - lowest) < 0.15 * lowest  # 選んだエポックでは、助けにも害にもなっていない


def test_overfitting_picture_shows_the_losses_and_both_models(run):
    lesson = run("learn_overfitting", SEED=0)
    axes = lesson.axes
    validation, train, chosen = axes["loss"].lines
    np.testing.assert_allclose(validation.get_ydata(), lesson.validation_losses)
    np.testing.assert_allclose(train.get_ydata(), lesson.train_losses)
    assert chosen.get_xdata()[0] == lesson.chosen_epoch
    for name, model in (("chosen", lesson.chosen_model), ("last", lesson.last_model)):
        on_line = torch.tensor(contour(axes[name]), dtype=torch.float)
        error = (model(on_line).softmax(dim=1)[:, 1] - 0.5).abs()
        assert error.median() < 0.1
        assert len(class_points(axes[name])) == lesson.NUM_TRAIN
