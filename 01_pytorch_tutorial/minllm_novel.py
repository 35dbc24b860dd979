"""GPT をゼロから訓練し、「吾輩は猫である」の続きを書かせる。でたらめな文字の列が、小説の会話らしい形になっていく。

前のレッスン（minllm_tokenizer.py）との違い: minllm.py のモデルが、本物の文章を学ぶ。トークンには BPE でなく 1 文字を使う。
損失が 1 文字あたりの値になり、文字を数えただけの予測とそのまま比べられるからである。小説の終わりの 5 % は訓練に使わず
（held-out）、その文字をどれだけよく予測するかで、学んだことが未知の文章にも通じるか（汎化）を調べる。

実行: python minllm_novel.py
結果（2 コアの CPU で約 40 秒）:
    step 1 train 7.668 held-out 7.664 '吾輩は干辞専膨庚粧体径源冒童飲丈雲類枯記此著け語尺謝メ甘洞釘A安逐'
    step 1192 train 3.240 held-out 3.602 '吾輩はまた、主人間の鼻の伯父を見たものだよ」と肝癪に暮れて、主人は'
説明: このフォルダの README.md
試してみよう:
    - MIN_COUNT を 300、EPOCHS を 1 にすると（短い時間で終わる）、held-out の損失は pairs of characters を下回るか。
    - さらに block_size を 1、BATCH_SIZE を 1024 にすると（直前の 1 文字しか見られない）、held-out の損失はどうなるか。
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
TEMPERATURE = 0.8  # 1 より低いほど、確率の高い文字に偏って選ぶ（詳しくは次の minllm_write.py）
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "minllm_novel.pth"
PICTURE = HERE.parent / "images" / "minllm_novel.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
if not os.access(HERE, os.W_OK):  # 訓練した後で気づくと、訓練がむだになる
    raise SystemExit(f"エラー: {HERE} に書き込めないので、訓練しても重みを保存できない。書き込めるフォルダに写して実行する")
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ（前書き、奥付、読み仮名などの掃除は minllm_tokenizer.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》", "", novel)
novel = novel.replace("｜", "")
novel = re.sub("※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel)
novel = novel.strip()
train_size = len(novel) * 95 // 100  # 終わりの 5 % は訓練に使わない
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


train_data = encode(train_text)  # (304644,)
held_out = encode(held_out_text)  # (16034,)
print(f"data: {len(train_data)} characters for training, {len(held_out)} held out, {V} different")

# %% 数えるだけの予測（モデルが越えるべき線。損失は、正解の文字に付けた確率 p の -log(p) を平均したもの）
uniform_loss = math.log(V)  # どの文字の確率も 1 / V とする

single_counts = train_data.bincount(minlength=V) + 1.0  # (V,)。1 を足すのは、どの文字にも確率を残すため
single = single_counts / single_counts.sum()  # (V,)、文字ごとの確率
chances = single[held_out]  # 正解の文字に付けた確率: (16034,)
single_loss = -chances.log().mean().item()

pairs = train_data[:-1] * V + train_data[1:]  # 隣り合う 2 文字を 1 つの整数で表す
pair_counts = pairs.bincount(minlength=V * V)  # 整数ごとに、いくつあるか: (V * V,)
pair_counts = pair_counts.view(V, V) + 0.1  # [前の文字, 次の文字]
following = pair_counts / pair_counts.sum(dim=1, keepdim=True)  # (V, V)、行の文字の次に来る文字の確率
chances = following[held_out[:-1], held_out[1:]]  # 直前の文字を見て、正解の文字に付けた確率: (16033,)
pairs_loss = -chances.log().mean().item()


# %% モデル（minllm.py と違うのは、大きさのほかに、注意の計算と、lm_head の重み）
@dataclass
class GPTConfig:
    """モデルの大きさ。"""

    vocab_size: int  # 語彙の大きさ、つまり文字の種類の数。データで決まる
    block_size: int = 64  # 一度に入力できるトークンの個数の上限
    n_layer: int = 2  # Block を何段重ねるか
    n_head: int = 4  # 1 つの注意を、いくつのヘッドに分けて計算するか。n_embd を割り切る数にする
    n_embd: int = 112  # 1 トークンを表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """因果マスク付きのマルチヘッド自己注意。各トークンが、自分と自分より前のトークンから value を集めて混ぜる。

    query と key の内積が大きい相手ほど、その value を多く混ぜる。出典: https://arxiv.org/abs/1706.03762
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        # query（何を探すか）、key（何を持つか）、value（渡す中身）を、1 つの層でまとめて作る
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)  # 各ヘッドの出力を 1 つのベクトルにまとめる

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape  # 系列の本数、系列の長さ、n_embd
        head_size = C // self.n_head  # 1 つのヘッドが使うベクトルの長さ
        query, key, value = self.c_attn(x).split(C, dim=2)  # (B, T, 3 * C) -> (B, T, C) が 3 つ

        # ヘッドごとに別々に計算できる並びにする: (B, T, C) -> (B, T, n_head, head_size) -> (B, n_head, T, head_size)
        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)

        # minllm.py で書いた、内積から因果マスク、softmax、重み付きの和までと同じ計算を、1 つの関数が速く行う
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, n_head, T, head_size)

        x = x.transpose(1, 2).reshape(B, T, C)  # ヘッドを横につなぐ: -> (B, T, n_head, head_size) -> (B, T, C)
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。中間層は 4 倍に広い。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = self.c_fc(x)  # (B, T, n_embd) -> (B, T, 4 * n_embd)
        x = F.gelu(x, approximate="tanh")  # GELU は滑らかな ReLU。GPT-2 は、tanh による近似式で計算する
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で自分と自分より前のトークンから情報を集め、MLP でトークンごとに加工する。"""

    def __init__(self, config):
        super().__init__()
        # LayerNorm は、トークンごとにベクトルの平均を 0、分散を 1 に揃え、訓練で決まる倍率を要素ごとに掛け、バイアスを足す
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        # 計算の結果を x に足す。これを残差接続といい、深く重ねたモデルを訓練しやすくする。出典: https://arxiv.org/abs/1512.03385
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 を小さくしたモデル。部品の名前も GPT-2 の実装に合わせた。GPT-2 との違いは 2 つある。

    - dropout（訓練中に、値の一部を無作為に 0 にする）を省く。
    - 残差接続で足す層（c_proj）の初期値を、1/√(2·n_layer) 倍に縮めない。
    """

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み（番号ごとに 1 本のベクトルを持つ表）
        # 位置の埋め込み。注意だけでは、トークンが何番目にあるかが分からない（minllm_heads.py で確かめた）
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)  # ベクトルを、次のトークンのロジットにする
        # トークンを受け取る wte と、次のトークンを予測する lm_head が、1 つの重みを共有する（GPT-2 と同じ）
        # 出典: https://arxiv.org/abs/1608.05859
        self.lm_head.weight = self.wte.weight  # (vocab_size, n_embd)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """重みを、平均 0、標準偏差 0.02（GPT-2 と同じ）の正規分布から選び、バイアスを 0 にする。"""
        # ln_f がベクトルの大きさを揃えるので、最初の損失を左右するのは lm_head の重みの大きさだけである。
        # それが小さいとロジットは 0 に近く、どのトークンの確率もほぼ 1/vocab_size になる
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)  # 0, 1, …, T - 1
        x = self.wte(idx) + self.wpe(positions)  # (B, T, n_embd) + (T, n_embd) -> (B, T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd) -> (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


# %% 続きを書く
@torch.no_grad()
def generate(text, count):
    """text の続きを count 文字書き、text とつないで返す。"""
    model.eval()
    idx = encode(text).unsqueeze(0)  # (T,) -> (1, T)
    for _ in range(count):
        context = idx[:, -config.block_size :].to(device)  # モデルに渡せるのは、最後の block_size 文字まで
        logits = model(context)  # (1, T) -> (1, T, V)
        logits = logits[:, -1].cpu()  # 最後の位置が、次の文字を予測する: (1, V)
        probabilities = (logits / TEMPERATURE).softmax(dim=1)  # (1, V)
        # 確率に従って 1 文字をサンプリングする。いつも最も確率の高い文字を選ぶと、同じ言葉を繰り返す（minllm_write.py の -t 0）
        next_token = torch.multinomial(probabilities, num_samples=1)  # (1, 1)
        idx = torch.cat([idx, next_token], dim=1)  # (1, T) -> (1, T + 1)
    return "".join(characters[token] for token in idx[0].tolist())


# %% 訓練の準備
config = GPTConfig(vocab_size=V)
model = GPT(config).to(device)
# block_size 文字ずつ進みながら切り出したウィンドウ。次の文字が正解になるので、1 文字長い: (N, T + 1)
train_windows = train_data.unfold(0, config.block_size + 1, config.block_size).to(device)
held_out_windows = held_out.unfold(0, config.block_size + 1, config.block_size).to(device)
steps = EPOCHS * math.ceil(len(train_windows) / BATCH_SIZE)  # 更新の回数
# weight_decay は、更新のたびに重みを 0 へ少し引き戻す（重み減衰）。fused=True は、同じ計算を速く行う
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
# 学習率を最初の 3 割で最大値まで上げ、残りでほぼ 0 まで下げる（minllm_addition.py と同じ）
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)


@torch.no_grad()
def evaluate(windows):
    """今の重みで、ウィンドウ (N, T + 1) の 2 文字目から後を予測した、1 文字あたりの損失。"""
    model.eval()
    logits = model(windows[:, :-1])  # (N, T) -> (N, T, V)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


# %% 訓練
step = 0
shown_steps, train_losses, held_out_losses = [], [], []
for epoch in range(EPOCHS):
    for batch in torch.randperm(len(train_windows)).split(BATCH_SIZE):  # batch はウィンドウの番号 (B,)
        model.train()
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
            # 2 つの損失は、どちらもこの更新の後の重みで、同じ数のウィンドウについて計算する
            train_loss = evaluate(train_windows[: len(held_out_windows)])
            held_out_loss = evaluate(held_out_windows)
            shown_steps.append(step)
            train_losses.append(train_loss)
            held_out_losses.append(held_out_loss)
            text = generate(PROMPT, 30)
            print(f"step {step} train {train_loss:.3f} held-out {held_out_loss:.3f} {text!r}", flush=True)

# %% 保存（隣に書き終えてから置き換えるので、途中で止めても前の重みは壊れない）
saved = {"characters": characters, "config": vars(config), "state_dict": model.state_dict()}
torch.save(saved, f"{WEIGHTS}.tmp")
os.replace(f"{WEIGHTS}.tmp", WEIGHTS)
print(f"saved: {WEIGHTS}")

# %% 比較（exp(損失) を perplexity という。等しい確率の何文字から選ぶのと同じ迷いかを表す）
baselines = {"uniform": uniform_loss, "single characters": single_loss, "pairs of characters": pairs_loss}
for name, value in baselines.items():
    print(f"{name:20s} loss {value:.3f}  perplexity {math.exp(value):6.1f}")
print(f"{'this model':20s} loss {held_out_loss:.3f}  perplexity {math.exp(held_out_loss):6.1f}")

# %% 図
fig, axes = plt.subplots(figsize=(8, 5), layout="constrained")
axes.plot(shown_steps, train_losses, color="#56B4E9", linewidth=2, label="GPT, training part")
axes.plot(shown_steps, held_out_losses, "o-", color="#0072B2", markersize=4, label="GPT, held-out end of the novel")
for name, value in baselines.items():
    axes.axhline(value, color="#D55E00", linestyle="--")
    axes.text(steps, value + 0.05, f"{name}  {value:.2f}", color="#D55E00", ha="right")
axes.text(steps, held_out_loss + 0.08, f"{held_out_loss:.2f}", color="#0072B2", ha="right")
axes.set(xlabel="step", ylabel="cross-entropy loss (nats per character)", ylim=(3, 8.1))
axes.set_title("The GPT falls below all three simple predictions")
axes.legend(loc=(0.52, 0.68))
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
