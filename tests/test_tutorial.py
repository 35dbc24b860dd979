"""01_pytorch_tutorial のレッスンが、教えるとおりのことを学び、表示する。"""

import hashlib
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import ROOT

FOLDER = ROOT / "01_pytorch_tutorial"
every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


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


# learn.py


@every_seed
def test_learn_recovers_the_weights(run, seed):
    lesson = run("learn", SEED=seed)
    standard_error = lesson.NOISE_STD / math.sqrt(lesson.NUM_SAMPLES)
    torch.testing.assert_close(lesson.learned, lesson.true, atol=4 * standard_error, rtol=0)
    assert lesson.losses[-1] == pytest.approx(lesson.NOISE_STD**2, rel=0.25)
    assert lesson.new_prediction == pytest.approx(2 * 1 - 3 * 2 + 0.5 * 3 + 1, abs=0.1)


@every_seed
def test_learn_agrees_with_least_squares(run, seed):
    lesson = run("learn", SEED=seed)
    design = np.column_stack([lesson.x, np.ones(lesson.NUM_SAMPLES)]).astype(float)
    expected = np.linalg.lstsq(design, lesson.y.double().numpy(), rcond=None)[0][:, 0]
    np.testing.assert_allclose(lesson.solved, expected, atol=1e-5)
    np.testing.assert_allclose(lesson.learned, expected, atol=1e-3)


def test_learn_draws_the_losses_and_the_predictions(run):
    lesson = run("learn")
    loss_axes, fit_axes = lesson.fig.axes
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), lesson.losses)
    points = fit_axes.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([lesson.y, lesson.predictions]))


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

    line, = [c for c in lesson.fig.axes[0].collections if list(getattr(c, "levels", [])) == [0.5]]
    vertices = np.concatenate([path.vertices for path in line.get_paths()])
    assert len(vertices) > 50
    np.testing.assert_allclose(vertices[:, 1], lesson.slope * vertices[:, 0] + lesson.intercept, atol=0.02)


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
        point = torch.stack([lesson.grid_muzzle[column], lesson.grid_whiskers[row]])
        expected = lesson.model(point).softmax(dim=0)[1].item()
        assert lesson.cat_probability[row, column].item() == pytest.approx(expected, abs=1e-5)


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


def test_gpt_prints_the_stages(run):
    lesson = run("minllm")
    for line in ("token ids       (2, 32)", "h.0.attn.c_attn (2, 32, 192)", "logits          (2, 32, 1000)"):
        assert line in lesson.stdout.splitlines()
    assert not any(part._forward_hooks for part in lesson.model.modules())


@pytest.mark.parametrize("batch, length", [(1, 1), (2, 32), (3, 7), (5, 31)])
def test_gpt_takes_any_batch_and_length(gpt, batch, length):
    assert gpt(torch.randint(1000, (batch, length))).shape == (batch, length, 1000)


@torch.no_grad()
def test_gpt_never_sees_the_future(run, gpt):
    assert "change the last token: the logits before it differ by 0.0" in run("minllm").stdout
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
    assert len(train) == 9000 and len(held_out) == 1000 and not train & held_out
    answers = lesson.generate(lesson.held_out[:, :6])
    right = sum(int(left) + int(plus) == int(answer) for left, plus, answer in
                (re.split(r"[+=]", lesson.decode(row)) for row in answers))
    assert right >= 990
    assert f"held-out exact match: {right / 10:.1f}% of 1000 sums" in lesson.stdout


def test_addition_writes_the_lowest_digit_first(run):
    lesson = run("minllm_addition")
    tokens = lesson.encode(47, 85)
    assert "".join(lesson.VOCABULARY[token] for token in tokens) == "47+85=231"
    assert lesson.decode(tokens) == "47+85=132" and lesson.decode(lesson.encode(3, 4)) == "03+04=007"


@torch.no_grad()
def test_addition_generates_from_the_prompt_alone_and_states_its_probabilities(run):
    lesson = run("minllm_addition")
    written = lesson.generate(lesson.held_out[:5, :6])
    assert torch.equal(written[:, :6], lesson.held_out[:5, :6])
    for length in (6, 7, 8):  # 1 文字ずつ、それまでの文字だけを見せて確かめる
        logits = lesson.model(written[:, :length])[:, -1]
        assert torch.equal(written[:, length], logits.argmax(dim=1))
    text = "".join(lesson.VOCABULARY[token] for token in lesson.tokens[0])
    for length in (6, 7, 8):
        probability = lesson.model(lesson.tokens[:, :length])[0, -1].softmax(dim=0)[lesson.tokens[0, length]]
        assert f"{text[:length]:8s} -> {text[length]}  (probability {probability:.4f})" in lesson.stdout


def test_addition_trains_on_the_answers_alone(run):
    lesson = run("minllm_addition", STEPS=100)
    assert lesson.losses[0] == pytest.approx(math.log(12), abs=0.2)  # 学ぶ前は当てずっぽう
    torch.testing.assert_close(lesson.answer_logits, lesson.logits[:, 5:])  # 6 文字目以降だけが、答えを当てる


def test_addition_picture_shows_where_each_head_looks(run):
    lesson = run("minllm_addition")
    assert lesson.attention.shape == (2, 4, 3, 8)
    torch.testing.assert_close(lesson.attention.sum(dim=3), torch.ones(2, 4, 3))
    for row, position in enumerate([5, 6, 7]):
        assert lesson.attention[:, :, row, position + 1:].eq(0).all()
    maps = {axes.get_title(): axes for axes in lesson.fig.axes if axes.get_title().startswith("layer")}
    assert list(maps) == [f"layer {layer}, head {head}" for layer in range(2) for head in range(4)]
    np.testing.assert_allclose(maps["layer 1, head 3"].images[0].get_array(), lesson.attention[1, 3])
    assert [tick.get_text() for tick in maps["layer 0, head 0"].get_yticklabels()] == ["ones: 2", "tens: 3", "hundreds: 1"]


def test_the_ones_digit_looks_at_both_ones_digits(run):
    # README が図から読み取っていること: 1 の位を書くとき、layer 0 のヘッドは 7 と 5 を手分けして見る
    lesson = run("minllm_addition")
    looked_at = {"47+85=23"[position] for position in lesson.attention[0, :, 0].argmax(dim=1)}
    assert {"7", "5"} <= looked_at


def test_addition_answers_questions(run):
    lesson = run("minllm_addition", "-q", "12+34", "-q", "5+6", STEPS=100)
    for prompt in ("47+85=", "12+34=", "05+06="):
        assert f"question: {prompt}" in lesson.stdout


@pytest.mark.parametrize("question", ["", "a+b", "100+1", "1+", "12", "1-2", "1+2+3", "１+２"])
def test_addition_refuses_what_is_not_a_sum(refuse, question):
    assert f"{question!r} は読めない" in refuse("minllm_addition", "-q", question)


# 小説


def test_novel_is_the_file_of_aozora():
    data = (FOLDER / "data" / "wagahaiwa_nekodearu.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "c2f778906046fd19ee7be2525fc32d1e1bff806d013ee80798894054f3be2c26"


# minllm_tokenizer.py


def test_novel_is_cleaned(run):
    novel = run("minllm_tokenizer").novel
    assert (len(novel), len(set(novel))) == (320_678, 3_044)
    assert not set("《》｜［］＃※") & set(novel)
    assert novel.startswith("一\n吾輩は猫である。名前はまだ無い。\n") and novel.endswith("ありがたいありがたい。")


def test_characters_per_token(run):
    lengths = run("minllm_tokenizer").chars_per_token
    assert [round(lengths[merges], 2) for merges in (0, 10, 100, 500, 1000)] == [0.34, 0.47, 0.71, 1.00, 1.18]
    assert lengths == sorted(lengths)


def test_round_trip_of_any_string(run):
    lesson = run("minllm_tokenizer")
    rng = random.Random(0)
    blocks = [range(0x80), range(0x3040, 0x3100), range(0xD800), range(0xE000, 0x110000)]  # 間のサロゲートは文字でない
    strings = ["", "\n", "\0", "aaaaa", "ああああ", "吾輩は猫である。", "I am a cat.", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301", "\r\n　"]
    strings += ["".join(chr(rng.choice(rng.choice(blocks))) for _ in range(rng.randrange(12))) for _ in range(3000)]
    assert [text for text in strings if lesson.decode(lesson.encode(text)) != text] == []
    assert lesson.decode(lesson.ids) == lesson.novel
    passage = lesson.novel[:200]
    assert len(lesson.encode(passage)) < len(passage)


def test_join_goes_from_the_left(run):
    join = run("minllm_tokenizer").join
    for text in ("aaa", "aaaa", "baaab", "aabaaaaab", "a", "b"):
        expected = text.encode().replace(b"aa", b"X")
        assert bytes(join(torch.tensor(list(text.encode()), dtype=torch.int64), 97, 97, 88).tolist()) == expected


def test_merges_are_the_most_frequent_pairs(run):
    lesson = run("minllm_tokenizer", NUM_MERGES=30)
    ids = list(lesson.data)
    for (left, right), new in lesson.merges.items():
        counts = Counter(pair for pair in zip(ids, ids[1:]) if 10 not in pair)
        assert counts[left, right] == max(counts.values())
        joined, i = [], 0
        while i < len(ids):
            found = ids[i : i + 2] == [left, right]
            joined.append(new if found else ids[i])
            i += 2 if found else 1
        ids = joined
    assert ids == lesson.ids.tolist()


# minllm_novel.py


def test_loss_beats_counting(run):
    lesson = run("minllm_novel")
    loss = list(lesson.held_out_losses.values())[-1]
    counted = lesson.baselines
    assert loss <= 3.65
    assert loss <= counted["pairs of characters"] - 0.5
    assert counted["pairs of characters"] < counted["single characters"] < counted["uniform"]
    assert counted["uniform"] == pytest.approx(math.log(2252))


def test_pair_counts_are_counted(run):
    lesson = run("minllm_novel")
    pairs = Counter(zip(lesson.train_data.tolist(), lesson.train_data[1:].tolist()))
    before = Counter(lesson.train_data[:-1].tolist())
    held_out = lesson.held_out.tolist()
    losses = [-math.log((pairs[a, b] + 0.1) / (before[a] + 0.1 * lesson.V)) for a, b in zip(held_out, held_out[1:])]
    assert lesson.baselines["pairs of characters"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def test_held_out_part_is_never_trained_on(run):
    lesson = run("minllm_novel")
    assert torch.equal(torch.cat([lesson.train_data, lesson.held_out]), lesson.tokens)
    assert len(lesson.held_out) == pytest.approx(0.05 * len(lesson.tokens), abs=1)
    width = lesson.windows.shape[1]
    assert torch.equal(lesson.windows[-1].cpu(), lesson.train_data[(len(lesson.windows) - 1) * (width - 1) :][:width])
    assert len(lesson.batches) * lesson.BATCH_SIZE >= lesson.EPOCHS * len(lesson.windows)


def test_writing_gets_better(run):
    lines = [line for line in run("minllm_novel").stdout.splitlines() if line.startswith("step ")]
    first, last = (sum("ぁ" <= c <= "ん" or c in "、。「」" for c in line) for line in (lines[0], lines[-1]))
    assert len(lines) >= 10 and first < 10 < last


def test_head_and_embedding_are_one_tensor(run):
    for name in ("minllm_novel", "minllm_write"):
        model = run(name).model
        assert model.lm_head.weight is model.wte.weight


def test_causal_mask_holds_at_every_position(run):
    lesson = run("minllm_write")
    idx = torch.randint(len(lesson.characters), (1, 64), generator=torch.Generator().manual_seed(0))
    logits = lesson.model(idx)
    for position in range(64):
        changed = idx.clone()
        changed[0, position] = (changed[0, position] + 1) % len(lesson.characters)
        difference = (lesson.model(changed) - logits)[0].abs().amax(dim=1)
        assert (difference[:position] < 1e-5).all()
        assert difference[position] > 1e-3


def test_fused_attention_equals_the_written_one(run):
    config = run("minllm_write").GPTConfig(vocab_size=10)
    torch.manual_seed(0)
    fused = run("minllm_write").CausalSelfAttention(config)
    written = run("minllm").CausalSelfAttention(config)
    written.load_state_dict(fused.state_dict())
    x = torch.randn(2, 20, config.n_embd)
    torch.testing.assert_close(fused(x), written(x))


# minllm_write.py と同梱の重み


def test_shipped_weights_are_plain():
    path = FOLDER / "minllm_novel.pth"
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"characters", "config", "state_dict"} and saved["config"]["vocab_size"] == 2252
    assert saved["characters"][0] == "〓" and len(saved["characters"]) == 2252
    assert path.stat().st_size < 4e6


def test_temperature_zero_is_the_likeliest(run):
    first, second = run("minllm_write", "-t", "0", "-n", "60"), run("minllm_write", "-t", "0", "-n", "60", SEED=1)
    assert first.written == second.written
    logits = first.model(first.idx[:, :3])[0, -1]
    assert first.characters[logits.argmax()] == first.written[0]


def test_top_k_and_temperature(run):
    lesson = run("minllm_write")
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for k in (1, 5, 100, 1000):
        chosen = lesson.probabilities(logits, 1.0, k)
        assert chosen.sum().item() == pytest.approx(1)
        assert set(chosen.nonzero().flatten().tolist()) == set(logits.topk(min(k, 100)).indices.tolist())
    torch.testing.assert_close(lesson.probabilities(logits, 1.0, 100), F.softmax(logits, dim=0))
    entropies = [torch.special.entr(lesson.probabilities(logits, t, 100)).sum().item() for t in (0, 0.5, 1, 2, 100)]
    assert entropies == sorted(entropies) and entropies[0] == 0 and entropies[-1] == pytest.approx(math.log(100), abs=0.01)


def test_any_prompt_is_read(run):
    lesson = run("minllm_write", "-p", "猫😺" * 50, "-n", "5")
    assert "unknown characters, read as 〓: 😺" in lesson.stdout
    assert lesson.idx[0, :2].tolist() == [lesson.characters.index("猫"), 0] and len(lesson.written) == 5


def test_copied_run_stands_in_the_novel(run):
    lesson = run("minllm_write", "-n", "60")
    text = lesson.written
    runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1) if text[i:j] in lesson.novel]
    assert len(lesson.copied) == max(map(len, runs)) and lesson.copied in lesson.novel


@pytest.mark.parametrize("args", [["-p", ""], ["-t", "-1"], ["-t", "nan"], ["-k", "0"], ["-n", "0"]])
def test_write_refuses(refuse, args):
    assert "以上" in refuse("minllm_write", *args)


@pytest.mark.parametrize("weights", [b"", b"not weights", None])
def test_write_refuses_other_weights(refuse, checkout, weights):
    path = checkout / "01_pytorch_tutorial" / "minllm_novel.pth"
    good = path.read_bytes()
    try:
        if weights is None:
            torch.save({"fc1.weight": torch.zeros(2)}, path)
        else:
            path.write_bytes(weights)
        assert "minllm_novel.py で訓練して作り直す" in refuse("minllm_write")
    finally:
        path.write_bytes(good)
