"""Resolve ``MODEL.WEIGHTS`` (a path, URL, model zoo name or catalog name) to a local file."""

import glob
import os
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from ..download.fetch import fetch
from ..errors import GNDetError
from ..files import replacing
from ..zoo import index as zoo
from .convert import convert
from .load import read_file

_URLS = ("https://", "http://")  # what is downloaded


def find_weights(name: str | os.PathLike[str]) -> Path:
    """Return the local file of ``MODEL.WEIGHTS``. Download it if it is not in the cache yet.

    Everything that is downloaded goes through :mod:`gn_det.download`.

    Args:
        name: a path, an http or https URL, ``gn_det://NAME`` of the model zoo, or a ``catalog://`` or
            ``detectron2://`` name of detectron2.

    Raises:
        GNDetError: the file does not exist, cannot be downloaded, or differs from the published file,
            or the URL has another scheme.
    """
    name = zoo.without_options(os.fspath(name))
    if name.startswith(zoo.URI):
        return zoo.get_weights(name.removeprefix(zoo.URI))
    url = zoo.resolve(name)
    if url.startswith(_URLS):
        entry = zoo.entry_of(url)
        return zoo.get_weights(entry.name) if entry and url in entry.urls else fetch(url)
    _check_local(url)
    path = Path(url).expanduser()
    if not path.is_file():
        raise _missing_file(name)
    return path


def check_name(name: str) -> None:
    """Check a value of ``MODEL.WEIGHTS`` without reading or downloading the file.

    Raises:
        GNDetError: the model zoo or detectron2's catalog has no such name, the path does not exist, or
            the URL has a scheme other than http and https. Other URLs pass.
    """
    name = zoo.without_options(name)
    url = zoo.resolve(name)
    if name.startswith(zoo.URI):
        zoo.get_entry(name.removeprefix(zoo.URI))
    elif not url.startswith(_URLS):
        _check_local(url)
        if not Path(url).expanduser().is_file():
            raise _missing_file(name)


def _check_local(name: str) -> None:
    """Check that a value of ``MODEL.WEIGHTS`` which is not downloaded is a path that detectron2 can open.

    detectron2's path manager is not asked, because it downloads ftp URLs to paths that the URL chooses.
    """
    if name.startswith("catalog://"):
        raise GNDetError(f"The weights {name} could not be read: detectron2's catalog has no such name.")
    if "://" in name:
        raise GNDetError(
            f"The weights {name} could not be read: only http and https URLs are downloaded; download the file, and "
            "pass its path."
        )
    if "?" in name:
        raise GNDetError(
            f"The weights {name} could not be read: detectron2 takes what follows '?' in a path as options; rename the file."
        )


def _missing_file(name: str) -> GNDetError:
    hint = f"; did you mean {zoo.URI}{name}?" if name in zoo.names() else "."
    return GNDetError(f"The weights {name} could not be read: the file does not exist{hint}")


class ZooHandler(PathHandler):
    """Let detectron2 open ``gn_det://NAME`` as a file with detectron2's tensor names.

    The file is converted, so that detectron2 never unpickles a file of another project.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [zoo.URI]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(_convert_entry(path.removeprefix(zoo.URI)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[str] | IO[bytes]:
        file: IO[str] | IO[bytes] = PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)
        return file


def _convert_entry(name: str) -> Path:
    """Return the weights of a model zoo entry as a file in detectron2's names, beside the download.

    The file is written once, and again if the download has changed.
    """
    source = zoo.get_weights(name)
    target = source.with_name(f"{source.name}~{zoo.digest(source, 'sha256')[:16]}.detectron2.pth")
    if not target.is_file():
        data = _detectron2_checkpoint(source)
        with replacing(target, hint="; set $FVCORE_CACHE to another folder") as part:
            torch.save(data, part)
        for old in source.parent.glob(f"{glob.escape(source.name)}~*.detectron2.pth"):
            if old != target:
                old.unlink(missing_ok=True)
    return target


def _detectron2_checkpoint(source: Path) -> dict[str, Any]:
    converted = convert(read_file(source)["model"])
    if unknown := converted.leftover:
        raise GNDetError(f"{source} has {len(unknown)} tensors with unknown names (for example {unknown[0]}).")
    # Clones, because torch.save would write the whole storage that a view belongs to.
    data: dict[str, Any] = {"model": {name: value.clone() for name, value in converted.weights.items()}}
    if converted.backbone_only:
        data["matching_heuristics"] = True  # lets detectron2 find the ResNet in the model
    return data


PathManager.register_handler(ZooHandler())
