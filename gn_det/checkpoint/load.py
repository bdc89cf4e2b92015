"""Read weights from pickles and from files of PyTorch and safetensors, without running code in them."""

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch

from ..download.content import DESCRIPTIONS, file_type, read_head
from ..errors import GNDetError
from ..zoo import index as zoo
from .pickles import STAND_INS, load_pickle, one_line
from .safetensors_io import read_metadata, read_safetensors

# The keys under which files store their weights: detectron2 and gn_det; mmdetection, Lightning and most
# training scripts; PyTorch's tutorials; pycls; Detectron; other training scripts.
_WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "blobs", "net")
_MAX_EXPANDED_ELEMENTS = 2**28  # of a tensor whose shape has more values than the file stores: 1 GB of float32

_Item = TypeVar("_Item")


class _HistoryBuffer:
    """Replaces mmengine's HistoryBuffer, a training log, when a file is read. The content is discarded."""

    def __setstate__(self, state: object) -> None:
        pass


_SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (stand_in, name) for name, stand_in in STAND_INS.items()
]
_SAFE_GLOBALS.append((_HistoryBuffer, "mmengine.logging.history_buffer.HistoryBuffer"))


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a file of weights: a pickle, a PyTorch file or a safetensors file, whatever its suffix.

    Returns:
        A dict with

        - "model": {name in the file: tensor on the CPU}
        - "skipped": {name: type}, the entries among the weights that are not tensors; only if there
          are any
        - every other part of the file under its own key; of a pickle, only text, numbers and None

    Raises:
        GNDetError: the file does not exist, asks to run code, is damaged, or has no weights.
    """
    path = _local_path(path)
    with _reading_errors(path):
        parts = _READERS[_weights_type(path)](path)
        key, weights = _find_weights(parts)
        skipped = {one_line(str(name)): type(value).__name__ for name, value in weights.items() if not _is_array(value)}
        rest = {name: value for name, value in _as_dict(parts).items() if key and name != key}
        tensors = {_check_name(name): _to_tensor(name, value) for name, value in weights.items() if _is_array(value)}
    return {**rest, **({"skipped": skipped} if skipped else {}), "model": tensors}


def read_notes(path: str) -> dict[str, Any]:
    """Read the config and the class names that gn_det stores in its checkpoints. The weights are not read.

    Returns:
        A dict with those of the following keys that the file has

        - "config": str, YAML
        - "names": list of str, the names of the classes
        - "ids": list of int, the category ids of the classes in their dataset

    Raises:
        GNDetError: the file does not exist or is not a checkpoint.
    """
    path = _local_path(path)
    if path.endswith(".pkl"):
        return {}  # gn_det does not write this format
    with _reading_errors(path):
        kind = _weights_type(path)
        if kind == "safetensors":
            return notes_in(read_metadata(path))
        return notes_in(_load_zip(path, mmap=True) if kind == "zip" else _READERS[kind](path))


def read_iteration(path: str) -> int:
    """Return the index of the last trained iteration, from 0, of a checkpoint; -1 if it cannot be read."""
    try:
        iteration = _as_dict(_load_zip(path, mmap=True)).get("iteration", -1)
    except Exception:  # torch.load can raise any exception for a damaged file
        return -1
    return iteration if isinstance(iteration, int) else -1


def notes_in(parts: object) -> dict[str, Any]:
    """Return the notes, as :func:`read_notes` does, from a file that :func:`read_file` has read."""
    config, classes = (_as_dict(_as_dict(parts).get(key)) for key in ("config", "classes"))
    notes: dict[str, Any] = {"names": _list_of(str, classes.get("names")), "ids": _list_of(int, classes.get("ids"))}
    if isinstance(config.get("yaml"), str):
        notes["config"] = config["yaml"]
    return {key: value for key, value in notes.items() if value}


def read_error(path: str, error: Exception) -> GNDetError:
    """Return the GNDetError for an exception that was raised while reading a file."""
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    if named := re.search(r"GLOBAL (\S+)", str(error)):  # the rest of PyTorch's message tells how to run the code
        reason = f"it asks for {named[1]}, which weights do not need"
    elif isinstance(error, pickle.UnpicklingError):
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or reason
    return GNDetError(f"The weights {path} could not be read: {one_line(reason) or type(error).__name__}.")


def _as_dict(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list_of(kind: type[_Item], value: object) -> list[_Item]:
    return value if isinstance(value, list) and all(isinstance(item, kind) for item in value) else []


def _local_path(path: str | Path) -> str:
    name = os.path.expanduser(zoo.without_options(str(path)))
    if not os.path.isfile(name):
        raise GNDetError(f"The weights {path} could not be read: the file does not exist.")
    return name


@contextlib.contextmanager
def _reading_errors(path: str) -> Iterator[None]:
    """Turn every exception into a GNDetError that names the file."""
    try:
        yield
    except GNDetError:
        raise
    except Exception as error:  # torch.load can raise any exception for a damaged file
        raise read_error(path, error) from error


def _weights_type(path: str) -> str:
    """Return the file type, a key of ``_READERS``.

    Raises:
        ValueError: the file is empty or of another type.
    """
    head = read_head(path)
    if not head:
        raise ValueError("it is empty")
    kind = file_type(head)
    if kind not in _READERS:
        raise ValueError(f"it is {DESCRIPTIONS[kind]}, not weights: it begins with {head[:16]!r}")
    return kind


def _load_zip(path: str, mmap: bool = False) -> object:
    """Load a zip file of PyTorch.

    Args:
        mmap: map the file instead of reading it. Only for callers that discard the weights: a
            resumed run overwrites the checkpoint that it has read, and using a mapped tensor after
            that ends the process with a bus error. The checksums of the tensors are not checked.
    """
    _check_zip(path, checksums=not mmap)
    return _load_torch(path, mmap)


def _load_torch(path: str, mmap: bool = False) -> object:
    mmap = mmap and not path.endswith(".safetensors")  # PyTorch maps only by path, and chooses the reader by the suffix
    with torch.serialization.safe_globals(_SAFE_GLOBALS), open(path, "rb") as file:
        return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_zip(path: str, checksums: bool) -> None:
    """Refuse damaged files and zip bombs.

    PyTorch does not compress, so the entries of a valid file are not larger than the file. It writes a
    checksum of each entry, but does not check it.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, but PyTorch writes zip files without compression")
            if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
                raise ValueError("its entries claim to be larger than the file")
            damaged = file.testzip() if checksums else None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"it is cut or damaged ({error})") from error
    if damaged:
        raise ValueError(f"it is damaged: the checksum of its entry {one_line(damaged)} is wrong")


def _load_plain_pickle(path: str) -> dict[Any, Any]:
    """Load the weights of a pickle, with the text, numbers and None beside them.

    If the weights are the whole pickle and not one part of it, all of it is returned.
    """
    data = load_pickle(path)
    key, _ = _find_weights(data)
    return {name: value for name, value in data.items() if name == key or not key or _is_text_or_number(value)}


def _is_text_or_number(value: object) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


_READERS: dict[str, Callable[[str], object]] = {
    "zip": _load_zip,
    "old torch": _load_torch,
    "safetensors": read_safetensors,
    "pickle": _load_plain_pickle,
}


def _find_weights(data: object) -> tuple[str, dict[Any, Any]]:
    """Return the key of the weights in a file, "" if the whole file is the weights, and the weights.

    Raises:
        ValueError: the file has no weights.
    """
    parts = _as_dict(data)
    for key, weights in [(key, _as_dict(parts.get(key))) for key in _WEIGHT_KEYS] + [("", parts)]:
        if any(_is_array(value) for value in weights.values()):
            return key, weights
    if not isinstance(data, dict):
        raise ValueError(f"it is a {type(data).__name__} instead of a dict of tensors")
    known, found = ", ".join(_WEIGHT_KEYS), ", ".join(map(str, data)) or "nothing"
    raise ValueError(f"it has no tensors at its top level or under the keys {known}, only {found}")


def _is_array(value: object) -> TypeGuard[torch.Tensor | np.ndarray]:
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError(f"{name!r:.80} is not a valid tensor name")
    return name


def _to_tensor(name: str, value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return an array of a file as a tensor of the same dtype, in the byte order of this machine.

    Raises:
        ValueError: the tensor is of an unsupported kind, or the file has fewer values than its shape.
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable))
    if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        raise ValueError(f"{name} is a sparse, quantized, meta or complex tensor, but weights must be dense and real")
    if (
        value.numel() > _MAX_EXPANDED_ELEMENTS
        and value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ValueError(f"{name} has the shape {list(value.shape)}, but the file has fewer values")
    return value.detach()
