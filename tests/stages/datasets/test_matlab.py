"""MATLAB files: the same values as scipy's reader, and damage that stays an error."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.datasets.matlab import MatError, numeric, read_mat

DTYPES = st.sampled_from([np.dtype(f"{k}{n}") for k in "iu" for n in (1, 2, 4, 8)])
FLOATS = st.sampled_from([np.dtype("f4"), np.dtype("f8")])
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=6)


@settings(max_examples=60, deadline=None)
@given(
    arrays=st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True),
        hnp.arrays(st.one_of(DTYPES, FLOATS), SHAPES),
        min_size=1,
        max_size=4,
    ),
    compress=st.booleans(),
)
def test_as_scipy_reads_it(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], compress: bool
) -> None:
    path = tmp_path_factory.mktemp("m") / "a.mat"
    scipy.io.savemat(path, arrays, do_compression=compress)
    ours, theirs = read_mat(path), scipy.io.loadmat(path)
    assert ours.keys() == arrays.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
        assert values.dtype == theirs[name].dtype
    first = next(iter(arrays))
    assert read_mat(path, [first, "absent"]).keys() == {first}


def test_cells_structures_text_and_sparse_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    content = {
        "cell": np.array([1, "a"], dtype=object),
        "struct": {"x": 1},
        "text": "hello",
        "sparse": scipy.sparse.csc_matrix(np.eye(3)),
        "number": np.float64(2.5),
    }
    scipy.io.savemat(path, content)
    assert read_mat(path).keys() == {"number"}
    assert read_mat(path)["number"].shape == (1, 1)


def test_big_endian_header(tmp_path: Path) -> None:
    """A file written by hand in the other byte order."""
    flags = (6).to_bytes(4, "big") + (8).to_bytes(4, "big") + (6).to_bytes(4, "big") + bytes(4)
    dims = b"".join(n.to_bytes(4, "big") for n in (5, 8, 1, 2))
    name = (1).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"x" + bytes(7)
    real = (9).to_bytes(4, "big") + (16).to_bytes(4, "big") + np.array([1.5, -2], ">f8").tobytes()
    body = flags + dims + name + real
    header = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    path = tmp_path / "a.mat"
    path.write_bytes(header + (14).to_bytes(4, "big") + len(body).to_bytes(4, "big") + body)
    np.testing.assert_array_equal(read_mat(path)["x"], [[1.5, -2]])


def test_real_files_as_scipy_reads_them(shared_data: Path) -> None:
    paths = sorted((shared_data / "real_300wlp").glob("*.mat"))
    paths += sorted((shared_data / "deep3d").glob("*.mat"))
    assert len(paths) >= 10
    for path in paths:
        theirs = scipy.io.loadmat(path)
        for name, values in read_mat(path).items():
            np.testing.assert_array_equal(values, theirs[name])
            assert values.dtype == theirs[name].dtype


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damage_is_only_ever_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stream = io.BytesIO()
    variables = {"Pose_Para": np.ones((1, 7), np.float32), "pt2d": np.ones((2, 68))}
    scipy.io.savemat(stream, variables, do_compression=data.draw(st.booleans()))
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(124, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    path = tmp_path_factory.mktemp("m") / "a.mat"
    path.write_bytes(raw[:cut])
    content = {}
    with contextlib.suppress(MatError):
        content = read_mat(path)
    assert all(isinstance(values, np.ndarray) for values in content.values())


def test_numeric_checks(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"x": np.array([[1, 2, 3]], np.uint8), "nan": np.array([[np.nan]])})
    content = read_mat(path)
    np.testing.assert_array_equal(numeric(content, "x", path, 3), [1.0, 2.0, 3.0])
    with pytest.raises(MatError, match=r"x is \(1, 3\) of uint8, expected 4 real numbers"):
        numeric(content, "x", path, 4)
    with pytest.raises(MatError, match="no y; expected 3 numbers, got"):
        numeric(content, "y", path, 3)
    with pytest.raises(MatError, match="NaN"):
        numeric(content, "nan", path, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "shorter than a header"),
        (b"\x89HDF\r\n\x1a\n", "v7.3"),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF", "v7.3"),
        (b"x" * 200, "no MATLAB level 5 header"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(MatError, match=reason):
        read_mat(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_mat(tmp_path / "b.mat")
