"""02_pytorch_mnist のレッスンが、本物の MNIST を学び、読み、描く。"""

import hashlib
import os
import pickle
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import RAW, ROOT, drawn_images, read_mnist

FOLDER = ROOT / "02_pytorch_mnist"
MD5 = {  # 公開されたファイルのもの。torchvision がダウンロードを確かめる値でもある
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


# データ


@pytest.mark.parametrize("name", MD5)
def test_the_data_files_are_the_published_ones(name):
    assert hashlib.md5((RAW / name).read_bytes()).hexdigest() == MD5[name]


def test_the_note_beside_the_data_states_the_same_files():
    note = (FOLDER / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(\S+-ubyte)` \| \S+ \| ([\d,]+) \| `(\w+)`", note)
    assert {name: md5 for name, _, md5 in rows} == MD5
    assert all((RAW / name).stat().st_size == int(size.replace(",", "")) for name, size, _ in rows)
    assert "Yann LeCun, Corinna Cortes, Christopher J. C. Burges" in note and "Attribution-ShareAlike 3.0" in note


# モデル


def test_models_have_the_promised_keys_and_shapes(run):
    shapes = {model_type: {key: tuple(value.shape) for key, value in model_class().state_dict().items()}
              for model_type, model_class in run("load_and_infer").MODELS.items()}
    assert shapes["mlp"] == {
        "fc1.weight": (100, 784), "fc1.bias": (100,), "fc2.weight": (10, 100), "fc2.bias": (10,),
    }
    assert shapes["cnn"] == {
        "features.0.weight": (32, 1, 3, 3), "features.0.bias": (32,),
        "features.3.weight": (64, 32, 3, 3), "features.3.bias": (64,),
        "classifier.1.weight": (128, 3136), "classifier.1.bias": (128,),
        "classifier.3.weight": (10, 128), "classifier.3.bias": (10,),
    }


@torch.no_grad()
def test_models_compute_what_their_weights_say(run):
    torch.manual_seed(0)
    x = torch.rand(3, 1, 28, 28)
    mlp, cnn = (model_class() for model_class in run("load_and_infer").MODELS.values())
    hidden = (x.reshape(3, 784) @ mlp.fc1.weight.T + mlp.fc1.bias).clamp(min=0)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)
    w = cnn.state_dict()
    h = F.max_pool2d(F.conv2d(x, w["features.0.weight"], w["features.0.bias"], padding=1).relu(), 2)
    h = F.max_pool2d(F.conv2d(h, w["features.3.weight"], w["features.3.bias"], padding=1).relu(), 2).reshape(3, 3136)
    h = (h @ w["classifier.1.weight"].T + w["classifier.1.bias"]).relu()
    torch.testing.assert_close(cnn(x), h @ w["classifier.3.weight"].T + w["classifier.3.bias"])


# mnist.py


# シード 0 から 4 の平均は、MLP が 98.49 %、CNN が 99.37 % である。1 回ごとには、丸めの違うマシンでの揺れを見込む
@pytest.mark.parametrize("args, lowest", [((), 98.2), (("-m", "cnn"), 99.2)], ids=["mlp", "cnn"])
def test_mnist_reaches_its_accuracy(run, args, lowest):
    lesson = run("mnist", *args)
    assert lesson.test_accuracies[-1] >= lowest
    assert f"test accuracy {lesson.test_accuracies[-1]:.2f}%\nsaved: " in lesson.stdout


def test_mnist_reads_pixels_between_0_and_1(run):
    lesson = run("mnist", EPOCHS={"mlp": 1, "cnn": 1})
    for kind, images, labels in (("train", lesson.train_images, lesson.train_labels),
                                 ("t10k", lesson.test_images, lesson.test_labels)):
        expected, expected_labels = read_mnist(kind)
        assert images.dtype == torch.float32
        np.testing.assert_array_equal(images[:, 0].numpy(), expected / np.float32(255))
        np.testing.assert_array_equal(labels.numpy(), expected_labels)


def test_mnist_one_epoch_already_learns(run):
    lesson = run("mnist", EPOCHS={"mlp": 1, "cnn": 1})
    assert lesson.test_accuracies[0] > 95
    assert len(lesson.batch_losses) == 469  # 60,000 枚を 128 枚ずつ
    assert lesson.batch_losses[0].item() == pytest.approx(np.log(10), abs=0.15)  # 学ぶ前は当てずっぽう
    assert len(lesson.labels) == 96  # 最後のミニバッチには、余りが入る
    assert lesson.optimizer.param_groups[0]["lr"] < 1e-6 < lesson.LEARNING_RATE["mlp"]  # 学習率は下がりきった


def test_mnist_draws_what_it_measured(run):
    lesson = run("mnist")
    loss_axes, accuracy_axes = lesson.fig.axes
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), torch.stack(lesson.batch_losses).numpy())
    np.testing.assert_allclose(loss_axes.lines[1].get_ydata(), lesson.test_losses)
    np.testing.assert_allclose(accuracy_axes.lines[0].get_ydata(), lesson.test_accuracies)


def test_an_interrupted_save_keeps_the_old_weights(run, tmp_path, monkeypatch):
    old = tmp_path / "weights.pth"
    old.write_bytes(b"the old weights")

    def interrupted(state_dict, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.execute("mnist", "-e", 1, "-w", old)
    assert old.read_bytes() == b"the old weights"


def test_a_training_that_diverges_keeps_the_old_weights(run, tmp_path):
    old = tmp_path / "weights.pth"
    old.write_bytes(b"the old weights")
    with pytest.raises(SystemExit, match="発散した"):
        run.execute("mnist", "-e", 1, "-w", old, LEARNING_RATE={"mlp": 1e20})
    assert old.read_bytes() == b"the old weights" and os.listdir(tmp_path) == ["weights.pth"]


# load_and_infer.py と同梱の重み


@pytest.mark.parametrize("model_type, target", [("mlp", 98.4), ("cnn", 99.3)])
def test_the_shipped_weights_reach_their_accuracy(run, model_type, target):
    lesson = run("load_and_infer", "-m", model_type, "-n", 10_000)
    _, labels = read_mnist("t10k")
    predictions = lesson.predictions.numpy()
    wrong = np.flatnonzero(predictions != labels)
    assert 10_000 - len(wrong) >= 100 * target
    assert f"Correct: {10_000 - len(wrong)}  Incorrect: {len(wrong)}" in lesson.stdout
    lines = [f"#{i} true {labels[i]} predicted {predictions[i]} ({lesson.probabilities[i]:.1%})" for i in wrong]
    assert [line for line in lesson.stdout.splitlines() if line.startswith("#")] == lines
    assert len(drawn_images(lesson.fig)) == 100


def test_load_and_infer_draws_predictions_in_their_places(run):
    lesson = run("load_and_infer", "-s", 240, "-n", 20)
    images, labels = read_mnist("t10k")
    wrong = 0
    for i, axes in enumerate(drawn_images(lesson.fig), start=240):
        np.testing.assert_allclose(axes.images[0].get_array(), images[i] / np.float32(255))
        prediction = lesson.logits[i - 240].argmax().item()
        probability = lesson.logits[i - 240].softmax(dim=0)[prediction]
        wrong += prediction != labels[i]
        mark, color = ("✓", "#0072B2") if prediction == labels[i] else ("✗", "#D55E00")
        assert axes.get_title() == f"#{i} true {labels[i]}\n{mark} {prediction} ({probability:.0%})"
        assert axes.title.get_color() == color
    assert i == 259 and wrong >= 1  # MLP が読み違える画像がある
    assert lesson.fig.get_suptitle() == f"MLP: {20 - wrong} correct, {wrong} incorrect (20 drawn)"
    assert lesson.changed == {"images/load_and_infer_mlp_240_20.png"}


def test_load_and_infer_stops_at_the_last_image(run):
    lesson = run("load_and_infer", "-s", 9995, "-n", 20)
    assert len(lesson.predictions) == len(drawn_images(lesson.fig)) == 5


def test_load_and_infer_reads_the_weights_that_mnist_saves(run, tmp_path):
    trained = run.execute("mnist", "-e", 1, "-w", tmp_path / "重み 1.pth")
    assert os.listdir(tmp_path) == ["重み 1.pth"]  # 一時ファイルは残らない
    lesson = run("load_and_infer", "-n", 1000, "-w", tmp_path / "重み 1.pth")
    for key, tensor in trained.model.state_dict().items():
        assert torch.equal(lesson.model.state_dict()[key], tensor)
    assert lesson.correct > 920 and not lesson.model.training
    assert lesson.changed == {"images/load_and_infer_mlp_0_1000_重み 1.png"}


# おかしな入力


@pytest.mark.parametrize("name, option, value", [
    *[("mnist", "--epochs", value) for value in ("0", "-1", "1.5", "x", "")],
    *[("load_and_infer", "--count", value) for value in ("0", "-1", "x")],
    *[("load_and_infer", "--start-index", value) for value in ("-1", "10000", "nan")],
    *[("mnist_cnn_features", "--start-index", value) for value in ("-1", "10000", "")],
    *[(name, "--model-type", "rnn") for name in ("mnist", "load_and_infer", "mnist_errors")],
    ("mnist", "--weights", "/no/such/folder/w.pth"), ("mnist", "--weights", "/"),
])
def test_options_out_of_range_are_refused(refuse, name, option, value):
    assert option in refuse(name, f"{option}={value}")


class CreatesAFile:
    """pickle として読み込まれると、ファイルを作ってしまう物。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def bad_weights(path, trap):
    """重みではないファイルの種類ごとに、それを path に書く関数。"""
    shipped = (FOLDER / "mnist_mlp.pth").read_bytes()
    wrong_shape = {**torch.load(FOLDER / "mnist_mlp.pth", weights_only=True), "fc2.bias": torch.zeros(11)}
    return {
        "a folder": path.mkdir,
        "empty": lambda: path.write_bytes(b""),
        "cut short": lambda: path.write_bytes(shipped[: len(shipped) // 2]),
        "the last byte missing": lambda: path.write_bytes(shipped[:-1]),
        "random": lambda: path.write_bytes(random.Random(0).randbytes(10_000)),
        "text": lambda: path.write_text("重み", encoding="utf-8"),
        "a pickle that runs code": lambda: path.write_bytes(pickle.dumps(CreatesAFile(trap))),
        "saved code": lambda: torch.save({"fc1.weight": CreatesAFile(trap)}, path),
        "a whole model": lambda: torch.save(torch.nn.Linear(2, 2), path),
        "a list": lambda: torch.save([1, 2, 3], path),
        "another shape": lambda: torch.save(wrong_shape, path),
        "the other model": lambda: path.write_bytes((FOLDER / "mnist_cnn.pth").read_bytes()),
    }


@pytest.mark.parametrize("kind", bad_weights(FOLDER, None))
def test_what_is_not_the_weights_is_refused(refuse, tmp_path, kind):
    path, trap = tmp_path / "w.pth", tmp_path / "trap"
    bad_weights(path, trap)[kind]()
    message = refuse("load_and_infer", "-w", path)
    assert f"{path} は mlp の重みとして読み込めない" in message and "-m cnn" in message
    assert len(message.split("訓練し直す: ")[1]) > 5 and len(message.splitlines()) == 1  # PyTorch の言う理由
    assert not trap.exists()


def test_missing_weights_are_to_be_trained(refuse, tmp_path):
    weights = tmp_path / "none.pth"
    assert f"mnist.py -m cnn -w {weights} で訓練" in refuse("load_and_infer", "-m", "cnn", "-w", weights)


@pytest.mark.parametrize("name", ["mnist_errors"])
def test_lessons_with_shipped_weights_say_when_they_are_damaged(refuse, checkout, name):
    weights = checkout / "02_pytorch_mnist" / "mnist_cnn.pth"
    shipped = weights.read_bytes()
    try:
        weights.write_bytes(shipped[:1000])
        assert "mnist.py -m cnn で訓練し直す" in refuse(name)
        weights.unlink()
        assert "mnist.py -m cnn で訓練して作る" in refuse(name)
    finally:
        weights.write_bytes(shipped)
