"""犬と猫の分類器が引いた境界線を、図に描いて確かめる。

前のレッスン（learn_classify.py）との違い: 平面を格子に区切り、すべての点で P(cat)（猫である確率）を計算して
塗り分ける。データとモデルは同じで、パラメータを更新する方法だけを、SGD から Adam に替える。

実行: python learn_class_decision_boundary.py（2 コアの CPU で約 4 秒）
結果:
    boundary: whiskers = 1.17 * muzzle -0.82
    P(cat) on that line: 0.5000 0.5000 0.5000
    misclassified: 9 of 600 training animals, 8 of 400 held out
試してみよう:
    - Adam を SGD に戻すと、損失はいくつになるか。2,000 エポックなら、Adam と同じ損失に届くか。
    - EPOCHS を 2000 にすると、境界線の傾きはいくつになるか。誤って分類される動物は減るか。
解説: learn_class_decision_boundary.md
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
LEARNING_RATE = 0.1
EPOCHS = 200
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_class_decision_boundary.png"

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ（learn_classify.py と同じ。読み飛ばしてよい）
DOG_MEAN = torch.tensor([7.5, 4.0])
DOG_STD = torch.tensor([1.3, 1.2])
CAT_MEAN = torch.tensor([3.5, 6.5])
CAT_STD = torch.tensor([0.9, 1.2])
NUM_PER_CLASS = 500
NUM_TRAIN = 600
dogs = DOG_MEAN + DOG_STD * torch.randn(NUM_PER_CLASS, 2)
cats = CAT_MEAN + CAT_STD * torch.randn(NUM_PER_CLASS, 2)
features = torch.cat([dogs, cats])
labels = torch.tensor([0] * NUM_PER_CLASS + [1] * NUM_PER_CLASS)
order = torch.randperm(len(features))
features = features[order].to(device)
labels = labels[order].to(device)
train_features = features[:NUM_TRAIN]
train_labels = labels[:NUM_TRAIN]
held_out_features = features[NUM_TRAIN:]
held_out_labels = labels[NUM_TRAIN:]

# %% 訓練（learn_classify.py と、optimizer の行だけが違う）
model = nn.Linear(2, 2).to(device)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)  # SGD より少ないエポックで進む
for epoch in range(1, EPOCHS + 1):
    logits = model(train_features)  # (600, 2) -> (600, 2)
    loss = criterion(logits, train_labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"epoch {EPOCHS}  loss {loss.item():.4f}")

# %% 境界線の式（境界では 2 つのロジットが等しい。つまり、差が 0 になる）
w = (model.weight[1] - model.weight[0]).tolist()  # 猫と犬の重みの差。特徴量ごとに 1 つ
b = (model.bias[1] - model.bias[0]).item()
print(f"cat logit - dog logit = {w[0]:.2f} * muzzle {w[1]:+.2f} * whiskers {b:+.2f}")
slope = -w[0] / w[1]
intercept = -b / w[1]
print(f"boundary: whiskers = {slope:.2f} * muzzle {intercept:+.2f}")

# %% 確かめる: その直線の上の 3 点をモデルに渡すと、P(cat) は 0.5 になる
on_line = torch.tensor([[muzzle, slope * muzzle + intercept] for muzzle in [2.0, 5.0, 8.0]])  # (3, 2)
with torch.no_grad():
    on_line_logits = model(on_line.to(device))  # (3, 2) -> (3, 2)
on_line_probability = on_line_logits.softmax(dim=1)[:, 1].tolist()  # 列 1 が P(cat) である
print("P(cat) on that line:", " ".join(f"{probability:.4f}" for probability in on_line_probability))

# %% 誤って分類した動物
with torch.no_grad():
    train_predictions = model(train_features).argmax(dim=1)  # (600, 2) -> (600,)
    held_out_predictions = model(held_out_features).argmax(dim=1)  # (400, 2) -> (400,)
train_wrong = train_predictions != train_labels  # (600,)
held_out_wrong = held_out_predictions != held_out_labels  # (400,)
print(f"misclassified: {train_wrong.sum().item()} of {len(train_wrong)} training animals, ", end="")
print(f"{held_out_wrong.sum().item()} of {len(held_out_wrong)} held out")

# %% 格子のすべての点で予測する
muzzle_ticks = torch.linspace(0, 12.5, 200)  # 格子の横の目盛り（cm）: (200,)
whisker_ticks = torch.linspace(0, 11, 200)  # 格子の縦の目盛り（cm）: (200,)
# 行 i、列 j の点のマズル grid_muzzle[i, j] は muzzle_ticks[j]、ひげ grid_whiskers[i, j] は whisker_ticks[i]
grid_muzzle, grid_whiskers = torch.meshgrid(muzzle_ticks, whisker_ticks, indexing="xy")  # (200, 200)
grid = torch.stack([grid_muzzle, grid_whiskers], dim=2)  # (200, 200, 2)
with torch.no_grad():
    grid_logits = model(grid.to(device)).cpu()  # (200, 200, 2) -> (200, 200, 2)
cat_probability = grid_logits.softmax(dim=2)[:, :, 1]  # (200, 200)

# %% 図
fig, axes = plt.subplots(figsize=(8, 6), layout="constrained")
filled = axes.contourf(muzzle_ticks, whisker_ticks, cat_probability, levels=10, cmap="PuOr", alpha=0.5)
fig.colorbar(filled, label="P(cat)")
# 格子の確率だけから描いた P(cat) = 0.5 の線に、式の直線を重ねる
axes.contour(muzzle_ticks, whisker_ticks, cat_probability, levels=[0.5], colors="black", linewidths=4)
axes.axline((0, intercept), slope=slope, color="#E69F00", linestyle="--", label="line from the weights")
for label, name, marker, color in [(0, "dog", "o", "#B35806"), (1, "cat", "^", "#542788")]:
    animals = train_features[train_labels == label].cpu()  # (犬か猫の数, 2)
    axes.scatter(animals[:, 0], animals[:, 1], s=18, marker=marker, color=color, label=name)
wrong = train_features[train_wrong].cpu()  # (誤りの数, 2)
axes.scatter(wrong[:, 0], wrong[:, 1], s=110, facecolors="none", edgecolors="black", label="misclassified")
axes.set(xlabel="muzzle length (cm)", ylabel="whisker length (cm)", xlim=(0, 12.5), ylim=(0, 11))
axes.set_title("The decision boundary is a straight line")
fig.legend(loc="outside lower center", ncols=4)
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
