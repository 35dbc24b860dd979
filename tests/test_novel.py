"""小説を学び、書くレッスンが、教えるとおりのことを学び、表示する。"""

import hashlib
import math
import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT

FOLDER = ROOT / "01_pytorch_tutorial"


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


@pytest.fixture(scope="module")
def strings():
    """あらゆる文字を含む 3,000 ほどの文字列。"""
    rng = random.Random(0)
    blocks = [range(0x80), range(0x3040, 0x3100), range(0xD800), range(0xE000, 0x110000)]  # 間のサロゲートは文字でない
    fixed = ["", "\n", "\0", "aaaaa", "ああああ", "吾輩は猫である。", "I am a cat.", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301", "\r\n　"]
    return fixed + ["".join(chr(rng.choice(rng.choice(blocks))) for _ in range(rng.randrange(12))) for _ in range(3000)]


def test_round_trip_of_any_string(run, strings):
    lesson = run("minllm_tokenizer")
    assert [text for text in strings if lesson.decode(lesson.encode(text)) != text] == []
    assert lesson.decode(map(ord, lesson.tokens)) == lesson.novel
    passage = lesson.novel[:200]
    assert len(lesson.encode(passage)) < len(passage)


def joined(ids, left, right, new):
    """リスト ids の中の left, right を、左から順に new に置き換えたリスト。"""
    result, i = [], 0
    while i < len(ids):
        found = ids[i : i + 2] == [left, right]
        result.append(new if found else ids[i])
        i += 2 if found else 1
    return result


def test_merges_are_the_most_frequent_pairs(run):
    lesson = run("minllm_tokenizer", NUM_MERGES=30)
    ids = list(lesson.data)
    for (left, right), new in lesson.merges.items():
        counts = Counter(pair for pair in zip(ids, ids[1:]) if 10 not in pair)
        assert counts[left, right] == max(counts.values())
        ids = joined(ids, left, right, new)
    assert ids == [ord(token) for token in lesson.tokens]


def test_encoding_is_that_of_gpt2(run, strings):
    """GPT-2 は、今ある組の中で最も先に学んだものをつなぐことを、つなげなくなるまで繰り返す。"""
    lesson = run("minllm_tokenizer")
    passages = [lesson.novel[start : start + 40] for start in range(0, len(lesson.novel), 2000)]
    for text in strings[:100] + passages:
        ids = list(text.encode())
        while pairs := [pair for pair in zip(ids, ids[1:]) if pair in lesson.merges]:
            pair = min(pairs, key=lesson.merges.get)
            ids = joined(ids, *pair, lesson.merges[pair])
        assert lesson.encode(text) == ids


# minllm_novel.py


def test_loss_beats_counting(run):
    lesson = run("minllm_novel")
    loss = lesson.held_out_losses[-1]
    counted = lesson.baselines
    assert loss <= 3.63
    assert loss <= counted["pairs of characters"] - 0.5
    assert counted["pairs of characters"] < counted["single characters"] < counted["uniform"]
    assert counted["uniform"] == pytest.approx(math.log(2230))


def test_pair_counts_are_counted(run):
    lesson = run("minllm_novel")
    pairs = Counter(zip(lesson.train_data.tolist(), lesson.train_data[1:].tolist()))
    before = Counter(lesson.train_data[:-1].tolist())
    held_out = lesson.held_out.tolist()
    losses = [-math.log((pairs[a, b] + 0.1) / (before[a] + 0.1 * lesson.V)) for a, b in zip(held_out, held_out[1:])]
    assert lesson.baselines["pairs of characters"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def test_held_out_part_is_never_trained_on(run):
    lesson = run("minllm_novel")
    assert lesson.train_text + lesson.held_out_text == lesson.novel == run("minllm_tokenizer").novel
    assert len(lesson.held_out) == pytest.approx(0.05 * len(lesson.novel), abs=1)
    assert set(lesson.characters) == {"〓"} | {c for c, count in Counter(lesson.train_text).items() if count >= 3}
    length = lesson.config.block_size
    assert lesson.train_windows.shape == ((len(lesson.train_data) - 1) // length, length + 1)
    assert torch.equal(lesson.train_windows[:, :-1].flatten(), lesson.train_data[: len(lesson.train_windows) * length])
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
        logits = lesson.model(windows[:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), windows[:, 1:]).item()
        assert f"{name} {loss:.3f}" in last


def test_a_folder_that_cannot_be_written_ends_before_the_training(run, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SystemExit, match="重みを保存できない"):
        run.execute("minllm_novel")
    assert capsys.readouterr().out == ""


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
    assert set(saved) == {"characters", "config", "state_dict"} and saved["config"]["vocab_size"] == 2230
    assert saved["characters"][0] == "〓" and len(saved["characters"]) == 2230
    assert path.stat().st_size < 4e6


def test_temperature_zero_is_the_likeliest(run):
    first, second = run("minllm_write", "-t", "0", "-n", "60"), run("minllm_write", "-t", "0", "-n", "60", SEED=1)
    assert first.written == second.written
    logits = first.model(first.idx[:, :3])[0, -1]
    assert first.characters[logits.argmax()] == first.written[0]
    row = next(line for line in first.stdout.splitlines() if line.startswith(repr(first.written[0])))
    assert row.endswith(" 100.0%")  # 表の最後の列は、この実行の確率である
    assert run("minllm_write", "-k", "1", "-n", "60").written == first.written


def test_top_k_and_temperature(run):
    lesson = run("minllm_write")
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for k in (1, 5, 100, 1000):
        chosen = lesson.probabilities(logits, 1.0, k)
        assert chosen.sum().item() == pytest.approx(1)
        assert set(chosen.nonzero().flatten().tolist()) == set(logits.topk(min(k, 100)).indices.tolist())
    torch.testing.assert_close(lesson.probabilities(logits, 1.0, 100), F.softmax(logits, dim=0))
    entropies = [torch.special.entr(lesson.probabilities(logits, t, 100)).sum().item() for t in (0, 0.01, 1, 2, 100)]
    assert entropies == sorted(entropies) and entropies[0] == 0 and entropies[-1] == pytest.approx(math.log(100), abs=0.01)


def test_any_prompt_is_continued(run):
    lesson = run("minllm_write", "-p", "猫😺" * 50, "-n", "5")
    assert "unknown characters, replaced by 〓: 😺" in lesson.stdout
    assert lesson.idx[0, :2].tolist() == [lesson.characters.index("猫"), 0] and len(lesson.written) == 5


def test_copied_run_stands_in_the_novel(run):
    lesson = run("minllm_write", "-n", "60")
    text = lesson.written
    runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1) if text[i:j] in lesson.novel]
    assert len(lesson.copied) == max(map(len, runs)) and lesson.copied in lesson.novel


@pytest.mark.parametrize("args", [["-p", ""], ["-t", "-1"], ["-t", "1e-9"], ["-t", "nan"], ["-k", "0"], ["-n", "0"]])
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
