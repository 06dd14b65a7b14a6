"""FLAME's texture space as a linear albedo of the vertices."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

KEYS = ("mean", "tex_dir", "vt", "ft")
WHITE = 255.0


class VertexTexture(NamedTuple):
    """Colours of the vertices, RGB with white at 1.

    Attributes:
        mean: Mean colour.
        basis: Colour per standard deviation.
    """

    mean: Float[np.ndarray, "V 3"]
    basis: Float[np.ndarray, "V 3 K"]


def read_texture(file: Path, faces: Int[np.ndarray, "F 3"], modes: int) -> VertexTexture:
    """Read the owner's ``FLAME_texture.npz`` and look its pictures up at the vertices.

    The file holds a mean picture and 200 modes (0..255, blue first), texture coordinates ``vt``
    (origin at the lower left) and the corners ``ft`` of FLAME's triangles in them. A vertex on a
    seam has several places in the picture; the first triangle that has it decides.

    Args:
        file: The owner's file.
        faces: FLAME's triangles, in the order of ``ft``.
        modes: How many modes to keep; the published tracker has 140.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A key is missing, or the texture belongs to another mesh.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"texture in params/track.yaml: expected your copy of FLAME_texture.npz "
            f"(flame.is.tue.mpg.de), got {file}; null finds a colour per vertex instead"
        )
    with np.load(file, allow_pickle=False) as content:
        missing = sorted(set(KEYS) - set(content.files))
        if missing:
            raise ValueError(f"expected {', '.join(KEYS)} in {file}, {missing} are missing")
        mean, places, corners = content["mean"], content["vt"], content["ft"].astype(np.int64)
        basis = content["tex_dir"][..., :modes]
    if corners.shape != faces.shape or mean.ndim != 3 or mean.shape[2] != 3:
        raise ValueError(
            f"expected a picture and texture corners for {len(faces)} triangles in {file}, got "
            f"{mean.shape} and {corners.shape}; is it the texture of this FLAME?"
        )
    vertex, first = np.unique(faces.ravel(), return_index=True)
    u, v = places[corners.ravel()[first]].T
    height, width = mean.shape[:2]
    column = np.clip((u * width).astype(np.int64), 0, width - 1)
    row = np.clip(((1.0 - v) * height).astype(np.int64), 0, height - 1)
    count = int(faces.max()) + 1
    colours, directions = np.zeros((count, 3)), np.zeros((count, 3, basis.shape[-1]))
    colours[vertex] = mean[row, column, ::-1] / WHITE
    directions[vertex] = basis[row, column, ::-1] / WHITE
    return VertexTexture(colours, directions)
