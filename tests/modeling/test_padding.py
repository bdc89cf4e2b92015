"""What a model computes for an image must not depend on the other images of the batch, or on the padding that they cause."""

import copy

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gn_det import GNDetError
from gn_det.acceleration.inference import apply_model_options
from gn_det.acceleration.training import checkpoint_activations, to_channels_last
from gn_det.modeling.padding import ignore_padding
from gn_det.ops.padding import extents_of
from gn_det.training.trainer import Trainer

SIZES = {"image": (96, 110), "larger": (128, 200), "smaller": (64, 64), "wider": (70, 190)}
BATCHES = [("image",), ("image", "larger"), ("smaller", "image"), ("smaller", "larger", "wider", "image")]
NO_NORM_IN_HEADS = ("MODEL.FPN.NORM", "", "MODEL.ROI_BOX_HEAD.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", "")
R18 = ("quickstart_R18_FPN_gn_scratch", "MODEL.RPN.POST_NMS_TOPK_TEST", 40)
MODELS = {
    "GN": R18,
    "GN, not fused": (*R18, "MODEL.GN.FUSE", False),
    "LN": (*R18, "MODEL.RESNETS.NORM", "LN", "MODEL.FPN.NORM", "IN"),
    "BN*": (*R18, "MODEL.RESNETS.NORM", "FrozenBN", *NO_NORM_IN_HEADS),
    "BN": (*R18, "MODEL.RESNETS.NORM", "BN", *NO_NORM_IN_HEADS),
    "no norm": (*R18, "MODEL.RESNETS.NORM", "", *NO_NORM_IN_HEADS),
    "C4": ("mask_rcnn_R50_C4_gn", "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STEM_OUT_CHANNELS", 32),
    "R50": ("mask_rcnn_R50_FPN_gn", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32),
}
STOCK = {
    "RetinaNet": (
        *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]], "MODEL.RETINANET.NORM", "GN"),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 50),
    ),
    "Cascade": ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
}
SHALLOW = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 64)


def random_model(cfg: CfgNode) -> torch.nn.Module:
    """A model whose random weights give many detections with scores that differ."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data += 0.3 * noise
        elif "cls_score.weight" in name:
            parameter.data = 0.3 * noise
    return model


@pytest.fixture
def image():
    """The name of a size -> the same image at each call."""

    def make(name: str) -> dict:
        generator = torch.Generator().manual_seed(len(name))
        height, width = SIZES[name]
        pixels = 115 + 60 * torch.randn(3, height, width, generator=generator)
        return {"image": pixels, "height": height, "width": width}

    return make


@pytest.fixture
def model(request, tiny_cfg, stock_cfg):
    """A model of gn_det, by its name in MODELS, or of detectron2 alone, by its name in STOCK."""
    if request.param in STOCK:
        return random_model(stock_cfg("FPN", *SHALLOW, *STOCK[request.param]))
    cfg = tiny_cfg(*MODELS[request.param])
    cfg.merge_from_list(
        [
            "MODEL.GN.IGNORE_PADDING",
            False,
            "MODEL.GN.FROZENBN_FROM_SCRATCH",
            True,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
            0.0,
        ]
    )
    return apply_model_options(cfg, random_model(cfg))


def detections(model, batch: list[dict], index: int):
    with torch.no_grad():
        return model(batch)[index]["instances"]


def difference(found, alone) -> float:
    """The largest difference of boxes in pixels; infinite for another number of detections."""
    if len(found) != len(alone):
        return float("inf")
    return (found.pred_boxes.tensor - alone.pred_boxes.tensor).abs().max().item()


@pytest.mark.parametrize("model", [*MODELS, *STOCK], indirect=True)
def test_detections_are_those_of_the_image_alone(model, image):
    alone = detections(model, [image("image")], 0)
    assert len(alone) > 3
    ignore_padding(model)
    for names in BATCHES:
        found = detections(model, [image(name) for name in names], names.index("image"))
        assert difference(found, alone) < 2e-3
        assert torch.allclose(found.scores, alone.scores, atol=1e-4)
        assert found.pred_classes.equal(alone.pred_classes)
        if alone.has("pred_masks"):
            assert (found.pred_masks != alone.pred_masks).float().mean() < 1e-4


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_stock_behavior_fails_that_test(model, image):
    alone = detections(model, [image("image")], 0)
    assert difference(detections(model, [image("image"), image("larger")], 0), alone) > 0.1


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_features_are_those_of_the_image_alone(model, image):
    ignore_padding(model)

    def features(*names: str) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return model.backbone(model.preprocess_image([image(name) for name in names]).tensor)

    for names in BATCHES:
        index = names.index("image")
        for level, alone in features("image").items():
            _, _, h, w = alone.shape
            found = features(*names)[level][index : index + 1]
            assert (found[:, :, :h, :w] - alone).norm() / alone.norm() < 1e-5
            assert not found[:, :, h:].any()
            assert not found[:, :, :, w:].any()


@pytest.mark.parametrize("model", ["GN"], indirect=True)
def test_an_image_that_comes_alone_has_the_outputs_of_the_unchanged_model(model, image):
    unchanged = detections(model, [image("image")], 0)
    alone = detections(ignore_padding(model), [image("image")], 0)
    assert alone.scores.equal(unchanged.scores)
    assert alone.pred_boxes.tensor.equal(unchanged.pred_boxes.tensor)


@pytest.mark.parametrize("model", ["GN"], indirect=True)
def test_copies_and_a_second_call_change_nothing(model, image):
    batch = [image("smaller"), image("image")]
    once = detections(ignore_padding(model), batch, 1)
    twice = detections(ignore_padding(copy.deepcopy(model)), batch, 1)
    assert difference(twice, once) == 0


@pytest.mark.parametrize("model", ["GN"], indirect=True)
def test_acceleration_may_come_before_or_after(model, image, tiny_cfg):
    cfg = tiny_cfg(*MODELS["GN"], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.GN.IGNORE_PADDING", False)
    after = apply_model_options(cfg, ignore_padding(random_model(cfg)))
    batch = [image("larger"), image("image")]
    assert difference(detections(after, batch, 1), detections(ignore_padding(model), batch, 1)) < 1e-3


@pytest.mark.parametrize("model", ["GN"], indirect=True)
def test_augmented_inference_and_given_boxes(model, image):
    """GeneralizedRCNN.inference is called past forward, as detectron2's test-time augmentation does."""
    ignore_padding(model)
    batch = [image("image"), image("larger")]
    with torch.no_grad():
        (alone,) = model.inference([batch[0]], do_postprocess=False)
        found = model.inference(batch, do_postprocess=False)
        assert difference(found[0], alone) < 2e-3
        given = model.inference(batch, detected_instances=found, do_postprocess=False)
        (given_alone,) = model.inference([batch[0]], detected_instances=[found[0]], do_postprocess=False)
    assert torch.allclose(given[0].pred_masks, given_alone.pred_masks, atol=1e-4)


# Training


def rpn_losses_and_gradients(model, batches: list[list[dict]]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Mean of the RPN's losses over batches of one size, and its gradients."""
    model.zero_grad()
    means: dict[str, float] = {}
    for batch in batches:
        images = model.preprocess_image(batch)
        gt = [sample["instances"] for sample in batch]
        losses = model.proposal_generator(images, model.backbone(images.tensor), gt)[1]
        (sum(losses.values()) / len(batches)).backward()
        means = {name: means.get(name, 0) + loss.item() / len(batches) for name, loss in losses.items()}
    return means, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def storage():
    """detectron2's losses log to it."""
    with EventStorage():
        yield


@pytest.fixture
def trained_pair(batch) -> list[dict]:
    (a,), (b,) = batch(2, height=96, width=128), batch(2, height=128, width=70)
    return [a, b]


OPTIONS = {
    "plain": lambda model: None,
    "activations recomputed": checkpoint_activations,
    "channels_last": to_channels_last,
    "both": lambda model: (checkpoint_activations(model), to_channels_last(model)),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("model", ["GN", "GN, not fused"], indirect=True)
def test_gradients_of_a_batch_are_those_of_its_parts(model, option, trained_pair):
    """The RPN's losses are means over images. Without sampling, nothing in them is random."""
    model.train()
    model.proposal_generator.batch_size_per_image = 10**6
    OPTIONS[option](ignore_padding(model))
    losses, gradients = rpn_losses_and_gradients(model, [trained_pair])
    losses_of_parts, gradients_of_parts = rpn_losses_and_gradients(model, [[sample] for sample in trained_pair])
    assert losses == pytest.approx(losses_of_parts, rel=1e-5)
    assert len(gradients) > 50
    for name, gradient in gradients.items():
        apart = (gradient - gradients_of_parts[name]).norm() / gradient.norm().clamp(min=1e-6)
        assert apart < 1e-4, name


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_training_on_a_gpu_is_stock_unless_the_config_says_so(tiny_cfg, device):
    """The device "meta" stands for a GPU."""
    for wanted in (False, True):
        cfg = tiny_cfg(*R18, "GPU.TRAIN_WITHOUT_PADDING", wanted)
        model = apply_model_options(cfg, build_model(cfg).to(device), for_training=True)
        assert model.ignores_padding_in_training == (wanted or device == "cpu")


def test_padding_is_part_of_training_images_only(tiny_cfg, trained_pair):
    stock = random_model(tiny_cfg(*R18)).train()
    model = ignore_padding(copy.deepcopy(stock), in_training=False)
    for one in (stock, model):
        one.proposal_generator.batch_size_per_image = 10**6
    losses, _ = rpn_losses_and_gradients(model, [trained_pair])
    losses_of_stock, _ = rpn_losses_and_gradients(stock, [trained_pair])
    assert losses == pytest.approx(losses_of_stock, rel=1e-6)
    images = model.eval().preprocess_image(trained_pair)
    assert extents_of(images.tensor) is not None
    assert extents_of(copy.deepcopy(model).train().preprocess_image(trained_pair).tensor) is None


def test_stock_behavior_fails_that_test_too(tiny_cfg, trained_pair):
    model = random_model(tiny_cfg(*R18)).train()
    model.proposal_generator.batch_size_per_image = 10**6
    losses, _ = rpn_losses_and_gradients(model, [trained_pair])
    losses_of_parts, _ = rpn_losses_and_gradients(model, [[sample] for sample in trained_pair])
    assert losses != pytest.approx(losses_of_parts, rel=1e-3)


def test_retinanet_ignores_anchors_in_the_padding(stock_cfg, trained_pair):
    model = ignore_padding(random_model(stock_cfg("FPN", *SHALLOW, *STOCK["RetinaNet"]))).train()
    model.loss_normalizer_momentum = 0.0
    counts = []
    label = model.label_anchors
    model.label_anchors = lambda *args: counts.append((labels := label(*args))[0]) or labels
    for batch in (trained_pair, trained_pair[:1], trained_pair[1:]):
        model(batch)
    (a, b), (a_alone,), (b_alone,) = counts
    for together, alone in ((a, a_alone), (b, b_alone)):
        assert (together >= 0).sum() == (alone >= 0).sum()
        assert (together == -1).sum() > (alone == -1).sum()


def test_other_models_are_refused(stock_cfg):
    model = random_model(stock_cfg("FPN", *SHALLOW))
    model.backbone.bottom_up = torch.nn.Identity()
    with pytest.raises(GNDetError, match="only a GeneralizedRCNN, ProposalNetwork or RetinaNet with a ResNet"):
        ignore_padding(model)
    with pytest.raises(GNDetError, match="The model is a Linear with a NoneType"):
        ignore_padding(torch.nn.Linear(1, 1))


def test_evaluation_takes_its_batch_size_from_the_config(tiny_cfg):
    cfg = tiny_cfg(*R18, "INFERENCE.BATCH_SIZE", 3, "DATALOADER.NUM_WORKERS", 0)
    loader = Trainer.build_test_loader(cfg, "shapes_val")
    assert loader.batch_sampler.batch_size == 3
