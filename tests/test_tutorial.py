"""01_pytorch_tutorial のレッスンが、教えるとおりのことを学び、表示する。"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import lesson

SEEDS = [0, 1, 2]


def run(name, capsys, *args):
    """レッスンを CPU で実行し、main の返り値と stdout を返す。"""
    result = lesson(name).main(["-d", "cpu", *map(str, args)])
    return result, capsys.readouterr().out


# simplenet.py


@pytest.mark.parametrize("seed", SEEDS)
def test_simplenet_layer_is_x_times_w_plus_b(capsys, seed):
    result, out = run("simplenet", capsys, "--seed", seed)
    layer, x = result["layer"], result["x"]
    expected = np.array([[sum(x[i, k].item() * layer.weight[j, k].item() for k in range(3)) + layer.bias[j].item()
                          for j in range(2)] for i in range(4)])
    np.testing.assert_allclose(result["y"].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(result["by_hand"].numpy(), expected, atol=1e-6)
    assert result["difference"] <= 1e-6
    assert f"largest difference from x @ W.T + b: {result['difference']:.1e}" in out


@pytest.mark.parametrize("seed", SEEDS)
def test_simplenet_names_the_values_that_relu_set_to_zero(capsys, seed):
    result, out = run("simplenet", capsys, "--seed", seed)
    before, after = result["before_relu"], result["after_relu"]
    assert before.shape == after.shape == (2, 5)
    zeros = [[i, j] for i in range(2) for j in range(5) if before[i, j] < 0]
    assert zeros and result["zeroed"] == zeros
    assert torch.equal(after, before.clamp(min=0))
    assert f"ReLU set {len(zeros)} of 10 values to 0, at [row, column] {zeros}" in out


def test_simplenet_initial_values_fill_the_stated_range():
    module = lesson("simplenet")
    for in_features in (3, 10, 784):
        torch.manual_seed(0)
        layer = nn.Linear(in_features, 500)
        bound = module.initial_bound(layer)
        assert bound == pytest.approx(in_features**-0.5)
        values = torch.cat([layer.weight.flatten(), layer.bias]).detach()
        assert values.abs().max() <= bound
        assert values.max() > 0.98 * bound and values.min() < -0.98 * bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # 一様分布の標準偏差


# learn.py


@pytest.mark.parametrize("seed", SEEDS)
def test_learn_recovers_the_weights(capsys, tmp_path, seed):
    module = lesson("learn")
    result, out = run("learn", capsys, "--seed", seed, "-o", tmp_path / "learn.png")
    true = [*module.TRUE_WEIGHT, module.TRUE_BIAS]
    np.testing.assert_allclose(result["learned"], result["solved"], atol=1e-3)
    np.testing.assert_allclose(result["learned"], true, atol=4 * module.NOISE_STD / math.sqrt(module.NUM_SAMPLES))
    assert result["losses"][0] > 100 * result["losses"][-1]
    assert result["losses"][-1] == pytest.approx(module.NOISE_STD**2, rel=0.25)
    expected = sum(w * x for w, x in zip(module.TRUE_WEIGHT, module.NEW_SAMPLE)) + module.TRUE_BIAS
    assert result["new_prediction"] == pytest.approx(expected, abs=0.1)
    assert f"final loss {result['losses'][-1]:.4f}, noise variance {module.NOISE_STD**2:.4f}" in out


def test_learn_least_squares_agrees_with_numpy():
    module = lesson("learn")
    torch.manual_seed(0)
    x, y = module.make_data()
    weight, bias = module.least_squares(x, y)
    design = np.column_stack([x.double().numpy(), np.ones(len(x))])
    expected = np.linalg.lstsq(design, y.double().numpy(), rcond=None)[0][:, 0]
    np.testing.assert_allclose([*weight.tolist(), bias.item()], expected, atol=1e-5)


def test_learn_draws_the_losses_and_the_predictions(capsys, tmp_path):
    result, _ = run("learn", capsys, "-o", tmp_path / "learn.png")
    loss_axes, fit_axes = result["figure"].axes
    assert loss_axes.get_yscale() == "log"
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), result["losses"])
    points = fit_axes.collections[0].get_offsets()
    assert len(points) == lesson("learn").NUM_SAMPLES
    assert np.corrcoef(points[:, 0], points[:, 1])[0, 1] > 0.99


# learn_classify.py


@pytest.mark.parametrize("seed", SEEDS)
def test_classify_is_right_on_animals_it_has_not_seen(capsys, seed):
    result, out = run("learn_classify", capsys, "--seed", seed)
    assert result["held_out_accuracy"] >= 95
    assert f"held-out accuracy {result['held_out_accuracy']:.1f}%" in out.split("one new animal")[0].splitlines()[-2]


def test_classify_holds_out_animals_and_the_clusters_overlap():
    module = lesson("learn_classify")
    torch.manual_seed(0)
    features, labels, held_out, held_out_labels = module.make_data()
    assert len(features) == 600 and len(held_out) == 400
    assert not {tuple(row) for row in features.tolist()} & {tuple(row) for row in held_out.tolist()}
    assert 0.4 < labels.float().mean() < 0.6 and 0.4 < held_out_labels.float().mean() < 0.6
    assert features.min() > 0  # 長さである
    for column in range(2):  # どちらの特徴量も、1 つだけでは 2 つのクラスを分けられない
        dogs, cats = features[labels == 0, column], features[labels == 1, column]
        assert max(dogs.min(), cats.min()) < min(dogs.max(), cats.max())


def test_classify_prints_probabilities_that_sum_to_one_and_a_doubtful_animal(capsys):
    result, out = run("learn_classify", capsys)
    rows = re.findall(r"logits \[ *(\S+), +(\S+)\]  P\(dog\) (\S+) \+ P\(cat\) (\S+) = (\S+)  (\w+)", out)
    assert len(rows) == 5 and result["single"].shape == (1, 2) and result["batch"].shape == (4, 2)
    for (dog_logit, cat_logit, dog, cat, total, name), printed in zip(rows, [*result["single"], *result["batch"]]):
        assert float(total) == 1
        assert printed.sum().item() == pytest.approx(1, abs=1e-6)
        expected = 1 / (1 + math.exp(float(dog_logit) - float(cat_logit)))
        assert float(cat) == pytest.approx(expected, abs=0.01)
        assert name == ("cat" if float(cat_logit) > float(dog_logit) else "dog")
    assert result["batch"][:3].max(dim=1).values.min() > 0.95
    assert 0.3 < result["batch"][3, 1] < 0.7  # 迷う 1 匹


def test_classify_reads_the_weights_as_the_data_were_made(capsys):
    result, out = run("learn_classify", capsys)
    muzzle, whiskers = result["cat_minus_dog"]
    assert muzzle < 0 < whiskers  # 鼻先は犬のほうが、ひげは猫のほうが長い
    assert f"each extra cm of muzzle adds {muzzle:+.2f} to (cat logit - dog logit): it speaks for dog" in out
    assert f"each extra cm of whiskers adds {whiskers:+.2f} to (cat logit - dog logit): it speaks for cat" in out


# learn_class_decision_boundary.py


@pytest.mark.parametrize("seed", SEEDS)
def test_boundary_line_agrees_with_the_drawn_line(capsys, tmp_path, seed):
    result, out = run("learn_class_decision_boundary", capsys, "--seed", seed, "-o", tmp_path / "b.png")
    slope, intercept = result["slope"], result["intercept"]
    muzzle = torch.linspace(0, 12, 7)
    on_line = torch.stack([muzzle, slope * muzzle + intercept], dim=1)
    probabilities = result["model"](on_line).softmax(dim=1)
    torch.testing.assert_close(probabilities, torch.full((7, 2), 0.5), atol=1e-3, rtol=0)
    assert f"boundary: whiskers = {slope:.2f} * muzzle {intercept:+.2f}" in out

    axes = result["figure"].axes[0]
    lines = [c for c in axes.collections if len(getattr(c, "levels", [])) == 1]
    assert len(lines) == 1 and list(lines[0].levels) == [0.5]
    vertices = np.concatenate([path.vertices for path in lines[0].get_paths()])
    assert len(vertices) > 50
    np.testing.assert_allclose(vertices[:, 1], slope * vertices[:, 0] + intercept, atol=0.02)


def test_boundary_picture_shows_every_animal_and_rings_the_wrong_ones(capsys, tmp_path):
    result, out = run("learn_class_decision_boundary", capsys, "-o", tmp_path / "b.png")
    axes, colorbar = result["figure"].axes
    assert colorbar.get_ylabel() == "P(cat)"
    scatters = {c.get_label(): c for c in axes.collections if c.get_label() in ("dog", "cat", "misclassified")}
    features, labels, predictions = result["features"], result["labels"], result["predictions"]
    np.testing.assert_allclose(scatters["dog"].get_offsets(), features[labels == 0])
    np.testing.assert_allclose(scatters["cat"].get_offsets(), features[labels == 1])
    np.testing.assert_allclose(scatters["misclassified"].get_offsets(), features[labels != predictions])
    dog_marker, cat_marker = (scatters[name].get_paths()[0].vertices for name in ("dog", "cat"))
    assert dog_marker.shape != cat_marker.shape
    wrong = (labels != predictions).sum().item()
    assert wrong > 0 and f"misclassified: {wrong} of 600 training animals" in out


def test_boundary_grid_holds_the_model_s_probabilities(capsys, tmp_path):
    result, _ = run("learn_class_decision_boundary", capsys, "-o", tmp_path / "b.png")
    muzzle, whiskers, probabilities = result["grid"]
    for row, column in [(0, 0), (17, 130), (199, 60)]:
        point = torch.tensor([[muzzle[row, column], whiskers[row, column]]])
        expected = result["model"](point).softmax(dim=1)[0, 1].item()
        assert probabilities[row, column] == pytest.approx(expected, abs=1e-5)


# minllm.py


@pytest.fixture
def gpt():
    module = lesson("minllm")
    torch.manual_seed(0)
    return module.GPT(module.GPTConfig()).eval()


def test_gpt_prints_the_stages(capsys):
    result, out = run("minllm", capsys)
    assert "token ids       (2, 32)" in out
    assert "h.0.attn.c_attn (2, 32, 192)" in out
    assert "logits          (2, 32, 1000)" in out
    assert result["logits"].shape == (2, 32, 1000)
    assert abs(result["first_loss"] - math.log(1000)) < 0.1
    assert f"first loss {result['first_loss']:.4f}, ln(1000) = 6.9078" in out
    assert result["change"] == 0 and "the logits before it differ by 0.0" in out


@pytest.mark.parametrize("batch, length", [(1, 1), (2, 32), (3, 7), (5, 31)])
def test_gpt_takes_any_batch_and_length(gpt, batch, length):
    assert gpt(torch.randint(1000, (batch, length))).shape == (batch, length, 1000)


def test_gpt_refuses_a_sequence_longer_than_block_size(gpt):
    with pytest.raises(ValueError, match="33 exceeds block_size 32"):
        gpt(torch.zeros(1, 33, dtype=torch.long))


@torch.no_grad()
def test_gpt_never_sees_the_future(gpt):
    idx = torch.randint(1000, (2, 32))
    logits = gpt(idx)
    for t in range(32):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 1000
        difference = (gpt(changed) - logits).abs().amax(dim=(0, 2))
        assert difference[:t].eq(0).all(), t
        assert difference[t:].gt(0).all(), t


@pytest.mark.parametrize("seed", SEEDS)
def test_gpt_first_loss_is_ln_of_the_vocabulary(capsys, seed):
    result, _ = run("minllm", capsys, "--seed", seed)
    assert abs(result["first_loss"] - math.log(1000)) < 0.1


def test_gpt_parameters_counted_by_hand(capsys):
    result, out = run("minllm", capsys)
    V, T, C = 1000, 32, 64
    attention = (C * 3 * C + 3 * C) + (C * C + C)
    mlp = (C * 4 * C + 4 * C) + (4 * C * C + C)
    expected = {"wte": V * C, "wpe": T * C, "h": 2 * (2 * 2 * C + attention + mlp), "ln_f": 2 * C, "lm_head": V * C}
    assert result["parameters"] == expected
    for name, number in {**expected, "total": 230_144}.items():
        assert re.search(rf"^{name} +{number}$", out, re.M)
    names = {name for name, _ in result["model"].named_parameters()}
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
def test_attention_agrees_with_pytorch_s():
    module = lesson("minllm")
    torch.manual_seed(0)
    attention = module.CausalSelfAttention(module.GPTConfig())
    x = torch.randn(3, 20, 64)
    query, key, value = (part.view(3, 20, 4, 16).transpose(1, 2) for part in attention.c_attn(x).split(64, dim=2))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(3, 20, 64)
    torch.testing.assert_close(attention(x), attention.c_proj(expected), atol=1e-5, rtol=0)
    assert attention.attention.triu(1).eq(0).all()
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
    torch.manual_seed(0)
    idx = torch.randint(1000, (2, 16))
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(gpt(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
