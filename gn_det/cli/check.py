"""Check annotations in COCO format as before a training, and write a repaired copy of them."""

import argparse
import sys
from pathlib import Path
from textwrap import fill

from ..config.files import load_config
from ..data.cleaning import Options
from ..data.coco import check_annotations, describe, describe_refused, read_annotations, save_annotations
from ..data.rules import Action, Problems
from ..errors import GNDetError

_HEADINGS = {
    Action.HAND: "Refused, to be corrected by hand:",
    Action.FIX: "Refused; --fix repairs it:",
    Action.NOTE: "Accepted as it is; --fix repairs it:",
    Action.READ: "Repaired whenever the file is read:",
}
_WIDTH = 100  # characters per line


def check_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", metavar="JSON", help="annotations in COCO format")
    parser.add_argument("--images", metavar="DIR", help="image folder; without it, no image files are checked")
    parser.add_argument("--no-masks", action="store_true", help="check as for MODEL.MASK_ON False")
    parser.add_argument("--fix", metavar="OUT.json", help="write a repaired copy")
    parser.add_argument("--page", metavar="OUT.html", help="write a page with problems, classes, sizes and samples")
    parser.add_argument(
        "--config",
        default="mask_rcnn_R50_FPN_gn",
        metavar="FILE",
        help="config whose image sizes and anchors the page uses (default: %(default)s)",
    )
    return parser


def check(args: argparse.Namespace) -> bool:
    """Check annotations, print all problems, and write the repaired copy that ``--fix`` asks for.

    Returns:
        whether training accepts the annotations, or the repaired copy.

    Raises:
        GNDetError: a file cannot be read or written, or problems remain that ``--fix`` cannot repair.
    """
    if args.images and not Path(args.images).is_dir():
        raise GNDetError(f"The image folder {args.images} does not exist.")
    if args.fix and Path(args.fix).resolve() == Path(args.annotations).resolve():
        raise GNDetError(f"--fix {args.fix} is the file that is checked: write the copy to another file.")
    if args.page and not args.images:
        raise GNDetError("--page draws samples: pass the image folder with --images DIR.")
    data = read_annotations(args.annotations)
    options = Options(Path(args.images) if args.images else None, not args.no_masks, bool(args.fix))
    problems = check_annotations(data, options)
    print(format_problems(args.annotations, problems))
    if not args.images:
        print("\nImage files were not checked; --images DIR checks them too.")
    remaining = [problem for problem in problems.refused() if problem.action is Action.HAND or not args.fix]
    if not remaining:
        facts = describe(data)
        print(
            f"\n{args.fix or args.annotations}: {facts['images']:,} images, {facts['objects']:,} objects, "
            f"{facts['crowds']:,} crowd regions, {len(facts['classes'])} classes."
        )
    if args.page:
        from ..report.data_page import write_data_page  # matplotlib takes a second to import

        cfg = load_config(args.config)
        write_data_page(args.page, Path(args.annotations).name, data, args.images, problems, cfg)
        print(f"Wrote the page {args.page}.")
    if args.fix:
        if remaining:
            reason = describe_refused(args.annotations, problems, fixed=True)
            raise GNDetError(f"{args.fix} was not written: {args.annotations} has {reason}")
        save_annotations(args.fix, data)
        print(f"Wrote the repaired copy {args.fix}, with the changes above; its annotations are numbered from 1.")
    return not remaining


def format_problems(json_file: str, problems: Problems) -> str:
    """Return the problems as text, those that are refused first, with an example of each kind."""
    if not problems:
        return f"{json_file}: no problems."
    parts = []
    for action, heading in _HEADINGS.items():
        chosen = [problem for problem in problems.values() if problem.action is action]
        lines = [f"- {problem.sentence()}. {problem.remedy[0].upper()}{problem.remedy[1:]}." for problem in chosen]
        if lines:
            parts.append("\n".join([heading, *(fill(line, _WIDTH, subsequent_indent="  ") for line in lines)]))
    return "\n\n".join(parts)


def cli() -> None:
    """Run the command with the arguments of the process."""
    if not check(check_parser().parse_args()):
        sys.exit(1)
