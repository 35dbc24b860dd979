"""文章をトークンに分ける。GPT-2 も使うバイト対符号化（BPE）を「吾輩は猫である」から学ぶ。

前のレッスン（minllm_addition.py）との違い: あちらの文字は 12 種類だったが、本物の文章には何千種類もある。そこで 256 種類の
バイトから始め、最も多く並ぶ 2 つを 1 つにつなぐことを繰り返す。どんな文字もバイトの並びなので、未知の文字はない。

実行: python minllm_tokenizer.py
結果（2 コアの CPU で約 4 秒）:
    merges 1000  count 68  characters per token 1.18
    吾輩は|猫|である。|名|前|は|まだ|無|い。
    16 characters, 48 bytes, 9 tokens
説明: このフォルダの README.md
試してみよう:
    - NUM_MERGES を 300 にすると、「吾輩は猫である。名前はまだ無い。」は何トークンになるか。
    - counts[NEWLINE, :] と counts[:, NEWLINE] の 2 行を消すと、長いトークンの中に何が現れるか。
"""

# %% 準備
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_tokenizer.png"
# つなぐ回数。トークンの種類をすべて並べた表を語彙という。その大きさが minllm.py の vocab_size で、ここでは 256 + NUM_MERGES になる。
# GPT-2 の 50257 は、バイトの 256、つないだ 50,000、文章の終わりを表す印の 1 を足した数である
NUM_MERGES = 1000
SENTENCES = ["吾輩は猫である。名前はまだ無い。", "I am a cat. As yet I have no name.", "猫😺"]
NEWLINE = ord("\n")  # 改行のバイトの値
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない

# %% データ（本物の文章は、まず掃除する）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)  # 線が 2 本あり、2 本目までは前書きである
novel, _ = novel.split("底本：")  # ここから後は奥付である
novel = re.sub("《.*?》", "", novel)  # 読み仮名
novel = novel.replace("｜", "")  # 読み仮名の始まりの印
novel = re.sub("※?［＃.*?］", "", novel)  # 入力者の注
novel = re.sub("\n[\n　]*", "\n", novel)  # 空行と字下げ
novel = novel.strip()
data = novel.encode("utf-8")  # UTF-8 は文字をバイトで表す決まりで、英字は 1 バイト、日本語の文字の多くは 3 バイトになる
print(f"novel: {len(novel)} characters ({len(set(novel))} different), {len(data)} bytes")
for character in "吾輩は":
    print(f"{character} = {character.encode('utf-8').hex(' ')}")

# %% 訓練（最も多い組を 1 つのトークンにする。出典: https://arxiv.org/abs/1508.07909、バイトから始めたのが GPT-2）
# Python の replace が速いので、トークンの列を文字列で持ち、数えるときだけ numpy の番号に直す。
# 番号 n のトークンを文字 chr(n) で表す。latin-1 は、値が n のバイトを文字 chr(n) にする決まりである
tokens = data.decode("latin-1")  # 1 文字が 1 トークンの文字列。はじめは 1 バイトが 1 トークンである
vocabulary = [bytes([byte]) for byte in range(256)]  # 語彙。トークン番号 -> バイト列
merges = {}  # (左の番号, 右の番号) -> つないだトークンの番号。学んだ順に並ぶ
chars_per_token = [len(novel) / len(tokens)]
for new in range(256, 256 + NUM_MERGES):
    ids = np.frombuffer(tokens.encode("utf-32-le"), np.uint32)  # 文字列 -> 番号 (N,)。UTF-32 は、1 文字を 4 バイトの整数で表す
    ids = ids.astype(np.int64)
    pairs = ids[:-1] * new + ids[1:]  # 隣り合う 2 つの番号を 1 つの整数で表す: (N - 1,)
    counts = np.bincount(pairs, minlength=new * new)  # 整数ごとに、いくつあるか: (new * new,)
    counts = counts.reshape(new, new)  # counts[左, 右] は、その組の数
    # 改行をまたぐトークンは作らない（GPT-2 は、文字と句読点もつながない）
    counts[NEWLINE, :] = 0
    counts[:, NEWLINE] = 0
    left, right = divmod(int(counts.argmax()), new)  # argmax は、最も大きい要素の位置を 左 * new + 右 で返す
    tokens = tokens.replace(chr(left) + chr(right), chr(new))  # 左から順に置き換わる
    merges[left, right] = new
    vocabulary.append(vocabulary[left] + vocabulary[right])
    chars_per_token.append(len(novel) / len(tokens))
    if len(merges) in (1, 10, 100, 500, NUM_MERGES):
        print(f"merges {len(merges)}  count {counts.max()}  characters per token {chars_per_token[-1]:.2f}", flush=True)


# %% 符号化と復号
def encode(text):
    """文字列 -> トークン番号のリスト。文字列をバイトに分け、学んだ組を、学んだ順につなぐ。"""
    tokens = text.encode("utf-8").decode("latin-1")
    for (left, right), new in merges.items():
        tokens = tokens.replace(chr(left) + chr(right), chr(new))
    return [ord(token) for token in tokens]


def decode(ids):
    """トークン番号のリスト -> 文字列。"""
    data = b"".join(vocabulary[token] for token in ids)
    return data.decode("utf-8", errors="replace")


# 別の方法での確かめ: 最初の組は、バイト列の中で数えても同じ数あり、つないだトークンは元の小説に戻る
print(f"the first pair, counted in the bytes (= count of merges 1): {data.count(vocabulary[256])} times")
print(f"decoded tokens equal the novel: {decode(encode(novel)) == novel}")

# 表示のために、トークンを文字に直す。文字の途中で切れたバイトは \xe3 のように書く
readable = [token.decode("utf-8", errors="backslashreplace") for token in vocabulary]
whole = [token for token in readable if "\\" not in token]
longest = sorted(whole, key=len)[-12:]
print("first merges:", " ".join(readable[256:276]))
print("longest tokens:", " ".join(longest))
for sentence in SENTENCES:  # 短くなるのは、訓練の文章によく出る言葉だけである
    ids = encode(sentence)
    print("|".join(readable[token] for token in ids))
    print(f"{len(sentence)} characters, {len(sentence.encode('utf-8'))} bytes, {len(ids)} tokens")

# %% 図
fig, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
axes.plot(chars_per_token, color="#0072B2", linewidth=2)
axes.axhline(1, color="#D55E00", linestyle="--")
axes.text(0.98 * NUM_MERGES, 0.98, "one token = one character", color="#D55E00", ha="right", va="top")
start, end = chars_per_token[0], chars_per_token[-1]
axes.text(0.02 * NUM_MERGES, start, f"{start:.2f}, one token = one byte", color="#0072B2", va="top")
axes.text(NUM_MERGES, end + 0.04, f"{end:.2f}", color="#0072B2", ha="right")
axes.set(xlabel="merges (vocabulary size - 256)", ylabel="characters per token", ylim=(0, 1.15 * end))
axes.set_title("Byte pair encoding: each merge makes the tokens longer")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
