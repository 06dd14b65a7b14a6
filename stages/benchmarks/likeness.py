"""Genova's likeness measures of one method: photographs against renderings of its predictions.

Part of the stage `evaluate`. The encoder is recogniser ``b``, which no method trains with or starts
from. Every prediction is drawn by one camera under one light, cut like a photograph, and embedded;
the photographs are the benchmark's own, and so are the pairs of the same and of different people
(Genova et al. 2018 take the pairs from LFW).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.face.portrait import portrait
from models.metrics import UNITS_MM
from models.metrics.identities import Likeness, likeness, unit
from models.networks.encoders.arcface_crop import arcface_crop, five_points
from stages.benchmarks.scoring import read_landmarks
from stages.datasets.images import decode_rgb
from stages.datasets.meshes import read_mesh
from stages.photos import landmarks_by_item, packed_images
from stages.runtime.artifacts import read_safetensors, read_table, sha256_file
from stages.runtime.compute import map_ordered
from stages.runtime.params import ComputeParams

logger = logging.getLogger(__name__)

SECONDS_PER_RENDERING = 0.06
RECALL_AT = (1, 5)
_BATCH = 64
_GRID = np.round(np.linspace(-1.0, 1.0, 81), 4)


@dataclass(frozen=True, slots=True)
class RenderJob:
    """One prediction to draw.

    Attributes:
        item_id: As in the predictions' table.
        mesh: Mesh file.
        landmarks: Its seven landmarks.
        unit_mm: Millimetres per unit of both.
    """

    item_id: str
    mesh: Path
    landmarks: Path
    unit_mm: float


@dataclass(frozen=True, slots=True)
class Gallery:
    """The photographs that can be embedded, in order of ``item_id``.

    Attributes:
        items: Their names.
        people: Who is on each.
        crops: Aligned.
        unused: Packed photographs without a usable face.
    """

    items: tuple[str, ...]
    people: tuple[str, ...]
    crops: UInt8[np.ndarray, "n 112 112 3"]
    unused: int


def measure_likeness(
    *,
    predictions: Path,
    unit_name: str,
    packed: Path,
    landmarks: Path,
    recognizer: Path,
    compute: ComputeParams,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare every prediction's rendering with the photographs.

    Args:
        predictions: Folder of the reconstruct stage.
        unit_name: Its meshes' unit.
        packed: Packed photographs of the benchmark.
        landmarks: Their 68 points.
        recognizer: Folder of recogniser ``b``.
        compute: Workers.

    Returns:
        The statistics, and one row of schema ``likeness`` per predicted photograph, failures too.
        Without anything to compare the statistics hold a ``reason`` instead of measures.

    Raises:
        FileNotFoundError: The predictions' table, photographs, landmarks or the recogniser are
            missing.
    """
    encoder = Encoder(recognizer)
    gallery = load_gallery(packed, landmarks)
    place = {item: row for row, item in enumerate(gallery.items)}
    table = predictions / "rows.parquet"
    if not table.is_file():
        raise FileNotFoundError(f"expected {table}; run reconstruct first")
    rows: dict[str, dict[str, Any]] = {}
    jobs = []
    for row in sorted(read_table(table).to_pylist(), key=lambda row: str(row["item_id"])):
        if row["benchmark"] != "now":
            continue
        item = row["item_id"]
        reason = row["reason"] or row["status"] if row["status"] != "ok" else ""
        if not reason and item not in place:
            reason = "no face with landmarks on the photograph"
        rows[item] = {
            "item_id": item,
            "subject_id": row["subject_id"],
            "status": "failed",
            "reason": reason,
        }
        if not reason:
            paths = predictions / row["mesh"], predictions / row["landmarks"]
            jobs.append(RenderJob(item, *paths, UNITS_MM[unit_name]))
    drawn = map_ordered(
        draw_crop,
        jobs,
        compute=compute,
        seconds_per_item=SECONDS_PER_RENDERING,
        label="render predictions",
    )
    crops, done = [], []
    for job, crop in zip(jobs, drawn, strict=True):
        if isinstance(crop, str):
            rows[job.item_id]["reason"] = crop
        else:
            crops.append(crop)
            done.append(job.item_id)
    facts: dict[str, Any] = {
        "encoder": encoder.facts,
        "photographs": len(gallery.items),
        "people": len(set(gallery.people)),
        "photographs_without_face": gallery.unused,
        "renderings": len(done),
        "not_rendered": len(rows) - len(done),
    }
    if not done:
        return facts | {"reason": "no prediction could be compared"}, list(rows.values())
    try:
        found = likeness(
            encoder(gallery.crops),
            gallery.people,
            encoder(np.stack(crops)),
            np.array([place[item] for item in done], np.int64),
            RECALL_AT,
        )
    except ValueError as error:
        return facts | {"reason": str(error)}, list(rows.values())
    for item, cosine, rank in zip(done, found.cosines, found.ranks, strict=True):
        rows[item] |= {"status": "ok", "cosine": float(cosine), "rank": int(rank)}
    return facts | summary(found), list(rows.values())


def load_gallery(packed: Path, landmarks: Path) -> Gallery:
    """Cut every packed photograph whose landmarks were found.

    Raises:
        FileNotFoundError: Photographs or landmarks are missing.
    """
    points = landmarks_by_item(landmarks)
    found, unused = [], 0
    for row in packed_images(packed, ["item_id", "subject_id", "status", "image"]):
        if row["status"] != "ok" or row["item_id"] not in points:
            unused += 1
            continue
        try:
            crop = arcface_crop(decode_rgb(row["image"]), five_points(points[row["item_id"]]))
        except ValueError as error:
            logger.warning("%s is not compared: %s", row["item_id"], error)
            unused += 1
            continue
        found.append((row["item_id"], row["subject_id"], crop))
    found.sort(key=lambda entry: entry[0])
    crops = [crop for _, _, crop in found]
    return Gallery(
        tuple(item for item, _, _ in found),
        tuple(person for _, person, _ in found),
        np.stack(crops) if crops else np.zeros((0, 112, 112, 3), np.uint8),
        unused,
    )


def draw_crop(job: RenderJob) -> UInt8[np.ndarray, "112 112 3"] | str:
    """The aligned crop of a prediction's portrait, or why there is none."""
    try:
        mesh = read_mesh(job.mesh)
        seven = read_landmarks(job.landmarks)
        picture = portrait(
            job.unit_mm * mesh.vertices, mesh.faces, job.unit_mm * seven, mesh.colors
        )
        return arcface_crop(picture.image, picture.five_px)
    except (OSError, ValueError) as error:
        return str(error)


class Encoder:
    """A recogniser of the recognizer stage, for evaluation."""

    def __init__(self, folder: Path) -> None:
        """Read its weights.

        Raises:
            FileNotFoundError: It has not been trained.
        """
        from models.networks.encoders.iresnet import IResNet, IResNetConfig
        from models.networks.train_loop import load_state

        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise FileNotFoundError(f"expected {weights}; run recognizer@{folder.name} first")
        state, facts = read_safetensors(weights)
        size = facts["encoder"]
        self._net = IResNet(
            IResNetConfig(
                tuple(size["layers"]), tuple(size["widths"]), size["embedding"], size["input_px"]
            )
        )
        load_state(self._net, state)
        self._net.eval()
        self.facts: dict[str, Any] = {
            "name": f"recognizer {folder.name}",
            "weights": facts["weights"],
            "synthetic": facts["synthetic"],
            "embedding": size["embedding"],
            "sha256": sha256_file(weights),
        }

    def __call__(self, crops: UInt8[np.ndarray, "n 112 112 3"]) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of aligned crops.

        Raises:
            ValueError: An embedding is zero or not finite.
        """
        import torch

        found = []
        for start in range(0, len(crops), _BATCH):
            part = (np.asarray(crops[start : start + _BATCH], np.float32) - 127.5) / 127.5
            blob = torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2)))
            with torch.no_grad():
                found.append(self._net(blob).numpy())
        return unit(np.concatenate(found))


def summary(found: Likeness) -> dict[str, Any]:
    """The measures as plain numbers, with the three distributions of cosines."""
    mean = float(found.cosines.mean())
    return {
        "cosine_mean": _short(mean),
        "cosine_std": _short(float(found.cosines.std())),
        "same_pairs": len(found.same),
        "different_pairs": len(found.different),
        "same_mean": _mean(found.same),
        "different_mean": _mean(found.different),
        "same_below_mean": _mean(found.same < mean),
        "different_above_mean": _mean(found.different > mean),
        "emd_same": _short(found.emd_same),
        "emd_different": _short(found.emd_different),
        "recall": _by_depth(found.recall),
        "chance": _by_depth(found.chance),
        "distributions": {
            "cosine": _GRID.tolist(),
            "renderings": _cumulative(found.cosines),
            "same": _cumulative(found.same),
            "different": _cumulative(found.different),
        },
    }


def _by_depth(shares: Mapping[int, float]) -> dict[str, float | None]:
    return {f"top{k}": _short(share) for k, share in shares.items()}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _mean(values: Float[np.ndarray, " n"] | np.ndarray) -> float | None:
    return _short(float(np.mean(values))) if len(values) else None


def _cumulative(values: Float[np.ndarray, " n"]) -> Sequence[float]:
    """Percent of the values up to each cosine of the grid; empty without values."""
    if not len(values):
        return []
    share = np.searchsorted(np.sort(values), _GRID, "right") / len(values)
    shares: list[float] = np.round(100.0 * share, 3).tolist()
    return shares
