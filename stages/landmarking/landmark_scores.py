"""pix2face's landmarks on annotated photographs: predicted by `reconstruct`, scored by `evaluate`.

Photographs are those of 300W-LP's people whom the training held out, and AFLW2000-3D, which nothing
learns from. A face is cropped by its annotation, as in training. ``landmarks.parquet`` of the
predictions holds both the predicted and the annotated points, so that the scores need nothing else.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from models.metrics import cumulative_curve
from models.metrics.images import landmark_error_mm, landmark_nme
from stages.datasets.images import decode_rgb
from stages.photos import packed_images
from stages.runtime.artifacts import read_table
from stages.runtime.rows import Row, key_of_values

if TYPE_CHECKING:
    from stages.inference.pix2face import Pix2FaceReconstructor

TABLE: Final = "landmarks.parquet"
SETS: Final = ("300w_lp", "aflw2000")
INNER: Final = slice(17, 68)
"""Without the contour, whose annotated points slide along the cheek when the head turns."""
NME_GRID: Final = np.round(np.linspace(0.0, 0.3, 61), 4)
MM_GRID: Final = np.round(np.linspace(0.0, 15.0, 61), 4)


@dataclass(frozen=True)
class LabelledPhoto:
    """An annotated photograph.

    Attributes:
        item_id: Of the packed row.
        subject_id: Likewise.
        set: One of ``SETS``.
        image: Encoded file.
        points_px: Annotated landmarks.
        shape: Identity coefficients of the annotation; None where it has none.
        expression: Its expression coefficients.
    """

    item_id: str
    subject_id: str
    set: str
    image: bytes
    points_px: Float[np.ndarray, "68 2"]
    shape: Float[np.ndarray, " k"] | None
    expression: Float[np.ndarray, " e"] | None

    @property
    def key(self) -> str:
        """SHA-256 of what decides its row."""
        return key_of_values(
            {
                "image": self.image,
                "points_px": self.points_px,
                "shape": self.shape,
                "expression": self.expression,
            }
        )


def labelled_photos(
    packed: Path, held_out: frozenset[str], most: int | None
) -> list[LabelledPhoto]:
    """Annotated photographs that no network has learned from, in order of ``item_id``.

    Args:
        packed: Packed 300W-LP.
        held_out: Subjects whom the training left out.
        most: Largest number per set; which ones does not depend on how many there are.

    Raises:
        FileNotFoundError: The set is not packed.
    """
    columns = ["item_id", "subject_id", "status", "split", "image", "landmarks_px"]
    found: dict[str, list[LabelledPhoto]] = {name: [] for name in SETS}
    for row in packed_images(packed, [*columns, "shape_para", "exp_para"]):
        name = "aflw2000" if row["split"] == "test" else "300w_lp"
        unused = name == "300w_lp" and row["subject_id"] not in held_out
        if unused or row["status"] != "ok" or row["landmarks_px"] is None:
            continue
        shape, expression = row["shape_para"], row["exp_para"]
        found[name].append(
            LabelledPhoto(
                row["item_id"],
                row["subject_id"],
                name,
                row["image"],
                np.asarray(row["landmarks_px"], np.float64).reshape(68, 2),
                None if shape is None else np.asarray(shape, np.float64),
                None if expression is None else np.asarray(expression, np.float64),
            )
        )
    chosen = [
        photo
        for photos in found.values()
        for photo in sorted(photos, key=lambda p: (zlib.crc32(p.item_id.encode()), p.item_id))[
            :most
        ]
    ]
    return sorted(chosen, key=lambda photo: photo.item_id)


def predict_landmarks(
    photos: Sequence[LabelledPhoto], *, load: Callable[[], "Pix2FaceReconstructor"]
) -> Iterator[Row]:
    """Predicted and true points of each photograph, or the reason why there are none."""
    for photo in photos:
        method = load()
        try:
            answer = method(decode_rgb(photo.image), photo.points_px)
        except ValueError as error:
            yield {"reason": str(error)}
            continue
        if answer.points_px is None or answer.points_mm is None:
            yield {"reason": "the checkpoint has no landmark vertices: none could be chosen"}
            continue
        row: Row = {"reason": "", "points_px": answer.points_px, "points_mm": answer.points_mm}
        if photo.shape is not None and photo.expression is not None:
            row["true_mm"] = method.keypoints_mm(photo.shape, photo.expression)
        yield row


def finished(photo: LabelledPhoto, found: Row) -> dict[str, Any]:
    """The row of schema ``landmark_predictions``."""
    flat = {name: value.ravel() for name, value in found.items() if name != "reason"}
    return {
        "item_id": photo.item_id,
        "subject_id": photo.subject_id,
        "status": "failed" if found["reason"] else "ok",
        "reason": found["reason"],
        "set": photo.set,
        "true_px": photo.points_px.ravel(),
        **flat,
    }


def score_landmarks(predictions: Path) -> dict[str, Any]:
    """Errors by set, with cumulative curves in which a failed photograph is never reached.

    2-D errors are over the distance of the true outer eye corners; 3-D errors are in the frame of
    the face model, which the network predicts in, without any alignment.

    Args:
        predictions: Folder of the reconstruct stage, with ``landmarks.parquet``.
    """
    rows = read_table(predictions / TABLE).to_pylist()
    return {
        name: _scores([row for row in rows if row["set"] == name])
        for name in SETS
        if any(row["set"] == name for row in rows)
    }


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    usable = [row for row in rows if row["status"] == "ok"]
    reasons = [row["reason"] for row in rows if row["status"] != "ok"]
    facts: dict[str, Any] = {
        "photographs": len(rows),
        "people": len({row["subject_id"] for row in rows}),
        "scored": len(usable),
        "failed": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }
    if not usable:
        return facts
    predicted, true = (_stacked(usable, name, 2) for name in ("points_px", "true_px"))
    across = landmark_nme(predicted, true)
    facts |= _summary("nme", across) | _curve("nme", across, NME_GRID, len(rows))
    inner = np.linalg.norm(predicted - true, axis=-1)[:, INNER].mean(axis=1)
    corners = np.linalg.norm(true[:, 45] - true[:, 36], axis=-1)
    facts |= _summary("nme_inner", inner / corners)
    solid = [row for row in usable if row["true_mm"] is not None]
    if solid:
        predicted, true = (_stacked(solid, name, 3) for name in ("points_mm", "true_mm"))
        far = landmark_error_mm(predicted, true)
        facts |= _summary("mm", far)
        facts |= _curve("mm", far, MM_GRID, len(rows) - len(usable) + len(solid))
        facts |= _summary("mm_inner", landmark_error_mm(predicted[:, INNER], true[:, INNER]))
    return facts


def _stacked(
    rows: Sequence[Mapping[str, Any]], name: str, axes: int
) -> Float[np.ndarray, "n 68 axes"]:
    return np.array([row[name] for row in rows], np.float64).reshape(len(rows), 68, axes)


def _summary(name: str, errors: Float[np.ndarray, " n"]) -> dict[str, float]:
    return {
        f"{name}_mean": round(float(errors.mean()), 5),
        f"{name}_median": round(float(np.median(errors)), 5),
    }


def _curve(
    name: str, errors: Float[np.ndarray, " n"], grid: Float[np.ndarray, " t"], of: int
) -> dict[str, list[float]]:
    """Percent of ``of`` photographs within each error of the grid."""
    percent = cumulative_curve([errors], grid) * len(errors) / of
    return {f"{name}_grid": grid.tolist(), f"{name}_percent": np.round(percent, 3).tolist()}
