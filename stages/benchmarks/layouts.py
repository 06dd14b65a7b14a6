"""Where each benchmark keeps its images, scans and landmarks, and where a submission's meshes are.

A layout only lists: every image that must be scored becomes one :class:`Case`, whether or not
anything was submitted for it and whether or not its scan can be read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Int

from stages.benchmarks.points import SUFFIXES
from stages.datasets.nose_tips import read_nose_tips
from stages.runtime.unpickle import read_npy

NOW_CHALLENGES: Final = (
    "multiview_neutral",
    "multiview_expressions",
    "multiview_occlusions",
    "selfie",
)
"""The four parts of the NoW images, in the order the challenge lists them."""

IMAGE_LISTS: Final = ("imagepathsvalidation.txt", "imagepathstest.txt")
VIDEOS: Final = ("Indoor-Cooperative", "PTZ-Indoor", "PTZ-Outdoor")
"""MICC's three settings: cooperative, indoor, outdoor."""

SMALLER_MICC_CROP_MM: Final = {"subject_28": 60.0}
"""The one subject whose crop is smaller in the public GANFit evaluation."""

_STIRLING_SCAN = re.compile(r"^([FfMm]\d{4})([A-Za-z]?)(?:_\d)?_(NH?)(?:_\d)?$", re.IGNORECASE)
_STIRLING_PHOTO = re.compile(r"^([FfMm]\d{4})_\d+$")
_PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png"})
_NO_LANDMARKS = "expected landmarks of the scan as {}, got none"


@dataclass(frozen=True, slots=True)
class ScanFiles:
    """One scan and what is known of its landmarks.

    Attributes:
        mesh: OBJ, PLY or VRML.
        landmarks: Landmark file; None when ``tip`` has it.
        tip: Nose tip, in the scan's own unit and frame.
        crop_mm: Another crop radius than the protocol's; 0 for none.
        reason: Why the scan cannot be used; empty when it can.
    """

    mesh: Path | None
    landmarks: Path | None = None
    tip: tuple[float, float, float] | None = None
    crop_mm: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One image (or video) to be scored.

    Attributes:
        item_id: Its name in the benchmark.
        subject_id: Whose scans it is measured on.
        challenge: The part of the benchmark that it belongs to; may be empty.
        scans: The subject's, the preferred one first.
        stems: Where its mesh and landmarks may be in a submission, without suffix.
    """

    item_id: str
    subject_id: str
    challenge: str
    scans: tuple[ScanFiles, ...]
    stems: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Layout:
    """A benchmark's folder.

    Attributes:
        list_cases: From the data set folder and the list of images, if one is given.
        scan_unit_mm: mm per unit of its scans.
        challenges: Order of its parts in tables.
        counts: Numbers of landmarks that scans and predictions may have.
    """

    list_cases: Callable[[Path, Path | None], list[Case]]
    scan_unit_mm: float
    challenges: tuple[str, ...]
    counts: tuple[int, ...]


def layout_of(protocol: str) -> Layout:
    """The layout that a protocol is scored in, by the protocol's name."""
    family = next(name for name in LAYOUTS if protocol.startswith(name))
    return LAYOUTS[family]


def list_now(dataset: Path, images: Path | None = None) -> list[Case]:
    """NoW: every line of its validation (else test) list.

    Raises:
        FileNotFoundError: There is no list.
        ValueError: A line is not ``.../subject/challenge/image.jpg``.
    """
    cases = []
    for item in list_images(dataset, images):
        subject, challenge, _ = item.split("/")
        scan = _only(dataset / "scans" / subject, ".obj")
        points = _only(dataset / "scans_lmks_onlypp" / subject, ".pp")
        for path, suffix, folder in ((scan, ".obj", "scans"), (points, ".pp", "scans_lmks_onlypp")):
            if path is None:
                reason = (
                    f"expected one {suffix} in {dataset / folder / subject}, got none; scans of "
                    "the NoW test subjects are not public, score the validation list"
                )
                break
        else:
            reason = ""
        cases.append(
            Case(item, subject, challenge, (ScanFiles(scan, points, reason=reason),), (item,))
        )
    return cases


def list_images(dataset: Path, images: Path | None = None) -> list[str]:
    """``subject/challenge/image`` (no suffix) of every NoW image listed, sorted.

    Args:
        dataset: Holds ``imagepathsvalidation.txt`` or ``imagepathstest.txt``.
        images: Another list of the same form.

    Raises:
        FileNotFoundError: There is no list.
        ValueError: A line is not ``.../subject/challenge/image.jpg``.
    """
    paths = [images] if images is not None else [dataset / name for name in IMAGE_LISTS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"expected {' or '.join(IMAGE_LISTS)} in {dataset}, got none"
            if images is None
            else f"expected a list of images in {images}, got no such file"
        )
    items = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        parts = line.strip().replace("\\", "/").split("/")
        if len(parts) < 3:
            raise ValueError(f"expected subject/challenge/image in {path}, got {line.strip()!r}")
        items.append("/".join([*parts[-3:-1], Path(parts[-1]).stem]))
    return sorted(set(items))


def list_stirling(dataset: Path, images: Path | None = None) -> list[Case]:
    """Stirling/ESRC (FG2018): every photograph in ``HQ`` and ``LQ``, on the person's neutral scan.

    Of several scans the first ``_N`` counts, else ``_NH``; plain names come before lettered ones.

    Raises:
        FileNotFoundError: No photographs are found, and no list of images is given.
    """
    landmarks = {path.stem.lower(): path for path in sorted(dataset.rglob("*.lnd"))}
    scans: dict[str, list[tuple[str, str, Path]]] = {}
    for path in sorted(dataset.rglob("*")):
        match = _STIRLING_SCAN.match(path.stem) if path.suffix.lower() == ".obj" else None
        if match is not None:
            key = (match[3].upper(), f"{match[2].lower()} {path.stem.lower()}", path)
            scans.setdefault(match[1].upper(), []).append(key)
    if images is not None:
        photos = [Path(line) for line in _lines(images)]
    else:
        photos = [p for p in dataset.rglob("*") if p.suffix.lower() in _PHOTOGRAPHS]
    cases = {}
    for photo in sorted(photos):
        match = _STIRLING_PHOTO.match(photo.stem)
        if match is None:
            continue
        person, quality, name = match[1].upper(), photo.parent.name.upper(), photo.stem
        item = f"{quality}/{name}" if quality else name
        found = [path for _, _, path in sorted(scans.get(person, []))]
        found.sort(key=lambda path: path.stem.lower() not in landmarks)  # stable
        if not found:
            scan = ScanFiles(None, reason=f"expected a neutral scan such as {person}_N.obj")
        else:
            points = landmarks.get(found[0].stem.lower())
            reason = "" if points else _NO_LANDMARKS.format(f"{found[0].stem}.lnd")
            scan = ScanFiles(found[0], points, reason=reason)
        stems = (item, f"{photo.parent.name}/{name}", f"{person}/{name}", name)
        cases[item] = Case(item, person, quality, (scan,), tuple(dict.fromkeys(stems)))
    if not cases:
        raise FileNotFoundError(
            f"expected photographs such as HQ/F1001_001.jpg in {images or dataset}, got none"
        )
    return list(cases.values())


def list_micc(dataset: Path, images: Path | None = None) -> list[Case]:
    """MICC Florence: three videos of every subject, on the subject's frontal scans.

    Landmarks are menpo files in ``MICC_landmarks`` (or beside the scan), which repeat the scans'
    paths, or the subject's line of ``nose_tips.csv``.

    Raises:
        FileNotFoundError: There is no subject.
    """
    tips = read_nose_tips(dataset)
    annotations = dataset / "MICC_landmarks"
    people = sorted(
        path
        for path in dataset.rglob("subject_*")
        if (path / "Model").is_dir() and annotations not in path.parents
    )
    wanted = set(_lines(images)) if images is not None else None
    cases = []
    for folder in people:
        person = folder.name
        crop = SMALLER_MICC_CROP_MM.get(person, 0.0)
        scans = []
        for view in ("frontal1", "frontal2"):
            for mesh in sorted((folder / "Model" / view).rglob("*.obj")):
                points = _landmarks_of(mesh, dataset, annotations)
                tip = tips.get(person) if points is None else None
                known = points is not None or tip is not None
                reason = "" if known else _NO_LANDMARKS.format("MICC_landmarks or nose_tips.csv")
                scans.append(ScanFiles(mesh, points, tip, crop, reason))
        if not scans:
            scans = [ScanFiles(None, reason=f"expected a scan in {folder}/Model/frontal1")]
        for video in VIDEOS:
            item = f"{person}/{video}"
            if wanted is None or item in wanted:
                cases.append(Case(item, person, video, tuple(scans), (item,)))
    if not cases:
        raise FileNotFoundError(f"expected subject_01/Model/frontal1 in {dataset}, got none")
    return cases


def list_facewarehouse(dataset: Path, images: Path | None = None) -> list[Case]:
    """FaceWarehouse: every pose of every tester (the benchmark's nine are not published).

    Raises:
        FileNotFoundError: There is no mesh.
    """
    wanted = set(_lines(images)) if images is not None else None
    cases = []
    for mesh in dataset.rglob("Tester_*/TrainingPose/pose_*.obj"):
        person = mesh.parent.parent.name
        item = f"{person}/{mesh.stem}"
        if wanted is None or item in wanted:
            stems = (item, f"{person}/TrainingPose/{mesh.stem}")
            cases.append(Case(item, person, "", (ScanFiles(mesh),), stems))
    if not cases:
        raise FileNotFoundError(
            f"expected meshes such as Tester_1/TrainingPose/pose_0.obj in {dataset}, got none"
        )
    return sorted(cases, key=lambda case: _natural(case.item_id))


def list_bu3dfe(dataset: Path, images: Path | None = None) -> list[Case]:
    """BU-3DFE: the neutral raw scan of every subject; landmarks beside it or ``nose_tips.csv``.

    Raises:
        FileNotFoundError: There is no neutral scan.
    """
    tips = read_nose_tips(dataset)
    wanted = set(_lines(images)) if images is not None else None
    cases = []
    for mesh in sorted(dataset.rglob("*_NE00*_RAW.wrl")):
        person = mesh.stem.split("_", maxsplit=1)[0]
        if wanted is not None and person not in wanted and mesh.stem not in wanted:
            continue
        points = _landmarks_of(mesh, dataset, dataset)
        tip = tips.get(person) if points is None else None
        known = points is not None or tip is not None
        reason = "" if known else _NO_LANDMARKS.format(f"{mesh.stem}.npy or nose_tips.csv")
        stems = (f"{person}/{mesh.stem}", mesh.stem, person)
        scan = ScanFiles(mesh, points, tip, reason=reason)
        cases.append(Case(f"{person}/{mesh.stem}", person, "", (scan,), stems))
    if not cases:
        raise FileNotFoundError(
            f"expected neutral scans such as F0001/F0001_NE00WH_RAW.wrl in {dataset}, got none"
        )
    return cases


def read_pairs(path: Path) -> tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]]:
    """Corresponding vertices, 0-based: rows of prediction vertex and truth vertex.

    One number per row means the same vertex of both: a region of one topology.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Something else is in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected pairs of vertices in {path}, got no such file")
    if path.suffix.lower() == ".npy":
        rows = np.asarray(read_npy(path))
    else:
        words = [line.replace(",", " ").split() for line in _lines(path)]
        try:
            rows = np.array([[float(word) for word in row] for row in words])
        except ValueError as error:
            raise ValueError(f"expected rows of vertex numbers in {path}: {error}") from error
    rows = rows.reshape(-1, 1) if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] not in (1, 2) or len(rows) == 0:
        raise ValueError(f"expected rows of one or two vertex numbers in {path}, got {rows.shape}")
    if rows.dtype.kind not in "fiu" or (rows != np.round(rows)).any():
        raise ValueError(f"expected whole vertex numbers in {path}")
    numbers = rows.astype(np.int64)
    return numbers[:, 0], numbers[:, -1]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a list in {path}, got no such file")
    found = [line.strip().replace("\\", "/") for line in path.read_text("utf-8").split("\n")]
    return [line for line in found if line]


def _only(folder: Path, suffix: str) -> Path | None:
    return next(iter(sorted(folder.glob(f"*{suffix}"))), None)


def _landmarks_of(mesh: Path, dataset: Path, annotations: Path) -> Path | None:
    """Landmarks beside a mesh, or under the same path in a folder of annotations."""
    places = [mesh.with_suffix(""), annotations / mesh.relative_to(dataset).with_suffix("")]
    if (model := next((p for p in mesh.parents if p.name == "Model"), None)) is not None:
        places.append(annotations / mesh.relative_to(model.parent.parent).with_suffix(""))
    for place in places:
        for suffix in SUFFIXES:
            path = place.with_name(f"{place.name}{suffix}")
            if path.is_file():
                return path
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


_ANY_NOSE_TIP = (1, 51, 68)

LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "now": Layout(list_now, 1.0, NOW_CHALLENGES, (7,)),
        "feng2018": Layout(list_stirling, 1.0, ("HQ", "LQ"), (7,)),
        "stirling-now": Layout(list_stirling, 1.0, ("HQ", "LQ"), (7,)),
        "micc": Layout(list_micc, 1.0, VIDEOS, _ANY_NOSE_TIP),
        "facewarehouse": Layout(list_facewarehouse, 100.0, (), ()),
        "bu3dfe": Layout(list_bu3dfe, 1.0, (), _ANY_NOSE_TIP),
    }
)
"""By the beginning of the protocol's name."""
