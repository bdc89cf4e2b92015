"""Detect objects in images and videos with a trained model, and draw them or write them to a JSON file."""

import argparse
import sys

from ..acceleration.cpu_memory import keep_freed_memory
from ..prediction.files import predict_files
from ..prediction.predictor import Predictor


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Existing files are never overwritten. The exit code is 0 on success, 1 if some inputs could not be read "
        "(each is reported), and 2 if none could be read or an argument is wrong.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, videos, folders of these, or glob patterns")
    parser.add_argument(
        "--model",
        required=True,
        metavar="RUN",
        help="OUTPUT_DIR of a run, a checkpoint that contains its config, or gn_det://NAME of the model zoo",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="path or shipped name of the config, if the checkpoint does not contain it"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="new folder for the pictures (default: predictions; with --json, no pictures)"
    )
    parser.add_argument("--json", metavar="FILE", help="new file for the detections, in COCO's result format")
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.5,
        metavar="S",
        help="draw and write only detections above this score (default: 0.5)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per batch (default: 1)")
    parser.add_argument("--device", help="cpu, cuda, or cuda:N (default: a GPU if one is available)")
    args = parser.parse_args()
    model = (args.config, args.model) if args.config else (args.model,)
    predictor = Predictor(*model, device=args.device, batch_size=args.batch_size, min_score=args.min_score)
    if predictor.cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    tally = predict_files(predictor, args.inputs, out=args.out, json_file=args.json)
    sys.exit(1 if tally.skipped else 0)
