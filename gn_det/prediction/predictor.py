"""A trained model that takes images: files, folders, arrays, in batches."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from ..acceleration.device import choose_device
from ..acceleration.inference import precision
from ..errors import GNDetError
from ..quiet import quiet
from .images import read_all
from .trained import find_trained, load_trained


@dataclass
class Prediction:
    """What :meth:`Predictor.stream` gives for an image.

    Attributes:
        name: the file's path, or the position among the inputs of an image that is no file.
        image: (height, width, 3), BGR, uint8; None where it could not be read.
        instances: ``pred_boxes`` (x0, y0, x1, y1 in the image's pixels), ``scores`` (0 to 1, falling), ``pred_classes`` and,
            of a model with masks, ``pred_masks`` (number, height, width), on the CPU; None where it could not be read.
        problem: why it could not be read, in a sentence; else None.
    """

    name: str | int
    image: np.ndarray = None  # type: ignore[assignment]
    instances: Instances = None
    problem: str | None = None


class Predictor:
    """A trained model, from what it left, for images as one has them.

    For one image the outputs are those of detectron2's ``DefaultPredictor``. Batches do not change them: only images that
    have the same size for the model share a batch, as the padding of others would count in GN's statistics.

    Args:
        model: the ``OUTPUT_DIR`` of a run (``model_final.pth``, else its last checkpoint); a checkpoint that remembers its
            config, as gn_det's do; ``gn_det://NAME`` of the model zoo; or with ``weights`` a config: shipped name, path or
            ``CfgNode``.
        weights: a file, or a URI that detectron2 knows; of an ``OUTPUT_DIR`` also a name in it (``model_best.pth``).
        device: "cpu" or "cuda"; without it a GPU, where there is one.
        batch_size: images that go through the model together; more is faster on a GPU.
        min_score: detections must score above this; without it above ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` (0.05).

    Attributes:
        cfg, model: as they are used.
        classes: the names, in the order of ``pred_classes``.
        category_ids: of the classes in the data set that was trained on, where they are known, else 0, 1, ...

    Raises:
        GNDetError: something is not there, cannot be read, or the weights are not the model's.
    """

    def __init__(
        self,
        model: str | os.PathLike | CfgNode,
        weights: str | os.PathLike | None = None,
        *,
        device: str | None = None,
        batch_size: int = 1,
        min_score: float | None = None,
    ):
        if batch_size < 1:
            raise GNDetError(f"The batch size is {batch_size}, and must be at least 1.")
        if min_score is not None and not 0 <= min_score <= 1:
            raise GNDetError(f"The lowest score is {min_score}, and must be from 0 to 1.")
        self.batch_size = batch_size
        self.cfg, self.classes, self.category_ids = find_trained(model, weights)
        self.cfg.MODEL.DEVICE = choose_device(device)
        if min_score is not None:  # so no mask is made of what is dropped
            self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(min_score)
        self.model = load_trained(self.cfg)
        size = self.cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([size, size], self.cfg.INPUT.MAX_SIZE_TEST)

    @property
    def metadata(self) -> Metadata:
        """The class names, as detectron2's ``Visualizer`` takes them."""
        return Metadata(thing_classes=self.classes)

    def __call__(self, inputs: object) -> Instances | list[Instances]:
        """The objects in an image, or in several.

        Args:
            inputs: a path, an array (height, width, 3) of uint8 in BGR (gray and BGRA too), or a PIL image: one image.
                A folder, a glob pattern, or a list of any of these: several.

        Returns:
            ``Instances`` as in :class:`Prediction`, for several a list of them, in order (a folder's by name).

        Raises:
            GNDetError: an input is no image or cannot be read. :meth:`stream` goes on instead.
        """
        found = [prediction.instances for prediction in self._all(inputs)]
        one = isinstance(inputs, np.ndarray | Image.Image) or (
            isinstance(inputs, str | os.PathLike) and os.path.isfile(os.path.expanduser(inputs))
        )
        return found[0] if one else found

    def coco(self, inputs: object) -> list[dict]:
        """All objects in the inputs (as in a call) in COCO's result format: the :meth:`rows` of each image."""
        return [row for prediction in self._all(inputs) for row in self.rows(prediction)]

    def rows(self, prediction: Prediction) -> list[dict]:
        """An image's objects in COCO's result format, ready for ``json.dump``; none of one that could not be read.

        Returns:
            [{"file_name": path, or "image_id": position, "category_id": one of :attr:`category_ids`, "bbox": [x, y, width,
            height], "score": 0 to 1, "segmentation": run-length mask}]
        """
        if prediction.problem:
            return []
        rows = instances_to_coco_json(prediction.instances, prediction.name)
        for row in rows:
            row["category_id"] = self.category_ids[row["category_id"]]
        if isinstance(prediction.name, str):
            return [{"file_name": row.pop("image_id")} | row for row in rows]
        return rows

    def _all(self, inputs: object) -> Iterator[Prediction]:
        for prediction in self.stream(inputs):
            if prediction.problem:
                raise GNDetError(prediction.problem)
            yield prediction

    def stream(self, inputs: object) -> Iterator[Prediction]:
        """One image after the other, in order, with no more than a batch in memory; for any number of images.

        Args:
            inputs: as in a call, or any iterable of such, a generator for one.
        """
        batch: list[tuple[Prediction, dict]] = []
        for name, image in read_all(inputs):
            if isinstance(image, GNDetError):
                yield from self._flush(batch)
                yield Prediction(name, problem=str(image))
                continue
            sample = self._sample(image)
            if batch and sample["image"].shape != batch[0][1]["image"].shape:
                yield from self._flush(batch)
            batch.append((Prediction(name, image), sample))
            if len(batch) == self.batch_size:
                yield from self._flush(batch)
        yield from self._flush(batch)

    def _sample(self, image: np.ndarray) -> dict:
        """The model's input for an image, exactly as ``DefaultPredictor`` makes it, which fails on very thin ones."""
        height, width = image.shape[:2]
        transform = self._resize.get_transform(image)
        if isinstance(transform, T.ResizeTransform) and not (transform.new_h and transform.new_w):
            transform = T.ResizeTransform(height, width, max(1, transform.new_h), max(1, transform.new_w))
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        pixels = transform.apply_image(image).astype("float32").transpose(2, 0, 1)
        return {"image": torch.as_tensor(pixels), "height": height, "width": width}

    def _flush(self, batch: list[tuple[Prediction, dict]]) -> Iterator[Prediction]:
        """Run the model on the batch, and empty it."""
        if not batch:
            return
        try:
            with torch.no_grad(), precision(self.cfg), quiet():
                outputs = self.model([sample for _, sample in batch])
        except torch.cuda.OutOfMemoryError:
            raise GNDetError(
                f"The GPU's memory does not hold a batch of {len(batch)} images of this size: take a smaller batch size, "
                "a smaller INPUT.MIN_SIZE_TEST, or the CPU."
            ) from None
        for (prediction, _), output in zip(batch, outputs, strict=True):
            prediction.instances = output["instances"].to("cpu")
            yield prediction
        batch.clear()
