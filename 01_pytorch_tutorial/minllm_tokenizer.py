"""文章をトークンに分ける。GPT-2 も使うバイト対符号化（BPE）を「吾輩は猫である」から学ぶ。

前のレッスン（minllm_addition.py）との違い: あちらの文字は 12 種類だったが、本物の文章には何千種類もある。そこで 256 種類の
バイトから始め、最もよく並ぶ 2 つをつなぐことを繰り返す。どんな文字もバイトで書けるので、未知の文字はない。

実行: python minllm_tokenizer.py
結果（2 コアの CPU で約 6 秒）:
    merges 1000  count 68  characters per token 1.18
    吾輩は|猫|である。|名|前|は|まだ|無|い。
試してみよう:
    - NUM_MERGES を 3000 にすると、1 トークンは何文字になり、最も長いトークンは何になるか。
"""

# %% 準備
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_tokenizer.png"
NUM_MERGES = 1000  # つなぐ回数。語彙は 256 + NUM_MERGES になる（GPT-2 は 50,000 回）
SENTENCES = ["吾輩は猫である。名前はまだ無い。", "I am a cat. As yet I have no name.", "猫😺"]
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 日本語を表せない端末でも、止まらずに ? と書く

# %% データ（本物の文章は、いつもまず掃除する）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
novel = novel.split("-" * 55)[2].split("底本：")[0]  # 前書きと奥付は、小説の文章ではない
novel = re.sub(r"《.*?》|※?［＃.*?］|｜", "", novel)  # 読み仮名、入力者の注、読み仮名の始まりの印
novel = re.sub(r"\n[\n　]*", "\n", novel).strip()  # 空行と字下げ
data = novel.encode("utf-8")  # 日本語の文字は 3 バイト、英字は 1 バイトになる
print(f"novel: {len(novel)} characters ({len(set(novel))} different), {len(data)} bytes")
print("bytes:", ", ".join(f"{character} = {character.encode('utf-8').hex(' ')}" for character in "吾輩は"))


# %% 訓練（最も多い組を 1 つのトークンにする。出典: https://arxiv.org/abs/1508.07909、バイトから始めたのが GPT-2）
def join(ids, left, right, new):
    """ids (N,) の中で隣り合う left と right を new に置き換え、短くなった (M,) を返す。"""
    found = (ids[:-1] == left) & (ids[1:] == right)  # (N - 1,)
    if left == right:  # aaa のように重なるところは、左から順に組にする
        position = torch.arange(len(found))
        run_start = torch.where(found, -1, position).cummax(0).values + 1  # 直前の False の次、つまり続く True の先頭
        found &= (position - run_start) % 2 == 0
    joined = ids.clone()
    joined[:-1][found] = new  # スライスは写しではないので、joined が書き換わる
    return joined[torch.cat([torch.tensor([True]), ~found])]  # 組の右側は、左に吸収されたので除く


ids = torch.tensor(list(data))  # (957024,)
vocabulary = [bytes([byte]) for byte in range(256)]  # トークン番号 -> バイト列
merges = {}  # (左, 右) -> 新しい番号。番号が小さいほど先に学んだ
chars_per_token = [len(novel) / len(ids)]
for new in range(256, 256 + NUM_MERGES):
    pairs = ids[:-1] * new + ids[1:]  # 2 つの番号を 1 つの整数で表す: (N - 1,)
    counts = pairs.bincount(minlength=new * new).view(new, new)  # counts[左, 右] は、その組が何度あるか
    counts[10] = counts[:, 10] = 0  # 10 は改行。行をまたぐトークンは作らない（GPT-2 は、文字と句読点もつながない）
    left, right = divmod(counts.argmax().item(), new)
    merges[left, right] = new
    vocabulary.append(vocabulary[left] + vocabulary[right])
    ids = join(ids, left, right, new)
    chars_per_token.append(len(novel) / len(ids))
    if len(merges) in (1, 10, 100, 500, NUM_MERGES):
        print(f"merges {len(merges)}  count {counts.max()}  characters per token {chars_per_token[-1]:.2f}", flush=True)


# %% 符号化と復号
def encode(text):
    """文字列 -> トークン番号 (N,)。文字列をバイトに分け、学んだ組を、学んだ順につないでいく。"""
    ids = torch.tensor(list(text.encode("utf-8")), dtype=torch.int64)
    while pairs := set(zip(ids[:-1].tolist(), ids[1:].tolist())) & merges.keys():  # つなげる組がなくなるまで
        pair = min(pairs, key=merges.get)  # 最も先に学んだ組
        ids = join(ids, *pair, merges[pair])
    return ids


def decode(ids):
    """トークン番号 (N,) -> 文字列。"""
    return b"".join(vocabulary[token] for token in ids.tolist()).decode("utf-8", errors="replace")


readable = [token.decode("utf-8", errors="backslashreplace") for token in vocabulary]  # 文字の一部は \xe3 のように書く
print(f"the first pair, counted without tensors (= count of merges 1): {data.count(vocabulary[256])} times")
print(f"decoded tokens equal the novel: {decode(ids) == novel}")
print("first merges:", " ".join(readable[256:276]))
print("longest tokens:", " ".join(sorted((token for token in readable if "\\" not in token), key=len)[-12:]))
for sentence in SENTENCES:  # 訓練の前は、日本語の 1 文字が 3 トークンもかかる。短くなるのは、よく出る言葉だけである
    tokens = encode(sentence)  # (N,)
    print("|".join(readable[token] for token in tokens))
    print(f"{len(sentence)} characters, {len(sentence.encode('utf-8'))} bytes, {len(tokens)} tokens")

# %% 図
fig, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(chars_per_token, color="#0072B2")
axes.set(xlabel="merges", ylabel="characters per token", title="Byte pair encoding of the novel")
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
