"""Stage `reconstruct`: a method's meshes for every benchmark, in the submissions' layouts.

Reads the benchmarks' packed photographs, their landmarks (px), a checkpoint and its face model.
Writes ``<benchmark>/<name>.obj`` (mm) with seven landmarks ``.npy`` beside it where the face is
neutral (``stages.benchmark_photos`` says which photographs make which mesh), ``rows.parquet`` (one
row per mesh, failures too) and ``meta.json``. A mesh that the same code and weights made of the
same photographs before is not made again.
``reconstruct_photos`` does the same for any photographs, with overlay and GLB.
"""

import argparse
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stages import params
from stages.artifacts import (
    atomic_directory,
    read_facts,
    write_bytes,
    write_json,
    write_table,
)
from stages.benchmark_photos import Job, Photo, benchmark_jobs
from stages.contracts import table_of
from stages.datasets.images import decode_rgb
from stages.datasets.meshes import obj_bytes, write_obj
from stages.inference.types import Reconstruction, Reconstructor
from stages.process import begin
from stages.row_cache import WORK, Row, RowCache, cached_each, key_of_values

logger = logging.getLogger(__name__)

METHODS = ("mean", "mica", "pix2face", "ringnet")
SECONDS_PER_IMAGE = {"mean": 0.05, "mica": 0.1, "pix2face": 0.6, "ringnet": 0.1}
UNDECIDING = {"max_failed_fraction", "detector_min_score", "detector_max_side_px", "photographs"}
"""Parameters that change no mesh of a packed photograph."""


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
    work: Path = WORK,
) -> None:
    """Reconstruct the photographs of every benchmark.

    Args:
        section: Benchmarks, crop, fit and tolerance.
        compute: Workers.
        method: One of ``METHODS``.
        data: Folder of all stages' outputs.
        out: Replaced when all is done.
        work: Folder of the meshes of earlier runs.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: Too many meshes of a benchmark failed.
    """
    reconstructor = load_method(method, data, section)
    sizes = {name: most for name, most in section.photographs if most != 0}
    jobs = [
        job
        for benchmark, most in sizes.items()
        for job in benchmark_jobs(data, benchmark, reconstructor.needs_landmarks, most)
    ]
    photographs = sum(len(job.photos) for job in jobs)
    deciding = section.model_dump(mode="json", exclude=UNDECIDING) | {"method": method}
    known = RowCache.of("reconstruct", section=deciding, inputs=_inputs(method, data), work=work)
    with atomic_directory(out) as scratch:
        rows = cached_each(
            partial(reconstruct_jobs, load=partial(load_method, method, data, section)),
            jobs,
            partial(write_answer, folder=scratch.resolve()),
            keys=[_key(job) for job in jobs],
            subjects=[[job.subject_id] for job in jobs],
            cache=known,
            compute=compute,
            seconds_per_item=SECONDS_PER_IMAGE[method] * photographs / max(1, len(jobs)),
            label=f"reconstruct {method}",
        )
        known.forget_unused()
        counts = {}
        for benchmark in sizes:
            part = [row for row in rows if row["benchmark"] == benchmark]
            failed = [row for row in part if row["status"] != "ok"]
            counts[benchmark] = {"meshes": len(part), "failed": len(failed)}
            if not part or len(failed) > section.max_failed_fraction * len(part):
                reasons = sorted({row["reason"] for row in failed})[:3]
                raise ValueError(
                    f"expected at least {1 - section.max_failed_fraction:.0%} of {benchmark} to be "
                    f"reconstructed by {method}, got {len(part) - len(failed)} of {len(part)}: "
                    f"{'; '.join(reasons)}"
                )
        write_table(table_of(rows, "predictions"), scratch / "rows.parquet")
        meta = {
            **reconstructor.facts,
            "method": method,
            "unit": "mm",
            "photographs": photographs,
            "benchmarks": counts,
        }
        write_json(meta, scratch / "meta.json")


def _inputs(method: str, data: Path) -> dict[str, Path]:
    """The weights and the face model that a method reads."""
    model = data / "models" / ("3ddfa" if method == "pix2face" else "flame")
    if method == "mean":
        return {"model": model}
    return {"model": model, "weights": data / "checkpoints" / method / "model.safetensors"}


def _key(job: Job) -> str:
    """SHA-256 of what decides a mesh."""
    values: Row = {"subject_id": job.subject_id, "expression": job.expression}
    for k, photo in enumerate(job.photos):
        values |= {
            f"{k}/image": photo.image,
            f"{k}/points_px": photo.points_px,
            f"{k}/reason": photo.reason,
        }
    return key_of_values(values)


def reconstruct_jobs(jobs: Sequence[Job], *, load: Callable[[], Reconstructor]) -> Iterator[Row]:
    """Mesh (OBJ, mm) and landmarks (npy) of each job as bytes, or why there are none."""
    for job in jobs:
        yield reconstruct_job(job, load)


def reconstruct_job(job: Job, load: Callable[[], Reconstructor]) -> Row:
    """One mesh and, where the face is neutral, its landmarks.

    A mesh of several photographs is their mean; those that cannot be used are said in ``reason``.
    """
    answers, reasons = [], []
    for photo in job.photos:
        try:
            answers.append(_answer(photo, load()))
        except ValueError as error:
            reasons.append(str(error))
    lost = "; ".join(sorted(set(reasons)))
    if not answers:
        return {"photographs": 0, "reason": lost}
    if reasons:
        lost = f"{len(reasons)} of {len(job.photos)} photographs left out: {lost}"
    shapes = [
        answer.shown_mm if job.expression and answer.shown_mm is not None else answer.vertices_mm
        for answer in answers
    ]
    mesh = obj_bytes(np.mean(shapes, axis=0), answers[0].faces, decimals=4)
    row: Row = {"photographs": len(answers), "reason": lost, "mesh": mesh}
    if job.expression:
        return row
    seven = np.mean([answer.landmarks_mm for answer in answers], axis=0)
    return row | {"landmarks": npy_bytes(seven)}


def write_answer(job: Job, answer: Row, *, folder: Path) -> dict[str, Any]:
    """Write a job's files; return its row of schema ``predictions``."""
    row: dict[str, Any] = {
        "item_id": job.item_id,
        "subject_id": job.subject_id,
        "benchmark": job.benchmark,
        "challenge": job.challenge,
        "provider": next((photo.provider for photo in job.photos if photo.provider), ""),
        "photographs": answer["photographs"],
        "reason": answer["reason"],
        "status": "ok" if "mesh" in answer else "failed",
    }
    stem = PurePosixPath(job.benchmark) / job.target
    for name, suffix in (("mesh", "obj"), ("landmarks", "npy")):
        if name in answer:
            row[name] = f"{stem}.{suffix}"
            write_bytes(folder / row[name], answer[name])
    return row


def _answer(photo: Photo, reconstructor: Reconstructor) -> Reconstruction:
    """Reconstruct one photograph.

    Raises:
        ValueError: It cannot be used or does not show enough.
    """
    if photo.reason:
        raise ValueError(photo.reason)
    blank = np.zeros((0, 0, 3), np.uint8)
    image = decode_rgb(photo.image) if reconstructor.needs_landmarks else blank
    points = np.zeros((68, 2)) if photo.points_px is None else photo.points_px
    return reconstructor(image, points)


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
