"""Train variants in the same two processes, one after the other, so that these are started once."""

import argparse
import logging
from collections.abc import Sequence

from gn_det.launch.arguments import argument_parser
from gn_det.launch.processes import launch
from gn_det.launch.run import finish, setup
from gn_det.training.trainer import train


def train_in_processes(number: int, variants: Sequence[Sequence[str]]) -> None:
    """Train each variant in ``number`` processes.

    Args:
        number: the value of ``--num-gpus``.
        variants: the arguments of each variant, without ``--num-gpus``.
    """
    args = _parse(["--num-gpus", str(number), *variants[0]])
    args.variants = variants
    launch(_train_all, args)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    return argument_parser("").parse_args(words)


def _train_all(args: argparse.Namespace) -> None:
    for words in args.variants:
        cfg = setup(_parse(words))
        train(cfg)
        if cfg.DATASETS.TEST:  # otherwise the report has nothing to show
            finish(cfg)
        for name in list(logging.root.manager.loggerDict):
            logging.getLogger(name).handlers.clear()  # so that no variant writes to the log of another one
