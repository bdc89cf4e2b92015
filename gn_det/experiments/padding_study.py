"""Measure how the padding of a batch changes the AP of a trained model.

The model is evaluated at several batch sizes, once as stock detectron2 does, where the padding enters
statistics, features and proposals, and once with ``MODEL.GN.IGNORE_PADDING``. The weights are the same.
"""

from collections.abc import Sequence
from pathlib import Path

from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate

from ..drawing.figures import BLUE, ORANGE, save_figure
from ..errors import GNDetError
from ..evaluation.evaluator import build_evaluator
from ..evaluation.run_folder import register_datasets
from ..files import save_json, save_text
from ..metrics import RECORD_KEYS
from ..prediction.trained import find_trained, load_trained
from ..quiet import quiet
from ..training.trainer import Trainer

_LABELS = {True: "padding ignored", False: "as stock detectron2"}


def measure(run: str | Path, batch_sizes: Sequence[int], device: str) -> list[dict]:
    """Evaluate a trained model at several batch sizes, with and without the padding.

    Args:
        run: the ``OUTPUT_DIR`` of a run. Its first test dataset is used.

    Returns:
        one dict per evaluation, with the keys

        - "ignore_padding": bool
        - "batch": images per batch
        - "box", "mask": AP in percent; "mask" is None for a model without masks

    Raises:
        GNDetError: there is no run, it has no test dataset, or a batch size is below 1.
    """
    if min(batch_sizes) < 1:
        raise GNDetError(f"--batch-size is {min(batch_sizes)}; it must be 1 or more images.")
    cfg, *_ = find_trained(run)
    register_datasets(run)
    if not cfg.DATASETS.TEST:
        raise GNDetError(f"{run} has no test dataset: train with --val-json and --val-images.")
    cfg.MODEL.DEVICE, name = device, cfg.DATASETS.TEST[0]
    rows = []
    for ignore in (True, False):
        cfg.MODEL.GN.IGNORE_PADDING = ignore
        model = load_trained(cfg.clone())
        for batch in batch_sizes:
            cfg.INFERENCE.BATCH_SIZE = batch
            evaluator = build_evaluator(cfg, name, write_files=False)  # the files of the run stay as they are
            with quiet():
                results = inference_on_dataset(model, Trainer.build_test_loader(cfg, name), evaluator)
            rows.append({"ignore_padding": ignore, "batch": batch, **_ap(results)})
    return rows


def _ap(results: dict) -> dict[str, float | None]:
    return {kind: round(results[task]["AP"], 4) if task in results else None for task, kind in RECORD_KEYS.items()}


def table(rows: Sequence[dict]) -> str:
    """Return the AP by batch size as a Markdown table, with one row per kind of AP and treatment of the padding."""
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for kind in ("box", "mask"):
        for ignore, label in _LABELS.items():
            found = {row["batch"]: row[kind] for row in rows if row["ignore_padding"] is ignore}
            if all(value is not None for value in found.values()):
                lines.append([f"{kind} AP", label, *(f"{found[batch]:.2f}" for batch in batches)])
    return tabulate(lines, ["", "", *(f"batch {batch}" for batch in batches)], tablefmt="github", disable_numparse=True)


def draw(rows: Sequence[dict], path: str | Path) -> None:
    """Draw box and mask AP against the batch size, with one line per treatment of the padding."""
    from matplotlib.figure import Figure  # takes a second to import

    kinds = [kind for kind in ("box", "mask") if rows[0][kind] is not None]
    figure = Figure(figsize=(4 * len(kinds), 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for (ignore, label), color, marker in zip(_LABELS.items(), (BLUE, ORANGE), "os", strict=True):
            points = [(row["batch"], row[kind]) for row in rows if row["ignore_padding"] is ignore]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=label)
        axes.set_xscale("log", base=2)
        batches = sorted({row["batch"] for row in rows})
        axes.set(xlabel="images per test batch", ylabel=f"{kind} AP (%)", xticks=batches, xticklabels=batches)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    save_figure(figure, path)


def padding_study(run: str | Path, batch_sizes: Sequence[int], device: str, out: str | Path) -> str:
    """Measure, and write padding.json, padding.md and padding.png to the folder ``out``.

    Returns:
        the table.

    Raises:
        GNDetError: see :func:`measure`, or ``out`` cannot be written.
    """
    rows = measure(run, batch_sizes, device)
    text = table(rows)
    save_json(Path(out) / "padding.json", {"run": str(run), "rows": rows})
    save_text(Path(out) / "padding.md", text + "\n")
    draw(rows, Path(out) / "padding.png")
    return text
