"""Published AP is compared with recomputed AP, on a synthetic dataset of four images."""

import json
from pathlib import Path

import pytest
from pycocotools import mask as mask_utils

from gn_det.errors import GNDetError
from gn_det.evaluation import published_detections
from gn_det.evaluation.published_detections import check_published, format_checks
from gn_det.zoo import index as model_zoo
from helpers.paths import COCO_FIXTURE

NAME, URLS = "mask_rcnn_R50_FPN_gn", model_zoo.get_entry("mask_rcnn_R50_FPN_gn").detections
BOX = [10, 20, 60, 40]  # x, y, width, height


def polygon(x, y, width, height) -> list:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def annotations(tmp_path) -> Path:
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 100, "width": 100} for n in range(4)]
    objects = [{"id": n, "image_id": n, "category_id": 7, "bbox": BOX, "segmentation": polygon(*BOX)} for n in range(4)]
    categories = [{"id": 7, "name": "fig"}]
    return write(tmp_path / "truth.json", {"images": images, "annotations": objects, "categories": categories})


@pytest.fixture
def detections(tmp_path):
    """A function that writes exact detections on some images, and returns {"bbox": file, "segm": file}."""

    def make(*found: int) -> dict[str, Path]:
        rows = [{"image_id": n, "category_id": 7, "score": 0.9} for n in found]
        boxes = write(tmp_path / "bbox.json", [row | {"bbox": BOX} for row in rows])
        (mask,) = mask_utils.frPyObjects(polygon(*BOX), 100, 100)
        masks = [row | {"segmentation": mask | {"counts": mask["counts"].decode()}} for row in rows]
        return {"bbox": boxes, "segm": write(tmp_path / "segm.json", masks)}

    return make


@pytest.fixture
def four_images_are_all(monkeypatch):
    """COCO val2017 has four images; the published AP is that of three found objects (76 of 101 recall points)."""
    ap = round(100 * 76 / 101, 1)
    entry = model_zoo.get_entry(NAME)
    known = type(entry)(**{**vars(entry), "published": {"source": "", "box": ap, "mask": ap}})
    monkeypatch.setattr(published_detections, "NUM_IMAGES", 4)
    monkeypatch.setitem(model_zoo._entries(), NAME, known)


def test_published_ap_is_reproduced(annotations, detections, four_images_are_all):
    checks = check_published(NAME, annotations, detections(0, 1, 2))
    assert [(c.task, c.images, c.left_out, c.failed) for c in checks] == [("bbox", 4, 0, False), ("segm", 4, 0, False)]
    assert [c.found["AP"] for c in checks] == pytest.approx([100 * 76 / 101] * 2)
    text = format_checks(NAME, checks)
    assert "| box AP                 |        75.2 |  75.25 |        +0.05 |" in text
    assert text.endswith("All 4 images were evaluated. The published AP was reproduced.")


def test_different_ap_is_reported(annotations, detections, four_images_are_all):
    right = detections(0, 1, 2)["segm"].rename(annotations.with_name("right.json"))
    files = {"bbox": detections(0, 1, 2, 3)["bbox"], "segm": right}
    checks = check_published(NAME, annotations, files)
    assert [c.failed for c in checks] == [True, False]
    verdict = "All 4 images were evaluated. The published box AP was not reproduced: the difference is above 0.1."
    assert format_checks(NAME, checks).endswith(verdict)


def test_subset_gives_no_verdict(annotations, detections):
    checks = check_published(NAME, annotations, detections(0, 1, 2, 3))
    assert not any(c.failed for c in checks) and checks[0].found["AP"] == pytest.approx(100)
    verdict = "Only 4 of the 5000 images of COCO val2017 were evaluated, so the differences mean nothing."
    assert verdict in format_checks(NAME, checks)


def test_detections_outside_a_subset_are_left_out_and_counted(annotations, detections):
    (check,) = check_published(NAME, annotations, {"bbox": detections(0, 1, 2, 3, 55, 66)["bbox"]})
    assert (check.left_out, check.found["AP"]) == (2, pytest.approx(100))
    assert format_checks(NAME, (check,)).endswith(" 2 detections on other images were left out.")
    with pytest.raises(GNDetError, match="no detections on any of the 4 images"):
        check_published(NAME, annotations, {"bbox": detections(55)["bbox"]})


def test_detections_on_unknown_images_are_refused(annotations, detections, four_images_are_all):
    with pytest.raises(GNDetError, match="image_id 55, which is not in the annotations"):
        check_published(NAME, annotations, detections(0, 55))


def test_another_data_set_is_refused(annotations, detections, monkeypatch):
    monkeypatch.setattr(published_detections, "NUM_IMAGES", 3)
    with pytest.raises(GNDetError, match="has 4 images, but COCO val2017 has 3; pass"):
        check_published(NAME, annotations, detections(0))


def test_exchanged_files_are_refused(annotations, detections):
    files = detections(0)
    with pytest.raises(
        GNDetError, match="segm.json has detections without 'bbox'; pass the published file of the bbox task"
    ):
        check_published(NAME, annotations, {"bbox": files["segm"]})


def test_files_are_downloaded_by_default(annotations, detections, downloads, four_images_are_all):
    for task, file in detections(0, 1, 2).items():
        downloads[URLS[task]] = file
    assert [c.failed for c in check_published(NAME, annotations)] == [False, False]
    assert [url for url, *_ in downloads.asked] == [URLS["bbox"], URLS["segm"]]


def test_models_without_detections_are_refused(annotations):
    with pytest.raises(GNDetError, match="No detections were published for R50_GN; use one of mask_rcnn_R50_FPN_gn, "):
        check_published("R50_GN", annotations)


def test_exit_code_of_the_tool_is_the_verdict(run_cli, annotations, detections, four_images_are_all):
    def run(*found: int) -> tuple[int, str, str]:
        files = detections(*found)
        options = ("--annotations", annotations, "--bbox", files["bbox"], "--segm", files["segm"])
        return run_cli("verify_published.py", NAME, *options)

    assert run(0, 1, 2)[0] == 0
    code, out, _ = run(0, 1)
    assert code == 1 and "The published box and mask AP was not reproduced" in out
    code, _, error = run_cli("verify_published.py", "nothing", "--annotations", annotations)
    assert code == 2 and error.startswith("error: The model zoo has no entry 'nothing'") and error.count("\n") == 1


def test_ap_of_the_coco_api_fixture():
    files = {task: COCO_FIXTURE / f"instances_val2014_fake{task}100_results.json" for task in ("bbox", "segm")}
    checks = check_published(NAME, COCO_FIXTURE / "instances_val2014_100.json", files)
    assert [c.found["AP"] for c in checks] == pytest.approx([50.45806987, 31.95452759]) and checks[0].images == 100
