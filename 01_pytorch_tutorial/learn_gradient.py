"""勾配とは何かを、重み 1 つと点 3 つで、電卓で確かめられる数として見る。その勾配で重みを動かし、損失を小さくする。

前のレッスン（simplenet.py）との違い: 乱数のままだった重みを、初めて動かす。どちらへどれだけ動かすかを教えるのが勾配で、
たとえば勾配が -14 なら、重みを 0.01 増やすと、損失（予測が目標値からどれだけ外れたか）がおよそ 14 * 0.01 = 0.14 減る。

実行: python learn_gradient.py
結果（2 コアの CPU で約 3 秒）:
    formula: mean of [-2.0, -8.0, -32.0] = -14.0000
    backward: w.grad = -14.0000
    nudge: (6.8607 - 7.1407) / 0.02 = -14.0000
説明: このフォルダの README.md
試してみよう:
    - W_START を 3.0 にすると、勾配はいくつになるか。w は増えるか、減るか。
    - LEARNING_RATES の 0.15 を、境目の 1 / 7 にすると、w はどこへ動くか。
    - w.grad = None の行を消すと、学習率 0.05 の w は最大でいくつになるか。
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch

X = [1.0, 2.0, 4.0]  # 入力
Y = [2.0, 4.0, 8.0]  # 目標値。どれも入力の 2 倍なので、見つけたい重みは 2 である
W_START = 1.0  # 重みの初期値
NUDGE = 0.01  # 勾配を確かめるときに、重みを増減させる幅
LEARNING_RATES = {"too small": 0.005, "good": 0.05, "too large": 0.15}  # 学習率（勾配の何倍だけ重みを動かすか）
STEPS = 5  # 重みを動かす回数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_gradient.png"

device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
x = torch.tensor(X).to(device)  # (3,)
y = torch.tensor(Y).to(device)  # (3,)


# %% 損失
def loss_at(w):
    """重みが w のときの平均二乗誤差（予測と目標値の差を 2 乗して平均したもの）。"""
    prediction = w * x  # 重み 1 つだけの全結合層で、バイアスはない: (3,)
    error = prediction - y  # (3,)
    return (error**2).mean()  # (3,) -> ()。形が () のテンソルは、数 1 つである


error = W_START * x - y  # (3,)
print("x  target  prediction  error  error squared")
for i in range(3):
    print(f"{X[i]:.0f} {Y[i]:7.0f} {W_START * X[i]:11.0f} {error[i].item():6.0f} {error[i].item() ** 2:14.0f}")
loss = loss_at(W_START).item()
print(f"loss at w = {W_START}: the mean of the last column, {loss:.4f}")

# %% 勾配（重みを少し増やすと、損失がその何倍だけ変わるか）を 3 通りに求める
# 1. 式: 重みを h だけ増やすと、誤差 e は e + x * h になる。その 2 乗は e * e + 2 * x * e * h + (x * h)**2 である。
#    h が小さければ (x * h)**2 はさらに小さいので無視でき、点ごとの損失は h の 2 * x * e 倍だけ変わる。その平均が勾配である
terms = 2 * x * error  # (3,)
by_formula = terms.mean().item()
print(f"formula: mean of {terms.tolist()} = {by_formula:.4f}")

# 2. backward(): 自分で式を作らなくてよい。requires_grad_() を付けたテンソルを使う計算は記録され、backward() がその記録を
#    損失から逆にたどって（逆伝播）、勾配を w.grad に入れる。重みがいくつあっても、1 回で重みごとの勾配が求まる
w = torch.tensor(W_START).to(device).requires_grad_()
loss_at(w).backward()
by_backward = w.grad.item()
print(f"backward: w.grad = {by_backward:.4f}")

# 3. 実際に動かす: 曲線は曲がっているので、増やしたときと減らしたときの損失の差をとり、2 * NUDGE で割る
loss_above = loss_at(W_START + NUDGE).item()
loss_below = loss_at(W_START - NUDGE).item()
by_nudge = (loss_above - loss_below) / (2 * NUDGE)
print(f"nudge: ({loss_above:.4f} - {loss_below:.4f}) / {2 * NUDGE} = {by_nudge:.4f}")
print(f"so w + {NUDGE} changes the loss by about {by_formula:.0f} * {NUDGE} = {by_formula * NUDGE:.4f} "
      f"(really {loss_above - loss:.4f})")

# 勾配を消さずにもう一度 backward() を呼ぶと、新しい勾配は前の勾配に足される
loss_at(w).backward()
not_cleared = w.grad.item()
print(f"backward again without clearing: w.grad = {not_cleared:.4f}")

# %% 訓練（勾配降下法: 勾配と逆の向きに重みを動かすことを繰り返す）
# 勾配が負なら、重みを増やすと損失が減る。だから、引けばよい: 負の数を引くので、重みは増える
walks = {}  # 名前 -> 通った重みのリスト
for name, learning_rate in LEARNING_RATES.items():
    print(f"learning rate {learning_rate:.4g} ({name})")
    w = torch.tensor(W_START).to(device).requires_grad_()
    walks[name] = [W_START]
    for step in range(1, STEPS + 1):
        loss = loss_at(w)
        loss.backward()
        print(f"  step {step}  w {w.item():7.4f}  loss {loss.item():7.4f}  gradient {w.grad.item():8.4f}")
        with torch.no_grad():  # 重みの更新は損失の計算ではないので、記録しない
            w -= learning_rate * w.grad
        w.grad = None  # 勾配の消去
        walks[name].append(w.item())
    print(f"  then    w {w.item():7.4f}  loss {loss_at(w).item():7.4f}")

# %% 学習率が大きすぎると、なぜ発散する（損失が増え続ける）のか
# 目標値が 2 * x なので、誤差は x * (w - 2)、勾配は 2 * mean(x²) * (w - 2) である。つまり 1 歩の長さは、最小の点 w = 2 までの
# 距離の、学習率 * 2 * mean(x²) 倍になる。1 倍より長い歩みは w = 2 を通り越し、2 倍より長い歩みは、もとより遠くへ出る。
# 遠くでは勾配も大きいので、次の歩みはもっと長い。ちょうど 2 倍になる境目は、学習率が 1 / mean(x²) のときである
mean_square = (x**2).mean().item()
border = 1 / mean_square
print(f"mean of x squared {mean_square:.4f}, so the border is at learning rate 1 / {mean_square:.4f} = {border:.4f}")
for name, learning_rate in LEARNING_RATES.items():
    distances = [f"{abs(position - 2):.4f}" for position in walks[name]]
    print(f"{name}: a step is {learning_rate * 2 * mean_square:.2f} times the distance to w = 2: {' '.join(distances)}")

# %% torch.optim.SGD で同じことをする（次のレッスンからはこう書く）
w = torch.tensor(W_START).to(device).requires_grad_()
# SGD は確率的勾配降下法（stochastic gradient descent）の略。毎回データの一部を無作為に選ぶことからの名だが、ここでは全部を使う
optimizer = torch.optim.SGD([w], lr=LEARNING_RATES["good"])
sgd_walk = [W_START]
for step in range(1, STEPS + 1):
    loss = loss_at(w)  # 順伝播（予測と損失の計算）
    loss.backward()  # 逆伝播
    optimizer.step()  # 更新: w -= 学習率 * w.grad
    optimizer.zero_grad()  # 勾配の消去: w.grad = None
    sgd_walk.append(w.item())
differences = [abs(by_hand - by_sgd) for by_hand, by_sgd in zip(walks["good"], sgd_walk)]
print(f"torch.optim.SGD: w {sgd_walk[-1]:.4f}, largest difference from the update by hand {max(differences):.1e}")

# %% 図
curve_w = torch.linspace(0, 4, 200).tolist()
curve_loss = [loss_at(w).item() for w in curve_w]
fig, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
for one in axes.flat:
    one.plot(curve_w, curve_loss, color="gray")
    one.set(xlabel="weight w", ylabel="loss", xlim=(-0.2, 4.2), ylim=(-1, 22))
slope_axes, *walk_axes = axes.flat
start_loss = loss_at(W_START).item()
slope_axes.axline((W_START, start_loss), slope=by_backward, color="#D55E00", label=f"slope {by_backward:.0f}")
slope_axes.plot(W_START, start_loss, "o", color="#0072B2", markersize=9, label=f"w = {W_START}")
slope_axes.set_title("the gradient is the slope of the loss curve")
slope_axes.legend(loc="upper center")
for one, name in zip(walk_axes, LEARNING_RATES):
    heights = [loss_at(w).item() for w in walks[name]]
    one.plot(walks[name], heights, ".-", color="#0072B2")
    one.plot(walks[name][0], heights[0], "o", color="#0072B2", markersize=9, label="start")
    one.plot(walks[name][-1], heights[-1], "*", color="#D55E00", markersize=15, label=f"after {STEPS} steps")
    one.set_title(f"learning rate {LEARNING_RATES[name]:.4g}: {name}")
    one.legend(loc="upper center")
try:
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE)
    print(f"saved: images/{PICTURE.name}")
except OSError as error:  # 書き込めないフォルダでも、図は見せる
    print(f"not saved: {error.strerror}")
plt.show()
