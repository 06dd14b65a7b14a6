"""Landmarks of scans that nobody marked: from pictures, with a predictor trained here on clay."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.face.flame import FlameArrays
from models.geometry.mesh import vertex_normals
from models.geometry.registration import MOUTH_OVERRULED, RegistrationError, Scan
from models.geometry.template import RegistrationModel
from models.geometry.views import Camera, draw
from stages.landmark_model import train
from stages.landmarking.landmark_predictor import FILE_NAME
from stages.landmarking.landmark_providers import NoFaceError
from stages.register import register_row
from stages.registration.landmarks import (
    ScanLandmarker,
    ScanLandmarks,
    _scattered,
    agreed,
    guessed_unit,
    head_frame,
    millimetres,
)
from stages.registration.unmarked import register_unmarked
from stages.runtime import params
from stages.runtime.contracts import table_of

UNMARKED = params.ScanLandmarksParams(order="none", edition="mica")


@pytest.fixture(scope="module")
def loaded(repository) -> params.Params:
    return params.load(repository / "params.yaml")


@pytest.fixture(scope="module")
def head():
    from stages.corpus import studio

    return studio.head()


def person(head, number: int) -> np.ndarray:
    """A fresh head's vertices, metres."""
    from models.procedural.identity import sample_identity

    return np.asarray(head.vertices(sample_identity(np.random.default_rng([77, number]))))


@pytest.fixture(scope="module")
def model(head) -> RegistrationModel:
    """A FLAME-like model of the procedural head: ten modes of identity, no expression."""
    people = np.stack([person(head, number) for number in range(24)])
    mean = people.mean(axis=0)
    _, size, modes = np.linalg.svd((people - mean).reshape(len(people), -1), full_matrices=False)
    shapes = (modes[:10] * size[:10, None] / np.sqrt(len(people))).reshape(10, -1, 3)
    count = len(mean)
    weights, regressor = np.zeros((count, 5)), np.zeros((5, count))
    weights[:, 0] = 1.0
    regressor[:, :50] = 0.02
    arrays = FlameArrays(
        mean,
        np.asarray(head.faces),
        shapes.transpose(1, 2, 0),
        np.zeros((count, 3, 1)),
        np.zeros((count, 3, 36)),
        regressor,
        weights,
        np.array([-1, 0, 1, 1, 1]),
    )
    corners = arrays.faces.ravel()
    marks = np.asarray(head.landmarks(mean))[17:]
    distance = np.linalg.norm(mean[corners][:, None] - marks, axis=2)
    nearest = distance.argmin(axis=0)
    return RegistrationModel.build(arrays, nearest // 3, np.eye(3)[nearest % 3])


@pytest.fixture(scope="module")
def landmark_model(head, loaded, tmp_path_factory) -> Path:
    """A small predictor trained on clay pictures of other heads."""
    out, rows = tmp_path_factory.mktemp("landmark_model"), []
    rng = np.random.default_rng(5)
    for number in range(100, 126):
        vertices = 1e3 * person(head, number)
        marks = 1e3 * np.asarray(head.landmarks(1e-3 * vertices))
        normals = vertex_normals(vertices, np.asarray(head.faces))
        for _ in range(4):
            turn = Rotation.from_euler("yxz", rng.normal(0, [14, 8, 8]), degrees=True).as_matrix()
            camera = Camera(turn, marks.mean(axis=0), 1.1, 256, 900.0)
            image = draw(vertices, np.asarray(head.faces), normals, camera).image
            rows.append(
                {
                    "item_id": f"clay/{len(rows)}",
                    "image": cv2.imencode(".png", image[..., ::-1])[1].tobytes(),
                    "landmarks_px": camera.project(marks).ravel(),
                }
            )
    small = {"cascades": 8, "trees": 80, "copies": 1, "oversampling": 3, "tree_depth": 4}
    train(rows, loaded.landmark_model.model_copy(update=small), seed=1, out=out / FILE_NAME)
    return out


@pytest.fixture(scope="module")
def landmarker(landmark_model, loaded) -> ScanLandmarker:
    return ScanLandmarker.load(landmark_model, loaded.landmarks, loaded.registration.views)


def turned(head, number: int, seed: int) -> tuple[Scan, np.ndarray]:
    """A head in millimetres in any position, and its inner landmarks."""
    vertices = 1e3 * person(head, number)
    marks = 1e3 * np.asarray(head.landmarks(1e-3 * vertices))[17:]
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    scan = Scan(vertices @ turn.T + [30, -200, 90], np.asarray(head.faces), unit="mm", bald=True)
    return scan, marks @ turn.T + [30, -200, 90]


def packed(scan: Scan) -> dict:
    row = {
        "item_id": "a/b",
        "subject_id": "X/a",
        "status": "ok",
        "reason": "",
        "vertices": scan.vertices.astype(np.float32).ravel(),
        "faces": scan.faces.astype(np.int32).ravel(),
        "unit": scan.unit,
        "capped": scan.bald,
    }
    table = table_of([row], "scans")
    return {name: table.column(name)[0] for name in table.schema.names}


@pytest.mark.parametrize("seed", [1, 2])
def test_landmarks_lie_near_the_truth_and_turn_with_the_scan(head, landmarker, model, seed) -> None:
    scan, marks = turned(head, 900 + seed, seed)
    found = landmarker(scan, None, model)
    assert found.doubts == ()
    gap = np.linalg.norm(found.points[17:] - marks, axis=1)
    assert np.nanmedian(gap) < 6.0
    assert np.isfinite(gap).mean() > 0.7
    inward = replace(scan, faces=scan.faces[:, ::-1])
    np.testing.assert_array_equal(landmarker(inward, None, model).points, found.points)


def test_a_packed_scan_is_registered_from_views(head, landmarker, model, loaded) -> None:
    scan, marks = turned(head, 912, 12)  # whose quality is far from every limit
    row = register_row(packed(scan), model, UNMARKED, loaded.registration, landmarker)
    assert row["status"] == "ok"
    assert row["landmark_source"] == "views"
    assert "landmarks_from_views" in json.loads(row["flags"])
    placed = row["scale"] * marks @ np.reshape(row["rotation"], (3, 3)).T + row["translation"]
    mesh = np.reshape(row["vertices"], (-1, 3))
    corners = mesh[model.arrays.faces[model.landmark_faces]]
    known = np.einsum("lk,lka->la", model.landmark_bary, corners)
    assert np.median(np.linalg.norm(placed - known, axis=1)) < 0.003
    shape = register_row(packed(scan), model, UNMARKED, loaded.registration)
    assert shape["landmark_source"] == "shape"
    assert "no_landmarks" in json.loads(shape["flags"])


def test_a_faceless_blob_is_not_accepted(landmarker, model, loaded) -> None:
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 80), np.linspace(0, np.pi, 50))
    points = np.stack(
        [80 * np.sin(v) * np.cos(u), 110 * np.cos(v), -90 * np.sin(v) * np.sin(u)], -1
    )
    corner = (np.arange(49)[:, None] * 80 + np.arange(79)).ravel()
    ids = np.stack([corner, corner + 80, corner + 81, corner + 1], axis=1)
    faces = np.concatenate([ids[:, [0, 1, 2]], ids[:, [0, 2, 3]]])
    blob = Scan(points.reshape(-1, 3), faces, unit="mm")
    row = register_row(packed(blob), model, UNMARKED, loaded.registration, landmarker)
    assert row["status"] in ("rejected", "failed")
    assert "face" in row["reason"]


def test_missing_predictor_says_what_to_run(tmp_path, loaded) -> None:
    with pytest.raises(FileNotFoundError, match="landmark_model stage"):
        ScanLandmarker.load(tmp_path, loaded.landmarks, loaded.registration.views)


BALL = Scan(np.random.default_rng(0).normal(size=(50, 3)), np.array([[0, 1, 2]]), unit="mm")


def registration_of(status: str, coverage: float):
    from models.geometry.registration import Registration

    empty, nothing = np.zeros(3), np.zeros((1, 3))
    return Registration(
        status=status, reason="" if status == "ok" else "bad", beta=empty, psi=empty, theta=empty,
        scale=1e-3, rotation=np.eye(3), translation=empty, vertices=nothing,
        vertices_neutral=nothing, residuals_mm=empty, residual_median_mm=0.1, residual_q95_mm=0.5,
        template_median_mm=0.1, template_q95_mm=0.5, landmark_rms_mm=1.0, coverage=coverage,
        lower_face=1.0, flipped_faces=0, prior_energy=1.0, flags=(),
    )  # fmt: skip


def decide(loaded, doubts, by_views, by_shape, faceless="", section=None):
    """register_unmarked with what a landmarker and the fits would answer; and the starts tried."""
    tried = []

    def landmarker(scan, colors, model):
        if faceless:
            raise NoFaceError(faceless)
        return ScanLandmarks(np.zeros((68, 3)), 0.9, 3.0, 1.0, doubts)

    def fit(landmarks, section):
        tried.append("shape" if landmarks is None else "views")
        answer = by_shape if landmarks is None else by_views
        if isinstance(answer, Exception):
            raise answer
        return answer

    section = section or loaded.registration
    return register_unmarked(BALL, None, section, None, landmarker, fit), tried


def test_trusted_landmarks_are_the_only_start(loaded) -> None:
    good = registration_of("ok", 0.8)
    (found, source), tried = decide(loaded, (), good, good)
    assert (source, tried) == ("views", ["views"])
    assert found.flags == ("landmarks_from_views",)


def test_lifted_landmarks_of_an_overruled_mouth_do_not_count(loaded) -> None:
    first = replace(registration_of("rejected", 0.8), flags=(MOUTH_OVERRULED,))
    asked = []

    def landmarker(scan, colors, model):
        return ScanLandmarks(np.zeros((68, 3)), 0.9, 3.0, 1.0, ())

    def fit(landmarks, section):
        asked.append(np.isfinite(landmarks).all(axis=1))
        return first if len(asked) == 1 else registration_of("ok", 0.8)

    found, source = register_unmarked(BALL, None, loaded.registration, None, landmarker, fit)
    assert (source, found.status) == ("views", "ok")
    assert found.flags == (MOUTH_OVERRULED, "landmarks_from_views")
    assert [given.sum() for given in asked] == [68, 48]
    assert asked[1][:48].all()


def test_in_doubt_the_better_fit_wins(loaded) -> None:
    good, poor = registration_of("ok", 0.8), registration_of("ok", 0.3)
    bad = registration_of("rejected", 0.9)
    assert decide(loaded, ("far",), poor, good)[0][1] == "shape"
    assert decide(loaded, ("far",), good, poor)[0][1] == "views"
    assert decide(loaded, (), bad, poor)[0][1] == "shape"
    assert decide(loaded, ("far",), RegistrationError("line"), poor)[0][1] == "shape"


def test_no_face_is_rejected_at_best_and_failures_name_both_reasons(loaded) -> None:
    (found, source), tried = decide(loaded, (), None, registration_of("ok", 0.8), "no face there")
    assert (source, tried, found.status) == ("shape", ["shape"], "rejected")
    assert found.reason == "no face there"
    with pytest.raises(RegistrationError, match="flat; empty"):
        decide(loaded, (), RegistrationError("flat"), RegistrationError("empty"))


def test_head_frame_recovers_a_similarity_and_outvotes_outliers() -> None:
    rng = np.random.default_rng(3)
    marks = rng.normal(0, 30, (51, 3))
    turn = Rotation.random(rng=rng).as_matrix()
    points = (marks @ turn.T + [5.0, 6, 7]) / 2
    points[:4] += 40
    points[10] = np.nan
    placed = head_frame(points, marks, None)
    assert placed.scale == pytest.approx(2.0)
    np.testing.assert_allclose(placed.apply(points[20:]), marks[20:], atol=1e-6)
    with pytest.raises(NoFaceError, match="from inside"):
        head_frame(marks @ turn.T * [-1, 1, 1], marks, None)
    points[5:] = np.nan
    with pytest.raises(NoFaceError, match="only 5 of 51"):
        head_frame(points, marks, None)


def test_views_agree_by_their_median() -> None:
    truth = np.random.default_rng(0).normal(0, 30, (68, 3))
    answers = np.stack([truth, truth, truth + np.array([20.0, 0, 0])])
    answers[1, 0], answers[:2, 1] = np.nan, np.nan
    points, spread = agreed(answers, 5.0)
    np.testing.assert_allclose(points[2:], truth[2:])
    assert np.isnan(points[:2]).all()
    assert spread == pytest.approx(0.0)
    assert agreed(np.full((3, 68, 3), np.nan), 5.0)[1] == float("inf")


def test_unit_by_size() -> None:
    for unit, size in (("m", 0.3), ("dm", 3.0), ("cm", 30.0), ("mm", 300.0)):
        scan = Scan(np.diag([size, 0, 0]), np.array([[0, 1, 2]]))
        assert guessed_unit(scan) == unit
        assert size * millimetres(scan) == pytest.approx(300)
    odd = Scan(np.diag([7e5, 0, 0]), np.array([[0, 1, 2]]))
    assert guessed_unit(odd) == "unknown"
    assert 7e5 * millimetres(odd) == pytest.approx(300)
    assert guessed_unit(replace(odd, unit="cm")) == "cm"


def test_the_search_visits_every_view_far_apart() -> None:
    order = _scattered(156)
    assert sorted(order) == list(range(156))
    assert np.abs(np.diff(order)).min() > 20


@pytest.mark.parametrize(
    "vertices",
    [np.eye(3) * 200, np.eye(3) * 1e-3, np.zeros((3, 3)), np.diag([1e9, 200, 200])],
    ids=["one triangle", "a speck", "a point", "a needle"],
)
def test_what_is_no_surface_shows_no_face(landmarker, model, vertices) -> None:
    scan = Scan(vertices, np.array([[0, 1, 2]]), unit="mm")
    with pytest.raises(NoFaceError, match="no face was found"):
        landmarker(scan, None, model)
