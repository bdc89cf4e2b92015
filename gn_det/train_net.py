"""What ``tools/train_net.py`` does in each of its processes; also a run of the norm study."""

import argparse

from .run import say_end, setup
from .trainer import evaluate_only, train


def main(args: argparse.Namespace) -> None:
    """Train, or with ``--eval-only`` evaluate, as the arguments of :func:`gn_det.run.argument_parser` say."""
    cfg = setup(args)
    if args.eval_only:
        evaluate_only(cfg, resume=args.resume)
    else:
        train(cfg, resume=args.resume)
    say_end(cfg)
