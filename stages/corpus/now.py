"""NoW: telephone photographs in four challenges, pickled boxes, scans and picked points."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from stages.corpus import studio
from stages.corpus.files import jpeg_bytes, obj_text, truncated, write
from stages.corpus.old_pickle import Call, Global, npy_object
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, Scanner, turn
from stages.corpus.scan_files import NOW_SEVEN, picked_points
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

if TYPE_CHECKING:
    from models.procedural.expression import Expression
    from models.procedural.occluders import Occluder
    from models.procedural.scene import Scene

SOURCE = "now"
RELEASE = "NoW_Dataset/final_release_version"
SCAN = "natural_head_rotation.000001"
CHALLENGES = ("multiview_neutral", "multiview_expressions", "multiview_occlusions", "selfie")
SHARES = (2, 2, 2, 1)  # photographs per challenge out of seven
BROKEN = ("image", "pickle", "nan_scan")
SELFIE_DISTANCE_M = (0.34, 0.48)


@dataclass(frozen=True, slots=True)
class Subject:
    """One person.

    Attributes:
        name: Folder name, as the capture system gives it.
        challenges: Names of the photographs' challenges, one per photograph.
        broken: Empty, or one of ``BROKEN``.
    """

    name: str
    challenges: tuple[str, ...]
    broken: str


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last; the second one lacks a challenge."""
    sizes = order.sizes.now
    rng = item_rng(order.seed, "now/list")
    cycle = [name for name, share in zip(CHALLENGES, SHARES, strict=True) for _ in range(share)]
    found = []
    for k in range(sizes.subjects + len(BROKEN) * order.sizes.broken):
        day, number = 10 + int(rng.integers(0, 19)), 3300 + 7 * k + int(rng.integers(0, 6))
        name = f"FaMoS_1804{day}_{number:05d}_TA"
        chosen = [cycle[j % len(cycle)] for j in range(sizes.photos)]
        if k == 1:
            chosen = [name for name in chosen if name != "multiview_occlusions"]
        broken = "" if k < sizes.subjects else BROKEN[(k - sizes.subjects) % len(BROKEN)]
        found.append(Subject(name, tuple(chosen if not broken else chosen[:1]), broken))
    return found


def box_npy(landmarks_px: Float[np.ndarray, "68 2"]) -> bytes:
    """Return a face box as the challenge distributes it: a pickled dict in an npy file."""
    left, top = landmarks_px.min(axis=0)
    right, bottom = landmarks_px.max(axis=0)
    sides = {"left": left, "top": top, "right": right, "bottom": bottom}
    content = {name: np.float64(value) for name, value in sides.items()}
    return npy_object(content, protocol=2, python=2)


def executing_npy() -> bytes:
    """Return a box file that calls a (harmless) function when it is unpickled carelessly."""
    return npy_object(Call(Global("os", "getcwd"), ()), protocol=2, python=2)


def situation(
    challenge: str, size: tuple[int, int], rng: np.random.Generator
) -> tuple["Expression | None", "Scene", tuple["Occluder", ...]]:
    """Draw expression, scene and what covers the face for a challenge."""
    from models.procedural.expression import sample_expression
    from models.procedural.occluders import sample_occluder
    from models.procedural.scene import sample_scene

    face: Expression | None = None
    worn: tuple[Occluder, ...] = ()
    if challenge in {"multiview_expressions", "selfie"}:
        face = sample_expression(rng, float(rng.uniform(0.5, 1.0)))
    if challenge == "multiview_occlusions":
        worn = (sample_occluder(rng),)
    if challenge == "selfie":
        # an arm's length and a short lens: strong perspective, the camera a little above
        scene = sample_scene(
            rng, size, yaw_range_deg=(-25.0, 25.0), pitch_range_deg=(0.0, 22.0),
            face_fraction_range=(0.42, 0.52), distance_range_m=SELFIE_DISTANCE_M, quality=0.6,
        )  # fmt: skip
    else:
        scene = sample_scene(
            rng, size, yaw_range_deg=(-60.0, 60.0), pitch_range_deg=(-15.0, 18.0),
            face_fraction_range=(0.34, 0.48), distance_range_m=(0.6, 1.5), quality=0.75,
        )  # fmt: skip
    return face, scene, worn


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[str], list[PhotoTruth], ScanTruth, PersonTruth]:
    """Write one person's photographs, boxes, scan and points; returns the list's lines too."""
    who = person(order.seed, SOURCE, subject.name)
    neutral = np.asarray(studio.head().vertices(who.identity))
    truth = _write_scan(order, subject, who, neutral)
    lines, photos = [], []
    for k, challenge in enumerate(subject.challenges):
        line, photo = _write_photo(order, subject, who, challenge, 37 + 4 * k)
        lines.append(line)
        photos.append(photo)
    row = PersonTruth(subject.name, who.identity.sex, who.identity.age_years, neutral)
    return lines, photos, truth, row


def _write_scan(
    order: Order, subject: Subject, who: Person, neutral: Float[np.ndarray, "v 3"]
) -> ScanTruth:
    rng = item_rng(order.seed, f"now/scan/{subject.name}")
    rotation = turn(rng.normal(0, 10.0), rng.normal(0, 15.0), rng.normal(0, 6.0))
    frame = Placement(1.0, rotation, rng.normal(0.0, [60.0, 60.0, 120.0]))
    scanner = Scanner(
        vertices=order.sizes.now.scan_vertices,
        back=False,
        covering="cap",
        hair_mm=0.0,
        noise_mm=float(rng.uniform(0.08, 0.15)),
        holes=int(rng.integers(0, 3)),
        chin_hole=False,
        scraps=int(rng.integers(0, 2)),
        shoulders=bool(rng.random() < 0.5),
    )
    scan = studio.scan_person(who, neutral, scanner, frame, rng)
    vertices = scan.vertices
    if subject.broken == "nan_scan":
        vertices = vertices.copy()
        vertices[11::173] = np.nan
    path = order.out / "scans" / subject.name / f"{SCAN}.obj"
    write(path, obj_text(vertices, scan.faces, decimals=4))
    picked = scan.landmarks[list(NOW_SEVEN)] + rng.normal(0.0, 0.25, (7, 3))
    points = order.out / "scans_lmks_onlypp" / subject.name / f"{SCAN}_picked_points.pp"
    write(points, picked_points(picked, path.name))
    return ScanTruth(f"{subject.name}/{SCAN}", subject.name, frame, scan.landmarks, False)


def _write_photo(
    order: Order, subject: Subject, who: Person, challenge: str, number: int
) -> tuple[str, PhotoTruth]:
    height = order.sizes.now.size_px
    size = (height, int(height * 0.75))
    stem = f"{subject.name}/{challenge}/IMG_{number:04d}"
    rng = item_rng(order.seed, f"now/{stem}")
    face, scene, worn = situation(challenge, size, rng)
    photo = studio.shoot(who, face, scene, size, rng, occluders=worn)
    image = jpeg_bytes(photo.image, 90)
    picture = order.out / RELEASE / "iphone_pictures" / f"{stem}.jpg"
    write(picture, truncated(image) if subject.broken == "image" else image)
    box = executing_npy() if subject.broken == "pickle" else box_npy(photo.landmarks_px)
    write(order.out / RELEASE / "detected_face" / f"{stem}.npy", box)
    return f"{stem}.jpg", studio.photo_truth(stem, subject.name, photo)


def build(order: Order) -> None:
    """Write NoW with its validation list; nobody of it is in another data set."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=2 + order.sizes.now.photos,
        label="NoW",
    )
    lines = sorted(line for found, _, _, _ in rows for line in found)
    write(order.out / "imagepathsvalidation.txt", "".join(f"{line}\n" for line in lines))
    images = order.truth / "images.parquet"
    write_photo_truth([row for _, photos, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, _, row, _ in rows], order.truth / "scans.parquet")
    write_people([row for _, _, _, row in rows], order.truth / "people.parquet")
