"""The protocols beyond NoW: closed forms, what each measures, what is flagged."""

from dataclasses import replace

import numpy as np
import pytest

from models.metrics import (
    PROTOCOLS,
    Target,
    align_and_measure,
    image_error,
    scan_to_mesh,
    with_options,
)
from models.metrics.region import border_features, closest_on_border, spatial_order


def rotation(axis_angle) -> np.ndarray:
    angle = np.linalg.norm(axis_angle)
    x, y, z = np.asarray(axis_angle) / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def height(x, y):
    dome = 40 * np.exp(-(x**2 / 70**2 + y**2 / 90**2))
    nose = 22 * np.exp(-(x**2 / 12**2 + (y + 5) ** 2 / 22**2))
    sockets = -9 * np.exp(-((np.abs(x) - 32) ** 2 + (y - 28) ** 2) / 14**2)
    return dome + nose + sockets + 0.03 * x * np.sin(y / 15)


def relief(step, extent=120.0):
    """Vertices (mm) and outward faces of a face-like relief over a square grid."""
    axis = np.arange(-extent, extent + 1e-9, step)
    x, y = np.meshgrid(axis, axis)
    vertices = np.stack([x, y, height(x, y)], axis=-1).reshape(-1, 3)
    index = np.arange(len(axis) ** 2).reshape(len(axis), len(axis))
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    return vertices, faces


def on_relief(xy):
    xy = np.asarray(xy, np.float64)
    return np.column_stack([xy, height(xy[:, 0], xy[:, 1])])


def seven():
    return on_relief([[-45, 28], [-18, 28], [18, 28], [45, 28], [0, -28], [-25, -50], [25, -50]])


def sixty_eight():
    """68 points spread over the relief; the nose tip is row 30, bridge 27 and chin 8 lie on x=0."""
    rng = np.random.default_rng(4)
    xy = rng.uniform(-60, 60, (68, 2))
    xy[[30, 27, 8]] = [[0, -5], [0, 30], [0, -70]]
    return on_relief(xy)


TIP = on_relief([[0, -5]])


@pytest.fixture(scope="module")
def scan():
    return relief(4.0)


def moved(points, scale=1e-3 * 1.05, turn=(0.2, -0.3, 0.1), shift=(0.4, -0.2, 0.7)):
    return scale * points @ rotation(turn).T + np.array(shift)


def lone(name, scan_vertices, faces, marks, vertices, other_faces, other_marks, unit="mm", **how):
    target = Target(scan_vertices, faces, marks, PROTOCOLS[name])
    return target.measure(vertices, other_faces, other_marks, unit, **how)


def marks_for(protocol):
    return seven() if protocol.landmarks == "seven" else sixty_eight()


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"facewarehouse"}))
def test_an_equal_prediction_moved_and_resized_has_no_error(scan, name):
    vertices, faces = scan
    protocol = PROTOCOLS[name]
    marks = marks_for(protocol)
    scale = 1e-3 if protocol.scale == "unit" else 1.05e-3
    result = lone(
        name, vertices, faces, marks, moved(vertices, scale), faces, moved(marks, scale), "m"
    )
    assert result.error_mm < 1e-4
    assert result.flags == ()
    assert result.scale == pytest.approx(1 / scale, rel=1e-6)
    assert (len(result.reverse_mm) > 0) == (protocol.direction == "symmetric")


def test_feng_measures_at_the_landmarks_pose_in_its_smaller_sphere(scan):
    vertices, faces = scan
    lifted = vertices + np.array(
        [0.0, 0.0, 3.0]
    )  # the landmarks stay: no refinement makes up for it
    result = lone("feng2018-metric", vertices, faces, seven(), lifted, faces, seven())
    expected = scan_to_mesh(vertices[result.kept], lifted, faces)
    np.testing.assert_allclose(result.distances_mm, expected, atol=1e-9)
    assert result.error_mm == pytest.approx(expected.mean())
    now = lone("now", vertices, faces, seven(), vertices, faces, seven())
    assert 0 < len(result.kept) < len(now.kept)
    bridge = np.mean(seven()[1:3], axis=0)
    nose = bridge - seven()[4]
    away = np.linalg.norm(vertices - (seven()[4] + 0.3 * nose), axis=1)
    radius = 0.6 * (np.linalg.norm(seven()[0] - seven()[3]) + np.linalg.norm(nose))
    np.testing.assert_array_equal(result.kept, np.flatnonzero(away <= radius))


def test_feng_feels_landmark_noise_and_now_does_not(scan):
    """Errors with noisy landmarks over errors without: the published anchor in small."""
    vertices, faces = scan
    noisy = seven() + np.random.default_rng(2).normal(0, 4.0, (7, 3))
    errors = {
        name: lone(name, vertices, faces, seven(), vertices, faces, noisy).distances_mm.mean()
        for name in ("feng2018", "now")
    }
    assert errors["feng2018"] > 0.5
    assert errors["now"] < 1e-4


@pytest.fixture
def tests(monkeypatch):
    """How many triangles were tested for closest points so far."""
    from models.geometry import _bvh

    done = [0]

    def counted(kernel):
        def run(*arguments):
            found = kernel(*arguments)
            done[0] += found[-1]
            return found

        return run

    for name in ("query", "track"):
        monkeypatch.setattr(_bvh, name, counted(getattr(_bvh, name)))
    return done


@pytest.mark.parametrize(
    ("name", "alone"),
    [(name, False) for name in PROTOCOLS]
    + [(name, True) for name in PROTOCOLS if PROTOCOLS[name].landmarks == "nose-tip"],
)
def test_a_wrong_unit_is_flagged_and_costs_no_more_than_the_right_one(scan, tests, name, alone):
    """The extremes, and both directions; pairs of 10 apart lie between."""
    protocol = PROTOCOLS[name]
    same = protocol.landmarks == "correspondence"
    vertices, faces = relief(4.0 if same else 5.3)
    vertices = vertices + np.array([0.3, 0.7, 3.0]) * np.sin(vertices[:, :1] / 20)
    marks = TIP if alone else marks_for(protocol)
    target = Target(*scan, marks, protocol)

    def measured(factor, unit):
        before = tests[0]
        found = target.measure(factor * vertices, faces, factor * marks, unit)
        return found, tests[0] - before

    right, cost = measured(1.0, "mm")
    assert right.flags == ()
    declared = (1e-3, "mm"), (0.1, "mm"), (1.0, "m"), (1e4, "mm"), (1e-4, "mm")
    for factor, unit in declared[::2] if alone else declared:
        wrong, spent = measured(factor, unit)
        assert wrong.flags[0].startswith("scale: ")
        assert spent <= 10 * cost
        if protocol.scale == "estimated":
            assert len(wrong.flags) == 1
            jumps = 1e-3 if protocol.distance == "plane" else 1e-5  # from triangle to triangle
            assert wrong.error_mm == pytest.approx(right.error_mm, abs=jumps)
        elif protocol.refined:
            assert wrong.flags[1].startswith("refinement: left out")


def test_micc_crops_around_the_nose_tip_and_deng_cuts_the_forehead(scan):
    vertices, faces = scan
    results = {
        name: lone(name, vertices, faces, TIP, vertices, faces, TIP)
        for name in ("micc-deng", "micc-ganfit")
    }
    near = np.linalg.norm(vertices - TIP, axis=1) <= 95.0
    np.testing.assert_array_equal(results["micc-ganfit"].kept, np.flatnonzero(near))
    low = vertices[:, 1] - TIP[0, 1] < 60.0
    np.testing.assert_array_equal(results["micc-deng"].kept, np.flatnonzero(near & low))


def test_the_nose_tip_alone_finds_a_turned_prediction(scan):
    vertices, faces = scan
    turn = rotation([0.45, -0.35, 0.3])  # 36 degrees
    other = 1.04 * vertices @ turn.T + [300.0, -200.0, 900.0]
    tip = 1.04 * TIP @ turn.T + [300.0, -200.0, 900.0]
    result = lone("micc-ganfit", vertices, faces, TIP, other, faces, tip)
    assert result.error_mm < 1e-3
    assert result.scale == pytest.approx(1 / 1.04, rel=1e-5)


def plane(extent, step=5.0, z=0.0):
    vertices, faces = relief(step, extent)
    vertices = vertices.copy()
    vertices[:, 2] = z
    return vertices, faces


def test_plane_distance_ignores_what_lies_along_the_plane():
    """Points beside a small square: surface distance sees the gap, plane distance the height."""
    big, faces = plane(50.0)
    small, few = plane(10.0, z=2.0)
    tip = np.zeros((1, 3))
    base = with_options(PROTOCOLS["micc-deng"], {"scale": "unit", "forehead_mm": "0"})
    for distance in ("surface", "plane"):
        protocol = replace(with_options(base, {"distance": distance}), refined=False)
        target = Target(big, faces, tip, protocol)
        got = target.measure(small, few, tip, "mm")
        if distance == "plane":
            np.testing.assert_allclose(got.distances_mm, 2.0, atol=1e-12)
            assert got.error_mm == pytest.approx(2.0)
        else:
            beside = np.maximum(np.abs(big[:, :2]) - 10.0, 0.0)
            expected = np.sqrt((beside**2).sum(axis=1) + 4.0)
            np.testing.assert_allclose(got.distances_mm, expected, atol=1e-9)


def test_overlap_leaves_out_borders_and_backs():
    """Genova's rule: a small patch over a big one is measured where it is, from both sides."""
    big, faces = plane(50.0)
    small, few = plane(20.0, z=2.0)
    tip = np.zeros((1, 3))
    protocol = replace(PROTOCOLS["micc-genova"], scale="unit", refined=False)
    got = Target(big, faces, tip, protocol).measure(small, few, tip, "mm")
    inside = (np.abs(big[:, :2]) < 20.0).all(axis=1)
    np.testing.assert_array_equal(got.kept, np.flatnonzero(inside))
    assert len(got.reverse_mm) == len(small)  # all of the patch lies over the big one
    assert got.error_mm == pytest.approx(2.0)
    with pytest.raises(ValueError, match="expected scan and prediction to overlap"):
        Target(big, faces, tip, protocol).measure(small, few[:, ::-1], tip, "mm")


def test_borders_are_edges_of_one_face_and_seams_are_none():
    vertices, faces = plane(10.0)
    twice = np.concatenate([vertices, vertices])
    half = len(faces) // 2
    split = np.concatenate([faces[:half], faces[half:] + len(vertices)])
    edges, corners = border_features(vertices, faces)
    assert corners.sum() == 4 * 4  # a 5 x 5 grid
    assert edges.sum() == 4 * 4
    again, _ = border_features(twice, split)
    np.testing.assert_array_equal(again, edges)
    middle = np.argmin(np.abs(vertices).sum(axis=1))
    face = np.flatnonzero((faces == middle).any(axis=1))[0]
    bary = (faces[face] == middle).astype(float)[None]
    on = closest_on_border(faces, (edges, corners), np.array([face]), bary)
    assert not on[0]


def test_ganfit_averages_both_directions_and_deng_takes_the_rmse():
    forward, back = np.array([1.0, 3.0]), np.array([5.0])
    assert image_error(forward, back, "mean") == pytest.approx((2.0 + 5.0) / 2)
    assert image_error(forward, np.zeros(0), "rmse") == pytest.approx(np.sqrt(5.0))
    with pytest.raises(ValueError, match="at least one distance"):
        image_error(np.zeros(0), back, "mean")


def test_facewarehouse_is_procrustes_over_pairs_in_closed_form():
    """Two opposite corners of a cross pushed out by a known amount."""
    truth = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0]])
    faces = np.array([[0, 2, 4]])
    bent = truth + 0.1 * np.array([[0, 0, 1], [0, 0, 1], [0, 0, -1], [0, 0, -1], [0, 0, 0]])
    result = lone("facewarehouse", truth, faces, np.zeros((0, 3)), bent, faces, np.zeros((0, 3)))
    scale = 4.0 / (4.0 + 4 * 0.01)  # by eq. 42 of Umeyama 1991 with R = 1
    assert result.scale == pytest.approx(scale)
    expected = [np.hypot(1 - scale, 0.1 * scale)] * 4 + [0.0]
    np.testing.assert_allclose(result.distances_mm, expected, atol=1e-12)
    assert result.error_mm == pytest.approx(np.mean(expected))


def test_facewarehouse_goes_by_pairs_where_topologies_differ(scan):
    vertices, faces = scan
    numbers = np.arange(0, len(vertices), 7)
    fewer = moved(vertices[numbers])
    target = Target(vertices, faces, np.zeros((0, 3)), PROTOCOLS["facewarehouse"])
    nothing = np.zeros((0, 3))
    result = target.measure(
        fewer, np.zeros((0, 3), np.int64), nothing, "m", pairs=(np.arange(len(fewer)), numbers)
    )
    assert result.error_mm < 1e-9
    np.testing.assert_array_equal(result.kept, numbers)
    with pytest.raises(ValueError, match="give the pairs"):
        target.measure(fewer, faces[:0], nothing, "m")
    with pytest.raises(ValueError, match=r"vertices of the truth within 0\.\."):
        target.measure(
            fewer, faces[:0], nothing, "m", pairs=(np.arange(5), np.full(5, len(vertices)))
        )


def test_a_target_gives_each_prediction_what_it_would_alone(scan):
    """The tree of the last prediction is reused; results do not depend on the order."""
    vertices, faces = scan
    target = Target(vertices, faces, seven(), PROTOCOLS["now"])
    coarse, few = relief(7.0)
    bumped = coarse + [0.0, 0.0, 1.0] * np.exp(-((coarse[:, :1] - 20) ** 2) / 300.0)
    inputs = [(coarse, few), (bumped, few), (vertices, faces), (coarse, few)]
    together = [target.measure(v, f, seven(), "mm").distances_mm for v, f in inputs]
    for got, (v, f) in zip(together, inputs, strict=True):
        alone = align_and_measure(vertices, faces, seven(), v, f, seven(), PROTOCOLS["now"], "mm")
        np.testing.assert_array_equal(got, alone.distances_mm)


def test_spatial_order_is_a_permutation_of_near_neighbours(scan):
    vertices, _ = scan
    order = spatial_order(vertices)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(vertices)))
    steps = np.linalg.norm(np.diff(vertices[order], axis=0), axis=1)
    assert np.median(steps) < 8.0  # twice the grid's step; a row scan jumps back 240 mm


def test_options_are_checked():
    changed = with_options(PROTOCOLS["micc-genova"], {"statistic": "rmse", "overlap": "false"})
    assert (changed.statistic, changed.overlap, changed.distance) == ("rmse", False, "plane")
    assert with_options(PROTOCOLS["now"], {"crop_factor": "0.5"}).crop_factor == 0.5
    for options, message in (
        ({"colour": "red"}, "expected an option among crop_factor"),
        ({"statistic": "mode"}, "expected statistic among vertices, mean, rmse"),
        ({"overlap": "yes"}, "expected overlap true or false"),
        ({"crop_mm": "-3"}, "expected crop_mm as a number from 0"),
        ({"crop_mm": "wide"}, "expected crop_mm as a number from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            with_options(PROTOCOLS["now"], options)


def test_a_global_scale_is_given_and_kept(scan):
    vertices, faces = scan
    protocol = with_options(PROTOCOLS["micc-ganfit"], {"scale": "global"})
    target = Target(vertices, faces, TIP, protocol)
    result = target.measure(1e-3 * vertices, faces, 1e-3 * TIP, "m", scale_mm=1010.0)
    assert result.scale == pytest.approx(1010.0)
    assert result.error_mm > 0.05
    with pytest.raises(ValueError, match="needs a folder"):
        target.measure(vertices, faces, TIP, "mm")


@pytest.mark.parametrize(
    ("name", "marks", "message"),
    [
        ("now", TIP, r"scan landmarks of shape \(7, 3\)"),
        ("micc-deng", seven(), "nose tip alone, 51 or 68 points"),
        ("bu3dfe", np.zeros((0, 3)), "nose tip alone, 51 or 68 points"),
        ("micc-deng", TIP + 5000.0, "expected scan vertices within 95.0"),
    ],
)
def test_landmarks_a_protocol_cannot_use_are_named(scan, name, marks, message):
    with pytest.raises(ValueError, match=message):
        Target(*scan, marks, PROTOCOLS[name])


def test_symmetric_protocols_need_the_scans_surface(scan):
    vertices, faces = scan
    with pytest.raises(ValueError, match="expected a scan with faces for micc-genova"):
        Target(vertices, faces[:0], TIP, PROTOCOLS["micc-genova"])


def test_landmarks_of_another_mesh_or_pose_are_flagged(scan):
    vertices, faces = scan
    turned = vertices @ rotation([0.0, 0.9, 0.0]).T  # the mesh was turned, its landmarks were not
    result = lone("now", vertices, faces, seven(), turned, faces, seven())
    assert any("of the prediction is" in flag for flag in result.flags)
    away = seven() + np.array([0.0, 0.0, 30.0])
    result = lone("now", vertices, faces, away, vertices, faces, seven())
    assert any("of the scan is" in flag for flag in result.flags)
    order = seven()[[0, 3, 2, 1, 5, 4, 6]]
    result = lone("now", vertices, faces, seven(), vertices, faces, order)
    assert any(flag.startswith(("landmarks", "scale", "mirrored")) for flag in result.flags)
