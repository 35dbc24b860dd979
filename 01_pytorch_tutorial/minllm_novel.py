"""GPT をゼロから訓練し、「吾輩は猫である」の続きを書かせる。でたらめな文字の列が、小説の会話らしい形になっていく。

前のレッスン（minllm_tokenizer.py）との違い: minllm.py のモデルが、本物の文章を学ぶ。小説の終わりの 5 % は訓練に使わず
（held-out）、その文字を 1 つずつどれだけ言い当てられるかを、文字を数えただけの予測と比べる。

実行: python minllm_novel.py
結果（2 コアの CPU で約 70 秒）:
    step 1 loss 7.763 held-out 7.699 '吾輩は金錬僧桐挑拾庚曇番痒焼笠ほ梃軍ゃ甕吉瀬竟官繁限倍覧術ハ髭々伝'
    step 1190 loss 3.316 held-out 3.624 '吾輩は無事なるかい。「え、世のあんな男は沈通りに一人でもないと思っ'
試してみよう:
    - GPTConfig の block_size を 8、BATCH_SIZE を 128 にすると、held-out の損失と文章はどう変わるか（重みは作り直される）。
"""

# %% 準備
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
EPOCHS = 4  # 訓練の文章を何周するか
BATCH_SIZE = 16
LEARNING_RATE = 5e-3  # 学習率の最大値。訓練の途中で上げ下げする
PROMPT = "吾輩は"
TEMPERATURE = 0.8  # 1 より低いほど、確率の高い文字に偏って選ぶ（詳しくは次の minllm_write.py）
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "minllm_novel.pth"
PICTURE = HERE.parent / "images" / "minllm_novel.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 日本語を表せない端末でも、止まらずに ? と書く
torch.set_num_threads(1)  # 2 スレッドは、ほかに何も動いていなければ 1.8 倍速いが、動いていると何倍も遅くなる
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ（前書き、奥付、読み仮名などの掃除は minllm_tokenizer.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
novel = re.sub(r"《.*?》|※?［＃.*?］|｜", "", novel.split("-" * 55)[2].split("底本：")[0])
novel = re.sub(r"\n[\n　]*", "\n", novel).strip()
# 1 文字を 1 トークンにする。小説 1 冊のバイト対には、例の少ないトークンが多い（同じ時間で、1 文字あたりの損失は 3.88 以上）
characters = "〓" + "".join(sorted(c for c in set(novel) if novel.count(c) >= 3))  # 2 回までの文字は、まとめて 〓
tokens = torch.tensor([max(characters.find(character), 0) for character in novel])  # (320678,)。0 番は 〓
train_data, held_out = tokens[: -len(tokens) // 20], tokens[-len(tokens) // 20 :]  # 終わりの 5 % は訓練に使わない
V = len(characters)
print(f"data: {len(train_data)} characters for training, {len(held_out)} held out, {V} different")

# %% 数えるだけの予測（モデルが越えるべき線）
single = train_data.bincount(minlength=V) + 1.0  # (V,)。1 を足すのは、どの文字にも確率を残すため
pairs = (train_data[:-1] * V + train_data[1:]).bincount(minlength=V * V).view(V, V) + 0.1  # (V, V)、[前の文字, 次の文字]
baselines = {
    "uniform": torch.tensor(V).log().item(),
    "single characters": -(single / single.sum())[held_out].log().mean().item(),
    "pairs of characters": -(pairs / pairs.sum(dim=1, keepdim=True))[held_out[:-1], held_out[1:]].log().mean().item(),
}


# %% モデル（minllm.py と違うのは、注意の計算と、lm_head の重み）と、続きを書く関数
@dataclass
class GPTConfig:
    """モデルの大きさ。"""
    vocab_size: int  # 文字の種類。データで決まる
    block_size: int = 64  # 一度に読める文字の最大の長さ
    n_layer: int = 2  # ブロックの数
    n_head: int = 4  # 注意のヘッドの数
    n_embd: int = 112  # 1 文字を表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """自分と自分より前のトークンだけを見る、マルチヘッド自己注意。出典: https://arxiv.org/abs/1706.03762"""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query（何を探すか）、key（何を持つか）、value（渡す中身）
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, -1)  # (B, T, 3C) -> (B, T, 3, n_head, head_size)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # (B, n_head, T, head_size) が 3 つ
        # minllm.py で書いた、内積から重み付きの和までの計算と同じ。因果マスクも含めて 1 度に速く行う
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, n_head, T, head_size)
        x = x.transpose(1, 2).reshape(B, T, C)  # ヘッドを横につなぐ
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。中間層は 4 倍に広い。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = F.gelu(self.c_fc(x), approximate="tanh")  # GELU は滑らかな ReLU: (B, T, n_embd) -> (B, T, 4 * n_embd)
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で他のトークンから情報を集め、MLP で加工する。"""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)  # トークンごとに、ベクトルの平均を 0、分散を 1 に揃える
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = x + self.attn(self.ln_1(x))  # x をそのまま足す道（残差接続）があるので、層を重ねても勾配が届く
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 の形をしたモデル。wte と lm_head が重みを共有する（https://arxiv.org/abs/1608.05859）。"""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # 位置の埋め込み
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # 同じ重みが、読む役と当てる役の両方で学ぶので、まれな文字も早く覚える
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)  # 小さな値から始めると、どの文字の確率もほぼ 1/vocab_size になる
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        x = self.wte(idx) + self.wpe(torch.arange(T, device=idx.device))  # (B, T, n_embd) + (T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


@torch.no_grad()
def generate(text, count):
    """text の続きを count 文字書き、text とつないで返す。"""
    idx = torch.tensor([[max(characters.find(character), 0) for character in text]])  # (1, T)
    for _ in range(count):
        logits = model(idx[:, -config.block_size :].to(device))[:, -1].cpu()  # (1, V)、次の文字のロジット
        next_token = torch.multinomial((logits / TEMPERATURE).softmax(dim=1), num_samples=1)  # (1, 1)、確率に従うくじ
        idx = torch.cat([idx, next_token], dim=1)  # (1, T) -> (1, T + 1)
    return "".join(characters[token] for token in idx[0].tolist())


# %% 訓練（fused は更新を速くする。cycle_momentum=False は、betas を変えずに保つ）
config = GPTConfig(vocab_size=V)
model = GPT(config).to(device)
windows = train_data.unfold(0, config.block_size + 1, config.block_size).to(device)  # (N, T + 1)、正解の分だけ 1 文字長い窓
held_out_windows = held_out.unfold(0, config.block_size + 1, config.block_size).to(device)
batches = torch.cat([torch.randperm(len(windows)) for _ in range(EPOCHS)]).split(BATCH_SIZE)  # 周ごとに混ぜた窓の番号
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1, fused=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, len(batches), cycle_momentum=False)
batch_losses, held_out_losses = [], {}
for step, batch in enumerate(batches, start=1):
    logits = model(windows[batch, :-1])  # (B, T) -> (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), windows[batch, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # 大きすぎる勾配を抑える
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    batch_losses.append(loss.item())
    if step == 1 or step % 100 == 0 or step == len(batches):
        with torch.no_grad():
            logits = model(held_out_windows[:, :-1])  # (N, T) -> (N, T, V)
        held_out_losses[step] = F.cross_entropy(logits.flatten(0, 1), held_out_windows[:, 1:].flatten()).item()
        print(f"step {step} loss {loss:.3f} held-out {held_out_losses[step]:.3f} {generate(PROMPT, 30)!r}", flush=True)
for name, value in {**baselines, "this model": held_out_losses[step]}.items():  # exp(損失) は、等しい確率の何文字から選ぶ迷いに当たるか
    print(f"{name:20s} loss {value:.3f}  perplexity {torch.tensor(value).exp():6.1f}")

# %% 保存と図
torch.save({"characters": characters, "config": vars(config), "state_dict": model.state_dict()}, f"{WEIGHTS}.tmp")
os.replace(f"{WEIGHTS}.tmp", WEIGHTS)  # 書き終えてから置き換えるので、途中で止めても前の重みは壊れない
print(f"saved: {WEIGHTS}")
fig, axes = plt.subplots(figsize=(8, 5), layout="constrained")
axes.plot(range(1, step + 1), batch_losses, color="#56B4E9", linewidth=0.5, label="training batch")
axes.plot(held_out_losses.keys(), held_out_losses.values(), "o-", color="#0072B2", label="held-out end of the novel")
for (name, value), style in zip(baselines.items(), [":", "-.", "--"]):
    axes.axhline(value, color="#D55E00", linestyle=style, label=f"counting: {name}")
axes.set(xlabel="step", ylabel="cross-entropy loss (nats per character)", title="Learning to write like the novel")
axes.legend()
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
