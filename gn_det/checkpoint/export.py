"""Convert a weights file to a detectron2 ``.pth`` or a safetensors file, and report the changes."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ..data.identity import read_identities
from ..errors import GNDetError
from ..files import replacing
from ..modeling.part_names import part_of
from .convert import convert
from .load import notes_in, read_file
from .mapping import FOLDED, Converted
from .pickles import one_line
from .safetensors_io import checkpoint_parts, notes_to_json, packed, write_safetensors

#: The formats that can be written, and their suffixes.
FORMATS = {"detectron2": ".pth", "safetensors": ".safetensors"}
# Parts that are not reported as left out, because the new file contains them in gn_det's own form.
_KEPT_PARTS = ("config", "classes", "datasets", "recipe", "metadata", "origin", "__author__", "matching_heuristics")


def convert_file(source: str | Path, target: str | Path, to: str, force: bool = False) -> tuple[Converted, list[str]]:
    """Convert a weights file to detectron2's names. Its config, class names and recipe are kept.

    Args:
        to: "detectron2", a ``.pth`` for stock detectron2's checkpointer, or "safetensors".
        force: overwrite ``target``.

    Returns:
        the converted weights; the names of the other parts of the file that were left out, such as
        "optimizer".

    Raises:
        GNDetError: the source cannot be read, or has names that no rule covers or values that are
            not finite; or the target exists, has the wrong suffix or cannot be written. Nothing is
            written then.
    """
    target = Path(target)
    if target.suffix != FORMATS[to]:
        raise GNDetError(
            f"{target} has the wrong suffix for {to}, which recognizes its files by the suffix: use {FORMATS[to]}."
        )
    if target.exists() and not force:
        raise GNDetError(f"{target} already exists: choose another file, or pass --force to overwrite it.")
    parts = read_file(source)
    converted = convert(parts.pop("model"))
    _check(source, converted)
    converted.dropped.update({name: f"{kind} instead of a tensor" for name, kind in parts.pop("skipped", {}).items()})
    notes = notes_in(parts) | {"origin": converted.origin}
    if isinstance(parts.get("recipe"), dict):
        notes["recipe"] = parts["recipe"]
    if datasets := read_identities(parts.get("datasets")):
        notes["datasets"] = datasets
    if to == "safetensors":
        write_safetensors(target, converted.weights, notes)
    else:
        _write_detectron2(target, converted, notes)
    return converted, [one_line(str(name)) for name in parts if name not in _KEPT_PARTS]


def _check(source: str | Path, converted: Converted) -> None:
    if unknown := converted.leftover:
        total = len(unknown) + len(converted.dropped) + sum(name != FOLDED for name in converted.sources.values())
        raise GNDetError(
            f"{source} has the tensor names of {converted.origin}, but {len(unknown)} of its {total} names are unknown "
            f"({_first_names(unknown)}); nothing was written."
        )
    for name, tensor in converted.weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise GNDetError(f"{source} has NaN or infinite values in {converted.sources[name]}; nothing was written.")


def _write_detectron2(target: Path, converted: Converted, notes: dict[str, Any]) -> None:
    # With matching_heuristics, detectron2's checkpointer finds the ResNet in the model.
    heuristics = {"matching_heuristics": True} if converted.backbone_only else {}
    # Through JSON, so that the new file contains only text and numbers, and no objects of the source.
    parts = checkpoint_parts(json.loads(notes_to_json(target, notes)))
    data = {"model": packed(converted.weights), "__author__": converted.origin, **heuristics, **parts}
    with replacing(target) as part:
        torch.save(data, part)


def mapping_report(converted: Converted, left_out: list[str], verbose: bool = False) -> str:
    """Return a text that reports what became of each name in a file.

    Args:
        converted, left_out: as :func:`convert_file` returns them.
        verbose: list all names instead of counting the tensors of each part of the model.
    """
    what = "a ResNet" if converted.backbone_only else "a detector"
    millions = sum(tensor.numel() for tensor in converted.weights.values()) / 1e6
    lines = [
        f"{what} with the tensor names of {converted.origin}: {len(converted.weights)} tensors, {millions:.2f} M values",
        "",
    ]
    lines += [_name_table(converted) if verbose else _part_table(converted), ""]
    reasons = defaultdict(list)
    for name, reason in converted.dropped.items():
        reasons[reason].append(name)
    lines += [f"left out: {len(names)} x {reason} ({_first_names(names)})" for reason, names in reasons.items()]
    if left_out:
        lines.append(f"left out beside the weights: {', '.join(left_out)}")
    return "\n".join(lines).rstrip()


def _part_table(converted: Converted) -> str:
    return tabulate(sorted(Counter(map(part_of, converted.weights)).items()), ["part", "tensors"], tablefmt="github")


def _name_table(converted: Converted) -> str:
    rows = [
        (converted.sources[name] or "(BN folded: no statistics)", name, tuple(tensor.shape))
        for name, tensor in converted.weights.items()
    ]
    return tabulate(rows, ["file", "detectron2", "shape"], tablefmt="github")


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
