"""Scoring of files: one scan against one prediction, or a benchmark folder against a submission.

Every function returns plain dicts that JSON can hold; distances are in millimetres.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float

from models.metrics import (
    LANDMARK_NAMES,
    Measurement,
    Protocol,
    align_and_measure,
    cumulative_curve,
    pooled_statistics,
    protocol_named,
)
from stages.datasets.meshes import Mesh, read_mesh

logger = logging.getLogger(__name__)

Order = Literal["position", "name"]

CHALLENGES: Final = (
    "multiview_neutral",
    "multiview_expressions",
    "multiview_occlusions",
    "selfie",
)
"""The four parts of the NoW images, in the order the challenge lists them."""

IMAGE_LISTS: Final = ("imagepathsvalidation.txt", "imagepathstest.txt")
_POINT: Final = re.compile(r"<point\b([^>]*?)/?>", re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """One image's distances, or why there are none.

    Attributes:
        item_id: ``subject/challenge/image``.
        subject_id: Whose scan it is measured on.
        status: ``ok``, ``missing`` (no prediction) or ``failed``.
        reason: Empty when ok.
        distances_mm: One per kept scan vertex; empty unless ok.
        flags: Doubts about the prediction.
    """

    item_id: str
    subject_id: str
    status: Literal["ok", "missing", "failed"]
    reason: str
    distances_mm: Float[np.ndarray, " _"]
    flags: tuple[str, ...]

    @property
    def challenge(self) -> str:
        """The second part of the item's name; empty where there is none."""
        parts = self.item_id.split("/")
        return parts[1] if len(parts) > 2 else ""


def read_landmarks(path: Path, order: Order = "position") -> Float[np.ndarray, "7 3"]:
    """Seven 3D landmarks of a ``.npy``, ``.txt`` or MeshLab ``.pp`` file, in its own unit.

    Args:
        path: ``.npy`` of shape (7, 3) or (1, 7, 3); ``.txt`` of seven lines of three numbers;
            ``.pp`` (PickedPoints) of seven points.
        order: How a ``.pp`` file's points are ordered. ``position`` takes them as they stand, as
            the NoW challenge does. ``name`` goes by their names: 0-6, 1-7, or those of
            :data:`models.metrics.LANDMARK_NAMES` with any of space, ``_`` and ``-`` between words.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another kind of file, another number of points, or names not understood.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected seven landmarks in {path}, got no such file")
    readers = {".npy": _read_npy, ".txt": _read_text, ".pp": _read_picked_points}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(f"expected landmarks as .npy, .txt or .pp, got {path.name}")
    points, names = readers[suffix](path)
    if points.ndim == 3 and len(points) == 1:
        points = points[0]
    if points.shape != (7, 3):
        raise ValueError(f"expected 7 landmarks of 3 coordinates in {path}, got {points.shape}")
    named = _order_by_name(names)
    if order == "name" and names:
        if named is None:
            raise ValueError(
                f"expected the names {', '.join(LANDMARK_NAMES)} (or 0-6, 1-7) in {path}, got "
                f"{', '.join(names)}; use the order of the file instead"
            )
        return points[named]
    if named is not None and named != list(range(7)):
        logger.warning("%s: points are not in the order of their names; order kept", path)
    return points


def score_files(
    protocol: str,
    scan: Path,
    scan_landmarks: Path,
    prediction: Path,
    prediction_landmarks: Path,
    unit: str = "m",
    distances_out: Path | None = None,
    order: Order = "position",
) -> dict[str, Any]:
    """Score one predicted mesh against one scan.

    Args:
        protocol: ``now`` or ``now-metric``.
        scan: Mesh file in millimetres.
        scan_landmarks: Its seven landmarks, see :func:`read_landmarks`.
        prediction: Mesh file in ``unit``.
        prediction_landmarks: Its seven landmarks, in ``unit``.
        unit: ``m``, ``cm`` or ``mm``.
        distances_out: Where to keep the distances (k,) float64 mm as ``.npy``.
        order: Of the points of a ``.pp`` file.

    Returns:
        Pooled statistics, the alignment found, and flags.

    Raises:
        FileNotFoundError: An input is not there.
        ValueError: An input is not what the protocol needs.
    """
    truth, mesh = _mesh(scan, cloud=True), _mesh(prediction)
    result = measure(
        truth,
        read_landmarks(scan_landmarks, order),
        mesh,
        read_landmarks(prediction_landmarks, order),
        protocol_named(protocol),
        unit,
    )
    if distances_out is not None:
        if distances_out.suffix != ".npy":
            raise ValueError(f"expected a .npy file for the distances, got {distances_out}")
        distances_out.parent.mkdir(parents=True, exist_ok=True)
        np.save(distances_out, result.distances_mm, allow_pickle=False)
    matrix = np.eye(4)
    matrix[:3, :3] = result.scale * result.rotation
    matrix[:3, 3] = result.translation
    return {
        "protocol": protocol,
        "unit": unit,
        **asdict(pooled_statistics([result.distances_mm])),
        "landmark_rms_mm": result.landmark_rms_mm,
        "landmark_scale_mm_per_unit": result.landmark_scale,
        "scale_mm_per_unit": result.scale,
        "T_scan_from_prediction": matrix.tolist(),
        "iterations": result.iterations,
        "flags": list(result.flags),
    }


def score_dataset(
    protocol: str, dataset_dir: Path, submission_dir: Path, unit: str = "m"
) -> dict[str, Any]:
    """Score a submission folder against the NoW data in the owners' layout.

    Args:
        protocol: ``now`` or ``now-metric``.
        dataset_dir: Holds ``imagepathsvalidation.txt``, ``scans/``, ``scans_lmks_onlypp/``.
        submission_dir: ``<subject>/<challenge>/<image>.obj`` (or ``.ply``) and ``.npy`` (or
            ``.txt``) beside it.
        unit: Of the submission.

    Returns:
        :func:`summarise` of all images, with the images that could not be scored.

    Raises:
        FileNotFoundError: The data set's list of images or the submission is not there.
        ValueError: The protocol is unknown.
        OSError, ValueError: Not one subject has a usable scan with landmarks; that of the first.
    """
    chosen = protocol_named(protocol)
    if not submission_dir.is_dir():
        raise FileNotFoundError(f"expected a submission folder, got {submission_dir}")
    by_subject: dict[str, list[str]] = defaultdict(list)
    for item in list_images(dataset_dir):
        by_subject[item.split("/", maxsplit=1)[0]].append(item)
    scores: list[ImageScore] = []
    unusable: list[OSError | ValueError] = []
    for subject, items in sorted(by_subject.items()):
        try:
            scan, landmarks = _scan_of(dataset_dir, subject)
        except (OSError, ValueError) as error:
            unusable.append(error)
            scores += [_unscored(item, subject, "failed", str(error)) for item in items]
            continue
        for item in items:
            scores.append(_score_item(chosen, scan, landmarks, item, submission_dir, unit))
    if len(unusable) == len(by_subject) and unusable:
        raise unusable[0]
    unscored = [
        {"item_id": score.item_id, "status": score.status, "reason": score.reason}
        for score in scores
        if score.status != "ok"
    ]
    return {"protocol": protocol, "unit": unit, **summarise(scores), "unscored": unscored}


def list_images(dataset_dir: Path) -> list[str]:
    """``subject/challenge/image`` (no suffix) of every image listed, sorted.

    Raises:
        FileNotFoundError: There is no list.
        ValueError: A line is not ``.../subject/challenge/image.jpg``.
    """
    for name in IMAGE_LISTS:
        path = dataset_dir / name
        if path.is_file():
            break
    else:
        raise FileNotFoundError(f"expected {' or '.join(IMAGE_LISTS)} in {dataset_dir}, got none")
    items = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        parts = line.strip().replace("\\", "/").split("/")
        if len(parts) < 3:
            raise ValueError(f"expected subject/challenge/image in {path}, got {line.strip()!r}")
        items.append("/".join([*parts[-3:-1], Path(parts[-1]).stem]))
    return sorted(items)


def summarise(scores: Iterable[ImageScore]) -> dict[str, Any]:
    """Pooled statistics of all images, of each challenge and of each subject.

    Args:
        scores: Of one protocol.

    Returns:
        ``images``, ``scored``, ``missing``, ``failed``, ``flagged``, ``vertices``, ``median_mm``,
        ``mean_mm``, ``std_mm``; the same under ``challenges`` and ``subjects``.
    """
    listed = list(scores)
    challenges = {score.challenge for score in listed}
    known = [name for name in CHALLENGES if name in challenges]
    subjects = sorted({score.subject_id for score in listed})
    return {
        **_pool(listed),
        "challenges": {
            name: _pool([score for score in listed if score.challenge == name])
            for name in [*known, *sorted(challenges - set(CHALLENGES))]
        },
        "subjects": {
            name: _pool([score for score in listed if score.subject_id == name])
            for name in subjects
        },
    }


def curve_of(
    scores: Iterable[ImageScore], thresholds_mm: Float[np.ndarray, " t"]
) -> list[dict[str, float]]:
    """Percent of scan vertices within each threshold; empty when no image was scored."""
    distances = [score.distances_mm for score in scores if score.status == "ok"]
    if not distances:
        return []
    percent = cumulative_curve(distances, thresholds_mm)
    return [
        {"error_mm": round(float(at), 4), "percent": round(float(share), 4)}
        for at, share in zip(thresholds_mm, percent, strict=True)
    ]


def _pool(scores: Sequence[ImageScore]) -> dict[str, Any]:
    counts = {
        status: sum(score.status == status for score in scores)
        for status in ("ok", "missing", "failed")
    }
    pooled = asdict(pooled_statistics([s.distances_mm for s in scores if s.status == "ok"]))
    return {
        "images": len(scores),
        "scored": counts["ok"],
        "missing": counts["missing"],
        "failed": counts["failed"],
        "flagged": sum(bool(score.flags) for score in scores),
        **{
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in pooled.items()
        },
    }


def measure(
    scan: Mesh,
    scan_landmarks: Float[np.ndarray, "7 3"],
    prediction: Mesh,
    landmarks: Float[np.ndarray, "7 3"],
    protocol: Protocol,
    unit: str,
) -> Measurement:
    """:func:`models.metrics.align_and_measure` on whole meshes."""
    return align_and_measure(
        scan.vertices,
        scan.faces,
        scan_landmarks,
        prediction.vertices,
        prediction.faces,
        landmarks,
        protocol,
        unit,
    )


def _score_item(
    protocol: Protocol,
    scan: Mesh,
    scan_landmarks: Float[np.ndarray, "7 3"],
    item: str,
    submission_dir: Path,
    unit: str,
) -> ImageScore:
    """Score one image of a submission; whatever is wrong with it stays its own."""
    subject = item.split("/", maxsplit=1)[0]
    try:
        mesh_path = _first_existing(submission_dir, item, (".obj", ".ply"))
        marks_path = _first_existing(submission_dir, item, (".npy", ".txt"))
    except FileNotFoundError as error:
        return _unscored(item, subject, "missing", str(error))
    try:
        mesh, marks = _mesh(mesh_path), read_landmarks(marks_path)
        result = measure(scan, scan_landmarks, mesh, marks, protocol, unit)
    except (OSError, ValueError) as error:
        return _unscored(item, subject, "failed", str(error))
    return ImageScore(
        item_id=item,
        subject_id=subject,
        status="ok",
        reason="",
        distances_mm=result.distances_mm,
        flags=result.flags,
    )


def _unscored(
    item: str, subject: str, status: Literal["missing", "failed"], reason: str
) -> ImageScore:
    return ImageScore(
        item_id=item,
        subject_id=subject,
        status=status,
        reason=reason,
        distances_mm=np.zeros(0),
        flags=(),
    )


def _first_existing(folder: Path, item: str, suffixes: Sequence[str]) -> Path:
    for suffix in suffixes:
        path = folder / f"{item}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"expected {item}{' or '.join(suffixes)} in the submission, got none")


def _scan_of(dataset_dir: Path, subject: str) -> tuple[Mesh, Float[np.ndarray, "7 3"]]:
    found = []
    for folder, suffix in (("scans", ".obj"), ("scans_lmks_onlypp", ".pp")):
        paths = sorted((dataset_dir / folder / subject).glob(f"*{suffix}"))
        if not paths:
            raise FileNotFoundError(
                f"expected one {suffix} in {dataset_dir / folder / subject}, got none; scans of "
                "the NoW test subjects are not public, score the validation list"
            )
        found.append(paths[0])
    return _mesh(found[0], cloud=True), read_landmarks(found[1])


def _mesh(path: Path, *, cloud: bool = False) -> Mesh:
    """Read a mesh; a scan may be a cloud, since distances start at its vertices."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a mesh in {path}, got no such file")
    return read_mesh(path, allow_point_cloud=cloud)


def _read_npy(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    return np.asarray(np.load(path, allow_pickle=False), np.float64), []


def _read_text(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    rows = [line.replace(",", " ").split() for line in path.read_text("utf-8").split("\n")]
    rows = [row for row in rows if row]
    if any(len(row) != 3 for row in rows):
        raise ValueError(f"expected 7 lines of x y z in {path}, got lines of other lengths")
    try:
        return np.array([[float(word) for word in row] for row in rows]), []
    except ValueError as error:
        raise ValueError(f"expected 7 lines of x y z in {path}: {error}") from error


def _read_picked_points(path: Path) -> tuple[Float[np.ndarray, "..."], list[str]]:
    points, names = [], []
    for match in _POINT.finditer(path.read_text(encoding="utf-8", errors="replace")):
        attributes: Mapping[str, str] = dict(_ATTRIBUTE.findall(match[1]))
        try:
            points.append([float(attributes[axis]) for axis in "xyz"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"expected x, y and z of every point in {path}, got <point {match[1].strip()}>"
            ) from error
        names.append(attributes.get("name", ""))
    return np.array(points), names


def _order_by_name(names: Sequence[str]) -> list[int] | None:
    """Positions of the seven landmarks by their names; None when the names do not say."""
    plain = [" ".join(re.split(r"[\s_-]+", name.strip().lower())) for name in names]
    for wanted in (
        [str(number) for number in range(7)],
        [str(number) for number in range(1, 8)],
        list(LANDMARK_NAMES),
    ):
        if sorted(plain) == sorted(wanted):
            return [plain.index(name) for name in wanted]
    return None
