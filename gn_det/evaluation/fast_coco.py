"""COCO's metrics by hotcoco in the place of pycocotools' loops, and masks encoded within their boxes only.

The numbers are pycocotools', which is the oracle in the tests and takes over by itself where hotcoco cannot be used.
"""

import datetime
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

logger = logging.getLogger(__name__)

_KEYS = {"bbox": "bbox", "segm": "segmentation"}
_process: int | None = None  # in which hotcoco has started its threads


def may_run() -> bool:
    """Whether hotcoco may be used in this process, which from then on counts as the one with its threads.

    A fork of a process in which it was at work has none of its threads, and would wait for them for ever.
    """
    global _process
    _process = _process or os.getpid()
    return _process == os.getpid()


class FastCOCOeval(COCOevalMaxDets):
    """pycocotools' COCOeval for boxes or masks, with ``evaluate`` and ``accumulate`` by hotcoco; ``evalImgs`` stays empty.

    Images and categories are numbered for hotcoco in the order of their ids, by which pycocotools ranks equal scores, and
    objects from 1: ids may be of any kind, and an object of id 0 can be found, which with pycocotools it cannot.
    """

    def __init__(self, truth: COCO, rows: list[dict], task: str, categories: Mapping[int, int]):
        """
        Args:
            rows: detections in COCO's result format.
            task: "bbox" or "segm".
            categories: {category_id in ``rows``: category_id in ``truth``}.
        """
        super().__init__(truth, None, task)
        self._rows, self._key, self._categories = rows, _KEYS[task], categories

    def evaluate(self) -> None:
        """
        Raises:
            ImportError: hotcoco is not installed.
            KeyError, TypeError, ValueError: what is given is not what pycocotools and it judge alike.
        """
        import hotcoco

        if not may_run():
            raise ValueError("this process is a fork of one that has used it")
        p = self.params
        p.imgIds, p.catIds, p.maxDets = list(np.unique(p.imgIds)), list(np.unique(p.catIds)), sorted(p.maxDets)
        self._images = {i: n for n, i in enumerate(i for i in p.imgIds if i in self.cocoGt.imgs)}
        self._classes = {i: n for n, i in enumerate(p.catIds)}
        truth = hotcoco.COCO(self._truth())
        self._hotcoco = hotcoco.COCOeval(truth, truth.load_res(self._detections()), p.iouType)
        self._hotcoco.params.max_dets = p.maxDets
        self._hotcoco.evaluate()

    def _truth(self) -> dict:
        rows = [self.cocoGt.imgs[i] for i in self._images]
        images = [{"id": n, "height": row["height"], "width": row["width"]} for n, row in enumerate(rows)]
        objects = self.cocoGt.dataset["annotations"]
        objects = [row for row in objects if row["image_id"] in self._images and row["category_id"] in self._classes]
        annotations = [
            {
                "id": number,
                "image_id": self._images[row["image_id"]],
                "category_id": self._classes[row["category_id"]],
                "area": row["area"],
                "iscrowd": int(bool(row["iscrowd"])),
                self._key: self._shape(row),
            }
            for number, row in enumerate(objects, start=1)
        ]
        categories = [{"id": n, "name": str(n)} for n in self._classes.values()]
        return {"images": images, "categories": categories, "annotations": annotations}

    def _detections(self) -> list[dict]:
        """Of one kind alone: with a box beside it hotcoco takes a mask's size from the box."""
        if strange := {row["image_id"] for row in self._rows} - self.cocoGt.imgs.keys():
            raise ValueError(f"there are detections for the image {min(strange)!r}, which the data set lacks")
        if self._key == "bbox" and not np.isfinite([row["bbox"] for row in self._rows]).all():
            raise ValueError("there are boxes that are not finite")
        classes = {mine: self._classes[its] for mine, its in self._categories.items() if its in self._classes}
        return [
            {
                "image_id": self._images[row["image_id"]],
                "category_id": classes[row["category_id"]],
                "score": row["score"],
                self._key: self._shape(row),
            }
            for row in self._rows
            if row["image_id"] in self._images
        ]

    def _shape(self, row: dict) -> list | dict:
        shape = row[self._key]
        if isinstance(shape, dict):
            image = self.cocoGt.imgs[row["image_id"]]
            if [*shape["size"]] != [image["height"], image["width"]]:
                raise ValueError(f"a mask of the image {row['image_id']!r} has another size than it")
        elif not shape:
            raise ValueError(f"an object of the image {row['image_id']!r} has an empty {self._key}")
        return shape

    def accumulate(self, p=None) -> None:
        """Fill ``eval`` as pycocotools does: precision (T, R, K, A, M), recall (T, K, A, M), scores as precision."""
        self._hotcoco.accumulate()
        told = {name: np.asarray((self._hotcoco.eval or {})[name]) for name in ("precision", "recall", "scores")}
        date = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self.eval = {"params": self.params, "counts": list(told["precision"].shape), "date": date, **told}


def evaluate(
    truth: COCO,
    rows: list[dict],
    tasks: Sequence[str],
    categories: Mapping[int, int],
    img_ids: Sequence | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> dict[str, FastCOCOeval]:
    """The evaluation of each task; none, and one line in the log, where pycocotools has to do it.

    Args:
        truth, rows, categories: as :class:`FastCOCOeval` takes them.
        img_ids: the images to evaluate on; None for all.
        max_dets: how many detections of an image count, for each recall; the last one also for AP.
    """
    evaluations = {}
    try:
        if others := set(tasks) - _KEYS.keys():
            raise ValueError(f"it is not used for {', '.join(sorted(others))}")
        for task in tasks:
            evaluations[task] = evaluation = FastCOCOeval(truth, rows, task, categories)
            evaluation.params.maxDets = list(max_dets)
            evaluation.params.imgIds = evaluation.params.imgIds if img_ids is None else img_ids
            evaluation.evaluate()
            evaluation.accumulate()
    except (ImportError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.warning(
            f"COCO's metrics come from pycocotools, which takes longer, as hotcoco cannot be used ({problem})."
        )
        return {}
    for evaluation in evaluations.values():
        evaluation.summarize()
    return evaluations


def encode_masks(masks: torch.Tensor, boxes: torch.Tensor) -> list[dict] | None:
    """What ``pycocotools.mask.encode`` makes of masks, counts as str; None where that is not sure.

    Args:
        masks: (N, H, W) bool, on the CPU; with other kinds, or masks that are not within their boxes, it is not sure.
        boxes: (N, 4) x0, y0, x1, y1 in pixels. Pixels more than one beyond them are only counted, as detectron2 pastes a
            mask no farther.
    """
    if masks.dtype != torch.bool or masks.ndim != 3 or not boxes.isfinite().all():
        return None
    size = height, width = masks.shape[1:]
    low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
    high = (boxes[:, 2:].ceil() + 1).minimum(boxes.new_tensor([width, height])).int().tolist()
    array, rles, seen = masks.numpy(), [], 0
    for mask, (x0, y0), (x1, y1) in zip(array, low, high, strict=True):
        runs = _runs(mask[y0:y1, x0:x1], x0, y0, *size)
        seen += sum(runs[1::2])
        rle = mask_util.frPyObjects({"size": [*size], "counts": runs}, *size)
        rles.append({**rle, "counts": rle["counts"].decode()})
    return rles if seen == np.count_nonzero(array) else None


def _runs(inside: np.ndarray, x0: int, y0: int, height: int, width: int) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns of a height x width mask, all 0 but for ``inside`` at x0, y0."""
    rows, columns = inside.shape
    gap = rows < height  # then there is a 0 between the last row of a column and the first of the next
    line = np.zeros(columns * (rows + gap) + 2, dtype=bool)  # a 0 before and after
    line[1:-1].reshape(columns, rows + gap)[:, :rows] = inside.T
    edges = np.flatnonzero(line[1:] != line[:-1])
    edges += x0 * height + y0 + edges // (rows + gap) * (height - rows - gap)
    runs = np.diff(edges, prepend=0, append=height * width)
    return runs[: len(runs) - (runs[-1] == 0)].tolist()
