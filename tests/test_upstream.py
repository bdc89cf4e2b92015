"""The private names of detectron2, PyTorch and others that gn_det uses. A failure here says what an upgrade has renamed.

:data:`PRIVATE` is the list. The last tests read gn_det's source, so that the list is complete.
"""

import ast
import enum
import importlib
import inspect
import pkgutil
import re

import pytest

import gn_det
from helpers.paths import REPO

# Module or class -> its private names in use, and the modules of gn_det that need them.
PRIVATE = {
    "argparse.ArgumentParser": ("_actions", "launch/arguments.py, cli/browse.py"),
    "detectron2.checkpoint.DetectionCheckpointer": (
        "_load_file _load_model _log_incompatible_keys _parsed_url_during_load",
        "checkpoint/checkpointer.py",
    ),
    "detectron2.data.build": ("_train_loader_from_config", "training/loader.py"),
    "detectron2.data.detection_utils": ("_apply_exif_orientation", "images.py"),
    "detectron2.engine.DefaultTrainer": ("_trainer _last_eval_results", "training/trainer.py"),
    "detectron2.engine.SimpleTrainer": ("_data_loader_iter _write_metrics", "training/step.py"),
    "detectron2.evaluation.COCOEvaluator": (
        "_coco_api _cpu_device _derive_coco_results _do_evaluation _eval_predictions _max_dets_per_image _metadata "
        "_output_dir _predictions _results _tasks _tasks_from_predictions",
        "evaluation/evaluator.py, evaluation/published_detections.py",
    ),
    "detectron2.modeling.anchor_generator.DefaultAnchorGenerator": (
        "_grid_anchors",
        "acceleration/on_device/proposals.py",
    ),
    "detectron2.modeling.roi_heads.Res5ROIHeads": ("_shared_roi_transform", "acceleration/on_device/heads.py"),
    "detectron2.modeling.roi_heads.StandardROIHeads": ("_forward_mask", "acceleration/on_device/heads.py"),
    "detectron2.layers.mask_ops": ("_do_paste_mask", "evaluation/fast_coco.py"),
    "detectron2.utils.events.JSONWriter": ("_file_handle _last_write", "training/guards/disk.py"),
    "detectron2.utils.events.EventStorage": ("_vis_data", "training/wandb_writer.py"),
    "detectron2.utils.file_io.PathHandler": ("_get_local_path _get_supported_prefixes _open", "checkpoint/uri.py"),
    "os": ("_exit", "training/guards/signals.py"),
    "pickle": ("_Unpickler", "checkpoint/pickles.py"),
    "torch.distributed.distributed_c10d": ("_get_default_store", "training/guards/ranks.py"),
    "torch.nn.Conv2d": ("_conv_forward", "acceleration/fuse.py"),
    "torch.nn.modules.batchnorm": ("_BatchNorm", "acceleration/on_device/apply.py, checkpoint/fit.py"),
    "torch.utils._python_dispatch": ("TorchDispatchMode", "cost/memory.py"),
    "torch.utils._pytree": ("tree_leaves", "cost/memory.py"),
}
NAMES = {name for names, _ in PRIVATE.values() for name in names.split()}


def find(path: str) -> object:
    """A module, or a class in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def has(owner: object, name: str) -> bool:
    """Whether a module or class has the name, or a class sets it on its instances."""
    if hasattr(owner, name):
        return True
    classes = owner.__mro__[:-1] if inspect.isclass(owner) else ()
    return any(re.search(rf"self\.{name}\b.*=", inspect.getsource(cls)) for cls in classes)


@pytest.mark.parametrize("path", PRIVATE)
def test_private_names_are_there(path):
    names, users = PRIVATE[path]
    owner = find(path)
    for name in names.split():
        assert has(owner, name), f"{path}.{name} is gone; gn_det needs it in {users}"


def test_default_trainer_sets_what_our_trainer_sets():
    """training/trainer.py has an __init__ of its own, which must set the same attributes."""
    from detectron2.engine import DefaultTrainer

    attributes = set(re.findall(r"self\.(\w+)\s*=", inspect.getsource(DefaultTrainer.__init__)))
    assert attributes == {"_trainer", "scheduler", "checkpointer", "start_iter", "max_iter", "cfg"} - {"start_iter"} | {
        "start_iter"
    }


def modules() -> list:
    return [importlib.import_module(m.name) for m in pkgutil.walk_packages(gn_det.__path__, "gn_det.") if keep(m.name)]


def keep(name: str) -> bool:
    """Without the Triton kernels, which need Triton, and the configs of an installed package."""
    return "triton" not in name and not name.startswith("gn_det.configs") and not name.endswith("__main__")


def test_every_private_method_that_is_overridden_is_listed():
    classes = {cls for module in modules() for cls in vars(module).values() if inspect.isclass(cls)}
    own = [cls for cls in classes if cls.__module__.startswith("gn_det.") and not issubclass(cls, enum.Enum)]
    foreign = {
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in own
        for name in vars(cls)
        if name.startswith("_")
        and not name.endswith("__")
        and name not in NAMES | {"_abc_impl", "_version", "_backward_cls"}
        for base in cls.__mro__[1:]
        if not base.__module__.startswith("gn_det.") and name in vars(base)
    }
    assert not foreign


def test_every_private_name_in_the_source_is_listed():
    trees = {path: ast.parse(path.read_text()) for path in (REPO / "gn_det").rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for _, node in nodes if isinstance(node, ast.arg)}
    unknown = []
    for path, node in nodes:
        names = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [alias.name for alias in node.names]
        private = [name for name in names if name.startswith("_") and not name.endswith("__")]
        unknown += [f"{path.name}:{node.lineno} {name}" for name in private if name not in own | NAMES]
    assert not unknown
