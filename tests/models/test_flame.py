"""FLAME against closed forms, its numpy and torch twins against each other."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from models.face.flame import (
    FlameArrays,
    LandmarkEmbedding,
    axis_angle_to_matrix,
    contour_row,
    head_yaw_deg,
    pose_vertices,
    shape_vertices,
)
from models.face.flame_layer import Flame, rotation_matrices

V, F, S, E = 40, 60, 6, 4


def tiny_arrays(seed: int = 0) -> FlameArrays:
    rng = np.random.default_rng(seed)
    weights = rng.random((V, 5))
    regressor = rng.random((5, V))
    return FlameArrays(
        v_template=rng.normal(size=(V, 3)) * 0.1,
        faces=rng.integers(0, V, (F, 3)),
        shapedirs=rng.normal(size=(V, 3, S)) * 0.01,
        exprdirs=rng.normal(size=(V, 3, E)) * 0.01,
        posedirs=rng.normal(size=(V, 3, 36)) * 0.01,
        joint_regressor=regressor / regressor.sum(1, keepdims=True),
        weights=weights / weights.sum(1, keepdims=True),
        parents=np.array([-1, 0, 1, 1, 1]),
    )


@pytest.fixture
def arrays() -> FlameArrays:
    return tiny_arrays()


@pytest.fixture
def params() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=S), rng.normal(size=E), rng.normal(size=15) * 0.4


def naive_pose(
    arrays: FlameArrays, beta: np.ndarray, psi: np.ndarray, theta: np.ndarray
) -> np.ndarray:
    """Slow twin: 4x4 transforms, one vertex at a time, rotations by scipy."""
    shaped = arrays.v_template + arrays.shapedirs @ beta + arrays.exprdirs @ psi
    joints = [sum(w * v for w, v in zip(row, shaped)) for row in arrays.joint_regressor]  # noqa: B905
    R = Rotation.from_rotvec(theta.reshape(-1, 3)).as_matrix()
    feature = np.concatenate([(r - np.eye(3)).ravel() for r in R[1:]])
    world = []
    for j, parent in enumerate(arrays.parents):
        local = np.eye(4)
        local[:3, :3] = R[j]
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    out = []
    for i in range(len(shaped)):
        point = shaped[i] + arrays.posedirs[i] @ feature
        total = np.zeros(3)
        for j, T in enumerate(world):
            moved = T @ np.append(point - joints[j], 1.0)
            total += arrays.weights[i, j] * moved[:3]
        out.append(total)
    return np.array(out)


def test_numpy_equals_the_vertex_by_vertex_twin(arrays, params) -> None:
    np.testing.assert_allclose(
        pose_vertices(arrays, *params), naive_pose(arrays, *params), atol=1e-12
    )


def test_torch_equals_numpy(arrays, params) -> None:
    flame = Flame(arrays, dtype=torch.float64)
    batch = [torch.as_tensor(np.stack([p, 0.5 * p])) for p in params]
    got = flame(*batch).numpy()
    for i, factor in enumerate((1.0, 0.5)):
        want = pose_vertices(arrays, *[factor * p for p in params])
        np.testing.assert_allclose(got[i], want, atol=1e-12)


def test_zero_pose_is_linear(arrays, params) -> None:
    beta, psi, _ = params
    zero = np.zeros(15)
    posed = pose_vertices(arrays, beta, psi, zero)
    np.testing.assert_allclose(posed, shape_vertices(arrays, beta, psi), atol=1e-15)
    a = pose_vertices(arrays, beta, 0 * psi, zero) - arrays.v_template
    b = pose_vertices(arrays, 0 * beta, psi, zero) - arrays.v_template
    np.testing.assert_allclose(posed - arrays.v_template, a + b, atol=1e-14)


def test_global_rotation_is_rigid_about_the_root_joint(arrays, params) -> None:
    beta, psi, theta = params
    theta = theta.copy()
    theta[3:] = 0
    shaped = shape_vertices(arrays, beta, psi)
    root = arrays.joint_regressor[0] @ shaped
    R = Rotation.from_rotvec(theta[:3]).as_matrix()
    np.testing.assert_allclose(
        pose_vertices(arrays, beta, psi, theta), (shaped - root) @ R.T + root, atol=1e-12
    )


def test_global_rotation_composes_with_any_pose(arrays, params) -> None:
    beta, psi, theta = params
    inner = theta.copy()
    inner[:3] = 0
    root = arrays.joint_regressor[0] @ shape_vertices(arrays, beta, psi)
    R = Rotation.from_rotvec(theta[:3]).as_matrix()
    want = (pose_vertices(arrays, beta, psi, inner) - root) @ R.T + root
    np.testing.assert_allclose(pose_vertices(arrays, beta, psi, theta), want, atol=1e-12)


def test_jaw_moves_only_what_it_weighs(arrays) -> None:
    weights = np.zeros((V, 5))
    weights[:, 1] = 1
    weights[:10] = [0, 0, 1, 0, 0]
    still = replace(arrays, weights=weights, posedirs=np.zeros((V, 3, 36)))
    theta = np.zeros(15)
    theta[6] = 0.3
    moved = pose_vertices(still, np.zeros(S), np.zeros(E), theta)
    np.testing.assert_allclose(moved[10:], still.v_template[10:], atol=1e-12)
    jaw = still.joint_regressor[2] @ still.v_template
    R = Rotation.from_rotvec([0.3, 0, 0]).as_matrix()
    np.testing.assert_allclose(moved[:10], (still.v_template[:10] - jaw) @ R.T + jaw, atol=1e-12)


def test_pose_correctives_add_linearly_in_the_rotation(arrays) -> None:
    theta = np.zeros(15)
    theta[9:12] = [0.2, -0.1, 0.3]
    weights = np.zeros((V, 5))
    weights[:, 0] = 1
    rigid = replace(arrays, weights=weights)
    R = Rotation.from_rotvec(theta[9:12]).as_matrix()
    want = rigid.v_template + rigid.posedirs[..., 18:27] @ (R - np.eye(3)).ravel()
    got = pose_vertices(rigid, np.zeros(S), np.zeros(E), theta)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_short_coefficients_equal_padded_ones(arrays, params) -> None:
    beta, _, theta = params
    short = pose_vertices(arrays, beta[:3], np.zeros(0), theta)
    full = pose_vertices(arrays, np.r_[beta[:3], np.zeros(3)], np.zeros(E), theta)
    np.testing.assert_allclose(short, full, atol=1e-14)


def test_rotations_equal_scipy_and_are_exact_near_zero() -> None:
    rng = np.random.default_rng(3)
    v = np.concatenate(
        [rng.normal(size=(50, 3)), 1e-5 * rng.normal(size=(50, 3)), np.zeros((1, 3))]
    )
    want = Rotation.from_rotvec(v).as_matrix()
    np.testing.assert_allclose(axis_angle_to_matrix(v), want, atol=1e-13)
    np.testing.assert_allclose(rotation_matrices(torch.as_tensor(v)).numpy(), want, atol=1e-13)


def test_gradients_hold_at_zero_and_elsewhere(arrays, params) -> None:
    flame = Flame(arrays, dtype=torch.float64)
    for scale in (0.0, 1.0):
        inputs = [torch.as_tensor(scale * p[None]).requires_grad_() for p in params]
        assert torch.autograd.gradcheck(flame, inputs, eps=1e-6, atol=1e-6)


def test_wrong_sizes_say_what_was_expected(arrays, params) -> None:
    with pytest.raises(ValueError, match="15 values"):
        pose_vertices(arrays, params[0], params[1], np.zeros(14))
    with pytest.raises(ValueError, match=r"posedirs.*\(40, 3, 36\)"):
        replace(arrays, posedirs=np.zeros((V, 3, 27)))
    with pytest.raises(ValueError, match="parent before its child"):
        replace(arrays, parents=np.array([-1, 2, 1, 1, 1]))


def test_load_reads_the_converted_file(arrays, tmp_path: Path) -> None:
    tensors = {
        name: np.ascontiguousarray(getattr(arrays, name))
        for name in ("v_template", "shapedirs", "exprdirs", "posedirs", "weights")
    }
    tensors |= {
        "faces": arrays.faces.astype(np.int64),
        "parents": arrays.parents.astype(np.int64),
        "J_regressor": arrays.joint_regressor,
    }
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = FlameArrays.load(tmp_path)
    np.testing.assert_array_equal(loaded.posedirs, arrays.posedirs)
    assert not Flame.load(tmp_path / "model.safetensors").state_dict()
    del tensors["posedirs"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="posedirs"):
        FlameArrays.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="convert@flame"):
        FlameArrays.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("yaw", "row"),
    [(0, 0), (0.4, 0), (1, 1), (39, 39), (60, 39), (-1, 40), (-20, 59), (-39, 78), (-60, 78)],
)
def test_contour_row(yaw: float, row: int) -> None:
    assert contour_row(yaw) == row


def test_yaw_is_that_of_root_times_neck() -> None:
    theta = np.zeros(15)
    theta[1], theta[4] = np.radians(12), np.radians(8)
    assert head_yaw_deg(theta) == pytest.approx(20)
    theta[:6] = 0
    theta[0] = 0.5
    assert head_yaw_deg(theta) == pytest.approx(0)


def embedding(rng: np.random.Generator) -> LandmarkEmbedding:
    def bary(*shape: int) -> np.ndarray:
        b = rng.random((*shape, 3))
        return b / b.sum(-1, keepdims=True)

    return LandmarkEmbedding(
        static_faces=rng.integers(0, F, 51),
        static_bary=bary(51),
        dynamic_faces=rng.integers(0, F, (79, 17)),
        dynamic_bary=bary(79, 17),
        full_faces=rng.integers(0, F, 68),
        full_bary=bary(68),
    )


def test_landmarks_move_with_the_surface_and_keep_ibug_order(arrays, tmp_path: Path) -> None:
    e = embedding(np.random.default_rng(5))
    np.savez(tmp_path / "embeddings.npz", **vars(e))
    e = LandmarkEmbedding.load(tmp_path)
    v, f = arrays.v_template, arrays.faces
    points = e.all68(v, f, yaw_deg=-20.0)
    i = 3
    want = sum(e.dynamic_bary[59, i, k] * v[f[e.dynamic_faces[59, i], k]] for k in range(3))
    np.testing.assert_allclose(points[i], want)
    np.testing.assert_allclose(points[17:], e.static(v, f))
    np.testing.assert_allclose(e.all68(v + 1, f, -20.0), points + 1)
    np.testing.assert_allclose(e.now_seven(v, f), points[[36, 39, 42, 45, 33, 48, 54]])
    with pytest.raises(FileNotFoundError, match="convert@flame"):
        LandmarkEmbedding.load(tmp_path / "absent")


def test_the_arrays_do_not_wait_for_torch() -> None:
    code = "import sys; from models.face.flame import FlameArrays; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
