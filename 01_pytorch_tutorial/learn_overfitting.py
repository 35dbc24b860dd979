"""過学習を見る。訓練を続けると、訓練の損失は 0 に近づくのに、訓練に使わなかった点での損失は増えていく。

前のレッスン（learn_hidden_layer.py）との違い: 点を減らし、輪の重なりとネットワークを大きくする。訓練に
使わない点は、検証データ（validation）とテストデータ（test）に分ける。

実行: python learn_overfitting.py（2 コアの CPU で約 6 秒）
結果:
    chosen by validation: learning rate 0.01, epoch 9
    after epoch 600: training loss 0.0001, validation loss 2.73
試してみよう:
    - NUM_TRAIN を 600 にすると、学習率 0.01 の最後のエポックで、検証の損失はいくつになるか。
    - RADIUS_STD を 0.1 にして輪の重なりをなくすと、過学習は起こるか。
解説: learn_overfitting.md
"""

# %% 準備
import copy
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
RADII = torch.tensor([1.0, 2.0])  # 内側の輪と外側の輪の半径
RADIUS_STD = 0.4  # 半径のばらつき（標準偏差）。2 つの輪は重なり、どう分けても誤りが残る
NUM_TRAIN = 60
NUM_VALIDATION = 500
NUM_TEST = 2000
HIDDEN = 100  # 2 つの隠れ層のユニットの数
LEARNING_RATES = [0.001, 0.01, 0.1]  # この中から検証データで選ぶ
EPOCHS = 600
USE_TEST = True  # 設定を変えて試す間は False にする
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_overfitting.png"

device = torch.device(
    "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
)
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
sizes = [NUM_TRAIN, NUM_VALIDATION, NUM_TEST]
labels = torch.arange(sum(sizes)) % 2  # (2560,)、内側のクラス 0 と外側のクラス 1 が交互に並ぶ
angles = 2 * torch.pi * torch.rand(len(labels))  # 円周の上の位置（ラジアン）: (2560,)
radii = RADII[labels] + RADIUS_STD * torch.randn(len(labels))  # 中心からの距離: (2560,)
features = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1)  # (2560, 2)
train_features, validation_features, test_features = features.to(device).split(sizes)
train_labels, validation_labels, test_labels = labels.to(device).split(sizes)

# %% 訓練（検証の損失が最も小さかったモデルを残す）
criterion = nn.CrossEntropyLoss()
train_losses = {}  # 学習率 -> エポックごとの損失
validation_losses = {}
last_models = {}  # 学習率 -> 最後のエポックのモデル
lowest_loss = float("inf")
print("learning rate  lowest validation loss  at epoch")
for learning_rate in LEARNING_RATES:
    torch.manual_seed(SEED)  # どの学習率も、同じ初期値から始める
    model = nn.Sequential(
        nn.Linear(2, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 2),
    ).to(device)  # (B, 2) -> (B, 100) -> (B, 100) -> (B, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    train_losses[learning_rate] = []
    validation_losses[learning_rate] = []
    for epoch in range(1, EPOCHS + 1):
        logits = model(train_features)  # (60, 2) -> (60, 2)
        loss = criterion(logits, train_labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        with torch.no_grad():
            train_loss = criterion(model(train_features), train_labels).item()
            validation_loss = criterion(model(validation_features), validation_labels).item()
        train_losses[learning_rate].append(train_loss)
        validation_losses[learning_rate].append(validation_loss)
        if validation_loss < lowest_loss:
            lowest_loss = validation_loss
            chosen_rate = learning_rate
            chosen_epoch = epoch
            chosen_model = copy.deepcopy(model)  # この後の更新で変わらないように、写しを取る
    last_models[learning_rate] = model
    lowest = min(validation_losses[learning_rate])
    lowest_epoch = validation_losses[learning_rate].index(lowest) + 1
    print(f"{learning_rate:13} {lowest:23.3f} {lowest_epoch:9d}")
print(f"chosen by validation: learning rate {chosen_rate}, epoch {chosen_epoch}")

# %% 選んだ学習率で、最後まで訓練を続けると
last_model = last_models[chosen_rate]
last_train_loss = train_losses[chosen_rate][-1]
last_validation_loss = validation_losses[chosen_rate][-1]
print(f"after epoch {EPOCHS}: training loss {last_train_loss:.4f}, ", end="")
print(f"validation loss {last_validation_loss:.2f}")

# %% 確かめる: その検証の損失を、1 点ずつの -ln p から計算する
with torch.no_grad():
    last_logits = last_model(validation_features).cpu()  # (500, 2)
# float32 では、とても小さな確率が 0 になるので、float64 で計算する
last_probabilities = last_logits.double().softmax(dim=1)  # (500, 2)
point_losses = []  # 1 点の損失
for probabilities, label in zip(last_probabilities.tolist(), validation_labels.tolist()):
    p = probabilities[label]  # 正解のクラスに付けた確率
    point_losses.append(-math.log(p))
by_hand = sum(point_losses) / NUM_VALIDATION
difference = abs(by_hand - last_validation_loss)
print(f"that validation loss is the mean of -ln p, within 1e-3: {difference < 1e-3}")
largest = sorted(point_losses)[-50:]
print(f"sum of the {NUM_VALIDATION} losses {sum(point_losses):.0f}, of the 50 largest {sum(largest):.0f}")

# %% 何を覚えたか: 半径 1.5 の円で分けたときの誤りと比べる
train_outer = train_labels == 1  # (60,)
circle_wrong = (train_features.norm(dim=1) > 1.5) != train_outer  # (60,)
with torch.no_grad():
    last_wrong = last_model(train_features).argmax(dim=1) != train_labels  # (60, 2) -> (60,)
print(f"misclassified training points: circle of radius 1.5 {circle_wrong.sum().item()}, ", end="")
print(f"last model {last_wrong.sum().item()}")

# %% テストデータを一度だけ使う
if USE_TEST:
    with torch.no_grad():
        test_logits = chosen_model(test_features)  # (2000, 2)
    test_loss = criterion(test_logits, test_labels).item()
    test_correct = test_logits.argmax(dim=1) == test_labels  # (2000,)
    test_accuracy = 100 * test_correct.float().mean().item()
    print(f"test loss {test_loss:.3f}, accuracy {test_accuracy:.1f}%")

# %% 図
epochs = range(1, EPOCHS + 1)
chosen_losses = validation_losses[chosen_rate]
fig, axes = plt.subplot_mosaic([["loss", "loss"], ["chosen", "last"]], figsize=(10, 9), layout="constrained")
axes["loss"].plot(epochs, chosen_losses, color="#D55E00", label="validation loss")
axes["loss"].plot(epochs, train_losses[chosen_rate], color="#0072B2", label="training loss")
axes["loss"].axvline(chosen_epoch, color="black", linestyle="--", label=f"chosen: epoch {chosen_epoch}")
axes["loss"].set(xlabel="epoch (log scale)", ylabel="cross-entropy", xscale="log", ylim=(0, 1.5))
axes["loss"].legend(loc="upper left")
ticks = torch.linspace(-3.5, 3.5, 200)  # (200,)
grid_x, grid_y = torch.meshgrid(ticks, ticks, indexing="xy")  # どちらも (200, 200)
grid = torch.stack([grid_x, grid_y], dim=2).to(device)  # (200, 200, 2)
for name, epoch, model in [("chosen", chosen_epoch, chosen_model), ("last", EPOCHS, last_model)]:
    with torch.no_grad():
        outer = model(grid).softmax(dim=2)[:, :, 1].cpu()  # 外側である確率: (200, 200)
    axes[name].contourf(ticks, ticks, outer, levels=10, cmap="PuOr", alpha=0.5, vmin=0, vmax=1)
    axes[name].contour(ticks, ticks, outer, levels=[0.5], colors="black", linewidths=2.5)
    for label, marker, color in [(0, "o", "#B35806"), (1, "^", "#542788")]:
        ring = train_features[train_labels == label].cpu()  # (輪の点の数, 2)
        axes[name].scatter(ring[:, 0], ring[:, 1], s=40, marker=marker, color=color, edgecolors="white")
    axes[name].set(xlabel="x", ylabel="y", aspect="equal")
    axes[name].set_title(f"epoch {epoch}: validation loss {chosen_losses[epoch - 1]:.3f}")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
