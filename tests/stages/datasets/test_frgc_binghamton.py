"""The adapters of FRGC, BU-3DFE and BP4D+ on small dirty trees."""

from pathlib import Path

import numpy as np
import pytest

from stages.datasets import bp4d
from stages.datasets.base import ImageRow, ItemError, ItemRef, ScanRow
from stages.datasets.images import ImageError, decode_rgb
from stages.datasets.meshes import MeshError
from stages.datasets.registry import DATASETS
from stages.pack import run as pack
from stages.runtime.params import ComputeParams, PackParams
from tests.stages.datasets import raw_trees


def refs_of(name: str, root: Path) -> dict[str, ItemRef]:
    return {ref.item_id: ref for ref in DATASETS[name].discover(root)}


def scan(name: str, root: Path, item: str) -> ScanRow:
    row = DATASETS[name].read(root, refs_of(name, root)[item])
    assert isinstance(row, ScanRow)
    return row


def image(name: str, root: Path, item: str) -> ImageRow:
    row = DATASETS[name].read(root, refs_of(name, root)[item])
    assert isinstance(row, ImageRow)
    return row


class TestFrgc:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.frgc(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("frgc", root)
        assert sorted(refs) == [
            "04203/04203d100",
            "04203/04203d436",
            "04203/04203d437",
            "04203/04203d500",
            "04203/04203d501",
            "04300/04300d10",
            "04300/04300d12",
            "04300/04300d14",
            "04300/04300d15",
        ]
        ref = refs["04203/04203d436"]
        assert (ref.subject_id, ref.kind) == ("FRGC/04203", "scan")
        assert ref.attributes == {
            "session": "Fall2003range",
            "number": 436,
            "expression": "neutral",
        }
        assert refs["04203/04203d437"].kind == "image"

    def test_only_the_list_makes_a_scan_neutral(self, root: Path) -> None:
        row = scan("frgc", root, "04203/04203d436")
        assert (row.unit, row.neutral, row.landmarks) == ("mm", True, None)
        assert (len(row.vertices), len(row.faces)) == (12, 12)
        assert not scan("frgc", root, "04203/04203d500").neutral
        (root / "neutral_frames.csv").unlink()
        assert not scan("frgc", root, "04203/04203d436").neutral
        (problem,) = DATASETS["frgc"].validate(root)
        assert not problem.required
        assert "knowing which scans are neutral" in str(problem)

    def test_the_dropped_session_is_never_neutral(self, root: Path) -> None:
        assert refs_of("frgc", root)["04203/04203d100"].attributes["dropped_by_mica"] is True
        assert not scan("frgc", root, "04203/04203d100").neutral

    def test_a_ppm_becomes_a_png(self, root: Path) -> None:
        row = image("frgc", root, "04203/04203d437")
        np.testing.assert_array_equal(decode_rgb(row.image), raw_trees.ppm()[1])
        assert (row.height_px, row.width_px) == (4, 6)
        assert image("frgc", root, "04203/04203d501").image == raw_trees.picture()

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            ("04300/04300d10", "truncated|not a number"),
            ("04300/04300d12", "none of its 12 pixels is valid"),
            ("04300/04300d14", "damaged gzip"),
            ("04300/04300d15", "PPM photograph is truncated"),
        ],
    )
    def test_broken_items(self, root: Path, item: str, reason: str) -> None:
        with pytest.raises((MeshError, ImageError), match=reason):
            DATASETS["frgc"].read(root, refs_of("frgc", root)[item])

    def test_a_wrong_list_stops_packing_with_its_line(self, root: Path, tmp_path: Path) -> None:
        raw_trees.write(root / "neutral_frames.csv", "subject,scan\n04203\n")
        assert any(problem.required for problem in DATASETS["frgc"].validate(root))
        compute = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
        p = PackParams(
            shards=1, max_failed_fraction=1.0, seconds_per_image=0.0, seconds_per_scan=0.0
        )
        with pytest.raises(FileNotFoundError, match=r"neutral_frames\.csv line 2"):
            pack(p, dataset="frgc", raw=root, out=tmp_path / "out", compute=compute, work=tmp_path)


class TestBu3dfe:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.bu3dfe(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("bu3dfe", root)
        scans = [ref.item_id for ref in refs.values() if ref.kind == "scan"]
        assert scans == [
            "F0001/F0001_HA03WH_RAW",
            "F0001/F0001_NE00WH_RAW@F0001",
            "F0001/F0001_NE00WH_RAW@raw_ne_data",
            "M0002/M0002_AN01BL_F3D",
            "M0002/M0002_NE00BL_F3D",
            "M0002/M0002_SA01BL_RAW",
        ]
        assert refs["F0001/F0001_HA03WH_RAW"].attributes == {
            "expression": "HA",
            "intensity": 3,
            "ethnicity": "WH",
            "cropped": False,
        }
        photos = {
            ref.item_id: ref.attributes["picture"] for ref in refs.values() if ref.kind == "image"
        }
        assert photos == {
            "F0001/F0001_HA03WH_F2D_photo": "F2D",
            "F0001/F0001_HA03WH_RAW_0_photo": "RAW_0",
            "F0001/F0001_HA03WH_RAW_1_photo": "RAW_1",
            "F0001/F0001_NE00WH_F2D_photo": "F2D",
            "F0001/F0001_NE00WH_RAW_photo": "RAW",
            "M0002/M0002_DI01BL_F2D_photo": "F2D",
        }

    def test_raw_before_cropped(self, root: Path) -> None:
        row = scan("bu3dfe", root, "F0001/F0001_NE00WH_RAW@F0001")
        assert (row.unit, row.neutral, len(row.faces)) == ("mm", True, 2)
        assert row.vertices[2, 2] == 5  # the cropped file has 6 here
        assert row.attributes == {}
        assert not scan("bu3dfe", root, "F0001/F0001_HA03WH_RAW").neutral
        converted = scan("bu3dfe", root, "F0001/F0001_NE00WH_RAW@raw_ne_data")
        assert converted.neutral
        np.testing.assert_array_equal(converted.faces, row.faces)

    def test_points_are_attributes_and_no_landmarks(self, root: Path) -> None:
        row = scan("bu3dfe", root, "M0002/M0002_NE00BL_F3D")
        assert row.landmarks is None
        assert row.attributes["points83"][2] == [2.5, -2.0, 0.25]
        broken = scan("bu3dfe", root, "M0002/M0002_AN01BL_F3D")
        assert broken.attributes["points83_problem"] == (
            "M0002_AN01BL_F3D.bnd has 82 points, expected 83"
        )

    def test_broken_items(self, root: Path) -> None:
        for item, reason in (
            ("M0002/M0002_SA01BL_RAW", "ends inside the list 'point'"),
            ("M0002/M0002_DI01BL_F2D_photo", "BMP file is truncated"),
        ):
            with pytest.raises((MeshError, ImageError), match=reason):
                DATASETS["bu3dfe"].read(root, refs_of("bu3dfe", root)[item])


class TestBp4d:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.bp4d(tmp_path)

    def test_listed_scans_and_the_first_of_each_task(self, root: Path) -> None:
        refs = refs_of("bp4d", root)
        scans = [ref.item_id for ref in refs.values() if ref.kind == "scan"]
        assert scans == ["F001/T1_0001", "F001/T1_0002", "F001/T8_0001", "F001/T8_0005",
                         "F003/F003", "M002/T1_0001"]  # fmt: skip
        photos = [ref.item_id for ref in refs.values() if ref.kind == "image"]
        assert photos == ["F001/T1_0001_photo", "F001/T1_0002_photo", "F001/T1_0010_photo",
                          "F001/T8_0001_photo", "F001/T8_0005_photo", "F003/0491_photo",
                          "M002/T1_0001_photo"]  # fmt: skip
        neutral = {i for i in scans if i != "M002/T1_0001" and scan("bp4d", root, i).neutral}
        assert neutral == {"F001/T1_0002", "F001/T8_0005", "F003/F003"}
        assert refs["F001/T1_0001"].attributes == {"task": "T1", "frame": "0001"}
        assert refs["F001/T1_0001"].subject_id == "BP4D/F001"

    def test_photographs_are_thinned_evenly(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bp4d, "PHOTOS", 3)
        photos = [i for i in refs_of("bp4d", root) if i.startswith("F001") and "photo" in i]
        assert photos == ["F001/T1_0001_photo", "F001/T1_0010_photo", "F001/T8_0005_photo"]

    def test_two_materials_with_texture(self, root: Path) -> None:
        row = scan("bp4d", root, "F001/T1_0001")
        np.testing.assert_array_equal(row.faces, [[0, 1, 2], [0, 2, 3]])
        assert row.unit == "mm"
        assert row.attributes["points83"][3] == [3.5, -3.0, 0.25]
        assert row.landmarks is None
        broken = scan("bp4d", root, "F001/T1_0002")
        assert "line 1: expected x y z" in broken.attributes["points83_problem"]

    def test_a_number_that_two_tasks_have_is_told(self, root: Path) -> None:
        raw_trees.write(root / "neutral_frames.csv", "subject,scan\nF001,0001\n")
        with pytest.raises(ItemError, match="a frame of 2 tasks; write the task too"):
            DATASETS["bp4d"].discover(root)

    def test_the_list_is_asked_for_unless_scans_are_picked(self, root: Path) -> None:
        (root / "neutral_frames.csv").unlink()
        assert DATASETS["bp4d"].validate(root) == []
        (root / "scans" / "F003.obj").unlink()
        (problem,) = DATASETS["bp4d"].validate(root)
        assert not problem.required
        assert "F001,T1/0001" in str(problem)
        assert not scan("bp4d", root, "F001/T1_0001").neutral
        assert "F001/T1_0002" not in refs_of("bp4d", root)

    def test_broken_items(self, root: Path) -> None:
        for item, reason in (
            ("M002/T1_0001", "no faces"),
            ("M002/T1_0001_photo", "truncated"),
        ):
            with pytest.raises((MeshError, ImageError), match=reason):
                DATASETS["bp4d"].read(root, refs_of("bp4d", root)[item])
