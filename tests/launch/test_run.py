"""Runs from the command line: your own data, wrong arguments, resuming, evaluating."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from gn_det import GNDetError
from gn_det.data import shapes
from gn_det.evaluation.run_folder import read_datasets, read_metrics
from gn_det.files import digest
from gn_det.launch.arguments import argument_parser
from gn_det.launch.owner import owned
from gn_det.launch.prepare import prepare
from gn_det.launch.processes import launch
from helpers.forks import fork_tool
from helpers.tools import own_data, run_tool

SHORT = """SOLVER.MAX_ITER 4 SOLVER.STEPS () SOLVER.CHECKPOINT_PERIOD 2 SOLVER.IMS_PER_BATCH 2 SEED 5
    DATALOADER.NUM_WORKERS 0 MODEL.RPN.POST_NMS_TOPK_TEST 10""".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six training and three validation images of shapes."""
    root = tmp_path_factory.mktemp("own data")
    shapes.generate(root / "shapes", num_train=6, num_val=3, seed=1, size=96)
    return root / "shapes"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, str]:
    """OUTPUT_DIR of a short run on the data, and what the run printed."""
    output = tmp_path_factory.mktemp("run") / "out"
    done = run_tool("--config", "quickstart_R18_FPN_gn_scratch", *own_data(data), *SHORT, "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output, done.stdout


def test_training_on_own_data_writes_all_results(trained):
    output, printed = trained
    (record,) = (json.loads(path.read_text()) for path in (output / "records").iterdir())
    assert record["dataset"] == "own_shapes_val" and record["iteration"] == 4 and record["seed"] == 5
    assert {"AP-circle", "AP-triangle", "AP", "AR100"} <= record["box"].keys()
    assert record["changed"]["SOLVER.MAX_ITER"] == 4 and "SEED" not in record["changed"]
    for name in ("model_final.pth", "report.html", "config.yaml", "metrics.json", "log.txt", "records"):
        assert (output / name).exists() and str(output / name) in printed
    assert len(list((output / "pictures" / "own_shapes_val").glob("*.png"))) == 3
    assert "3 images" in (output / "report.html").read_text() and "No report" not in printed
    assert read_datasets(output).keys() == {"own_shapes_train", "own_shapes_val"}
    assert printed.count("No GPU found") == 1


def test_checkpoint_contains_class_names(trained):
    checkpoint = torch.load(trained[0] / "model_final.pth", weights_only=True)
    assert checkpoint["classes"]["names"] == list(shapes.CLASSES)


def test_evaluation_of_a_checkpoint_gives_the_same_ap(trained, data, tmp_path):
    output, _ = trained
    arguments = ["--config", output / "config.yaml", *own_data(data)[4:], "--eval-only", "OUTPUT_DIR", tmp_path]
    done = fork_tool(*arguments, "MODEL.WEIGHTS", output / "model_final.pth")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (first,), (second,) = ([json.loads(p.read_text()) for p in (o / "records").iterdir()] for o in (output, tmp_path))
    assert first["box"] == second["box"] and first["mask"] == second["mask"]
    assert first["iteration"] == second["iteration"] == 4 and first["data"] == second["data"]
    assert first["train_data"] == second["train_data"] and first["weights_sha256"] is None
    assert second["weights_sha256"] == digest(output / "model_final.pth")
    assert second["config"] == "quickstart_R18_FPN_gn_scratch"


def test_evaluation_on_other_classes_is_refused(trained, data, tmp_path):
    other = json.loads((data / "val.json").read_text())
    other["categories"][0]["name"] = "disc"
    (tmp_path / "other.json").write_text(json.dumps(other))
    arguments = ["--val-json", tmp_path / "other.json", "--val-images", data / "val", "--eval-only"]
    weights = ["MODEL.WEIGHTS", trained[0] / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    done = fork_tool("--config", "quickstart_R18_FPN_gn_scratch", *arguments, *weights)
    assert done.returncode == 2 and "was trained for the classes ['circle'" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_is_continued_with_resume_and_never_overwritten(trained, data, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained[0], output)
    arguments = ["--config", "quickstart_R18_FPN_gn_scratch", *own_data(data), *SHORT, "OUTPUT_DIR", output]
    before = (output / "model_final.pth").read_bytes()
    done = fork_tool(*arguments)
    assert done.returncode == 2 and "already contains a run: continue it with --resume" in done.stderr
    assert (output / "model_final.pth").read_bytes() == before
    done = fork_tool("--resume", *arguments, "SOLVER.MAX_ITER", 6)
    assert done.returncode == 0 and "Starting training from iteration 4" in done.stdout
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 5
    assert (output / "records" / "quickstart_R18_FPN_gn_scratch-own_shapes_val-0000006.json").is_file()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder, without logs, locks and evaluations."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    files = [path.relative_to(folder) for path in files if path.name not in ("log.txt", ".gn_det.lock")]
    return {str(path): (folder / path).read_bytes() for path in files if path.parts[0] != "evaluations"}


def test_evaluation_of_a_training_has_a_folder_of_its_own(trained, data, tmp_path):
    """The datasets are known from the run's config. Each evaluation leaves the files of the training as they are."""
    output = tmp_path / "out"
    shutil.copytree(trained[0], output)
    before = files_of(output)
    arguments = ["--config", output / "config.yaml", "--eval-only", "OUTPUT_DIR", output]
    done = fork_tool(*arguments, "MODEL.WEIGHTS", output / "model_0000001.pth")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert fork_tool("--resume", *arguments).returncode == 0
    few = json.loads((data / "val.json").read_text())
    few["images"].pop()
    few["annotations"] = [a for a in few["annotations"] if a["image_id"] in {row["id"] for row in few["images"]}]
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "val.json").write_text(json.dumps(few))
    other = ["--val-json", tmp_path / "shapes" / "val.json", "--val-images", data / "val"]
    assert fork_tool(*other, "--resume", *arguments).returncode == 0

    assert files_of(output) == before
    folders = sorted(path for path in (output / "evaluations").iterdir() if path.is_dir())
    assert [path.name[:-17] for path in folders] == [
        "model_0000001-own_shapes_val-",
        "model_final-own_shapes_val-",
        "model_final-own_shapes_val-",
    ]
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "data", "inference", "pictures", "records", "report.html"} <= names
        assert (folder / "data" / "own_shapes_val.json").is_file()
    records = [json.loads(next((folder / "records").iterdir()).read_text()) for folder in folders]
    assert [record["iteration"] for record in records] == [2, 4, 4]
    assert sorted(record["data"]["images"] for record in records) == [2, 3, 3]
    assert all(record["train_data"]["own_shapes_train"]["images"] == 6 for record in records)


def test_refused_command_changes_nothing_in_the_folder_of_a_run(trained, data, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained[0], output)
    before = files_of(output)
    arguments = ["--config", "mask_rcnn_R50_FPN_gn", *own_data(data), "OUTPUT_DIR", output]
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    for flags in (["--eval-only"], ["--resume"]):
        done = fork_tool(*flags, *arguments, *weights)
        assert done.returncode == 2 and "do not fit the model" in done.stderr
        assert files_of(output) == before and not list(output.glob("evaluations/*/"))


def test_files_of_a_killed_training_are_set_aside(trained, data, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained[0], output)
    for path in (*output.glob("model_*.pth"), output / "last_checkpoint"):
        path.unlink()
    metrics = (output / "metrics.json").read_text()
    arguments = ["--config", "quickstart_R18_FPN_gn_scratch", *own_data(data)[:4], *SHORT, "SOLVER.MAX_ITER", 1]
    done = fork_tool(*arguments, "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"files of an earlier run without a checkpoint: they were moved to {output / 'earlier-1'}" in done.stdout
    assert (output / "earlier-1" / "metrics.json").read_text() == metrics
    assert [row["iteration"] for row in read_metrics(output)] == [0]
    assert not (output / "records").exists() and (output / "earlier-1" / "records").is_dir()


def test_weights_without_last_checkpoint_are_not_trained_over(data, tmp_path):
    (tmp_path / "model_0000003.pth").write_bytes(b"weights")
    done = fork_tool("--config", "quickstart_R18_FPN_gn_scratch", *own_data(data), *SHORT, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 2 and "already contains a run: continue it with --resume" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model_0000003.pth"]


def test_second_run_in_a_folder_in_use_is_refused(data, tmp_path):
    arguments = ["--config", "quickstart_R18_FPN_gn_scratch", *own_data(data), *SHORT, "OUTPUT_DIR", tmp_path]
    with owned(tmp_path):
        before = files_of(tmp_path)
        done = fork_tool(*arguments)
        assert done.returncode == 2 and f"is in use by another run (process {os.getpid()} on " in done.stderr
        assert files_of(tmp_path) == before and not (tmp_path / "log.txt").exists()


def test_resume_without_a_checkpoint_starts_from_scratch(data, tmp_path):
    arguments = ["--config", "quickstart_R18_FPN_gn_scratch", *own_data(data)[:4], *SHORT, "SOLVER.MAX_ITER", 1]
    done = fork_tool("--resume", *arguments, "OUTPUT_DIR", tmp_path / "out")
    assert done.returncode == 0 and "holds no checkpoint, so training begins from scratch" in done.stdout
    assert "test data none, because --val-json is not given" in done.stdout


MISTAKES = {
    "no config": ([], "No config is given"),
    "unknown config": (["--config", "quickstart_R18_FPN_gn_scrach"], "did you mean quickstart_R18_FPN_gn_scratch"),
    "unknown key": (["SOLVER.BASE_LRR", "1"], "did you mean 'SOLVER.BASE_LR'"),
    "unknown norm": (["MODEL.FPN.NORM", "gn"], "did you mean 'GN'"),
    "unknown device": (["MODEL.DEVICE", "gpu"], "it must be cpu, cuda, or cuda:N"),
    "GPU on a machine without one": (["MODEL.DEVICE", "cuda"], "finds no GPU here"),
    "float16 without a GPU": (
        ["SOLVER.AMP.ENABLED", "True", "TRAIN.AMP_DTYPE", "float16"],
        "float16, which needs a GPU",
    ),
    "parts that do not divide the images of a process": (
        ["--num-gpus", "4", "TRAIN.ACCUMULATE", "2"],
        "does not divide the 1 images per process",
    ),
    "unknown dataset": (["DATASETS.TRAIN", "('shape_train',)"], "did you mean 'shapes_train'"),
    "missing COCO": (
        ["DATASETS.TRAIN", "('coco_2017_train',)", "MODEL.ROI_HEADS.NUM_CLASSES", "80", "DATASETS.TEST", "()"],
        "set DETECTRON2_DATASETS",
    ),
    "wrong number of classes": (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "has 3 classes: set it to 3"),
    "json without images": (["--train-json", "x.json"], "--train-json and --train-images go together"),
    "missing json": (["--train-json", "x.json", "--train-images", "."], "annotation file x.json does not exist"),
    "own data beside a test set": (
        ["--val-json", "x.json", "--val-images", ".", "DATASETS.TEST", "('shapes_val',)"],
        "DATASETS.TEST and --val-json are both given",
    ),
    "evaluation without weights": (["--eval-only"], "--eval-only needs weights"),
    "no output folder": (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty: set it"),
    "seed that is too large": (["SEED", "4294967295"], "SEED is 4294967295; it must be at most 4294901760"),
    "negative number of data workers": (
        ["DATALOADER.NUM_WORKERS", "-1"],
        "DATALOADER.NUM_WORKERS is -1; it must be 0 or",
    ),
    "negative size": (["INPUT.MIN_SIZE_TEST", "-5"], "INPUT.MIN_SIZE_TEST is -5; it must be 0 or more"),
    "output folder that cannot be created": (["OUTPUT_DIR", "/proc/nowhere/out"], "cannot be created"),
    "negative learning rate": (["SOLVER.BASE_LR", "-1.0"], "must be above 0"),
    "batch that processes cannot share": (["--num-gpus", "3", "SEED", "1"], "use a multiple of 3"),
    "no processes": (["--num-gpus", "0"], "--num-gpus is 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_in_one_sentence(name, monkeypatch, tmp_path):
    words, sentence = MISTAKES[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = [] if "config" in name else ["--config", "quickstart_R18_FPN_gn_scratch"]
    args = argument_parser("").parse_args([*config, *words])
    args.opts = ["OUTPUT_DIR", str(tmp_path / "out"), *args.opts]
    with pytest.raises(GNDetError) as error:
        launch(lambda args: prepare(args), args)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_mistake_in_a_tool_gives_exit_code_2_and_no_traceback(tmp_path):
    for arguments in (
        ["--config", "nowhere"],
        ["--num-gpus", 2, "--config", "quickstart_R18_FPN_gn_scratch", "A.B", 1],
    ):
        done = fork_tool(*arguments)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in done.stderr


def test_training_and_validation_data_with_different_classes_are_refused(data, tmp_path):
    other = json.loads((data / "val.json").read_text())
    other["categories"].reverse()
    for number, category in enumerate(other["categories"], start=1):
        category["id"] = number
    (tmp_path / "val.json").write_text(json.dumps(other))
    words = [str(word) for word in own_data(data)]
    words[5] = str(tmp_path / "val.json")
    args = argument_parser("").parse_args(
        ["--config", "mask_rcnn_R50_FPN_gn", *words, "OUTPUT_DIR", str(tmp_path / "o")]
    )
    with pytest.raises(GNDetError, match="the same categories with the same ids"):
        prepare(args)


@pytest.mark.parametrize("flag", ["--config", "--config-file"])
def test_classes_and_mask_format_follow_the_data(data, tmp_path, flag):
    train = json.loads((data / "train.json").read_text())
    train["categories"].append({"id": 4, "name": "blob"})
    image = train["images"][0]
    height, width = image["height"], image["width"]
    train["annotations"][0] |= {"segmentation": {"size": [height, width], "counts": [0, height * width]}}
    (tmp_path / "train.json").write_text(json.dumps(train))
    words = ["--train-json", str(tmp_path / "train.json"), "--train-images", str(data / "train")]
    args = argument_parser("").parse_args([flag, "mask_rcnn_R50_FPN_gn", *words, "OUTPUT_DIR", str(tmp_path / "out")])
    cfg = prepare(args)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4 and cfg.INPUT.MASK_FORMAT == "bitmask" and cfg.DATASETS.TEST == ()
    assert len(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])) == 6
    assert MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes[-1] == "blob"


def test_evaluate_detections_tool(data, tmp_path):
    truth = json.loads((data / "val.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    rows = [{**{key: a[key] for key in keys}, "score": 0.5} for a in truth["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    arguments = ["--annotations", data / "val.json", "--detections", tmp_path / "found.json"]
    done = fork_tool(*arguments, tool="evaluate_detections.py")
    assert done.returncode == 0 and "| found.json   | bbox   | 100.0 |" in done.stdout
    done = fork_tool(*arguments[:3], tmp_path / "no.json", tool="evaluate_detections.py")
    assert done.returncode == 2 and "cannot be read" in done.stderr and "Traceback" not in done.stderr
