"""300W-LP and AFLW2000-3D: photographs of a linear model's own geometry.

A person's head and expression are projected onto the 3DDFA-format basis; what is drawn is the
model's geometry under ``Pose_Para``, so coefficients, PNCC truth and picture agree exactly. The
jaw of ``pt2d`` follows the visible contour, as in the real files.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stages.corpus import basel_source, studio, three_ddfa
from stages.corpus.files import jpeg_bytes, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, gapped_numbers, person, write_people
from stages.corpus.studio import PhotoTruth, write_photo_truth
from stages.corpus.w300lp_files import (
    AFLW_21,
    SIZE_PX,
    Pose,
    aflw_mat,
    appearance_fields,
    matlab_points,
    mirrored_points,
    points_mat,
    project,
    rotation,
    sample_mat,
)
from stages.runtime.compute import item_rng

SOURCE = "300w_lp"
SETS = ("AFW", "HELEN", "IBUG", "LFPW")
FACE_UM = np.array([0.0, -8_000.0, 80_000.0])  # middle of a face in the Basel frame
AFLW_LAST = 4385
AFLW_HIDDEN = 0.22  # share of the 21 points that are marked invisible beyond half profile


@dataclass(frozen=True, slots=True)
class Face:
    """One source photograph.

    Attributes:
        subset: One of ``SETS``, or ``AFLW2000``.
        name: File stem without the view number.
        flipped: Whether the flipped tree has it.
        same_points: Whether every view repeats the landmarks of view 0, as some mirrors do.
        broken: Empty, ``image`` (truncated) or ``pose`` (no Pose_Para).
    """

    subset: str
    name: str
    flipped: bool = False
    same_points: bool = False
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One drawn view: coefficients, pose, picture and its points (1-based pixels)."""

    shape: Float[np.ndarray, "199"]
    expression: Float[np.ndarray, "29"]
    pose: Pose
    image: np.ndarray
    visible: Float[np.ndarray, "68 2"]
    solid: Float[np.ndarray, "68 3"]
    truth: PhotoTruth


def faces(order: Order) -> list[Face]:
    """Return the list of source photographs, the broken ones last."""
    sizes = order.sizes.faces_300w
    rng = item_rng(order.seed, "300w_lp/list")
    total = sizes.faces + 2 * order.sizes.broken
    numbers = [str(n) for n in gapped_numbers(total, 9999, rng)]
    found = []
    for k, number in enumerate(numbers):
        subset = SETS[k % len(SETS)]
        stem = {
            "AFW": f"AFW_{number}{number}_1",
            "HELEN": f"HELEN_{number}_1",
            "IBUG": f"IBUG_image_{number}_1",
            "LFPW": f"LFPW_image_train_{number.zfill(4)}",
        }[subset]
        extra = k - sizes.faces
        broken = "" if extra < 0 else ("image", "pose")[extra % 2]
        flipped = extra < 0 and k % sizes.flip_every == 0
        found.append(Face(subset, stem, flipped, k == 1, broken))
    return found


def expression_scale(model: basel_source.Model) -> Float[np.ndarray, "29"]:
    """Return what turns unit-norm expression coefficients into ``Exp_Para``."""
    spread = three_ddfa.expression_coefficient_sigma(len(model.expression.sigma))
    return spread / model.expression.sigma


def draw(
    model: basel_source.Model,
    who: Person,
    item: str,
    pose: Pose,
    neutral: bool,
    face_rng: np.random.Generator,
    rng: np.random.Generator,
) -> Sample:
    """Photograph a person through the linear model.

    Args:
        model: The 3DDFA-format model with its companion on the head.
        who: The person.
        item: Name for the truth.
        pose: ``Pose_Para``.
        neutral: Store exactly zero expression coefficients.
        face_rng: Draws what all views of a photograph share.
        rng: Sensor noise.
    """
    from models.procedural.expression import sample_expression
    from models.procedural.scene import (
        Camera,
        Scene,
        sample_background,
        sample_finish,
        sample_light,
    )

    origin = basel_source.basel_from_head()
    head = studio.head()
    rest = basel_source.UM * (np.asarray(head.vertices(who.identity)) - origin)
    expression = sample_expression(face_rng, float(face_rng.uniform(0.0, 1.0)))
    moved = basel_source.UM * (np.asarray(head.vertices(who.identity, expression)) - origin)
    alpha = model.shape.coefficients(rest)
    scale = expression_scale(model)
    parameters = scale * model.expression.coefficients(moved - rest)
    if neutral:
        parameters = np.zeros_like(parameters)
    vertices_um = model.head_vertices(alpha, parameters / scale)
    R = rotation(pose.pitch, pose.yaw, pose.roll)
    centre = (pose.x_px - 0.5, SIZE_PX + 0.5 - pose.y_px)
    scale_px = pose.scale * basel_source.UM
    camera = Camera(R, -R @ origin, scale_px, centre, orthographic=True)
    scene = Scene(
        camera, sample_light(face_rng), sample_background(face_rng), sample_finish(face_rng)
    )
    photo = studio.shoot(
        who, None, scene, (SIZE_PX, SIZE_PX), rng,
        vertices=vertices_um / basel_source.UM + origin,
    )  # fmt: skip
    key = model.anchors.flat(vertices_um)[model.keypoints]
    projected = project(key, pose)
    solid = np.hstack([matlab_points(projected, SIZE_PX), projected[:, 2:]])
    visible = solid[:, :2].copy()
    visible[:17] = photo.landmarks_px[:17] + 0.5
    truth = studio.photo_truth(item, who.subject, photo)
    return Sample(alpha, parameters, pose, photo.image, visible, solid, truth)


def random_pose(rng: np.random.Generator, yaw_deg: float) -> Pose:
    """Draw pitch, roll, scale and place around a yaw, as float32 holds them."""
    pitch, roll = np.radians(rng.normal(0.0, [9.0, 8.0]))
    scale = rng.uniform(1.0e-3, 1.35e-3)
    yaw = np.radians(yaw_deg)
    middle = scale * rotation(pitch, yaw, roll) @ FACE_UM
    place = SIZE_PX / 2 + rng.normal(0.0, 9.0, 2) - middle[:2]
    depth = -66.0 + rng.normal(0.0, 4.0)
    return Pose(pitch, yaw, roll, float(place[0]), float(place[1]), depth, scale).rounded()


def view_yaws(rng: np.random.Generator, views: int) -> list[float]:
    """Return the yaw of each view: the original's, then growing to the side it looks to."""
    start = float(np.clip(rng.normal(0.0, 20.0), -45.0, 45.0))
    side = 1.0 if start >= 0 else -1.0
    last = rng.uniform(45.0, 85.0)
    steps = np.linspace(0.0, 1.0, views)
    return [start + side * max(last - abs(start), 10.0) * float(step) for step in steps]


def mirrored_coefficients(
    model: basel_source.Model, sample: Sample
) -> tuple[Float[np.ndarray, "199"], Float[np.ndarray, "29"]]:
    """Return the coefficients of the mirror image of a sample's face."""
    scale = expression_scale(model)
    moved = (model.shape.head @ sample.shape).reshape(-1, 3)
    shape = model.shape.coefficients(basel_source.mirrored(model.shape.mean + moved))
    moved = (model.expression.head @ (sample.expression / scale)).reshape(-1, 3)
    mean = model.expression.mean
    expression = model.expression.coefficients(basel_source.mirrored(mean + moved))
    return shape, scale * expression


def make_face(face: Face, model: basel_source.Model, order: Order) -> list[PhotoTruth]:
    """Write every view of one source photograph."""
    who = person(order.seed, SOURCE, face.name)
    pose_rng = item_rng(order.seed, f"300w_lp/pose/{face.name}")
    views = order.sizes.faces_300w.views if not face.broken else 1
    truth = []
    first: np.ndarray | None = None
    for k, yaw in enumerate(view_yaws(pose_rng, views)):
        item = f"{face.subset}/{face.name}_{k}"
        look = item_rng(order.seed, f"300w_lp/look/{face.name}")
        rng = item_rng(order.seed, f"300w_lp/{item}")
        sample = draw(model, who, item, random_pose(pose_rng, yaw), False, look, rng)
        truth.append(sample.truth)
        first = sample.visible if first is None else first
        visible = first if face.same_points else sample.visible
        fields = appearance_fields(look)
        low = pose_rng.integers(-200, 300, 2)
        roi = np.concatenate([low, low + pose_rng.integers(250, 900)])
        image = jpeg_bytes(sample.image)
        path = order.out / face.subset / f"{face.name}_{k}"
        write(path.with_suffix(".jpg"), truncated(image) if face.broken == "image" else image)
        pose = None if face.broken == "pose" else sample.pose
        content = sample_mat(sample.shape, sample.expression, pose, visible, roi, fields)
        write(path.with_suffix(".mat"), content)
        points = order.out / "landmarks" / face.subset / f"{face.name}_{k}_pts.mat"
        write(points, points_mat(sample.visible, sample.solid[:, :2]))
        if face.flipped:
            shape, expression = mirrored_coefficients(model, sample)
            path = order.out / f"{face.subset}_Flip" / f"{face.name}_{k}"
            write(path.with_suffix(".jpg"), jpeg_bytes(sample.image[:, ::-1]))
            points_2d = mirrored_points(visible, SIZE_PX)
            content = sample_mat(
                shape, expression, sample.pose.mirrored(SIZE_PX), points_2d, roi, fields
            )
            write(path.with_suffix(".mat"), content)
    return truth


def make_aflw(number: int, model: basel_source.Model, order: Order) -> list[PhotoTruth]:
    """Write one AFLW2000-3D sample; every fifth has no expression."""
    name = f"image{number:05d}"
    who = person(order.seed, SOURCE, name)
    rng = item_rng(order.seed, f"300w_lp/AFLW2000/{name}")
    yaw = float(rng.uniform(-75.0, 75.0))
    neutral = number % 5 == 0
    item = f"AFLW2000/{name}"
    sample = draw(model, who, item, random_pose(rng, yaw), neutral, rng, rng)
    visible = sample.visible[AFLW_21]
    if abs(yaw) > 30.0:
        far = np.argsort(sample.solid[AFLW_21, 2])[: int(len(AFLW_21) * AFLW_HIDDEN)]
        visible[far] = -1.0
    low = rng.integers(-400, 300, 2)
    roi = np.concatenate([low, low + rng.integers(300, 1600)])
    path = order.out / "AFLW2000" / name
    write(path.with_suffix(".jpg"), jpeg_bytes(sample.image))
    content = aflw_mat(
        sample.shape, sample.expression, sample.pose, sample.solid, visible, roi,
        appearance_fields(rng),
    )  # fmt: skip
    write(path.with_suffix(".mat"), content)
    return [sample.truth]


def build(order: Order) -> None:
    """Write 300W-LP, its flips and landmarks, and AFLW2000-3D."""
    todo = faces(order)
    rng = item_rng(order.seed, "300w_lp/aflw")
    numbers = gapped_numbers(order.sizes.faces_300w.aflw, AFLW_LAST, rng)
    model = three_ddfa.source_model(order.sizes.morphable, order.seed)
    rows = studio.map_items(
        functools.partial(make_face, model=model, order=order), todo, order,
        cost=order.sizes.faces_300w.views, label="300W-LP",
    )  # fmt: skip
    rows += studio.map_items(
        functools.partial(make_aflw, model=model, order=order), numbers, order,
        cost=1.0, label="AFLW2000-3D",
    )  # fmt: skip
    write_photo_truth([row for part in rows for row in part], order.truth / "images.parquet")
    names = [face.name for face in todo] + [f"image{number:05d}" for number in numbers]
    people = []
    for name in names:
        who = person(order.seed, SOURCE, name)
        neutral = np.asarray(studio.head().vertices(who.identity))
        people.append(PersonTruth(name, who.identity.sex, who.identity.age_years, neutral))
    write_people(people, order.truth / "people.parquet")
    (order.out / "Code").mkdir()
    write(order.out / "Code" / "README.txt", "The owner's MATLAB code is not imitated.\n")
