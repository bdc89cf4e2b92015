"""Write one HTML page on a run: result, training curves, AP per class, confusions, errors and pictures."""

import argparse

from ..report import write_report


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="the OUTPUT_DIR of a run")
    parser.add_argument("--out", metavar="FILE", help="the page (default: OUTPUT_DIR/report.html)")
    parser.add_argument("--dataset", metavar="NAME", help="of those that the run was evaluated on (default: the first)")
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.5,
        metavar="S",
        help="least score of the detections that are counted as found or false, and drawn (default: 0.5)",
    )
    args = parser.parse_args()
    print(write_report(args.folder, args.out, dataset=args.dataset, min_score=args.min_score))
