"""Reading images: every mode is read as in training, or refused with a one-sentence error."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from gn_det import GNDetError
from gn_det.prediction.images import as_bgr, find_files, read_all, read_image

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
COLOR = Image.fromarray(RGB)
GRAY = COLOR.convert("L")


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(RGB[:, :, 1]))
    return image


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to display
    return exif


PALETTE = COLOR.quantize(8)
# File name: (image, options of Image.save, expected pixels in BGR or None to compare with detectron2 alone).
COMMON_IMAGES = {
    "rgb.png": (COLOR, {}, RGB[:, :, ::-1]),
    "gray.png": (GRAY, {}, np.asarray(GRAY)[:, :, None].repeat(3, 2)),
    "gray_alpha.png": (with_alpha(GRAY), {}, np.asarray(GRAY)[:, :, None].repeat(3, 2)),
    "rgba.png": (with_alpha(COLOR), {}, RGB[:, :, ::-1]),
    "palette.png": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))[:, :, ::-1]),
    "transparent_palette.png": (PALETTE, {"transparency": 3}, np.asarray(PALETTE.convert("RGB"))[:, :, ::-1]),
    "palette.gif": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))[:, :, ::-1]),
    "one_bit.png": (GRAY.convert("1"), {}, np.asarray(GRAY.convert("1"))[:, :, None].repeat(3, 2) * np.uint8(255)),
    "exif.png": (COLOR, {"exif": rotated()}, np.rot90(RGB, -1)[:, :, ::-1]),
    "exif_gray.png": (GRAY, {"exif": rotated()}, np.rot90(np.asarray(GRAY), -1)[:, :, None].repeat(3, 2)),
    "cmyk.tif": (COLOR.convert("CMYK"), {}, RGB[:, :, ::-1]),
    "cmyk.jpg": (COLOR.convert("CMYK"), {}, None),
    "gray.jpg": (GRAY, {}, None),
    "color.webp": (COLOR, {}, None),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("name", COMMON_IMAGES)
def test_common_images_are_read_as_in_training(tmp_path, name):
    image, options, expected = COMMON_IMAGES[name]
    path = tmp_path / name
    image.save(path, **options)
    read = read_image(path)
    assert read.dtype == np.uint8 and np.array_equal(read, detectron2_read_image(path, "BGR"))
    assert expected is None or np.array_equal(read, expected)
    with Image.open(path) as opened:
        assert np.array_equal(as_bgr(opened), read)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "<u2"), ("little.tif", "<u2"), ("big.tif", ">u2"), ("rotated.tif", "<u2")]
)
def test_16_bit_images_are_scaled_by_their_full_range(tmp_path, name, kind):
    """Pillow, and therefore detectron2, would clip the values at 255."""
    values = np.array([[0, 255, 256], [0x1234, 65279, 65535]], kind)
    options = {"exif": rotated()} if name == "rotated.tif" else {}
    Image.frombytes("I;16" if kind == "<u2" else "I;16B", (3, 2), values.tobytes()).save(tmp_path / name, **options)
    expected = np.array([[0, 0, 1], [0x12, 254, 255]])
    expected = np.rot90(expected, -1) if options else expected
    assert np.array_equal(read_image(tmp_path / name), expected[:, :, None].repeat(3, 2))


def test_rotated_tiff_is_rotated_once(tmp_path):
    """detectron2 applies the orientation a second time, after Pillow."""
    COLOR.save(tmp_path / "a.tif", exif=rotated())
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.rot90(RGB, -1)[:, :, ::-1])
    assert not np.array_equal(detectron2_read_image(tmp_path / "a.tif", "BGR"), read_image(tmp_path / "a.tif"))


def test_16_bit_png_in_the_mode_of_pillow_10():
    image = Image.fromarray(np.array([[0, 65535]], np.int32))
    image.format = "PNG"
    assert image.mode == "I" and as_bgr(image)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(("dtype", "message"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype, message):
    Image.fromarray(np.ones((2, 2), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(GNDetError, match=rf"a\.tif: its pixels are {message}.*save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def image_bytes(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda _: b"", "it is empty"),
        (lambda _: b"not a picture", "its format is not supported"),
        (lambda folder: image_bytes(folder, ".jpg")[:2000], "truncated"),
        (lambda folder: image_bytes(folder, ".png")[:2000], "truncated"),
        (lambda folder: image_bytes(folder, ".tif")[:2000], "cannot be read as an image"),
        (lambda folder: image_bytes(folder, ".png")[:30], "cannot be read as an image"),
        # Pillow would start Ghostscript for this file.
        (
            lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
            "its format is not supported",
        ),
    ],
)
def test_damaged_image_is_refused_in_one_sentence_with_its_name(tmp_path, content, message):
    (tmp_path / "x.jpg").write_bytes(content(tmp_path))
    with pytest.raises(GNDetError, match=rf"x\.jpg cannot be read as an image: .*{message}|x\.jpg {message}") as error:
        read_image(tmp_path / "x.jpg")
    assert "\n" not in str(error.value) and str(error.value).count("x.jpg") == 1


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    COLOR.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(GNDetError, match=r"bomb\.png cannot be read as an image: .*exceeds limit"):
        read_image(tmp_path / "bomb.png")


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(GNDetError, match=r"x\.png does not exist"):
        read_image(tmp_path / "x.png")
    with pytest.raises(GNDetError, match="is a folder"):
        read_image(tmp_path)


def test_arrays_of_each_shape():
    bgr = RGB[:, :, ::-1]
    assert np.array_equal(as_bgr(bgr), bgr)
    gray = RGB[:, :, 0]
    for array in (gray, gray[:, :, None]):
        assert np.array_equal(as_bgr(array), np.stack([gray] * 3, axis=2))
    assert np.array_equal(as_bgr(np.concatenate([bgr, bgr[:, :, :1]], axis=2)), bgr)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB / 255, "has dtype float64; it must be uint8"),
        (RGB.astype(np.float32), "has dtype float32; it must be uint8"),
        (RGB.astype(np.uint16), "has dtype uint16; it must be uint8"),
        (RGB > 9, "has dtype bool; it must be uint8"),
        (RGB.transpose(2, 0, 1), r"has shape \(3, 4, 6\); it must be \(height, width, 3\)"),
        (RGB[None], r"has shape \(1, 4, 6, 3\)"),
        (RGB[0, 0], r"has shape \(3,\)"),
        (RGB[:0], "contains no pixels"),
        (np.zeros((0, 0), np.uint8), "contains no pixels"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (3, "The input is of type int; pass a path"),
        (None, "The input is of type NoneType; pass a path"),
    ],
)
def test_invalid_image_is_refused(image, message):
    with pytest.raises(GNDetError, match=message):
        as_bgr(image)


def test_truncated_pil_image_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(image_bytes(tmp_path, ".png")[:2000])
    with (
        Image.open(tmp_path / "x.png") as opened,
        pytest.raises(GNDetError, match="PIL image cannot be used: .*truncated"),
    ):
        as_bgr(opened)


def test_find_files_of_folder_and_pattern(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "c[1].png", "d.heic"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "e.png").touch()
    names = lambda source: [str(path)[len(str(tmp_path)) + 1 :] for path in find_files(source)]  # noqa: E731
    assert names(tmp_path) == ["a.JPG", "b.png", "c[1].png", "d.heic"]
    assert names(f"{tmp_path}/*.png") == ["b.png", "c[1].png"]
    assert names(f"{tmp_path}/**/*.png") == ["b.png", "c[1].png", "sub.png/e.png"]
    assert names(tmp_path / "c[1].png") == ["c[1].png"] and names(tmp_path / "none.png") == ["none.png"]
    for source, message in (
        (f"{tmp_path}/*.bmp", "No file matches"),
        ("https://example.com/a.png", "is a URL.*download it first"),
        ("file:///etc/passwd", "is a URL"),
    ):
        with pytest.raises(GNDetError, match=message):
            find_files(source)
    (tmp_path / "sub.png" / "e.png").unlink()
    with pytest.raises(GNDetError, match="contains no images itself"):
        find_files(tmp_path / "sub.png")


def test_read_all_keeps_the_order_and_returns_errors(tmp_path):
    COLOR.save(tmp_path / "a.png")
    read = list(read_all([RGB, str(tmp_path), tmp_path / "no.png", COLOR, 5]))
    assert [name for name, _ in read] == [0, str(tmp_path / "a.png"), str(tmp_path / "no.png"), 3, 4]
    assert [isinstance(image, GNDetError) for _, image in read] == [False, False, True, False, True]
    assert len(list(read_all(COLOR))) == len(list(read_all(RGB))) == len(list(read_all(7))) == 1
