"""The page itself: what its template is given, and its writing."""

import os
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..errors import GNDetError
from ..evaluation.records import changed_keys
from ..files import save_text
from ..metrics import METRICS
from ..modeling.norm import NORM_KEYS, get_key
from . import tables, training
from .analysis import IOU, Analysis, analyse
from .detail import detail
from .source import Source, count, read_source

_PARTS = ("backbone", "FPN", "box head", "mask head")  # whose norms NORM_KEYS are
_NAMES = 12  # of classes that are written out in the facts
_ROUNDING = 0.05  # percent by which a record and the detections may differ


def write_report(
    folder: str | Path, out: str | Path | None = None, *, dataset: str | None = None, min_score: float = 0.5
) -> Path:
    """Write one self-contained HTML page on a run.

    Args:
        folder: the run's OUTPUT_DIR.
        out: the page; by default ``report.html`` in the folder, or ``report-DATASET.html`` where one is named.
        dataset: of those that the run was evaluated on; by default the first.
        min_score: of the detections that are counted as found or false and drawn, from 0 to 1. AP takes all scores.

    Returns:
        the path of the page.

    Raises:
        GNDetError: no run there, no evaluation on that data set, a file that cannot be read, or ``out`` cannot be written.
    """
    if not 0 <= min_score <= 1:
        raise GNDetError(f"The score {min_score} is not between 0 and 1.")
    text = render(read_source(folder, dataset), min_score)
    name = f"report-{dataset}.html".replace(os.sep, "_") if dataset else "report.html"
    path = Path(out) if out else Path(folder) / name
    return save_text(path, text, name=f"The report {path}", errors="xmlcharrefreplace")


def render(source: Source, min_score: float) -> str:
    """The page as HTML. What a user has named (classes, files, keys) is escaped in it."""
    analysis = None
    if source.truth is not None and source.detections is not None:
        masks, where = source.cfg.MODEL.MASK_ON, source.detections_file or "the detections"
        analysis = analyse(source.truth, source.detections, min_score, masks=masks, where=where)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits=1: "–" if value is None else f"{value:,.{digits}f}"
    return environment.get_template("report.html").render(
        css=Markup(Path(__file__).with_name("report.css").read_text()),
        source=source,
        results=_results(source, analysis),
        notes=_notes(source, analysis),
        facts=_facts(source),
        changed=changed_keys(source.cfg),
        training=training.drawings(source.metrics),
        min_score=min_score,
        iou=IOU,
        detail=detail(source, analysis) if analysis else None,
        class_rows=tables.recorded_class_rows(source.record) if source.record else [],
    )


def _results(source: Source, analysis: Analysis | None) -> list[tuple[str, list[float | None]]]:
    """Rows of (what, AP, AP50, AP75, APs, APm, APl), the paper's below ours where the data set is its own."""
    rows = []
    paper = source.record and source.record.get("published")
    for kind in ("box", "mask"):
        if source.record:
            ours = source.record[kind]
        else:
            ours = analysis.scores[kind].metrics if analysis and kind in analysis.scores else None
        if ours:
            rows.append((f"{kind} AP", [ours.get(key) for key in METRICS]))
        if ours and paper and paper[kind] and _is_papers(source):
            rows.append((f"{kind} AP, {paper['source']}", [paper[kind].get(key) for key in METRICS]))
    return rows


def _is_papers(source: Source) -> bool:
    return (source.dataset or "").startswith("coco_2017_val")


def _notes(source: Source, analysis: Analysis | None) -> list[str]:
    """Sentences on what the numbers do not say by themselves."""
    notes = list(source.missing)
    record = source.record
    if record and record.get("published") and not _is_papers(source):
        notes.append(
            f"The paper's result for this config ({record['published']['source']}) is on COCO val2017; what is measured on "
            f"{source.dataset} cannot be compared with it."
        )
    for kind, scores in analysis.scores.items() if analysis else ():
        told = (record and record[kind] or {}).get("AP")
        if told is not None and abs(told - (scores.metrics["AP"] or 0.0)) > _ROUNDING:
            notes.append(
                f"The detections in the folder give {kind} AP {scores.metrics['AP'] or 0:.1f}, the latest record "
                f"{told:.1f}: they are of different evaluations. All but the table of AP above is of the detections."
            )
    if source.others:
        notes.append(f"There are evaluations on {', '.join(source.others)} too (tools/report.py --dataset).")
    return notes


def _facts(source: Source) -> list[tuple[str, str]]:
    """(term, value) of what was trained, how, and on what; what is not known is left out."""
    cfg, record = source.cfg, source.record or {}
    norms = [f"{part} {get_key(cfg, key) or 'none'}" for part, key in zip(_PARTS, NORM_KEYS, strict=True)]
    seconds = training.seconds(source.metrics)
    trained = {
        "Started from": cfg.MODEL.WEIGHTS or "random weights",
        "Trained on": "; ".join(count(name) for name in cfg.DATASETS.TRAIN),
        "Schedule": f"{cfg.SOLVER.MAX_ITER:,} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, "
        f"learning rate {cfg.SOLVER.BASE_LR:g}",
        "Time of the iterations": seconds and _duration(seconds),
    }
    facts = {
        "Config": record.get("config") or cfg.MODEL.GN.CONFIG,
        "Norms": ", ".join(norms),
        **(trained if source.metrics else {"Weights": cfg.MODEL.WEIGHTS}),  # else it was only evaluated here
        "Evaluated on": source.dataset and count(source.dataset, source.truth),
        "Classes": _classes(source),
        "Processes": record.get("processes"),
        "Seconds an image": record.get("seconds_per_image")
        and f"{record['seconds_per_image']:.3g}, median, evaluation",
        "Hardware": ", ".join(f"{key} {value}" for key, value in (record.get("hardware") or {}).items()),
        "Versions": ", ".join(f"{key} {value}" for key, value in (record.get("versions") or {}).items()),
        "Commit": record.get("commit"),
        "Seed": cfg.SEED if cfg.SEED >= 0 else None,
        "Evaluated at": str(record.get("date", "")).replace("T", " ").replace("+00:00", " UTC"),
    }
    return [(term, str(value)) for term, value in facts.items() if value not in (None, "")]


def _classes(source: Source) -> str:
    if source.truth is None:
        return str(source.cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    names = [row["name"] for row in sorted(source.truth["categories"], key=lambda row: row["id"])]
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{len(names)}: {', '.join(names[:_NAMES])}{more}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
