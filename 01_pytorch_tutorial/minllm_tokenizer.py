"""文章をトークンに分ける。GPT-2 も使うバイト対符号化（BPE）を「吾輩は猫である」から学ぶ。

前のレッスン（minllm_addition.py）との違い: 文字が 12 種類ではなく、何千種類もある。そこで 256 種類の
バイトから始め、最も多く並ぶ 2 つを 1 つのトークンにつなぐことを繰り返す。

実行: python minllm_tokenizer.py（2 コアの CPU で約 8 秒）
結果:
    merges 500  count 15  characters per token 1.04
    decode(encode(unseen)) == unseen: True
    16 characters, 48 bytes, 10 tokens
試してみよう:
    - 小説の代わりに、このスクリプトの初めの 3,000 文字から学ぶと、日本語と英語の長さはどう変わるか。
    - 「。」を、ほかのどのトークンともつながないように、訓練のループを書き換える。
    - TEXT_LENGTH を 10_000 にすると、訓練した文章と見ていない文章で、1 トークンは何文字になるか。
解説: minllm_tokenizer.md
"""

# %% 準備
import re
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_tokenizer.png"
TEXT_LENGTH = 30_000  # 小説の初めの何文字から学ぶか。全文（32 万字）では 1 分を超える
NUM_MERGES = 500  # つなぐ回数
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる

# %% データ（本物の文章は、まず掃除する）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)  # 線が 2 本あり、2 本目までは前書きである
novel, _ = novel.split("底本：")  # ここから後は奥付である
missing = novel.count("※［＃")  # このファイルでは表せない文字の代わりに置かれた注
novel = re.sub("《.*?》", "", novel)  # 読み仮名
novel = novel.replace("｜", "")  # 読み仮名の始まりの印
novel = re.sub("※?［＃.*?］", "", novel)  # 入力者の注
novel = re.sub("\n[\n　]*", "\n", novel)  # 空行と字下げ
novel = novel.strip()
print(f"novel: {len(novel)} characters ({len(set(novel))} different), {missing} more could not be written")
text = novel[:TEXT_LENGTH]
for character in "吾輩は":
    data = character.encode("utf-8")  # 文字 -> バイト列
    print(f"{character} = {list(data)} = {data}")


# %% つなぐ
def merge(ids, left, right, new):
    """トークン番号のリスト ids の中で並んだ left, right を、左から順に new に置き換えたリスト。"""
    merged = []
    i = 0
    while i < len(ids):
        if ids[i : i + 2] == [left, right]:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


# %% 訓練（出典: https://arxiv.org/abs/1508.07909、バイトから始めたのが GPT-2）
ids = list(text.encode("utf-8"))  # はじめは 1 バイトが 1 トークン
vocabulary = [bytes([byte]) for byte in range(256)]  # トークン番号 -> バイト列
merges = {}  # (左の番号, 右の番号) -> つないだトークンの番号。学んだ順に並ぶ
chars_per_token = [len(text) / len(ids)]
for new in range(256, 256 + NUM_MERGES):
    counts = Counter(zip(ids, ids[1:]))  # 隣り合う 2 つの組 -> その数
    left, right = max(counts, key=counts.get)  # 最も多い組
    ids = merge(ids, left, right, new)
    merges[left, right] = new
    vocabulary.append(vocabulary[left] + vocabulary[right])
    ratio = len(text) / len(ids)
    chars_per_token.append(ratio)
    if len(merges) in (1, 10, 100, NUM_MERGES):
        count = counts[left, right]
        print(f"merges {len(merges)}  count {count}  characters per token {ratio:.2f}", flush=True)


# %% 符号化と復号
def encode(text):
    """文字列 -> トークン番号のリスト。学んだ組を、学んだ順につなぐ。"""
    ids = list(text.encode("utf-8"))
    for (left, right), new in merges.items():
        ids = merge(ids, left, right, new)
    return ids


def decode(ids):
    """トークン番号のリスト -> 文字列。"""
    data = b"".join(vocabulary[token] for token in ids)
    return data.decode("utf-8", errors="replace")


# 表示のために、トークンを文字に直す。文字の途中で切れたバイトは \xe3 のように書く
readable = [token.decode("utf-8", errors="backslashreplace") for token in vocabulary]
whole = [token for token in readable if "\\" not in token]
print("first merges:", " ".join(readable[256:276]))
print("longest tokens:", " ".join(sorted(whole, key=len)[-10:]))


def show(ids):
    """トークンを | で区切った文字列。"""
    return "|".join(readable[token] for token in ids)


# %% 確かめる: 今ある組のうち最も早く学んだものをつなぐ、という GPT-2 の規則でも、同じ番号になる
word = "猫は"
ids = list(word.encode("utf-8"))
print(f"bytes      {show(ids)}")
while True:
    known = [pair for pair in zip(ids, ids[1:]) if pair in merges]
    if not known:
        break
    left, right = min(known, key=merges.get)
    ids = merge(ids, left, right, merges[left, right])
    print(f"merge {merges[left, right] - 255:3d}  {show(ids)}")
print(f"encode('{word}') = {encode(word)}, the same: {encode(word) == ids}, decoded: {decode(ids)}")

# %% 確かめる: 訓練に使わなかった文章も、符号化して復号すると元に戻る
unseen = novel[-10_000:]
ids = encode(unseen)
print(f"decode(encode(unseen)) == unseen: {decode(ids) == unseen}")
ratio = len(unseen) / len(ids)
print(f"unseen: {len(unseen)} characters, {len(ids)} tokens, {ratio:.2f} characters per token")

# %% 日本語と英語と絵文字
SENTENCES = ["吾輩は猫である。名前はまだ無い。", "I am a cat. As yet I have no name.", "猫😺"]
for sentence in SENTENCES:
    ids = encode(sentence)
    num_bytes = len(sentence.encode("utf-8"))
    print(show(ids))
    print(f"{len(sentence)} characters, {num_bytes} bytes, {len(ids)} tokens")

# %% 図
fig, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
axes.plot(chars_per_token, color="#0072B2", linewidth=2)
axes.axhline(1, color="#D55E00", linestyle="--", label="one token = one character")
axes.set(xlabel="merges", ylabel="characters per token", ylim=(0, None))
axes.set_title("each merge makes the tokens longer")
axes.legend(loc="lower right")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
