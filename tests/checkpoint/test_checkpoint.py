"""Hostile and damaged files in the checkpointer: they are refused, and no code in them is run."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from gn_det import GNDetError
from gn_det.checkpoint.checkpointer import Checkpointer


class Runs:
    """Unpickling creates a folder, as an example of code in a hostile pickle."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def dump(path, obj, protocol=2):
    path.write_bytes(pickle.dumps(obj, protocol=protocol))
    return str(path)


def test_stock_detectron2_runs_a_hostile_pickle(tmp_path):
    """This is why gn_det has its own checkpointer."""
    path = dump(tmp_path / "evil.pkl", {"model": Runs(tmp_path / "marker")})
    with pytest.raises(ValueError, match="Unsupported type found in checkpoint"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(path)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("where", ["the whole file", "a value", "an object array"])
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path, where):
    evil = Runs(tmp_path / "marker")
    data = {
        "the whole file": evil,
        "a value": {"model": evil},
        "an object array": {"a": np.array([evil], dtype=object)},
    }[where]
    path = dump(tmp_path / "evil.pkl", data)
    with pytest.raises(GNDetError, match=r"was not read.*(posix\.mkdir|array of type)"):
        Checkpointer(nn.Linear(1, 1)).load(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps([1, 2])])
def test_a_file_that_is_no_pickle_of_weights_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(GNDetError) as error:
        Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "x.pkl"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut", b"\x80\x02."])
def test_bad_pth_is_refused_and_the_next_load_works(tmp_path, content):
    layer = nn.Linear(2, 1)
    (tmp_path / "bad.pth").write_bytes(content)
    torch.save({"model": {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}}, tmp_path / "good.pth")
    checkpointer = Checkpointer(layer)
    with pytest.raises(GNDetError, match="could not be read|was not read"):
        checkpointer.load(str(tmp_path / "bad.pth"))
    checkpointer.load(str(tmp_path / "good.pth"))
    assert torch.equal(layer.weight, torch.ones(1, 2))


def test_pth_does_not_run_code(tmp_path):
    torch.save({"model": Runs(tmp_path / "marker")}, tmp_path / "evil.pth")
    with pytest.raises(GNDetError):
        Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("path", ["/no/such/file.pth", "catalog://no/such/model"])
def test_missing_weights_are_refused(path):
    with pytest.raises(GNDetError, match=f"The weights {path} could not be read"):
        Checkpointer(nn.Linear(1, 1)).load(path)


def test_caffe2_blobs_are_loaded_under_detectron2_names(tmp_path):
    """The blobs are a convolution (conv1_w), the scale and shift of its norm, and a momentum."""

    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Module()
            self.stem.conv1 = nn.Conv2d(3, 4, 1, bias=False)
            self.stem.conv1.norm = nn.GroupNorm(2, 4)

    model, array = Stem(), np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    blobs = {"conv1_w": array, "conv1_gn_s": np.full(4, 2, np.float32), "conv1_gn_b": np.full(4, 3, np.float32)}
    path = dump(tmp_path / "d.pkl", {"blobs": {**blobs, "conv1_w_momentum": array * 0}})
    Checkpointer(model).load(path)
    assert np.array_equal(model.stem.conv1.weight.detach().numpy(), array)
    assert model.stem.conv1.norm.weight.tolist() == [2] * 4 and model.stem.conv1.norm.bias.tolist() == [3] * 4
