"""Reading of weight files without running what is in them."""

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import GNDetError
from .pickles import STAND_INS, load_pickle, one_line
from .safetensors_io import read_metadata, read_safetensors

# Where a file keeps its weights: detectron2 and gn_det, mmdetection and most training scripts, pycls, Detectron.
_WEIGHTS = ("model", "state_dict", "model_state", "blobs")
_OLD_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # what PyTorch wrote first before it wrote zip files
_MOST_ELEMENTS = 2**28  # of a tensor that is larger than what there is of it in the file: 1 GB


class _HistoryBuffer:
    """Stands for mmengine's, a log of the training, of which nothing is kept."""

    def __setstate__(self, state: object) -> None:
        pass


_SAFE: list = [(stand_in, name) for name, stand_in in STAND_INS.items()]
_SAFE.append((_HistoryBuffer, "mmengine.logging.history_buffer.HistoryBuffer"))


def read_file(path: str | Path) -> dict:
    """The weights in a file of any kind: a pickle, PyTorch's or safetensors, whatever its suffix says.

    Returns:
        {"model": {the file's own name: tensor on the CPU}, and the other parts of the file by name}. Of a pickle only
        text and numbers are such parts. "skipped" says what stood among the weights and is no tensor: {name: type}.

    Raises:
        GNDetError: the file is not there, asks for anything to be run, is damaged, or holds no weights.
    """
    path = _local_path(path)
    with _as_sentence(path):
        parts = _READERS[_kind(path)](path)
        where, weights = _find_weights(parts)
        skipped = {one_line(str(name)): type(value).__name__ for name, value in weights.items() if not _is_array(value)}
        rest = {name: value for name, value in _dict(parts).items() if where and name != where}
        tensors = {_name(name): _tensor(name, value) for name, value in weights.items() if _is_array(value)}
    return {**rest, **({"skipped": skipped} if skipped else {}), "model": tensors}


def read_notes(path: str) -> dict:
    """What a checkpoint of gn_det's says of itself beside its weights, which are not read.

    Returns:
        {"config": YAML text, "names": of the classes, "ids": of the classes in their data set}, each where it is known.

    Raises:
        GNDetError: the file is not there, or is no checkpoint.
    """
    path = _local_path(path)
    if path.endswith(".pkl"):
        return {}  # none of them is gn_det's
    with _as_sentence(path):
        kind = _kind(path)
        if kind == "safetensors":
            return notes_in(read_metadata(path))
        return notes_in(_load_zip(path, mmap=True) if kind == "zip" else _READERS[kind](path))


def notes_in(parts: object) -> dict:
    """What :func:`read_notes` returns, from the parts of a file."""
    config, classes = (_dict(_dict(parts).get(key)) for key in ("config", "classes"))
    notes = {"names": _list_of(str, classes.get("names")), "ids": _list_of(int, classes.get("ids"))}
    if isinstance(config.get("yaml"), str):
        notes["config"] = config["yaml"]
    return {key: value for key, value in notes.items() if value}


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list_of(kind: type, value: object) -> list:
    return value if isinstance(value, list) and all(isinstance(item, kind) for item in value) else []


def _local_path(path: str | Path) -> str:
    name = os.path.expanduser(str(path).partition("?")[0])  # the rest is for detectron2's checkpointer
    if not os.path.isfile(name):
        raise GNDetError(f"The weights {path} could not be read: there is no such file.")
    return name


@contextlib.contextmanager
def _as_sentence(path: str) -> Iterator[None]:
    try:
        yield
    except GNDetError:
        raise
    except Exception as error:  # there is no end to what torch.load raises on bytes that are no checkpoint
        raise unreadable(path, error) from error


def _kind(path: str) -> str:
    """The key of ``_READERS``, from the first bytes."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start[4:9] == b"\0\0\0\0{":  # the length of a header of JSON, and the header
        return "safetensors"
    if start.startswith(b"PK\3\4"):
        return "zip"
    if _OLD_TORCH in start:
        return "old torch"
    if start[:1] in (b"\x80", b"(", b"}", b"c"):  # a protocol; a dict or a class in those without
        return "pickle"
    raise ValueError(f"it begins with {start[:16]!r}, as no file of weights does" if start else "it is empty")


def _load_zip(path: str, mmap: bool = False) -> object:
    """Mapped only where the weights are not kept: a run that goes on writes over the file that it has read."""
    _check_zip(path)
    return _load_torch(path, mmap)


def _load_torch(path: str, mmap: bool = False) -> object:
    mmap = mmap and not path.endswith(".safetensors")  # only by name can it be mapped, and that name PyTorch believes
    with torch.serialization.safe_globals(_SAFE), open(path, "rb") as file:
        return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_zip(path: str) -> None:
    """PyTorch compresses nothing, so that a file cannot claim more than it has."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which PyTorch does not do")
    if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
        raise ValueError("its parts are larger than the whole")


def _load_plain_pickle(path: str) -> dict:
    """Beside the weights a pickle keeps text and numbers only; weights that are not within a part are the whole."""
    data = load_pickle(path)
    where, _ = _find_weights(data)
    return {name: value for name, value in data.items() if name == where or not where or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


_READERS: dict[str, Callable[[str], object]] = {
    "zip": _load_zip,
    "old torch": _load_torch,
    "safetensors": read_safetensors,
    "pickle": _load_plain_pickle,
}


def _find_weights(data: object) -> tuple[str, dict]:
    """The part that has the weights and they; "" if they are the whole."""
    parts = _dict(data)
    for where, weights in [(name, _dict(parts.get(name))) for name in _WEIGHTS] + [("", parts)]:
        if any(_is_array(value) for value in weights.values()):
            return where, weights
    found = f"only {', '.join(map(str, parts))}" if parts else f"a {type(data).__name__}"
    raise ValueError(f"it holds no weights by name, but {found}")


def _is_array(value: object) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _name(name: object) -> str:
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError(f"it has weights by the name {name!r:.80}, which is none")
    return name


def _tensor(name: str, value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """As it is in the file, in this machine's byte order; its precision is the model's matter."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable))
    if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        raise ValueError(f"{name} is a tensor of a kind that no weights here are")
    if value.numel() > _MOST_ELEMENTS and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{name} claims to be of the shape {list(value.shape)}, and is not in the file")
    return value.detach()


def unreadable(path: str, error: Exception) -> GNDetError:
    """The sentence for what reading a file has raised."""
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    if named := re.search(r"GLOBAL (\S+)", str(error)):  # PyTorch goes on to say how to run it
        reason = f"it names {named[1]}, which weights do not need"
    elif isinstance(error, pickle.UnpicklingError):
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or reason
    return GNDetError(f"The weights {path} could not be read: {one_line(reason) or type(error).__name__}.")
