"""途中の計算を書くと、なぜ解けるのか。16 ビットのパリティの、2 つの書き方を比べる。

足し算のレッスン（minllm_addition.py）との違い: 書いた文字を入力に加えて続きを書くのは同じだが、答えの前に、
途中の計算も書かせる。1 つの書き間違いと、いくつもの解答の多数決も調べる。

実行: python minllm_thinking.py（2 コアの CPU で約 20 秒）
結果:
    at once  step 600 loss 0.695 held-out  46.3 %
    in steps step 200 loss 0.001 held-out 100.0 %
    before character 8: 100.0 % as it should be, from it on: 0.0 %, the last: 0.3 %
試してみよう:
    - 途中の 15 文字に、計算の代わりに、いつも 0 を書かせると、正解率はどうなるか。
    - 一度に答えさせるのを、初めの 3 ビットのパリティにすると、正解率はどうなるか。
解説: minllm_thinking.md
"""

# %% 準備
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
VOCABULARY = "01="  # 1 文字が 1 トークン。番号は、この並びで何番目か
NUM_BITS = 16
PROMPT_LENGTH = NUM_BITS + 1  # ビットの並びと "="
NUM_HELD_OUT = 300  # 訓練に使わず、評価のために取り分ける（held-out）問題の数
STEPS = 200  # 1 歩ずつ書かせる訓練で、重みを更新する回数。一度に答えさせるほうは、その 3 倍
BATCH_SIZE = 64  # 1 回の更新に使う問題の数
LEARNING_RATE = 3e-3  # 学習率の最大値
HALF_TRAINED_LOSS = 0.03  # 訓練の損失が初めてこれを下回ったモデルを、訓練半ばのモデルとする
FLIPPED = 8  # 何文字目を書き間違えさせるか
NUM_SAMPLES = 9  # 多数決を取る解答の数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_thinking.png"
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ
def running_parity(question):
    """ビットの並び "1011" なら "1101"。i 文字目は、左から i 個の中の 1 が奇数個なら 1、偶数個なら 0。"""
    written = ""
    parity = 0
    for bit in question:
        parity = (parity + int(bit)) % 2
        written += str(parity)
    return written


def answer_at_once(question):
    return running_parity(question)[-1]  # 最後の 1 文字が、16 ビット全体のパリティ


def encode(text):
    """文字列 -> トークン番号のリスト。"""
    return [VOCABULARY.index(character) for character in text]


def decode(tokens):
    """トークン番号のリスト -> 文字列。"""
    return "".join(VOCABULARY[token] for token in tokens)


def tokens_of(questions, write_answer):
    """N 個の問題のリスト -> 「問題=答え」のトークン番号 (N, 18) か (N, 33)。"""
    texts = [question + "=" + write_answer(question) for question in questions]
    return torch.tensor([encode(text) for text in texts]).to(device)


questions = [f"{number:0{NUM_BITS}b}" for number in range(2**NUM_BITS)]  # 16 ビットの並びのすべて
shuffled = [questions[i] for i in torch.randperm(len(questions)).tolist()]
held_out_questions = shuffled[:NUM_HELD_OUT]
train_questions = shuffled[NUM_HELD_OUT:]
in_both = set(train_questions) & set(held_out_questions)
print(f"data: {len(train_questions)} questions for training", end=", ")
print(f"{len(held_out_questions)} held out, {len(in_both)} in both")
print(f"at once:  {questions[46_222]}={answer_at_once(questions[46_222])}")
print(f"in steps: {questions[46_222]}={running_parity(questions[46_222])}")


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


# %% 生成と評価
@torch.no_grad()
def generate(model, idx, count, temperature=0):
    """(B, T) に count 文字を書き足して (B, T + count) にする。温度 0 では、最も確率の高い文字を選ぶ。"""
    for _ in range(count):
        last_logits = model(idx)[:, -1]  # (B, T) -> (B, vocab_size)
        if temperature == 0:
            next_token = last_logits.argmax(dim=1, keepdim=True)  # (B, 1)
        else:
            probabilities = (last_logits / temperature).softmax(dim=1)
            next_token = torch.multinomial(probabilities.cpu(), num_samples=1).to(device)  # (B, 1)
        idx = torch.cat([idx, next_token], dim=1)  # (B, T) -> (B, T + 1)
    return idx


def accuracy_of(answers, correct):
    """2 つの (B,) が一致した割合（%）。"""
    return 100 * (answers == correct).float().mean().item()


# %% 訓練
def train(name, write_answer, steps):
    """訓練したモデルと、訓練半ばのモデルと、{ステップ: held-out の正解率（%）} を返す。"""
    held_out = tokens_of(held_out_questions, write_answer)  # (300, 18) か (300, 33)
    answer_length = held_out.shape[1] - PROMPT_LENGTH  # 1 か 16

    torch.manual_seed(SEED)  # どちらの書き方も、同じ重みから始め、同じ順に同じ問題を見る
    model = TinyGPT(len(VOCABULARY), block_size=2 * NUM_BITS).to(device)
    half_trained = None
    accuracies = {}
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for step in range(1, steps + 1):
        batch = torch.randint(len(train_questions), (BATCH_SIZE,)).tolist()  # 問題の番号
        texts = tokens_of([train_questions[i] for i in batch], write_answer)  # (B, 18) か (B, 33)
        logits = model(texts[:, :-1])  # どの位置も、その次の文字を予測する
        answer_logits = logits[:, -answer_length:]  # (B, 1, 3) か (B, 16, 3)。問題の部分の予測は使わない
        loss = F.cross_entropy(answer_logits.flatten(0, 1), texts[:, -answer_length:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        if half_trained is None and loss.item() < HALF_TRAINED_LOSS:
            half_trained = copy.deepcopy(model)
        if step % (steps // 8) == 0:
            written = generate(model, held_out[:, :PROMPT_LENGTH], answer_length)
            accuracies[step] = accuracy_of(written[:, -1], held_out[:, -1])  # 最後の 1 文字だけを採点する
            print(f"{name} step {step:3d} loss {loss:.3f} held-out {accuracies[step]:5.1f} %", flush=True)
    return model, half_trained or model, accuracies


_, _, at_once = train("at once ", answer_at_once, 3 * STEPS)
model, half_trained, in_steps = train("in steps", running_parity, STEPS)

# %% 1 つの書き間違い: FLIPPED 文字目を逆にして、続きを書かせる
held_out = tokens_of(held_out_questions, running_parity)  # (300, 33)
prompts = held_out[:, :PROMPT_LENGTH]
written = generate(model, prompts, FLIPPED)
written[:, -1] = 1 - written[:, -1]  # トークン番号は、"0" が 0、"1" が 1
written = generate(model, written, NUM_BITS - FLIPPED)
agreement = 100 * (written == held_out)[:, PROMPT_LENGTH:].float().mean(dim=0).cpu()  # 文字ごと（%）: (16,)
print(f"correct: {decode(held_out[0].tolist())}")
print(f"flipped: {decode(written[0].tolist())}")
print(f"before character {FLIPPED}: {agreement[: FLIPPED - 1].mean():.1f} % as it should be", end=", ")
print(f"from it on: {agreement[FLIPPED - 1 :].mean():.1f} %, the last: {agreement[-1]:.1f} %")

# %% 何から書くか: 残すもののほかのビットを、すべてでたらめにする
kept_accuracies = {}
for kept in ("input bit and last written bit", "input bit", "last written bit"):
    correct = 0
    for i in range(1, NUM_BITS):  # 書く文字の番号（0 から数える）。初めの 1 文字には、直前に書いた文字がない
        idx = torch.randint(2, (NUM_HELD_OUT, PROMPT_LENGTH + i)).to(device)
        idx[:, NUM_BITS] = VOCABULARY.index("=")
        if "input bit" in kept:
            idx[:, i] = held_out[:, i]
        if "last written bit" in kept:
            idx[:, -1] = held_out[:, PROMPT_LENGTH + i - 1]
        next_token = generate(model, idx, 1)[:, -1]
        correct += (next_token == held_out[:, PROMPT_LENGTH + i]).sum().item()
    kept_accuracies[kept] = 100 * correct / (NUM_HELD_OUT * (NUM_BITS - 1))
    print(f"next character from the {kept} alone: {kept_accuracies[kept]:.1f} % right")

# %% 多数決: 訓練半ばのモデルに、同じ問題を何度も解かせる（温度 1）
greedy = accuracy_of(generate(half_trained, prompts, NUM_BITS)[:, -1], held_out[:, -1])
print(f"half-trained, the likeliest characters: {greedy:.1f} %, {NUM_BITS} tokens")
ones = torch.zeros(NUM_HELD_OUT).to(device)  # 問題ごとの、1 と答えた解答の数
alone = []  # 1 つずつの解答の正解率（%）
votes = {}  # 解答の数 -> 多数決の正解率（%）
for count in range(1, NUM_SAMPLES + 1):
    answers = generate(half_trained, prompts, NUM_BITS, temperature=1)[:, -1]  # (300,)
    alone.append(accuracy_of(answers, held_out[:, -1]))
    ones += answers
    if count % 2 == 1:  # 偶数では、同数になりうる
        majority = (ones > count / 2).long()
        votes[count] = accuracy_of(majority, held_out[:, -1])
        print(f"majority of {count}: {votes[count]:.1f} %, {count * NUM_BITS:3d} tokens", flush=True)
mean_alone = sum(alone) / NUM_SAMPLES
print(f"each of the {NUM_SAMPLES} alone: {mean_alone:.1f} % on average")

# %% 確かめる: 教えたパリティは、65,536 通りのどの文字でも、1 を数えたものと同じ
agreeing = 0
for question in questions:
    parities = running_parity(question)
    for i in range(NUM_BITS):
        if int(parities[i]) == question[: i + 1].count("1") % 2:
            agreeing += 1
print(f"{agreeing} of {len(questions) * NUM_BITS} taught characters equal counting the ones")

# %% 図
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
left.plot(at_once.keys(), at_once.values(), "o-", color="#D55E00", label="at once")
left.plot(in_steps.keys(), in_steps.values(), "s-", color="#0072B2", label="in steps")
left.set(xlabel="step", ylabel="held-out accuracy (%)", ylim=(-3, 103), title="Parity of 16 bits")
left.legend()
middle.bar(range(1, NUM_BITS + 1), agreement.tolist(), color="#0072B2")
middle.set(xlabel="written character", ylabel="as it should be (%)", ylim=(-3, 103), xticks=[1, 4, 8, 12, 16])
middle.set_title(f"Character {FLIPPED} is flipped")
right.plot(votes.keys(), votes.values(), "o-", color="#0072B2", label="majority of samples")
right.axhline(greedy, color="#D55E00", linestyle="--", label="likeliest characters, once")
right.set(xlabel="number of samples", ylabel="held-out accuracy (%)", ylim=(45, 103), xticks=list(votes))
right.set_title("Half-trained model")
right.legend(loc="lower right")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
