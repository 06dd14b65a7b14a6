"""OBJ and PLY reading: closed forms, round trips, an independent reader, broken files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.datasets.meshes import (
    MeshError,
    cloud_ply_bytes,
    read_mesh,
    triangulate,
    write_obj,
)

QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
FAN = [[0, 1, 2], [0, 2, 3]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "text",
    [
        QUAD + "f 1 2 3 4\n",
        QUAD + "f 1/1 2/2 3/3 4/4\n",
        QUAD + "f 1//5 2//5 3//5 4//5\n",
        QUAD + "f 1/1/5 2/2/5 3/3/5 4/4/5\n",
        QUAD + "f -4 -3 -2 -1\n",
        QUAD + "f -4/-1 -3/-1 -2/-1 -1/-1\nv 9 9 9\n",
        QUAD + "f 1 2 3\nf 1 3 4",
        (QUAD + "f 1 2 3\nf 1 3 4\n").replace("\n", "\r\n"),
        "# scanner 1.0\nmtllib a.mtl\no head\n"
        + QUAD
        + "usemtl a\ns off\nf 1 2 3\nusemtl b\nf 1 3 4\n",
        QUAD + "vt 0 0\nvt 1 0\nvn 0 0 1\ng a\nf\t1/1/1 2/2/1  3/1/1 \nf 1/1/1 3/2/1 4/1/1 # end\n",
        QUAD + "f 1 2 \\\n3 4\n",
        "\ufeff" + QUAD.replace("v ", " v  ") + "  f 1 2 3 4\nl 1 2\n",
    ],
)
def test_obj_dialects_give_the_same_square(tmp_path: Path, text: str) -> None:
    mesh = read_mesh(write(tmp_path / "a.obj", text))
    np.testing.assert_array_equal(mesh.vertices[:4], SQUARE)
    np.testing.assert_array_equal(mesh.faces, FAN)
    assert mesh.faces.dtype == np.int64
    assert mesh.vertices.dtype == np.float64


def test_negative_indices_count_from_the_current_line(tmp_path: Path) -> None:
    first, second = "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "v 0 0 5\nv 1 0 5\nv 0 1 5\n"
    mesh = read_mesh(write(tmp_path / "a.obj", first + "f -3 -2 -1\n" + second + "f -3 -2 -1\n"))
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("red", "expected"), [("1 .5 0", [255, 128, 0]), ("255 128 0", [255, 128, 0])]
)
def test_vertex_colours(tmp_path: Path, red: str, expected: list[int]) -> None:
    text = "".join(f"{line} {red}\n" for line in QUAD.splitlines()) + "f 1 2 3\n"
    mesh = read_mesh(write(tmp_path / "a.obj", text))
    assert mesh.colors is not None
    np.testing.assert_array_equal(mesh.colors, [expected] * 4)


def test_mixed_vertex_lines_drop_colour_but_keep_positions(tmp_path: Path) -> None:
    mesh = read_mesh(write(tmp_path / "a.obj", QUAD + "v 2 2 2 .1 .2 .3\nf 1 2 3\n"))
    assert mesh.colors is None
    np.testing.assert_array_equal(mesh.vertices[4], [2, 2, 2])


def test_gzip_by_content(tmp_path: Path) -> None:
    mesh = read_mesh(write(tmp_path / "a.obj", gzip.compress((QUAD + "f 1 2 3 4\n").encode())))
    np.testing.assert_array_equal(mesh.faces, FAN)
    damaged = gzip.compress((QUAD * 50).encode())[:40]
    with pytest.raises(MeshError, match="damaged gzip"):
        read_mesh(write(tmp_path / "b.obj.gz", damaged))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("# nothing\n", "no vertices"),
        (QUAD, "no faces"),
        (QUAD.replace("1 1 0", "1 nan 0") + "f 1 2 3\n", "1 of 4 vertices are NaN"),
        (QUAD.replace("1 1 0", "1 inf 0") + "f 1 2 3\n", "NaN or infinite"),
        (QUAD + "f 1 2 5\n", "refers to vertex 4 .*expected 0 to 3"),
        (QUAD + "f 0 1 2\n", "OBJ counts from 1"),
        (QUAD + "f -9 1 2\n", "OBJ counts from 1"),
        (QUAD + "f 1 2\n", "2 corners"),
        (QUAD + "f 1 2 x\n", "not a number"),
        (QUAD + "f 1 2 3.5\n", "not integers"),
        (QUAD.replace("1 1 0", "1 1") + "f 1 2 3\n", "fewer than 3"),
        (QUAD.replace("1 1 0", "1 1 zero") + "f 1 2 3\n", "not a number"),
        ("\x00\x00\x00", "zero bytes"),
        ("ply\nformat ascii 1.0\nelement vertex 3\n", "without end_header"),
        ("ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1 2", "truncated"),
    ],
)
def test_broken_files_say_why_and_which(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "broken.obj", text)
    with pytest.raises(MeshError, match=reason) as caught:
        read_mesh(path)
    assert "broken.obj" in str(caught.value)


def test_point_cloud_only_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "cloud.obj", QUAD)
    mesh = read_mesh(path, allow_point_cloud=True)
    assert mesh.faces.shape == (0, 3)
    np.testing.assert_array_equal(mesh.vertices, SQUARE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 7), max_size=12), st.integers(0, 1000))
def test_triangulate_equals_the_slow_twin(sizes: list[int], seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, 50, sum(sizes))
    expected, start = [], 0
    for size in sizes:
        polygon = indices[start : start + size]
        expected += [[polygon[0], polygon[i], polygon[i + 1]] for i in range(1, size - 1)]
        start += size
    fast = triangulate(np.array(sizes, dtype=np.int64), indices)
    np.testing.assert_array_equal(fast, np.array(expected, dtype=np.int64).reshape(-1, 3))


def random_mesh(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    faces = np.stack([rng.permutation(count)[:3] for _ in range(2 * count)])
    faces[: count // 3 + 1] = np.arange(3 * (count // 3 + 1)).reshape(-1, 3) % count
    return np.round(rng.normal(size=(count, 3)), 5), faces


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
@pytest.mark.parametrize("seed", range(4))
def test_ply_agrees_with_trimesh(tmp_path: Path, encoding: str, seed: int) -> None:
    vertices, faces = random_mesh(seed)
    colors = np.random.default_rng(seed).integers(0, 256, (len(vertices), 4), dtype=np.uint8)
    theirs = trimesh.Trimesh(vertices, faces, vertex_colors=colors, process=False)
    content = theirs.export(file_type="ply", encoding=encoding)
    mesh = read_mesh(write(tmp_path / "a.ply", content))
    np.testing.assert_allclose(mesh.vertices, vertices, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, faces)
    np.testing.assert_array_equal(mesh.colors, colors[:, :3])


@pytest.mark.parametrize("seed", range(4))
def test_obj_agrees_with_trimesh(tmp_path: Path, seed: int) -> None:
    vertices, faces = random_mesh(seed)
    theirs = trimesh.Trimesh(vertices, faces, process=False)
    mesh = read_mesh(write(tmp_path / "a.obj", theirs.export(file_type="obj")))
    np.testing.assert_allclose(mesh.vertices, vertices, atol=1e-7)
    np.testing.assert_array_equal(mesh.faces, faces)


def test_binary_ply_of_both_byte_orders_with_polygons_and_extra_elements(tmp_path: Path) -> None:
    header = (
        "ply\nformat {} 1.0\ncomment made by hand\nelement camera 1\nproperty float focal\n"
        "element vertex 4\nproperty double x\nproperty double y\nproperty double z\n"
        "property uchar quality\nelement face 2\nproperty list uchar int vertex_indices\n"
        "property uchar flags\nend_header\n"
    )
    for name, order in (("binary_little_endian", "<"), ("binary_big_endian", ">")):
        body = np.array([2.5], order + "f4").tobytes()
        for row in SQUARE:
            body += np.array(row, order + "f8").tobytes() + b"\x07"
        for polygon in ([0, 1, 2, 3], [0, 2, 3]):
            body += bytes([len(polygon)]) + np.array(polygon, order + "i4").tobytes() + b"\x01"
        content = header.format(name).encode() + body
        mesh = read_mesh(write(tmp_path / "a.ply", content))
        np.testing.assert_array_equal(mesh.vertices, SQUARE)
        np.testing.assert_array_equal(mesh.faces, [*FAN, [0, 2, 3]])
        with pytest.raises(MeshError):
            read_mesh(write(tmp_path / "b.ply", content[:-6]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), colored=st.booleans())
def test_write_then_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, colored: bool
) -> None:
    vertices, faces = random_mesh(seed)
    colors = None
    if colored:
        colors = np.random.default_rng(seed).integers(0, 256, (len(vertices), 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("m") / "a.obj"
    write_obj(path, vertices, faces, colors)
    mesh = read_mesh(path)
    np.testing.assert_array_equal(mesh.vertices, vertices)
    np.testing.assert_array_equal(mesh.faces, faces)
    if colors is not None:
        np.testing.assert_array_equal(mesh.colors, colors)


def test_a_coloured_point_cloud_is_read_by_trimesh(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points, colors = rng.normal(size=(9, 3)), rng.integers(0, 256, (9, 3)).astype(np.uint8)
    path = tmp_path / "cloud.ply"
    path.write_bytes(cloud_ply_bytes(points, colors))
    cloud = trimesh.load(path, process=False)
    np.testing.assert_allclose(cloud.vertices, points, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], colors)


def test_real_scan_and_template(shared_data: Path) -> None:
    scan = read_mesh(shared_data / "real_scan" / "scan.obj")
    assert scan.vertices.shape == (47653, 3)
    assert scan.faces.shape == (94445, 3)
    template = read_mesh(shared_data / "flame_assets" / "head_template.obj")
    assert template.vertices.shape == (5023, 3)
    assert template.faces.shape == (9976, 3)
    scan_mm = read_mesh(shared_data / "now_case" / "scan_mm.obj")
    np.testing.assert_allclose(scan_mm.vertices, scan.vertices * 1000, atol=1e-3)
