"""mnist_handwriting.py と mnist_draw.py が、MNIST ではない数字を読む。"""

import os
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent
from PIL import Image

import handwriting_conditions as conditions
from conftest import ROOT, read_mnist

DIGITS = sorted((ROOT / "images" / "digits").glob("*.png"))


# mnist_handwriting.py


def test_the_example_photographs_are_read_and_the_picture_says_what_the_terminal_says(run):
    lesson = run("mnist_handwriting")
    assert len(lesson.results) == len(lesson.grid) == 5
    for path, (name, _, digit, probabilities), (original, seen, bars) in zip(DIGITS, lesson.results, lesson.grid):
        answer = int(path.stem[-1])
        assert name == original.get_title() == path.name
        assert f"{name}: read as {answer} ({probabilities[answer]:.1%})" in lesson.stdout
        assert digit.shape == (1, 1, 28, 28) and 0 <= digit.min() and digit.max() <= 1
        np.testing.assert_array_equal(seen.images[0].get_array(), digit[0, 0])
        np.testing.assert_allclose([bar.get_height() for bar in bars.patches], probabilities)
        assert bars.get_title() == f"read as {answer} ({probabilities[answer]:.0%})"
        colors = [bar.get_facecolor() for bar in bars.patches]
        assert [colors.count(color) for color in colors] == [1 if digit == answer else 9 for digit in range(10)]


def test_the_ink_is_scaled_and_centered_as_in_mnist(run):
    ink = torch.zeros(1, 1, 300, 400)
    ink[..., 40:240, 300:340] = 1  # 幅 40、高さ 200 の棒
    digit = run("mnist_handwriting").scale_and_center(ink)[0, 0]
    rows, columns = (digit > 0.5).nonzero().unbind(dim=1)
    assert rows.max() - rows.min() + 1 in (19, 20) and columns.max() - columns.min() + 1 in (3, 4, 5)
    for side in (digit.sum(dim=1), digit.sum(dim=0)):
        assert abs((side * torch.arange(28)).sum() / side.sum() - 14) <= 1


def test_every_kind_of_png_and_jpeg_is_read(run, tmp_path):
    page = run("mnist_handwriting")
    image = Image.fromarray(255 - np.kron(read_mnist("t10k")[0][0], np.ones((12, 12), np.uint8)))
    pixels = np.asarray(image)
    sideways = Image.Exif()
    sideways[0x112] = 6  # 時計回りに 90 度回して見る、という印
    kinds = {
        "gray.png": (image, {}), "rgb.png": (image.convert("RGB"), {}), "palette.png": (image.quantize(16), {}),
        "bits.png": (image.convert("1"), {}), "16 bit.png": (Image.fromarray(pixels.astype(np.uint16) * 257), {}),
        "clear.png": (Image.merge("LA", (Image.new("L", image.size), Image.fromarray(255 - pixels))), {}),
        "clear palette.png": (image.point(lambda value: 255 * (value > 128)).convert("P"), {"transparency": 255}),
        "cmyk.jpg": (image.convert("CMYK"), {}), "sideways.jpg": (image.rotate(90), {"exif": sideways}),
    }
    for name, (picture, options) in kinds.items():
        picture.save(tmp_path / name, **options)
        ink = page.extract_ink(page.read_picture(tmp_path / name))
        probabilities = page.model(page.scale_and_center(ink).to(page.device)).softmax(dim=1)
        assert probabilities.argmax() == 7, name


def test_ten_digits_in_each_condition_are_read(run):
    page = run("mnist_handwriting")
    images, labels = conditions.choose(10)
    own = (conditions.answers(page, list((images / 255).reshape(-1, 1, 1, 28, 28))) == labels).sum().item()
    right = {name: conditions.measure(page, name, count=10) for name in conditions.CONDITIONS}
    assert own >= 9 and sum(right.values()) >= own * len(right) - 3, right
    assert conditions.measure_fonts(page) >= 48


def png_header(width, height):
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def test_what_is_not_a_digit_is_refused_in_one_line_and_the_others_are_read(run, refuse, tmp_path, capsys):
    (tmp_path / "text.png").write_text("数字", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(DIGITS[3].read_bytes()[:3000])
    (tmp_path / "huge.png").write_bytes(png_header(60_000, 60_000))
    Image.fromarray(np.random.default_rng(0).normal(200, 6, (200, 300)).astype(np.uint8)).save(tmp_path / "blank.png")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    Image.new("L", (5000, 2)).save(tmp_path / "strip.png")
    reasons = {"blank.png": "何も書かれていない", "huge.png": "5000 万画素"}
    bad = [*sorted(path.name for path in tmp_path.iterdir()), "missing.png", "."]
    for name in bad:
        message = refuse("mnist_handwriting", tmp_path / name)
        assert str(tmp_path / name) in message and reasons.get(name, "") in message
        assert len(message.splitlines()) == 1, message
    page = run("mnist_handwriting", *[tmp_path / name for name in bad], DIGITS[0])
    assert [int(row.argmax()) for *_, row in page.results] == [2] and len(capsys.readouterr().err.splitlines()) == len(bad)


# mnist_draw.py


STROKES = {  # 数字ごとの画。点は 0 から 1 の (x, y) で、y は下向き
    0: ["50 5, 28 15, 20 45, 24 75, 45 95, 68 85, 80 55, 74 20, 50 5"],
    1: ["52 4, 50 35, 49 65, 48 96"],
    2: ["22 28, 35 8, 60 6, 74 22, 66 45, 42 70, 20 93, 50 92, 82 93"],
    3: ["24 14, 45 4, 70 14, 68 34, 44 46, 72 56, 76 78, 56 95, 22 86"],
    4: ["34 6, 26 32, 22 54, 48 55, 78 52", "66 8, 65 50, 62 96"],
    5: ["34 8, 31 26, 29 44, 54 40, 74 56, 70 82, 46 95, 22 86", "34 8, 54 8, 74 6"],
    6: ["64 5, 40 24, 26 52, 28 82, 50 95, 72 82, 70 60, 48 52, 28 68"],
    7: ["20 10, 50 9, 80 8, 64 36, 52 66, 44 96"],
    8: ["68 18, 48 5, 30 18, 38 38, 62 56, 70 78, 50 95, 30 80, 40 58, 64 36, 68 18"],
    9: ["70 26, 50 8, 28 22, 34 46, 56 46, 70 26, 68 60, 62 96"],
}


def draw(page, strokes, rng):
    size, steps = rng.uniform(0.15, 0.85), rng.integers(1, 6)  # steps は点の間を何回で動くか。少ないほど速い
    left, top = rng.uniform(0, 1 - size, 2)
    slant = rng.uniform(-0.15, 0.15)

    def send(name, point):
        x, y = page.paper.transData.transform(point)
        page.fig.canvas.callbacks.process(name, MouseEvent(name, page.fig.canvas, x, y, button=1))

    for stroke in strokes:
        points = np.array([point.split() for point in stroke.split(", ")], dtype=float) / 100
        points += rng.normal(0, 0.015, points.shape)
        points[:, 0] += slant * (0.5 - points[:, 1])
        points = (points * size + (left, top)).clip(0.001, 0.999)
        knots = np.linspace(0, len(points) - 1, (len(points) - 1) * steps + 1)
        path = np.stack([np.interp(knots, range(len(points)), points[:, axis]) for axis in (0, 1)], axis=1)
        send("button_press_event", path[0])
        for point in path[1:]:
            send("motion_notify_event", point)
        send("button_release_event", path[-1])


def press_key(page, key):
    page.fig.canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", page.fig.canvas, key))


def test_a_hundred_drawn_digits_are_read(run, capsys, monkeypatch):
    page = run("mnist_draw")
    monkeypatch.setattr(page.fig.canvas, "draw_idle", lambda: None)  # 窓がないので、描き直す時間を省く
    rng = np.random.default_rng(0)
    wrong = []
    for digit in 10 * list(range(10)):
        press_key(page, "c")
        draw(page, STROKES[digit], rng)
        answer = int(re.findall(r"read as (\d)", capsys.readouterr().out)[-1])
        if answer != digit:
            wrong.append((digit, answer))
    assert len(wrong) <= 5, wrong


def test_the_drawn_digit_looks_like_mnist_wherever_and_however_large_it_is_drawn(run):
    render = run("mnist_draw").render
    stroke = [0.2 + 0.1j, 0.3 + 0.1j, 0.25 + 0.4j]
    digit = render([stroke])
    assert digit.shape == (1, 1, 28, 28) and digit.min() == 0 and digit.max() == 1
    rows, columns = (digit[0, 0] > 0.5).nonzero().unbind(dim=1)
    assert rows.max() - rows.min() + 1 in (19, 20, 21)
    assert abs((digit[0, 0].sum(dim=1) * torch.arange(28)).sum() / digit.sum() - 14) < 0.5
    torch.testing.assert_close(render([[0.1 + 2 * point for point in stroke]]), digit, atol=1e-3, rtol=0)


def test_without_a_display_an_example_is_read(run):
    page = run("mnist_draw")
    assert "no display" in page.stdout and "read as 7" in page.stdout
    assert "saved:" in page.stdout and page.PICTURE.exists()


@pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="Xvfb と xdotool がない")
def test_a_real_window(run, checkout):
    pytest.importorskip("tkinter", reason="tkinter がない")
    page = run("mnist_draw")
    server = subprocess.Popen(["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    env = {**os.environ, "DISPLAY": f":{server.stdout.readline().strip()}", "MPLBACKEND": "TkAgg"}

    def xdotool(*args):
        return subprocess.run(["xdotool", *map(str, args)], env=env, capture_output=True, text=True, check=True).stdout

    def at(axes, x, y):
        """axes の中の位置（左上が (0, 0)、右下が (1, 1)）を、窓の左上からの画素にする。"""
        box = axes.get_position()
        return round(width * (box.x0 + box.width * x)), round(height * (1 - box.y1 + box.height * y))

    lesson = subprocess.Popen([sys.executable, checkout / "02_pytorch_mnist" / "mnist_draw.py"], env=env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        window = xdotool("search", "--sync", "--onlyvisible", "--name", "Figure 1").split()[-1]
        width, height = map(int, re.search(r"Geometry: (\d+)x(\d+)", xdotool("getwindowgeometry", window)).groups())
        xdotool("windowmove", window, 0, 0, "sleep", 1)
        xdotool("mousemove", *at(page.paper, 0.2, 0.2), "sleep", 0.2, "mousedown", 1)  # 7 を書く
        for i in range(1, 11):
            xdotool("mousemove", *at(page.paper, 0.2 + 0.06 * i, 0.2), "sleep", 0.02)
        for i in range(1, 11):
            xdotool("mousemove", *at(page.paper, 0.8 - 0.04 * i, 0.2 + 0.06 * i), "sleep", 0.02)
        xdotool("mouseup", 1, "sleep", 0.5, "key", "c", "sleep", 0.5)  # 消す
        for y in (0.2, 0.8):  # 1 を書く。7 が消えていなければ、1 とは読まれない
            xdotool("mousemove", *at(page.paper, 0.5, y), "sleep", 0.2, "mousedown", 1)
        xdotool("mouseup", 1, "sleep", 0.5, "key", "q")  # q は、matplotlib が窓を閉じるキー
        out, err = lesson.communicate(timeout=60)
    finally:
        lesson.kill()
        server.terminate()
    assert re.findall(r"read as (\d)", out) == ["7", "1"] and "saved:" in out and not err, (out, err)
