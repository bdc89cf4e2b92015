"""Video files, a frame at a time, through OpenCV."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..errors import GNDetError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence OpenCV and FFmpeg within a block: an error here is one sentence. The process keeps its own log level."""
    level = cv2.utils.logging.getLogLevel()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own, which OpenCV reads once, at the first video
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class Video:
    """The frames of a file, (height, width, 3), BGR, uint8, turned as the file says.

    Attributes:
        fps: frames a second; 25 where the file does not say.
        length: the number of frames, as far as the file says, else 0.

    Raises:
        GNDetError: the file is not there or is no video.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        if not os.path.isfile(path):
            raise GNDetError(f"{path} is not there.")
        capture = self._open()
        fps, length = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = fps if math.isfinite(fps) and fps > 0 else 25.0
        self.length = max(0, int(length)) if math.isfinite(length) else 0
        capture.release()

    def _open(self) -> cv2.VideoCapture:
        with _quiet():
            capture = cv2.VideoCapture(self.path, cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise GNDetError(f"{self.path} cannot be read as a video.")
        return capture

    def __iter__(self) -> Iterator[np.ndarray]:
        capture = self._open()
        try:
            while True:
                with _quiet():
                    frame = capture.read()[1]
                if frame is None:
                    return
                yield frame
        finally:
            capture.release()


class VideoWriter:
    """An mp4 (MPEG-4) of frames as they come. Sides of odd length lose a pixel. The first frame makes the file."""

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = str(path), fps
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """A frame (height, width, 3), BGR, uint8.

        Raises:
            GNDetError: the file cannot be written.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            with _quiet():
                self._writer = cv2.VideoWriter(self.path, cv2.VideoWriter.fourcc(*"mp4v"), self.fps, (width, height))
            if not self._writer.isOpened():
                raise GNDetError(f"{self.path} cannot be written as a video.")
        self._writer.write(frame)
