"""Compare the AP of runs in a table and a picture.

Runs that differ only in the seed share a row, which shows their mean and standard deviation.
"""

import argparse

from ..evaluation.comparison import draw_runs, load_runs, paper_rows, runs_table

_NOTE = "AP in percent. ± is the standard deviation over seeds; for a difference, it is the standard error."


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="OUTPUT_DIR, result record, or folder of records; NAME=RUN names the row"
    )
    parser.add_argument(
        "--paper", nargs="+", default=[], metavar="CONFIG", help="also show the paper's results for these configs"
    )
    parser.add_argument("--dataset", default="", metavar="NAME", help="the test set, if the runs have several")
    parser.add_argument(
        "--out", default="comparison.png", metavar="FILE", help="the picture, PNG or SVG (default: %(default)s)"
    )
    args = parser.parse_args()
    rows, paper = load_runs(args.runs, args.dataset), paper_rows(args.paper)
    print(f"{runs_table(rows, paper)}\n\n{_NOTE}")
    if paper and not rows[0].records[0]["dataset"].startswith("coco_2017_val"):
        dataset = rows[0].records[0]["dataset"]
        print(f"The paper's results are for COCO val2017, not for {dataset}; compare only differences between rows.")
    draw_runs(rows, args.out, paper)
    print(f"Picture: {args.out}")
