"""The predictor: as detectron2's DefaultPredictor, for images of all kinds, in batches."""

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
    """BGR: large blobs, so that something is found."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


@pytest.fixture(scope="module")
def predictor(output_dir) -> Predictor:
    return Predictor(output_dir, device="cpu", batch_size=3)


@pytest.fixture
def folder(tmp_path):
    """Three images of two sizes, one of them a text."""
    for name, size in (("a.png", (60, 90)), ("b.png", (60, 90)), ("d.png", (80, 70))):
        Image.fromarray(picture(*size, seed=ord(name[0]))[:, :, ::-1]).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    return tmp_path


def same(one: Instances, other: Instances, atol: float = 0.0) -> bool:
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
def test_the_outputs_are_default_predictors(output_dir, channels, height, width, fast):
    """To the bit, or in another memory format and order of sums to 0.002 pixels."""
    cfg = load_config(
        str(output_dir / "config.yaml"), ["INPUT.FORMAT", channels, *ANY_RECIPE, "INFERENCE.CHANNELS_LAST", fast]
    )
    cfg.MODEL.WEIGHTS = str(output_dir / "model_final.pth")
    image = picture(height, width)
    found, stock = Predictor(cfg, device="cpu")(image), DefaultPredictor(cfg)(image)["instances"]
    assert same(found, stock, atol=2e-3 if fast == "True" else 0) and found.pred_masks.shape[1:] == (height, width)


def test_a_path_an_array_and_a_pil_image_are_the_same(predictor, folder):
    array = picture(seed=ord("a"))
    found = predictor(array)
    assert isinstance(found, Instances) and found.pred_boxes.tensor.device.type == "cpu"
    for one in (str(folder / "a.png"), folder / "a.png", Image.fromarray(array[:, :, ::-1])):
        assert same(predictor(one), found)


def test_several_images_are_a_list(predictor, folder):
    one = predictor(folder / "a.png")
    for several in ([folder / "a.png"], f"{folder}/a*.png", (image for image in [picture(seed=ord("a"))])):
        (found,) = predictor(several)
        assert same(found, one)
    (folder / "c.png").unlink()
    assert [found.image_size for found in predictor(folder)] == [(60, 90), (60, 90), (80, 70)]
    assert predictor([]) == []


def test_batches_do_not_change_the_outputs(output_dir, predictor):
    """The padding of an image beside a larger one would count in GN's statistics."""
    images = [picture(*size, seed=i) for i, size in enumerate([(60, 90), (60, 90), (64, 64), (90, 60), (60, 90)])]
    sizes = []
    handle = predictor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = predictor(images)
    handle.remove()
    assert sizes == [2, 1, 1, 1]
    for image, found in zip(images, together, strict=True):
        assert same(found, predictor(image), atol=1e-3)


def test_a_stream_goes_on_after_what_cannot_be_read(predictor, folder):
    stream = list(predictor.stream([folder, folder / "none.png", picture(), picture() / 255, "ftp://a/b.png"]))
    names = [*(str(folder / f"{name}.png") for name in ("a", "b", "c", "d", "none")), 2, 3, "ftp://a/b.png"]
    assert [prediction.name for prediction in stream] == names
    problems = [str(prediction.problem) for prediction in stream]
    for index, said in {2: r"c.png cannot be read as an image", 4: "is not there", 6: "pass uint8", 7: "URL"}.items():
        assert said in problems[index] and stream[index].instances is None and stream[index].image is None
    for index in (0, 1, 3, 5):
        assert stream[index].problem is None and stream[index].instances.image_size == stream[index].image.shape[:2]
    for call in (predictor, predictor.coco):
        with pytest.raises(GNDetError, match=r"c\.png cannot be read"):
            call(folder)


def test_a_stream_holds_no_more_than_a_batch(predictor):
    taken = []
    stream = predictor.stream(taken.append(i) or picture(seed=i) for i in range(1000))
    next(stream)
    assert len(taken) == 3
    next(stream), next(stream)
    assert len(taken) == 3


def test_coco_results_are_ready_for_json(predictor, folder):
    """shapes' categories have the ids 1 to 3; the model's classes are 0 to 2."""
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


def test_nothing_found_is_an_empty_result(output_dir):
    nothing = Predictor(output_dir, device="cpu", min_score=1)
    assert len(nothing(picture())) == 0 and nothing.coco(picture()) == []


def test_the_lowest_score_is_what_is_asked_for(output_dir, predictor):
    scores = predictor(picture()).scores
    middle = float(scores.median())
    some = Predictor(output_dir, device="cpu", min_score=middle)(picture()).scores
    assert torch.equal(some, scores[scores > middle]) and 0 < len(some) < len(scores)


@pytest.mark.parametrize("size", [(1, 1), (2, 4000), (4000, 2), (1, 20000)])
def test_odd_sizes_do_not_fail(predictor, size):
    assert predictor(np.zeros((*size, 3), np.uint8)).image_size == size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"min_score": 1.5}, "lowest score is 1.5"),
        ({"min_score": -0.1}, "lowest score is -0.1"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:99"}, "PyTorch finds"),
    ],
)
def test_wrong_options_are_one_sentence(output_dir, options, said):
    with pytest.raises(GNDetError, match=said):
        Predictor(output_dir, **options)


def test_the_visualizer_gets_the_names(predictor):
    assert predictor.classes == predictor.metadata.thing_classes == ["circle", "square", "triangle"]
