"""Old import paths of modules that have moved. Each still works, with a DeprecationWarning."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

_NEW_PATHS = {
    "gn_det.backbone": "gn_det.modeling.backbone",
    "gn_det.checkpoint.fetch": "gn_det.download.fetch",
    "gn_det.comparison": "gn_det.evaluation.comparison",
    "gn_det.datasets": "gn_det.data.coco",
    "gn_det.heap": "gn_det.acceleration.cpu_memory",
    "gn_det.norm": "gn_det.modeling.norm",
    "gn_det.norm_tables": "gn_det.experiments.norm_tables",
    "gn_det.ops.blocks": "gn_det.acceleration.fuse",
    "gn_det.records": "gn_det.evaluation.records",
    "gn_det.roi_align": "gn_det.acceleration.roi_align",
    "gn_det.roi_heads": "gn_det.modeling.roi_heads",
    "gn_det.run": "gn_det.launch.arguments",
    "gn_det.run_folder": "gn_det.evaluation.run_folder",
    "gn_det.shapes": "gn_det.data.shapes",
    "gn_det.solver": "gn_det.training.solver",
    "gn_det.train_net": "gn_det.launch.run",
    "gn_det.trainer": "gn_det.training.trainer",
    "gn_det.visualize": "gn_det.drawing.instances",
}


class _OldPathFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find a module by its old path and return the module at the new path."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in _NEW_PATHS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _NEW_PATHS[spec.name]
        warnings.warn(f"{spec.name} has moved: import {new} instead.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # __spec__ is now the spec of the old path; loader_state holds the one of the new path.
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state or module.__spec__


def install() -> None:
    """Register the old paths with Python's import system."""
    if not any(isinstance(finder, _OldPathFinder) for finder in sys.meta_path):
        sys.meta_path.append(_OldPathFinder())
