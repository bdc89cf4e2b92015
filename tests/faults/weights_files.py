"""Rows 23 to 26: hostile files, and weights that do not belong to the model."""

import io
import os
import pickle
import time
from pathlib import Path

import numpy as np
import torch

from gn_det.config.files import config_dir

from . import inject
from .frame import case, check, finished, named, row
from .lab import Lab

row(23, "a pickle that runs code", "never run; named")
row(24, "YAML that runs code or grows without end", "never run; named, with the file")
row(25, "weights of another model", "refused, with the tensors that do not fit")
row(26, "weights for other pixel values, anchors or norms", "refused, with the key")

ONE_STEP = ("SOLVER.MAX_ITER", 1)


# --- 23 ---------------------------------------------------------------------------------------------------------


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(marker: Path) -> Call:
    return Call(os.system, f"touch {marker}")


def write_pkl(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps({"model": {"weight": touch(marker)}}, 2))


def write_pth(file: Path, marker: Path) -> None:
    torch.save({"model": {"weight": touch(marker)}}, file)


def write_old_pth(file: Path, marker: Path) -> None:
    torch.save({"model": {"weight": touch(marker)}}, file, _use_new_zipfile_serialization=False)


def write_object_array(file: Path, marker: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = touch(marker)
    file.write_bytes(pickle.dumps({"model": {"weight": array}}, 2))


def write_eval(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps({"model": {"weight": Call(eval, f"open({str(marker)!r}, 'w')")}}, 2))


def write_gadget(file: Path, marker: Path) -> None:
    stream = io.BytesIO()
    command = f"touch {marker}".encode()
    stream.write(
        b"\x80\x02cnumpy.f2py.diagnose\nrun_command\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    )
    file.write_bytes(stream.getvalue())


KINDS = {
    "os.system in .pkl": (write_pkl, "w.pkl"),
    "os.system in .pth": (write_pth, "w.pth"),
    "os.system in an old .pth": (write_old_pth, "w.pth"),
    "a pickle named .pth": (write_pkl, "w.pth"),
    "an array of objects": (write_object_array, "w.pkl"),
    "eval": (write_eval, "w.pkl"),
    "a function of numpy that runs commands": (write_gadget, "w.pkl"),
}


def hostile(lab: Lab, kind: str, command: str) -> str:
    marker = lab.folder / "marker"
    write, name = KINDS[kind]
    file = lab.folder / name
    write(file, marker)
    if command == "train":
        done = lab.train(lab.out(), *ONE_STEP, weights=file)
    elif command == "convert":
        done = lab.tool("convert_checkpoint.py", file, lab.folder / "out.safetensors", "--to", "safetensors")
    elif command == "predict":
        out = lab.copy(lab.shared.reference(lab.stock))
        (out / "model_final.pth").write_bytes(file.read_bytes())
        done = lab.predict(out)
    else:
        out = lab.copy(lab.shared.reference(lab.stock))
        (out / "model_final.pth").write_bytes(file.read_bytes())
        done = lab.train(out, resume=True)
    check(not marker.exists(), "the code was run")
    return named(done, file, "model_final.pth")


for _kind in KINDS:
    case(23, f"{_kind}, --weights", _kind, "train", fast=_kind.endswith(".pkl"))(hostile)
case(23, "os.system in .pth, --resume", "os.system in .pth", "resume")(hostile)
case(23, "os.system in .pth, predict", "os.system in .pth", "predict")(hostile)
case(23, "os.system in .pkl, convert", "os.system in .pkl", "convert", stock=False)(hostile)


# --- 24 ---------------------------------------------------------------------------------------------------------


def bomb() -> str:
    """YAML of 600 bytes that stands for 10 ** 9 values of a known key."""
    lines = ["DATASETS:", "  PROPOSAL_FILES_TRAIN:", f"  - &a0 [{', '.join(['x'] * 10)}]"]
    lines += [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines) + "\n"


def tag(marker: Path) -> str:
    return f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n"


@case(24, "a tag in a config", "config", "tag", fast=True)
@case(24, "a tag in its _BASE_", "base", "tag")
@case(24, "a tag in a run folder's config.yaml, predict", "run", "tag", stock=False)
@case(24, "a tag in the config in a checkpoint, predict", "checkpoint", "tag", stock=False)
@case(24, "aliases of aliases in a config", "config", "bomb")
@case(24, "aliases of aliases in a run folder's config.yaml, predict", "run", "bomb", stock=False)
@case(24, "aliases of aliases in the config in a checkpoint, predict", "checkpoint", "bomb", stock=False)
@case(24, "brackets 10,000 deep in a config", "config", "deep")
def hostile_yaml(lab: Lab, place: str, kind: str) -> str:
    marker = lab.folder / "marker"
    text = {"tag": tag(marker), "bomb": bomb(), "deep": f"OUTPUT_DIR: {'[' * 10_000}\n"}[kind]
    memory = [(inject.limit_memory, 2**31)]
    begin = time.monotonic()
    done, file = _load_yaml(lab, place, text, memory)
    check(not marker.exists(), "the code was run")
    check(time.monotonic() - begin < 20, f"took {time.monotonic() - begin:.0f} s")
    check("cycle" not in done.stderr, "named with a wrong cause: " + done.stderr.strip().splitlines()[-1])
    return finished(done) if kind == "bomb" and done.returncode == 0 else named(done, file)


def _load_yaml(lab: Lab, place: str, text: str, faults: list[tuple]):
    """Let a command read YAML; return what it did and the name of the file."""
    image = next((lab.shared.data / "val").iterdir())
    words = (image, "--json", lab.folder / "out.json", "--model")
    if place == "run":
        out = lab.copy(lab.shared.reference(lab.stock))
        (out / "config.yaml").write_text(text)
        return lab.tool("predict.py", *words, out, faults=faults), out / "config.yaml"
    if place == "checkpoint":
        checkpoint = torch.load(lab.shared.reference(lab.stock) / "model_final.pth", weights_only=True)
        checkpoint["config"] = {"yaml": text}
        torch.save(checkpoint, lab.folder / "other.pth")
        return lab.tool("predict.py", *words, lab.folder / "other.pth", faults=faults), "other.pth"
    config = lab.folder / "own.yaml"
    whole = f"_BASE_: {config_dir() / 'quickstart_R18_FPN_gn_scratch.yaml'}\n{text}"
    if place == "base":
        whole = "_BASE_: base.yaml\n"
    config.write_text(text if lab.stock and place == "config" else whole)
    (lab.folder / "base.yaml").write_text(text)
    name = config.name if place == "config" else "base.yaml"
    return lab.train(lab.out(), *ONE_STEP, flags=("--config-file", config), faults=faults, timeout=40), name


# --- 25 and 26 --------------------------------------------------------------------------------------------------


def other_names(state: dict) -> dict:
    return {f"other.{name}": value for name, value in state.items()}


def a_third(state: dict) -> dict:
    return dict(list(state.items())[: len(state) // 3])


def one_missing(state: dict) -> dict:
    return {name: value for name, value in state.items() if name != "backbone.fpn_output3.weight"}


def other_classes(state: dict) -> dict:
    return {n: v.new_zeros(81, *v.shape[1:]) if "cls_score" in n else v for n, v in state.items()}


def without_norms(state: dict) -> dict:
    return {name: value for name, value in state.items() if ".norm." not in name}


def as_list(state: dict) -> list:
    return list(state.values())


@case(25, "no tensor of the model", other_names, fast=True)
@case(25, "a third of the tensors", a_third)
@case(25, "one tensor missing", one_missing)
@case(25, "another number of classes", other_classes)
@case(25, "without its norms", without_norms)
@case(25, "a list of tensors", as_list)
def other_model(lab: Lab, change) -> str:
    state = torch.load(lab.shared.weights_file(".pth"), weights_only=True)["model"]
    file = lab.folder / "other.pth"
    torch.save({"model": change(state)}, file)
    return named(lab.train(lab.out(), *ONE_STEP, weights=file), file, "tensor names")


@case(26, "PIXEL_STD", "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]")
@case(26, "INPUT.FORMAT", "INPUT.FORMAT", "RGB")
@case(26, "sizes of anchors", "MODEL.ANCHOR_GENERATOR.SIZES", "[[24], [48], [96], [192], [384]]")
@case(26, "weights of box regression", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(5.0, 5.0, 2.5, 2.5)")
@case(26, "type of pooling", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign")
@case(26, "norm", "MODEL.FPN.NORM", "BN")
def other_recipe(lab: Lab, key: str, value: str) -> str:
    weights = lab.shared.reference(lab.stock) / "model_final.pth"
    done = lab.train(lab.out(), *ONE_STEP, key, value, weights=weights)
    return named(done, key.split(".")[-1], "norm", "BN")
