"""報酬だけから学ぶ（強化学習）。正解は見せず、書かせた答えに点を付けるだけで、足し算の正解率を上げる。

前のレッスン（minllm_thinking.py）との違い: 問題は minllm_addition.py の足し算である。正解を見せる訓練を
途中で止め、そこから先は報酬だけで学ぶ。

実行: python minllm_reward.py（2 コアの CPU で約 17 秒）
結果:
    from 0 1 1 1, the same within 0.01: True
    update 200    90.6 %    99.8 %    94.5 %    95.4 %
    update 100    17.3 %    90.6 %    18.1 %    94.8 %
試してみよう:
    - START_ACCURACY を 10 にして、正解の少ないうちから報酬で学ばせると、100 回の更新でどこまで上がるか。
    - REWARD_LEARNING_RATE を 3e-3 にすると、報酬はどうなるか。
    - 初めのモデルから離れるほど損失を大きくすると、1 の位だけに払っても、10 の位は正しいままか。
解説: minllm_reward.md
"""

# %% 準備
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
VOCABULARY = "0123456789+="
PROMPT_LENGTH = 6  # "47+85=" の文字数
ANSWER_LENGTH = 3
NUM_HELD_OUT_PAIRS = 500
STEPS = 1000  # 正解を見せる更新は、多くてもこの回数
START_ACCURACY = 60  # 取り分けた足し算の正解率（%）がこれを超えたら、正解を見せるのをやめる
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
UPDATES = 200  # 報酬による更新の回数
REWARD_LEARNING_RATE = 5e-4
NUM_QUESTIONS = 32  # 報酬による 1 回の更新に使う問題の数
GROUP_SIZE = 8  # 1 つの問題に書かせる答えの数
ONES_UPDATES = 100  # 1 の位だけに報酬を払う更新の回数
ONES_LEARNING_RATE = 1e-3  # 変化が早く見えるように、2 倍にする
PICTURE = Path(__file__).resolve().parent.parent / "images" / "minllm_reward.png"
device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)


# %% データ（minllm_addition.py と同じ。読み飛ばしてよい）
def write_sum(a, b):
    return f"{a:02d}+{b:02d}={a + b:03d}"


def write_both_orders(pairs):
    texts = []
    for a, b in pairs:
        texts.append(write_sum(a, b))
        if a != b:
            texts.append(write_sum(b, a))
    return texts


def encode(text):
    return [VOCABULARY.index(character) for character in text]


def decode(tokens):
    return "".join(VOCABULARY[token] for token in tokens)


pairs = []
for a in range(100):
    for b in range(a, 100):
        pairs.append((a, b))
shuffled = [pairs[i] for i in torch.randperm(len(pairs)).tolist()]
held_out_texts = write_both_orders(shuffled[:NUM_HELD_OUT_PAIRS])
train_texts = write_both_orders(shuffled[NUM_HELD_OUT_PAIRS:])
train_data = torch.tensor([encode(text) for text in train_texts]).to(device)  # (9014, 9)
held_out = torch.tensor([encode(text) for text in held_out_texts]).to(device)  # (986, 9)


# %% 確かめる: 報酬の勾配（トークンは 2 つ）
def policy_loss(log_probability, advantage):
    """選んだトークンの対数確率 (N,) と、その advantage (N,) -> 損失"""
    return -(advantage * log_probability).mean()


theta = torch.tensor([1.0, 3.0]).log().requires_grad_()  # 2 つのロジット
probabilities = theta.softmax(dim=0)  # (0.25, 0.75)
expected_reward = (probabilities * torch.tensor([1.0, 0.0])).sum()  # 報酬は、トークン 0 なら 1、1 なら 0
(exact,) = torch.autograd.grad(expected_reward, theta)  # backward() と違い、勾配を返す
print(f"expected reward {expected_reward:.2f}, its gradient ({exact[0]:.4f}, {exact[1]:.4f})")
drawn = torch.multinomial(probabilities, 100_000, replacement=True)  # くじを引く
print(f"a drawn token has a gradient: {drawn.requires_grad}")
for name, tokens in (("0 1 1 1", torch.tensor([0, 1, 1, 1])), ("100000 drawn tokens", drawn)):
    rewards = (tokens == 0).float()  # (N,)
    loss = policy_loss(theta.log_softmax(dim=0)[tokens], rewards - rewards.mean())
    (gradient,) = torch.autograd.grad(-loss, theta)  # 損失を減らす向き
    print(f"from {name}, the same within 0.01: {torch.allclose(gradient, exact, atol=0.01)}")


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


start_model = TinyGPT(len(VOCABULARY), PROMPT_LENGTH + ANSWER_LENGTH - 1).to(device)


# %% 答えを書く
@torch.no_grad()
def generate(model, idx, sample):
    """問題 (B, 6) に答えを書き足して (B, 9) にする。sample が True なら、文字を確率に従って選ぶ。"""
    for _ in range(ANSWER_LENGTH):
        logits = model(idx)[:, -1]  # (B, T) -> (B, vocab_size)
        if sample:
            next_token = torch.multinomial(logits.softmax(dim=1).cpu(), num_samples=1).to(device)
        else:
            next_token = logits.argmax(dim=1, keepdim=True)  # 最も確率の高い文字: (B, 1)
        idx = torch.cat([idx, next_token], dim=1)
    return idx


def evaluate(model):
    """取り分けた足し算の正解率（%）: [3 桁とも, 百の位, 10 の位, 1 の位]"""
    written = generate(model, held_out[:, :PROMPT_LENGTH], sample=False)
    correct = 100 * (written == held_out)[:, PROMPT_LENGTH:].float()  # (N, 3)
    return [correct.amin(dim=1).mean().item(), *correct.mean(dim=0).tolist()]


def report(label, accuracies):
    print(f"{label:10s}" + "".join(f"{accuracy:8.1f} %" for accuracy in accuracies), flush=True)


# %% 報酬による 1 回の更新
def pay_for_sum(written, sums):
    """3 桁とも正しければ 1、でなければ 0: (B, 9) -> (B,)"""
    return (written == sums).all(dim=1).float()


def pay_for_ones(written, sums):
    """1 の位が正しければ 1。ほかの位は問わない。"""
    return (written[:, -1] == sums[:, -1]).float()


def update(model, optimizer, pay):
    """1 問に 8 つの答えを書かせ、重みを 1 回更新する。報酬と advantage (問題の数, 8) を返す。"""
    batch = torch.randint(len(train_data), (NUM_QUESTIONS,)).repeat_interleave(GROUP_SIZE)
    sums = train_data[batch.to(device)]  # (256, 9)。同じ問題が 8 つずつ並ぶ
    written = generate(model, sums[:, :PROMPT_LENGTH], sample=True)  # (256, 9)
    rewards = pay(written, sums).view(NUM_QUESTIONS, GROUP_SIZE)
    deviation = rewards.std(dim=1, keepdim=True) + 1e-4  # 8 つの報酬が同じでも、0 で割らない
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / deviation

    log_probabilities = model(written[:, :-1])[:, -ANSWER_LENGTH:].log_softmax(dim=2)  # (256, 3, vocab_size)
    answers = written[:, -ANSWER_LENGTH:].unsqueeze(2)  # 自分で書いた 3 文字: (256, 3, 1)
    log_probability = log_probabilities.gather(2, answers).sum(dim=(1, 2))  # 3 文字の対数確率の和: (256,)
    loss = policy_loss(log_probability, advantages.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    return rewards, advantages


# %% 1. 訓練していないモデルには、報酬は何も教えない
num_right, all_wrong, unmoved = 0, 0, 0
for _ in range(10):  # 毎回、訓練していないモデルから始める
    model = copy.deepcopy(start_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=REWARD_LEARNING_RATE)  # 重み減衰のない Adam
    rewards, advantages = update(model, optimizer, pay_for_sum)
    num_right += rewards.count_nonzero().item()
    all_wrong += rewards.count_nonzero().item() == 0
    weights = zip(model.parameters(), start_model.parameters())
    unmoved += all(torch.equal(after, before) for after, before in weights)
print(f"untrained: {num_right} of {10 * rewards.numel()} answers right", end=", ")
print(f"all wrong in {all_wrong} of 10 updates, no weight moved in {unmoved}", flush=True)

# %% 2. 正解を見せて、途中まで訓練する
optimizer = torch.optim.AdamW(start_model.parameters(), lr=LEARNING_RATE)
print("held-out          sum  hundreds      tens      ones")
for step in range(1, STEPS + 1):
    batch = torch.randint(len(train_data), (BATCH_SIZE,)).to(device)
    sums = train_data[batch]  # (B, 9)
    answer_logits = start_model(sums[:, :-1])[:, -ANSWER_LENGTH:]  # (B, 3, vocab_size)
    answers = sums[:, -ANSWER_LENGTH:]  # (B, 3)
    loss = F.cross_entropy(answer_logits.flatten(0, 1), answers.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(start_model.parameters(), max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        start_accuracies = evaluate(start_model)
        enough = start_accuracies[0] > START_ACCURACY
        if step % 100 == 0 or enough:
            report(f"step {step}", start_accuracies)
        if enough:
            break


# %% 3. 報酬だけで学ぶ
def learn_from_reward(pay, updates, learning_rate):
    """start_model の写しを報酬で訓練し、写しと、25 回ごとの [更新の回数, *正解率] を返す。"""
    model = copy.deepcopy(start_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    history = [[0, *evaluate(model)]]
    for i in range(1, updates + 1):
        rewards, advantages = update(model, optimizer, pay)
        if i % 25 == 0:
            history.append([i, *evaluate(model)])
            report(f"update {i}", history[-1][1:])
    print(f"mean reward of the last update: {rewards.mean():.2f}")
    return model, history


print("reward 1 if the whole sum is right")
model, history = learn_from_reward(pay_for_sum, UPDATES, REWARD_LEARNING_RATE)
print("reward 1 if the ones digit is right")
ones_model, ones_history = learn_from_reward(pay_for_ones, ONES_UPDATES, ONES_LEARNING_RATE)
written = generate(ones_model, held_out[:8:2, :PROMPT_LENGTH], sample=False)
for tokens, text in zip(written.tolist(), held_out_texts[:8:2]):
    print(f"{decode(tokens)} (right: {text[PROMPT_LENGTH:]})")

# %% 図
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
updates, sums, *_ = zip(*history)
left.plot(updates, sums, "o-", color="#0072B2")
left.set(xlabel="update", ylabel="right, held-out (%)", ylim=(0, 103))
left.set_title("Reward for the whole sum")
updates, *curves = zip(*ones_history)
names = ["whole sum", "hundreds", "tens", "ones (paid for)"]
for curve, name, color in zip(curves, names, ["#0072B2", "#999999", "#D55E00", "#009E73"]):
    right.plot(updates, curve, "o-", color=color, label=name)
right.set(xlabel="update", ylabel="right, held-out (%)", ylim=(0, 103))
right.set_title("Reward for the ones digit alone")
right.legend()
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
