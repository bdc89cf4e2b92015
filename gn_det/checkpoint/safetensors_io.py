"""safetensors: weights and text in a file that can run nothing."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import GNDetError
from ..files import replacing

_OURS = "gn_det"  # the entry of the metadata that has the notes, as JSON: safetensors keeps text only


def read_safetensors(path: str) -> dict:
    """{"model": {name: tensor}}, and the notes as :func:`read_metadata` gives them."""
    with safe_open(path, framework="pt", device="cpu") as file:
        # Copies, as what the library gives is mapped, and ends the process when the file is written over.
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return {**_parts(file.metadata()), "model": weights}


def read_metadata(path: str) -> dict:
    """What the file says beside its weights, in the parts that a checkpoint of gn_det's has, and all of it as "metadata".

    Raises:
        ValueError: gn_det's own entry is damaged.
        SafetensorError: no such file.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        return _parts(file.metadata())


def _parts(metadata: dict[str, str] | None) -> dict:
    metadata = metadata or {}
    notes = json.loads(metadata.get(_OURS, "{}"))
    if not isinstance(notes, dict):
        raise ValueError(f"its metadata {_OURS!r} is not of the kind that gn_det writes")
    return {"metadata": metadata, **parts_of(notes)}


def parts_of(notes: Mapping) -> dict:
    """The parts of a checkpoint of gn_det's that say what :func:`gn_det.checkpoint.read_notes` reads, and the others."""
    parts = {key: notes[key] for key in ("recipe", "origin") if key in notes}
    if "config" in notes:
        parts["config"] = {"yaml": notes["config"]}
    if "names" in notes:
        parts["classes"] = {"names": notes["names"], "ids": notes.get("ids", [])}
    return parts


def write_safetensors(path: str | Path, weights: Mapping[str, torch.Tensor], notes: Mapping) -> None:
    """Write weights and what is to be known of them, as a whole or not at all.

    Args:
        weights: dense tensors. Shared memory and strides are let go.
        notes: what JSON can say, of which :func:`read_safetensors` gives back "config" (YAML text), "names" and "ids" (of
            the classes), "recipe" and "origin".

    Raises:
        GNDetError: it cannot be written there, or JSON cannot say the notes.
    """
    text = notes_text(path, notes)
    with replacing(Path(path)) as part:
        save_file(packed(weights), part, {"format": "pt", _OURS: text})


def notes_text(path: str | Path, notes: Mapping) -> str:
    """The notes as JSON.

    Raises:
        GNDetError: JSON cannot say them; ``path`` is where they were to go.
    """
    try:
        return json.dumps(dict(notes))
    except (TypeError, ValueError, RecursionError) as error:
        raise GNDetError(
            f"{path} cannot be written: the notes on the weights are not text and numbers ({error})."
        ) from None


def packed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor on the CPU and contiguous, in memory of its own and of its size."""
    result, seen = {}, set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor
    return result
