"""Fast COCO evaluation with hotcoco instead of pycocotools, and fast encoding of masks.

The results are equal to those of pycocotools; the tests compare them. If hotcoco cannot be used,
:func:`evaluate` returns nothing, and the caller uses pycocotools.
"""

import datetime
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.layers.mask_ops import _do_paste_mask
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from .hotcoco_data import SHAPE_KEYS, HotcocoData, claim_hotcoco

logger = logging.getLogger(__name__)


class FastCOCOeval(COCOevalMaxDets):
    """pycocotools' ``COCOeval`` for boxes or masks, with the metrics computed by hotcoco.

    Unlike in pycocotools, ``evalImgs`` stays empty, and an object of id 0 can be found.

    Args:
        truth: the ground truth.
        rows: detections in COCO's result format.
        task: "bbox" or "segm".
        categories: {category_id in ``rows``: category_id in ``truth``}.
    """

    def __init__(self, truth: COCO, rows: list[dict], task: str, categories: Mapping[int, int]):
        super().__init__(truth, None, task)
        self._rows, self._key, self._categories = rows, SHAPE_KEYS[task], categories

    def evaluate(self) -> None:
        """Match the detections with the ground truth.

        Raises:
            ImportError: hotcoco is not installed.
            KeyError, TypeError, ValueError: hotcoco cannot be used in this process, cannot read
                the data, or would not give the result of pycocotools.
        """
        if not claim_hotcoco():
            raise ValueError("this process is a fork of a process that has used hotcoco")
        p = self.params
        p.imgIds, p.catIds, p.maxDets = list(np.unique(p.imgIds)), list(np.unique(p.catIds)), sorted(p.maxDets)
        images = {i: self.cocoGt.imgs[i] for i in p.imgIds if i in self.cocoGt.imgs}
        categories = set(p.catIds)
        objects = self.cocoGt.dataset["annotations"]
        objects = [row for row in objects if row["image_id"] in images and row["category_id"] in categories]
        self._check_detections()
        rows = [row for row in self._rows if row["image_id"] in images]
        for row in (*objects, *rows):
            self._check_shape(row)
        data = HotcocoData(images.values(), p.catIds, objects, tasks=[p.iouType])
        self._hotcoco = data.build_evaluation(p.iouType, rows, self._categories)
        self._hotcoco.params.max_dets = p.maxDets
        self._hotcoco.evaluate()

    def _check_detections(self) -> None:
        if unknown := {row["image_id"] for row in self._rows} - self.cocoGt.imgs.keys():
            raise ValueError(f"there are detections on image {min(unknown)!r}, which is not in the dataset")
        if self._key == "bbox" and not np.isfinite([row["bbox"] for row in self._rows]).all():
            raise ValueError("some boxes are not finite")

    def _check_shape(self, row: dict) -> None:
        shape = row[self._key]
        if isinstance(shape, dict):
            image = self.cocoGt.imgs[row["image_id"]]
            if [*shape["size"]] != [image["height"], image["width"]]:
                raise ValueError(f"a mask on image {row['image_id']!r} does not have the size of the image")
        elif not shape:
            raise ValueError(f"an object on image {row['image_id']!r} has an empty {self._key}")

    def accumulate(self, p=None) -> None:
        """Compute ``eval`` in the format of pycocotools.

        The shapes are (T, R, K, A, M) for precision and scores, and (T, K, A, M) for recall: T IoU
        thresholds, R recall thresholds, K categories, A area ranges, M limits of detections.
        """
        self._hotcoco.accumulate()
        arrays = {name: np.asarray((self._hotcoco.eval or {})[name]) for name in ("precision", "recall", "scores")}
        date = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self.eval = {"params": self.params, "counts": list(arrays["precision"].shape), "date": date, **arrays}


def evaluate(
    truth: COCO,
    rows: list[dict],
    tasks: Sequence[str],
    categories: Mapping[int, int],
    img_ids: Sequence | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> dict[str, FastCOCOeval]:
    """Evaluate detections with hotcoco, and print the summary of each task.

    Args:
        truth, rows, categories: see :class:`FastCOCOeval`.
        img_ids: the images to evaluate on; None for all.
        max_dets: for each recall, the number of detections per image that count; the last number
            also applies to AP.

    Returns:
        the evaluation of each task, by name. If hotcoco cannot be used for one of the tasks, the
        dict is empty, and the log has a warning.
    """
    evaluations = {}
    try:
        if unsupported := set(tasks) - SHAPE_KEYS.keys():
            raise ValueError(f"hotcoco is not used for {', '.join(sorted(unsupported))}")
        for task in tasks:
            evaluations[task] = evaluation = FastCOCOeval(truth, rows, task, categories)
            evaluation.params.maxDets = list(max_dets)
            evaluation.params.imgIds = evaluation.params.imgIds if img_ids is None else img_ids
            evaluation.evaluate()
            evaluation.accumulate()
    except (ImportError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.warning(
            "The COCO metrics are computed by pycocotools, which is slower, because hotcoco cannot be used "
            f"({problem})."
        )
        return {}
    for evaluation in evaluations.values():
        evaluation.summarize()
    return evaluations


def encode_masks(masks: torch.Tensor, boxes: torch.Tensor) -> list[dict] | None:
    """Encode masks as COCO run lengths, reading the pixels inside their boxes only.

    Args:
        masks: (N, H, W) bool, on the CPU.
        boxes: (N, 4) x0, y0, x1, y1 in pixels. detectron2 pastes a mask at most one pixel beyond
            its box.

    Returns:
        what ``pycocotools.mask.encode`` returns for each mask, with the counts as str. None if the
        result could be different: for another kind of masks, boxes that are not finite, or pixels
        of a mask more than one pixel outside its box.

    """
    if masks.dtype != torch.bool or masks.ndim != 3 or not boxes.isfinite().all():
        return None
    size = height, width = masks.shape[1], masks.shape[2]
    low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
    high = (boxes[:, 2:].ceil() + 1).minimum(boxes.new_tensor([width, height])).int().tolist()
    array, rles, encoded_pixels = masks.numpy(), [], 0
    for mask, (x0, y0), (x1, y1) in zip(array, low, high, strict=True):
        runs = _run_lengths(mask[y0:y1, x0:x1], x0, y0, *size)
        encoded_pixels += sum(runs[1::2])
        rles.append(_compress(runs, size))
    return rles if encoded_pixels == np.count_nonzero(array) else None


def encode_roi_masks(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> list[dict]:
    """Paste each mask within its box, as detectron2 does on a CPU, and encode it as COCO run lengths.

    Args:
        masks: (N, M, M), between 0 and 1, on the CPU.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image.
        size: (height, width) of the image.

    Returns:
        what :func:`encode_masks` returns for the pasted masks. No bitmap of the size of the image is made.
    """
    rles = []
    for mask, box in zip(masks, boxes, strict=True):
        pasted, (rows, columns) = _do_paste_mask(mask[None, None], box[None], *size, skip_empty=True)
        crop = (pasted[0] >= 0.5).numpy()
        rles.append(_compress(_run_lengths(crop, int(columns.start), int(rows.start), *size), size))
    return rles


def split_masks(instances: Instances, encodes_bitmaps: bool = True) -> tuple[Instances, list[dict] | None]:
    """Encode the masks of one image, and leave them out of the instances.

    Args:
        instances: on the CPU, with masks as ``roi_masks`` (:func:`encode_roi_masks`), as ``pred_masks``
            (:func:`encode_masks`), or without masks.
        encodes_bitmaps: whether to encode ``pred_masks`` too.

    Returns:
        the instances without masks, and their run lengths. If there are no masks, or they cannot be encoded
        by this module, the instances as they are, and None.
    """
    fields, rles = dict(instances.get_fields()), None
    if "roi_masks" in fields:
        rles = encode_roi_masks(fields.pop("roi_masks"), instances.pred_boxes.tensor, instances.image_size)
    elif isinstance(fields.get("pred_masks"), list):
        rles = fields.pop("pred_masks")
    elif encodes_bitmaps and "pred_masks" in fields:
        rles = encode_masks(fields.pop("pred_masks"), instances.pred_boxes.tensor)
    return (instances, None) if rles is None else (Instances(instances.image_size, **fields), rles)


def _compress(runs: list[int], size: tuple[int, int]) -> dict:
    rle = mask_util.frPyObjects({"size": [*size], "counts": runs}, *size)
    return {**rle, "counts": rle["counts"].decode()}


def _run_lengths(crop: np.ndarray, x0: int, y0: int, height: int, width: int) -> list[int]:
    """Return the lengths of the runs of 0, 1, 0, ... down the columns of a mask.

    Args:
        crop: the part of the mask with its top left corner at x0, y0; all other pixels are 0.
        height, width: of the mask.
    """
    rows, columns = crop.shape
    gap = rows < height  # whether a 0 lies between the last row of a column and the first row of the next column
    line = np.zeros(columns * (rows + gap) + 2, dtype=bool)  # with a 0 before and after
    line[1:-1].reshape(columns, rows + gap)[:, :rows] = crop.T
    edges = np.flatnonzero(line[1:] != line[:-1])
    edges += x0 * height + y0 + edges // (rows + gap) * (height - rows - gap)
    runs = np.diff(edges, prepend=0, append=height * width)
    return runs[: len(runs) - (runs[-1] == 0)].tolist()
