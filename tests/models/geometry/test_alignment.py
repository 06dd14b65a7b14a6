"""Similarity alignment: recovery, weights, optimality, mirror images, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.geometry import align_similarity


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return q


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_recovers_a_known_transform(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    src, rotation, shift = rng.normal(size=(6, 3)), random_rotation(rng), rng.normal(size=3)
    found = align_similarity(src, scale * src @ rotation.T + shift, rng.uniform(0.1, 2, 6))
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-8)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-9)
    np.testing.assert_allclose(found.translation, shift, atol=1e-8 * max(1, scale))
    assert not found.mirrored
    np.testing.assert_allclose(found.invert(found.apply(src)), src, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_integer_weights_equal_repeated_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    src, dst = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))
    weights = rng.integers(0, 5, 7)
    weights[:4] += 1
    weighted = align_similarity(src, dst, weights.astype(float))
    repeated = align_similarity(np.repeat(src, weights, axis=0), np.repeat(dst, weights, axis=0))
    np.testing.assert_allclose(weighted.rotation, repeated.rotation, atol=1e-9)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-9)
    np.testing.assert_allclose(weighted.rms, repeated.rms, rtol=1e-9)


def test_no_small_change_is_better() -> None:
    rng = np.random.default_rng(1)
    src, weights = rng.normal(size=(12, 3)), rng.uniform(0.1, 3, 12)
    dst = 2 * src @ random_rotation(rng).T + rng.normal(scale=0.3, size=(12, 3))
    found = align_similarity(src, dst, weights)

    def energy(scale: float, rotation: np.ndarray, shift: np.ndarray) -> float:
        return float(weights @ ((scale * src @ rotation.T + shift - dst) ** 2).sum(axis=1))

    best = energy(found.scale, found.rotation, found.translation)
    np.testing.assert_allclose(best, found.rms**2 * weights.sum())
    for _ in range(200):
        tilt = rng.normal(scale=1e-3, size=3)
        skew = np.cross(np.eye(3), tilt)
        cayley = np.linalg.solve(np.eye(3) - skew / 2, np.eye(3) + skew / 2)
        nearby = energy(
            found.scale * (1 + rng.normal(scale=1e-3)),
            cayley @ found.rotation,
            found.translation + rng.normal(scale=1e-3, size=3),
        )
        assert nearby >= best


def test_mirror_image_is_flagged_and_answered_by_a_rotation() -> None:
    rng = np.random.default_rng(2)
    src = rng.normal(size=(20, 3))
    found = align_similarity(src, src * [-1, 1, 1])
    assert found.mirrored
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def test_planar_points_are_no_mirror_image() -> None:
    rng = np.random.default_rng(5)
    src = rng.normal(size=(8, 3)) * [1, 1, 0]
    rotation = random_rotation(rng)
    found = align_similarity(src, src @ rotation.T)
    assert not found.mirrored
    assert found.rms < 1e-12


def test_fixed_scale_is_kept() -> None:
    rng = np.random.default_rng(6)
    src = rng.normal(size=(9, 3))
    found = align_similarity(src, 3 * src, fixed_scale=1.0)
    assert found.scale == 1.0
    np.testing.assert_allclose(found.rotation, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("src", "dst", "weights", "message"),
    [
        (np.zeros((3, 3)), np.zeros((4, 3)), None, "equal size"),
        (np.eye(3), np.eye(3), np.array([1.0, 1.0, 0.0]), ">= 3 points"),
        (np.eye(3), np.eye(3), np.array([1.0, 1.0, -1.0]), "finite weights"),
        (np.eye(3) * np.nan, np.eye(3), None, "finite points"),
        (np.outer(np.arange(4.0), [1, 2, 3]), np.outer(np.arange(4.0), [1, 2, 3]), None, "line"),
    ],
)
def test_refusals(
    src: np.ndarray, dst: np.ndarray, weights: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        align_similarity(src, dst, weights)
