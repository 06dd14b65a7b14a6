"""BP4D+: frames of tasks as textured meshes with photographs and 83 points."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from stages.corpus import studio
from stages.corpus.binghamton import points83
from stages.corpus.files import format_rows, jpeg_bytes, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, Scanner, turn
from stages.corpus.scan_files import material_text
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

SOURCE = "bp4d"
TASKS = ("T1", "T8")
BROKEN = ("image", "truncated_scan", "nan_scan", "no_faces", "short_points")


@dataclass(frozen=True, slots=True)
class Subject:
    """One person.

    Attributes:
        code: ``F001`` or ``M001``.
        variant: Running number, which chooses the dirt.
        broken: Empty, or one of ``BROKEN``.
    """

    code: str
    variant: int
    broken: str

    @property
    def sex(self) -> str:
        """What the code's letter says."""
        return "woman" if self.code[0] == "F" else "man"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its task, its number, whether the face is at rest."""

    task: str
    number: int
    neutral: bool

    @property
    def stem(self) -> str:
        """File name."""
        return f"{self.number:04d}"


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last."""
    count = order.sizes.bp4d.subjects
    found = []
    for k in range(count + len(BROKEN) * order.sizes.broken):
        broken = "" if k < count else BROKEN[(k - count) % len(BROKEN)]
        found.append(Subject(f"{'FM'[k % 2]}{1 + 2 * (k // 2):03d}", k, broken))
    return found


def frames(subject: Subject, count: int) -> list[Frame]:
    """Return ``count`` frames in turn from each task; the neutral one opens a task or does not."""
    rest = subject.variant % 3 == 2  # the neutral frame comes second, after a start in motion
    found = []
    for k in range(1 if subject.broken else count):
        step = k // len(TASKS)
        neutral = (k == 0 and not rest) or (k == len(TASKS) and rest)
        found.append(Frame(TASKS[k % len(TASKS)], step * 37 + k % len(TASKS), neutral))
    return found


def textured_obj(
    stem: str,
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "f 3"],
    image_uv: Float[np.ndarray, "n 2"],
) -> str:
    """Return an OBJ whose faces carry texture coordinates and two materials."""
    half = len(faces) // 2
    line = "f %d/%d %d/%d %d/%d\n"
    corners = np.repeat(faces.astype(np.int64) + 1, 2, axis=1)
    return (
        f"# frame {stem}\nmtllib {stem}.mtl\n"
        + format_rows("v %.4f %.4f %.4f\n", vertices)
        + format_rows("vt %.5f %.5f\n", image_uv)
        + f"g face\nusemtl {stem}_a\n"
        + format_rows(line, corners[:half])
        + f"usemtl {stem}_b\ns off\n"
        + format_rows(line, corners[half:])
    )


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth, list[str]]:
    """Write one person's frames; the last item lists neutral ones."""
    who = person(order.seed, SOURCE, subject.code, subject.sex)
    photos, scans, listed = [], [], []
    chosen = frames(subject, order.sizes.bp4d.frames)
    once = {f.stem for f in chosen if sum(g.stem == f.stem for g in chosen) == 1}
    for frame in chosen:
        photo, scan = _frame(order, subject, who, frame)
        photos.append(photo)
        scans.append(scan)
        if frame.neutral:
            short = subject.variant % 2 and frame.stem in once
            listed.append(frame.stem if short else f"{frame.task}/{frame.stem}")
    rest = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(subject.code, who.identity.sex, who.identity.age_years, rest)
    return photos, scans, row, listed


def _frame(
    order: Order, subject: Subject, who: Person, frame: Frame
) -> tuple[PhotoTruth, ScanTruth]:
    """Write mesh, material, photograph and points of one frame."""
    from models.procedural.expression import sample_expression
    from models.procedural.scene import (
        Background,
        Finish,
        Scene,
        perspective_camera,
        portrait_light,
        rotation_from_angles,
    )

    sizes = order.sizes.bp4d
    name = f"{subject.code}/{frame.task}_{frame.stem}"
    rng = item_rng(order.seed, f"bp4d/{name}")
    face = None if frame.neutral else sample_expression(rng, 0.9)
    vertices = np.asarray(studio.head().vertices(who.identity, face))
    rotation = turn(rng.normal(0, 6.0), rng.normal(0, 8.0), rng.normal(0, 4.0))
    placed = Placement(1.0, rotation, rng.normal(0.0, [20.0, 20.0, 30.0]))
    hair = who.appearance.hair
    scanner = Scanner(
        vertices=sizes.scan_vertices,
        back=False,
        covering="hair" if hair.style != "bald" else "none",
        hair_mm=float(np.clip(hair.volume_mm, 2.0, 14.0)),
        noise_mm=float(rng.uniform(0.12, 0.25)),
        holes=int(rng.integers(1, 4)),
        chin_hole=bool(rng.random() < 0.3),
        scraps=int(rng.integers(0, 2)),
        shoulders=bool(rng.random() < 0.5),
    )
    scan = studio.scan_person(who, vertices, scanner, placed, rng)
    size = (sizes.size_px, int(sizes.size_px * 0.75))
    angles = (rng.normal(0, 8.0), rng.normal(0, 5.0), rng.normal(0, 4.0))
    camera = perspective_camera(
        rotation_from_angles(*angles), size, distance_m=1.1,
        face_fraction=float(rng.uniform(0.46, 0.54)),
    )  # fmt: skip
    wall = Background("plain", np.full((5, 3), rng.uniform(0.1, 0.4)), int(rng.integers(2**31)))
    scene = Scene(camera, portrait_light(), wall, Finish(noise=0.006))
    photo = studio.shoot(who, face, scene, size, rng, vertices=vertices)
    image = jpeg_bytes(photo.image, 90)
    folder = order.out / "2D+3D" / subject.code / frame.task
    cut = subject.broken == "image"
    write(folder / f"{frame.stem}.jpg", truncated(image) if cut else image)
    where = camera.project(scan.scan.vertices_mm / studio.MM) / np.array([size[1], size[0]])
    uv = np.clip(np.stack([where[:, 0], 1.0 - where[:, 1]], axis=1), 0.0, 1.0)
    text = textured_obj(frame.stem, *_damaged(subject, scan), uv)
    text = text[: len(text) // 4] if subject.broken == "truncated_scan" else text
    write(folder / f"{frame.stem}.obj", text)
    materials = "".join(material_text(f"{frame.stem}_{k}", f"{frame.stem}.jpg") for k in "ab")
    write(folder / f"{frame.stem}.mtl", materials)
    points = points83(scan.landmarks)
    points = points[:82] if subject.broken == "short_points" else points
    lines = format_rows("%.4f,%.4f,%.4f\n", points)
    file = f"{subject.code}_{frame.task}_{frame.stem}.bndplus"
    write(order.out / "3DFeatures" / "FacialLandmarks" / file, lines)
    truth = ScanTruth(name, subject.code, placed, scan.landmarks, face is not None)
    return studio.photo_truth(f"{name}_photo", subject.code, photo), truth


def _damaged(
    subject: Subject, scan: studio.PlacedScan
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]]:
    vertices, faces = scan.vertices, scan.faces
    if subject.broken == "nan_scan":
        vertices = vertices.copy()
        vertices[7::301] = np.nan
    return vertices, faces[:0] if subject.broken == "no_faces" else faces


def build(order: Order) -> None:
    """Write BP4D+ and, as a user would, the list of its neutral frames."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=2 * order.sizes.bp4d.frames,
        label="BP4D+",
    )
    listed = [f"{row.subject},{scan}\n" for _, _, row, found in rows for scan in found]
    write(order.out / "neutral_frames.csv", "subject,scan\n" + "".join(listed))
    images, scans = order.truth / "images.parquet", order.truth / "scans.parquet"
    write_photo_truth([row for photos, _, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, found, _, _ in rows for row in found], scans)
    write_people([row for _, _, row, _ in rows], order.truth / "people.parquet")
