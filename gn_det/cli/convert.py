"""Convert weights of Detectron, detectron2, mmdetection, torchvision, or timm to detectron2's names.

No code in the file is executed. Nothing is written if the file contains an unknown name.
"""

import argparse

from ..checkpoint.export import FORMATS, convert_file, mapping_report


def cli() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", metavar="IN", help="file of weights: .pkl, .pth, .pt, .bin, .pyth, or .safetensors")
    parser.add_argument("output", metavar="OUT", help="new file, .pth or .safetensors according to --to")
    parser.add_argument(
        "--to",
        choices=sorted(FORMATS),
        required=True,
        help="format: a .pth file that stock detectron2 can load, or a .safetensors file",
    )
    parser.add_argument("--verbose", action="store_true", help="list every tensor, not a summary by part")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    args = parser.parse_args()
    converted, left_out = convert_file(args.input, args.output, args.to, args.force)
    print(f"{args.input} -> {args.output}: {mapping_report(converted, left_out, args.verbose)}")
