"""道具を呼ぶ: モデルは呼び出しを文字で書いて止まり、Python が計算し、その結果の続きをモデルが書く。

足し算のレッスン（minllm_addition.py）との違い: 文字には、モデルが書くものと、Python が書き足すものがある。
Python の書く文字は、損失に入れない。問題は 2 桁の掛け算と、計算のいらない入れ替え（47~85 なら 8547）である。

実行: python minllm_tools.py（2 コアの CPU で約 16 秒）
結果:
    at once     47*85?      2.4 %    0 of 500
    with a tool 47*85?    100.0 %  500 of 500
    forged results written as the answer: 500 of 500, such as 37*97?<37*97=6961>6961.
試してみよう:
    - STEPS を 100 にし、道具の結果も損失に入れて、= で止めないと、モデルは結果に何を書くか。
    - STEPS を 100 にし、訓練から入れ替えの問題を除くと、入れ替えの問題に何を書くか。
解説: minllm_tools.md
"""

# %% 準備
import itertools
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
VOCABULARY = "0123456789~*?<=>."  # 1 文字が 1 トークン
LONGEST = 23  # "47*85?<47*85=3995>3995." の文字数
NUM_HELD_OUT_PAIRS = 500  # 訓練に使わない数の組。全部で 5,050 組ある
NO_LOSS = -100  # 正解がこの番号の位置は、損失に入れない（F.cross_entropy の ignore_index）
STEPS = 300  # 重みを更新する回数
BATCH_SIZE = 64  # 1 回の更新に使う問題の数
LEARNING_RATE = 3e-3  # 学習率の最大値
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_tools.png"
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


# %% 道具: 2 桁 * 2 桁だけを計算し、ほかは断る
def calculate(call):
    if not re.fullmatch(r"[0-9]{2}\*[0-9]{2}", call):
        return None
    a, b = call.split("*")
    return f"{int(a) * int(b):04d}"


for call in ("47*85", "9**9**9", "__import__('os').remove('notes.txt')"):
    print(f"{call!r} -> {calculate(call)}")


# %% データ: 誰がどの文字を書くか
def solve(question):
    """問題 -> 答えの 4 桁。47~85 は入れ替えて 8547、47*85 は掛けて 3995。"""
    if "~" in question:
        a, b = question.split("~")
        return b + a
    return calculate(question)


def write(question, with_tool):
    """問題 -> 文章と、そのうち損失に入れる文字（モデルが書く文字。ほかの文字は空白にする）。"""
    solution = solve(question)
    text, in_loss = question + "?", " " * 6
    if with_tool and "*" in question:
        text += f"<{question}={solution}>"
        in_loss += f"<{question}=     "  # 結果と > は Python が書く
    return text + solution + ".", in_loss + solution + "."


def encode(text):
    """文字列 -> トークン番号のリスト。"""
    return [VOCABULARY.index(character) for character in text]


text, in_loss = write("47*85", with_tool=True)
print("text       ", text)
print("in the loss", in_loss)

pairs = list(itertools.combinations_with_replacement(range(100), 2))  # (a, b)、a <= b
shuffled = [pairs[i] for i in torch.randperm(len(pairs)).tolist()]
held_out = shuffled[:NUM_HELD_OUT_PAIRS]
train_pairs = shuffled[NUM_HELD_OUT_PAIRS:]
train_pairs += [(b, a) for a, b in train_pairs]  # 左右を入れ替えた組も使う


# %% モデル（minllm.py の GPT を、PyTorch の層で書く）
class TinyGPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer=2, n_head=4, n_embd=64):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(
            nn.TransformerEncoderLayer(
                n_embd, n_head, 4 * n_embd, dropout=0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layer)
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, idx):
        """トークン番号 (B, T) -> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)
        future = torch.ones(T, T, dtype=torch.bool, device=idx.device).triu(diagonal=1)  # True は見えない
        x = self.wte(idx) + self.wpe(positions)  # (B, T, n_embd)
        for block in self.h:
            x = block(x, src_mask=future, is_causal=True)
        return self.lm_head(self.ln_f(x))


# %% 訓練
def train(name, with_tool):
    """どの組からも、入れ替えと掛け算を 1 問ずつ作り、新しいモデルを訓練して返す。"""
    width = len(write("47*85", with_tool)[0])  # 掛け算の文章が、最も長い
    inputs, targets = [], []
    for a, b in train_pairs:
        for sign in "~*":
            text, in_loss = write(f"{a:02d}{sign}{b:02d}", with_tool)
            tokens = encode(text.ljust(width, "."))  # 短い文章は、右に . を足して揃える
            target = []
            for token, character in zip(tokens, in_loss.ljust(width)):
                target.append(NO_LOSS if character == " " else token)
            inputs.append(tokens)
            targets.append(target)
    inputs = torch.tensor(inputs).to(device)  # (N, width)
    targets = torch.tensor(targets).to(device)  # (N, width)

    torch.manual_seed(SEED)
    model = TinyGPT(len(VOCABULARY), LONGEST).to(device)
    nn.init.normal_(model.wte.weight, std=0.02)  # minllm.py と同じ、小さな初期値
    nn.init.normal_(model.wpe.weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(inputs), (BATCH_SIZE,)).to(device)  # (B,)
        logits = model(inputs[batch, :-1])  # (B, width - 1) -> (B, width - 1, vocab_size)
        loss = F.cross_entropy(logits.flatten(0, 1), targets[batch, 1:].flatten(), ignore_index=NO_LOSS)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 100 == 0 or step == STEPS:
            print(f"{name:11s} step {step:3d}  loss {loss.item():.3f}", flush=True)
    return model


at_once_model = train("at once", with_tool=False)
tool_model = train("with a tool", with_tool=True)


# %% ループ: 書かせる、止める、計算する、書き足す、続ける
@torch.no_grad()
def answer(model, text, tool):
    while not text.endswith(".") and len(text) < LONGEST:
        logits = model(torch.tensor([encode(text)]).to(device))  # (1, T) -> (1, T, vocab_size)
        text += VOCABULARY[logits[0, -1].argmax().item()]
        if text.endswith("="):  # 呼び出しを書き終えた
            call = text[:-1].rpartition("<")[2]  # 最後の < の後
            result = tool(call)
            if result is None:  # 断られたら、そこで終わる
                break
            text += result + ">"
    return text


texts_of = {}  # (モデルの名前, 演算の文字) -> 書いた文章のリスト
print("            held-out    right        calls")
for name, model in (("at once", at_once_model), ("with a tool", tool_model)):
    for sign in "~*":
        questions = [f"{a:02d}{sign}{b:02d}" for a, b in held_out]
        texts = [answer(model, question + "?", calculate) for question in questions]
        correct = sum(text.endswith(solve(question) + ".") for question, text in zip(questions, texts))
        calls = sum("<" in text for text in texts)
        print(f"{name:11s} 47{sign}85?    {100 * correct / len(texts):5.1f} %  {calls:3d} of {len(texts)}")
        texts_of[name, sign] = texts
print(texts_of["at once", "*"][0], texts_of["with a tool", "*"][0], flush=True)

# %% 道具の結果を偽る
numbers = torch.randperm(10_000)[: len(questions)].tolist()  # どれも違う、でたらめな数
forged = {}  # 呼び出し -> 偽の結果
for question, number in zip(questions, numbers):
    forged[question] = f"{number:04d}"
forged_texts = [answer(tool_model, question + "?", forged.get) for question in forged]
copied = sum(text.endswith(forged[question] + ".") for question, text in zip(forged, forged_texts))
print(f"forged results written as the answer: {copied} of {len(forged)}, such as {forged_texts[0]}")

# %% 確かめる: 問題だけを替えても答えは同じで、結果だけを替えると答えが替わる
one_result = [answer(tool_model, f"{question}?<{question}=3995>", calculate) for question in forged]
one_question = [answer(tool_model, f"47*85?<47*85={result}>", calculate) for result in forged.values()]
same = all(text.endswith(">3995.") for text in one_result)
different = all(text.endswith(f">{result}.") for text, result in zip(one_question, forged.values()))
print(f"{len(forged)} questions, one result: always the same answer: {same}")
print(f"one question, {len(forged)} results: always the answer that the tool wrote: {different}")


# %% 図
def final_number(text):
    """最後に書いた 4 桁の数。なければ nan。"""
    found = re.search(r"([0-9]{4})\.$", text)
    return int(found[1]) if found else math.nan


products = [a * b for a, b in held_out]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
for name, color in (("at once", "#D55E00"), ("with a tool", "#0072B2")):
    left.scatter(products, [final_number(text) for text in texts_of[name, "*"]], s=8, color=color, label=name)
left.set(xlabel="true product", ylabel="answer", title="At once: near, but wrong")
left.legend()
right.scatter(numbers, [final_number(text) for text in forged_texts], s=8, color="#E69F00")
right.set(xlabel="what the tool wrote", ylabel="answer", title="A forged result is copied")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
