"""Evaluate COCO AP with detectron2's evaluator, and write a record of each evaluation.

All metrics are in percent (0 to 100). AP is the mean over IoU 0.50:0.95; AP50 and AP75 are at one
IoU. APs, APm and APl are for small (area below 32^2 pixels), medium, and large (above 96^2)
objects. AR1, AR10 and AR100 are the recall with 1, 10 and 100 detections per image.
"""

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator as StockCOCOEvaluator
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ..acceleration.precision import precision
from ..acceleration.prefetch import Prefetcher
from ..acceleration.roi_masks import without_pasting
from ..metrics import COCO_LIMIT, METRICS, RECALLS, metric_names_at
from . import fast_coco, limits
from .detections import check_detections, check_finite, check_instances, read_detections
from .fast_coco import split_masks
from .finite_outputs import finite_outputs
from .hotcoco_data import SHAPE_KEYS
from .records import Weights, format_table, make_record, write_record

logger = logging.getLogger(__name__)


class COCOEvaluator(StockCOCOEvaluator):
    """detectron2's COCO evaluator, with the metrics computed by hotcoco.

    In addition, the results contain average recalls, and AP is 0 instead of NaN if nothing was
    detected. Images with more than 100 objects are logged.

    Args:
        limit: with more than 100, the results also contain AP and AR with this number of detections per
            image, such as ``AP@300``. COCO's metrics count 100.
        use_fast_impl: use hotcoco, and pycocotools only where hotcoco cannot be used. If False,
            always use pycocotools.

    The other arguments are those of detectron2's evaluator.
    """

    def __init__(self, *args, use_fast_impl: bool = True, limit: int = COCO_LIMIT, **kwargs):
        super().__init__(*args, use_fast_impl=False, **kwargs)
        self._fast, self._name, self._limit = use_fast_impl, args[0], limit
        if limit > COCO_LIMIT:
            self._max_dets_per_image = [*self._max_dets_per_image, limit]  # type: ignore[has-type]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Same as detectron2's method, but encode masks with :func:`split_masks` if possible.

        Raises:
            GNDetError: a box or score is not finite.
        """
        for image, output in zip(inputs, outputs, strict=True):
            masks = None
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                check_instances(instances, image)
                instances, masks = split_masks(instances, self._fast)
                output = {**output, "instances": instances}
            super().process([image], [output])
            if masks:
                for row, mask in zip(self._predictions[-1]["instances"], masks, strict=True):
                    row["segmentation"] = mask

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence | None = None) -> None:
        """Same as detectron2's method, but with hotcoco, if it can be used."""
        limits.warn_about_objects(self._name, self._coco_api.anns.values(), self._limit)
        rows = [row for prediction in predictions for row in prediction["instances"]]
        check_finite(rows)
        tasks = sorted(self._tasks or self._tasks_from_predictions(rows))
        indices = self._metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in self._coco_api.cats}
        category_ids = {index: category_id for category_id, index in indices.items()}
        evaluations = {}
        if self._fast and self._do_evaluation and rows:
            max_dets = self._max_dets_per_image
            evaluations = fast_coco.evaluate(self._coco_api, rows, tasks, category_ids, img_ids, max_dets)
        if not evaluations:
            super()._eval_predictions(predictions, img_ids=img_ids)
            return
        for row in rows:
            row["category_id"] = category_ids[row["category_id"]]
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                file.write(json.dumps(rows))
        names = self._metadata.get("thing_classes")
        for task, evaluation in evaluations.items():
            self._results[task] = self._derive_coco_results(evaluation, task, names)

    def _derive_coco_results(self, coco_eval, iou_type: str, class_names: list[str] | None = None) -> dict:
        """Same as detectron2's method, with recalls, with AP and AR at ``limit``, and with 0 if nothing was detected."""
        more = {}
        if coco_eval is not None and self._limit > COCO_LIMIT:
            more = limits.metrics_at(self._limit, coco_eval.eval)
            # detectron2 takes the AP of each class at the last limit.
            coco_eval.eval["precision"] = coco_eval.eval["precision"][..., :-1]
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is not None:
            stats = coco_eval.stats[6:12]
            recalls = {name: 100 * s if s >= 0 else math.nan for name, s in zip(RECALLS, stats, strict=True)}
            return results | recalls | more
        present = {a["category_id"] for a in self._coco_api.dataset["annotations"] if not a.get("iscrowd")}
        if not present:
            return results
        names = class_names or []
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id", range(len(names)))
        classes = zip(names, ids, strict=False)  # not strict: without class names, there is no AP per class
        per_class = {f"AP-{name}": 0.0 if category_id in present else math.nan for name, category_id in classes}
        return dict.fromkeys((*METRICS, *RECALLS, *metric_names_at(self._limit)), 0.0) | per_class

    def load_detections(self, rows: list[dict], path: str | Path) -> None:
        """Use detections from a file instead of the outputs of a model.

        Args:
            rows: what :func:`read_detections` returned.
            path: the file that they were read from, for the error.

        Raises:
            GNDetError: see :func:`check_detections`.
        """
        classes = self._metadata.thing_dataset_id_to_contiguous_id
        rows = check_detections(rows, self._coco_api.imgs, classes, path)
        self.reset()
        detections = [{**row, "category_id": classes[row["category_id"]]} for row in rows]
        self._predictions: list[dict[str, Any]] = [{"image_id": None, "instances": detections}]


def evaluate_detections(dataset_name: str, path: str | Path) -> dict:
    """Evaluate detections from a file on a registered dataset.

    If an image has more than 100 detections, AP and AR are also computed with all of them.

    Args:
        path: a file in COCO's result format; ``file_name`` may stand for ``image_id``.

    Returns:
        a dict with the keys

        - "bbox": AP, AP50, AP75, APs, APm, APl, AR1 to ARl, AP-CLASS of each class, and AP@N and AR@N for the
          largest number N of detections of an image, if it is above 100; in percent.
        - "segm": the same for masks, if the detections have masks.

    Raises:
        GNDetError: see :func:`read_detections` and :meth:`COCOEvaluator.load_detections`.
    """
    rows = read_detections(path)
    most = max(Counter(row.get("image_id", row.get("file_name")) for row in rows).values(), default=0)
    evaluator = COCOEvaluator(dataset_name, tasks=_tasks(rows), distributed=False, limit=most)
    evaluator.load_detections(rows, path)
    return evaluator.evaluate()


def _tasks(rows: list[dict]) -> tuple[str, ...]:
    return tuple(task for task, key in SHAPE_KEYS.items() if any(key in row for row in rows)) or ("bbox",)


def build_evaluator(cfg: CfgNode, dataset_name: str, write_files: bool = True) -> COCOEvaluator:
    """Build the evaluator of boxes and, with ``MODEL.MASK_ON``, masks, with ``TEST.DETECTIONS_PER_IMAGE`` as limit.

    It writes the detections to ``OUTPUT_DIR/inference/DATASET``, if ``write_files``.
    """
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name) if write_files else None
    fast, limit = cfg.TEST.FAST_COCO, cfg.TEST.DETECTIONS_PER_IMAGE
    return COCOEvaluator(dataset_name, tasks, output_dir=folder, use_fast_impl=fast, limit=limit)


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    loader,
    iteration: int | None = None,
    weights: Weights | None = None,
    callbacks: dict[str, Callable[[], None]] | None = None,
) -> dict:
    """Evaluate a model on a dataset. The main process writes the record and logs the table of AP.

    Args:
        loader: batches of the dataset, as the model takes them.
        iteration: number of iterations trained so far, for the record; None if the model was not
            trained by this run.
        weights: the weights of the model if it was not trained by this run.
        callbacks: functions to call "on_start", "before_inference" of each batch, and "on_end".

    Returns:
        the dict of :func:`evaluate_detections`; empty in all processes except the main process.
    """
    seconds: list[float] = []
    starts: list[float] = []
    callbacks = callbacks or {}

    def before_inference() -> None:
        if before := callbacks.get("before_inference"):
            before()
        starts.append(_synchronized_time())

    timed = {
        "before_inference": before_inference,
        "after_inference": lambda: seconds.append(_synchronized_time() - starts[-1]),
    }
    device = torch.device(cfg.MODEL.DEVICE)
    if cfg.INFERENCE.PREFETCH and device.type == "cuda":
        loader = Prefetcher(loader, device)
    model = without_pasting(model, cfg.INFERENCE.PASTE_ON_HOST)
    with precision(cfg), finite_outputs(model):
        results = inference_on_dataset(model, loader, build_evaluator(cfg, dataset_name), callbacks | timed)
    if not comm.is_main_process():
        return {}
    median = sorted(seconds)[len(seconds) // 2] / cfg.INFERENCE.BATCH_SIZE
    record = make_record(cfg, dataset_name, results, seconds_per_image=median, weights=weights)
    record["iteration"] = weights.iteration if weights else iteration
    path = write_record(cfg.OUTPUT_DIR, record)
    logger.info(f"{format_table(record)}\n\nThe record of this evaluation is {path}")
    return results


def _synchronized_time() -> float:
    """Return the time in seconds after all work on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
