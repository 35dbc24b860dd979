"""訓練済みの重みには触れず、小さな行列を 2 つずつ足して、GPT に質問に答えることを教える（LoRA）。

前のレッスン（minllm_instruct.py）との違い: 質問も損失も評価も同じだが、訓練する数と学習率が違う。新しいのは、
W + scale * B A の層と、それを外して小説の GPT に戻すこと、1 つの行列にまとめることである。

実行: python minllm_lora.py（2 コアの CPU で約 25 秒）
結果:
               reverse  first   last repeat length  novel
    step 700     91.9%  97.5%  98.5%  87.9%  99.9%   7.17
    switched off: the same to the last bit: True, novel 3.602
試してみよう:
    - B を 0 でなく乱数から始めると、LoRA を足しただけのモデルは、小説の GPT と同じか。
    - weight_decay を 0.01（AdamW の初期設定）にすると、LoRA を外したとき、小説の GPT に戻るか。
    - 位置の表 wpe に LoRA を足さないと、どの命令が難しくなるか。280 ステップで止めて比べる。
解説: minllm_lora.md
"""

# %% 準備
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
COMMANDS = ["逆から", "頭", "尾", "くり返し", "字数"]
LABELS = ["reverse", "first", "last", "repeat", "length"]  # 表と図での名前
NUM_HELD_OUT_WORDS = 1000  # 訓練に使わず、評価のために取り分ける（held-out）言葉の数
STEPS = 700  # 重みを更新する回数
BATCH_SIZE = 32  # 1 回の更新に使う質問の数
RANK = 16  # 足す行列 B A のランク。A は RANK 行、B は RANK 列である
ALPHA = 32  # B A に掛ける scale は ALPHA / RANK
LEARNING_RATE = 5e-3  # 学習率の最大値
IGNORED = -100  # この番号を正解とする位置は、損失に数えない
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_lora.png"
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% W + scale * B A を、2 x 3 の重みで
W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # 訓練済みの重み。動かさない
A = torch.tensor([[1.0, 0.0, -1.0]])  # (1, 3)
B = torch.tensor([[0.5], [2.0]])  # (2, 1)
scale = 2
x = torch.tensor([1.0, 1.0, 2.0])
print(f"scale * B A = {(scale * B @ A).tolist()}")  # (2, 1) @ (1, 3) -> (2, 3)
print(f"W x = {(W @ x).tolist()}, A x = {(A @ x).tolist()}, B A x = {(B @ (A @ x)).tolist()}")
print(f"W x + scale * B A x = {(W @ x + scale * (B @ (A @ x))).tolist()}")
print(f"(W + scale * B A) x = {((W + scale * B @ A) @ x).tolist()}")


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


# %% 小説、語彙、質問と答え、評価（minllm_instruct.py と同じ。読み飛ばしてよい）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
train_size = len(novel) * 95 // 100
train_text = novel[:train_size]
held_out_text = novel[train_size:]

saved = torch.load(HERE / "minllm_novel.pth", map_location="cpu", weights_only=True)
vocabulary = [*saved["characters"], "<問>", "<答>", "<終>"]
token_ids = {token: number for number, token in enumerate(vocabulary)}
ASK, ANSWER, END = token_ids["<問>"], token_ids["<答>"], token_ids["<終>"]
config = GPTConfig(vocab_size=len(vocabulary))


def encode(text):
    return [token_ids.get(character, 0) for character in text]


def grown_model():
    model = GPT(config)
    state_dict = dict(saved["state_dict"])
    old_rows = state_dict["wte.weight"]
    new_rows = model.wte.weight.detach()[len(old_rows) :]
    state_dict["wte.weight"] = torch.cat([old_rows, new_rows])
    state_dict["lm_head.weight"] = state_dict["wte.weight"]
    model.load_state_dict(state_dict)
    return model.to(device)


def answer_of(command, word):
    if command == "逆から":
        return word[::-1]
    if command == "頭":
        return word[0]
    if command == "尾":
        return word[-1]
    if command == "くり返し":
        return word + word
    return "一二三四"[len(word) - 1]


def example_of(command, word):
    return [ASK, *encode(f"{word}、{command}"), ANSWER, *encode(answer_of(command, word)), END]


def tensors_of(examples):
    length = max(len(example) for example in examples) - 1
    inputs = torch.full((len(examples), length), END)
    targets = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        end = len(example) - 1
        start = example.index(ANSWER)
        inputs[row, :end] = torch.tensor(example[:end])
        targets[row, start:end] = torch.tensor(example[start + 1 :])
    return inputs.to(device), targets.to(device)


counts = Counter(train_text)
words = set()
for run in re.findall("[一-龠々]+", train_text):
    if 2 <= len(run) <= 4 and min(counts[character] for character in run) >= 10:
        words.add(run)
words = sorted(words)
shuffled = [words[i] for i in torch.randperm(len(words)).tolist()]
held_out_words = shuffled[:NUM_HELD_OUT_WORDS]
train_words = shuffled[NUM_HELD_OUT_WORDS:]
train_examples = [example_of(command, word) for command in COMMANDS for word in train_words]
train_inputs, train_targets = tensors_of(train_examples)
print(f"words: {len(train_words)} for training, {len(held_out_words)} held out")
held_out_data = torch.tensor(encode(held_out_text))
held_out_windows = held_out_data.unfold(0, config.block_size + 1, config.block_size).to(device)


def novel_loss_of(model, windows):
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def answer_loss_of(model, inputs, targets):
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def exact_match_of(model, command, words):
    inputs, targets = tensors_of([example_of(command, word) for word in words])
    predicted = model(inputs).argmax(dim=2)
    right = (predicted == targets) | (targets == IGNORED)
    return 100 * right.all(dim=1).float().mean().item()


@torch.no_grad()
def evaluate(model, name):
    exact_matches = [exact_match_of(model, command, held_out_words) for command in COMMANDS]
    novel_loss = novel_loss_of(model, held_out_windows).item()
    row = "".join(f"{value:6.1f}%" for value in exact_matches)
    print(f"{name:10s} {row}  {novel_loss:5.2f}")
    return exact_matches, novel_loss


# %% LoRA の層
class LoRA(nn.Module):
    """訓練済みの nn.Linear に、小さな行列 2 つを足した層。出典: https://arxiv.org/abs/2106.09685"""

    def __init__(self, base):
        super().__init__()
        num_rows, num_columns = base.weight.shape
        self.base = base
        self.A = nn.Parameter(torch.randn(RANK, num_columns) / num_columns**0.5)
        self.B = nn.Parameter(torch.zeros(num_rows, RANK))  # 0 なので、初めは何も足さない
        self.scale = ALPHA / RANK

    def forward(self, x):
        """(B, T, 入力) -> (B, T, 出力)"""
        small = x @ self.A.T  # (B, T, RANK)
        return self.base(x) + self.scale * (small @ self.B.T)


class LoRAEmbedding(LoRA):
    """訓練済みの nn.Embedding に足した層。表の idx 行目に、B A の idx 行目を足す。"""

    def forward(self, idx):
        return self.base(idx) + self.scale * (self.B[idx] @ self.A)


def lora_model():
    """小説の GPT を凍らせ、行列と位置の表に LoRA を足したモデル。"""
    model = grown_model()
    model.requires_grad_(False)  # 訓練済みの重みの勾配は求めない
    model.wpe = LoRAEmbedding(model.wpe)
    for block in model.h:
        block.attn.c_attn = LoRA(block.attn.c_attn)
        block.attn.c_proj = LoRA(block.attn.c_proj)
        block.mlp.c_fc = LoRA(block.mlp.c_fc)
        block.mlp.c_proj = LoRA(block.mlp.c_proj)
    model.wte.weight.requires_grad_(True)  # 増えた 3 行のため
    return model.to(device)


def lora_layers(model):
    """(名前, LoRA の層) のリスト。"""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoRA)]


NUM_OLD = len(saved["characters"])  # もとからある文字の数


@torch.no_grad()
def novel_logits_of(model):
    """小説の held-out での、もとからある文字のロジット (250, 64, 2230)。"""
    return model(held_out_windows[:, :-1])[:, :, :NUM_OLD]


before = grown_model()
torch.manual_seed(SEED)
model = lora_model()
same = torch.equal(novel_logits_of(model), novel_logits_of(before))
print(f"B = 0: the logits of the novel are the same to the last bit: {same}")
num_all = sum(parameter.numel() for parameter in before.parameters())
num_small = sum(layer.A.numel() + layer.B.numel() for _, layer in lora_layers(model))
num_rows = (len(vocabulary) - NUM_OLD) * config.n_embd  # 増えた 3 行
print(f"trained: {num_small} in A and B, {num_rows} in 3 rows", end=", ")
print(f"together {100 * (num_small + num_rows) / num_all:.1f} % of {num_all}")

# %% 訓練
print(f"{'':10s} " + "".join(f"{label:>7s}" for label in LABELS) + "  novel")
exact_matches, _ = evaluate(before, "before")
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, weight_decay=0, fused=True)  # 重み減衰は、凍らせた行も縮めてしまう
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
checked_steps = [0]  # held-out で測ったステップ
curves = [exact_matches]  # そのときの、命令ごとの正解率（%）
for step in range(1, STEPS + 1):
    batch = torch.randint(len(train_inputs), (BATCH_SIZE,)).to(device)
    loss = answer_loss_of(model, train_inputs[batch], train_targets[batch])
    loss.backward()
    model.wte.weight.grad[:NUM_OLD] = 0  # もとからある文字の行は動かさない
    nn.utils.clip_grad_norm_(trained, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    if step % 140 == 0 or step == STEPS:
        exact_matches, _ = evaluate(model, f"step {step}")
        checked_steps.append(step)
        curves.append(exact_matches)

# %% 確かめる: まとめると、もとの GPT と同じ形の、1 組の重みになる
merged = grown_model()
with torch.no_grad():
    merged.wte.weight.copy_(model.wte.weight)
    for name, layer in lora_layers(model):
        weight = merged.get_submodule(name).weight
        weight += layer.scale * layer.B @ layer.A
num_merged = sum(parameter.numel() for parameter in merged.parameters())
difference = (novel_logits_of(merged) - novel_logits_of(model)).abs().max().item()
print(f"merged: {num_merged} parameters, the same logits within 1e-3: {difference < 1e-3}")

# %% 確かめる: 外すと、小説の GPT に戻る
for _, layer in lora_layers(model):
    layer.scale = 0
off_logits = novel_logits_of(model)
same = torch.equal(off_logits, novel_logits_of(before))
novel_loss = F.cross_entropy(off_logits.flatten(0, 1), held_out_windows[:, 1:].flatten()).item()
print(f"switched off: the same to the last bit: {same}, novel {novel_loss:.3f}")

# %% 図
layer = model.h[0].mlp.c_fc
with torch.no_grad():
    change = ALPHA / RANK * layer.B @ layer.A  # (448, 112)
    base_sizes = torch.linalg.svdvals(layer.base.weight.cpu())  # 向きごとに何倍に伸ばすか（特異値）: (112,)
    change_sizes = torch.linalg.svdvals(change.cpu())  # (112,)
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
colors = ["#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#999999"]
for number, (label, color) in enumerate(zip(LABELS, colors)):
    curve = [exact_matches[number] for exact_matches in curves]
    left.plot(checked_steps, curve, "o-", color=color, label=label)
left.set(xlabel="step", ylabel="exact match on held-out words (%)", ylim=(-3, 103))
left.set_title(f"Five commands, {100 * (num_small + num_rows) / num_all:.0f} % of the numbers trained")
left.legend()
right.plot(range(1, 113), base_sizes, color="#999999", label="W, not trained")
right.plot(range(1, 113), change_sizes, color="#D55E00", label="scale * B A, trained")
right.set(xlabel="direction, largest first", ylabel="singular value (how far it stretches)")
right.set_title(f"h.0.mlp.c_fc: the change has {RANK} directions")
right.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
