"""FLAME's arrays: exact PCA, joints, skinning with correctives."""

import dataclasses

import numpy as np
import pytest

from models.face.flame import pose_vertices
from models.procedural import rig
from models.procedural.head import ProceduralHead, to_canonical, to_flame
from models.procedural.identity import sample_identity

THETAS = {
    "jaw": [0, 0, 0, 0, 0, 0, 0.35, 0, 0, 0, 0, 0, 0, 0, 0],
    "neck": [0, 0, 0, 0.1, 0.5, 0.1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "all": [0.2, -0.3, 0.1, 0.1, -0.3, 0.1, 0.3, 0.05, 0, 0.1, 0.2, 0, -0.1, 0.2, 0],
}


@pytest.fixture(scope="module")
def head():
    return ProceduralHead.build()


@pytest.fixture(scope="module")
def flame():
    return rig.build_flame(samples=130)


def pose(flame, theta, beta=None, psi=None):
    return pose_vertices(
        flame,
        np.zeros(flame.shapedirs.shape[2]) if beta is None else beta,
        np.zeros(flame.exprdirs.shape[2]) if psi is None else psi,
        np.asarray(theta, dtype=float),
    )


def test_arrays_are_flames(flame):
    assert flame.v_template.shape == (5023, 3)
    assert flame.shapedirs.shape == (5023, 3, 300)
    assert flame.exprdirs.shape == (5023, 3, 100)
    assert flame.posedirs.shape == (5023, 3, 36)
    np.testing.assert_allclose(flame.weights.sum(axis=1), 1.0)
    assert flame.weights.min() >= 0.0
    np.testing.assert_allclose(flame.joint_regressor.sum(axis=1), 1.0)
    assert flame.parents.tolist() == [-1, 0, 1, 1, 1]
    np.testing.assert_array_equal(flame.weights[3931:4477, 3], 1.0)
    np.testing.assert_array_equal(flame.weights[4477:, 4], 1.0)


def test_rest_pose_is_the_template(flame):
    np.testing.assert_allclose(pose(flame, np.zeros(15)), flame.v_template, atol=1e-9)


@pytest.mark.parametrize("name", sorted(THETAS))
def test_skinning_with_correctives_follows_the_true_rotation(head, flame, name):
    theta = np.array(THETAS[name])
    true = to_flame(rig.true_pose_mm(head, to_canonical(flame.v_template), theta.reshape(5, 3)))
    with_correctives = np.linalg.norm(pose(flame, theta) - true, axis=1)
    plain = dataclasses.replace(flame, posedirs=np.zeros_like(flame.posedirs))
    without = np.linalg.norm(pose(plain, theta) - true, axis=1)
    assert with_correctives.max() < (0.3e-3 if name != "all" else 2e-3)
    assert with_correctives.max() < 0.75 * without.max()
    assert np.median(with_correctives) < 1e-5 + np.median(without)


def test_eyes_turn_rigidly(head, flame):
    theta = np.zeros(15)
    theta[9:12] = [0.1, 0.3, 0.0]
    moved = pose(flame, theta)
    centre = (flame.joint_regressor @ flame.v_template)[3]
    rotation = rig.rotation_matrix(theta[9:12])
    ball = slice(3931, 4477)
    expected = (flame.v_template[ball] - centre) @ rotation.T + centre
    np.testing.assert_allclose(moved[ball], expected, atol=1e-9)
    np.testing.assert_allclose(moved[:3931], flame.v_template[:3931], atol=1e-9)


def test_identity_modes_are_the_principal_components_of_the_samples(head):
    mean, directions, _ = rig.identity_modes(head, 300)
    flat = directions.reshape(-1, 300)
    gram = flat.T @ flat
    scale = np.sqrt(np.diag(gram))
    np.testing.assert_allclose(gram / np.outer(scale, scale), np.eye(300), atol=1e-5)
    assert (np.diff(scale) <= 1e-12).all()
    # independent reference: the spectrum and mean of sampled heads
    rng = np.random.default_rng(0)
    heads = np.stack([head.vertices(sample_identity(rng)).ravel() for _ in range(250)])
    np.testing.assert_allclose(heads.mean(axis=0), mean.ravel(), atol=1.2e-3)
    centred = heads - heads.mean(axis=0)
    values = np.sqrt(np.linalg.eigvalsh(centred @ centred.T)[::-1].clip(0.0) / 249)
    np.testing.assert_allclose(values[:6], scale[:6], rtol=0.25)
    assert (values**2).sum() == pytest.approx((scale**2).sum(), rel=0.25)


def test_coefficients_are_unit_gaussian_and_rebuild_the_head(head):
    mean, directions, projector = rig.identity_modes(head, 300)
    people = [sample_identity(np.random.default_rng(k)) for k in range(300)]
    betas = np.stack([rig.beta_of(person, projector) for person in people])
    assert betas.std() == pytest.approx(1.0, abs=0.08)
    assert np.abs(betas.mean(axis=0)).max() < 0.4
    rebuilt = mean + directions @ betas[0]
    assert np.linalg.norm(rebuilt - head.vertices(people[0]), axis=1).max() < 0.5e-3


def test_spectrum_decays(flame):
    energy = (flame.shapedirs**2).sum(axis=(0, 1))
    share = np.cumsum(energy) / energy.sum()
    assert 0.25 < share[0] < 0.75
    assert share[49] > 0.93
    assert energy[-1] > 0.0
    expression = (flame.exprdirs**2).sum(axis=(0, 1))
    assert expression[-1] > 0.0
    assert expression[0] < 0.6 * expression.sum()


def test_expression_modes_span_the_movements_but_not_the_jaw(head, flame):
    from models.procedural.expression import Expression

    mean_mm = to_canonical(flame.v_template)
    flat = flame.exprdirs.reshape(-1, 100)
    for unit, least in (("smile", 0.97), ("brow_lower", 0.97), ("pucker", 0.97), ("jaw_open", 0)):
        moved = head.posed_mm(mean_mm, Expression.of(**{unit: 1.0})) - mean_mm
        target = 1e-3 * moved.ravel()
        fit = flat @ np.linalg.lstsq(flat, target, rcond=None)[0]
        explained = 1.0 - ((target - fit) ** 2).sum() / (target**2).sum()
        assert explained > least if least else explained < 0.97


def test_same_seed_same_arrays(flame):
    again = rig.build_flame(samples=130)
    for field in dataclasses.fields(flame):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(flame, field.name))


def test_too_many_modes_are_refused():
    with pytest.raises(ValueError, match="ask for fewer or sample more"):
        rig.build_flame(n_identity=1000)
