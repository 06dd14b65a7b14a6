"""OBJ and PLY as data sets write them, against a reader that takes one line at a time."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.datasets.meshes import Mesh, MeshError, read_mesh

SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
FAN = [[0, 1, 2], [0, 2, 3]]


def slow_obj(text: str) -> Mesh:
    """One line at a time, fans by hand."""
    vertices, tints, faces = [], [], []
    for raw in text.replace("\\\n", " ").splitlines():
        words = raw.split("#")[0].split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
            tints.append([float(word) for word in words[4:7]])
        elif words[0] == "f":
            corners = [int(word.split("/")[0]) for word in words[1:]]
            corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
            faces += [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]
    colors = None
    if all(len(tint) == 3 for tint in tints):
        scale = 1.0 if np.max(tints) > 1.0 else 255.0
        colors = np.clip(np.rint(np.array(tints) * scale), 0, 255).astype(np.uint8)
    return Mesh(np.array(vertices), np.array(faces, dtype=np.int64).reshape(-1, 3), colors)


@st.composite
def obj_texts(draw: st.DrawFn) -> str:
    """Files that mix what owners' tools write: groups, materials, slashes, polygons, comments."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    colours = draw(st.sampled_from(["", "unit", "bytes"]))
    lines, count = ["mtllib face.mtl", "# made by hand"], 0
    for part in range(draw(st.integers(1, 4))):
        lines.append(draw(st.sampled_from([f"o part {part}", f"g left right_{part}", "s off", ""])))
        for _ in range(int(rng.integers(4, 9))):
            values = [f"{value:.{rng.integers(0, 7)}f}" for value in rng.normal(0, 99, 3)]
            if colours == "unit":
                values += [f"{value:.4f}" for value in rng.random(3)]
            elif colours == "bytes":
                values += [str(value) for value in rng.integers(2, 256, 3)]
            lines.append(rng.choice(["v ", "v  ", " v ", "v\t"]) + " ".join(values))
            lines.append(rng.choice(["vt 0.5 0.5", "vn 0 0 1", "vp 1", "#", "usemtl a b", ""]))
            count += 1
        style = rng.choice(["{0}", "{0}/{1}", "{0}/{1}/1", "{0}//2"])
        for _ in range(int(rng.integers(1, 7))):
            corners = rng.permutation(count)[: rng.integers(3, min(count, 6) + 1)] + 1
            if rng.random() < 0.3:
                corners = corners - count - 1
            row = "f " + " ".join(style.format(corner, 7) for corner in corners)
            lines.append(row + rng.choice(["", " ", " # end", "\\\n "]))
            lines.append(rng.choice(["usemtl other", "f_ 1 2", "l 1 2", ""]))
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))


@settings(max_examples=80, deadline=None)
@given(text=obj_texts(), crlf=st.booleans())
def test_obj_equals_the_slow_twin(
    tmp_path_factory: pytest.TempPathFactory, text: str, crlf: bool
) -> None:
    path = tmp_path_factory.mktemp("m") / "a.obj"
    path.write_bytes((text.replace("\n", "\r\n") if crlf else text).encode())
    mesh, expected = read_mesh(path), slow_obj(text)
    np.testing.assert_array_equal(mesh.vertices, expected.vertices)
    np.testing.assert_array_equal(mesh.faces, expected.faces)
    if expected.colors is None:
        assert mesh.colors is None
    else:
        np.testing.assert_array_equal(mesh.colors, expected.colors)


@settings(max_examples=60, deadline=None)
@given(text=obj_texts(), cut=st.floats(0, 1))
def test_a_cut_obj_reads_or_says_why(
    tmp_path_factory: pytest.TempPathFactory, text: str, cut: float
) -> None:
    path = tmp_path_factory.mktemp("m") / "a.obj"
    path.write_bytes(text.encode()[: int(cut * len(text))])
    try:
        mesh = read_mesh(path)
    except MeshError as error:
        told = str(error)
    else:
        told = "a.obj" if mesh.faces.max() < len(mesh.vertices) else ""
    assert "a.obj" in told


def test_several_materials_groups_and_names_that_do_not_match_the_mtl(tmp_path: Path) -> None:
    """What MICA mends by rewriting both files does not matter to the geometry."""
    text = (
        "mtllib F1001_N.mtl\no left\nusemtl texture_left\nv 0 0 0\nv 1 0 0\nv 1 1 0\n"
        "vt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\n"
        "o right\ng right inner\nusemtl texture_right\nv 0 1 0\nf 1/1 3/3 4/2\n"
    )
    (tmp_path / "F1001_N.mtl").write_text("newmtl something_else\nmap_Kd lost.bmp\n")
    (tmp_path / "F1001_N.obj").write_text(text)
    mesh = read_mesh(tmp_path / "F1001_N.obj")
    np.testing.assert_array_equal(mesh.vertices, SQUARE)
    np.testing.assert_array_equal(mesh.faces, FAN)


def ply(kind: str) -> bytes:
    """The square with colours, a normal per vertex, and elements before and after that we skip."""
    head = (
        f"ply\nformat {kind} 1.0\nobj_info made by hand\nelement range 2\nproperty short a\n"
        "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
        "property float nx\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
        "element face 1\nproperty list uchar uint vertex_index\n"
        "element edge 1\nproperty int vertex1\nproperty int vertex2\n"
        "element strip 1\nproperty list int int ids\nend_header\n"
    ).encode()
    if kind == "ascii":
        rows = "".join(f"{x} {y} {z} 0.5 10 20 30\n" for x, y, z in SQUARE)
        return head + f"1\n2\n{rows}4 0 1 2 3\n0 1\n2 5 6\n".encode()
    order = "<" if kind.endswith("little_endian") else ">"
    body = np.array([1, 2], order + "i2").tobytes()
    for row in SQUARE:
        body += np.array([*row, 0.5], order + "f4").tobytes() + bytes([10, 20, 30])
    body += b"\x04" + np.arange(4).astype(order + "u4").tobytes()
    body += np.array([0, 1], order + "i4").tobytes()
    return head + body + np.array([2, 5, 6], order + "i4").tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_with_other_elements_gzipped_or_not(tmp_path: Path, kind: str, zipped: bool) -> None:
    content = ply(kind)
    path = tmp_path / ("a.ply.gz" if zipped else "a.ply")
    path.write_bytes(gzip.compress(content) if zipped else content)
    mesh = read_mesh(path)
    np.testing.assert_array_equal(mesh.vertices, SQUARE)
    np.testing.assert_array_equal(mesh.faces, FAN)
    np.testing.assert_array_equal(mesh.colors, [[10, 20, 30]] * 4)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_a_ply_of_points_alone(tmp_path: Path, kind: str) -> None:
    order = ">" if kind.endswith("big_endian") else "<"
    head = f"ply\nformat {kind} 1.0\nelement vertex 4\n"
    head += "property double x\nproperty double y\nproperty double z\nend_header\n"
    rows = "\n".join(" ".join(str(c) for c in row) for row in SQUARE).encode()
    body = rows if kind == "ascii" else np.array(SQUARE, order + "f8").tobytes()
    path = tmp_path / "cloud.ply"
    path.write_bytes(head.encode() + body)
    with pytest.raises(MeshError, match="4 vertices but no faces"):
        read_mesh(path)
    mesh = read_mesh(path, allow_point_cloud=True)
    np.testing.assert_array_equal(mesh.vertices, SQUARE)
    assert mesh.faces.shape == (0, 3)
