"""訓練済みの GPT に、好きな書き出しの続きを書かせる。次の文字の選び方（温度、top-k、top-p）で、文章が変わる。

前のレッスン（minllm_novel.py）との違い: 訓練はせず、保存された重みを読み込んで書く。書いた文章が小説の
丸写しでないかも、ものさしと比べて調べる。

実行: python minllm_write.py（2 コアの CPU で約 4 秒。書き出しを変えるなら -p 主人は）
結果:
    candidates      2230      2230      2230         5        44        40
    longest run that also stands in the training text: 7 characters, 'と思ったが、も'
    in 40 held-out passages of 200: 7 to 16, mean 9.1
試してみよう:
    - -t 0 にすると、どんな言葉を繰り返すか。
    - -t 2 -k 3000（すべての文字が候補）にすると、訓練の文章と同じ部分は何文字になるか。
    - -t 1 -k 3000 --top-p 0.5 にすると、「こ」は何 % になるか。先に電卓で求める。
解説: minllm_write.md
"""

# %% 準備
import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_write.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-p", "--prompt", default="吾輩は", help="書き出し（既定: 吾輩は）")
parser.add_argument("-n", "--count", type=int, default=200, help="書く文字の数（既定: 200）")
parser.add_argument("-t", "--temperature", type=float, default=0.8, help="温度（既定: 0.8）")
parser.add_argument("-k", "--top-k", type=int, default=40, help="候補にする文字の数（既定: 40）")
parser.add_argument("--top-p", type=float, default=1.0, help="候補にする文字の確率の和（既定: 1、絞らない）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
if not args.prompt:
    parser.error("--prompt は 1 文字以上にする")
if not 1 <= args.count <= 1000:
    parser.error("--count は 1 以上 1000 以下にする")
if args.temperature != 0 and not 0.01 <= args.temperature <= 100:
    parser.error("--temperature は 0 か、0.01 以上 100 以下にする")
if args.top_k < 1:
    parser.error("--top-k は 1 以上にする")
if not 0 < args.top_p <= 1:
    parser.error("--top-p は 0 より大きく 1 以下にする")
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


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


# %% 重みを読み込む
saved = torch.load(HERE / "minllm_novel.pth", map_location="cpu", weights_only=True)
characters = saved["characters"]  # トークン番号 n の文字は characters[n]
config = GPTConfig(**saved["config"])
model = GPT(config)
model.load_state_dict(saved["state_dict"])
model = model.to(device)
V = len(characters)

# %% 書き出し
token_ids = {character: number for number, character in enumerate(characters)}  # 文字 -> トークン番号
unknown = set(args.prompt) - set(characters)  # 訓練の文章に出てこないか、まれな文字
if unknown:
    print("unknown characters, replaced by 〓:", "".join(sorted(unknown)))
idx = torch.tensor([[token_ids.get(character, 0) for character in args.prompt]])  # (1, T)。0 番は 〓


# %% 次の文字の確率
@torch.no_grad()
def next_logits(idx):
    """トークン番号 (1, T) -> 次の文字のロジット (V,)"""
    context = idx[:, -config.block_size :].to(device)  # モデルに渡せるのは、最後の block_size 文字まで
    logits = model(context)  # (1, T) -> (1, T, V)
    return logits[0, -1].cpu()  # 最後の位置が、次の文字を予測する: (V,)


def probabilities_of(logits, temperature, top_k, top_p):
    """ロジット (V,) -> 確率 (V,)。候補でない文字は 0 になる。

    top-p の出典: https://arxiv.org/abs/1904.09751
    """
    probabilities = torch.zeros_like(logits)  # (V,)
    if temperature == 0:  # 0 では割れないので、最も確率の高い 1 文字だけを残す
        probabilities[logits.argmax()] = 1
        return probabilities
    top_logits, top_tokens = logits.topk(min(top_k, V))  # 大きい順に k 個: (k,) が 2 つ
    kept = (top_logits / temperature).softmax(dim=0)  # (k,)、和は 1
    if top_p < 1:
        higher = kept.cumsum(dim=0) - kept  # 自分より確率の高い文字の、確率の和: (k,)
        kept[higher >= top_p] = 0  # それだけで top_p に届いているなら、候補から外す
    probabilities[top_tokens] = kept / kept.sum()
    return probabilities


# %% 表（書き出しの次の 1 文字。t は温度、k は top-k、p は top-p）
logits = next_logits(idx)  # (V,)
columns = {}  # 列の名前 -> 確率 (V,)
columns["t=0.5"] = probabilities_of(logits, 0.5, V, 1)  # k が V なら、すべての文字が候補になる
columns["t=1"] = probabilities_of(logits, 1, V, 1)  # softmax の確率そのもの
columns["t=2"] = probabilities_of(logits, 2, V, 1)
columns["t=1,k=5"] = probabilities_of(logits, 1, 5, 1)
columns["t=1,p=0.5"] = probabilities_of(logits, 1, V, 0.5)
columns["this run"] = probabilities_of(logits, args.temperature, args.top_k, args.top_p)
print(f"this run: t={args.temperature:g}, k={args.top_k}, p={args.top_p:g}")
print("      rank" + "".join(f"{name:>10}" for name in columns))
top_10 = logits.topk(10).indices  # (10,)
for rank, token in enumerate(top_10.tolist(), start=1):
    row = "".join(f"{column[token]:10.1%}" for column in columns.values())
    print(f"{rank:10d}{row}  {characters[token]!r}")
rest = torch.ones(V, dtype=torch.bool)
rest[top_10] = False  # 上位 10 文字のほか: (V,)
print("    others" + "".join(f"{column[rest].sum():10.1%}" for column in columns.values()))
print("candidates" + "".join(f"{column.count_nonzero():10d}" for column in columns.values()))

# %% 確かめる: 温度 1 の列だけから、べき乗と足し算で同じ列を作る
normal = columns["t=1"]
powers = normal ** (1 / 0.5)  # ロジットを t で割ることは、確率を 1/t 乗して、和で割ることに等しい
by_power = powers / powers.sum()

total = 0
kept_tokens = []
for token in normal.argsort(descending=True).tolist():  # 確率の高い順に
    if total >= 0.5:
        break
    kept_tokens.append(token)
    total += normal[token].item()
by_loop = torch.zeros(V)
by_loop[kept_tokens] = normal[kept_tokens] / total
same_temperature = torch.allclose(by_power, columns["t=0.5"], atol=1e-6)
same_top_p = torch.allclose(by_loop, columns["t=1,p=0.5"], atol=1e-6)
print(f"recomputed from t=1: temperature {same_temperature}, top-p {same_top_p}")

# %% 書く
written = ""
kept_by_p = []  # 1 文字ごとに、温度 1 の p=0.5 なら何文字が候補に残るか
print(args.prompt, end="")
for _ in range(args.count):
    logits = next_logits(idx)  # (V,)
    probabilities = probabilities_of(logits, args.temperature, args.top_k, args.top_p)  # (V,)
    next_token = torch.multinomial(probabilities, num_samples=1)  # 確率に従って 1 文字を選ぶ: (1,)
    idx = torch.cat([idx, next_token.unsqueeze(0)], dim=1)  # (1, T) -> (1, T + 1)
    character = characters[next_token.item()]
    written += character
    print(character, end="", flush=True)
    kept_by_p.append(probabilities_of(logits, 1, V, 0.5).count_nonzero().item())
print()
print(f"p=0.5 would keep {min(kept_by_p)} to {max(kept_by_p)} characters")

# %% 丸写しでないか（掃除と分け方は minllm_novel.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
train_size = len(novel) * 95 // 100
train_text = novel[:train_size]
held_out_text = novel[train_size:]


def longest_run(text):
    """text の中で、訓練の文章にそのまま出てくる最も長い部分。"""
    longest = ""
    for start in range(len(text)):
        end = start + len(longest) + 1  # 今までより 1 文字長い部分から探す
        while end <= len(text) and text[start:end] in train_text:
            longest = text[start:end]
            end += 1
    return longest


own_run = longest_run(written)
print(f"longest run that also stands in the training text: {len(own_run)} characters, {own_run!r}")
stride = (len(held_out_text) - args.count) // 40
lengths = []  # ものさし: 訓練に使わなかった、同じ長さの 40 か所では何文字か
for start in range(0, 40 * stride, stride):
    passage = held_out_text[start : start + args.count]
    lengths.append(len(longest_run(passage)))
mean = sum(lengths) / 40
print(f"in 40 held-out passages of {args.count}: {min(lengths)} to {max(lengths)}, mean {mean:.1f}")

# %% 図
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
ranks = torch.arange(1, 11)
for shift, name, color in ((-0.27, "t=0.5", "#0072B2"), (0, "t=1", "#E69F00"), (0.27, "t=2", "#999999")):
    percent = 100 * columns[name][top_10]  # (10,)
    left.bar((ranks + shift).tolist(), percent.tolist(), width=0.27, color=color, label=name)
left.set(xlabel="rank of the next character", ylabel="probability (%)", xticks=range(1, 11))
left.set_title("A low temperature favours the first")
left.legend()
right.plot(range(1, args.count + 1), kept_by_p, ".", color="#0072B2", label="p=0.5")
right.axhline(5, color="#D55E00", linestyle="--", label="k=5")
right.set(xlabel="place in the written text", ylabel="candidates", yscale="log")
right.set_yticks([1, 5, 10, 50, 100], [1, 5, 10, 50, 100])
right.set_title("top-p keeps few where the model is sure")
right.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
