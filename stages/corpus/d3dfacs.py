"""D3DFACS: sequences from rest to the peak of an action unit and back, with photographs."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.corpus import studio
from stages.corpus.files import bmp_bytes, jpeg_bytes, obj_text, truncated, write
from stages.corpus.order import Order
from stages.corpus.people import Person, PersonTruth, person, write_people
from stages.corpus.scan import Placement, Scanner, turn
from stages.corpus.scan_files import material_text, planar_texture, ply_bytes
from stages.corpus.studio import PhotoTruth, ScanTruth, write_photo_truth, write_scan_truth
from stages.runtime.compute import item_rng

if TYPE_CHECKING:
    from models.procedural.expression import Expression

SOURCE = "d3dfacs"
ACTORS = {
    "Adrian": "man", "Darren": "man", "Eva": "woman", "Gwenda": "woman", "Helen": "woman",
    "James": "man", "Joe": "man", "Kornelia": "woman", "Michaela": "woman", "Nat": None,
}  # fmt: skip
SEQUENCES = {
    "1+2": {"brow_raise_inner": 1.0, "brow_raise_outer": 1.0},
    "12": {"smile": 1.0},
    "4": {"brow_lower": 1.0},
    "26": {"jaw_open": 0.8},
    "9": {"nose_wrinkle": 1.0, "lip_raise": 0.4},
    "6+12": {"cheek_raise": 1.0, "smile": 0.9},
    "15": {"frown": 1.0},
    "18": {"pucker": 1.0},
    "20": {"stretch": 1.0},
    "25": {"lip_raise": 0.5, "lip_lower": 0.6},
}
BROKEN = ("image", "cut_scan", "nan_scan")
"""Each kind is one more sequence (or photograph) of one of the actors."""
ALIGNED_ONLY = 3  # of this many actors the last has registrations, but no raw scans
TEXTURE_PX = (160, 128)  # the real ones have eight times as many rows and columns


@dataclass(frozen=True, slots=True)
class Actor:
    """One person's files.

    Attributes:
        name: As the set calls them.
        index: Place among the actors.
        raw: Whether there are raw scans.
        broken: Which of ``BROKEN`` are among the files.
    """

    name: str
    index: int
    raw: bool
    broken: tuple[str, ...]


def actors(order: Order) -> list[Actor]:
    """Return the actors; broken files are spread over them."""
    names = list(ACTORS)[: order.sizes.d3dfacs.subjects]
    kinds = [BROKEN[k % len(BROKEN)] for k in range(len(BROKEN) * order.sizes.broken)]
    raw = [k % (ALIGNED_ONLY + 1) != ALIGNED_ONLY for k in range(len(names))]
    filmed = [k for k, here in enumerate(raw) if here]
    found = []
    for k, name in enumerate(names):
        mine = tuple(kind for i, kind in enumerate(kinds) if filmed[i % len(filmed)] == k)
        found.append(Actor(name, k, raw[k], mine))
    return found


def intensity(step: int, steps: int) -> float:
    """Strength of the expression at a scan of a sequence: rest, peak, rest."""
    return float(np.sin(np.pi * step / (steps - 1))) if 0 < step < steps - 1 else 0.0


def make_actor(
    actor: Actor, order: Order
) -> tuple[list[PhotoTruth], list[ScanTruth], PersonTruth, str]:
    """Write one person's sequences and photographs; the text is their lines of the neutral list."""
    from models.procedural.expression import Expression

    sizes = order.sizes.d3dfacs
    who = person(order.seed, SOURCE, actor.name, ACTORS[actor.name])
    rng = item_rng(order.seed, f"d3dfacs/{actor.name}")
    names = list(SEQUENCES)
    chosen = [names[(actor.index + k) % len(names)] for k in range(sizes.sequences)]
    truth, listed = [], []
    stride = max(60 // (sizes.scans - 1), 1)  # a second of film
    for name in chosen:
        start = int(rng.integers(60, 240))
        for step in range(sizes.scans):
            stem = f"{name}_{start + step * stride:03d}"
            strength = intensity(step, sizes.scans)
            units = {unit: strength * weight for unit, weight in SEQUENCES[name].items()}
            face = Expression.of(**units) if strength else None
            truth.append(_write_frame(order, actor, who, name, stem, face))
            if step == 0:
                listed.append(f"{actor.name},{stem}\r\n")
    for kind in actor.broken:
        _write_broken(order, actor, who, kind)
    neutral = np.asarray(studio.head().vertices(who.identity))
    row = PersonTruth(actor.name, who.identity.sex, who.identity.age_years, neutral)
    return _write_photos(order, actor, who), truth, row, "".join(listed)


def _write_frame(
    order: Order,
    actor: Actor,
    who: Person,
    sequence: str,
    stem: str,
    face: "Expression | None",
) -> ScanTruth:
    """One scan of a sequence, or its registration where there are no raw scans."""
    item = f"{actor.name}/{stem}"
    vertices = np.asarray(studio.head().vertices(who.identity, face))
    frame, scan = _scanned(order, who, vertices, item)
    aligned = order.out / "d3dfacs_alignments" / actor.name / sequence / f"{stem}.ply"
    if not actor.raw:
        write(aligned, ply_bytes(vertices, np.asarray(studio.head().faces)))
        still = Placement(0.001, np.eye(3), np.zeros(3))
        points = still.apply(studio.MM * np.asarray(studio.head().landmarks(vertices)))
        return ScanTruth(item, actor.name, still, points, face is not None)
    if actor.index == 0 and sequence == "1+2":
        write(aligned, ply_bytes(vertices, np.asarray(studio.head().faces)))
    folder = order.out / actor.name / sequence
    name = f"material_{actor.index}" if actor.index % 2 else stem  # every other .mtl differs
    text = obj_text(
        scan.vertices,
        scan.faces,
        head=f"mtllib {stem}.mtl\n",
        material=stem,
        texture_indices=True,
        decimals=4,
    )
    write(folder / f"{stem}.obj", text.replace("\n", "\r\n") if actor.index == 1 else text)
    write(folder / f"{stem}.mtl", material_text(name, f"{stem}.bmp"))
    if face is not None:  # textures of some frames are lost
        write(
            folder / f"{stem}.bmp",
            bmp_bytes(planar_texture(scan.vertices, scan.colours, TEXTURE_PX)),
        )
    return ScanTruth(item, actor.name, frame, scan.landmarks, face is not None)


def _scanned(
    order: Order, who: Person, vertices: np.ndarray, item: str
) -> tuple[Placement, studio.PlacedScan]:
    """A front scan without cap, in the frame of that recording."""
    rng = item_rng(order.seed, f"d3dfacs/scan/{item.rpartition('_')[0]}")
    frame = Placement(
        1.0,
        turn(rng.normal(0, 8.0), rng.normal(0, 8.0), rng.normal(0, 5.0)),
        rng.normal(0.0, [25.0, 40.0, 40.0]),
    )
    rng = item_rng(order.seed, f"d3dfacs/scan/{item}")
    hair = who.appearance.hair
    scanner = Scanner(
        vertices=order.sizes.d3dfacs.scan_vertices,
        back=False,
        covering="hair" if hair.style != "bald" else "none",
        hair_mm=float(np.clip(hair.volume_mm, 2.0, 12.0)),
        noise_mm=float(rng.uniform(0.1, 0.25)),
        holes=int(rng.integers(1, 4)),
        chin_hole=bool(rng.random() < 0.2),
        scraps=int(rng.integers(0, 3)),
        shoulders=False,
    )
    return frame, studio.scan_person(who, vertices, scanner, frame, rng)


def _write_broken(order: Order, actor: Actor, who: Person, kind: str) -> None:
    """One more sequence of a single, unusable scan; a broken photograph is written elsewhere."""
    if kind == "image":
        return
    vertices = np.asarray(studio.head().vertices(who.identity))
    stem = f"43_{BROKEN.index(kind)}00"
    _, scan = _scanned(order, who, vertices, f"{actor.name}/{stem}")
    points = scan.vertices.copy()
    if kind == "nan_scan":
        points[3::131] = np.nan
    text = obj_text(points, scan.faces, decimals=4)
    path = order.out / actor.name / "43" / f"{stem}.obj"
    write(path, truncated(text.encode()) if kind == "cut_scan" else text)


def _write_photos(order: Order, actor: Actor, who: Person) -> list[PhotoTruth]:
    from models.procedural.scene import (
        Background,
        Finish,
        Scene,
        perspective_camera,
        portrait_light,
        rotation_from_angles,
    )

    truth = []
    height = order.sizes.d3dfacs.size_px
    size = (height, int(height * 0.8))
    folder = order.out / "processed" / "images" / actor.name
    for k in range(order.sizes.d3dfacs.photos):
        side = 1 + k % 2  # the two colour cameras of the rig
        name = f"texture_{side}C_{60 + k:03d}"
        rng = item_rng(order.seed, f"d3dfacs/photo/{actor.name}/{name}")
        yaw = (1.0 if side == 2 else -1.0) * rng.uniform(14.0, 24.0)
        camera = perspective_camera(
            rotation_from_angles(float(yaw), float(rng.normal(0, 4.0)), float(rng.normal(0, 3.0))),
            size,
            distance_m=float(rng.uniform(0.95, 1.1)),
            face_fraction=float(rng.uniform(0.5, 0.58)),
        )
        grey = Background("plain", np.full((5, 3), rng.uniform(0.02, 0.15)), k)
        light = portrait_light(key_yaw_deg=float(-2.0 * yaw), key_pitch_deg=18.0)
        scene = Scene(camera, light, grey, Finish(noise=0.006, contrast=0.2))
        photo = studio.shoot(who, None, scene, size, rng)
        image = jpeg_bytes(photo.image)
        broken = "image" in actor.broken and k == 0
        write(folder / f"{name}.jpg", truncated(image) if broken else image)
        truth.append(studio.photo_truth(f"{actor.name}/{name}", actor.name, photo))
    return truth


def build(order: Order) -> None:
    """Write D3DFACS and, as a user would, the list of its neutral scans."""
    sizes = order.sizes.d3dfacs
    rows = studio.map_items(
        functools.partial(make_actor, order=order),
        actors(order),
        order,
        cost=sizes.sequences * sizes.scans + sizes.photos,
        label="D3DFACS",
    )
    listing = "subject,scan\r\n" + "".join(lines for _, _, _, lines in rows)
    write(order.out / "neutral_frames.csv", listing)
    images, scans = order.truth / "images.parquet", order.truth / "scans.parquet"
    write_photo_truth([row for photos, _, _, _ in rows for row in photos], images)
    write_scan_truth([row for _, found, _, _ in rows for row in found], scans)
    write_people([row for _, _, row, _ in rows], order.truth / "people.parquet")
