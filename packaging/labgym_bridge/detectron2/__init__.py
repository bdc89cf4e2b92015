"""Make the copy of detectron2 in the package labgym importable as ``detectron2``.

``import detectron2.x`` returns the module ``LabGym.detectron2.x`` itself and not a second copy of it, because
a second copy would have separate registries.
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
        module.__spec__ = self.real_spec  # the import system has just set the spec of the alias


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
        "The installed detectron2 is only a bridge to the copy in labgym, which is not installed; run "
        "'pip install --no-deps --ignore-requires-python labgym==3.1.2', or install upstream detectron2.",
        name="detectron2",
    ) from None

sys.meta_path.insert(0, _Finder())
sys.modules["detectron2"] = _module
# setup_logger() of detectron2 configures the logger "detectron2", but the copy logs to "LabGym.detectron2".
logging.getLogger(_REAL).parent = logging.getLogger("detectron2")
