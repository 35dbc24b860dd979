"""よい訓練の設定（レシピ）を、検証用のデータで 1 つずつ確かめて見つけ、最後に 1 度だけテスト画像で測る。

前のレッスン（mnist_cnn_features.py）との違い: 訓練済みのモデルを調べるのではなく、mnist.py の MLP の訓練が、なぜあの設定に
なったかを調べる。設定を 1 つだけ変えては、2 つのシード（乱数の種）で訓練し、正解率の変化がばらつきより大きいかを見る。

実行: python mnist_recipe.py
結果（2 コアの CPU で約 30 秒）:
    rate raised and lowered      97.48   97.53   97.51   +1.08  ten times the rate
    label smoothing              97.81   97.83   97.82   +0.02  shifts by a pixel
    winner: hidden layer of 300, validation 98.08%, test 98.40%
説明: このフォルダの README.md
試してみよう:
    - EPOCHS を 1 にすると、ten times the rate と rate raised and lowered の change はいくつになるか。
    - VALIDATION_SIZE を 50000 にして、10,000 枚だけで訓練すると、label smoothing の change はいくつになるか。
"""

# %% 準備
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import MNIST

SEED = 0
SEEDS = [0, 1]  # 同じ設定を、この 2 つのシードで訓練する。2 つの正解率の差が、偶然による差の目安になる
VALIDATION_SIZE = 10000  # 訓練画像 60,000 枚のうち、設定を選ぶために取り分ける枚数
EPOCHS = 4  # 訓練データを何周するか
BATCH_SIZE = 128  # 1 回の更新に使う画像の枚数
CURVE_STEPS = 34  # 図では、この回数の更新ごとに、訓練の損失を平均する（1,564 回を 46 点にする）
HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "images" / "mnist_recipe.png"

# 設定。ADAM のほかは、別の設定を ** で写し、1 つだけ変える
ADAM = {"learning_rate": 1e-3, "one_cycle": False, "weight_decay": 0.0,
        "shift": False, "label_smoothing": 0.0, "n_hidden": 100}
TEN_TIMES = {**ADAM, "learning_rate": 1e-2}
ONE_CYCLE = {**TEN_TIMES, "one_cycle": True}  # 学習率を上げ下げする。1e-2 は、その最大値になる
DECAY = {**ONE_CYCLE, "weight_decay": 0.05}  # 重み減衰: 更新のたびに、重みを 0 へ少し引き戻す
SHIFT = {**DECAY, "shift": True}  # 画像を、縦横に最大 1 画素ずらす
SMOOTHING = {**SHIFT, "label_smoothing": 0.05}  # ラベル平滑化: 正解の目標を 1 より少し下げ、残りをほかのクラスに配る
LARGER = {**SHIFT, "n_hidden": 300}  # 隠れ層を広げる
RECIPES = {  # 名前 -> (比べる相手の名前, 設定)
    "Adam, constant rate 0.001": (None, ADAM),
    "ten times the rate": ("Adam, constant rate 0.001", TEN_TIMES),
    "rate raised and lowered": ("ten times the rate", ONE_CYCLE),
    "weight decay (AdamW)": ("rate raised and lowered", DECAY),
    "shifts by a pixel": ("weight decay (AdamW)", SHIFT),
    "label smoothing": ("shifts by a pixel", SMOOTHING),
    "hidden layer of 300": ("shifts by a pixel", LARGER),
}

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)

# %% データ
try:
    train_set = MNIST(HERE / "data", train=True, download=True)  # データは同梱なので、ダウンロードは起こらない
    test_set = MNIST(HERE / "data", train=False, download=True)
except Exception as error:  # 壊れ方によって例外の種類が変わる
    raise SystemExit(f"エラー: {HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
images = (train_set.data.unsqueeze(1) / 255).to(device)  # (60000, 1, 28, 28)、値は 0 から 1
labels = train_set.targets.to(device)  # (60000,)
order = torch.randperm(len(images))  # 並び順に偏りがあってもよいように、並べ替えてから分ける
validation_images, validation_labels = images[order[:VALIDATION_SIZE]], labels[order[:VALIDATION_SIZE]]
train_images, train_labels = images[order[VALIDATION_SIZE:]], labels[order[VALIDATION_SIZE:]]
test_images = (test_set.data.unsqueeze(1) / 255).to(device)
test_labels = test_set.targets.to(device)
print(f"data: {len(train_images)} training, {len(validation_images)} validation, {len(test_images)} test images")


# %% 訓練
def accuracy_of(model, images, labels):
    """images (N, 1, 28, 28) と labels (N,) での正解率（%）。"""
    model.eval()
    with torch.no_grad():
        predictions = model(images).argmax(dim=1)  # (N, 10) -> (N,)
    return 100 * (predictions == labels).float().mean().item()


def train(recipe, seed):
    """設定 recipe で MLP を訓練し、モデルと、更新ごとの訓練の損失 (steps,)、更新ごとの学習率のリストを返す。"""
    torch.manual_seed(seed)  # 重みの初期値、画像の順番、ずらす向きが決まる
    n_hidden = recipe["n_hidden"]
    model = nn.Sequential(  # mnist.py の MLP と同じ計算をする
        nn.Flatten(),  # (B, 1, 28, 28) -> (B, 784)
        nn.Linear(28 * 28, n_hidden),  # (B, 784) -> (B, n_hidden)
        nn.ReLU(),
        nn.Linear(n_hidden, 10),  # (B, n_hidden) -> (B, 10)
    ).to(device)
    # 重み減衰が 0 の AdamW は、Adam と同じ計算である。fused=True は、同じ計算を速く行う
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"], fused=True)
    if recipe["one_cycle"]:  # 最初の 3 割で最大値まで上げ、残りでほぼ 0 まで下げる。Adam の移動平均の係数 β1 も、逆向きに動く
        total_steps = EPOCHS * math.ceil(len(train_images) / BATCH_SIZE)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["learning_rate"], total_steps=total_steps)
    losses, rates = [], []
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_images)).split(BATCH_SIZE):  # batch は画像の番号 (B,)
            images = train_images[batch]  # (B, 1, 28, 28)
            if recipe["shift"]:  # ミニバッチごとに、縦横へ -1、0、1 画素ずらす
                down, right = torch.randint(-1, 2, (2,)).tolist()
                images = images.roll((down, right), dims=(2, 3))
            logits = model(images)  # (B, 1, 28, 28) -> (B, 10)
            loss = F.cross_entropy(logits, train_labels[batch], label_smoothing=recipe["label_smoothing"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            rates.append(optimizer.param_groups[0]["lr"])
            if recipe["one_cycle"]:
                scheduler.step()
    return model, torch.stack(losses).cpu(), rates


accuracies = {}  # 名前 -> 2 つのシードでの検証の正解率（%）
curves = {}  # 名前 -> 最初のシードでの (損失, 学習率)
models = {}  # 名前 -> 最初のシードで訓練したモデル
for name, (previous, recipe) in RECIPES.items():
    accuracies[name] = []
    for seed in SEEDS:
        model, losses, rates = train(recipe, seed)
        accuracies[name].append(accuracy_of(model, validation_images, validation_labels))
        print(f"  {name}, seed {seed}: validation accuracy {accuracies[name][-1]:.2f}%", flush=True)
        if seed == SEEDS[0]:
            models[name] = model
            curves[name] = losses, rates

# %% 表
means = {name: sum(values) / len(values) for name, values in accuracies.items()}
print(f"{'recipe':26s} {'seed 0':>7s} {'seed 1':>7s} {'mean':>7s} {'change':>7s}  against")
for name, (previous, recipe) in RECIPES.items():
    row = f"{name:26s} {accuracies[name][0]:7.2f} {accuracies[name][1]:7.2f} {means[name]:7.2f}"
    if previous is not None:
        row += f" {means[name] - means[previous]:+7.2f}  {previous}"
    print(row)

# %% テスト
# 検証の正解率が最も高い設定を選ぶと、その値は、たまたま高く出た分だけ高めになりやすい。選ぶのに使わなかったテスト画像で、1 度だけ測る
winner = max(means, key=means.get)
test_accuracy = accuracy_of(models[winner], test_images, test_labels)
print(f"winner: {winner}, validation {accuracies[winner][0]:.2f}%, test {test_accuracy:.2f}%")
# 正解率 p を n 枚で測ると、どの n 枚に当たるかで、標準誤差 √(p(1 - p) / n) ほどばらつく（二項分布の標準偏差を n で割ったもの）
p = test_accuracy / 100
standard_error = 100 * math.sqrt(p * (1 - p) / len(test_images))
print(f"standard error of one accuracy: {standard_error:.2f} points")
# 表の change が、これと同じくらいか、それより小さければ、偶然と区別できない。重み減衰とラベル平滑化は、ここでは効いたと言えない

# %% 図
# なぜ学習率を上げ下げするのか。ミニバッチごとに勾配が違うので、重みは損失の最小のまわりで揺れる。学習率が大きいままだと揺れも
# 大きく、損失は下がりきらない（右の図の橙）。小さいままだと、進みが遅い（青）。大きな学習率で進み、最後に下げれば、揺れが
# 収まって損失が下がる（緑）。低く始めるのは、重みが激しく変わる訓練の初めを安定させるためだが、この図では初めが遅くなっている。
# 出典: https://arxiv.org/abs/1706.02677 の 2.2 節
colours = {
    "Adam, constant rate 0.001": "#0072B2",
    "ten times the rate": "#D55E00",
    "rate raised and lowered": "#009E73",
}
fig = plt.figure(figsize=(11, 4.8), layout="constrained")
axes = fig.subplot_mosaic([["table", "loss"], ["table", "rate"]], height_ratios=[2, 1])
for row, (name, values) in enumerate(accuracies.items()):
    axes["table"].plot(values, [row] * len(values), "o", color=colours.get(name, "#555555"), fillstyle="none")
    axes["table"].plot(means[name], row, "|", color=colours.get(name, "#555555"), markersize=22, markeredgewidth=3)
axes["table"].set(yticks=range(len(RECIPES)), yticklabels=list(RECIPES), xlabel="validation accuracy (%)",
                  title="Bar: mean of two seeds (circles)")
axes["table"].invert_yaxis()
axes["table"].grid(axis="x", alpha=0.3)
for name, colour in colours.items():
    losses, rates = curves[name]
    parts = [part.mean().item() for part in losses.split(CURVE_STEPS)]
    epochs = [CURVE_STEPS * (part + 0.5) * EPOCHS / len(losses) for part in range(len(parts))]
    axes["loss"].plot(epochs, parts, color=colour, label=name)
    axes["rate"].plot([step * EPOCHS / len(losses) for step in range(len(losses))], rates, color=colour)
axes["loss"].set(yscale="log", ylabel="training loss", xticklabels=[], title="Large rate: fast. Small rate: settles")
axes["loss"].legend()
axes["rate"].set(xlabel="epoch", ylabel="learning rate")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
