"""Stage `unify`: one neutral FLAME mesh per subject, with its photographs, in MICA's layout.

Reads the registrations of every scan set, the packed scans and photographs, and the photographs'
68 points where there are any. Writes per set ``FLAME_parameters/<actor>/<scan>.npz`` (``pose`` 15,
``betas`` 300 identity then 100 expression), ``registrations/<actor>/<scan>.obj`` (neutral, metres),
``images/<actor>/*`` (the owner's bytes), ``arcface_input/<actor>/*.npy`` (float32 (3, 112, 112)
RGB, (x - 127.5) / 127.5) with the 224 px crop beside it, and ``image_paths/<NAME>.json``; for all
sets ``subjects.parquet`` and ``table.json``.

Departure from the published layout: ``image_paths`` is JSON because the published form is pickled.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from models.face.flame import FlameArrays
from models.networks.encoders.arcface_crop import arcface_blob, arcface_crop, five_points
from stages.datasets.images import decode_rgb
from stages.datasets.meshes import write_obj
from stages.photos import landmark_rows
from stages.runtime import params
from stages.runtime.artifacts import (
    atomic_directory,
    read_json,
    read_table,
    write_json,
    write_npz,
    write_table,
)
from stages.runtime.compute import map_ordered
from stages.runtime.contracts import STATUSES, VALIDATION_SETS, table_of
from stages.runtime.process import begin

logger = logging.getLogger(__name__)

IDENTITY, EXPRESSION = 300, 100
PREVIEW_PX = 224
SECONDS_PER_SHARD = 2.0
PUBLISHED_SUBJECTS = {
    "BP4D": 127,
    "BU3DFE": 100,
    "D3DFACS": 10,
    "FACEWAREHOUSE": 150,
    "FLORENCE": 53,
    "FRGC": 531,
    "LYHM": 1211,
    "STIRLING": 133,
}
COUNTED = (
    "subjects_found",
    "subjects",
    "not_unified",
    "scans_ok",
    "scans_rejected",
    "scans_failed",
    "photographs",
    "crops",
)
"""Figures of a set: people with scans, unified, not unified; scans by status; pictures."""
PUBLISHED_SOURCE = "Zielonka, Bolkart, Thies: Towards Metrical Reconstruction of Human Faces, 2022"


@dataclass(frozen=True, slots=True)
class Choice:
    """What one subject contributes.

    Attributes:
        subject_id: As in the packed tables.
        item_id: The chosen registration; empty when there is none.
        stem: File name of its scan, without suffix.
        reason: Why there is none; empty when there is one.
    """

    subject_id: str
    item_id: str
    stem: str
    reason: str

    @property
    def actor(self) -> str:
        """The subject's folder."""
        return self.subject_id.split("/")[-1]


def run(
    section: params.UnifyParams,
    compute: params.ComputeParams,
    *,
    registered: Path,
    packed: Path,
    landmarks: Path,
    model: Path,
    out: Path,
) -> None:
    """Gather every registered scan set.

    Args:
        section: Crop size, photographs per subject.
        compute: Workers.
        registered: Holds one folder of registrations per scan set.
        packed: Holds one packed folder per data set.
        landmarks: Holds one folder of landmarks per data set; sets without one get no crops.
        model: Converted FLAME.
        out: Replaced when all is done.

    Raises:
        FileNotFoundError: There are no registrations, or their packed scans are missing.
        ValueError: Not one subject could be unified.
    """
    folders = sorted(path.parent for path in registered.glob("*/registrations.parquet"))
    if not folders:
        raise FileNotFoundError(
            f"expected {registered}/<scan set>/registrations.parquet; run the register stage first"
        )
    arrays = FlameArrays.load(model)
    rows: list[dict[str, Any]] = []
    attached: dict[str, dict[str, Any]] = {}
    with atomic_directory(out) as scratch:
        for folder in folders:
            found = _unify_set(
                section,
                compute,
                folder,
                packed / folder.name,
                landmarks / folder.name,
                arrays,
                scratch,
            )
            rows += found
            meta = packed / folder.name / "meta.json"
            statuses = read_table(folder / "registrations.parquet", ["status"])["status"]
            attached[folder.name.upper()] = _counts(found, statuses.to_pylist()) | {
                "synthetic": read_json(meta).get("synthetic") if meta.is_file() else None
            }
        rows.sort(key=lambda row: (row["dataset"], row["subject_id"]))
        write_table(table_of(rows, "unified_subjects"), scratch / "subjects.parquet")
        write_json(eight_rows(attached), scratch / "table.json")
        if not any(row["status"] == "ok" for row in rows):
            reasons = sorted({row["reason"] for row in rows})[:3]
            raise ValueError(
                f"expected at least one unified subject, got none of {len(rows)}: "
                f"{'; '.join(reasons)}"
            )


def choose(
    registrations: list[Mapping[str, Any]], scans: Mapping[str, Mapping[str, Any]]
) -> list[Choice]:
    """The best neutral registration of every subject, in order of ``subject_id``.

    Only accepted registrations of neutral scans of metric scale count. The scan that its data set
    names as ground truth wins, then the smallest median residual, then the lowest ``item_id``.

    Args:
        registrations: Rows of ``registrations.parquet``.
        scans: Packed scans by ``item_id``.
    """
    subjects: dict[str, list[Mapping[str, Any]]] = {}
    for row in registrations:
        subjects.setdefault(row["subject_id"], []).append(row)
    choices = []
    for subject, candidates in sorted(subjects.items()):
        neutral = [row for row in candidates if scans.get(row["item_id"], {}).get("neutral")]
        good = [
            row
            for row in neutral
            if row["status"] == "ok" and "scale_not_metric" not in row["flags"]
        ]
        if good:
            truths = {row["item_id"]: _ground_truth(scans[row["item_id"]]) for row in good}
            best = min(
                good,
                key=lambda row: (
                    not truths[row["item_id"]],
                    row["residual_median_mm"],
                    row["item_id"],
                ),
            )
            stem = _unzipped(scans[best["item_id"]]["source_path"]).stem
            choices.append(Choice(subject, best["item_id"], stem, ""))
        else:
            choices.append(Choice(subject, "", "", _why_none(candidates, neutral)))
    return choices


def _ground_truth(scan: Mapping[str, Any]) -> bool:
    """Whether the data set prefers this scan over the subject's others."""
    return bool(json.loads(scan.get("attributes") or "{}").get("ground_truth"))


def _why_none(candidates: list[Mapping[str, Any]], neutral: list[Mapping[str, Any]]) -> str:
    """Why a subject contributes nothing: what befell its neutral scans, or else all of them."""
    said = [row["reason"] or "the scan's scale is not metric" for row in neutral]
    if not said:
        said = [row["reason"] for row in candidates if row["status"] == "failed"]
    if not said:
        return f"none of {len(candidates)} scans is neutral"
    return "; ".join(sorted(set(said)))


def eight_rows(attached: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table of the eight sets: what is here, beside what was published.

    Args:
        attached: By set name: ``COUNTED`` and ``synthetic``.
    """
    rows = []
    for name in sorted(PUBLISHED_SUBJECTS | dict.fromkeys(attached, 0)):
        here = attached.get(name)
        rows.append(
            {
                "dataset": name,
                "status": "not attached" if here is None else "attached",
                "role": role(name),
                **{column: 0 if here is None else here[column] for column in COUNTED},
                "synthetic": None if here is None else here["synthetic"],
                "published_subjects": PUBLISHED_SUBJECTS.get(name),
            }
        )
    return {
        "rows": rows,
        "total": {
            "subjects": sum(row["subjects"] for row in rows),
            "train_subjects": sum(row["subjects"] for row in rows if row["role"] == "train"),
            "photographs": sum(row["photographs"] for row in rows),
            "published_subjects": sum(PUBLISHED_SUBJECTS.values()),
        },
        "published_source": PUBLISHED_SOURCE,
    }


def role(name: str) -> str:
    """What the people of a set serve for."""
    return "validation" if name in VALIDATION_SETS else "train"


def _counts(rows: list[dict[str, Any]], verdicts: list[str]) -> dict[str, int]:
    """Figures of one set; ``verdicts`` are the statuses of its registered scans."""
    good = [row for row in rows if row["status"] == "ok"]
    return {
        "subjects_found": len(rows),
        **{f"scans_{status}": verdicts.count(status) for status in STATUSES},
        "subjects": len(good),
        "photographs": sum(len(row["images"]) for row in good),
        "crops": sum(row.pop("crops") for row in rows),
        "not_unified": len(rows) - len(good),
    }


def _unify_set(
    section: params.UnifyParams,
    compute: params.ComputeParams,
    registered: Path,
    packed: Path,
    landmarks: Path,
    arrays: FlameArrays,
    out: Path,
) -> list[dict[str, Any]]:
    """One scan set; returns a row per subject, each with the number of its ``crops``."""
    name = registered.name.upper()
    columns = ["item_id", "subject_id", "status", "reason", "residual_median_mm", "flags"]
    table = registered / "registrations.parquet"
    scans = {row["item_id"]: row for row in _packed(packed, "scans", _SCAN_COLUMNS)}
    if not scans:
        raise FileNotFoundError(f"expected {packed}/scans-*.parquet; run its pack stage first")
    choices = choose(read_table(table, columns).to_pylist(), scans)
    wanted = {choice.item_id: choice for choice in choices if not choice.reason}
    fitted = read_table(table, ["item_id", "beta", "psi", "theta", "vertices_neutral"])
    keep = [item in wanted for item in fitted["item_id"].to_pylist()]
    for row in fitted.filter(keep).to_pylist():
        _write_registration(row, wanted[row["item_id"]], arrays, out / name)
    points = _points(landmarks, section.min_landmark_score)
    actors = {choice.subject_id: choice.actor for choice in choices if not choice.reason}
    shards = sorted(packed.glob("images-*.parquet"))
    results = map_ordered(
        partial(
            write_photographs,
            actors=actors,
            points=points,
            size_px=section.arcface_size_px,
            most=section.images_per_subject,
            out=out / name,
        ),
        shards,
        compute=compute,
        seconds_per_item=SECONDS_PER_SHARD,
        label=f"unify {name}",
    )
    photographs: dict[str, tuple[list[str], int]] = {}
    for result in results:
        photographs.update(result)
    rows, paths = [], {}
    for choice in choices:
        images, crops = photographs.get(choice.subject_id, ([], 0))
        parameters = f"{name}/FLAME_parameters/{choice.actor}/{choice.stem}.npz"
        rows.append(
            {
                "subject_id": choice.subject_id,
                "dataset": name,
                "actor": choice.actor,
                "item_id": choice.item_id,
                "parameters": "" if choice.reason else parameters,
                "mesh": ""
                if choice.reason
                else f"{name}/registrations/{choice.actor}/{choice.stem}.obj",
                "images": [f"{name}/images/{image}" for image in images],
                "status": "failed" if choice.reason else "ok",
                "reason": choice.reason,
                "crops": crops,
            }
        )
        if not choice.reason:
            paths[choice.actor] = [images, f"{choice.actor}/{choice.stem}.npz"]
    write_json(paths, out / "image_paths" / f"{name}.json")
    logger.info("unify %s: %d of %d subjects", name, len(actors), len(choices))
    return rows


_SCAN_COLUMNS = ["item_id", "source_path", "neutral", "attributes"]


def _write_registration(
    row: Mapping[str, Any], choice: Choice, arrays: FlameArrays, out: Path
) -> None:
    """Parameters and neutral mesh of one subject."""
    betas = np.zeros(IDENTITY + EXPRESSION, dtype=np.float32)
    beta, psi = row["beta"][:IDENTITY], row["psi"][:EXPRESSION]
    betas[: len(beta)] = beta
    betas[IDENTITY : IDENTITY + len(psi)] = psi
    write_npz(
        {"pose": np.asarray(row["theta"], dtype=np.float32), "betas": betas},
        out / "FLAME_parameters" / choice.actor / f"{choice.stem}.npz",
    )
    vertices = np.asarray(row["vertices_neutral"], dtype=np.float64).reshape(-1, 3)
    mesh = out / "registrations" / choice.actor / f"{choice.stem}.obj"
    write_obj(mesh, vertices, arrays.faces)


def write_photographs(
    shard: Path,
    *,
    actors: Mapping[str, str],
    points: Mapping[str, np.ndarray],
    size_px: int,
    most: int,
    out: Path,
) -> dict[str, tuple[list[str], int]]:
    """Photographs and recogniser crops of the subjects in one shard.

    Args:
        shard: Packed photographs; a subject's photographs all lie in one shard.
        actors: Folder of each wanted subject.
        points: (68, 2) pixels by item.
        size_px: Side of the recogniser's crop.
        most: Photographs kept per subject, the first in order of ``item_id``.
        out: Folder of the data set.

    Returns:
        By subject: relative paths of the photographs, and how many of them have a crop.
    """
    import cv2

    columns = ["item_id", "subject_id", "status", "source_path", "image"]
    table = read_table(shard, [*columns, "landmarks_px", "landmark_order"])
    rows = sorted(table.to_pylist(), key=lambda row: row["item_id"])
    found: dict[str, tuple[list[str], int]] = {}
    for row in rows:
        subject = row["subject_id"]
        images, crops = found.get(subject, ([], 0))
        if row["status"] != "ok" or subject not in actors or len(images) >= most:
            continue
        source = _unzipped(row["source_path"])
        if source.suffix.lower() == ".ppm":  # packed as PNG
            source = source.with_suffix(".png")
        name = f"{actors[subject]}/{source.name}"
        if name in images:
            name = f"{actors[subject]}/{source.parent.name}_{source.name}"
        _put(out / "images" / name, row["image"])
        marks = points.get(row["item_id"])
        if marks is None and row["landmark_order"] == "ibug68" and row["landmarks_px"]:
            marks = np.asarray(row["landmarks_px"], dtype=np.float64).reshape(68, 2)
        if marks is not None:
            pixels, five = decode_rgb(row["image"]), five_points(marks)
            target = out / "arcface_input" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            blob = arcface_blob(arcface_crop(pixels, five, size_px))
            np.save(target.with_suffix(".npy"), blob, allow_pickle=False)
            preview = arcface_crop(pixels, five, PREVIEW_PX)[..., ::-1]
            _put(target.with_suffix(".jpg"), cv2.imencode(".jpg", preview)[1].tobytes())
            crops += 1
        found[subject] = ([*images, name], crops)
    return found


def _unzipped(path: str) -> PurePosixPath:
    """The owner's path, a closing ``.gz`` left out."""
    return PurePosixPath(path.removesuffix(".gz"))


def _put(path: Path, data: bytes) -> None:
    """Write inside a folder that becomes an artefact as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _packed(folder: Path, kind: str, columns: list[str]) -> list[dict[str, Any]]:
    shards = sorted(folder.glob(f"{kind}-*.parquet"))
    return [row for shard in shards for row in read_table(shard, columns).to_pylist()]


def _points(folder: Path, least: float) -> dict[str, np.ndarray]:
    """The 68 points by item where the score is high enough; empty without a landmarks folder."""
    if not (folder / "landmarks.parquet").is_file():
        logger.warning("%s: no landmarks; only packed ones make crops", folder)
        return {}
    return {
        item: np.asarray(row["points_px"], dtype=np.float64).reshape(68, 2)
        for item, row in landmark_rows(folder).items()
        if row["status"] == "ok" and (row["score"] is None or row["score"] >= least)
    }


def main() -> None:
    """Command line of the stage: paths only."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("registered", "packed", "landmarks", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    begin("unify")
    loaded = params.load()
    run(
        loaded.unify,
        loaded.compute,
        registered=args.registered,
        packed=args.packed,
        landmarks=args.landmarks,
        model=args.model,
        out=args.out,
    )


if __name__ == "__main__":
    from stages.unify import main as imported_main  # Ray workers find it by name

    imported_main()
