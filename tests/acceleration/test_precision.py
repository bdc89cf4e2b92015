"""The data type and memory format that the config and the device give."""

import pytest
import torch

from gn_det.acceleration.precision import Precision, inference_precision, training_precision
from gn_det.config.defaults import get_cfg
from gn_det.errors import GNDetError


def cfg(device: str, *opts):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.fixture(params=[True, False])
def has_bfloat16(request, monkeypatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    return request.param


def test_defaults():
    assert training_precision(cfg("cuda")) == Precision(None, False)
    assert inference_precision(cfg("cuda")) == Precision(None, False)
    assert inference_precision(cfg("cpu")) == Precision(None, True)


def test_mixed_precision_on_a_gpu(has_bfloat16):
    mixed = cfg("cuda:0", "GPU.MIXED_PRECISION", True)
    dtype = torch.bfloat16 if has_bfloat16 else torch.float16
    assert training_precision(mixed) == inference_precision(mixed) == Precision(dtype, True, "triton")


def test_mixed_precision_has_no_effect_on_a_cpu():
    mixed = cfg("cpu", "GPU.MIXED_PRECISION", True)
    assert training_precision(mixed) == training_precision(cfg("cpu"))
    assert inference_precision(mixed) == inference_precision(cfg("cpu"))


def test_single_keys():
    keys = ("SOLVER.AMP.ENABLED", True, "TRAIN.CHANNELS_LAST", True, "INFERENCE.DTYPE", "bfloat16")
    assert training_precision(cfg("cpu", *keys)) == Precision(torch.bfloat16, True)
    assert inference_precision(cfg("cpu", *keys)) == Precision(torch.bfloat16, True)


def test_bfloat16_on_a_gpu_without_it(has_bfloat16):
    amp = cfg("cuda", "SOLVER.AMP.ENABLED", True)
    if has_bfloat16:
        assert training_precision(amp).dtype is torch.bfloat16
    else:
        with pytest.raises(GNDetError, match="does not support bfloat16: set TRAIN.AMP_DTYPE to float16"):
            training_precision(amp)
