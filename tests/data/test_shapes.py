"""The sample data set: its annotations, reproducible files, and the writing of its folder."""

import contextlib
import io
import json
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from gn_det.data import shapes
from gn_det.errors import GNDetError

# The warning comes from pycocotools 2.0.11 with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNTS = {"train": 60, "val": 10}
SMALL = {"num_train": 4, "num_val": 2, "size": 64}


def load(json_file: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(json_file))


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def redraw(split: str, index: int, seed: int = 0, size: int = 192):
    """Return the image and the (class index, visible mask) of its objects, as the annotations are made from them."""
    return shapes.draw(np.random.default_rng([seed, shapes.SPLITS.index(split), index]), (size, size))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "polygon"
    return shapes.generate(root, num_train=COUNTS["train"], num_val=COUNTS["val"])


@pytest.fixture(scope="module")
def all_objects(data):
    """(COCO annotation, COCO, true class index, true visible mask) of each object in both splits."""
    result = []
    for split, (json_file, _) in data.items():
        coco = load(json_file)
        for image_id in coco.getImgIds():
            _, objects = redraw(split, image_id - 1)
            annotations = coco.loadAnns(coco.getAnnIds(image_id))
            assert len(annotations) == len(objects)
            for annotation, (class_index, mask) in zip(annotations, objects, strict=True):
                result.append((annotation, coco, class_index, mask))
    return result


def test_annotations_agree_with_the_visible_pixels(all_objects):
    assert len(all_objects) > 150
    for annotation, coco, class_index, mask in all_objects:
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        assert coco.cats[annotation["category_id"]]["name"] == shapes.CLASSES[class_index]
        assert iou(coco.annToMask(annotation).astype(bool), mask) == 1  # the polygons cover exactly the visible pixels
        assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in annotation["segmentation"])


def test_coco_fields(data):
    for split, (json_file, image_dir) in data.items():
        coco = json.loads(json_file.read_text())
        assert set(coco) == {"info", "licenses", "images", "annotations", "categories"}
        assert [c["id"] for c in coco["categories"]] == [1, 2, 3]
        assert [c["name"] for c in coco["categories"]] == list(shapes.CLASSES)
        assert [i["id"] for i in coco["images"]] == list(range(1, COUNTS[split] + 1))
        assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
        assert {i["file_name"] for i in coco["images"]} == {p.name for p in image_dir.iterdir()}
        for image in coco["images"]:
            with Image.open(image_dir / image["file_name"]) as file:
                assert (file.mode, file.size) == ("RGB", (image["width"], image["height"]))


def test_image_files_contain_the_drawn_pixels(data):
    for split, (_, image_dir) in data.items():
        for index in (0, COUNTS[split] - 1):
            written = np.asarray(Image.open(image_dir / f"{index + 1:06d}.png"))
            np.testing.assert_array_equal(written, redraw(split, index)[0])


def test_masks_are_disjoint_and_some_objects_occluded():
    occluded = 0
    for index in range(40):
        _, objects = redraw("train", index)
        masks = [mask for _, mask in objects]
        assert np.max(sum(mask.astype(int) for mask in masks)) <= 1
        assert all(mask.sum() >= 24 for mask in masks)
        boxes = [coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))) for mask in masks]
        if len(boxes) > 1:
            overlaps = coco_mask.iou(np.array(boxes), np.array(boxes), [0] * len(boxes))
            occluded += (np.triu(overlaps, 1) > 0).any()
    assert occluded >= 10


def test_mask_borders_coincide_with_color_edges():
    """Colors change more across the border of a mask than across the same border shifted by two pixels."""

    def color_change(image: np.ndarray, mask: np.ndarray) -> float:
        border = mask[:, 1:] != mask[:, :-1]
        return np.abs(np.diff(image.astype(float), axis=1)).sum(axis=2)[border].mean()

    at_border, beside = [], {shift: [] for shift in (-2, 2)}
    for index in range(20):
        image, objects = redraw("train", index)
        for _, mask in objects:
            at_border.append(color_change(image, mask))
            for shift, changes in beside.items():
                changes.append(color_change(image, np.roll(mask, shift, axis=1)))
    left, right = (np.mean(changes) for changes in beside.values())
    assert np.mean(at_border) > 1.5 * max(left, right)
    assert left == pytest.approx(right, rel=0.25)  # so the masks are not shifted by half a pixel


def test_all_sizes_classes_and_images_without_objects_occur(data, all_objects):
    areas, classes = [], Counter()
    for annotation, *_ in all_objects:
        areas.append(annotation["area"])
        classes[annotation["category_id"]] += 1
    small, large = np.mean(np.array(areas) < 32**2), np.mean(np.array(areas) >= 96**2)
    assert 0.25 < small < 0.6
    assert 0.01 < large < 0.15
    assert sorted(classes) == [1, 2, 3]
    assert max(classes.values()) < 2 * min(classes.values())
    coco = load(data["train"][0])
    per_image = Counter(len(coco.getAnnIds(image_id)) for image_id in coco.getImgIds())
    assert 1 <= per_image[0] <= 0.1 * COUNTS["train"]
    assert max(per_image) >= 7


def test_max_objects_limits_the_number_of_objects():
    counts = {len(shapes.draw(np.random.default_rng(i), (64, 80), max_objects=2)[1]) for i in range(30)}
    assert 2 in counts and counts <= {0, 1, 2}
    assert shapes.draw(np.random.default_rng(0), (64, 80))[0].shape == (64, 80, 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_polygons_are_exact_for_any_mask(share):
    """Noise has the hardest cases: holes in holes, single pixels, and pixels that touch at a corner."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((17, 23)) < share
        polygons = coco_mask.frPyObjects(shapes._polygons(mask), *mask.shape)
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(polygons)), mask)


def test_region_with_a_hole_becomes_two_polygons():
    mask = np.ones((20, 20), dtype=bool)
    mask[5:9, 6:12] = False
    polygons = shapes._polygons(mask)
    assert len(polygons) == 2
    assert sum(abs(shapes._area(np.reshape(p, (-1, 2)))) for p in polygons) == pytest.approx(mask.sum(), abs=2)


def test_seed_determines_all_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        shapes.generate(tmp_path / name, seed=seed, **SMALL)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    assert all(a[name] != c[name] for name in a)


def test_no_image_occurs_twice(data):
    images = [path.read_bytes() for _, image_dir in data.values() for path in image_dir.iterdir()]
    assert len(set(images)) == len(images) == sum(COUNTS.values())


def test_smaller_data_set_has_the_first_images_of_a_larger_one(tmp_path):
    few = shapes.generate(tmp_path / "few", num_train=3, num_val=2, size=64)
    more = shapes.generate(tmp_path / "more", num_train=6, num_val=2, size=64)
    few_images, more_images = content(few["train"][1]), content(more["train"][1])
    assert len(few_images) == 3
    assert few_images.items() <= more_images.items()
    few_coco, more_coco = (json.loads(d["train"][0].read_text()) for d in (few, more))
    assert few_coco["annotations"] == more_coco["annotations"][: len(few_coco["annotations"])]
    assert content(few["val"][1]) == content(more["val"][1])


def test_rle_and_polygons_give_the_same_masks(tmp_path):
    files = {s: shapes.generate(tmp_path / s, segmentation=s, **SMALL) for s in ("rle", "polygon")}
    assert content(files["rle"]["train"][1]) == content(files["polygon"]["train"][1])
    rle, polygon = (load(files[s]["train"][0]) for s in ("rle", "polygon"))
    assert rle.anns.keys() == polygon.anns.keys() != set()
    for key, annotation in rle.anns.items():
        assert isinstance(annotation["segmentation"], dict)
        np.testing.assert_array_equal(rle.annToMask(annotation), polygon.annToMask(polygon.anns[key]))


def test_detectron2_reads_all_images_and_objects(data):
    from detectron2.data.datasets.coco import load_coco_json

    json_file, image_dir = data["val"]
    records = load_coco_json(str(json_file), str(image_dir))
    assert len(records) == COUNTS["val"]
    # detectron2 drops annotations that it considers invalid.
    assert sum(len(r["annotations"]) for r in records) == len(load(json_file).anns)


def test_second_call_writes_nothing(tmp_path):
    first = shapes.generate(tmp_path / "s", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert shapes.generate(tmp_path / "s", **SMALL) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


def generate_error(root: Path, **parameters) -> str:
    """Assert that ``generate`` raises a GNDetError in one line, and return it."""
    with pytest.raises(GNDetError) as caught:
        shapes.generate(root, **(SMALL | parameters))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_with_other_content_is_refused_and_unchanged(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("the only copy")
    assert str(foreign) in generate_error(foreign)
    assert str(foreign / "thesis.txt") in generate_error(foreign / "thesis.txt")
    assert content(foreign) == {"thesis.txt": b"the only copy"}
    assert list(tmp_path.iterdir()) == [foreign]


def test_data_set_with_other_parameters_or_missing_files_is_refused_and_unchanged(tmp_path):
    files = shapes.generate(tmp_path / "s", **SMALL)
    before = content(tmp_path)
    for parameters in ({"seed": 1}, {"num_train": 5}, {"size": 65}, {"segmentation": "rle"}):
        generate_error(tmp_path / "s", **parameters)
    assert content(tmp_path) == before
    next(files["val"][1].iterdir()).unlink()
    generate_error(tmp_path / "s")


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "a" / "b"):
        json_file, image_dir = shapes.generate(str(root), **SMALL)["train"]
        assert (json_file, image_dir) == (root / "train.json", root / "train")
        assert len(content(image_dir)) == SMALL["num_train"]


def test_killed_run_leaves_no_data_set(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def fail_at_val(folder, split, manifest, write=shapes._write_split):
        if split == "val":
            raise Killed
        return write(folder, split, manifest)

    monkeypatch.setattr(shapes, "_write_split", fail_at_val)
    with pytest.raises(Killed):
        shapes.generate(tmp_path / "s", **SMALL)
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    (tmp_path / ".s-left" / "s" / "train").mkdir(parents=True)  # as left by a process that was killed
    (tmp_path / ".s-left" / "s" / "train" / "000001.png").write_bytes(b"half")
    files = shapes.generate(tmp_path / "s", **SMALL)
    assert all(len(content(image_dir)) > 1 for _, image_dir in files.values())


def test_concurrent_processes_write_one_data_set(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=shapes.generate, args=(tmp_path / "s",), kwargs=SMALL | {"num_train": 20})
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]
    shapes.generate(tmp_path / "alone", **(SMALL | {"num_train": 20}))
    assert content(tmp_path / "s") == content(tmp_path / "alone")


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file" / "s") in generate_error(tmp_path / "file" / "s")


@pytest.mark.parametrize(
    "parameters", [{"num_train": 0}, {"num_val": 0}, {"seed": -1}, {"size": 63}, {"segmentation": "mask"}]
)
def test_parameters_out_of_range_are_refused(tmp_path, parameters):
    name, value = next(iter(parameters.items()))
    assert f"{name}={value!r}" in generate_error(tmp_path / "s", **parameters)
    assert not list(tmp_path.iterdir())
