"""小説を学び、書くレッスンが、教えるとおりのことを学び、表示する。"""

import hashlib
import math
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, section

FOLDER = ROOT / "01_pytorch_tutorial"


# 小説


def test_novel_is_the_file_of_aozora():
    data = (FOLDER / "data" / "wagahaiwa_nekodearu.txt").read_bytes()
    assert (
        hashlib.sha256(data).hexdigest() == "c2f778906046fd19ee7be2525fc32d1e1bff806d013ee80798894054f3be2c26"
    )


# minllm_novel.py


def test_loss_beats_counting(run):
    lesson = run("minllm_novel")
    loss, counted = lesson.held_out_losses[-1], list(lesson.baselines.values())
    assert loss <= 3.63 and loss <= counted[-1] - 0.1
    assert counted == sorted(counted, reverse=True)
    assert counted[0] == pytest.approx(math.log(2230))


def test_the_next_lesson_compares_itself_with_this_loss(run):
    source = run.path_of("minllm_llama").read_text(encoding="utf-8")
    stated = float(re.search(r"^NOVEL_LOSS = (\S+)", source, re.M)[1])
    assert abs(run("minllm_novel").held_out_losses[-1] - stated) < 0.02


def test_counted_probabilities(run):
    lesson = run("minllm_novel")
    for before in ("", "吾", "吾輩", "吾輩は", "輩〓", "ああ吾"):
        assert sum(lesson.counted_probability(before, c) for c in lesson.characters) == pytest.approx(1)
    ids, held_out = lesson.train_data.tolist(), lesson.held_out.tolist()
    singles, pairs = Counter(ids), Counter(zip(ids, ids[1:]))

    def loss(weight):
        chances = [
            (pairs[a, b] + weight * (singles[b] + 1) / (len(ids) + lesson.V)) / (singles[a] + weight)
            for a, b in zip(held_out, held_out[1:])
        ]
        return -sum(map(math.log, chances)) / len(chances)

    assert lesson.baselines["count after 1"] == pytest.approx(loss(40), abs=1e-3)
    assert loss(40) < min(loss(10), loss(160))  # 40 は、数える側に有利な値である


def test_held_out_part_is_never_trained_on(run):
    lesson = run("minllm_novel")
    assert lesson.novel == run("minllm_tokenizer", NUM_MERGES=20).novel
    assert lesson.train_text + lesson.held_out_text == lesson.novel
    assert len(lesson.held_out) == pytest.approx(0.05 * len(lesson.novel), abs=1)
    assert set(lesson.characters) == {"〓"} | {
        c for c, count in Counter(lesson.train_text).items() if count >= 3
    }
    length = lesson.config.block_size
    assert lesson.train_windows.shape == ((len(lesson.train_data) - 1) // length, length + 1)
    assert torch.equal(
        lesson.train_windows[:, :-1].flatten(), lesson.train_data[: len(lesson.train_windows) * length]
    )
    assert lesson.steps * lesson.BATCH_SIZE >= lesson.EPOCHS * len(lesson.train_windows)


def test_text_becomes_tokens_and_text_again(run):
    lesson = run("minllm_novel")
    read_back = "".join(lesson.characters[token] for token in lesson.held_out.tolist())
    different = {character for character, other in zip(lesson.held_out_text, read_back) if character != other}
    assert different == set(lesson.held_out_text) - set(lesson.characters)
    assert lesson.encode("猫😺").tolist() == [lesson.characters.index("猫"), 0]


def test_both_losses_of_a_row_are_those_of_the_saved_model(run):
    lesson = run("minllm_novel")
    *_, last = (line for line in lesson.stdout.splitlines() if line.startswith("step "))
    for name, windows in (("train", lesson.train_windows[:250]), ("held-out", lesson.held_out_windows)):
        logits = lesson.model(windows[:, :-1])  # model は、保存したファイルから作り直したものである
        loss = F.cross_entropy(logits.transpose(1, 2), windows[:, 1:]).item()
        assert f"{name} {loss:.3f}" in last


def test_a_model_that_sees_the_future_fails_the_proof(run, monkeypatch, capsys):
    lesson, fused = run("minllm_novel"), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, is_causal: fused(*args))
    exec(section(lesson, "確かめる", "比較"), dict(vars(lesson)))
    assert "within 1e-4: False" in capsys.readouterr().out


def test_more_context_helps_up_to_eight_characters(run):
    lesson = run("minllm_novel")
    losses = dict(zip(lesson.LENGTHS, lesson.context_losses))
    assert losses[1] > losses[2] > losses[3] > losses[8] and abs(losses[16] - losses[8]) < 0.03
    assert losses[1] > lesson.baselines["count after 1"] and losses[2] < lesson.baselines["count after 3"]


def test_the_neighbours_of_a_digit_are_digits(run):
    lesson = run("minllm_novel")
    for wte, least, most in ((lesson.initial_wte, 0, 1), (lesson.trained_wte, 4, 5)):
        near = lesson.neighbours(wte, lesson.token_ids["三"], 5)
        assert least <= len(set(near) & set("一二四五六七八九十")) <= most


def test_writing_gets_better(run):
    lines = [line for line in run("minllm_novel").stdout.splitlines() if line.startswith("step ")]
    first, last = (sum("ぁ" <= c <= "ん" or c in "、。「」" for c in line) for line in (lines[0], lines[-1]))
    assert len(lines) >= 10 and first < 10 < last


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
    assert set(saved) == {"characters", "config", "state_dict"} and saved["config"]["vocab_size"] == 2230
    assert saved["characters"][0] == "〓" and len(saved["characters"]) == 2230
    assert path.stat().st_size < 4e6


def test_temperature_zero_is_the_likeliest(run):
    first, second = (
        run("minllm_write", "-t", "0", "-n", "60"),
        run("minllm_write", "-t", "0", "-n", "60", SEED=1),
    )
    assert first.written == second.written
    logits = first.model(first.idx[:, :3])[0, -1]
    assert first.characters[logits.argmax()] == first.written[0]
    assert f" 100.0%  {first.written[0]!r}\n" in first.stdout  # 表の最後の列は、この実行の確率である
    assert run("minllm_write", "-k", "1", "-n", "60").written == first.written


def test_top_k_and_temperature(run):
    lesson = run("minllm_write")
    logits = torch.randn(lesson.V, generator=torch.Generator().manual_seed(0))
    for k in (1, 5, lesson.V, 3000):
        chosen = lesson.probabilities_of(logits, 1.0, k, 1)
        assert chosen.sum().item() == pytest.approx(1)
        assert set(chosen.nonzero().flatten().tolist()) == set(logits.topk(min(k, lesson.V)).indices.tolist())
    torch.testing.assert_close(lesson.probabilities_of(logits, 1.0, 3000, 1), F.softmax(logits, dim=0))
    chosen = [lesson.probabilities_of(logits, t, 3000, 1) for t in (0, 0.01, 1, 2, 100)]
    entropies = [torch.special.entr(probabilities).sum().item() for probabilities in chosen]
    assert entropies == sorted(entropies) and entropies[0] == 0
    assert entropies[-1] == pytest.approx(math.log(lesson.V), abs=0.01)


@pytest.mark.parametrize("top_k", [3000, 40])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9])
def test_top_p_keeps_the_fewest_that_reach_p(run, top_k, top_p):
    lesson = run("minllm_write")
    logits = torch.randn(lesson.V, generator=torch.Generator().manual_seed(0))
    before, after = (lesson.probabilities_of(logits, 0.7, top_k, p) for p in (1, top_p))
    kept = before[after > 0]
    assert kept.min() > before[after == 0].max()
    assert kept.sum() >= top_p > kept.sum() - kept.min()
    torch.testing.assert_close(after[after > 0], kept / kept.sum())


def test_another_temperature_fails_the_proof(run, capsys):
    lesson = run("minllm_write")
    other = {**lesson.columns, "t=0.5": lesson.columns["t=2"], "t=1,p=0.5": lesson.columns["t=1,k=5"]}
    exec(section(lesson, "確かめる", "書く"), {**vars(lesson), "columns": other})
    assert "temperature False, top-p False" in capsys.readouterr().out


def test_any_prompt_is_continued(run):
    lesson = run("minllm_write", "-p", "猫😺" * 50, "-n", "5")
    assert "unknown characters, replaced by 〓: 😺" in lesson.stdout
    assert lesson.idx[0, :2].tolist() == [lesson.characters.index("猫"), 0] and len(lesson.written) == 5


def test_the_longest_run_is_found(run):
    lesson = run("minllm_write", "-n", "60")
    text = lesson.written
    parts = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    assert len(lesson.own_run) == max(len(part) for part in parts if part in lesson.train_text)
    assert lesson.own_run in parts and lesson.own_run in lesson.train_text
    copied = lesson.train_text[1000:1030]
    assert lesson.longest_run(f"龠龠{copied}龠") == copied
    assert lesson.train_text + lesson.held_out_text == run("minllm_tokenizer", NUM_MERGES=20).novel


@pytest.mark.parametrize(
    "option, value",
    [
        ("--prompt", ""),
        ("--temperature", "-1"),
        ("--temperature", "1e-9"),
        ("--temperature", "nan"),
        ("--top-k", "0"),
        ("--count", "0"),
        ("--count", "1001"),
        ("--top-p", "0"),
        ("--top-p", "1.1"),
        ("--top-p", "nan"),
    ],
)
def test_write_refuses(refuse, option, value):
    message = refuse("minllm_write", option, value)
    assert message.startswith(option) and message.count("\n") == 1
