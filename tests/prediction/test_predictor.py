"""The predictor: same outputs as detectron2's DefaultPredictor, for inputs of all kinds and in batches."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from PIL import Image

from gn_det import GNDetError, Predictor
from gn_det.config.files import load_config


def picture(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """Return a BGR image of large blobs, in which the model detects objects."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


@pytest.fixture(scope="module")
def predictor(output_dir) -> Predictor:
    return Predictor(output_dir, device="cpu", batch_size=3)


@pytest.fixture
def folder(tmp_path):
    """A folder of three images of two sizes and a text file named c.png."""
    for name, size in (("a.png", (60, 90)), ("b.png", (60, 90)), ("d.png", (80, 70))):
        Image.fromarray(picture(*size, seed=ord(name[0]))[:, :, ::-1]).save(tmp_path / name)
    (tmp_path / "c.png").write_text("not a picture")
    return tmp_path


def same(one: Instances, other: Instances, atol: float = 0.0) -> bool:
    """Compare instances; with a tolerance, a share of up to ``atol`` of the mask pixels may differ."""
    assert one.image_size == other.image_size and len(one) == len(other) > 0
    close = lambda a, b: torch.allclose(a, b, rtol=0, atol=atol)  # noqa: E731
    return (
        close(one.pred_boxes.tensor, other.pred_boxes.tensor)
        and close(one.scores, other.scores)
        and torch.equal(one.pred_classes, other.pred_classes)
        and (one.pred_masks != other.pred_masks).float().mean().item() <= atol
    )


ANY_RECIPE = ["MODEL.GN.ACCEPT_WEIGHTS", "('recipe',)"]


@pytest.mark.parametrize("fast", ["True", "False"])
@pytest.mark.parametrize("channels", ["BGR", "RGB"])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (300, 64), (64, 64)])
def test_outputs_equal_those_of_default_predictor(output_dir, channels, height, width, fast):
    """They are equal bit for bit, or to 0.002 pixels in the channels-last format, which sums in another order."""
    cfg = load_config(
        str(output_dir / "config.yaml"), ["INPUT.FORMAT", channels, *ANY_RECIPE, "INFERENCE.CHANNELS_LAST", fast]
    )
    cfg.MODEL.WEIGHTS = str(output_dir / "model_final.pth")
    image = picture(height, width)
    found, stock = Predictor(cfg, device="cpu")(image), DefaultPredictor(cfg)(image)["instances"]
    assert same(found, stock, atol=2e-3 if fast == "True" else 0) and found.pred_masks.shape[1:] == (height, width)


def test_path_array_and_pil_image_give_the_same_outputs(predictor, folder):
    array = picture(seed=ord("a"))
    found = predictor(array)
    assert isinstance(found, Instances) and found.pred_boxes.tensor.device.type == "cpu"
    for image in (str(folder / "a.png"), folder / "a.png", Image.fromarray(array[:, :, ::-1])):
        assert same(predictor(image), found)


def test_several_images_return_a_list(predictor, folder):
    one = predictor(folder / "a.png")
    for several in ([folder / "a.png"], f"{folder}/a*.png", (image for image in [picture(seed=ord("a"))])):
        (found,) = predictor(several)
        assert same(found, one)
    (folder / "c.png").unlink()
    assert [found.image_size for found in predictor(folder)] == [(60, 90), (60, 90), (80, 70)]
    assert predictor([]) == []


@pytest.mark.parametrize("ignore", [True, False])
def test_batches_do_not_change_the_outputs(output_dir, ignore):
    """Where the padding would enter the statistics of GN, only images of the same size share a batch."""
    cfg = load_config(str(output_dir / "config.yaml"), ["MODEL.GN.IGNORE_PADDING", str(ignore)])
    predictor = Predictor(cfg, output_dir / "model_final.pth", device="cpu", batch_size=3)
    images = [picture(*size, seed=i) for i, size in enumerate([(60, 90), (60, 90), (64, 64), (90, 60), (60, 90)])]
    sizes = []
    handle = predictor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = predictor(images)
    handle.remove()
    assert sizes == ([3, 2] if ignore else [2, 1, 1, 1])
    for image, found in zip(images, together, strict=True):
        assert same(found, predictor(image), atol=1e-3)


def test_stream_continues_after_unreadable_inputs(predictor, folder):
    stream = list(predictor.stream([folder, folder / "none.png", picture(), picture() / 255, "ftp://a/b.png"]))
    names = [*(str(folder / f"{name}.png") for name in ("a", "b", "c", "d", "none")), 2, 3, "ftp://a/b.png"]
    assert [prediction.name for prediction in stream] == names
    problems = [str(prediction.problem) for prediction in stream]
    messages = {2: "c.png cannot be read as an image", 4: "does not exist", 6: "it must be uint8", 7: "is a URL"}
    for index, message in messages.items():
        assert message in problems[index] and stream[index].instances is None and stream[index].image is None
    for index in (0, 1, 3, 5):
        assert stream[index].problem is None and stream[index].instances.image_size == stream[index].image.shape[:2]
    for call in (predictor, predictor.coco):
        with pytest.raises(GNDetError, match=r"c\.png cannot be read"):
            call(folder)


def test_stream_holds_at_most_one_batch(predictor):
    taken = []
    stream = predictor.stream(taken.append(i) or picture(seed=i) for i in range(1000))
    next(stream)
    assert len(taken) == 3
    next(stream), next(stream)
    assert len(taken) == 3


def test_coco_results_are_json_serializable(predictor, folder):
    """The categories of the shapes data have the ids 1 to 3; the model's classes are 0 to 2."""
    (folder / "c.png").unlink()
    rows = json.loads(json.dumps(predictor.coco(folder)))
    found = predictor(folder)
    names = [str(folder / name) for name in ("a.png", "b.png", "d.png")]
    assert [row["file_name"] for row in rows] == [n for n, one in zip(names, found, strict=True) for _ in one.scores]
    for row, box, score, number, mask in zip(
        rows, found[0].pred_boxes.tensor, found[0].scores, found[0].pred_classes, found[0].pred_masks, strict=False
    ):
        x0, y0, x1, y1 = box.tolist()
        assert row["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3) and row["score"] == float(score)
        assert row["category_id"] == int(number) + 1
        assert np.array_equal(mask_util.decode(row["segmentation"]).astype(bool), mask.numpy())
    rows = predictor.coco([picture(), picture(seed=1)])
    assert {row["image_id"] for row in rows} == {0, 1} and "file_name" not in rows[0]


@pytest.mark.parametrize("pasted_by_the_model", [True, False])
def test_encoded_masks_equal_the_bitmaps(predictor, pasted_by_the_model, monkeypatch):
    images = [picture(), picture(80, 70, seed=1)]
    if pasted_by_the_model:  # as on a GPU
        monkeypatch.setattr("gn_det.prediction.predictor.without_pasting", lambda model, paste_on_host: model)
    for encoded, full in zip(predictor.stream(images, encode_masks=True), predictor.stream(images), strict=True):
        assert len(encoded.instances) == len(full.instances) == len(encoded.instances.pred_masks) > 0
        assert torch.equal(encoded.instances.scores, full.instances.scores)
        decoded = np.stack([mask_util.decode(rle) for rle in encoded.instances.pred_masks]).astype(bool)
        assert np.array_equal(decoded, full.instances.pred_masks.numpy())
        assert predictor.rows(encoded) == predictor.rows(full)


def test_prefetched_images_give_the_same_predictions(predictor, folder, monkeypatch):
    """The copies to the GPU are replaced, as they cannot run on a CPU."""
    expected = list(predictor.stream(folder))
    pinned = []
    monkeypatch.setattr("gn_det.prediction.predictor.pin", lambda sample, device: pinned.append(1) or sample)
    monkeypatch.setattr(predictor, "_prefetches", True)
    found = list(predictor.stream(folder))
    assert len(pinned) == 3 and [p.name for p in found] == [p.name for p in expected]
    assert [p.problem for p in found] == [p.problem for p in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.instances is None or same(one.instances, other.instances)


def test_no_detections_return_an_empty_result(output_dir):
    strict = Predictor(output_dir, device="cpu", min_score=1)
    assert len(strict(picture())) == 0 and strict.coco(picture()) == []


def test_min_score_filters_detections(output_dir, predictor):
    scores = predictor(picture()).scores
    middle = float(scores.median())
    filtered = Predictor(output_dir, device="cpu", min_score=middle)(picture()).scores
    assert torch.equal(filtered, scores[scores > middle]) and 0 < len(filtered) < len(scores)


@pytest.mark.parametrize("size", [(1, 1), (2, 4000), (4000, 2), (1, 20000)])
def test_extreme_sizes_do_not_fail(predictor, size):
    assert predictor(np.zeros((*size, 3), np.uint8)).image_size == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"min_score": 1.5}, "minimum score is 1.5"),
        ({"min_score": -0.1}, "minimum score is -0.1"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:99"}, "PyTorch finds"),
    ],
)
def test_invalid_options_are_refused(output_dir, options, message):
    with pytest.raises(GNDetError, match=message):
        Predictor(output_dir, **options)


def test_metadata_has_the_class_names(predictor):
    assert predictor.classes == predictor.metadata.thing_classes == ["circle", "square", "triangle"]
