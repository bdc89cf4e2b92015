"""Recompute the AP that Detectron published for a model from the detections it published with it."""

import argparse
import sys

from ..evaluation.published_detections import TOLERANCE, check_published, format_checks


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Exit code 1 if AP on all of COCO val2017 is more than {TOLERANCE} off, else 0; on a part of it always 0.",
    )
    parser.add_argument("name", metavar="NAME", help="of the model zoo: mask_rcnn_R50_FPN_gn")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO's instances_val2017.json")
    parser.add_argument("--bbox", metavar="JSON", help="published boxes, if they are here already")
    parser.add_argument("--segm", metavar="JSON", help="published masks; without both they are fetched")
    args = parser.parse_args()
    given = {task: file for task in ("bbox", "segm") if (file := getattr(args, task))}
    checks = check_published(args.name, args.annotations, given)
    print(format_checks(args.name, checks))
    sys.exit(1 if any(check.failed for check in checks) else 0)
