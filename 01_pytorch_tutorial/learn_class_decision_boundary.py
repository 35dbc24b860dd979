"""犬と猫の分類器が引いた境界線を、図に描いて確かめる。

前のレッスン（learn_classify.py）との違い: データと分類器は同じである。平面を格子に区切り、
すべての点で P(cat)（猫である確率）を計算して塗り分けると、分類器の判断が目に見える。

実行: python learn_class_decision_boundary.py
結果（2 コアの CPU で約 4 秒）:
    boundary: whiskers = 1.17 * muzzle -0.82
    P(cat) on that line: 0.5000 0.5000 0.5000
    misclassified: 9 of 600 training animals, 8 of 400 held out
説明: このフォルダの README.md
試してみよう:
    - EPOCHS を 20 にすると、誤って分類される動物は何匹になるか。境界線の傾きはどう変わるか。
    - NUM_TRAIN を 20 にすると、訓練に使った動物と使わなかった動物（held out）の誤りは、それぞれ何匹になるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
# 架空のデータである。特徴量はマズル（鼻から口にかけて突き出た部分）とひげの長さ（どちらも cm）
# クラスの番号は、犬が 0、猫が 1
DOG_MEAN = torch.tensor([7.5, 4.0])  # マズルとひげの、平均の長さ
DOG_STD = torch.tensor([1.3, 1.2])  # その標準偏差
CAT_MEAN = torch.tensor([3.5, 6.5])
CAT_STD = torch.tensor([0.9, 1.2])
NUM_PER_CLASS = 500
NUM_TRAIN = 600  # 残りは訓練に使わず、正解率を測るために取り分ける
LEARNING_RATE = 0.1
EPOCHS = 200
GRID_SIZE = 200  # 格子の 1 辺の点の数
MARGIN = 0.5  # 最も端の動物より何 cm 外側まで格子を広げるか
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_class_decision_boundary.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ（learn_classify.py と同じ）
dogs = DOG_MEAN + DOG_STD * torch.randn(NUM_PER_CLASS, 2)  # (2,) + (2,) * (500, 2) -> (500, 2)
cats = CAT_MEAN + CAT_STD * torch.randn(NUM_PER_CLASS, 2)
features = torch.cat([dogs, cats])  # (1000, 2)
labels = torch.tensor([0] * NUM_PER_CLASS + [1] * NUM_PER_CLASS)  # (1000,)、正解のクラスの番号
order = torch.randperm(len(features))  # 0 から 999 までの番号を、ランダムに並べたもの
features = features[order].to(device)  # 分ける前に、犬と猫を混ぜる
labels = labels[order].to(device)
train_features = features[:NUM_TRAIN]  # (600, 2)
train_labels = labels[:NUM_TRAIN]  # (600,)
held_out_features = features[NUM_TRAIN:]  # (400, 2)
held_out_labels = labels[NUM_TRAIN:]  # (400,)

# %% 訓練（learn_classify.py と同じ）
model = nn.Linear(2, 2).to(device)  # 2 つの特徴量から、2 つのロジットを出す
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
model.train()
for epoch in range(1, EPOCHS + 1):
    logits = model(train_features)  # (600, 2) -> (600, 2)
    loss = criterion(logits, train_labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model.eval()
with torch.no_grad():
    train_loss = criterion(model(train_features), train_labels).item()
print(f"epoch {EPOCHS}  loss {train_loss:.4f}")

# %% 境界線の式
# 境界では、猫のロジットと犬のロジットが等しい。つまり、2 つの差が 0 である
# 重みとバイアスの差（猫 - 犬）を w, b とすると w[0] * muzzle + w[1] * whiskers + b = 0 で、whiskers について解くと直線の式になる
w = (model.weight[1] - model.weight[0]).tolist()  # 2 つの特徴量に 1 つずつ
b = (model.bias[1] - model.bias[0]).item()
slope = -w[0] / w[1]
intercept = -b / w[1]
print(f"boundary: whiskers = {slope:.2f} * muzzle {intercept:+.2f}")

# %% 式を確かめる
# 2 つのロジットが等しければ、2 つの確率も等しい。だから、直線の上の点をモデルに渡すと、P(cat) は 0.5 になるはずである
on_line = torch.tensor([[muzzle, slope * muzzle + intercept] for muzzle in [2.0, 5.0, 8.0]])  # (3, 2)
with torch.no_grad():
    on_line_probability = model(on_line.to(device)).softmax(dim=1)[:, 1].tolist()  # 列 1 が P(cat) である
print("P(cat) on that line:", " ".join(f"{probability:.4f}" for probability in on_line_probability))

# %% 誤って分類した動物
with torch.no_grad():
    train_predictions = model(train_features).argmax(dim=1)  # (600, 2) -> (600,)
    held_out_predictions = model(held_out_features).argmax(dim=1)  # (400, 2) -> (400,)
wrong = train_predictions != train_labels  # (600,)
held_out_wrong = held_out_predictions != held_out_labels  # (400,)
print(f"misclassified: {wrong.sum().item()} of {len(wrong)} training animals, "
      f"{held_out_wrong.sum().item()} of {len(held_out_wrong)} held out")

# %% 格子のすべての点で予測する
lowest = train_features.min(dim=0).values.cpu() - MARGIN  # (600, 2) -> (2,)、マズルとひげのそれぞれの最小値
highest = train_features.max(dim=0).values.cpu() + MARGIN  # (2,)
muzzle_ticks = torch.linspace(lowest[0], highest[0], GRID_SIZE)  # 格子の横の目盛り: (GRID_SIZE,)
whisker_ticks = torch.linspace(lowest[1], highest[1], GRID_SIZE)  # 格子の縦の目盛り: (GRID_SIZE,)
# 2 つの表ができる。行 i、列 j の点のマズルの長さは grid_muzzle[i, j]、ひげの長さは grid_whiskers[i, j] である
grid_whiskers, grid_muzzle = torch.meshgrid(whisker_ticks, muzzle_ticks, indexing="ij")  # (GRID_SIZE, GRID_SIZE)
points = torch.stack([grid_muzzle.flatten(), grid_whiskers.flatten()], dim=1)  # 1 行に 1 点: (GRID_SIZE**2, 2)
with torch.no_grad():
    grid_logits = model(points.to(device)).cpu()  # (GRID_SIZE**2, 2) -> (GRID_SIZE**2, 2)
grid_probabilities = grid_logits.softmax(dim=1)  # (GRID_SIZE**2, 2)
cat_probability = grid_probabilities[:, 1].reshape(GRID_SIZE, GRID_SIZE)  # 格子の形に戻す

# %% 図
# matplotlib に渡すものは、CPU の NumPy 配列にする
muzzle_ticks = muzzle_ticks.numpy()
whisker_ticks = whisker_ticks.numpy()
cat_probability = cat_probability.numpy()
drawn_dogs = train_features[train_labels == 0].cpu().numpy()  # (犬の数, 2)
drawn_cats = train_features[train_labels == 1].cpu().numpy()  # (猫の数, 2)
drawn_wrong = train_features[wrong].cpu().numpy()  # (誤りの数, 2)

fig, axes = plt.subplots(figsize=(8, 6), layout="constrained")
# antialiased=True は、塗り分けた色の継ぎ目を目立たなくする
filled = axes.contourf(muzzle_ticks, whisker_ticks, cat_probability, levels=10, cmap="PuOr", alpha=0.5,
                       antialiased=True)
fig.colorbar(filled, label="P(cat)")
# 格子の確率だけから描いた P(cat) = 0.5 の線に、式の直線を重ねる
axes.contour(muzzle_ticks, whisker_ticks, cat_probability, levels=[0.5], colors="black", linewidths=4)
axes.plot([], [], color="black", linewidth=4, label="P(cat) = 0.5 on the grid")  # contour は凡例に載らない
axes.axline((0, intercept), slope=slope, color="#E69F00", linestyle="--", label="line from the weights")
axes.scatter(drawn_dogs[:, 0], drawn_dogs[:, 1], s=18, marker="o", color="#B35806", edgecolors="white",
             linewidths=0.4, label="dog")
axes.scatter(drawn_cats[:, 0], drawn_cats[:, 1], s=18, marker="^", color="#542788", edgecolors="white",
             linewidths=0.4, label="cat")
axes.scatter(drawn_wrong[:, 0], drawn_wrong[:, 1], s=110, facecolors="none", edgecolors="black", label="misclassified")
axes.set(xlabel="muzzle length (cm)", ylabel="whisker length (cm)", title="The decision boundary is a straight line")
axes.set(xlim=(lowest[0].item(), highest[0].item()), ylim=(lowest[1].item(), highest[1].item()))
fig.legend(loc="outside lower center", ncols=5)  # 点を隠さないように、グラフの枠の外に置く
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
