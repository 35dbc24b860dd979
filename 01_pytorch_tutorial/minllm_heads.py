"""注意を訓練する。「3 つ前のトークンを答える」ことを学んだヘッドは、3 つ前だけを見る。

前のレッスン（minllm_attention.py）との違い: query、key、value を作る行列を、人の代わりに訓練が決める。
トークンは単語ではなく、でたらめに並べた 0 から 7 の番号である。番号と位置は、埋め込みの表でベクトルに変える。

実行: python minllm_heads.py（2 コアの CPU で約 5 秒）
結果:
    1 head, 3 back: 100.0%
    1 head, 3 back, no positions: 33.0%
    no attention, 3 back: 12.4%
試してみよう:
    - VOCAB_SIZE を 2 にすると、no attention の正解率はいくつになるか。
    - STEPS を 1000 にすると、no positions の正解率は 100 % に近づくか。1 head, 1 and 3 back はどうか。
解説: minllm_heads.md
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

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ
def make_data(n, distances):
    """でたらめな系列 (n, T) と、distances だけ前のトークン (n, T - FIRST, n_answer) を返す。"""
    idx = torch.randint(VOCAB_SIZE, (n, BLOCK_SIZE)).to(device)  # (n, T)、T は BLOCK_SIZE
    answers = []
    for distance in distances:
        answers.append(idx[:, FIRST - distance : BLOCK_SIZE - distance])  # (n, T - FIRST)
    return idx, torch.stack(answers, dim=2)


example, example_answers = make_data(1, [3])
print("tokens", *example[0].tolist())
print("answer - - -", *example_answers[0, :, 0].tolist())


# %% モデル
class Head(nn.Module):
    """query、key、value を作る 3 つの層の 1 組。注意の計算は、前のレッスンと同じである。"""

    def __init__(self, head_size):
        super().__init__()
        self.query = nn.Linear(N_EMBD, head_size, bias=False)
        self.key = nn.Linear(N_EMBD, head_size, bias=False)
        self.value = nn.Linear(N_EMBD, head_size, bias=False)

    def forward(self, x):
        """(B, T, N_EMBD) -> (B, T, head_size)"""
        query, key, value = self.query(x), self.key(x), self.value(x)  # どれも (B, T, head_size)
        head_size = query.shape[2]
        scores = query @ key.transpose(1, 2) / math.sqrt(head_size)  # (B, T, T)
        future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)
        attention = scores.masked_fill(future, -math.inf).softmax(dim=2)
        self.attention = attention.detach()  # (B, T, T)、図に描くために残す
        return attention @ value  # (B, T, T) @ (B, T, head_size) -> (B, T, head_size)


class TinyModel(nn.Module):
    """埋め込み、n_head 個のヘッド、全結合層を順に並べたモデル。位置ごとに n_answer 個のトークンを答える。"""

    def __init__(self, n_head, n_answer, positions):
        super().__init__()
        self.n_answer = n_answer
        self.positions = positions
        self.wte = nn.Embedding(VOCAB_SIZE, N_EMBD)  # トークンの埋め込み（word token embedding）
        self.wpe = nn.Embedding(BLOCK_SIZE, N_EMBD)  # 位置の埋め込み（word position embedding）
        self.heads = nn.ModuleList()
        for _ in range(n_head):
            self.heads.append(Head(N_EMBD // n_head))
        self.lm_head = nn.Linear(N_EMBD, n_answer * VOCAB_SIZE)

    def forward(self, idx):
        """トークン番号 (B, T) -> ロジット (B, T, n_answer, VOCAB_SIZE)"""
        x = self.wte(idx)  # (B, T) -> (B, T, N_EMBD)
        if self.positions:
            x = x + self.wpe(torch.arange(BLOCK_SIZE, device=idx.device))  # (B, T, N_EMBD) + (T, N_EMBD)
        if len(self.heads) > 0:
            outputs = [head(x) for head in self.heads]  # (B, T, head_size) が n_head 個
            x = torch.cat(outputs, dim=2)  # 横につなぐ: (B, T, N_EMBD)
        logits = self.lm_head(x)  # (B, T, N_EMBD) -> (B, T, n_answer * VOCAB_SIZE)
        return logits.unflatten(2, (self.n_answer, VOCAB_SIZE))


# %% 5 つのモデルを訓練し、正解率を測る
experiments = [  # 名前、ヘッドの数、位置の埋め込みを足すか、答えが何個前にあるか
    ("1 head, 3 back", 1, True, [3]),
    ("1 head, 3 back, no positions", 1, False, [3]),
    ("no attention, 3 back", 0, True, [3]),
    ("1 head, 1 and 3 back", 1, True, [1, 3]),
    ("2 heads, 1 and 3 back", 2, True, [1, 3]),
]
models, accuracies = {}, {}  # 名前 -> 訓練したモデル、正解率（%）
for name, n_head, positions, distances in experiments:
    model = TinyModel(n_head, len(distances), positions).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        idx, answers = make_data(BATCH_SIZE, distances)
        logits = model(idx)[:, FIRST:]  # (B, T - FIRST, n_answer, VOCAB_SIZE)
        loss = F.cross_entropy(logits.flatten(0, 2), answers.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    idx, answers = make_data(1000, distances)  # 訓練に使わない系列
    with torch.no_grad():
        predictions = model(idx)[:, FIRST:].argmax(dim=3)  # (1000, T - FIRST, n_answer)
    correct = (predictions == answers).all(dim=2)  # 2 つ答えるときは、両方とも正しければ True
    models[name] = model
    accuracies[name] = 100 * correct.float().mean().item()
    print(f"{name}: {accuracies[name]:.1f}%", flush=True)

# %% 確かめる: 本当に 3 つ前だけを見ているか
one_head = models["1 head, 3 back"]
idx, _ = make_data(1000, [3])
changed = idx.clone()
changed[:, 5] = (changed[:, 5] + 1) % VOCAB_SIZE  # どの系列でも、位置 5 のトークンだけを別のものに変える
with torch.no_grad():
    before = one_head(idx).argmax(dim=3)  # (1000, T, 1)
    after = one_head(changed).argmax(dim=3)
changes = (before != after).sum(dim=(0, 2)).tolist()  # 位置ごとに、答えが変わった系列の本数
print("change the token at position 5: changed answers at positions 0 to 15")
print(" ", *changes)

# %% 確かめる: 位置の埋め込みがないモデルは、最も多く現れたトークンを答える規則と同じくらい当たるか
hits = 0
for tokens in idx.tolist():
    for position in range(FIRST, BLOCK_SIZE):
        earlier = tokens[:position]
        guess = max(range(VOCAB_SIZE), key=earlier.count)  # 自分より前に最も多く現れたトークン
        if guess == tokens[position - 3]:
            hits += 1
rule_accuracy = 100 * hits / (len(idx) * (BLOCK_SIZE - FIRST))
print(f"say the most frequent token so far: {rule_accuracy:.1f}%")

# %% 図
panels = []  # モデルの名前、描くヘッドの番号、答えが何個前にあるか
for name, n_head, _, distances in experiments:
    for number in range(n_head):
        panels.append((name, number, distances))
fig, grid = plt.subplots(2, 3, figsize=(12, 8.5), layout="constrained")
fig.suptitle("Attention of one head (dark = 1, white = 0). Circles: where the answers stand")
grid[1, 2].axis("off")  # 区画は 6 つ、描くのは 5 つである
rows = range(FIRST, BLOCK_SIZE)
for axes, (name, number, distances) in zip(grid.flat, panels):
    attention = models[name].heads[number].attention.mean(dim=0)  # 1,000 本の平均: (1000, T, T) -> (T, T)
    axes.imshow(attention.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    for distance in distances:
        columns = [row - distance for row in rows]
        axes.plot(columns, rows, "o", color="#D55E00", fillstyle="none", markeredgewidth=1.5)
    axes.set_title(f"{name}: {accuracies[name]:.1f}% (head {number})")
fig.supxlabel("position looked at")
fig.supylabel("position that looks")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
