"""Reading of weight files without running what is in them."""

import _codecs
import importlib
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import GNDetError

# All that a pickle of numpy arrays by name needs, by exact name: a whole module allowed is a module of gadgets.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}
for _module, _name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")):
    _function = getattr(importlib.import_module(f"numpy._core.{_module}"), _name)
    for _core in ("numpy.core", "numpy._core"):  # numpy 1 writes the one, numpy 2 the other
        _ALLOWED[f"{_core}.{_module}", _name] = _function


# The pure Python one: the C one resolves extension codes past find_class.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which weights do not need") from None

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it uses pickle's extension registry")


def load_pickle(path: str) -> dict:
    """A pickled dict of numpy arrays, with nothing in it run but numpy's own reconstruction.

    Raises:
        GNDetError: the file asks for anything else, or is no pickle.
    """
    try:
        with PathManager.open(path, "rb") as file:
            data = _Unpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise GNDetError(f"{path} was not read, because it is not a plain pickle of weights: {error}.") from None
    if not isinstance(data, dict):
        raise GNDetError(f"{path} holds a {type(data).__name__} and not weights by name.")
    return data


def read_notes(path: str) -> dict:
    """What a checkpoint of gn_det's says of itself beside its weights, which are not read.

    Returns:
        {"config": YAML text, "names": of the classes, "ids": of the classes in their data set}, each where it is known.

    Raises:
        GNDetError: the file is not there, cannot be fetched, or is no checkpoint.
    """
    path = path.partition("?")[0]  # the rest is for detectron2's checkpointer
    try:
        path = PathManager.get_local_path(path)
        if not path.endswith(".pth"):
            return {}
        # Only zip files, which torch writes since 1.6, can be mapped.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # as in _load_file
        raise _unreadable(path, error) from error
    config, classes = (_dict(_dict(data).get(key)) for key in ("config", "classes"))
    notes = {"names": _list_of(str, classes.get("names")), "ids": _list_of(int, classes.get("ids"))}
    if isinstance(config.get("yaml"), str):
        notes["config"] = config["yaml"]
    return {key: value for key, value in notes.items() if value}


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list_of(kind: type, value: object) -> list:
    return value if isinstance(value, list) and all(isinstance(item, kind) for item in value) else []


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which hands no pickle from elsewhere to ``pickle.load``."""

    def load(self, path: str, *args, **kwargs) -> dict:
        """As detectron2's; what is wrong with the file is one sentence.

        Raises:
            GNDetError: the file is not there, cannot be fetched, or cannot be read as weights.
        """
        try:
            return super().load(path, *args, **kwargs)
        except (OSError, AssertionError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        finally:
            self._parsed_url_during_load = None  # detectron2 leaves it set after a failure, and then refuses all loads

    def _load_file(self, filename: str) -> dict:
        if not filename.endswith(".pkl"):
            try:
                return super()._load_file(filename)
            except Exception as error:  # there is no end to what torch.load raises on bytes that are no checkpoint
                raise _unreadable(filename, error) from error
        data = load_pickle(filename)
        if "model" in data and "__author__" in data:  # detectron2's model zoo
            return data
        blobs = data.get("blobs", data)  # Detectron's detection models have "blobs", its ImageNet models have not
        blobs = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def _unreadable(path: str, error: Exception) -> GNDetError:
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    return GNDetError(f"The weights {path} could not be read: {reason or type(error).__name__}.")
