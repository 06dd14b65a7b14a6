"""300W-LP's projection and records, against the rule written out and against a real sample."""

import io
from pathlib import Path

import numpy as np
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.w300lp_files import (
    MIRROR_68,
    Pose,
    aflw_mat,
    appearance_fields,
    matlab_points,
    mirrored_points,
    points_mat,
    project,
    rotation,
    sample_mat,
)

angle = st.floats(-1.2, 1.2)


@settings(max_examples=30, deadline=None)
@given(angle, angle, angle)
def test_rotation_is_the_transpose_order_written_out(pitch: float, yaw: float, roll: float) -> None:
    def turn(axis: int, value: float) -> np.ndarray:
        out = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        out[i, i] = out[j, j] = np.cos(value)
        out[i, j], out[j, i] = np.sin(value), -np.sin(value)
        return out

    expected = turn(0, pitch) @ turn(1, yaw) @ turn(2, roll)
    np.testing.assert_allclose(rotation(pitch, yaw, roll), expected, atol=1e-12)
    assert np.isclose(np.linalg.det(expected), 1.0)


@settings(max_examples=20, deadline=None)
@given(angle, angle, angle)
def test_flipping_the_pose_flips_the_picture(pitch: float, yaw: float, roll: float) -> None:
    points = np.random.default_rng(1).normal(size=(9, 3)) * 5e4
    pose = Pose(pitch, yaw, roll, 200.0, 240.0, -80.0, 1.3e-3)
    straight = matlab_points(project(points, pose), 450)
    mirrored = matlab_points(project(points * [-1, 1, 1], pose.mirrored(450)), 450)
    np.testing.assert_allclose(mirrored[:, 0], 451 - straight[:, 0], atol=1e-8)
    np.testing.assert_allclose(mirrored[:, 1], straight[:, 1], atol=1e-8)


def test_mirror_order_is_an_involution_that_swaps_eyes() -> None:
    np.testing.assert_array_equal(MIRROR_68[MIRROR_68], np.arange(68))
    assert MIRROR_68[36] == 45
    assert MIRROR_68[31] == 35
    assert MIRROR_68[48] == 54
    assert MIRROR_68[30] == 30
    points = np.random.default_rng(0).random((68, 2)) * 450
    np.testing.assert_allclose(mirrored_points(mirrored_points(points, 450), 450), points)


def test_same_fields_and_types_as_a_real_sample(shared_data: Path) -> None:
    real = scipy.io.loadmat(shared_data / "real_300wlp" / "IBUG_image_008_1_0.mat")
    rng = np.random.default_rng(0)
    pose = Pose(0.1, -0.2, 0.0, 180.0, 190.0, -80.0, 1.3e-3)
    data = sample_mat(
        rng.normal(size=199), rng.normal(size=29), pose, rng.random((68, 2)),
        np.array([-5, 3, 400, 420]), appearance_fields(rng),
    )  # fmt: skip
    ours = scipy.io.loadmat(io.BytesIO(data))
    assert set(ours) == set(real)
    for name, value in real.items():
        if not name.startswith("__"):
            assert ours[name].shape == value.shape, name
            assert ours[name].dtype == value.dtype, name


def test_real_landmarks_follow_the_same_projection(shared_data: Path) -> None:
    folder = shared_data / "real_300wlp"
    bases = np.load(folder / "bfm_68_landmarks.npz")
    read = scipy.io.loadmat(folder / "image00516.mat")
    shape = bases["w_shp_base"] @ read["Shape_Para"][:40, 0]
    expression = bases["w_exp_base"] @ read["Exp_Para"][:10, 0].astype(float)
    vertices = (bases["u_base"].ravel() + shape + expression).reshape(-1, 3)
    pose = Pose(*(float(v) for v in read["Pose_Para"][0]))
    ours = matlab_points(project(vertices, pose), 450)
    offset = ours - read["pt3d_68"][:2].T
    assert np.abs(offset.mean(axis=0)).max() < 1.5  # a pixel of convention, no more
    assert np.linalg.norm(offset - offset.mean(axis=0), axis=1).mean() < 0.5


def test_same_fields_as_a_real_aflw_sample(shared_data: Path) -> None:
    real = scipy.io.loadmat(shared_data / "real_300wlp" / "image00516.mat")
    rng = np.random.default_rng(0)
    pose = Pose(0.1, -0.2, 0.0, 180.0, 190.0, -80.0, 1.3e-3)
    data = aflw_mat(
        rng.normal(size=199), np.zeros(29), pose, rng.random((68, 3)), rng.random((21, 2)),
        np.array([-5, 3, 400, 420]), appearance_fields(rng),
    )  # fmt: skip
    ours = scipy.io.loadmat(io.BytesIO(data))
    assert set(ours) == set(real)
    for name in ("pt3d_68", "pt2d", "Exp_Para", "Pose_Para", "roi"):
        assert ours[name].shape == real[name].shape, name
        assert ours[name].dtype == real[name].dtype, name


def test_broken_sample_lacks_the_pose() -> None:
    rng = np.random.default_rng(0)
    data = sample_mat(
        np.zeros(199), np.zeros(29), None, np.zeros((68, 2)), np.zeros(4, int),
        appearance_fields(rng),
    )  # fmt: skip
    assert "Pose_Para" not in scipy.io.loadmat(io.BytesIO(data))


def test_points_file() -> None:
    data = points_mat(np.ones((68, 2)), np.zeros((68, 2)))
    read = scipy.io.loadmat(io.BytesIO(data))
    assert read["pts_2d"].shape == read["pts_3d"].shape == (68, 2)
