"""スケーリングのレッスン: 直線と個数の式が別の計算と合い、最も大きなモデルは直線より上に来る。"""

import numpy as np
import pytest

SMALL = {"WIDTHS": (8, 16, 32), "TRAIN_WINDOWS": 80, "SEEDS": (0,)}


def test_the_line_is_that_of_numpy_and_foretells_from_the_small_models_alone(run):
    lesson = run("minllm_scaling")
    for seed in lesson.SEEDS:
        small = np.log(lesson.losses[seed][:-1])
        line = np.polyfit(lesson.log_sizes, small, 1)
        np.testing.assert_allclose(lesson.lines[seed], line, rtol=1e-6)
        foretold = np.exp(np.polyval(line, np.log(lesson.largest_size)))
        assert lesson.predictions[seed] == pytest.approx(foretold, rel=1e-6)
    training = lesson.stdout.index(f"width {lesson.largest_width:3d} ")
    assert lesson.stdout.rindex("prediction for") < training  # 予測は、訓練より先に表示した


def test_bigger_and_more_text_are_better_but_less_than_the_line_says(run):
    lesson = run("minllm_scaling")
    for losses in (*lesson.losses.values(), lesson.text_losses):
        assert losses == sorted(losses, reverse=True)
    measured = np.array([losses[-1] for losses in lesson.losses.values()])
    foretold = np.array(list(lesson.predictions.values()))
    assert np.abs(measured / foretold - 1).max() < 0.06
    assert measured.mean() > foretold.mean() + 0.02


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 1}], ids=["same", "one layer fewer"])
def test_the_formula_counts_what_the_model_holds(config, run):
    lesson = run("minllm_scaling", **SMALL)
    for width in (16, 128):
        made = lesson.LlamaForCausalLM(
            lesson.LlamaConfig(10, hidden_size=width, intermediate_size=width * 8 // 3, **config)
        )
        names = {name: weight.numel() for name, weight in made.named_parameters() if "embed" not in name}
        assert (lesson.count_parameters(width) == sum(names.values())) == (not config)


def test_a_wrong_formula_is_found(run):
    source = run("minllm_scaling", **SMALL).path.read_text(encoding="utf-8")
    right = "attention = 3 * width * width"
    assert source.count(right) == 1
    source = source.replace(right, "attention = 4 * width * width")
    wrong = run.execute("minllm_scaling", source=source, **SMALL)
    assert "the formula counts the parameters: True" in run("minllm_scaling", **SMALL).stdout
    assert "the formula counts the parameters: False" in wrong.stdout


def test_the_picture_shows_the_line_the_points_and_the_text(run):
    lesson = run("minllm_scaling")
    size_lines = lesson.size_axes.lines
    for seed, line, points in zip(lesson.SEEDS, size_lines[::2], size_lines[1::2], strict=True):
        assert line.get_ydata()[-1] == pytest.approx(lesson.predictions[seed], rel=1e-9)
        assert list(points.get_ydata()) == lesson.losses[seed]
    assert list(lesson.text_axes.lines[0].get_ydata()) == lesson.text_losses
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in lesson.fig.axes)
