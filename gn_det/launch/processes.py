"""A run's processes: this one, several on this machine, or torchrun's."""

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from ..errors import GNDetError
from .prepare import prepare


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in this process, in the processes that ``--num-gpus`` asks for, or as one of torchrun's."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        return _join_torchrun(main, args)
    processes = args.num_gpus
    if processes < 1:
        raise GNDetError(f"--num-gpus is {processes}; it is the number of processes, one a GPU, and at least 1.")
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise GNDetError(f"--num-gpus is {processes}, but this machine has {gpus}.")
    if processes * args.num_machines > 1:
        prepare(args)  # in this process first, so that a mistake is said once and before any other starts
        _share_cores(processes)
        url = "auto" if args.num_machines == 1 else args.dist_url
        detectron2_launch(main, processes, args.num_machines, args.machine_rank, url, args=(args,))
    else:
        main(args)


def _share_cores(processes: int) -> None:
    """Without a limit each CPU process would take all cores. Inherited by the children through the environment."""
    if not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


def _join_torchrun(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        main(args)
    finally:
        dist.destroy_process_group()
