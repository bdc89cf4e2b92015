"""Look up published GN weights by name: config, download, training recipe and published AP.

``gn_det://NAME`` works wherever detectron2 takes a file, for example in ``MODEL.WEIGHTS``.
"""

import functools
import hashlib
import json
import os
import re
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
# Spellings in zoo.json and in checkpoints, and the current ones.
_OLD_RECIPE_KEYS = {"weight_standardisation": "weight_standardization"}


@dataclass(frozen=True)
class Entry:
    """An entry of the model zoo: published weights and how they were trained.

    Attributes:
        name: the name of the entry.
        config: the name of the shipped config that fits the weights, with the recipe of their
            training.
        origin: "Detectron", "detectron2", "mmdetection 2.x" or "timm".
        kind: "detector" or "backbone" (trained on ImageNet).
        urls: the URLs of the file; the first one is used.
        sha256, md5: the first hex digits, as in the published file name; "" if unknown.
        size: in bytes; 0 if unknown.
        recipe: the settings of the training that the tensors do not contain, but with which the
            model must agree. The keys are those of :func:`gn_det.checkpoint.recipe.recipe_of`;
            "groups" and "eps" are None for BN*.
        published: "source": str; of a detector "box" and "mask", AP on COCO val2017 in percent
            ("mask" is None for a model without masks); of a backbone "top1", accuracy on ImageNet
            in percent.
        schedule: the length of the training, in the terms of its origin.
        detections: {"bbox" or "segm": URL of the detections behind the published AP}; may be empty.
        notes: a remark for MODEL_ZOO.md, or "".
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
    rows: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("zoo.json").read_text())["entries"]
    for row in rows.values():
        row |= {"urls": tuple(row["urls"]), "recipe": with_current_keys(row["recipe"])}
    return {name: Entry(name=name, **row) for name, row in rows.items()}


def with_current_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe in which old names of keys, as older files have them, are replaced."""
    return {_OLD_RECIPE_KEYS.get(key, key): value for key, value in recipe.items()}


def names() -> list[str]:
    """Return the names of all entries."""
    return [*_entries()]


def get_entry(name: str) -> Entry:
    """Return the entry with this name.

    Raises:
        GNDetError: no entry has this name.
    """
    entry = _entries().get(name)
    if entry is None:
        hint = did_you_mean(name, names())
        raise GNDetError(f"The model zoo has no entry {name!r}{hint}; MODEL_ZOO.md lists all entries.")
    return entry


def get_config(name: str) -> CfgNode:
    """Return the config of an entry, with the entry as its ``MODEL.WEIGHTS``. Nothing is downloaded.

    Raises:
        GNDetError: no entry has this name.
    """
    cfg = load_config(get_entry(name).config)
    cfg.MODEL.WEIGHTS = URI + name
    return cfg


def get_detector_config(name: str) -> CfgNode:
    """Same as :func:`get_config`, but refuse an entry that is only a backbone.

    Raises:
        GNDetError: no entry has this name, or it is a backbone, which cannot predict.
    """
    entry = get_entry(name)
    if entry.kind == "backbone":
        raise GNDetError(
            f"{name} is only a backbone and cannot predict: train {entry.config} with MODEL.WEIGHTS {URI}{name}, or use a "
            "detector."
        )
    return get_config(name)


def get_weights(name: str) -> Path:
    """Return the published file of an entry. Download it if it is not in the cache yet, and verify it.

    Raises:
        GNDetError: no entry has this name, or the file cannot be downloaded or differs from the
            published one.
    """
    entry = get_entry(name)
    path = fetch(entry.urls[0], sha256=entry.sha256, size=entry.size)
    if entry.md5 and not (found := digest(path, "md5")).startswith(entry.md5):
        raise GNDetError(
            f"{path} has the md5 {found[:8]}, but the published {name} has {entry.md5}: remove the file to download it "
            "again."
        )
    return path


def digest(path: Path, algorithm: str) -> str:
    """Return the hex digest of a file, for example with ``algorithm`` "sha256"."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def entry_of(weights: str) -> Entry | None:
    """Return the entry that a value of ``MODEL.WEIGHTS`` refers to; None if there is none.

    An entry is recognized by ``gn_det://NAME``; by the path of its URL, on any host, in a cache or
    mirror, or behind a ``catalog://`` or ``detectron2://`` name; or by its file name, if no other
    entry has the same.
    """
    weights = without_options(weights)
    if weights.startswith(URI):
        return _entries().get(weights.removeprefix(URI))
    url = resolve(weights)
    location = unquote(urlsplit(url).path if "://" in url else url)
    paths = {unquote(urlsplit(url).path): entry for entry in _entries().values() for url in entry.urls}
    if found := next((entry for path, entry in paths.items() if location.endswith(path)), None):
        return found
    name = os.path.basename(location)
    if Counter(map(os.path.basename, paths))[name] != 1:
        return None
    return next(entry for path, entry in paths.items() if os.path.basename(path) == name)


def without_options(weights: str) -> str:
    """Return a value of ``MODEL.WEIGHTS`` without detectron2's suffix ``?matching_heuristics=...``.

    Any other query of a URL is part of the address of the file, and stays.
    """
    return re.sub(r"\?matching_heuristics=\w+$", "", weights)


def resolve(weights: str) -> str:
    """Return the URL of a ``catalog://`` or ``detectron2://`` name; any other value unchanged."""
    catalog: Callable[[str], str] = ModelCatalog.get
    try:
        if weights.startswith("catalog://"):
            return catalog(weights.removeprefix("catalog://"))
    except (AssertionError, KeyError, RuntimeError):
        return weights  # an unknown name, which the caller refuses
    prefix = Detectron2Handler.PREFIX
    return weights.replace(prefix, Detectron2Handler.S3_DETECTRON2_PREFIX, 1) if weights.startswith(prefix) else weights


def published(name: str) -> dict[str, Any] | None:
    """Return the published COCO val2017 result of a shipped config; None if there is none.

    The result is the paper's, or else that of the model zoo entry with the same name.

    Returns:
        A dict with

        - "source": str
        - "box": {"AP", "AP50", "AP75"} in percent, or None; of a model zoo entry only "AP"
        - "mask": the same for masks
    """
    rows: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_text())["rows"]
    entry = _entries().get(name)
    if name in rows or entry is None or entry.kind == "backbone":
        return rows.get(name)
    known = entry.published
    aps = {kind: {"AP": known[kind]} if known[kind] is not None else None for kind in ("box", "mask")}
    return {"source": known["source"], **aps}
