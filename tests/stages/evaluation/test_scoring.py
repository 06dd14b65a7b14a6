"""Landmark files, single scores and whole submissions."""

import json

import numpy as np
import pytest

from models.metrics import LANDMARK_NAMES
from stages.benchmarks.image_scores import ImageScore, curve_of
from stages.benchmarks.scoring import list_images, read_landmarks, score_dataset, score_files
from stages.datasets.meshes import write_obj

from stages.benchmarks.scoring import summarise  # isort: skip


@pytest.fixture
def files(tmp_path, kit):
    vertices, faces = kit.relief(4.0)
    write_obj(tmp_path / "scan.obj", vertices, faces)
    (tmp_path / "scan.pp").write_text(kit.picked_points(kit.seven()))
    kit.submit(tmp_path, "prediction", bump=1.0)
    return tmp_path


def test_the_published_case_from_files(shared_data):
    folder = shared_data / "now_case"
    paths = [
        folder / name
        for name in ("scan_mm.obj", "scan_lmks7.npy", "template.obj", "template_lmks7.npy")
    ]
    result = score_files("now-metric", *paths, unit="m")
    assert result["vertices"] == 21_890
    assert result["median_mm"] == pytest.approx(1.3725, abs=0.005)
    assert result["mean_mm"] == pytest.approx(1.6451, abs=0.0015)


@pytest.mark.parametrize("shape", [(7, 3), (1, 7, 3)])
def test_landmarks_as_npy(tmp_path, kit, shape):
    np.save(tmp_path / "marks.npy", kit.seven().reshape(shape))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "marks.npy"), kit.seven())


@pytest.mark.parametrize("separator", [" ", "   ", ", ", "\t"])
def test_landmarks_as_text(tmp_path, kit, separator):
    lines = [separator.join(repr(float(value)) for value in row) for row in kit.seven()]
    (tmp_path / "marks.txt").write_text("\r\n".join(lines) + "\n\n")
    np.testing.assert_array_equal(read_landmarks(tmp_path / "marks.txt"), kit.seven())


def test_picked_points_by_position_and_by_name(tmp_path, kit, caplog):
    path = tmp_path / "marks.pp"
    shuffled = [4, 0, 6, 2, 1, 5, 3]
    for names in ("0123456", "1234567", [name.replace(" ", "_") for name in LANDMARK_NAMES]):
        path.write_text(kit.picked_points(kit.seven()[shuffled], [names[k] for k in shuffled]))
        np.testing.assert_array_equal(read_landmarks(path), kit.seven()[shuffled])
        assert "not in the order of their names" in caplog.text
        np.testing.assert_array_equal(read_landmarks(path, "name"), kit.seven())
    path.write_text(kit.picked_points(kit.seven(), list("abcdefg")))
    np.testing.assert_array_equal(read_landmarks(path), kit.seven())
    with pytest.raises(ValueError, match="use the order of the file"):
        read_landmarks(path, "name")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", "1 2 3\n" * 6, "expected 7 landmarks of 3 coordinates .* got \\(6, 3\\)"),
        ("m.txt", "1 2\n" * 7, "lines of other lengths"),
        ("m.txt", "1 2 x\n" * 7, "could not convert"),
        ("m.pp", "<PickedPoints></PickedPoints>", "expected 7 landmarks"),
        ("m.pp", '<point x="1" y="2" name="0"/>', "expected x, y and z of every point"),
        ("m.json", "[]", "expected landmarks as .npy, .txt, .pp"),
    ],
)
def test_bad_landmark_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_landmarks(tmp_path / name)


def test_a_pickled_npy_is_not_executed(tmp_path):
    np.save(tmp_path / "m.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected an array of numbers"):
        read_landmarks(tmp_path / "m.npy")


def test_one_score_is_json_and_keeps_distances(files):
    inputs = [files / name for name in ("scan.obj", "scan.pp", "prediction.obj", "prediction.npy")]
    result = score_files("now", *inputs, unit="m", distances_out=files / "out" / "d.npy")
    assert json.loads(json.dumps(result)) == result
    distances = np.load(files / "out" / "d.npy")
    assert len(distances) == result["vertices"] > 1000
    assert result["median_mm"] == float(np.median(distances))
    matrix = np.array(result["T_scan_from_prediction"])
    assert np.cbrt(np.linalg.det(matrix[:3, :3])) == pytest.approx(result["scale_mm_per_unit"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        score_files("now", files / "absent.obj", *inputs[1:])
    with pytest.raises(ValueError, match="expected a protocol among"):
        score_files("feng", *inputs)


def test_a_submission_is_pooled_and_gaps_are_counted(tmp_path, kit):
    data, submission = tmp_path / "now", tmp_path / "submission"
    kit.write_now_raw(data)
    items = kit.images()
    for item in items[:4]:
        kit.submit(submission, item, bump=1.0)
    (submission / f"{items[4]}.obj").parent.mkdir(parents=True)
    (submission / f"{items[4]}.obj").write_text("v 0 0 0\nv nan 0 0\nf 1 2 2\n")
    np.save(submission / f"{items[4]}.npy", kit.seven() / 1000)
    result = score_dataset("now", data, submission, "m")
    assert json.loads(json.dumps(result)) == result
    assert (result["images"], result["scored"]) == (6, 4)
    assert (result["missing"], result["failed"]) == (1, 1)
    assert [row["item_id"] for row in result["unscored"]] == items[4:]
    assert list(result["challenges"]) == [
        "multiview_neutral", "multiview_expressions", "selfie",
    ]  # fmt: skip
    assert result["subjects"]["FaMoS_001"]["scored"] == 3
    assert result["subjects"]["FaMoS_001"]["median_mm"] > 0
    one = score_files(
        "now",
        data / "scans" / "FaMoS_002" / "scan.obj",
        data / "scans_lmks_onlypp" / "FaMoS_002" / "scan_picked_points.pp",
        submission / f"{items[3]}.obj",
        submission / f"{items[3]}.npy",
    )
    assert result["subjects"]["FaMoS_002"]["median_mm"] == pytest.approx(one["median_mm"], abs=1e-4)


def test_a_broken_scan_costs_its_own_images_only(tmp_path, kit):
    data, submission = tmp_path / "now", tmp_path / "submission"
    kit.write_now_raw(data)
    for item in kit.images():
        kit.submit(submission, item, bump=1.0)
    (data / "scans" / "FaMoS_001" / "scan.obj").write_text("v nan 0 0\n")
    result = score_dataset("now-metric", data, submission, "m")
    assert (result["scored"], result["failed"]) == (3, 3)
    (data / "scans" / "FaMoS_002" / "scan.obj").unlink()
    with pytest.raises(ValueError, match="NaN"):
        score_dataset("now-metric", data, submission, "m")


def test_the_list_of_images_is_required_and_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagepathsvalidation\.txt or"):
        list_images(tmp_path)
    (tmp_path / "imagepathstest.txt").write_text("/abs/root/S1/selfie/b.jpg\r\nS1/selfie/a.jpg\n")
    assert list_images(tmp_path) == ["S1/selfie/a", "S1/selfie/b"]
    (tmp_path / "imagepathsvalidation.txt").write_text("a.jpg\n")
    with pytest.raises(ValueError, match="expected subject/challenge/image"):
        list_images(tmp_path)


def score(item, values, status="ok"):
    return ImageScore(
        item_id=item,
        subject_id=item.split("/")[0],
        status=status,
        reason="",
        distances_mm=np.array(values, float),
        flags=(),
    )


def test_summary_pools_vertices_by_challenge_and_subject():
    scores = [
        score("a/selfie/1", [1, 2, 3]),
        score("a/multiview_neutral/2", [9]),
        score("b/selfie/3", [], "missing"),
    ]
    result = summarise(scores)
    assert (result["median_mm"], result["mean_mm"], result["vertices"]) == (2.5, 3.75, 4)
    assert list(result["challenges"]) == ["multiview_neutral", "selfie"]
    assert result["challenges"]["selfie"]["missing"] == 1
    assert result["subjects"]["b"]["median_mm"] is None
    curve = curve_of(scores, np.array([0.0, 2.0, 8.0]))
    assert [point["percent"] for point in curve] == [0.0, 50.0, 75.0]
    assert curve_of(scores[2:], np.array([1.0])) == []
