"""よく並ぶ組を順につなぎ、GPT-2 と同じように符号化して、もとの文字列に戻す。"""

from collections import Counter

import pytest


def test_novel_is_cleaned(run):
    novel = run("minllm_tokenizer").novel
    assert (len(novel), len(set(novel))) == (320_678, 3_044)
    assert not set("《》｜［］＃※") & set(novel)
    assert novel.startswith("一\n吾輩は猫である。名前はまだ無い。\n")
    assert novel.endswith("ありがたいありがたい。")


@pytest.mark.parametrize("number", [0, 1, 20])
def test_each_merge_joins_the_most_frequent_pair(run, number):
    lesson = run("minllm_tokenizer")
    ids = list(lesson.text.encode())
    for (left, right), new in list(lesson.merges.items())[:number]:
        ids = lesson.merge(ids, left, right, new)
    pair = list(lesson.merges)[number]
    counts = [(ids[i], ids[i + 1]) for i in range(len(ids) - 1)]
    assert counts.count(pair) == max(Counter(counts).values())
    assert lesson.vocabulary[256 + number] == lesson.vocabulary[pair[0]] + lesson.vocabulary[pair[1]]


def test_merge_replaces_from_the_left(run):
    merge = run("minllm_tokenizer").merge
    assert merge([1, 1, 1, 2], 1, 1, 9) == [9, 1, 2] and merge([1, 2, 3, 1, 2], 1, 2, 9) == [9, 3, 9]
    assert merge([], 1, 2, 9) == [] and merge([2, 1], 1, 2, 9) == [2, 1]


def test_any_string_is_encoded_as_gpt2_does_and_comes_back(run):
    """GPT-2 は、今ある組の中で最も先に学んだものをつなぐことを、つなげなくなるまで繰り返す。"""
    lesson = run("minllm_tokenizer")
    texts = ["", "\n\0\r\n　", "aaaaa", "I am a cat.", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301\U0010ffff"]
    texts += [lesson.novel[start : start + 40] for start in range(0, len(lesson.novel), 4000)]
    for text in texts:
        ids = list(text.encode())
        while pairs := [pair for pair in zip(ids, ids[1:]) if pair in lesson.merges]:
            left, right = min(pairs, key=lesson.merges.get)
            ids = lesson.merge(ids, left, right, lesson.merges[left, right])
        assert lesson.encode(text) == ids and lesson.decode(ids) == text
