"""The evaluator computes COCO AP that can be checked by hand, and writes a record."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, ROIMasks

from gn_det import GNDetError, get_cfg
from gn_det.data.coco import register_annotations
from gn_det.evaluation.evaluator import COCOEvaluator, build_evaluator, evaluate, evaluate_detections
from gn_det.metrics import metric_names_at
from helpers.paths import COCO_FIXTURE

BIG = [10, 10, 100, 100]  # x, y, width, height in pixels: "large" for COCO
SMALL = [150, 150, 20, 20]


def register_truth(folder: Path, annotations: list[dict]) -> str:
    """Register two 200 x 200 images with these annotations and two classes, and return the dataset's name."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 200, "width": 200} for n in (0, 1)]
    categories = [{"id": 3, "name": "fig"}, {"id": 5, "name": "pear"}]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_annotations("test_truth", path, folder / "clean.json")
    return "test_truth"


def annotation(box: list, *, image: int = 0, category: int = 3, **more) -> dict:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"id": 0, "image_id": image, "category_id": category, "bbox": box, "segmentation": [polygon], **more}


def detection(box: list, score: float = 0.9, **more) -> dict:
    return {"image_id": 0, "category_id": 3, "bbox": box, "score": score, **more}


def write_detections(folder: Path, rows: object) -> Path:
    (folder / "detections.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return folder / "detections.json"


def test_perfect_detection_of_an_object_with_id_0_has_ap_100(tmp_path):
    box = evaluate_detections(
        register_truth(tmp_path, [annotation(BIG)]), write_detections(tmp_path, [detection(BIG)])
    )["bbox"]
    assert [box[name] for name in ("AP", "AP50", "APl", "AR1", "AP-fig")] == pytest.approx([100] * 5)
    assert math.isnan(box["APs"]) and math.isnan(box["AP-pear"])  # there is no such object


def test_more_than_100_objects_per_image(tmp_path, caplog):
    """COCO's AP counts 100 of 200 perfect detections, so recall ends at 1/2."""
    boxes = [[10 * (n % 20), 20 * (n // 20), 9, 18] for n in range(200)]
    name = register_truth(tmp_path, [annotation(box) for box in boxes])
    box = evaluate_detections(name, write_detections(tmp_path, [detection(box) for box in boxes]))["bbox"]
    assert box["AP"] == box["AP-fig"] == pytest.approx(100 * 51 / 101) and box["AR100"] == pytest.approx(50)
    assert box["AP@200"] == box["AR@200"] == pytest.approx(100)
    assert (
        "1 image has more than 100 objects (up to 200)" in caplog.text and "AP@200 and AR@200 count 200" in caplog.text
    )


@pytest.mark.parametrize("limit", [100, 150, 300])
def test_limit_is_that_of_the_config(tmp_path, limit, caplog):
    boxes = [[10 * (n % 20), 20 * (n // 20), 9, 18] for n in range(200)]
    cfg = get_cfg()
    cfg.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", limit, "MODEL.MASK_ON", False, "OUTPUT_DIR", str(tmp_path)])
    evaluator = build_evaluator(cfg, register_truth(tmp_path, [annotation(box) for box in boxes]))
    rows = [{**detection(box), "category_id": 0} for box in boxes[:limit]]
    evaluator._predictions = [{"image_id": 0, "instances": rows}]
    evaluator._distributed = False
    box = evaluator.evaluate()["bbox"]
    assert [name for name in box if "@" in name] == metric_names_at(limit)
    assert limit == 100 or box[f"AR@{limit}"] == pytest.approx(100 * min(limit / 200, 1))
    assert ("TEST.DETECTIONS_PER_IMAGE 200 finds" in caplog.text) == (limit < 200)


def test_nothing_is_said_of_100_objects(tmp_path, caplog):
    boxes = [[10 * (n % 20), 20 * (n // 20), 9, 18] for n in range(100)]
    name = register_truth(tmp_path, [annotation(box) for box in boxes])
    box = evaluate_detections(name, write_detections(tmp_path, [detection(box) for box in boxes]))["bbox"]
    assert box["AP"] == pytest.approx(100) and not any("@" in metric for metric in box)
    assert "objects" not in caplog.text


def test_ap_of_one_of_two_objects_by_hand(tmp_path):
    """Recall ends at 1/2 with precision 1: 51 of COCO's 101 recall points have precision 1, the others 0."""
    name = register_truth(tmp_path, [annotation(BIG), annotation(SMALL)])
    box = evaluate_detections(name, write_detections(tmp_path, [detection(BIG)]))["bbox"]
    assert box["AP"] == pytest.approx(100 * 51 / 101) and box["AR100"] == pytest.approx(50)
    assert box["APs"] == 0 and box["APl"] == pytest.approx(100)


def test_ap_of_an_inexact_box_by_hand(tmp_path):
    """IoU 2/3 passes the thresholds 0.50, 0.55, 0.60, 0.65 of ten."""
    box = evaluate_detections(
        register_truth(tmp_path, [annotation(BIG)]), write_detections(tmp_path, [detection([10, 10, 150, 100])])
    )["bbox"]
    assert box["AP"] == pytest.approx(40) and box["AP50"] == pytest.approx(100) and box["AP75"] == 0


def test_no_detections_have_ap_0_and_not_nan(tmp_path):
    results = evaluate_detections(register_truth(tmp_path, [annotation(BIG)]), write_detections(tmp_path, []))
    assert results["bbox"]["AP"] == results["bbox"]["AR100"] == results["bbox"]["AP-fig"] == 0
    assert math.isnan(results["bbox"]["AP-pear"])


def test_no_objects_have_ap_nan(tmp_path):
    results = evaluate_detections(register_truth(tmp_path, []), write_detections(tmp_path, []))
    assert math.isnan(results["bbox"]["AP"])


@pytest.mark.parametrize("key", ["pred_boxes", "scores"])
@pytest.mark.parametrize("fast", [True, False])
def test_predictions_that_are_not_finite_end_the_evaluation(tmp_path, key, fast):
    """pycocotools would rank a NaN score first, and match a NaN box with every object."""
    evaluator = COCOEvaluator(register_truth(tmp_path, []), ("bbox",), distributed=False, use_fast_impl=fast)
    evaluator.reset()
    (output,) = ConstantModel([BIG, SMALL])([{}])
    values = output["instances"].get(key)
    getattr(values, "tensor", values)[1] = math.nan
    with pytest.raises(GNDetError, match="that is not finite .* on photos/7.png"):
        evaluator.process([{"image_id": 0, "file_name": "photos/7.png"}], [output])
    evaluator._predictions = [{"image_id": 0, "instances": [detection(BIG), detection([*BIG[:3], math.inf])]}]
    with pytest.raises(GNDetError, match="predicts a box that is not finite .* on 0,"):
        evaluator.evaluate()


class ConstantModel(torch.nn.Module):
    """A model that detects the same boxes in each image."""

    def __init__(self, boxes: list):
        super().__init__()
        self.boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).reshape(-1, 4)

    def forward(self, inputs: list[dict]) -> list[dict]:
        instances = Instances((200, 200))
        instances.pred_boxes = Boxes(self.boxes)
        instances.scores = torch.ones(len(self.boxes))
        instances.pred_classes = torch.zeros(len(self.boxes), dtype=torch.int64)
        instances.pred_masks = torch.zeros(len(self.boxes), 200, 200, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(instances.pred_masks, self.boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        return [{"instances": instances} for _ in inputs]


def evaluate_model(tmp_path: Path, boxes: list, annotations: list[dict]) -> tuple[dict, dict]:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE = str(tmp_path / "out"), 3, True, "cpu"
    cfg.MODEL.GN.CONFIG = "mask_rcnn_R50_FPN_gn"
    loader = [[{"image_id": n, "height": 200, "width": 200}] for n in (0, 1)]
    results = evaluate(cfg, ConstantModel(boxes), register_truth(tmp_path, annotations), loader, iteration=20)
    (path,) = (tmp_path / "out" / "records").iterdir()
    assert path.name == "mask_rcnn_R50_FPN_gn-test_truth-0000020.json"
    return results, json.loads(path.read_text())


def test_evaluation_writes_a_record(tmp_path):
    annotations = [annotation(BIG), annotation(BIG, image=1)]
    results, record = evaluate_model(tmp_path, [BIG], annotations)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    assert record["box"]["AP"] == record["mask"]["AP"] == 100 and record["box"]["APs"] is None
    assert record["box"]["AP-fig"] == 100 and record["seed"] == 3 and record["iteration"] == 20
    assert record["published"]["box"]["AP"] == 40.3 and record["seconds_per_image"] > 0
    assert record["versions"]["torch"] == torch.__version__ and record["hardware"]["device"] == "cpu"
    assert record["ignore_padding"] is True
    assert len(record["config_sha256"]) == 64 and record["date"].endswith("+00:00")


def test_model_that_detects_nothing_has_ap_0(tmp_path):
    results, record = evaluate_model(tmp_path, [], [annotation(BIG)])
    assert results["bbox"]["AP"] == results["segm"]["AP"] == record["mask"]["AP"] == 0


def test_masks_of_a_model_are_not_pasted_into_bitmaps(tmp_path, tiny_cfg, batch, monkeypatch):
    cfg = tiny_cfg(
        "quickstart_R18_FPN_gn_scratch", "MODEL.ROI_HEADS.NUM_CLASSES", 2, "OUTPUT_DIR", str(tmp_path / "out")
    )
    model = build_model(cfg).eval()
    loader = [[sample | {"image_id": n, "height": 200, "width": 200}] for n, sample in enumerate(batch(1, 1))]
    detections = tmp_path / "out/inference/test_truth/coco_instances_results.json"

    def rows() -> str:
        evaluate(cfg, model, register_truth(tmp_path, [annotation(BIG)]), loader)
        return detections.read_text()

    with monkeypatch.context() as patch:
        patch.setattr("gn_det.evaluation.evaluator.without_pasting", lambda model, paste_on_host: model)
        expected = rows()
    monkeypatch.delattr(ROIMasks, "to_bitmasks")
    assert rows() == expected and "segmentation" in expected and not model.training


def test_stock_evaluator_gives_nan_without_detections(tmp_path):
    """This is why COCOEvaluator overrides the method."""
    evaluator = COCOEvaluator(register_truth(tmp_path, [annotation(BIG)]), ("bbox",), distributed=False)
    stock = super(COCOEvaluator, evaluator)._derive_coco_results(None, "bbox")
    assert math.isnan(stock["AP"])


PUBLISHED = {
    "bbox": "0.5045806987 0.6969727247 0.5729816670 0.5856257209 0.5193996948 0.5013978986 "
    "0.3868127796 0.5936795763 0.5953529829 0.6398109626 0.5664205979 0.5642905983",
    "segm": "0.3195452759 0.5622883973 0.2989265341 0.3873740316 0.3101827240 0.3269339071 "
    "0.2682297226 0.4154486811 0.4168394992 0.4694498623 0.3767592267 0.3814715100",
}


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_metrics_of_the_coco_api_fixture(tmp_path, task):
    register_annotations("test_fixture", COCO_FIXTURE / "instances_val2014_100.json", tmp_path / "clean.json")
    path = COCO_FIXTURE / f"instances_val2014_fake{task}100_results.json"
    metrics = evaluate_detections("test_fixture", path)[task]
    twelve = [value / 100 for name, value in metrics.items() if not name.startswith("AP-")]
    expected = [float(word) for word in PUBLISHED[task].split()]
    names = [name for name in metrics if not name.startswith("AP-")]
    assert names == "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()
    assert twelve == pytest.approx(expected, abs=1e-6)
