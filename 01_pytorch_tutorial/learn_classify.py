"""犬か猫かを、測った 2 つの長さから分類する。

前のレッスン（learn.py）との違い: 答えが数値ではなく、クラス（犬、猫という種類）になる。モデルはクラスごとの
ロジット（確率になる前の点数）を返し、損失は交差エントロピーになる。

実行: python learn_classify.py（2 コアの CPU で約 4 秒）
結果:
    train accuracy 98.3%  held-out accuracy 97.8%
    if it is a dog: -ln 0.5858 = 0.535, F.cross_entropy 0.535
試してみよう:
    - 損失に、ロジットではなく確率（softmax の結果）を渡すと、損失はどこまで下がるか。
    - CAT_MEAN を、犬に近い 5.5 cm と 5.2 cm にすると、held-out accuracy は何 % になるか。
解説: learn_classify.md
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
# 架空のデータである。特徴量（入力）はマズル（鼻から口にかけて突き出た部分）とひげの長さ（どちらも cm）
CLASSES = ["dog", "cat"]  # クラスの番号は、犬が 0、猫が 1
DOG_MEAN = torch.tensor([7.5, 4.0])  # マズルとひげの、平均の長さ
DOG_STD = torch.tensor([1.3, 1.2])  # その標準偏差
CAT_MEAN = torch.tensor([3.5, 6.5])
CAT_STD = torch.tensor([0.9, 1.2])
NUM_PER_CLASS = 500
NUM_TRAIN = 600  # 残りは訓練に使わず、正解率を測るために取り分ける
LEARNING_RATE = 0.1
EPOCHS = 200
NEW_ANIMALS = torch.tensor([[9.0, 3.0], [2.8, 7.0], [6.5, 3.5], [5.2, 5.1]])  # 最後は、どちらとも決めにくい
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_classify.png"

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
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

# %% 訓練
model = nn.Linear(2, 2).to(device)  # 2 つの特徴量から、2 つのロジットを出す
criterion = nn.CrossEntropyLoss()  # 渡すのは確率ではなくロジットである
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
for epoch in range(1, EPOCHS + 1):
    logits = model(train_features)  # (600, 2) -> (600, 2)
    loss = criterion(logits, train_labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

    if epoch == 1 or epoch % 50 == 0:
        print(f"epoch {epoch:3d}  loss {loss.item():.4f}")


# %% 正解率
def accuracy_of(features, labels):
    """features (N, 2) に対する予測が、正解 labels (N,) と一致した割合（%）。"""
    with torch.no_grad():  # 測るだけなので、勾配のための記録をしない
        logits = model(features)  # (N, 2) -> (N, 2)
    predictions = logits.argmax(dim=1)  # ロジットが最も大きいクラスの番号: (N, 2) -> (N,)
    correct = predictions == labels  # (N,)
    return 100 * correct.float().mean().item()


train_accuracy = accuracy_of(train_features, train_labels)
held_out_accuracy = accuracy_of(held_out_features, held_out_labels)
print(f"train accuracy {train_accuracy:.1f}%  held-out accuracy {held_out_accuracy:.1f}%")

# %% 新しい 4 匹の予測
with torch.no_grad():
    new_logits = model(NEW_ANIMALS.to(device)).cpu()  # (4, 2) -> (4, 2)
probabilities = new_logits.softmax(dim=1)  # 各行の 2 つのロジットを、2 つの確率に変える: (4, 2)
for i in range(len(NEW_ANIMALS)):
    muzzle, whiskers = NEW_ANIMALS[i]
    dog_logit, cat_logit = new_logits[i]
    dog, cat = probabilities[i]
    name = CLASSES[new_logits[i].argmax()]
    print(f"muzzle {muzzle:.1f} whiskers {whiskers:.1f}: logits {dog_logit:5.2f} {cat_logit:5.2f}", end="  ")
    print(f"P(dog) {dog:.3f} P(cat) {cat:.3f}  {name}")

# %% 確かめる: 最後の 1 匹の確率と損失を、式で求める
dog_logit, cat_logit = new_logits[-1].tolist()
dog_exp = math.exp(dog_logit)  # e = 2.718... の dog_logit 乗
cat_exp = math.exp(cat_logit)
exp_sum = dog_exp + cat_exp
by_formula = [dog_exp / exp_sum, cat_exp / exp_sum]  # P(dog) と P(cat)
print(f"exp({dog_logit:.4f}) = {dog_exp:.4f}, exp({cat_logit:.4f}) = {cat_exp:.4f}, sum {exp_sum:.4f}")
print(f"P(dog) = {by_formula[0]:.4f}, P(cat) = {by_formula[1]:.4f}")
for label in [0, 1]:  # 正解が犬の場合と、猫の場合
    p = by_formula[label]
    by_torch = F.cross_entropy(new_logits[-1], torch.tensor(label))  # nn.CrossEntropyLoss と同じ計算
    print(f"if it is a {CLASSES[label]}: -ln {p:.4f} = {-math.log(p):.3f}, F.cross_entropy {by_torch:.3f}")

# %% なぜ -ln p で、1 - p ではないのか（正解の確率が 0.01 のとき、正解のロジットの勾配を比べる）
for name in ["-ln p", "1 - p"]:
    logits = torch.tensor([math.log(0.01), math.log(0.99)], requires_grad=True)
    p = logits.softmax(dim=0)[0]  # softmax は [0.01, 0.99] になる。番号 0 を正解とする
    loss = -p.log() if name == "-ln p" else 1 - p
    loss.backward()
    print(f"p = 0.01: loss {name} = {loss.item():.3f}, gradient {logits.grad[0].item():.4f}")

# %% 図
gaps = torch.linspace(-6, 6, 200)  # 正解のロジット - もう 1 つのロジット
p = 1 / (1 + torch.exp(-gaps))
fig, (p_axes, gap_axes) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
for axes, positions in [(p_axes, p), (gap_axes, gaps)]:
    axes.plot(positions, -p.log(), color="#0072B2", linewidth=2, label="-ln p")
    axes.plot(positions, 1 - p, color="#D55E00", linewidth=2, linestyle="--", label="1 - p")
    axes.set(ylabel="loss", ylim=(-0.3, 6.5))
    axes.legend()
marks = {"p = 0.01": 0.01, "a cat": by_formula[1], "a dog": by_formula[0]}
for name, probability in marks.items():
    height = -math.log(probability)
    p_axes.plot(probability, height, "o", color="#0072B2")
    p_axes.text(probability + 0.02, height + 0.1, f"{name}: {height:.3f}")
p_axes.set(xlabel="p, probability of the right class", title="a confident mistake costs the most")
gap_at_mark = math.log(0.01) - math.log(0.99)  # p が 0.01 になる差
gap_axes.plot([gap_at_mark, gap_at_mark], [-math.log(0.01), 0.99], "ko")
gap_axes.set(xlabel="right logit - other logit", title="at p = 0.01 (dots), 1 - p is almost flat")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
