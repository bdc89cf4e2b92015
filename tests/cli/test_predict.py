"""``gn-det predict``: pictures, videos, JSON, and exit codes. Nothing is overwritten or silently skipped."""

import json
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gn_det import GNDetError, Predictor
from gn_det.prediction.files import _output_paths, _progress, predict_files
from helpers.paths import TOOLS

cv2 = pytest.importorskip("cv2", reason="drawing needs OpenCV")
TOOL = TOOLS / "predict.py"


@pytest.fixture(scope="module")
def predictor(output_dir) -> Predictor:
    return Predictor(output_dir, device="cpu", min_score=0.05)


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(path: str, size: tuple[int, int] = (64, 64)) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(len(path)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size).save(path)
    return path


def video(path: str, frames: int = 4, size: tuple[int, int] = (64, 48), fps: float = 12.0) -> str:
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    for index in range(frames):
        writer.write(np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    writer.release()
    return path


def files(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_pictures_and_detections_of_images(predictor, capsys):
    inputs = [picture("in/a.png"), picture("in/b.jpg"), picture("in/c.bmp"), picture("in/c.bmp.png")]
    before = {path: Path(path).read_bytes() for path in inputs}
    tally = predict_files(predictor, ["in", "in/*.png", "in/a.png"], out="out", json_file="new/found.json")
    assert (tally.images, tally.frames, tally.skipped) == (4, 0, []) and tally.objects > 0
    assert files("out") == ["a.png", "b.jpg", "c.bmp-.png", "c.bmp.png"]
    rows = json.loads(Path("new/found.json").read_text())
    assert len(rows) == tally.objects and {row["file_name"] for row in rows} <= set(inputs)
    assert rows[0].keys() == {"file_name", "category_id", "bbox", "score", "segmentation"}
    assert {path: Path(path).read_bytes() for path in inputs} == before
    drawn = np.asarray(Image.open("out/a.png"))
    assert drawn.shape == (480, 480, 3)
    plain = np.asarray(Image.open("in/a.png").resize((480, 480), Image.Resampling.NEAREST))
    assert (np.abs(drawn.astype(int) - plain) > 40).any()
    printed = capsys.readouterr().out
    assert f"{tally.objects} objects in 4 images; scores above 0.05" in printed
    assert "out" in printed and "new/found.json" in printed


def test_equal_names_in_different_folders_do_not_collide(predictor):
    predict_files(predictor, [picture("x/one/a.png"), picture("x/two/a.png"), picture("x/two/deep/a.png")], out="out")
    assert files("out") == ["one/a.png", "two/a.png", "two/deep/a.png"]


def test_output_paths_are_unique(tmp_path):
    names = ["a.png", "a.PNG", "a.tif", "a.tif.png", "a.avi", "a.mp4", "sub/a.mp4", "a.tif-.png"]
    outputs = _output_paths([str(tmp_path / name) for name in names], Path("out"))
    assert len(set(outputs.values())) == len(names) and all(path.is_relative_to("out") for path in outputs.values())
    assert outputs[str(tmp_path / "a.avi")] == Path("out/a.avi.mp4")


def test_output_paths_of_many_files_are_found_in_a_moment():
    """Their time grew with the square of their number: 40,000 files took 6 minutes."""
    names = [f"{n}.{suffix}" for n in range(20_000) for suffix in ("png", "bmp")]
    start = time.process_time()
    assert len(set(_output_paths(names, Path("out")).values())) == 40_000
    assert time.process_time() - start < 10


def test_pictures_go_to_a_new_folder_each_time(predictor):
    picture("a.png")
    for folder in ("predictions", "predictions-2"):
        predict_files(predictor, ["a.png"])
        assert files(folder) == ["a.png"]
    predict_files(predictor, ["a.png"], json_file="found.json")
    assert not Path("predictions-3").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "."}, "already exists and is not an empty folder"),
        ({"out": "a.png"}, "already exists and is not an empty folder"),
        ({"json_file": "a.png"}, "a.png already exists"),
        ({"out": "a.png/x"}, "cannot be written"),
        ({"json_file": "a.png/x"}, "cannot be written"),
    ],
)
def test_existing_files_are_not_overwritten(predictor, options, message):
    before = Path(picture("a.png")).read_bytes()
    with pytest.raises(GNDetError, match=message):
        predict_files(predictor, ["a.png"], **options)
    assert Path("a.png").read_bytes() == before and files(".") == ["a.png"]


def test_unreadable_inputs_are_reported_and_skipped(predictor, capsys):
    picture("a.png")
    for name in ("b.png", "c.mp4"):
        Path(name).write_text("nothing")
    tally = predict_files(predictor, [".", "none.png", "*.bmp", "http://example.com/a.png"], json_file="found.json")
    assert tally.images == 1 and len(tally.skipped) == 5
    printed, errors = capsys.readouterr()
    for message in (
        "b.png cannot be read",
        "c.mp4 cannot be read",
        "none.png does not exist",
        "No file matches *.bmp",
        "is a URL",
    ):
        assert message in errors
    assert "in 1 image; 5 inputs skipped" in printed


def test_nothing_is_written_if_no_input_can_be_read(predictor):
    Path("b.png").write_text("nothing")
    for inputs in (["b.png"], ["none.png"]):
        with pytest.raises(GNDetError, match=r"Nothing was predicted: no input can be read \(1 input skipped\)"):
            predict_files(predictor, inputs, out="out", json_file="found.json")
    assert files(".") == ["b.png"] and not Path("out").exists()


def test_json_without_detections_is_an_empty_list(output_dir):
    tally = predict_files(Predictor(output_dir, min_score=1), [picture("a.png")], json_file="found.json")
    assert tally.objects == 0 and json.loads(Path("found.json").read_text()) == []


def test_json_is_valid_after_an_interruption(predictor, monkeypatch):
    inputs = [picture("a.png"), picture("bb.png")]
    rows, seen = predictor.rows, []

    def interrupted(prediction):
        seen.append(prediction)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return rows(prediction)

    monkeypatch.setattr(predictor, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, inputs, json_file="found.json")
    assert {row["file_name"] for row in json.loads(Path("found.json").read_text())} == {"a.png"}


def test_video_keeps_its_size_and_frame_rate(predictor):
    tally = predict_files(predictor, [video("v.avi")], out="out", json_file="found.json")
    assert tally.frames == 4 and tally.images == 0
    capture = cv2.VideoCapture("out/v.avi.mp4")
    shape = [capture.get(key) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS)]
    assert shape == [64, 48, 12]
    assert sum(capture.read()[0] for _ in range(9)) == 4
    rows = json.loads(Path("found.json").read_text())
    assert {row["file_name"] for row in rows} == {"v.avi"} and {row["frame"] for row in rows} <= {0, 1, 2, 3}
    assert len(rows) == tally.objects > 0


def test_truncated_video_is_reported(predictor):
    content = Path(video("complete.avi", frames=8)).read_bytes()
    Path("cut.avi").write_bytes(content[: len(content) // 2])
    tally = predict_files(predictor, ["cut.avi"], json_file="found.json")
    assert 0 < tally.frames < 8 and "cut.avi ended after" in tally.skipped[0]


def test_without_opencv_only_detections_of_images_are_written(predictor, monkeypatch):
    picture("a.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GNDetError, match="pip install opencv-python-headless"):
        predict_files(predictor, ["a.png"])
    assert predict_files(predictor, ["a.png"], json_file="found.json").images == 1


def tool(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(TOOL), run_name="__main__")
    return done.value.code


def test_exit_codes(output_dir, monkeypatch, capsys):
    picture("a.png")
    assert tool(monkeypatch, "a.png", "--model", output_dir, "--json", "one.json") == 0
    assert all(row["score"] > 0.5 for row in json.loads(Path("one.json").read_text()))
    rest = (
        "--model",
        output_dir / "model_final.pth",
        "--config",
        "quickstart_R18_FPN_gn_scratch",
        "--min-score",
        "0.01",
    )
    assert tool(monkeypatch, "a.png", "b.png", *rest, "--json", "two.json", "--batch-size", "2") == 1
    assert len(json.loads(Path("two.json").read_text())) > len(json.loads(Path("one.json").read_text()))
    assert tool(monkeypatch, "b.png", "--model", output_dir) == 2
    assert tool(monkeypatch, "a.png", "--model", "no/such") == 2
    errors = capsys.readouterr().err
    assert "error: Nothing was predicted" in errors and "error: no/such is not a folder" in errors


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr("gn_det.prediction.files._PROGRESS_INTERVAL", 0.0)
    assert list(_progress(iter("ab"), 2, "image")) == ["a", "b"]
    assert capsys.readouterr().err == "image 1 of 2, 00:00 left\nimage 2 of 2, 00:00 left\n"
    assert list(_progress(iter("a"), 0, "frame")) == ["a"]
    assert capsys.readouterr().err == "frame 1\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(_progress(iter("ab"), 2, "image")) == ["a", "b"]
    assert "2/2 [" in capsys.readouterr().err


def test_evaluate_reads_the_json_of_predict(output_dir, run_cli):
    """The truth is what the model finds, so that AP is 100."""
    found = Predictor(output_dir, min_score=0.3)
    predict_files(found, [picture("x/a.png"), picture("x/y/b.png")], json_file="found.json")
    rows = json.loads(Path("found.json").read_text())
    names = ["a.png", "y/b.png"]
    truth = {
        "images": [{"id": n, "file_name": name, "height": 64, "width": 64} for n, name in enumerate(names)],
        "categories": [{"id": n, "name": name} for n, name in zip(found.category_ids, found.classes, strict=True)],
        "annotations": [
            {**row, "id": n, "image_id": names.index(row["file_name"].removeprefix("x/"))} for n, row in enumerate(rows)
        ],
    }
    Path("truth.json").write_text(json.dumps(truth))
    code, out, err = run_cli("evaluate_detections.py", "--annotations", "truth.json", "--detections", "found.json")
    assert code == 0 and len(rows) > 2, err
    assert "| found.json   | bbox   | 100.0 |" in out and "| found.json   | segm   | 100.0 |" in out
