"""GPT-2 の部品を、今の LLM（Llama や Qwen）の部品に取り替え、同じ小説をどこまで予測できるかを比べる。

前のレッスン（minllm_write.py）との違い: minllm_novel.py の訓練に戻り、LayerNorm を RMSNorm に、位置の
埋め込みを RoPE に、GELU の MLP を SwiGLU に替える。key と value のヘッドを半分にし、バイアスをなくす。
小説と訓練の方法は変えない。

実行: python minllm_llama.py（2 コアの CPU で約 50 秒）
結果:
    score of (1, 0) at positions 5 and 3: -0.4161, at 15 and 13: -0.4161, cos 2 = -0.4161
    524496 parameters
    step 1192 train 3.015 held-out 3.421
試してみよう:
    - range(EPOCHS) を range(1) にして 1 周で止めると、損失はいくつか。さらに rotate の 2 行を消すとどうか。
    - 1 周で止めるまま SwiGLU を GELU に戻すと、RoPE を消したときより大きな差になるか。
解説: minllm_llama.md
"""

# %% 準備
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
EPOCHS = 4
BATCH_SIZE = 16  # 1 回の更新に使うウィンドウの数
BLOCK_SIZE = 64  # ウィンドウの長さ。RoPE に位置の表はないので、モデルの大きさはこの長さによらない
LEARNING_RATE = 5e-3  # 学習率の最大値
MIN_COUNT = 3  # これより少ない回数しか出ない文字は、まとめて 〓 で表す
NOVEL_LOSS = 3.602  # minllm_novel.py の GPT の、held-out の損失
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "minllm_llama.pth"
PICTURE = HERE.parent / "images" / "minllm_llama.png"
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% RMSNorm（平均を引かず、2 乗の平均の平方根で割る。出典: https://arxiv.org/abs/1910.07467）
x = torch.tensor([3.0, 4.0])
root_mean_square = x.pow(2).mean().sqrt()  # √((9 + 16) / 2) = 3.5355
by_hand = x / root_mean_square
layer_norm = F.layer_norm(x, x.shape)  # 平均 3.5 を引き、標準偏差 0.5 で割る
print(f"RMSNorm of (3, 4): ({by_hand[0]:.4f}, {by_hand[1]:.4f})", end=", ")
print(f"LayerNorm: ({layer_norm[0]:.4f}, {layer_norm[1]:.4f})")
print(f"nn.RMSNorm gives the same: {torch.allclose(by_hand, nn.RMSNorm(2)(x))}")


# %% RoPE（位置に比例した角度だけ、query と key を回す。出典: https://arxiv.org/abs/2104.09864）
def rotate(x, positions, theta):
    """x (…, T, head_size) の t 番目を、位置 positions[t] の角度だけ回す。

    要素 i と要素 i + half を、平面の横と縦とみなす。位置が 1 進むと、theta ** (-i / half) ラジアン回る。
    """
    half = x.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, device=x.device) / half)  # 1 つ進むごとの角度: (half,)
    angles = positions[:, None] * speeds  # (T, 1) * (half,) -> (T, half)
    cos, sin = angles.cos(), angles.sin()
    left, right = x[..., :half], x[..., half:]  # (…, T, half) が 2 つ
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


positions = torch.arange(40)
turned = rotate(torch.tensor([1.0, 0.0]).expand(40, 2), positions, 10_000)  # 40 か所に置いた (1, 0): (40, 2)
scores = turned @ turned.T  # (40, 40)、行が query の位置、列が key の位置
print(f"RoPE turns (1, 0) at position 1 to ({turned[1, 0]:.4f}, {turned[1, 1]:.4f})")
print(f"score of (1, 0) at positions 5 and 3: {scores[5, 3]:.4f}", end=", ")
print(f"at 15 and 13: {scores[15, 13]:.4f}, cos 2 = {math.cos(2):.4f}")

# %% 確かめる: でたらめな query と key でも、スコアは 2 つの位置の差だけで決まる
query, key = torch.randn(2, 8)  # 長さ 8 なので、4 つの平面で、別々の速さで回る
queries = rotate(query.expand(40, 8), positions, 10_000)  # (40, 8)
keys = rotate(key.expand(40, 8), positions, 10_000)
scores = queries @ keys.T  # (40, 40)
difference = (scores[10:, 10:] - scores[:30, :30]).abs().max().item()  # 両方の位置を 10 ずらす
print(
    f"random query and key, all positions shifted by 10: largest difference below 1e-4: {difference < 1e-4}"
)


# %% モデル（部品の名前は、公開されている Llama の重みのファイルと同じ）
@dataclass
class LlamaConfig:
    vocab_size: int
    hidden_size: int = 112  # 1 トークンを表すベクトルの長さ（GPT-2 の n_embd）
    intermediate_size: int = 296  # 112 * 4 * 2/3 に近い、8 の倍数
    num_hidden_layers: int = 2
    num_attention_heads: int = 4  # query のヘッドの数
    num_key_value_heads: int = 2  # key と value のヘッドの数。query のヘッド 2 つが、1 つを共有する
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0


class LlamaAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.queries_per_key = config.num_attention_heads // config.num_key_value_heads
        self.rope_theta = config.rope_theta
        kv_size = config.num_key_value_heads * self.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        """(B, T, hidden_size) -> (B, T, hidden_size)"""
        B, T, C = x.shape
        query = self.q_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, 4, T, head_size)
        key = self.k_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, 2, T, head_size)
        value = self.v_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        positions = torch.arange(T, device=x.device)
        query = rotate(query, positions, self.rope_theta)
        key = rotate(key, positions, self.rope_theta)
        # GQA: 1 つの key と value を、2 つの query が使う: (B, 2, T, head_size) -> (B, 4, T, head_size)
        key = key.repeat_interleave(self.queries_per_key, dim=1)
        value = value.repeat_interleave(self.queries_per_key, dim=1)
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x.transpose(1, 2).reshape(B, T, C)  # (B, 4, T, head_size) -> (B, T, hidden_size)
        return self.o_proj(x)


class LlamaMLP(nn.Module):
    """SwiGLU。出典: https://arxiv.org/abs/2002.05202"""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        """(B, T, hidden_size) -> (B, T, hidden_size)"""
        gate = F.silu(self.gate_proj(x))  # silu(x) = x * sigmoid(x): (B, T, intermediate_size)
        return self.down_proj(gate * self.up_proj(x))  # 要素ごとに掛けて、どれだけ通すかを決める


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x):
        """(B, T, hidden_size) -> (B, T, hidden_size)"""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, idx):
        """トークン番号 (B, T) -> (B, T, hidden_size)"""
        x = self.embed_tokens(idx)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight  # 小説の GPT と同じく、1 つの重みを共有する
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, idx):
        """トークン番号 (B, T) -> ロジット (B, T, vocab_size)"""
        return self.lm_head(self.model(idx))


# %% データ（minllm_novel.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
train_size = len(novel) * 95 // 100
counts = Counter(novel[:train_size])
common = [character for character, count in counts.items() if count >= MIN_COUNT]
characters = "〓" + "".join(sorted(common))
token_ids = {character: number for number, character in enumerate(characters)}
data = torch.tensor([token_ids.get(character, 0) for character in novel])
train_windows = data[:train_size].unfold(0, BLOCK_SIZE + 1, BLOCK_SIZE).to(device)  # (4760, 65)
held_out_windows = data[train_size:].unfold(0, BLOCK_SIZE + 1, BLOCK_SIZE).to(device)  # (250, 65)

# %% 大きさ
config = LlamaConfig(vocab_size=len(characters))
model = LlamaForCausalLM(config).to(device)
gelu_size = 2 * config.hidden_size * 4 * config.hidden_size  # 112 を 448 に広げ、112 に戻す
mlp_size = sum(weight.numel() for weight in model.model.layers[0].mlp.parameters())
print(f"weights of an MLP: {mlp_size}, of an MLP with GELU: {gelu_size}")
attention = model.model.layers[0].self_attn
shared = torch.arange(config.num_key_value_heads).repeat_interleave(attention.queries_per_key)
print("query heads", *range(config.num_attention_heads), "use key and value heads", *shared.tolist())
for name, weight in model.state_dict().items():
    if "layers.1" not in name:  # 層 1 は、層 0 と同じ形である
        print(f"{name:46s} {tuple(weight.shape)}")
print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")

# %% 訓練（minllm_novel.py と同じ）
steps = EPOCHS * math.ceil(len(train_windows) / BATCH_SIZE)
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)


@torch.no_grad()
def evaluate(windows):
    """ウィンドウ (N, T + 1) の 2 文字目から後を予測した、1 文字あたりの損失。"""
    logits = model(windows[:, :-1])  # (N, T) -> (N, T, V)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


step = 0
shown_steps, train_losses, held_out_losses = [], [], []
for epoch in range(EPOCHS):
    for batch in torch.randperm(len(train_windows)).split(BATCH_SIZE):  # batch はウィンドウの番号 (B,)
        windows = train_windows[batch]  # (B, T + 1)
        logits = model(windows[:, :-1])  # (B, T) -> (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        step += 1
        if step == 1 or step % 149 == 0:  # 149 回で、小説を半周する
            train_loss = evaluate(train_windows[: len(held_out_windows)])  # held-out と同じ個数で測る
            held_out_loss = evaluate(held_out_windows)
            shown_steps.append(step)
            train_losses.append(train_loss)
            held_out_losses.append(held_out_loss)
            print(f"step {step} train {train_loss:.3f} held-out {held_out_loss:.3f}", flush=True)

# %% 確かめる: 最後の文字を変えても、それより前のロジットは変わらない
window = held_out_windows[:1]  # (1, T)
changed = window.clone()
changed[0, -1] = 0  # 〓 にする
with torch.no_grad():
    changes = (model(changed) - model(window)).abs().amax(dim=2)[0]  # 位置ごとの、最も大きな変化: (T,)
before, last = changes[:-1].max().item(), changes[-1].item()
print(f"change the last character: the logits before it stay within 1e-5: {before < 1e-5}", end=", ")
print(f"its own: {last < 1e-5}")

# %% 保存（隣に書き終えてから置き換えるので、途中で止めても前の重みは壊れない）
state_dict = model.cpu().state_dict()
saved = {"characters": characters, "config": vars(config), "state_dict": state_dict}
torch.save(saved, f"{WEIGHTS}.tmp")
os.replace(f"{WEIGHTS}.tmp", WEIGHTS)
print(f"saved: {WEIGHTS}")

# %% 図
fig, (score_axes, loss_axes) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
distances = torch.arange(30)
score_axes.plot(distances, scores[:30, 0], "o", color="#0072B2", markersize=9, label="key at position 0")
score_axes.plot(distances, scores[10:, 10], "x", color="#E69F00", label="key at position 10")
score_axes.set(xlabel="position of query - position of key", ylabel="score")
score_axes.set_title("RoPE: the distance alone counts")
score_axes.legend()
loss_axes.axhline(NOVEL_LOSS, color="#D55E00", linestyle="--", label="GPT-2 form, held-out, after all steps")
loss_axes.plot(shown_steps, train_losses, color="#56B4E9", label="Llama form, training part")
loss_axes.plot(
    shown_steps, held_out_losses, "o-", color="#0072B2", markersize=4, label="Llama form, held-out"
)
loss_axes.set(xlabel="step", ylabel="loss (nats per character)", ylim=(2.9, 5.2))
loss_axes.set_title(f"The same novel: {NOVEL_LOSS:.2f} becomes {held_out_loss:.2f}")
loss_axes.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
