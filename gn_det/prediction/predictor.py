"""Run a trained model on images: files, folders, arrays, and streams, in batches."""

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
from ..acceleration.precision import precision
from ..acceleration.prefetch import pin, prefetch, sample_to_device
from ..acceleration.roi_masks import paste, without_pasting
from ..errors import GNDetError
from ..evaluation.fast_coco import split_masks
from ..quiet import quiet
from .images import read_all
from .trained import find_trained, load_trained


@dataclass
class Prediction:
    """The result for one image, from :meth:`Predictor.stream`.

    Attributes:
        name: the file's path, or, for an image in memory, its position among the inputs.
        image: the pixels, (height, width, 3), BGR, uint8; None if the image could not be read.
        instances: the objects, on the CPU; None if the image could not be read. Fields: ``pred_boxes``
            (x0, y0, x1, y1 in pixels of the image), ``scores`` (0 to 1, in descending order),
            ``pred_classes``, and, for a model with masks, ``pred_masks`` (number, height, width), or, with
            ``encode_masks``, a list of COCO run lengths.
        problem: a sentence that explains why the image could not be read; None if it was read.
    """

    name: str | int
    image: np.ndarray | None = None
    instances: Instances | None = None
    problem: str | None = None


class Predictor:
    """Load a trained model and run it on images.

    For a single image, the outputs equal those of detectron2's ``DefaultPredictor``. Batching does not
    change them (``MODEL.GN.IGNORE_PADDING``; where it is False, only images with the same size at the
    model's input share a batch).

    Args:
        model: one of

            - the ``OUTPUT_DIR`` of a run (its newest good checkpoint is used, which is
              ``model_final.pth`` for a finished run);
            - a checkpoint that contains its config, as those of gn_det do;
            - ``gn_det://NAME`` from the model zoo;
            - a config (shipped name, path, or ``CfgNode``), together with ``weights``.
        weights: a file, or a URI that detectron2 can open; if ``model`` is an ``OUTPUT_DIR``, also the
            name of a file in it, such as ``model_best.pth``.
        device: "cpu", "cuda", or "cuda:N"; by default, a GPU if one is available.
        batch_size: maximum number of images per forward pass; larger batches are faster on a GPU.
        min_score: return only detections with a score above this value; by default,
            ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` (0.05).

    Attributes:
        cfg: the config in use.
        model: the model in use, in evaluation mode.
        classes: the class names, in the order of ``pred_classes``.
        category_ids: for each class, its category id in the dataset that the model was trained on;
            0, 1, ... if these ids are unknown.

    Raises:
        GNDetError: an argument is invalid, the model or weights do not exist or cannot be read, or the
            weights do not fit the model.
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
            raise GNDetError(f"The batch size is {batch_size}; it must be at least 1.")
        if min_score is not None and not 0 <= min_score <= 1:
            raise GNDetError(f"The minimum score is {min_score}; it must be between 0 and 1.")
        self.batch_size = batch_size
        self.cfg, self.classes, self.category_ids = find_trained(model, weights)
        self.cfg.MODEL.DEVICE = choose_device(device)
        if min_score is not None:  # filter inside the model, so that it predicts no masks for dropped boxes
            self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(min_score)
        self.model = load_trained(self.cfg)
        self._device = torch.device(self.cfg.MODEL.DEVICE)
        self._prefetches = self.cfg.INFERENCE.PREFETCH and self._device.type == "cuda"
        size = self.cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge([size, size], self.cfg.INPUT.MAX_SIZE_TEST)

    @property
    def metadata(self) -> Metadata:
        """The class names in the form that detectron2's ``Visualizer`` accepts."""
        return Metadata(thing_classes=self.classes)

    def __call__(self, inputs: object) -> Instances | list[Instances]:
        """Detect the objects in one or several images.

        Args:
            inputs: for one image, a path, a PIL image, or a uint8 array (height, width, 3) in BGR (gray
                and BGRA are accepted too); for several images, a folder, a glob pattern, or a list of
                any of these.

        Returns:
            the instances of the image (see :class:`Prediction`); for several images, a list of
            instances in the order of the inputs (the files of a folder are sorted by name).

        Raises:
            GNDetError: an input cannot be read as an image. Use :meth:`stream` to skip such inputs.
        """
        found = [instances for _, instances in self._predict(inputs)]
        single = isinstance(inputs, np.ndarray | Image.Image) or (
            isinstance(inputs, str | os.PathLike) and os.path.isfile(os.path.expanduser(inputs))
        )
        return found[0] if single else found

    def coco(self, inputs: object) -> list[dict]:
        """Detect objects and return them in COCO's result format.

        Args:
            inputs: see :meth:`__call__`.

        Returns:
            the :meth:`rows` of all images in one list.

        Raises:
            GNDetError: an input cannot be read as an image.
        """
        return [row for prediction, _ in self._predict(inputs, encode_masks=True) for row in self.rows(prediction)]

    def rows(self, prediction: Prediction) -> list[dict]:
        """Convert the instances of one image to COCO's result format, ready for ``json.dump``.

        Returns:
            one dict per object, with these keys; an empty list if the image could not be read.

            - ``"file_name"``: the image's path; for an image in memory, ``"image_id"``: its position
            - ``"category_id"``: one of :attr:`category_ids`
            - ``"bbox"``: [x, y, width, height] in pixels of the image
            - ``"score"``: from 0 to 1
            - ``"segmentation"``: run-length encoded mask, if the model predicts masks
        """
        if prediction.instances is None:
            return []
        instances, masks = split_masks(prediction.instances)
        rows = instances_to_coco_json(instances, prediction.name)
        for index, row in enumerate(rows):
            row["category_id"] = self.category_ids[row["category_id"]]
            if masks is not None:
                row["segmentation"] = masks[index]
        if isinstance(prediction.name, str):
            return [{"file_name": row.pop("image_id")} | row for row in rows]
        return rows

    def _predict(self, inputs: object, encode_masks: bool = False) -> Iterator[tuple[Prediction, Instances]]:
        """Yield each prediction and its instances; raise a GNDetError at the first unreadable image."""
        for prediction in self.stream(inputs, encode_masks=encode_masks):
            if prediction.instances is None:
                raise GNDetError(prediction.problem)
            yield prediction, prediction.instances

    def stream(self, inputs: object, *, encode_masks: bool = False) -> Iterator[Prediction]:
        """Yield one prediction per image, in order, with at most one batch of images in memory.

        With ``INFERENCE.PREFETCH`` on a GPU, the images of one more batch are read ahead. An image that cannot
        be read yields a prediction with a ``problem``.

        Args:
            inputs: as for :meth:`__call__`, or any iterable of such inputs, such as a generator.
            encode_masks: let ``pred_masks`` be a list of COCO run lengths (dicts that ``pycocotools.mask``
                takes) instead of a tensor. On a CPU, this takes far less memory for large images.
        """
        batch: list[tuple[Prediction, dict]] = []
        items = self._read(inputs)
        for prediction, sample in prefetch(items, depth=self.batch_size) if self._prefetches else items:
            if sample is None:
                yield from self._flush(batch, encode_masks)
                yield prediction
                continue
            needs_one_size = not self.cfg.MODEL.GN.IGNORE_PADDING
            if needs_one_size and batch and sample["image"].shape != batch[0][1]["image"].shape:
                yield from self._flush(batch, encode_masks)
            batch.append((prediction, sample))
            if len(batch) == self.batch_size:
                yield from self._flush(batch, encode_masks)
        yield from self._flush(batch, encode_masks)

    def _read(self, inputs: object) -> Iterator[tuple[Prediction, dict | None]]:
        """Yield, for each image, a prediction without instances and the model's input, or None if there is a problem."""
        for name, image in read_all(inputs):
            if isinstance(image, GNDetError):
                yield Prediction(name, problem=str(image)), None
            else:
                sample = self._sample(image)
                yield Prediction(name, image), pin(sample, self._device) if self._prefetches else sample

    def _sample(self, image: np.ndarray) -> dict:
        """Return the model's input for an image.

        It is the same as in ``DefaultPredictor``, except that a side that would be scaled to 0 pixels
        becomes 1 pixel; ``DefaultPredictor`` fails on such thin images.
        """
        height, width = image.shape[:2]
        transform = self._resize.get_transform(image)
        if isinstance(transform, T.ResizeTransform) and not (transform.new_h and transform.new_w):
            transform = T.ResizeTransform(height, width, max(1, transform.new_h), max(1, transform.new_w))
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        pixels = transform.apply_image(image).astype("float32").transpose(2, 0, 1)
        return {"image": torch.as_tensor(pixels), "height": height, "width": width}

    def _flush(self, batch: list[tuple[Prediction, dict]], encode_masks: bool) -> Iterator[Prediction]:
        """Run the model on the batch, yield the completed predictions, and empty the batch."""
        if not batch:
            return
        samples = [sample_to_device(sample, self._device) if self._prefetches else sample for _, sample in batch]
        paste_on_host = self.cfg.INFERENCE.PASTE_ON_HOST and self._device.type == "cuda"
        model = without_pasting(self.model, paste_on_host) if encode_masks or paste_on_host else self.model
        try:
            with torch.no_grad(), precision(self.cfg), quiet():
                outputs = model(samples)
        except torch.cuda.OutOfMemoryError:
            raise GNDetError(
                f"A batch of {len(batch)} images of this size does not fit into the GPU's memory; use a smaller batch "
                "size, a smaller INPUT.MIN_SIZE_TEST, or the CPU."
            ) from None
        for (prediction, _), output in zip(batch, outputs, strict=True):
            with torch.no_grad(), precision(self.cfg):
                prediction.instances = _finish(output["instances"].to("cpu"), encode_masks)
            yield prediction
        batch.clear()


def _finish(instances: Instances, encode_masks: bool) -> Instances:
    """Return instances on the CPU with ``pred_masks``, encoded or as bitmaps, if the model predicts masks."""
    if encode_masks:
        rest, rles = split_masks(instances)
        if rles is None and instances.has("pred_masks"):
            rles = [row["segmentation"] for row in instances_to_coco_json(instances, 0)]
            rest.remove("pred_masks")
        if rles is not None:
            rest.pred_masks = rles
        return rest
    paste(instances)
    return instances
