"""Start a run in this process, in several processes, or in the processes of torchrun."""

import argparse
import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessContext, ProcessExitedException, ProcessRaisedException, start_processes

from ..errors import EXIT_CODE, GNDetError, sentence_of
from ..training.guards.ranks import EXCHANGE_TIMEOUT, announce_failure, failed_rank, is_lost_connection
from ..training.guards.signals import SIGNALS, handling
from .output_dir import remove_staged_files
from .prepare import prepare

logger = logging.getLogger(__name__)

_LOST_CODE = 3  # a process that has lost the connection to another one, which is the cause
_LOST_PAUSE = 1.0  # seconds in which the launcher notices the cause first
_GRACE = 10.0  # seconds in which the other processes may end by themselves after one has failed
# Variables with the number of tasks that a job starts.
_TASKS = {"SLURM_NTASKS": "Slurm", "OMPI_COMM_WORLD_SIZE": "Open MPI", "PMI_SIZE": "MPI"}

Main = Callable[[argparse.Namespace], object]


def launch(main: Main, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in each process of a run.

    If torchrun started this process, it joins the other processes of torchrun. Otherwise, if the run
    has more than one process, ``args.num_gpus`` new processes are started on this machine. A run with
    a single process uses this one.

    Raises:
        GNDetError: if ``args.num_gpus`` does not fit this machine, or a process is killed.
        SystemExit: if a process ends with an error, whose sentence that process prints, or after a signal.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        _join(main, args, int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return
    processes = args.num_gpus
    if processes < 1:
        raise GNDetError(
            f"--num-gpus is {processes}; it is the number of processes (one per GPU) and must be 1 or more."
        )
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise GNDetError(f"--num-gpus is {processes}, but this machine has {gpus}: use {gpus} or less.")
    _warn_about_tasks(args)
    if processes * args.num_machines > 1:
        prepare(args)  # so that a mistake is reported once, before other processes start
        remove_staged_files()
        _share_cores(processes)
        _start(main, args)
    else:
        main(args)


def _warn_about_tasks(args: argparse.Namespace) -> None:
    """Warn if this process seems to be one of several that know nothing of each other."""
    for name, starter in _TASKS.items():
        number = os.environ.get(name, "")
        if number.isdecimal() and int(number) > 1 and args.num_machines == 1:
            logger.warning(
                f"{name} is {number}, but this process is not started by torchrun: if {starter} starts this command "
                f"{number} times, each of them trains on its own. Start it once per machine, through torchrun or with "
                "--num-gpus."
            )
            return


def _share_cores(processes: int) -> None:
    """Limit the threads of CPU processes, each of which would use all cores otherwise.

    The child processes inherit the limit through the environment.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


# ---- the process that starts the others


def _start(main: Main, args: argparse.Namespace) -> None:
    """Start the processes of this machine, forward signals to them, and wait for them."""
    received: list[int] = []
    children: list[multiprocessing.Process] = []

    def forward(number: int, _: object) -> None:
        received.append(number)
        for child in children:
            if child.is_alive() and child.pid:
                os.kill(child.pid, number)

    with handling(forward):
        url = f"tcp://127.0.0.1:{_free_port()}" if args.num_machines == 1 else args.dist_url
        context = start_processes(_work, (main, args, url), args.num_gpus, join=False)
        children += context.processes
        for number in tuple(received):  # while the processes were started; forward() adds to the list
            forward(number, None)
        _wait(context, received)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(context: ProcessContext, received: list[int]) -> None:
    """Wait until all processes have ended.

    Args:
        received: the signals that this process has received.

    Raises:
        SystemExit: a process has ended after a signal, or with an error whose sentence it has printed.
        GNDetError: a process was killed.
        ProcessRaisedException: an error of another kind.
    """
    try:
        while not context.join(grace_period=_GRACE):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        codes = [process.exitcode for process in context.processes]
        for number in SIGNALS:  # that the launcher has passed on, or only one process has received
            if 128 + number in codes or (number in received and -number in codes):
                sys.exit(128 + number)
        if isinstance(error, ProcessExitedException) and error.exit_code < 0:
            raise GNDetError(
                f"Process {error.error_index} of {len(codes)} (process id {error.error_pid}) was ended by "
                f"{error.signal_name}; if nobody has done this, the memory was full. Continue with --resume."
            ) from None
        if isinstance(error, ProcessRaisedException) and EXIT_CODE not in codes:
            raise
        sys.exit(EXIT_CODE)


# ---- a process of the run


def _work(local_rank: int, main: Main, args: argparse.Namespace, url: str) -> None:
    rank = args.machine_rank * args.num_gpus + local_rank
    _join(main, args, local_rank, args.num_gpus, url, args.num_machines * args.num_gpus, rank)


def _join(
    main: Main,
    args: argparse.Namespace,
    local_rank: int,
    local_size: int,
    url: str | None = None,
    world_size: int = -1,
    rank: int = -1,
) -> None:
    """Join the process group, and run ``main(args)`` in it.

    Args:
        local_rank, local_size: index of this process, and number of processes, on this machine.
        url, world_size, rank: arguments of ``init_process_group``; by default, it uses the variables of torchrun.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, url, timeout=EXCHANGE_TIMEOUT, world_size=world_size, rank=rank)
    comm.create_local_process_group(local_size)
    comm.synchronize()  # a long start of one process must not count for the exchanges of the others
    _report_errors(main, args)
    dist.destroy_process_group()  # not after an error: it would wait for processes that are stuck


def _report_errors(main: Main, args: argparse.Namespace) -> None:
    """Run ``main(args)``, and print the sentence of a GNDetError where it occurs, once per machine.

    An error that only says that another process has ended is printed as a sentence too.
    """
    try:
        main(args)
    except GNDetError as error:
        if announce_failure(sentence_of(error)):
            print(f"error: {sentence_of(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        sentence = f"Rank {comm.get_rank()} ends because the connection to {failed_rank()} is lost."
        launched = multiprocessing.parent_process() is not None
        if not launched or args.num_machines > 1:  # otherwise the launcher knows the cause, and prints it
            print(f"error: {sentence}", file=sys.stderr, flush=True)
        time.sleep(_LOST_PAUSE)
        sys.exit(_LOST_CODE)
