"""過学習を見る。少ない点で訓練を続けると、訓練の損失は 0 に近づくのに、訓練に使わなかった点での損失は増えていく。

前のレッスン（learn_hidden_layer.py）との違い: 点を減らし、輪の重なりとネットワークを大きくする。訓練に使わない点は、使い方で
2 つに分ける。検証データ（validation）でエポック数や学習率を選び、テストデータ（test）は、選び終えた後に一度だけ使って、
未知のデータでの性能（汎化性能）を測る。

実行: python learn_overfitting.py
結果（2 コアの CPU で約 10 秒）:
    chosen by validation: learning rate 0.01, epoch 9
    training loss 0.0001 at the last epoch, 0.1863 with the true probabilities
    test loss 0.264 (0.234 with the true probabilities), accuracy 89.1%
説明: このフォルダの README.md
試してみよう:
    - NUM_TRAIN を 600 にすると、学習率 0.001 の最後のエポックで、検証の損失はいくつになるか。
    - DROPOUT を 0.9 にすると、最後のエポックの検証の損失はいくつになるか。最小の損失はどうか。
"""

# %% 準備
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

SEED = 0
RADII = torch.tensor([1.0, 2.0])  # 内側の輪と外側の輪の半径
RADIUS_STD = 0.4  # 半径のばらつき（標準偏差）。2 つの輪は重なり、どう分けても誤りが残る
NUM_TRAIN = 60
NUM_VALIDATION, NUM_TEST = 500, 2000  # 本物のデータではもっと少ないことが多いが、ここでは損失を正確に測るために多くする
HIDDEN = 100  # 2 つの隠れ層のユニットの数
LEARNING_RATES = [0.001, 0.01, 0.1]  # この中から検証データで選ぶ
EPOCHS = 600
DROPOUT = 0.5  # nn.Dropout が値を 0 にする確率
DROPOUT_SEEDS = [0, 1, 2]  # 偶然の差と区別するために、初期値を変えて繰り返す
GRID_SIZE = 200  # 図の格子の 1 辺の点の数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_overfitting.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
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
criterion = nn.CrossEntropyLoss()


# %% 訓練
def train(learning_rate, dropout, seed):
    """新しいモデルを訓練し、エポックごとの訓練と検証の損失、検証の損失が最小だったときのモデル、最後のモデルを返す。"""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(2, HIDDEN), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(HIDDEN, 2),
    ).to(device)  # (B, 2) -> (B, HIDDEN) -> (B, HIDDEN) -> (B, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    train_losses, validation_losses = [], []
    for epoch in range(EPOCHS):
        model.train()
        logits = model(train_features)  # (60, 2) -> (60, 2)
        loss = criterion(logits, train_labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        model.eval()
        with torch.no_grad():
            train_losses.append(criterion(model(train_features), train_labels).item())
            validation_losses.append(criterion(model(validation_features), validation_labels).item())
        if validation_losses[-1] == min(validation_losses):
            best_model = copy.deepcopy(model)  # 検証の損失がこれまでで最小なので、写しを取っておく
    return train_losses, validation_losses, best_model, model


# %% 検証データで、学習率とエポック数を選ぶ
# 学習率やエポック数のように、訓練では決まらず、人が選ぶ値をハイパーパラメータという
print("learning  lowest validation     after the last epoch")
print("    rate    loss  at epoch    validation  training loss")
runs, lowest_losses = {}, {}
for learning_rate in LEARNING_RATES:
    runs[learning_rate] = train(learning_rate, 0, SEED)
    train_losses, validation_losses, _, _ = runs[learning_rate]
    lowest = min(validation_losses)
    lowest_losses[learning_rate] = lowest
    print(f"{learning_rate:8} {lowest:7.3f} {validation_losses.index(lowest) + 1:9d} "
          f"{validation_losses[-1]:13.3f} {train_losses[-1]:14.4f}")
chosen_rate = min(lowest_losses, key=lowest_losses.get)  # 検証の損失が最も小さい学習率
train_losses, validation_losses, chosen_model, last_model = runs[chosen_rate]
chosen_epoch = validation_losses.index(min(validation_losses)) + 1
print(f"chosen by validation: learning rate {chosen_rate}, epoch {chosen_epoch}")


# %% 訓練の損失は、真の確率の損失より小さい
def true_logits(features):
    """データの作り方から計算したロジット。softmax で真の確率になる。(N, 2) -> (N, 2)。"""
    distances = features.cpu().norm(dim=1, keepdim=True)  # 中心からの距離: (N, 1)
    return -((distances - RADII) ** 2) / (2 * RADIUS_STD**2)  # 正規分布の密度の対数（共通の定数は除く）: (N, 2)


# 輪は重なっているので、真の確率を知っていても損失は 0 にならず、未知のデータでは、これより小さい損失を期待できない。
# 訓練の損失がそれより小さいのは、真の確率では決められない点の答えまで、1 点ずつ覚えたからである
true_train_loss = criterion(true_logits(train_features), train_labels.cpu()).item()
true_test_loss = criterion(true_logits(test_features), test_labels.cpu()).item()
print(f"training loss {train_losses[-1]:.4f} at the last epoch, {true_train_loss:.4f} with the true probabilities")

# %% Dropout（訓練中だけ、値を確率 DROPOUT で 0 にし、残りを 1 / (1 - DROPOUT) 倍する）
# 過学習を抑えるためによく使われる。ここで役立つかは、初期値を変えながら検証の損失で確かめる
print("validation loss   without dropout      with dropout")
print("           seed   lowest    last    lowest    last")
dropout_rows = []
for seed in DROPOUT_SEEDS:
    _, without_dropout, _, _ = train(chosen_rate, 0, seed)
    _, with_dropout, dropout_model, _ = train(chosen_rate, DROPOUT, seed)
    row = [min(without_dropout), without_dropout[-1], min(with_dropout), with_dropout[-1]]
    dropout_rows.append(row)
    print(f"{seed:15d} {row[0]:8.3f} {row[1]:7.3f} {row[2]:9.3f} {row[3]:7.3f}")
# 訓練を続けすぎたときの損失（last）は Dropout で小さくなる。しかし最小の損失（lowest）は、3 回のうち 2 回で大きくなった。
# エポック数を検証データで選ぶなら、ここでは Dropout は役立たない

# 訓練の途中では、どの値を 0 にするかが順伝播のたびに変わる。eval() にすると、どれも 0 にせず、そのまま通す
point = validation_features[:1]  # (1, 2)
with torch.no_grad():
    dropout_model.train()
    train_difference = (dropout_model(point) - dropout_model(point)).abs().max().item()
    dropout_model.eval()
    eval_difference = (dropout_model(point) - dropout_model(point)).abs().max().item()
print(f"one point passed twice: logits differ by {train_difference:.3f} in train(), {eval_difference:.3f} in eval()")

# %% テストデータを一度だけ使う
# 検証の損失は、最も小さいものを選んだので、偶然に小さいだけかもしれない。選ぶことに使わなかったデータで測り直す
with torch.no_grad():
    test_logits = chosen_model(test_features)  # (2000, 2)
test_loss = criterion(test_logits, test_labels).item()
test_accuracy = 100 * (test_logits.argmax(dim=1) == test_labels).float().mean().item()
print(f"test loss {test_loss:.3f} ({true_test_loss:.3f} with the true probabilities), accuracy {test_accuracy:.1f}%")

# %% 図
epochs = range(1, EPOCHS + 1)
fig, axes = plt.subplot_mosaic([["loss", "loss"], ["chosen", "last"]], figsize=(10, 9), layout="constrained")
axes["loss"].plot(epochs, validation_losses, color="#D55E00", label="validation loss")
axes["loss"].plot(epochs, train_losses, color="#0072B2", label="training loss")
axes["loss"].axvline(chosen_epoch, color="black", linestyle="--", label=f"epoch {chosen_epoch}, chosen by validation")
axes["loss"].set(xlabel="epoch (log scale)", ylabel="cross-entropy", xscale="log", ylim=(0, 1.5))
axes["loss"].set_title(f"learning rate {chosen_rate}: the training loss goes to 0, the validation loss turns and rises")
axes["loss"].legend(loc="upper left")
ticks = torch.linspace(-3.5, 3.5, GRID_SIZE)  # (GRID_SIZE,)
grid_y, grid_x = torch.meshgrid(ticks, ticks, indexing="ij")  # どちらも (GRID_SIZE, GRID_SIZE)
grid = torch.stack([grid_x, grid_y], dim=2).to(device)  # (GRID_SIZE, GRID_SIZE, 2)
for name, epoch, model in [("chosen", chosen_epoch, chosen_model), ("last", EPOCHS, last_model)]:
    with torch.no_grad():
        outer = model(grid).softmax(dim=2)[:, :, 1].cpu()  # 外側である確率: (GRID_SIZE, GRID_SIZE)
    axes[name].contourf(ticks.numpy(), ticks.numpy(), outer.numpy(), levels=10, cmap="PuOr", alpha=0.5, vmin=0, vmax=1)
    axes[name].contour(ticks.numpy(), ticks.numpy(), outer.numpy(), levels=[0.5], colors="black", linewidths=2.5)
    for index, marker, color in [(0, "o", "#B35806"), (1, "^", "#542788")]:
        ring = train_features[train_labels == index].cpu().numpy()
        axes[name].scatter(ring[:, 0], ring[:, 1], s=40, marker=marker, color=color, edgecolors="white")
    axes[name].set(xlabel="x", ylabel="y", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
    axes[name].set_title(f"epoch {epoch}: validation loss {validation_losses[epoch - 1]:.3f}")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
