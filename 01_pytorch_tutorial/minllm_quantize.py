"""量子化: 訓練した重みを少ないビットの整数に丸めて、ファイルを小さくする。どこまで丸めると壊れるか。

前のレッスン（minllm_cache.py）との違い: モデルは minllm_novel.py の GPT に戻る。訓練はせず、同梱の重みを
丸めて、held-out の損失を測り直す。

実行: python minllm_quantize.py（2 コアの CPU で約 6 秒）
結果:
    4         matrix          291556  3.702  39.7 %
    4         row             300156  3.628  19.3 %
    4         group           331392  3.616  14.6 %
試してみよう:
    - row の 0.28 を 2.8 にすると、ほかの 3 つの重みはいくつに戻るか。
    - GROUP_SIZE を 4 にすると、損失とバイト数はどうなるか。
    - 四捨五入の .round() を、切り捨ての .trunc() にすると、誤差と損失はどうなるか。
解説: minllm_quantize.md
"""

# %% 準備
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
GROUP_SIZE = 28  # 1 つの倍率を共有する重みの数。112 を割り切る
PROMPT = "吾輩は"
TEMPERATURE = 0.8
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_quantize.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")

# %% 16 ビットの 2 つの形
for number in (257.0, 70_000.0):
    value = torch.tensor(number)
    print(f"{number:.0f} in bfloat16: {value.bfloat16().item():.0f}, in float16: {value.half().item():.0f}")


# %% 整数に丸める
def quantize(weights, bits):
    """重み (N, group) を、整数 (N, group) と、行ごとの倍率 (N, 1) にする。"""
    largest = 2 ** (bits - 1) - 1  # 4 ビットなら 7 で、整数は -7 から 7 まで
    scale = weights.abs().amax(dim=1, keepdim=True) / largest  # 絶対値の最も大きい重みが、largest になる
    scale = scale.half().float()  # 倍率は float16 で残す。1 つ 2 バイト
    integers = (weights / scale).round()
    return integers, scale


row = torch.tensor([[0.12, -0.35, 0.07, 0.28]])
integers, scale = quantize(row, 4)
back = integers * scale
print(f"scale {scale.item():.2f} = {row.abs().max():.2f} / 7, half a scale {scale.item() / 2:.3f}")
for weight, integer, value in zip(row[0].tolist(), integers[0].tolist(), back[0].tolist()):
    print(f"{weight:5.2f} / scale = {weight / scale.item():5.2f}, integer {integer:2.0f}", end=", ")
    print(f"back {value:5.2f}, error {abs(weight - value):.2f}")


# %% モデル（minllm_novel.py と同じ。読み飛ばしてよい）
@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int = 64
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


# %% 重みと文章を読み込む（掃除と分け方は minllm_novel.py と同じ）
saved = torch.load(HERE / "minllm_novel.pth", map_location="cpu", weights_only=True)
characters = saved["characters"]  # トークン番号 n の文字は characters[n]
config = GPTConfig(**saved["config"])
float32_weights = saved["state_dict"]  # 名前 -> 重み
token_ids = {character: number for number, character in enumerate(characters)}  # 文字 -> トークン番号
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
held_out_text = novel[len(novel) * 95 // 100 :]
held_out = torch.tensor([token_ids.get(character, 0) for character in held_out_text])
windows = held_out.unfold(0, config.block_size + 1, config.block_size).to(device)  # (250, 65)


def model_of(state_dict):
    model = GPT(config)
    model.load_state_dict(state_dict)
    return model.to(device)


@torch.no_grad()
def evaluate(state_dict):
    """この重みでの、held-out の 1 文字あたりの損失。"""
    logits = model_of(state_dict)(windows[:, :-1])  # (250, 64) -> (250, 64, V)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


@torch.no_grad()
def generate(state_dict, count):
    """PROMPT の続きを count 文字書く。乱数は、いつも同じものを使う。"""
    torch.manual_seed(SEED)
    model = model_of(state_dict)
    idx = torch.tensor([[token_ids[character] for character in PROMPT]])  # (1, 3)
    for _ in range(count):
        logits = model(idx.to(device))[:, -1].cpu()  # (1, T) -> (1, V)
        probabilities = (logits / TEMPERATURE).softmax(dim=1)
        next_token = torch.multinomial(probabilities, num_samples=1)  # (1, 1)
        idx = torch.cat([idx, next_token], dim=1)
    return "".join(characters[token] for token in idx[0].tolist())


# %% モデル全体を丸める
def round_all(bits, grouping):
    """行列の重みを丸めて戻した state_dict、バイト数、整数すべて、最大の誤差（倍率を 1 とする）を返す。"""
    state_dict, size, all_integers, largest_error = {}, 0, [], 0
    for name, weight in float32_weights.items():
        if name == "lm_head.weight":  # wte.weight と同じものなので、1 度だけ数える
            continue
        if weight.dim() == 1:  # バイアスと LayerNorm は少ないので、float32 のまま残す
            state_dict[name] = weight
            size += 4 * weight.numel()
            continue
        lengths = {"matrix": weight.numel(), "row": weight.shape[1], "group": GROUP_SIZE}
        groups = weight.reshape(-1, lengths[grouping])  # 1 行が、1 つの倍率を共有する: (N, group)
        integers, scale = quantize(groups, bits)
        back = integers * scale
        state_dict[name] = back.view_as(weight)
        size += bits * weight.numel() / 8 + 2 * scale.numel()
        all_integers.append(integers.flatten())
        largest_error = max(largest_error, ((groups - back).abs() / scale).max().item())
    state_dict["lm_head.weight"] = state_dict["wte.weight"]
    return state_dict, size, torch.cat(all_integers), largest_error


GROUPINGS = ["matrix", "row", "group"]
BITS = [8, 4, 3, 2]
float32_loss = evaluate(float32_weights)
float32_size = 4 * sum(parameter.numel() for parameter in model_of(float32_weights).parameters())
print("bits      one scale per    bytes   loss  weights that become 0")
print(f"float32                 {float32_size:8d}  {float32_loss:.3f}")
for kind, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
    rounded = {name: weight.to(dtype).float() for name, weight in float32_weights.items()}
    print(f"{kind:22s}  {float32_size // 2:8d}  {evaluate(rounded):.3f}")

losses = {}  # (ビット数, 区切り方) -> 損失
integers_of = {}  # (ビット数, 区切り方) -> 整数すべて
texts = {"float32": generate(float32_weights, 40)}
errors_fit = True  # どの重みの誤差も、倍率の半分以下か
for bits in BITS:
    for grouping in GROUPINGS:
        state_dict, size, integers, largest_error = round_all(bits, grouping)
        loss = evaluate(state_dict)
        zeros = 100 * (integers == 0).float().mean().item()
        print(f"{bits:<9d} {grouping:12s}  {size:8.0f}  {loss:.3f}  {zeros:4.1f} %")
        losses[bits, grouping] = loss
        integers_of[bits, grouping] = integers
        errors_fit = errors_fit and largest_error < 0.5001
    texts[f"{bits} bits"] = generate(state_dict, 40)  # 最後の group で丸めた重みで書く
for name, text in texts.items():
    print(f"{name:7s} {text!r}")

# %% 確かめる
print(f"12 times {len(integers)} weights, none off by more than half a scale: {errors_fit}")
weight = float32_weights["h.0.mlp.c_fc.weight"]  # (448, 112)
integers, scale = quantize(weight, 4)  # 行ごと: (448, 112) と (448, 1)
x = torch.linspace(-1, 1, 112)
floats_first = (integers * scale) @ x  # 重みに戻してから掛ける: (448,)
integers_first = (integers @ x) * scale[:, 0]  # 整数のまま掛けて、行ごとに 1 回だけ倍率を掛ける: (448,)
same = torch.allclose(floats_first, integers_first, atol=1e-5)
print(f"integers times x, then the scale, gives the same within 1e-5: {same}")

codes = (integers + 8).to(torch.uint8)  # 1 から 15 まで
packed = 16 * codes[:, 0::2] + codes[:, 1::2]  # 隣どうしの 2 つを 1 バイトに入れる: (448, 56)
unpacked = torch.stack([packed // 16, packed % 16], dim=2).view(448, 112)
print(f"{codes.numel()} integers of 4 bits in {packed.nbytes} bytes", end=", ")
print(f"unpacked the same: {torch.equal(unpacked, codes)}")

# %% 図
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for grouping, color in (("matrix", "#D55E00"), ("row", "#E69F00"), ("group", "#0072B2")):
    curve = [losses[bits, grouping] for bits in BITS]
    left.plot(BITS, curve, "o-", color=color, label=f"one scale per {grouping}")
left.axhline(float32_loss, color="black", linestyle="--", label=f"float32: {float32_loss:.3f}")
left.set(xlabel="bits per weight", ylabel="held-out loss (nats per character)", xticks=BITS)
left.set_title("Small groups survive fewer bits")
left.legend()
for shift, grouping, color in ((-0.2, "matrix", "#D55E00"), (0.2, "group", "#0072B2")):
    values, counts = integers_of[4, grouping].unique(return_counts=True)
    percent = 100 * counts / counts.sum()
    places = (values + shift).tolist()
    right.bar(places, percent.tolist(), width=0.4, color=color, label=f"one scale per {grouping}")
right.set(xlabel="integer at 4 bits", ylabel="weights (%)", xticks=range(-7, 8))
right.set_title("One scale per matrix leaves most integers unused")
right.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
