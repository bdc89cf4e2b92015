"""Write an HTML report of a run: results, training curves, AP per class, confusion matrix, errors, and pictures."""

import argparse

from ..report import write_report


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="the OUTPUT_DIR of a run")
    parser.add_argument("--out", metavar="FILE", help="the report (default: OUTPUT_DIR/report.html)")
    parser.add_argument(
        "--dataset", metavar="NAME", help="a dataset that the run was evaluated on (default: the first one)"
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.5,
        metavar="S",
        help="minimum score of the detections that are counted and drawn (default: 0.5)",
    )
    args = parser.parse_args()
    print(write_report(args.folder, args.out, dataset=args.dataset, min_score=args.min_score))
