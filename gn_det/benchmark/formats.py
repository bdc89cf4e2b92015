"""Formats that the tables of all stages share."""

from tabulate import tabulate


def format_ratio(row: dict) -> str:
    """Format a ratio with its spread, such as "1.50x (1.40 to 1.60)".

    Args:
        row: as :func:`gn_det.benchmark.timing.ratio` returns it.
    """
    return f"{row['ratio']:.2f}x ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})"


def markdown_table(rows: list[list], headers: list[str]) -> str:
    """Return a Markdown table, with all values as they are given."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
