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
from matplotlib.backend_bases import MouseEvent
from PIL import Image, ImageDraw

from conftest import ROOT, read_mnist

SAMPLES = sorted((ROOT / "images" / "digits").glob("*.png"))


# mnist_handwriting.py


@pytest.fixture
def page(run):
    return run("mnist_handwriting")


def answer_of(page, picture):
    return page.model(page.prepare(picture)[-1]).argmax().item()


def opened(page, image, path, **options):
    image.save(path, **options)
    return page.open_picture(path)


def test_the_samples_are_read_and_every_stage_is_drawn(page):
    for path, (stages, probabilities), row in zip(SAMPLES, page.results, page.grid, strict=True):
        assert probabilities.argmax() == int(path.stem[-1]) and f"{path.name}: read as {path.stem[-1]}" in page.stdout
        for stage, axes in zip(stages, row):
            np.testing.assert_array_equal(axes.images[0].get_array(), stage[0, 0])
        np.testing.assert_allclose([bar.get_height() for bar in row[6].patches], probabilities)
        assert stages[-1].shape == (1, 1, 28, 28)


def test_the_paper_becomes_flat_and_the_ink_dark_whatever_their_colors(page):
    shade = torch.linspace(0.4, 0.9, 300).expand(1, 1, 300, 300)
    ink = torch.zeros(1, 1, 300, 300)
    ink[..., 100:200, 140:160] = 1
    for gray in (shade * (1 - 0.6 * ink), 1 - shade * (1 - 0.6 * ink)):
        flat = page.flatten(gray)
        assert flat[ink == 0].mean() > 0.95 and flat[ink == 1].max() < 0.7
        assert (page.find_ink(flat) - ink).abs().mean() < 0.01


@pytest.mark.parametrize("thickness", [1, 3])
def test_small_pictures_that_the_digit_fills_are_read_on_white_and_on_black(page, tmp_path, thickness):
    images, labels = read_mnist("t10k")
    n_right = 0
    for image, label in zip(images[:20], labels[:20]):
        kernel_size = thickness, 1, thickness // 2
        thick = torch.nn.functional.max_pool2d(torch.tensor(image[None], dtype=torch.float), *kernel_size)
        light = Image.fromarray(thick[0].byte().numpy())
        light = light.crop(light.point(lambda value: 255 * (value > 60)).getbbox()).resize((28, 28))
        dark = light.point(lambda value: 255 - value)
        answers = [answer_of(page, opened(page, picture, tmp_path / "28.png")) for picture in (light, dark)]
        assert answers[0] == answers[1]
        n_right += answers[0] == label
    assert n_right >= 18


def test_connected_pixels_have_one_number(page):
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 2:18, 3] = mask[..., 17, 3:10] = mask[..., 5, 9:15] = 1
    labels = page.connected_components(mask)
    assert (labels > 0).equal(mask > 0) and len(labels[mask > 0].unique()) == 2


def test_the_digit_is_chosen_among_specks_frames_and_neighbours(page):
    digit, others = torch.zeros(2, 1, 1, 400, 400)
    digit[..., 120:280, 180:200] = 1
    others[..., 20:28, 20:340] = others[..., 372:380, 20:340] = 1  # 枠
    others[..., 20:380, 20:28] = others[..., 20:380, 332:340] = 1
    others[..., 70:74, 100:104] = 1  # 汚れ
    others[..., 40:300, 370:400] = 1  # 縁で切れた隣の字
    assert page.choose_digit(digit + others).equal(digit)


@pytest.mark.parametrize("gap", [16, 20])
def test_a_four_of_two_strokes_is_a_four(page, tmp_path, gap):
    for width in (8, 16, 24):
        image = Image.new("L", (400, 400), 255)
        pen = ImageDraw.Draw(image)
        pen.line([(170, 80), (120, 220), (250 - gap - width // 2, 220)], fill=20, width=width)
        pen.line([(250 + width // 2, 100), (250 + width // 2, 330)], fill=20, width=width)
        assert answer_of(page, opened(page, image, tmp_path / "4.png")) == 4


def test_the_digit_is_fitted_thickened_and_centered(page):
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


def test_what_cameras_and_paint_programs_save_is_read(page, tmp_path, run):
    image = Image.open(next(path for path in SAMPLES if path.stem == "marker_7")).convert("L")
    sideways = Image.Exif()
    sideways[0x112] = 6  # 時計回りに 90 度回して見る、という印
    clear = Image.merge("LA", (Image.new("L", image.size), image.point(lambda value: 255 - value)))
    kinds = {
        "palette.png": (image.quantize(16), {}),
        "clear.png": (clear, {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "[1].jpg": (image.rotate(90), {"exif": sideways}),
        "108 megapixels.jpg": (image.resize((12_000, 9_000)), {}),
    }
    for name, (picture, options) in kinds.items():
        assert answer_of(page, opened(page, picture, tmp_path / name, **options)) == 7, name
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:-2])
    for arguments, n_read in (([tmp_path / "*.jpg"], 4), ([tmp_path / "[1].jpg"], 1)):  # Windows では * のまま届く
        assert run("mnist_handwriting", *arguments).stdout.count("read as 7") == n_read


def png_header(width, height):
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def test_what_cannot_be_read_gets_one_line_and_the_others_are_read(run, tmp_path, capsys):
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    (tmp_path / "200 megapixels.png").write_bytes(png_header(16_320, 12_240))
    Image.new("L", (300, 300), 255).save(tmp_path / "white.png")
    reasons = {"phone.heic": "JPEG で書き出す", "200 megapixels.png": "切り抜くか、縮小する",
               "white.png": "もっと濃く書く", "missing.png": "No such file"}
    bad = [tmp_path / name for name in reasons]
    assert run.execute("mnist_handwriting", *bad, SAMPLES[0]).stdout.count("read as") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, path, reason in zip(lines, bad, reasons.values()):
        assert line.startswith(f"{path}: ") and reason in line
    with pytest.raises(SystemExit) as nothing_read:
        run.execute("mnist_handwriting", *bad)
    assert nothing_read.value.code not in (0, None)


# mnist_draw.py


STROKES = {  # 数字ごとの画。点は 0 から 100 の (x, y) で、y は下向き
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
    page.window.canvas.callbacks.process(name, MouseEvent(name, page.window.canvas, x, y, button=1))


def draw(page, digit, size, left, top):
    for stroke in STROKES[digit]:
        points = size * np.array([point.split() for point in stroke.split(", ")], dtype=float) / 100 + (left, top)
        send(page, "button_press_event", page.paper, points[0])
        for point in points[1:]:
            send(page, "motion_notify_event", page.paper, point)
        send(page, "button_release_event", page.paper, points[-1])


def click_clear(page):
    for name in ("button_press_event", "button_release_event"):
        send(page, name, page.clear_button.ax, (0.5, 0.5))


@pytest.fixture
def drawing(run, monkeypatch):
    page = run("mnist_draw")
    monkeypatch.setattr(page.window.canvas, "draw_idle", lambda: None)  # ウィンドウがないので、描き直す時間を省く
    click_clear(page)
    return page


@pytest.mark.parametrize("size, left, top", [(0.9, 0.05, 0.05), (0.2, 0.7, 0.1)])
def test_drawn_digits_are_read_wherever_and_however_large_they_are(drawing, capsys, size, left, top):
    for digit in STROKES:
        click_clear(drawing)
        draw(drawing, digit, size, left, top)
        assert f"read as {digit}" in capsys.readouterr().out.splitlines()[-1]


def test_a_cleared_page_is_blank_and_not_read(drawing, capsys):
    paper = drawing.paper
    draw(drawing, 7, 0.9, 0.05, 0.05)
    click_clear(drawing)
    assert drawing.chart.get_title() == "nothing is drawn" and not drawing.view.get_array().any()
    capsys.readouterr()
    send(drawing, "button_press_event", drawing.seen, (5, 5))  # 紙の外で押して、紙に入る
    send(drawing, "motion_notify_event", paper, (0.5, 0.2))
    send(drawing, "motion_notify_event", paper, (0.5, 0.8))
    send(drawing, "button_release_event", drawing.seen, (5, 5))
    assert "read as 1" in drawing.chart.get_title() and not capsys.readouterr().out


def test_the_distance_is_to_the_nearest_point_of_the_nearest_segment(run):
    distance = run("mnist_draw").distance_to_strokes
    ends = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[9.0, 9.0], [9.0, 9.0]]])  # 2 つ目は点
    pixels = torch.tensor([[1.0, 2.0], [3.0, 1.0], [6.0, 0.0], [9.0, 5.0]])
    torch.testing.assert_close(distance(pixels, ends), torch.tensor([2.0, 1.0, 2.0, 4.0]))


def test_both_lessons_center_in_the_same_way(run):
    codes = set()
    for name in ("mnist_handwriting", "mnist_draw"):
        tree = ast.parse(run(name).path.read_text(encoding="utf-8"))
        (function,) = [node for node in tree.body if getattr(node, "name", "") == "center_of_mass"]
        codes.add("\n".join(ast.unparse(part) for part in function.body if not isinstance(part, ast.Expr)))
    assert len(codes) == 1


@pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="Xvfb と xdotool がない")
def test_in_a_real_window_a_digit_is_drawn_and_cleared_and_the_picture_stays(run):
    pytest.importorskip("tkinter", reason="tkinter がない")
    page = run("mnist_draw")
    script, picture = page.path, (run.checkout / "images" / "mnist_draw.png").read_bytes()
    server = subprocess.Popen(["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    env = {**os.environ, "DISPLAY": f":{server.stdout.readline().strip()}", "MPLBACKEND": "TkAgg"}

    def xdotool(*args):
        return subprocess.run(["xdotool", *map(str, args)], env=env, capture_output=True, text=True, check=True).stdout

    def go(axes, x, y):
        box, (width, height) = axes.get_position(), page.window.bbox.size
        xdotool("mousemove", round(width * (box.x0 + box.width * x)), round(height * (1 - box.y1 + box.height * y)), "sleep", 0.1)

    def write(*corners):
        go(page.paper, *corners[0])
        xdotool("mousedown", 1)
        for start, end in zip(corners, corners[1:]):
            for point in np.linspace(start, end, 6)[1:]:
                go(page.paper, *point)
        xdotool("mouseup", 1, "sleep", 0.5)

    lesson = subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE, text=True)
    try:
        shown = xdotool("search", "--sync", "--onlyvisible", "--name", "draw").split()[-1]
        xdotool("windowmove", shown, 0, 0, "windowraise", shown, "sleep", 1)
        write((0.2, 0.2), (0.8, 0.2), (0.4, 0.8))
        go(page.clear_button.ax, 0.5, 0.5)
        xdotool("click", 1, "sleep", 0.5)
        write((0.5, 0.2), (0.5, 0.8))  # 7 が消えていなければ、1 とは予測されない
        for window in xdotool("search", "--onlyvisible", "--name", "draw|Figure").split():
            xdotool("windowfocus", window, "key", "--window", window, "q")  # q は、matplotlib がウィンドウを閉じるキー
        out, _ = lesson.communicate(timeout=60)
    finally:
        lesson.kill()
        server.terminate()
    assert re.findall(r"^read as (\d)", out, re.M) == ["7", "1"]
    assert (run.checkout / "images" / "mnist_draw.png").read_bytes() == picture
