"""File types by the first bytes. The same function decides what is downloaded and which reader reads it."""

import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gn_det.download.content import DESCRIPTIONS, file_type, read_head


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("data", [{}, {"a": np.ones(2)}, OrderedDict(a=1)], ids=["empty", "dict", "OrderedDict"])
def test_pickled_dicts_of_all_protocols_are_recognized(data, protocol):
    assert file_type(pickle.dumps(data, protocol)[:64]) == "pickle"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"(dp0\nS'a'\np1\n", "pickle"),
        (b"(iposix\nmkdir\n.", "pickle"),
        (b"(S'/tmp/x'\niposix\nmkdir\n.", "pickle"),
        (b"(cposix\nmkdir\nS'/tmp/x'\no.", "pickle"),
        (b"cos\nsystem\n(S'ls'\ntR.", "pickle"),
        (b"cannot find the file\n", "unknown"),
        (b"(404) not found.", "unknown"),
        (b"(c) the owner of this server.", "unknown"),
        (b"Not found", "unknown"),
        (b"version https://git-lfs.github.com/spec/v1\n", "unknown"),
        (b"", "unknown"),
        (b"PK\x03\x04", "zip"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?>", "web page"),
        (b' {"error": 1}', "JSON"),
        (b"[1]", "JSON"),
    ],
)
def test_types_are_recognized_by_the_first_bytes(head, expected):
    assert file_type(head) == expected and expected in DESCRIPTIONS


@pytest.mark.parametrize("length", [ord("("), ord("<"), ord("c"), 0x80, 100_000_000])
def test_safetensors_are_recognized_by_the_header_after_its_length(length):
    """The length may begin with the first byte of any other type."""
    assert file_type(struct.pack("<Q", length) + b'{"a": {') == "safetensors"


def test_a_header_above_the_limit_of_safetensors_is_not_one():
    assert file_type(struct.pack("<Q", 100_000_001) + b'{"a": {') == "unknown"


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_pytorch_and_safetensors_are_recognized(tmp_path, protocol):
    weights = {"a": torch.ones(3)}
    torch.save(weights, tmp_path / "zip", pickle_protocol=protocol)
    torch.save(weights, tmp_path / "old torch", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "safetensors")
    for path in tmp_path.iterdir():
        assert file_type(read_head(path)) == path.name
