"""Configs with CUDA graphs that are refused."""

import pytest
from detectron2.utils import comm

from gn_det import GNDetError
from gn_det.config.checks import check_config
from gn_det.config.files import load_config

BATCH_NORM = ("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN")
COMPILE = ("TRAIN.COMPILE", True, "MODEL.GN.IGNORE_PADDING", False)
REFUSED = [
    (("TRAIN.CHECKPOINT_ACTIVATIONS", True), "but TRAIN.CHECKPOINT_ACTIVATIONS is True"),
    (("TRAIN.ACCUMULATE", 2), "but TRAIN.ACCUMULATE is 2"),
    (COMPILE, "TRAIN.COMPILE runs the backbone in another way"),
    (("MODEL.RESNETS.NORM", "BN"), "the norms are BN and GN"),
    (("MODEL.FPN.NORM", "SyncBN"), "the norms are GN and SyncBN"),
]


def check(*opts) -> None:
    check_config(load_config("quickstart_R18_FPN_gn_scratch", [str(word) for word in opts]))


@pytest.mark.parametrize(("opts", "sentence"), REFUSED)
def test_training_with_graphs_is_refused_in_one_sentence(opts, sentence):
    with pytest.raises(GNDetError, match=sentence) as error:
        check("TRAIN.CUDA_GRAPHS", True, *opts)
    assert "\n" not in str(error.value)


def test_graphs_of_inference_need_a_backbone_that_is_not_compiled():
    with pytest.raises(GNDetError, match=r"INFERENCE\.CUDA_GRAPHS is True, but TRAIN\.COMPILE"):
        check("INFERENCE.CUDA_GRAPHS", True, *COMPILE)
    for opts, _ in REFUSED[:2]:
        check("INFERENCE.CUDA_GRAPHS", True, *opts)


def test_several_processes_are_refused(monkeypatch):
    check("TRAIN.CUDA_GRAPHS", True)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    check("INFERENCE.CUDA_GRAPHS", True)
    with pytest.raises(GNDetError, match="the run has 2 processes"):
        check("TRAIN.CUDA_GRAPHS", True)
