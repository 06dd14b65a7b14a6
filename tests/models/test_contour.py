"""The traced contour: silhouettes of an ellipsoid, symmetry, any finder, the owner's table."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from models.face.contour import View, draw_view, dynamic_contour, outline
from models.face.flame import surface_points

AXES = np.array([0.07, 0.1, 0.06])


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An ellipsoid, metres, its front half's triangles, and 51 inner points on its surface."""
    ball = trimesh.creation.icosphere(4)
    vertices = np.asarray(ball.vertices) * AXES
    faces = np.asarray(ball.faces, dtype=np.int64)
    inner = np.zeros((51, 3))
    inner[16] = [0.0, -0.03, 0.057]
    inner[19], inner[28] = [-0.045, 0.02, 0.05], [0.045, 0.02, 0.05]
    return vertices, faces, inner


def turned(points: np.ndarray, yaw_deg: float) -> np.ndarray:
    a = np.radians(yaw_deg)
    R = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return points @ R.T


@pytest.fixture(scope="module")
def traced(head: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Points (79, 17, 3) on the whole ellipsoid."""
    vertices, faces, inner = head
    ids, bary = dynamic_contour(vertices, faces, np.arange(len(faces)), inner)
    np.testing.assert_allclose(bary.sum(-1), 1, atol=1e-6)
    rows = [surface_points(vertices, faces, i, b) for i, b in zip(ids, bary, strict=True)]
    return np.stack(rows)


def test_the_side_turned_away_lies_on_the_silhouette(traced: np.ndarray) -> None:
    """Seen along z a turned ellipsoid is an ellipse of half width sqrt(a^2 cos^2 + c^2 sin^2)."""
    for yaw in (0, 10, 25, 39):
        seen = turned(traced[yaw], yaw)[8:]
        angle = np.radians(yaw)
        half = np.hypot(AXES[0] * np.cos(angle), AXES[2] * np.sin(angle))
        radius = np.hypot(seen[:, 0] / half, seen[:, 1] / AXES[1])
        assert np.abs(radius - 1).max() < 0.02  # a pixel of a millimetre, facets of 3 mm
    assert np.abs(traced[0, 8] - [0, -AXES[1], 0]).max() < 0.012


def test_points_run_evenly_from_the_chin_to_the_eyes(traced: np.ndarray) -> None:
    points = traced[0, 8:, :2]
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert np.abs(steps - steps.mean()).max() < 0.004  # pixels of a millimetre at both ends
    assert abs(points[-1, 1] - 0.02) < 0.003
    assert traced[0, 0, 0] < -0.06  # from the subject's right to the left
    assert traced[0, 16, 0] > 0.06


def test_rows_of_opposite_yaws_mirror_each_other(traced: np.ndarray) -> None:
    for yaw in (1, 20, 39):
        mirror = traced[39 + yaw, ::-1] * [-1, 1, 1]
        np.testing.assert_allclose(traced[yaw], mirror, atol=1.5e-3)


def test_a_side_turned_far_to_the_viewer_keeps_its_place(traced: np.ndarray) -> None:
    np.testing.assert_array_equal(traced[39 + 20, 9:], traced[39 + 39, 9:])
    assert np.abs(traced[39 + 10, 9:] - traced[39 + 20, 9:]).max() > 1e-3


def test_any_finder_may_say_where_the_contour_is(
    head: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    vertices, faces, inner = head
    wanted = np.stack([np.linspace(0, 0.04, 9), np.linspace(-0.08, 0, 9)], axis=-1)
    seen: list[float] = []

    def fixed(view: View) -> np.ndarray:
        seen.append(view.yaw_deg)
        origin = view.inner_px[0]  # inner landmark 0 is the head's origin here
        return origin + 1000.0 * wanted * [1, -1]

    ids, bary = dynamic_contour(vertices, faces, np.arange(len(faces)), inner, fixed)
    assert seen == list(range(-20, 41))
    for yaw in (0, 30):
        points = turned(surface_points(vertices, faces, ids[yaw], bary[yaw]), yaw)[8:]
        assert np.abs(points[:, :2] - wanted).max() < 1e-3
        assert (points[:, 2] > 0).all()  # the side that is seen


def test_what_cannot_be_traced_is_said(
    head: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    vertices, faces, inner = head
    with pytest.raises(ValueError, match="got none"):
        dynamic_contour(vertices, faces, np.zeros(0, np.int64), inner)
    low = np.flatnonzero((vertices[faces][:, :, 1] < -0.05).all(axis=1))
    with pytest.raises(ValueError, match="from chin to eyes at 0 degrees"):
        outline(draw_view(vertices, faces, low, inner, 0.0))


def test_meets_the_owner_s_table_on_the_real_template(shared_data: Path) -> None:
    from stages.datasets.flame_files import load_flame, read_embedding, read_masks

    model = load_flame(shared_data / "open_head" / "flame_like.npz")
    owner = read_embedding(shared_data / "flame_assets")
    face = read_masks(shared_data / "flame_assets" / "FLAME_masks.pkl")["face"]
    vertices = model.v_template.astype(np.float64)
    region = np.flatnonzero(np.isin(model.faces, face).all(axis=1))
    inner = owner.static(vertices, model.faces)
    ids, bary = dynamic_contour(vertices, model.faces, region, inner)
    gaps = []
    for row in range(79):
        yaw = row if row < 40 else 39 - row
        ours = surface_points(vertices, model.faces, ids[row], bary[row])
        theirs = surface_points(
            vertices, model.faces, owner.dynamic_faces[row], owner.dynamic_bary[row]
        )
        gaps.append(np.linalg.norm(turned(ours - theirs, yaw)[:, :2], axis=1))
    assert np.mean(gaps) < 0.0035  # as seen; the owner's come from a detector
