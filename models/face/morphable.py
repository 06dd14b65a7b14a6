"""A linear face model: mean plus identity, expression and texture directions.

BFM 2009, BFM 2017 and the 3DDFA bases all become this. Coefficients multiply the
directions as they are stored; ``shape_sigma`` and ``expression_sigma`` say how far
one standard deviation is.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

TEXTURE_KEYS = ("texture_mean", "texture_basis", "texture_sigma")


@dataclass(frozen=True)
class LinearModel:
    """The arrays of one model, in the model's own unit (``meta.json`` beside it says which).

    Attributes:
        mean_shape: Mean identity.
        shape_basis: Displacement per unit of identity coefficient.
        shape_sigma: Standard deviations of the identity coefficients.
        mean_expression: Displacement that every face has besides its identity.
        expression_basis: Displacement per unit of expression coefficient.
        expression_sigma: Standard deviations of the expression coefficients.
        faces: Counter-clockwise seen from outside.
        keypoints: Vertices of the 68 iBUG landmarks.
        texture_mean: Mean vertex colour, or None.
        texture_basis: Colour per unit of texture coefficient, or None.
        texture_sigma: Standard deviations of the texture coefficients, or None.
    """

    mean_shape: Float[np.ndarray, "V 3"]
    shape_basis: Float[np.ndarray, "V 3 K"]
    shape_sigma: Float[np.ndarray, " K"]
    mean_expression: Float[np.ndarray, "V 3"]
    expression_basis: Float[np.ndarray, "V 3 E"]
    expression_sigma: Float[np.ndarray, " E"]
    faces: Int[np.ndarray, "F 3"]
    keypoints: Int[np.ndarray, "68"]
    texture_mean: Float[np.ndarray, "V 3"] | None = None
    texture_basis: Float[np.ndarray, "V 3 T"] | None = None
    texture_sigma: Float[np.ndarray, " T"] | None = None

    def __post_init__(self) -> None:
        """Check that the arrays describe one mesh.

        Raises:
            ValueError: An array has another vertex count, or an index is out of range.
        """
        count = len(self.mean_shape)
        for name in ("shape_basis", "mean_expression", "expression_basis"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"LinearModel expects {name} of {count} vertices, got "
                    f"{len(getattr(self, name))}; mean and bases come from different models"
                )
        for name in ("faces", "keypoints"):
            ids = getattr(self, name)
            if ids.size and not (ids.min() >= 0 and ids.max() < count):
                raise ValueError(
                    f"LinearModel expects {name} in 0..{count - 1}, got {ids.min()}..{ids.max()}; "
                    "are they 1-based?"
                )

    @classmethod
    def load(cls, path: Path) -> "LinearModel":
        """Read ``model.safetensors``, or the folder that holds it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: An array is missing.
        """
        from safetensors.numpy import load_file

        file = path / "model.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"expected a converted model at {file}; run its convert stage")
        arrays = load_file(file)
        names = {field.name for field in fields(cls)}
        missing = names - set(arrays) - set(TEXTURE_KEYS)
        if missing:
            raise ValueError(f"{file} lacks {sorted(missing)}; got {sorted(arrays)}")
        return cls(**{name: array for name, array in arrays.items() if name in names})

    @property
    def mean(self) -> Float[np.ndarray, "V 3"]:
        """The face with every coefficient zero: mean identity and mean expression."""
        return self.mean_shape + self.mean_expression

    def of_keypoints(self) -> "LinearModel":
        """The 68 landmarks as a model of their own, without faces or texture."""
        at = self.keypoints
        return LinearModel(
            mean_shape=self.mean_shape[at],
            shape_basis=self.shape_basis[at],
            shape_sigma=self.shape_sigma,
            mean_expression=self.mean_expression[at],
            expression_basis=self.expression_basis[at],
            expression_sigma=self.expression_sigma,
            faces=np.zeros((0, 3), self.faces.dtype),
            keypoints=np.arange(len(at)),
        )

    def part(
        self,
        ids: Int[np.ndarray, " n"],
        identity: int | None = None,
        expression: int | None = None,
        texture: int | None = None,
        faces: Int[np.ndarray, "G 3"] | None = None,
    ) -> "LinearModel":
        """The face at some vertices, with the first directions of each kind.

        Args:
            ids: Vertices to keep, among them all keypoints, in the order they shall have.
            identity: Number of identity directions; None keeps all.
            expression: Likewise of expression.
            texture: Likewise of texture; a model without stays without.
            faces: Triangles to take instead of the model's, in its numbers. Those with a corner
                that is not kept are left out.

        Raises:
            ValueError: A keypoint is not kept.
        """
        place = np.full(len(self.mean_shape), -1)
        place[ids] = np.arange(len(ids))
        faces = place[self.faces if faces is None else faces]
        lost = np.flatnonzero(place[self.keypoints] < 0)
        if len(lost):
            raise ValueError(f"LinearModel.part expects every keypoint kept, lost {lost.tolist()}")
        part = LinearModel(
            mean_shape=self.mean_shape[ids],
            shape_basis=np.ascontiguousarray(self.shape_basis[ids][..., :identity]),
            shape_sigma=self.shape_sigma[:identity],
            mean_expression=self.mean_expression[ids],
            expression_basis=np.ascontiguousarray(self.expression_basis[ids][..., :expression]),
            expression_sigma=self.expression_sigma[:expression],
            faces=np.ascontiguousarray(faces[(faces >= 0).all(axis=1)]),
            keypoints=place[self.keypoints],
        )
        mean, basis, sigma = self.texture_mean, self.texture_basis, self.texture_sigma
        if mean is None or basis is None or sigma is None:
            return part
        return replace(
            part,
            texture_mean=mean[ids],
            texture_basis=np.ascontiguousarray(basis[ids][..., :texture]),
            texture_sigma=sigma[:texture],
        )

    def shape(
        self,
        alpha: Float[np.ndarray, " k"] | None = None,
        beta: Float[np.ndarray, " e"] | None = None,
    ) -> Float[np.ndarray, "V 3"]:
        """Vertices of one face.

        Args:
            alpha: Identity coefficients, at most K of them; None is the mean identity.
            beta: Expression coefficients, at most E of them; None is the mean expression.

        Returns:
            mean + shape_basis alpha + expression_basis beta, in the model's unit.

        Raises:
            ValueError: There are more coefficients than directions.
        """
        vertices = self.mean.astype(np.float64)
        for basis, given in ((self.shape_basis, alpha), (self.expression_basis, beta)):
            if given is None:
                continue
            if len(given) > basis.shape[2]:
                raise ValueError(
                    f"LinearModel.shape expects at most {basis.shape[2]} coefficients, got "
                    f"{len(given)}; the sample was fitted with a larger basis"
                )
            vertices = vertices + basis[..., : len(given)] @ np.asarray(given, dtype=np.float64)
        return vertices


def pncc_code(mean_shape: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
    """Colours of the projected normalised coordinate code (Zhu et al. 2016), float32 in [0, 1].

    Per axis the place between the least and the largest coordinate of the mean identity; the mean
    expression must not be added.
    """
    points = mean_shape.astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return ((points - low) / (high - low)).astype(np.float32)
