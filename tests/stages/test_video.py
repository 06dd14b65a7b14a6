"""Videos in and out."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.video import Video, VideoError, size_header, write_video


def pictures(count: int = 4, size: tuple[int, int] = (48, 64), seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (count, 6, 8, 3), dtype=np.uint8)
    return [cv2.resize(image, size[::-1]) for image in small]


def jpeg(image: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", image[..., ::-1])
    assert ok
    return data.tobytes()


def folder(path: Path, images: list[np.ndarray]) -> Path:
    path.mkdir()
    for index, image in enumerate(images):
        (path / f"{index:03d}.jpg").write_bytes(jpeg(image))
    return path


def test_a_file_comes_back_nearly_as_written_and_with_the_same_bytes(tmp_path: Path) -> None:
    frames = pictures()
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, 20.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    video = Video(tmp_path / "a.mp4")
    assert (video.fps, video.announced) == (20.0, 4)
    for _ in range(2):  # any number of times
        got = list(video)
        assert [frame.index for frame in got] == [0, 1, 2, 3]
        for frame, image in zip(got, frames, strict=True):
            assert np.abs(frame.image - image.astype(float)).mean() < 12
    odd = [image[:-1, :-1] for image in frames]
    write_video(tmp_path / "odd.mp4", odd, 20.0)
    assert next(iter(Video(tmp_path / "odd.mp4"))).image.shape == (46, 62, 3)


def test_a_folder_is_read_by_name_and_a_broken_picture_has_a_reason(tmp_path: Path) -> None:
    path = folder(tmp_path / "frames", pictures())
    whole = (path / "002.jpg").read_bytes()
    (path / "002.jpg").write_bytes(whole[: len(whole) // 2])
    (path / "notes.txt").write_text("no picture")
    got = list(Video(path))
    assert [frame.name for frame in got] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    assert got[2].image is None
    assert "truncated" in got[2].reason
    assert all(frame.image is not None for frame in got[:2] + got[3:])


def test_another_size_midway_is_refused_naming_the_frame(tmp_path: Path) -> None:
    mixed = pictures(2) + pictures(2, (32, 40))
    with pytest.raises(VideoError, match=r"64 x 48 px .* got 40 x 32 px in frame 002\.jpg"):
        list(Video(folder(tmp_path / "frames", mixed)))
    stream = tmp_path / "stream.mjpeg"  # OpenCV would scale the last two without a word
    stream.write_bytes(b"".join(jpeg(image) for image in mixed))
    with pytest.raises(VideoError, match="changes in frame 2"):
        list(Video(stream))
    stream.write_bytes(b"".join(jpeg(image) for image in pictures(4)))
    assert len(list(Video(stream))) == 4


def test_headers_of_coded_pictures() -> None:
    start = b"\x00\x00\x01"
    sps, slice_ = start + b"\x67\x42\x00\x1e\xab\x40", start + b"\x65\x88\x80"
    assert size_header(start + b"\x09\x10" + sps + slice_) == b"\x67\x42\x00\x1e\xab\x40"
    assert size_header(slice_) is None
    layer = start + b"\x20\x00\x86\x84"
    assert size_header(start + b"\xb0\x01" + layer + start + b"\xb6\x10") == b"\x20\x00\x86\x84"
    assert size_header(jpeg(pictures(1)[0])) == b"\x00\x30\x00\x40"
    assert size_header(b"\xff\xd8\xff") is None
    assert size_header(b"") is None


def test_frames_that_a_file_announces_but_lacks_have_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for image in pictures(12):
        writer.write(image)
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    got = list(Video(path))
    assert got[0].image is not None
    assert got[-1].image is None
    assert "could be decoded" in got[-1].reason
    assert len(got) == 12


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a video"):
        Video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="FFmpeg can open"):
        Video(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="expected pictures"):
        Video(tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    with pytest.raises(VideoError, match="at least one readable frame"):
        list(Video(tmp_path / "empty"))
