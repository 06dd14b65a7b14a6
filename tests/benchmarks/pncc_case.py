"""What the PNCC benchmark draws, and the plain chain that it is compared with.

The published mean face, triangles and poses (``../shared/data/real_300wlp``); the dense bases are
not there, so smooth random ones of the same size and strength stand in for them.
"""

from pathlib import Path

import cv2
import numpy as np
import scipy.io
from numba import njit

from models.face.morphable import LinearModel
from models.rendering.pncc import PnccRenderer, Sample, camera_300w_lp, rotation_300w_lp
from stages.render_sample import load_sample_model

IDENTITY, EXPRESSION = 199, 29
SAMPLES = (
    "IBUG_image_008_1_0", "image00050", "image00251", "image00516", "image02420", "image04331",
)  # fmt: skip
LONGEST_WAVE_UM = 400e3
SHORTEST_WAVE_UM = 50e3
EXPRESSION_RMS_UM = 1500.0
"""Displacement of one unit of the strongest expression coefficient, root mean square."""
SIZE_PX = 450


def _smooth(points: np.ndarray, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Random plane waves over the face, ever shorter, as unit columns (V, 3, columns)."""
    waves = np.geomspace(LONGEST_WAVE_UM, SHORTEST_WAVE_UM, columns)
    directions = rng.normal(size=(3, columns))
    directions /= np.linalg.norm(directions, axis=0)
    phase = points @ (2 * np.pi * directions / waves) + rng.uniform(0, 2 * np.pi, columns)
    field = np.sin(phase)[:, None, :] * rng.normal(size=(1, 3, columns))
    return np.asarray(field / np.linalg.norm(field, axis=(0, 1))).astype(np.float32)


def stand_in_model(folder: Path) -> tuple[LinearModel, float]:
    """The published mean and triangles with smooth random bases, and metres per unit."""
    loaded = load_sample_model(folder)
    model, rng = loaded.model, np.random.default_rng(0)
    points = model.mean.astype(np.float64)
    expression = _smooth(points, EXPRESSION, rng)
    expression *= EXPRESSION_RMS_UM * np.sqrt(len(points)) * 0.9 ** np.arange(EXPRESSION)
    whole = LinearModel(
        mean_shape=model.mean_shape,
        shape_basis=_smooth(points, IDENTITY, rng),
        shape_sigma=np.ones(IDENTITY, np.float32),
        mean_expression=model.mean_expression,
        expression_basis=expression.astype(np.float32),
        expression_sigma=np.ones(EXPRESSION, np.float32),
        faces=model.faces,
        keypoints=model.keypoints,
    )
    return whole, loaded.unit_m


def real_samples(folder: Path, count: int) -> list[Sample]:
    """Published coefficients and poses, repeated with other coefficients of the same size."""
    rng = np.random.default_rng(1)
    found = []
    for index in range(count):
        content = scipy.io.loadmat(folder / f"{SAMPLES[index % len(SAMPLES)]}.mat")
        shape = content["Shape_Para"].ravel().astype(np.float64)
        expression = content["Exp_Para"].ravel().astype(np.float64)
        if index >= len(SAMPLES):
            shape = shape * rng.choice([-1.0, 1.0], len(shape))
            expression = rng.permutation(expression)
        pose = content["Pose_Para"][0].astype(np.float64)
        found.append(Sample(shape, expression, pose, SIZE_PX, SIZE_PX))
    return found


@njit(cache=True)
def _z_buffer(place, colours, faces, picture, depth):
    """Paint 8-bit vertex colours triangle by triangle, nearer over farther."""
    height, width = depth.shape
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        xa, ya, xb, yb = place[a, 0], place[a, 1], place[b, 0], place[b, 1]
        xc, yc = place[c, 0], place[c, 1]
        left = max(int(np.ceil(min(xa, xb, xc))), 0)
        right = min(int(np.floor(max(xa, xb, xc))), width - 1)
        top = max(int(np.ceil(min(ya, yb, yc))), 0)
        bottom = min(int(np.floor(max(ya, yb, yc))), height - 1)
        if right < left or bottom < top:
            continue
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0:
            continue
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                wb = ((column - xa) * (yc - ya) - (xc - xa) * (row - ya)) / area
                wc = ((xb - xa) * (row - ya) - (column - xa) * (yb - ya)) / area
                wa = np.float32(1.0) - wb - wc
                if wa >= 0 and wb >= 0 and wc >= 0:
                    z = wa * place[a, 2] + wb * place[b, 2] + wc * place[c, 2]
                    if z > depth[row, column]:
                        depth[row, column] = z
                        for channel in range(3):
                            picture[row, column, channel] = np.uint8(
                                255
                                * (
                                    wa * colours[a, channel]
                                    + wb * colours[b, channel]
                                    + wc * colours[c, channel]
                                )
                            )


class PlainChain:
    """One image at a time: matrix-vector product, two painted pictures, two 8-bit PNGs."""

    def __init__(self, model: LinearModel, unit_m: float) -> None:
        self.to_mm = np.float32(1000.0 * unit_m)
        bases = [
            basis.reshape(3 * len(model.mean), -1)
            for basis in (model.shape_basis, model.expression_basis)
        ]
        self.directions = np.ascontiguousarray(np.concatenate(bases, axis=1))
        self.mean_mm = (model.mean * self.to_mm).astype(np.float32)
        self.code = PnccRenderer(model, unit_m).code
        self.faces = np.ascontiguousarray(model.faces, dtype=np.int32)

    def painted(self, sample: Sample) -> list[np.ndarray]:
        """PNCC and offset as 8-bit pictures."""
        row = np.concatenate([sample.shape, sample.expression]).astype(np.float32)
        offset = (self.directions @ row).reshape(-1, 3) * self.to_mm
        scale, x, y = camera_300w_lp(sample.pose, sample.height)
        turned = (self.mean_mm + offset) @ rotation_300w_lp(sample.pose).T.astype(np.float32)
        turned *= np.float32(scale) / self.to_mm
        place = np.stack([x - 0.5 + turned[:, 0], y - 0.5 - turned[:, 1], turned[:, 2]], axis=1)
        place = place.astype(np.float32)
        shown = np.clip(0.5 + offset / np.float32(50.0), 0, 1)
        pictures = []
        for colours in (self.code, shown):
            picture = np.zeros((sample.height, sample.width, 3), np.uint8)
            depth = np.full(picture.shape[:2], -np.inf, np.float32)
            _z_buffer(place, colours, self.faces, picture, depth)
            pictures.append(picture)
        return pictures

    def write(self, sample: Sample, stem: Path) -> int:
        """Two PNG files of one sample; returns their bytes."""
        total = 0
        for number, picture in enumerate(self.painted(sample)):
            data = cv2.imencode(".png", picture)[1].tobytes()
            stem.with_name(f"{stem.name}_{number}.png").write_bytes(data)
            total += len(data)
        return total
