"""What the processes (ranks) of a run agree on, and what they know of each other."""

import contextlib
import datetime
import functools
import hashlib
import re
import socket
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

# Limit of one exchange between processes. It is long, because in an evaluation all processes wait for the slowest one.
# gn_det.training.guards.stalls finds a stalled process sooner.
EXCHANGE_TIMEOUT = datetime.timedelta(hours=4)
_LOST = re.compile("gloo/transport|remote process exit|Connection (reset|closed)")
_STORE_TIMEOUT = datetime.timedelta(seconds=20)


def agree(*codes: int) -> list[int]:
    """Return the maximum of each code over all processes. All processes must call it together."""
    if comm.get_world_size() == 1:
        return list(codes)
    tensor = torch.tensor(codes)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_cpu_group())
    return tensor.tolist()


@functools.cache
def _cpu_group() -> Any:
    """Return a group of all processes that exchanges CPU tensors; None for the default group."""
    return dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT) if dist.get_backend() != "gloo" else None


def shared_store() -> dist.Store | None:
    """Return a new connection to the key-value store of all processes; None if there is only one process."""
    if comm.get_world_size() == 1:
        return None
    store = dist.distributed_c10d._get_default_store().clone()
    store.set_timeout(_STORE_TIMEOUT)
    return store


def announce_failure(sentence: str) -> bool:
    """Tell the other processes that this one fails.

    Returns:
        whether no process on this machine has announced the same sentence before.
    """
    with contextlib.suppress(RuntimeError):  # the process that holds the store has ended
        if store := shared_store():
            store.set("gn_det/failed", str(comm.get_rank()))
            text = hashlib.sha256(sentence.encode()).hexdigest()
            return store.add(f"gn_det/sentence/{socket.gethostname()}/{text}", 1) == 1
    return True


def failed_rank() -> str:
    """Return "rank N" for another process that has announced a failure, rank 0 if it is gone, or "another process"."""
    try:
        store = shared_store()
        known = store is not None and store.check(["gn_det/failed"])
        return f"rank {store.get('gn_det/failed').decode()}" if store and known else "another process"
    except RuntimeError:
        return "rank 0"  # it holds the store


def is_lost_connection(error: BaseException | None) -> bool:
    """Return whether an error only says that another process does not take part in an exchange."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))
