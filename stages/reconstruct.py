"""Stage `reconstruct`: a method's meshes for the NoW photographs, in the submission layout.

Reads packed NoW photographs, their landmarks (px), a checkpoint and its face model. Writes
``now/<subject>/<challenge>/<image>.obj`` (mm) with seven landmarks ``.npy`` beside it,
``rows.parquet`` (one row per photograph, failures too) and ``meta.json``.
``reconstruct_photos`` does the same for any photographs, with overlay and GLB.
"""

import argparse
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from stages import params
from stages.artifacts import (
    atomic_directory,
    read_facts,
    write_bytes,
    write_json,
    write_table,
)
from stages.compute import map_ordered
from stages.contracts import table_of
from stages.datasets.images import decode_rgb
from stages.datasets.meshes import write_obj
from stages.inference.types import Reconstruction, Reconstructor
from stages.photos import landmark_rows, packed_images, points_of
from stages.process import begin

logger = logging.getLogger(__name__)

METHODS = ("mean", "mica", "pix2face", "ringnet")
SECONDS_PER_IMAGE = {"mean": 0.05, "mica": 0.1, "pix2face": 0.6, "ringnet": 0.1}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}


@dataclass(frozen=True)
class Job:
    """One photograph to reconstruct.

    Attributes:
        item_id: ``subject/challenge/image``.
        subject_id: As in the packed tables.
        image: Encoded file; empty where only the name matters.
        points_px: Landmarks; None where there are none.
        provider: Where they come from.
        reason: Why it cannot be done; empty when it can.
    """

    item_id: str
    subject_id: str
    image: bytes
    points_px: Float[np.ndarray, "68 2"] | None
    provider: str
    reason: str


@cache
def load_method(
    method: str, data: Path, section: params.ReconstructParams, checkpoint: Path | None = None
) -> Reconstructor:
    """A method with its weights; read once per process.

    Args:
        method: One of ``METHODS``.
        data: Folder of all stages' outputs.
        section: The stage's parameters.
        checkpoint: ``model.safetensors``; None takes the trained one below ``data``.

    Raises:
        FileNotFoundError: A model or checkpoint is missing.
        ValueError: There is no such method.
    """
    weights = checkpoint or data / "checkpoints" / method / "model.safetensors"
    if method != "mean" and not weights.is_file():
        raise FileNotFoundError(f"expected {weights}; run train@{method} first")
    if method == "mean":
        from stages.inference.mean import MeanHead

        return MeanHead(data / "models" / "flame")
    if method == "mica":
        from stages.inference.mica import MicaReconstructor

        return MicaReconstructor(weights, data / "models" / "flame")
    if method == "pix2face":
        from stages.inference.pix2face import Pix2FaceReconstructor

        return Pix2FaceReconstructor(weights, data / "models" / "3ddfa", section)
    if method == "ringnet":
        from stages.inference.ringnet import RingNetReconstructor

        return RingNetReconstructor(weights, data / "models" / "flame")
    raise ValueError(f"expected a method among {', '.join(METHODS)}, got {method!r}")


def run(
    section: params.ReconstructParams,
    compute: params.ComputeParams,
    *,
    method: str,
    data: Path,
    out: Path,
) -> None:
    """Reconstruct every packed NoW photograph.

    Args:
        section: Crop, fit and tolerance.
        compute: Workers.
        method: One of ``METHODS``.
        data: Folder of all stages' outputs.
        out: Replaced when all is done.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: Too many photographs failed.
    """
    reconstructor = load_method(method, data, section)
    jobs = now_jobs(data, reconstructor.needs_landmarks)
    with atomic_directory(out) as scratch:
        rows = map_ordered(
            partial(
                reconstruct_job,
                load=partial(load_method, method, data, section),
                folder=scratch.resolve(),
            ),
            jobs,
            compute=compute,
            seconds_per_item=SECONDS_PER_IMAGE[method],
            label=f"reconstruct {method}",
        )
        failed = [row for row in rows if row["status"] != "ok"]
        if not rows or len(failed) > section.max_failed_fraction * len(rows):
            reasons = sorted({row["reason"] for row in failed})[:3]
            raise ValueError(
                f"expected at least {1 - section.max_failed_fraction:.0%} of the photographs to be "
                f"reconstructed by {method}, got {len(rows) - len(failed)} of {len(rows)}: "
                f"{'; '.join(reasons)}"
            )
        write_table(table_of(rows, "predictions"), scratch / "rows.parquet")
        meta = {
            **reconstructor.facts,
            "method": method,
            "unit": "mm",
            "photographs": len(rows),
            "failed": len(failed),
        }
        write_json(meta, scratch / "meta.json")


def now_jobs(data: Path, needs_landmarks: bool) -> list[Job]:
    """Every packed NoW photograph in order of ``item_id``.

    Raises:
        FileNotFoundError: NoW is not packed, or its landmarks are missing.
    """
    points = landmark_rows(data / "landmarks" / "now") if needs_landmarks else {}
    columns = ["item_id", "subject_id", "status", "reason"]
    jobs = []
    for row in packed_images(data / "packed" / "now", [*columns, "image"]):
        found = points.get(row["item_id"])
        reason = row["reason"] if row["status"] != "ok" else ""
        if needs_landmarks and not reason and (found is None or found["status"] != "ok"):
            reason = f"no landmarks: {found['reason'] if found else 'no row'}"
        usable = needs_landmarks and not reason
        jobs.append(
            Job(
                row["item_id"],
                row["subject_id"],
                row["image"] if usable else b"",
                points_of(found) if usable and found is not None else None,
                found["provider"] if usable and found is not None else "",
                reason,
            )
        )
    return sorted(jobs, key=lambda job: job.item_id)


def reconstruct_job(job: Job, *, load: Callable[[], Reconstructor], folder: Path) -> dict[str, Any]:
    """Write one photograph's mesh and landmarks; return its row of schema ``predictions``."""
    stem = PurePosixPath(job.item_id)
    stem = stem.with_suffix("") if stem.suffix.lower() in _SUFFIXES else stem
    row = {
        "item_id": job.item_id,
        "subject_id": job.subject_id,
        "challenge": stem.parts[1] if len(stem.parts) > 2 else "",
        "provider": job.provider,
    }
    if job.reason:
        return row | {"status": "failed", "reason": job.reason}
    reconstructor = load()
    blank = np.zeros((0, 0, 3), np.uint8)
    try:
        image = decode_rgb(job.image) if reconstructor.needs_landmarks else blank
        points = np.zeros((68, 2)) if job.points_px is None else job.points_px
        answer = reconstructor(image, points)
    except ValueError as error:
        return row | {"status": "failed", "reason": str(error)}
    mesh = PurePosixPath("now") / f"{stem}.obj"
    landmarks = mesh.with_suffix(".npy")
    write_obj(folder / mesh, answer.vertices_mm, answer.faces, decimals=4)
    write_bytes(folder / landmarks, npy_bytes(answer.landmarks_mm))
    return row | {"status": "ok", "reason": "", "mesh": str(mesh), "landmarks": str(landmarks)}


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as an ``.npy`` file without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def reconstruct_photos(
    images: Sequence[Path],
    checkpoint: Path,
    out: Path,
    *,
    section: params.ReconstructParams,
    data: Path,
) -> list[dict[str, Any]]:
    """Reconstruct any photographs: one folder each with mesh, GLB and overlay.

    Args:
        images: Photographs; the best detected face of each is used.
        checkpoint: ``model.safetensors`` of the train stage, or the folder that holds it.
        out: Folder; ``<image name>/{head.obj,head.glb,overlay.png,landmarks.npy}`` is written.
        section: Crop, fit and detection.
        data: Folder of all stages' outputs: face models and the landmark predictor.

    Returns:
        One row per photograph: ``image``, ``status``, ``reason`` and the files written.

    Raises:
        FileNotFoundError: The checkpoint or a model is missing.
    """
    from stages.landmark_predictor import FaceDetector, LandmarkPredictor

    file = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    if not file.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {file}; train one: faceline run train")
    facts = read_facts(file)
    method = facts.get("method")
    if method not in METHODS:
        raise ValueError(
            f"expected a checkpoint of {', '.join(METHODS[1:])}, got {method!r} in {file}"
        )
    reconstructor = load_method(method, data, section, file)
    predictor = LandmarkPredictor(data / "landmark_model" / "shape_predictor_68.dat")
    detector = FaceDetector(
        min_score=section.detector_min_score, max_side_px=section.detector_max_side_px
    )
    rows = []
    for path in images:
        row: dict[str, Any] = {"image": str(path), "method": method, "weights": facts["weights"]}
        try:
            answer, picture = _one_photo(path, reconstructor, detector, predictor)
        except (OSError, ValueError) as error:
            rows.append(row | {"status": "failed", "reason": str(error)})
            continue
        folder = out / path.stem
        _write_photo(folder, answer, picture)
        names = ("head.obj", "head.glb", "landmarks.npy", "coefficients.json", "overlay.png")
        rows.append(row | {"status": "ok", "reason": "", "files": [str(folder / n) for n in names]})
    return rows


def _one_photo(
    path: Path,
    reconstructor: Reconstructor,
    detector: Any,  # noqa: ANN401 - FaceDetector, imported late
    predictor: Any,  # noqa: ANN401 - LandmarkPredictor, imported late
) -> tuple[Reconstruction, np.ndarray]:
    """Detect, reconstruct and draw one photograph."""
    import cv2

    from stages.inference.overlay import overlay

    if not path.is_file():
        raise FileNotFoundError(f"expected a photograph at {path}, found none")
    image = decode_rgb(path.read_bytes())
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    found = detector(grey)
    if not found:
        raise ValueError("no face was found; give a larger or more frontal photograph")
    points = predictor(grey, found[0][0]).points
    answer = reconstructor(image, points)
    return answer, overlay(image, answer)


def _write_photo(folder: Path, answer: Reconstruction, picture: np.ndarray) -> None:
    import cv2
    import trimesh

    mesh = trimesh.Trimesh(answer.vertices_mm / 1000.0, answer.faces, process=False)
    ok, png = cv2.imencode(".png", picture[..., ::-1])
    assert ok
    write_obj(folder / "head.obj", answer.vertices_mm, answer.faces, decimals=4)
    write_bytes(folder / "head.glb", mesh.export(file_type="glb"))
    write_bytes(folder / "landmarks.npy", npy_bytes(answer.landmarks_mm))
    write_json({"unit": "mm", **answer.coefficients}, folder / "coefficients.json")
    write_bytes(folder / "overlay.png", png.tobytes())


def main() -> None:
    """Command line: the method's name and paths only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin(f"reconstruct@{args.method}")
    loaded = params.load()
    run(loaded.reconstruct, loaded.compute, method=args.method, data=args.data, out=args.out)


if __name__ == "__main__":
    from stages.reconstruct import main as imported_main  # Ray workers find it by name

    imported_main()
