"""labgym's copy of detectron2 under its own name.

Importing ``detectron2.x`` gives the module ``LabGym.detectron2.x`` itself, not a second copy of it, because a second
copy would have registries of its own.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys

_REAL = "LabGym.detectron2"


class _Loader(importlib.abc.Loader):
    def create_module(self, spec):
        module = importlib.import_module(_REAL + spec.name[len("detectron2") :])
        self.real_spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.real_spec  # the import system has just put the alias's spec there


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith("detectron2."):
            return None
        real = importlib.util.find_spec(_REAL + fullname[len("detectron2") :])
        if real is None:
            return None
        is_package = real.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, _Loader(), is_package=is_package)


try:
    _module = importlib.import_module(_REAL)
except ModuleNotFoundError as error:
    if error.name not in ("LabGym", _REAL):
        raise
    raise ModuleNotFoundError(
        "detectron2 is here only as the bridge to labgym's copy, and labgym is not installed: run "
        "'pip install --no-deps --ignore-requires-python labgym==3.1.2', or install upstream detectron2.",
        name="detectron2",
    ) from None

sys.meta_path.insert(0, _Finder())
sys.modules["detectron2"] = _module
# detectron2's setup_logger() configures the logger "detectron2"; the copy logs under "LabGym.detectron2".
logging.getLogger(_REAL).parent = logging.getLogger("detectron2")
