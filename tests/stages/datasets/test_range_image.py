"""Range images: known triangles, a slow twin, jumps, and damage that is always told."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.datasets.images import ImageError, decode_rgb
from stages.datasets.meshes import Mesh, MeshError
from stages.datasets.ppm import png_of_ppm
from stages.datasets.range_image import (
    MAX_EDGE_MM,
    RangeImage,
    read_range_image,
    read_range_surface,
    surface,
)
from tests.stages.datasets.raw_trees import ppm, range_text, write

FLAT = np.full((3, 3), -1500.0)


def image_of(depth: np.ndarray) -> RangeImage:
    """A grid of 1 mm; NaN is not valid."""
    y, x = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]].astype(float)
    return RangeImage(np.stack([x, -y, np.nan_to_num(depth)], axis=-1), np.isfinite(depth))


def normals(mesh: Mesh) -> np.ndarray:
    corners = mesh.vertices[mesh.faces]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def triangles(mesh: Mesh) -> set[frozenset[tuple[float, ...]]]:
    return {frozenset(map(tuple, corners.tolist())) for corners in mesh.vertices[mesh.faces]}


def slow_surface(image: RangeImage, longest: float) -> set[frozenset[tuple[float, ...]]]:
    """The same triangles, cell by cell."""

    def far(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.linalg.norm(p - q))

    found = set()
    height, width = image.valid.shape
    for i in range(height - 1):
        for j in range(width - 1):
            places = [(i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)]
            points = {k: image.points[q] for k, q in enumerate(places) if image.valid[q]}
            if len(points) == 4:
                if far(points[0], points[3]) <= far(points[1], points[2]):
                    cells = [(0, 2, 3), (0, 3, 1)]
                else:
                    cells = [(0, 2, 1), (1, 2, 3)]
            else:
                cells = [tuple(points)] if len(points) == 3 else []
            for cell in cells:
                corners = [points[k] for k in cell]
                if all(far(p, q) <= longest for p in corners for q in corners):
                    found.add(frozenset(tuple(p.tolist()) for p in corners))
    return found


def test_nine_pixels_make_eight_triangles_that_face_the_camera() -> None:
    mesh = surface(image_of(FLAT))
    assert len(mesh.vertices) == 9
    assert len(mesh.faces) == 8
    np.testing.assert_allclose(normals(mesh), np.tile([0.0, 0.0, 1.0], (8, 1)))  # 1 mm2 each, twice


def test_three_valid_neighbours_make_one_triangle() -> None:
    for missing in ((0, 0), (0, 1), (1, 0), (1, 1)):
        depth = np.full((2, 2), -1500.0)
        depth[missing] = np.nan
        mesh = surface(image_of(depth))
        assert len(mesh.faces) == 1
        np.testing.assert_allclose(normals(mesh), [[0.0, 0.0, 1.0]])


def test_the_shorter_diagonal_cuts_and_a_jump_is_left_open() -> None:
    depth = np.full((2, 2), -1500.0)
    depth[1, 1] -= 3.0
    mesh = surface(image_of(depth))
    assert frozenset(
        {(1.0, 0.0, -1500.0), (0.0, -1.0, -1500.0), (1.0, -1.0, -1503.0)}
    ) in triangles(mesh)
    depth[1, 1] = -1500.0 - MAX_EDGE_MM
    mesh = surface(image_of(depth))
    assert len(mesh.faces) == 1  # the others stay together
    assert len(mesh.vertices) == 3  # the pixel behind belongs to nothing
    assert (mesh.vertices[:, 2] == -1500.0).all()


def test_columns_against_x_are_turned_round() -> None:
    image = image_of(FLAT)
    mirrored = RangeImage(image.points * [-1.0, 1.0, 1.0], image.valid)
    assert (normals(surface(mirrored))[:, 2] > 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7))
def test_the_same_as_cell_by_cell(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    depth = -1500.0 + rng.normal(0.0, 3.0, (height, width))
    depth[rng.random((height, width)) < 0.3] = np.nan
    image = image_of(depth)
    mesh = surface(image, 5.0)
    assert triangles(mesh) == slow_surface(image, 5.0)
    assert len(mesh.faces) == len(triangles(mesh))
    assert np.array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))


@given(st.integers(0, 2**32 - 1))
def test_moving_the_points_moves_the_mesh(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = image_of(-1500.0 + rng.normal(0.0, 1.0, (5, 6)))
    mesh = surface(image)
    shift = rng.normal(0.0, 10.0, 3)
    moved = surface(RangeImage(image.points + shift, image.valid))
    np.testing.assert_array_equal(moved.faces, mesh.faces)
    np.testing.assert_allclose(moved.vertices, mesh.vertices + shift)


@pytest.mark.parametrize(
    "header",
    [
        "{rows} rows\n{columns} columns\npixels (flag X Y Z):\n",
        "  {rows}   Rows\r\n {columns} COLUMNS\r\nPixels  (flag X Y Z) :\r\n",
        "\ufeff{rows} row\n{columns} cols\npixels\n",
    ],
)
def test_headers_and_gzip(tmp_path: Path, header: str) -> None:
    text = range_text(FLAT, header=header).encode()
    for content in (text, gzip.compress(text)):
        image = read_range_image(write(tmp_path / "a.abs", content))
        assert image.valid.all()
        np.testing.assert_array_equal(image.points, image_of(FLAT).points)


def test_flags_and_the_far_number_both_mark_nothing(tmp_path: Path) -> None:
    depth = FLAT.copy()
    depth[0, 0] = np.nan
    text = range_text(depth).replace("0 1 1", "1 1 1", 1)  # flagged valid, but -999999
    image = read_range_image(write(tmp_path / "a.abs", text))
    assert image.valid.sum() == 8
    text = range_text(FLAT).replace("1 1 1", "0 1 1", 1)  # a number, but flagged
    image = read_range_image(write(tmp_path / "a.abs", text))
    assert image.valid.sum() == 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ends inside its header"),
        ("3 rows\n3 columns\n", "header"),
        ("three rows\n3 columns\npixels\n1\n", "expected a line such as '480 row...'"),
        ("3 rows\n3 lines\npixels\n1\n", "got '3 lines'"),
        ("3 rows\n3 columns\npoints\n1\n", "'pixels"),
        (range_text(FLAT).replace("3 rows", "4 rows"), "4 rows of 3 columns need 4 x 12 .* got 36"),
        (range_text(FLAT)[:-40], "truncated or damaged|not a number"),
        (range_text(FLAT).replace("-1500.0", "##", 1), "not a number"),
        (range_text(FLAT).replace("-1500.000000", "nan", 1), "NaN or infinite, the first in row 0"),
        (range_text(FLAT * np.nan), "none of its 9 pixels is valid"),
        (range_text(np.array([[1.0, np.nan], [np.nan, 1.0]])), "no three neighbours"),
        ("0 rows\n0 columns\npixels\n", "none of its 0 pixels"),
    ],
)
def test_damage_is_told(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(MeshError, match=reason):
        read_range_surface(write(tmp_path / "a.abs", text))


def test_a_cut_gzip_is_told(tmp_path: Path) -> None:
    cut = gzip.compress(range_text(FLAT).encode())[:-12]
    with pytest.raises(MeshError, match="damaged gzip"):
        read_range_surface(write(tmp_path / "a.abs.gz", cut))


@given(data=st.data())
def test_no_text_raises_anything_else(tmp_path_factory, data: st.DataObject) -> None:
    text = range_text(FLAT).encode()
    cut = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.binary(max_size=8))
    again = data.draw(st.integers(0, len(text)))
    path = tmp_path_factory.getbasetemp() / "fuzz.abs"
    try:
        mesh = read_range_surface(write(path, text[:cut] + junk + text[cut + again :]))
        assert np.isfinite(mesh.vertices).all()
    except MeshError as error:
        message = str(error)
        assert str(path) in message


def test_a_whole_image_keeps_every_triangle() -> None:
    rng = np.random.default_rng(0)
    depth = -1500.0 + rng.normal(0.0, 0.2, (480, 640))
    image = image_of(depth)
    assert len(surface(image).faces) == 2 * 479 * 639


def test_ppm_keeps_every_pixel() -> None:
    data, pixels = ppm()
    for content in (data, gzip.compress(data), data + b"rest"):
        np.testing.assert_array_equal(decode_rgb(png_of_ppm(content)), pixels)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ppm()[0][:-1], "truncated: 71 bytes of pixels, expected 72"),
        (gzip.compress(ppm()[0])[:-9], "gzipped photograph is truncated"),
        (b"P5\n2 2\n255\n1234", "expected a binary PPM"),
        (b"", "expected a binary PPM"),
        (b"P6\n2 2\n65535\n" + bytes(24), "8-bit"),
        (b"P6\n0 2\n255\n", "8-bit"),
        (b"P6\n99999999 99999999\n255\n", "8-bit"),
    ],
)
def test_other_ppm_files_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        png_of_ppm(data)
