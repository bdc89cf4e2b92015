"""The process of one candidate: read commands from stdin, write replies to stdout, one JSON object per line.

Everything else that is printed goes to stderr. SIGUSR1 prints the stack to stderr.
"""

import faulthandler
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TextIO

import torch
import yaml
from detectron2.config import CfgNode

from ...config.defaults import get_cfg
from ...quiet import silence_detectron2
from .data import register_in_worker
from .session import Session

_MAX_REASON = 250  # characters


class _Warnings(logging.Handler):
    """Keep the warnings that gn_det logs, such as the reason why other kernels are used."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if sentence not in self.sentences:
            self.sentences.append(sentence)


def main() -> None:
    """Answer commands until stdin ends. The first line is the job, a dict for :func:`_open_session`."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    silence_detectron2()
    warnings = _Warnings()
    logging.getLogger("gn_det").addHandler(warnings)
    session = _open_session(json.loads(sys.stdin.readline()))
    _write(replies, {}, warnings)
    for line in sys.stdin:
        _write(replies, run_command(session, json.loads(line)), warnings)


def _open_session(job: dict) -> Session:
    """Return the session for a job: "name", "config" (YAML), "weights" (a path), "data" (of the dataset)."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(job["config"])))
    register_in_worker(job["data"])
    return Session(job["name"], cfg, Path(job["weights"]))


def run_command(session: Session, command: dict) -> dict:
    """Run a command: "do" is a method of the session, the rest are its arguments.

    Returns:
        {"result": what the method returns}, or {"error": a sentence} for any exception.
    """
    method = getattr(session, command.pop("do"))
    try:
        return {"result": method(**command)}
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        reply = {"error": f"{type(error).__name__}: {text}"[:_MAX_REASON]}
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the tensors of the failed command are gone only now
    return reply


def _write(replies: TextIO, reply: dict, warnings: _Warnings) -> None:
    print(json.dumps(reply | {"warnings": warnings.sentences}), file=replies, flush=True)


if __name__ == "__main__":
    main()
