"""Which pixels look like skin: the attention mask of Deng et al. 2019's photometric loss.

A naive Bayes classifier of colours: one Gaussian mixture of skin and one of everything else, in
YCbCr, after Jones and Rehg, "Statistical Color Models with Application to Skin Detection" (IJCV
2002). Sizes (4 + 4 components, prior 0.8) are those of the reference,
github.com/sicxu/Deep3DFaceRecon_pytorch.

Departure: the mixtures are fitted here, because the published constants come from a data set of
their own.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

SkinMode = Literal["off", "raw", "thresh"]
COMPONENTS = 4
SKIN_PRIOR = 0.8
SPREAD_PRIOR = 1.0
"""Scatter, in squared byte values, that every component has from the start."""
EM_STEPS = 200
EM_TOLERANCE = 1e-6
"""EM ends when a step adds less than this to the mean log-likelihood of a pixel."""
_YCBCR_OF_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def ycbcr(rgb: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Luma and chroma of RGB bytes in 0..255, chroma about 128 (JFIF, the full-range BT.601)."""
    return rgb.astype(np.float64) @ _YCBCR_OF_RGB.T + [0.0, 128.0, 128.0]


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians in three dimensions.

    Attributes:
        weights: Shares of the components, with sum one.
        means: Their centres.
        covariances: Their covariances.
    """

    weights: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k 3"]
    covariances: Float[np.ndarray, "k 3 3"]

    def joint_log_densities(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n k"]:
        """``log w_k N(x; m_k, C_k)`` of every point and component."""
        columns = []
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            root = np.linalg.cholesky(covariance)
            white = (points - mean) @ np.linalg.inv(root).T
            scale = np.log(weight) - np.log(np.diag(root)).sum() - 1.5 * np.log(2 * np.pi)
            columns.append(scale - 0.5 * (white * white).sum(axis=1))
        return np.stack(columns, axis=1)

    def log_density(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Log of the mixture's density."""
        return np.asarray(np.logaddexp.reduce(self.joint_log_densities(points), axis=1))


def penalised_likelihood(mixture: Mixture, points: Float[np.ndarray, "n 3"]) -> float:
    """What EM raises: ``sum_i log p(x_i) - s/2 sum_k trace(C_k^-1)`` with s = ``SPREAD_PRIOR``."""
    traces = np.trace(np.linalg.inv(mixture.covariances), axis1=1, axis2=2)
    return float(mixture.log_density(points).sum() - 0.5 * SPREAD_PRIOR * traces.sum())


def em_step(mixture: Mixture, points: Float[np.ndarray, "n 3"]) -> Mixture:
    """One step of expectation and maximisation; ``penalised_likelihood`` never falls.

    With responsibilities r_ik and N_k = sum_i r_ik: w = N_k / n, m = sum r x / N_k and
    C = (sum r (x - m)(x - m)^T + s I) / N_k, whose s keeps components of one colour from
    collapsing.
    """
    joint = mixture.joint_log_densities(points)
    shares = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    counts = np.maximum(shares.sum(axis=0), 1e-9)
    means = shares.T @ points / counts[:, None]
    covariances = []
    for share, mean, count in zip(shares.T, means, counts, strict=True):
        centred = points - mean
        scatter = (share[:, None] * centred).T @ centred
        covariances.append((scatter + SPREAD_PRIOR * np.eye(3)) / count)
    return Mixture(counts / counts.sum(), means, np.stack(covariances))


def first_mixture(
    points: Float[np.ndarray, "n 3"], components: int, *, rng: np.random.Generator
) -> Mixture:
    """Equal shares around seeds that lie far apart (k-means++), each as wide as all points."""
    seeds = [points[rng.integers(len(points))]]
    for _ in range(components - 1):
        distance = np.min([((points - seed) ** 2).sum(axis=1) for seed in seeds], axis=0) + 1e-9
        seeds.append(points[rng.choice(len(points), p=distance / distance.sum())])
    covariance = np.cov(points.T) + SPREAD_PRIOR * np.eye(3)
    return Mixture(
        np.full(components, 1 / components), np.stack(seeds), np.stack([covariance] * components)
    )


def fit_mixture(
    points: Float[np.ndarray, "n 3"], components: int, *, rng: np.random.Generator
) -> Mixture:
    """A mixture that EM no longer improves.

    Raises:
        ValueError: There are fewer points than a covariance per component needs.
    """
    if len(points) < 4 * components:
        raise ValueError(
            f"fit_mixture needs >= {4 * components} pixels for {components} components, "
            f"got {len(points)}; take more photographs"
        )
    mixture = first_mixture(points, components, rng=rng)
    before = penalised_likelihood(mixture, points)
    for _ in range(EM_STEPS):
        mixture = em_step(mixture, points)
        after = penalised_likelihood(mixture, points)
        if after - before < EM_TOLERANCE * len(points):
            break
        before = after
    return mixture


@dataclass(frozen=True)
class SkinModel:
    """Colours of skin and of everything else.

    Attributes:
        skin: Mixture of skin in YCbCr.
        other: Mixture of the rest.
        prior: Chance of skin before a pixel is seen.
    """

    skin: Mixture
    other: Mixture
    prior: float = SKIN_PRIOR

    def probability(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """Chance that each RGB pixel is skin, by Bayes' rule."""
        colours = ycbcr(image).reshape(-1, 3)
        odds = self.skin.log_density(colours) - self.other.log_density(colours)
        odds = odds + np.log(self.prior) - np.log1p(-self.prior)
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * odds)).reshape(image.shape[:2])

    def weights(
        self, image: UInt8[np.ndarray, "h w 3"], mode: SkinMode
    ) -> Float[np.ndarray, "h w"]:
        """Float32 weights of the photometric loss.

        ``thresh``: 1 where the chance exceeds one half, the chance elsewhere (the paper's A);
        ``raw``: the chance (the reference code's); ``off``: ones.
        """
        if mode == "off":
            return np.ones(image.shape[:2], np.float32)
        chance = self.probability(image).astype(np.float32)
        return chance if mode == "raw" else np.where(chance > 0.5, np.float32(1), chance)


def fit(
    skin_pixels: UInt8[np.ndarray, "n 3"],
    other_pixels: UInt8[np.ndarray, "m 3"],
    seed: int,
    components: int = COMPONENTS,
) -> SkinModel:
    """Learn both mixtures from RGB pixels; the same pixels and seed give the same model.

    Raises:
        ValueError: There are too few pixels.
    """
    rng = np.random.default_rng(seed)
    skin = fit_mixture(ycbcr(skin_pixels), components, rng=rng)
    return SkinModel(skin, fit_mixture(ycbcr(other_pixels), components, rng=rng))
