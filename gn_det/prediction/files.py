"""Files in; pictures, videos and detections out: what tools/predict.py does."""

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

from PIL import Image
from tqdm import tqdm

from ..errors import GNDetError
from .images import IMAGE_SUFFIXES, find_files
from .predictor import Prediction, Predictor

_VIDEO_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
_KEPT = frozenset(".jpeg .jpg .png".split())  # pictures of other formats become PNG
_SAY_EVERY = 10.0  # seconds between lines of progress where there is no terminal

Item = TypeVar("Item")


@dataclass
class Tally:
    """How many images and video frames the model saw, the objects in them, and why inputs were skipped."""

    images: int = 0
    frames: int = 0
    objects: int = 0
    skipped: list[str] = field(default_factory=list)

    def skip(self, problem: str) -> None:
        self.skipped.append(problem)
        tqdm.write(f"skipped: {problem}", file=sys.stderr)

    def __str__(self) -> str:
        counts = ((self.images, "image"), (self.frames, "video frame"))
        seen = " and ".join(_plural(number, what) for number, what in counts if number)
        skipped = f"; {_plural(len(self.skipped), 'input')} skipped" if self.skipped else ""
        return f"{_plural(self.objects, 'object')} in {seen}{skipped}"


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def predict_files(
    predictor: Predictor, inputs: Sequence[str], *, out: str | None = None, json_file: str | None = None
) -> Tally:
    """Run a model over images and videos; draw and write what it finds, and say it.

    Args:
        inputs: files, folders and glob patterns. What cannot be read is named and skipped.
        out: the folder for pictures, new or empty; without it ``predictions``, or none if there is a ``json_file``.
        json_file: a new file for detections in COCO's result format, with ``file_name`` in the place of ``image_id``; those
            in a video have their ``frame``, from 0.

    Raises:
        GNDetError: a file would be overwritten or cannot be written, or nothing at all could be read.
    """
    folder = _free_folder(out) if out or not json_file else None
    if json_file and os.path.exists(json_file):
        raise GNDetError(f"The file {json_file} is there already: name another for the detections, or remove it.")
    tally = Tally()
    files = _find(inputs, tally)
    videos = [file for file in files if Path(file).suffix.lower() in _VIDEO_SUFFIXES]
    if (folder or videos) and not importlib.util.find_spec("cv2"):
        raise GNDetError("Drawing and videos need OpenCV: pip install opencv-python-headless (--json does without).")
    places = _places(files, folder) if folder else {}
    with _JsonList(json_file) as detections:
        _predict_images(predictor, [file for file in files if file not in videos], places, detections, tally)
        for video in videos:
            _predict_video(predictor, video, places.get(video), detections, tally)
    if not tally.images + tally.frames:
        raise GNDetError(
            f"Nothing was predicted: {_plural(len(tally.skipped), 'input')} given, none of which can be read."
        )
    print(f"{tally}; scores above {predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST:g}")
    for what, place in (("pictures", folder), ("detections", json_file)):
        if place:
            print(f"  {what + ':':<12}{place}")
    return tally


def _free_folder(asked: str | None) -> Path:
    if asked is None:
        names = itertools.chain(["predictions"], (f"predictions-{number}" for number in itertools.count(2)))
        return Path(next(name for name in names if not os.path.lexists(name)))
    folder = Path(asked)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise GNDetError(f"{folder} is there already and not an empty folder: name another for the pictures.")
    return folder


def _find(inputs: Sequence[str], tally: Tally) -> list[str]:
    """The files of all inputs, each once."""
    found: dict[str, str] = {}
    for source in inputs:
        try:
            for file in find_files(source, IMAGE_SUFFIXES | _VIDEO_SUFFIXES):
                found.setdefault(os.path.realpath(file), file)
        except GNDetError as error:
            tally.skip(str(error))
    return list(found.values())


def _places(files: list[str], folder: Path) -> dict[str, Path]:
    """Where the picture of each file goes: below ``folder`` as they lie below the folder that all have in common."""
    if not files:
        return {}
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    places: dict[str, Path] = {}
    for file, path in zip(files, paths, strict=True):
        name, suffix = os.path.relpath(path, common), Path(path).suffix.lower()
        wanted = ".mp4" if suffix in _VIDEO_SUFFIXES else suffix if suffix in _KEPT else ".png"
        name = name if suffix == wanted else name + wanted
        while folder / name in places.values():  # a.bmp becomes a.bmp.png, and that may be another input
            name = f"{os.path.splitext(name)[0]}-{wanted}"
        places[file] = folder / name
    return places


class _JsonList:
    """A list in a JSON file, written as its rows come; complete also where a run is cut short."""

    def __init__(self, path: str | None):
        self.path = path
        self._file: TextIO | None = None
        self._before = "\n"

    def __enter__(self) -> "_JsonList":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.write("\n]\n")
            self._file.close()

    def write(self, rows: list[dict]) -> None:
        """Rows of an image, perhaps none. The first call makes the file."""
        if not self.path:
            return
        if not self._file:
            with _as_sentence(self.path):
                self._file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115
            self._file.write("[")
        for row in rows:
            self._file.write(self._before + json.dumps(row))
            self._before = ",\n"


@contextlib.contextmanager
def _as_sentence(path: str | Path) -> Iterator[None]:
    """For what writes a file: make its folder, and say what goes wrong."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise GNDetError(f"{path} cannot be written: {error.strerror or error}.") from None


def _predict_images(
    predictor: Predictor, files: list[str], places: dict[str, Path], detections: _JsonList, tally: Tally
) -> None:
    for prediction in _progress(predictor.stream(files), len(files), "image"):
        if prediction.problem:
            tally.skip(prediction.problem)
            continue
        tally.images += 1
        tally.objects += len(prediction.instances)
        detections.write(predictor.rows(prediction))
        if prediction.name in places:
            with _as_sentence(places[prediction.name]):
                Image.fromarray(_draw(predictor, prediction)).save(places[prediction.name], quality=92)


def _predict_video(predictor: Predictor, path: str, place: Path | None, detections: _JsonList, tally: Tally) -> None:
    from ..drawing.instances import Colours
    from .video import Video, VideoWriter

    try:
        video = Video(path)
    except GNDetError as error:
        return tally.skip(str(error))
    colours, frames = Colours(), 0
    with VideoWriter(place, video.fps) if place else contextlib.nullcontext() as writer:
        for prediction in _progress(predictor.stream(video), video.length, f"frame of {Path(path).name}"):
            frames += 1
            tally.objects += len(prediction.instances)
            rows = predictor.rows(prediction)
            detections.write([{"file_name": path, "frame": row.pop("image_id")} | row for row in rows])
            if writer:
                with _as_sentence(writer.path):
                    writer.write(_draw(predictor, prediction, colours)[:, :, ::-1])
    tally.frames += frames
    if frames < 0.95 * video.length:  # the length is an estimate
        tally.skip(f"{path} breaks off after {frames} of about {video.length} frames.")


def _draw(predictor: Predictor, prediction: Prediction, colours=None):
    from ..drawing.instances import draw_instances  # needs OpenCV

    image = prediction.image[:, :, ::-1]
    return draw_instances(image, prediction.instances, predictor.metadata, colours, enlarge=colours is None)


def _progress(items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
    """Pass the items on, with a bar on a terminal and elsewhere a line now and then: how many, and how long it will take."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total or None, unit=f" {unit}", dynamic_ncols=True)
        return
    begun = said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= _SAY_EVERY:
            said = now
            rest = f", {tqdm.format_interval((total - number) * (now - begun) / number)} to go" if total else ""
            print(f"{unit} {number}{f' of {total}' if total else ''}{rest}", file=sys.stderr, flush=True)
