"""Each data set's adapter on a tiny dirty tree of its layout, and on real samples."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from stages.datasets.base import (
    READ_ERRORS,
    ImageRow,
    ItemError,
    ItemRef,
    ScanRow,
    inside,
    number_rows,
    ordered,
)
from stages.datasets.facewarehouse import read_land
from stages.datasets.meshes import MeshError
from stages.datasets.now import read_picked_points
from stages.datasets.registry import DATASETS
from stages.runtime.unpickle import UnsafePickleError
from tests.stages.datasets import raw_trees


def refs_of(name: str, root: Path) -> dict[str, ItemRef]:
    refs = DATASETS[name].discover(root)
    assert [ref.item_id for ref in refs] == sorted(ref.item_id for ref in refs)
    return {ref.item_id: ref for ref in refs}


def image(name: str, root: Path, ref: ItemRef) -> ImageRow:
    row = DATASETS[name].read(root, ref)
    assert isinstance(row, ImageRow)
    return row


def scan(name: str, root: Path, ref: ItemRef) -> ScanRow:
    row = DATASETS[name].read(root, ref)
    assert isinstance(row, ScanRow)
    return row


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_an_empty_folder_says_what_is_expected_and_where_it_is_given(
    name: str, tmp_path: Path
) -> None:
    adapter = DATASETS[name]
    problems = adapter.validate(tmp_path)
    assert any(problem.required for problem in problems)
    assert all(problem.purpose and problem.where for problem in problems)
    with pytest.raises(FileNotFoundError, match="expected"):
        adapter.discover(tmp_path)
    gone = adapter.validate(tmp_path / "nowhere")
    assert len(gone) == 1
    assert "no such folder" in str(gone[0])
    assert raw_trees.TREES.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_complete_tree_has_no_required_problem(name: str, tmp_path: Path) -> None:
    problems = DATASETS[name].validate(raw_trees.TREES[name](tmp_path))
    assert not [problem for problem in problems if problem.required]


class TestW300LP:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.w300lp(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("300w_lp", root)
        assert len(refs) == 8
        view = refs["AFW/AFW_1_1"]
        assert (view.subject_id, view.split, view.attributes["view"]) == (
            "300W_LP/AFW_1",
            "train",
            1,
        )
        assert refs["AFW_Flip/AFW_1_1"].subject_id == view.subject_id
        assert refs["AFLW2000/image00002"].split == "test"

    def test_matlab_pixels_become_ours(self, root: Path) -> None:
        row = image("300w_lp", root, refs_of("300w_lp", root)["AFW/AFW_1_0"])
        np.testing.assert_allclose(row.landmarks_px, raw_trees.points68(0) - 0.5)
        assert row.landmark_order == "ibug68"
        assert (row.height_px, row.width_px) == (40, 60)
        assert row.attributes["roi"] == [-4, 10, 200, 210]
        assert row.shape_para is not None
        assert row.exp_para is not None
        assert row.pose_para is not None
        assert (row.shape_para.size, row.exp_para.size, row.pose_para.size) == (199, 29, 7)
        assert row.attributes["landmarks"] == "pt2d"

    def test_wrong_pt2d_is_replaced_by_the_landmark_file(self, root: Path) -> None:
        wrong = raw_trees.sample_mat(1, pt2d=raw_trees.points68(0).T)
        raw_trees.write(root / "AFW" / "AFW_1_1.mat", wrong)
        ref = refs_of("300w_lp", root)["AFW/AFW_1_1"]
        row = image("300w_lp", root, ref)
        assert row.attributes["landmarks"] == "pts_2d"
        np.testing.assert_allclose(row.landmarks_px, raw_trees.points68(1) - 0.5)
        solid = raw_trees.points68(1) + 1
        path = root / "landmarks" / "AFW" / "AFW_1_1_pts.mat"
        raw_trees.write(path, raw_trees.mat(pts_2d=raw_trees.points68(0), pts_3d=solid))
        row = image("300w_lp", root, ref)
        assert row.attributes["landmarks"] == "pts_3d"
        np.testing.assert_allclose(row.landmarks_px, solid - 0.5)

    def test_bad_labels_are_flagged(self, root: Path) -> None:
        ref = refs_of("300w_lp", root)["AFW/AFW_1_1"]
        assert "label_flags" not in image("300w_lp", root, ref).attributes
        good = raw_trees.points68(1)
        upside_down = np.stack([good[:, 0], 40 + 1 - good[:, 1]])
        for pt2d, flag in (
            (upside_down, "pt2d upside down"),
            (raw_trees.points68(0).T, "pt2d far from the projection"),
        ):
            raw_trees.write(root / "AFW" / "AFW_1_1.mat", raw_trees.sample_mat(1, pt2d=pt2d))
            row = image("300w_lp", root, ref)
            assert row.attributes["label_flags"] == [flag]
            np.testing.assert_allclose(row.landmarks_px, good - 0.5)

    def test_flips_are_held_against_the_mirrored_original(self, root: Path) -> None:
        good = raw_trees.points68(1)
        pairs = {
            0: 16,
            8: 8,
            17: 26,
            27: 27,
            31: 35,
            36: 45,
            39: 42,
            41: 46,
            48: 54,
            60: 64,
            65: 67,
        }
        ref = refs_of("300w_lp", root)["AFW_Flip/AFW_1_1"]
        row = image("300w_lp", root, ref)  # holds the original's points: wrong
        assert row.attributes["landmarks"] == "pts_2d"
        assert row.attributes["label_flags"] == ["pt2d far from the projection"]
        assert row.landmarks_px is not None
        for left, right in (*pairs.items(), *((b, a) for a, b in pairs.items())):
            x, y = good[right] - 0.5
            np.testing.assert_allclose(row.landmarks_px[left], [60 - x, y])
        stored = (row.landmarks_px + 0.5).T
        raw_trees.write(root / "AFW_Flip" / "AFW_1_1.mat", raw_trees.sample_mat(1, pt2d=stored))
        again = image("300w_lp", root, ref)
        assert again.attributes["landmarks"] == "pt2d"
        assert "label_flags" not in again.attributes

    def test_aflw_uses_its_3d_points(self, root: Path) -> None:
        row = image("300w_lp", root, refs_of("300w_lp", root)["AFLW2000/image00002"])
        solid = np.random.default_rng(5).uniform(100, 300, (3, 68))
        np.testing.assert_allclose(row.landmarks_px, solid[:2].T - 0.5)
        np.testing.assert_array_equal(row.exp_para, np.zeros(29))

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            ("LFPW/LFPW_image_test_0001_0", "no Pose_Para; expected 7 numbers"),
            ("LFPW/LFPW_image_test_0002_0", "JPEG file is truncated"),
            ("LFPW/LFPW_image_test_0003_0", r"pt2d is \(2, 67\).*expected 136"),
        ],
    )
    def test_broken_items(self, root: Path, item: str, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            DATASETS["300w_lp"].read(root, refs_of("300w_lp", root)[item])

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "not a readable .mat"),
            (b"hello", "not a readable .mat"),
            (raw_trees.sample_mat()[:700], "not a readable .mat|has no"),
            (raw_trees.sample_mat(Pose_Para=np.full((1, 7), np.nan)), "Pose_Para holds NaN"),
            (raw_trees.sample_mat(Pose_Para=np.zeros((1, 7))), "scale 0"),
            (raw_trees.sample_mat(Pose_Para=np.array([{"a": 1}])), "no Pose_Para; expected 7"),
            (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600), "7.3|readable"),
        ],
    )
    def test_damaged_mat_files(self, root: Path, content: bytes, reason: str) -> None:
        raw_trees.write(root / "AFW" / "AFW_1_0.mat", content)
        with pytest.raises(ValueError, match=reason):
            DATASETS["300w_lp"].read(root, refs_of("300w_lp", root)["AFW/AFW_1_0"])

    def test_real_samples(self, shared_data: Path, tmp_path: Path) -> None:
        real = shared_data / "real_300wlp"
        for suffix in (".jpg", ".mat"):
            source = real / f"IBUG_image_008_1_0{suffix}"
            raw_trees.write(tmp_path / "IBUG" / source.name, source.read_bytes())
            for path in real.glob(f"image*{suffix}"):
                raw_trees.write(tmp_path / "AFLW2000" / path.name, path.read_bytes())
        refs = refs_of("300w_lp", tmp_path)
        assert len(refs) == 6
        errors = []
        for item, ref in refs.items():
            row = image("300w_lp", tmp_path, ref)
            assert (row.height_px, row.width_px) == (450, 450)
            if item.startswith("AFLW2000"):
                offset = row.landmarks_px - projected(real, row)
                errors.append(np.linalg.norm(offset, axis=1).mean())
                if item.endswith("image00516"):  # no expression: the missing modes matter least
                    assert np.abs(offset.mean(axis=0)).max() < 0.1
        assert np.mean(errors) < 1.2
        row = image("300w_lp", tmp_path, refs["IBUG/IBUG_image_008_1_0"])
        stored = scipy.io.loadmat(real / "IBUG_image_008_1_0.mat")["pt2d"].T
        np.testing.assert_allclose(row.landmarks_px, stored - 0.5)


def projected(real: Path, row: ImageRow) -> np.ndarray:
    """Landmarks by the projection of the data set's own files, written out from its definition."""
    bases = np.load(real / "bfm_68_landmarks.npz")
    assert row.shape_para is not None
    assert row.exp_para is not None
    assert row.pose_para is not None
    flat = bases["u_base"] + bases["w_shp_base"] @ row.shape_para[:40]
    vertices = (flat + bases["w_exp_base"] @ row.exp_para[:10]).reshape(68, 3)
    pitch, yaw, roll, x, y, z, scale = row.pose_para
    R = np.eye(3)
    for angle, (i, j), sign in ((pitch, (1, 2), 1), (yaw, (0, 2), -1), (roll, (0, 1), 1)):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = sign * np.sin(angle), -sign * np.sin(angle)
        R = R @ turn
    P = scale * vertices @ R.T + [x, y, z]
    return np.stack([P[:, 0] - 0.5, row.height_px + 0.5 - P[:, 1]], axis=1)


class TestLyhm:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.lyhm(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("lyhm", root)
        assert len([ref for ref in refs.values() if ref.kind == "scan"]) == 7
        assert len([ref for ref in refs.values() if ref.kind == "image"]) == 14
        assert refs["00001/130925161610_1C"].subject_id == "LYHM/00001"

    def test_a_scan_with_landmarks(self, root: Path) -> None:
        row = scan("lyhm", root, refs_of("lyhm", root)["00001/130925161610"])
        assert (row.unit, row.neutral, row.capped, row.landmark_order) == (
            "mm",
            True,
            True,
            "ibug68",
        )
        np.testing.assert_array_equal(row.landmarks, row.vertices[:68])
        assert row.attributes["age"] == ""
        assert row.attributes["gender"] == "f"

    def test_missing_landmarks_are_allowed(self, root: Path) -> None:
        row = scan("lyhm", root, refs_of("lyhm", root)["00002/130925161611"])
        assert row.landmarks is None
        assert row.neutral

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            ("00003/130925161612", "67 landmarks, expected 68"),
            ("00004/130925161613", "is empty"),
            ("00005/130925161614", "NaN or infinite"),
            ("00006/130925161615", "no faces"),
            ("00007/130925161616", "indices 30 to 97 for a scan of 80"),
        ],
    )
    def test_broken_items(self, root: Path, item: str, reason: str) -> None:
        with pytest.raises((MeshError, ItemError), match=reason):
            DATASETS["lyhm"].read(root, refs_of("lyhm", root)[item])


class TestStirling:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.stirling(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("stirling", root)
        assert set(refs) == {
            "F1001/F1001_001@HQ",
            "F1001/F1001_001@LQ",
            "F1001/F1001_A",
            "F1001/F1001_N",
            "M1002/M1002_014",
            "M1002/m1002_N",
            "M1002/m1002b_NH",
        }
        assert refs["M1002/m1002b_NH"].subject_id == "STIRLING/M1002"

    def test_landmarks_by_name_whatever_the_case(self, root: Path) -> None:
        row = scan("stirling", root, refs_of("stirling", root)["F1001/F1001_N"])
        assert row.landmarks is not None
        np.testing.assert_allclose(row.landmarks[:2], [[1.5, -1.25, 2], [2.5, -2.25, 4]])
        assert (row.landmark_order, row.unit, row.neutral) == ("now7", "mm", True)
        assert len(row.faces) == 2

    def test_neutral_and_other_scans(self, root: Path) -> None:
        refs = refs_of("stirling", root)
        assert scan("stirling", root, refs["M1002/m1002b_NH"]).neutral
        assert not scan("stirling", root, refs["F1001/F1001_A"]).neutral

    def test_six_landmarks(self, root: Path) -> None:
        with pytest.raises(ItemError, match="6 landmarks, expected 7"):
            DATASETS["stirling"].read(root, refs_of("stirling", root)["M1002/m1002_N"])

    def test_photographs(self, root: Path) -> None:
        row = image("stirling", root, refs_of("stirling", root)["F1001/F1001_001@LQ"])
        assert (row.height_px, row.width_px) == (40, 60)
        ref = refs_of("stirling", root)["F1001/F1001_001@LQ"]
        assert ref.attributes == {"quality": "LQ"}


class TestFaceWarehouse:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.facewarehouse(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("facewarehouse", root)
        assert sorted(refs) == [
            "Tester_1/pose_0",
            "Tester_1/pose_0_photo",
            "Tester_1/pose_1",
            "Tester_1/pose_1_photo",
        ]
        row = scan("facewarehouse", root, refs["Tester_1/pose_0"])
        assert (row.unit, row.neutral, len(row.faces)) == ("dm", True, 2)
        assert not scan("facewarehouse", root, refs["Tester_1/pose_1"]).neutral

    def test_points_are_flipped_and_scaled(self, root: Path) -> None:
        row = image("facewarehouse", root, refs_of("facewarehouse", root)["Tester_1/pose_0_photo"])
        np.testing.assert_allclose(row.landmarks_px, [[30, 20], [15, 10], [0, 0]])
        assert row.landmark_order == ""

    def test_wrong_counts(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(ItemError, match="announces 4 landmarks but has 3"):
            DATASETS["facewarehouse"].read(
                root, refs_of("facewarehouse", root)["Tester_1/pose_1_photo"]
            )
        for text in ("", "many\n", "1\n0.5\n"):
            with pytest.raises(ItemError):
                read_land(raw_trees.write(tmp_path / "a.land", text), 10, 10)


class TestNow:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.now(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("now", root)
        kinds = [(ref.kind, ref.split) for ref in refs.values()]
        assert kinds.count(("image", "val")) == 4
        assert kinds.count(("image", "test")) == 1
        assert kinds.count(("scan", "val")) == 1

    def test_a_photograph_has_its_box(self, root: Path) -> None:
        ref = refs_of("now", root)["FaMoS_180424_03335_TA/selfie/IMG_0041"]
        row = image("now", root, ref)
        np.testing.assert_array_equal(row.box_px, [10, 5, 50, 35])
        assert ref.attributes == {"challenge": "selfie"}

    def test_the_scan_has_seven_points(self, root: Path) -> None:
        refs = refs_of("now", root)
        row = scan("now", root, refs["FaMoS_180424_03335_TA/natural_head_rotation.000001"])
        assert row.landmarks is not None
        np.testing.assert_allclose(row.landmarks[3], [-0.3, 3.5, 6])
        assert (row.landmark_order, row.unit) == ("now7", "mm")

    def test_missing_escaping_and_malicious_files(self, tmp_path: Path) -> None:
        tripwire = tmp_path / "executed"
        root = raw_trees.now(tmp_path / "now", raw_trees.evil_npy(tripwire))
        refs = refs_of("now", root)
        with pytest.raises(FileNotFoundError, match="IMG_0099"):
            DATASETS["now"].read(root, refs["FaMoS_180424_03335_TA/selfie/IMG_0099"])
        (escape,) = [ref for ref in refs.values() if "passwd" in ref.path]
        with pytest.raises(ItemError, match="leads outside"):
            DATASETS["now"].read(root, escape)
        with pytest.raises(UnsafePickleError, match=r"refers to (io|_io)\.open"):
            DATASETS["now"].read(root, refs["FaMoS_180424_03335_TA/selfie/IMG_0041"])
        assert not tripwire.exists()

    def test_picked_points(self, tmp_path: Path) -> None:
        for count in (6, 8):
            with pytest.raises(ItemError, match=f"{count} points, expected 7"):
                read_picked_points(raw_trees.write(tmp_path / "a.pp", raw_trees.picked(count)))
        text = raw_trees.picked().replace('z="4"', "")
        with pytest.raises(ItemError, match="lacks a coordinate"):
            read_picked_points(raw_trees.write(tmp_path / "a.pp", text))


class TestVggFace2:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return raw_trees.vggface2(tmp_path)

    def test_items(self, root: Path) -> None:
        refs = refs_of("vggface2", root)
        assert {ref.split for ref in refs.values()} == {"train", "test"}
        assert refs["n000003/0001_02"].subject_id == "VGGFACE2/n000003"
        row = image("vggface2", root, refs["n000002/0001_01"])
        np.testing.assert_array_equal(row.box_px, [10, 4, 40, 36])
        assert row.attributes["five_points"] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10.5]
        other = image("vggface2", root, refs["n000003/0001_02"])
        assert other.box_px is None
        np.testing.assert_allclose(other.landmarks_px, raw_trees.points68())
        with pytest.raises(ItemError, match="has not four numbers"):
            DATASETS["vggface2"].read(root, refs["n000002/0002_01"])


def test_every_item_of_every_tree_reads_or_fails_cleanly(tmp_path: Path) -> None:
    for name, build in raw_trees.TREES.items():
        root = build(tmp_path / name)
        for ref in DATASETS[name].discover(root):
            try:
                DATASETS[name].read(root, ref)
            except READ_ERRORS as error:
                reason = str(error)
                assert len(reason) > 10, (name, ref.item_id)


def test_paths_stay_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    raw_trees.write(root / "a.txt", "a")
    raw_trees.write(tmp_path / "secret.txt", "s")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path)
    (root / "fine.txt").symlink_to(root / "a.txt")
    assert inside(root, "a.txt").read_text() == "a"
    assert inside(root, "fine.txt").read_text() == "a"
    for path in ("../secret.txt", "link.txt", "folder/secret.txt", str(tmp_path / "secret.txt")):
        with pytest.raises(ItemError, match="outside"):
            inside(root, path)
    with pytest.raises(FileNotFoundError):
        inside(root, "b.txt")


def test_equal_ids_are_told_apart() -> None:
    def ids(*paths: str) -> list[str]:
        refs = [ItemRef("a", "D/a", "image", path) for path in paths]
        return [ref.item_id for ref in ordered(refs)]

    assert ids("x/a.jpg") == ["a"]
    assert ids("y/a.jpg", "x/a.jpg") == ["a@x", "a@y"]
    assert ids("x/a.jpg", "x/a.JPG", "y/a.png") == ["a@x@x/a.JPG", "a@x@x/a.jpg", "a@y"]


def test_ids_lead_nowhere_as_paths() -> None:
    refs = [
        ItemRef(name, "D/../x", "image", f"{k}.jpg")
        for k, name in enumerate(("../../etc/a", "/b", "c//d", "e\\..\n", "f\udcff"))
    ]
    assert [ref.item_id for ref in ordered(refs)] == ["_/_/etc/a", "_/b", "c/_/d", "e_.._", "f_"]
    assert {ref.subject_id for ref in ordered(refs)} == {"D/_/x"}


def test_number_rows(tmp_path: Path) -> None:
    path = raw_trees.write(tmp_path / "a.txt", "1 2\n\n3 4\r\n")
    np.testing.assert_array_equal(number_rows(path, columns=2), [[1, 2], [3, 4]])
    for text in ("1 2\n3\n", "1 x\n", "1 nan\n"):
        with pytest.raises(ItemError, match=r"a\.txt"):
            number_rows(raw_trees.write(path, text), columns=2)
