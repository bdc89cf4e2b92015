"""Run the commands and programs of the docs in this process, cut down to a step."""

import functools
import importlib
import os
import runpy
import shlex
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path

from gn_det.data import shapes
from gn_det.experiments.norm_study import Study
from gn_det.launch import tool as tool_module

from .paths import REPO

# A step of the shipped models in seconds, without weights that would have to be fetched.
SMALL = """MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
    MODEL.FPN.OUT_CHANNELS 64 MODEL.ROI_BOX_HEAD.CONV_DIM 64 MODEL.ROI_BOX_HEAD.FC_DIM 64
    MODEL.RPN.PRE_NMS_TOPK_TEST 50 MODEL.RPN.POST_NMS_TOPK_TEST 5 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 4
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.STEPS () SOLVER.MAX_ITER 1 DATALOADER.NUM_WORKERS 0"""


def run_command(words: Sequence[str], folder: Path) -> None:
    """Run a command of the docs in ``folder``. A norm study trains one variant."""
    words = list(words)
    if "--norms" in words:
        for flag, value in (("--norms", "BN*"), ("--batch-size", "4"), ("--seeds", "1")):
            words[words.index(flag) + 1] = value
    _run(words, folder, shlex.split(SMALL))


def plan_study(words: Sequence[str], folder: Path) -> None:
    """Run the command of a norm study, except for the trainings: print the variants that it would train.

    The arguments, and the config, data and weights of each variant, are those of the command.
    """

    def trainings(self, todo, jobs):
        for variant in todo:
            print("would train", variant)
        return iter(())

    Study._train_all = trainings
    _run(words, folder, [])


def _run(words: Sequence[str], folder: Path, options: list[str]) -> None:
    tool, *words = words
    if tool == "torchrun":  # its one process is this one
        tool, *words = words[[Path(word).suffix for word in words].index(".py") :]
    if tool == "gn-det":
        tool, *words = words
        sys.argv = [f"gn-det {tool}"]
        run = importlib.import_module(f"gn_det.cli.{tool}").cli
    else:
        sys.argv = [str(REPO / tool)]
        run = runpy.run_path(sys.argv[0])["cli"]
    if "--num-gpus" in words:
        words[words.index("--num-gpus") + 1] = "1"
    if run.__module__.endswith("analyze"):
        words[:0] = [] if "--size" in words else ["--size", "64"]
    if run.__module__.endswith(("train", "norms")):
        words += options
    os.chdir(folder)
    os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
    generate_few_shapes()
    sys.argv += words
    tool_module.run_tool(run)


def generate_few_shapes() -> None:
    """Make the generated dataset small, in this process."""
    shapes.generate = functools.partial(shapes.generate, num_train=6, num_val=2)


def run_program(text: str, page: str, folder: Path) -> None:
    """Run a Python program of the docs in ``folder``."""
    os.chdir(folder)
    exec(compile(text, page, "exec"), {"__name__": "__main__"})


def run_notebook(code: str, folder: Path) -> None:
    """Run the code of a notebook without Jupyter, with its temporary files in ``folder``."""
    display = types.ModuleType("IPython.display")
    display.Image = display.Markdown = lambda *content, **options: (content, options)
    display.display = print
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)  # matplotlib asks
    sys.modules |= {"IPython": ipython, "IPython.display": display}
    tempfile.tempdir = str(folder)
    exec(compile(code, "notebook", "exec"), {"__name__": "__main__"})
