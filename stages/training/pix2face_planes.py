"""Targets of pix2face's windows: cut from stored maps, or drawn from coefficients at the window."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float

from models.face.morphable import LinearModel
from models.networks.encoders.square_crop import crop_planes
from models.rendering.pncc import PnccRenderer, Sample, Window
from stages.training.assembly import save_array

COLUMNS = ("height_px", "width_px", "shape_para", "exp_para", "pose_para")
"""What drawing needs of a packed photograph."""
MODEL = "model.safetensors"


class Target(NamedTuple):
    """PNCC and offset of one window.

    Attributes:
        planes_mm: Zero off the face.
        mask: Where the face is seen.
    """

    planes_mm: Float[np.ndarray, "s s 6"]
    mask: Bool[np.ndarray, "s s"]


class Planes(Protocol):
    """Where targets come from."""

    def targets(
        self, photographs: Sequence[int], matrices: Sequence[Float[np.ndarray, "2 3"]], size: int
    ) -> list[Target]:
        """Targets of windows, each given by T_window_from_base of its photograph's base crop."""
        ...


class StoredPlanes:
    """Windows resampled from base crops of stored maps."""

    def __init__(self, folder: Path) -> None:
        self._planes = np.load(folder / "planes.npy", mmap_mode="r")
        self._masks = np.load(folder / "masks.npy", mmap_mode="r")

    def targets(
        self, photographs: Sequence[int], matrices: Sequence[Float[np.ndarray, "2 3"]], size: int
    ) -> list[Target]:
        """See :class:`Planes`."""
        return [
            Target(
                *crop_planes(
                    np.asarray(self._planes[index], np.float32), self._masks[index], matrix, size
                )
            )
            for index, matrix in zip(photographs, matrices, strict=True)
        ]


class DrawnPlanes:
    """Windows drawn from coefficients, one minibatch at a time; nothing is resampled."""

    def __init__(self, folder: Path, unit_m: float) -> None:
        self._renderer = PnccRenderer(LinearModel.load(folder / MODEL), unit_m)
        self._columns = {name: np.load(folder / f"{name}.npy") for name in COLUMNS}
        self._bases = np.load(folder / "bases.npy")

    def _sample(self, index: int) -> Sample:
        height, width, shape, expression, pose = (self._columns[name][index] for name in COLUMNS)
        return Sample(shape, expression, pose, int(height), int(width))

    def targets(
        self, photographs: Sequence[int], matrices: Sequence[Float[np.ndarray, "2 3"]], size: int
    ) -> list[Target]:
        """See :class:`Planes`."""
        windows = []
        for index, matrix in zip(photographs, matrices, strict=True):
            base = self._bases[index]
            linear = matrix[:, :2] * base[0, 0]  # T_window_from_image, a similarity
            scale = float(np.hypot(linear[0, 0], linear[1, 0]))
            middle = size / 2 - (matrix[:, :2] @ base[:, 2] + matrix[:, 2])
            left, top = np.linalg.solve(linear, middle) - size / scale / 2
            turn = float(np.arctan2(linear[1, 0], linear[0, 0]))
            windows.append(Window(float(left), float(top), size / scale, size, turn))
        drawn = self._renderer.render([self._sample(index) for index in photographs], windows)
        return [
            Target(np.concatenate([maps.pncc_mm, maps.offset_mm], axis=-1), maps.mask)
            for maps in drawn
        ]


def save_coefficients(
    folder: Path,
    model: Path,
    rows: Sequence[Mapping[str, Any]],
    bases: Sequence[Float[np.ndarray, "2 3"]],
) -> None:
    """Write what :class:`DrawnPlanes` reads.

    Args:
        folder: Where to.
        model: Converted 3DDFA folder.
        rows: Packed photographs with coefficients.
        bases: T_base_from_image of their base crops.
    """
    for name in COLUMNS:
        column = np.array([np.asarray(row[name], np.float64) for row in rows])
        save_array(column, folder / f"{name}.npy")
    save_array(np.stack(bases), folder / "bases.npy")
    shutil.copyfile(model / MODEL, folder / MODEL)


def planes_of(folder: Path, facts: Mapping[str, Any]) -> Planes:
    """The source that a prepared folder describes."""
    if "drawn_unit_m" in facts:
        return DrawnPlanes(folder, float(facts["drawn_unit_m"]))
    return StoredPlanes(folder)
