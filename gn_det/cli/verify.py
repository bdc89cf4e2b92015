"""Recompute the AP that Detectron published for a model from the detections that it published."""

import argparse
import sys

from ..evaluation.published_detections import TOLERANCE, check_published, format_checks


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"The exit code is 1 if an AP on all of COCO val2017 differs by more than {TOLERANCE} from the published "
        "one, else 0. On a subset of val2017 it is always 0.",
    )
    parser.add_argument("name", metavar="NAME", help="name in the model zoo, such as mask_rcnn_R50_FPN_gn")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO's instances_val2017.json")
    parser.add_argument("--bbox", metavar="JSON", help="file of the published boxes, if you have it")
    parser.add_argument(
        "--segm",
        metavar="JSON",
        help="file of the published masks, if you have it; without --bbox and --segm, both files are downloaded",
    )
    args = parser.parse_args()
    given = {task: file for task in ("bbox", "segm") if (file := getattr(args, task))}
    checks = check_published(args.name, args.annotations, given)
    print(format_checks(args.name, checks))
    sys.exit(1 if any(check.failed for check in checks) else 0)
