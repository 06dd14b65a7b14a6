"""FLAME's torch layers: parts equal the whole, landmarks equal numpy's, smplx agrees."""

import numpy as np
import pytest
import torch
from smplx import lbs

from models.face.flame import FlameArrays, LandmarkEmbedding, contour_row, head_yaw_deg
from models.face.flame import pose_vertices as pose_numpy
from models.face.flame_layer import Flame, FlameLandmarks, contour_rows, head_yaws_deg

V, F, S, E = 60, 80, 5, 3


def generated(seed: int = 0) -> FlameArrays:
    rng = np.random.default_rng(seed)
    weights, regressor = rng.random((V, 5)), rng.random((5, V))
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


def embedding(seed: int = 1) -> LandmarkEmbedding:
    rng = np.random.default_rng(seed)
    return LandmarkEmbedding(
        static_faces=rng.integers(0, F, 51),
        static_bary=rng.dirichlet(np.ones(3), 51),
        dynamic_faces=rng.integers(0, F, (79, 17)),
        dynamic_bary=rng.dirichlet(np.ones(3), (79, 17)),
        full_faces=rng.integers(0, F, 68),
        full_bary=rng.dirichlet(np.ones(3), 68),
    )


def codes(n: int = 6, seed: int = 2) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    sizes = ((n, S), (n, E), (n, 15))
    return [torch.as_tensor(rng.normal(size=size) * 0.4) for size in sizes]


def test_some_vertices_equal_those_of_the_whole() -> None:
    arrays, ids = generated(), np.array([7, 3, 50, 3])
    inputs = codes()
    whole = Flame(arrays, torch.float64)(*inputs)
    part = Flame(arrays, torch.float64, ids)(*inputs)
    torch.testing.assert_close(part, whole[:, torch.as_tensor(ids)])


def test_contour_rows_from_minus_60_to_60_degrees() -> None:
    yaws = np.arange(-60, 61)
    theta = torch.zeros(len(yaws), 15, dtype=torch.float64)
    theta[:, 1] = torch.as_tensor(np.radians(yaws))
    torch.testing.assert_close(head_yaws_deg(theta), torch.as_tensor(yaws, dtype=torch.float64))
    clamped = yaws.clip(-39, 39)
    expected = np.where(clamped >= 0, clamped, 39 - clamped)
    np.testing.assert_array_equal(contour_rows(head_yaws_deg(theta)).numpy(), expected)
    assert [contour_row(float(yaw)) for yaw in yaws] == expected.tolist()


def test_yaw_of_any_pose_equals_numpy() -> None:
    theta = codes(20)[2]
    expected = [head_yaw_deg(row.numpy()) for row in theta]
    np.testing.assert_allclose(head_yaws_deg(theta).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("dynamic", [True, False])
def test_landmarks_equal_those_on_the_numpy_surface(dynamic: bool) -> None:
    arrays, marks, inputs = generated(), embedding(), codes()
    got = FlameLandmarks(arrays, marks, torch.float64, dynamic=dynamic)(*inputs)
    for index, (beta, psi, theta) in enumerate(zip(*(v.numpy() for v in inputs), strict=True)):
        surface = pose_numpy(arrays, beta, psi, theta)
        yaw = head_yaw_deg(theta) if dynamic else None
        expected = marks.all68(surface, arrays.faces, yaw)
        np.testing.assert_allclose(got[index].numpy(), expected, atol=1e-12)


def test_landmarks_have_gradients_and_no_state() -> None:
    layer = FlameLandmarks(generated(), embedding(), torch.float64)
    assert not layer.state_dict()
    inputs = [v.requires_grad_() for v in codes(2)]
    mix = torch.randn(68, 3, dtype=torch.float64)
    # the row is a step function of the pose: away from its jumps the points are smooth
    assert torch.autograd.gradcheck(lambda *x: (layer(*x) * mix).sum(), inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_smplx(dtype: torch.dtype) -> None:
    """Linear blend skinning, static landmarks and contour rows of the public implementation."""
    arrays, marks = generated(), embedding()
    beta, psi, theta = (code.to(dtype) for code in codes(8))
    vertices = smplx_vertices(arrays, beta, psi, theta)
    found = Flame(arrays, dtype)(beta, psi, theta)
    torch.testing.assert_close(found, vertices, atol=1e-6, rtol=0)
    points = lbs.vertices2landmarks(
        vertices,
        torch.as_tensor(arrays.faces),
        torch.as_tensor(marks.full_faces)[None].repeat(8, 1),
        torch.as_tensor(marks.full_bary, dtype=dtype)[None].repeat(8, 1, 1),
    )
    ours = FlameLandmarks(arrays, marks, dtype, dynamic=False)(beta, psi, theta)
    torch.testing.assert_close(ours, points, atol=1e-6, rtol=0)


def test_the_moving_contour_equals_that_of_smplx() -> None:
    """``smplx`` works with heads turned upside down, where the sign of the yaw is the opposite."""
    arrays, marks = generated(), embedding()
    yaws = torch.arange(-60, 61, dtype=torch.float64)
    count = len(yaws)
    theta = torch.zeros(count, 15, dtype=torch.float64)
    theta[:, 1] = torch.deg2rad(yaws)
    beta, psi = (code[:1].expand(count, -1) for code in codes()[:2])
    vertices = smplx_vertices(arrays, beta, psi, theta)
    faces, bary = lbs.find_dynamic_lmk_idx_and_bcoords(
        vertices,
        -theta,
        torch.as_tensor(marks.dynamic_faces),
        torch.as_tensor(marks.dynamic_bary),
        torch.tensor([0]),
    )
    contour = lbs.vertices2landmarks(vertices, torch.as_tensor(arrays.faces), faces, bary)
    ours = FlameLandmarks(arrays, marks, torch.float64)(beta, psi, theta)
    torch.testing.assert_close(ours[:, :17], contour, atol=1e-6, rtol=0)
    assert len(np.unique(np.asarray(contour_rows(yaws)))) == 79


def smplx_vertices(
    arrays: FlameArrays, beta: torch.Tensor, psi: torch.Tensor, theta: torch.Tensor
) -> torch.Tensor:
    """Skinned vertices as ``smplx`` makes them of the same arrays."""
    directions = np.concatenate([arrays.shapedirs, arrays.exprdirs], axis=2)
    given = (
        arrays.v_template[None],
        directions,
        arrays.posedirs.reshape(3 * V, -1).T,
        arrays.joint_regressor,
    )
    template, shapes, poses, joints = (torch.as_tensor(part, dtype=beta.dtype) for part in given)
    vertices, _ = lbs.lbs(
        torch.cat([beta, psi], dim=1),
        theta,
        template,
        shapes,
        poses,
        joints,
        torch.as_tensor(arrays.parents),
        torch.as_tensor(arrays.weights, dtype=beta.dtype),
    )
    return vertices
