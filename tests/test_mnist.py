"""02_pytorch_mnist のレッスンが、本物の MNIST を学び、読み、描く。"""

import hashlib
import os
import pickle
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
    assert (
        "Yann LeCun, Corinna Cortes, Christopher J. C. Burges" in note
        and "Attribution-ShareAlike 3.0" in note
    )


# モデル


def test_models_have_the_promised_keys_and_shapes(run):
    shapes = {
        model_type: {key: tuple(value.shape) for key, value in model_class().state_dict().items()}
        for model_type, model_class in run("load_and_infer").MODELS.items()
    }
    assert shapes["mlp"] == {
        "fc1.weight": (100, 784),
        "fc1.bias": (100,),
        "fc2.weight": (10, 100),
        "fc2.bias": (10,),
    }
    assert shapes["cnn"] == {
        "features.0.weight": (32, 1, 3, 3),
        "features.0.bias": (32,),
        "features.3.weight": (64, 32, 3, 3),
        "features.3.bias": (64,),
        "classifier.1.weight": (128, 3136),
        "classifier.1.bias": (128,),
        "classifier.3.weight": (10, 128),
        "classifier.3.bias": (10,),
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
    h = F.max_pool2d(F.conv2d(h, w["features.3.weight"], w["features.3.bias"], padding=1).relu(), 2).reshape(
        3, 3136
    )
    h = (h @ w["classifier.1.weight"].T + w["classifier.1.bias"]).relu()
    torch.testing.assert_close(cnn(x), h @ w["classifier.3.weight"].T + w["classifier.3.bias"])


# mnist.py


# シード 0 から 2 と 4 つの丸めで、MLP は 98.35 から 98.44 %、CNN は 99.27 から 99.42 % である
@pytest.mark.parametrize("args, lowest", [((), 98.2), (("-m", "cnn"), 99.1)], ids=["mlp", "cnn"])
def test_mnist_reaches_its_accuracy(run, args, lowest):
    lesson = run("mnist", *args)
    assert lesson.test_accuracies[-1] >= lowest
    assert f"test accuracy {lesson.test_accuracies[-1]:.2f}%\nsaved: " in lesson.stdout


def test_mnist_trains_on_every_image_once_an_epoch(run):
    lesson = run("mnist", EPOCHS={"mlp": 1, "cnn": 1})
    for kind, images, labels in (
        ("train", lesson.train_images, lesson.train_labels),
        ("t10k", lesson.test_images, lesson.test_labels),
    ):
        expected, expected_labels = read_mnist(kind)
        np.testing.assert_array_equal(images[:, 0].numpy(), expected / np.float32(255))
        np.testing.assert_array_equal(labels.numpy(), expected_labels)
    assert sorted(lesson.order.tolist()) == list(range(60_000))
    assert len(lesson.batch_losses) == 469 and len(lesson.labels) == 96  # 最後のミニバッチには、余りが入る
    assert lesson.batch_losses[0].item() == pytest.approx(np.log(10), abs=0.05)  # 学ぶ前は当てずっぽう
    assert lesson.test_accuracies[0] > 95


def test_mnist_knows_the_first_step_of_adamw(run):
    source = run.path_of("mnist").read_text(encoding="utf-8")
    # Adam の weight_decay は勾配に加わるので、AdamW の W にならない
    broken = source.replace("torch.optim.AdamW(fresh.parameters()", "torch.optim.Adam(fresh.parameters()")
    for text, right in ((source, True), (broken, False)):
        lesson = run.execute("mnist", "-e", 1, source=text)
        assert f"as by hand, to 1e-6: {right}\n" in lesson.stdout


def test_mnist_draws_what_it_measured(run):
    lesson = run("mnist")
    loss_axes, rate_axes = lesson.fig.axes
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), torch.stack(lesson.batch_losses).numpy())
    np.testing.assert_array_equal(loss_axes.lines[1].get_xdata(), 469 * np.arange(1, 9))
    np.testing.assert_allclose(loss_axes.lines[1].get_ydata(), lesson.test_losses)
    rates = np.asarray(rate_axes.lines[0].get_ydata())
    assert len(rates) == 3752 and rates.argmax() + 1 == pytest.approx(0.3 * 3752, abs=2)
    assert rates[0] == pytest.approx(0.01 / 25) and rates.max() == pytest.approx(0.01) and rates[-1] < 1e-6


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


# load_and_infer.py と同梱の重み


@pytest.mark.parametrize("model_type, target", [("mlp", 98.4), ("cnn", 99.3)])
def test_the_shipped_weights_reach_their_accuracy(run, model_type, target):
    lesson = run("load_and_infer", "-m", model_type, "-n", 10_000)
    _, labels = read_mnist("t10k")
    predictions = lesson.predictions.numpy()
    wrong = np.flatnonzero(predictions != labels)
    assert 10_000 - len(wrong) >= 100 * target
    assert f"Correct: {10_000 - len(wrong)}  Incorrect: {len(wrong)}" in lesson.stdout
    lines = [
        f"#{i} true {labels[i]} predicted {predictions[i]} ({lesson.probabilities[i]:.1%})" for i in wrong
    ]
    assert [line for line in lesson.stdout.splitlines() if " true " in line] == lines
    assert len(drawn_images(lesson.fig)) == 100


@pytest.mark.parametrize("model_type", ["mlp", "cnn"])
def test_load_and_infer_computes_logits_by_hand(run, model_type):
    lesson = run("load_and_infer", "-m", model_type)
    hardest = lesson.probabilities.argmin()
    np.testing.assert_allclose(lesson.by_hand, lesson.logits[hardest], atol=1e-3)
    assert lesson.probability == pytest.approx(lesson.probabilities.min().item(), abs=1e-4)


def test_load_and_infer_sees_when_the_model_has_other_weights_than_the_file(run):
    source = run.path_of("load_and_infer").read_text(encoding="utf-8")
    random_model = re.sub(r"^model.load_state_dict.*\n", "", source, flags=re.M)
    lesson = run.execute("load_and_infer", source=random_model)
    assert abs(lesson.probability - lesson.probabilities.min().item()) > 0.1


def test_load_and_infer_draws_predictions_in_their_places(run):
    lesson = run("load_and_infer", "-s", 240, "-n", 20)
    images, labels = read_mnist("t10k")
    wrong = 0
    for i, axes in enumerate(drawn_images(lesson.fig), start=240):
        np.testing.assert_allclose(axes.images[0].get_array(), images[i] / np.float32(255))
        probability, prediction = lesson.logits[i - 240].softmax(dim=0).max(dim=0)
        wrong += prediction != labels[i]
        assert axes.get_title() == f"#{i} true {labels[i]}\nread {prediction} ({probability:.0%})"
        assert axes.title.get_color() == ("#0072B2" if prediction == labels[i] else "#D55E00")
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
    assert lesson.correct > 920
    assert lesson.changed == {"images/load_and_infer_重み 1_0_1000.png"}  # 同梱の図を上書きしない


# mnist_errors.py


@pytest.mark.parametrize("model_type", ["mlp", "cnn"])
def test_errors_counts_every_image_and_shows_the_most_confident(run, model_type):
    lesson = run("mnist_errors", "-m", model_type)
    images, labels = read_mnist("t10k")
    predictions, probabilities = lesson.predictions.numpy(), lesson.probabilities.numpy()
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predictions), 1)
    for digit in range(10):
        assert f"{digit:4d} " + " ".join(f"{count:4d}" for count in expected[digit]) in lesson.stdout
    assert "the same table by bincount: True\n" in lesson.stdout
    wrong = np.flatnonzero(predictions != labels)
    most_confident = sorted(wrong, key=lambda i: -probabilities[i])[:12]
    assert lesson.most_confident == most_confident

    matrix_axes, *drawn = drawn_images(lesson.fig)
    colors = matrix_axes.images[0].get_array()
    assert np.trace(colors) == 0 and colors.sum() == len(wrong)  # 対角が、読み違いの濃淡を消さない
    texts = {tuple(map(int, text.get_position())): int(text.get_text()) for text in matrix_axes.texts}
    assert texts == {(j, i): expected[i, j] for i, j in np.argwhere(expected)}
    assert len(drawn) == 12
    for i, axes in zip(most_confident, drawn):
        np.testing.assert_allclose(axes.images[0].get_array(), images[i] / np.float32(255))
        assert axes.get_title().startswith(f"#{i} true {labels[i]}\npredicted {predictions[i]} ")


def test_errors_compares_probabilities_with_how_often_they_are_right(run):
    lesson = run("mnist_errors")
    rows = re.findall(r"^ *(\d+)% to +(\d+)% +(\d+) +(\d+) +([\d.]+)% +([\d.]+)%$", lesson.stdout, re.M)
    assert sum(int(count) for _, _, count, _, _, _ in rows) == 10_000
    for low, high, count, num_wrong, mean, right in rows:
        chosen = (lesson.probabilities > int(low) / 100) & (lesson.probabilities <= int(high) / 100)
        assert (int(count), int(num_wrong)) == (
            chosen.sum(),
            (chosen & (lesson.predictions != lesson.labels)).sum(),
        )
        assert float(mean) == pytest.approx(100 * lesson.probabilities[chosen].mean().item(), abs=0.01)
        assert float(right) == pytest.approx(100 * (1 - int(num_wrong) / int(count)), abs=0.01)
        assert float(right) > float(mean)  # ページの言うとおり、どの組でも控えめである


def test_errors_notices_when_rows_and_columns_are_swapped(run):
    source = run.path_of("mnist_errors").read_text(encoding="utf-8")
    swapped = source.replace("matrix[label, prediction] += 1", "matrix[prediction, label] += 1")
    assert "the same table by bincount: False\n" in run.execute("mnist_errors", source=swapped).stdout


# おかしな入力


@pytest.mark.parametrize(
    "name, option, value",
    [
        *[("mnist", "--epochs", value) for value in ("0", "-1", "1.5")],
        *[("load_and_infer", "--count", value) for value in ("0", "-1", "x")],
        *[("load_and_infer", "--start-index", value) for value in ("-1", "10000")],
        *[("mnist_cnn_features", "--start-index", value) for value in ("-1", "10000")],
        *[(name, "--model-type", "rnn") for name in ("mnist", "load_and_infer", "mnist_errors")],
        ("mnist", "--weights", "/no/such/folder/w.pth"),
        ("mnist", "--weights", "/"),
    ],
)
def test_options_out_of_range_are_refused(refuse, name, option, value):
    assert option in refuse(name, f"{option}={value}")


def test_the_weights_of_the_other_model_and_missing_weights_are_refused(refuse, tmp_path):
    assert "mlp の重みではない" in refuse("load_and_infer", "-w", FOLDER / "mnist_cnn.pth")
    missing = tmp_path / "none.pth"
    assert f"mnist.py -m cnn -w {missing} で訓練" in refuse("load_and_infer", "-m", "cnn", "-w", missing)


class CreatesAFile:
    """pickle として読み込まれると、ファイルを作ってしまう物。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_weight_file_does_not_run(run, tmp_path):
    path, trap = tmp_path / "w.pth", tmp_path / "trap"
    torch.save({"fc1.weight": CreatesAFile(trap)}, path)
    with pytest.raises(pickle.UnpicklingError):
        run.execute("load_and_infer", "-w", path)
    assert not trap.exists()
