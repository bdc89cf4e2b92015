import numpy as np
import pytest

from gn_det import GNDetError

cv2 = pytest.importorskip("cv2", reason="videos need OpenCV")

from gn_det.prediction.video import Video, VideoWriter  # noqa: E402


def frames(number: int = 5, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), (40 * index, 100, 250 - 40 * index), np.uint8) for index in range(number)]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 65)])
def test_frames_are_written_and_read_again(tmp_path, height, width):
    with VideoWriter(tmp_path / "v.mp4", 12.5) as writer:
        for frame in frames(height=height, width=width):
            writer.write(frame)
    video = Video(tmp_path / "v.mp4")
    assert (video.fps, video.length) == (12.5, 5)
    for _ in range(2):  # from the start each time
        read = list(video)
        assert [frame.shape for frame in read] == [(48, 64, 3)] * 5
        assert max(np.abs(a[:48, :64].astype(int) - b).mean() for a, b in zip(frames(), read, strict=True)) < 6


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"])
def test_what_is_no_video_is_one_sentence(tmp_path, capfd, content):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(GNDetError, match=r"v\.mp4 cannot be read as a video"):
        Video(tmp_path / "v.mp4")
    assert capfd.readouterr().err == ""
    with pytest.raises(GNDetError, match="is not there"):
        Video(tmp_path / "none.mp4")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    with VideoWriter(tmp_path / "none" / "v.mp4", 10) as writer, pytest.raises(GNDetError, match="cannot be written"):
        writer.write(frames(1)[0])
