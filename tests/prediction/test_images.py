"""Images of every mode: read as training reads them, or refused in a sentence."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from gn_det import GNDetError
from gn_det.prediction.images import as_bgr, find_files, read_all, read_image

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
COLOUR = Image.fromarray(RGB)
GRAY = COLOUR.convert("L")


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(RGB[:, :, 1]))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter clockwise
    return exif


PALETTE = COLOUR.quantize(8)
# name of the file: (image, how it is saved, what is right in BGR, or None for what detectron2 says)
ORDINARY = {
    "rgb.png": (COLOUR, {}, RGB[:, :, ::-1]),
    "gray.png": (GRAY, {}, np.asarray(GRAY)[:, :, None].repeat(3, 2)),
    "gray_alpha.png": (with_alpha(GRAY), {}, np.asarray(GRAY)[:, :, None].repeat(3, 2)),
    "rgba.png": (with_alpha(COLOUR), {}, RGB[:, :, ::-1]),
    "palette.png": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))[:, :, ::-1]),
    "transparent_palette.png": (PALETTE, {"transparency": 3}, np.asarray(PALETTE.convert("RGB"))[:, :, ::-1]),
    "palette.gif": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))[:, :, ::-1]),
    "one_bit.png": (GRAY.convert("1"), {}, np.asarray(GRAY.convert("1"))[:, :, None].repeat(3, 2) * np.uint8(255)),
    "exif.png": (COLOUR, {"exif": turned()}, np.rot90(RGB, -1)[:, :, ::-1]),
    "exif_gray.png": (GRAY, {"exif": turned()}, np.rot90(np.asarray(GRAY), -1)[:, :, None].repeat(3, 2)),
    "cmyk.tif": (COLOUR.convert("CMYK"), {}, RGB[:, :, ::-1]),
    "cmyk.jpg": (COLOUR.convert("CMYK"), {}, None),
    "gray.jpg": (GRAY, {}, None),
    "colour.webp": (COLOUR, {}, None),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_images_are_read_right_and_as_in_training(tmp_path, name):
    image, options, expected = ORDINARY[name]
    path = tmp_path / name
    image.save(path, **options)
    read = read_image(path)
    assert read.dtype == np.uint8 and np.array_equal(read, detectron2_read_image(path, "BGR"))
    assert expected is None or np.array_equal(read, expected)
    with Image.open(path) as opened:
        assert np.array_equal(as_bgr(opened), read)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "<u2"), ("little.tif", "<u2"), ("big.tif", ">u2"), ("turned.tif", "<u2")]
)
def test_16_bits_are_scaled_by_their_full_range(tmp_path, name, kind):
    """Not clipped at 255, as Pillow and so detectron2 do."""
    values = np.array([[0, 255, 256], [0x1234, 65279, 65535]], kind)
    options = {"exif": turned()} if name == "turned.tif" else {}
    Image.frombytes("I;16" if kind == "<u2" else "I;16B", (3, 2), values.tobytes()).save(tmp_path / name, **options)
    expected = np.array([[0, 0, 1], [0x12, 254, 255]])
    expected = np.rot90(expected, -1) if options else expected
    assert np.array_equal(read_image(tmp_path / name), expected[:, :, None].repeat(3, 2))


def test_a_turned_tiff_is_turned_once(tmp_path):
    """detectron2 turns it after Pillow has."""
    COLOUR.save(tmp_path / "a.tif", exif=turned())
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.rot90(RGB, -1)[:, :, ::-1])
    assert not np.array_equal(detectron2_read_image(tmp_path / "a.tif", "BGR"), read_image(tmp_path / "a.tif"))


def test_pngs_16_bits_as_pillow_10_gives_them():
    image = Image.fromarray(np.array([[0, 65535]], np.int32))
    image.format = "PNG"
    assert image.mode == "I" and as_bgr(image)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(("kind", "said"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
def test_pixels_without_a_known_range_are_refused(tmp_path, kind, said):
    Image.fromarray(np.ones((2, 2), kind)).save(tmp_path / "a.tif")
    with pytest.raises(GNDetError, match=rf"a\.tif: its pixels are {said}.*save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def saved(tmp_path, suffix):
    path = tmp_path / f"whole{suffix}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda _: b"", "it is empty"),
        (lambda _: b"not a picture", "none of the formats"),
        (lambda folder: saved(folder, ".jpg")[:2000], "truncated"),
        (lambda folder: saved(folder, ".png")[:2000], "truncated"),
        (lambda folder: saved(folder, ".tif")[:2000], "cannot be read as an image"),
        (lambda folder: saved(folder, ".png")[:30], "cannot be read as an image"),
        # Ghostscript would be started for this one.
        (lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "none of the formats"),
    ],
)
def test_what_is_no_whole_image_is_one_sentence_with_its_name(tmp_path, content, said):
    (tmp_path / "x.jpg").write_bytes(content(tmp_path))
    with pytest.raises(GNDetError, match=rf"x\.jpg {said}|x\.jpg cannot be read as an image: .*{said}") as error:
        read_image(tmp_path / "x.jpg")
    assert "\n" not in str(error.value) and str(error.value).count("x.jpg") == 1


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    COLOUR.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(GNDetError, match=r"bomb\.png cannot be read as an image: .*exceeds limit"):
        read_image(tmp_path / "bomb.png")


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    with pytest.raises(GNDetError, match=r"x\.png is not there"):
        read_image(tmp_path / "x.png")
    with pytest.raises(GNDetError, match="is a folder"):
        read_image(tmp_path)


def test_arrays_of_each_form():
    bgr = RGB[:, :, ::-1]
    assert np.array_equal(as_bgr(bgr), bgr)
    gray = RGB[:, :, 0]
    for form in (gray, gray[:, :, None]):
        assert np.array_equal(as_bgr(form), np.stack([gray] * 3, axis=2))
    assert np.array_equal(as_bgr(np.concatenate([bgr, bgr[:, :, :1]], axis=2)), bgr)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (RGB / 255, "of type float64: pass uint8"),
        (RGB.astype(np.float32), "of type float32: pass uint8"),
        (RGB.astype(np.uint16), "of type uint16: pass uint8"),
        (RGB > 9, "of type bool: pass uint8"),
        (RGB.transpose(2, 0, 1), r"shape is \(3, 4, 6\): pass \(height, width, 3\)"),
        (RGB[None], r"shape is \(1, 4, 6, 3\)"),
        (RGB[0, 0], r"shape is \(3,\)"),
        (RGB[:0], "has no pixels"),
        (np.zeros((0, 0), np.uint8), "has no pixels"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (3, "A int is no image"),
        (None, "A NoneType is no image"),
    ],
)
def test_what_is_no_image_is_one_sentence(array, said):
    with pytest.raises(GNDetError, match=said):
        as_bgr(array)


def test_a_pil_image_that_was_opened_but_is_cut_off(tmp_path):
    (tmp_path / "x.png").write_bytes(saved(tmp_path, ".png")[:2000])
    with (
        Image.open(tmp_path / "x.png") as opened,
        pytest.raises(GNDetError, match="PIL image cannot be used: .*truncated"),
    ):
        as_bgr(opened)


def test_files_of_a_folder_and_of_a_pattern(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "c[1].png", "d.heic"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "e.png").touch()
    names = lambda source: [str(path)[len(str(tmp_path)) + 1 :] for path in find_files(source)]  # noqa: E731
    assert names(tmp_path) == ["a.JPG", "b.png", "c[1].png", "d.heic"]
    assert names(f"{tmp_path}/*.png") == ["b.png", "c[1].png"]
    assert names(f"{tmp_path}/**/*.png") == ["b.png", "c[1].png", "sub.png/e.png"]
    assert names(tmp_path / "c[1].png") == ["c[1].png"] and names(tmp_path / "none.png") == ["none.png"]
    for source, said in (
        (f"{tmp_path}/*.bmp", "No file matches"),
        ("https://example.com/a.png", "is a URL.*download it first"),
        ("file:///etc/passwd", "is a URL"),
    ):
        with pytest.raises(GNDetError, match=said):
            find_files(source)
    (tmp_path / "sub.png" / "e.png").unlink()
    with pytest.raises(GNDetError, match="holds no images itself"):
        find_files(tmp_path / "sub.png")


def test_all_inputs_in_order_with_problems_among_them(tmp_path):
    COLOUR.save(tmp_path / "a.png")
    read = list(read_all([RGB, str(tmp_path), tmp_path / "no.png", COLOUR, 5]))
    assert [name for name, _ in read] == [0, str(tmp_path / "a.png"), str(tmp_path / "no.png"), 3, 4]
    assert [isinstance(image, GNDetError) for _, image in read] == [False, False, True, False, True]
    assert len(list(read_all(COLOUR))) == len(list(read_all(RGB))) == len(list(read_all(7))) == 1
