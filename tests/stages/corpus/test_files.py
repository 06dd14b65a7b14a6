"""Shared formats: OBJ, MATLAB, images."""

import io

import cv2
import numpy as np
import pytest
import scipy.io

from stages.corpus.files import jpeg_bytes, mat_bytes, obj_text, png_bytes, truncated
from stages.corpus.scan_files import (
    index_lines,
    land_text,
    lnd_text,
    picked_points,
    shape_bs,
    tka_text,
)


def test_obj_lines() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    quads, triangles = np.array([[0, 1, 3, 2]]), np.array([[0, 1, 2]])
    text = obj_text(
        vertices,
        [quads, triangles],
        colors=np.full((4, 3), 0.5),
        head="mtllib a.mtl\n",
        material="a",
        texture_indices=True,
        decimals=2,
    )
    lines = text.splitlines()
    assert lines[0] == "mtllib a.mtl"
    assert lines[1] == "v 0.00 0.00 0.00 0.5000 0.5000 0.5000"
    assert lines[5].startswith("vt ")
    assert lines[-3:] == ["usemtl a", "f 1/1 2/2 4/4 3/3", "f 1/1 2/2 3/3"]


def test_mat_is_deterministic_and_readable() -> None:
    variables = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([[1, 2]], dtype=np.uint16)}
    for compress in (False, True):
        data = mat_bytes(variables, compress=compress)
        assert data == mat_bytes(variables, compress=compress)
        read = scipy.io.loadmat(io.BytesIO(data))
        np.testing.assert_array_equal(read["a"], variables["a"])
        assert read["b"].dtype == np.uint16


def test_images_keep_rgb_order_and_truncation_breaks_them() -> None:
    image = np.zeros((40, 30, 3), dtype=np.uint8)
    image[..., 0] = 200
    for data in (png_bytes(image), jpeg_bytes(image, 95)):
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert read.shape == (40, 30, 3)
        assert read[0, 0, 2] > 150
        assert len(truncated(data)) < len(data)


def test_picked_points_have_the_lines_the_official_reader_takes() -> None:
    points = np.arange(21.0).reshape(7, 3) + 0.5
    lines = picked_points(points, "scan.obj").splitlines()
    read = []
    for line in lines[8:15]:
        parts = [part for part in line.replace("/>", "").split() if part[:2] in {"x=", "y=", "z="}]
        read.append([float(part[3:-1]) for part in parts])
    np.testing.assert_allclose(read, points)
    assert not any("<point" in line for line in lines[:8] + lines[15:])


def test_landmark_texts() -> None:
    assert index_lines(np.array([0, 41])) == "1\n42\n"
    assert lnd_text(np.array([[1.0, 2, 3]])) == "1 1.000000 2.000000 3.000000\n"
    land = land_text(np.array([[50.0, 25.0]]), 100, 200)
    assert land == "1\n0.250000 0.750000\n"


def test_shape_bs_layout() -> None:
    shapes = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    data = shape_bs(shapes, 9)
    np.testing.assert_array_equal(np.frombuffer(data[:12], "<i4"), [2, 5, 9])
    read = np.frombuffer(data[12:], "<f4").reshape(3, 5, 3)
    np.testing.assert_array_equal(read, shapes)


def test_tka_holds_rotation_and_centre() -> None:
    text = tka_text(np.eye(3), np.array([1.0, 2.0, 3.0]), 25.0, 0.005, (960, 1280), (640.0, 480.0))
    lines = text.splitlines()
    start = lines.index("%M")
    rows = np.array([[float(v) for v in line.split()] for line in lines[start + 1 : start + 4]])
    np.testing.assert_array_equal(rows, np.eye(3))
    assert "%X 1" in lines
    assert "%Z 3" in lines


def test_an_image_that_cannot_be_encoded_is_an_error() -> None:
    with pytest.raises((ValueError, cv2.error)):
        png_bytes(np.zeros((0, 4, 3), dtype=np.uint8))
