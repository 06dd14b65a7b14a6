"""Skin colours: the EM of mixtures, Bayes' rule, the paper's weights."""

import cv2
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from models.methods.deng2019_skin import (
    Mixture,
    em_step,
    first_mixture,
    fit,
    fit_mixture,
    penalised_likelihood,
    ycbcr,
)


def pixels(seed: int, mean: list[float], spread: float, count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(mean, spread, (count, 3)), 0, 255).astype(np.uint8)


SKIN, OTHER = pixels(0, [210, 150, 120], 12), pixels(1, [60, 90, 120], 30)


def test_colours_are_those_of_the_standard() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (8, 9, 3), np.uint8)
    theirs = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    assert np.abs(ycbcr(rgb) - theirs).max() <= 1.0


def test_density_is_scipy_s() -> None:
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(2, 3, 3))
    mixture = Mixture(
        np.array([0.3, 0.7]), rng.normal(size=(2, 3)), roots @ roots.swapaxes(1, 2) + np.eye(3)
    )
    points = rng.normal(size=(5, 3))
    expected = sum(
        weight * scipy.stats.multivariate_normal(mean, covariance).pdf(points)
        for weight, mean, covariance in zip(
            mixture.weights, mixture.means, mixture.covariances, strict=True
        )
    )
    np.testing.assert_allclose(np.exp(mixture.log_density(points)), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 40))
def test_a_step_never_lowers_the_likelihood(seed: int, components: int, colours: int) -> None:
    """Also of pixels of few distinct colours, on which plain EM would collapse."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 255, (colours, 3))[rng.integers(0, colours, 60)]
    mixture = first_mixture(points, components, rng=rng)
    before = penalised_likelihood(mixture, points)
    for _ in range(12):
        mixture = em_step(mixture, points)
        after = penalised_likelihood(mixture, points)
        assert after >= before - 1e-7 * abs(before)
        before = after
    assert mixture.weights.sum() == pytest.approx(1.0)


def test_separate_gaussians_are_recovered() -> None:
    rng = np.random.default_rng(4)
    centres = np.array([[40.0, 60.0, 80.0], [200.0, 150.0, 100.0]])
    roots = np.array([np.diag([3.0, 5.0, 7.0]), [[8.0, 0, 0], [4.0, 6.0, 0], [0, 0, 2.0]]])
    which = rng.random(6000) < 0.3
    noise = rng.normal(size=(6000, 3))
    points = np.where(
        which[:, None], centres[0] + noise @ roots[0].T, centres[1] + noise @ roots[1].T
    )
    mixture = fit_mixture(points, 2, rng=rng)
    order = np.argsort(mixture.means[:, 0])
    np.testing.assert_allclose(mixture.weights[order], [which.mean(), 1 - which.mean()], atol=1e-3)
    np.testing.assert_allclose(mixture.means[order], centres, atol=0.6)
    np.testing.assert_allclose(
        mixture.covariances[order], roots @ roots.swapaxes(1, 2), rtol=0.1, atol=2.0
    )


def test_posterior_in_closed_form() -> None:
    """One component each: the maximum is the sample's mean and (nearly) its covariance."""
    model = fit(SKIN, OTHER, 0, components=1)
    for mixture, data in ((model.skin, SKIN), (model.other, OTHER)):
        np.testing.assert_allclose(mixture.means[0], ycbcr(data).mean(0))
        expected = np.cov(ycbcr(data).T, bias=True) + np.eye(3) / len(data)
        np.testing.assert_allclose(mixture.covariances[0], expected)
    image = np.random.default_rng(5).integers(0, 256, (4, 5, 3), np.uint8)
    skin, other = (
        scipy.stats.multivariate_normal(m.means[0], m.covariances[0]).pdf(ycbcr(image))
        for m in (model.skin, model.other)
    )
    expected = 0.8 * skin / (0.8 * skin + 0.2 * other)
    np.testing.assert_allclose(model.probability(image), expected, atol=1e-9)


def test_weights_by_mode() -> None:
    model = fit(SKIN, OTHER, 0)
    image = np.stack([SKIN[:20], OTHER[:20], pixels(6, [140, 120, 120], 25, 20)])
    chance = model.probability(image)
    assert chance[0].mean() > 0.95
    assert chance[1].mean() < 0.05
    assert ((chance >= 0) & (chance <= 1)).all()
    np.testing.assert_allclose(model.weights(image, "raw"), chance, rtol=1e-6)
    thresholded = model.weights(image, "thresh")
    np.testing.assert_allclose(thresholded, np.where(chance > 0.5, 1.0, chance), rtol=1e-6)
    assert (model.weights(image, "off") == 1).all()
    assert thresholded.dtype == np.float32


def test_fits_are_repeatable() -> None:
    one, again = fit(SKIN, OTHER, 7), fit(SKIN, OTHER, 7)
    for first, second in ((one.skin, again.skin), (one.other, again.other)):
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, vars(second)[name])


def test_too_few_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=">= 16 pixels"):
        fit(SKIN[:15], OTHER, 0)
