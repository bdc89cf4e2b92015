"""Start a run in this process, in several processes, or in the processes of torchrun."""

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from ..errors import GNDetError
from .output_dir import remove_staged_files
from .prepare import prepare


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in each process of a run.

    If torchrun started this process, it joins the other processes of torchrun. Otherwise, if the run
    has more than one process, ``args.num_gpus`` new processes are started on this machine. A run with
    a single process uses this one.

    Raises:
        GNDetError: if ``args.num_gpus`` does not fit this machine.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        _join_torchrun(main, args)
        return
    processes = args.num_gpus
    if processes < 1:
        raise GNDetError(
            f"--num-gpus is {processes}; it is the number of processes (one per GPU) and must be 1 or more."
        )
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise GNDetError(f"--num-gpus is {processes}, but this machine has {gpus}: use {gpus} or less.")
    if processes * args.num_machines > 1:
        prepare(args)  # so that a mistake is reported once, before other processes start
        remove_staged_files()
        _share_cores(processes)
        url = "auto" if args.num_machines == 1 else args.dist_url
        detectron2_launch(main, processes, args.num_machines, args.machine_rank, url, args=(args,))
    else:
        main(args)


def _share_cores(processes: int) -> None:
    """Limit the threads of CPU processes, each of which would use all cores otherwise.

    The child processes inherit the limit through the environment.
    """
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
