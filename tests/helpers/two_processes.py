"""Train variants in two processes, and in one: ``python two_processes.py VARIANTS.json``.

The file maps the number of processes to the arguments of the variants. The variants of one number train one after the
other in the same processes, so that these are started once.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from gn_det.launch.arguments import argument_parser
from gn_det.launch.processes import launch
from gn_det.launch.run import main


def parse(words: list[str]) -> argparse.Namespace:
    """Return the arguments of a variant."""
    return argument_parser("").parse_args(words)


def train(args: argparse.Namespace) -> None:
    """Train all variants in this process."""
    for words in args.variants:
        main(parse(words))
        for name in list(logging.root.manager.loggerDict):
            logging.getLogger(name).handlers.clear()  # so that no variant writes to the log of another one


if __name__ == "__main__":
    for processes, variants in json.loads(Path(sys.argv[1]).read_text()).items():
        args = parse(["--num-gpus", processes, *variants[0]])
        args.variants = variants
        launch(train, args)
