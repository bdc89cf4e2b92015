import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image

from gn_det.data import shapes
from gn_det.data.coco import register_coco_json

pytest.importorskip("cv2", reason="detectron2's Visualizer needs OpenCV")

from gn_det.drawing.instances import Colours, LabelVisualizer, draw_instances, draw_predictions


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


def found(size: tuple[int, int], *boxes: list[float], masks: bool = True) -> Instances:
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.linspace(0.99, 0.6, len(boxes))
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
    if masks:
        instances.pred_masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(
            instances.pred_masks, instances.pred_boxes.tensor.int().tolist(), strict=True
        ):
            mask[y0:y1, x0:x1] = True
    return instances


def drawn(size: tuple[int, int], *boxes: list[float], name: str = "fig", **options) -> np.ndarray:
    image = np.full((*size, 3), 128, np.uint8)
    return draw_instances(image, found(size, *boxes), Metadata(thing_classes=[name]), **options)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((192, 256), (480, 640)),  # enlarged until the shorter side has 480 pixels
        ((600, 800), (600, 800)),
        ((100, 1000), (200, 2000)),  # thin: no longer than 2000
        ((2, 4000), (2, 4000)),
        ((40, 8192), (20, 4096)),
        ((1, 1), (480, 480)),
    ],
)
def test_pictures_have_a_size_in_which_names_can_be_read(size, expected):
    assert drawn(size, [0, 0, 1, 1]).shape == (*expected, 3)
    assert drawn(size).shape == (*expected, 3)
    if max(size) < 1000:
        assert drawn(size, [0, 0, 1, 1], enlarge=False).shape == (*size, 3)


def test_a_mask_is_tinted_with_its_hole_left_open():
    instances = found((600, 600), [100, 100, 500, 500])
    instances.pred_masks[0, 200:400, 200:400] = False
    picture = draw_instances(np.full((600, 600, 3), 128, np.uint8), instances, Metadata(thing_classes=["fig"]))
    assert picture[300, 300].tolist() == picture[50, 550].tolist() == [128] * 3
    assert np.abs(picture[450, 450].astype(int) - 128).max() > 40
    assert np.abs(picture[100, 300].astype(int) - 128).max() > 40  # and there is a box


def test_boxes_without_masks_are_drawn():
    instances = found((600, 600), [100, 100, 500, 500], masks=False)
    picture = draw_instances(np.full((600, 600, 3), 128, np.uint8), instances, Metadata(thing_classes=["fig"]))
    assert picture[300, 300].tolist() == [128] * 3 and np.abs(picture[500, 300].astype(int) - 128).max() > 40


def labels(size: tuple[int, int], *boxes: list[float], scale: float = 1.0) -> np.ndarray:
    canvas = LabelVisualizer(np.zeros((*size, 3), np.uint8), Metadata(), scale)
    for box in boxes:
        canvas.draw_text("hazelnut 99%", box[:2], color=(1, 0, 0))
    return canvas._labels


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_labels_stay_in_the_picture(scale):
    placed = labels((200, 300), [0, 0], [299, 0], [299, 199], [0, 199], [-9, 150], scale=scale)
    assert placed.min() >= 0 and (placed[:, 2] <= 300).all() and (placed[:, 3] <= 200).all()
    assert (placed[:, 3] - placed[:, 1] > 14 / scale).all()


def test_labels_of_one_corner_lie_beside_each_other():
    placed = labels((400, 400), *[[100, 100]] * 5)
    for i, one in enumerate(placed):
        for other in placed[:i]:
            overlap = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
            assert (overlap <= 1e-9).any()


def test_a_large_image_has_large_labels():
    small, large = (np.diff(labels(size, [50, 50])[0, 1::2])[0] for size in ((480, 480), (3000, 4000)))
    assert large / 3000 > 0.6 * small / 480


@pytest.mark.parametrize("name", ["$\\frac{$", "Feige \u00e4", "two\nlines", ""])
def test_any_class_name_can_be_drawn(name):
    drawn((200, 200), [20, 20, 90, 90], name=name)


def test_touching_objects_differ_in_colour():
    grid = [[x, y, x + 10, y + 10] for x in range(0, 30, 10) for y in range(0, 120, 10)]
    colours = Colours()(Boxes(torch.tensor(grid, dtype=torch.float)))
    for i, (one, tint) in enumerate(zip(grid, colours, strict=True)):
        for other, another in zip(grid[:i], colours, strict=False):
            if max(abs(one[0] - other[0]), abs(one[1] - other[1])) <= 10:
                assert tint != another


def test_an_object_keeps_its_colour_from_frame_to_frame():
    colours = Colours()
    first = colours(Boxes(torch.tensor([[0.0, 0, 20, 20], [50, 50, 90, 90], [200, 0, 220, 20]])))
    assert len(set(first)) == 3
    second = colours(Boxes(torch.tensor([[52.0, 50, 92, 90], [300, 300, 320, 320], [2, 0, 22, 20]])))
    assert second[0] == first[1] and second[2] == first[0]
    assert colours(Boxes(torch.zeros(0, 4))) == [] and len(colours(Boxes(torch.ones(2, 4)))) == 2
