#!/usr/bin/env python
"""Train a model, or with --eval-only evaluate one."""

from gn_det.launch import launch, run_tool
from gn_det.run import argument_parser, say_end, setup
from gn_det.trainer import evaluate_only, train


def main(args):
    cfg = setup(args)
    if args.eval_only:
        evaluate_only(cfg, resume=args.resume)
    else:
        train(cfg, resume=args.resume)
    say_end(cfg)


def cli():
    launch(main, argument_parser(__doc__).parse_args())


if __name__ == "__main__":
    run_tool(cli)
