"""BU-3DFE: VRML scans in expressions and intensities, 83 points, bitmaps of two views."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from stages.corpus import studio
from stages.corpus.binghamton import points83, with_quads
from stages.corpus.files import format_rows, jpeg_bytes, obj_text, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, Scanner, compact, turn
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

if TYPE_CHECKING:
    from models.procedural.expression import Expression
    from models.procedural.photo import Photo

SOURCE = "bu3dfe"
ETHNICITIES = ("WH", "AE", "BL", "LA", "IN", "AM")
NOSE_TIP = 30  # place in the iBUG 68
EXPRESSIONS = {
    "NE": "neutral",
    "HA": "smile",
    "SU": "surprise",
    "AN": "anger",
    "SA": "sadness",
    "DI": "disgust",
    "FE": "fear",
}
BROKEN = ("image", "truncated_scan", "bad_index", "nan_scan", "no_faces")
FACE_MM = 95.0  # the cropped scan's radius around the nose
VIEW_DEG = 40.0  # the two cameras stand to the left and right


@dataclass(frozen=True, slots=True)
class Subject:
    """One person's files.

    Attributes:
        code: ``F0001`` or ``M0001``.
        ethnicity: Two letters.
        variant: Running number, which chooses the dirt.
        broken: Empty, or one of ``BROKEN``.
    """

    code: str
    ethnicity: str
    variant: int
    broken: str

    @property
    def sex(self) -> str:
        """What the code's letter says."""
        return "woman" if self.code[0] == "F" else "man"

    @property
    def cropped_only(self) -> bool:
        """Whether the uncropped scans are missing."""
        return not self.broken and self.variant % 6 == 4

    def stem(self, expression: str) -> str:
        """``F0001_NE00WH``; the neutral face has intensity 0."""
        level = 0 if expression == "NE" else 1 + self.variant % 4
        return f"{self.code}_{expression}{level:02d}{self.ethnicity}"


def subjects(order: Order) -> list[Subject]:
    """Return the subjects, those with broken files last."""
    count = order.sizes.bu3dfe.subjects
    found = []
    for k in range(count + len(BROKEN) * order.sizes.broken):
        broken = "" if k < count else BROKEN[(k - count) % len(BROKEN)]
        code = f"{'FM'[k % 2]}{1 + k // 2:04d}"
        found.append(Subject(code, ETHNICITIES[k % 6], k, broken))
    return found


def wrl_text(
    points: Float[np.ndarray, "n 3"],
    polygons: Sequence[Int[np.ndarray, "f k"]],
    *,
    texture: str,
    commas: bool,
) -> str:
    """Return VRML 2.0 text with one face set.

    Args:
        points: In the owner's unit.
        polygons: Corner indices, 0-based; several arrays when quads and triangles are mixed.
        texture: File name.
        commas: Separate points by commas, as some exporters do.
    """
    line = "%.6e %.6e %.6e,\n" if commas else "\t\t\t%.5f %.5f %.5f\n"
    rows = "".join(
        format_rows(" ".join(["%d"] * group.shape[1]) + " -1\n", group)
        if not commas
        else format_rows(", ".join(["%d"] * group.shape[1]) + ", -1,\n", group)
        for group in polygons
    )
    return (
        "#VRML V2.0 utf8\n"
        "# made from numbers; imitates a 3D face scanner's export {not a node}\n"
        "Group { children [\n Shape {\n"
        f'  appearance Appearance {{ texture ImageTexture {{ url "{texture}" }} }}\n'
        "  geometry DEF face IndexedFaceSet {\n"
        "   solid FALSE\n   coord Coordinate {\n    point [\n"
        f"{format_rows(line, points)}    ]\n   }}\n   coordIndex [\n{rows}   ]\n"
        "  }\n }\n] }\n"
    )


def bnd_text(points: Float[np.ndarray, "83 3"], nearest: Int[np.ndarray, "83"]) -> str:
    """Return a ``.bnd``: rows ``vertex x y z`` separated by tabs."""
    return "".join(
        f"{vertex}\t\t{x:.6f}\t\t{y:.6f}\t\t{z:.6f}\n"
        for vertex, (x, y, z) in zip(nearest.tolist(), points.tolist(), strict=True)
    )


def bmp_bytes(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return an RGB picture as BMP."""
    import cv2

    done, data = cv2.imencode(".bmp", np.ascontiguousarray(image[..., ::-1]))
    assert done, "BMP encoding of a uint8 picture cannot fail"
    return bytes(data.tobytes())


def make_subject(
    subject: Subject, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth]:
    """Write one person's scans and photographs."""
    from models.procedural.expression import Expression

    sizes = order.sizes.bu3dfe
    who = person(order.seed, SOURCE, subject.code, subject.sex)
    kinds = list(EXPRESSIONS)
    shown = [kinds[(k + subject.variant) % 6 + 1] if k else "NE" for k in range(sizes.scans)]
    photos, scans = [], []
    left = min(sizes.photos, 1) if subject.broken else sizes.photos
    for code in shown[:1] if subject.broken else shown:
        face = None if code == "NE" else Expression.prototype(EXPRESSIONS[code])
        vertices = np.asarray(studio.head().vertices(who.identity, face))
        scans.append(_scan(order, subject, who, code, vertices))
        for picture in ("F2D", "RAW")[:left]:
            photos += _picture(order, subject, who, code, picture, face, vertices)
        left = max(left - 2, 0)
    neutral = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(subject.code, who.identity.sex, who.identity.age_years, neutral)
    return photos, scans, row


def _scan(
    order: Order, subject: Subject, who: Person, code: str, vertices: Float[np.ndarray, "v 3"]
) -> ScanTruth:
    stem = subject.stem(code)
    rng = item_rng(order.seed, f"bu3dfe/{stem}")
    rotation = turn(rng.normal(0, 5.0), rng.normal(0, 5.0), rng.normal(0, 4.0))
    frame = Placement(1.0, rotation, rng.normal(0.0, [10.0, 12.0, 15.0]))
    hair = who.appearance.hair
    scanner = Scanner(
        vertices=order.sizes.bu3dfe.scan_vertices,
        back=False,
        covering="hair" if hair.style != "bald" else "none",
        hair_mm=float(np.clip(hair.volume_mm, 2.0, 14.0)),
        noise_mm=float(rng.uniform(0.1, 0.2)),
        holes=int(rng.integers(1, 4)),
        chin_hole=bool(rng.random() < 0.2),
        scraps=int(rng.integers(0, 3)),
        shoulders=bool(rng.random() < 0.6),
    )
    scan = studio.scan_person(who, vertices, scanner, frame, rng)
    folder = order.out / subject.code
    item = f"{stem}_{'F3D' if subject.cropped_only else 'RAW'}"
    if not subject.cropped_only:
        text = _raw_text(subject, stem, scan.vertices, scan.faces)
        text = text[: len(text) // 3] if subject.broken == "truncated_scan" else text
        write(folder / f"{stem}_RAW.wrl", text)
    if code == "NE" and not subject.broken:
        _write_cropped(order, subject, stem, scan)
        if subject.variant % 6 == 3:  # MICA's conversion of the same scan
            converted = obj_text(scan.vertices, scan.faces, decimals=4)
            write(order.out / "raw_ne_data" / f"{stem}_RAW.obj", converted)
    elif subject.cropped_only:
        _write_cropped(order, subject, stem, scan)
    return ScanTruth(f"{subject.code}/{item}", subject.code, frame, scan.landmarks, code != "NE")


def _raw_text(
    subject: Subject, stem: str, vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]
) -> str:
    """The uncropped scan: quads in every other file, other separators and line ends in some."""
    vertices = vertices.copy()
    polygons = with_quads(faces) if subject.variant % 2 == 0 else [faces]
    if subject.broken == "bad_index":
        polygons = [np.where(faces == faces.max(), faces.max() + 7, faces)]
    if subject.broken == "no_faces":
        polygons = []
    if subject.broken == "nan_scan":
        vertices[::173] = np.nan
    commas = subject.variant % 3 == 1
    text = wrl_text(vertices, polygons, texture=f"{stem}_RAW.bmp", commas=commas)
    if subject.variant % 4 == 1:
        text = "\xef\xbb\xbf" + text.replace("\n", "\r\n")
    return text


def _write_cropped(order: Order, subject: Subject, stem: str, scan: studio.PlacedScan) -> None:
    """``_F3D.wrl``: the face alone, and the 83 points on it."""
    from scipy.spatial import cKDTree

    nose = scan.landmarks[30]
    near = np.linalg.norm(scan.vertices - nose, axis=1) < FACE_MM
    vertices, faces, _ = compact(scan.vertices, scan.faces[near[scan.faces].all(axis=1)])
    folder = order.out / subject.code
    text = wrl_text(vertices, [faces], texture=f"{stem}_F2D.bmp", commas=False)
    write(folder / f"{stem}_F3D.wrl", text)
    _, nearest = cKDTree(vertices).query(points83(scan.landmarks))
    write(folder / f"{stem}_F3D.bnd", bnd_text(vertices[nearest], np.asarray(nearest)))


def _picture(
    order: Order,
    subject: Subject,
    who: Person,
    code: str,
    picture: str,
    face: "Expression | None",
    vertices: Float[np.ndarray, "v 3"],
) -> list[PhotoTruth]:
    """Write the frontal picture, or both cameras' views side by side (as halves for some)."""
    stem = subject.stem(code)
    folder = order.out / subject.code
    if picture == "F2D":
        photo = _shoot(order, who, f"{stem}_F2D", face, vertices, 0.0)
        data = bmp_bytes(photo.image)
        data = truncated(data) if subject.broken == "image" else data
        write(folder / f"{stem}_F2D.bmp", data)
        return [studio.photo_truth(f"{subject.code}/{stem}_F2D_photo", subject.code, photo)]
    views = [
        _shoot(order, who, f"{stem}_RAW_{k}", face, vertices, side)
        for k, side in enumerate((-VIEW_DEG, VIEW_DEG))
    ]
    if subject.variant % 3 == 2:
        for k, photo in enumerate(views):
            write(folder / f"{stem}_RAW_{k}.jpg", jpeg_bytes(photo.image, 92))
        return [
            studio.photo_truth(f"{subject.code}/{stem}_RAW_{k}_photo", subject.code, photo)
            for k, photo in enumerate(views)
        ]
    both = np.concatenate([photo.image for photo in views], axis=1)
    write(folder / f"{stem}_RAW.bmp", bmp_bytes(both))
    return [studio.photo_truth(f"{subject.code}/{stem}_RAW_photo", subject.code, views[0])]


def _shoot(
    order: Order,
    who: Person,
    name: str,
    face: "Expression | None",
    vertices: Float[np.ndarray, "v 3"],
    yaw_deg: float,
) -> "Photo":
    from models.procedural.scene import (
        Background,
        Finish,
        Scene,
        perspective_camera,
        portrait_light,
        rotation_from_angles,
    )

    rng = item_rng(order.seed, f"bu3dfe/photo/{name}")
    height = order.sizes.bu3dfe.size_px
    size = (height, int(height * 0.8))
    grey = Background("plain", np.full((5, 3), rng.uniform(0.02, 0.3)), int(rng.integers(2**31)))
    camera = perspective_camera(
        rotation_from_angles(yaw_deg + rng.normal(0, 3.0), rng.normal(0, 3.0), rng.normal(0, 2.0)),
        size,
        distance_m=1.0,
        face_fraction=float(rng.uniform(0.52, 0.6)),
    )
    scene = Scene(camera, portrait_light(), grey, Finish(noise=0.005))
    return studio.shoot(who, face, scene, size, rng, vertices=vertices)


def build(order: Order) -> None:
    """Write BU-3DFE: scans, points, photographs, and nose tips as a user would pick them."""
    rows = studio.map_items(
        functools.partial(make_subject, order=order),
        subjects(order),
        order,
        cost=order.sizes.bu3dfe.scans + order.sizes.bu3dfe.photos,
        label="BU-3DFE",
    )
    tips = [
        f"{scan.subject},{x:.3f},{y:.3f},{z:.3f}\n"
        for _, found, _ in rows
        for scan in found
        if not scan.expression
        for x, y, z in [scan.landmarks[NOSE_TIP]]
    ]
    write(order.out / "nose_tips.csv", "".join(["subject,x,y,z\n", *tips]))
    images, scans = order.truth / "images.parquet", order.truth / "scans.parquet"
    write_photo_truth([row for photos, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, found, _ in rows for row in found], scans)
    write_people([row for _, _, row in rows], order.truth / "people.parquet")
