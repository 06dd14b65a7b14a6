"""Components have unit norm on the layout, and the companion on the head says the same."""

import numpy as np
import pytest

from models.procedural.expression import Expression
from models.procedural.identity import Identity
from stages.corpus import basel_source, studio
from stages.corpus.surface import Anchors

SEED = 3


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return basel_source.population(SEED, "test", 12)


@pytest.fixture(scope="module")
def anchors() -> Anchors:
    return basel_source.layout_anchors("trimmed")


@pytest.fixture(scope="module")
def basis(samples: np.ndarray, anchors: Anchors) -> basel_source.Basis:
    return basel_source.principal_components(samples, anchors, 8)


def test_layout_columns_are_orthonormal(basis: basel_source.Basis, anchors: Anchors) -> None:
    columns = basis.layout(anchors)
    np.testing.assert_allclose(columns.T @ columns, np.eye(8), atol=1e-5)
    assert np.all(np.diff(basis.sigma) <= 0)


def test_components_equal_a_plain_svd_of_the_layout(
    samples: np.ndarray, basis: basel_source.Basis, anchors: Anchors
) -> None:
    points = np.stack([anchors.flat(sample).ravel() for sample in samples])
    centred = points - points.mean(axis=0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(basis.sigma, values[:8] / np.sqrt(len(samples)), rtol=1e-6)
    overlap = np.abs(np.einsum("nk,kn->k", basis.layout(anchors), rows[:8]))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-5)


def test_coefficients_invert_the_model(basis: basel_source.Basis) -> None:
    alpha = np.random.default_rng(0).normal(size=8) * basis.sigma
    head = basis.mean + (basis.head @ alpha).reshape(-1, 3)
    np.testing.assert_allclose(basis.coefficients(head), alpha, rtol=1e-8)


def test_layout_equals_the_companion_on_the_head(
    basis: basel_source.Basis, anchors: Anchors
) -> None:
    alpha = np.random.default_rng(1).normal(size=8) * basis.sigma
    head = basis.mean + (basis.head @ alpha).reshape(-1, 3)
    direct = anchors.flat(basis.mean).ravel() + basis.layout(anchors) @ alpha
    np.testing.assert_allclose(anchors.flat(head).ravel(), direct, atol=1.0)  # micrometres


def test_mirroring_twice_changes_nothing(samples: np.ndarray) -> None:
    twice = basel_source.mirrored(basel_source.mirrored(samples[0]))
    np.testing.assert_allclose(twice, samples[0], atol=1e-6)
    np.testing.assert_allclose(basel_source.mirrored(samples[0]), samples[1], atol=1e-6)


def test_too_few_samples_are_an_error(samples: np.ndarray, anchors: Anchors) -> None:
    with pytest.raises(ValueError, match="raise synthesize"):
        basel_source.principal_components(samples, anchors, 24)


def test_basel_frame_and_keypoints(anchors: Anchors) -> None:
    mean = basel_source.UM * (studio.mean_vertices() - basel_source.basel_from_head())
    points = anchors.flat(mean)
    keys = points[basel_source.keypoints(anchors)]
    assert 80_000 < keys[45, 0] - keys[36, 0] < 105_000  # outer eye corners, left is +x
    assert keys[30, 2] > keys[36, 2]  # the nose is nearer than the eyes
    assert keys[8, 1] < keys[57, 1] < keys[33, 1] < keys[27, 1]  # chin, lip, nose, bridge
    regions = basel_source.segments(anchors)
    assert regions.sum(axis=1).min() == 1
    assert regions.sum(axis=1).max() == 1
    assert (regions.sum(axis=0) > 500).all()


def test_keypoints_follow_the_opening_mouth(anchors: Anchors) -> None:
    """The lips touch when the mouth is shut: a keypoint of one must not sit on the other."""
    keys = basel_source.keypoints(anchors)
    for opening in (0.0, 0.5, 1.0):
        expression = Expression.of(jaw_open=opening)
        vertices = np.asarray(studio.head().vertices(Identity.mean(), expression))
        landmarks = np.asarray(studio.head().landmarks(vertices))
        distance = np.linalg.norm(anchors.flat(vertices)[keys] - landmarks, axis=1)
        assert distance[48:].max() < 0.005  # metres; 0.025 when the lips are confused


def test_texture_basis_is_orthonormal(anchors: Anchors) -> None:
    mean, basis, sigma = basel_source.texture(SEED, "test", anchors, 4)
    assert 0.0 <= mean.min() <= mean.max() <= 1.0
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-3)
    assert np.all(np.diff(sigma) <= 0)
