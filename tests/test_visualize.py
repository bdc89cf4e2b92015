import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from gn_det import shapes
from gn_det.datasets import register_coco_json
from gn_det.visualize import draw_predictions

pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")


@pytest.mark.parametrize("masks", [True, False])
def test_predictions_are_drawn_beside_the_truth(tmp_path, masks):
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=3, size=96)["val"]
    register_coco_json("test_drawn", json_file, images, tmp_path / "clean.json")
    rows = [{"image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "score": s} for s in (0.9, 0.1)]
    if masks:
        truth = json.loads(json_file.read_text())["annotations"]
        rle = {"size": [96, 96], "counts": "PP9"}  # an empty mask in COCO's compressed form
        rows = [{**row, "segmentation": rle} for row in rows]
        assert truth
    (tmp_path / "found.json").write_text(json.dumps(rows))
    paths = draw_predictions("test_drawn", tmp_path / "found.json", tmp_path / "pictures", number=2)
    assert [path.name for path in paths] == ["000001.png", "000003.png"]
    sheet = np.asarray(Image.open(paths[0]).convert("RGB")).astype(int)
    height, width = sheet.shape[:2]
    assert (height, width) == (480 + 24, 2 * 480 + 8)
    assert np.abs(sheet[24:, :480] - sheet[24:, 488:]).max() > 100  # one detection, and another truth
    DatasetCatalog.remove("test_drawn")


def test_no_detections_and_fewer_images_than_asked_for(tmp_path):
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=2, size=96)["val"]
    register_coco_json("test_drawn", json_file, images, tmp_path / "clean.json")
    (tmp_path / "found.json").write_text("[]")
    assert len(draw_predictions("test_drawn", tmp_path / "found.json", tmp_path / "p", number=9)) == 2
    DatasetCatalog.remove("test_drawn")
