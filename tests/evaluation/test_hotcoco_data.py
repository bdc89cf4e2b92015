"""COCO annotations and detections of any ids become hotcoco's input."""

import pytest

from gn_det.evaluation.hotcoco_data import HotcocoData

IMAGES = [{"id": image, "height": 100, "width": 100} for image in ("b", 7, "a")]
BOX = [10, 10, 40, 40]
POLYGON = [10, 10, 50, 10, 50, 50, 10, 50]


def annotation(**more) -> dict:
    return {"image_id": "a", "category_id": 9, "bbox": BOX, "area": 1600, "iscrowd": 0} | more


def detection(**more) -> dict:
    return {"image_id": "a", "category_id": 9, "bbox": BOX, "score": 0.5} | more


def evaluated(data: HotcocoData, task: str, rows: list[dict], category_ids: dict | None = None):
    evaluation = data.build_evaluation(task, rows, category_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_string_ids_and_a_category_mapping():
    data = HotcocoData(IMAGES, [9, 3], [annotation(), annotation(image_id=7, category_id=3)])
    rows = [detection(category_id=1), detection(category_id=0, image_id=7)]
    assert evaluated(data, "bbox", rows, {0: 3, 1: 9, 2: 77}).stats[0] == pytest.approx(1)
    assert evaluated(data, "bbox", rows, {0: 9, 1: 3}).stats[0] == 0


def test_matches_are_numbered_from_1_in_the_given_order():
    data = HotcocoData(IMAGES, [9], [annotation(image_id=7), annotation()])
    rows = [detection(score=0.9), detection(bbox=[60, 60, 20, 20]), detection(image_id=7)]
    diagnostics = evaluated(data, "bbox", rows).image_diagnostics(iou_thr=0.5)
    assert diagnostics["dt_status"] == {1: "tp", 2: "fp", 3: "tp"}
    assert diagnostics["gt_match"] == {1: 3, 2: 1}


def test_object_without_a_mask_has_the_shape_of_its_box_if_boxes_are_handed_over():
    rows = [detection(segmentation=[POLYGON])]
    assert evaluated(HotcocoData(IMAGES, [9], [annotation()]), "segm", rows).stats[0] == pytest.approx(1)
    assert evaluated(HotcocoData(IMAGES, [9], [annotation()], tasks=["segm"]), "segm", rows).stats[0] == 0


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_unknown_ids_are_refused(key):
    with pytest.raises(KeyError):
        HotcocoData(IMAGES, [9], [annotation(**{key: 77})])
    data = HotcocoData(IMAGES, [9], [annotation()])
    with pytest.raises(KeyError):
        data.build_evaluation("bbox", [detection(**{key: 77})])
