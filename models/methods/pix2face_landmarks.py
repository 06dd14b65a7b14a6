"""Which vertex is which landmark, learned from annotated photographs (Crispell and Bazik, sec. 4).

Each landmark is treated by itself: of all vertices, the one whose projection by the estimated
camera is nearest to the annotated point on average over the photographs. At test time that vertex
of the fitted face is projected, seen or hidden.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Chosen(NamedTuple):
    """The result.

    Attributes:
        vertices: One per landmark.
        error: Its mean distance to the annotated points, unit of the projections given.
    """

    vertices: Int[np.ndarray, " k"]
    error: Float[np.ndarray, " k"]


class LandmarkChoice:
    """Adds up distances photograph by photograph."""

    def __init__(self, vertices: int, landmarks: int = 68) -> None:
        """Begin without photographs.

        Args:
            vertices: Of the face model.
            landmarks: Of an annotation.
        """
        self._sums = np.zeros((landmarks, vertices))
        self.photographs = 0

    def add(self, projected: Float[np.ndarray, "V 2"], annotated: Float[np.ndarray, "k 2"]) -> None:
        """Count one photograph.

        Args:
            projected: Every vertex of the fitted face; in one unit for all photographs, such as
                pixels of the crop, lest large photographs decide alone.
            annotated: True landmarks, same unit.

        Raises:
            ValueError: A projection or landmark is not finite.
        """
        if not (np.isfinite(projected).all() and np.isfinite(annotated).all()):
            raise ValueError("expected finite projections and landmarks, got NaN or infinity")
        points = np.asarray(projected, np.float32)
        for row, (x, y) in enumerate(np.asarray(annotated, np.float32)):
            self._sums[row] += np.hypot(points[:, 0] - x, points[:, 1] - y)
        self.photographs += 1

    def chosen(self) -> Chosen:
        """The best vertices; the first of several equally good ones.

        Raises:
            ValueError: No photograph was added.
        """
        if not self.photographs:
            raise ValueError("expected one annotated photograph at least, got none that was fitted")
        vertices = self._sums.argmin(axis=1)
        return Chosen(vertices, self._sums[np.arange(len(vertices)), vertices] / self.photographs)
