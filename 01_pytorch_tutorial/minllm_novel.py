"""GPT をゼロから訓練し、「吾輩は猫である」の続きを書かせる。でたらめな文字の列が、小説の形になっていく。

前のレッスン（minllm_tokenizer.py）との違い: minllm.py のモデルが、本物の文章を学ぶ。トークンには BPE でなく
1 文字を使う。訓練に使わない小説の終わりの 5 %（held-out）の予測を、文字を数えるだけの予測と比べる。

実行: python minllm_novel.py（2 コアの CPU で約 50 秒）
結果:
    step 1 train 7.668 held-out 7.664 '吾輩は干辞専膨庚粧体径源冒童飲丈雲類枯記此著け語尺謝メ甘洞釘A安逐'
    step 1192 train 3.240 held-out 3.602 '吾輩はまた、主人間の鼻の伯父を見たものだよ」と肝癪に暮れて、主人は'
試してみよう:
    - EPOCHS を 1、MIN_COUNT を 300 にすると、損失はいくつになるか。よいモデルになったのか。
解説: minllm_novel.md
"""

# %% 準備
import math
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
EPOCHS = 4  # 訓練の文章を何周するか
BATCH_SIZE = 16  # 1 回の更新に使うウィンドウの数
LEARNING_RATE = 5e-3  # 学習率の最大値。訓練の途中で上げ下げする
MIN_COUNT = 3  # これより少ない回数しか出ない文字は、まとめて 〓 で表す
PROMPT = "吾輩は"
TEMPERATURE = 0.8  # 1 より低いほど、確率の高い文字に偏って選ぶ（次の minllm_write.py で調べる）
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "minllm_novel.pth"
PICTURE = HERE.parent / "images" / "minllm_novel.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ（掃除は minllm_tokenizer.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
train_size = len(novel) * 95 // 100
train_text = novel[:train_size]
held_out_text = novel[train_size:]

counts = Counter(train_text)  # 文字 -> 訓練の文章に出る回数
common = [character for character, count in counts.items() if count >= MIN_COUNT]
characters = "〓" + "".join(sorted(common))  # 語彙。トークン番号 n の文字は characters[n]
token_ids = {character: number for number, character in enumerate(characters)}  # 文字 -> トークン番号
V = len(characters)


def encode(text):
    """文字列 -> トークン番号 (T,)。語彙にない文字は 0 番の 〓 になる。"""
    return torch.tensor([token_ids.get(character, 0) for character in text])


def decode(ids):
    """トークン番号 (T,) -> 文字列"""
    return "".join(characters[token] for token in ids.tolist())


train_data = encode(train_text)  # (304644,)
held_out = encode(held_out_text)  # (16034,)
print(f"data: {len(train_data)} characters for training, {len(held_out)} held out, {V} different")

# %% 数えるだけの予測（モデルが越えるべき線）
seen = decode(train_data)  # まれな文字が 〓 になった、訓練の文章
unseen = decode(held_out)
ngram_counts = Counter()  # 1 〜 4 文字の並び -> 訓練の文章に出る回数
for length in (1, 2, 3, 4):
    for start in range(len(seen) - length + 1):
        ngram_counts[seen[start : start + length]] += 1


def counted_probability(before, character):
    """before（直前の 0 〜 3 文字）の次が character である確率を、数えた回数から求める。"""
    if before == "":
        return (ngram_counts[character] + 1) / (len(seen) + V)  # 1 を足すのは、どの文字にも確率を残すため
    shorter = counted_probability(before[1:], character)  # 1 文字少なく見たときの確率
    # 一度も見ていない並びにも確率を残すために、shorter どおりに 40 回見たことにする
    return (ngram_counts[before + character] + 40 * shorter) / (ngram_counts[before] + 40)


baselines = {"uniform": math.log(V)}  # 名前 -> 損失。uniform は、どの文字の確率も 1 / V とする
for length in (0, 1, 2, 3):
    total = 0
    for i in range(3, len(unseen)):
        total -= math.log(counted_probability(unseen[i - length : i], unseen[i]))
    baselines[f"count after {length}"] = total / (len(unseen) - 3)


# %% モデル（minllm.py と同じ。読み飛ばしてよい）
@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int = 64  # 文脈の長さ: 一度に見られる文字の数の上限
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 112


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        B, T, C = x.shape
        head_size = C // self.n_head
        query, key, value = self.c_attn(x).split(C, dim=2)

        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)

        # 違い 1: minllm.py の、内積から重み付きの和までと同じ計算を、1 つの関数が速く行う
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)

        x = x.transpose(1, 2).reshape(B, T, C)
        return self.c_proj(x)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = self.c_fc(x)
        x = F.gelu(x, approximate="tanh")
        return self.c_proj(x)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # 違い 2: 入力側の表 wte と出力側の表 lm_head が、1 つの重み (V, n_embd) を共有する（GPT-2 と同じ）
        self.lm_head.weight = self.wte.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)
        x = self.wte(idx) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


config = GPTConfig(vocab_size=V)
model = GPT(config).to(device)
print(f"model: {sum(p.numel() for p in model.parameters())} parameters")


# %% 続きを書く
@torch.no_grad()
def generate(text, count):
    """text の続きを count 文字書き、text とつないで返す。"""
    idx = encode(text).unsqueeze(0)  # (T,) -> (1, T)
    for _ in range(count):
        context = idx[:, -config.block_size :].to(device)  # モデルに渡せるのは、最後の block_size 文字まで
        logits = model(context)  # (1, T) -> (1, T, V)
        logits = logits[:, -1].cpu()  # 最後の位置が、次の文字を予測する: (1, V)
        probabilities = (logits / TEMPERATURE).softmax(dim=1)  # (1, V)
        next_token = torch.multinomial(probabilities, num_samples=1)  # 確率に従って 1 文字を選ぶ: (1, 1)
        idx = torch.cat([idx, next_token], dim=1)  # (1, T) -> (1, T + 1)
    return decode(idx[0])


# %% ウィンドウ（次の文字が正解になるので、入力より 1 文字長く切り出す）
def windows_of(data, length, stride):
    """トークン番号 data の先頭から stride 文字おきに、length + 1 文字を切り出す: (N, length + 1)"""
    starts = range(0, len(data) - length, stride)
    return torch.stack([data[start : start + length + 1] for start in starts])


train_windows = windows_of(train_data, config.block_size, config.block_size).to(device)  # (4760, 65)
held_out_windows = windows_of(held_out, config.block_size, config.block_size).to(device)  # (250, 65)


@torch.no_grad()
def evaluate(windows):
    """ウィンドウ (N, T + 1) の 2 文字目から後を予測した、1 文字あたりの損失。"""
    logits = model(windows[:, :-1])  # (N, T) -> (N, T, V)
    targets = windows[:, 1:]  # (N, T)、1 文字ずつ後ろにずれている
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


# %% 訓練
steps = EPOCHS * math.ceil(len(train_windows) / BATCH_SIZE)  # 更新の回数
# 重み減衰は、初期設定の 0.01 より強くする。fused は、同じ計算を速く行う
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
initial_wte = model.wte.weight.detach().clone()  # 訓練する前の埋め込み (V, n_embd)
step = 0
shown_steps, train_losses, held_out_losses = [], [], []
for epoch in range(EPOCHS):
    for batch in torch.randperm(len(train_windows)).split(BATCH_SIZE):  # batch はウィンドウの番号 (B,)
        windows = train_windows[batch]  # (B, T + 1)
        logits = model(windows[:, :-1])  # (B, T) -> (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # 大きすぎる勾配を抑える
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        step += 1
        if step == 1 or step % 100 == 0 or step == steps:
            train_loss = evaluate(train_windows[: len(held_out_windows)])  # held-out と同じ個数で測る
            held_out_loss = evaluate(held_out_windows)
            shown_steps.append(step)
            train_losses.append(train_loss)
            held_out_losses.append(held_out_loss)
            text = generate(PROMPT, 30)
            print(f"step {step} train {train_loss:.3f} held-out {held_out_loss:.3f} {text!r}", flush=True)

# %% 保存して、ファイルから作り直す（隣に書き終えてから置き換えるので、途中で止めても前の重みは壊れない）
state_dict = model.cpu().state_dict()  # 名前 -> 重み。GPU で訓練しても、CPU に戻して保存する
saved = {"characters": characters, "config": vars(config), "state_dict": state_dict}
torch.save(saved, f"{WEIGHTS}.tmp")
os.replace(f"{WEIGHTS}.tmp", WEIGHTS)
print(f"saved: {WEIGHTS}")

loaded = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**loaded["config"]))  # 重みは、まだでたらめである
model.load_state_dict(loaded["state_dict"])
model = model.to(device)
print(f"rebuilt from the file: held-out {evaluate(held_out_windows):.3f}")

# %% 確かめる: 64 文字を 1 度に予測しても、1 文字ずつ見せて予測しても、損失は同じ
window = held_out_windows[0]  # (65,)
total = 0
for t in range(config.block_size):
    context = window[: t + 1].unsqueeze(0)  # 正解より前の文字だけを渡す: (1, t + 1)
    with torch.no_grad():
        logits = model(context)  # (1, t + 1) -> (1, t + 1, V)
    probabilities = logits[0, -1].softmax(dim=0)  # (V,)
    total -= math.log(probabilities[window[t + 1]].item())  # 正解に付けた確率 p の -ln p
difference = abs(total / config.block_size - evaluate(held_out_windows[:1]))
print(f"one pass and {config.block_size} passes agree within 1e-4: {difference < 1e-4}")

# %% 比較（exp(損失) を perplexity という）
for name, value in [*baselines.items(), ("this model", held_out_loss)]:
    print(f"{name:14s} loss {value:.3f}  perplexity {math.exp(value):6.1f}")

# %% 文脈の長さ（直前の何文字を見せると、どこまで予測できるか）
LENGTHS = [1, 2, 3, 8, 16]
windows = windows_of(held_out, LENGTHS[-1], 1)  # (16018, 17)。どの長さでも、同じ最後の 1 文字を予測する
context_losses = []
for length in LENGTHS:
    total = 0
    for some in windows.to(device).split(500):  # 一度に通すとメモリが足りないので、500 個ずつ
        context = some[:, -1 - length : -1]  # 正解の直前の length 文字: (500, length)
        with torch.no_grad():
            logits = model(context)[:, -1]  # (500, V)
        total += F.cross_entropy(logits, some[:, -1], reduction="sum").item()
    context_losses.append(total / len(windows))
    print(f"context {length:2d}  loss {context_losses[-1]:.3f}")


# %% 埋め込み（向きの近い文字。コサインは、同じ向きなら 1、直角なら 0）
def neighbours(wte, token, count):
    """表 wte (V, n_embd) の中で、token の行とのコサインが大きい count 文字。"""
    directions = F.normalize(wte, dim=1)  # どの行も長さ 1 にする
    cosines = directions @ directions[token]  # 長さ 1 どうしの内積がコサイン: (V,)
    values, tokens = cosines.topk(count + 1)  # 1 番目は自分自身
    pairs = zip(tokens[1:].tolist(), values[1:].tolist())
    return " ".join(f"{characters[other]!r} {value:.2f}" for other, value in pairs)


trained_wte = model.wte.weight.detach()
print("nearest characters by cosine")
for token in encode("三は主猫「").tolist():
    before = neighbours(initial_wte, token, 1)
    after = neighbours(trained_wte, token, 5)
    print(f"{characters[token]!r} before training: {before}  after: {after}")

# %% 図
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", width_ratios=[3, 2])
left.plot(shown_steps, train_losses, color="#56B4E9", linewidth=2, label="GPT, training part")
left.plot(shown_steps, held_out_losses, "o-", color="#0072B2", markersize=4, label="GPT, held-out part")
for name in ("uniform", "count after 0", "count after 1", "count after 2"):
    left.axhline(baselines[name], color="#D55E00", linestyle="--", linewidth=1)
    left.text(steps, baselines[name] + 0.04, f"{name}  {baselines[name]:.2f}", color="#D55E00", ha="right")
left.set(xlabel="step", ylabel="loss", ylim=(3, 8.1), title="The GPT falls below every count")
left.legend(loc=(0.55, 0.7))

counted = [baselines[f"count after {length}"] for length in (1, 2, 3)]
right.plot([1, 2, 3], counted, "s--", color="#D55E00", label="counting")
right.plot(LENGTHS, context_losses, "o-", color="#0072B2", label="GPT")
right.set(xlabel="number of characters shown", ylabel="loss on the held-out part")
right.set_title("Counting stops gaining; the GPT goes on")
right.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
