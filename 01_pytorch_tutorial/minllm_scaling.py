"""モデルを大きくすると、損失はどれだけ下がるか。小さな 3 つのモデルから、4 倍大きなモデルの損失を予測する。

前のレッスン（minllm_quantize.py）との違い: 1 つのモデルを調べるのではなく、幅を 2 倍ずつ変えた Llama の形
（minllm_llama.py）を、同じレシピで訓練して比べる。どれも小説を 1 周だけ読む。

実行: python minllm_scaling.py（2 コアの CPU で約 55 秒）
結果:
    seed 0 predicted 3.374 measured 3.515 above the line by 4.2 %
    seed 1 predicted 3.412 measured 3.491 above the line by 2.3 %
試してみよう:
    - TRAIN_WINDOWS を 2240、BATCH_SIZE を 2 にして文章を半分にすると、大きくする効果はどうなるか。
    - RATE を半分の 0.025 にすると、最も大きなモデルは直線に戻るか。
解説: minllm_scaling.md
"""

# %% 準備
import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEEDS = (0, 1)
WIDTHS = (16, 32, 64, 128)  # hidden_size。最後の 1 つの損失を、ほかから予測する
TRAIN_WINDOWS = 4480  # 訓練に使うウィンドウの数。これより後の 280 個は、検証に使う
BLOCK_SIZE = 64  # ウィンドウの長さ
BATCH_SIZE = 4  # 1 回の更新に使うウィンドウの数
RATE = 0.05  # 学習率の最大値は RATE / √幅。小さな 3 つのモデルの、検証の損失で選んだ
MIN_COUNT = 30  # これより少ない回数しか出ない文字は、〓 で表す。語彙を減らし、計算を速くする
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_scaling.png"
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")


# %% モデル（minllm_llama.py と同じ。読み飛ばしてよい）
def rotate(x, positions, theta):
    half = x.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, device=x.device) / half)
    angles = positions[:, None] * speeds
    cos, sin = angles.cos(), angles.sin()
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


@dataclass
class LlamaConfig:
    vocab_size: int
    hidden_size: int = 112
    intermediate_size: int = 296
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-05
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
        B, T, C = x.shape
        query = self.q_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        key = self.k_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        value = self.v_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        positions = torch.arange(T, device=x.device)
        query = rotate(query, positions, self.rope_theta)
        key = rotate(key, positions, self.rope_theta)
        key = key.repeat_interleave(self.queries_per_key, dim=1)
        value = value.repeat_interleave(self.queries_per_key, dim=1)
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x.transpose(1, 2).reshape(B, T, C)
        return self.o_proj(x)


class LlamaMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate = F.silu(self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList((LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers)))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, idx):
        x = self.embed_tokens(idx)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, idx):
        return self.lm_head(self.model(idx))


# %% データ（掃除と分け方は minllm_novel.py と同じ。訓練の部分の終わりは、検証に使う）
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
windows = data[:train_size].unfold(0, BLOCK_SIZE + 1, BLOCK_SIZE).to(device)  # (4760, 65)
train_windows = windows[:TRAIN_WINDOWS]
validation_windows = windows[4480:]  # (280, 65)。学習率を選ぶときだけ見る
held_out_windows = data[train_size:].unfold(0, BLOCK_SIZE + 1, BLOCK_SIZE).to(device)  # (250, 65)
text_size = len(train_windows) * BLOCK_SIZE
print(f"{len(characters)} different characters, {text_size} read once by each model")


# %% 1 つのレシピ
@torch.no_grad()
def evaluate(model, windows):
    """ウィンドウ (N, T + 1) の 2 文字目から後を予測した、1 文字あたりの損失。"""
    logits = model(windows[:, :-1])  # (N, T) -> (N, T, V)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


def train(width, seed):
    """hidden_size が width のモデルを訓練し、埋め込みを除くパラメータの数と、held-out の損失を返す。"""
    torch.manual_seed(seed)
    config = LlamaConfig(len(characters), hidden_size=width, intermediate_size=width * 8 // 3)
    model = LlamaForCausalLM(config).to(device)
    steps = math.ceil(len(train_windows) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=RATE / math.sqrt(width), total_steps=steps
    )
    order = torch.randperm(len(train_windows)).split(BATCH_SIZE)
    print(f"seed {seed} width {width:3d} ", end="", flush=True)
    for step, batch in enumerate(order, start=1):  # batch はウィンドウの番号 (B,)
        windows = train_windows[batch]  # (B, T + 1)
        logits = model(windows[:, :-1])  # (B, T) -> (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 280 == 0:  # 全体の 4 分の 1 ごとに、点を 1 つ
            print(".", end="", flush=True)
    total = sum(parameter.numel() for parameter in model.parameters())
    size = total - model.lm_head.weight.numel()  # 埋め込みと lm_head は、1 つの重みである
    validation_loss = evaluate(model, validation_windows)
    held_out_loss = evaluate(model, held_out_windows)
    print(f" parameters {size:6d}", end=" ")
    print(f"characters per parameter {text_size / size:4.1f}", end=" ")
    print(f"validation {validation_loss:.3f} held-out {held_out_loss:.3f}", flush=True)
    return size, held_out_loss


# %% 小さなモデルを訓練する
small_widths, largest_width = WIDTHS[:-1], WIDTHS[-1]
sizes = {}  # 幅 -> パラメータの数
losses = {seed: [] for seed in SEEDS}  # シード -> 幅ごとの held-out の損失
for seed in SEEDS:
    for width in small_widths:
        sizes[width], loss = train(width, seed)
        losses[seed].append(loss)


# %% パラメータの数を、モデルを作らずに式で数える
def count_parameters(width):
    """2 つの層の、埋め込みを除くパラメータの数。"""
    attention = 3 * width * width  # q_proj と o_proj が width²、k_proj と v_proj がその半分
    mlp = 3 * width * (width * 8 // 3)  # gate_proj と up_proj と down_proj
    norms = 2 * width
    return 2 * (attention + mlp + norms) + width  # 最後の width は、出口の norm


same_sizes = all(count_parameters(width) == sizes[width] for width in small_widths)
print(f"the formula counts the parameters: {same_sizes}")

# %% 小さなモデルの点に直線を引いて、最も大きなモデルの損失を予測する（まだ訓練していない）
largest_size = count_parameters(largest_width)
log_sizes = [math.log(sizes[width]) for width in small_widths]
lines, predictions = {}, {}
for seed in SEEDS:
    log_losses = [math.log(loss) for loss in losses[seed]]
    slope, intercept = statistics.linear_regression(log_sizes, log_losses)  # y = slope * x + intercept
    lines[seed] = slope, intercept
    predictions[seed] = math.exp(slope * math.log(largest_size) + intercept)
    print(f"seed {seed} slope {slope:.3f}", end=" ")
    print(f"predicted for {largest_size} parameters: {predictions[seed]:.3f}", flush=True)

# %% 確かめる: 最も大きなモデルを訓練して、予測と比べる
for seed in SEEDS:
    sizes[largest_width], loss = train(largest_width, seed)
    losses[seed].append(loss)
    print(f"seed {seed} predicted {predictions[seed]:.3f} measured {loss:.3f}", end=" ")
    print(f"above the line by {100 * (loss / predictions[seed] - 1):.1f} %")
print(f"parameters of the largest as the formula says: {sizes[largest_width] == largest_size}")

# %% 幅を 2 倍にするたびに、損失は何倍になるか
for i in range(1, len(WIDTHS)):
    size_ratio = sizes[WIDTHS[i]] / sizes[WIDTHS[i - 1]]
    print(f"width {WIDTHS[i - 1]:2d} to {WIDTHS[i]:3d}: parameters x {size_ratio:.2f} loss", end="")
    for seed in SEEDS:
        print(f" x {losses[seed][i] / losses[seed][i - 1]:.3f}", end="")
    print()

# %% 図
fig, (size_axes, off_axes) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
all_sizes = [sizes[width] for width in WIDTHS]
for seed, color, marker in zip(SEEDS, ("#0072B2", "#D55E00"), "ox"):
    slope, intercept = lines[seed]
    line = [math.exp(slope * math.log(size) + intercept) for size in all_sizes]
    off = [100 * (loss / foretold - 1) for loss, foretold in zip(losses[seed], line)]
    size_axes.plot(all_sizes, line, "--", color=color)
    size_axes.plot(all_sizes, losses[seed], marker, color=color, markersize=8, label=f"seed {seed}")
    off_axes.plot(all_sizes, off, marker + "-", color=color, markersize=8, label=f"seed {seed}")
size_axes.set(ylabel="held-out loss", yscale="log", title="Lines through the three small models")
ticks = [3.4, 3.6, 3.8, 4.0]
size_axes.set_yticks(ticks, ticks)
size_axes.set_yticks([], minor=True)
off_axes.axhline(0, color="gray", linestyle="--")
off_axes.set(ylabel="loss above the line (%)", title="The largest leaves the line")
for axes in (size_axes, off_axes):
    axes.set(xlabel="parameters without embeddings", xscale="log")
    axes.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
