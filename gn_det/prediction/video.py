"""Read and write video files frame by frame with OpenCV."""

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
    """Silence OpenCV and FFmpeg within a block, because errors are raised as a :class:`GNDetError`.

    The log level of OpenCV is restored afterwards.
    """
    level = cv2.utils.logging.getLogLevel()
    # The log level of FFmpeg. OpenCV reads this variable only once, when the first video is opened.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class Video:
    """Iterate over the frames of a video file.

    Each frame is (height, width, 3), BGR, uint8, with the rotation that the file specifies applied.

    Attributes:
        path: the file's path.
        fps: frames per second; 25 if the file does not specify it.
        length: the number of frames according to the file (an estimate); 0 if unknown.

    Raises:
        GNDetError: the file does not exist or is not a video.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        if not os.path.isfile(path):
            raise GNDetError(f"{path} does not exist.")
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
    """Write frames to an mp4 file (MPEG-4). Use it as a context manager.

    The first frame creates the file; all others must have its size. A side of odd length loses one
    pixel.

    Args:
        path: the file to write.
        fps: frames per second.
    """

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = str(path), fps
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Args:
            frame: (height, width, 3), BGR, uint8.

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
