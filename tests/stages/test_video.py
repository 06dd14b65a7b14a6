"""Videos in and out."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.video import Video, VideoError, write_video


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


def h264_stream(across: int, down: int, *, frames: int) -> bytes:
    """Raw (I_PCM) pictures of 16 px blocks in H.264's byte stream; only the first one is IDR."""
    rng = np.random.default_rng(0)
    sps = "01000010 11000000 00001010" + "1 1 011 010 0" + golomb(across - 1) + golomb(down - 1)
    out = unit(0x67, sps + "1 1 0 0 1") + unit(0x68, "1 1 0 0 1 1 1 0 00 1 1 1 0 0 0 1")
    for frame in range(frames):
        own = "1 00" if frame == 0 else "0"  # id and marking of an IDR picture, or marking alone
        bits = "1 0001000 1" + f"{frame % 16:04b}" + own + "1"
        for _ in range(across * down):
            bits = bits.replace(" ", "") + "000011010"  # I_PCM
            bits += "0" * (-len(bits) % 8)
            bits += "".join(f"{value:08b}" for value in rng.integers(1, 255, 384))
        out += unit(0x65 if frame == 0 else 0x21, bits + "1")
    return out


def golomb(value: int) -> str:
    return f"{value + 1:b}".zfill(2 * (value + 1).bit_length() - 1)


def unit(code: int, bits: str) -> bytes:
    bits = bits.replace(" ", "")
    bits += "0" * (-len(bits) % 8)
    data = bytes(int(bits[k : k + 8], 2) for k in range(0, len(bits), 8))
    return b"\x00\x00\x00\x01" + bytes([code]) + data


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


def test_an_h264_file_is_refused_only_where_its_size_changes(tmp_path: Path) -> None:
    """Slices of few references (0x21) look like MPEG-4's headers, and differ in every frame."""
    stream = tmp_path / "stream.h264"
    stream.write_bytes(h264_stream(2, 1, frames=4))
    assert [frame.image.shape for frame in Video(stream)] == [(16, 32, 3)] * 4
    stream.write_bytes(h264_stream(2, 1, frames=2) * 2)  # the same header again
    assert len(list(Video(stream))) == 4
    stream.write_bytes(h264_stream(2, 1, frames=2) + h264_stream(1, 2, frames=2))
    with pytest.raises(VideoError, match="changes in frame 2, from 32 x 16 to 16 x 32 px"):
        list(Video(stream))


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
