"""注意を訓練する。「3 つ前のトークンを答える」ことを学んだヘッドは、3 つ前だけを見る。位置の埋め込みがないと学べない。

前のレッスン（minllm_attention.py）との違い: 人が決めた行列の代わりに、query、key、value を作る重みを訓練で決める。トークンは
単語ではなく、でたらめに並べた 0 から 7 の番号である。学んだ後で、どの位置がどの位置を見るかを図に描く。

実行: python minllm_heads.py
結果（2 コアの CPU で約 5 秒）:
    1 head, 3 back: 100.0%
    1 head, 3 back, no positions: 33.0%
    no attention, 3 back: 12.4%
説明: このフォルダの README.md
試してみよう:
    - VOCAB_SIZE を 2 にすると、no attention の正解率はいくつになるか。
    - STEPS を 1000 にすると、no positions の正解率は 100 % に近づくか。1 head, 1 and 3 back はどうか。
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
VOCAB_SIZE = 8  # トークンの種類の数
BLOCK_SIZE = 16  # 1 本の系列に並ぶトークンの数
N_EMBD = 32  # 1 トークンを表すベクトルの長さ
FIRST = 3  # 答えを出し始める位置。最も遠い答えが 3 つ前なので、位置 0、1、2 には答えがない
STEPS = 200  # 重みを更新する回数
BATCH_SIZE = 64  # 1 回の更新に使う系列の本数
LEARNING_RATE = 1e-2
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_heads.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ
def make_data(n, distances):
    """でたらめな系列 (n, T) と、distances だけ前にあるトークン (n, T - FIRST, n_answer) を返す。T は BLOCK_SIZE である。"""
    idx = torch.randint(VOCAB_SIZE, (n, BLOCK_SIZE)).to(device)
    answers = [idx[:, FIRST - distance:BLOCK_SIZE - distance] for distance in distances]
    return idx, torch.stack(answers, dim=2)


example, example_answers = make_data(1, [3])
print("tokens", *example[0].tolist())
print("answer", *["-"] * FIRST, *example_answers[0, :, 0].tolist())


# %% モデル
class Head(nn.Module):
    """query、key、value を作る 3 つの層の 1 組。ヘッドという。注意の計算は、前のレッスンと同じである。"""

    def __init__(self, head_size):
        super().__init__()
        self.query = nn.Linear(N_EMBD, head_size, bias=False)
        self.key = nn.Linear(N_EMBD, head_size, bias=False)
        self.value = nn.Linear(N_EMBD, head_size, bias=False)

    def forward(self, x):
        """(B, T, N_EMBD) -> (B, T, head_size)"""
        query, key, value = self.query(x), self.key(x), self.value(x)  # どれも (B, T, head_size)
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])  # (B, T, T)
        future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)
        attention = scores.masked_fill(future, -math.inf).softmax(dim=2)
        self.attention = attention.detach()  # (B, T, T)、図に描くために残す
        return attention @ value  # (B, T, T) @ (B, T, head_size) -> (B, T, head_size)


class TinyModel(nn.Module):
    """埋め込み、n_head 個のヘッド、全結合層を順に並べたモデル。位置ごとに n_answer 個のトークンを答える。"""

    def __init__(self, n_head, n_answer, positions=True):
        super().__init__()
        self.n_answer = n_answer
        self.positions = positions
        # nn.Embedding は、番号 i を渡すと行 i のベクトルを返す表である。表の数は、nn.Linear の重みと同じように訓練で決まる
        self.wte = nn.Embedding(VOCAB_SIZE, N_EMBD)  # トークンの埋め込み（word token embedding）
        self.wpe = nn.Embedding(BLOCK_SIZE, N_EMBD)  # 位置の埋め込み（word position embedding）。何番目にあるかを知らせる
        self.heads = nn.ModuleList(Head(N_EMBD // n_head) for _ in range(n_head))
        self.lm_head = nn.Linear(N_EMBD, n_answer * VOCAB_SIZE)

    def forward(self, idx):
        """トークン番号 (B, T) -> ロジット (B, T, n_answer, VOCAB_SIZE)"""
        x = self.wte(idx)  # (B, T) -> (B, T, N_EMBD)
        if self.positions:
            x = x + self.wpe(torch.arange(BLOCK_SIZE, device=idx.device))  # (B, T, N_EMBD) + (T, N_EMBD)
        if len(self.heads) > 0:
            x = torch.cat([head(x) for head in self.heads], dim=2)  # ヘッドの出力を横につなぐ: (B, T, N_EMBD)
        logits = self.lm_head(x)  # (B, T, N_EMBD) -> (B, T, n_answer * VOCAB_SIZE)
        return logits.unflatten(2, (self.n_answer, VOCAB_SIZE))


# %% 訓練
accuracies = {}


def train(name, model, distances):
    """model を訓練し、訓練に使わない系列 1,000 本で、すべての答えが正しい位置の割合を表示する。"""
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        idx, answers = make_data(BATCH_SIZE, distances)
        logits = model(idx)[:, FIRST:]  # (B, T - FIRST, n_answer, VOCAB_SIZE)
        loss = F.cross_entropy(logits.flatten(0, 2), answers.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    idx, answers = make_data(1000, distances)
    with torch.no_grad():
        predictions = model(idx)[:, FIRST:].argmax(dim=3)  # (1000, T - FIRST, n_answer)
    accuracies[name] = 100 * (predictions == answers).all(dim=2).float().mean().item()
    print(f"{name}: {accuracies[name]:.1f}%", flush=True)
    return model


one_head = train("1 head, 3 back", TinyModel(n_head=1, n_answer=1), [3])
no_positions = train("1 head, 3 back, no positions", TinyModel(n_head=1, n_answer=1, positions=False), [3])
no_attention = train("no attention, 3 back", TinyModel(n_head=0, n_answer=1), [3])  # 8 つから 1 つを選ぶ、でたらめと同じ
# 1 つのヘッドは、位置ごとに 1 組の注意の重みしか作れないので、2 か所の value は混ざって届く。2 つのヘッドなら、別々に届く
one_for_two = train("1 head, 1 and 3 back", TinyModel(n_head=1, n_answer=2), [1, 3])
two_heads = train("2 heads, 1 and 3 back", TinyModel(n_head=2, n_answer=2), [1, 3])

# %% 評価: 注意は、本当に 3 つ前を見ているか
idx, _ = make_data(1000, [3])
changed = idx.clone()
changed[:, 5] = (changed[:, 5] + 1) % VOCAB_SIZE  # どの系列でも、位置 5 のトークンだけを別のものに変える
with torch.no_grad():
    before = one_head(idx).argmax(dim=3)  # (1000, T, 1)
    after = one_head(changed).argmax(dim=3)
changes = (before != after).sum(dim=(0, 2)).tolist()  # 位置ごとに、答えが変わった系列の本数
print("change the token at position 5: changed answers at positions 0 to 15")
print(" ", *changes)
# 位置の埋め込みがないモデルは、自分のほかには、前にどのトークンがいくつあったかしか知らない。最も多いものを答える規則と比べる
counts = F.one_hot(idx, VOCAB_SIZE).cumsum(dim=1)  # (1000, T, VOCAB_SIZE)、その位置までに現れた回数
most_frequent = counts.argmax(dim=2)[:, FIRST - 1:-1]  # 自分は 3 つ前ではないので、1 つ前の位置までで数える
accuracy = 100 * (most_frequent == idx[:, :-FIRST]).float().mean().item()
print(f"say the most frequent token so far: {accuracy:.1f}%")

# %% 図
panels = [  # モデルの名前、モデル、描くヘッドの番号、答えが何個前にあるか
    ("1 head, 3 back", one_head, 0, [3]),
    ("1 head, 3 back, no positions", no_positions, 0, [3]),
    ("2 heads, 1 and 3 back", two_heads, 0, [1, 3]),
    ("2 heads, 1 and 3 back", two_heads, 1, [1, 3]),
]
fig, axes = plt.subplots(2, 2, figsize=(8.5, 8.5), sharex=True, sharey=True, layout="constrained")
fig.suptitle("Attention of one head (dark = 1, white = 0). Circles: where the answers stand")
for one, (name, model, number, distances) in zip(axes.flat, panels):
    mean_attention = model.heads[number].attention.mean(dim=0)  # 1,000 本の系列での平均: (1000, T, T) -> (T, T)
    one.imshow(mean_attention.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    rows = range(FIRST, BLOCK_SIZE)
    for distance in distances:
        one.plot([row - distance for row in rows], rows, "o", color="#D55E00", fillstyle="none", markeredgewidth=1.5)
    one.set_title(f"{name}: {accuracies[name]:.1f}% (head {number})")
fig.supxlabel("position looked at")
fig.supylabel("position that looks")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
