"""Evaluate a trained model at several batch sizes, with the padding of a batch ignored and as in stock detectron2."""

import argparse

from ..acceleration.device import choose_device
from ..experiments.padding_study import padding_study
from ..launch.arguments import parse_numbers


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="OUTPUT_DIR", help="folder of a run, with a test dataset of mixed image sizes")
    parser.add_argument(
        "--batch-size", type=parse_numbers, default=[1, 2, 4, 8], metavar="N,N", help="default: 1,2,4,8"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--out", default="padding", metavar="DIR", help="folder for the results (default: padding)")
    args = parser.parse_args()
    print(padding_study(args.run, args.batch_size, choose_device(args.device, "--device"), args.out))
    print(f"\nWritten to {args.out}: padding.json, padding.md, padding.png")
