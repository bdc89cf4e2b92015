"""Compare runs: one table and one picture of their AP. Runs that differ only in the seed are one row, with its spread."""

import argparse

from ..evaluation.comparison import draw_runs, load_runs, paper_rows, runs_table

_NOTE = "AP in percent; ± is the standard deviation over seeds, and of a difference its standard error."


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR, record or folder of records; or NAME=RUN")
    parser.add_argument("--paper", nargs="+", default=[], metavar="CONFIG", help="the paper's rows to set beside them")
    parser.add_argument("--out", default="comparison.png", help="the picture, PNG or SVG (default: comparison.png)")
    args = parser.parse_args()
    rows, paper = load_runs(args.runs), paper_rows(args.paper)
    print(f"{runs_table(rows, paper)}\n\n{_NOTE}")
    if paper and not rows[0].records[0]["dataset"].startswith("coco_2017_val"):
        print(f"The paper's rows are on COCO val2017, and not on {rows[0].records[0]['dataset']}: look at differences.")
    draw_runs(rows, args.out, paper)
    print(f"Picture: {args.out}")
