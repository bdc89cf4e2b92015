"""hotcoco gives the results of pycocotools on synthetic data that cover COCO's matching rules."""

import copy
import json
import logging
import math
import multiprocessing
import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from gn_det import get_cfg
from gn_det.benchmark.coco import measure
from gn_det.evaluation.evaluator import COCOEvaluator, build_evaluator, fast_coco
from gn_det.evaluation.fast_coco import encode_masks, encode_roi_masks, split_masks

HEIGHT, WIDTH = 120, 150
IMAGES = (7, -3, 0, 12, 5, 900)  # ids; the last image has no objects
CLASSES = (4, 0, 2, 9)  # ids; the last class has no objects


def random_box(rng: np.random.Generator) -> list[float]:
    sides = np.array([WIDTH, HEIGHT]) * rng.choice([0.1, 0.4, 0.9]) * (0.2 + 0.8 * rng.random(2))
    corner = rng.random(2) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corner, sides]).astype(np.float32).tolist()


def polygon(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x + w / 2, y, x + w, y + h / 3, x + w * 0.8, y + h, x, y + h * 0.7]


def rle(box: list[float], compressed: bool = True) -> dict:
    (mask,) = mask_util.frPyObjects([polygon(box)], HEIGHT, WIDTH)
    if compressed:
        return {**mask, "counts": mask["counts"].decode()}
    pixels = mask_util.decode(mask).T.reshape(-1)
    counts = np.diff(np.flatnonzero(np.diff(pixels, prepend=0)), prepend=0, append=pixels.size)
    return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}


def random_object(rng: np.random.Generator, number: int) -> dict:
    box = random_box(rng)
    shapes = ([polygon(box)], [polygon(box), polygon(random_box(rng))], rle(box), rle(box, compressed=False))
    areas = (box[2] * box[3], 32.0**2, 96.0**2, 0.0)  # including the limits of COCO's area ranges
    return {
        "id": number,
        "image_id": int(rng.choice(IMAGES[:-1])),
        "category_id": int(rng.choice(CLASSES[:-1])),
        "bbox": box,
        "area": float(rng.choice(areas)),
        "iscrowd": int(rng.random() < 0.15),
        "ignore": int(rng.random() < 0.3),  # ignored by pycocotools
        "segmentation": shapes[rng.integers(len(shapes))],
    }


def random_detection(rng: np.random.Generator, objects: list[dict], ties: bool) -> dict:
    near = objects[rng.integers(len(objects))]
    moved = (near["bbox"] + rng.normal(0, 2, 4)).clip([0, 0, 1, 1]).astype(np.float32).tolist()
    box = [near["bbox"], moved, random_box(rng)][rng.integers(3)]
    category = near["category_id"] if rng.random() < 0.8 else int(rng.choice(CLASSES))
    return {
        "image_id": near["image_id"] if rng.random() < 0.8 else int(rng.choice(IMAGES)),
        "category_id": sorted(CLASSES).index(category),  # index of the class, as in the output of a model
        "bbox": box,
        "score": float(rng.integers(4) / 4 if ties else rng.random()),
        "segmentation": rle(box),
    }


def synthetic_data(seed: int, objects: int = 40, detections: int = 250, ties: bool = True) -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(seed)
    annotations = [random_object(rng, number) for number in range(1, objects + 1)]
    rows = [random_detection(rng, annotations, ties) for _ in range(detections)]
    truth = {
        "info": {},
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": ""} for i in IMAGES],
        "categories": [{"id": i, "name": f"class {i}"} for i in CLASSES],
        "annotations": annotations,
    }
    return truth, rows


@pytest.fixture
def evaluator(tmp_path):
    """A function that returns an evaluator with these detections."""

    def make(truth: dict, rows: list[dict], fast: bool, tasks=("bbox", "segm"), **arguments) -> COCOEvaluator:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        MetadataCatalog.pop("test_fast_coco", None)
        indices = {number: index for index, number in enumerate(sorted(row["id"] for row in truth["categories"]))}
        names = [f"class {number}" for number in indices]
        MetadataCatalog.get("test_fast_coco").set(
            json_file=str(path), thing_classes=names, thing_dataset_id_to_contiguous_id=indices
        )
        made = COCOEvaluator("test_fast_coco", tasks, distributed=False, use_fast_impl=fast, **arguments)
        made._predictions = [{"image_id": None, "instances": copy.deepcopy(rows)}]
        return made

    return make


@pytest.fixture
def results_of(evaluator, monkeypatch):
    """A function that evaluates detections, and returns the results and the COCOeval of each task."""

    def evaluate(truth: dict, rows: list[dict], fast: bool, img_ids=None, **arguments) -> tuple[dict, dict]:
        made, evaluations = evaluator(truth, rows, fast, **arguments), {}
        derive = made._derive_coco_results

        def keep(evaluation, task, *args, **kwargs):
            evaluations[task] = evaluation
            return derive(evaluation, task, *args, **kwargs)

        monkeypatch.setattr(made, "_derive_coco_results", keep)
        results = made.evaluate(img_ids)
        kinds = [isinstance(evaluation, fast_coco.FastCOCOeval) for evaluation in evaluations.values()]
        assert kinds == [fast] * len(evaluations)
        return results, evaluations

    return evaluate


def assert_equal(fast: tuple[dict, dict], slow: tuple[dict, dict]) -> None:
    assert fast[0].keys() == slow[0].keys() and fast[1].keys() == slow[1].keys()
    for task, expected in slow[0].items():
        assert fast[0][task] == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)
        hotcoco, pycocotools = fast[1][task], slow[1][task]
        np.testing.assert_allclose(hotcoco.stats, pycocotools.stats, rtol=0, atol=1e-12)
        for name in ("precision", "recall", "scores"):
            np.testing.assert_allclose(hotcoco.eval[name], pycocotools.eval[name], rtol=0, atol=1e-12)
        assert hotcoco.eval["counts"] == pycocotools.eval["counts"]
        for name in ("imgIds", "catIds", "maxDets", "areaRng", "areaRngLbl"):
            assert getattr(hotcoco.params, name) == getattr(pycocotools.params, name)


CASES = {
    "equal scores": ({"seed": 0}, {}),
    "distinct scores": ({"seed": 1, "ties": False}, {}),
    "few objects": ({"seed": 2, "objects": 3}, {}),
    "few detections": ({"seed": 3, "detections": 4}, {}),
    "more than 100 per image": ({"seed": 4, "objects": 10, "detections": 3000}, {}),
    "300 per image count": ({"seed": 4, "objects": 10, "detections": 3000}, {"max_dets_per_image": 300}),
    "300 per image count too": ({"seed": 4, "objects": 10, "detections": 3000}, {"limit": 300}),
    "5 per image count": ({"seed": 5}, {"max_dets_per_image": 5}),
    "some images": ({"seed": 6}, {"img_ids": [-50, 7, 12, 0]}),  # one id is unknown
    "an image without objects": ({"seed": 7}, {"img_ids": [900]}),
    "boxes only": ({"seed": 8}, {"tasks": ("bbox",)}),
    "tasks from the detections": ({"seed": 9}, {"tasks": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_numbers_as_pycocotools(results_of, case):
    data, arguments = CASES[case]
    truth, rows = synthetic_data(**data)
    fast = results_of(truth, rows, True, **arguments)
    assert_equal(fast, results_of(truth, rows, False, **arguments))
    if case != "an image without objects":
        assert 0 < fast[0]["bbox"]["AP"] < 100 and math.isnan(fast[0]["bbox"]["AP-class 9"])


def test_synthetic_data_depend_on_the_order_of_equal_scores(results_of):
    """Without this, the cases above would not test the order."""
    truth, rows = synthetic_data(0)
    one, other = (results_of(truth, data, True)[0]["bbox"]["AP"] for data in (rows, rows[::-1]))
    assert one != other


def test_object_of_id_0_is_found_by_hotcoco_and_not_by_pycocotools(results_of):
    truth, rows = synthetic_data(0, objects=12, ties=False)
    from_0 = copy.deepcopy(truth)
    for row in from_0["annotations"]:
        row["id"] -= 1
    from_0["annotations"][0]["iscrowd"] = truth["annotations"][0]["iscrowd"] = 0
    fast = results_of(from_0, rows, True)
    assert_equal(fast, results_of(truth, rows, False))
    assert fast[0]["bbox"]["AR100"] > results_of(from_0, rows, False)[0]["bbox"]["AR100"]


def test_no_detections(evaluator):
    truth, _ = synthetic_data(0)
    fast, slow = (evaluator(truth, [], fast).evaluate() for fast in (True, False))
    assert fast["segm"] == pytest.approx(slow["segm"], nan_ok=True) and fast["bbox"]["AP"] == 0


def test_hotcoco_and_pycocotools_write_the_same_files(evaluator, tmp_path):
    truth, rows = synthetic_data(0)
    for fast in (True, False):
        evaluator(truth, rows, fast, output_dir=str(tmp_path / str(fast))).evaluate()
    one, other = ((tmp_path / name / "coco_instances_results.json").read_bytes() for name in ("True", "False"))
    assert one == other and {row["category_id"] for row in json.loads(one)} == set(CLASSES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda truth, rows: rows[3]["segmentation"].update(size=[3, 3], counts="9"),
            "does not have the size of the image",
        ),
        (lambda truth, rows: truth["images"][0].pop("height"), "KeyError: 'height'"),
    ],
)
def test_unsupported_data_fall_back_to_pycocotools_with_a_warning(evaluator, caplog, change, reason):
    truth, rows = synthetic_data(0)
    change(truth, rows)
    tasks = ("bbox",) if "height" in reason else ("bbox", "segm")
    with caplog.at_level(logging.WARNING):
        fast, slow = (evaluator(truth, rows, fast, tasks).evaluate() for fast in (True, False))
    for task, expected in slow.items():
        assert fast[task] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    (line,) = [text for text in caplog.messages if "hotcoco" in text]
    assert reason in line and line.startswith("The COCO metrics are computed by pycocotools")


def test_keypoints_fall_back_to_pycocotools(caplog):
    assert fast_coco.evaluate(None, [], ["bbox", "keypoints"], {}) == {}
    assert "not used for keypoints" in caplog.text


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda truth, rows: rows[3].update(image_id=77), AssertionError),
        (lambda truth, rows: rows[3].update(category_id=77), AssertionError),
        (lambda truth, rows: truth["annotations"][3].pop("area"), KeyError),
        (lambda truth, rows: truth["annotations"][3].update(segmentation=[]), IndexError),
    ],
)
def test_data_refused_by_pycocotools_are_refused(evaluator, change, error):
    truth, rows = synthetic_data(0)
    change(truth, rows)
    with pytest.raises(error):
        evaluator(truth, rows, False).evaluate()
    with pytest.raises(error):
        evaluator(truth, rows, True).evaluate()


def test_without_hotcoco(results_of, evaluator, monkeypatch, caplog):
    truth, rows = synthetic_data(0)
    expected = results_of(truth, rows, True)[0]
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    results = evaluator(truth, rows, True).evaluate()
    assert results["segm"] == pytest.approx(expected["segm"], rel=0, abs=1e-12, nan_ok=True)
    assert "ModuleNotFoundError" in caplog.text


def test_fork_of_a_process_that_used_hotcoco_does_not_hang(evaluator):
    """hotcoco itself would wait forever for its threads."""
    truth, rows = synthetic_data(0)
    expected = evaluator(truth, rows, True).evaluate()
    made = evaluator(truth, rows, True)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(made.evaluate()))
    process.start()
    try:
        assert receiver.poll(timeout=20)
        assert receiver.recv()["segm"] == pytest.approx(expected["segm"], rel=0, abs=1e-12, nan_ok=True)
    finally:
        process.kill()
        process.join()


def pasted(boxes: list, height: int, width: int, side: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Random masks pasted into boxes, as the output of a model, and the boxes."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return paste_masks_in_image(torch.rand(len(boxes), side, side), corners, (height, width)), corners


def encode_with_pycocotools(masks: torch.Tensor) -> list[dict]:
    rles = [mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]
    return [{**rle, "counts": rle["counts"].decode()} for rle in rles]


BOXES = [
    [10.3, 5.7, 60.1, 44.9],
    [0, 0, 90, 70],  # the whole image
    [0, 20, 90, 50],  # all columns
    [30, 0, 50, 70],  # all rows
    [-8.5, -9, 20, 12],
    [70, 50, 99, 88],
    [40, 30, 40.5, 30.5],
]


@pytest.mark.parametrize("side", [2, 28])
def test_masks_are_encoded_as_in_pycocotools(side):
    masks, boxes = pasted(BOXES, 70, 90, side)
    assert encode_masks(masks, boxes) == encode_with_pycocotools(masks)
    empty, nowhere = torch.zeros(2, 70, 90, dtype=torch.bool), torch.tensor([BOXES[0], [95, 80, 99, 90]])
    assert encode_masks(empty, nowhere) == encode_with_pycocotools(empty) and encode_masks(empty[:0], nowhere[:0]) == []


@pytest.mark.parametrize("side", [2, 28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_pasted_within_their_boxes_equal_pasted_bitmaps(side, dtype):
    boxes = torch.tensor(BOXES)
    masks = torch.rand(len(boxes), side, side).to(dtype)
    masks[0], masks[1] = 0, 1
    expected = encode_with_pycocotools(paste_masks_in_image(masks, boxes, (70, 90)))
    assert encode_roi_masks(masks, boxes, (70, 90)) == expected
    assert encode_roi_masks(masks[:0], boxes[:0], (70, 90)) == []


def test_masks_of_each_kind_are_split_from_the_instances():
    boxes, soft = torch.tensor(BOXES), torch.rand(len(BOXES), 28, 28)
    bitmaps = paste_masks_in_image(soft, boxes, (70, 90))
    expected = encode_with_pycocotools(bitmaps)
    for fields in ({"roi_masks": soft}, {"pred_masks": bitmaps}, {"pred_masks": expected}):
        instances = Instances((70, 90), pred_boxes=Boxes(boxes), **fields)
        rest, rles = split_masks(instances)
        assert rles == expected and list(rest.get_fields()) == ["pred_boxes"] and instances.has(*fields)
    assert split_masks(rest) == (rest, None)
    instances.pred_masks = bitmaps
    assert split_masks(instances, encodes_bitmaps=False) == (instances, None)


@pytest.mark.parametrize("box", [BOXES[0], BOXES[1], BOXES[2], BOXES[3]])
def test_full_masks_are_encoded_as_in_pycocotools(box):
    left, top, right, bottom = (round(number) for number in box)
    masks = torch.zeros(1, 70, 90, dtype=torch.bool)
    masks[:, top:bottom, left:right] = True
    assert encode_masks(masks, torch.tensor([box])) == encode_with_pycocotools(masks)


def test_masks_outside_their_boxes_are_not_encoded():
    masks, boxes = pasted(BOXES[:1], 70, 90)
    assert encode_masks(masks, boxes)
    assert encode_masks(masks.byte(), boxes) is None
    assert encode_masks(masks, torch.tensor([[math.nan, *BOXES[0][1:]]])) is None
    masks[0, 69, 89] = True
    assert encode_masks(masks, boxes) is None


@pytest.mark.parametrize("outside", [False, True])
def test_outputs_of_a_model_become_the_same_rows(evaluator, outside):
    masks, boxes = pasted(BOXES[:6], 70, 90)
    masks[0, 69, 89] = outside
    instances = Instances((70, 90), pred_boxes=Boxes(boxes), scores=torch.rand(6), pred_masks=masks)
    instances.pred_classes = torch.arange(6) % 4
    rows = []
    for fast in (True, False):
        made = evaluator(*synthetic_data(0), fast)
        made.reset()
        made.process([{"image_id": 7}, {"image_id": 0}], [{"instances": instances}, {"instances": instances[:0]}])
        rows.append(made._predictions)
    assert rows[0] == rows[1] and len(rows[0][0]["instances"]) == 6 and instances.has("pred_masks")


def test_config_key_selects_the_implementation(tmp_path, evaluator):
    evaluator(*synthetic_data(0), True)
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    assert build_evaluator(cfg, "test_fast_coco")._fast
    cfg.TEST.FAST_COCO = False
    assert not build_evaluator(cfg, "test_fast_coco")._fast


def test_benchmark_compares_equal_results():
    for kind, figures in measure(images=4, mask_images=2, repeats=1).items():
        assert figures["equal"] and figures["ratio"] == figures["pycocotools"] / figures["hotcoco"] > 0, kind
