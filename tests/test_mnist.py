"""02_pytorch_mnist のレッスンが、本物の MNIST を学び、読み、描く。"""

import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import ROOT, lesson

FOLDER = ROOT / "02_pytorch_mnist"
RAW = FOLDER / "data" / "MNIST" / "raw"


def read_test_set():
    """torchvision を通さずに、テスト画像 (10000, 28, 28)（uint8）とラベル (10000,) を読む。"""
    images = np.frombuffer((RAW / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer((RAW / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images, labels


def panels(figure):
    """図の中の、見えている画像の区画。"""
    return [axes for axes in figure.axes if axes.get_visible() and axes.images]


# モデル


@pytest.mark.parametrize("model_type, parameters", [("mlp", 79_510), ("cnn", 421_642)])
def test_model_sizes(model_type, parameters):
    model = lesson("mnist").MODELS[model_type]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(5, 1, 28, 28)).shape == (5, 10)


def test_model_keys_and_shapes_are_the_promised_ones():
    shapes = {model_type: {key: tuple(value.shape) for key, value in model_class().state_dict().items()}
              for model_type, model_class in lesson("mnist").MODELS.items()}
    assert shapes["mlp"] == {
        "fc1.weight": (100, 784), "fc1.bias": (100,), "fc2.weight": (10, 100), "fc2.bias": (10,),
    }
    assert shapes["cnn"] == {
        "features.0.weight": (32, 1, 3, 3), "features.0.bias": (32,),
        "features.3.weight": (64, 32, 3, 3), "features.3.bias": (64,),
        "classifier.1.weight": (128, 3136), "classifier.1.bias": (128,),
        "classifier.3.weight": (10, 128), "classifier.3.bias": (10,),
    }
    first = lesson("mnist").CNN().features[0]
    assert sum(p.numel() for p in first.parameters()) == 320


def test_models_compute_what_their_weights_say():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 28, 28)
    mlp = lesson("mnist").MLP()
    expected = (x.reshape(3, 784) @ mlp.fc1.weight.T + mlp.fc1.bias).clamp(min=0) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected)
    cnn = lesson("mnist").CNN()
    w = cnn.state_dict()
    h = F.max_pool2d(F.conv2d(x, w["features.0.weight"], w["features.0.bias"], padding=1).relu(), 2)
    h = F.max_pool2d(F.conv2d(h, w["features.3.weight"], w["features.3.bias"], padding=1).relu(), 2).reshape(3, 3136)
    h = (h @ w["classifier.1.weight"].T + w["classifier.1.bias"]).relu()
    torch.testing.assert_close(cnn(x), h @ w["classifier.3.weight"].T + w["classifier.3.bias"])


# mnist.py


def test_load_mnist_gives_pixels_between_0_and_1():
    images, labels = lesson("mnist").load_mnist(train=False)
    expected, expected_labels = read_test_set()
    assert images.dtype == torch.float32 and images.shape == (10_000, 1, 28, 28)
    np.testing.assert_array_equal(images[:, 0].numpy(), expected.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(labels.numpy(), expected_labels)


@pytest.fixture(scope="module")
def short_training(tmp_path_factory):
    """MLP を 1 エポックだけ訓練した結果と、その保存先。"""
    folder = tmp_path_factory.mktemp("training")
    result = lesson("mnist").main(["-d", "cpu", "-e", "1", "-w", str(folder / "w.pth"), "-o", str(folder / "c.png")])
    return result, folder


def test_one_epoch_already_learns(short_training):
    result, _ = short_training
    history = result["history"]
    assert history["test_accuracy"][0] > 94
    assert len(history["batch_loss"]) == 469  # 60000 枚を 128 枚ずつ
    assert history["batch_loss"][0] == pytest.approx(np.log(10), abs=0.15)  # 学ぶ前は当てずっぽう
    sizes = np.array([128] * 468 + [96])
    assert history["train_loss"][0] == pytest.approx(np.average(history["batch_loss"], weights=sizes), rel=1e-5)


def test_the_learning_rate_rises_and_falls():
    module = lesson("mnist")
    model = module.MLP()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8)
    rates = []
    optimizer.register_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.rand(16, 1, 28, 28), torch.randint(10, (16,))), batch_size=2
    )
    module.train_one_epoch(model, loader, optimizer, scheduler)
    peak = rates.index(max(rates))
    assert len(rates) == 8 and 0 < peak < 4 and max(rates) == pytest.approx(1e-2, rel=0.1)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True) and rates[-1] < 1e-4


def test_the_weights_are_a_plain_state_dict_of_the_trained_model(short_training):
    result, folder = short_training
    saved = torch.load(folder / "w.pth", weights_only=True)
    for key, tensor in result["model"].state_dict().items():
        assert torch.equal(saved[key], tensor.cpu())
    assert sorted(os.listdir(folder)) == ["c.png", "w.pth"]  # 一時ファイルは残らない


def test_the_learning_curve_shows_the_history(short_training):
    result, folder = short_training
    figure = lesson("mnist").draw(result["history"])
    loss_axes, accuracy_axes = figure.axes
    by_label = {line.get_label(): line for line in loss_axes.lines}
    np.testing.assert_allclose(by_label["training, each batch"].get_ydata(), result["history"]["batch_loss"])
    np.testing.assert_allclose(by_label["test"].get_ydata(), result["history"]["test_loss"])
    np.testing.assert_allclose(accuracy_axes.lines[0].get_ydata(), result["history"]["test_accuracy"])
    assert Image.open(folder / "c.png").size == (1000, 400)


def test_confused_pairs_are_counted():
    labels = torch.tensor([4, 4, 4, 7, 7, 1, 2])
    predictions = torch.tensor([9, 9, 4, 2, 7, 1, 3])
    pairs = lesson("mnist").confused_pairs(predictions, labels)
    assert pairs[0] == (4, 9, 2)
    assert set(pairs[1:]) == {(7, 2, 1), (2, 3, 1)}
    assert lesson("mnist").confused_pairs(labels, labels) == []


def test_a_training_that_diverges_keeps_the_old_weights(tmp_path, monkeypatch, fails):
    module = lesson("mnist")
    monkeypatch.setattr(module, "evaluate", lambda model, images, labels: (float("nan"), labels))
    old = tmp_path / "w.pth"
    old.write_bytes(b"old")
    message = fails(module.main, ["-d", "cpu", "-e", "1", "-b", "6000", "-w", old, "-o", tmp_path / "c.png"])
    assert "発散" in message and "--lr" in message
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_one_batch_per_epoch_trains(tmp_path, capsys, epochs):
    lesson("mnist").main(["-d", "cpu", "-e", str(epochs), "-b", "60000", "-w", str(tmp_path / "w.pth"),
                          "-o", str(tmp_path / "c.png")])
    assert f"epoch {epochs}/{epochs}" in capsys.readouterr().out


# 同梱の重みと load_and_infer.py


@pytest.mark.parametrize("model_type, target", [("mlp", 98.0), ("cnn", 99.2)])
def test_the_shipped_weights_reach_their_accuracy(model_type, target, tmp_path, capsys):
    result = lesson("load_and_infer").main(
        ["-d", "cpu", "-m", model_type, "-n", "10000", "-o", str(tmp_path / "out.png")]
    )
    _, labels = read_test_set()
    correct = int((result["predictions"].numpy() == labels).sum())
    assert correct >= 100 * target
    out = capsys.readouterr().out
    assert f"Correct: {correct}  Incorrect: {10_000 - correct}" in out
    assert "drawing the first 100 of 10000 images" in out
    wrong = re.findall(r"^#(\d+) true (\d) predicted (\d) \((\S+)%\)$", out, re.M)
    assert len(wrong) == 10_000 - correct
    for index, true, predicted, probability in wrong:
        assert labels[int(index)] == int(true) != int(predicted) == result["predictions"][int(index)]
        assert float(probability) == pytest.approx(100 * result["probabilities"][int(index)].item(), abs=0.051)
    assert len(panels(result["figure"])) == 100


def test_predictions_are_drawn_in_their_places(tmp_path, capsys):
    result = lesson("load_and_infer").main(["-d", "cpu", "-s", "240", "-n", "15", "-o", str(tmp_path / "out.png")])
    images, labels = read_test_set()
    drawn = panels(result["figure"])
    assert len(drawn) == 15
    for i, axes in enumerate(drawn):
        np.testing.assert_allclose(axes.images[0].get_array(), images[240 + i] / np.float32(255))
        prediction = result["predictions"][i].item()
        mark = "✓" if prediction == labels[240 + i] else "✗"
        assert axes.get_title() == (
            f"#{240 + i}  true {labels[240 + i]}\n{mark} {prediction} ({result['probabilities'][i].item():.0%})"
        )
    titles = [axes.get_title() for axes in drawn]
    assert any("✗" in title for title in titles)  # 247 番は MLP が読み違える
    right, wrong = (next(axes for axes in drawn if mark in axes.get_title()) for mark in "✓✗")
    assert right.title.get_color() != wrong.title.get_color()
    assert right.spines["left"].get_linewidth() < wrong.spines["left"].get_linewidth()
    num_wrong = str(titles).count("✗")
    assert result["figure"].get_suptitle() == f"MLP: {15 - num_wrong} correct, {num_wrong} incorrect"


def test_a_range_past_the_end_stops_at_the_last_image(tmp_path, capsys):
    result = lesson("load_and_infer").main(["-d", "cpu", "-s", "9995", "-n", "20", "-o", str(tmp_path / "out.png")])
    assert len(result["predictions"]) == 5 and len(panels(result["figure"])) == 5


def test_probabilities_are_the_softmax_of_the_logits():
    module = lesson("load_and_infer")
    torch.manual_seed(0)
    model, images = module.MLP().train(), torch.rand(700, 1, 28, 28)
    predictions, probabilities = module.predict(model, images)
    with torch.no_grad():
        expected = torch.softmax(model(images), dim=1)
    assert not model.training and not probabilities.requires_grad
    assert torch.equal(predictions, expected.argmax(dim=1))
    torch.testing.assert_close(probabilities, expected.max(dim=1).values)


# mnistview.py と mnistview100.py


def test_mnistview_draws_the_batch_it_prints(tmp_path, capsys):
    result = lesson("mnistview").main(["-d", "cpu", "-o", str(tmp_path / "v.png")])
    out = capsys.readouterr().out
    assert "images shape (4, 1, 28, 28), values from 0.0 to 1.0" in out
    assert f"values {result['labels'].tolist()}" in out
    drawn = panels(result["figure"])
    assert [axes.get_title() for axes in drawn] == [f"label {label}" for label in result["labels"]]
    for axes, image in zip(drawn, result["images"]):
        np.testing.assert_array_equal(axes.images[0].get_array(), image[0])
    train_images, train_labels = lesson("mnist").load_mnist(train=True)
    for image, label in zip(result["images"], result["labels"]):
        same = (train_images == image).flatten(1).all(dim=1).nonzero().flatten()
        assert len(same) == 1 and train_labels[same] == label  # ラベルは、その画像のものである


def test_mnistview100_draws_every_image_under_its_index(tmp_path, capsys):
    module = lesson("mnistview100")
    result = module.main(["-d", "cpu", "-o", str(tmp_path / "v.png")])
    out = capsys.readouterr().out
    images, labels = read_test_set()
    axes, = result["figure"].axes
    mosaic = np.asarray(axes.images[0].get_array())
    assert mosaic.shape == (10 * module.CELL,) * 2
    np.testing.assert_array_equal(mosaic, result["mosaic"])
    assert [text.get_text() for text in axes.texts] == [str(label) for label in labels[:100]]
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    columns = [tick.get_text() for tick in axes.get_xticklabels()]
    for i in range(100):
        x, y = axes.get_xticks()[i % 10], axes.get_yticks()[i // 10]
        assert int(rows[i // 10]) + int(columns[i % 10]) == i
        left, top = int(x - module.CELL / 2), int(y - module.CELL / 2)
        cell = mosaic[top:top + module.CELL, left:left + module.CELL]
        np.testing.assert_array_equal(cell[module.GAP:, :28], images[i] / np.float32(255))
        assert np.count_nonzero(cell) == np.count_nonzero(images[i])  # 余白には何もない
        text_x, text_y = axes.texts[i].get_position()
        assert left <= text_x < left + module.CELL and top <= text_y < top + module.GAP
    counts = [int((labels[:100] == digit).sum()) for digit in range(10)]
    assert "count " + " ".join(f"{count:2d}" for count in counts) in out and sum(result["counts"]) == 100


# mnist_dummydata_weightconfirm.py


def test_dummydata_every_change_is_minus_lr_times_gradient(tmp_path, capsys):
    module = lesson("mnist_dummydata_weightconfirm")
    result = module.main(["-d", "cpu", "-o", str(tmp_path / "w.png")])
    losses, weight_means, gradients, changes = (np.array(column) for column in zip(*result["records"]))
    np.testing.assert_allclose(changes, -module.LEARNING_RATE * gradients, rtol=1e-2, atol=1e-9)
    np.testing.assert_allclose(np.diff(weight_means), changes[1:], rtol=1e-2, atol=1e-8)
    assert abs(gradients).max() > 1e-4
    assert losses[0] == pytest.approx(np.log(10), abs=0.2) and losses[-1] < 0.05
    assert result["correct"] == module.BATCH_SIZE  # 乱数のラベルでも丸暗記できる

    out = capsys.readouterr().out
    printed = [int(step) for step in re.findall(r"^ *(\d+) +\d\.\d{4} ", out, re.M)]
    assert printed == [*range(1, 11), *range(20, 301, 10)]
    loss_axes, weight_axes = result["figure"].axes
    np.testing.assert_allclose(loss_axes.lines[0].get_ydata(), losses)
    np.testing.assert_allclose(weight_axes.lines[0].get_ydata(), weight_means)


# mnist_errors.py と mnist_cnn_features.py


def test_errors_counts_every_image_and_shows_the_most_confident(tmp_path, capsys):
    result = lesson("mnist_errors").main(["-d", "cpu", "-o", str(tmp_path / "e.png")])
    images, labels = read_test_set()
    predictions, probabilities = result["predictions"].numpy(), result["probabilities"].numpy()
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predictions), 1)
    np.testing.assert_array_equal(result["matrix"], expected)
    wrong = np.flatnonzero(predictions != labels)
    most_confident = sorted(wrong, key=lambda i: -probabilities[i])[:20]
    assert result["most_confident"].tolist() == most_confident
    out = capsys.readouterr().out
    for digit in range(10):
        assert f"{digit:4d} " + " ".join(f"{count:4d}" for count in expected[digit]) in out
    assert f"Correct: {10_000 - len(wrong)}  Incorrect: {len(wrong)}" in out

    matrix_axes, *drawn = panels(result["figure"])
    colors = matrix_axes.images[0].get_array()
    assert np.trace(colors) == 0 and colors.sum() == len(wrong)  # 対角が、読み違いの濃淡を消さない
    texts = {text.get_position(): text.get_text() for text in matrix_axes.texts}
    assert all(texts[j, i] == (str(expected[i, j]) if expected[i, j] else "") for i in range(10) for j in range(10))
    assert len(drawn) == 20
    for i, axes in zip(most_confident, drawn):
        np.testing.assert_allclose(axes.images[0].get_array(), images[i] / np.float32(255))
        assert axes.get_title().startswith(f"#{i}  true {labels[i]}\npredicted {predictions[i]} ")


def test_confusion_matrix_of_known_predictions():
    matrix = lesson("mnist_errors").confusion_matrix(torch.tensor([3, 3, 9, 0]), torch.tensor([3, 5, 9, 9]))
    assert matrix.shape == (10, 10) and matrix.sum() == 4
    assert matrix[3, 3] == matrix[3, 5] == matrix[9, 9] == matrix[0, 9] == 1


def test_features_shows_what_the_layers_put_out(tmp_path, capsys):
    module = lesson("mnist_cnn_features")
    result = module.main(["-d", "cpu", "-s", "7", "-o", str(tmp_path / "f.png")])
    model = module.CNN()
    module.load_weights(model, FOLDER / "mnist_cnn.pth")
    images, labels = read_test_set()
    x = torch.from_numpy(images[7:8] / np.float32(255))[None]
    out = capsys.readouterr().out
    assert f"test image #7, label {labels[7]}" in out
    titles = [axes.get_title() for axes in result["figure"].axes]
    for i, (layer, (name, maps)) in enumerate(zip(model.features, result["outputs"].items())):
        x = layer(x)
        torch.testing.assert_close(maps, x[0].detach(), atol=1e-5, rtol=1e-4)
        assert name == f"features.{i} {type(layer).__name__}"
        row = next(line for line in out.splitlines() if line.startswith(name))
        assert str(tuple(maps.shape)) in row and f"{maps.mean():.4f}" in row
        if "ReLU" in name:
            assert row.endswith(f"{(maps == 0).float().mean():6.1%}")
        if "Conv2d" not in name:
            assert f"{name}: " + " x ".join(map(str, maps.shape)) in titles
    assert not any(layer._forward_hooks for layer in model.features)


def test_features_names_the_edges_rightly():
    module = lesson("mnist_cnn_features")
    ramp = torch.tensor([-1.0, 0.0, 1.0])
    right = ramp.expand(3, 3)  # 右へ明るくなる所に反応する: 縦に走るエッジ
    down = right.T  # 行が -1、0、1 のフィルタは、横に走るエッジに反応する
    filters = torch.stack([right, down, right + down, down - right, -right, torch.ones(3, 3) + right])
    slope, direction, share = module.edge_slope(filters)
    kinds = [module.EDGES[round(angle / 45) % 4] for angle in direction.tolist()]
    assert kinds == ["vertical edges", "horizontal edges", "diagonal edges", "diagonal edges", "vertical edges",
                     "vertical edges"]
    torch.testing.assert_close(share, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 6 / 15]))
    assert slope[0] == 6
    # 実際に、その向きのエッジで最も強く反応する
    vertical_edge = torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 3, 3)
    responses = F.conv2d(vertical_edge, filters[:2, None]).flatten()
    assert responses[0] == 3 and responses[1] == 0


def test_features_tiles_the_maps_in_order(tmp_path, capsys):
    module = lesson("mnist_cnn_features")
    maps = torch.arange(6.0).reshape(6, 1, 1).expand(6, 2, 3)
    mosaic = module.tile_maps(maps, 3)
    assert mosaic.shape == (2 * 3, 3 * 4)
    for i in range(6):
        top, left = i // 3 * 3, i % 3 * 4
        assert mosaic[top:top + 2, left:left + 3].eq(i).all()
        assert mosaic[top + 2, left:left + 4].isnan().all() and mosaic[top:top + 3, left + 3].isnan().all()


def test_the_strongest_filters_respond_to_what_is_printed(tmp_path, capsys):
    module = lesson("mnist_cnn_features")
    result = module.main(["-d", "cpu", "-o", str(tmp_path / "f.png")])
    out = capsys.readouterr().out
    filters = result["filters"].numpy()
    right = (filters[:, :, 2] - filters[:, :, 0]).sum(axis=1)
    down = (filters[:, 2] - filters[:, 0]).sum(axis=1)
    slopes = np.hypot(right, down)
    assert result["strongest"] == np.argsort(-slopes)[:3].tolist()
    for i in result["strongest"]:
        line = next(line for line in out.splitlines() if line.startswith(f"filter {i:2d}: slope {slopes[i]:.2f}"))
        x, y = abs(right[i]), abs(down[i])
        kind = "diagonal" if min(x, y) > np.tan(np.pi / 8) * max(x, y) else "vertical" if x > y else "horizontal"
        assert f"responds to {kind} edges" in line
