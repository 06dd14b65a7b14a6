"""Data and job of pix2face: 300W-LP photographs with rendered PNCC and offsets."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from models.face.morphable import LinearModel
from models.networks.encoders.square_crop import (
    crop_image,
    crop_matrix,
    crop_planes,
    landmark_square,
)
from stages.datasets.images import decode_rgb
from stages.photos import packed_images
from stages.rendered import RenderedSet
from stages.runtime.artifacts import read_json
from stages.training.assembly import held_out, save_array
from stages.training.pix2face_planes import COLUMNS, planes_of, save_coefficients

if TYPE_CHECKING:
    from models.methods.pix2face import Pix2Face
    from stages.training.run import Job

VALIDATION_SCALE = 1.4
"""Crop side over the landmarks' square where nothing is drawn at random."""
MAX_VALIDATION = 64


def prepare(
    folder: Path,
    *,
    packed: Path,
    rendered: Path,
    model: Path,
    section: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Write generous crops that training windows are cut from.

    Each base crop is a square around the landmarks wide enough for the largest window, at the
    resolution of the smallest. Where the render stage stored no maps (``render.on_the_fly``), the
    coefficients are kept instead, and every window is drawn when it is needed.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: Fewer than two photographs are left for training, or the published box does
            not hold the mean face.
    """
    from models.methods.pix2face import fit_boxes, published_boxes

    low, high = section["box_scale"]
    wide = high * (1 + 2 * section["box_shift"])
    base_px = round(section["size_px"] * wide / low)
    linear = LinearModel.load(model)
    unit_m = float(read_json(model / "meta.json")["unit_m"])
    mean_mm = 1000.0 * unit_m * linear.mean
    if section["target_box"] == "published":
        boxes = published_boxes(mean_mm)
    else:
        boxes = fit_boxes(mean_mm, section["largest_offset_mm"])
    opened = RenderedSet.open(rendered)
    drawn = set(opened.item_ids)
    images, planes, masks, subjects, skipped = [], [], [], [], 0
    coefficients, bases = [], []
    columns = ["item_id", "subject_id", "status", "split", "image", "landmarks_px"]
    if opened.on_the_fly:
        columns += COLUMNS
    for row in packed_images(packed, columns):
        if row["split"] == "test":  # AFLW2000-3D: nothing learns from it
            continue
        usable = row["status"] == "ok" and row["item_id"] in drawn
        if not usable or row["landmarks_px"] is None:
            skipped += 1
            continue
        centre, side = landmark_square(np.asarray(row["landmarks_px"], float).reshape(-1, 2))
        matrix = crop_matrix(centre, wide * side, base_px)
        if opened.on_the_fly:
            coefficients.append({name: row[name] for name in COLUMNS})
            bases.append(matrix)
        else:
            maps = opened.maps(row["item_id"])
            values = np.concatenate([maps.pncc_mm, maps.offset_mm], axis=-1)
            cropped, seen = crop_planes(values, maps.mask, matrix, base_px)
            planes.append(cropped.astype(np.float16))
            masks.append(seen)
        images.append(crop_image(decode_rgb(row["image"]), matrix, base_px))
        subjects.append(row["subject_id"])
    kept = held_out(sorted(set(subjects)), section["holdout"], seed) if subjects else set()
    validation = np.array([subject in kept for subject in subjects])
    if int((~validation).sum()) < 2:
        raise ValueError(
            f"pix2face needs >= 2 rendered training photographs of {packed}, got "
            f"{int((~validation).sum())} ({skipped} skipped: failed, not rendered, no landmarks)"
        )
    save_array(np.stack(images), folder / "images.npy")
    if opened.on_the_fly:
        save_coefficients(folder, model, coefficients, bases)
    else:
        save_array(np.stack(planes), folder / "planes.npy")
        save_array(np.stack(masks), folder / "masks.npy")
    save_array(validation, folder / "validation.npy")
    return {
        "photographs": len(images),
        "validation_photographs": int(validation.sum()),
        "validation_subjects": sorted(kept),
        "skipped": skipped,
        "base_px": base_px,
        "wide": wide,
        "boxes": {
            "pncc_low_mm": list(boxes.pncc_low_mm),
            "pncc_high_mm": list(boxes.pncc_high_mm),
            "offset_mm": boxes.offset_mm,
        },
        **({"drawn_unit_m": unit_m} if opened.on_the_fly else {}),
    }


def boxes_of(facts: Mapping[str, Any]) -> Any:  # noqa: ANN401 - Boxes, imported late
    """The ``Boxes`` that facts describe."""
    from models.methods.pix2face import Boxes

    return Boxes(
        tuple(facts["pncc_low_mm"]), tuple(facts["pncc_high_mm"]), float(facts["offset_mm"])
    )


def network(config: Mapping[str, Any], facts: Mapping[str, Any]) -> "Pix2Face":
    """The network of these parameters and prepared facts, freshly initialised."""
    from models.methods.pix2face import Pix2Face, Pix2FaceConfig

    sizes = (config["size_px"], config["width"], config["depth"], config["background_weight"])
    boxes = boxes_of(facts["boxes"])
    return Pix2Face(Pix2FaceConfig(*sizes, boxes, config["up"], config["target"]))


def turned(
    matrix: Float[np.ndarray, "2 3"], angle_rad: float, size_px: int
) -> Float[np.ndarray, "2 3"]:
    """T_crop_from_image of the same square, turned clockwise as seen about its middle.

    Only the picture turns: PNCC and offset are coordinates of the head.
    """
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    turn, middle = np.array([[cosine, -sine], [sine, cosine]]), np.full(2, size_px / 2)
    return np.c_[turn @ matrix[:, :2], middle + turn @ (matrix[:, 2] - middle)]


def build(data: Path, config: Mapping[str, Any]) -> "Job":
    """The worker's job: random windows, masked targets, millimetre metrics."""
    import torch

    from models.methods.pix2face import (
        face_pixels,
        input_blob,
        published_jitter,
        target_planes,
    )
    from models.networks.encoders.augment import Augmentation, relight
    from models.networks.train_loop import predict, step_rng
    from stages.training.run import Job

    images = np.load(data / "images.npy", mmap_mode="r")
    validation = np.load(data / "validation.npy")
    facts = read_json(data / "facts.json")
    boxes = boxes_of(facts["boxes"])
    planes = planes_of(data, facts)
    size, base, wide = config["size_px"], facts["base_px"], facts["wide"]
    change = Augmentation(**config["augment"])
    training, held = np.flatnonzero(~validation), np.flatnonzero(validation)[:MAX_VALIDATION]
    model = network(config, facts)
    target = config["target"]

    def windows(
        picks: list[tuple[int, float, Float[np.ndarray, "2"], float]],
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Image bytes, six planes in mm and mask of windows (photograph, scale, shift, turn)."""
        unit = base / wide  # the landmarks' square in base pixels
        matrices = [
            turned(crop_matrix(np.full(2, base / 2) + shift * unit, scale * unit, size), turn, size)
            for _, scale, shift, turn in picks
        ]
        indices = [index for index, _, _, _ in picks]
        pictures = [
            crop_image(np.ascontiguousarray(images[index]), matrix, size)
            for index, matrix in zip(indices, matrices, strict=True)
        ]
        targets = planes.targets(indices, matrices, size)
        return [
            (picture, truth.planes_mm, truth.mask)
            for picture, truth in zip(pictures, targets, strict=True)
        ]

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        rngs, picks = [], []
        for slot in slots:
            rng = step_rng(config["seed"], step, slot)
            scale = rng.uniform(*config["box_scale"])
            shift = rng.uniform(-config["box_shift"], config["box_shift"], 2)
            index = int(rng.choice(training))
            limit = float(np.radians(change.rotate_deg))
            picks.append((index, scale, shift, rng.uniform(-limit, limit) if limit else 0.0))
            rngs.append(rng)
        blobs, targets, seens = [], [], []
        for rng, (picture, values, seen) in zip(rngs, windows(picks), strict=True):
            published = config["colour"] == "published"
            lit = published_jitter(picture, rng) if published else relight(picture, change, rng)
            blobs.append(input_blob(lit))
            targets.append(target_planes(values[..., :3], values[..., 3:], seen, boxes, target))
            seens.append(seen)
        return {
            "image": torch.from_numpy(np.stack(blobs)),
            "target": torch.from_numpy(np.stack(targets)),
            "mask": torch.from_numpy(np.stack(seens)),
        }

    def validate(net: torch.nn.Module) -> dict[str, float]:
        found: dict[str, list[float]] = {}

        def note(name: str, errors: Float[np.ndarray, "s s 3"], seen: np.ndarray) -> None:
            found.setdefault(name, []).append(float(np.linalg.norm(errors, axis=-1)[seen].mean()))

        for index in held:
            picks = [(int(index), VALIDATION_SCALE, np.zeros(2), 0.0)]
            [(picture, values, seen)] = windows(picks)
            out = predict(net, torch.from_numpy(input_blob(picture))[None])[0].cpu().numpy()
            guess = boxes.decode(out.transpose(1, 2, 0).astype(np.float64), target)
            shape = guess
            if target == "pncc_offset":
                note("pncc_mm", guess[..., :3] - values[..., :3], seen)
                note("offset_mm", guess[..., 3:] - values[..., 3:], seen)
                note("zero_offset_mm", values[..., 3:], seen)
                shape = guess[..., :3] + guess[..., 3:]
            note("xyz_mm", shape - values[..., :3] - values[..., 3:], seen)
            face = face_pixels(guess[..., :3])
            overlap = (face & seen).sum() / max(1, (face | seen).sum())
            found.setdefault("overlap", []).append(float(overlap))
        return {name: float(np.mean(values)) for name, values in found.items()}

    return Job(model, batch, validate, None, "pncc_mm" if target == "pncc_offset" else "xyz_mm")
