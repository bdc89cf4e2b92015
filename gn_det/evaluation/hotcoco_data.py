"""Convert COCO annotations and detections to hotcoco's input."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is used, because the evaluator also works without hotcoco
    import hotcoco

SHAPE_KEYS = {"bbox": "bbox", "segm": "segmentation"}  # task -> key of the shape in COCO's rows
_owner: int | None = None  # id of the process that may use hotcoco


def claim_hotcoco() -> bool:
    """Reserve hotcoco for this process; return False in a fork of the process that reserved it.

    hotcoco starts threads. A fork of the process has none of them, and a call there would wait for
    them forever. Therefore the first process that claims hotcoco keeps it, and its forks get False.
    """
    global _owner
    _owner = _owner or os.getpid()
    return _owner == os.getpid()


class HotcocoData:
    """Ground truth of a dataset, with its ids replaced by the integers that hotcoco needs.

    Images and categories are numbered from 0 in the order of their ids, because the COCO API ranks
    detections of equal score by image id. Annotations are numbered from 1 in the given order,
    because the COCO API never counts an object of id 0 as found.

    Args:
        images: rows with ``id``, ``height`` and ``width``. Ids are integers or strings.
        category_ids: the categories to evaluate.
        annotations: rows with ``image_id``, ``category_id``, ``area``, ``iscrowd`` and shapes, on
            these images and of these categories only.
        tasks: "bbox", "segm" or both; the shapes of the annotations to hand over to hotcoco. An
            object without a mask is given the shape of its box if both are handed over.

    Raises:
        KeyError: an annotation lacks a key, or is on another image or of another category.
    """

    def __init__(
        self,
        images: Iterable[dict],
        category_ids: Iterable[int],
        annotations: Iterable[dict],
        tasks: Sequence[str] = tuple(SHAPE_KEYS),
    ):
        import hotcoco

        images = sorted(images, key=lambda row: (isinstance(row["id"], str), row["id"]))
        self._images = {row["id"]: number for number, row in enumerate(images)}
        self._categories = {i: number for number, i in enumerate(sorted(category_ids))}
        keys = [SHAPE_KEYS[task] for task in tasks]
        self._truth = hotcoco.COCO(
            {
                "images": [
                    {"id": number, "height": row["height"], "width": row["width"]} for number, row in enumerate(images)
                ],
                "categories": [{"id": number, "name": str(number)} for number in self._categories.values()],
                "annotations": [
                    {
                        "id": number,
                        "image_id": self._images[row["image_id"]],
                        "category_id": self._categories[row["category_id"]],
                        "area": row["area"],
                        "iscrowd": int(bool(row["iscrowd"])),
                        **{key: row[key] for key in keys if row.get(key)},
                    }
                    for number, row in enumerate(annotations, start=1)
                ],
            }
        )

    def build_evaluation(
        self, task: str, rows: Iterable[dict], category_ids: Mapping[int, int] | None = None
    ) -> "hotcoco.COCOeval":
        """Return hotcoco's evaluator of detections, before any call of its ``evaluate()``.

        Only the shape of the task is handed over: with a box beside a mask, hotcoco would take the
        size of the mask from the box.

        Args:
            task: "bbox" or "segm".
            rows: detections in COCO's result format. hotcoco numbers them from 1 in this order.
            category_ids: {category_id in ``rows``: category_id in the annotations}; None if they
                are the same.

        Raises:
            KeyError: a detection lacks a key, or is on another image or of another category.
        """
        import hotcoco

        key, categories = SHAPE_KEYS[task], self._categories
        if category_ids is not None:
            categories = {i: categories[known] for i, known in category_ids.items() if known in categories}
        detections = [
            {
                "image_id": self._images[row["image_id"]],
                "category_id": categories[row["category_id"]],
                "score": row["score"],
                key: row[key],
            }
            for row in rows
        ]
        return hotcoco.COCOeval(self._truth, self._truth.load_res(detections), task)
