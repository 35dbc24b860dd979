"""Llama の形のモデルが、式から別に書いた Llama と同じ計算をし、教えるとおりのことを学ぶ。"""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, section


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def half_split(x, angles):
    """要素 i と i + half を複素数の実部と虚部とみなし、exp(i * 角度) を掛ける。"""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], -1)


def interleaved(x, angles):
    """隣どうしを組にする、別の流儀。"""
    turned = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.exp(1j * angles)
    return torch.stack([turned.real, turned.imag], -1).flatten(-2)


def llama(saved, tokens, turn=half_split, query_heads=4):
    """Llama の名前の重みで、トークン (T,) のロジット (T, V) を、式のとおりに倍精度で求める。"""
    config = saved["config"]
    weights = {name: weight.double() for name, weight in saved["state_dict"].items()}
    size = config["hidden_size"] // query_heads
    speeds = torch.tensor([config["rope_theta"] ** (-2 * i / size) for i in range(size // 2)]).double()
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        part = {
            name.split(".", 3)[3]: weight
            for name, weight in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normed = rms_norm(x, part["input_layernorm.weight"])
        query, key, value = (normed @ part[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        heads = []
        for head in range(query_heads):
            shared = head * config["num_key_value_heads"] // query_heads
            q, k, v = query[:, head * size :], key[:, shared * size :], value[:, shared * size :]
            rows = []
            for t in range(len(tokens)):  # 位置 t は、0 から t までを見る
                turned = turn(q[t, :size], t * speeds)
                scores = [turned @ turn(k[s, :size], s * speeds) / math.sqrt(size) for s in range(t + 1)]
                rows.append(torch.stack(scores).softmax(0) @ v[: t + 1, :size])
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, -1) @ part["self_attn.o_proj.weight"].T
        normed = rms_norm(x, part["post_attention_layernorm.weight"])
        gate, up = (normed @ part[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + torch.exp(-gate)) * up) @ part["mlp.down_proj.weight"].T
    return rms_norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


@pytest.fixture(scope="module")
def saved():
    path = ROOT / "01_pytorch_tutorial" / "minllm_llama.pth"
    assert path.stat().st_size < 4e6
    return torch.load(path, weights_only=True)


def share_of_scale(logits, other):
    return ((logits - other).abs().max() / other.abs().max()).item()


@pytest.fixture(scope="module")
def lesson(run):
    return run("minllm_llama")


def test_an_independent_llama_gives_the_same_logits(lesson, saved):
    model = lesson.LlamaForCausalLM(lesson.LlamaConfig(**saved["config"]))
    model.load_state_dict(saved["state_dict"])
    tokens = lesson.held_out_windows[0]  # (65,)
    logits = model(tokens[None]).detach()[0]
    assert share_of_scale(logits, llama(saved, tokens)) < 1e-5
    for wrong in (interleaved, lambda x, angles: x):  # 組にする相手が違う、回さない
        assert share_of_scale(logits, llama(saved, tokens, wrong)) > 0.1


def test_the_names_and_the_sizes_are_those_of_llama(saved):
    config = saved["config"]
    kv_size = config["hidden_size"] * config["num_key_value_heads"] // config["num_attention_heads"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    expected = {"model.embed_tokens": (config["vocab_size"], width), "model.norm": (width,)}
    expected["lm_head"] = expected["model.embed_tokens"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        expected |= {prefix + name: (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        expected |= {prefix + f"self_attn.{name}_proj": (width, width) for name in "qo"}
        expected |= {prefix + f"self_attn.{name}_proj": (kv_size, width) for name in "kv"}
        expected |= {prefix + f"mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        expected[prefix + "mlp.down_proj"] = (width, inner)
    shapes = {name: tuple(weight.shape) for name, weight in saved["state_dict"].items()}
    assert shapes == {f"{name}.weight": shape for name, shape in expected.items()}
    assert set(saved) == {"characters", "config", "state_dict"} and len(saved["characters"]) == 2230


def test_the_same_novel_is_predicted_better(run, lesson):
    source = run.path_of("minllm_novel").read_text(encoding="utf-8")
    novel = run.execute("minllm_novel", source=source.split("# %% 訓練")[0])  # 訓練する前まで
    assert lesson.characters == novel.characters
    assert torch.equal(lesson.train_windows, novel.train_windows)
    assert torch.equal(lesson.held_out_windows, novel.held_out_windows)
    assert (lesson.EPOCHS, lesson.BATCH_SIZE) == (novel.EPOCHS, novel.BATCH_SIZE)  # 更新の回数も等しい
    assert lesson.held_out_losses[-1] <= min(3.45, lesson.NOVEL_LOSS - 0.1)


def test_the_shipped_weights_are_as_good_as_those_just_trained(lesson, saved):
    lesson.model.load_state_dict(saved["state_dict"])
    assert abs(lesson.evaluate(lesson.held_out_windows) - lesson.held_out_losses[-1]) < 0.02


def test_adding_positions_instead_of_turning_fails_the_proof(lesson, capsys):
    def add(x, positions, theta):
        return x + positions[:, None] / theta

    exec(
        section(lesson, "確かめる: でたらめ", "モデル"),
        {**vars(lesson), "rotate": add, "positions": torch.arange(40)},
    )
    assert "below 1e-4: False" in capsys.readouterr().out


def test_a_model_that_sees_the_future_fails_the_proof(lesson, monkeypatch, capsys):
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, is_causal: fused(*args))
    exec(section(lesson, "確かめる: 最後", "保存"), dict(vars(lesson)))
    assert "before it stay within 1e-5: False" in capsys.readouterr().out


def test_the_picture_shows_that_the_distance_alone_counts(lesson):
    near, far = (line.get_ydata() for line in lesson.score_axes.lines)
    assert abs(near - far).max() < 1e-4 < near.std()
    assert lesson.loss_axes.lines[2].get_ydata().tolist() == lesson.held_out_losses
