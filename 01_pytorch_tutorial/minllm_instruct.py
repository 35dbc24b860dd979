"""続きを書くだけの GPT に、質問に答えることを教える。教え方によっては、小説の書き方を忘れる。

前のレッスン（minllm_scaling.py）との違い: モデルは minllm_novel.py の GPT に戻る。同梱の重みから始めて、
質問と答えの組で訓練し直す。新しいのは、質問の始まり、答えの始まり、答えの終わりを表す 3 つの
特別なトークンと、答えだけを数える損失である。

実行: python minllm_instruct.py（2 コアの CPU で約 45 秒。何か尋ねるなら -q "書生、逆から"）
結果:
    before        0.0%   0.0%   0.0%   0.0%   0.0%   3.60
    questions    93.1%  99.0%  98.7%  87.0% 100.0%  12.98
    with novel   96.7%  99.4%  99.7%  93.1% 100.0%   3.77
試してみよう:
    - 答えの終わりの <終> を訓練から除くと、答えはどこで止まるか。STEPS は 200 でよい。
    - 答えだけでなく、質問の部分も損失に数えると、正解率はどう変わるか。STEPS は 200 でよい。
解説: minllm_instruct.md
"""

# %% 準備
import argparse
import math
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
COMMANDS = ["逆から", "頭", "尾", "くり返し", "字数"]
LABELS = ["reverse", "first", "last", "repeat", "length"]  # 表と図での名前
NUM_HELD_OUT_WORDS = 1000  # 訓練に使わず、評価のために取り分ける（held-out）言葉の数
STEPS = 700  # 重みを更新する回数
BATCH_SIZE = 32  # 1 回の更新に使う質問の数
NUM_WINDOWS = 5  # 小説を混ぜるとき、1 回の更新に使うウィンドウの数。5 × 64 文字で、質問 32 個の長さとほぼ同じ
LEARNING_RATE = 3e-3  # 学習率の最大値
IGNORED = -100  # 正解がこの番号の位置は、損失に数えない
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "minllm_instruct.png"
QUESTIONS = ["人工知能、逆から", "人工知能、くり返し", "人工知能学、逆から", "憲法、逆から", "吾輩、意味"]
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-q", "--question", action="append", default=QUESTIONS, help="質問（何度でも）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
questions = []
for question in args.question:
    parts = question.replace("、", " ").split()
    if len(parts) != 2 or len(question) > 40:
        parser.error(f"{question!r} は質問ではない。吾輩、逆から のように、言葉と命令を 40 字までで書く")
    if parts[0] in COMMANDS:  # 「逆から 吾輩」の順でもよい
        parts.reverse()
    questions.append("、".join(parts))
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


# %% 小説（掃除と分け方は minllm_novel.py と同じ）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
_, _, novel = novel.split("-" * 55)
novel, _ = novel.split("底本：")
novel = re.sub("《.*?》|｜|※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel).strip()
train_size = len(novel) * 95 // 100
train_text = novel[:train_size]
held_out_text = novel[train_size:]

# %% 語彙に、3 つの特別なトークンを足す
saved = torch.load(HERE / "minllm_novel.pth", map_location="cpu", weights_only=True)
vocabulary = [*saved["characters"], "<問>", "<答>", "<終>"]  # トークン番号 n のトークンは vocabulary[n]
token_ids = {token: number for number, token in enumerate(vocabulary)}  # トークン -> トークン番号
ASK, ANSWER, END = token_ids["<問>"], token_ids["<答>"], token_ids["<終>"]
config = GPTConfig(vocab_size=len(vocabulary))


def encode(text):
    """文字列 -> トークン番号のリスト。語彙にない文字は 0 番の 〓 になる。"""
    return [token_ids.get(character, 0) for character in text]


def decode(ids):
    """トークン番号のリスト -> 文字列"""
    return "".join(vocabulary[token] for token in ids)


def grown_model():
    """小説の GPT の語彙を 3 行増やしたモデル。増えた行は、でたらめな小さい数である。"""
    model = GPT(config)
    state_dict = dict(saved["state_dict"])
    old_rows = state_dict["wte.weight"]  # (2230, n_embd)
    new_rows = model.wte.weight.detach()[len(old_rows) :]  # (3, n_embd)
    state_dict["wte.weight"] = torch.cat([old_rows, new_rows])  # (2233, n_embd)
    state_dict["lm_head.weight"] = state_dict["wte.weight"]  # 入力側と出力側は、同じ重みである
    model.load_state_dict(state_dict)
    return model.to(device)


# %% 質問と答え
def answer_of(command, word):
    """命令 command の、言葉 word（2 〜 4 文字）への正しい答え。"""
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
    """("逆から", "吾輩") -> <問>吾輩、逆から<答>輩吾<終> のトークン番号のリスト"""
    return [ASK, *encode(f"{word}、{command}"), ANSWER, *encode(answer_of(command, word)), END]


def tensors_of(examples):
    """トークン番号のリスト N 個 -> 入力 (N, T) と正解 (N, T)。正解は、答えと <終> のほかは IGNORED。"""
    length = max(len(example) for example in examples) - 1
    inputs = torch.full((len(examples), length), END)  # 短い例の後ろは <終> で埋める。損失には数えない
    targets = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        end = len(example) - 1
        start = example.index(ANSWER)  # この位置から後が、答えを予測する
        inputs[row, :end] = torch.tensor(example[:end])
        targets[row, start:end] = torch.tensor(example[start + 1 :])
    return inputs.to(device), targets.to(device)


counts = Counter(train_text)  # 文字 -> 訓練の文章に出る回数
words = set()
for run in re.findall("[一-龠々]+", train_text):  # 漢字の続くところ
    if 2 <= len(run) <= 4 and min(counts[character] for character in run) >= 10:
        words.add(run)
words = sorted(words)
shuffled = [words[i] for i in torch.randperm(len(words)).tolist()]
held_out_words = shuffled[:NUM_HELD_OUT_WORDS]
train_words = shuffled[NUM_HELD_OUT_WORDS:]
train_examples = [example_of(command, word) for command in COMMANDS for word in train_words]
train_inputs, train_targets = tensors_of(train_examples)  # (N, 19) が 2 つ
print(f"words: {len(train_words)} for training, {len(held_out_words)} held out")
inputs, targets = tensors_of([example_of("逆から", "吾輩")])
for token, target in zip(inputs[0].tolist(), targets[0].tolist()):
    print(f"{vocabulary[token]} -> {'(not counted)' if target == IGNORED else vocabulary[target]}")

# %% 評価
train_data = torch.tensor(encode(train_text))
held_out_data = torch.tensor(encode(held_out_text))
# 文章を、64 文字と、その次の 1 文字ずつに切り出す
train_windows = train_data.unfold(0, config.block_size + 1, config.block_size).to(device)  # (4760, 65)
held_out_windows = held_out_data.unfold(0, config.block_size + 1, config.block_size).to(device)  # (250, 65)


def novel_loss_of(model, windows):
    """小説のウィンドウ (N, 65) を予測した、1 文字あたりの損失。"""
    logits = model(windows[:, :-1])  # (N, 64) -> (N, 64, V)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def answer_loss_of(model, inputs, targets):
    """答えの 1 トークンあたりの損失。正解が IGNORED の位置は数えない。"""
    logits = model(inputs)  # (N, T) -> (N, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def exact_match_of(model, command, words):
    """答えが <終> まですべて正しい言葉の割合（%）。"""
    inputs, targets = tensors_of([example_of(command, word) for word in words])
    predicted = model(inputs).argmax(dim=2)  # 正解をそこまで書いたときの、次のトークン: (N, T)
    right = (predicted == targets) | (targets == IGNORED)
    return 100 * right.all(dim=1).float().mean().item()


@torch.no_grad()
def evaluate(model, name):
    """命令ごとの正解率（%）のリストと、小説の held-out の損失を、表示して返す。"""
    exact_matches = [exact_match_of(model, command, held_out_words) for command in COMMANDS]
    novel_loss = novel_loss_of(model, held_out_windows).item()
    row = "".join(f"{value:6.1f}%" for value in exact_matches)
    print(f"{name:10s} {row}  {novel_loss:5.2f}")
    return exact_matches, novel_loss


@torch.no_grad()
def generate(model, ids, count):
    """ids の続きに、最も確率の高いトークンを count 個まで書く。<終> を書いたら止まる。続きだけを返す。"""
    written = []
    while len(written) < count and END not in written:
        logits = model(torch.tensor([ids + written]).to(device))  # (1, T) -> (1, T, V)
        written.append(logits[0, -1].argmax().item())
    return written


# %% 訓練
def train(num_windows):
    """質問と、1 回の更新ごとに num_windows 個の小説のウィンドウで訓練したモデル。"""
    torch.manual_seed(SEED)
    model = grown_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(train_inputs), (BATCH_SIZE,)).to(device)
        loss = answer_loss_of(model, train_inputs[batch], train_targets[batch])
        if num_windows > 0:
            batch = torch.randint(len(train_windows), (num_windows,)).to(device)
            loss = loss + novel_loss_of(model, train_windows[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    return model


before = grown_model()
print("training on the questions alone")
questions_only = train(0)
print("training on the questions and the novel")
mixed = train(NUM_WINDOWS)
models = {"before": before, "questions": questions_only, "with novel": mixed}

# %% 訓練に使わなかった言葉での正解率（%）と、小説の損失
print(f"{'':10s} " + "".join(f"{label:>7s}" for label in LABELS) + "  novel")
results = {}  # 名前 -> (命令ごとの正解率, 小説の損失)
for name, model in models.items():
    results[name] = evaluate(model, name)
for name, model in models.items():
    print(f"{name:10s} {decode(encode('吾輩は') + generate(model, encode('吾輩は'), 25))!r}")

# %% 確かめる
total, agree = 0, True  # 1 トークンずつ書いても、まとめて採点したのと同じか
for command in COMMANDS:
    for word in held_out_words[:20]:
        example = example_of(command, word)
        start = example.index(ANSWER) + 1
        written = generate(mixed, example[:start], len(example) - start)
        one_pass = exact_match_of(mixed, command, [word]) == 100
        agree = agree and one_pass == (written == example[start:])
        total += 1
print(f"one pass and writing token by token agree on {total} answers: {agree}")

example = example_of("逆から", "吾輩")
surprise = 0  # 答えのトークンに付けた確率 p の -ln p の和
start = example.index(ANSWER) + 1
for t in range(start, len(example)):
    with torch.no_grad():
        probabilities = mixed(torch.tensor([example[:t]]).to(device))[0, -1].softmax(dim=0)  # (2233,)
    surprise -= math.log(probabilities[example[t]].item())
by_hand = surprise / (len(example) - start)  # <答> より後のトークン 1 つあたり
by_loss = answer_loss_of(mixed, *tensors_of([example])).item()
print(f"the loss counts the tokens after <答> alone: {abs(by_hand - by_loss) < 1e-4}")

# %% 尋ねる
for question in questions:
    unknown = set(question) - set(vocabulary)
    print(f"{question}" + (f" (unknown, replaced by 〓: {''.join(sorted(unknown))})" if unknown else ""))
    for name, model in models.items():
        written = generate(model, [ASK, *encode(question), ANSWER], 20)
        print(f"  {name:10s} {decode(written)!r}" + ("" if END in written else " (no end within 20)"))

# %% 図
COLORS = {"before": "#999999", "questions": "#D55E00", "with novel": "#0072B2"}
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=[3, 2])
places = torch.arange(len(COMMANDS))
for shift, (name, (exact_matches, novel_loss)) in zip((-0.27, 0, 0.27), results.items()):
    left.bar((places + shift).tolist(), exact_matches, width=0.27, color=COLORS[name], label=name)
    bar = right.bar(name, novel_loss, color=COLORS[name])
    right.bar_label(bar, fmt="%.2f")
left.set(ylabel="exact match (%)", title="Words never trained", ylim=(0, 118))
left.set_xticks(places.tolist(), LABELS)
left.legend(loc="upper center", ncols=3)
uniform = math.log(len(vocabulary))  # どのトークンの確率も同じとする予測の損失
right.axhline(uniform, color="black", linestyle="--")
right.text(-0.45, uniform + 0.15, f"uniform {uniform:.2f}")
right.set(ylabel="loss on the novel (nats per character)", title="What became of the novel")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
