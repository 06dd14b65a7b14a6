"""Scan-to-mesh protocols: closed forms, invariances, a brute-force twin, the published case."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.metrics import (
    PROTOCOLS,
    align_and_measure,
    crop_scan,
    crop_sphere,
    cumulative_curve,
    pooled_statistics,
    protocol_named,
    scan_to_mesh,
)

NOW, METRIC = PROTOCOLS["now"], PROTOCOLS["now-metric"]


def rotation(axis_angle) -> np.ndarray:
    angle = np.linalg.norm(axis_angle)
    x, y, z = np.asarray(axis_angle) / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def height(x, y):
    """A face-like relief in mm: a dome, a nose, two sockets; no symmetry to slide along."""
    dome = 40 * np.exp(-(x**2 / 70**2 + y**2 / 90**2))
    nose = 22 * np.exp(-(x**2 / 12**2 + (y + 5) ** 2 / 22**2))
    sockets = -9 * np.exp(-((np.abs(x) - 32) ** 2 + (y - 28) ** 2) / 14**2)
    return dome + nose + sockets + 0.03 * x * np.sin(y / 15)


def relief(step: float, extent: float = 90.0, bump: float = 0.0):
    """Vertices (mm) and faces of the relief over a square grid."""
    axis = np.arange(-extent, extent + 1e-9, step)
    x, y = np.meshgrid(axis, axis)
    z = height(x, y) + bump * np.exp(-((x - 25) ** 2 + (y + 30) ** 2) / 20**2)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    count = len(axis)
    index = np.arange(count * count).reshape(count, count)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    return vertices, faces


def marks() -> np.ndarray:
    xy = np.array(
        [[-45, 28], [-18, 28], [18, 28], [45, 28], [0, -28], [-25, -50], [25, -50]], np.float64
    )
    return np.column_stack([xy, height(xy[:, 0], xy[:, 1])])


@pytest.fixture(scope="module")
def case():
    """A scan and a coarser, dented, resized prediction of it, in metres."""
    scan_vertices, scan_faces = relief(2.0)
    vertices, faces = relief(5.0, bump=3.0)
    return scan_vertices, scan_faces, marks(), 1e-3 * 1.06 * vertices, faces, 1e-3 * 1.06 * marks()


def load_obj(path):
    vertices, faces = [], []
    for line in path.read_text().splitlines():
        if line.startswith("v "):
            vertices.append([float(word) for word in line.split()[1:4]])
        elif line.startswith("f "):
            faces.append([int(word.split("/")[0]) - 1 for word in line.split()[1:4]])
    return np.array(vertices), np.array(faces, np.int64).reshape(-1, 3)


@pytest.fixture(scope="module")
def now_case(shared_data):
    folder = shared_data / "now_case"
    scan_vertices, scan_faces = load_obj(folder / "scan_mm.obj")
    vertices, faces = load_obj(folder / "template.obj")
    scan_marks = np.load(folder / "scan_lmks7.npy").astype(np.float64)
    return (
        scan_vertices,
        scan_faces,
        scan_marks,
        vertices,
        faces,
        np.load(folder / "template_lmks7.npy").astype(np.float64),
    )


@pytest.mark.parametrize(
    ("name", "median", "mean", "std"),
    [("now", 1.3562, 1.6066, 1.2374), ("now-metric", 1.3725, 1.6451, 1.2489)],
)
def test_the_published_case_is_met(now_case, name, median, mean, std):
    result = align_and_measure(*now_case, PROTOCOLS[name], "m")
    pooled = pooled_statistics([result.distances_mm])
    assert pooled.vertices == len(result.kept) == 21_890
    assert pooled.median_mm == pytest.approx(median, abs=0.005)
    assert pooled.mean_mm == pytest.approx(mean, abs=0.0015)
    assert pooled.std_mm == pytest.approx(std, abs=0.0015)
    assert result.flags == ()


def test_noisy_landmarks_do_not_move_the_refined_score(now_case):
    """5 mm of noise: the published mean moves from 1.6066 to 1.6070 mm."""
    noise = np.random.default_rng(1).normal(0, 0.005, (7, 3))
    result = align_and_measure(*now_case[:5], now_case[5] + noise, NOW, "m")
    assert result.distances_mm.mean() == pytest.approx(1.6066, abs=0.0005)


def test_feng_meets_its_published_anchor(now_case):
    result = align_and_measure(*now_case, PROTOCOLS["feng2018"], "m")
    assert result.error_mm == pytest.approx(1.90, abs=0.005)


def test_a_slow_refinement_still_ends(case):
    """A prediction far from the scan: plain Gauss-Newton takes 34 to 37 steps here."""
    scan_vertices, scan_faces, scan_marks, vertices, faces, landmarks = case
    flat = vertices * [1.0, 1.0, 0.3]
    for protocol in (NOW, METRIC):
        result = align_and_measure(
            scan_vertices, scan_faces, scan_marks, flat, faces, landmarks, protocol, "m"
        )
        assert not any(flag.startswith("refinement") for flag in result.flags)
        assert result.iterations < 30


def test_metric_recovers_where_the_public_start_fails(now_case):
    """10 % too large and 2 m off its origin: the public start ends at a median of 4.99 mm."""
    *scan, vertices, faces, landmarks = now_case
    near = align_and_measure(*scan, 1.1 * vertices, faces, 1.1 * landmarks, METRIC, "m")
    away = np.array([0.0, 2.0, 0.0])
    far = align_and_measure(
        *scan, 1.1 * vertices + away, faces, 1.1 * landmarks + away, METRIC, "m"
    )
    assert pooled_statistics([near.distances_mm]).median_mm < 1.9
    np.testing.assert_allclose(far.distances_mm, near.distances_mm, atol=1e-5)


def test_crop_sphere_in_closed_form():
    landmarks = np.zeros((7, 3))
    landmarks[[0, 3]] = [[-50, 10, 0], [50, 10, 0]]
    landmarks[[1, 2]] = [[-20, 10, 0], [20, 10, 0]]
    landmarks[4] = [0, -30, 0]
    centre, radius = crop_sphere(landmarks, 0.7)
    np.testing.assert_allclose(centre, [0, -30 + 0.3 * 40, 0])
    assert radius == pytest.approx(0.7 * (100 + 40))


def test_crop_keeps_the_border_and_vertices_without_faces():
    landmarks = np.zeros((7, 3))
    landmarks[[0, 3]] = [[-50, 0, 0], [50, 0, 0]]
    vertices = np.array([[70.0, 0, 0], [70.0001, 0, 0], [0, 0, -69], [0, 90, 0]])
    np.testing.assert_array_equal(crop_scan(vertices, landmarks, 0.7), [0, 2])


def test_a_prediction_equal_to_the_scan_has_no_error(case):
    scan_vertices, scan_faces, scan_marks, *_ = case
    for protocol in (NOW, METRIC):
        result = align_and_measure(
            scan_vertices,
            scan_faces,
            scan_marks,
            scan_vertices,
            scan_faces,
            scan_marks,
            protocol,
            "mm",
        )
        assert result.distances_mm.max() < 1e-6


def test_now_does_not_see_scale_but_metric_does(case):
    scan_vertices, scan_faces, scan_marks, *_ = case
    prediction = (1.1 * scan_vertices, scan_faces, 1.1 * scan_marks)
    estimated = align_and_measure(scan_vertices, scan_faces, scan_marks, *prediction, NOW, "mm")
    fixed = align_and_measure(scan_vertices, scan_faces, scan_marks, *prediction, METRIC, "mm")
    assert estimated.distances_mm.max() < 1e-5
    assert estimated.scale == pytest.approx(1 / 1.1)
    assert fixed.scale == 1.0
    assert fixed.distances_mm.mean() > 0.4


@settings(max_examples=8, deadline=None)
@given(
    axis=st.tuples(*[st.floats(-1, 1) for _ in range(3)]).filter(lambda a: np.linalg.norm(a) > 0.1),
    angle=st.floats(0.1, 3.1),
    log_scale=st.floats(-3, 3),
    shift=st.tuples(*[st.floats(-30, 30) for _ in range(3)]),
)
def test_now_is_invariant_to_similarities_of_the_prediction(case, axis, angle, log_scale, shift):
    *scan, vertices, faces, landmarks = case
    turn = rotation(angle * np.array(axis) / np.linalg.norm(axis))
    moved = [np.exp(log_scale) * p @ turn.T + np.array(shift) for p in (vertices, landmarks)]
    still = align_and_measure(*scan, vertices, faces, landmarks, NOW, "m")
    result = align_and_measure(*scan, moved[0], faces, moved[1], NOW, "m")
    np.testing.assert_allclose(result.distances_mm, still.distances_mm, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    angle=st.floats(0.1, 3.1),
    shift=st.tuples(*[st.floats(-1000, 1000) for _ in range(3)]),
)
def test_metric_is_invariant_to_rigid_motion_however_far(case, angle, shift):
    *scan, vertices, faces, landmarks = case
    turn = rotation(angle * np.array([0.6, 0.0, 0.8]))
    moved = [p @ turn.T + np.array(shift) for p in (vertices, landmarks)]
    still = align_and_measure(*scan, vertices, faces, landmarks, METRIC, "m")
    result = align_and_measure(*scan, moved[0], faces, moved[1], METRIC, "m")
    np.testing.assert_allclose(result.distances_mm, still.distances_mm, atol=1e-5)


@pytest.mark.parametrize("protocol", [NOW, METRIC], ids=("now", "now-metric"))
def test_moving_the_scan_changes_nothing(case, protocol):
    scan_vertices, scan_faces, scan_marks, *prediction = case
    turn, shift = rotation([0.3, -0.5, 0.2]), np.array([400.0, -900.0, 1200.0])
    still = align_and_measure(*case, protocol, "m")
    result = align_and_measure(
        scan_vertices @ turn.T + shift,
        scan_faces,
        scan_marks @ turn.T + shift,
        *prediction,
        protocol,
        "m",
    )
    np.testing.assert_allclose(result.distances_mm, still.distances_mm, atol=1e-5)


@pytest.mark.parametrize("protocol", [NOW, METRIC], ids=("now", "now-metric"))
def test_units_are_conversions(case, protocol):
    *scan, vertices, faces, landmarks = case
    metres = align_and_measure(*case, protocol, "m")
    for unit, factor in (("cm", 100.0), ("mm", 1000.0)):
        other = align_and_measure(
            *scan, factor * vertices, faces, factor * landmarks, protocol, unit
        )
        np.testing.assert_allclose(other.distances_mm, metres.distances_mm, atol=1e-6)
        assert other.flags == metres.flags == ()


@pytest.mark.parametrize("protocol", [NOW, METRIC], ids=("now", "now-metric"))
def test_transform_and_distances_agree(case, protocol):
    """The reported transform reproduces the reported distances."""
    scan_vertices, _, _, vertices, faces, _ = case
    result = align_and_measure(*case, protocol, "m")
    placed = result.scale * vertices @ result.rotation.T + result.translation
    again = scan_to_mesh(scan_vertices[result.kept], placed, faces)
    np.testing.assert_allclose(again, result.distances_mm, atol=1e-6)


@pytest.mark.parametrize("protocol", [NOW, METRIC], ids=("now", "now-metric"))
def test_refinement_ends_in_a_minimum(case, protocol):
    """No small motion (or resizing, where scale is free) of the result lowers the objective."""
    scan_vertices, _, _, vertices, faces, _ = case
    result = align_and_measure(*case, protocol, "m")
    points = scan_vertices[result.kept]
    placed = result.scale * vertices @ result.rotation.T + result.translation
    least = float((result.distances_mm**2).sum())
    middle = points.mean(axis=0)
    for axis in np.eye(3):
        for sign in (-1, 1):
            turned = (placed - middle) @ rotation(sign * 1e-3 * axis).T + middle
            shifted = placed + sign * 0.05 * axis
            for candidate in (turned, shifted):
                assert float((scan_to_mesh(points, candidate, faces) ** 2).sum()) > least
    if protocol.scale == "estimated":
        for growth in (0.999, 1.001):
            resized = (placed - middle) * growth + middle
            assert float((scan_to_mesh(points, resized, faces) ** 2).sum()) > least


def point_to_segment(point, a, b):
    along = np.clip((point - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(point - a - along * (b - a))


def point_to_triangle(point, a, b, c):
    """Independent of the index: the foot of the perpendicular if inside, else the nearest edge."""
    normal = np.cross(b - a, c - a)
    normal = normal / np.linalg.norm(normal)
    foot = point - ((point - a) @ normal) * normal
    sides = [np.cross(q - p, foot - p) @ normal for p, q in ((a, b), (b, c), (c, a))]
    if min(sides) >= 0:
        return abs((point - a) @ normal)
    return min(point_to_segment(point, p, q) for p, q in ((a, b), (b, c), (c, a)))


def test_scan_to_mesh_equals_brute_force():
    rng = np.random.default_rng(3)
    vertices, faces = rng.normal(size=(30, 3)), rng.integers(0, 30, size=(40, 3))
    faces = faces[
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    ]
    points = 2 * rng.normal(size=(50, 3))
    slow = [min(point_to_triangle(point, *vertices[face]) for face in faces) for point in points]
    np.testing.assert_allclose(scan_to_mesh(points, vertices, faces), slow, atol=1e-12)


def test_faces_without_area_change_nothing_but_are_flagged(case):
    *scan, vertices, faces, landmarks = case
    broken = np.vstack([faces, [[5, 5, 5], [7, 7, 30], [0, 1, 2]]])  # 0, 1, 2 lie on one line
    vertices = vertices.copy()
    vertices[[0, 1, 2], 2] = vertices[0, 2]
    whole = align_and_measure(*scan, vertices, faces, landmarks, NOW, "m")
    result = align_and_measure(*scan, vertices, broken, landmarks, NOW, "m")
    np.testing.assert_array_equal(result.distances_mm, whole.distances_mm)
    assert [flag.split(":")[0] for flag in result.flags] == ["degenerate"]
    assert "3 faces" in result.flags[0]


def test_swapped_sides_are_flagged_as_mirrored(case):
    *scan, vertices, faces, landmarks = case
    swapped = landmarks[[3, 2, 1, 0, 4, 6, 5]]
    result = align_and_measure(*scan, vertices, faces, swapped, NOW, "m")
    assert any(flag.startswith("mirrored") for flag in result.flags)
    assert np.linalg.det(result.rotation) < 0


def test_a_wrong_unit_is_flagged(case):
    result = align_and_measure(*case, METRIC, "cm")
    assert any(flag.startswith("scale") for flag in result.flags)
    assert result.landmark_scale == pytest.approx(1000 / 1.06, rel=1e-6)


def replaced(case, position, value):
    changed = list(case)
    changed[position] = value
    return changed


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((0, 3)), "expected scan vertices, got none"),
        (0, np.full((9, 3), np.nan), "finite scan vertices, got 9 of 9"),
        (1, np.array([[0, 1, 99_999_999]]), "scan faces within"),
        (2, np.zeros((7, 3)), "scan landmarks that span a plane"),
        (2, marks() + 5000.0, "expected scan vertices within"),
        (3, np.zeros((0, 3)), "expected prediction vertices, got none"),
        (4, np.zeros((0, 3), np.int64), "expected a surface, got 0 faces"),
        (4, np.array([[3, 3, 3]]), "expected a surface, got 1 faces"),
        (4, np.array([[-1, 2, 3]]), "prediction faces within"),
        (5, np.full((7, 3), np.inf), "finite prediction landmarks, got 7 of 7"),
    ],
)
def test_bad_input_is_named(case, position, value, message):
    with pytest.raises(ValueError, match=message):
        align_and_measure(*replaced(case, position, value), NOW, "m")


def test_unknown_names_are_refused(case):
    with pytest.raises(ValueError, match="expected a unit among m, cm, mm, got 'inch'"):
        align_and_measure(*case, NOW, "inch")
    with pytest.raises(ValueError, match="expected a protocol among now, now-metric"):
        protocol_named("then")
    assert protocol_named("now") is NOW


def test_pooling_counts_vertices_not_images():
    few, many = np.array([9.0]), np.array([1.0, 2.0, 3.0])
    pooled = pooled_statistics([few, many])
    assert (pooled.vertices, pooled.median_mm, pooled.mean_mm) == (4, 2.5, 3.75)
    assert pooled.std_mm == pytest.approx(np.std([9, 1, 2, 3]))
    assert pooled_statistics([]).median_mm is None


@given(st.lists(st.floats(0, 20), min_size=1, max_size=40))
def test_curve_is_the_empirical_distribution(values):
    thresholds = np.linspace(0, 8, 17)
    curve = cumulative_curve([np.array(values)], thresholds)
    expected = [100 * np.mean(np.array(values) <= t) for t in thresholds]
    np.testing.assert_allclose(curve, expected)
    assert (np.diff(curve) >= 0).all()


def test_curve_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        cumulative_curve([], np.linspace(0, 8, 3))
