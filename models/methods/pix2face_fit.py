"""From predicted PNCC and offsets to face model coefficients (Crispell and Bazik 2017, sec. 3.4.2).

Each face pixel names a vertex (the nearest on the mean face) and tells how far that vertex has
moved; a linear model explains the moves by one identity and, per photograph, one expression, with a
ridge on both.

Units of the ridge. The published code solves for raw coefficients c of orthonormal directions with
the penalty sum (0.1 / range)^2 c^2, where range is four standard deviations: 0.025 / sigma per
coefficient. Here the unknowns are z = c / sigma, so the same penalty is sum (0.025 z)^2 in mm^2:
one number for any model and unit, in millimetres per standard deviation.

Structure (their eq. 5). The normal matrix of N photographs has a dense identity block, N small
expression blocks, and nothing between expressions. Expressions are eliminated first (a Schur
complement), so work and memory grow with N and not with its cube.

Departures: pixels look for vertices and not the other way round, each vertex keeps its nearest
pixel, so that a coarse image does not count a pixel many times; the ridge is a parameter; of many
vertices, evenly spread ones are used (``most``), since neighbours say the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from models.face.morphable import LinearModel
from models.methods.pix2face_camera import thinned

NEAR = 3.0
"""Gates from the surface that a point of the cloud may lie."""
SHAPE_ROUNDS = 4
"""Searches where the network predicts no PNCC; a fifth changes little."""


@dataclass(frozen=True)
class Moves:
    """What one photograph says about some vertices.

    Attributes:
        vertices: Vertex ids, each once.
        offset_mm: Their displacements from the mean face.
        pixels: Row and column of the pixel that said so.
        near: Rows and columns of all pixels within ``NEAR`` gates of some vertex, ``pixels`` among
            them; at a face's border, values run from the face to the background through the air.
    """

    vertices: Int[np.ndarray, " n"]
    offset_mm: Float[np.ndarray, "n 3"]
    pixels: Int[np.ndarray, "n 2"]
    near: Int[np.ndarray, "m 2"] = field(default_factory=lambda: np.zeros((0, 2), np.int64))


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
        self.identities = model.shape_basis.shape[2]
        directions = [
            (to_mm * basis * sigma).astype(np.float32)
            for basis, sigma in (
                (model.shape_basis, model.shape_sigma),
                (model.expression_basis, model.expression_sigma),
            )
        ]
        self._basis = np.ascontiguousarray(np.concatenate(directions, axis=2))
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
        places = np.stack([rows, columns], axis=1)
        kept, vertices, near = self._named(self._tree, pncc_mm[rows, columns], gate_mm)
        offsets = offset_mm[rows[kept], columns[kept]].astype(np.float64)
        return Moves(vertices, offsets, places[kept], places[near])

    def moves_of_shape(
        self,
        shape_mm: Float[np.ndarray, "h w 3"],
        valid: Bool[np.ndarray, "h w"],
        gate_mm: float,
        prior: float,
        *,
        rounds: int = SHAPE_ROUNDS,
        most: int | None = None,
    ) -> Moves:
        """Vertices that pixels see which name no point of the mean face, only the observed one.

        Without a PNCC the correspondence has to be searched: each pixel takes the nearest vertex of
        the face fitted so far, from the mean face on.

        Args:
            shape_mm: Observed surface point per pixel.
            valid: Pixels to use.
            gate_mm: Pixels farther than this from every vertex are dropped; three times this in
                all rounds but the last.
            prior: Ridge of the fits in between, see :meth:`solve`.
            rounds: Searches.
            most: Vertices per fit, see :meth:`solve`.

        Raises:
            ValueError: A fit in between sees too few vertices.
        """
        from scipy.spatial import cKDTree

        rows, columns = np.nonzero(valid)
        places = np.stack([rows, columns], axis=1)
        points = shape_mm[rows, columns].astype(np.float64)
        tree = self._tree
        for number in range(rounds):
            last = number == rounds - 1
            kept, vertices, near = self._named(tree, points, gate_mm if last else 3.0 * gate_mm)
            offsets = points[kept] - self.mean_mm[vertices]
            moves = Moves(vertices, offsets, places[kept], places[near])
            if not last:
                found = self.solve([moves], prior, most=most)
                tree = cKDTree(self.posed_mm(found.identity, found.expressions[0]))
        return moves

    @staticmethod
    def _named(
        tree: Any,  # noqa: ANN401 - cKDTree has no types
        points: Float[np.ndarray, "n 3"],
        gate_mm: float,
    ) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Bool[np.ndarray, " n"]]:
        """Points that are some vertex's nearest within the gate, these vertices, ascending.

        Third which points are within ``NEAR`` gates at all.
        """
        # Beyond the bound, of which nothing is asked, the distance is inf: such searches are dear.
        bound = np.nextafter(NEAR * gate_mm, np.inf)
        distance, vertex = tree.query(points, distance_upper_bound=bound)
        order = np.argsort(distance, kind="stable")
        order = order[: np.searchsorted(distance[order], gate_mm, "right")][::-1]
        best = np.full(tree.n, -1)
        best[vertex[order]] = order  # the nearest is written last
        vertices = np.flatnonzero(best >= 0)
        return best[vertices], vertices, distance <= NEAR * gate_mm

    def solve(
        self,
        photographs: Sequence[Moves],
        prior: float,
        minimum: int = 10,
        most: int | None = None,
    ) -> Solution:
        """Joint ridge solution: one identity, one expression per photograph.

        Minimises sum |D z - s|^2 + prior^2 |z|^2 over all vertices and photographs, with z in
        standard deviations and s in millimetres.

        Args:
            photographs: At least one.
            prior: Ridge in mm per standard deviation; 0 for none.
            minimum: Vertices that each photograph must show.
            most: Vertices that count per photograph, evenly spread over their numbers; None: all.
                The ridge weighs as it would against all of them.

        Raises:
            ValueError: A photograph shows too few vertices, or nothing but a ridge would determine
                some coefficient.
        """
        K = self.identities
        E = self._basis.shape[2] - K
        shared, right = np.zeros((K, K)), np.zeros(K)
        coupled = []
        for moves in photographs:
            count = self.require(moves, minimum)
            step = slice(None) if most is None else thinned(count, most)
            vertices = moves.vertices[step]
            weight = count / len(vertices)
            D = self._basis[vertices].reshape(-1, K + E).astype(np.float64)
            normal, target = weight * (D.T @ D), weight * (D.T @ moves.offset_mm[step].reshape(-1))
            shared += normal[:K, :K]
            right += target[:K]
            coupled.append((normal[:K, K:], normal[K:, K:] + prior**2 * np.eye(E), target[K:]))
        shared += prior**2 * np.eye(K)
        try:
            for cross, own, target in coupled:
                gain = np.linalg.solve(own, np.column_stack([cross.T, target]))
                shared -= cross @ gain[:, :K]
                right -= cross @ gain[:, K]
            identity = np.linalg.solve(shared, right)
            expressions = [
                np.linalg.solve(own, target - cross.T @ identity) for cross, own, target in coupled
            ]
        except np.linalg.LinAlgError:
            raise ValueError(
                f"pix2face needs vertices that determine all {K} + {E} coefficients, got a "
                f"singular system; use a prior above {prior:g}"
            ) from None
        return Solution(identity, np.stack(expressions))

    @staticmethod
    def require(moves: Moves, minimum: int) -> int:
        """How many vertices a photograph shows.

        Raises:
            ValueError: Fewer than ``minimum``.
        """
        count = len(moves.vertices)
        if count < minimum:
            raise ValueError(
                f"pix2face needs >= {minimum} vertices seen, got {count}; "
                "is there a face in the crop?"
            )
        return count

    def neutral_mm(self, identity: Float[np.ndarray, " k"]) -> Float[np.ndarray, "V 3"]:
        """The person without expression."""
        return self.posed_mm(identity, np.zeros(self._basis.shape[2] - self.identities))

    def posed_mm(
        self, identity: Float[np.ndarray, " k"], expression: Float[np.ndarray, " e"]
    ) -> Float[np.ndarray, "V 3"]:
        """The person with an expression; single precision in the displacement."""
        z = np.concatenate([identity, expression]).astype(np.float32)
        moved = self._basis.reshape(-1, len(z)) @ z  # one product; a batched one is slower
        return self.mean_mm + moved.reshape(-1, 3)
