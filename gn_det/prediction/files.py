"""Run a model on image and video files, and write pictures, videos, and detections as JSON."""

import contextlib
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from ..errors import GNDetError
from .images import IMAGE_SUFFIXES, find_files
from .predictor import Predictor

_VIDEO_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
_KEPT_SUFFIXES = frozenset(".jpeg .jpg .png".split())  # pictures of other formats are saved as PNG
_PROGRESS_INTERVAL = 10.0  # seconds between progress lines if stderr is not a terminal

Item = TypeVar("Item")


@dataclass
class Tally:
    """Counts of processed inputs and detected objects.

    Attributes:
        images: images that the model was run on.
        frames: video frames that the model was run on.
        objects: objects detected in them.
        skipped: for each skipped input, a sentence that explains why.
    """

    images: int = 0
    frames: int = 0
    objects: int = 0
    skipped: list[str] = field(default_factory=list)

    def skip(self, problem: str) -> None:
        """Record a skipped input and print the reason to stderr."""
        self.skipped.append(problem)
        tqdm.write(f"skipped: {problem}", file=sys.stderr)

    def __str__(self) -> str:
        counts = ((self.images, "image"), (self.frames, "video frame"))
        seen = " and ".join(_plural(number, noun) for number, noun in counts if number)
        skipped = f"; {_plural(len(self.skipped), 'input')} skipped" if self.skipped else ""
        return f"{_plural(self.objects, 'object')} in {seen}{skipped}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def predict_files(
    predictor: Predictor, inputs: Sequence[str], *, out: str | None = None, json_file: str | None = None
) -> Tally:
    """Run a model on images and videos, write the results to files, and print a summary.

    Args:
        inputs: files, folders, and glob patterns. Inputs that cannot be read are reported and skipped.
        out: folder for the pictures and videos, which must be new or empty. Without it, they go to
            ``predictions`` (or ``predictions-2``, ...), or none are drawn if ``json_file`` is given.
        json_file: new file for the detections in COCO's result format, with ``file_name`` instead of
            ``image_id``. Detections in a video also have ``frame``, which counts from 0.

    Returns:
        the counts that the summary shows.

    Raises:
        GNDetError: an output already exists or cannot be written, OpenCV is missing, or no input can be
            read.
    """
    folder = _new_folder(out) if out or not json_file else None
    if json_file and os.path.exists(json_file):
        raise GNDetError(f"The file {json_file} already exists; choose another file for the detections, or remove it.")
    tally = Tally()
    files = _find_inputs(inputs, tally)
    is_video = {file: os.path.splitext(file)[1].lower() in _VIDEO_SUFFIXES for file in files}
    videos = [file for file in files if is_video[file]]
    if (folder or videos) and not importlib.util.find_spec("cv2"):
        raise GNDetError(
            "OpenCV is needed to draw pictures and to read videos: pip install opencv-python-headless, or pass only "
            "images, with --json and without --out."
        )
    outputs = _output_paths(files, folder) if folder else {}
    with _JsonListWriter(json_file) as detections:
        _predict_images(predictor, [file for file in files if not is_video[file]], outputs, detections, tally)
        for video in videos:
            _predict_video(predictor, video, outputs.get(video), detections, tally)
    if not tally.images + tally.frames:
        raise GNDetError(
            f"Nothing was predicted: no input can be read ({_plural(len(tally.skipped), 'input')} skipped)."
        )
    print(f"{tally}; scores above {predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST:g}")
    for kind, path in (("pictures", folder), ("detections", json_file)):
        if path:
            print(f"  {kind + ':':<12}{path}")
    return tally


def _new_folder(requested: str | None) -> Path:
    """Return the requested folder, which must be new or empty, or by default a name that is not in use."""
    if requested is None:
        names = itertools.chain(["predictions"], (f"predictions-{number}" for number in itertools.count(2)))
        return Path(next(name for name in names if not os.path.lexists(name)))
    folder = Path(requested)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise GNDetError(f"{folder} already exists and is not an empty folder; choose another folder for the pictures.")
    return folder


def _find_inputs(inputs: Sequence[str], tally: Tally) -> list[str]:
    """Return the files of all inputs, each file once."""
    found: dict[str, str] = {}
    for source in inputs:
        try:
            for file in find_files(source, IMAGE_SUFFIXES | _VIDEO_SUFFIXES):
                found.setdefault(os.path.realpath(file), file)
        except GNDetError as error:
            tally.skip(str(error))
    return list(found.values())


def _output_paths(files: list[str], folder: Path) -> dict[str, Path]:
    """Choose an output path for each file. The folders below the files' common folder are kept."""
    if not files:
        return {}
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    outputs: dict[str, Path] = {}
    taken: set[str] = set()
    for file, path in zip(files, paths, strict=True):
        name, suffix = os.path.relpath(path, common), os.path.splitext(path)[1].lower()
        new_suffix = ".mp4" if suffix in _VIDEO_SUFFIXES else suffix if suffix in _KEPT_SUFFIXES else ".png"
        name = name if suffix == new_suffix else name + new_suffix
        while name in taken:  # a.bmp becomes a.bmp.png, which can be another input
            name = f"{os.path.splitext(name)[0]}-{new_suffix}"
        taken.add(name)
        outputs[file] = folder / name
    return outputs


class _JsonListWriter:
    """Write a JSON list row by row.

    The first call of :meth:`write` creates the file. The list is closed on exit, so that the file is
    valid JSON even after an error or an interruption.
    """

    def __init__(self, path: str | None):
        self.path = path
        self._file: TextIO | None = None
        self._separator = "\n"

    def __enter__(self) -> "_JsonListWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.write("\n]\n")
            self._file.close()

    def write(self, rows: list[dict]) -> None:
        """Append the rows of one image, possibly none. Without a path, do nothing."""
        if not self.path:
            return
        if not self._file:
            with _writing(self.path):
                self._file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115
            self._file.write("[")
        for row in rows:
            self._file.write(self._separator + json.dumps(row))
            self._separator = ",\n"


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Create the folder of ``path``, and turn an OSError within the block into a GNDetError."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise GNDetError(f"{path} cannot be written: {error.strerror or error}.") from None


def _predict_images(
    predictor: Predictor, files: list[str], outputs: dict[str, Path], detections: _JsonListWriter, tally: Tally
) -> None:
    for prediction in _progress(predictor.stream(files, encode_masks=True), len(files), "image"):
        if prediction.image is None or prediction.instances is None:
            tally.skip(str(prediction.problem))
            continue
        tally.images += 1
        tally.objects += len(prediction.instances)
        detections.write(predictor.rows(prediction))
        path = outputs.get(str(prediction.name))
        if path:
            with _writing(path):
                Image.fromarray(_draw(predictor, prediction.image, prediction.instances)).save(path, quality=92)


def _predict_video(
    predictor: Predictor, path: str, output: Path | None, detections: _JsonListWriter, tally: Tally
) -> None:
    from ..drawing.instances import Colors
    from .video import Video, VideoWriter

    try:
        video = Video(path)
    except GNDetError as error:
        tally.skip(str(error))
        return
    colors, frames = Colors(), 0
    with VideoWriter(output, video.fps) if output else contextlib.nullcontext() as writer:
        stream = predictor.stream(video, encode_masks=True)
        for prediction in _progress(stream, video.length, f"{Path(path).name}: frame"):
            # Frames are arrays that have been read already, so none of them can be unreadable.
            assert prediction.image is not None and prediction.instances is not None
            frames += 1
            tally.objects += len(prediction.instances)
            rows = predictor.rows(prediction)
            detections.write([{"file_name": path, "frame": row.pop("image_id")} | row for row in rows])
            if writer:
                with _writing(writer.path):
                    writer.write(_draw(predictor, prediction.image, prediction.instances, colors)[:, :, ::-1])
    tally.frames += frames
    if frames < 0.95 * video.length:  # the length is an estimate
        tally.skip(f"{path} ended after {frames} of about {video.length} frames; it is probably truncated.")


def _draw(predictor: Predictor, image: np.ndarray, instances: Instances, colors=None) -> np.ndarray:
    """Return a picture in RGB of the instances on a BGR image.

    Args:
        colors: for video frames, the object that keeps the color of each instance between frames.
    """
    from ..drawing.instances import draw_instances  # needs OpenCV

    return draw_instances(image[:, :, ::-1], instances, predictor.metadata, colors, enlarge=colors is None)


def _progress(items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
    """Yield the items and show the progress on stderr.

    The progress is a bar on a terminal, and otherwise a line every 10 seconds.

    Args:
        total: the number of items; 0 if unknown.
        unit: the name of one item.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total or None, unit=f" {unit}", dynamic_ncols=True)
        return
    start = last_printed = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_printed >= _PROGRESS_INTERVAL:
            last_printed = now
            left = f", {tqdm.format_interval((total - number) * (now - start) / number)} left" if total else ""
            print(f"{unit} {number}{f' of {total}' if total else ''}{left}", file=sys.stderr, flush=True)
