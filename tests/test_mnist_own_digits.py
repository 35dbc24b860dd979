"""mnist_handwriting.py と mnist_draw.py が、MNIST ではない数字を読む。"""

import ast
import os
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import FigureCanvasBase, MouseEvent
from PIL import Image, ImageDraw, features

import handwriting_conditions as conditions
from conftest import ROOT, read_mnist

DIGITS = sorted((ROOT / "images" / "digits").glob("*.png"))


# mnist_handwriting.py


def prepare(page, path):
    digit, _ = page.choose_digit(page.find_ink(page.divide_by_paper(page.read_picture(path))))
    return page.center_of_mass(page.fit(digit))


def write(tmp_path, *places, name="page.png"):
    """places は (数字, 左, 上, 倍率)。白い紙に MNIST の数字を並べた画像の Path"""
    images, labels = read_mnist("t10k")
    paper = np.full((400, 400), 255, np.uint8)
    for digit, left, top, zoom in places:
        image = np.kron(images[(labels == digit).argmax()], np.ones((zoom, zoom), np.uint8))
        paper[top:top + len(image), left:left + len(image)] -= image
    Image.fromarray(paper).save(tmp_path / name)
    return tmp_path / name


def test_the_examples_are_read_and_the_picture_shows_every_stage(run):
    lesson = run("mnist_handwriting")
    assert [path.name for path in lesson.answers] == [path.name for path in DIGITS]
    assert len(lesson.shown) == len(lesson.grid) == 5
    for path, (name, stages, probabilities), row in zip(DIGITS, lesson.shown, lesson.grid):
        answer = int(path.stem[-1])
        assert f"{name}: read as {answer} ({probabilities[answer]:.1%})" in lesson.stdout
        assert name == row[0].get_ylabel() == path.name and len(stages) == 6
        for stage, axes in zip(stages, row):
            np.testing.assert_array_equal(axes.images[0].get_array(), stage[0, 0])
        assert stages[-1].shape == (1, 1, 28, 28)
        np.testing.assert_allclose([bar.get_height() for bar in row[6].patches], probabilities)
        assert row[6].get_title() == f"read as {answer} ({probabilities[answer]:.0%})"


def test_the_paper_becomes_flat_and_the_ink_dark_whatever_their_colors(run):
    page = run("mnist_handwriting")
    shade = torch.linspace(0.4, 0.9, 300).expand(1, 1, 300, 300)
    ink = torch.zeros(1, 1, 300, 300)
    ink[..., 100:200, 140:160] = 1
    for gray in (shade * (1 - 0.6 * ink), 1 - shade * (1 - 0.6 * ink)):
        flat = page.divide_by_paper(gray)
        assert flat[ink == 0].mean() > 0.95 and flat[ink == 1].max() < 0.7
        assert (page.find_ink(flat) - ink).abs().mean() < 0.01


def test_rules_disappear_and_strokes_stay(run):
    darkness = torch.zeros(1, 1, 200, 400)
    darkness[..., 50:52, :] = 0.5
    darkness[..., 120:122, 100:300] = 0.5  # 端まで届かない横棒
    rules = run("mnist_handwriting").find_rules(darkness)
    assert (rules[..., 50:52, :] == 0.5).all() and (rules[..., 100:, :] == 0).all()


def test_rules_that_lean_too_far_stay(run):
    find_rules = run("mnist_handwriting").find_rules
    left = {}  # 端から端までのずれ（画素） -> 消えずに残る割合
    for drift in (6, 9):
        lines = Image.new("L", (1600, 1200))
        ImageDraw.Draw(lines).line([(0, 600 - 2 * drift), (1600, 600 + 2 * drift)], fill=200, width=12)
        sharp = torch.from_numpy(np.asarray(lines.resize((400, 300), Image.Resampling.BOX)) / 255).float()[None, None]
        darkness = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
        left[drift] = ((darkness - find_rules(darkness)).clamp(min=0).sum() / darkness.sum()).item()
    assert left[6] < 0.1 and 0.4 < left[9] < 0.6, left


def test_the_pale_half_of_a_blurred_stroke_is_ink(run):
    flat = torch.ones(1, 1, 400, 300)
    flat[..., 100:200, 100:120] = 0.5
    flat[..., 200:300, 100:120] = 0.66  # 濃さ 0.34 は、最も濃い所の 0.4 倍より薄い
    flat[..., 100:116, 100:120] = 0.1
    ink = run("mnist_handwriting").find_ink(flat)
    assert ink[..., 101:299, 101:119].all() and ink.sum() < 1.1 * 200 * 20


def test_connected_components_have_one_number_each(run):
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 2:18, 3] = mask[..., 17, 3:10] = mask[..., 5, 9:15] = 1
    labels = run("mnist_handwriting").connected_components(mask)
    assert (labels > 0).equal(mask > 0) and len(labels[mask > 0].unique()) == 2


def test_the_digit_is_chosen_among_specks_frames_and_neighbours(run):
    page = run("mnist_handwriting")
    digit = torch.zeros(1, 1, 400, 400)
    digit[..., 120:280, 180:200] = 1
    others = torch.zeros_like(digit)
    others[..., 60:68, 60:340] = others[..., 332:340, 60:340] = 1  # 枠
    others[..., 60:340, 60:68] = others[..., 60:340, 332:340] = 1
    others[..., 100:104, 100:104] = 1  # 汚れ
    others[..., 40:300, 380:400] = 1  # 縁で切れた隣の字
    chosen, n_alike = page.choose_digit(digit + others)
    assert chosen.equal(digit) and n_alike == 1
    assert page.choose_digit(digit + digit.roll(80, dims=3))[1] == 2


def test_the_digit_is_fitted_and_centered_as_in_mnist(run):
    page = run("mnist_handwriting")
    bar = torch.zeros(1, 1, 300, 400)
    bar[..., 40:240, 300:340] = 1  # 幅 40、高さ 200
    small = page.fit(bar)
    assert small.shape == (1, 1, 20, 4)
    bar[..., 40:240, 302:340] = 0  # 縮めると消える、太さ 2 の線
    assert page.fit(bar).sum(dim=3).mean() > 1
    digit = page.center_of_mass(small)[0, 0]
    assert digit.shape == (28, 28)
    for side in (digit.sum(dim=1), digit.sum(dim=0)):
        assert abs((side * torch.arange(28)).sum() / side.sum() - 14) < 0.51


def test_every_format_that_pillow_opens_is_read(run, tmp_path):
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
        "x.gif": (image, {}), "x.bmp": (image, {}), "x.tiff": (image, {}), "[1].jpg": (image, {}),
    }
    for name in ("webp", "avif"):
        if features.check(name):
            kinds[f"x.{name}"] = (image, {})
    for name, (picture, options) in kinds.items():
        picture.save(tmp_path / name, **options)
        probabilities = page.model(prepare(page, tmp_path / name).to(page.device)).softmax(dim=1)
        assert probabilities.argmax() == 7, name
    reader = run("mnist_handwriting", tmp_path / "*.jpg", tmp_path / "[1].jpg")  # Windows では * のまま届く
    assert [path.name for path in reader.answers] == ["[1].jpg", "cmyk.jpg", "sideways.jpg"]


def test_five_digits_in_each_condition_are_read(run):
    page = run("mnist_handwriting")
    images, labels = conditions.choose(5)
    own = (conditions.answers(page, list((images / 255).reshape(-1, 1, 1, 28, 28))) == labels).sum().item()
    right = {name: conditions.measure(page, name, count=5) for name in conditions.CONDITIONS}
    assert own == 5 and sum(right.values()) >= own * len(right) - 3, right
    assert conditions.measure_fonts(page) >= 47


def test_two_digits_and_a_doubtful_answer_get_a_word(run, tmp_path):
    two = run("mnist_handwriting", write(tmp_path, (7, 20, 100, 6), (2, 220, 100, 6)))
    assert "数字が 2 つ見える" in two.stdout
    one = run("mnist_handwriting", write(tmp_path, (7, 100, 100, 6), name="one.png"))
    assert "見える" not in one.stdout and "自信がない" not in one.stdout
    assert "自信がない" in run("mnist_handwriting", UNSURE=1.1).stdout


def test_the_figure_shows_the_first_pictures_and_says_so(run):
    page = run("mnist_handwriting", MAX_ROWS=2)
    assert "the figure shows the first 2 of 5" in page.stdout
    assert len(page.grid) == len(page.shown) == 2 and len(page.answers) == 5


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
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    reasons = {"blank.png": "何も書かれていない", "strip.png": "細長すぎる", "phone.heic": "互換性優先", "missing.png": "No such file"}
    bad = [*sorted(path.name for path in tmp_path.iterdir()), "missing.png", "."]
    for name in bad:
        message = refuse("mnist_handwriting", tmp_path / name)
        assert str(tmp_path / name) in message and reasons.get(name, "") in message
        assert len(message.splitlines()) == 1, message
    page = run("mnist_handwriting", *[tmp_path / name for name in bad], DIGITS[0])
    assert list(page.answers.values()) == [2] and len(capsys.readouterr().err.splitlines()) == len(bad)


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


def send(page, name, axes, point):
    x, y = axes.transData.transform(point)
    page.fig.canvas.callbacks.process(name, MouseEvent(name, page.fig.canvas, x, y, button=1))


def draw(page, strokes, rng):
    size, steps = rng.uniform(0.15, 0.85), rng.integers(1, 6)  # steps は点の間を何回で動くか。少ないほど速い
    left, top = rng.uniform(0, 1 - size, 2)
    slant = rng.uniform(-0.15, 0.15)
    paper = page.grid[0, 0]
    for stroke in strokes:
        points = np.array([point.split() for point in stroke.split(", ")], dtype=float) / 100
        points += rng.normal(0, 0.015, points.shape)
        points[:, 0] += slant * (0.5 - points[:, 1])
        points = (points * size + (left, top)).clip(0.001, 0.999)
        knots = np.linspace(0, len(points) - 1, (len(points) - 1) * steps + 1)
        path = np.stack([np.interp(knots, range(len(points)), points[:, axis]) for axis in (0, 1)], axis=1)
        send(page, "button_press_event", paper, path[0])
        for point in path[1:]:
            send(page, "motion_notify_event", paper, point)
        send(page, "button_release_event", paper, path[-1])


def click_clear(page):
    for name in ("button_press_event", "button_release_event"):
        send(page, name, page.clear_button.ax, (0.5, 0.5))


@pytest.fixture
def drawing(run, monkeypatch):
    page = run("mnist_draw")
    monkeypatch.setattr(page.fig.canvas, "draw_idle", lambda: None)  # ウィンドウがないので、描き直す時間を省く
    click_clear(page)
    return page


def test_fifty_drawn_digits_are_read(drawing, capsys):
    rng = np.random.default_rng(0)
    wrong = []
    for digit in 5 * list(range(10)):
        click_clear(drawing)
        draw(drawing, STROKES[digit], rng)
        answer = int(re.findall(r"read as (\d)", capsys.readouterr().out)[-1])
        if answer != digit:
            wrong.append((digit, answer))
    assert len(wrong) <= 3, wrong


def test_the_button_leaves_a_blank_page_that_is_not_read(drawing, capsys):
    draw(drawing, STROKES[7], np.random.default_rng(0))
    assert "read as 7" in drawing.grid[0, 2].get_title()
    click_clear(drawing)
    assert drawing.grid[0, 2].get_title() == "nothing is drawn"
    assert not any(bar.get_height() for bar in drawing.charts[0]) and not drawing.views[0].get_array().any()
    capsys.readouterr()
    send(drawing, "motion_notify_event", drawing.grid[0, 0], (0.5, 0.5))  # 押さずに動く
    send(drawing, "button_release_event", drawing.grid[0, 0], (0.5, 0.5))
    send(drawing, "button_press_event", drawing.grid[0, 1], (5, 5))  # 紙の外で押す
    assert not capsys.readouterr().out and drawing.grid[0, 2].get_title() == "nothing is drawn"


def test_the_distance_is_to_the_nearest_point_of_the_segment(run):
    segment = [torch.tensor([value]) for value in (1.0, 2.0, 5.0, 2.0)]
    distance = run("mnist_draw").distance_to_segment
    for x, y, expected in ((3.0, 5.0, 3.0), (0.0, 2.0, 1.0), (8.0, 6.0, 5.0), (2.0, 2.0, 0.0)):
        assert distance(torch.tensor(x), torch.tensor(y), *segment).item() == pytest.approx(expected)
    assert distance(torch.tensor(4.0), torch.tensor(6.0), *segment[:2], *segment[:2]).item() == pytest.approx(5)


def test_the_drawn_digit_looks_like_mnist_wherever_and_however_large_it_is_drawn(run):
    page = run("mnist_draw")
    stroke = [(0.2, 0.1), (0.3, 0.1), (0.25, 0.4)]
    small = page.fit([stroke])
    assert small.shape[2] == 20 and small.min() == 0 and small.max() == 1
    digit = page.center_of_mass(small)
    assert digit.shape == (1, 1, 28, 28)
    assert abs((digit[0, 0].sum(dim=1) * torch.arange(28)).sum() / digit.sum() - 14) <= 0.5
    moved = [(0.1 + 2 * x, 2 * y) for x, y in stroke]
    torch.testing.assert_close(page.fit([moved]), small, atol=1e-3, rtol=0)
    assert page.center_of_mass(page.fit([[(0.5, 0.5)]])).max() == 1  # 点を打っただけ


def test_both_pages_center_in_the_same_way(run):
    pages = [run("mnist_handwriting"), run("mnist_draw")]
    drawn, written = [ast.dump(next(node for node in ast.parse(page.path.read_text(encoding="utf-8")).body
                                    if getattr(node, "name", "") == "center_of_mass")) for page in pages]
    assert drawn == written and pages[0].FIT == pages[1].FIT


def test_without_a_window_a_growing_stroke_is_read(run):
    page = run("mnist_draw")
    readings = re.findall(r"points: read as (\d)", page.stdout)
    assert "no window" in page.stdout and len(readings) == 3 == len(page.grid) and readings[-1] == "3"
    assert len(set(readings)) > 1  # 線が伸びると、答えが変わる
    assert all(0 < x < 1 and 0 < y < 1 for x, y in page.stroke)
    assert "saved:" in page.stdout and page.PICTURE.exists()


@pytest.fixture
def window(run, monkeypatch):
    """ウィンドウがあるときの mnist_draw.py"""
    monkeypatch.setattr(FigureCanvasBase, "required_interactive_framework", "tk")
    return run.execute("mnist_draw")


def test_with_a_window_the_page_is_empty_and_waits(window):
    assert window.grid.shape == (1, 3) and not window.strokes and "read as" not in window.stdout
    assert "saved:" in window.stdout


@pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="Xvfb と xdotool がない")
def test_a_real_window(window, checkout):
    pytest.importorskip("tkinter", reason="tkinter がない")
    server = subprocess.Popen(["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    env = {**os.environ, "DISPLAY": f":{server.stdout.readline().strip()}", "MPLBACKEND": "TkAgg"}

    def xdotool(*args):
        return subprocess.run(["xdotool", *map(str, args)], env=env, capture_output=True, text=True, check=True).stdout

    def at(axes, x, y):
        """axes の中の位置（左上が (0, 0)、右下が (1, 1)）を、ウィンドウの左上からの画素にする。"""
        box, (width, height) = axes.get_position(), window.fig.bbox.size
        return round(width * (box.x0 + box.width * x)), round(height * (1 - box.y1 + box.height * y))

    def write(*corners):
        """紙の上で、corners を順に結ぶ画を書く。"""
        xdotool("mousemove", *at(window.grid[0, 0], *corners[0]), "sleep", 0.2, "mousedown", 1)
        for start, end in zip(corners, corners[1:]):
            for x, y in np.linspace(start, end, 11)[1:]:
                xdotool("mousemove", *at(window.grid[0, 0], x, y), "sleep", 0.02)
        xdotool("mouseup", 1, "sleep", 0.5)

    lesson = subprocess.Popen([sys.executable, checkout / "02_pytorch_mnist" / "mnist_draw.py"], env=env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        screen = xdotool("search", "--sync", "--onlyvisible", "--name", "Figure 1").split()[-1]
        xdotool("windowmove", screen, 0, 0, "sleep", 1)
        write((0.2, 0.2), (0.8, 0.2), (0.4, 0.8))
        xdotool("mousemove", *at(window.clear_button.ax, 0.5, 0.5), "sleep", 0.2, "click", 1, "sleep", 0.5)
        write((0.5, 0.2), (0.5, 0.8))  # 7 が消えていなければ、1 とは予測されない
        xdotool("key", "q")  # q は、matplotlib がウィンドウを閉じるキー
        out, err = lesson.communicate(timeout=60)
    finally:
        lesson.kill()
        server.terminate()
    assert re.findall(r"read as (\d)", out) == ["7", "1"] and "saved:" in out and not err, (out, err)
