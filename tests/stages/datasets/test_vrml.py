"""VRML: known solids, what exporters do differently, and damage that is always told."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.datasets.meshes import MeshError
from stages.datasets.vrml import read_vrml
from tests.stages.datasets.raw_trees import WRL, write

HEAD = "#VRML V2.0 utf8\n"
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def face_set(points: np.ndarray, polygons: list[tuple[int, ...]], extra: str = "") -> str:
    rows = ", ".join(" ".join(map(str, p)) for p in points.tolist())
    corners = " ".join(" ".join(map(str, p)) + " -1" for p in polygons)
    coord = f"coord Coordinate {{ point [ {rows} ] }}"
    return f"Shape {{ geometry IndexedFaceSet {{ {extra} {coord} coordIndex [ {corners} ] }} }}\n"


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("fc,fc->f", a, np.cross(b, c)).sum() / 6.0)


def test_a_cube_of_quads(tmp_path: Path) -> None:
    mesh = read_vrml(write(tmp_path / "a.wrl", HEAD + face_set(CUBE, SIDES)))
    np.testing.assert_array_equal(mesh.vertices, CUBE)
    assert mesh.faces.shape == (12, 3)
    assert volume(mesh.vertices, mesh.faces) == pytest.approx(1.0)


def test_the_other_winding_is_turned(tmp_path: Path) -> None:
    text = HEAD + face_set(CUBE, [side[::-1] for side in SIDES], "ccw FALSE")
    mesh = read_vrml(write(tmp_path / "a.wrl", text))
    assert volume(mesh.vertices, mesh.faces) == pytest.approx(1.0)


def test_several_face_sets_are_joined(tmp_path: Path) -> None:
    text = HEAD + face_set(CUBE, SIDES) + face_set(CUBE + 5.0, [(0, 1, 3)])
    mesh = read_vrml(write(tmp_path / "a.wrl", text))
    assert mesh.vertices.shape == (16, 3)
    np.testing.assert_array_equal(mesh.faces[-1], [8, 9, 11])


def test_points_may_be_defined_once_and_used_again(tmp_path: Path) -> None:
    first = face_set(CUBE, SIDES[:3]).replace("coord Coordinate", "coord DEF P Coordinate")
    second = "Shape { geometry IndexedFaceSet { coord USE P coordIndex [ 0 1 3 ] } }"
    mesh = read_vrml(write(tmp_path / "a.wrl", HEAD + first + second))
    assert len(mesh.faces) == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(", ", ",\n"),
        lambda text: text.replace("coordIndex [ 0, 1, 2, 3, -1 ]", "coordIndex [0 1 2 3]"),
        lambda text: text.replace("1.0e2", "+1E+02"),
        lambda text: text.replace("point [ 0", "point\n[ # first\n 0"),
        lambda text: text.replace("Group {", "Transform { scale 1 1 1 rotation 0 1 0 0"),
    ],
)
def test_exporters_differ(tmp_path: Path, change) -> None:
    content = change(WRL).encode()
    for data in (content, gzip.compress(content)):
        mesh = read_vrml(write(tmp_path / "a.wrl", data))
        np.testing.assert_array_equal(
            mesh.vertices, [[0, 0, 0], [100, 0, 0], [100, 100, 5], [0, 100, 0]]
        )
        np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("v 0 0 0\n", "starts with '#VRML V2.0'"),
        (WRL.replace("V2.0", "V1.0"), "starts with '#VRML V2.0'"),
        (HEAD, "no IndexedFaceSet"),
        (HEAD + 'Inline { url "http://example.org/a.wrl" }', "no IndexedFaceSet"),
        (WRL[: WRL.index("1.0e2")], "ends inside the list 'point': truncated"),
        (WRL[: WRL.index("3, -1")], "ends inside the list"),
        (WRL[: WRL.rindex("} ]")], "open nodes: truncated"),
        (WRL + "}", "'}' closes nothing"),
        (WRL.replace("100 100 5", "100 nan 5"), "NaN or infinite"),
        (WRL.replace("100 100 5", "100 x 5"), "not a number"),
        (WRL.replace("100 100 5", "100 5"), "11 numbers, expected three"),
        (WRL.replace("0, 1, 2, 3", "0, 1, 2, 4"), "refers to point 4, expected 0 to 3"),
        (WRL.replace("0, 1, 2, 3", "0, 1, 2, -3"), "refers to point -3"),
        (WRL.replace("0, 1, 2, 3", "0, 1.5, 2, 3"), "not integers"),
        (WRL.replace("0, 1, 2, 3", "0, nan, 2, 3"), "not integers"),
        (WRL.replace("0, 1, 2, 3", "0, 1"), "2 corners"),
        (WRL.replace("coordIndex [ 0, 1, 2, 3, -1 ]", "coordIndex [ ]"), "no faces"),
        (WRL.replace("Group {", "Transform { translation 0 0 9"), "Transform with translation"),
        (WRL.replace("Group {", "Transform { rotation 0 0 1 0.5"), "Transform with rotation"),
        ("#VRML V2.0\0", "zero bytes"),
    ],
)
def test_damage_is_told(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(MeshError, match=reason):
        read_vrml(write(tmp_path / "a.wrl", text))


@given(data=st.data())
def test_no_text_raises_anything_else(tmp_path_factory, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(WRL)))
    again = data.draw(st.integers(0, len(WRL)))
    alphabet = st.sampled_from([*'"\\#{}[],-1e. \n', "DEF ", "USE ", "point ", "Transform ", "nan"])
    junk = "".join(data.draw(st.lists(alphabet, max_size=12)))
    path = tmp_path_factory.getbasetemp() / "fuzz.wrl"
    try:
        mesh = read_vrml(write(path, WRL[:cut] + junk + WRL[cut + again :]))
        assert mesh.faces.max() < len(mesh.vertices)
    except MeshError as error:
        message = str(error)
        assert str(path) in message


@pytest.mark.parametrize("junk", [b"a", b'"\\', b'\\"', b"a [", b"{", b"#", b'"', b"DEF ", b"[ "])
def test_no_file_costs_the_square_of_its_length(tmp_path: Path, junk: bytes) -> None:
    path = write(tmp_path / "a.wrl", HEAD.encode() + junk * (500_000 // len(junk)))
    started = time.process_time()
    with pytest.raises(MeshError):
        read_vrml(path)
    # a second at worst; squared, half a megabyte would be 10^11 steps and take many minutes
    assert time.process_time() - started < 60


def test_nodes_nest_only_so_deep(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="256 nodes open at once"):
        read_vrml(write(tmp_path / "a.wrl", HEAD.encode() + b"Group {" * 300 + b"}" * 300))
    with pytest.raises(MeshError, match="no IndexedFaceSet"):
        read_vrml(write(tmp_path / "a.wrl", HEAD.encode() + b"Group {" * 200 + b"}" * 200))
