"""Define colors that people with color blindness can distinguish, and save figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GNDetError

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colors of Okabe and Ito, and gray.
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, YELLOW, GRAY = "#e69f00", "#56b4e9", "#f0e442", "#7f7f7f"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GRAY)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Save a figure, and create missing folders.

    Args:
        path: the file; its suffix selects the format, for example PNG, SVG or PDF.

    Raises:
        GNDetError: the file cannot be written, or matplotlib does not know its suffix.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise GNDetError(f"The figure {path} cannot be written: {error}.") from None


def label_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Write names beside the rows 0, 1, ... of a figure. They may be in any script, and ``$`` does not begin a formula."""
    from .fonts import with_fonts

    texts = [with_fonts(name) for name in names]
    axes.set_yticks(range(len(names)), [text for text, _ in texts], parse_math=False)
    for label, (_, families) in zip(axes.get_yticklabels(), texts, strict=True):
        label.set_fontfamily(families)
