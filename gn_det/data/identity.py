"""Identify a dataset by the content of its annotation file, because names and paths are not unique."""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..files import digest

logger = logging.getLogger(__name__)

#: Bytes; of a larger annotation file the bytes are hashed, because parsing it takes too much time and memory.
MAX_PARSED = 100_000_000
# The fields of a COCO file that training and evaluation use. The ids of annotations are left out, because the
# cleaned copies number them anew.
_FIELDS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints"),
}


def dataset_identity(name: str) -> dict[str, Any] | None:
    """Return what identifies the data of a registered dataset.

    The result is kept in memory until the annotation file changes.

    Returns:
        None if the dataset has no annotation file that can be read; otherwise a dict with the keys

        - "digest": "content:" and the sha256 of categories, images and annotations in any order; or, for
          a file of more than 100 MB, "file:" and the sha256 of its bytes.
        - "images", "objects": numbers of images and of objects without crowd regions; None for such a file.
    """
    path = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
    if not path:
        return None
    try:
        path = os.path.realpath(os.path.expanduser(path))
        status = os.stat(path)
        return dict(_identity_of_file(path, status.st_size, status.st_mtime_ns))
    except OSError as error:
        logger.debug(f"The dataset {name} has no digest, because {path} cannot be read: {error.strerror}.")
        return None


def dataset_identities(names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Return :func:`dataset_identity` for each name."""
    return {name: dataset_identity(name) for name in names}


@functools.lru_cache(maxsize=16)
def _identity_of_file(path: str, size: int, modified: int) -> dict[str, Any]:
    if size <= MAX_PARSED:
        try:
            return identity_of(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass  # not in COCO's format: the bytes identify the file
    return {"digest": f"file:{digest(path)}", "images": None, "objects": None}


def identity_of(data: dict[str, Any]) -> dict[str, Any]:
    """Return the identity of annotations in COCO's format, see :func:`dataset_identity`.

    Args:
        data: with the lists "categories" and "images", and optionally "annotations".
    """
    lines = hashlib.sha256()
    for kind, keys in _FIELDS.items():
        for line in sorted(json.dumps([row.get(key) for key in keys], sort_keys=True) for row in data.get(kind, ())):
            lines.update(f"{kind} {line}\n".encode())
    objects = sum(not row.get("iscrowd") for row in data.get("annotations", ()))
    return {"digest": f"content:{lines.hexdigest()}", "images": len(data["images"]), "objects": objects}


def describe_identity(name: str, identity: dict[str, Any] | None) -> str:
    """Return a dataset's name, size and digest as ``shapes_val (60 images, 291 objects, digest 0a1b2c3d)``."""
    if not identity:
        return f"{name} (digest unknown)"
    counts = "" if identity.get("images") is None else f"{identity['images']} images, {identity['objects']} objects, "
    return f"{name} ({counts}digest {str(identity['digest']).rpartition(':')[2][:8]})"


def same_data(first: dict[str, Any] | None, second: dict[str, Any] | None) -> bool:
    """Return whether two identities are equal. An identity that is not known equals every other."""
    return not first or not second or first["digest"] == second["digest"]


def read_identity(value: object) -> dict[str, Any] | None:
    """Return an identity that was read from a file; None if it has another form."""
    return value if isinstance(value, dict) and isinstance(value.get("digest"), str) else None


def read_identities(value: object) -> dict[str, dict[str, Any] | None]:
    """Return identities by dataset name that were read from a file; {} if they have another form."""
    return {str(name): read_identity(entry) for name, entry in value.items()} if isinstance(value, dict) else {}
