"""Convert weights of Detectron, detectron2, mmdetection, torchvision or timm, in a file of any kind, to detectron2's names.

Nothing in the file is run. Nothing is written unless every name in it is known.
"""

import argparse

from ..checkpoint.export import FORMATS, convert_file, mapping_report


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", metavar="IN", help="a file of weights: .pkl, .pth, .pt, .bin, .pyth, .safetensors")
    parser.add_argument("output", metavar="OUT", help="the new file")
    parser.add_argument(
        "--to",
        choices=sorted(FORMATS),
        required=True,
        help="a .pth that stock detectron2 loads, or .safetensors",
    )
    parser.add_argument("--verbose", action="store_true", help="list every name")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args()
    converted, left_out = convert_file(args.input, args.output, args.to, args.force)
    print(f"{args.input} -> {args.output}: {mapping_report(converted, left_out, args.verbose)}")
