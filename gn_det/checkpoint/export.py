"""A file of weights -> one that stock detectron2 loads, or safetensors; and what became of each name."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import torch
from tabulate import tabulate

from ..errors import GNDetError
from ..files import replacing
from ..modeling.part_names import part_of
from .convert import convert
from .load import notes_in, read_file
from .mapping import FOLDED, Converted
from .pickles import one_line
from .safetensors_io import notes_text, packed, parts_of, write_safetensors

#: What can be written, and the suffix by which it is told.
FORMATS = {"detectron2": ".pth", "safetensors": ".safetensors"}
# Parts of a file that go along, in gn_det's own form.
_KEPT = ("config", "classes", "recipe", "metadata", "origin", "__author__", "matching_heuristics")


def convert_file(source: str | Path, target: str | Path, to: str, force: bool = False) -> tuple[Converted, list[str]]:
    """Read weights of any origin and write all of them in detectron2's names, with what the file says of them.

    Args:
        to: "detectron2" (a ``.pth`` for stock detectron2's checkpointer) or "safetensors".
        force: overwrite ``target``.

    Returns:
        what was converted; the parts of the file beside its weights that were left out (the state of a training).

    Raises:
        GNDetError: the source cannot be read, has names that no rule knows or values that are not finite, or the target
            is there, has the wrong suffix or cannot be written. Then nothing is written.
    """
    target = Path(target)
    if target.suffix != FORMATS[to]:
        raise GNDetError(
            f"{target} is to be for {to}, which tells its files by their suffix: let it end in {FORMATS[to]}."
        )
    if target.exists() and not force:
        raise GNDetError(f"{target} is there already: name another file, or overwrite it with --force.")
    parts = read_file(source)
    converted = convert(parts.pop("model"))
    _check(source, converted)
    converted.dropped.update({name: f"a {kind}, and no tensor" for name, kind in parts.pop("skipped", {}).items()})
    notes = notes_in(parts) | {"origin": converted.origin}
    if isinstance(parts.get("recipe"), dict):
        notes["recipe"] = parts["recipe"]
    if to == "safetensors":
        write_safetensors(target, converted.weights, notes)
    else:
        _write_detectron2(target, converted, notes)
    return converted, [one_line(str(name)) for name in parts if name not in _KEPT]


def _check(source: str | Path, converted: Converted) -> None:
    if unknown := converted.leftover:
        total = len(unknown) + len(converted.dropped) + sum(name != FOLDED for name in converted.sources.values())
        raise GNDetError(
            f"{source} has the names of {converted.origin}, but {len(unknown)} of its {total} are known to no rule here "
            f"({_some(unknown)}): nothing was written."
        )
    for name, tensor in converted.weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise GNDetError(
                f"{source} has values that are NaN or infinite, in {converted.sources[name]}: nothing was written."
            )


def _write_detectron2(target: Path, converted: Converted, notes: dict) -> None:
    # Told so, detectron2's checkpointer looks for the ResNet in the model.
    heuristics = {"matching_heuristics": True} if converted.backbone_only else {}
    plain = parts_of(json.loads(notes_text(target, notes)))  # nothing of the file's own making
    data = {"model": packed(converted.weights), "__author__": converted.origin, **heuristics, **plain}
    with replacing(target) as part:
        torch.save(data, part)


def mapping_report(converted: Converted, left_out: list[str], verbose: bool = False) -> str:
    """What became of each name of a file, counted by part, or with ``verbose`` one by one.

    Args:
        converted, left_out: as :func:`convert_file` returns them.
    """
    what = "a ResNet" if converted.backbone_only else "a detector"
    millions = sum(tensor.numel() for tensor in converted.weights.values()) / 1e6
    lines = [
        f"{what}, in the names of {converted.origin}: {len(converted.weights)} tensors, {millions:.2f} M numbers",
        "",
    ]
    lines += [_by_name(converted) if verbose else _by_part(converted), ""]
    reasons = defaultdict(list)
    for name, reason in converted.dropped.items():
        reasons[reason].append(name)
    lines += [f"left out: {len(names)} x {reason} ({_some(names)})" for reason, names in reasons.items()]
    if left_out:
        lines.append(f"left out beside the weights: {', '.join(left_out)}")
    return "\n".join(lines).rstrip()


def _by_part(converted: Converted) -> str:
    return tabulate(sorted(Counter(map(part_of, converted.weights)).items()), ["part", "tensors"], tablefmt="github")


def _by_name(converted: Converted) -> str:
    rows = [
        (converted.sources[name] or "(BN folded: no statistics)", name, tuple(tensor.shape))
        for name, tensor in converted.weights.items()
    ]
    return tabulate(rows, ["file", "detectron2", "shape"], tablefmt="github")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
