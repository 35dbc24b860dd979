"""load_and_infer.py -i が、MNIST ではない画像から数字を読む。"""

import io
import re
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import make_digits
from conftest import ROOT, lesson, tree

DIGITS = ROOT / "images" / "digits"
SIZE = 240  # テストで作る画像の一辺
NUM_PER_KIND = 40


def enlarge(image, rng):
    """テスト画像 (28, 28)（uint8）を 7 倍に拡大し、ずらして置いた、線の濃さ (SIZE, SIZE)、[0, 1]。"""
    big = np.asarray(Image.fromarray(image).resize((196, 196), Image.Resampling.BICUBIC)) / 255
    ink = np.zeros((SIZE, SIZE))
    y, x = rng.integers(0, SIZE - 196, size=2)
    ink[y:y + 196, x:x + 196] = big
    return ink


def uneven_paper(rng):
    """右へ暗くなり、柔らかい影の落ちた灰色の紙 (SIZE, SIZE)。"""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    return 215 - 60 * x - 35 / (1 + np.exp((y - rng.uniform(0.3, 0.7)) / 0.06))


def picture(values):
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def photo(ink, rng):
    paper = uneven_paper(rng)
    return picture(paper * (1 - ink) + 60 * ink + rng.normal(0, 8, ink.shape))


def framed(ink, rng):
    image = picture(255 - 255 * ink)
    ImageDraw.Draw(image).rectangle((1, 1, SIZE - 2, SIZE - 2), outline=40, width=3)
    return image


def blue_pen(ink, rng):
    ink = ink[..., None]
    return picture(np.array([250, 248, 240]) * (1 - ink) + np.array([30, 50, 150]) * ink)


def transparent(ink, rng):
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[..., 3] = 255 * ink
    return Image.fromarray(pixels)


KINDS = {
    "dark on light": (lambda ink, rng: picture(255 - 255 * ink), "PNG"),
    "light on dark": (lambda ink, rng: picture(255 * ink), "PNG"),
    "photo with a shadow": (photo, "JPEG"),
    "thin border": (framed, "PNG"),
    "blue pen": (blue_pen, "JPEG"),
    "transparent": (transparent, "PNG"),
    "16 bit": (lambda ink, rng: Image.fromarray((65535 * (1 - 0.9 * ink)).astype(np.uint16)), "PNG"),
    "palette": (lambda ink, rng: picture(255 - 255 * ink).convert("P"), "PNG"),
    "CMYK": (lambda ink, rng: picture(255 - 255 * ink).convert("CMYK"), "JPEG"),
}


@pytest.fixture(scope="module")
def cnn():
    module = lesson("load_and_infer")
    model = module.CNN()
    module.load_weights(model, ROOT / "02_pytorch_mnist" / "mnist_cnn.pth")
    return module, model


def test_digits_that_are_not_mnist_s_are_read_as_well(cnn, tmp_path):
    module, model = cnn
    images, labels = module.load_mnist(train=False)
    images, labels = images[:NUM_PER_KIND], labels[:NUM_PER_KIND]
    originals = (255 * images[:, 0]).round().byte().numpy()
    own_errors = int((module.predict(model, images)[0] != labels).sum())
    errors = {}
    for kind, (make, file_format) in KINDS.items():
        prepared = []
        for i, original in enumerate(originals):
            rng = np.random.default_rng(i)
            path = tmp_path / "digit"
            make(enlarge(original, rng), rng).save(path, file_format)
            prepared.append(module.prepare_digit(module.read_image(path)))
        prepared = torch.stack(prepared)
        assert prepared.shape == (NUM_PER_KIND, 1, 28, 28) and prepared.dtype == torch.float32
        assert prepared.min() >= 0 and prepared.max() <= 1
        errors[kind] = int((module.predict(model, prepared)[0] != labels).sum())
    # 1 ポイントまでの低下は、全部で 360 枚のうち 3 枚である
    assert sum(errors.values()) <= len(KINDS) * own_errors + 0.01 * NUM_PER_KIND * len(KINDS), errors


def test_printed_digits(cnn, tmp_path):
    module, model = cnn
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    right = total = 0
    for name in ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral"):
        font = ImageFont.truetype(str(fonts / f"{name}.ttf"), 200)
        for digit in range(10):
            image = Image.new("L", (300, 300), 255)
            ImageDraw.Draw(image).text((150, 150), str(digit), font=font, fill=0, anchor="mm")
            image.save(tmp_path / "digit.png")
            prepared = module.prepare_digit(module.read_image(tmp_path / "digit.png"))
            right += module.predict(model, prepared[None])[0].item() == digit
            total += 1
    assert total == 40 and right >= 32, right  # 活字は手書きと形が違うので、手書きほどは読めない


def test_the_ink_is_scaled_and_centered_as_in_mnist(cnn, tmp_path):
    module, _ = cnn
    image = Image.new("L", (400, 300), 255)
    ImageDraw.Draw(image).rectangle((300, 40, 339, 239), fill=0)  # 幅 40、高さ 200 の棒
    image.save(tmp_path / "bar.png")
    digit = module.prepare_digit(module.read_image(tmp_path / "bar.png"))[0]
    rows, columns = (digit > 0.5).nonzero().unbind(dim=1)
    assert rows.max() - rows.min() + 1 in (19, 20) and columns.max() - columns.min() + 1 in (3, 4, 5)
    center = (digit.sum(dim=1) * torch.arange(28)).sum() / digit.sum()
    assert abs(center - 13.5) <= 1


@pytest.mark.parametrize("model_type", ["mlp", "cnn"])
def test_the_example_pictures_are_read(model_type, tmp_path, capsys):
    paths = sorted(DIGITS.glob("*.png"))
    assert len(paths) == 5 and all(path.stat().st_size < 80_000 for path in paths)
    result = lesson("load_and_infer").main(
        ["-d", "cpu", "-m", model_type, "-i", *map(str, paths), "-o", str(tmp_path / "out.png")]
    )
    assert result["predictions"].tolist() == [int(re.search(r"_(\d)", path.name)[1]) for path in paths]
    out = capsys.readouterr().out
    for path, prediction, row in zip(paths, result["predictions"], result["probabilities"]):
        assert f"{path}: read as {prediction} ({row[prediction]:.1%})" in out
        assert row.sum().item() == pytest.approx(1, abs=1e-5)
    axes = result["figure"].axes
    assert len(axes) == 15
    for i in range(5):
        np.testing.assert_array_equal(axes[3 * i + 1].images[0].get_array(), result["digits"][i, 0])
        heights = [bar.get_height() for bar in axes[3 * i + 2].patches]
        np.testing.assert_allclose(heights, result["probabilities"][i])


def test_the_example_pictures_are_made_by_the_script(tmp_path):
    make_digits.main(tmp_path)
    for path in sorted(DIGITS.glob("*.png")):
        made, shipped = (np.asarray(Image.open(folder / path.name).convert("RGBA"), dtype=int)
                         for folder in (tmp_path, DIGITS))
        assert made.shape == shipped.shape and abs(made - shipped).mean() < 2


def png_header(width, height):
    """大きさだけを width×height と名乗る、中身のない PNG。"""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_pictures_that_can_not_be_read(tmp_path, fails):
    main = lesson("load_and_infer").main
    noise = np.random.default_rng(0).normal(200, 6, (200, 200))
    picture(noise).save(tmp_path / "blank.png")
    picture(uneven_paper(np.random.default_rng(0))).save(tmp_path / "shadow.png")
    Image.new("RGBA", (50, 50)).save(tmp_path / "clear.png")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "text.png").write_text("数字", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((DIGITS / "pen_3.png").read_bytes()[:3000])
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (tmp_path / "large.png").write_bytes(png_header(10_000, 10_000))
    expected = {
        "blank.png": "何も書かれていない", "shadow.png": "何も書かれていない", "clear.png": "何も書かれていない",
        "dot.png": "何も書かれていない", "text.png": "画像として読めない", "empty.png": "画像として読めない",
        "cut.png": "画像として読めない", "bomb.png": "大きすぎる", "large.png": "大きすぎる",
        "none.png": "がない", "": "がない", "x" * 5000: "がない",
    }
    before = tree(tmp_path)
    for name, reason in expected.items():
        path = tmp_path / name if name else name
        message = fails(main, ["-d", "cpu", "-i", path, "-o", tmp_path / "out.png"])
        assert reason in message and str(path) in message, name
    assert tree(tmp_path) == before


def test_image_goes_alone(tmp_path, fails):
    main = lesson("load_and_infer").main
    picture_path = DIGITS / "pen_3.png"
    for extra in (["-s", "0"], ["-n", "20"]):
        assert "--image" in fails(main, ["-i", picture_path, *extra, "-o", tmp_path / "out.png"])
    assert "--image" in fails(main, ["-i", *[picture_path] * 21, "-o", tmp_path / "out.png"])
