"""犬か猫かを、測った 2 つの長さから分類する。

前のレッスン（learn.py）との違い: 答えが数値からクラスになる。モデルはクラスごとのロジットを返し、損失は
交差エントロピーになり、訓練に使わなかったデータで正解率を測る。更新は、重みやバイアスごとに動かす幅を調整する Adam に替わる。

実行: python learn_classify.py （終わった後も調べるなら python -i learn_classify.py）
結果（2 コアの CPU で約 3 秒）:
    epoch 200  loss 0.0514  train accuracy 98.5%  held-out accuracy 98.0%
試してみよう:
    - CAT_MEAN を DOG_MEAN に近づけると、正解率はどう下がるか。
    - NEW_ANIMALS に、自分で考えた長さの動物を加える。
    - EPOCHS を 20 にすると、4 匹の確率はどう変わるか。
"""

# %% 準備
import torch
from torch import nn

SEED = 0
# 架空のデータである。特徴量はマズル（鼻から口にかけて突き出た部分）とひげの長さ（どちらも cm）
FEATURES = ["muzzle", "whiskers"]
CLASSES = ["dog", "cat"]
DOG_MEAN, DOG_STD = torch.tensor([7.5, 4.0]), torch.tensor([1.3, 1.2])
CAT_MEAN, CAT_STD = torch.tensor([3.5, 6.5]), torch.tensor([0.9, 1.2])
NUM_PER_CLASS = 500
NUM_TRAIN = 600  # 残りの 400 匹は訓練に使わず、正解率を測るために取っておく
LEARNING_RATE = 0.1
EPOCHS = 200
NEW_ANIMALS = torch.tensor([[9.0, 3.0], [2.8, 7.0], [6.5, 3.5], [5.2, 5.1]])  # 最後の 1 匹は、どちらとも決めにくい

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
print(f"data: {len(train_features)} for training, {len(held_out_features)} held out")


# %% 訓練
@torch.no_grad()
def accuracy(model, features, labels):
    """予測（ロジットが最も大きいクラス）が正解 labels (N,) と一致した割合（%）。features は (N, 2)。"""
    model.eval()  # 評価用に切り替える
    predictions = model(features).argmax(dim=1)  # (N, 2) -> (N,)
    return 100 * (predictions == labels).float().mean().item()


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
        train_loss = criterion(model(train_features), train_labels).item()  # 正解率と同じく、更新した後の損失
        print(f"epoch {epoch:3d}  loss {train_loss:.4f}  "
              f"train accuracy {accuracy(model, train_features, train_labels):.1f}%  "
              f"held-out accuracy {accuracy(model, held_out_features, held_out_labels):.1f}%")

# %% 予測
model.eval()
with torch.no_grad():
    new_logits = model(NEW_ANIMALS.to(device)).cpu()  # (4, 2) -> (4, 2)
probabilities = new_logits.softmax(dim=1)  # ロジットを確率に変える。各行の和は 1 になる
predictions = new_logits.argmax(dim=1)  # (4, 2) -> (4,)
for (muzzle, whiskers), row, (dog, cat), prediction in zip(NEW_ANIMALS, new_logits, probabilities, predictions):
    print(f"muzzle {muzzle:4.1f} cm, whiskers {whiskers:3.1f} cm -> logits [{row[0]:6.2f}, {row[1]:6.2f}]  "
          f"P(dog) {dog:.3f} + P(cat) {cat:.3f} = {dog + cat:.3f}  {CLASSES[prediction]}")

# %% 重みを読む
# 2 つのロジットの差だけが確率を決める。だから猫の重みから犬の重みを引いて読む
cat_minus_dog = (model.weight[1] - model.weight[0]).tolist()
for name, weight in zip(FEATURES, cat_minus_dog):
    animal = "cat" if weight > 0 else "dog"
    print(f"each extra cm of {name} adds {weight:+.2f} to (cat logit - dog logit): evidence for {animal}")
