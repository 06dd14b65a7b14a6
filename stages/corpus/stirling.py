"""Stirling/ESRC: neutral scans with inconsistent names, and the FG2018 photographs."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.corpus import studio
from stages.corpus.files import jpeg_bytes, obj_text, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, Scanner, turn
from stages.corpus.scan_files import NOW_SEVEN, lnd_text, material_text
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

SOURCE = "stirling"
PHOTOS = Path("Real_images__Subset_2D_FG2018")
BROKEN = ("image", "nan_scan", "short_landmarks", "no_faces")


@dataclass(frozen=True, slots=True)
class Subject:
    """One person's files.

    Attributes:
        code: ``F1001`` or ``M1000``, as the photographs are named.
        scans: File stems of the scans; names differ in case, letter and suffix.
        landmarks: Stems that have a ``.lnd``.
        broken: Empty, or one of ``BROKEN``.
    """

    code: str
    scans: tuple[str, ...]
    landmarks: tuple[str, ...]
    broken: str

    @property
    def sex(self) -> str:
        """What the code's letter says."""
        return "woman" if self.code[0] == "F" else "man"


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last."""
    count = order.sizes.stirling.subjects
    rng = item_rng(order.seed, "stirling/list")
    women = 1001 + np.cumsum(rng.integers(1, 3, count + len(BROKEN) * order.sizes.broken))
    men = 1000 + np.cumsum(rng.integers(1, 3, len(women)))
    found = []
    for k in range(len(women)):
        code = f"F{women[k]}" if k % 2 == 0 else f"M{men[k]}"
        broken = "" if k < count else BROKEN[(k - count) % len(BROKEN)]
        stem = code if k % 4 < 2 else code.lower()
        scans = [f"{stem}_N"]
        if not broken:
            if k % 11 == 5:
                scans = [f"{stem}b_N"]
            elif k % 11 == 2:
                scans = [f"{stem}_2_N"]
            elif k % 11 == 7:
                scans = [f"{stem}_NH"]
            elif k % 11 == 9:
                scans.append(f"{stem}_NH")
            if k % 10 == 3:
                scans.append(f"{stem}_A")
        marked = () if not broken and k % 14 == 8 else tuple(scans)
        found.append(Subject(code, tuple(scans), marked, broken))
    return found


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth]:
    """Write one person's scans, landmarks and photographs."""
    from models.procedural.expression import Expression

    who = person(order.seed, SOURCE, subject.code, subject.sex)
    truth = []
    for stem in subject.scans:
        rng = item_rng(order.seed, f"stirling/{stem}")
        face = Expression.prototype("anger") if stem.endswith("_A") else None
        vertices = np.asarray(studio.head().vertices(who.identity, face))
        frame = Placement(
            1.0,
            turn(rng.normal(0, 12.0), rng.normal(0, 12.0), rng.normal(0, 8.0)),
            rng.normal(0.0, [30.0, 50.0, 80.0]) + np.array([0.0, 0.0, -900.0]),
        )
        hair = who.appearance.hair
        scanner = Scanner(
            vertices=order.sizes.stirling.scan_vertices,
            back=False,
            covering="hair" if hair.style != "bald" else "none",
            hair_mm=float(np.clip(hair.volume_mm, 2.0, 14.0)),
            noise_mm=float(rng.uniform(0.1, 0.2)),
            holes=int(rng.integers(1, 5)),
            chin_hole=bool(rng.random() < 0.2),
            scraps=int(rng.integers(0, 3)),
            shoulders=bool(rng.random() < 0.4),
        )
        scan = studio.scan_person(who, vertices, scanner, frame, rng)
        _write_scan(order.out, subject, stem, scan)
        truth.append(
            ScanTruth(
                f"{subject.code}/{stem}", subject.code, frame, scan.landmarks, face is not None
            )
        )
    neutral = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(subject.code, who.identity.sex, who.identity.age_years, neutral)
    return _write_photos(order, subject, who), truth, row


def _write_scan(root: Path, subject: Subject, stem: str, scan: studio.PlacedScan) -> None:
    letter = subject.code[0]
    kind = "N" if stem.endswith(("_N", "_NH")) else "A"
    folder = root / f"{letter}_3D_{kind}"
    vertices, faces = scan.vertices, scan.faces
    if subject.broken == "nan_scan":
        vertices = vertices.copy()
        vertices[5::211] = np.nan
    if subject.broken == "no_faces":
        faces = faces[:0]
    text = obj_text(
        vertices,
        faces,
        head=f"mtllib {stem}.mtl\n",
        material="texture",  # the .mtl names another material, as in the real set
        texture_indices=subject.broken != "no_faces",
        decimals=4,
    )
    write(folder / f"{stem}.obj", text)
    write(folder / f"{stem}.mtl", material_text(f"{stem}_material", f"{stem}.jpg"))
    stripes = np.repeat(np.repeat(scan.colours[scan.landmark_vertices][None], 4, 1), 64, axis=0)
    write(folder / f"{stem}.jpg", jpeg_bytes(np.ascontiguousarray(stripes)))
    if stem in subject.landmarks:
        seven = scan.landmarks[list(NOW_SEVEN)]
        kept = seven[:6] if subject.broken == "short_landmarks" else seven
        write(root / "annotations" / f"{stem}.lnd", lnd_text(kept))


def _write_photos(order: Order, subject: Subject, who: Person) -> list[PhotoTruth]:
    from models.procedural.expression import sample_expression
    from models.procedural.scene import sample_scene

    truth = []
    for k in range(1, order.sizes.stirling.photos + 1):
        name = f"{subject.code}_{k:03d}"
        rng = item_rng(order.seed, f"stirling/photo/{name}")
        good = k % 3 == 1  # a third of the published photographs are of high quality
        height = order.sizes.stirling.size_px if good else int(0.7 * order.sizes.stirling.size_px)
        size = (height, int(height * 0.8))
        scene = sample_scene(
            rng, size, yaw_range_deg=(-45.0, 45.0), quality=0.95 if good else 0.35,
            face_fraction_range=(0.48, 0.58),
        )  # fmt: skip
        face = sample_expression(rng, float(rng.uniform(0.0, 1.0))) if k % 2 == 0 else None
        photo = studio.shoot(who, face, scene, size, rng)
        image = jpeg_bytes(photo.image, 95 if good else 78)
        folder = order.out / PHOTOS / ("HQ" if good else "LQ")
        broken = subject.broken == "image" and k == 1
        write(folder / f"{name}.jpg", truncated(image) if broken else image)
        truth.append(studio.photo_truth(f"{subject.code}/{name}", subject.code, photo))
    return truth


def build(order: Order) -> None:
    """Write Stirling: scans, landmarks, photographs."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=2 + order.sizes.stirling.photos,
        label="Stirling",
    )
    images, scans = order.truth / "images.parquet", order.truth / "scans.parquet"
    write_photo_truth([row for photos, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, found, _ in rows for row in found], scans)
    write_people([row for _, _, row in rows], order.truth / "people.parquet")
