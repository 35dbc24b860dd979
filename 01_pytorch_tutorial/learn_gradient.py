"""勾配とは何かを、重み 1 つと点 3 つで、電卓で確かめられる数として見る。その勾配で重みを動かす。

前のレッスン（simplenet.py）との違い: 乱数のままだった重みを、初めて動かす。どちらへどれだけ動かすかは、
勾配が教える。

実行: python learn_gradient.py（2 コアの CPU で約 3 秒）
結果:
    nudge: (6.8607 - 7.1407) / 0.02 = -14.0000
    sum of the three points: -14.0000
    backward: w.grad = -14.0000
試してみよう:
    - W_START を 3.0 にすると、勾配はいくつになるか。w は増えるか、減るか。
    - LEARNING_RATES の 0.15 を、境目の 1 / 7 にすると、w はどこへ動くか。
    - w.grad = None の行を消すと、学習率 0.05 の w は最大でいくつになるか。
解説: learn_gradient.md
"""

# %% 準備
from pathlib import Path

import matplotlib.pyplot as plt
import torch

W_START = 1.0  # 重みの初期値
NUDGE = 0.01  # 重みを少し増減させる幅
LEARNING_RATES = {"too small": 0.005, "good": 0.05, "too large": 0.15}  # 勾配の何倍だけ重みを動かすか
STEPS = 5  # 重みを動かす回数
PICTURE = Path(__file__).resolve().parent.parent / "images" / "learn_gradient.png"

x = torch.tensor([1.0, 2.0, 4.0])  # (3,)、入力
y = torch.tensor([2.0, 4.0, 8.0])  # (3,)、目標値。どれも入力の 2 倍なので、見つけたい重みは 2 である


# %% 損失
def loss_at(w):
    """重みが w のときの平均二乗誤差（予測と目標値の差を 2 乗して平均したもの）。"""
    prediction = w * x  # 重み 1 つだけの全結合層で、バイアスはない: (3,)
    error = prediction - y  # (3,)
    squared = error**2  # (3,)
    return squared.mean()  # (3,) -> ()。形が () のテンソルは、数 1 つである


error = W_START * x - y  # (3,)
print("x  target  prediction  error  error squared")
for i in range(3):
    print(f"{x[i]:.0f} {y[i]:7.0f} {W_START * x[i]:11.0f} {error[i]:6.0f} {error[i] ** 2:14.0f}")
print(f"loss at w = {W_START}: the mean of the last column, {loss_at(W_START):.4f}")

# %% 勾配 1: 重みを実際に少し動かす
loss_above = loss_at(W_START + NUDGE).item()
loss_below = loss_at(W_START - NUDGE).item()
by_nudge = (loss_above - loss_below) / (2 * NUDGE)  # 損失の変化 / 重みの変化
print(f"nudge: ({loss_above:.4f} - {loss_below:.4f}) / {2 * NUDGE} = {by_nudge:.4f}")

# %% 勾配 2: 損失から重みへ、1 手順ずつ戻る（連鎖律）
after_mean = torch.ones(3) / 3  # 2 乗 1 つが 1 増えると、平均は 1/3 増える: (3,)
after_square = after_mean * (2 * error)  # 誤差 e が少し増えると、2 乗はその 2 * e 倍増える: (3,)
after_subtraction = after_square * 1  # 予測が 1 増えると、誤差も 1 増える: (3,)
after_multiplication = after_subtraction * x  # 重みが 1 増えると、予測は x 増える: (3,)
print("from the loss back to w   factor         x = 1     x = 2     x = 4")
print("mean of the three         1/3      ", *[f"{product:9.4f}" for product in after_mean])
print("square of the error       2 * error", *[f"{product:9.4f}" for product in after_square])
print("prediction - target       1        ", *[f"{product:9.4f}" for product in after_subtraction])
print("w * x                     x        ", *[f"{product:9.4f}" for product in after_multiplication])
by_chain = after_multiplication.sum().item()  # 1 つの w が、3 つの点のすべてに使われている
print(f"sum of the three points: {by_chain:.4f}")

# %% 勾配 3: backward() が同じことを自動で行う（逆伝播）
w = torch.tensor(W_START, requires_grad=True)  # この w を使う計算は記録される
loss_at(w).backward()  # 記録を損失から逆にたどり、勾配を w.grad に足す
by_backward = w.grad.item()
print(f"backward: w.grad = {by_backward:.4f}")
loss_at(w).backward()  # 消さずにもう一度呼ぶと、前の勾配に足される
print(f"backward again without clearing: w.grad = {w.grad.item():.4f}")

# %% 訓練（勾配降下法: 勾配と逆の向きに重みを動かすことを繰り返す）
walks = {}  # 名前 -> 通った重みのリスト
for name, learning_rate in LEARNING_RATES.items():
    print(f"learning rate {learning_rate:.4g} ({name})")
    w = torch.tensor(W_START, requires_grad=True)
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
for name in walks:
    print(f"{name}: distance to w = 2:", *[f"{abs(w - 2):.4f}" for w in walks[name]])

# %% torch.optim.SGD で同じことをする（次のレッスンからはこう書く）
w = torch.tensor(W_START, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=LEARNING_RATES["good"])
sgd_walk = [W_START]
for step in range(1, STEPS + 1):
    loss = loss_at(w)  # 順伝播（予測）と、損失の計算
    loss.backward()  # 逆伝播
    optimizer.step()  # 更新: w -= 学習率 * w.grad
    optimizer.zero_grad()  # 勾配の消去: w.grad = None
    sgd_walk.append(w.item())
differences = [abs(by_hand - by_sgd) for by_hand, by_sgd in zip(walks["good"], sgd_walk)]
print(f"torch.optim.SGD: w {sgd_walk[-1]:.4f}, within 1e-6 of the update by hand: {max(differences) < 1e-6}")

# %% 図
curve_w = torch.linspace(0, 4, 200).tolist()
curve_loss = [loss_at(w).item() for w in curve_w]
fig, all_axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
for axes in all_axes.flat:
    axes.plot(curve_w, curve_loss, color="gray")
    axes.set(xlabel="weight w", ylabel="loss", xlim=(-0.2, 4.2), ylim=(-1, 22))
slope_axes, *walk_axes = all_axes.flat
start = (W_START, loss_at(W_START).item())
slope_axes.axline(start, slope=by_backward, color="#D55E00", label=f"slope {by_backward:.0f}")
slope_axes.plot(*start, "o", color="#0072B2", markersize=9, label=f"w = {W_START}")
slope_axes.set_title("the gradient is the slope of the loss curve")
slope_axes.legend(loc="upper center")
for axes, name in zip(walk_axes, LEARNING_RATES):
    heights = [loss_at(w).item() for w in walks[name]]
    axes.plot(walks[name], heights, ".-", color="#0072B2")
    axes.plot(walks[name][0], heights[0], "o", color="#0072B2", markersize=9)
    axes.set_title(f"learning rate {LEARNING_RATES[name]:.4g}: {name}")
PICTURE.parent.mkdir(exist_ok=True)
fig.savefig(PICTURE)
print(f"saved: images/{PICTURE.name}")
plt.show()
