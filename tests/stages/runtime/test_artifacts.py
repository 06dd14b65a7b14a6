"""Atomic, deterministic writers."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.runtime import artifacts
from stages.runtime.contracts import array_of, schema, table_of
from stages.runtime.rows import numbers_of


def test_an_npz_has_the_same_bytes_whatever_the_python(tmp_path: Path) -> None:
    arrays = {"b": np.arange(5.0), "a": np.float64(2)}
    artifacts.write_npz(arrays, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as read:
        assert {name: read[name].tolist() for name in read.files} == {
            "a": 2.0,
            "b": [0, 1, 2, 3, 4],
        }
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        for entry in archive.infolist():
            assert (entry.extract_version, entry.date_time[0]) == (20, 1980)
    assert artifacts.sha256_file(tmp_path / "x.npz").startswith("ff42c7669f36")


def test_a_failing_block_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with artifacts.atomic_directory(out) as folder:
        (folder / "a.txt").write_text("first")

    def fail_midway() -> None:
        with artifacts.atomic_directory(out) as folder:
            (folder / "a.txt").write_text("second")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail_midway()
    assert (out / "a.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_scratch_of_killed_writers_is_swept_and_of_living_ones_kept(tmp_path: Path) -> None:
    dead = tmp_path / ".out.999999999.abc"
    living = tmp_path / f".out.{os.getpid()}.abc"
    for folder in (dead, living):
        folder.mkdir()
    with artifacts.atomic_directory(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert not dead.exists()
    assert living.exists()


def test_safetensors_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from pathlib import Path; from stages.runtime import artifacts; "
        "artifacts.write_safetensors({'b': np.arange(6.), 'a': np.eye(3, dtype=np.float32).T}, "
        "Path(sys.argv[1]), {'method': 'x', 'n': [1, 2], 'a': {'z': 1, 'y': 2}})"
    )
    hashes = set()
    for index in range(3):
        path = tmp_path / f"model{index}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": str(index)}
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=environment)
        hashes.add(artifacts.sha256_file(path))
    assert len(hashes) == 1
    tensors, facts = artifacts.read_safetensors(tmp_path / "model0.safetensors")
    np.testing.assert_array_equal(tensors["b"], np.arange(6.0))
    assert facts == {"method": "x", "n": [1, 2], "a": {"z": 1, "y": 2}}
    assert artifacts.read_facts(tmp_path / "model0.safetensors") == facts


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x80\x04N.", b"\xff" * 64):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match="expected a safetensors file"):
            artifacts.read_facts(tmp_path / "x")


def test_json_refuses_nan_and_sorts_keys(tmp_path: Path) -> None:
    artifacts.write_json({"b": 1, "a": 2}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json({"a": float("nan")}, tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


@given(st.text(min_size=1), st.integers(1, 64))
def test_shards_are_in_range_and_stable(subject: str, shards: int) -> None:
    shard = artifacts.shard_of(subject, shards)
    assert 0 <= shard < shards
    assert shard == artifacts.shard_of(subject, shards)


def test_shard_known_value() -> None:
    # int(sha256(b"LYHM/00001")[:8], big endian) computed with coreutils' sha256sum
    digest = subprocess.run(
        ["sha256sum"], input=b"LYHM/00001", capture_output=True, check=True
    ).stdout[:16]
    assert artifacts.shard_of("LYHM/00001", 8) == int(digest, 16) % 8


def test_tables_round_trip_with_schema_and_equal_bytes(tmp_path: Path) -> None:
    row = {
        "item_id": "a",
        "subject_id": "S/a",
        "status": "failed",
        "reason": "no face",
        "points_px": None,
        "score": 0.5,
        "box_px": [0, 1, 2, 3],
        "provider": "dlib",
    }
    table = table_of([row, {**row, "item_id": "b"}], "landmarks")
    artifacts.write_table(table, tmp_path / "x.parquet")
    artifacts.write_table(table, tmp_path / "y.parquet")
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    back = artifacts.read_table(tmp_path / "x.parquet")
    assert back.schema.metadata[b"schema"] == b"faceline.landmarks"
    assert back.schema.field("points_px").metadata[b"unit"] == b"px"
    assert back.to_pylist()[1]["item_id"] == "b"


LISTS = [np.arange(3.0), None, np.zeros(0), np.array([np.nan, 1.5])]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["a", None, "", "ü€"]),
        (pa.string(), [b"a", "b"]),
        (pa.binary(), [b"a", None, b"\xff\0"]),
        (pa.binary(), ["a", b"b"]),
        (pa.int32(), [1, None, -(2**31), 0]),
        (pa.int32(), [np.int64(7), 2.0]),
        (pa.bool_(), [True, None, False] * 5),
        (pa.float64(), [1.0, None, -0.0, np.nan, -np.inf, 1e-310]),
        (pa.float64(), [1, None]),
        (pa.float32(), [0.1, None, -0.0, np.nan]),
        (pa.float32(), [np.float64(0.1), None]),
        (pa.int64(), [2**40, None, -(2**63)]),
        (pa.list_(pa.float32()), [None if v is None else v.astype("f4") for v in LISTS]),
        (pa.list_(pa.float32()), LISTS),
        (pa.list_(pa.float64()), [[1.0, None], LISTS[0]]),
        (pa.list_(pa.float64()), [LISTS[0][::2], LISTS[0][::-1]]),
        (pa.list_(pa.uint8()), [np.arange(256, dtype="u1")]),
        (pa.list_(pa.int32()), [None if v is None else np.ones_like(v, "i4") for v in LISTS]),
        (pa.list_(pa.string()), [["a", None], None, []]),
        (pa.list_(pa.string()), [np.array(["a", "b"], object)]),
        (pa.list_(pa.bool_()), [np.array([True, False])]),
    ],
)
def test_columns_are_those_of_pyarrow(kind: pa.DataType, values: list) -> None:
    for some in (values, values[:1], values[1:2], [None, None], []):
        column, expected = array_of(some, kind), pa.array(some, kind)
        column.validate(full=True)
        assert column.type == kind
        assert column.null_count == expected.null_count
        bytes_of = [artifacts.table_bytes(pa.table({"a": each})) for each in (column, expected)]
        assert bytes_of[0] == bytes_of[1]


def test_bad_values_are_refused_as_by_pyarrow() -> None:
    for kind, bad in ((pa.int32(), 2**31), (pa.int32(), "1"), (pa.bool_(), 1), (pa.string(), 1)):
        with pytest.raises((pa.ArrowException, OverflowError)):
            array_of([bad], kind)


def test_numbers_of_a_list_are_those_of_pyarrow() -> None:
    column = pa.array([[1.5, -2.0], None, [], [3.0, None], [4.0]], pa.list_(pa.float32()))
    for scalar in (*column, *column[3:]):
        expected = scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else np.zeros(0)
        found = numbers_of(scalar)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_packed_tables_are_written_without_pandas() -> None:
    code = (
        "import sys, numpy as np\n"
        "from stages.runtime.artifacts import table_bytes\n"
        "from stages.runtime.contracts import table_of\n"
        "row = dict(status='ok', reason='', capped=True, vertices=np.zeros(3, 'f4'))\n"
        "table_bytes(table_of([row, row | {'vertices': None}], 'scans'))\n"
        "table_bytes(table_of([{'subject_id': 'A/b', 'items': 1}], 'subjects'))\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_with_unknown_columns_or_states_are_refused() -> None:
    good = {"item_id": "a", "subject_id": "s", "status": "ok", "reason": ""}
    with pytest.raises(ValueError, match=r"unknown columns \['scor'\]"):
        table_of([{**good, "scor": 1.0}], "landmarks")
    with pytest.raises(ValueError, match="status 'fine' not in"):
        table_of([{**good, "status": "fine"}], "landmarks")
    with pytest.raises(ValueError, match="expected a reason, got none"):
        table_of([{**good, "reason": None}], "landmarks")
    assert "unit" not in (schema("landmarks").field("item_id").metadata or {})
