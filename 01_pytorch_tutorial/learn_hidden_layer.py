"""2 つの全結合層の間になぜ ReLU を置くのかを、二重の輪のデータで確かめる。置かなければ、2 層は 1 層と同じである。

前のレッスン（learn_class_decision_boundary.py）との違い: 直線では分けられないデータを使う。入力とロジットの間に
層（隠れ層）を 1 つ増やすと境界を曲げられるが、それは層の間に ReLU（simplenet.py で負の値を 0 にした関数）があるときだけである。

実行: python learn_hidden_layer.py
結果（2 コアの CPU で約 4 秒）:
    one layer            held-out accuracy 54.5%
    two layers           held-out accuracy 54.5%
    two layers and ReLU  held-out accuracy 97.5%
説明: このフォルダの README.md
試してみよう:
    - HIDDEN を 2、3、4 にすると、正解率はいくつになるか。輪を囲むには何本の直線が必要か。
    - nn.ReLU() を nn.Identity()（何もしない層）に変えると、正解率はいくつになるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
RADII = torch.tensor([1.0, 2.0])  # 内側の輪と外側の輪の半径
RADIUS_STD = 0.25  # 半径のばらつき（標準偏差）。2 つの輪は少し重なる
NUM_TRAIN, NUM_HELD_OUT = 400, 200
HIDDEN = 6  # 隠れ層のユニット（出力の数値 1 つを計算するもの）の数
LEARNING_RATE = 0.05
EPOCHS = 300
GRID_SIZE = 200  # 図の格子の 1 辺の点の数
POINTS = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # ユニットの働きを調べる 2 点。内側と外側
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_hidden_layer.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
labels = torch.arange(NUM_TRAIN + NUM_HELD_OUT) % 2  # (600,)、内側のクラス 0 と外側のクラス 1 が交互に並ぶ
angles = 2 * torch.pi * torch.rand(len(labels))  # 円周の上の位置（ラジアン）: (600,)
radii = RADII[labels] + RADIUS_STD * torch.randn(len(labels))  # 中心からの距離: (600,)
features = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1)  # (600, 2)
features, labels = features.to(device), labels.to(device)
train_features, held_out_features = features[:NUM_TRAIN], features[NUM_TRAIN:]
train_labels, held_out_labels = labels[:NUM_TRAIN], labels[NUM_TRAIN:]


# %% 3 つのモデルの訓練
def train(model):
    """全データで EPOCHS 回更新する。"""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for epoch in range(EPOCHS):
        logits = model(train_features)  # (400, 2) -> (400, 2)
        loss = criterion(logits, train_labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# nn.Sequential は、渡した層を順に通すモデルである
one_layer = nn.Linear(2, 2).to(device)
two_layers = nn.Sequential(nn.Linear(2, HIDDEN), nn.Linear(HIDDEN, 2)).to(device)  # (B, 2) -> (B, HIDDEN) -> (B, 2)
with_relu = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)).to(device)
models = {"one layer": one_layer, "two layers": two_layers, "two layers and ReLU": with_relu}
accuracies = {}  # 訓練に使わなかったデータでの正解率（%）
for name, model in models.items():
    train(model)
    model.eval()
    with torch.no_grad():
        correct = model(held_out_features).argmax(dim=1) == held_out_labels  # (200, 2) -> (200,)
    accuracies[name] = 100 * correct.float().mean().item()
    print(f"{name:19s}  held-out accuracy {accuracies[name]:.1f}%")

# %% ReLU のない 2 層は、1 層と同じである
# 1 層目の出力 x @ W1.T + b1 を 2 層目に入れると (x @ W1.T + b1) @ W2.T + b2 = x @ (W2 @ W1).T + (W2 @ b1 + b2) となる。
# これは、重みが W2 @ W1、バイアスが W2 @ b1 + b2 の 1 層である
first, second = two_layers
with torch.no_grad():
    merged_weight = second.weight @ first.weight  # (2, HIDDEN) @ (HIDDEN, 2) -> (2, 2)
    merged_bias = second.weight @ first.bias + second.bias  # (2, HIDDEN) @ (HIDDEN,) + (2,) -> (2,)
    merged_logits = held_out_features @ merged_weight.T + merged_bias  # (200, 2)
    merged_difference = (two_layers(held_out_features) - merged_logits).abs().max().item()
print(f"two layers and their product, one layer: largest difference of the logits {merged_difference:.1e}")

# %% ReLU があると、場所ごとに違う 1 層になる
# ユニットの出力 w[0] * x + w[1] * y + b は、ある直線の片側で正、反対側で負になる。ReLU が負の値を 0 にするので、
# ユニットは直線の片側だけで働く。働くユニットが同じ点どうしでは、働かないユニットを除いて行列を掛けた 1 層と同じになる。
# 直線を越えると、働くユニットが変わり、その 1 層も変わる。だから境界は、直線を越える所でだけ折れ曲がる
first, _, second = with_relu
with torch.no_grad():
    for point in POINTS.to(device):
        active = first(point) > 0  # 働いているユニット: (2,) -> (HIDDEN,)
        local_weight = second.weight[:, active] @ first.weight[active]  # (2, A) @ (A, 2) -> (2, 2)。A は働くユニットの数
        local_bias = second.weight[:, active] @ first.bias[active] + second.bias  # (2,)
        local_logits = point @ local_weight.T + local_bias  # (2,)
        relu_difference = (with_relu(point) - local_logits).abs().max().item()
        print(f"at {point.tolist()} active units {active.nonzero().flatten().tolist()}: "
              f"difference from the product of their weights {relu_difference:.1e}")

# %% 図
ticks = torch.linspace(-3, 3, GRID_SIZE)  # (GRID_SIZE,)
grid_y, grid_x = torch.meshgrid(ticks, ticks, indexing="ij")  # どちらも (GRID_SIZE, GRID_SIZE)
grid = torch.stack([grid_x, grid_y], dim=2).to(device)  # (GRID_SIZE, GRID_SIZE, 2)
fig, axes = plt.subplots(1, 2, figsize=(10, 5.4), layout="constrained")
for one, name in zip(axes, ["two layers", "two layers and ReLU"]):
    with torch.no_grad():
        outer = models[name](grid).softmax(dim=2)[:, :, 1].cpu()  # 外側である確率: (GRID_SIZE, GRID_SIZE)
    one.contourf(ticks.numpy(), ticks.numpy(), outer.numpy(), levels=10, cmap="PuOr", alpha=0.5, vmin=0, vmax=1)
    one.contour(ticks.numpy(), ticks.numpy(), outer.numpy(), levels=[0.5], colors="black", linewidths=2.5)
    for index, marker, color in [(0, "o", "#B35806"), (1, "^", "#542788")]:
        ring = train_features[train_labels == index].cpu().numpy()
        one.scatter(ring[:, 0], ring[:, 1], s=16, marker=marker, color=color, edgecolors="white", linewidths=0.3)
    one.set(xlabel="x", ylabel="y", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    one.set_title(f"{name}: held-out accuracy {accuracies[name]:.1f}%")
for unit in range(HIDDEN):
    (w_x, w_y), b = first.weight[unit].tolist(), first.bias[unit].item()
    # w_x * x + w_y * y + b = 0 の直線は、中心に最も近い点 (x, y) = -b * (w_x, w_y) / (w_x**2 + w_y**2) を通る
    scale = -b / (w_x**2 + w_y**2)
    nearest = (scale * w_x, scale * w_y)
    along = (nearest[0] - w_y, nearest[1] + w_x)  # 直線の上の、もう 1 つの点
    label = "one line per hidden unit" if unit == 0 else None
    axes[1].axline(nearest, along, color="#0072B2", linestyle="--", linewidth=1.3, label=label)
axes[1].plot([], [], color="black", linewidth=2.5, label="decision boundary")  # 凡例のためだけの、空の線
fig.legend(loc="outside lower center", ncols=2)
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
