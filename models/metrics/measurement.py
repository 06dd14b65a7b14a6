"""Scan-to-mesh error of a reconstructed face, by every protocol of the field.

One core, :class:`Target`, does what all of them do: crop the scan, align the prediction to it,
refine, measure. What differs is a :class:`models.metrics.protocols.Protocol`.

Departures from the public NoW code, each without effect on predictions it handles:
    * The refinement is a damped Gauss-Newton run to convergence instead of a dog-leg that stops
      at a relative gain of 1e-4 (the median moves by at most 0.003 mm).
    * The metric alignment takes its translation from a Procrustes fit *without* scale. The public
      code keeps the translation of the fit with scale, so its start, and sometimes its result,
      depends on where the predicted mesh's origin lies.
    * Faces without area are dropped; their points belong to their neighbours too.

Frames: ``prediction`` is the predicted mesh's own, ``scan`` the scan's, in millimetres.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from models.geometry import ClosestPointIndex
from models.metrics._normal_equations import face_normals
from models.metrics.alignment import (
    MAX_STEPS,
    Pose,
    best_start,
    landmark_similarity,
    refine,
    with_scale,
)
from models.metrics.checks import (
    require_finite,
    require_indices,
    require_landmarks,
    require_overlap,
    usable_faces,
)
from models.metrics.protocols import UNITS_MM, Protocol
from models.metrics.region import (
    below_forehead,
    border_features,
    box_sides,
    closest_on_border,
    crop_sphere,
    nose_tip,
    spatial_order,
    within,
)
from models.metrics.statistics import image_error

SCALE_RANGE: Final = (0.7, 1.4)
"""Ratio of landmark scale to unit scale outside which the unit or the landmarks are doubtful."""

OTHER_SIZE: Final = 5.0
"""Ratio of sizes from which two surfaces are not both faces. Where a protocol fixes such a scale
nothing is refined: every scan vertex is as far from one part of a speck as from another."""

LANDMARK_RMS_MM: Final = 10.0
"""Landmark misfit from which the landmarks' order, or the pose of mesh or landmarks, is doubted."""

OFF_SURFACE_MM: Final = 8.0
"""Landmarks farther from their own mesh than this belong to another mesh, frame or unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The distances of one scan to one prediction, and how they came about.

    Attributes:
        distances_mm: (k,) one per measured scan vertex, in the order of ``kept``.
        kept: (k,) indices of the measured scan vertices, ascending.
        reverse_mm: (r,) from the prediction's vertices to the scan, where the protocol is
            symmetric; else empty.
        error_mm: The protocol's one number for this image.
        scale: Of x_scan = scale R x_prediction + t; mm per prediction unit.
        rotation: R (3, 3); its determinant is -1 when the landmarks are mirrored.
        translation: t (3,) mm.
        landmark_scale: Scale of the landmark fit, mm per prediction unit. Where one point is all
            there is, the unit's; or, if no face has that size, the one that makes prediction and
            cropped scan equally large.
        landmark_rms_mm: Of the landmarks after the landmark fit.
        iterations: Accepted steps of the refinement.
        flags: Doubts about the input, in words; empty when there are none.
    """

    distances_mm: Float[np.ndarray, " k"]
    kept: Int[np.ndarray, " k"]
    reverse_mm: Float[np.ndarray, " r"]
    error_mm: float
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]
    landmark_scale: float
    landmark_rms_mm: float
    iterations: int
    flags: tuple[str, ...]


def scan_to_mesh(
    points: Float[np.ndarray, "n 3"],
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
) -> Float[np.ndarray, " n"]:
    """Exact unsigned distance of every point to the surface of a triangle mesh.

    Args:
        points: In the mesh's frame and unit; no alignment happens here.
        vertices: Of the mesh.
        faces: Of the mesh; those without area are ignored.

    Returns:
        Distances in the given unit.

    Raises:
        ValueError: Not finite, or no face with area.
    """
    require_finite("points", points)
    whole, _ = usable_faces("prediction", vertices, faces)
    return ClosestPointIndex(vertices, whole).query(points).distances


def align_and_measure(
    scan_vertices: Float[np.ndarray, "n 3"],
    scan_faces: Int[np.ndarray, "f 3"],
    scan_landmarks: Float[np.ndarray, "m 3"],
    prediction_vertices: Float[np.ndarray, "v 3"],
    prediction_faces: Int[np.ndarray, "g 3"],
    prediction_landmarks: Float[np.ndarray, "l 3"],
    protocol: Protocol,
    unit: str,
) -> Measurement:
    """Crop the scan, bring the prediction to it, and measure every kept scan vertex.

    Short for one :class:`Target` that measures one prediction; keep the target where there are
    more. See there for arguments and errors.
    """
    target = Target(scan_vertices, scan_faces, scan_landmarks, protocol)
    return target.measure(prediction_vertices, prediction_faces, prediction_landmarks, unit)


@dataclass(frozen=True, slots=True)
class _Surface:
    """A posed prediction: where it is, its tree, and unit face normals."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    normals: Float[np.ndarray, "f 3"]
    index: ClosestPointIndex


class Target:
    """One scan made ready for one protocol: its crop, its order, its trees.

    Making it costs about as much as measuring one prediction; any number of predictions can then
    be measured on it. It learns the last prediction's triangles, so that the next one of the same
    topology is sooner ready. Results do not depend on what was measured before.
    """

    def __init__(
        self,
        vertices: Float[np.ndarray, "n 3"],
        faces: Int[np.ndarray, "f 3"],
        landmarks: Float[np.ndarray, "m 3"],
        protocol: Protocol,
    ) -> None:
        """Check and crop the scan.

        Args:
            vertices: (n, 3) mm.
            faces: (f, 3) of the scan. May be none where distances go from the scan only.
            landmarks: mm. The seven of :data:`models.metrics.LANDMARK_NAMES`; or 1 (nose tip), 51
                or 68 (iBUG) where the protocol goes by the nose tip; or any for correspondence.
            protocol: What to do.

        Raises:
            ValueError: Empty or non-finite input, faces out of range, landmarks that the protocol
                cannot use, no scan vertex near them, or no surface where the protocol needs one.
        """
        require_finite("scan vertices", vertices)
        require_landmarks("scan landmarks", landmarks, protocol)
        require_indices("scan", faces, len(vertices))
        self.protocol = protocol
        self._scan = np.asarray(vertices, np.float64)
        self._marks = np.asarray(landmarks, np.float64)
        self._faces = np.asarray(faces, np.int64)
        self._flags: list[str] = []
        self._tree: ClosestPointIndex | None = None
        if protocol.landmarks == "correspondence":
            return
        self._kept = self._crop()
        self._middle = self._scan[self._kept].mean(axis=0)
        self._order = spatial_order(self._scan[self._kept])
        self._points = self._scan[self._kept][self._order] - self._middle
        off = _farthest_mm(self._marks, self._scan[self._kept])
        if off > OFF_SURFACE_MM:
            self._flags.append(
                f"landmarks: a landmark of the scan is {off:.0f} mm from every scan vertex; "
                "landmarks of another scan, frame or unit?"
            )
        if protocol.direction == "symmetric" or protocol.overlap:
            self._prepare_surface()

    def measure(
        self,
        vertices: Float[np.ndarray, "v 3"],
        faces: Int[np.ndarray, "g 3"],
        landmarks: Float[np.ndarray, "l 3"],
        unit: str,
        *,
        scale_mm: float | None = None,
        pairs: tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]] | None = None,
    ) -> Measurement:
        """Bring one prediction to the scan and measure it.

        Landmarks give a similarity (reflection allowed, as the challenge does; it is flagged). One
        point alone gives a place, and the best of 27 turned starts. The refinement then minimises
        sum_i d_i^2 over scale, rotation and translation (7 parameters, or 6 where the protocol
        fixes scale), d_i being the distance of kept scan vertex i to the nearest point of the
        predicted surface: no sampling, weights, cut-off or landmarks. From three landmarks on the
        result does not depend on the frame that the prediction is given in.

        Args:
            vertices: (v, 3) in ``unit``.
            faces: (g, 3); those without area are dropped and flagged.
            landmarks: In ``unit``, as the scan's; where the protocol goes by the nose tip they may
                be another number of points.
            unit: ``m``, ``cm`` or ``mm``. Where scale is estimated it serves as a check, and as
                the start where the nose tip is all there is. One that makes the prediction
                ``OTHER_SIZE`` times larger or smaller than the scan is flagged; where scale is
                fixed the landmarks' pose is then measured as it is.
            scale_mm: mm per unit, where the protocol's scale is global.
            pairs: For correspondence: prediction vertices and the scan vertices they correspond
                to; none means equal numbers.

        Raises:
            ValueError: Input of another kind, empty, not finite, or without surface.
        """
        if unit not in UNITS_MM:
            raise ValueError(f"expected a unit among {', '.join(UNITS_MM)}, got {unit!r}")
        require_finite("prediction vertices", vertices)
        fixed = self._fixed_scale(unit, scale_mm)
        if self.protocol.landmarks == "correspondence":
            return self._corresponding(np.asarray(vertices, np.float64), unit, fixed, pairs)
        require_landmarks("prediction landmarks", landmarks, self.protocol)
        whole, dropped = usable_faces("prediction", vertices, faces)
        marks = np.asarray(landmarks, np.float64)
        flags = list(self._flags)
        size = _extent(np.asarray(vertices, np.float64)[whole.ravel()])
        fit, landmark_scale, rms, known = self._landmark_fit(marks, unit, fixed, size, flags)
        # From here on everything is relative to the crop's middle, so that rounding and the steps'
        # conditioning do not see where either mesh has its origin.
        shift = Pose(1.0, np.eye(3), -self._middle)
        surface = self._posed(shift.after(fit).apply(np.asarray(vertices, np.float64)), whole)
        off = float(surface.index.query(shift.after(fit).apply(marks)).distances.max())
        off *= landmark_scale / fit.scale  # in the scan's size, whatever the unit makes of it
        if off > OFF_SURFACE_MM:
            flags.append(
                f"landmarks: a landmark of the prediction is {off:.0f} mm from its surface; "
                "landmarks of another mesh, pose or unit?"
            )
        if dropped:
            flags.append(f"degenerate: {dropped} faces without area dropped from the prediction")
        if _other_size(landmark_scale / fit.scale) and self.protocol.refined:
            flags.append(
                "refinement: left out, at the given scale prediction and scan are not of one size"
            )
            pose, distances, steps = Pose.identity(), None, 0
        else:
            pose, distances, steps = self._refined(surface, known, flags, scaled=fixed is None)
        total = Pose(1.0, np.eye(3), self._middle).after(pose.after(shift.after(fit)))
        kept, forward, reverse = self._distances(surface, pose, distances)
        return Measurement(
            distances_mm=forward,
            kept=kept,
            reverse_mm=reverse,
            error_mm=image_error(forward, reverse, self.protocol.statistic),
            scale=total.scale,
            rotation=total.rotation,
            translation=total.translation,
            landmark_scale=landmark_scale,
            landmark_rms_mm=rms,
            iterations=steps,
            flags=tuple(flags),
        )

    def _crop(self) -> Int[np.ndarray, " k"]:
        protocol = self.protocol
        if protocol.crop_factor > 0:
            kept = within(self._scan, *crop_sphere(self._marks, protocol.crop_factor))
        elif protocol.crop_mm > 0:
            kept = within(self._scan, nose_tip(self._marks), protocol.crop_mm)
        else:
            kept = np.arange(len(self._scan))
        if protocol.forehead_mm > 0:
            kept = kept[below_forehead(self._scan[kept], self._marks, protocol.forehead_mm)]
        if len(kept) == 0:
            raise ValueError("expected scan vertices below the forehead, got none; check the scan")
        return kept

    def _prepare_surface(self) -> None:
        """Tree, normals and borders of the cropped scan, relative to its middle."""
        inside = np.zeros(len(self._scan), dtype=bool)
        inside[self._kept] = True
        cropped = self._faces[inside[self._faces].all(axis=1)]
        if len(cropped) == 0:
            raise ValueError(
                f"expected a scan with faces for {self.protocol.name}, got none inside the crop; "
                "this protocol measures to the scan's surface too"
            )
        whole, _ = usable_faces("scan", self._scan, cropped)
        self._cropped = whole
        centred = self._scan - self._middle
        self._tree = ClosestPointIndex(centred, whole)
        self._face_normals = _face_normals(centred, whole)
        self._vertex_normals = _vertex_normals(centred, whole)
        self._borders = border_features(centred, whole)

    def _fixed_scale(self, unit: str, scale_mm: float | None) -> float | None:
        """Scale in mm per unit where the protocol fixes it; None where it is estimated."""
        if self.protocol.scale == "unit":
            return UNITS_MM[unit]
        if self.protocol.scale == "estimated":
            return None
        if scale_mm is None or not 0.0 < scale_mm < np.inf:
            raise ValueError(
                f"expected the one scale of all predictions (mm per unit), got {scale_mm}; a "
                "global scale needs a folder of predictions"
            )
        return scale_mm

    def _landmark_fit(
        self,
        marks: Float[np.ndarray, "l 3"],
        unit: str,
        fixed: float | None,
        size: float,
        flags: list[str],
    ) -> tuple[Pose, float, float, bool]:
        """Start, scale by the landmarks, their RMS in mm, and whether the turn is known.

        ``size`` is the prediction's extent in its unit.
        """
        target = self._marks
        if self.protocol.landmarks == "nose-tip" and len(marks) != len(target):
            both = {len(marks), len(target)} == {51, 68}
            marks = marks[17:] if both and len(marks) == 68 else marks
            target = target[17:] if both and len(target) == 68 else target
            if not both:
                marks, target = nose_tip(marks)[None], nose_tip(target)[None]
        if len(marks) == 1:
            scale = UNITS_MM[unit]
            ratio = scale * size / max(_extent(self._scan[self._kept]), 1e-12)
            if _other_size(ratio):
                flags.append(_scale_flag("its extent", ratio, unit))
                scale /= ratio
            start = Pose(fixed or scale, np.eye(3), np.zeros(3))
            return with_scale(start, start.scale, marks, target), scale, 0.0, False
        fit = landmark_similarity(marks, target)
        scale = fit.scale
        if fixed is not None:
            fit = with_scale(fit, fixed, marks, target)
        rms = float(np.sqrt(((fit.apply(marks) - target) ** 2).sum(axis=1).mean()))
        flags += _fit_flags(fit, scale, rms, unit)
        return fit, scale, rms, True

    def _posed(self, vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "g 3"]) -> _Surface:
        """The surface with its tree; that of the last topology is moved instead of built."""
        last: tuple[Int[np.ndarray, "g 3"], int, ClosestPointIndex] | None
        last = getattr(self, "_last", None)
        if last is not None and last[1] == len(vertices) and np.array_equal(last[0], faces):
            index = last[2].moved(vertices)
        else:
            index = ClosestPointIndex(vertices, faces)
            self._last = (faces.copy(), len(vertices), index)
        return _Surface(vertices, faces, _face_normals(vertices, faces), index)

    def _refined(
        self, surface: _Surface, known: bool, flags: list[str], *, scaled: bool
    ) -> tuple[Pose, Float[np.ndarray, " k"] | None, int]:
        """The pose after refinement, distances at it where they are known, and the steps."""
        if not self.protocol.refined:
            return Pose.identity(), None, 0
        start = None
        if not known:
            pivot = nose_tip(self._marks) - self._middle
            start = best_start(self._points, surface.index, surface.normals, pivot, scaled=scaled)
        found = refine(self._points, surface.index, surface.normals, scaled=scaled, start=start)
        if not found.converged:
            flags.append(f"refinement: still moving after {MAX_STEPS} steps")
        return found.pose, found.distances, found.steps

    def _distances(
        self, surface: _Surface, pose: Pose, distances: Float[np.ndarray, " k"] | None
    ) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " r"]]:
        """Measured scan vertices, their distances, and those of the other direction."""
        protocol = self.protocol
        plain = protocol.distance == "surface" and not protocol.overlap
        if distances is None or not plain:
            nearest = surface.index.query(pose.undo(self._points))
            offsets = self._points - pose.apply(nearest.points)
            normals = surface.normals[nearest.faces] @ pose.rotation.T
            distances = _lengths(offsets, normals, plane=protocol.distance == "plane")
        chosen = np.ones(len(self._points), dtype=bool)
        if protocol.overlap:
            outside = border_features(surface.vertices, surface.faces)
            chosen = ~closest_on_border(surface.faces, outside, nearest.faces, nearest.bary)
            own = self._vertex_normals[self._kept][self._order]
            chosen &= (own * normals).sum(axis=1) > 0
            require_overlap(chosen)
        places = np.argsort(self._order[chosen], kind="stable")
        kept = self._kept[self._order[chosen][places]]
        reverse = np.zeros(0)
        if protocol.direction == "symmetric":
            reverse = self._reverse(surface, pose)
        return kept, distances[chosen][places], reverse

    def _reverse(self, surface: _Surface, pose: Pose) -> Float[np.ndarray, " r"]:
        """Distances from the prediction's vertices to the cropped scan, within its sphere."""
        assert self._tree is not None
        used = np.unique(surface.faces)
        points = pose.apply(surface.vertices[used])
        protocol = self.protocol
        if protocol.crop_mm > 0:
            centre = nose_tip(self._marks) - self._middle
            near = np.linalg.norm(points - centre, axis=1) <= protocol.crop_mm
        else:
            near = np.ones(len(points), dtype=bool)
        if protocol.forehead_mm > 0:
            near &= below_forehead(points + self._middle, self._marks, protocol.forehead_mm)
        if not near.any():
            raise ValueError(
                "expected vertices of the prediction inside the scan's crop, got none; it was not "
                "aligned: check its landmarks and unit"
            )
        points = points[near]
        nearest = self._tree.query(points)
        normals = self._face_normals[nearest.faces]
        lengths = _lengths(points - nearest.points, normals, plane=protocol.distance == "plane")
        if not protocol.overlap:
            return lengths
        own = _vertex_normals(surface.vertices, surface.faces)[used][near] @ pose.rotation.T
        chosen = ~closest_on_border(self._cropped, self._borders, nearest.faces, nearest.bary)
        chosen &= (own * normals).sum(axis=1) > 0
        require_overlap(chosen)
        return lengths[chosen]

    def _corresponding(
        self,
        vertices: Float[np.ndarray, "v 3"],
        unit: str,
        fixed: float | None,
        pairs: tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]] | None,
    ) -> Measurement:
        """Similarity over corresponding vertices, then the distance of each pair."""
        if pairs is None:
            if len(vertices) != len(self._scan):
                raise ValueError(
                    f"expected a prediction with the truth's {len(self._scan)} vertices, got "
                    f"{len(vertices)}; give the pairs of corresponding vertices"
                )
            pairs = (np.arange(len(vertices)), np.arange(len(vertices)))
        ours, theirs = (np.asarray(numbers, np.int64) for numbers in pairs)
        for what, numbers, count in (
            ("prediction", ours, len(vertices)),
            ("truth", theirs, len(self._scan)),
        ):
            if len(numbers) < 3 or numbers.min() < 0 or numbers.max() >= count:
                raise ValueError(
                    f"expected at least 3 corresponding vertices of the {what} within "
                    f"0..{count - 1}, got {len(numbers)}"
                    + (f" within {numbers.min()}..{numbers.max()}" if len(numbers) else "")
                )
        source, target = vertices[ours], self._scan[theirs]
        if np.ptp(source, axis=0).max() == 0:
            raise ValueError("expected a prediction of some extent, got one point")
        fit = landmark_similarity(source, target)
        scale, flags = fit.scale, list(self._flags)
        if fixed is not None:
            fit = with_scale(fit, fixed, source, target)
        offsets = fit.apply(source) - target
        distances = np.sqrt((offsets**2).sum(axis=1))
        rms = float(np.sqrt((distances**2).mean()))
        flags += _fit_flags(fit, scale, rms, unit)
        order = np.argsort(theirs, kind="stable")
        nothing = np.zeros(0)
        return Measurement(
            distances_mm=distances[order],
            kept=theirs[order],
            reverse_mm=nothing,
            error_mm=image_error(distances, nothing, self.protocol.statistic),
            scale=fit.scale,
            rotation=fit.rotation,
            translation=fit.translation,
            landmark_scale=scale,
            landmark_rms_mm=rms,
            iterations=0,
            flags=tuple(flags),
        )


def _fit_flags(fit: Pose, landmark_scale: float, rms_mm: float, unit: str) -> list[str]:
    flags = []
    if np.linalg.det(fit.rotation) < 0:
        flags.append("mirrored: the landmarks fit only after a reflection; left and right swapped?")
    ratio = landmark_scale / UNITS_MM[unit]
    if not SCALE_RANGE[0] <= ratio <= SCALE_RANGE[1]:
        flags.append(_scale_flag("the landmarks", 1 / ratio, unit))
    elif rms_mm > LANDMARK_RMS_MM:
        flags.append(
            f"landmarks: they fit those of the scan to {rms_mm:.0f} mm only; another order, or "
            "another expression?"
        )
    return flags


def _scale_flag(by: str, times: float, unit: str) -> str:
    return (
        f"scale: by {by} the prediction is {times:.4g} times the scan's size if its unit is "
        f"{unit}; wrong unit or landmarks?"
    )


def _other_size(ratio: float) -> bool:
    return not 1 / OTHER_SIZE < ratio < OTHER_SIZE


def _extent(points: Float[np.ndarray, "n 3"]) -> float:
    """Diagonal of the box around points."""
    return float(np.linalg.norm(box_sides(points)))


def _face_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3"]:
    normals, doubled = face_normals(np.ascontiguousarray(vertices), faces)
    normals /= doubled[:, None]
    return normals


def _vertex_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    """Sums of face normals by area, not normalised; zero where a vertex has no face."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.stack(
        [
            np.bincount(faces.ravel(), np.repeat(normals[:, a], 3), minlength=len(vertices))
            for a in range(3)
        ],
        axis=1,
    )


def _lengths(
    offsets: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], *, plane: bool
) -> Float[np.ndarray, " n"]:
    if plane:
        return np.abs((offsets * normals).sum(axis=1))
    return np.sqrt((offsets**2).sum(axis=1))


def _farthest_mm(points: Float[np.ndarray, "m 3"], cloud: Float[np.ndarray, "n 3"]) -> float:
    """Largest distance of a point to its nearest vertex."""
    squared = [((cloud - point) ** 2).sum(axis=1).min() for point in points]
    return float(np.sqrt(max(squared)))
