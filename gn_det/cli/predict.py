"""Find objects in images and videos with a trained model; draw them, or write them to a file."""

import argparse
import sys

from ..acceleration.cpu_memory import keep_freed_memory
from ..prediction.files import predict_files
from ..prediction.predictor import Predictor


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Nothing is overwritten. Exit code 0; 1 if inputs were skipped, each of which is named; 2 if all were.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, videos, folders of these, glob patterns")
    parser.add_argument(
        "--model", required=True, help="OUTPUT_DIR of a run, a checkpoint that remembers its config, or gn_det://NAME"
    )
    parser.add_argument("--config", help="path or shipped name, for a checkpoint that does not remember its config")
    parser.add_argument(
        "--out", metavar="DIR", help="new folder for pictures (default: predictions, or none if --json is given alone)"
    )
    parser.add_argument("--json", metavar="FILE", help="new file for the detections, in COCO's result format")
    parser.add_argument("--min-score", type=float, default=0.5, help="drawn and written above this (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument("--device", help="cpu, cuda, or cuda:1 (default: a GPU if there is one)")
    args = parser.parse_args()
    model = (args.config, args.model) if args.config else (args.model,)
    predictor = Predictor(*model, device=args.device, batch_size=args.batch_size, min_score=args.min_score)
    if predictor.cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    tally = predict_files(predictor, args.inputs, out=args.out, json_file=args.json)
    sys.exit(1 if tally.skipped else 0)
