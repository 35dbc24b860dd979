"""スケーリングのレッスン: 予測は小さなモデルだけから訓練の前に作られ、最も大きなモデルは直線より上に来る。"""

import numpy as np
import pytest
import torch

SMALL = {"WIDTHS": (16, 32, 64), "TRAIN_WINDOWS": 80, "SEEDS": (0,)}


def test_the_small_models_lie_near_a_line_and_the_largest_above_it(run):
    lesson = run("minllm_scaling")
    above = []
    for seed in lesson.SEEDS:
        small, largest = lesson.losses[seed][:-1], lesson.losses[seed][-1]
        line = np.polyfit(lesson.log_sizes, np.log(small), 1)  # 別の実装による直線
        foretold = np.exp(np.polyval(line, np.log([*lesson.sizes.values()])))
        assert lesson.predictions[seed] == pytest.approx(foretold[-1], rel=1e-6)
        assert np.abs(small / foretold[:-1] - 1).max() < 0.015
        assert small == sorted(small, reverse=True)
        above.append(largest / foretold[-1] - 1)
    assert min(above) > 0 and np.mean(above) > 0.015
    first_training = lesson.stdout.index(f"seed {lesson.SEEDS[0]} width {lesson.largest_width:3d}")
    assert lesson.stdout.rindex("predicted for") < first_training  # 予測は、訓練より先に表示した


def test_no_text_serves_two_purposes(run):
    lesson = run("minllm_scaling")
    train, validation, held_out = (
        range(0, 4480 * 64 + 1),
        range(4480 * 64, lesson.train_size),
        range(lesson.train_size, len(lesson.data)),
    )
    for windows, places in (
        (lesson.train_windows, train),
        (lesson.validation_windows, validation),
        (lesson.held_out_windows, held_out),
    ):
        text = lesson.data[places.start : places.start + 64 * len(windows) + 1]
        assert torch.equal(windows[:, 1:].flatten(), text[1:]) and 64 * len(windows) < len(places)


@pytest.mark.parametrize("width", [16, 128])
def test_the_formula_counts_all_but_the_table_of_characters(width, run):
    lesson = run("minllm_scaling", **SMALL)
    model = lesson.LlamaForCausalLM(lesson.LlamaConfig(10, width, width * 8 // 3))
    assert lesson.count_parameters(width) == sum(p.numel() for p in model.parameters()) - 10 * width


@pytest.mark.parametrize("right, wrong", [("3 * width * width ", "4 * width * width "), ("+ norms)", ")")])
def test_a_wrong_formula_is_found(right, wrong, run):
    source = run("minllm_scaling", **SMALL).path.read_text(encoding="utf-8")
    assert source.count(right) == 1
    broken = run.execute("minllm_scaling", source=source.replace(right, wrong), **SMALL)
    for claim in ("the formula counts the parameters", "parameters of the largest as the formula says"):
        assert f"{claim}: True" in run("minllm_scaling", **SMALL).stdout
        assert f"{claim}: False" in broken.stdout


def test_the_picture_shows_the_points_and_their_distance_to_the_line(run):
    lesson = run("minllm_scaling")
    drawn, off = lesson.size_axes.lines, lesson.off_axes.lines
    for seed, line, points, distances in zip(lesson.SEEDS, drawn[::2], drawn[1::2], off):
        assert line.get_ydata()[-1] == pytest.approx(lesson.predictions[seed], rel=1e-9)
        assert list(points.get_ydata()) == lesson.losses[seed]
        expected = 100 * (lesson.losses[seed][-1] / lesson.predictions[seed] - 1)
        assert distances.get_ydata()[-1] == pytest.approx(expected, rel=1e-6)
    assert lesson.size_axes.get_xscale() == lesson.size_axes.get_yscale() == "log"
