"""Projected normalised coordinates: which point of the mean face, and how far from it.

For each pixel that sees the face: ``pncc`` is the position of the seen surface point on the
mean face, ``offset`` the displacement of this face from the mean there, both in
millimetres in the model's frame, so that pncc + offset is the observed shape (Crispell
& Bazik 2017). Samples are posed as 300W-LP does (Zhu et al. 2016): P = s R V + t with
R = Rx(pitch) Ry(yaw) Rz(roll) in transposed signs, orthographic, y up, in MATLAB's
1-based pixels; in our pixels x = P_x - 0.5 and y = H + 0.5 - P_y.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from models.face.morphable import LinearModel, pncc_code
from models.rendering.cameras import orthographic_pixels
from models.rendering.displacement import Directions
from models.rendering.orthographic import Projection, Surface

BATCH = 64
PLANES = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """Coefficients and pose of one photograph, as 300W-LP stores them.

    Attributes:
        shape: Identity coefficients (``Shape_Para``).
        expression: Expression coefficients (``Exp_Para``).
        pose: Pitch, yaw, roll (rad), t (px) and scale (px per model unit) (``Pose_Para``).
        height: Rows of the photograph.
        width: Columns of the photograph.
    """

    shape: Float[np.ndarray, " k"]
    expression: Float[np.ndarray, " e"]
    pose: Float[np.ndarray, "7"]
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class PnccMaps:
    """The rendered maps of one photograph, zero where no face is seen.

    Attributes:
        pncc_mm: Mean-face position of the seen point.
        offset_mm: Displacement of the seen point from the mean face.
        mask: Where the face is seen.
    """

    pncc_mm: Float[np.ndarray, "h w 3"]
    offset_mm: Float[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a photograph and the size it is drawn at.

    Attributes:
        left: First column coordinate, px of the photograph.
        top: First row coordinate.
        side: Extent of the square, px of the photograph.
        size: Rows and columns drawn.
        turn_rad: The picture is turned by this about its middle, clockwise as seen.
    """

    left: float
    top: float
    side: float
    size: int
    turn_rad: float = 0.0


def rotation_300w_lp(pose: Float[np.ndarray, "*b 7"]) -> Float[np.ndarray, "*b 3 3"]:
    """R = Rx(pitch) Ry(yaw) Rz(roll), each the transpose of the usual right-handed one."""
    angles = np.asarray(pose, dtype=np.float64)[..., :3]
    cosine, sine = np.cos(angles), np.sin(angles)

    def about(axis: int, first: int, second: int) -> np.ndarray:
        matrix = np.zeros((*angles.shape[:-1], 3, 3))
        matrix[..., axis, axis] = 1.0
        matrix[..., first, first] = matrix[..., second, second] = cosine[..., axis]
        matrix[..., first, second] = sine[..., axis]
        matrix[..., second, first] = -sine[..., axis]
        return matrix

    return np.asarray(about(0, 1, 2) @ about(1, 2, 0) @ about(2, 0, 1))


def camera_300w_lp(
    pose: Float[np.ndarray, "*b 7"], height: int
) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    """Scale (px per model unit) and the pixel of the model's origin (x, y), per pose."""
    values = np.asarray(pose, dtype=np.float64)
    return values[..., 6], values[..., 3] - 0.5, height + 0.5 - values[..., 4]


def project_300w_lp(
    vertices: Float[np.ndarray, "v 3"], pose: Float[np.ndarray, "7"], height: int
) -> Float[np.ndarray, "v 2"]:
    """Our pixel coordinates of model points under a sample's pose."""
    scale, x, y = camera_300w_lp(pose, height)
    turned = np.asarray(vertices, dtype=np.float64) @ rotation_300w_lp(pose).T
    return orthographic_pixels(turned[None], float(scale), float(x), float(y))[0]


@dataclass(frozen=True, slots=True)
class Crop:
    """The rectangle of a picture that the face lies in.

    Attributes:
        lengths_mm: PNCC and offset of the pixels that see the face, row by row.
        mask: Which pixels these are.
        top: First row of the rectangle.
        left: First column.
        height: Rows of the picture.
        width: Columns of the picture.
    """

    lengths_mm: Float[np.ndarray, "n 6"]
    mask: Bool[np.ndarray, "h w"]
    top: int
    left: int
    height: int
    width: int


class _Lent:
    """Memory under an array and its views, which goes back to ``pool`` with the last of them."""

    def __init__(self, memory: Float[np.ndarray, " n"], pool: deque[np.ndarray]) -> None:
        self._memory, self._pool = memory, pool
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._pool.append(self._memory)


class _Pool:
    """Memory of arrays that nobody holds any more, lent again.

    Fresh pages, which the system clears, cost as much as drawing faces on them.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=2)

    def __call__(self, size: int) -> Float[np.ndarray, " n"]:
        """``size`` undefined float32 numbers."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, dtype=np.float32)
        if memory.size < size:
            memory = np.empty(size, dtype=np.float32)
        return np.asarray(_Lent(memory, self._free))[:size]


class PnccRenderer:
    """Draws samples of one model; the bases are laid out once for a batched product."""

    def __init__(self, model: LinearModel, unit_m: float, batch: int = BATCH) -> None:
        """Prepare a model.

        Args:
            model: The 3DMM; without directions every face is the mean.
            unit_m: Metres per unit of the model.
            batch: Samples multiplied together, more of them in less time each.
        """
        self.batch = batch
        count = len(model.mean_shape)
        self.to_mm = 1000.0 * unit_m
        self.mean_mm = (model.mean * self.to_mm).astype(np.float32)
        self.code = pncc_code(model.mean_shape)
        self.faces = np.ascontiguousarray(model.faces, dtype=np.int32)
        self.sizes = model.shape_basis.shape[2], model.expression_basis.shape[2]
        bases = [
            np.asarray(basis, dtype=np.float32).reshape(3 * count, -1)
            for basis in (model.shape_basis, model.expression_basis)
        ]
        directions = np.concatenate(bases, axis=1).T * np.float32(self.to_mm)
        self._directions = Directions(directions)
        places = (3 * model.keypoints[:, None] + np.arange(3)).ravel()
        self._keypoints_mm = self.mean_mm.ravel()[places]
        self._keypoint_directions = np.ascontiguousarray(directions[:, places])
        # Products not in use: fresh memory would cost a seventh of the multiplication.
        self._spare: deque[np.ndarray] = deque()
        self._pictures, self._crops = _Pool(), _Pool()

    def _coefficients(self, sample: Sample) -> Float[np.ndarray, " n"]:
        row = np.zeros(sum(self.sizes), dtype=np.float32)
        for start, size, given, name in (
            (0, self.sizes[0], sample.shape, "identity"),
            (self.sizes[0], self.sizes[1], sample.expression, "expression"),
        ):
            if size and len(given) > size:
                raise ValueError(
                    f"the model has {size} {name} directions, the sample {len(given)} coefficients;"
                    " use the basis that the sample was fitted with"
                )
            row[start : start + min(size, len(given))] = given[:size]
        return row

    def checked(self, sample: Sample) -> Sample:
        """Return ``sample`` if the model can draw it.

        Raises:
            ValueError: It has more coefficients than the model directions, or NaN.
        """
        if not np.isfinite(self._coefficients(sample)).all():
            raise ValueError("the sample has coefficients that are not finite")
        return sample

    def keypoints_px(self, sample: Sample) -> Float[np.ndarray, "68 2"]:
        """The model's 68 keypoints in the sample's photograph, hidden ones too.

        Their contour lies on the head; points annotated in a photograph follow the visible
        silhouette instead, so that only points 17-67 can be compared with these.

        Raises:
            ValueError: The sample has more coefficients than the model directions.
        """
        moved = self._keypoints_mm + self._coefficients(sample) @ self._keypoint_directions
        return project_300w_lp(moved.reshape(-1, 3) / self.to_mm, sample.pose, sample.height)

    def offsets_mm(self, samples: list[Sample]) -> Float[np.ndarray, "b V 3"]:
        """Displacements from the mean face, float32, whose bits depend on the sample alone.

        Raises:
            ValueError: A sample has more coefficients than the model directions.
        """
        parts = [offsets.copy() for _, offsets in self._products(samples)]
        if not parts:
            return np.empty((0, *self.mean_mm.shape), dtype=np.float32)
        return np.concatenate(parts)

    def _products(self, samples: list[Sample]) -> Iterator[tuple[int, Float[np.ndarray, "b V 3"]]]:
        """Number of the first sample and offsets of each batch, valid until the next."""
        try:
            product = self._spare.pop()
        except IndexError:
            product = self._directions.room(self.batch)
        try:
            for start in range(0, len(samples), self.batch):
                part = samples[start : start + self.batch]
                rows = np.stack([self._coefficients(sample) for sample in part])
                offsets = self._directions.times(rows, product)
                yield start, offsets.reshape(len(part), *self.mean_mm.shape)
        finally:
            self._spare.append(product)

    def _surfaces(
        self, samples: list[Sample], windows: list[Window] | None
    ) -> Iterator[tuple[Surface, Float[np.ndarray, "V 3"], int, int]]:
        """Surface, offsets, rows and columns of each sample."""
        if windows is not None and len(windows) != len(samples):
            raise ValueError(f"expected one window per sample, got {len(windows)}, {len(samples)}")
        for start, offsets in self._products(samples):
            for index, offset in enumerate(offsets, start):
                window = None if windows is None else windows[index]
                projection, height, width = self._view(samples[index], window)
                surface = Surface(self.mean_mm, offset, self.faces, projection, height, width)
                yield surface, offset, height, width

    def _view(self, sample: Sample, window: Window | None) -> tuple[Projection, int, int]:
        """Camera (px per mm), rows and columns of one picture."""
        scale, x, y = (float(part) for part in camera_300w_lp(sample.pose, sample.height))
        height, width = sample.height, sample.width
        if window is not None:
            zoom = window.size / window.side
            scale, x, y = scale * zoom, (x - window.left) * zoom, (y - window.top) * zoom
            height = width = window.size
        axes = np.array([[1.0], [-1.0], [1.0]]) * (scale / self.to_mm)
        linear, origin = axes * rotation_300w_lp(sample.pose), np.array([x, y, 0.0])
        if window is not None and window.turn_rad:
            cosine, sine = np.cos(window.turn_rad), np.sin(window.turn_rad)
            turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
            middle = np.array([window.size / 2, window.size / 2, 0.0])
            linear, origin = turn @ linear, middle + turn @ (origin - middle)
        return Projection(linear, origin), height, width

    def crops(self, samples: list[Sample], windows: list[Window] | None = None) -> Iterator[Crop]:
        """Draw samples as :meth:`render` does, each in the rectangle that it needs.

        Raises:
            ValueError: A sample does not fit the model, or the counts differ.
        """
        for surface, offset, height, width in self._surfaces(samples, windows):
            top, left, _, _ = surface.rectangle
            mask = surface.ids >= 0
            lengths = self._crops(PLANES * int(np.count_nonzero(mask))).reshape(-1, PLANES)
            surface.interpolate_seen(self.mean_mm, offset, lengths)
            yield Crop(lengths, mask, top, left, height, width)

    def render(self, samples: list[Sample], windows: list[Window] | None = None) -> list[PnccMaps]:
        """Draw samples, each at its photograph's size or through its window.

        Args:
            samples: What to draw.
            windows: One per sample; None draws whole photographs.

        Returns:
            One ``PnccMaps`` per sample.

        Raises:
            ValueError: A sample does not fit the model, or the counts differ.
        """
        maps = []
        views = windows if windows is not None else samples
        sizes = [
            (view.size, view.size) if isinstance(view, Window) else (view.height, view.width)
            for view in views
        ]
        block = self._pictures(PLANES * sum(height * width for height, width in sizes))
        start = 0
        for surface, offset, height, width in self._surfaces(samples, windows):
            stop = start + PLANES * height * width
            lengths = block[start:stop].reshape(height, width, PLANES)
            lengths.fill(0.0)
            start = stop
            mask = np.zeros((height, width), dtype=bool)
            top, left, rows, columns = surface.rectangle
            box = np.s_[top : top + rows, left : left + columns]
            surface.interpolate(self.mean_mm, offset, lengths)
            np.greater_equal(surface.ids, 0, out=mask[box])
            maps.append(PnccMaps(lengths[..., :3], lengths[..., 3:], mask))
        return maps

    def colours(
        self, sample: Sample, window: Window | None = None
    ) -> tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """The PNCC code picture in [0, 1] of one sample, and where it is."""
        windows = None if window is None else [window]
        surface, _, height, width = next(self._surfaces([sample], windows))
        values = np.zeros((height, width, PLANES), dtype=np.float32)
        mask = np.zeros((height, width), dtype=bool)
        top, left, rows, columns = surface.rectangle
        box = np.s_[top : top + rows, left : left + columns]
        surface.interpolate(self.code, self.code, values)
        mask[box] = surface.ids >= 0
        return values[..., :3], mask


def render(
    model: LinearModel, unit_m: float, samples: list[Sample], windows: list[Window] | None = None
) -> list[PnccMaps]:
    """Draw samples of ``model``; keep a :class:`PnccRenderer` to draw many times."""
    return PnccRenderer(model, unit_m).render(samples, windows)
