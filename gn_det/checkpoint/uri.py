"""The names of weights, as ``MODEL.WEIGHTS`` takes them, and their local files."""

import glob
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from ..download.fetch import fetch
from ..errors import GNDetError
from ..files import replacing
from ..zoo import index as zoo
from .convert import convert
from .load import read_file, unreadable


def find_weights(name: str | os.PathLike) -> Path:
    """The file of ``MODEL.WEIGHTS``, fetched where it is not on this machine yet.

    Args:
        name: a path, a URL, ``gn_det://NAME`` of the model zoo, or one of detectron2's ``catalog://`` and ``detectron2://``.

    Raises:
        GNDetError: it is not there, cannot be fetched, or is not what was published under that name.
    """
    name = os.fspath(name).partition("?")[0]  # the rest is for detectron2's checkpointer
    if name.startswith(zoo.URI):
        return zoo.get_weights(name.removeprefix(zoo.URI))
    url = zoo.resolve(name)
    if url.startswith("catalog://"):
        raise GNDetError(f"The weights {name} could not be read: detectron2's catalog has none of that name.")
    if url.startswith(("https://", "http://")):
        entry = zoo.entry_of(url)
        return zoo.get_weights(entry.name) if entry and url in entry.urls else fetch(url)
    try:
        path = Path(PathManager.get_local_path(url) if "://" in url else url).expanduser()
    except Exception as error:  # of whatever handler it is
        raise unreadable(name, error) from error
    if not path.is_file():
        raise _not_there(name)
    return path


def check_name(name: str) -> None:
    """Raise GNDetError where weights of this name cannot be had, as far as it is seen without reading or fetching them."""
    name = name.partition("?")[0]
    if name.startswith(zoo.URI):
        zoo.get_entry(name.removeprefix(zoo.URI))
    elif "://" not in name and not Path(name).expanduser().is_file():
        raise _not_there(name)


def _not_there(name: str) -> GNDetError:
    hint = f"; did you mean {zoo.URI}{name}?" if name in zoo.names() else "."
    return GNDetError(f"The weights {name} could not be read: there is no such file{hint}")


class ZooHandler(PathHandler):
    """Lets detectron2 read ``gn_det://NAME``: as a file with its own names, so that it unpickles nothing of others'."""

    def _get_supported_prefixes(self) -> list[str]:
        return [zoo.URI]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(_in_detectron2s_names(path.removeprefix(zoo.URI)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)


def _in_detectron2s_names(name: str) -> Path:
    """The weights of an entry converted, beside the download. Another download under the same name is converted anew."""
    source = zoo.get_weights(name)
    target = source.with_name(f"{source.name}~{zoo.digest(source, 'sha256')[:16]}.detectron2.pth")
    if not target.is_file():
        data = _converted(source)
        with replacing(target, hint="; set $FVCORE_CACHE to another folder") as part:
            torch.save(data, part)
        for old in source.parent.glob(f"{glob.escape(source.name)}~*.detectron2.pth"):
            if old != target:
                old.unlink(missing_ok=True)
    return target


def _converted(source: Path) -> dict[str, Any]:
    done = convert(read_file(source)["model"])
    if done.leftover:
        raise GNDetError(f"{source} has {len(done.leftover)} tensors of unknown names ({done.leftover[0]}, for one).")
    # A view would bring with it all that it is a view of.
    data: dict[str, Any] = {"model": {key: value.clone() for key, value in done.weights.items()}}
    if done.backbone_only:
        data["matching_heuristics"] = True  # with which detectron2 finds the place of a ResNet in a model
    return data


PathManager.register_handler(ZooHandler())
