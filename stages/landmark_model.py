"""Stage `landmark_model`. Reads packed 300W-LP. Writes a 68-point dlib predictor and its error.

Used where no licensed landmark network is given. Trained on the training split alone (never
on AFLW2000-3D), measured on subjects that were held out by the hash of their id.
One thread trains, because dlib's sums over several threads come in any order.
"""

import argparse
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from models.face.landmarks import MIRROR_68, canonical_box, outer_eye_distance, relative_error
from stages.datasets.images import ImageError, decode_rgb
from stages.landmarking.landmark_predictor import (
    FILE_NAME,
    FaceCrop,
    FaceSquare,
    LandmarkPredictor,
    crop_face,
    grey_of,
    rectangle,
)
from stages.runtime.artifacts import atomic_directory, read_json, read_table, shard_of, write_json
from stages.runtime.compute import item_rng
from stages.runtime.params import LandmarkModelParams, load

logger = logging.getLogger(__name__)

BUCKETS = 1000
COLUMNS = [
    "item_id",
    "subject_id",
    "status",
    "split",
    "image",
    "landmarks_px",
    "landmark_order",
    "pose_para",
]
YAW_BINS_DEG = (0, 15, 30, 45, 60, 91)


def held_out(subject_id: str, fraction: float) -> bool:
    """Whether a subject is kept for the measurement."""
    return shard_of(subject_id, BUCKETS) < fraction * BUCKETS


def training_rows(packed: Path) -> list[dict[str, Any]]:
    """Rows of the training split that have an image and 68 landmarks, in item order.

    Raises:
        FileNotFoundError: ``packed`` holds no image shards.
    """
    shards = sorted(packed.glob("images-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected images-*.parquet in {packed}; run its pack stage")
    rows = []
    for shard in shards:
        for row in read_table(shard, COLUMNS).to_pylist():
            usable = (
                row["status"] == "ok"
                and row["split"] == "train"
                and row["landmark_order"] == "ibug68"
                and len(row["landmarks_px"] or ()) == 136
                and bool(np.isfinite(row["landmarks_px"]).all())
            )
            if usable:
                rows.append(row)
    return sorted(rows, key=lambda row: str(row["item_id"]))


def _grey(row: dict[str, Any]) -> UInt8[np.ndarray, "h w"] | None:
    """The photograph's luma; None, said in the log, when it does not decode."""
    try:
        return grey_of(decode_rgb(row["image"]))
    except ImageError as error:
        logger.warning("%s is left out: %s", row["item_id"], error)
        return None


def yaw_deg(row: dict[str, Any]) -> float:
    """How far the face is turned sideways, 0 where the data set does not say."""
    return abs(float(np.degrees(row["pose_para"][1]))) if row["pose_para"] else 0.0


def spread_over(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most ``count`` rows, evenly spaced, so that every subject keeps its share."""
    if len(rows) <= count:
        return rows
    return [rows[at] for at in np.linspace(0, len(rows) - 1, count).astype(int)]


def jittered(square: FaceSquare, p: LandmarkModelParams, rng: np.random.Generator) -> FaceSquare:
    """A square as a detector might give it: shifted and scaled."""
    right, down = np.clip(rng.normal(0.0, p.box_shift, 2), -2.5 * p.box_shift, 2.5 * p.box_shift)
    scale = float(np.exp(np.clip(rng.normal(0.0, p.box_scale), -2 * p.box_scale, 2 * p.box_scale)))
    return square.moved(float(right), float(down), scale)


def _annotation(crop: FaceCrop, points: np.ndarray, start: FaceSquare) -> Any:  # noqa: ANN401
    """Landmarks and their starting square as dlib holds them: whole pixels."""
    import dlib

    at = np.rint(crop.to_crop(points) - 0.5).astype(int)
    parts = [dlib.point(int(x), int(y)) for x, y in at]
    return dlib.full_object_detection(rectangle(crop, start), parts)


def train(rows: list[dict[str, Any]], p: LandmarkModelParams, *, seed: int, out: Path) -> int:
    """Train a predictor into ``out`` and return the number of photographs it saw.

    Args:
        rows: Packed rows with images and landmarks.
        p: The stage's parameters.
        seed: Root of the jitter and of dlib's own draws.
        out: File to write.

    Raises:
        ValueError: Fewer than ten photographs decode.
    """
    import dlib

    images, annotations = [], []
    photographs = 0
    for row in rows:
        image = _grey(row)
        if image is None:
            continue
        rng = item_rng(seed, row["item_id"])
        points = np.array(row["landmarks_px"], dtype=np.float64).reshape(68, 2)
        upright = FaceSquare.around(points)
        for copy in range(p.copies):
            # The first as photographed, as every search begins; the others near upright.
            turn_deg = float(rng.normal(0.0, p.copy_turn_deg)) if copy else -upright.roll_deg
            crop = crop_face(image, upright.rolled(turn_deg))
            for seen, at in ((crop, points), (crop.mirrored(), points[MIRROR_68])):
                images.append(seen.image)
                start = jittered(upright.rolled(turn_deg), p, rng)
                annotations.append([_annotation(seen, at, start)])
        photographs += 1
    if photographs < 10:
        raise ValueError(
            f"expected at least 10 photographs with 68 landmarks to train on, got {photographs}"
        )
    options = dlib.shape_predictor_training_options()
    options.be_verbose = False
    options.random_seed = str(seed)
    options.num_threads = 1  # with more, sums are taken in any order and the bytes vary
    options.cascade_depth = p.cascades
    options.num_trees_per_cascade_level = p.trees
    options.tree_depth = p.tree_depth
    options.nu = p.nu
    options.oversampling_amount = p.oversampling
    options.feature_pool_size = p.feature_pool
    options.num_test_splits = p.test_splits
    dlib.train_shape_predictor(images, annotations, options).save(str(out))
    return photographs


def measure(
    rows: list[dict[str, Any]], predictor: LandmarkPredictor, p: LandmarkModelParams, *, seed: int
) -> dict[str, Any]:
    """Errors on held-out photographs from jittered boxes.

    In percent of the outer-eye distance up to ``measured_yaw_deg`` (beyond, the outer eyes fall
    together) and, for every pose, of the face's larger extent.
    """
    errors, sizes, yaws, scores = [], [], [], []
    for row in rows:
        image = _grey(row)
        if image is None:
            continue
        points = np.array(row["landmarks_px"], dtype=np.float64).reshape(68, 2)
        given = FaceSquare.of_box(canonical_box(points))
        start = jittered(given, p, item_rng(seed + 1, row["item_id"]))
        answer = predictor(image, start.corners().ravel())
        error = float(relative_error(answer.points, points))
        errors.append(100.0 * error)
        sizes.append(100.0 * error * float(outer_eye_distance(points)) / np.ptp(points, 0).max())
        yaws.append(yaw_deg(row))
        scores.append(answer.score)
    values, yaw = np.array(errors), np.array(yaws)
    judged = values[yaw <= p.measured_yaw_deg]
    if not len(judged):
        return {"held_out_images": 0}
    frontal = values[yaw < YAW_BINS_DEG[1]]
    bins = {
        f"{low}-{high}": {
            "images": int(inside.sum()),
            "percent_of_size": round(float(np.array(sizes)[inside].mean()), 4),
            "percent_of_eyes": round(float(values[inside].mean()), 4),
        }
        for low, high in itertools.pairwise(YAW_BINS_DEG)
        if (inside := (yaw >= low) & (yaw < high)).any()
    }
    return {
        "held_out_images": len(judged),
        "measured_yaw_deg": p.measured_yaw_deg,
        "mean_error_percent": round(float(judged.mean()), 4),
        "median_error_percent": round(float(np.median(judged)), 4),
        "q95_error_percent": round(float(np.quantile(judged, 0.95)), 4),
        "mean_error_percent_frontal": round(float((frontal if len(frontal) else judged).mean()), 4),
        "mean_error_percent_of_size": round(float(np.mean(sizes)), 4),
        "by_yaw_deg": bins,
        "mean_score": round(float(np.mean(scores)), 4),
    }


def run(p: LandmarkModelParams, *, seed: int, packed: Path, out: Path) -> None:
    """Train and measure.

    Args:
        p: The stage's parameters.
        seed: Root of every draw.
        packed: ``data/packed/300w_lp``.
        out: Folder for the predictor and ``metrics.json``.

    Raises:
        FileNotFoundError: ``packed`` holds no image shards.
        ValueError: It holds too few photographs.
    """
    rows = training_rows(packed)
    kept = [row for row in rows if held_out(row["subject_id"], p.holdout)]
    shown = [row for row in rows if not held_out(row["subject_id"], p.holdout)]
    used = spread_over([row for row in shown if yaw_deg(row) <= p.max_yaw_deg], p.max_images)
    meta = read_json(packed / "meta.json") if (packed / "meta.json").is_file() else {}
    with atomic_directory(out) as scratch:
        trained = train(used, p, seed=seed, out=scratch / FILE_NAME)
        predictor = LandmarkPredictor(scratch / FILE_NAME)
        metrics: dict[str, Any] = {
            "training_images": trained,
            "training_subjects": len({row["subject_id"] for row in used}),
            "held_out_subjects": len({row["subject_id"] for row in kept}),
            "synthetic": meta.get("synthetic"),
            "weights": "synthetic-trained" if meta.get("synthetic") else "trained",
            **measure(spread_over(kept, p.max_measured), predictor, p, seed=seed),
        }
        write_json(metrics, scratch / "metrics.json")
    logger.info("trained on %d photographs: %s", trained, metrics)


def main() -> None:
    """Command line: paths only."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packed", required=True, type=Path, help="packed 300W-LP")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()

    from stages.runtime.process import begin

    begin("landmark_model")
    params = load()
    run(params.landmark_model, seed=params.seed, packed=arguments.packed, out=arguments.out)


if __name__ == "__main__":
    from stages.landmark_model import main as imported_main  # Ray workers find it by name

    imported_main()
