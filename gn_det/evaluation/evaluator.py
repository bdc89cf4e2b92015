"""COCO AP through the stock evaluator; each evaluation leaves a record.

AP is in percent (0 to 100), averaged over IoU 0.50:0.95; AP50 and AP75 at one IoU; APs, APm, APl for objects below 32^2,
between, and above 96^2 square pixels; AR1, AR10, AR100 the recall with so many detections an image.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator as StockCOCOEvaluator
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ..acceleration.inference import precision
from ..errors import GNDetError
from ..metrics import METRICS, RECALLS
from . import fast_coco
from .fast_coco import encode_masks
from .records import format_table, make_record, write_record

logger = logging.getLogger(__name__)


class COCOEvaluator(StockCOCOEvaluator):
    """The stock evaluator with hotcoco at work, with the recalls, and with 0 instead of NaN where nothing was detected.

    Args:
        use_fast_impl: False leaves everything to pycocotools. All others are the stock evaluator's.
    """

    def __init__(self, *args, use_fast_impl: bool = True, **kwargs):
        super().__init__(*args, use_fast_impl=False, **kwargs)
        self._fast = use_fast_impl

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As the stock method, with :func:`encode_masks` for masks that it takes."""
        for given, output in zip(inputs, outputs, strict=True):
            masks = None
            if self._fast and "instances" in output and output["instances"].has("pred_masks"):
                instances = output["instances"].to(self._cpu_device)
                masks = encode_masks(instances.pred_masks, instances.pred_boxes.tensor)
                if masks is not None:
                    instances.remove("pred_masks")
                    output = {**output, "instances": instances}
            super().process([given], [output])
            if masks:
                for row, mask in zip(self._predictions[-1]["instances"], masks, strict=True):
                    row["segmentation"] = mask

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence | None = None) -> None:
        """As the stock method, which it calls where pycocotools has to do it."""
        rows = [row for prediction in predictions for row in prediction["instances"]]
        tasks = sorted(self._tasks or self._tasks_from_predictions(rows))
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in self._coco_api.cats}
        categories = {mine: its for its, mine in contiguous.items()}
        evaluations = {}
        if self._fast and self._do_evaluation and rows:
            limits = self._max_dets_per_image
            evaluations = fast_coco.evaluate(self._coco_api, rows, tasks, categories, img_ids, limits)
        if not evaluations:
            return super()._eval_predictions(predictions, img_ids=img_ids)
        for row in rows:
            row["category_id"] = categories[row["category_id"]]
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                file.write(json.dumps(rows))
        names = self._metadata.get("thing_classes")
        self._results |= {task: self._derive_coco_results(it, task, names) for task, it in evaluations.items()}

    def _derive_coco_results(self, coco_eval, iou_type: str, class_names: list[str] | None = None) -> dict:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is not None:
            stats = coco_eval.stats[6:12]
            return results | {name: 100 * s if s >= 0 else math.nan for name, s in zip(RECALLS, stats, strict=True)}
        there = {a["category_id"] for a in self._coco_api.dataset["annotations"] if not a.get("iscrowd")}
        if not there:
            return results
        names = class_names or []
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id", range(len(names)))
        classes = zip(names, ids, strict=False)  # without names nothing can be said of a class
        per_class = {f"AP-{name}": 0.0 if number in there else math.nan for name, number in classes}
        return dict.fromkeys((*METRICS, *RECALLS), 0.0) | per_class

    def load_detections(self, rows: list[dict], path: str | Path) -> None:
        """Take detections in COCO's result format, read from ``path``, in the place of a model's output.

        Raises:
            GNDetError: one is for an image or category that the data set does not have.
        """
        images = set(self._coco_api.getImgIds())
        classes = self._metadata.thing_dataset_id_to_contiguous_id
        check_ids(rows, images, classes, path)
        self.reset()
        detections = [{**row, "category_id": classes[row["category_id"]]} for row in rows]
        self._predictions: list[dict[str, Any]] = [{"image_id": None, "instances": detections}]


def check_ids(rows: list[dict], images: Container, classes: Container, path: str | Path) -> None:
    """Raise GNDetError where a detection is for an image or category that the annotations do not have.

    Args:
        rows: detections in COCO's result format.
        images, classes: the ids in the annotations.
        path: the file of the detections, for the error.
    """
    for row in rows:
        for key, known in (("image_id", images), ("category_id", classes)):
            if row[key] not in known:
                raise GNDetError(f"{path}: there is a detection for {key} {row[key]}, which the annotations lack.")


def read_detections(path: str | Path) -> list[dict]:
    """The rows of a file in COCO's result format, each with image_id, category_id and a finite score.

    Raises:
        GNDetError: no such file, or not that format.
    """
    try:
        rows = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise GNDetError(f"The detections {path} cannot be read: {error}.") from None
    keys = {"image_id", "category_id", "score"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
        raise GNDetError(f"{path} is not in COCO's result format: a list of objects with {', '.join(sorted(keys))}.")
    for key, numbers in (("score", lambda score: [score]), ("bbox", lambda box: box)):
        if bad := sum(key in row and not _are_finite(numbers(row[key])) for row in rows):
            # The COCO API would rank a NaN first, and find every object with a box of NaN: AP 100.
            raise GNDetError(f"{path}: {bad} detections have a {key} that is not a finite number.")
    return rows


def _are_finite(numbers: object) -> bool:
    return isinstance(numbers, list) and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)


def evaluate_detections(dataset_name: str, path: str | Path) -> dict:
    """AP and AR of given detections on a registered data set: {"bbox": {...}} and, where they have masks, "segm".

    Raises:
        GNDetError: as :func:`read_detections` and :meth:`COCOEvaluator.load_detections`.
    """
    rows = read_detections(path)
    evaluator = COCOEvaluator(dataset_name, tasks=_tasks(rows), distributed=False)
    evaluator.load_detections(rows, path)
    return evaluator.evaluate()


def _tasks(rows: list[dict]) -> tuple[str, ...]:
    kinds = {"bbox": "bbox", "segmentation": "segm"}
    return tuple(task for key, task in kinds.items() if any(key in row for row in rows)) or ("bbox",)


def build_evaluator(cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
    """For boxes and, with ``MODEL.MASK_ON``, masks; its files go to ``OUTPUT_DIR/inference/DATASET``."""
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    return COCOEvaluator(dataset_name, tasks, output_dir=folder, use_fast_impl=cfg.TEST.FAST_COCO)


def evaluate(cfg: CfgNode, model: nn.Module, dataset_name: str, loader, iteration: int | None = None) -> dict:
    """Run the model over a data set; on the main process write the record and print the table.

    Args:
        iteration: iterations trained, for the record; None where a given model is evaluated.

    Returns:
        {"bbox": {"AP": percent, ...}, "segm": {...}}; empty on other processes.
    """
    seconds: list[float] = []
    begun = []
    callbacks: dict[str, Callable[[], None]] = {
        "before_inference": lambda: begun.append(_now()),
        "after_inference": lambda: seconds.append(_now() - begun[-1]),
    }
    with precision(cfg):
        results = inference_on_dataset(model, loader, build_evaluator(cfg, dataset_name), callbacks)
    if not comm.is_main_process():
        return {}
    record = make_record(cfg, dataset_name, results, seconds_per_image=sorted(seconds)[len(seconds) // 2])
    record["iteration"] = iteration
    path = write_record(cfg.OUTPUT_DIR, record)
    logger.info(f"{format_table(record)}\n\nThis evaluation is recorded in {path}")
    return results


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
