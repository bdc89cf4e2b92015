"""Reading and writing videos."""

import numpy as np
import pytest

from gn_det import GNDetError
from helpers.forks import in_a_fork

cv2 = pytest.importorskip("cv2", reason="videos need OpenCV")

from gn_det.prediction.video import Video, VideoWriter  # noqa: E402


def frames(number: int = 5, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), (40 * index, 100, 250 - 40 * index), np.uint8) for index in range(number)]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 65)])
def test_written_frames_are_read_back(tmp_path, height, width):
    with VideoWriter(tmp_path / "v.mp4", 12.5) as writer:
        for frame in frames(height=height, width=width):
            writer.write(frame)
    video = Video(tmp_path / "v.mp4")
    assert (video.fps, video.length) == (12.5, 5)
    for _ in range(2):  # each iteration starts at the first frame
        read = list(video)
        assert [frame.shape for frame in read] == [(48, 64, 3)] * 5
        assert max(np.abs(a[:48, :64].astype(int) - b).mean() for a, b in zip(frames(), read, strict=True)) < 6


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"])
def test_invalid_video_is_refused_without_other_output(tmp_path, content):
    """FFmpeg reads its log level at the first video of a process, so this takes a new one."""
    (tmp_path / "v.mp4").write_bytes(content)
    lines = in_a_fork(Video, tmp_path / "v.mp4").stderr.splitlines()
    assert lines[0].startswith("Process ")  # of the traceback, without a line of FFmpeg before it
    assert lines[1].startswith("Traceback ")
    assert "GNDetError: " in lines[-1]
    assert "v.mp4 cannot be read as a video" in lines[-1]
    with pytest.raises(GNDetError, match="does not exist"):
        Video(tmp_path / "none.mp4")


def test_unwritable_path_is_refused(tmp_path):
    with VideoWriter(tmp_path / "none" / "v.mp4", 10) as writer, pytest.raises(GNDetError, match="cannot be written"):
        writer.write(frames(1)[0])
