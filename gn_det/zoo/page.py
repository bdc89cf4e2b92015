"""MODEL_ZOO.md: the model zoo and what was measured of it, as one page."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..config.files import config_dir, shipped_configs
from . import index as zoo
from .index import Entry

_HEAD = """# Model zoo

<!-- Written by `make zoo` from gn_det/zoo/zoo.json and results/. -->
GN detectors and backbones that others trained and published. `gn_det://NAME` stands for one wherever detectron2 takes a
file; the first use fetches it. The link of a name is its config, which the weights fit completely and which has their
origin's recipe. AP is on COCO val2017, in percent. **{evaluated} evaluated here.**

[What to do with them, and where an evaluation differs from their origin's](docs/model_zoo.md).
"""
_SOURCES = {
    "Detectron": "Detectron: its projects/GN/README.md, for BN\\* its MODEL_ZOO.md",
    "detectron2": "detectron2: its MODEL_ZOO.md",
    "mmdetection 2.x": "mmdetection: its configs/gn, gn+ws and scratch",
}
_EVALUATE = "tools/train_net.py --config NAME --eval-only MODEL.WEIGHTS gn_det://NAME"
_TRAIN = "tools/train_net.py --config CONFIG MODEL.WEIGHTS gn_det://NAME"


def zoo_page(records: Sequence[dict]) -> str:
    """The page as Markdown, with the AP that the result records give for the entries."""
    entries = [zoo.get_entry(name) for name in zoo.names()]
    found = {entry.name: _measured(entry, records) for entry in entries}
    number = sum(map(bool, found.values()))
    parts = [_HEAD.format(evaluated=f"{number or 'None'} of these weights {'were' if number > 1 else 'was'}")]
    parts.append(_section("Backbones", "ImageNet top-1 in percent, as by their origins", _TRAIN, _backbones(entries)))
    for origin, source in _SOURCES.items():
        rows = _detectors([e for e in entries if e.origin == origin and e.kind == "detector"], found)
        parts.append(_section(origin, f"AP as by {source}", _EVALUATE, rows))
    parts.append(_notes(entries) + "\n" + "".join(f"[{e.name}]: {e.urls[0]}\n" for e in entries))
    return "\n".join(parts)


def _section(title: str, published: str, command: str, rows: Sequence[dict]) -> str:
    table = tabulate(rows, "keys", tablefmt="github", disable_numparse=True)
    return f"## {title}\n\n{published}.\n\n```bash\n{command}\n```\n\n{table}\n"


def _backbones(entries: Sequence[Entry]) -> list[dict]:
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


def _detectors(entries: Sequence[Entry], found: dict[str, str]) -> list[dict]:
    return [
        {
            "name, config": f"[`{e.name}`]({_config(e)})",
            "schedule": e.schedule,
            "box AP": _number(e.published["box"]),
            "mask AP": _number(e.published["mask"]),
            "measured here": found[e.name] or "not measured",
            "download": f"[{Path(e.urls[0]).suffix[1:]}][{e.name}]",
        }
        for e in entries
    ]


def _config(entry: Entry) -> str:
    return f"configs/{shipped_configs()[entry.config].relative_to(config_dir())}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _notes(entries: Sequence[Entry]) -> str:
    notes: dict[str, list[str]] = {}
    for entry in entries:
        if entry.notes:
            notes.setdefault(entry.notes, []).append(f"`{entry.name}`")
    return "## Notes\n\n" + "".join(f"- {', '.join(of)}: {note}\n" for note, of in notes.items())


def _measured(entry: Entry, records: Sequence[dict]) -> str:
    """``40.2, 35.6``: box and mask AP of the newest evaluation of the weights as they are, or ""."""
    mine = [record for record in records if _is_of(record, entry)]
    if not mine:
        return ""
    newest = max(mine, key=lambda record: record["date"])
    return ", ".join(f"{newest[kind]['AP']:.1f}" for kind in ("box", "mask") if newest.get(kind))


def _is_of(record: dict, entry: Entry) -> bool:
    """Whether it is an evaluation of the weights, not trained on, on COCO val2017 with nothing in their config changed."""
    weights = record.get("iteration") is None and zoo.entry_of(record.get("weights") or "") is entry
    as_shipped = record.get("config") == entry.config and not {*(record.get("changed") or {})} - {"MODEL.WEIGHTS"}
    return record.get("dataset") == "coco_2017_val" and weights and as_shipped
