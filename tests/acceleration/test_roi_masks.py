"""Models that do not paste their masks: the same outputs as detectron2's after pasting."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ROIMasks
from torch import nn

from gn_det.acceleration.roi_masks import ROIMaskModel, paste, without_pasting

R18 = "quickstart_R18_FPN_gn_scratch"


@pytest.mark.parametrize("opts", [(), ("MODEL.MASK_ON", False)])
def test_pasted_outputs_equal_those_of_the_model(tiny_cfg, batch, opts):
    model = build_model(tiny_cfg(R18, *opts)).eval()
    images = batch(1) + batch(1, height=64, width=64)
    images[1] |= {"height": 100, "width": 90}  # another size than at the input
    with torch.no_grad():
        found, stock = without_pasting(model, False)(images), model(images)
    for one, other in zip(found, stock, strict=True):
        one, other = one["instances"], other["instances"]
        assert one.image_size == other.image_size and one.has("roi_masks") == other.has("pred_masks") and len(one)
        paste(one)
        assert one.get_fields().keys() == other.get_fields().keys()
        for name, value in other.get_fields().items():
            value, got = (getattr(field, "tensor", field) for field in (value, one.get(name)))
            assert torch.equal(got, value), name


def test_no_detections_and_other_types_of_masks(tiny_cfg, batch):
    model = build_model(tiny_cfg(R18, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)).eval()
    with torch.no_grad():
        (found,) = ROIMaskModel(model)(batch(1))
        assert len(found["instances"]) == 0
        paste(found["instances"])
        assert found["instances"].pred_masks.shape == (0, 96, 128)
    inference = model.inference

    def with_roi_masks(*args, **kwargs) -> list:
        found = inference(*args, **kwargs)
        for instances in found:
            instances.pred_masks = ROIMasks(instances.pred_masks[:, 0])
        return found

    model.inference = with_roi_masks
    with torch.no_grad():
        assert ROIMaskModel(model)(batch(1))[0]["instances"].roi_masks.shape[0] == 0


def test_modes_and_models_that_are_left_as_they_are(tiny_cfg):
    model = build_model(tiny_cfg(R18))
    for training in (True, False):
        assert without_pasting(model.train(training), False).training == training
    other = nn.Linear(1, 1)
    assert without_pasting(other, True) is other

    class Own(type(model)):
        def inference(self, *args, **kwargs):
            return super().inference(*args, **kwargs)

    model.__class__ = Own
    assert without_pasting(model, True) is model
    on_gpu = build_model(tiny_cfg(R18)).to("meta")
    assert without_pasting(on_gpu, False) is on_gpu and isinstance(without_pasting(on_gpu, True), ROIMaskModel)
