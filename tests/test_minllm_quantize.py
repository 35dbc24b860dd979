"""量子化は最も近い値に丸め、数えたバイト数に収まり、倍率を細かく持つほど壊れない。"""

import math

import pytest
import torch

BITS, GROUPINGS = [8, 4, 3, 2], ["matrix", "row", "group"]


@pytest.mark.parametrize("bits", BITS)
def test_no_other_integer_is_nearer(run, bits):
    weights = torch.randn(50, 28, generator=torch.Generator().manual_seed(0))
    integers, scale = run("minllm_quantize").quantize(weights, bits)
    largest = 2 ** (bits - 1) - 1
    choices = torch.arange(-largest, largest + 1) * scale.unsqueeze(2)  # (50, 1, 使える整数の数)
    nearest = (weights.unsqueeze(2) - choices).abs().amin(dim=2)
    torch.testing.assert_close((weights - integers * scale).abs(), nearest)
    assert (integers.abs().amax(dim=1) == largest).all() and torch.equal(scale, scale.half().float())


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("bits", BITS)
def test_the_rounded_model_needs_no_more_than_the_counted_bytes(run, bits, grouping):
    lesson = run("minllm_quantize")
    state_dict, size, _, _ = lesson.round_all(bits, grouping)
    counted = 0
    for name, weight in lesson.model_of(state_dict).named_parameters():  # 共有する重みは 1 度だけ出る
        if weight.dim() == 1:
            assert torch.equal(weight, lesson.float32_weights[name])
            counted += weight.nbytes
            continue
        length = {"matrix": weight.numel(), "row": weight.shape[1], "group": 28}[grouping]
        groups = weight.detach().reshape(-1, length)
        counted += bits * groups.numel() / 8 + 2 * len(groups)
        assert max(len(group.unique()) for group in groups[:100]) < 2**bits
    assert size == counted and f" {size:.0f}  {lesson.losses[bits, grouping]:.3f} " in lesson.stdout


def test_finer_scales_and_more_bits_break_less(run):
    lesson = run("minllm_quantize")
    for bits in BITS[1:]:
        matrix, row, group = (lesson.losses[bits, grouping] for grouping in GROUPINGS)
        assert matrix > row + 0.01 > row > group + 0.01 > group > lesson.float32_loss
    for grouping in GROUPINGS:
        assert lesson.losses[8, grouping] == pytest.approx(3.602, abs=1e-3)
    assert lesson.losses[2, "matrix"] == pytest.approx(math.log(2230), abs=0.2)
    assert lesson.texts["8 bits"] == lesson.texts["float32"] != lesson.texts["4 bits"]


def test_integers_that_need_more_bits_fail_the_proof(run, capsys):
    lesson = run("minllm_quantize")
    wrong = {**vars(lesson), "quantize": lambda weights, bits: lesson.quantize(weights, bits + 1)}
    proof = lesson.path.read_text(encoding="utf-8").split("# %% 確かめる")[1].split("# %% 図")[0]
    exec("# " + proof, wrong)
    assert "unpacked the same: False" in capsys.readouterr().out


def test_the_picture_shows_the_losses_and_the_integers(run):
    lesson = run("minllm_quantize")
    left, right = lesson.fig.axes
    for line, grouping in zip(left.lines, GROUPINGS):
        assert line.get_ydata().tolist() == [lesson.losses[bits, grouping] for bits in BITS]
    heights = [bar.get_height() for bar in right.patches]
    zeros = [
        100 * (lesson.integers_of[4, grouping] == 0).float().mean().item() for grouping in ("matrix", "group")
    ]
    assert len(heights) == 30 and [heights[7], heights[22]] == pytest.approx(zeros, abs=1e-3)
