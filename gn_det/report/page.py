"""Write the report of a run as one HTML page."""

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
from .analysis import IOU, Analysis, analyze_detections
from .detail import analysis_details
from .source import Source, describe_dataset, read_source

_PADDING: dict[object, str] = {True: "ignored", False: "as in stock detectron2"}
_PARTS = ("backbone", "FPN", "box head", "mask head")  # in the order of NORM_KEYS
_MAX_NAMES = 12  # number of class names that are listed
_MAX_ROUNDING = 0.05  # largest difference, in percent, between the AP of a record and of the same detections


def write_report(
    folder: str | Path, out: str | Path | None = None, *, dataset: str | None = None, min_score: float = 0.5
) -> Path:
    """Write the report of a run as one HTML page that needs no other file.

    Args:
        folder: the OUTPUT_DIR of the run.
        out: path of the page. By default ``report.html`` in ``folder``, or ``report-DATASET.html``
            if ``dataset`` is given.
        dataset: name of a dataset on which the run was evaluated; by default the first.
        min_score: from 0 to 1; detections with a lower score are neither counted nor drawn. AP uses
            all detections.

    Returns:
        the path of the page.

    Raises:
        GNDetError: ``folder`` is not the OUTPUT_DIR of a run, the run was not evaluated on
            ``dataset``, a file cannot be read, or the page cannot be written.
    """
    if not 0 <= min_score <= 1:
        raise GNDetError(f"The minimum score is {min_score}; it must be between 0 and 1.")
    text = render(read_source(folder, dataset), min_score)
    name = f"report-{dataset}.html".replace(os.sep, "_") if dataset else "report.html"
    path = Path(out) if out else Path(folder) / name
    return save_text(path, text, name=f"The report {path}", errors="xmlcharrefreplace")


def render(source: Source, min_score: float) -> str:
    """Return the page as HTML, with the names of classes, files and keys escaped."""
    analysis = None
    if source.truth is not None and source.detections is not None:
        masks, where = source.cfg.MODEL.MASK_ON, source.detections_file or "the detections"
        analysis = analyze_detections(source.truth, source.detections, min_score, masks=masks, where=where)
    return load_template("report.html").render(
        css=stylesheet(),
        source=source,
        results=_results(source, analysis),
        notes=_notes(source, analysis),
        facts=_facts(source),
        changed=changed_keys(source.cfg),
        training=training.training_curves(source.metrics),
        min_score=min_score,
        iou=IOU,
        detail=analysis_details(source, analysis) if analysis else None,
        class_rows=tables.recorded_class_rows(source.record) if source.record else [],
    )


def load_template(name: str) -> jinja2.Template:
    """Return a template of this folder, which escapes all values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits=1: "–" if value is None else f"{value:,.{digits}f}"
    return environment.get_template(name)


def stylesheet() -> Markup:
    """Return the CSS of all pages."""
    return Markup(Path(__file__).with_name("report.css").read_text())


def _results(source: Source, analysis: Analysis | None) -> list[tuple[str, list[float | None]]]:
    """Return the rows of the AP table, (name, [AP, AP50, AP75, APs, APm, APl]).

    On COCO val2017, the published results of the config follow those of the run.
    """
    rows = []
    published = source.record and source.record.get("published")
    for kind in ("box", "mask"):
        if source.record:
            metrics = source.record[kind]
        else:
            metrics = analysis.scores[kind].metrics if analysis and kind in analysis.scores else None
        if metrics:
            rows.append((f"{kind} AP", [metrics.get(key) for key in METRICS]))
        if metrics and published and published[kind] and _is_on_coco(source):
            rows.append((f"{kind} AP, {published['source']}", [published[kind].get(key) for key in METRICS]))
    return rows


def _is_on_coco(source: Source) -> bool:
    """Return whether the dataset is COCO val2017, on which the published results were measured."""
    return (source.dataset or "").startswith("coco_2017_val")


def _notes(source: Source, analysis: Analysis | None) -> list[str]:
    """Return sentences on what is missing in the report and on how to read its numbers."""
    notes = list(source.missing)
    record = source.record
    if record and record.get("published") and not _is_on_coco(source):
        notes.append(
            f"The published AP of this config ({record['published']['source']}) was measured on COCO val2017. AP on "
            f"{source.dataset} cannot be compared with it."
        )
    for kind, scores in analysis.scores.items() if analysis else ():
        recorded = (record and record[kind] or {}).get("AP")
        if recorded is not None and abs(recorded - (scores.metrics["AP"] or 0.0)) > _MAX_ROUNDING:
            notes.append(
                f"The saved detections give {kind} AP {scores.metrics['AP'] or 0:.1f}, but the latest record has "
                f"{recorded:.1f}: they are from different evaluations. Only the table of AP above shows the record; "
                "the rest of this page shows the saved detections."
            )
    if source.others:
        notes.append(
            f"The run was also evaluated on {', '.join(source.others)}. For that report, run "
            "gn-det report OUTPUT_DIR --dataset NAME."
        )
    return notes


def _facts(source: Source) -> list[tuple[str, str]]:
    """Return (term, value) pairs that describe the run, without those whose value is unknown."""
    cfg, record = source.cfg, source.record or {}
    norms = [f"{part} {get_key(cfg, key) or 'none'}" for part, key in zip(_PARTS, NORM_KEYS, strict=True)]
    seconds = training.seconds(source.metrics)
    trained = {
        "Started from": cfg.MODEL.WEIGHTS or "random weights",
        "Trained on": "; ".join(describe_dataset(name) for name in cfg.DATASETS.TRAIN),
        "Schedule": f"{cfg.SOLVER.MAX_ITER:,} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, "
        f"learning rate {cfg.SOLVER.BASE_LR:g}",
        "Training time": seconds and _duration(seconds),
    }
    facts = {
        "Config": record.get("config") or cfg.MODEL.GN.CONFIG,
        "Norms": ", ".join(norms),
        "Padding": _PADDING.get(record.get("ignore_padding")),
        # Without metrics, it was only evaluated.
        **(trained if source.metrics else {"Weights": record.get("weights") or cfg.MODEL.WEIGHTS}),
        "Evaluated on": source.dataset and describe_dataset(source.dataset, source.truth),
        "Classes": _classes(source),
        "Processes": record.get("processes"),
        "Seconds per image": record.get("seconds_per_image")
        and f"{record['seconds_per_image']:.3g} (median during evaluation)",
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
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{len(names)}: {', '.join(names[:_MAX_NAMES])}{more}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
