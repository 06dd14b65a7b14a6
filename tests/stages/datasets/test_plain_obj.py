"""The compiled OBJ reader against the general one, bit by bit."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.datasets import meshes
from stages.datasets.plain_obj import read_plain_obj

numbers = st.one_of(
    st.floats(-1e6, 1e6).map(lambda x: f"{x:.6f}"),
    st.floats(-1e6, 1e6).map(lambda x: f"{x:.4e}"),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-99999, 99999).map(str),
    st.sampled_from(
        ["-.5", "+3", "7.", "-0", "1e5", "2E-3", "00012.50", "1e-300", "0.1234567890123456"]
    ),
)
corner = st.sampled_from(["1", "2/1", "3//2", "1/2/3", "2", "3/", "+1", "-1", "0"])
lines = st.one_of(
    st.tuples(numbers, numbers, numbers).map(lambda n: "v " + " ".join(n)),
    st.tuples(corner, corner, corner).map(lambda c: "f " + "  ".join(c)),
    st.sampled_from(
        [
            "vt 0.5 0.5",
            "vn 0 0 1",
            "# v 1 2 3",
            "",
            "o head",
            "g f 1 2 3",
            "s off",
            "v\t1 2\t3",
            "v 1 2 3 ",
            "v 1 2 3 0.1 0.2 0.3",
            "f 1 2 3 1",
            "f 1 2 3 # last",
            " v 1 2 3",
            "v 1 2",
        ]
    ),
)


def general(content: bytes):
    try:
        mesh = meshes._parse_obj(content)
    except (ValueError, IndexError):
        return None
    return mesh


@settings(max_examples=150, deadline=None)
@given(st.lists(lines, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_it_reads_is_what_the_general_reader_reads(texts, end, last):
    content = end.join(["v 0 0 0", "v 1 0 0", "v 0 1 0", *texts]).encode()
    content += end.encode() if last else b""
    assert len(content) < meshes._WORTH_COMPILING
    plain = read_plain_obj(content)
    if plain is not None:
        mesh = general(content)
        assert mesh is not None, content
        np.testing.assert_array_equal(plain[0].view(np.int64), mesh.vertices.view(np.int64))
        np.testing.assert_array_equal(plain[1], mesh.faces)
        assert mesh.colors is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("v 1 2 3\nv 4 5 6\nv 7 8 9\nf 1 2 3\n", True),
        ("# made by\nmtllib a.mtl\nv 1.25 -2e-3 3\nvt 0 1\nf 1/1/1 1/1/1 1/1/1", True),
        ("v 1 2 3 255 0 0\n", False),  # coloured
        ("v 1 2 3\nf 1 1 1 1\n", False),  # a polygon
        ("v 1 2 3\nf -1 -1 -1\n", False),  # counts back
        ("v 1 2 \\\n3\n", False),  # continued
        ("v 1 2 nan\n", False),
        ("v 1 2 3.00000000000000001\n", False),  # more digits than are exact
        ("v 1 2 3e40\n", False),
        ("\ufeffv 1 2 3\n", False),
        ("v 1 2 3\rv 4 5 6\r", False),
        ("f 1 2 3\n", False),
        ("", False),
    ],
)
def test_what_is_not_plain_is_left_to_the_general_reader(text, plain):
    assert (read_plain_obj(text.encode()) is not None) == plain


def test_large_files_go_through_it_and_stay_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    vertices, faces = rng.normal(0, 100, (4000, 3)), rng.integers(0, 4000, (9000, 3))
    meshes.write_obj(tmp_path / "m.obj", vertices, faces)
    assert (tmp_path / "m.obj").stat().st_size > 200_000
    compiled = []
    monkeypatch.setattr(meshes, "_WORTH_COMPILING", 100)
    monkeypatch.setattr(meshes, "_large_files", itertools.count())
    monkeypatch.setattr(
        "stages.datasets.plain_obj.read_plain_obj",
        lambda content: compiled.append(content) or read_plain_obj(content),
    )
    slow = meshes.read_mesh(tmp_path / "m.obj")
    for _ in range(1, meshes._BEFORE_LOADING):
        meshes.read_mesh(tmp_path / "m.obj")
    assert not compiled
    quick = meshes.read_mesh(tmp_path / "m.obj")
    assert len(compiled) == 1
    np.testing.assert_array_equal(quick.vertices, slow.vertices)
    np.testing.assert_array_equal(quick.faces, slow.faces)
