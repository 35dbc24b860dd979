"""キャッシュを使う Llama は、もとの Llama と同じ計算をし、訓練より遠くでは下手になる。"""

import ast

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT


@pytest.fixture
def text(run):
    """held-out の 100 文字 (1, 100)。"""
    return run("minllm_cache").windows[3:4, :100]


def test_it_is_the_model_of_minllm_llama(run, text):
    lesson, source = (
        run("minllm_cache"),
        (ROOT / "01_pytorch_tutorial" / "minllm_llama.py").read_text("utf-8"),
    )
    names = {"rotate", *(name for name in vars(lesson) if name.startswith("Llama"))}
    body = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
    original = dict(vars(lesson))
    exec(compile(ast.Module(body, []), "minllm_llama.py", "exec"), original)
    model = original["LlamaForCausalLM"](original["LlamaConfig"](**lesson.saved["config"]))
    model.load_state_dict(lesson.saved["state_dict"])
    logits = lesson.model(text, lesson.new_caches())
    torch.testing.assert_close(logits, model(text), rtol=0, atol=1e-4)
    # 訓練と同じ長さなら、損失は minllm_llama.py の held-out である
    windows = lesson.held_out.unfold(0, 65, 64)
    loss = F.cross_entropy(model(windows[:, :-1]).transpose(1, 2), windows[:, 1:]).item()
    assert lesson.losses[:64].mean().item() == pytest.approx(loss, abs=0.02)


@pytest.mark.parametrize("parts", [[1] * 100, [99, 1], [1, 99], [30, 1, 1, 40, 28]], ids=str)
def test_any_division_of_a_text_gives_the_same_logits(run, text, parts):
    lesson = run("minllm_cache")
    caches, whole = lesson.new_caches(), lesson.new_caches()
    logits = torch.cat([lesson.model(part, caches) for part in text.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(logits, lesson.model(text, whole), rtol=0, atol=1e-4)
    for cache, other in zip(caches, whole):
        assert cache["key"].shape == cache["value"].shape == (1, 2, 100, 28)
        torch.testing.assert_close(cache["key"], other["key"], rtol=0, atol=1e-4)


def test_every_character_is_passed_once(run):
    lesson = run("minllm_cache")
    assert lesson.passed_without == sum(range(3, 515)) and lesson.passed_with == 3 + 511
    assert lesson.size == 256 * 896


def test_a_causal_mask_over_one_query_sees_the_first_character_alone(run, monkeypatch):
    lesson, fused = run("minllm_cache"), F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *qkv, attn_mask: fused(*qkv, is_causal=True)
    )
    written = lesson.write(60, True)[0][0, 3:].tolist()
    assert written != lesson.idx_with[0, 3:63].tolist()
    following = dict(zip(written, written[1:]))  # 次の文字は、今の文字だけで決まる
    assert all(following[token] == after for token, after in zip(written, written[1:]))


def test_the_loss_rises_beyond_the_length_in_training(run):
    lesson = run("minllm_cache")
    blocks = lesson.losses.view(8, 32).mean(dim=1).tolist()
    assert blocks[1] < blocks[0] < blocks[2] - 0.05 < blocks[3] - 0.1 and blocks[7] > blocks[1] + 0.4
    left, right = lesson.fig.axes
    for line, times in zip(left.lines, (lesson.ms_without, lesson.ms_with), strict=True):
        assert line.get_ydata().tolist() == [block.median().item() for block in times.split(16)]
    assert right.lines[0].get_ydata().mean() == pytest.approx(lesson.losses.mean().item(), abs=1e-4)
    assert list(right.lines[1].get_xdata()) == [64, 64]
