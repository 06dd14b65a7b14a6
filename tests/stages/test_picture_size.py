"""Sizes that the headers of coded pictures state."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.picture_size import size_in

START = b"\x00\x00\x01"
H264_1080P = START + bytes.fromhex("67640028acd940780227e584000003000400000300f03c60c658")
"""Of x264: high profile, 68 rows of blocks less 8 px, zeros that need emulation prevention."""
HEVC_720P = START + bytes.fromhex(
    "42010101600000030090000003000003005da00280802d165959a4932bc05a70800001f480003a9804"
)
"""Of x265: main profile, emulation prevention within the profile."""


def golomb(*values: int) -> str:
    return "".join(f"{v + 1:b}".zfill(2 * (v + 1).bit_length() - 1) for v in values)


def unit(head: bytes, bits: str) -> bytes:
    bits = bits.replace(" ", "") + "1"
    bits += "0" * (-len(bits) % 8)
    return START + head + int(bits, 2).to_bytes(len(bits) // 8)


def test_parameter_sets_of_real_encoders() -> None:
    assert size_in(H264_1080P, "avc1") == (1920, 1080)
    assert size_in(HEVC_720P, "hev1") == (1280, 720)
    access = START + b"\x09\x10" + H264_1080P + START + b"\x65\x88\x80"
    assert size_in(access, "h264") == (1920, 1080)


@pytest.mark.parametrize("code", [0x01, 0x21, 0x25, 0x26, 0x28, 0x2A, 0x41, 0x65])
@pytest.mark.parametrize("fourcc", ["H264", "avc1", "HEVC", "hvc1"])
def test_slices_are_no_headers(code: int, fourcc: str) -> None:
    assert size_in(START + bytes([code, 0x01, 0x88, 0x80, 0x12, 0x34, 0x56]) * 4, fourcc) is None


def test_h264_scaling_lists_fields_and_every_chroma_format() -> None:
    lists = (
        "1" + "1" + golomb(1) * 16 + "1" + golomb(16) + "0" * 6
    )  # one whole, one that ends at once
    high = "01100100 00000000 00101000" + golomb(0)
    order = golomb(0, 1) + "0" + golomb(0, 0, 2, 0, 1) + golomb(3) + "0"
    size = golomb(44, 17)
    interlaced = "0 0 1" + "1" + golomb(1, 2, 0, 3)
    bits = high + golomb(1, 0, 0) + "0" + lists + order + size + interlaced
    assert size_in(unit(b"\x27", bits), "H264") == (45 * 16 - 6, 2 * (18 * 16 - 2 * 3))
    full = high + golomb(3) + "0" + golomb(0, 0) + "0 0" + golomb(0, 0, 0, 1) + "0"
    assert size_in(unit(b"\x67", full + golomb(1, 1) + "1 1 1" + golomb(1, 0, 0, 3)), "H264") == (
        31,
        29,
    )


def test_hevc_sublayers_cropping_and_other_layers() -> None:
    sub = "0000 010 1" + "0" * 96 + "11 01" + "0" * 12 + "0" * (88 + 8) + "0" * 8
    bits = sub + golomb(0, 2, 1928, 1080) + "1" + golomb(0, 4, 1, 1)
    assert size_in(unit(b"\x42\x01", bits), "HEVC") == (1920, 1078)
    assert size_in(unit(b"\x42\x09", bits), "HEVC") is None, "of layer 1"


def test_mpeg4_object_layers(tmp_path: Path) -> None:
    plain = "0 00000001 0 0001 0 00 1" + f"{25:016b}" + "1 0 1" + f"{640:013b} 1 {481:013b} 1"
    assert size_in(unit(b"\x20", plain), "FMP4") == (640, 481)
    more = (
        "0 00000001 1 0010 001 1111 00000001 00000010 1 01 1 1" + "0" * 79 + "00 1"
        f"{24:016b} 1 1 00001 1 {64:013b} 1 {48:013b} 1"
    )
    assert size_in(START + b"\xb0\x01" + unit(b"\x2f", more), "mp4v") == (64, 48)
    assert size_in(unit(b"\x20", plain.replace("0 00 1", "0 01 1", 1)), "FMP4") is None
    assert size_in(START + b"\xb6\x10", "FMP4") is None
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"XVID"), 25, (64, 48)
    )
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert capture.set(cv2.CAP_PROP_FORMAT, -1)
    assert size_in(capture.read()[1].tobytes(), "XVID") == (64, 48)
    capture.release()


def test_jpeg() -> None:
    data = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    assert size_in(data, "MJPG") == (64, 48)
    assert size_in(b"\xff\xd8\xff", "MJPG") is None


@pytest.mark.parametrize("fourcc", ["MJPG", "FMP4", "h264", "hevc", "VP90", "\0\0\0\0"])
def test_what_is_cut_short_or_unknown_states_nothing(fourcc: str) -> None:
    assert size_in(b"", fourcc) is None
    assert size_in(START, fourcc) is None
    for whole in (H264_1080P, HEVC_720P, unit(b"\x20", "0 00000001 0 0001 0 00 1")):
        assert size_in(whole[:10], fourcc) is None
    assert size_in(H264_1080P, "VP90") is None
