"""FaceWarehouse's ``shape.bs``: layout by hand, who is read from it, what is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from stages.datasets.base import ItemError, ItemRef, ScanRow
from stages.datasets.facewarehouse import SHAPES, VERTICES, read_blendshape, topology
from stages.datasets.registry import DATASETS
from tests.stages.datasets import raw_trees

FACEWAREHOUSE = DATASETS["facewarehouse"]


@pytest.fixture(scope="module")
def packed() -> bytes:
    """Vertex v of shape k lies at (k, v, -0.5)."""
    positions = np.empty((SHAPES, VERTICES, 3), "<f4")
    positions[..., 0] = np.arange(SHAPES)[:, None]
    positions[..., 1] = np.arange(VERTICES)
    positions[..., 2] = -0.5
    return struct.pack("<3i", 46, 11510, 11540) + positions.tobytes()


@pytest.fixture
def root(tmp_path: Path, packed: bytes) -> Path:
    """Tester_1 and 2 have pose meshes, Tester_3 only blendshapes."""
    raw_trees.facewarehouse(tmp_path)
    points = "".join(f"v {k % 7} {k % 11} 0\n" for k in range(VERTICES))
    mesh = tmp_path / "Tester_2" / "TrainingPose" / "pose_0.obj"
    raw_trees.write(mesh, points + "f 1 2 3 4\nf 2 3 4\n")
    raw_trees.write(tmp_path / "Tester_2" / "Blendshape" / "shape.bs", packed)
    raw_trees.write(tmp_path / "Tester_3" / "Blendshape" / "shape.bs", packed + b"tail")
    raw_trees.write(
        tmp_path / "Tester_3" / "TrainingPose" / "pose_0.png", raw_trees.picture(".png")
    )
    topology.cache_clear()
    return tmp_path


def refs_of(root: Path) -> dict[str, ItemRef]:
    return {ref.item_id: ref for ref in FACEWAREHOUSE.discover(root)}


def scan(root: Path, item: str) -> ScanRow:
    row = FACEWAREHOUSE.read(root, refs_of(root)[item])
    assert isinstance(row, ScanRow)
    return row


def test_size_of_a_complete_file(packed: bytes) -> None:
    assert len(packed) == 6_491_652


def test_only_people_without_pose_meshes_are_read_from_it(root: Path) -> None:
    shapes = [item for item in refs_of(root) if "/shape_" in item]
    assert sorted(shapes) == sorted(f"Tester_3/shape_{k}" for k in range(SHAPES))


def test_positions_polygons_and_the_neutral_face(root: Path) -> None:
    row = scan(root, "Tester_3/shape_13")
    assert row.vertices.shape == (VERTICES, 3)
    np.testing.assert_array_equal(row.vertices[77], [13, 77, -0.5])
    np.testing.assert_array_equal(row.faces, [[0, 1, 2], [0, 2, 3], [1, 2, 3]])
    assert (row.unit, row.neutral) == ("dm", False)
    assert scan(root, "Tester_3/shape_0").neutral


def test_a_mesh_beside_it_is_preferred(root: Path) -> None:
    raw_trees.write(root / "Tester_3" / "Blendshape" / "shape_2.obj", raw_trees.SQUARE)
    assert len(scan(root, "Tester_3/shape_2").vertices) == 4
    assert len(scan(root, "Tester_3/shape_3").vertices) == VERTICES


def test_a_cut_file_is_one_failed_item(root: Path, packed: bytes) -> None:
    raw_trees.write(root / "Tester_3" / "Blendshape" / "shape.bs", packed[:-1])
    shapes = [item for item in refs_of(root) if "/shape_" in item]
    assert shapes == ["Tester_3/shape_0"]
    with pytest.raises(ItemError, match="6491651 bytes, expected at least 6491652"):
        scan(root, shapes[0])


def test_wrong_counts_and_broken_numbers(tmp_path: Path, packed: bytes) -> None:
    other = struct.pack("<3i", 46, 11510, 22800) + packed[12:]
    with pytest.raises(ItemError, match=r"11540 polygons, got \[46, 11510, 22800\]"):
        read_blendshape(raw_trees.write(tmp_path / "shape.bs", other), 0)
    holed = bytearray(packed)
    holed[12:16] = struct.pack("<f", np.nan)
    path = raw_trees.write(tmp_path / "shape.bs", bytes(holed))
    with pytest.raises(ItemError, match="shape 0 holds NaN"):
        read_blendshape(path, 0)
    np.testing.assert_array_equal(read_blendshape(path, 46)[-1], [46, VERTICES - 1, -0.5])
    with pytest.raises(ItemError, match="truncated: 5 bytes"):
        read_blendshape(raw_trees.write(path, b"abcde"), 0)


def test_without_any_mesh_of_the_set_there_are_no_polygons(root: Path) -> None:
    (root / "Tester_2" / "TrainingPose" / "pose_0.obj").unlink()
    with pytest.raises(ItemError, match="holds positions alone; expected a pose_<k>"):
        scan(root, "Tester_3/shape_0")
