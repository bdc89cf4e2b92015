"""Find fonts for names in any script, among those of the machine."""

import functools
import logging
import os
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

logger = logging.getLogger(__name__)

_NO_FONT = "\u25a1"  # a square; the default font has it
_helpful: list[str] = []  # files of fonts that had a letter before; a name has several letters of one script


def with_fonts(text: str) -> tuple[str, list[str]]:
    """Return a text that matplotlib can draw, and the font families to draw it with.

    A letter that no font of the machine has becomes a square, and a hint is logged once.
    """
    families = ["sans-serif"]
    letters = []
    for letter in text:
        file = find_font(letter)
        missing = file is None and letter.isprintable()
        letters.append(_NO_FONT if missing else letter)
        if missing:
            _hint()
        if file and (family := _families()[file]) not in families:
            families.append(family)
    return "".join(letters), families


def image_font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of PIL for a text: PIL's own, or one that has the first letter which is not in matplotlib's own.

    Args:
        size: in pixels.
    """
    if text.isascii():
        return ImageFont.load_default(size)
    file = next((file for letter in text if (file := find_font(letter))), _default_font())
    return ImageFont.truetype(file, size)


def _default_font() -> str:
    path: str = font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))  # matplotlib caches it
    return path


@functools.cache
def find_font(letter: str) -> str | None:
    """Return the file of a font that has the letter: "" for the default font, None if no font has it."""
    if letter.isascii() or _has(_default_font(), letter):
        return ""
    for file in dict.fromkeys([*_helpful, *_families()]):
        if _has(file, letter):
            if file not in _helpful:
                _helpful.append(file)
            return file
    return None


def _has(file: str, letter: str) -> bool:
    try:
        return bool(_open(file).get_char_index(ord(letter)))
    except (OSError, RuntimeError):  # the file was removed or is damaged
        return False


@functools.lru_cache(maxsize=256)
def _open(file: str) -> FT2Font:
    return FT2Font(file)


@functools.cache
def _families() -> dict[str, str]:
    """Return {file: family} of all regular fonts, Noto first; without a font that draws each letter as a box."""
    entries: Iterable = font_manager.fontManager.ttflist
    fonts = [e for e in entries if e.style == "normal" and "Last Resort" not in e.name and os.path.isfile(e.fname)]
    fonts.sort(key=lambda font: ("Noto" not in font.name, str(font.weight) not in ("400", "normal"), font.name))
    return {font.fname: font.name for font in fonts}


@functools.cache
def _hint() -> None:
    """Log once that a font is missing."""
    logger.warning(
        "No font of this machine has some letters of the names that are drawn, which become squares: install a font of "
        "their script, such as Noto Sans CJK (on Debian and Ubuntu: apt install fonts-noto-cjk)."
    )
