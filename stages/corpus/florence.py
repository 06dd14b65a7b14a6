"""MICC Florence: two frontal scans at rest, one-sided ones, videos and the frames cut from them."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.corpus import studio
from stages.corpus.files import bmp_bytes, jpeg_bytes, obj_text, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, Scanner, turn
from stages.corpus.scan_files import material_text, planar_texture
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

SOURCE = "florence"
CLIPS = ("Indoor-Cooperative", "PTZ-Indoor")
OUTDOOR = "PTZ-Outdoor"
BROKEN = ("cut_frontal1", "image", "nan_scan", "far_nose_tip")
NOSE_TIP = 30  # place in the iBUG 68
TEXTURE_PX = (128, 128)


@dataclass(frozen=True, slots=True)
class Subject:
    """One person's files.

    Attributes:
        number: Of the folder, from 1.
        captures: Twelve digits by view.
        annotated: Whether the user picked the nose tip.
        texture: Whether the scans' textures are there.
        broken: Empty, or one of ``BROKEN``.
    """

    number: int
    captures: dict[str, str]
    annotated: bool
    texture: bool
    broken: str

    @property
    def name(self) -> str:
        """Folder name."""
        return f"subject_{self.number:02d}"


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last."""
    count = order.sizes.florence.subjects
    found = []
    for k in range(count + len(BROKEN) * order.sizes.broken):
        broken = "" if k < count else BROKEN[(k - count) % len(BROKEN)]
        views = ["frontal1", "frontal2"]
        if not broken and k % 5 == 1:
            views = ["frontal2"]
        if broken == "nan_scan":
            views = ["frontal1"]
        if k % 6 == 0:
            views += ["sidel", "sider"]
        day, hour = f"1109{1 + k % 28:02d}", 9 + (k * 7) % 9
        captures = {view: f"{day}{hour:02d}{(17 * k + i) % 60:02d}{(29 * k + 31 * i) % 60:02d}"
                    for i, view in enumerate(views)}  # fmt: skip
        annotated = bool(broken) or k % 5 != 3
        found.append(Subject(k + 1, captures, annotated, k % 4 != 2, broken))
    return found


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth, str]:
    """Write one person's scans, frames and video; the text is their line of nose tips."""
    who = person(order.seed, SOURCE, subject.name)
    vertices = np.asarray(studio.head().vertices(who.identity))
    truth = [_write_scan(order, subject, view, who, vertices) for view in subject.captures]
    usable = "frontal2" if subject.broken == "cut_frontal1" else "frontal1"
    views = list(subject.captures)
    told = truth[views.index(usable if usable in views else "frontal2")]
    tip = told.landmarks[NOSE_TIP] + (500.0 if subject.broken == "far_nose_tip" else 0.0)
    line = f"{subject.name},{tip[0]:.3f},{tip[1]:.3f},{tip[2]:.3f}\n" if subject.annotated else ""
    row = PersonTruth(subject.name, who.identity.sex, who.identity.age_years, vertices)
    return _write_frames(order, subject, who), truth, row, line


def _write_scan(
    order: Order, subject: Subject, view: str, who: Person, vertices: np.ndarray
) -> ScanTruth:
    """One capture: OBJ with material and texture; the sides show half a face."""
    stem = subject.captures[view]
    rng = item_rng(order.seed, f"florence/scan/{subject.name}/{view}")
    frame = Placement(
        1.0,
        turn(rng.normal(0, 9.0), rng.normal(0, 9.0), rng.normal(0, 6.0)),
        rng.normal(0.0, [20.0, 40.0, 40.0]),
    )
    hair = who.appearance.hair
    scanner = Scanner(
        vertices=order.sizes.florence.scan_vertices,
        back=False,
        covering="hair" if hair.style != "bald" else "none",
        hair_mm=float(np.clip(hair.volume_mm, 2.0, 12.0)),
        noise_mm=float(rng.uniform(0.1, 0.2)),
        holes=int(rng.integers(1, 5)),
        chin_hole=bool(rng.random() < 0.25),
        scraps=int(rng.integers(0, 3)),
        shoulders=bool(rng.random() < 0.1),
    )
    scan = studio.scan_person(who, vertices, scanner, frame, rng)
    points, faces = scan.vertices, scan.faces
    if view in {"sidel", "sider"}:
        side = 1.0 if view == "sidel" else -1.0
        seen = side * scan.scan.vertices_mm[:, 0] > -12.0
        faces = faces[seen[faces].all(axis=1)]
    if subject.broken == "nan_scan":
        points = points.copy()
        points[7::173] = np.nan
    text = obj_text(
        points,
        faces,
        head=f"# {len(points)} vertices\nmtllib {stem}.mtl\n",
        material=stem,
        texture_indices=subject.broken != "nan_scan",
        decimals=4,
    )
    if subject.number % 3 == 1:
        text = text.replace("\n", "\r\n")
    data = text.encode()
    cut = subject.broken == "cut_frontal1" and view == "frontal1"
    folder = order.out / subject.name / "Model" / view / "obj"
    write(folder / f"{stem}.obj", truncated(data) if cut else data)
    write(folder / f"{stem}.mtl", material_text(f"m{stem[-4:]}", f"{stem}.bmp"))
    if subject.texture:
        write(folder / f"{stem}.bmp", bmp_bytes(
            planar_texture(scan.vertices, scan.colours, TEXTURE_PX)))  # fmt: skip
    item = f"{subject.name}/{stem}"
    return ScanTruth(item, subject.name, frame, scan.landmarks, expression=False)


def _write_frames(order: Order, subject: Subject, who: Person) -> list[PhotoTruth]:
    """Frames of the videos by clip, the outdoor one too, and one video as it is delivered."""
    from models.procedural.expression import sample_expression
    from models.procedural.scene import sample_scene

    truth: list[PhotoTruth] = []
    stream = b""
    clips = [CLIPS[k % len(CLIPS)] for k in range(order.sizes.florence.photos)]
    clips += [OUTDOOR] * (subject.number % 2)
    if subject.number == 2:  # a clip of which no frame was cut
        clips = [CLIPS[0] for _ in clips]
        (order.out / "images" / subject.name / CLIPS[1]).mkdir(parents=True)
    for k, clip in enumerate(clips):
        item = f"{subject.name}/{clip}/frame_{10 * (k + 1):04d}"
        rng = item_rng(order.seed, f"florence/{item}")
        still = clip == CLIPS[0]
        height = order.sizes.florence.size_px
        size = (height, height)
        scene = sample_scene(
            rng, size,
            yaw_range_deg=(-25.0, 25.0) if still else (-50.0, 50.0),
            pitch_range_deg=(-8.0, 8.0) if still else (-6.0, 20.0),
            face_fraction_range=(0.5, 0.6) if still else (0.42, 0.5),
            quality=0.7 if still else 0.3,
        )  # fmt: skip
        face = sample_expression(rng, 0.5) if k % 3 == 2 else None
        photo = studio.shoot(who, face, scene, size, rng)
        image = jpeg_bytes(photo.image, 90 if still else 75)
        if still:
            stream += image
        broken = subject.broken == "image" and k == 0
        path = order.out / "images" / f"{item}.jpg"
        write(path, truncated(image) if broken else image)
        if clip != OUTDOOR:
            truth.append(studio.photo_truth(item, subject.name, photo))
    if subject.number == 1:
        write(order.out / subject.name / "Video" / f"{CLIPS[0]}.mjpg", stream)
    return truth


def build(order: Order) -> None:
    """Write Florence and, as a user would, extracted frames and picked nose tips."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=3 + order.sizes.florence.photos,
        label="Florence",
    )
    lines = "".join(line for _, _, _, line in rows)
    write(order.out / "nose_tips.csv", f"subject,x,y,z\n{lines}")
    _write_truth(order.truth, rows)


def _write_truth(
    folder: Path, rows: list[tuple[list[PhotoTruth], list[ScanTruth], PersonTruth, str]]
) -> None:
    write_photo_truth(
        [row for photos, _, _, _ in rows for row in photos], folder / "images.parquet"
    )
    write_scan_truth([row for _, scans, _, _ in rows for row in scans], folder / "scans.parquet")
    write_people([row for _, _, row, _ in rows], folder / "people.parquet")
