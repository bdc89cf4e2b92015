"""Image files of any origin: formats, orientation, cut and hostile files, and headers read without decoding."""

import struct
import zlib

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image, ImageFile

from gn_det.images import FORMATS, check_format, read_header, read_image
from helpers.errors import error_sentence

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\n%%EOF\n"


def exif(orientation: object) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def save(tmp_path):
    """Function of (file name, options of Image.save): writes PIXELS and returns the path."""

    def make(name: str, **options):
        Image.fromarray(PIXELS).save(tmp_path / name, **options)
        return tmp_path / name

    return make


@pytest.fixture
def no_decoding(monkeypatch):
    """Make the decoding of pixels an error."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("was decoded"))


@pytest.mark.parametrize("name", FORMATS)
def test_headers_and_pixels_of_all_formats(name, save):
    path = save(f"a.{name}", format=name)
    header = read_header(path)
    assert header.size == (60, 40) and header.orientation == 1
    assert header.format in (name, "BMP")  # Pillow opens a DIB as BMP
    check_format(path)
    for mode in ("RGB", "BGR", "L"):
        assert np.array_equal(read_image(path, mode), detectron2_read_image(path, mode))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_orientation_is_applied_as_by_detectron2(orientation, name, save):
    path = save(name, exif=exif(orientation))
    pixels = detectron2_read_image(path, "RGB")
    assert np.array_equal(read_image(path, "RGB"), pixels)
    header = read_header(path)
    assert header.orientation == orientation and header.size == pixels.shape[1::-1]


@pytest.mark.parametrize(
    ("kind", "value"),
    [(3, b"\0\0\0\0"), (3, b"\0\t\0\0"), (3, b"\0\x4d\0\0"), (2, b"up\0\0"), (1, b"abcd"), (7, b"\6\0\0\0")],
    ids=["0", "9", "77", "text", "bytes", "undefined"],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_orientation_outside_the_standard_is_upright(kind, value, name, save):
    count = 1 if kind == 3 else 4
    data = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 0x0112, kind, count) + value + b"\0\0\0\0"
    path = save(name, exif=b"Exif\0\0" + data)
    header = read_header(path)
    assert header.orientation == 1 and header.size == (60, 40)
    assert np.array_equal(read_image(path, "RGB"), detectron2_read_image(path, "RGB"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("data", [b"MM", b"II*\0\xff\xff\xff\xff", b"junk" * 9, exif(6)[6:20], exif(6)[6:-8], b""])
def test_damaged_exif_data_is_upright(data, save):
    png, jpeg = save("a.png"), save("a.jpg")
    content, segment = png.read_bytes(), b"Exif\0\0" + data
    png.write_bytes(content[:33] + chunk(b"eXIf", data) + content[33:])
    content = jpeg.read_bytes()
    jpeg.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    for path in (png, jpeg):
        assert read_header(path).orientation == 1 and read_image(path, "RGB").shape == PIXELS.shape


# ---- headers without decoding


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp", "a.gif"])
@pytest.mark.parametrize("options", [{}, {"exif": exif(6)}])
def test_header_is_read_without_decoding(name, options, save):
    assert read_header(save(name, **options)).size == ((40, 60) if options and name[2] in "jp" else (60, 40))


def test_exif_data_after_the_pixels_of_a_png(save):
    """detectron2 applies them, too."""
    path = save("a.png")
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk(b"eXIf", exif(6)[6:]) + data[-12:])
    assert read_header(path).orientation == 6 and read_header(path).size == (40, 60)
    assert np.array_equal(read_image(path, "RGB"), detectron2_read_image(path, "RGB"))


# ---- damaged and hostile files


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("missing", [1, 2, 30, 1500])
def test_cut_file_is_found_by_its_header(name, missing, save):
    path = save(name)
    path.write_bytes(path.read_bytes()[:-missing])
    try:
        pixels = read_image(path, "RGB")
    except ValueError:
        sentence = error_sentence(read_header, path)
        assert sentence.startswith(f"{path} cannot be read as an image: ") and "truncated" in sentence
    else:  # only the end mark is incomplete
        assert missing <= 2 and read_header(path).size == pixels.shape[1::-1]


@pytest.mark.parametrize("end", [b"\0" * 100, b"\n", b"\0\0\0\x20ftypmp42" + b"x" * 500])
def test_data_after_the_end_of_a_jpeg_is_accepted(end, save):
    """Some cameras pad the file, or append a video."""
    path = save("a.jpg")
    path.write_bytes(path.read_bytes() + end)
    assert read_header(path).size == (60, 40)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps"])
@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + b"\0" * 30, b"", b"text", b"<svg/>", b"GIF8"])
def test_other_formats_are_refused_by_their_content(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    path = tmp_path / name
    path.write_bytes(content)
    for call in (read_header, lambda path: read_image(path, "RGB")):
        assert error_sentence(call, path).startswith(f"{path} cannot be read as an image: ")
    if content != b"GIF8":  # its first bytes are right
        assert error_sentence(check_format, path).startswith(f"{path} cannot be read as an image: ")


@pytest.mark.parametrize("call", [read_header, check_format, lambda path: read_image(path, "RGB")])
def test_missing_files_and_folders_are_named(call, tmp_path):
    for path in (tmp_path, tmp_path / "none.png"):
        assert str(path) in error_sentence(call, path)


def test_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "a.png"
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))
    for call in (read_header, lambda path: read_image(path, "RGB")):
        assert "exceeds limit" in error_sentence(call, path)
