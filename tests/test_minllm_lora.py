"""LoRA は訓練した数だけを動かし、外せば小説の GPT に戻り、まとめれば同じモデルになる。"""

import pytest
import torch

from conftest import section


def test_the_held_out_words_are_answered_and_were_not_trained(run):
    lesson = run("minllm_lora")
    assert lesson.curves[0] == [0] * 5 and not set(lesson.train_words) & set(lesson.held_out_words)
    reverse, first, last, repeat, length = lesson.curves[-1]
    assert min(reverse, repeat) > 70 and min(first, last) > 80 and length > 98


def test_only_the_counted_numbers_were_trained(run):
    lesson = run("minllm_lora")
    names = {name for name, parameter in lesson.model.named_parameters() if parameter.requires_grad}
    small = {name for name in names if name.endswith((".A", ".B"))}
    assert names - small == {"wte.weight"} and len(small) == 2 * 9
    for name, weight in lesson.saved["state_dict"].items():
        trained = lesson.model.state_dict()
        if name in ("wte.weight", "lm_head.weight"):
            assert torch.equal(trained[name][:2230], weight) and len(trained[name]) == 2233
        else:
            name = (
                name
                if name in trained
                else name.replace(".weight", ".base.weight").replace(".bias", ".base.bias")
            )
            assert torch.equal(trained[name], weight)


def test_the_merged_model_answers_like_the_trained_one(run):
    lesson = run("minllm_lora")
    reverse = lesson.exact_match_of(lesson.merged, "逆から", lesson.held_out_words)
    assert reverse == pytest.approx(lesson.curves[-1][0], abs=0.3)


def test_a_merge_without_the_scale_fails_the_proof(run, capsys):
    lesson = run("minllm_lora")
    for _, layer in lesson.lora_layers(lesson.model):
        layer.scale = lesson.ALPHA / lesson.RANK  # レッスンの終わりでは外されている
    proof = section(lesson, "確かめる: まとめる", "確かめる: 外す")
    exec(proof, dict(vars(lesson)))
    assert "within 1e-3: True" in capsys.readouterr().out
    exec(proof.replace("layer.scale * layer.B", "layer.B"), dict(vars(lesson)))
    assert "within 1e-3: False" in capsys.readouterr().out


def test_a_moved_weight_fails_the_proof(run, capsys):
    lesson = run("minllm_lora")
    proof = section(lesson, "確かめる: 外す", "図")
    weight = lesson.model.h[1].mlp.c_fc.base.weight
    original = weight.clone()
    weight[0, 0] += 1e-3
    exec(proof, dict(vars(lesson)))
    assert "to the last bit: False" in capsys.readouterr().out
    weight.copy_(original)
    exec(proof, dict(vars(lesson)))
    assert "to the last bit: True" in capsys.readouterr().out


def test_the_picture_shows_the_curves_and_as_many_directions_as_the_rank(run):
    lesson = run("minllm_lora")
    left, right = lesson.fig.axes
    for number, line in enumerate(left.lines):
        assert line.get_ydata().tolist() == [exact_matches[number] for exact_matches in lesson.curves]
    base, change = (line.get_ydata() for line in right.lines)
    assert (base > 0.1).sum() == 112 and (change > 1e-3).sum() == 16
