"""言語モデルは、知らないことを聞かれると、なぜもっともらしい嘘を書くのか。何がそれを減らし、何を失うか。

前のレッスン（minllm_lora.py）との違い: 小説のモデルを離れ、小さな GPT をゼロから訓練して、架空の人の出身地を
答えさせる。新しいのは、答えの決まらない質問をし、「不明」を教え、資料を読ませることである。

実行: python minllm_facts.py（2 コアの CPU で約 13 秒）
結果:
    (a) never met                         6 %       0 %    94 %      0 %  0.71  テエシの出身は -> 広島
    (b) never met                         3 %      33 %    64 %      0 %  0.78  テエシの出身は -> 大阪
    hidden: the town          copied   8 of 200
試してみよう:
    - NUM_REFUSED を 1000 にすると、会ったことのない人と、知っている人の「不明」は何 % になるか。
    - 別の人の資料には「不明」と答えるように教えると、だれの資料かを見るようになるか。
解説: minllm_facts.md
"""

# %% 準備
import sys
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
NUM_KNOWN = 200  # 出身地を教える人の数
NUM_UNKNOWN = 100  # 訓練に一度も出さない人の数
NUM_REFUSED = 100  # 「不明」を教える人の数
NUM_READINGS = 2000  # 資料を読んで答える例の数
STEPS = 500  # 1 つのモデルの重みを更新する回数
BATCH_SIZE = 64
LEARNING_RATE = 3e-3  # 学習率の最大値
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_facts.png"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? になる
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ（空白で区切った 1 つずつがトークン。町の名前も 1 トークンにする）
KANA = "アイウエカキクケサシスセタチツテナニヌネ"
TOWNS = "札幌 仙台 秋田 福島 水戸 千葉 横浜 新潟 金沢 長野 静岡 京都 大阪 神戸 奈良 岡山 広島 高松 松江 佐賀"
TOWNS = TOWNS.split()
NO_DOCUMENT = "_ _ _ _ _ _ _"  # 資料がないときは、同じ長さの空欄を置く
T = 11  # 質問の長さ: 資料の 7 トークンと、「ア イ ウ の出身は」の 4 トークン
vocabulary = ["_", "資料：", "は", "。", "の出身は", "不明", *TOWNS, *KANA]


def ask(name, document=NO_DOCUMENT):
    return f"{document} {name} の出身は"


def write_document(name, town):
    return f"資料： {name} は {town} 。"


def choose_towns(count):
    return [TOWNS[i] for i in torch.randint(len(TOWNS), (count,)).tolist()]


def encode(questions):
    """質問のリスト (N,) -> トークン番号 (N, T)"""
    rows = []
    for question in questions:
        rows.append([vocabulary.index(token) for token in question.split()])
    return torch.tensor(rows).to(device)


all_names = [" ".join(kana) for kana in product(KANA, repeat=3)]  # 8,000 通り
names = [all_names[i] for i in torch.randperm(len(all_names)).tolist()]
known = names[:NUM_KNOWN]
first_refused = NUM_KNOWN + NUM_UNKNOWN
unknown = names[NUM_KNOWN:first_refused]
refused = names[first_refused : first_refused + NUM_REFUSED]
others = names[-NUM_READINGS:]
known_towns = choose_towns(NUM_KNOWN)
unknown_towns = choose_towns(NUM_UNKNOWN)
facts = [(ask(name), town) for name, town in zip(known, known_towns)]
refusals = [(ask(name), "不明") for name in refused]
readings = []
for name, town in zip(others, choose_towns(NUM_READINGS)):
    readings.append((ask(name, write_document(name, town)), town))
print(facts[0], refusals[0], readings[0], sep="\n")
in_training = set(unknown) & set(known + refused + others)
print(f"people never met: {NUM_UNKNOWN}, of them in the training data: {len(in_training)}")


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
def train(stage, examples):
    """(質問, 答え) のリストで、質問の次に答えを書くように、新しいモデルを訓練する。"""
    model = TinyGPT(len(vocabulary), block_size=T).to(device)
    questions = encode([question for question, _ in examples])  # (N, T)
    answers = torch.tensor([vocabulary.index(answer) for _, answer in examples]).to(device)  # (N,)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(questions), (BATCH_SIZE,)).to(device)
        logits = model(questions[batch])[:, -1]  # 最後の位置が答えを予測する: (B, vocab_size)
        loss = F.cross_entropy(logits, answers[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 250 == 0 or step == STEPS:
            print(f"{stage} step {step:4d}  loss {loss.item():.3f}", flush=True)
    return model


model_a = train("(a)", facts)
model_b = train("(b)", facts + refusals)
model_c = train("(c)", 20 * (facts + refusals) + readings)  # 資料を読む例は、全体の 4 分の 1

# %% 質問する
percentages = {}  # 行の名前 -> (正解, 不明, 誤り)


@torch.no_grad()
def evaluate(name, model, questions, towns):
    """質問 (N,) の答えを本当の出身地 towns と比べて 1 行を印字し、答えの確率 (N,) を返す。"""
    probabilities = model(encode(questions))[:, -1].softmax(dim=1)  # (N, vocab_size)
    largest, tokens = probabilities.max(dim=1)
    answers = [vocabulary[token] for token in tokens.tolist()]
    right = 100 * sum(answer == town for answer, town in zip(answers, towns)) / len(towns)
    refusal = 100 * answers.count("不明") / len(towns)
    copied = 100 * sum(answer in question for answer, question in zip(answers, questions)) / len(towns)
    percentages[name] = (right, refusal, 100 - right - refusal)
    print(f"{name:34s}{right:5.0f} % {refusal:7.0f} % {100 - right - refusal:5.0f} % {copied:6.0f} %", end="")
    print(f"  {largest.mean():.2f}  {questions[0].strip('_ ').replace(' ', '')} -> {answers[0]}")
    return largest


forged_towns = [TOWNS[TOWNS.index(town) - 1] for town in known_towns]  # 表で 1 つ前の、違う町
true_documents = [write_document(name, town) for name, town in zip(unknown, unknown_towns)]
forged_documents = [write_document(name, town) for name, town in zip(known, forged_towns)]
ask_known = [ask(name) for name in known]
ask_unknown = [ask(name) for name in unknown]
ask_true = [ask(name, document) for name, document in zip(unknown, true_documents)]
ask_forged = [ask(name, document) for name, document in zip(known, forged_documents)]
next_documents = true_documents[1:] + true_documents[:1]  # 次の人の資料
ask_another = [ask(name, document) for name, document in zip(unknown, next_documents)]
print(f"{'':34s}right   unknown   wrong   copied  probability")
known_probability = evaluate("(a) known", model_a, ask_known, known_towns)
unknown_probability = evaluate("(a) never met", model_a, ask_unknown, unknown_towns)
evaluate("(b) known", model_b, ask_known, known_towns)
evaluate("(b) never met", model_b, ask_unknown, unknown_towns)
evaluate("(c) known", model_c, ask_known, known_towns)
evaluate("(c) never met", model_c, ask_unknown, unknown_towns)
evaluate("(c) never met, true document", model_c, ask_true, unknown_towns)
evaluate("(c) known, forged document", model_c, ask_forged, known_towns)
evaluate("(c) never met, another's document", model_c, ask_another, unknown_towns)
sure_known = (known_probability > 0.9).sum()
sure_unknown = (unknown_probability > 0.9).sum()
print(f"(a) above 0.9: known {sure_known} of {NUM_KNOWN}, never met {sure_unknown} of {NUM_UNKNOWN}")

# %% 確かめる: 答えを書く位置から、資料の町だけを、または町のほかをすべて、見えなくする
TOWN = 5  # 資料の町の位置
idx = encode(ask_forged)  # (200, T)


@torch.no_grad()
def follow(hidden):
    """model_c の計算をたどり、最後の位置のロジット (N, vocab_size) と注意 (2 * n_head, T) を返す。"""
    invisible = torch.ones(T, T, dtype=torch.bool, device=device).triu(diagonal=1)
    invisible[-1, hidden] = True
    x = model_c.wte(idx) + model_c.wpe(torch.arange(T, device=device))
    rows = []
    for block in model_c.h:
        normalized = block.norm1(x)
        attended, attention = block.self_attn(
            normalized, normalized, normalized, attn_mask=invisible, average_attn_weights=False
        )  # attention は (N, n_head, T, T)
        x = x + attended
        x = x + block.linear2(F.gelu(block.linear1(block.norm2(x))))
        rows.append(attention[:, :, -1].mean(dim=0).cpu())  # N 人の平均
    return model_c.lm_head(model_c.ln_f(x))[:, -1], torch.cat(rows)


logits, attention = follow([])
same = torch.allclose(logits, model_c(idx)[:, -1], atol=1e-3)
print(f"followed step by step, the logits agree within 1e-3: {same}")
for name, hidden in (
    ("nothing", []),
    ("the town", [TOWN]),
    ("all but the town", [0, 1, 2, 3, 4, 6, 7, 8, 9]),
):
    answers = follow(hidden)[0].argmax(dim=1).tolist()
    copied = sum(vocabulary[token] == town for token, town in zip(answers, forged_towns))
    print(f"hidden: {name:17s} copied {copied:3d} of {NUM_KNOWN}")
for layer in range(2):
    share = attention[4 * layer : 4 * layer + 4, TOWN].mean()
    print(f"layer {layer}: {share:.2f} of the attention is on the town")

# %% 図
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
start = torch.zeros(len(percentages))
for i, label, color in ((0, "right", "#0072B2"), (1, "says unknown", "#BBBBBB"), (2, "wrong", "#D55E00")):
    width = torch.tensor([row[i] for row in percentages.values()])
    left.barh(list(percentages), width.tolist(), left=start.tolist(), color=color, label=label)
    start = start + width
left.invert_yaxis()
left.set(xlabel="answers (%)")
left.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1))
right.imshow(attention.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
right.axvspan(TOWN - 0.5, TOWN + 0.5, fill=False, edgecolor="#D55E00", linewidth=2)
name_places = ["name 1", "name 2", "name 3"]
places = ["document:", *name_places, "is from", "town", ".", *name_places, "?"]
right.set_xticks(range(T), places, rotation=45)
right.set_yticks(range(8), [f"layer {i // 4}, head {i % 4}" for i in range(8)])
right.set_title("Where (c) looks to answer (dark = 1, white = 0)")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
