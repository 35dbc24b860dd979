"""計算した key と value を残しておき（KV キャッシュ）、新しい 1 文字だけを通して続きを書く。

前のレッスン（minllm_llama.py）との違い: 訓練はせず、その重みを読み込む。注意に、前の文字の key と value を
残す場所を加える。訓練の 64 文字より長い文章も読ませる。

実行: python minllm_cache.py（2 コアの CPU で約 7 秒）
結果:
    512 characters, logits equal to 1e-4: True, same text: True
    positions computed: 132352 without the cache, 514 with it
    512 characters: 1.93 s without the cache, 0.21 s with it, 9.2 times
試してみよう:
    - attn_mask=mask を is_causal=True にすると、キャッシュを使って書いた文章は同じか。
    - キャッシュを使うときも位置を 0 から数えると、どうなるか。
    - どの文字も直前の 64 文字だけを見ることにすると、位置 64 から後の損失はどうなるか。
解説: minllm_cache.md
"""

# %% 準備
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

PROMPT = "吾輩は"
COUNT = 512  # 書く文字の数
TRAINED_LENGTH = 64  # 訓練のウィンドウの長さ
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_cache.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")


# %% モデル（minllm_llama.py と同じ。違う行にだけコメントがある）
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

    def forward(self, x, cache):  # cache は、この層の {"key": …, "value": …}。初めは空で、ここで書き足す
        B, T, C = x.shape
        query = self.q_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        key = self.k_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        value = self.v_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        past = cache["key"].shape[2] if cache else 0  # 前に通した文字の数
        positions = torch.arange(past, past + T, device=x.device)  # 続きの位置
        query = rotate(query, positions, self.rope_theta)
        key = rotate(key, positions, self.rope_theta)
        if cache:
            key = torch.cat([cache["key"], key], dim=2)  # (B, 2, past + T, head_size)
            value = torch.cat([cache["value"], value], dim=2)
        cache["key"], cache["value"] = key, value  # 次のために残す
        key = key.repeat_interleave(self.queries_per_key, dim=1)
        value = value.repeat_interleave(self.queries_per_key, dim=1)
        mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device)  # [新しい文字, 見る文字]
        mask = mask.tril(diagonal=past)  # i 番目の新しい文字は、位置 past + i までを見る
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
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

    def forward(self, x, cache):  # cache を渡す
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, idx, caches):  # caches は、層ごとの cache のリスト
        x = self.embed_tokens(idx)
        for layer, cache in zip(self.layers, caches):
            x = layer(x, cache)
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

    def forward(self, idx, caches):  # caches を渡す
        return self.lm_head(self.model(idx, caches))


# %% 重みを読み込む
saved = torch.load(HERE / "minllm_llama.pth", map_location="cpu", weights_only=True)
characters = saved["characters"]  # トークン番号 n の文字は characters[n]
config = LlamaConfig(**saved["config"])
model = LlamaForCausalLM(config)
model.load_state_dict(saved["state_dict"])
model = model.to(device)
token_ids = {character: number for number, character in enumerate(characters)}  # 文字 -> トークン番号


def new_caches():
    """層の数だけの、空のキャッシュ。"""
    return [{} for _ in range(config.num_hidden_layers)]


# %% 2 通りに書く（最も確率の高い文字を選ぶので、偶然は入らない）
@torch.no_grad()
def write(count, use_cache):
    """PROMPT の続きを count 文字書く。

    書いた番号 (1, 3 + count)、ロジット (count, V)、1 文字ごとの ms (count,)、通した文字の延べ数を返す。
    """
    idx = torch.tensor([[token_ids[character] for character in PROMPT]])  # (1, 3)
    new = idx  # まだ通していない文字
    caches = new_caches()
    all_logits, milliseconds, passed = [], [], 0
    for _ in range(count):
        start = time.perf_counter()
        if not use_cache:
            new, caches = idx, new_caches()  # 何も残っていないので、初めから全部を通す
        logits = model(new.to(device), caches)  # (1, T) -> (1, T, V)
        logits = logits[:, -1].cpu()  # .cpu() は、計算が終わるのを待つ: (1, V)
        passed += new.shape[1]
        new = logits.argmax(dim=1, keepdim=True)  # (1, 1)
        idx = torch.cat([idx, new], dim=1)
        all_logits.append(logits)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return idx, torch.cat(all_logits), torch.tensor(milliseconds), passed


write(8, True)  # 最初の計算には準備の時間がかかるので、測る前に済ませる
idx_without, logits_without, ms_without, passed_without = write(COUNT, False)
idx_with, logits_with, ms_with, passed_with = write(COUNT, True)
print("".join(characters[token] for token in idx_with[0, :40].tolist()))

# %% 確かめる: キャッシュがあってもなくても、ロジットと文章は同じ
difference = (logits_without - logits_with).abs().max().item()
same_text = torch.equal(idx_without, idx_with)
print(f"{COUNT} characters, logits equal to 1e-4: {difference < 1e-4}, same text: {same_text}")

# %% 時間
print(f"positions computed: {passed_without} without the cache, {passed_with} with it")
for count in (COUNT // 8, COUNT // 2, COUNT):
    without, with_cache = ms_without[:count].sum() / 1000, ms_with[:count].sum() / 1000
    print(f"{count} characters: {without:.2f} s without the cache, {with_cache:.2f} s with it", end=", ")
    print(f"{without / with_cache:.1f} times")

# %% 読む（prefill）と書く（decode）: 同じ文章を、一度に通すか、1 文字ずつ通すか
text = idx_with[:, : COUNT // 2].to(device)  # (1, 256)
length = text.shape[1]
with torch.no_grad():
    caches = new_caches()
    start = time.perf_counter()
    model(text, caches).cpu()
    prefill = 1000 * (time.perf_counter() - start)

    one_by_one = new_caches()
    start = time.perf_counter()
    for t in range(length):
        model(text[:, t : t + 1], one_by_one).cpu()
    decode = 1000 * (time.perf_counter() - start)
same_cache = torch.allclose(caches[-1]["value"], one_by_one[-1]["value"], atol=1e-4)
print(f"{length} characters at once: {prefill:.1f} ms, one by one: {decode:.1f} ms", end=", ")
print(f"{decode / prefill:.1f} times, same cache: {same_cache}")

# %% メモリ
size = 0
for cache in caches:
    size += cache["key"].nbytes + cache["value"].nbytes
print(f"cache of {length} characters: {size} bytes, {size // length} each")

# %% 訓練より長い文章（掃除と分け方は minllm_novel.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
held_out_text = novel[len(novel) * 95 // 100 :]
held_out = torch.tensor([token_ids.get(character, 0) for character in held_out_text])
windows = held_out.unfold(0, 257, 32)  # 32 文字おきに切り出した 257 文字: (494, 257)
losses = torch.zeros(256)  # 位置ごとの損失
for some in windows.split(50):  # 一度に通すとメモリが足りないので、50 個ずつ
    with torch.no_grad():
        logits = model(some[:, :-1].to(device), new_caches()).cpu()  # (50, 256, V)
    losses += F.cross_entropy(logits.transpose(1, 2), some[:, 1:], reduction="none").sum(dim=0)
losses /= len(windows)
for start in range(0, 256, 32):
    print(f"positions {start} to {start + 31}: loss {losses[start : start + 32].mean():.3f}")

# %% 図
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
blocks = torch.arange(0, COUNT, 16)  # 時間は揺れるので、16 文字ごとの中央値を描く
left.plot(blocks, ms_without.view(-1, 16).median(dim=1).values, color="#D55E00", label="without the cache")
left.plot(blocks, ms_with.view(-1, 16).median(dim=1).values, color="#0072B2", label="with the cache")
left.set(xlabel="characters written", ylabel="ms per character", ylim=(0, None))
left.set_title("The cache keeps the time per character flat")
left.legend()
right.plot(torch.arange(0, 256, 8), losses.view(-1, 8).mean(dim=1), "o-", color="#0072B2", markersize=4)
right.axvline(TRAINED_LENGTH, color="#D55E00", linestyle="--", label=f"length in training: {TRAINED_LENGTH}")
right.set(xlabel="position", ylabel="held-out loss (nats per character)")
right.set_title("Beyond the length in training, the loss rises")
right.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
