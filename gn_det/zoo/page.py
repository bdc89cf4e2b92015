"""Make MODEL_ZOO.md: a table of published weights with config, published and measured AP, and download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..config.files import config_dir, shipped_configs
from . import index as zoo
from .index import Entry

_HEAD = """# Model zoo

<!-- Written by `make pages` from gn_det/zoo/zoo.json and results/. -->
GN detectors and backbones that were trained and published by other projects. Use `gn_det://NAME` wherever detectron2 takes
a file; the file is downloaded at the first use. Each name links to its config, which fits the weights and has the recipe of
their training. AP is on COCO val2017, in percent. **{evaluated} been evaluated with gn_det.**

[How to use them, and how evaluation differs from that of the original projects](docs/model_zoo.md).
"""
_SOURCES = {
    "Detectron": "Detectron's projects/GN/README.md and, for BN\\*, its MODEL_ZOO.md",
    "detectron2": "detectron2's MODEL_ZOO.md",
    "mmdetection 2.x": "mmdetection's configs/gn, configs/gn+ws and configs/scratch",
}
_EVALUATE = "tools/train_net.py --config NAME --eval-only MODEL.WEIGHTS gn_det://NAME"
_TRAIN = "tools/train_net.py --config CONFIG MODEL.WEIGHTS gn_det://NAME"


def zoo_page(records: Sequence[dict[str, Any]]) -> str:
    """Return the text of MODEL_ZOO.md.

    Args:
        records: result records, from which the AP measured with gn_det is taken.
    """
    entries = [zoo.get_entry(name) for name in zoo.names()]
    measured = {entry.name: _measured(entry, records) for entry in entries}
    number = sum(map(bool, measured.values()))
    parts = [_HEAD.format(evaluated=f"{number or 'None'} of these weights {'have' if number > 1 else 'has'}")]
    published = "ImageNet top-1 accuracy in percent, as published by the original projects"
    parts.append(_section("Backbones", published, _TRAIN, _backbone_rows(entries)))
    for origin, source in _SOURCES.items():
        rows = _detector_rows([e for e in entries if e.origin == origin and e.kind == "detector"], measured)
        parts.append(_section(origin, f"AP as published in {source}", _EVALUATE, rows))
    parts.append(_notes(entries) + "\n" + "".join(f"[{e.name}]: {e.urls[0]}\n" for e in entries))
    return "\n".join(parts)


def _section(title: str, published: str, command: str, rows: Sequence[dict[str, str]]) -> str:
    table = tabulate(rows, "keys", tablefmt="github", disable_numparse=True)
    return f"## {title}\n\n{published}.\n\n```bash\n{command}\n```\n\n{table}\n"


def _backbone_rows(entries: Sequence[Entry]) -> list[dict[str, str]]:
    return [
        {
            "name, config": f"[`{e.name}`]({_config(e)})",
            "from": e.origin,
            "top-1": f"{e.published['top1']:.1f}",
            "download": f"[{Path(e.urls[0]).suffix[1:]}][{e.name}]",
        }
        for e in entries
        if e.kind == "backbone"
    ]


def _detector_rows(entries: Sequence[Entry], measured: dict[str, str]) -> list[dict[str, str]]:
    return [
        {
            "name, config": f"[`{e.name}`]({_config(e)})",
            "schedule": e.schedule,
            "box AP": _number(e.published["box"]),
            "mask AP": _number(e.published["mask"]),
            "AP with gn_det": measured[e.name] or "not measured",
            "download": f"[{Path(e.urls[0]).suffix[1:]}][{e.name}]",
        }
        for e in entries
    ]


def _config(entry: Entry) -> str:
    return f"configs/{shipped_configs()[entry.config].relative_to(config_dir())}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _notes(entries: Sequence[Entry]) -> str:
    names_by_note: dict[str, list[str]] = {}
    for entry in entries:
        if entry.notes:
            names_by_note.setdefault(entry.notes, []).append(f"`{entry.name}`")
    return "## Notes\n\n" + "".join(f"- {', '.join(names)}: {note}\n" for note, names in names_by_note.items())


def _measured(entry: Entry, records: Sequence[dict[str, Any]]) -> str:
    """Return box and mask AP of the newest evaluation of an entry, as ``40.2, 35.6``; "" without one."""
    evaluations = [record for record in records if _is_evaluation_of(entry, record)]
    if not evaluations:
        return ""
    newest = max(evaluations, key=lambda record: record["date"])
    return ", ".join(f"{newest[kind]['AP']:.1f}" for kind in ("box", "mask") if newest.get(kind))


def _is_evaluation_of(entry: Entry, record: dict[str, Any]) -> bool:
    """Return whether a record is of an entry's published weights and unchanged config on COCO val2017."""
    published = (
        record.get("iteration") is None and zoo.entry_of(record.get("weights") or "") is entry
    )  # not trained further
    unchanged = record.get("config") == entry.config and not {*(record.get("changed") or {})} - {"MODEL.WEIGHTS"}
    return record.get("dataset") == "coco_2017_val" and published and unchanged
