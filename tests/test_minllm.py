"""GPT を組み立てて足し算を学ぶレッスンが、教えるとおりのことを学び、表示する。"""

import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import drawn_images

every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


# minllm.py


@pytest.fixture
def gpt(run):
    """訓練していないミニ GPT。テストが重みを変えてもよいように、毎回作る。"""
    lesson = run("minllm")
    torch.manual_seed(0)
    return lesson.GPT(lesson.GPTConfig()).eval()


@every_seed
def test_gpt_first_loss_is_ln_of_the_vocabulary(run, seed):
    lesson = run("minllm", SEED=seed)
    assert abs(lesson.first_loss - math.log(1000)) < 0.1
    assert f"first loss {lesson.first_loss:.4f}, ln(1000) = 6.9078" in lesson.stdout


def test_gpt_prints_the_shape_of_every_stage(run):
    lesson = run("minllm")
    shown = dict(re.findall(r"^(\S.*?) +(\([\d, ]+\))$", lesson.stdout, re.M))
    seen = {}
    hooks = [part.register_forward_hook(lambda part, args, output, name=name: seen.update({name: str(tuple(output.shape))}))
             for name, part in lesson.model.named_modules() if name]
    lesson.model(lesson.idx[:1])
    for hook in hooks:
        hook.remove()
    expected = {name: shape.replace("(1,", "(2,") for name, shape in seen.items()}
    assert shown["logits"] == expected["lm_head"] == "(2, 32, 1000)" and shown["wpe"] == "(32, 64)"
    assert shown["h.0.attn.attention"] == "(2, 4, 32, 32)"
    modules = shown.keys() & expected.keys()
    assert {"wte", "h.0.attn.c_attn", "h.0.mlp.c_fc", "h.0", "h.1", "ln_f"} <= modules
    assert {name: shown[name] for name in modules} == {name: expected[name] for name in modules}


def test_gpt_called_step_by_step_gives_the_same_logits(run):
    lesson = run("minllm")
    torch.testing.assert_close(lesson.step_by_step, lesson.logits, atol=1e-6, rtol=0)
    assert "model(idx) and the steps above differ by 0\n" in lesson.stdout


def test_gpt_can_be_copied_after_a_forward_pass(gpt):
    logits = gpt(torch.arange(32)[None])
    torch.testing.assert_close(copy.deepcopy(gpt)(torch.arange(32)[None]), logits)


@pytest.mark.parametrize("large, loss", [("every weight", 26), ("all but lm_head", 6.9)])
def test_lm_head_alone_decides_the_first_loss(run, large, loss):
    # GPT._init_weights のコメントと、試してみようの答え
    path = run("minllm").path
    source = path.read_text(encoding="utf-8").replace("std=0.02)", "std=1.0)")
    if large == "all but lm_head":
        apply = "        self.apply(self._init_weights)\n"
        source = source.replace(apply, apply + "        nn.init.normal_(self.lm_head.weight, std=0.02)\n")
    assert run.execute("minllm", source=source).first_loss == pytest.approx(loss, abs=1)


@pytest.mark.parametrize("batch, length", [(1, 1), (2, 32), (3, 7), (5, 31)])
def test_gpt_takes_any_batch_and_length(gpt, batch, length):
    assert gpt(torch.randint(1000, (batch, length))).shape == (batch, length, 1000)


@torch.no_grad()
def test_gpt_never_sees_the_future(run, gpt):
    assert "change the last token: the logits before it differ by 0\n" in run("minllm").stdout
    idx = torch.randint(1000, (2, 32))
    logits = gpt(idx)
    for t in range(32):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 1000
        difference = (gpt(changed) - logits).abs().amax(dim=(0, 2))
        assert difference[:t].eq(0).all(), t
        assert difference[t:].gt(0).all(), t


def test_gpt_parameters_counted_by_hand(run):
    lesson = run("minllm")
    V, T, C = 1000, 32, 64
    attention = (C * 3 * C + 3 * C) + (C * C + C)
    mlp = (C * 4 * C + 4 * C) + (4 * C * C + C)
    expected = {"wte": V * C, "wpe": T * C, "h": 2 * (2 * 2 * C + attention + mlp), "ln_f": 2 * C, "lm_head": V * C}
    for name, number in {**expected, "total": 230_144}.items():
        assert re.search(rf"^{name} +{number}$", lesson.stdout, re.M)
    names = {name for name, _ in lesson.model.named_parameters()}
    assert {"wte.weight", "wpe.weight", "h.1.ln_1.weight", "h.1.attn.c_attn.weight", "h.1.attn.c_proj.bias",
            "h.1.ln_2.bias", "h.1.mlp.c_fc.weight", "h.1.mlp.c_proj.weight", "ln_f.weight", "lm_head.weight"} <= names


def test_gpt_starts_from_small_normal_weights(gpt):
    for name, parameter in gpt.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
        elif "ln_" in name:
            assert parameter.eq(1).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002


@torch.no_grad()
def test_attention_agrees_with_pytorch_s(gpt):
    attention = gpt.h[0].attn
    x = torch.randn(3, 20, 64)
    query, key, value = (part.view(3, 20, 4, 16).transpose(1, 2) for part in attention.c_attn(x).split(64, dim=2))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(3, 20, 64)
    torch.testing.assert_close(attention(x), attention.c_proj(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(attention.attention.sum(dim=3), torch.ones(3, 4, 20))


@torch.no_grad()
def test_block_agrees_with_pytorch_s_transformer_layer(gpt):
    block = gpt.h[0]
    for parameter in block.parameters():  # バイアスも LayerNorm も、初期値のままでは違いが見えない
        parameter.add_(torch.randn_like(parameter) * 0.1)
    layer = nn.TransformerEncoderLayer(
        64, 4, dim_feedforward=256, dropout=0, activation=lambda x: F.gelu(x, approximate="tanh"),
        batch_first=True, norm_first=True,
    )
    layer.load_state_dict({
        "self_attn.in_proj_weight": block.attn.c_attn.weight, "self_attn.in_proj_bias": block.attn.c_attn.bias,
        "self_attn.out_proj.weight": block.attn.c_proj.weight, "self_attn.out_proj.bias": block.attn.c_proj.bias,
        "linear1.weight": block.mlp.c_fc.weight, "linear1.bias": block.mlp.c_fc.bias,
        "linear2.weight": block.mlp.c_proj.weight, "linear2.bias": block.mlp.c_proj.bias,
        "norm1.weight": block.ln_1.weight, "norm1.bias": block.ln_1.bias,
        "norm2.weight": block.ln_2.weight, "norm2.bias": block.ln_2.bias,
    })
    x = torch.randn(2, 32, 64)
    mask = nn.Transformer.generate_square_subsequent_mask(32)
    torch.testing.assert_close(block(x), layer.train()(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)


def test_gpt_can_overfit_one_batch(gpt):
    idx = torch.randint(1000, (2, 16))
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(gpt(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


# minllm_addition.py


def test_addition_learns_sums_it_has_not_seen(run):
    lesson = run("minllm_addition")
    train, held_out = (set(map(tuple, sums.tolist())) for sums in (lesson.train_data, lesson.held_out))
    assert len(train) + len(held_out) == 10_000 and not train & held_out
    right = 0
    for tokens in lesson.generate(lesson.held_out[:, :6]).tolist():
        first, second, answer = re.split(r"[+=]", lesson.readable(lesson.decode(tokens)))
        right += int(first) + int(second) == int(answer)
    assert right >= 0.99 * len(held_out)
    assert f"held-out exact match: {100 * right / len(held_out):.1f}% of {len(held_out)} sums" in lesson.stdout


@every_seed
def test_addition_never_trains_on_the_mirror_of_a_held_out_sum(run, seed):
    lesson = run("minllm_addition", SEED=seed, STEPS=50)
    train, held_out = ({lesson.decode(tokens)[:5] for tokens in sums.tolist()} for sums in (lesson.train_data, lesson.held_out))
    assert 950 < len(held_out) < 1000
    for text in held_out:
        mirror = text[3:] + "+" + text[:2]
        assert mirror in held_out and mirror not in train


def test_addition_writes_the_lowest_digit_first(run):
    lesson = run("minllm_addition")
    assert lesson.write_sum(47, 85) == lesson.decode(lesson.encode("47+85=231")) == "47+85=231"
    assert lesson.readable("47+85=231") == "47+85=132" and lesson.readable(lesson.write_sum(3, 4)) == "03+04=007"


@torch.no_grad()
def test_addition_generates_from_the_prompt_alone_and_states_its_probabilities(run):
    lesson = run("minllm_addition")
    written = lesson.generate(lesson.held_out[:5, :6])
    assert torch.equal(written[:, :6], lesson.held_out[:5, :6])
    for length in (6, 7, 8):  # 1 文字ずつ、それまでの文字だけを見せて確かめる
        logits = lesson.model(written[:, :length])[:, -1]
        assert torch.equal(written[:, length], logits.argmax(dim=1))
    for length in (6, 7, 8):
        probability = lesson.model(lesson.idx[:, :length])[0, -1].softmax(dim=0)[lesson.tokens[length]]
        assert f"{lesson.text[:length]:8s} -> {lesson.text[length]}  (probability {probability:.4f})" in lesson.stdout


def test_addition_trains_on_the_answers_alone(run):
    lesson = run("minllm_addition", STEPS=100)
    assert lesson.losses[0] == pytest.approx(math.log(12), abs=0.2)  # 学ぶ前は当てずっぽう
    assert lesson.answers.equal(lesson.batch[:, 6:]) and lesson.answer_logits.shape == (lesson.BATCH_SIZE, 3, 12)


def test_addition_picture_shows_where_each_head_looks(run):
    lesson = run("minllm_addition")
    assert lesson.attention.shape == (2, 4, 8, 8)
    torch.testing.assert_close(lesson.attention.sum(dim=3), torch.ones(2, 4, 8))
    assert lesson.attention.triu(diagonal=1).eq(0).all()  # 後ろの文字は見ない
    maps = drawn_images(lesson.fig)
    assert [axes.get_title() for axes in maps] == ["writing the ones: 2", "writing the tens: 3", "writing the hundreds: 1"]
    frames = [[patch.get_path().get_extents(patch.get_patch_transform()) for patch in axes.patches] for axes in maps]
    framed = [{lesson.text[round(frame.x0 + 0.5)] for frame in row} for row in frames]
    assert framed == [{"7", "5"}, {"4", "8"}, set()]
    for position, axes in zip([5, 6, 7], maps):
        np.testing.assert_allclose(axes.images[0].get_array(), lesson.attention[0, :, position])
        assert "".join(tick.get_text() for tick in axes.get_xticklabels()) == "47+85=23"


def test_the_ones_digit_looks_at_both_ones_digits(run):
    # README が図から読み取っていること: 1 の位を書くとき、layer 0 には、7 を見るヘッドと、5 を見るヘッドがある
    lesson = run("minllm_addition")
    writing_ones = lesson.attention[0, :, 5]  # (n_head, 8)
    assert lesson.text[1] == "7" and writing_ones[:, 1].max() > 0.8
    assert lesson.text[4] == "5" and writing_ones[:, 4].max() > 0.8


def test_addition_answers_questions(run):
    lesson = run("minllm_addition", "-q", "12+34", "-q", "5+6", STEPS=100)
    for prompt in ("47+85=", "12+34=", "05+06="):
        assert f"question: {prompt}" in lesson.stdout


@pytest.mark.parametrize("question", ["", "a+b", "100+1", "1+", "12", "1-2", "1+2+3", "１+２"])
def test_addition_refuses_what_is_not_a_sum(refuse, question):
    assert f"{question!r} は足し算ではない" in refuse("minllm_addition", "-q", question)
