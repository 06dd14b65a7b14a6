"""VGGFace2: photographs by identity, with loose boxes and five points in two quoting styles."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stages.corpus import studio
from stages.corpus.files import jpeg_bytes, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import PersonTruth, gapped_numbers, person, write_people
from stages.corpus.studio import PhotoTruth, write_photo_truth
from stages.runtime.compute import item_rng

SOURCE = "vggface2"
LAST = 9294
TEST_EVERY = 12


@dataclass(frozen=True, slots=True)
class Identity:
    """One folder; ``broken`` says that its first photograph is cut short."""

    name: str
    part: str
    broken: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One photograph in the tables."""

    identity: Identity
    key: str
    box: Float[np.ndarray, "4"]
    points: Float[np.ndarray, "5 2"]
    truth: PhotoTruth


def identities(order: Order) -> list[Identity]:
    """Return the identities; every twelfth belongs to the test part."""
    sizes = order.sizes.vggface2
    rng = item_rng(order.seed, "vggface2/list")
    numbers = gapped_numbers(sizes.identities + order.sizes.broken, LAST, rng)
    return [
        Identity(
            f"n{number:06d}",
            "test" if k % TEST_EVERY == 5 else "train",
            broken=k >= sizes.identities,
        )
        for k, number in enumerate(numbers)
    ]


def five_points(points: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "5 2"]:
    """Return eye centres, nose tip and mouth corners, image left first."""
    eyes = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
    return np.stack([*eyes, points[30], points[48], points[54]])


def make_identity(identity: Identity, order: Order) -> tuple[list[Row], PersonTruth]:
    """Write one identity's photographs."""
    from models.procedural.expression import sample_expression
    from models.procedural.occluders import sample_occluder
    from models.procedural.scene import sample_scene

    sizes = order.sizes.vggface2
    who = person(order.seed, SOURCE, identity.name)
    rows = []
    for k in range(sizes.photos if not identity.broken else 1):
        stem = f"{k * 3 + 1:04d}_{1 + k % 2:02d}"
        key = f"{identity.name}/{stem}"
        rng = item_rng(order.seed, f"vggface2/{key}")
        height = int(sizes.size_px * rng.uniform(0.9, 1.15))
        size = (height, int(height * rng.uniform(0.8, 1.05)))
        scene = sample_scene(
            rng, size, yaw_range_deg=(-50.0, 50.0), pitch_range_deg=(-18.0, 18.0),
            face_fraction_range=(0.6, 0.76), quality=float(rng.uniform(0.2, 0.95)),
        )  # fmt: skip
        face = sample_expression(rng, float(rng.uniform(0.0, 0.9)))
        worn = (sample_occluder(rng, "glasses"),) if rng.random() < 0.1 else ()
        photo = studio.shoot(who, face, scene, size, rng, occluders=worn)
        image = jpeg_bytes(photo.image, int(rng.integers(75, 95)))
        path = order.out / identity.part / identity.name / f"{stem}.jpg"
        write(path, truncated(image) if identity.broken else image)
        low, high = photo.landmarks_px.min(axis=0), photo.landmarks_px.max(axis=0)
        margin = 0.12 * (high - low)
        box = np.concatenate([low - margin, high - low + 2 * margin])
        truth = studio.photo_truth(key, identity.name, photo)
        rows.append(Row(identity, key, box, five_points(photo.landmarks_px), truth))
    neutral = np.asarray(studio.head().vertices(who.identity))
    return rows, PersonTruth(identity.name, who.identity.sex, who.identity.age_years, neutral)


def box_table(rows: list[Row]) -> str:
    """Return ``loose_bb_*.csv``: quoted names, whole pixels."""
    lines = [
        f'"{row.key}",' + ",".join(str(round(float(value))) for value in row.box) for row in rows
    ]
    return "\n".join(["NAME_ID,X,Y,W,H", *lines, ""])


def point_table(rows: list[Row]) -> str:
    """Return ``loose_landmark_*.csv``: bare names, fractions."""
    head = ",".join(["NAME_ID", *(f"P{k}{axis}" for k in range(1, 6) for axis in "XY")])
    lines = [f"{row.key}," + ",".join(f"{v:.3f}" for v in row.points.ravel()) for row in rows]
    return "\n".join([head, *lines, ""])


def build(order: Order) -> None:
    """Write VGGFace2."""
    made = studio.map_items(
        functools.partial(make_identity, order=order),
        identities(order),
        order,
        cost=order.sizes.vggface2.photos,
        label="VGGFace2",
    )
    rows = [row for found, _ in made for row in found]
    for part in ("train", "test"):
        chosen = [row for row in rows if row.identity.part == part]
        tables = order.out / "bb_landmark"
        write(tables / f"loose_bb_{part}.csv", box_table(chosen))
        write(tables / f"loose_landmark_{part}.csv", point_table(chosen))
    write_photo_truth([row.truth for row in rows], order.truth / "images.parquet")
    write_people([truth for _, truth in made], order.truth / "people.parquet")
