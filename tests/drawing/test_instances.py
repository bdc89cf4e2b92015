"""Pictures of instances: sizes, masks, boxes, labels and colors."""

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

from gn_det.drawing.instances import Colors, LabelVisualizer, draw_instances, draw_predictions


@pytest.mark.parametrize("masks", [True, False])
def test_predictions_are_drawn_beside_the_ground_truth(tmp_path, masks):
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=3, size=96)["val"]
    register_coco_json("test_drawn", json_file, images, tmp_path / "clean.json")
    rows = [{"image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "score": s} for s in (0.9, 0.1)]
    if masks:
        rle = {"size": [96, 96], "counts": "PP9"}  # an empty mask as compressed run lengths
        rows = [{**row, "segmentation": rle} for row in rows]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    paths = draw_predictions("test_drawn", tmp_path / "found.json", tmp_path / "pictures", number=2)
    assert [path.name for path in paths] == ["000001.png", "000003.png"]
    sheet = np.asarray(Image.open(paths[0]).convert("RGB")).astype(int)
    height, width = sheet.shape[:2]
    assert (height, width) == (480 + 24, 2 * 480 + 8)
    assert np.abs(sheet[24:, :480] - sheet[24:, 488:]).max() > 100  # the detection differs from the ground truth
    DatasetCatalog.remove("test_drawn")


def test_no_detections_and_fewer_images_than_requested(tmp_path):
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=2, size=96)["val"]
    register_coco_json("test_drawn", json_file, images, tmp_path / "clean.json")
    (tmp_path / "found.json").write_text("[]")
    assert len(draw_predictions("test_drawn", tmp_path / "found.json", tmp_path / "p", number=9)) == 2
    DatasetCatalog.remove("test_drawn")


def test_images_with_one_name_in_different_folders_have_a_picture_each(tmp_path):
    json_file, images = shapes.generate(tmp_path / "shapes", num_train=1, num_val=2, size=96)["val"]
    data = json.loads(json_file.read_text())
    for number, row in enumerate(data["images"], start=1):
        target = images / f"cam{number}" / "0001.png"
        target.parent.mkdir()
        (images / row["file_name"]).rename(target)
        row["file_name"] = f"cam{number}/0001.png"
    json_file.write_text(json.dumps(data))
    register_coco_json("test_drawn", json_file, images, tmp_path / "clean.json")
    (tmp_path / "found.json").write_text("[]")
    paths = draw_predictions("test_drawn", tmp_path / "found.json", tmp_path / "p")
    assert paths == [tmp_path / "p" / f"cam{number}" / "0001.png" for number in (1, 2)]
    assert all(path.is_file() for path in paths)
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
        ((100, 1000), (200, 2000)),  # thin images are not enlarged beyond 2000 pixels
        ((2, 4000), (2, 4000)),
        ((40, 8192), (20, 4096)),
        ((1, 1), (480, 480)),
    ],
)
def test_small_images_are_enlarged_and_large_ones_reduced(size, expected):
    assert drawn(size, [0, 0, 1, 1]).shape == (*expected, 3)
    assert drawn(size).shape == (*expected, 3)
    if max(size) < 1000:
        assert drawn(size, [0, 0, 1, 1], enlarge=False).shape == (*size, 3)


def test_mask_is_colored_except_for_its_hole():
    instances = found((600, 600), [100, 100, 500, 500])
    instances.pred_masks[0, 200:400, 200:400] = False
    picture = draw_instances(np.full((600, 600, 3), 128, np.uint8), instances, Metadata(thing_classes=["fig"]))
    assert picture[300, 300].tolist() == picture[50, 550].tolist() == [128] * 3
    assert np.abs(picture[450, 450].astype(int) - 128).max() > 40
    assert np.abs(picture[100, 300].astype(int) - 128).max() > 40  # the box


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
def test_labels_stay_inside_the_picture(scale):
    placed = labels((200, 300), [0, 0], [299, 0], [299, 199], [0, 199], [-9, 150], scale=scale)
    assert placed.min() >= 0 and (placed[:, 2] <= 300).all() and (placed[:, 3] <= 200).all()
    assert (placed[:, 3] - placed[:, 1] > 14 / scale).all()


def test_labels_at_the_same_corner_do_not_overlap():
    placed = labels((400, 400), *[[100, 100]] * 5)
    for i, one in enumerate(placed):
        for other in placed[:i]:
            overlap = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
            assert (overlap <= 1e-9).any()


def test_large_image_has_large_labels():
    small, large = (np.diff(labels(size, [50, 50])[0, 1::2])[0] for size in ((480, 480), (3000, 4000)))
    assert large / 3000 > 0.6 * small / 480


@pytest.mark.parametrize("name", ["$\\frac{$", "Feige \u00e4", "two\nlines", ""])
def test_any_class_name_is_drawn_literally(name, monkeypatch):
    draw_text, labels = LabelVisualizer.draw_text, []

    def keep_label(canvas, *args, **kwargs):
        output = draw_text(canvas, *args, **kwargs)
        labels.append((output.ax.texts[-1], canvas._labels[-1].astype(int)))
        return output

    monkeypatch.setattr(LabelVisualizer, "draw_text", keep_label)
    picture = drawn((200, 200), [20, 20, 90, 90], name=name, enlarge=False)
    ((text, (x0, y0, x1, y1)),) = labels
    assert text.get_text() == f"{name} 99%" and not text.get_parse_math()
    ink = (picture[y0:y1, x0:x1].max(axis=2) < 80) | (picture[y0:y1, x0:x1].min(axis=2) > 200)  # black or white
    assert 0.02 < ink.mean() < 0.6


def test_touching_objects_have_different_colors():
    grid = [[x, y, x + 10, y + 10] for x in range(0, 30, 10) for y in range(0, 120, 10)]
    colors = Colors()(Boxes(torch.tensor(grid, dtype=torch.float)))
    for i, (box, color) in enumerate(zip(grid, colors, strict=True)):
        for other_box, other_color in zip(grid[:i], colors, strict=False):
            if max(abs(box[0] - other_box[0]), abs(box[1] - other_box[1])) <= 10:
                assert color != other_color


def test_object_keeps_its_color_from_frame_to_frame():
    colors = Colors()
    first = colors(Boxes(torch.tensor([[0.0, 0, 20, 20], [50, 50, 90, 90], [200, 0, 220, 20]])))
    assert len(set(first)) == 3
    second = colors(Boxes(torch.tensor([[52.0, 50, 92, 90], [300, 300, 320, 320], [2, 0, 22, 20]])))
    assert second[0] == first[1] and second[2] == first[0]
    assert colors(Boxes(torch.zeros(0, 4))) == [] and len(colors(Boxes(torch.ones(2, 4)))) == 2
