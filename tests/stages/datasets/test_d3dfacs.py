"""D3DFACS: sequences, who is neutral and on whose word, registrations where nothing else is."""

import json
from pathlib import Path

import pytest

from stages.datasets.base import ItemRef, ScanRow
from stages.datasets.meshes import MeshError
from stages.datasets.registry import DATASETS
from tests.stages.datasets import raw_trees

D3DFACS = DATASETS["d3dfacs"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return raw_trees.d3dfacs(tmp_path)


def refs_of(root: Path) -> dict[str, ItemRef]:
    return {ref.item_id: ref for ref in D3DFACS.discover(root)}


def neutral(root: Path) -> dict[str, str]:
    """Items that count as neutral, and why."""
    refs = refs_of(root).values()
    return {r.item_id: r.attributes["neutral_by"] for r in refs if r.attributes.get("neutral_by")}


def test_items_are_the_raw_scans_and_stand_ins_only_where_there_are_none(root: Path) -> None:
    refs = refs_of(root)
    assert sorted(item for item, ref in refs.items() if ref.kind == "scan") == [
        "Adrian/1+2_175",
        "Adrian/1+2_190",
        "Adrian/1+2_205",
        "Adrian/12_060",
        "Adrian/12_090",
        "Joe/Joe_neutral",
        "Nat/12_003",
        "Nat/12_010",
    ]
    assert refs["Adrian/1+2_190"].attributes["flame_alignment"] == (
        "d3dfacs_alignments/Adrian/1+2/1+2_190.ply"
    )
    assert "flame_alignment" not in refs["Adrian/1+2_175"].attributes
    assert {ref.subject_id for ref in refs.values()} == {
        "D3DFACS/Adrian",
        "D3DFACS/Joe",
        "D3DFACS/Nat",
    }
    photographs = sorted(item for item, ref in refs.items() if ref.kind == "image")
    assert photographs == ["Adrian/texture_1C_061", "Joe/texture_1C_061", "Joe/texture_2C_061"]


def test_units_and_topology(root: Path) -> None:
    refs = refs_of(root)
    raw = D3DFACS.read(root, refs["Adrian/1+2_175"])
    assert isinstance(raw, ScanRow)
    assert (raw.unit, len(raw.vertices), len(raw.faces), raw.landmarks) == ("mm", 4, 2, None)
    for item in ("Nat/12_003", "Joe/Joe_neutral"):
        stand_in = D3DFACS.read(root, refs[item])
        assert isinstance(stand_in, ScanRow)
        assert stand_in.unit == "m"
        assert refs[item].attributes["topology"] == "flame"
    with pytest.raises(MeshError, match=r"12_090\.obj"):
        D3DFACS.read(root, refs["Adrian/12_090"])


def test_without_a_list_the_first_frame_is_assumed_and_says_so(root: Path) -> None:
    assumed = "first frame of its sequence, assumed"
    assert neutral(root) == {
        "Adrian/1+2_175": assumed,
        "Adrian/12_060": assumed,
        "Nat/12_003": assumed,
        "Joe/Joe_neutral": "MICA's choice",
    }
    problems = [str(problem) for problem in D3DFACS.validate(root)]
    assert any("neutral_frames.csv (optional)" in p and "first frame" in p for p in problems)


def test_the_list_decides_alone(root: Path) -> None:
    raw_trees.write(root / "neutral_frames.csv", "subject,scan\nAdrian,1+2_205\nNat,12_010\n")
    listed = {"Adrian/1+2_205": "neutral_frames.csv", "Nat/12_010": "neutral_frames.csv"}
    assert neutral(root) == {**listed, "Joe/Joe_neutral": "MICA's choice"}
    rows = {item: D3DFACS.read(root, ref) for item, ref in refs_of(root).items() if item in listed}
    assert all(isinstance(row, ScanRow) and row.neutral for row in rows.values())
    first = D3DFACS.read(root, refs_of(root)["Adrian/1+2_175"])
    assert isinstance(first, ScanRow)
    assert not first.neutral


def test_a_listed_scan_that_is_not_there_fails_as_a_row(root: Path) -> None:
    raw_trees.write(root / "neutral_frames.csv", "subject,scan\nAdrian,1+2_999\n../x,a_1\n")
    refs = refs_of(root)
    with pytest.raises(FileNotFoundError, match=r"Adrian/1\+2/1\+2_999\.obj: the file is missing"):
        D3DFACS.read(root, refs["Adrian/1+2_999"])
    with pytest.raises(ValueError, match="leads outside"):
        D3DFACS.read(root, refs["_/x/a_1"])


def test_attributes_are_json_and_the_frames_numbers(root: Path) -> None:
    attributes = refs_of(root)["Adrian/1+2_205"].attributes
    assert json.loads(json.dumps(attributes)) == {
        "sequence": "1+2",
        "frame": 205,
        "neutral_by": "",
    }
