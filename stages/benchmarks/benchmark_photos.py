"""What each benchmark wants reconstructed: which photographs make one mesh, and what it is called.

=============  =======================================  =========================================
benchmark      one mesh per                             shape, name in the submission
=============  =======================================  =========================================
now            photograph                               neutral, ``<subject>/<challenge>/<image>``
stirling       FG2018 photograph                        neutral, ``<HQ|LQ>/<image>``
florence       video (Genova 2018, Deng 2019)           neutral, mean over its frames,
                                                        ``<subject>/<video>``
facewarehouse  photograph (Tewari 2018)                 with its expression, ``<tester>/<pose>``
bu3dfe         person: the neutral frontal photograph   neutral, ``<subject>/<scan>``
=============  =======================================  =========================================
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from stages.photos import landmark_rows, packed_images, points_of

_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".bmp"}
_COLUMNS: Final = ["item_id", "subject_id", "status", "reason", "attributes", "image"]


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        image: Encoded file; empty where only the name matters.
        points_px: Landmarks; None where they do not matter.
        provider: Where they come from.
        reason: Why it cannot be used; empty when it can.
    """

    image: bytes
    points_px: Float[np.ndarray, "68 2"] | None
    provider: str
    reason: str


@dataclass(frozen=True)
class Job:
    """One mesh to make.

    Attributes:
        benchmark: Whose.
        item_id: Its row's name: the photograph's for NoW, the mesh's elsewhere.
        target: The mesh in the submission, without suffix.
        subject_id: As in the packed tables.
        challenge: Part of the benchmark; may be empty.
        expression: Whether the mesh keeps the photograph's expression.
        photos: What it is made from.
    """

    benchmark: str
    item_id: str
    target: str
    subject_id: str
    challenge: str
    expression: bool
    photos: tuple[Photo, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A mesh that a photograph belongs to."""

    item_id: str
    target: str
    challenge: str = ""


def benchmark_jobs(
    data: Path, benchmark: str, needs_landmarks: bool, most: int | None = None
) -> list[Job]:
    """Every mesh that a benchmark wants, in order of ``item_id``.

    Args:
        data: Folder of all stages' outputs.
        benchmark: One of ``BENCHMARKS``, which is also the packed data set's name.
        needs_landmarks: Whether photographs without landmarks are of no use.
        most: Largest number of meshes; which ones does not depend on how many there are. None
            takes all.

    Raises:
        FileNotFoundError: The data set is not packed, or its landmarks are missing.
    """
    naming, expression = BENCHMARKS[benchmark]
    points = landmark_rows(data / "landmarks" / benchmark) if needs_landmarks else {}
    subjects: dict[Wanted, str] = {}
    photos: dict[Wanted, list[tuple[str, Photo]]] = defaultdict(list)
    for row in packed_images(data / "packed" / benchmark, _COLUMNS):
        wanted = naming(row["item_id"], json.loads(row["attributes"] or "{}"))
        if wanted is None:
            continue
        subjects[wanted] = row["subject_id"]
        photo = _photo(row, points.get(row["item_id"]), needs_landmarks)
        photos[wanted].append((row["item_id"], photo))
    chosen = sorted(photos, key=lambda w: (zlib.crc32(w.item_id.encode()), w.item_id))[:most]
    return [
        Job(
            benchmark,
            wanted.item_id,
            wanted.target,
            subjects[wanted],
            wanted.challenge,
            expression,
            tuple(photo for _, photo in sorted(photos[wanted], key=lambda pair: pair[0])),
        )
        for wanted in sorted(chosen, key=lambda w: w.item_id)
    ]


def _photo(row: Mapping[str, Any], found: Mapping[str, Any] | None, needs_landmarks: bool) -> Photo:
    reason = (row["reason"] or row["status"]) if row["status"] != "ok" else ""
    if needs_landmarks and not reason and (found is None or found["status"] != "ok"):
        reason = f"no landmarks: {found['reason'] if found else 'no row'}"
    if reason or not needs_landmarks or found is None:
        return Photo(b"", None, "", reason)
    return Photo(row["image"], points_of(dict(found)), found["provider"], "")


def _now(item: str, _attributes: Mapping[str, Any]) -> Wanted:
    stem = PurePosixPath(item)
    stem = stem.with_suffix("") if stem.suffix.lower() in _SUFFIXES else stem
    return Wanted(item, str(stem), stem.parts[1] if len(stem.parts) > 2 else "")


def _stirling(item: str, attributes: Mapping[str, Any]) -> Wanted:
    quality, name = str(attributes.get("quality", "")), item.rsplit("/", maxsplit=1)[-1]
    target = f"{quality}/{name}" if quality else name
    return Wanted(target, target, quality)


def _florence(item: str, attributes: Mapping[str, Any]) -> Wanted:
    video = item.rsplit("/", maxsplit=1)[0]
    return Wanted(video, video, str(attributes.get("clip", "")))


def _facewarehouse(item: str, _attributes: Mapping[str, Any]) -> Wanted:
    target = item.removesuffix("_photo")
    return Wanted(target, target)


def _bu3dfe(item: str, attributes: Mapping[str, Any]) -> Wanted | None:
    """The frontal texture of the neutral face; the sides and expressions are not wanted."""
    if (attributes.get("expression"), attributes.get("picture")) != ("NE", "F2D"):
        return None
    target = item.removesuffix("_photo").removesuffix("_F2D") + "_RAW"
    return Wanted(target, target)


BENCHMARKS: Final[Mapping[str, tuple[Callable[..., Wanted | None], bool]]] = {
    "now": (_now, False),
    "stirling": (_stirling, False),
    "florence": (_florence, False),
    "facewarehouse": (_facewarehouse, True),
    "bu3dfe": (_bu3dfe, False),
}
"""How a photograph's mesh is called, and whether it keeps the expression."""
