"""minllm_addition.py が、見たことのない足し算を、自分で 1 文字ずつ書いて解く。"""

import pytest
import torch

from conftest import lesson


@pytest.fixture(scope="module")
def short_training(tmp_path_factory):
    """本番の 3 分の 1 のステップで訓練した結果。"""
    module = lesson("minllm_addition")
    output = tmp_path_factory.mktemp("addition") / "a.png"
    return module.main(["-d", "cpu", "-s", "500", "-q", "47+85", "-q", " 3 + 4 ", "-o", str(output)])


def test_a_sum_is_written_from_its_lowest_digit():
    module = lesson("minllm_addition")
    tokens = torch.tensor(module.encode(47, 85))
    assert module.decode(tokens) == "47+85=231" and module.answer_of(tokens) == 132
    assert module.decode(torch.tensor(module.encode(3, 4))) == "03+04=700"
    tokens[-1] = module.VOCABULARY.index("+")
    assert module.answer_of(tokens) is None


def test_held_out_sums_are_never_trained_on(short_training):
    train, held_out = ({tuple(row) for row in short_training[name].tolist()} for name in ("train_data", "held_out"))
    module = lesson("minllm_addition")
    assert len(held_out) == 1000 and not train & held_out
    assert train | held_out == {tuple(module.encode(a, b)) for a in range(100) for b in range(100)}


def test_other_seeds_hold_out_other_sums():
    module = lesson("minllm_addition")
    torch.manual_seed(0)
    first = module.make_data()[1]
    torch.manual_seed(1)
    assert not torch.equal(first, module.make_data()[1])


def test_only_the_answer_is_trained(monkeypatch):
    module = lesson("minllm_addition")
    seen = []

    def spy(logits, targets, ignore_index):
        seen.append(targets[targets != ignore_index].view(-1, 3))
        return torch.nn.functional.cross_entropy(logits, targets, ignore_index=ignore_index)

    monkeypatch.setattr(module, "F", type("F", (), {"cross_entropy": staticmethod(spy), "gelu": module.F.gelu}))
    torch.manual_seed(0)
    train_data, held_out = module.make_data()
    module.train(module.GPT(module.GPTConfig()), train_data, held_out[:4], held_out[:2], 10)
    answers = {tuple(row) for row in train_data[:, module.PROMPT_LENGTH:].tolist()}
    assert len(seen) == 10 and {tuple(row) for targets in seen for row in targets.tolist()} <= answers


def test_a_short_training_beats_chance_by_far(short_training):
    # 当てずっぽうなら 1,000 問に 1 問、よくある和ばかり答えても 100 問に 1 問である
    assert short_training["history"]["exact_match"][-1] > 50


def test_exact_match_is_measured_on_what_the_model_writes(short_training):
    module, model, held_out = lesson("minllm_addition"), short_training["model"], short_training["held_out"]
    right = 0
    for row in held_out[:100]:
        idx = row[None, :module.PROMPT_LENGTH]
        for _ in range(3):  # 1 文字ずつ、自分の書いたものだけを見て書く
            idx = torch.cat([idx, model(idx)[:, -1:].argmax(dim=2)], dim=1)
        right += torch.equal(idx[0], row)
    written, correct = module.solve(model, held_out[:100])
    assert correct.sum() == right
    hidden = held_out[:100].clone()
    hidden[:, module.PROMPT_LENGTH:] = 0  # 答えを隠しても、書くものは変わらない
    assert torch.equal(module.solve(model, hidden)[0], written)


def test_generate_gives_the_probability_of_what_it_writes(short_training):
    module, model = lesson("minllm_addition"), short_training["model"]
    prompt = short_training["held_out"][:5, :module.PROMPT_LENGTH]
    idx, probabilities = module.generate(model, prompt, 3)
    assert idx.shape == (5, 9) and probabilities.shape == (5, 3) and torch.equal(idx[:, :6], prompt)
    expected = model(idx[:, :-1]).softmax(dim=2)[:, -3:].gather(2, idx[:, -3:, None]).squeeze(2)
    torch.testing.assert_close(probabilities, expected)


def test_attention_maps_are_causal_and_sum_to_one(short_training):
    module, model, tokens = lesson("minllm_addition"), short_training["model"], short_training["tokens"]
    attention = module.attention_maps(model, tokens)
    assert attention.shape == (2, 4, 3, 8)
    torch.testing.assert_close(attention.sum(dim=3), torch.ones(2, 4, 3))
    for row, position in enumerate([5, 6, 7]):
        assert attention[:, :, row, position + 1:].eq(0).all()
        assert attention[:, :, row, :position + 1].gt(0).all()


def test_the_ones_digit_looks_at_both_ones_digits(short_training):
    # README が図から読み取っていること: 1 の位を書くとき、layer 0 のヘッドは 7 と 5 を手分けして見る
    ones_row = short_training["attention"][0, :, 0]  # (n_head, T)
    text = lesson("minllm_addition").decode(short_training["tokens"])
    looked_at = {text[position] for position in ones_row.argmax(dim=1).tolist()}
    assert text.startswith("47+85=") and {"7", "5"} <= looked_at


def test_questions_are_answered(short_training):
    module, model = lesson("minllm_addition"), short_training["model"]
    assert len(short_training["answers"]) == 2
    for (a, b), answer in zip([(47, 85), (3, 4)], short_training["answers"]):
        written, _ = module.solve(model, torch.tensor([module.encode(a, b)]))
        assert answer == module.answer_of(written[0])


def test_the_picture_is_labelled(short_training):
    figure = short_training["figure"]
    maps = {axes.get_title(): axes for axes in figure.axes if axes.get_title().startswith("layer")}
    assert list(maps) == [f"layer {layer}, head {head}" for layer in range(2) for head in range(4)]
    text = lesson("minllm_addition").decode(short_training["tokens"])
    axes = maps["layer 1, head 3"]
    assert torch.allclose(torch.tensor(axes.images[0].get_array().data), short_training["attention"][1, 3])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(text[:-1])
    assert [tick.get_text() for tick in maps["layer 1, head 0"].get_yticklabels()] == [
        f"ones: {text[6]}", f"tens: {text[7]}", f"hundreds: {text[8]}"
    ]
