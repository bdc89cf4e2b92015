"""Rows 6, 27 and 36: OUTPUT_DIR, paths in annotation files, and the environment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from helpers.paths import TOOLS
from helpers.tools import own_data

from .frame import case, check, finished, named, row
from .lab import OPTIONS, Lab
from .look import TIME_LIMIT, contents, wait_until

row(6, "OUTPUT_DIR that cannot be written, or has a run in it", "named before training; the run there stays as it is")
row(27, "`file_name` that leads out of the folder of images", "refused before an image is read")
row(36, "no OpenCV, read-only cache, other locale, odd paths", "works, or says what is missing")

ONE_STEP = ("SOLVER.MAX_ITER", 1)


# --- 6 ----------------------------------------------------------------------------------------------------------


@case(6, "a file", "file", fast=True)
@case(6, "below a file", "below")
@case(6, "on a file system that takes no files", "proc")
def not_writable(lab: Lab, kind: str) -> str:
    file = lab.folder / "file"
    file.write_text("older")
    out = {"file": file, "below": file / "out", "proc": Path("/proc/gn_det")}[kind]
    sentence = named(lab.train(out), out)
    check(file.read_text() == "older", "the file was changed")
    return sentence


@case(6, "a finished run", "finished")
@case(6, "weights without last_checkpoint", "weights")
@case(6, "a finished run, --eval-only with unreadable weights", "evaluate")
@case(6, "a finished run, --resume with another model", "resume")
def occupied(lab: Lab, kind: str) -> str:
    out = lab.copy(lab.shared.reference(lab.stock))
    if kind == "weights":
        (out / "last_checkpoint").unlink()
    before = contents(out, "log.txt")
    if kind == "evaluate":
        (lab.folder / "other.pth").write_bytes(b"no weights")
        done = lab.train(out, evaluated=True, weights=lab.folder / "other.pth", flags=("--eval-only",))
    elif kind == "resume":
        done = lab.train(out, "MODEL.FPN.OUT_CHANNELS", 32, "SOLVER.MAX_ITER", 8, resume=True)
    else:
        done = lab.train(out, "SOLVER.BASE_LR", 0.5)
    after = contents(out, "log.txt")
    changed = sorted(name for name in before if after.get(name) != before[name])
    check(not changed, f"changed: {changed}")
    return named(done)


@case(6, "--eval-only in the folder of a training", stock=False)
def evaluation_of_its_own(lab: Lab) -> str:
    out = lab.copy(lab.shared.reference(lab.stock, evaluated=True))
    before = contents(out, "log.txt")
    finished(lab.evaluate(out, "TEST.DETECTIONS_PER_IMAGE", 3))
    after = contents(out, "log.txt")
    changed = sorted(name for name in before if after.get(name) != before[name])
    check(not changed, f"the evaluation replaced {changed}")
    return finished(lab.predict(out))


@case(6, "a run that is in it now")
def running(lab: Lab) -> str:
    out = lab.out()
    fork = lab.start(out, "SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 100)
    wait_until(lambda: (out / "config.yaml").exists(), fork)
    second = lab.train(out, "SOLVER.MAX_ITER", 30, "SOLVER.BASE_LR", 0.5, resume=True)
    first = fork.wait(TIME_LIMIT)
    sentence = named(second, out)
    lab.equal(out, first, 30, "SOLVER.CHECKPOINT_PERIOD", 100)
    return sentence


@case(6, "a run that was killed before its first checkpoint")
def killed_early(lab: Lab) -> str:
    out = lab.out()
    lab.kill_at_iteration(out, 1)
    done = lab.train(out)
    if done.returncode == 0:
        return lab.equal(out, done)
    sentence = named(done, out)
    check("--resume" in sentence, "the way on is not said")
    lab.equal(out, lab.train(out, resume=True))
    return sentence


# --- 27 ---------------------------------------------------------------------------------------------------------


@case(27, "../", "../secret.png", fast=True)
@case(27, "an absolute path", "{folder}/secret.png")
@case(27, "a URL", "http://127.0.0.1:9/secret.png")
@case(27, "file://", "file://{folder}/secret.png")
@case(27, "a symbolic link to a file outside", "link.png")
@case(27, "a symbolic link to a folder outside", "linked/secret.png")
def file_name_leads_out(lab: Lab, name: str) -> str:
    data = lab.folder / "data"
    shutil.copytree(lab.shared.data, data)
    shutil.copy(next((data / "train").iterdir()), lab.folder / "secret.png")
    shutil.copy(lab.folder / "secret.png", data / "secret.png")
    (data / "train" / "link.png").symlink_to(lab.folder / "secret.png")
    (data / "train" / "linked").symlink_to(lab.folder)
    name = name.format(folder=lab.folder)
    write_file_name(data / "train.json", name)
    return named(lab.train(lab.out(), *ONE_STEP, data=data), name)


def write_file_name(file: Path, name: str) -> None:
    """Let the first image of an annotation file have another file_name."""
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))


@case(27, "../ in COCO below DETECTRON2_DATASETS", stock=False)
def built_in_leads_out(lab: Lab) -> str:
    root = lab.folder / "datasets/coco"
    (root / "annotations").mkdir(parents=True)
    shutil.copytree(lab.shared.data / "train", root / "train2017")
    file = root / "annotations/instances_train2017.json"
    content = json.loads((lab.shared.data / "train.json").read_text())
    content["categories"] = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    file.write_text(json.dumps(content))
    shutil.copy(next((root / "train2017").iterdir()), root / "secret.png")
    write_file_name(file, "../secret.png")
    words = ["--config", "quickstart_R18_FPN_gn_scratch", "DATASETS.TRAIN", "('coco_2017_train',)"]
    words += ["DATASETS.TEST", "()", "MODEL.ROI_HEADS.NUM_CLASSES", 80, "OUTPUT_DIR", lab.out(), *ONE_STEP]
    environment = {"DETECTRON2_DATASETS": str(lab.folder / "datasets")}
    command = [sys.executable, TOOLS / "train_net.py", *words, *OPTIONS[:4]]
    return named(fresh(lab, command, environment), "../secret.png")


def fresh(lab: Lab, command: list, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a command in a new process, for what a fork cannot change any more."""
    everything = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **(environment or {})}
    words = list(map(str, command))
    return subprocess.run(words, capture_output=True, text=True, errors="replace", env=everything, timeout=TIME_LIMIT)


# --- 36 ---------------------------------------------------------------------------------------------------------


@case(36, "spaces, quotes and other letters in paths")
def odd_paths(lab: Lab) -> str:
    data = Path(shutil.copytree(lab.shared.data, lab.folder / "my data's $HOME [1] füü 图"))
    out = lab.folder / "out 'put' [é]"
    lab.equal(out, lab.train(out, data=data))
    return finished(lab.predict(out))


@case(36, "a cache and a home that cannot be written")
def read_only_cache(lab: Lab) -> str:
    out = lab.out()
    places = {
        "FVCORE_CACHE": "/proc/cache",
        "HOME": "/proc/home",
        "XDG_CACHE_HOME": "/proc/home",
        "MPLCONFIGDIR": "/proc/x",
    }
    return lab.equal(out, lab.train(out, environment=places))


@case(36, "LC_ALL=C, with other letters in paths", stock=False)
def no_utf8(lab: Lab) -> str:
    data, out = Path(shutil.copytree(lab.shared.data, lab.folder / "füü")), lab.folder / "öut"
    environment = {"LC_ALL": "C", "LANG": "C"}
    words = ["--config", "quickstart_R18_FPN_gn_scratch", *own_data(data)[:4], *OPTIONS, "OUTPUT_DIR", out]
    done = fresh(lab, [sys.executable, TOOLS / "train_net.py", *words], environment)
    return named(done) if done.returncode == 2 else lab.equal(out, done)


@case(36, "no OpenCV", stock=False)
def no_opencv(lab: Lab) -> str:
    out = lab.out()
    words = ["--config", "quickstart_R18_FPN_gn_scratch", *own_data(lab.shared.data), *OPTIONS, "OUTPUT_DIR", out]
    program = "import runpy, sys; sys.modules['cv2'] = None; sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = fresh(lab, [sys.executable, "-c", program, TOOLS / "train_net.py", *words])
    finished(done)
    check("pip install opencv-python-headless" in done.stdout + done.stderr, "not said what is missing")
    return lab.equal(out, done)
