"""Stage `reconstruct`: a method's meshes for every benchmark, in the submissions' layouts.

Reads the benchmarks' packed photographs, their landmarks (px), a checkpoint and its face model.
Writes ``<benchmark>/<name>.obj`` (mm) with landmarks ``.npy`` beside it (NoW's seven, or 51) where
the face is neutral (``stages.benchmarks.benchmark_photos`` says which photographs make which mesh),
``rows.parquet`` (one row per mesh, failures too) and ``meta.json``. A mesh that the same code and
weights made of the same photographs before is not made again. pix2face also leaves
``landmarks.parquet``: its landmarks on annotated photographs that it has not learned from
(``stages.landmarking.landmark_scores``).
``reconstruct_photos`` does the same for any photographs, with overlay, GLB and point cloud.
"""

import argparse
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.face.flame import NOW_SEVEN_IN_STATIC_51
from stages.benchmarks.benchmark_photos import Job, Photo, benchmark_jobs
from stages.datasets.images import decode_rgb
from stages.datasets.meshes import cloud_ply_bytes, obj_bytes
from stages.inference.types import Reconstruction, Reconstructor
from stages.landmarking.landmark_scores import TABLE, finished, labelled_photos, predict_landmarks
from stages.runtime import params
from stages.runtime.artifacts import (
    atomic_directory,
    read_facts,
    write_bytes,
    write_json,
    write_table,
)
from stages.runtime.cached_map import cached_each
from stages.runtime.compute import session
from stages.runtime.contracts import table_of
from stages.runtime.process import begin
from stages.runtime.row_cache import WORK, RowCache
from stages.runtime.rows import Row, key_of_values

if TYPE_CHECKING:
    from stages.inference.pix2face import Pix2FaceReconstructor

logger = logging.getLogger(__name__)

ON_SEVEN = ("now", "stirling")
"""Benchmarks whose submissions carry NoW's seven landmarks; the others' carry 51."""
METHODS = ("mean", "deng2019", "mica", "pix2face", "ringnet")
SECONDS_PER_IMAGE = {"mean": 0.05, "deng2019": 0.1, "mica": 0.1, "pix2face": 0.2, "ringnet": 0.1}
Together = Callable[
    [Sequence[tuple[np.ndarray, np.ndarray]]], tuple[list[Reconstruction | None], list[str]]
]
"""A joint solution of photographs (RGB, 68 points): answers, and reasons where there are none."""
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
    if method == "deng2019":
        from stages.inference.deng2019 import Deng2019Reconstructor

        return Deng2019Reconstructor(weights, data / "models" / "bfm2009", section.deng2019)
    if method == "mica":
        from stages.inference.mica import MicaReconstructor

        return MicaReconstructor(weights, data / "models" / "flame")
    if method == "pix2face":
        from stages.inference.pix2face import Pix2FaceReconstructor

        return Pix2FaceReconstructor(weights, data / "models" / "3ddfa", section.pix2face)
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
    if method == "pix2face" and section.pix2face.joint > 1:
        jobs = with_companions(jobs, section.pix2face.joint)
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
        if method == "pix2face" and section.pix2face.landmark_photographs != 0:
            load = partial(load_method, method, data, section)
            landmarks = _landmarks(load, section, compute, data, known)
            write_table(table_of(landmarks, "landmark_predictions"), scratch / TABLE)
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


def with_companions(jobs: Sequence[Job], joint: int) -> list[Job]:
    """Neutral meshes of one photograph, each with the next photographs of its person.

    A benchmark that wants a mesh per photograph gets meshes that rest on up to ``joint`` of them:
    the photograph's own first, then those that follow it in order of ``item_id``, beginning again
    at the end.
    """
    own: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if len(job.photos) == 1 and not job.expression:
            own.setdefault((job.benchmark, job.subject_id), []).append(job)
    found = []
    for job in jobs:
        group = own.get((job.benchmark, job.subject_id), [])
        if job in group:
            at = group.index(job)
            chosen = (group[at:] + group[:at])[:joint]
            job = replace(job, photos=tuple(other.photos[0] for other in chosen))
        found.append(job)
    return found


def _landmarks(
    load: Callable[[], Any],
    section: params.ReconstructParams,
    compute: params.ComputeParams,
    data: Path,
    known: RowCache,
) -> list[dict[str, Any]]:
    """Rows of ``landmarks.parquet``."""
    method: Pix2FaceReconstructor = load()
    photos = labelled_photos(
        data / "packed" / "300w_lp",
        method.validation_subjects,
        section.pix2face.landmark_photographs,
    )
    return cached_each(
        partial(predict_landmarks, load=load),
        photos,
        finished,
        keys=[photo.key for photo in photos],
        subjects=[[photo.subject_id] for photo in photos],
        cache=known,
        compute=compute,
        seconds_per_item=SECONDS_PER_IMAGE["pix2face"],
        label="landmarks pix2face",
    )


def _inputs(method: str, data: Path) -> dict[str, Path]:
    """The weights and the face model that a method reads."""
    model = data / "models" / {"deng2019": "bfm2009", "pix2face": "3ddfa"}.get(method, "flame")
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

    A mesh of several photographs is their mean, or their joint solution where the method has one
    and is told to; those that cannot be used are said in ``reason``.
    """
    method = load()
    together = getattr(method, "together", None) if getattr(method, "joint", 1) > 1 else None
    if together is None or len(job.photos) == 1:
        found = [_answered(photo, method) for photo in job.photos]
    else:
        found = _joint_answers(job.photos, together)
    answers = [answer for answer in found if not isinstance(answer, str)]
    reasons = [answer for answer in found if isinstance(answer, str)]
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
    inner = np.mean([answer.inner_mm for answer in answers], axis=0)
    points = inner[list(NOW_SEVEN_IN_STATIC_51)] if job.benchmark in ON_SEVEN else inner
    return row | {"landmarks": npy_bytes(points)}


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


def _answered(photo: Photo, reconstructor: Reconstructor) -> Reconstruction | str:
    """Reconstruct one photograph, or say why it cannot be used or does not show enough."""
    if photo.reason:
        return photo.reason
    blank = np.zeros((0, 0, 3), np.uint8)
    points = np.zeros((68, 2)) if photo.points_px is None else photo.points_px
    try:
        image = decode_rgb(photo.image) if reconstructor.needs_landmarks else blank
        return reconstructor(image, points)
    except ValueError as error:
        return str(error)


def _joint_answers(photos: Sequence[Photo], together: Together) -> list[Reconstruction | str]:
    """The joint solution's answer for every photograph that can be used, reasons for the others."""
    reasons = [photo.reason for photo in photos]
    inputs = []
    for at, photo in enumerate(photos):
        if not photo.reason:
            assert photo.points_px is not None
            try:
                inputs.append((decode_rgb(photo.image), photo.points_px))
            except ValueError as error:
                reasons[at] = str(error)
    answers, whys = together(inputs)
    found = iter([answer or why for answer, why in zip(answers, whys, strict=True)])
    return [reason or next(found) for reason in reasons]


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
    one_person: bool = False,
) -> list[dict[str, Any]]:
    """Reconstruct any photographs: one folder each with mesh, GLB and overlay.

    Args:
        images: Photographs; the largest detected face of each is used.
        checkpoint: ``model.safetensors`` of the train stage, or the folder that holds it.
        out: Folder; ``<image name>/{head.obj,head.glb,overlay.png,landmarks.npy}`` is written, by
            pix2face also ``posed.obj`` (with the expression), ``cloud.ply`` (coloured, one point
            per face pixel), ``landmarks_px.npy`` and ``landmarks_mm.npy`` (68 each).
        section: Crop, fit and detection.
        data: Folder of all stages' outputs: face models and the landmark predictor.
        one_person: All photographs show one person: one identity from all of them (pix2face and
            deng2019).

    Returns:
        One row per photograph: ``image``, ``status``, ``reason``, ``note`` and the files written.

    Raises:
        FileNotFoundError: The checkpoint or a model is missing.
        ValueError: The checkpoint is of no known method, the method has no joint solution, or two
            photographs have one name.
    """
    from stages.landmarking.landmark_predictor import FaceDetector, LandmarkPredictor

    file = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    if not file.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {file}; train one: faceline run train")
    facts = read_facts(file)
    method = facts.get("method")
    if method not in METHODS:
        raise ValueError(
            f"expected a checkpoint of {', '.join(METHODS[1:])}, got {method!r} in {file}"
        )
    stems = [path.stem for path in images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(
            f"expected photographs of different names, one folder each, got {twice[0]!r} twice; "
            "rename one or call twice"
        )
    reconstructor = load_method(method, data, section, file)
    together = getattr(reconstructor, "together", None)
    if one_person and together is None:
        raise ValueError(
            f"expected a method for several photographs (pix2face, deng2019), got {method}; "
            "leave --one-person out"
        )
    predictor = LandmarkPredictor(data / "landmark_model" / "shape_predictor_68.dat")
    detector = FaceDetector(
        min_score=section.detector_min_score, max_side_px=section.detector_max_side_px
    )
    faces = [_face(path, detector, predictor) for path in images]
    answers = _answers_of(faces, reconstructor, together if one_person else None)
    rows = []
    for path, face, answer in zip(images, faces, answers, strict=True):
        row: dict[str, Any] = {"image": str(path), "method": method, "weights": facts["weights"]}
        if isinstance(face, str) or isinstance(answer, str):
            reason = face if isinstance(face, str) else str(answer)
            rows.append(row | {"status": "failed", "reason": reason, "note": ""})
            continue
        names = _write_photo(out / path.stem, answer, face.image)
        files = [str(out / path.stem / name) for name in names]
        rows.append(row | {"status": "ok", "reason": "", "note": face.note, "files": files})
    return rows


class _Face(NamedTuple):
    """The face that is taken of a photograph."""

    image: np.ndarray
    points_px: np.ndarray
    note: str


def _face(
    path: Path,
    detector: Any,  # noqa: ANN401 - FaceDetector, imported late
    predictor: Any,  # noqa: ANN401 - LandmarkPredictor, imported late
) -> _Face | str:
    """Find the landmarks of a photograph's largest face, or say why there are none."""
    import cv2

    if not path.is_file():
        return f"expected a photograph at {path}, found none"
    try:
        image = decode_rgb(path.read_bytes())
    except (OSError, ValueError) as error:
        return str(error)
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    found = detector(grey)
    if not found:
        return "no face was found; give a larger or more frontal photograph"
    box = largest_face([box for box, _ in found], image.shape[1], image.shape[0])
    note = f"{len(found)} faces were found; the largest is taken" if len(found) > 1 else ""
    return _Face(image, predictor(grey, box).points, note)


def largest_face(boxes: Sequence[np.ndarray], width: int, height: int) -> np.ndarray:
    """The box with the largest area; of equal ones the nearest to the photograph's centre."""
    middle = np.array([width, height]) / 2

    def rank(box: np.ndarray) -> tuple[float, float]:
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        return -round(area), float(np.linalg.norm((box[:2] + box[2:]) / 2 - middle))

    return min(boxes, key=rank)


def _answers_of(
    faces: Sequence[_Face | str], reconstructor: Reconstructor, together: Together | None
) -> list[Reconstruction | str]:
    """An answer or a reason per photograph; photographs without a face get an empty reason."""
    if together is not None:
        usable = [face for face in faces if not isinstance(face, str)]
        answers, reasons = together([(face.image, face.points_px) for face in usable])
        found = iter([answer or why for answer, why in zip(answers, reasons, strict=True)])
        return ["" if isinstance(face, str) else next(found) for face in faces]
    answered: list[Reconstruction | str] = []
    for face in faces:
        if isinstance(face, str):
            answered.append("")
            continue
        try:
            answered.append(reconstructor(face.image, face.points_px))
        except ValueError as error:
            answered.append(str(error))
    return answered


def _write_photo(folder: Path, answer: Reconstruction, image: np.ndarray) -> list[str]:
    """Write a photograph's files; return their names."""
    import cv2
    import trimesh

    from stages.inference.overlay import overlay

    mesh = trimesh.Trimesh(answer.vertices_mm / 1000.0, answer.faces, process=False)
    ok, png = cv2.imencode(".png", overlay(image, answer)[..., ::-1])
    assert ok
    head = obj_bytes(answer.vertices_mm, answer.faces, decimals=4)
    contents: dict[str, bytes] = {
        "head.obj": head,
        "head.glb": mesh.export(file_type="glb"),
        "landmarks.npy": npy_bytes(answer.inner_mm[list(NOW_SEVEN_IN_STATIC_51)]),
        "overlay.png": png.tobytes(),
    }
    if answer.points_px is not None and answer.points_mm is not None:
        contents["landmarks_px.npy"] = npy_bytes(answer.points_px)
        contents["landmarks_mm.npy"] = npy_bytes(answer.points_mm)
    if answer.cloud_mm is not None and answer.cloud_rgb is not None:
        assert answer.shown_mm is not None
        contents["posed.obj"] = obj_bytes(answer.shown_mm, answer.faces, decimals=4)
        contents["cloud.ply"] = cloud_ply_bytes(answer.cloud_mm, answer.cloud_rgb)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    write_json({"unit": "mm", **answer.coefficients}, folder / "coefficients.json")
    return [*contents, "coefficients.json"]


def main() -> None:
    """Command line: the method's name and paths only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin(f"reconstruct@{args.method}")
    loaded = params.load()
    with session():
        run(loaded.reconstruct, loaded.compute, method=args.method, data=args.data, out=args.out)


if __name__ == "__main__":
    from stages.reconstruct import main as imported_main  # Ray workers find it by name

    imported_main()
