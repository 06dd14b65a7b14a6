"""Similarity alignment of corresponding points."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Similarity:
    """The map ``x -> scale * rotation @ x + translation``.

    Attributes:
        scale: Units of the destination per unit of the source.
        rotation: (3, 3) proper rotation.
        translation: (3,) in destination units.
        rms: Weighted root mean square residual, destination units.
        mirrored: A reflection would have fitted the points better than any rotation: the source
            is a mirror image, or left and right are swapped.
    """

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    rms: float = 0.0
    mirrored: bool = False

    def apply(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Take points from the source frame to the destination frame."""
        return self.scale * points @ self.rotation.T + self.translation

    def invert(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Take points from the destination frame back to the source frame."""
        return (points - self.translation) @ self.rotation / self.scale


def align_similarity(
    src: Float[np.ndarray, "n 3"],
    dst: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, " n"] | None = None,
    *,
    fixed_scale: float | None = None,
) -> Similarity:
    """Least-squares similarity taking ``src`` to ``dst``.

    Minimises the sum of ``w_i |s R src_i + t - dst_i|^2`` over scale, proper rotation and
    translation (Umeyama 1991, eqs. 40-42). Each weight multiplies its squared residual once, so
    an integer weight equals repeating the point.

    Args:
        src: Points in the source frame.
        dst: Their counterparts in the destination frame.
        weights: Non-negative; None means uniform.
        fixed_scale: Scale to impose (1.0 gives a rigid motion); None estimates it.

    Raises:
        ValueError: Shapes differ, a value is not finite, fewer than three points carry weight, or
            the weighted points lie on one line so that the rotation is not determined.
    """
    source = np.asarray(src, dtype=np.float64)
    target = np.asarray(dst, dtype=np.float64)
    if source.ndim != 2 or source.shape[1] != 3 or source.shape != target.shape:
        raise ValueError(
            f"align_similarity needs two (n, 3) sets of equal size, got {source.shape} and "
            f"{target.shape}"
        )
    w = np.ones(len(source)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(source),) or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(
            f"align_similarity needs {len(source)} finite weights >= 0, got shape {w.shape}"
        )
    carrying = w > 0
    if int(carrying.sum()) < 3:
        raise ValueError(
            f"align_similarity needs >= 3 points with weight > 0, got {int(carrying.sum())}; "
            "check that the landmarks were found"
        )
    source, target, w = source[carrying], target[carrying], w[carrying]
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("align_similarity needs finite points, got NaN or inf; give them weight 0")
    w = w / w.sum()
    mean_src, mean_dst = w @ source, w @ target
    centred_src, centred_dst = source - mean_src, target - mean_dst
    covariance = centred_dst.T @ (w[:, None] * centred_src)
    u, singular, vt = np.linalg.svd(covariance)
    if singular[1] <= 1e-12 * max(float(singular[0]), np.finfo(float).tiny):
        raise ValueError(
            "align_similarity needs points that are not all on one line; the rotation about that "
            "line is not determined"
        )
    sign = float(np.sign(np.linalg.det(u) * np.linalg.det(vt)))
    signs = np.array([1.0, 1.0, sign])
    rotation = (u * signs) @ vt
    variance = float(w @ (centred_src**2).sum(axis=1))
    scale = fixed_scale if fixed_scale is not None else float((singular * signs).sum()) / variance
    translation = mean_dst - scale * rotation @ mean_src
    residual = scale * source @ rotation.T + translation - target
    rms = float(np.sqrt(w @ (residual**2).sum(axis=1)))
    # With (nearly) planar points a reflection and a rotation fit alike: not a mirror image.
    mirrored = sign < 0 and float(singular[2]) > 1e-6 * float(singular[0])
    return Similarity(scale, rotation, translation, rms, mirrored)
