"""Landmarks of a scan that nobody has marked: pictures of it, a face in them, its points lifted.

A coarse copy of the scan is drawn from all around until the face detector answers. From there the
68 points that the landmark provider finds are lifted to the surface, they say where the front is,
and the front is drawn again, at last from three sides whose answers must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial.transform import Rotation

from models.face.landmarks import canonical_box
from models.geometry.alignment import Similarity, align_similarity
from models.geometry.mesh import vertex_normals
from models.geometry.registration import HEAD_EXTENT_MM, UNITS_MM, Scan
from models.geometry.template import RegistrationModel
from models.geometry.views import Camera, clustered, draw, lift, sphere_of_views
from models.geometry.winding import convexity
from stages.landmarking.landmark_predictor import FILE_NAME, FaceDetector, grey_of
from stages.landmarking.landmark_providers import NoFaceError, Provider, provider_of
from stages.runtime.params import LandmarksParams, ViewsParams

INNER = slice(17, 68)
DETECTOR_PX = 80
"""Side of the smallest face that the detector looks for; a smaller picture holds none."""
USUAL_MM = 300.0
"""Extent given to a scan whose numbers fit a head in no unit."""
TRIM = 0.8
"""Share of the landmarks, the closest, by which the head's frame is taken."""


MIRROR_RMS = 0.6
"""A mirror image that leaves less of the distance than this is the face, rather than noise."""


@dataclass(frozen=True, slots=True)
class ScanLandmarks:
    """Landmarks lifted from pictures.

    Attributes:
        points: (68, 3) iBUG order, the scan's frame and unit; NaN where views disagree or see
            nothing.
        confidence: The provider's mean score over the last pictures.
        rms_mm: Distance of the inner landmarks to the mean head's after the best similarity.
        spread_mm: Median distance between the answers of the last pictures.
        doubts: Why the points may be wrong, empty where nothing speaks against them.
    """

    points: Float[np.ndarray, "68 3"]
    confidence: float
    rms_mm: float
    spread_mm: float
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A scan ready to be drawn, millimetres (or what its size suggests), in its own axes."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colors: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Hit:
    """A detected face: its score, box (px) and the camera that saw it."""

    score: float
    box: np.ndarray
    camera: Camera

    def angle_deg(self, other: "_Hit") -> float:
        """Angle between the two cameras."""
        turn = self.camera.rotation @ other.camera.rotation.T
        return float(np.degrees(Rotation.from_matrix(turn).magnitude()))


def _clearest(detect: Callable[[np.ndarray], _Hit | None], hit: _Hit, step_deg: float) -> _Hit:
    """The clearest of a hit and its six neighbours a turn about a camera axis away."""
    best = hit
    for axis in "xyz":
        for angle in (-step_deg, step_deg):
            turn = Rotation.from_euler(axis, angle, degrees=True).as_matrix()
            other = detect(turn @ hit.camera.rotation)
            if other is not None and other.score > best.score:
                best = other
    return best


class ScanLandmarker:
    """Finds the landmarks of scans by drawing them."""

    def __init__(self, provider: Provider, p: ViewsParams) -> None:
        """Keep the provider and prepare the face detector.

        Args:
            provider: Answers a packed photograph with 68 points.
            p: How the scan is looked at.
        """
        self._provider = provider
        self._p = p
        self._detect = FaceDetector(min_score=p.min_score, max_side_px=10_000)

    @classmethod
    def load(cls, model: Path, landmarks: LandmarksParams, p: ViewsParams) -> "ScanLandmarker":
        """The landmarker with the provider that photographs get.

        Args:
            model: Folder of the trained predictor.
            landmarks: Names the provider; points from files exist for photographs only, so that
                ``files`` means the trained predictor here.
            p: How the scan is looked at.

        Raises:
            FileNotFoundError: The predictor or a weight file is missing.
            ValueError: It is none.
        """
        name = "dlib" if landmarks.provider == "files" else landmarks.provider
        if name == "dlib" and not (model / FILE_NAME).is_file():
            raise FileNotFoundError(f"expected {model / FILE_NAME}; run the landmark_model stage")
        return cls(provider_of(name, landmarks, model), p)

    def __call__(
        self, scan: Scan, colors: UInt8[np.ndarray, "n 3"] | None, model: RegistrationModel
    ) -> ScanLandmarks:
        """Find the landmarks of one scan.

        Args:
            scan: Finite vertices with triangles.
            colors: RGB per vertex, or None.
            model: Says where the landmarks lie on the mean head.

        Raises:
            NoFaceError: No picture of it shows a face whose points are a face's in space.
        """
        scale = millimetres(scan)
        vertices = scale * np.asarray(scan.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(scan.faces, dtype=np.int64)
        if convexity(vertices, faces) < 0:
            faces = np.ascontiguousarray(faces[:, ::-1])
        drawn = _Drawn(vertices, faces, vertex_normals(vertices, faces), colors)
        marks = model.landmarks
        known = 1.0 if scan.unit in UNITS_MM else None
        hits = self._search(vertices, faces)
        if not hits:
            raise NoFaceError("no face was found in pictures of the scan from all around")
        best: ScanLandmarks | None = None
        why = ""
        for hit in hits[: self._p.tries]:
            try:
                found = self._settle(drawn, hit, marks, known)
            except NoFaceError as error:
                why = why or str(error)
                continue
            if best is None or len(found.doubts) < len(best.doubts):
                best = found
            if not best.doubts:
                break
        if best is None:
            raise NoFaceError(f"what looks like a face in pictures of the scan is none: {why}")
        return ScanLandmarks(
            best.points / scale, best.confidence, best.rms_mm, best.spread_mm, best.doubts
        )

    def _search(self, vertices: np.ndarray, faces: np.ndarray) -> list["_Hit"]:
        """Faces detected in pictures from all around, the clearest first.

        A detection is followed uphill by small turns; a face seen from in front is clear, and
        what only looks like one from somewhere stays faint. The first clear one ends the search.
        """
        p = self._p
        coarse, triangles = clustered(vertices, faces, p.cell_mm)
        normals = vertex_normals(coarse, triangles)
        low, high = np.percentile(coarse, [1, 99], axis=0)
        middle = 0.5 * (low + high)
        reach = float(np.linalg.norm(coarse - middle, axis=1).max())
        size = int(2 * min(reach, p.search_reach_mm) * p.search_px_per_mm)
        if size < DETECTOR_PX or len(triangles) == 0:
            return []

        def detect(rotation: np.ndarray) -> _Hit | None:
            camera = Camera(rotation, middle, p.search_px_per_mm, size)
            image = draw(coarse, triangles, normals, camera, inside=False).image
            faces_seen = self._detect(grey_of(image))
            return _Hit(faces_seen[0][1], faces_seen[0][0], camera) if faces_seen else None

        found: list[_Hit] = []
        for rotation in sphere_of_views(p.rolls)[_scattered(26 * p.rolls)]:
            hit = detect(rotation)
            if hit is None or any(hit.angle_deg(other) < p.same_deg for other in found):
                continue
            for step_deg in p.climb_deg:
                while (better := _clearest(detect, hit, step_deg)).score > hit.score:
                    hit = better
            found = [other for other in found if hit.angle_deg(other) >= p.same_deg] + [hit]
            if hit.score > p.sure_score:
                break
        return sorted(found, key=lambda hit: -hit.score)

    def _settle(
        self,
        drawn: _Drawn,
        hit: "_Hit",
        marks: Float[np.ndarray, "51 3"],
        known: float | None,
    ) -> ScanLandmarks:
        """From one detection to landmarks on which three views agree.

        Raises:
            NoFaceError: The points are no face's.
        """
        p = self._p
        placed = self._first_frame(drawn, hit, marks, known)
        for _ in range(p.passes):
            points, _ = self._front(drawn, placed, marks, 0.0)
            placed = head_frame(points[INNER], marks, known)
        answers = [
            self._front(drawn, placed, marks, yaw) for yaw in (-p.side_yaw_deg, 0.0, p.side_yaw_deg)
        ]
        points, spread = agreed(np.stack([found for found, _ in answers]), p.agree_mm)
        placed = head_frame(points[INNER], marks, known)
        confidence = float(np.mean([score for _, score in answers]))
        gone = float(np.isnan(points[INNER]).any(axis=1).mean())
        doubts = [
            f"{what} {value:.3g} exceeds {limit:.3g}"
            for what, value, limit in (
                ("landmarks' distance to the mean head's, mm,", placed.rms, p.max_rms_mm),
                ("distance between views, mm,", spread, p.max_spread_mm),
                ("share of landmarks on which views disagree", gone, p.max_missing),
            )
            if value > limit
        ]
        if confidence < p.min_confidence:
            doubts.append(f"confidence {confidence:.3g} is below {p.min_confidence:.3g}")
        return ScanLandmarks(points, confidence, placed.rms, spread, tuple(doubts))

    def _first_frame(
        self, drawn: _Drawn, hit: _Hit, marks: Float[np.ndarray, "51 3"], known: float | None
    ) -> Similarity:
        """The head's frame by the turn in the picture whose landmarks are most like a face's.

        The detector answers to faces turned about the axis of view by ``roll_deg`` as clearly
        as to upright ones; the landmark provider does not.

        Raises:
            NoFaceError: The points are no face's, whatever the turn.
        """
        best: Similarity | None = None
        why = ""
        middle = np.full((1, 2), 0.5 * hit.camera.size_px)
        zoom = self._p.px_per_mm / hit.camera.px_per_unit
        for roll_deg in (0.0, -self._p.roll_deg, self._p.roll_deg):
            turn = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
            close = Camera(
                turn @ hit.camera.rotation,
                hit.camera.target,
                self._p.px_per_mm,
                round(zoom * hit.camera.size_px),
            )
            centre = 0.5 * (hit.box[:2] + hit.box[2:]) - middle[0]
            # Pixels run down: a turn of the camera turns the picture the other way.
            moved = turn[:2, :2] @ (centre * [1, -1]) * [1, -1]
            half = 0.5 * (hit.box[2:] - hit.box[:2])
            box = zoom * np.concatenate([moved - half, moved + half]) + 0.5 * close.size_px
            try:
                points, _ = self._look(drawn, close, box)
                placed = head_frame(points[INNER], marks, known)
            except NoFaceError as error:
                why = why or str(error)
                continue
            if best is None or placed.rms < best.rms:
                best = placed
            if best.rms < self._p.sure_rms_mm:
                break
        if best is None:
            raise NoFaceError(why)
        return best

    def _front(
        self, drawn: _Drawn, placed: Similarity, marks: np.ndarray, yaw_deg: float
    ) -> tuple[np.ndarray, float]:
        """Landmarks as seen from in front of a placed head, or from its side."""
        p = self._p
        side = Rotation.from_euler("y", yaw_deg, degrees=True).as_matrix()
        ratio = placed.scale  # the picture shows the head as large whatever the scan's unit is
        camera = Camera(
            side @ placed.rotation,
            placed.invert(marks.mean(axis=0)[None])[0],
            p.px_per_mm * ratio,
            p.size_px,
            p.distance_mm / ratio,
        )
        inner = camera.project(placed.invert(marks))
        return self._look(drawn, camera, canonical_box(_with_jaw(inner)))

    def _look(
        self, drawn: _Drawn, camera: Camera, box: np.ndarray
    ) -> tuple[Float[np.ndarray, "68 3"], float]:
        """Draw, ask the provider for the face in ``box``, lift its answer."""
        view = draw(drawn.vertices, drawn.faces, drawn.normals, camera, drawn.colors, inside=False)
        found = self._provider(_row(view.image, box))
        jump = self._p.jump_px / camera.px_per_unit
        lifted = lift(
            found.points_px,
            view.ids,
            view.bary,
            drawn.vertices,
            drawn.faces,
            reach_px=self._p.reach_px,
            jump=jump,
        )
        return lifted, found.score


@cache
def landmarker_of(folder: Path, landmarks: str, views: str) -> ScanLandmarker:
    """The landmarker of this process, loaded once; both parameter sections as JSON."""
    return ScanLandmarker.load(
        folder,
        LandmarksParams.model_validate_json(landmarks),
        ViewsParams.model_validate_json(views),
    )


def guessed_unit(scan: Scan) -> str:
    """The declared unit, or the one that makes the scan as large as a head, or ``unknown``."""
    if scan.unit in UNITS_MM or len(scan.vertices) == 0:
        return scan.unit
    extent = float(np.ptp(scan.vertices, axis=0).max())
    for unit, scale in UNITS_MM.items():
        if HEAD_EXTENT_MM[0] < scale * extent < HEAD_EXTENT_MM[1]:
            return unit
    return "unknown"


def millimetres(scan: Scan) -> float:
    """Millimetres per scan unit: as declared, or what makes the scan as large as a head."""
    unit = guessed_unit(scan)
    if unit in UNITS_MM:
        return UNITS_MM[unit]
    return USUAL_MM / max(float(np.ptp(scan.vertices, axis=0).max()), 1e-12)


def head_frame(
    points: Float[np.ndarray, "51 3"], marks: Float[np.ndarray, "51 3"], scale: float | None
) -> Similarity:
    """Similarity to the mean head's frame, by the landmarks that fit it best.

    Args:
        points: Landmarks, NaN where missing.
        marks: The mean head's, mm.
        scale: Known scale, None estimates it.

    Raises:
        NoFaceError: Too few points, or their mirror image is the face.
    """
    given = np.flatnonzero(np.isfinite(points).all(axis=1))
    if len(given) < len(points) // 3:
        raise NoFaceError(f"only {len(given)} of {len(points)} landmarks lie on the scan")
    kept = given
    try:
        for _ in range(3):
            placed = align_similarity(points[kept], marks[kept], fixed_scale=scale)
            gap = np.linalg.norm(placed.apply(points[given]) - marks[given], axis=1)
            order = np.argsort(gap, kind="stable")[: int(np.ceil(TRIM * len(given)))]
            kept = np.sort(given[order])
    except ValueError as error:
        raise NoFaceError(f"the landmarks do not place the scan: {error}") from error
    mirror = points[kept] * [-1.0, 1.0, 1.0]
    if placed.mirrored and align_similarity(mirror, marks[kept]).rms < MIRROR_RMS * placed.rms:
        raise NoFaceError("the landmarks are those of a face seen from inside")
    rms = float(np.sqrt((gap**2).mean()))
    return Similarity(placed.scale, placed.rotation, placed.translation, rms)


def agreed(
    answers: Float[np.ndarray, "v 68 3"], limit_mm: float
) -> tuple[Float[np.ndarray, "68 3"], float]:
    """The mean of the answers near their median, and how far they are apart.

    Args:
        answers: The same points from several views, NaN where a view misses one.
        limit_mm: An answer further from the median does not count; a point with fewer than two
            that do is NaN.

    Returns:
        Points, and the median over points of the second largest distance from the median.
    """
    seen = np.isfinite(answers).all(axis=2)
    filled = np.where(seen[..., None], answers, np.nan)
    points = np.full(answers.shape[1:], np.nan)
    apart = []
    for k in range(answers.shape[1]):
        given = filled[seen[:, k], k]
        if len(given) < 2:
            continue
        distance = np.linalg.norm(given - np.median(given, axis=0), axis=1)
        apart.append(float(np.sort(distance)[-2]))
        near = distance <= limit_mm
        if near.sum() >= 2:
            points[k] = given[near].mean(axis=0)
    return points, float(np.median(apart)) if apart else float("inf")


def _scattered(count: int) -> Int[np.ndarray, " n"]:
    """All numbers below ``count``, early ones far apart, so that a search may stop early."""
    step = next(s for s in range(int(0.618 * count), 0, -1) if np.gcd(s, count) == 1)
    return (step * np.arange(count)) % count


def _with_jaw(inner: Float[np.ndarray, "51 2"]) -> Float[np.ndarray, "68 2"]:
    """68 points whose jaw, which no box uses, is not known."""
    return np.concatenate([np.full((17, 2), np.nan), inner])


def _row(image: UInt8[np.ndarray, "h w 3"], box: Float[np.ndarray, "4"]) -> dict[str, Any]:
    """A picture as a packed photograph with the data set's box."""
    import cv2

    height, width, _ = image.shape
    data = cv2.imencode(".bmp", image[..., ::-1])[1]
    return {
        "image": data.tobytes(),
        "box_px": box.tolist(),
        "height_px": height,
        "width_px": width,
    }
