"""Stages landmark_model and landmarks on drawn toy faces: learning, rows, sources, refusals."""

import cv2
import numpy as np
import pytest
import torch

from models.face.landmarks import MIRROR_68, canonical_box, relative_error
from stages import landmarks
from stages.landmark_model import held_out, spread_over, training_rows
from stages.landmark_model import run as train_model
from stages.landmarking import landmark_providers
from stages.landmarking.landmark_predictor import (
    FACE_PX,
    FILE_NAME,
    FaceSquare,
    LandmarkPredictor,
    _dissent,
    crop_face,
)
from stages.landmarks import run as locate_stage
from stages.runtime.artifacts import read_json, read_table, write_json, write_table
from stages.runtime.contracts import schema, table_of
from stages.runtime.params import (
    ComputeParams,
    FaceAlignmentParams,
    LandmarkModelParams,
    LandmarksParams,
)

COMPUTE = ComputeParams(workers=1, ray_threshold_s=100, object_store_mb=100)
MODEL = LandmarkModelParams(
    holdout=0.25,
    max_images=40,
    max_measured=20,
    max_yaw_deg=60,
    measured_yaw_deg=45,
    copies=1,
    copy_turn_deg=5,
    box_shift=0.03,
    box_scale=0.04,
    cascades=6,
    trees=40,
    tree_depth=3,
    nu=0.15,
    oversampling=4,
    feature_pool=150,
    test_splits=8,
)
PARAMS = LandmarksParams(
    provider="dlib",
    providers={},
    face_alignment=FaceAlignmentParams(fan=None, s3fd=None),
    detector_min_score=0.0,
    detector_max_px=320,
    max_failed_fraction=1.0,
    seconds_per_item=0.05,
)
SIZE = 160


def locate(p, compute, *, out, work=None, **inputs):
    """The stage with rows kept beside its output, unless told otherwise."""
    locate_stage(p, compute, out=out, work=work or out.parent / f"work-{out.name}", **inputs)


def mean_face():
    """A schematic iBUG-68 face in the unit square."""
    angle = np.radians(np.linspace(170, 10, 17))
    jaw = np.stack([-np.cos(angle) * -0.42, 0.05 + 0.45 * np.sin(angle)], 1)
    brow = np.stack([np.linspace(-0.33, -0.1, 5), [-0.2, -0.25, -0.26, -0.24, -0.2]], 1)
    nose = np.concatenate(
        [
            np.stack([np.zeros(4), np.linspace(-0.1, 0.08, 4)], 1),
            np.stack([np.linspace(-0.08, 0.08, 5), [0.12, 0.13, 0.14, 0.13, 0.12]], 1),
        ]
    )
    eye = np.array([[-0.3, -0.1], [-0.25, -0.13], [-0.18, -0.13], [-0.12, -0.1], [-0.18, -0.08],
                    [-0.25, -0.08]])  # fmt: skip
    turn = np.radians(np.arange(12) * 30 + 180)
    mouth = np.stack([0.16 * np.cos(turn), 0.27 + 0.06 * np.sin(turn)], 1)
    inner = np.stack([0.12 * np.cos(turn[::2]), 0.27 + 0.02 * np.sin(turn[::2])], 1)
    inner = np.concatenate([inner, inner[1:3]])
    flip = [-1.0, 1.0]
    return np.concatenate(
        [jaw, brow, brow[::-1] * flip, nose, eye, eye[[3, 2, 1, 0, 5, 4]] * flip, mouth, inner]
    )


def toy_face(seed):
    """A drawn face with its points; identity, pose and shade vary."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-0.2, 0.2), rng.uniform(60, 85)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = rng.uniform(0.85, 1.15, 2)
    points = (mean_face() * stretch) @ turn.T * scale + rng.uniform(72, 88, 2)
    image = np.full((SIZE, SIZE, 3), rng.integers(20, 70), np.uint8)
    skin, dark = int(rng.integers(150, 210)), int(rng.integers(30, 80))

    def fill(ids, shade):
        hull = cv2.convexHull(np.round(points[ids] * 16).astype(np.int32))
        cv2.fillConvexPoly(image, hull, (shade,) * 3, cv2.LINE_AA, 4)

    fill(list(range(27)), skin)
    for ids in (range(17, 22), range(22, 27), range(36, 42), range(42, 48), range(48, 60)):
        fill(list(ids), dark)
    fill(range(27, 36), skin - 40)
    noise = rng.normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), points


def packed_row(seed, **changes):
    image, points = toy_face(seed)
    row = {
        "item_id": f"AFW/face_{seed:03d}",
        "subject_id": f"300W_LP/face_{seed // 2}",
        "status": "ok",
        "reason": "",
        "source_path": "",
        "source_sha256": "",
        "split": "train",
        "attributes": "{}",
        "image": cv2.imencode(".png", image)[1].tobytes(),
        "height_px": SIZE,
        "width_px": SIZE,
        "landmarks_px": points.ravel(),
        "landmark_order": "ibug68",
    }
    return {**row, **changes}


def pack(folder, rows):
    write_table(table_of(rows, "images"), folder / "images-00000.parquet")
    write_json({"synthetic": True}, folder / "meta.json")
    return folder


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    rows = [packed_row(seed) for seed in range(48)]
    rows += [packed_row(90, split="test"), packed_row(91, status="failed", image=None)]
    rows += [packed_row(92, landmark_order=""), packed_row(93, image=b"\xff\xd8broken")]
    return pack(tmp_path_factory.mktemp("packed"), rows)


@pytest.fixture(scope="module")
def model(training, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "landmark_model"
    train_model(MODEL, seed=5, packed=training, out=out)
    return out


def test_training_rows_leave_out_the_test_split_and_unusable_photographs(training):
    names = {row["item_id"] for row in training_rows(training)}
    assert "AFW/face_090" not in names
    assert "AFW/face_091" not in names
    assert "AFW/face_092" not in names
    assert len(names) == 49


def test_predictor_meets_held_out_subjects(model):
    metrics = read_json(model / "metrics.json")
    assert metrics["mean_error_percent"] < 6.0
    assert metrics["held_out_subjects"] >= 3
    assert metrics["held_out_images"] >= 6
    assert metrics["training_images"] + metrics["held_out_images"] <= 48
    assert metrics["weights"] == "synthetic-trained"


def test_predictor_does_better_than_the_mean_face(model):
    predictor = LandmarkPredictor(model / FILE_NAME)
    ours, theirs = [], []
    for seed in range(200, 210):
        image, points = toy_face(seed)
        box = canonical_box(points)
        answer = predictor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), box)
        ours.append(relative_error(answer.points, points))
        template = mean_face()
        placed = canonical_box(template)
        scale = (box[2] - box[0]) / (placed[2] - placed[0])
        theirs.append(relative_error((template - placed[:2]) * scale + box[:2], points))
        assert 0.5 < answer.score <= 1.0
    assert np.mean(ours) < 0.5 * np.mean(theirs)


def test_answers_hardly_depend_on_the_first_box(model):
    predictor = LandmarkPredictor(model / FILE_NAME)
    image, points = toy_face(300)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    box = canonical_box(points)
    tight, loose = (box + np.array(by) for by in ([6, 6, -6, -6], [-6, -2, 6, 10]))
    a, b = predictor(grey, tight), predictor(grey, loose)
    assert relative_error(a.points, b.points) < 0.05


def test_answers_turn_around_with_the_photograph(model):
    predictor = LandmarkPredictor(model / FILE_NAME)
    image, points = toy_face(301)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    flipped = np.stack([SIZE - points[:, 0], points[:, 1]], 1)[MIRROR_68]
    straight = predictor(grey, canonical_box(points)).points
    turned = predictor(np.ascontiguousarray(grey[:, ::-1]), canonical_box(flipped)).points
    back = np.stack([SIZE - turned[:, 0], turned[:, 1]], 1)[MIRROR_68]
    assert relative_error(back, straight) < 0.01


def test_the_same_bytes_twice_and_others_for_another_seed(model, training, tmp_path):
    train_model(MODEL, seed=5, packed=training, out=tmp_path / "again")
    names = (FILE_NAME, "metrics.json")
    assert [(tmp_path / "again" / n).read_bytes() for n in names] == [
        (model / n).read_bytes() for n in names
    ]
    train_model(MODEL, seed=6, packed=training, out=tmp_path / "other")
    assert (tmp_path / "other" / FILE_NAME).read_bytes() != (model / FILE_NAME).read_bytes()


def test_too_few_photographs_are_refused(tmp_path):
    packed = pack(tmp_path, [packed_row(seed) for seed in range(4)])
    with pytest.raises(ValueError, match="at least 10 photographs"):
        train_model(MODEL, seed=1, packed=packed, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="pack stage"):
        train_model(MODEL, seed=1, packed=tmp_path / "none", out=tmp_path / "out")


def test_held_out_is_a_fixed_share_of_subjects():
    names = [f"300W_LP/{k}" for k in range(2000)]
    assert np.mean([held_out(name, 0.2) for name in names]) == pytest.approx(0.2, abs=0.03)
    assert all(held_out(name, 0.3) for name in names if held_out(name, 0.2))
    assert [row["k"] for row in spread_over([{"k": k} for k in range(10)], 4)] == [0, 3, 6, 9]


@pytest.mark.parametrize("roll", [0.0, 33.0, -71.0])
def test_crop_keeps_coordinates(roll):
    image = np.zeros((200, 300), np.uint8)
    image[77, 123] = 255  # centre at (123.5, 77.5)
    for box in ([90.0, 50, 150, 110], [60.0, 20, 190, 150], [10.3, 0, 180.3, 170]):
        square = FaceSquare.of_box(np.array(box)).rolled(roll)
        crop = crop_face(image, square)
        rows, columns = np.nonzero(crop.image)
        weights = crop.image[rows, columns].astype(float)
        seen = np.array([(columns + 0.5) @ weights, (rows + 0.5) @ weights]) / weights.sum()
        np.testing.assert_allclose(crop.to_photo(seen[None])[0], [123.5, 77.5], atol=0.15)
        np.testing.assert_allclose(crop.to_crop(crop.to_photo(seen[None])), seen[None], atol=1e-9)
        np.testing.assert_allclose(
            crop.mirrored().to_crop(crop.to_photo(seen[None]))[0],
            [crop.image.shape[1] - seen[0], seen[1]],
        )
        corners = crop.to_crop(square.corners())
        np.testing.assert_allclose(corners[1] - corners[0], FACE_PX)
        np.testing.assert_allclose(corners.mean(axis=0), 0.5 * crop.image.shape[0])


def test_a_square_turns_with_its_face():
    points = toy_face(12)[1]
    upright = FaceSquare.around(points)
    c, s = np.cos(np.radians(40.0)), np.sin(np.radians(40.0))
    turned = FaceSquare.around(3.0 * points @ np.array([[c, -s], [s, c]]).T + [7, 9])
    assert turned.roll_deg == pytest.approx(upright.roll_deg + 40.0)
    assert turned.side == pytest.approx(3.0 * upright.side)
    np.testing.assert_allclose(
        turned.centre, 3.0 * upright.centre @ np.array([[c, -s], [s, c]]).T + [7, 9]
    )
    np.testing.assert_allclose(
        turned.moved(0.5, -0.25, 2.0).centre - turned.centre,
        turned.side * np.array([[c, -s], [s, c]]) @ _turned([0.5, -0.25], upright.roll_deg),
    )


def _turned(vector, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]]) @ vector


def test_a_head_held_askew_is_found_as_well(model):
    predictor = LandmarkPredictor(model / FILE_NAME)
    image, points = toy_face(302)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    straight = predictor(grey, canonical_box(points)).points
    for angle in (-28.0, 28.0):
        matrix = cv2.getRotationMatrix2D((SIZE / 2 - 0.5, SIZE / 2 - 0.5), -angle, 1)
        rolled = cv2.warpAffine(grey, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
        true = (points - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
        found = predictor(rolled, canonical_box(true)).points
        assert relative_error(found, true) < max(0.06, 2 * relative_error(straight, points))


def face_box(seed):
    return canonical_box(toy_face(seed)[1])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    image = cv2.imencode(".jpg", toy_face(60)[0])[1].tobytes()
    rows = [
        packed_row(60, box_px=face_box(60), landmarks_px=None, landmark_order=""),
        packed_row(61, box_px=face_box(61)),
        packed_row(62, status="failed", reason="no such file", image=None),
        packed_row(63, image=image[: len(image) // 2], box_px=face_box(60)),
        packed_row(64, box_px=[5.0, 5.0, 5.0, 9.0]),
        packed_row(65, box_px=[500.0, 5.0, 600.0, 100.0]),
        packed_row(66, image=cv2.imencode(".png", np.full((99, 99, 3), 90, np.uint8))[1].tobytes()),
    ]
    return pack(tmp_path_factory.mktemp("photographs"), rows)


def test_every_photograph_becomes_a_row(photographs, model, tmp_path):
    out = tmp_path / "landmarks"
    locate(PARAMS, COMPUTE, packed=photographs, landmark_model=model, out=out)
    table = read_table(out / "landmarks.parquet")
    assert table.schema.names == schema("landmarks").names
    rows = {row["item_id"][-3:]: row for row in table.to_pylist()}
    assert list(rows) == sorted(rows)
    assert len(rows) == 7
    for name in ("060", "061"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["provider"] == "dlib, data set's box"
        points = np.array(rows[name]["points_px"]).reshape(68, 2)
        assert relative_error(points, toy_face(int(name))[1]) < 0.12
    reasons = {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}
    assert reasons["062"] == "not packed: no such file"
    assert "truncated" in reasons["063"]
    assert "unusable" in reasons["064"]
    assert "outside the photograph" in reasons["065"]
    assert reasons["066"] == "no face was detected"
    assert all(rows[name]["points_px"] is None for name in reasons)
    metrics = read_json(out / "metrics.json")
    assert (metrics["items"], metrics["located"], metrics["failed"]) == (7, 2, 5)
    assert metrics["sources"] == {"dlib, data set's box": 2}
    assert metrics["compared"] == 1
    locate(PARAMS, COMPUTE, packed=photographs, landmark_model=model, out=tmp_path / "again")
    again = (tmp_path / "again" / "landmarks.parquet").read_bytes()
    assert again == (out / "landmarks.parquet").read_bytes()


def test_only_new_photographs_are_looked_at(photographs, model, tmp_path, monkeypatch):
    looked = []
    once = landmarks.locate

    def counted(row, provider):
        looked.append(row["item_id"])
        return once(row, provider)

    monkeypatch.setattr(landmarks, "locate", counted)
    rows = read_table(next(photographs.glob("images-*.parquet"))).to_pylist()
    extra = packed_row(71, box_px=face_box(71), subject_id="300W_LP/other")

    def again(name, content, parameters=PARAMS):
        (tmp_path / name).mkdir()
        packed = pack(tmp_path / name, content)
        looked.clear()
        inputs = {"packed": packed, "landmark_model": model, "dataset": "one"}
        locate(parameters, COMPUTE, out=tmp_path / f"{name}-a", work=tmp_path / "work", **inputs)
        found = [item[-3:] for item in looked]
        locate(parameters, COMPUTE, out=tmp_path / f"{name}-b", **inputs)
        for file in ("landmarks.parquet", "metrics.json"):
            kept, fresh = (tmp_path / f"{name}-{way}" / file for way in "ab")
            assert kept.read_bytes() == fresh.read_bytes()
        return found

    assert len(again("first", rows)) == len(rows) == 7
    assert again("more", [*rows, extra]) == ["071"]
    assert again("less", rows) == []
    described = [rows[0] | {"attributes": '{"another": "note"}'}, *rows[1:]]
    assert again("described", described) == []  # no column that the stage reads
    moved = [*rows[:1], packed_row(61, box_px=face_box(60)), *rows[2:]]
    assert again("moved", moved) == ["061"]
    strict = PARAMS.model_copy(update={"max_failed_fraction": 0.9})
    assert again("strict", moved, strict) == []
    small = PARAMS.model_copy(update={"detector_max_px": 300})
    assert len(again("small", moved, small)) == 7


def test_points_from_files_are_said_to_be(photographs, tmp_path):
    p = PARAMS.model_copy(update={"providers": {"300w_lp": "files"}})
    locate(
        p,
        COMPUTE,
        packed=photographs,
        landmark_model=tmp_path / "none",
        out=tmp_path / "out",
        dataset="300w_lp",
    )
    rows = {
        row["item_id"][-3:]: row
        for row in read_table(tmp_path / "out" / "landmarks.parquet").to_pylist()
    }
    assert "no 68 landmarks" in rows["060"]["reason"]
    assert rows["061"]["provider"] == "files"
    np.testing.assert_allclose(
        np.array(rows["061"]["points_px"]).reshape(68, 2), toy_face(61)[1], atol=1e-4
    )
    assert "mean_error_percent" not in read_json(tmp_path / "out" / "metrics.json")


def test_several_faces_are_a_reason(photographs, model, tmp_path, monkeypatch):
    def two(self, image):
        return [(np.array([0.0, 0, 50, 50]), 1.5), (np.array([60.0, 0, 110, 50]), 1.2)]

    monkeypatch.setattr(landmark_providers.FaceDetector, "__call__", two)
    locate(PARAMS, COMPUTE, packed=photographs, landmark_model=model, out=tmp_path / "out")
    rows = read_table(tmp_path / "out" / "landmarks.parquet").to_pylist()
    assert rows[6]["reason"].startswith("several faces were detected (2)")


def test_limits_and_missing_inputs(photographs, model, tmp_path):
    strict = PARAMS.model_copy(update={"max_failed_fraction": 0.5})
    with pytest.raises(RuntimeError, match="5 of 7 photographs"):
        locate(strict, COMPUTE, packed=photographs, landmark_model=model, out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="landmark_model stage"):
        locate(PARAMS, COMPUTE, packed=photographs, landmark_model=tmp_path, out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="pack stage"):
        locate(PARAMS, COMPUTE, packed=tmp_path / "no", landmark_model=model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / FILE_NAME).write_bytes(b"not a predictor")
    with pytest.raises(ValueError, match="not a dlib shape predictor"):
        LandmarkPredictor(tmp_path / FILE_NAME)


def test_a_set_without_photographs_gives_an_empty_table(tmp_path, model):
    (tmp_path / "packed").mkdir()
    locate(PARAMS, COMPUTE, packed=tmp_path / "packed", landmark_model=model, out=tmp_path / "out")
    assert read_table(tmp_path / "out" / "landmarks.parquet").num_rows == 0


def test_missing_face_alignment_weights_say_which_and_where(photographs, tmp_path):
    p = PARAMS.model_copy(update={"provider": "face-alignment"})
    with pytest.raises(FileNotFoundError, match=r"fan .*2DFAN4-11f355bf06\.pth\.tar .*adrianbulat"):
        locate(p, COMPUTE, packed=photographs, landmark_model=tmp_path, out=tmp_path / "out")


class BrightestSpot(torch.nn.Module):
    """Stands in for the landmark network: every heat map is the picture, quartered."""

    def __init__(self, size):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, crops):
        pooled = torch.nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 4) * self.scale
        return pooled.expand(-1, 68, -1, -1).clone()


class OneParameter(torch.nn.Module):
    """Stands in for the detector."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


def test_face_alignment_reads_the_users_files_and_never_the_network(
    photographs, tmp_path, monkeypatch
):
    import face_alignment.detection.sfd.sfd_detector as sfd
    import face_alignment.models

    def refuse(*args, **kwargs):
        raise AssertionError("a download was attempted")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr(sfd, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(face_alignment.models, "FAN", BrightestSpot)
    monkeypatch.setattr(sfd, "s3fd", OneParameter)
    fan, s3fd = tmp_path / "fan.pth.tar", tmp_path / "s3fd.pth"
    for path in (fan, s3fd):
        torch.save({"scale": torch.ones(1)}, path)
    files = FaceAlignmentParams(fan=fan, s3fd=s3fd)
    p = PARAMS.model_copy(update={"provider": "face-alignment", "face_alignment": files})

    image = np.full((300, 300, 3), 40, np.uint8)
    cv2.circle(image, (167, 141), 4, (255, 255, 255), -1)
    row = packed_row(
        70,
        image=cv2.imencode(".png", image)[1].tobytes(),
        height_px=300,
        width_px=300,
        box_px=[100.0, 80.0, 230.0, 230.0],
    )
    (tmp_path / "packed").mkdir()
    packed = pack(tmp_path / "packed", [row])
    locate(p, COMPUTE, packed=packed, landmark_model=tmp_path, out=tmp_path / "out")
    found = read_table(tmp_path / "out" / "landmarks.parquet").to_pylist()[0]
    assert found["provider"] == "face-alignment, data set's box"
    points = np.array(found["points_px"]).reshape(68, 2)
    np.testing.assert_allclose(points, np.tile([[167.5, 141.5]], (68, 1)), atol=4.0)

    torch.save({"other": torch.ones(1)}, fan)
    landmark_providers_cache_clear()
    with pytest.raises(ValueError, match="expected the weights"):
        locate(p, COMPUTE, packed=packed, landmark_model=tmp_path, out=tmp_path / "out2")


def landmark_providers_cache_clear():
    from stages import landmarks

    landmarks._provider.cache_clear()


def test_a_box_that_holds_the_whole_head_still_finds_the_face(model):
    predictor = LandmarkPredictor(model / FILE_NAME)
    errors = []
    for seed in range(310, 316):
        image, points = toy_face(seed)
        left, top, right, bottom = canonical_box(points)
        side = right - left
        head = np.array([left - 0.3 * side, top - 0.2 * side, right + 0.1 * side, bottom])
        answer = predictor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), head)
        errors.append(relative_error(answer.points, points))
    assert np.mean(errors) < 0.08


def test_the_least_doubtful_start_wins_unless_it_stands_alone():
    boxes = np.array([[0.0, 0, 10, 10], [0.1, 0, 10, 10], [0, 0.1, 10, 10], [90.0, 90, 99, 99]])
    together = [FaceSquare.of_box(box) for box in boxes]
    assert np.argmin(_dissent(together, np.array([0.3, 0.1, 0.2, 0.3]))) == 1
    assert np.argmin(_dissent(together, np.array([0.3, 0.1, 0.2, 0.09]))) == 1
    one, other = (
        FaceSquare.of_box(np.array([0.0, 0, 4, 4])),
        FaceSquare.of_box(np.array([1.0, 2, 7, 8])),
    )
    assert one.apart(other) == pytest.approx(np.abs(np.array([1.0, 2, 3, 4])).mean())
