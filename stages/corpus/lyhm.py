"""LYHM / Headspace: capped 3dMD scans turned away from the front, their photographs and cameras."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stages.corpus import studio
from stages.corpus.files import obj_text, png_bytes, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, gapped_numbers, person, write_people
from stages.corpus.scan import Placement, Scanner, turn
from stages.corpus.scan_files import index_lines, material_text, metadata_text, tka_text
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

SOURCE = "lyhm"
LAST = 1518
VIEWS = ("1C", "2C")
PIXEL_MM = 0.0087
BROKEN = ("image", "empty_scan", "nan_scan", "no_faces", "short_landmarks")
CAP_COLOUR = np.array([0.72, 0.70, 0.62])  # linear RGB of latex


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject folder and what is wrong with it.

    Attributes:
        number: Folder number.
        capture: 12 digits, year to second.
        landmarks: Whether the landmark file is there.
        neutral: Whether the face was at rest.
        age: Whether the age is filled in.
        photos: Whether the photographs were released.
        colours: Whether the OBJ carries vertex colours; otherwise a texture.
        chin_hole: Whether the scan has a hole under the chin.
        broken: Empty, or one of ``BROKEN``.
    """

    number: int
    capture: str
    landmarks: bool
    neutral: bool
    age: bool
    photos: bool
    colours: bool
    chin_hole: bool
    broken: str

    @property
    def folder(self) -> str:
        """The five-digit folder name."""
        return f"{self.number:05d}"


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last."""
    count = order.sizes.lyhm.subjects
    rng = item_rng(order.seed, "lyhm/list")
    numbers = gapped_numbers(count + len(BROKEN) * order.sizes.broken, LAST, rng)
    found = []
    for k, number in enumerate(numbers):
        day = f"13{1 + number // 140:02d}{1 + number % 28:02d}"
        clock = f"{9 + k % 8:02d}{(7 * number) % 60:02d}{(13 * number) % 60:02d}"
        sound = k < count
        broken = "" if sound else BROKEN[(k - count) % len(BROKEN)]
        found.append(
            Subject(
                number,
                day + clock,
                landmarks=not (sound and k % 15 == 7),
                neutral=not (sound and k % 20 == 9),
                age=not (sound and k % 12 == 4),
                photos=not (sound and k % 30 == 12),
                colours=k % 3 != 1,
                chin_hole=k % 4 == 2,
                broken=broken,
            )
        )
    return found


def placement(rng: np.random.Generator) -> Placement:
    """Draw the capture frame: about 45 degrees about Y, then 45 about X, some off, mm."""
    about_y = turn(0.0, 45.0 + rng.normal(0.0, 6.0), 0.0)
    about_x = turn(45.0 + rng.normal(0.0, 6.0), 0.0, rng.normal(0.0, 5.0))
    return Placement(1.0, about_x @ about_y, rng.normal(0.0, [40.0, 30.0, 60.0]))


def metadata(subject: Subject, who: Person) -> str:
    """Return the subject's text file."""
    beard = who.appearance.beard.style
    return metadata_text(
        {
            "id": subject.folder,
            "gender": "female" if who.identity.sex == "woman" else "male",
            "age": str(int(who.identity.age_years)) if subject.age else "",
            "declaredethnicGroup": "",
            "beardDescriptor": "none" if beard == "none" else beard,
            "moustacheDescriptor": "none" if beard == "none" else "medium",
            "expression": "neutral" if subject.neutral else "other",
            "spectaclesFlag": "0",
            "underChinHoleFlag": str(int(subject.chin_hole)),
            "missingDataFlag": "0",
            "qualityDescriptor": "high" if subject.number % 3 else "medium",
        }
    )


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth]:
    """Write one subject's scan, landmarks, metadata, photographs and calibrations."""
    from models.procedural.expression import Expression, sample_expression

    who = person(order.seed, SOURCE, subject.folder)
    rng = item_rng(order.seed, f"lyhm/{subject.folder}")
    face: Expression | None = None if subject.neutral else sample_expression(rng, 0.9)
    vertices = np.asarray(studio.head().vertices(who.identity, face))
    frame = placement(rng)
    scanner = Scanner(
        vertices=order.sizes.lyhm.scan_vertices,
        back=True,
        covering="cap",
        hair_mm=0.0,
        noise_mm=float(rng.uniform(0.1, 0.2)),
        holes=int(rng.integers(2, 6)),
        chin_hole=subject.chin_hole,
        scraps=int(rng.integers(0, 4)),
        shoulders=bool(rng.random() < 0.7),
    )
    scan = studio.scan_person(who, vertices, scanner, frame, rng)
    _write_scan(order, subject, scan, who)
    photos = _write_photos(order, subject, who, vertices, frame, rng) if subject.photos else []
    truth = ScanTruth(
        f"{subject.folder}/{subject.capture}",
        subject.folder,
        frame,
        scan.landmarks,
        not subject.neutral,
    )
    neutral = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(subject.folder, who.identity.sex, who.identity.age_years, neutral)
    return photos, [truth], row


def _write_scan(order: Order, subject: Subject, scan: studio.PlacedScan, who: Person) -> None:
    folder = order.out / "headspaceOnline" / "subjects" / subject.folder
    root = subject.capture
    vertices, faces = scan.vertices, scan.faces
    if subject.broken == "nan_scan":
        vertices = vertices.copy()
        vertices[::97] = np.nan
    if subject.broken == "no_faces":
        faces = faces[:0]
    text = obj_text(
        vertices,
        faces,
        colors=scan.colours / 255.0 if subject.colours else None,
        head=f"mtllib {root}.mtl\n",
        material=root,
        decimals=4,
    )
    write(folder / f"{root}.obj", "" if subject.broken == "empty_scan" else text)
    write(folder / f"{root}.mtl", material_text(root, None if subject.colours else f"{root}.bmp"))
    if not subject.colours:
        write(folder / f"{root}.bmp", _bmp(scan.colours[scan.landmark_vertices]))
    if subject.landmarks:
        indices = scan.landmark_vertices
        kept = indices[:67] if subject.broken == "short_landmarks" else indices
        write(folder / f"ldmks{root}.txt", index_lines(kept))
    write(folder / f"headspace_person_{subject.folder}.txt", metadata(subject, who))


def _bmp(colours: np.ndarray) -> bytes:
    """A small texture: the landmarks' colours in stripes."""
    import cv2

    stripes = np.repeat(np.repeat(colours[None, :, ::-1], 4, axis=1), 64, axis=0)
    done, data = cv2.imencode(".bmp", np.ascontiguousarray(stripes))
    assert done, "BMP encoding of a uint8 picture cannot fail"
    return bytes(data.tobytes())


def _write_photos(
    order: Order,
    subject: Subject,
    who: Person,
    vertices: Float[np.ndarray, "v 3"],
    frame: Placement,
    rng: np.random.Generator,
) -> list[PhotoTruth]:
    from models.procedural.occluders import Occluder
    from models.procedural.scene import (
        Background,
        Finish,
        Scene,
        perspective_camera,
        portrait_light,
        rotation_from_angles,
    )

    height = order.sizes.lyhm.size_px
    size = (height, int(height * 0.75))
    grey = Background("plain", np.full((5, 3), rng.uniform(0.02, 0.2)), int(rng.integers(2**31)))
    cap = (Occluder("latex_cap", int(rng.integers(2**31)), CAP_COLOUR * rng.uniform(0.8, 1.1)),)
    folder = order.out / "headspacePngTka" / "subjects" / subject.folder / subject.capture
    truth = []
    for view, side in zip(VIEWS[: order.sizes.lyhm.photos], (-1.0, 1.0), strict=False):
        turn_deg = (side * rng.uniform(18.0, 32.0), rng.normal(0.0, 4.0), rng.normal(0.0, 3.0))
        camera = perspective_camera(
            rotation_from_angles(*turn_deg),
            size,
            distance_m=float(rng.uniform(0.95, 1.1)),
            face_fraction=float(rng.uniform(0.44, 0.5)),
            centre_fraction=(0.5, 0.48),
            target_m=(0.0, 0.02, -0.02),
        )
        light = portrait_light(key_yaw_deg=float(-40.0 * side), key_pitch_deg=20.0)
        scene = Scene(camera, light, grey, Finish(noise=0.006, contrast=0.2))
        face_rng = item_rng(order.seed, f"lyhm/{subject.folder}/{view}")
        photo = studio.shoot(who, None, scene, size, face_rng, occluders=cap, vertices=vertices)
        image = png_bytes(photo.image)
        broken = subject.broken == "image" and view == VIEWS[0]
        write(folder / f"{view}.png", truncated(image) if broken else image)
        write(folder / f"calib_{view}.tka", _calibration(photo.camera, frame, size))
        truth.append(
            studio.photo_truth(f"{subject.folder}/{subject.capture}_{view}", subject.folder, photo)
        )
        if subject.number % 10 == 0:
            small = photo.image[::2, ::2].mean(axis=2).astype(np.uint8)
            write(folder / f"{view[0]}A.png", png_bytes(small))
    return truth


def _calibration(camera: object, frame: Placement, size: tuple[int, int]) -> str:
    """Camera of a photograph in scan axes (x right, y down, z forward in the camera)."""
    from models.procedural.scene import Camera

    assert isinstance(camera, Camera)
    down = np.diag([1.0, -1.0, -1.0])
    R = down @ camera.rotation @ frame.rotation.T
    centre_mm = -camera.rotation.T @ camera.translation * studio.MM
    centre = frame.apply(centre_mm[None])[0]
    return tka_text(R, centre, camera.scale_px * PIXEL_MM, PIXEL_MM, size, camera.centre_px)


def build(order: Order) -> None:
    """Write Headspace: scans, landmarks, metadata; photographs and calibrations."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=2 + order.sizes.lyhm.photos,
        label="LYHM",
    )
    write_photo_truth(
        [row for photos, _, _ in rows for row in photos], order.truth / "images.parquet"
    )
    write_scan_truth([row for _, scans, _ in rows for row in scans], order.truth / "scans.parquet")
    write_people([row for _, _, row in rows], order.truth / "people.parquet")
