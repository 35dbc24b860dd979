"""02_pytorch_mnist のレッスンが、本物の MNIST を学び、読み、描く。"""

import hashlib
import os
import pickle
import re

import numpy as np
import pytest
import torch

from conftest import RAW, ROOT, drawn_images, read_mnist

FOLDER = ROOT / "02_pytorch_mnist"


def test_the_data_files_are_those_of_the_note_beside_them():
    note = (FOLDER / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(\S+-ubyte)` \| \S+ \| ([\d,]+) \| `(\w+)`", note)
    assert sorted(name for name, _, _ in rows) == sorted(path.name for path in RAW.glob("*-ubyte"))
    for name, size, md5 in rows:
        content = (RAW / name).read_bytes()
        assert (f"{len(content):,}", hashlib.md5(content).hexdigest()) == (size, md5)
    assert "Yann LeCun, Corinna Cortes, Christopher J. C. Burges" in note
    assert "Attribution-ShareAlike 3.0" in note


# mnist.py


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


def test_mnist_notices_another_decay_than_that_of_adamw(run):
    source = run.path_of("mnist").read_text(encoding="utf-8")
    # Adam の weight_decay は勾配に加わるので、AdamW の W にならない
    broken = source.replace("torch.optim.AdamW(fresh.parameters()", "torch.optim.Adam(fresh.parameters()")
    assert "as by hand, to 1e-6: False\n" in run.execute("mnist", "-e", 1, source=broken).stdout


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


# load_and_infer.py


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
    assert lesson.changed == {"images/load_and_infer_mlp_240_20.png"}


def test_load_and_infer_stops_at_the_last_image(run):
    lesson = run("load_and_infer", "-s", 9995, "-n", 20)
    assert len(lesson.predictions) == len(drawn_images(lesson.fig)) == 5
    assert len(drawn_images(run("load_and_infer", "-n", 1000).fig)) == 100


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
    np.testing.assert_array_equal(lesson.matrix, expected)
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


def test_a_weight_file_with_a_function_is_not_loaded(run, tmp_path):
    torch.save({"fc1.weight": os.system}, tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        run.execute("load_and_infer", "-w", tmp_path / "w.pth")
