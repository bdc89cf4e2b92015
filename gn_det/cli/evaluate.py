"""Compute the COCO AP and AR of detections in a file, with the same evaluator as in training."""

import argparse
import tempfile
from pathlib import Path

from tabulate import tabulate

from ..data.coco import register_annotations
from ..evaluation.evaluator import evaluate_detections


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", required=True, metavar="JSON", help="ground truth in COCO format")
    parser.add_argument(
        "--detections",
        required=True,
        metavar="JSON",
        nargs="+",
        help="files in COCO's result format, each evaluated separately",
    )
    parser.add_argument("--digits", type=int, default=1, metavar="N", help="decimal places (default: %(default)s)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        register_annotations("annotations", args.annotations, Path(folder) / "annotations.json")
        for path in args.detections:
            for task, metrics in evaluate_detections("annotations", path).items():
                totals = {name: value for name, value in metrics.items() if not name.startswith("AP-")}
                rows.append({"detections": Path(path).name, "task": task, **totals})
    print(tabulate(rows, "keys", tablefmt="github", floatfmt=f".{args.digits}f"))
