"""From predicted PNCC and offsets to face model coefficients (Crispell and Bazik 2017, sec. 3.3).

Each face pixel names a vertex (the nearest on the mean face) and tells how far that vertex has
moved; a linear model explains the moves by one identity and, per photograph, one expression, with a
ridge on both. Working in units of standard deviations makes the published regulariser, 0.025 mm per
sigma, one number for any model and unit.

Departures: pixels look for vertices and not the other way round, each vertex keeps its nearest
pixel, so that a coarse image does not count a pixel many times; the ridge is a parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from models.morphable import LinearModel


@dataclass(frozen=True)
class Moves:
    """What one photograph says about some vertices.

    Attributes:
        vertices: Vertex ids, each once.
        offset_mm: Their displacements from the mean face.
        pixels: Row and column of the pixel that said so.
    """

    vertices: Int[np.ndarray, " n"]
    offset_mm: Float[np.ndarray, "n 3"]
    pixels: Int[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Solution:
    """Coefficients in standard deviations.

    Attributes:
        identity: Shared by all photographs.
        expressions: One row per photograph.
    """

    identity: Float[np.ndarray, " k"]
    expressions: Float[np.ndarray, "n e"]


class ModelFit:
    """A linear model laid out in millimetres and standard deviations."""

    def __init__(self, model: LinearModel, unit_m: float) -> None:
        """Prepare a model.

        Args:
            model: The 3DMM.
            unit_m: Metres per unit of the model.
        """
        from scipy.spatial import cKDTree

        to_mm = 1000.0 * unit_m
        self.faces = model.faces
        self.keypoints = model.keypoints
        self.mean_mm = to_mm * model.mean.astype(np.float64)
        self._identity = (to_mm * model.shape_basis * model.shape_sigma).astype(np.float32)
        self._expression = (to_mm * model.expression_basis * model.expression_sigma).astype(
            np.float32
        )
        self._tree: Any = cKDTree(self.mean_mm)

    def moves(
        self,
        pncc_mm: Float[np.ndarray, "h w 3"],
        offset_mm: Float[np.ndarray, "h w 3"],
        valid: Bool[np.ndarray, "h w"],
        gate_mm: float,
    ) -> Moves:
        """Vertices that the valid pixels see.

        Args:
            pncc_mm: Mean-face position per pixel.
            offset_mm: Displacement per pixel.
            valid: Pixels to use.
            gate_mm: Pixels farther than this from every vertex are dropped.
        """
        rows, columns = np.nonzero(valid)
        distance, vertex = self._tree.query(pncc_mm[rows, columns])
        order = np.lexsort((columns, rows, distance))
        order = order[distance[order] <= gate_mm]
        vertices, first = np.unique(vertex[order], return_index=True)
        kept = order[first]
        return Moves(
            vertices.astype(np.int64),
            offset_mm[rows[kept], columns[kept]].astype(np.float64),
            np.stack([rows[kept], columns[kept]], axis=1),
        )

    def solve(self, photographs: Sequence[Moves], prior: float, minimum: int = 10) -> Solution:
        """Joint ridge solution: one identity, one expression per photograph.

        Minimises sum |D z - s|^2 + prior^2 |z|^2 over all vertices and photographs, with z in
        standard deviations and s in millimetres.

        Args:
            photographs: At least one.
            prior: Ridge in mm per standard deviation.
            minimum: Vertices that each photograph must show.

        Raises:
            ValueError: A photograph shows too few vertices.
        """
        K, E, N = self._identity.shape[2], self._expression.shape[2], len(photographs)
        normal = prior**2 * np.eye(K + N * E)
        right = np.zeros(K + N * E)
        for n, moves in enumerate(photographs):
            if len(moves.vertices) < minimum:
                raise ValueError(
                    f"pix2face needs >= {minimum} vertices seen, got {len(moves.vertices)}; "
                    "is there a face in the crop?"
                )
            A = self._identity[moves.vertices].reshape(-1, K).astype(np.float64)
            B = self._expression[moves.vertices].reshape(-1, E).astype(np.float64)
            s = moves.offset_mm.reshape(-1)
            own = slice(K + n * E, K + (n + 1) * E)
            normal[:K, :K] += A.T @ A
            normal[own, own] += B.T @ B
            normal[:K, own] += A.T @ B
            normal[own, :K] = normal[:K, own].T
            right[:K] += A.T @ s
            right[own] += B.T @ s
        z = np.linalg.solve(normal, right)
        return Solution(z[:K], z[K:].reshape(N, E))

    def neutral_mm(self, identity: Float[np.ndarray, " k"]) -> Float[np.ndarray, "V 3"]:
        """The person without expression."""
        return self.mean_mm + self._identity @ identity

    def posed_mm(
        self, identity: Float[np.ndarray, " k"], expression: Float[np.ndarray, " e"]
    ) -> Float[np.ndarray, "V 3"]:
        """The person with an expression."""
        return self.neutral_mm(identity) + self._expression @ expression
