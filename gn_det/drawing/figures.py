"""What all figures share: colors that people with any color vision can tell apart, and writing to a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GNDetError

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

# Okabe and Ito's colors, and gray.
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, YELLOW, GRAY = "#e69f00", "#56b4e9", "#f0e442", "#7f7f7f"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GRAY)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of its name. Missing folders are created.

    Raises:
        GNDetError: the file cannot be written, or matplotlib does not know its suffix.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise GNDetError(f"The picture {path} cannot be written: {error}.") from None
