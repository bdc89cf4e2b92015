"""Reading weights files: all supported formats are read, and no code in them is run."""

import collections
import copyreg
import json
import os
import pickle
import stat
import struct
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gn_det import GNDetError
from gn_det.checkpoint import read_file, read_notes, write_safetensors
from gn_det.checkpoint.pickles import load_pickle
from gn_det.config.files import parse_config
from gn_det.prediction.trained import find_trained

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0])}
ARRAYS = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}


def dump(path, obj, protocol=2):
    path.write_bytes(pickle.dumps(obj, protocol=protocol))
    return path


def assert_weights(parts, weights=WEIGHTS):
    assert parts["model"].keys() == weights.keys()
    for name, tensor in parts["model"].items():
        assert type(tensor) is torch.Tensor and tensor.device.type == "cpu" and not tensor.requires_grad
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name])


def assert_refused(path, reason=""):
    """Reading fails with a sentence that names the file and the reason; return the sentence."""
    with pytest.raises(GNDetError, match=reason) as error:
        read_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ---- pickles


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_are_read(tmp_path, protocol):
    arrays = collections.OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3),
        large=np.asfortranarray(np.arange(600, dtype=np.float64).reshape(20, 30)),
        turned=np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        big_endian=np.arange(4, dtype=">f4"),
        half=np.arange(3, dtype=np.float16),
        long_empty=np.zeros((0, 2**40), np.float32),
        long=np.array(7),
        truth=np.array([True, False]),
        empty=np.zeros((0, 3), np.float32),
    )
    parts = read_file(dump(tmp_path / "a.pkl", {"blobs": arrays, "cfg": "text"}, protocol))
    expected = {name: torch.from_numpy(np.array(a, a.dtype.newbyteorder("="))) for name, a in arrays.items()}
    assert_weights(parts, expected)
    assert parts["cfg"] == "text" and parts.keys() == {"model", "cfg"}
    for tensor in parts["model"].values():
        tensor.zero_()  # the tensor is writable


def test_a_pickle_of_python_2_is_read(tmp_path):
    """Detectron's files are such pickles, with old module names of numpy and bytes as text."""
    data = struct.pack("<2f", 1.5, -2)
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + data + b"tb"
    scalar = b"cnumpy.core.multiarray\nscalar\n" + dtype + b"U\x04" + data[:4] + b"\x86R"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}(U\x07conv1_w" + array + b"U\x02lr" + scalar + b"u.")
    parts = read_file(tmp_path / "a.pkl")
    assert_weights(parts, {"conv1_w": torch.tensor([1.5, -2])})
    assert parts["skipped"] == {"lr": "float32"}


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        ({"blobs": ARRAYS, "cfg": "A: 1"}, {"cfg": "A: 1"}),
        (ARRAYS, {}),
        (
            {"model": ARRAYS, "__author__": "x", "matching_heuristics": True},
            {"__author__": "x", "matching_heuristics": True},
        ),
        ({"model": ARRAYS, "nested": [1, [2]], "more": ARRAYS, "none": None}, {"none": None}),  # text and numbers only
    ],
)
def test_weights_are_found_in_a_pickle(tmp_path, data, rest):
    parts = read_file(dump(tmp_path / "a.pkl", data))
    assert_weights(parts)
    assert parts == {"model": parts["model"], **rest}


def test_entries_that_are_no_tensors_are_skipped_and_reported(tmp_path):
    others = {"lr": np.float32(0.1), "step": 3, "note": "text", "names": np.array(["a", "b"]), "none": None}
    skipped = {"lr": "float32", "step": "int", "note": "str", "names": "Array", "none": "NoneType"}
    parts = read_file(dump(tmp_path / "a.pkl", {"blobs": {**ARRAYS, **others}}))
    assert_weights(parts)
    assert parts["skipped"] == skipped
    torch.save({"model": {**WEIGHTS, **others}}, tmp_path / "a.pth")
    assert read_file(tmp_path / "a.pth")["skipped"] == skipped


def test_the_state_of_a_dtype_is_ignored_except_the_byte_order(tmp_path):
    """The item size and flags in numpy's state could turn numbers into pointers."""
    data = pickle.dumps({"a": np.ones(2)}, protocol=2)
    state = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert state in data
    (tmp_path / "a.pkl").write_bytes(data.replace(state, b"NNNJ\x40\0\0\0J\x01\0\0\0K\x3ft"))
    assert_weights(read_file(tmp_path / "a.pkl"), {"a": torch.ones(2, dtype=torch.float64)})


# ---- hostile files


class Runs:
    """Unpickling creates a folder, as an example of code in a hostile pickle."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def array(
    dtype=b"U\x02f4",
    shape=b"K\x02\x85",
    data=b"U\x08" + 8 * b"\0",
    state=b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
):
    """Return a pickle of {"a": array}, built from the pickled bytes of the parts."""
    dtype = b"cnumpy\ndtype\n" + dtype + b"K\x00K\x01\x87R" + state
    start = b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + dtype + b"\x89" + data + b"tbs."


HOSTILE = {  # name: (pickle, reason in the error); MARKER stands for the path of the folder
    **{f"a call, protocol {p}": (lambda marker, p=p: pickle.dumps(Runs(marker), p), r"posix\.mkdir") for p in range(6)},
    "a name with codes for a terminal": (b"\x80\x04\x8c\x05a\n\x1b[2\x8c\x01b\x93.", r"it asks for a  \[2\.b, which"),
    "a call among weights": (lambda m: pickle.dumps({"model": {**ARRAYS, "x": Runs(m)}}), r"posix\.mkdir"),
    "a shell": (b"cos\nsystem\n(S'mkdir MARKER'\ntR.", r"os\.system"),
    "an instance": (b"(S'MARKER'\niposix\nmkdir\n.", r"posix\.mkdir"),
    "an object": (b"(cposix\nmkdir\nS'MARKER'\no.", r"posix\.mkdir"),
    "a new object": (b"\x80\x02csubprocess\nPopen\n]S'mkdir'\naS'MARKER'\na\x85\x81.", r"subprocess\.Popen"),
    "evaluation": (b"c__builtin__\neval\n(S'__import__(\"os\").mkdir(\"MARKER\")'\ntR.", r"__builtin__\.eval"),
    "numpy's evaluation": (
        b"cnumpy.testing._private.utils\nrunstring\n(S'__import__(\"os\").mkdir(\"MARKER\")'\n}tR.",
        "numpy.testing._private.utils.runstring",
    ),
    "a name of an allowed module": (b"cnumpy\nsize\n.", r"numpy\.size"),
    "a name through an allowed module": (b"\x80\x04\x8c\x05numpy\x8c\x06os.sys\x93.", r"numpy\.os\.sys"),
    "numpy's own memory": (b"\x80\x02cnumpy\nmemmap\n.", r"numpy\.memmap"),
    "an object array": (lambda m: pickle.dumps({"a": np.array([Runs(m)], dtype=object)}), "type 'O8' instead of numbers"),
    "an object array of allowed objects": (lambda m: pickle.dumps({"a": np.array([None])}), "type 'O8'"),
    "a structured dtype": (lambda m: pickle.dumps({"a": np.zeros(2, "f4,O")}), "type 'V12'"),
    "a dtype that is no text": (array(dtype=b"K\x07"), "type 7"),
    "an unknown byte order": (array(state=b"(K\x03U\x01ONNNtb"), "byte order 'O'"),
    "a shape beyond the bytes": (array(shape=b"J\xff\xff\xff\x7f\x85"), "whose shape"),
    "a negative shape": (array(shape=b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"), "whose shape"),
    "a shape of floats": (array(shape=b"G\x40\0\0\0\0\0\0\0\x85"), "whose shape"),
    "a list instead of bytes": (array(data=b"]"), "damaged|whose shape"),
    "a persistent id": (b"\x80\x02U\x01aQ.", "outside the file"),
    "a function's state": (
        b"\x80\x02cnumpy.core.numeric\n_frombuffer\n}U\x0c__defaults__K\x01\x85sb.",
        "sets the state of a function",
    ),
    "a class's state": (b"\x80\x02ccollections\nOrderedDict\n}b.", "sets the state of a type"),
    "a codec": (b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.", "encoding 'rot13'"),
    "bytes by their number": (b"\x80\x02c__builtin__\nbytes\nK\x05\x85R.", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, what, suffix):
    content, reason = HOSTILE[what]
    content = content(tmp_path / "marker") if callable(content) else content
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(content.replace(b"MARKER", str(tmp_path / "marker").encode()))
    assert_refused(path, f"was not read, because it is not a plain pickle of weights: .*({reason})")
    assert not (tmp_path / "marker").exists()


def test_the_unchanged_array_of_the_hostile_pickles_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(array())
    assert_weights(read_file(tmp_path / "a.pkl"), {"a": torch.zeros(2)})


def test_hostile_pickles_run_with_plain_pickle(tmp_path):
    """Otherwise the test of their refusal would prove nothing."""
    for what in ("a call, protocol 4", "a shell", "an instance", "an object", "evaluation", "numpy's evaluation"):
        content, marker = HOSTILE[what][0], tmp_path / what.replace(" ", "_").replace("'", "")
        content = content(marker) if callable(content) else content.replace(b"MARKER", str(marker).encode())
        pickle.loads(content)
        assert marker.exists()


@pytest.mark.parametrize("code", [0xF0, 0x1F0, 0x1FFFF])
def test_extension_codes_are_refused(tmp_path, code):
    """Each size of the code has its own opcode.

    If the code is in pickle's cache, find_class is not called.
    """
    copyreg.add_extension("posix", "mkdir", code)
    try:
        opcode = {1: b"\x82", 2: b"\x83", 3: b"\x84"}[(code.bit_length() + 7) // 8]
        code_bytes = code.to_bytes({b"\x82": 1, b"\x83": 2, b"\x84": 4}[opcode], "little")
        pickle.loads(b"\x80\x02" + opcode + code_bytes + b".")  # fills pickle's cache
        path = tmp_path / "ext.pkl"
        path.write_bytes(b"\x80\x02" + opcode + code_bytes + f"(S'{tmp_path / 'marker'}'\ntR.".encode())
        assert_refused(path, "extension registry")
        assert not (tmp_path / "marker").exists()
    finally:
        copyreg.remove_extension("posix", "mkdir", code)


@pytest.mark.parametrize("opcode", [b"\x96", b"\x8e", b"\x8d", b"\x95"])  # bytearray, bytes, text, frame
def test_memory_is_not_allocated_for_the_size_that_a_file_claims(tmp_path, opcode):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x05" + opcode + struct.pack("<Q", 2**28) + b"x.")
    tracemalloc.start()
    try:
        assert_refused(path, "claims to contain 268435456 bytes, but the file has 1[23]")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pyth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("where", ["the whole file", "a weight", "beside the weights", "an object array"])
def test_a_hostile_pytorch_file_is_refused_and_does_not_run(tmp_path, where, suffix, old):
    evil = Runs(tmp_path / "marker")
    data = {
        "the whole file": evil,
        "a weight": {"model": {**WEIGHTS, "x": evil}},
        "beside the weights": {"model": WEIGHTS, "x": evil},
        "an object array": {"model": {**WEIGHTS, "x": np.array([evil], dtype=object)}},
    }[where]
    path = tmp_path / f"evil{suffix}"
    torch.save(data, path, _use_new_zipfile_serialization=not old)
    name = r"it asks for posix\.mkdir, which weights do not need"
    reason = "it has an array of type 'O8' instead of numbers" if "array" in where else name
    sentence = assert_refused(path, f"could not be read: {reason}")
    assert "weights_only" not in sentence  # PyTorch's own message explains how to run the code
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("text", ["MODEL: !!python/object/apply:os.mkdir [{marker}]", "_BASE_: {secret}"])
def test_a_hostile_config_in_the_metadata_is_only_text(tmp_path, text):
    (tmp_path / "secret.yaml").write_text("MODEL: {MASK_ON: False}")
    path, text = tmp_path / "a.safetensors", text.format(marker=tmp_path / "marker", secret=tmp_path / "secret.yaml")
    write_safetensors(path, WEIGHTS, {"config": text})
    assert read_notes(str(path)) == {"config": text}
    for read in (lambda: parse_config(text, "here"), lambda: find_trained(path)):
        with pytest.raises(GNDetError, match="is not a plain YAML config|can only be used in files"):
            read()
    assert not (tmp_path / "marker").exists()


# ---- PyTorch's files


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pkl", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "rest"),
    [
        ({"model": WEIGHTS, "iteration": 5, "optimizer": {"state": [1, {"a": 2}]}}, {"iteration", "optimizer"}),
        ({"state_dict": WEIGHTS, "meta": {"epoch": 1}, "state_dict_ema": WEIGHTS}, {"meta", "state_dict_ema"}),
        ({"model_state": WEIGHTS, "epoch": 3}, {"epoch"}),
        ({"model": "resnet50", "state_dict": collections.OrderedDict(WEIGHTS)}, set()),
        (WEIGHTS, set()),
    ],
)
def test_weights_are_found_with_any_suffix(tmp_path, data, rest, suffix, old):
    path = tmp_path / f"a{suffix}"
    torch.save(data, path, _use_new_zipfile_serialization=not old)
    parts = read_file(path)
    assert_weights(parts)
    assert parts.keys() == {"model", *rest}
    assert all(parts[name] == data[name] for name in rest - {"state_dict_ema"})


def test_parameters_and_views_are_read(tmp_path):
    rows = torch.arange(12.0).view(3, 4)
    views = {
        "parameter": torch.nn.Parameter(rows),
        "turned": rows.t(),
        "part": rows[1:],
        "wide": torch.ones(1).expand(4, 5),
    }
    torch.save(views, tmp_path / "a.pth")
    assert_weights(read_file(tmp_path / "a.pth"), {name: view.detach() for name, view in views.items()})


def test_numpy_arrays_in_a_pytorch_file_are_read(tmp_path):
    """detectron2's issue 5456 is about such files."""
    best = {"best": np.float64(0.5), "history": np.arange(3), "none": np.zeros(0)}
    torch.save({"model": {**WEIGHTS, "b": np.ones((2, 2), np.float32)}, "trainer": best}, tmp_path / "a.pth")
    parts = read_file(tmp_path / "a.pth")
    assert_weights(parts, {**WEIGHTS, "b": torch.ones(2, 2)})
    assert parts["trainer"]["best"] == 0.5 and parts["trainer"]["history"].tolist() == [0, 1, 2]
    for protocol in range(6):  # it can be saved again as a plain numpy array
        saved = pickle.dumps(parts["trainer"]["history"], protocol)
        assert b"gn_det" not in saved and type(pickle.loads(saved)) is np.ndarray


def test_mmengine_logs_are_discarded_and_mmengine_is_not_imported(tmp_path, monkeypatch):
    """Training checkpoints of mmengine contain objects of its own classes (its issue 1655)."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history, self._max_length = np.zeros(0), np.arange(2), 10

    name = "mmengine.logging.history_buffer"
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    for module in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    sys.modules[name].HistoryBuffer = HistoryBuffer
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": 3}}
    torch.save({"state_dict": WEIGHTS, "meta": {"epoch": 1}, "message_hub": hub}, tmp_path / "a.pth")
    monkeypatch.undo()
    parts = read_file(tmp_path / "a.pth")
    assert_weights(parts)
    assert parts["message_hub"]["runtime_info"] == {"iter": 3}
    assert not vars(parts["message_hub"]["log_scalars"]["train/loss"])
    assert not [module for module in sys.modules if module.startswith("mmengine")]


def test_safe_globals_are_reset_after_reading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"a": np.ones(2)}, tmp_path / "a.pth")
    read_file(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_compressed_zip_is_refused(tmp_path):
    """Compressed, 1 MB of zeros takes 1 kB, and 1 TB would take 1 GB."""
    torch.save({"a": torch.zeros(250_000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert_refused(tmp_path / "bomb.pth", "it is compressed, but PyTorch writes zip files without compression")


def test_a_zip_with_entries_larger_than_itself_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w") as file:
        file.writestr("archive/data.pkl", b"x" * 100)
        file.filelist[0].file_size = 2**40
    assert_refused(tmp_path / "bomb.pth", "its entries claim to be larger than the file")


def test_an_expanded_tensor_of_an_absurd_shape_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", r"a has the shape \[1048576, 1048576], but the file has fewer values")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, device="meta"), torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex64)],
    ids=["meta", "sparse", "complex"],
)
def test_a_tensor_that_is_not_dense_and_real_is_refused(tmp_path, tensor):
    torch.save({"a.weight": tensor}, tmp_path / "a.pth")
    reason = "a.weight is a sparse, quantized, meta or complex tensor, but weights must be dense and real"
    assert_refused(tmp_path / "a.pth", reason)


# ---- safetensors


NOTES = {"config": "MODEL:\n  MASK_ON: true\n", "names": ["é", "b"], "ids": [3, 7]}


def test_safetensors_keep_weights_and_notes(tmp_path):
    recipe = {"pixel_mean": [103.53, 116.28, 123.675], "format": "BGR"}
    write_safetensors(tmp_path / "a.safetensors", WEIGHTS, {**NOTES, "recipe": recipe, "origin": "Detectron"})
    parts = read_file(tmp_path / "a.safetensors")
    assert_weights(parts)
    assert parts["config"] == {"yaml": NOTES["config"]}  # as in a .pth checkpoint of gn_det
    assert parts["classes"] == {"names": NOTES["names"], "ids": NOTES["ids"]}
    assert parts["recipe"] == recipe and parts["origin"] == "Detectron"
    assert read_notes(str(tmp_path / "a.safetensors")) == NOTES
    with safe_open(tmp_path / "a.safetensors", "pt") as file:  # other libraries see text
        assert file.metadata()["format"] == "pt" and json.loads(file.metadata()["gn_det"])["ids"] == [3, 7]


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ""])
def test_safetensors_are_recognized_with_any_suffix(tmp_path, suffix):
    save_file(WEIGHTS, tmp_path / f"a{suffix}", {"by": "someone else"})
    parts = read_file(tmp_path / f"a{suffix}")
    assert_weights(parts)
    assert parts == {"model": parts["model"], "metadata": {"by": "someone else"}}
    assert read_notes(str(tmp_path / f"a{suffix}")) == {}


@pytest.mark.parametrize("notes", ["{", "[1]", "[" * 100_000])
def test_damaged_notes_are_refused(tmp_path, notes):
    save_file(WEIGHTS, tmp_path / "a.safetensors", {"gn_det": notes})
    assert_refused(tmp_path / "a.safetensors", "could not be read")


def test_notes_of_wrong_types_are_ignored(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors", {"gn_det": json.dumps({"config": 3, "names": [1], "ids": "x"})})
    assert read_notes(str(tmp_path / "a.safetensors")) == {}


def test_shared_and_strided_tensors_are_written_with_their_values(tmp_path):
    rows = torch.arange(12.0).view(3, 4)
    views = {"all": rows, "again": rows, "turned": rows.t(), "part": rows[1:], "wide": torch.ones(1).expand(4, 5)}
    views |= {"number": torch.tensor(3), "none": torch.zeros(0, 2), "parameter": torch.nn.Parameter(rows)}
    write_safetensors(tmp_path / "a.safetensors", views, {})
    assert_weights(read_file(tmp_path / "a.safetensors"), {name: view.detach() for name, view in views.items()})
    assert rows.tolist() == torch.arange(12.0).view(3, 4).tolist()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, WEIGHTS, NOTES)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(GNDetError, match=f"{path} cannot be written: .*No space left"):
        write_safetensors(path, {"b": torch.ones(5)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_writing_to_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(GNDetError, match="cannot be written"):
        write_safetensors(tmp_path / "no" / "a.safetensors", WEIGHTS, {})


def test_writing_notes_that_json_cannot_store_is_refused(tmp_path):
    with pytest.raises(GNDetError, match="its notes must be text and numbers"):
        write_safetensors(tmp_path / "a.safetensors", WEIGHTS, {"recipe": {"x": torch.ones(1)}})
    assert not os.listdir(tmp_path)


def test_a_written_file_has_the_default_permissions(tmp_path):
    (tmp_path / "any").touch()
    write_safetensors(tmp_path / "a.safetensors", WEIGHTS, {})
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


def safetensors_bytes(entries, data=b"\0" * 8, length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes({"a": TENSOR}, length=2**31),
        safetensors_bytes({"a": TENSOR}, data=b""),
        safetensors_bytes({"a": TENSOR}, data=bytes(100)),
        safetensors_bytes({"a": {**TENSOR, "shape": [2**40]}}),
        safetensors_bytes({"a": {**TENSOR, "shape": [-2]}}),
        safetensors_bytes({"a": {**TENSOR, "data_offsets": [8, 0]}}),
        safetensors_bytes({"a": {**TENSOR, "data_offsets": [0, 2**50]}}),
        safetensors_bytes({"a": TENSOR, "b": TENSOR}),
        safetensors_bytes({"a": {**TENSOR, "dtype": "object"}}),
        safetensors_bytes({"a": TENSOR, "__metadata__": {"gn_det": [1]}}),
        safetensors_bytes({"a": TENSOR})[:20],
        struct.pack("<Q", 50) + b"{" * 50,
    ],
)
def test_a_wrong_safetensors_header_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert_refused(tmp_path / "a.safetensors", "could not be read")


# ---- files without weights


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1",
        b"PK\x03\x04cut",
        b"\x80\x02.",
        b"text\nmore text",
        pickle.dumps([1, 2]),
        pickle.dumps({}),
        pickle.dumps({"a": "text"}),
        pickle.dumps({"model_ema": ARRAYS, "epoch": 3}),  # averaged weights alone are not used
        pickle.dumps({1: np.ones(2)}),
        pickle.dumps({"a\n\x1b[2J": np.ones(2)}),
        pickle.dumps({"model": {("a", 1): np.ones(2)}}),
        pickle.dumps(ARRAYS)[:-20],
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert_refused(path, "could not be read|was not read|holds a list instead of a dict")


def test_the_error_tells_what_the_file_contains(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"<!DOCTYPE html>")
    assert_refused(tmp_path / "x.pth", r"it is a web page, not weights: it begins with b'<!DOCTYPE html>'")
    (tmp_path / "x.pth").write_bytes(b"Not found")
    assert_refused(tmp_path / "x.pth", r"it is a file of unknown type, not weights: it begins with b'Not found'")
    (tmp_path / "x.pth").write_bytes(b"")
    assert_refused(tmp_path / "x.pth", r"could not be read: it is empty")
    torch.save({"state_dict_ema": WEIGHTS, "epoch": 3}, tmp_path / "y.pth")
    assert_refused(
        tmp_path / "y.pth", "no tensors at its top level or under the keys model, .*, net, only state_dict_ema, epoch"
    )
    torch.save([1], tmp_path / "z.pth")
    assert_refused(tmp_path / "z.pth", "it is a list instead of a dict of tensors")


@pytest.mark.parametrize("cut", [1, 50, 300])
def test_a_truncated_file_is_refused(tmp_path, cut):
    torch.save({"model": WEIGHTS}, tmp_path / "new.pth")
    torch.save({"model": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    write_safetensors(tmp_path / "a.safetensors", WEIGHTS, {})
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-cut])
        assert_refused(path, "could not be read")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "no.pth", "could not be read: the file does not exist")
    assert_refused(tmp_path, "could not be read: the file does not exist")


def test_options_of_detectron2_after_a_path_are_ignored(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    assert_weights(read_file(f"{tmp_path / 'a.pth'}?matching_heuristics=True"))


def test_load_pickle_returns_numpy_arrays(tmp_path):
    read = load_pickle(str(dump(tmp_path / "a.pkl", {"blobs": ARRAYS, "n": np.float64(3)})))
    assert all(np.array_equal(read["blobs"][name], ARRAYS[name]) for name in ARRAYS) and read["n"] == 3


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_stay_valid_after_their_file_is_overwritten(tmp_path, suffix):
    """A resumed run overwrites the checkpoint that it has read.

    If the file was mapped, a bus error ends the process.
    """
    path = tmp_path / f"model_best{suffix}"
    torch.save({"model": {"a": torch.ones(2**12)}}, tmp_path / "a.pth")
    if suffix == ".pth":
        (tmp_path / "a.pth").rename(path)
    else:
        write_safetensors(path, {"a": torch.ones(2**12)}, {})
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # OpenMP does not survive a fork
        weights = read_file(path)["model"]
        os.truncate(path, 0)
        os._exit(0 if weights["a"].tolist() == [1.0] * 2**12 else 1)
    assert os.waitpid(child, 0)[1] == 0
