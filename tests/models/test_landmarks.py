"""Landmark boxes and errors: closed forms and equivariance."""

import numpy as np
import pytest

from models.face.landmarks import (
    MIRROR_68,
    canonical_box,
    moved_box,
    outer_eye_distance,
    relative_error,
    square_box,
)

POINTS = np.random.default_rng(0).uniform(0, 100, (68, 2))


def test_outer_eyes_and_relative_error():
    points = POINTS.copy()
    points[36], points[45] = [10.0, 20.0], [13.0, 24.0]
    assert outer_eye_distance(points) == pytest.approx(5.0)
    assert relative_error(points + np.array([3.0, -4.0]), points) == pytest.approx(1.0)
    both = relative_error(np.stack([points, points + 1]), np.stack([points, points]))
    np.testing.assert_allclose(both, [0, np.sqrt(2) / 5])


def test_canonical_box_moves_and_grows_with_the_face():
    box = canonical_box(POINTS)
    assert box[2] - box[0] == pytest.approx(box[3] - box[1])
    np.testing.assert_allclose(canonical_box(2.0 * POINTS + [5, -3]), 2.0 * box + [5, -3, 5, -3])
    far_jaw = POINTS.copy()
    far_jaw[:17] += 1000.0
    np.testing.assert_allclose(canonical_box(far_jaw), box)


def test_mirror_is_its_own_inverse_and_keeps_the_parts():
    np.testing.assert_array_equal(MIRROR_68[MIRROR_68], np.arange(68))
    for part in (range(17), range(17, 27), range(27, 36), range(36, 48), range(48, 68)):
        assert set(MIRROR_68[list(part)]) == set(part)
    assert MIRROR_68[36] == 45
    assert MIRROR_68[48] == 54
    assert MIRROR_68[8] == 8


def test_boxes():
    np.testing.assert_allclose(square_box(np.array([0.0, 0, 4, 8])), [-1, 1, 5, 7])
    moved = moved_box(np.array([0.0, 0, 4, 8]), np.array([0.5, -0.25]), 2.0)
    np.testing.assert_allclose(moved, [0, -6, 8, 10])
    for bad in ([0.0, 0, 0, 5], [0.0, 0, np.nan, 5], [3.0, 0, 1, 5]):
        with pytest.raises(ValueError, match="left < right"):
            square_box(np.array(bad))
