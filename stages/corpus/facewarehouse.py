"""FaceWarehouse: 11,510-vertex meshes of quads, Kinect photographs, 74 points, blendshapes."""

import functools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from stages.corpus import studio
from stages.corpus.files import obj_text, png_bytes, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, turn
from stages.corpus.scan_files import land_text, shape_bs
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.corpus.surface import Anchors, outer_anchors, vertex_normals
from stages.runtime.compute import item_rng

SOURCE = "facewarehouse"
VERTICES = 11510
POLYGONS = 11540
SHAPES = 47
COLUMNS, ROWS, EXTRA = 110, 104, 70  # a ring grid and part of one more row: 11,510 vertices
SLOPE_DEG = 2.0  # how much further a column may reach than its neighbour
DM_PER_MM = 0.01
BROKEN = ("image", "short_landmarks", "no_faces", "cut_blendshapes")
POSES = (
    "neutral", "mouth_open", "smile", "brow_lower", "frown", "anger", "jaw_left", "jaw_right",
    "mouth_left", "mouth_right", "dimple", "chin_raise", "kiss", "funnel", "grin", "laugh",
    "sadness", "cheek_puff", "surprise", "blink",
)  # fmt: skip
_UNITS = {
    "brow_lower": {"brow_lower": 1.0},
    "frown": {"frown": 1.0},
    "jaw_right": {"jaw_lateral": -0.9, "jaw_open": 0.15},
    "mouth_left": {"mouth_lateral": 0.9},
    "mouth_right": {"mouth_lateral": -0.9},
    "dimple": {"dimple": 1.0},
    "chin_raise": {"chin_raise": 1.0},
    "grin": {"smile": 0.9, "lip_raise": 0.5, "lip_lower": 0.5},
}


@dataclass(frozen=True, slots=True)
class Tester:
    """One person; ``broken`` is empty or one of ``BROKEN``."""

    number: int
    broken: str

    @property
    def name(self) -> str:
        """Folder name."""
        return f"Tester_{self.number}"


@lru_cache(maxsize=1)
def polygons() -> list[Int[np.ndarray, "f k"]]:
    """Return quads and triangles (282 of the 11,540) over rings around the nose."""
    start = np.arange(VERTICES)
    row, column = start // COLUMNS, start % COLUMNS
    right = row * COLUMNS + (column + 1) % COLUMNS
    quads = np.stack([start, right, right + COLUMNS, start + COLUMNS], axis=1)
    quads = quads[(quads < VERTICES).all(axis=1)]
    quads = quads[(row[quads[:, 0]] < ROWS - 1) | (column[quads[:, 0]] < EXTRA - 1)]
    split = POLYGONS - len(quads)
    cut = quads[:split]
    triangles = np.concatenate([cut[:, [0, 1, 2]], cut[:, [0, 2, 3]]])
    return [quads[split:], triangles]


def ray_directions(angle: Float[np.ndarray, "r 110"]) -> Float[np.ndarray, "n 3"]:
    """Return unit vectors at angles from the nose direction, row by row over the columns."""
    azimuth = 2 * np.pi * (np.arange(COLUMNS) + 0.5) / COLUMNS
    local = np.stack(
        [np.sin(angle) * np.sin(azimuth), np.sin(angle) * np.cos(azimuth), np.cos(angle)], axis=-1
    )
    return local.reshape(-1, 3) @ turn(10.0, 0.0, 0.0).T


@lru_cache(maxsize=1)
def anchors() -> Anchors:
    """Return the mesh's points on the head's triangles; columns end before the neck's opening."""
    shape = studio.shape_of(studio.mean_vertices())

    def cast(angle: Float[np.ndarray, "r 110"]) -> tuple[Anchors, np.ndarray]:
        directions = ray_directions(angle)
        return outer_anchors(shape.vertices_mm, shape.faces, shape.origin_mm, directions, 450.0)

    steps = np.radians(np.arange(1.0, 136.0))
    _, hit = cast(np.repeat(steps[:, None], COLUMNS, axis=1))
    open_to = np.logical_and.accumulate(hit.reshape(-1, COLUMNS), axis=0).sum(axis=0)
    reach = open_to - 2.0
    for _ in range(COLUMNS):  # neighbouring columns end at nearly the same angle
        reach = np.minimum(reach, np.minimum(np.roll(reach, 1), np.roll(reach, -1)) + SLOPE_DEG)
    reach = np.radians(reach)
    fraction = (np.arange(ROWS + 1) + 1.0) / (ROWS + 1)
    found, hit = cast(fraction[:, None] ** 1.25 * reach)
    if not hit[:VERTICES].all():
        raise ValueError(f"{int((~hit[:VERTICES]).sum())} grid points miss the head")
    return Anchors(found.triangles[:VERTICES], found.weights[:VERTICES])


def mesh_of(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "11510 3"]:
    """Return the 11,510 points (mm, head frame) of a head in metres."""
    scaled = studio.MM * vertices
    return anchors().curved(scaled, vertex_normals(scaled, np.asarray(studio.head().faces)))


def expression_of(pose: int) -> "object | None":
    """Return the expression of a pose number; 0 is neutral."""
    from models.procedural.expression import Expression

    name = POSES[pose]
    if name == "neutral":
        return None
    return Expression.of(**_UNITS[name]) if name in _UNITS else Expression.prototype(name)


def seventy_four(points: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "74 2"]:
    """Return 74 points in an order of their own: 15 along the contour, then the rest."""
    place = np.linspace(0.0, 16.0, 15)
    low = np.minimum(place.astype(int), 15)
    contour = points[low] + (place - low)[:, None] * (points[low + 1] - points[low])
    pupils = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
    middles = [
        (points[19] + points[37]) / 2,
        (points[24] + points[44]) / 2,
        (points[31] + points[33]) / 2,
        (points[35] + points[33]) / 2,
        (points[48] + points[2]) / 2,
        (points[54] + points[14]) / 2,
    ]
    return np.concatenate([contour, points[17:], np.stack(pupils + middles)])


def testers(order: Order) -> list[Tester]:
    """Return the people, those with broken files last."""
    count = order.sizes.facewarehouse.subjects
    extra = len(BROKEN) * order.sizes.broken
    found = [Tester(k + 1, "") for k in range(count)]
    return found + [Tester(count + k + 1, BROKEN[k % len(BROKEN)]) for k in range(extra)]


def make_tester(
    tester: Tester, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth]:
    """Write one person's poses and, for the first few and a damaged one, the blendshapes."""
    sizes = order.sizes.facewarehouse
    who = person(order.seed, SOURCE, tester.name)
    rng = item_rng(order.seed, f"facewarehouse/{tester.name}")
    rotation = turn(rng.normal(0, 6.0), rng.normal(0, 6.0), rng.normal(0, 4.0))
    frame = Placement(DM_PER_MM, rotation, rng.normal(0.0, 0.1, 3))
    photos, scans = [], []
    for pose in range(sizes.poses if not tester.broken else 1):
        photo, scan = _write_pose(order, tester, who, pose, frame)
        photos.append(photo)
        if scan is not None:
            scans.append(scan)
    if tester.number <= sizes.blendshapes or tester.broken == "cut_blendshapes":
        _write_blendshapes(order, tester, who, frame)
    neutral = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(tester.name, who.identity.sex, who.identity.age_years, neutral)
    return photos, scans, row


def _write_pose(
    order: Order, tester: Tester, who: Person, pose: int, frame: Placement
) -> tuple[PhotoTruth, ScanTruth | None]:
    from models.procedural.expression import Expression
    from models.procedural.scene import sample_scene

    sizes = order.sizes.facewarehouse
    item = f"{tester.name}/pose_{pose}"
    rng = item_rng(order.seed, f"facewarehouse/{item}")
    face = expression_of(pose)
    assert face is None or isinstance(face, Expression)
    vertices = np.asarray(studio.head().vertices(who.identity, face))
    size = (int(sizes.size_px * 0.75), sizes.size_px)
    scene = sample_scene(
        rng, size, yaw_range_deg=(-18.0, 18.0), pitch_range_deg=(-8.0, 8.0),
        roll_range_deg=(-4.0, 4.0), face_fraction_range=(0.58, 0.66), quality=0.4,
    )  # fmt: skip
    photo = studio.shoot(who, face, scene, size, rng, vertices=vertices)
    image = png_bytes(photo.image)
    path = order.out / tester.name / "TrainingPose" / f"pose_{pose}"
    write(path.with_suffix(".png"), truncated(image) if tester.broken == "image" else image)
    points = seventy_four(photo.landmarks_px)
    text = land_text(points, *size)
    if tester.broken == "short_landmarks":
        text = text[: text.rindex("\n", 0, -1) + 1]
    write(path.with_suffix(".land"), text)
    truth = studio.photo_truth(f"{item}_photo", tester.name, photo)
    if pose >= sizes.meshes or tester.broken == "cut_blendshapes":
        return truth, None
    groups = polygons() if tester.broken != "no_faces" else []
    points_mm = mesh_of(vertices) + rng.normal(0.0, 0.03, (VERTICES, 3))
    mesh = obj_text(frame.apply(points_mm), groups, texture_indices=bool(groups), decimals=6)
    write(path.with_suffix(".obj"), mesh)
    landmarks = frame.apply(studio.MM * np.asarray(studio.head().landmarks(vertices)))
    return truth, ScanTruth(item, tester.name, frame, landmarks, pose > 0)


def _write_blendshapes(order: Order, tester: Tester, who: Person, frame: Placement) -> None:
    """Write ``shape.bs`` (47 meshes) and the neutral mesh beside it, or a third of the first."""
    from models.procedural.expression import LINEAR_UNITS, UNIT_COUNT, UNITS, Expression

    names = [name for name in UNITS if name not in LINEAR_UNITS] + list(LINEAR_UNITS)
    shapes = [frame.apply(mesh_of(np.asarray(studio.head().vertices(who.identity))))]
    for k in range(SHAPES - 1):
        weights = np.zeros(UNIT_COUNT)
        weights[UNITS.index(names[k % len(names)])] = 1.0 if k < len(names) else 0.5
        vertices = np.asarray(studio.head().vertices(who.identity, Expression(weights)))
        shapes.append(frame.apply(mesh_of(vertices)))
    folder = order.out / tester.name / "Blendshape"
    packed = shape_bs(np.stack(shapes), POLYGONS)
    if tester.broken == "cut_blendshapes":  # the only mesh of this person
        write(folder / "shape.bs", truncated(packed))
        return
    write(folder / "shape.bs", packed)
    write(folder / "shape_0.obj", obj_text(shapes[0], polygons(), texture_indices=True))


def landmark_vertices() -> Int[np.ndarray, "68"]:
    """Return the mesh vertex nearest to each landmark of the mean head, 0-based.

    Nearest with the mouth shut and with it open, so that no point sits on the wrong lip.
    """
    from models.procedural.expression import Expression
    from models.procedural.identity import Identity

    head = studio.head()
    away = np.zeros((68, VERTICES))
    for face in (None, Expression.prototype("mouth_open")):
        vertices = np.asarray(head.vertices(Identity.mean(), face))
        landmarks = studio.MM * np.asarray(head.landmarks(vertices))
        away += np.linalg.norm(landmarks[:, None] - mesh_of(vertices)[None], axis=2)
    return away.argmin(axis=1)


def build(order: Order) -> None:
    """Write FaceWarehouse and, as a user would, one annotation of its topology."""
    lines = "".join(f"{vertex + 1}\n" for vertex in landmark_vertices())
    write(order.out / "landmark_vertices.txt", lines)
    rows = studio.map_items(
        functools.partial(make_tester, order=order),
        testers(order),
        order,
        cost=order.sizes.facewarehouse.poses,
        label="FaceWarehouse",
    )
    images, scans = order.truth / "images.parquet", order.truth / "scans.parquet"
    write_photo_truth([row for photos, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, found, _ in rows for row in found], scans)
    write_people([row for _, _, row in rows], order.truth / "people.parquet")
