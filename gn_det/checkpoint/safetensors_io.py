"""Read and write safetensors files with gn_det's notes (config, classes, recipe) in the metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import GNDetError
from ..files import replacing

_DIGEST_KEY = "gn_det_sha256"  # the metadata entry of the digest; safetensors has no checksums
_NOTES_KEY = "gn_det"  # the metadata entry of the notes, as JSON because the values of metadata are text


def read_safetensors(path: str) -> dict[str, Any]:
    """Read a safetensors file.

    Returns:
        The result of :func:`read_metadata`, and "model": {name: tensor on the CPU}.

    Raises:
        ValueError: the tensors are not those that gn_det has written, or as for :func:`read_metadata`.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        # The library returns views of the mapped file. Without copies, overwriting the file would
        # end the process.
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if _DIGEST_KEY in metadata and metadata[_DIGEST_KEY] != _digest(weights):
        raise ValueError(
            f"it is damaged: the digest of its tensors is not the one in its metadata entry {_DIGEST_KEY!r}"
        )
    return {**_metadata_parts(metadata), "model": weights}


def read_metadata(path: str) -> dict[str, Any]:
    """Read the metadata of a safetensors file, without the weights.

    Returns:
        A dict with "metadata", all entries as text, and the parts that :func:`checkpoint_parts`
        makes of gn_det's notes.

    Raises:
        ValueError: the notes of gn_det are damaged.
        SafetensorError: the file is not a safetensors file.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        return _metadata_parts(file.metadata())


def _metadata_parts(metadata: dict[str, str] | None) -> dict[str, Any]:
    metadata = metadata or {}
    notes = json.loads(metadata.get(_NOTES_KEY, "{}"))
    if not isinstance(notes, dict):
        raise ValueError(f"its metadata entry {_NOTES_KEY!r} is not a JSON object")
    return {"metadata": metadata, **checkpoint_parts(notes)}


def checkpoint_parts(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Arrange notes as in a ``.pth`` checkpoint of gn_det.

    Args:
        notes: as :func:`write_safetensors` takes them.

    Returns:
        A dict with those of the following keys that the notes have

        - "config": {"yaml": str}
        - "classes": {"names": list of str, "ids": list of int}
        - "datasets": identities of the training data, see :func:`gn_det.data.identity.dataset_identity`
        - "recipe": as :func:`gn_det.checkpoint.recipe.recipe_of` returns it
        - "origin": str
    """
    parts = {key: notes[key] for key in ("datasets", "recipe", "origin") if key in notes}
    if "config" in notes:
        parts["config"] = {"yaml": notes["config"]}
    if "names" in notes:
        parts["classes"] = {"names": notes["names"], "ids": notes.get("ids", [])}
    return parts


def write_safetensors(path: str | Path, weights: Mapping[str, torch.Tensor], notes: Mapping[str, Any]) -> None:
    """Write weights and notes to a safetensors file atomically.

    Args:
        weights: {name: dense tensor}. Each tensor is saved contiguous and unshared.
        notes: values that JSON can store. :func:`read_safetensors` returns the keys "config" (YAML
            text), "names" and "ids" (of the classes), "datasets", "recipe" and "origin".

    Raises:
        GNDetError: the file cannot be written, or JSON cannot store the notes.
    """
    text = notes_to_json(path, notes)
    tensors = packed(weights)
    with replacing(Path(path)) as part:
        save_file(tensors, part, {"format": "pt", _NOTES_KEY: text, _DIGEST_KEY: _digest(tensors)})


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of the names and the values of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def notes_to_json(path: str | Path, notes: Mapping[str, Any]) -> str:
    """Return the notes as JSON.

    Args:
        path: the file that is being written, for the error sentence.

    Raises:
        GNDetError: JSON cannot store the notes.
    """
    try:
        return json.dumps(dict(notes))
    except (TypeError, ValueError, RecursionError) as error:
        raise GNDetError(f"{path} cannot be written: its notes must be text and numbers ({error}).") from None


def packed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return each tensor on the CPU, contiguous, in a storage of its own that has exactly its size."""
    result, seen = {}, set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor
    return result
