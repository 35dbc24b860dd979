"""犬と猫の分類器が引いた境界線を、図に描いて確かめる。

前のレッスン（learn_classify.py）との違い: データと分類器は同じである。平面を格子に区切り、
すべての点で P(cat) を計算して塗り分けると、分類器の判断が目に見える。

実行: python learn_class_decision_boundary.py
結果（2 コアの CPU で約 4 秒）:
    boundary: whiskers = 1.17 * muzzle -0.82
    misclassified: 9 of 600 training animals, 8 of 400 held out
試してみよう:
    - CAT_STD を大きくすると、誤って分類される点はどこに現れるか。
    - EPOCHS を 20 にすると、境界の両側の色の変わり方はどうなるか。
    - ひげの長さの平均を 2 つのクラスでそろえると、境界の傾きはどうなるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
# 架空のデータである。特徴量はマズル（鼻から口にかけて突き出た部分）とひげの長さ（どちらも cm）
CLASSES = ["dog", "cat"]
DOG_MEAN, DOG_STD = torch.tensor([7.5, 4.0]), torch.tensor([1.3, 1.2])
CAT_MEAN, CAT_STD = torch.tensor([3.5, 6.5]), torch.tensor([0.9, 1.2])
NUM_PER_CLASS = 500
NUM_TRAIN = 600  # 残りの 400 匹は訓練に使わず、正解率を測るために取っておく
LEARNING_RATE = 0.1
EPOCHS = 200
GRID_SIZE = 200  # 格子の 1 辺の点の数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_class_decision_boundary.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
dogs = DOG_MEAN + DOG_STD * torch.randn(NUM_PER_CLASS, 2)
cats = CAT_MEAN + CAT_STD * torch.randn(NUM_PER_CLASS, 2)
features = torch.cat([dogs, cats])  # (1000, 2)
labels = torch.tensor([0] * NUM_PER_CLASS + [1] * NUM_PER_CLASS)  # (1000,)、クラスの番号
order = torch.randperm(len(features))  # 分ける前に、犬と猫を混ぜる
features, labels = features[order].to(device), labels[order].to(device)
train_features, held_out_features = features[:NUM_TRAIN], features[NUM_TRAIN:]
train_labels, held_out_labels = labels[:NUM_TRAIN], labels[NUM_TRAIN:]

# %% 訓練（learn_classify.py と同じ）
model = nn.Linear(2, 2).to(device)  # 2 つの特徴量から、クラスごとのロジット（確率になる前の点数）を出す
criterion = nn.CrossEntropyLoss()  # 分類なので交差エントロピー: 正解のクラスの確率を p として -ln p の平均
optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
for epoch in range(1, EPOCHS + 1):
    model.train()  # 訓練用に切り替える。nn.Linear だけなら何も変わらないが、訓練と評価で働きの違う層もある
    logits = model(train_features)  # (600, 2) -> (600, 2)
    loss = criterion(logits, train_labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

    if epoch == 1 or epoch % 20 == 0:
        print(f"epoch {epoch:3d}  loss {criterion(model(train_features), train_labels).item():.4f}")  # 更新した後の損失

# %% 境界線の式
# 境界では 2 つのロジットが等しい。重みとバイアスの差を w, b とすると w[0] * muzzle + w[1] * whiskers + b = 0 である
w = (model.weight[1] - model.weight[0]).tolist()
b = (model.bias[1] - model.bias[0]).item()
slope, intercept = -w[0] / w[1], -b / w[1]
print(f"boundary: whiskers = {slope:.2f} * muzzle {intercept:+.2f}")

# %% 予測
low, high = train_features.min(dim=0).values - 0.5, train_features.max(dim=0).values + 0.5  # 点の 0.5 cm 外側まで描く
grid_muzzle = torch.linspace(low[0], high[0], GRID_SIZE)
grid_whiskers = torch.linspace(low[1], high[1], GRID_SIZE)
whiskers, muzzle = torch.meshgrid(grid_whiskers, grid_muzzle, indexing="ij")  # 行がひげ、列がマズルの表が 2 つ
grid = torch.stack([muzzle, whiskers], dim=2).to(device)  # (GRID_SIZE, GRID_SIZE, 2)
model.eval()
with torch.no_grad():
    cat_probability = model(grid).softmax(dim=2)[:, :, 1].cpu()  # nn.Linear は最後の次元に働く: (GRID_SIZE, GRID_SIZE)
    wrong = model(train_features).argmax(dim=1) != train_labels  # (600,)
    held_out_wrong = model(held_out_features).argmax(dim=1) != held_out_labels  # (400,)
print(f"misclassified: {wrong.sum()} of {len(wrong)} training animals, "
      f"{held_out_wrong.sum()} of {len(held_out_wrong)} held out")

# %% 図
fig, axes = plt.subplots(figsize=(8, 6), layout="constrained")
contour = axes.contourf(grid_muzzle, grid_whiskers, cat_probability, levels=10, cmap="PuOr", alpha=0.5)
fig.colorbar(contour, label="P(cat)")
axes.contour(grid_muzzle, grid_whiskers, cat_probability, levels=[0.5], colors="black")  # 式を使わずに引いた境界線
for index, (marker, color) in enumerate([("o", "#B35806"), ("^", "#542788")]):  # 下の * は (2, N) を x と y に分ける
    axes.scatter(*train_features[train_labels == index].cpu().T, s=18, marker=marker, color=color,
                 edgecolors="white", linewidths=0.4, label=CLASSES[index])
axes.scatter(*train_features[wrong].cpu().T, s=110, facecolors="none", edgecolors="black", label="misclassified")
axes.set(xlabel="muzzle length (cm)", ylabel="whisker length (cm)", title="Decision boundary: P(cat) = 0.5 on the line")
fig.legend(loc="outside lower center", ncols=3)  # 点を隠さないように、グラフの枠の外に置く
fig.savefig(PICTURE)
print(f"saved: {PICTURE}")
plt.show()
