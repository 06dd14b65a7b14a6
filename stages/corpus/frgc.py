"""FRGC v2: 480 x 640 range images of a person before a camera at 1.5 m, and photographs."""

import functools
import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from stages.corpus import studio
from stages.corpus.files import format_rows, jpeg_bytes, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, gapped_numbers, person, write_people
from stages.corpus.scan import Placement, Scan, Scanner
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

if TYPE_CHECKING:
    from models.procedural.scene import Camera

SOURCE = "frgc"
FIRST, LAST = 4200, 4936  # numbers of the subjects
ROWS, COLUMNS = 480, 640
NOTHING = "-999999.000000"
SESSIONS = ("Fall2003range", "Spring2004range")
DROPPED = "Spring2003range"
BROKEN = ("image", "truncated_scan", "row_count", "empty_scan", "garbled_scan", "no_face")
NEAR_M, FAR_M = 0.3, 5.0
WAVE_MM = 0.06  # amplitude of the sensor's slow error
SPIKES = 0.0004  # of the pixels, measured wrong by centimetres


@dataclass(frozen=True, slots=True)
class Subject:
    """One person.

    Attributes:
        number: Number of the subject.
        variant: Running number, which chooses the dirt.
        broken: Empty, or one of ``BROKEN``.
    """

    number: int
    variant: int
    broken: str

    @property
    def name(self) -> str:
        """Five digits."""
        return f"{self.number:05d}"


@dataclass(frozen=True, slots=True)
class Recording:
    """One range image.

    Attributes:
        number: Running number; the registered photograph has the next.
        session: Folder.
        neutral: Whether the face is at rest.
    """

    number: int
    session: str
    neutral: bool


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last."""
    count = order.sizes.frgc.subjects
    extra = len(BROKEN) * order.sizes.broken
    rng = item_rng(order.seed, "frgc/list")
    numbers = gapped_numbers(count + extra, LAST - FIRST, rng)
    return [
        Subject(FIRST + n, k, "" if k < count else BROKEN[(k - count) % len(BROKEN)])
        for k, n in enumerate(numbers)
    ]


def recordings(subject: Subject, scans: int) -> list[Recording]:
    """Return the subject's range images: neutral and expressive in turn.

    Of six people, one has one more with an expression, one has one in MICA's dropped session.
    """
    base = 200 + 2 * (subject.number % 90)
    count = 1 if subject.broken else scans + (subject.variant % 6 == 2)
    found = [
        Recording(base + 14 * k, SESSIONS[(subject.variant + k) % 2], k % 2 == 0)
        for k in range(count)
    ]
    if not subject.broken and subject.variant % 6 == 4:
        found.append(Recording(base - 60, DROPPED, True))
    return found


def depth_points(
    scan: Scan, camera: "Camera", rng: np.random.Generator, noise_mm: float
) -> tuple[Float[np.ndarray, "480 640 3"], Bool[np.ndarray, "480 640"]]:
    """What the sensor measures: per pixel a point in the camera's frame, mm, and whether any.

    Args:
        scan: The head with hair and shoulders, head frame.
        camera: A perspective camera.
        rng: Source of all randomness.
        noise_mm: Standard deviation of the distance.
    """
    from models.rendering.cameras import perspective_clip
    from models.rendering.rasterize import interpolate, rasterize

    points = camera.in_camera(scan.vertices_mm / studio.MM)
    clip = perspective_clip(
        points[None], camera.scale_px, *camera.centre_px, ROWS, COLUMNS, near=NEAR_M, far=FAR_M
    )
    ids, bary, _ = rasterize(clip, scan.faces, ROWS, COLUMNS)
    seen = studio.MM * interpolate(points[None], scan.faces, ids, bary)[0]
    corners = points[scan.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sight = np.einsum("fc,fc->f", normals, corners.mean(axis=1))
    length = np.linalg.norm(normals, axis=1) * np.linalg.norm(corners.mean(axis=1), axis=1)
    slant = -sight / np.maximum(length, 1e-30)
    valid = ids[0] >= 0
    facing = np.where(valid, slant[ids[0]], 0.0)
    dark = np.zeros(len(scan.faces))
    dark[scan.covered[scan.faces].all(axis=1)] = 1.0  # hair gives little light back
    missed = 0.003 + 0.55 * np.where(valid, dark[ids[0]], 0.0)
    valid &= (facing > 0.17) & (rng.random((ROWS, COLUMNS)) > missed)
    return _measured(seen, valid, rng, noise_mm), valid


def _measured(
    seen: Float[np.ndarray, "h w 3"],
    valid: Bool[np.ndarray, "h w"],
    rng: np.random.Generator,
    noise_mm: float,
) -> Float[np.ndarray, "h w 3"]:
    """Errors along the line of sight: noise, a slow wave, a few spikes."""
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    slow = np.sin(column / 47.0 + rng.uniform(0, 6.28)) * np.sin(row / 61.0 + rng.uniform(0, 6.28))
    error = noise_mm * rng.standard_normal((ROWS, COLUMNS)) + WAVE_MM * slow
    spikes = rng.random((ROWS, COLUMNS)) < SPIKES
    error += np.where(spikes, rng.normal(0.0, 25.0, (ROWS, COLUMNS)), 0.0)
    distance = np.linalg.norm(seen, axis=2)
    stretch = 1.0 + error / np.where(valid, distance, 1.0)
    return seen * stretch[..., None]


def abs_text(
    points: Float[np.ndarray, "h w 3"],
    valid: Bool[np.ndarray, "h w"],
    *,
    variant: int = 0,
) -> str:
    """Return an ``.abs``: three lines of header, then a line each of flags, x, y, z.

    Args:
        points: Camera frame, mm.
        valid: Where something was measured.
        variant: 5, 11, ... give fewer decimals, wide spacing, capitals, Windows line ends.
    """
    rows, columns = valid.shape
    other = variant % 6 == 5
    lines = [f"{rows} rows", f"{columns} columns", "pixels (flag X Y Z):"]
    if other:
        lines = [f" {rows}  Rows", f" {columns}  Columns", "Pixels  (flag X Y Z):"]
    lines.append(" ".join(np.where(valid.ravel(), "1", "0").tolist()))
    places = np.flatnonzero(valid).tolist()
    for axis in range(3):
        words = ["-999999.0" if other else NOTHING] * valid.size
        measured = points[..., axis][valid]
        rounded = format_rows("%.3f " if other else "%.6f ", measured[:, None]).split()
        for place, value in zip(places, rounded, strict=True):
            words[place] = value
        lines.append(" ".join(words))
    end = "\r\n" if other else "\n"
    return end.join(lines) + end


def ppm_bytes(image: np.ndarray) -> bytes:
    """Return an RGB picture as a binary PPM."""
    height, width, _ = image.shape
    return b"P6\n%d %d\n255\n" % (width, height) + np.ascontiguousarray(image).tobytes()


def gzipped(data: bytes) -> bytes:
    """Compress quickly; bytes depend on the content alone."""
    return gzip.compress(data, 1, mtime=0)


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth, list[str]]:
    """Write one person's recordings and photographs; the last item lists neutral scans."""
    who = person(order.seed, SOURCE, subject.name)
    photos: list[PhotoTruth] = []
    scans: list[ScanTruth] = []
    neutral: list[str] = []
    for recording in recordings(subject, order.sizes.frgc.scans):
        photo, scan = _record(order, subject, who, recording)
        photos += photo
        scans.append(scan)
        if recording.neutral and recording.session != DROPPED:
            neutral.append(scan.item.split("/")[1])
    if subject.broken in {"", "image"}:
        photos += _stills(order, subject, who)
    rest = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(subject.name, who.identity.sex, who.identity.age_years, rest)
    return photos, scans, row, neutral


def _record(
    order: Order, subject: Subject, who: Person, recording: Recording
) -> tuple[list[PhotoTruth], ScanTruth]:
    """Write one range image and the photograph that the sensor took with it.

    An unreadable range image comes without one.
    """
    from models.procedural.expression import sample_expression
    from models.procedural.scene import (
        Background,
        Finish,
        Scene,
        perspective_camera,
        portrait_light,
        rotation_from_angles,
    )

    stem = f"{subject.name}d{recording.number}"
    rng = item_rng(order.seed, f"frgc/{stem}")
    face = None if recording.neutral else sample_expression(rng, 0.9)
    vertices = np.asarray(studio.head().vertices(who.identity, face))
    camera = perspective_camera(
        rotation_from_angles(rng.normal(0, 4.0), rng.normal(0, 3.0), rng.normal(0, 2.0)),
        (ROWS, COLUMNS),
        distance_m=float(rng.uniform(1.4, 1.6)),
        face_fraction=float(rng.uniform(0.44, 0.54)),
        centre_fraction=(float(rng.uniform(0.46, 0.54)), float(rng.uniform(0.48, 0.54))),
    )
    hair = who.appearance.hair
    scanner = Scanner(
        vertices=order.sizes.frgc.scan_vertices,
        back=False,
        covering="hair" if hair.style != "bald" else "none",
        hair_mm=float(np.clip(hair.volume_mm, 2.0, 14.0)),
        noise_mm=0.0,  # the sensor's noise lies along the line of sight
        holes=int(rng.integers(1, 4)),
        chin_hole=False,
        scraps=0,
        shoulders=True,
    )
    frame = Placement(1.0, camera.rotation, studio.MM * camera.translation)
    scan = studio.scan_person(who, vertices, scanner, frame, rng)
    points, valid = depth_points(scan.scan, camera, rng, float(rng.uniform(0.12, 0.25)))
    if subject.broken == "no_face":
        top = int(camera.project(np.array([[0.0, -0.12, 0.0]]))[0, 1])
        valid = valid & (np.arange(ROWS)[:, None] > top)
    folder = order.out / "nd1" / recording.session
    valid = valid & (subject.broken != "empty_scan")
    text = abs_text(points, valid, variant=subject.variant)
    data = _damaged(text, subject.broken).encode("ascii")
    packed = subject.variant % 6 != 3
    data = gzipped(data) if packed else data
    data = truncated(data) if subject.broken == "truncated_scan" else data
    write(folder / f"{stem}.abs{'.gz' if packed else ''}", data)
    truth = ScanTruth(
        f"{subject.name}/{stem}", subject.name, frame, scan.landmarks, not recording.neutral
    )
    if subject.broken not in {"", "image", "no_face"}:
        return [], truth
    grey = Background("plain", np.full((5, 3), rng.uniform(0.02, 0.3)), int(rng.integers(2**31)))
    scene = Scene(camera, portrait_light(key_yaw_deg=20.0), grey, Finish(noise=0.006))
    photo = studio.shoot(who, face, scene, (ROWS, COLUMNS), rng, vertices=vertices)
    name = f"{subject.name}d{recording.number + 1}"
    if subject.variant % 3 == 1:
        write(folder / f"{name}.ppm.gz", gzipped(ppm_bytes(photo.image)))
    else:
        write(folder / f"{name}.jpg", jpeg_bytes(photo.image, 95))
    return [studio.photo_truth(f"{subject.name}/{name}", subject.name, photo)], truth


def _damaged(text: str, broken: str) -> str:
    """One row announced but not there; a number that is none; untouched otherwise."""
    if broken == "row_count":
        return text.replace(str(ROWS), str(ROWS + 1), 1)
    if broken == "garbled_scan":
        middle = text.index(" ", len(text) // 2)
        return f"{text[:middle]} #?@ {text[middle + 8 :]}"
    return text


def _stills(order: Order, subject: Subject, who: Person) -> list[PhotoTruth]:
    """Write photographs of another camera, without range images."""
    from models.procedural.expression import sample_expression
    from models.procedural.scene import sample_scene

    truth = []
    for k in range(order.sizes.frgc.photos):
        name = f"{subject.name}d{2 + 2 * k:02d}"
        rng = item_rng(order.seed, f"frgc/photo/{name}")
        size = (order.sizes.frgc.size_px, int(order.sizes.frgc.size_px * 0.75))
        scene = sample_scene(
            rng, size, yaw_range_deg=(-12.0, 12.0), pitch_range_deg=(-6.0, 6.0),
            roll_range_deg=(-5.0, 5.0), face_fraction_range=(0.4, 0.55),
            quality=0.9 if k % 2 == 0 else 0.4,
        )  # fmt: skip
        face = sample_expression(rng, 0.8) if k % 2 else None
        photo = studio.shoot(who, face, scene, size, rng)
        image = jpeg_bytes(photo.image, 92)
        broken = subject.broken == "image" and k == 0
        session = SESSIONS[k % 2].removesuffix("range")
        write(order.out / "nd1" / session / f"{name}.jpg", truncated(image) if broken else image)
        truth.append(studio.photo_truth(f"{subject.name}/{name}", subject.name, photo))
    return truth


def build(order: Order) -> None:
    """Write FRGC and, as a user would, the list of its neutral scans."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=3 * order.sizes.frgc.scans + order.sizes.frgc.photos,
        label="FRGC",
    )
    listed = [f"{row.subject},{scan}\r\n" for _, _, row, found in rows for scan in found]
    write(order.out / "neutral_frames.csv", "\xef\xbb\xbfsubject,scan\r\n" + "".join(listed))
    images, scans = order.truth / "images.parquet", order.truth / "scans.parquet"
    write_photo_truth([row for photos, _, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, found, _, _ in rows for row in found], scans)
    write_people([row for _, _, row, _ in rows], order.truth / "people.parquet")
