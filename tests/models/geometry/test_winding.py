"""Which way triangles face: known surfaces, a slow twin, and a head before shoulders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from models.geometry.winding import REACH, convexity


def sphere(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """A sphere wound outward."""
    points = np.random.default_rng(0).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices.astype(np.int64)
    corners = points[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = (normal * corners.mean(axis=1)).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return points, faces


def sheet(height) -> tuple[np.ndarray, np.ndarray]:
    """A grid seen from +z, wound toward the viewer, as a range image gives it."""
    x, y = np.meshgrid(np.linspace(-150, 150, 61), np.linspace(150, -200, 71))
    points = np.stack([x, y, height(x, y)], axis=-1).reshape(-1, 3)
    corner = (np.arange(70)[:, None] * 61 + np.arange(60)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 61, corner + 62], axis=1),
            np.stack([corner, corner + 62, corner + 1], axis=1),
        ]
    )
    return points, faces


def slow(points: np.ndarray, faces: np.ndarray) -> float:
    """Pair by pair, every triangle one point."""
    middles, normals = [], []
    for a, b, c in points[faces]:
        normal = np.cross(b - a, c - a)
        middles.append((a + b + c) / 3)
        normals.append(normal / np.linalg.norm(normal))
    reach = REACH * np.ptp(points, axis=0).max()
    above = below = 0.0
    for i in range(len(faces)):
        for j in range(i):
            gap = middles[i] - middles[j]
            if np.linalg.norm(gap) <= reach:
                bend = float((normals[i] - normals[j]) @ gap)
                above, below = above + max(bend, 0.0), below + max(-bend, 0.0)
    return (above - below) / (above + below)


def test_a_sphere_is_convex_and_a_plane_is_neither() -> None:
    points, faces = sphere()
    assert convexity(points, faces) == pytest.approx(1.0)
    assert convexity(points, faces[:, ::-1]) == pytest.approx(-1.0)
    assert convexity(*sheet(lambda x, y: 0.0 * x)) == 0.0


def test_nothing_to_judge_by() -> None:
    assert convexity(np.zeros((3, 3)), np.zeros((0, 3), dtype=np.int64)) == 0.0
    assert convexity(np.zeros((3, 3)), np.array([[0, 1, 2]])) == 0.0


def test_pair_by_pair() -> None:
    rng = np.random.default_rng(1)
    points, faces = sphere(60)
    points = points * rng.uniform(0.6, 1.4, (60, 1))
    # every triangle is drawn at least once, so that both judge by the same points
    assert convexity(points, faces) == pytest.approx(slow(points, faces), abs=1e-9)


def test_a_head_before_shoulders_faces_the_viewer() -> None:
    """The flux about the middle is wrong here: the shoulders face up and lie below."""

    def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        head = 60.0 * np.sqrt(np.clip(1 - (x / 80) ** 2 - ((y - 20) / 115) ** 2, 0, None))
        cloth = -80.0 - 1.5 * (y + 130.0) - 0.002 * x**2
        return np.where(y < -130, cloth, np.where(head > 0, head, np.nan))

    points, faces = sheet(height)
    faces = faces[np.isfinite(points[faces]).all(axis=(1, 2))]
    used, places = np.unique(faces, return_inverse=True)
    points, faces = points[used], places.reshape(-1, 3)
    corners = points[faces]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (area[:, 2] > 0).all()
    normals = area / np.linalg.norm(area, axis=1, keepdims=True)
    assert (normals * (corners.mean(axis=1) - points.mean(axis=0))).sum() < 0
    assert convexity(points, faces) > 0.3
    assert convexity(points, faces[:, ::-1]) < -0.3


@given(st.integers(0, 2**32 - 1))
def test_moving_and_scaling_change_nothing_and_turning_over_the_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, faces = sphere(80)
    points = points * rng.uniform(0.7, 1.3, (80, 1))
    value = convexity(points, faces)
    assert convexity(points, faces[:, ::-1]) == pytest.approx(-value, abs=1e-9)
    scaled = rng.uniform(0.1, 100.0) * points
    assert convexity(scaled, faces) == pytest.approx(value, abs=1e-9)
    assert convexity(points + rng.normal(0, 5, 3), faces) == pytest.approx(value, abs=1e-6)
    quarter = Rotation.from_euler("z", 90, degrees=True).apply(points)  # the extent stays
    assert convexity(quarter, faces) == pytest.approx(value, abs=1e-9)
