"""Published weights of GN detectors by name: config, download, training recipe and published AP.

``gn_det://NAME`` names them wherever detectron2 takes a file, above all in ``MODEL.WEIGHTS``.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.config import CfgNode
from detectron2.utils.file_io import Detectron2Handler

from ..config.files import load_config
from ..download.fetch import fetch
from ..errors import GNDetError, did_you_mean

URI = "gn_det://"


@dataclass(frozen=True)
class Entry:
    """Weights that somebody published.

    Attributes:
        config: name of the shipped config that the weights fit, with the recipe that they were trained with.
        origin: "Detectron", "detectron2", "mmdetection 2.x" or "timm".
        kind: "detector", or "backbone" (of ImageNet).
        urls: where they are; the first one is fetched.
        sha256, md5: the first hex digits, as the published file name carries them, or "".
        size: bytes, 0 where unknown.
        recipe: {"pixel_mean", "pixel_std" (in the order of "format"), "format", "stride_in_1x1", "groups", "eps" (both None
            for BN*), "weight_standardisation"}: what the tensors do not say, and a model must agree with.
        published: {"source", "box", "mask"} (AP on COCO val2017 in percent, None without masks); of a backbone {"source",
            "top1"} (on ImageNet, in percent).
        schedule: how long it was trained, as its origin calls it.
        detections: {"bbox", "segm"}: URLs of the detections behind the published AP; may be empty.
    """

    name: str
    config: str
    origin: str
    kind: str
    urls: tuple[str, ...]
    sha256: str
    md5: str
    size: int
    recipe: dict[str, Any]
    published: dict[str, Any]
    schedule: str
    detections: dict[str, str]
    notes: str


@functools.cache
def _entries() -> dict[str, Entry]:
    rows = json.loads(Path(__file__).with_name("zoo.json").read_text())["entries"]
    return {name: Entry(name=name, **{**row, "urls": tuple(row["urls"])}) for name, row in rows.items()}


def names() -> list[str]:
    """The names of all entries."""
    return [*_entries()]


def get_entry(name: str) -> Entry:
    """
    Raises:
        GNDetError: there is none of that name.
    """
    entry = _entries().get(name)
    if entry is None:
        near = did_you_mean(name, names())
        raise GNDetError(f"There is no {name!r} in the model zoo{near}; MODEL_ZOO.md lists what there is.")
    return entry


def get_config(name: str) -> CfgNode:
    """The config of an entry with the entry as its ``MODEL.WEIGHTS``. Nothing is fetched.

    Raises:
        GNDetError: there is none of that name.
    """
    cfg = load_config(get_entry(name).config)
    cfg.MODEL.WEIGHTS = URI + name
    return cfg


def get_detector_config(name: str) -> CfgNode:
    """:func:`get_config` of an entry that can predict.

    Raises:
        GNDetError: there is none of that name, or it is a backbone.
    """
    entry = get_entry(name)
    if entry.kind == "backbone":
        raise GNDetError(
            f"{name} is a backbone alone, with which {entry.config} predicts nothing before it is trained: train it from "
            f"MODEL.WEIGHTS {URI}{name}, or take a detector."
        )
    return get_config(name)


def get_weights(name: str) -> Path:
    """The file of an entry as it was published, fetched once and held against what is known of it.

    Raises:
        GNDetError: there is none of that name, it cannot be had, or is not what was published.
    """
    entry = get_entry(name)
    path = fetch(entry.urls[0], sha256=entry.sha256, size=entry.size)
    if entry.md5 and not (found := digest(path, "md5")).startswith(entry.md5):
        raise GNDetError(
            f"{path} has the md5 {found[:8]}, and the published {name} has {entry.md5}: remove the file to have it "
            "downloaded again."
        )
    return path


def digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def entry_of(weights: str) -> Entry | None:
    """The entry that a ``MODEL.WEIGHTS`` names, or None.

    By ``gn_det://NAME``, by its URL (on any host and as a file in a mirror or cache, since all keep its path; as
    ``catalog://`` and ``detectron2://`` too), else by the name of the file where only one entry has that.
    """
    weights = weights.partition("?")[0]
    if weights.startswith(URI):
        return _entries().get(weights.removeprefix(URI))
    where = unquote(resolve(weights))
    paths = {unquote(urlsplit(url).path): entry for entry in _entries().values() for url in entry.urls}
    if found := next((entry for path, entry in paths.items() if where.endswith(path)), None):
        return found
    names = Counter(os.path.basename(path) for path in paths)
    name = os.path.basename(where)
    return next((e for path, e in paths.items() if os.path.basename(path) == name), None) if names[name] == 1 else None


def resolve(weights: str) -> str:
    """The URL behind detectron2's own ``catalog://`` and ``detectron2://``; what is none of these, or unknown, as it is."""
    catalog: Callable[[str], str] = ModelCatalog.get
    try:
        if weights.startswith("catalog://"):
            return catalog(weights.removeprefix("catalog://"))
    except (AssertionError, KeyError, RuntimeError):
        return weights  # detectron2 will say so
    prefix = Detectron2Handler.PREFIX
    return weights.replace(prefix, Detectron2Handler.S3_DETECTRON2_PREFIX, 1) if weights.startswith(prefix) else weights


def published(name: str) -> dict | None:
    """The published result of a shipped config, or None where there is none: the paper's, else that of the weights.

    Returns:
        {"source": str, "box": {"AP", "AP50", "AP75"} in percent or None, "mask": the same}, on COCO val2017; of weights
        AP alone.
    """
    rows = json.loads(Path(__file__).with_name("published.json").read_text())["rows"]
    entry = _entries().get(name)
    if name in rows or entry is None or entry.kind == "backbone":
        return rows.get(name)
    known = entry.published
    aps = {kind: {"AP": known[kind]} if known[kind] is not None else None for kind in ("box", "mask")}
    return {"source": known["source"], **aps}
