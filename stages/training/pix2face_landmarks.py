"""After pix2face's training: which vertex is which landmark, on the photographs it learned from."""

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.face.morphable import LinearModel
from models.methods.pix2face_fit import ModelFit
from models.methods.pix2face_landmarks import LandmarkChoice
from models.methods.pix2face_photo import FitSettings, PhotoFit
from models.networks.encoders.square_crop import landmark_square
from models.networks.train_loop import load_state
from stages.datasets.images import decode_rgb
from stages.photos import packed_images
from stages.runtime.artifacts import read_json
from stages.training.pix2face import VALIDATION_SCALE, network

logger = logging.getLogger(__name__)

MINIMUM = 10
MOST_VERTICES = 3000
"""Enough for a choice that is averaged over photographs."""


def choose_landmarks(
    state: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    *,
    packed: Path,
    model: Path,
    section: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Fit annotated training photographs and keep the vertices nearest to the annotations.

    Distances count in pixels of the crop that the network sees, so that large photographs do not
    decide alone. Photographs that cannot be fitted are counted by reason.

    Args:
        state: Trained weights.
        facts: What :func:`stages.training.pix2face.prepare` left.
        packed: Packed 300W-LP.
        model: Converted 3DDFA folder.
        section: The method's parameters.
        seed: Decides which photographs are taken.

    Returns:
        Facts for the checkpoint: ``landmark_vertices`` (None where no photograph could be fitted),
        ``landmark_error_px`` (mean over landmarks, pixels of the crop), counts.
    """
    numbers = section["landmarks"]
    net = network(section, facts)
    load_state(net, dict(state))
    net.eval()
    fit = ModelFit(LinearModel.load(model), float(read_json(model / "meta.json")["unit_m"]))
    settings = FitSettings(
        VALIDATION_SCALE,
        numbers["gate_mm"],
        numbers["coefficient_prior"],
        MINIMUM,
        MOST_VERTICES,
        numbers["camera"],
    )
    photo_fit = PhotoFit(net, fit, settings)
    choice = LandmarkChoice(len(fit.mean_mm))
    failed: dict[str, int] = {}
    kept = set(facts["validation_subjects"])
    columns = ["item_id", "subject_id", "status", "split", "landmarks_px"]
    usable = [
        row["item_id"]
        for row in packed_images(packed, columns)
        if row["status"] == "ok"
        and row["split"] != "test"
        and row["landmarks_px"] is not None
        and row["subject_id"] not in kept
    ]
    ranked = sorted(usable, key=lambda item: (zlib.crc32(f"{seed}/{item}".encode()), item))
    frames = set(ranked[: numbers["frames"]])
    for row in packed_images(packed, ["item_id", "image", "landmarks_px"]):
        if row["item_id"] not in frames:
            continue
        points = np.asarray(row["landmarks_px"], float).reshape(-1, 2)
        centre, side = landmark_square(points)
        try:
            seen = photo_fit.see(decode_rgb(row["image"]), centre, side)
            found = photo_fit.solve([seen])
        except ValueError as error:
            failed[str(error)] = failed.get(str(error), 0) + 1
            continue
        projected = seen.camera.project(fit.posed_mm(found.identity, found.expressions[0]))
        to_crop = net.config.size_px / (VALIDATION_SCALE * side)
        choice.add(to_crop * (projected - centre), to_crop * (points - centre))
    if not choice.photographs:
        logger.warning("pix2face: no training photograph could be fitted: %s", failed)
    chosen = choice.chosen() if choice.photographs else None
    return {
        "landmark_vertices": None if chosen is None else chosen.vertices.tolist(),
        "landmark_error_px": None if chosen is None else float(chosen.error.mean()),
        "landmark_frames": choice.photographs,
        "landmark_frames_failed": dict(sorted(failed.items())),
    }
