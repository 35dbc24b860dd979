"""mnist_handwriting.py と mnist_draw.py が、MNIST ではない数字を読む。"""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import MouseEvent
from PIL import Image, ImageDraw, ImageFilter

from conftest import ROOT, read_mnist

SAMPLES = sorted((ROOT / "images" / "digits").glob("*.png"))


# mnist_handwriting.py


@pytest.fixture
def page(run):
    return run("mnist_handwriting")


def read(page, image, path, **options):
    """画像 image をファイルにして読ませた答え。"""
    image.save(path, **options)
    return page.model(page.prepare(page.open_picture(path))[-1]).argmax().item()


def test_every_stage_of_the_samples_is_drawn(page):
    for path, (stages, _), row in zip(SAMPLES, page.results, page.grid, strict=True):
        for stage, axes in zip(stages, row, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), stage[0, 0])
        assert row[5].get_title() == f"28×28, read as {path.stem[-1]}"


def test_the_paper_becomes_flat_and_the_ink_dark_whatever_their_colors(page):
    shade = torch.linspace(0.4, 0.9, 300).expand(1, 1, 300, 300)
    ink = torch.zeros(1, 1, 300, 300)
    ink[..., 100:200, 140:160] = 1
    for gray in (shade * (1 - 0.6 * ink), 1 - shade * (1 - 0.6 * ink)):
        flat = page.flatten(gray)
        assert flat[ink == 0].mean() > 0.95 and flat[ink == 1].max() < 0.7
        assert (page.find_ink(flat) - ink).abs().mean() < 0.01


# 太さ 3 では穴がふさがり、測ったときは 20 枚のうち 16 枚が読めた
@pytest.mark.parametrize("thickness, least", [(1, 18), (3, 14)])
def test_small_pictures_that_the_digit_fills_are_read_on_white_and_on_black(page, tmp_path, thickness, least):
    images, labels = read_mnist("t10k")
    n_right = 0
    for image, label in zip(images[:20], labels[:20]):
        light = Image.fromarray(image).filter(ImageFilter.MaxFilter(thickness))
        light = light.crop(light.point(lambda value: 255 * (value > 60)).getbbox()).resize((28, 28))
        answers = [read(page, light, tmp_path / "light.png")]
        answers.append(read(page, light.point(lambda value: 255 - value), tmp_path / "dark.png"))
        assert answers[0] == answers[1]
        n_right += answers[0] == label
    assert n_right >= least


def test_the_digit_is_chosen_among_specks_frames_and_neighbours(page):
    digit, others = torch.zeros(2, 1, 1, 400, 400)
    digit[..., 120:280, 180:200] = 1
    others[..., 20:28, 20:340] = others[..., 372:380, 20:340] = 1  # 枠
    others[..., 20:380, 20:28] = others[..., 20:380, 332:340] = 1
    others[..., 70:74, 100:104] = 1  # 汚れ
    others[..., 40:300, 370:400] = 1  # 縁で切れた隣の字
    assert page.choose_digit(digit + others).equal(digit)


@pytest.mark.parametrize("gap", [16, 20])
@pytest.mark.parametrize("width", [8, 24])
def test_a_four_of_two_strokes_is_a_four(page, tmp_path, gap, width):
    image = Image.new("L", (400, 400), 255)
    pen = ImageDraw.Draw(image)
    pen.line([(170, 80), (120, 220), (250 - gap - width // 2, 220)], fill=20, width=width)
    pen.line([(250 + width // 2, 100), (250 + width // 2, 330)], fill=20, width=width)
    assert read(page, image, tmp_path / "4.png") == 4


def test_the_digit_is_fitted_thickened_and_centered(page):
    bar = torch.zeros(1, 1, 300, 400)
    bar[..., 40:240, 300:340] = 1  # 幅 40、高さ 200
    small = page.fit(bar)
    assert small.shape == (1, 1, 20, 4)
    columns = page.center_of_mass(small).sum(dim=(0, 1, 2))
    assert len(columns) == 28 and abs((columns * torch.arange(28)).sum() / columns.sum() - 14) < 0.51
    bar[..., 302:340] = 0  # 縮めると消える、太さ 2 の線
    assert page.fit(bar).sum(dim=3).mean() > 1


def test_what_cameras_and_paint_programs_save_is_read(run, page, tmp_path):
    image = Image.open(ROOT / "images" / "digits" / "marker_7.png").convert("L")
    clear = Image.merge("LA", (Image.new("L", image.size), image.point(lambda value: 255 - value)))
    sideways = Image.Exif()
    sideways[0x112] = 6  # 時計回りに 90 度回して見る、という印
    assert read(page, image.quantize(16), tmp_path / "palette.png") == 7
    assert read(page, clear, tmp_path / "clear.png") == 7
    assert read(page, image.convert("CMYK"), tmp_path / "cmyk.jpg") == 7
    assert read(page, image.rotate(90), tmp_path / "[1].jpg", exif=sideways) == 7
    assert read(page, image.resize((12_000, 9_000)), tmp_path / "108 megapixels.jpg") == 7
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:-2])
    for name, n_read in (("*.jpg", 4), ("[1].jpg", 1)):  # Windows では * のまま届く
        assert run("mnist_handwriting", tmp_path / name).stdout.count("read as 7") == n_read


def test_what_cannot_be_read_gets_one_line_and_the_others_are_read(run, tmp_path, capsys):
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    Image.new("1", (16_320, 12_240)).save(tmp_path / "200 megapixels.png")
    Image.new("L", (300, 300), 255).save(tmp_path / "white.png")
    bad = [tmp_path / name for name in ("phone.heic", "200 megapixels.png", "white.png", "missing.png")]
    reasons = ["cannot identify", "切り抜くか、縮小する", "もっと濃く書く", "No such file"]
    assert run.execute("mnist_handwriting", *bad, SAMPLES[0]).stdout.startswith("chalk_2.png: read as 2")
    for line, path, reason in zip(capsys.readouterr().err.splitlines(), bad, reasons, strict=True):
        assert line.startswith(f"{path}: ") and reason in line
    with pytest.raises(SystemExit) as nothing_read:
        run.execute("mnist_handwriting", *bad)
    assert nothing_read.value.code not in (0, None)


# mnist_draw.py


STROKES = {  # 数字ごとの画。点は 0 から 100 の (x, y) で、y は下向き
    1: ["52 4, 50 35, 49 65, 48 96"],
    2: ["22 28, 35 8, 60 6, 74 22, 66 45, 42 70, 20 93, 50 92, 82 93"],
    4: ["34 6, 26 32, 22 54, 48 55, 78 52", "66 8, 65 50, 62 96"],
    7: ["20 10, 50 9, 80 8, 64 36, 52 66, 44 96"],
    8: ["68 18, 48 5, 30 18, 38 38, 62 56, 70 78, 50 95, 30 80, 40 58, 64 36, 68 18"],
}


def send(page, name, axes, point):
    x, y = axes.transData.transform(point)
    page.window.canvas.callbacks.process(name, MouseEvent(name, page.window.canvas, x, y, button=1))


def draw(page, digit, size, corner):
    for stroke in STROKES[digit]:
        points = np.array([point.split() for point in stroke.split(", ")], dtype=float)
        first, *others = size * points / 100 + corner
        send(page, "button_press_event", page.paper, first)
        for point in others:
            send(page, "motion_notify_event", page.paper, point)
        send(page, "button_release_event", page.paper, point)


def click_clear(page):
    for name in ("button_press_event", "button_release_event"):
        send(page, name, page.clear_button.ax, (0.5, 0.5))


@pytest.fixture
def drawing(run):
    page = run("mnist_draw")
    click_clear(page)
    return page


@pytest.mark.parametrize("size, corner", [(0.9, (0.05, 0.05)), (0.2, (0.7, 0.1))])
def test_drawn_digits_are_read_wherever_and_however_large_they_are(drawing, capsys, size, corner):
    for digit in STROKES:
        click_clear(drawing)
        draw(drawing, digit, size, corner)
        assert f"read as {digit}" in capsys.readouterr().out.splitlines()[-1]


def test_a_cleared_page_is_blank_and_not_read(drawing, capsys):
    draw(drawing, 7, 0.9, (0.05, 0.05))
    click_clear(drawing)
    assert drawing.chart.get_title() == "nothing is drawn" and not drawing.seen.images[0].get_array().any()
    capsys.readouterr()
    send(drawing, "button_press_event", drawing.seen, (5, 5))  # 紙の外で押して、紙に入り、外で離す
    for y in (0.2, 0.8):
        send(drawing, "motion_notify_event", drawing.paper, (0.5, y))
    send(drawing, "button_release_event", drawing.seen, (5, 5))
    assert "read as 1" in drawing.chart.get_title() and not capsys.readouterr().out


@pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="Xvfb と xdotool がない")
def test_in_a_real_window_a_digit_is_drawn_and_cleared_and_the_picture_stays(run):
    pytest.importorskip("tkinter", reason="tkinter がない")
    page = run("mnist_draw")
    picture = run.checkout / "images" / "mnist_draw.png"
    before = picture.read_bytes()
    server = subprocess.Popen(["Xvfb", "-displayfd", "1"], stdout=subprocess.PIPE, text=True)
    env = {**os.environ, "DISPLAY": f":{server.stdout.readline().strip()}", "MPLBACKEND": "TkAgg"}

    def xdotool(*args):
        return subprocess.check_output(["xdotool", *map(str, args)], env=env, text=True)

    def go(axes, x, y):
        x, y = axes.transAxes.transform((x, y))
        xdotool("mousemove", round(x), round(page.window.bbox.height - y), "sleep", 0.1)

    lesson = subprocess.Popen([sys.executable, page.path], env=env, stdout=subprocess.PIPE, text=True)
    try:
        xdotool("search", "--sync", "--onlyvisible", "--name", "Figure 1")  # 見本の図が出てから、手前に出す
        shown = xdotool("search", "--sync", "--onlyvisible", "--name", "draw").split()[-1]
        xdotool("windowmove", shown, 0, 0, "windowraise", shown, "sleep", 3)  # 混んだマシンでも描き終わるまで
        for corners in ([(0.2, 0.8), (0.8, 0.8), (0.4, 0.2)], [(0.5, 0.8), (0.5, 0.2)]):
            go(page.clear_button.ax, 0.5, 0.5)  # 7 が消えていなければ、次の 1 は 1 とは予測されない
            xdotool("click", 1)
            go(page.paper, *corners[0])
            xdotool("mousedown", 1)
            for start, end in zip(corners, corners[1:]):
                for point in np.linspace(start, end, 6):
                    go(page.paper, *point)
            xdotool("mouseup", 1, "sleep", 2)
    finally:
        lesson.terminate()
        server.terminate()
    assert re.findall(r"^read as (\d)", lesson.communicate()[0], re.M) == ["7", "1"]
    assert picture.read_bytes() == before
