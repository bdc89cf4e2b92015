"""Names in any script are drawn with a font that has their letters, or with squares and one hint."""

import logging
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import ImageFont

from gn_det.drawing import fonts
from gn_det.drawing.figures import label_rows, save_figure
from gn_det.drawing.fonts import image_font, with_fonts
from gn_det.drawing.instances import LabelVisualizer

CHINESE = "苹果"  # no font of matplotlib has these letters
STIX = matplotlib.get_data_path() + "/fonts/ttf/STIXGeneral.ttf"


@pytest.fixture(autouse=True)
def only_fonts_of_matplotlib(monkeypatch):
    """Hide the fonts of the machine, and forget what was found."""
    caches = (fonts.find_font, fonts._families, fonts._hint)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(fonts, "_helpful", [])
    shipped = [font for font in font_manager.fontManager.ttflist if matplotlib.get_data_path() in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", shipped)
    yield
    for cache in caches:
        cache.cache_clear()


def test_names_that_the_default_font_has_are_unchanged():
    for name in ("apple 99%", "Äpfel", "яблоко", "μήλο", "a\nb", ""):
        assert with_fonts(name) == (name, ["sans-serif"])
    assert image_font("apple", 15).getmask("apple").size == ImageFont.load_default(15).getmask("apple").size


def test_letters_without_a_font_become_squares_with_one_hint(caplog):
    with caplog.at_level(logging.WARNING):
        assert with_fonts(f"{CHINESE} 1") == ("\u25a1\u25a1 1", ["sans-serif"])
        assert with_fonts("梨") == ("\u25a1", ["sans-serif"])
    (line,) = caplog.messages
    assert "fonts-noto-cjk" in line


def test_afind_font_the_letter_is_found(monkeypatch):
    monkeypatch.setattr(fonts, "_default_font", lambda: STIX)
    letter = "\u0561"  # Armenian, which DejaVu has and STIX has not
    assert with_fonts(letter + "a") == (letter + "a", ["sans-serif", "DejaVu Sans"])
    assert image_font(letter, 20).path == fonts.find_font(letter)


def test_drawing_any_name_gives_no_warning():
    canvas = LabelVisualizer(np.zeros((100, 100, 3), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (CHINESE, "x_{y}^$$", "\\frac$", "$\\alpha$"):
            canvas.draw_text(name, (10, 10), color=(1, 0, 0))
        assert canvas.output.get_image().any()


def test_rows_of_a_figure_may_have_any_name(tmp_path):
    figure = Figure()
    axes = figure.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_rows(axes, ["x_{y}^$$", CHINESE])
        save_figure(figure, tmp_path / "x.png")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x_{y}^$$", "\u25a1\u25a1"]
