"""Stage `render`. Reads packed 300W-LP coefficients and a 3DMM. Writes PNCC and offset maps (mm).

For every photograph with coefficients: where on the mean face each pixel looks (PNCC) and
how far this face is from the mean there (offset), as compact records in shards by subject,
an index with one row per photograph, failures included, and a few pictures to look at.
Labels are held against each other: where the inner landmarks lie far from the posed model's,
one of the two is wrong, and the row is flagged; its maps are those of the coefficients.
With ``render.on_the_fly`` no maps are stored: the index says which photographs can be
drawn, and training draws them at the crop it needs. What the same code and model drew before is not
drawn again.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from models.face.morphable import LinearModel
from models.rendering.pncc import PLANES, PnccRenderer, Sample
from models.rendering.pncc_codec import MAGIC, OFFSET_ORIGIN_MM, STEP_MM, encode_crop, origin_of
from stages.render_sample import offset_picture, overlay_picture, png_bytes, render_sample_files
from stages.runtime.artifacts import (
    atomic_directory,
    read_json,
    read_table,
    sha256_file,
    shard_of,
    write_bytes,
    write_json,
    write_table,
)
from stages.runtime.compute import map_ordered
from stages.runtime.contracts import table_of
from stages.runtime.params import ComputeParams, RenderParams, load
from stages.runtime.row_cache import WORK, RowCache
from stages.runtime.rows import Row, decode_row, encode_row, key_of_values

__all__ = ["render_sample_files", "run"]

logger = logging.getLogger(__name__)

COLUMNS = (
    "item_id",
    "subject_id",
    "status",
    "reason",
    "split",
    "height_px",
    "width_px",
    "shape_para",
    "exp_para",
    "pose_para",
    "landmarks_px",
    "landmark_order",
)
INNER = slice(17, 68)
"""Landmarks that do not depend on where the contour is taken."""
FAR_OFF = "landmarks far from the posed model's"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """The photographs of one shard.

    Attributes:
        name: File name of the shard.
        rows: Packed rows (coefficients, no images), in item order.
    """

    name: str
    rows: tuple[dict[str, Any], ...]


@lru_cache(maxsize=1)
def _renderer(folder: Path) -> PnccRenderer:
    """The model's renderer, laid out once per process."""
    return PnccRenderer(LinearModel.load(folder), float(read_json(folder / "meta.json")["unit_m"]))


def sample_of(row: dict[str, Any]) -> Sample:
    """Coefficients of a packed row.

    Raises:
        ValueError: The row has no usable coefficients.
    """
    missing = [name for name in ("shape_para", "exp_para", "pose_para") if not row[name]]
    if missing:
        raise ValueError(
            f"no {', '.join(missing)} in the packed row; only 300W-LP samples can be drawn"
        )
    pose = np.asarray(row["pose_para"], dtype=np.float64)
    if pose.shape != (7,) or not np.isfinite(pose).all() or not pose[6] > 0:
        raise ValueError(f"pose_para expects seven finite numbers with scale > 0, got {pose}")
    return Sample(
        shape=np.asarray(row["shape_para"], dtype=np.float64),
        expression=np.asarray(row["exp_para"], dtype=np.float64),
        pose=pose,
        height=int(row["height_px"]),
        width=int(row["width_px"]),
    )


def _index_row(row: dict[str, Any], reason: str = "") -> dict[str, Any]:
    return {
        "item_id": row["item_id"],
        "subject_id": row["subject_id"],
        "status": "failed" if reason else "ok",
        "reason": reason,
        "split": row["split"],
        "shard": "",
        "offset": 0,
        "length": 0,
        "crop": None,
        "height_px": row["height_px"],
        "width_px": row["width_px"],
        "landmark_error": None,
        "flags": "[]",
    }


def landmark_error(renderer: PnccRenderer, sample: Sample, landmarks_px: Sequence[float]) -> float:
    """Mean distance of the inner landmarks from the posed model's, over the extent of these.

    Args:
        renderer: Of the model that the sample was fitted with.
        sample: Coefficients and pose.
        landmarks_px: x0 y0 x1 y1 ... of the 68 landmarks, iBUG order.
    """
    posed = renderer.keypoints_px(sample)[INNER]
    found = np.asarray(landmarks_px, dtype=np.float64).reshape(68, 2)[INNER]
    extent = float(np.ptp(posed, axis=0).max())
    return float(np.linalg.norm(found - posed, axis=1).mean()) / extent


def _judged(renderer: PnccRenderer, packed: Mapping[str, Any]) -> tuple[Sample, float | None]:
    """The sample of a packed row that the model can draw, and how far its labels disagree.

    Raises:
        ValueError: The row has no usable coefficients.
    """
    sample = renderer.checked(sample_of(dict(packed)))
    if packed["landmark_order"] != "ibug68" or packed["landmarks_px"] is None:
        return sample, None
    return sample, landmark_error(renderer, sample, packed["landmarks_px"])


def _noted(row: dict[str, Any], error: float | None, limit: float) -> dict[str, Any]:
    """The index row with its landmark error, flagged where it is above the limit."""
    if error is not None and not error <= limit:
        row["flags"] = json.dumps([FAR_OFF])
    return row | {"landmark_error": error}


def _write_shard(
    task: ShardTask, *, model: Path, out: Path, cache: RowCache, limit: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw and encode the photographs of one shard, but those that are kept from before.

    Returns:
        The shard's index rows, and the keys of its photographs in the cache.
    """
    keys = [_key(row) for row in task.rows]
    kept = {key: decode_row(data) for key in keys if (data := cache.get(key)) is not None}
    todo = {key: row for key, row in zip(keys, task.rows, strict=True) if key not in kept}
    for (key, packed), drawn in zip(todo.items(), _draw(list(todo.values()), model), strict=True):
        cache.put(key, encode_row(drawn), [packed["subject_id"]])
        kept[key] = drawn
    cache.flush()
    rows = []
    records = []
    position = 0
    for key, packed in zip(keys, task.rows, strict=True):
        drawn = kept[key]
        error = drawn["landmark_error"]
        row = _index_row(packed, drawn["reason"])
        row = _noted(row, None if error is None else float(error), limit)
        if not drawn["reason"]:
            size = len(drawn["record"])
            row.update(shard=task.name, offset=position, length=size, crop=drawn["box"].tolist())
            records.append(drawn["record"])
            position += size
        rows.append(row)
    write_bytes(out / task.name, b"".join(records))
    return rows, keys


def _key(packed: dict[str, Any]) -> str:
    """SHA-256 of what decides a photograph's maps."""
    return key_of_values(
        {
            name: np.asarray(value, np.float64) if isinstance(value, list) else value
            for name, value in packed.items()
        }
    )


def _draw(packed: Sequence[dict[str, Any]], model: Path) -> list[Row]:
    """Record (bytes) and box of each photograph, or the reason why there is none."""
    if not packed:
        return []
    renderer = _renderer(model)
    origin = origin_of(renderer.mean_mm)
    out: list[Row] = []
    drawable: list[tuple[Row, Sample]] = []
    for row in packed:
        drawn: Row = {"reason": "", "record": b"", "box": None, "landmark_error": None}
        out.append(drawn)
        try:
            sample, error = _judged(renderer, row)
        except ValueError as failure:
            drawn["reason"] = str(failure)
            continue
        drawn["landmark_error"] = None if error is None else np.asarray(error)
        drawable.append((drawn, sample))
    crops = renderer.crops([sample for _, sample in drawable])
    for (drawn, _), crop in zip(drawable, crops, strict=True):
        try:
            record = encode_crop(crop, origin)
        except ValueError as error:
            drawn["reason"] = str(error)
            continue
        if any(record.box):
            drawn |= {"record": record.data, "box": np.asarray(record.box, np.int32)}
        else:
            drawn["reason"] = "the posed face lies outside the photograph"
    return out


def _checked_only(
    task: ShardTask, *, model: Path, limit: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Index rows of a shard whose maps are left to be drawn on the fly; nothing is kept."""
    renderer = _renderer(model)
    rows = []
    for packed in task.rows:
        try:
            _, error = _judged(renderer, packed)
            rows.append(_noted(_index_row(packed), error, limit))
        except ValueError as failure:
            rows.append(_index_row(packed, str(failure)))
    return rows, []


def _write_previews(
    items: Sequence[str], packed: Path, model: Path, out: Path, size_px: int
) -> None:
    """Photograph with PNCC over it, PNCC, offset: side by side."""
    import cv2

    if not items:
        return
    renderer = _renderer(model)
    wanted = {row["item_id"]: row for row in _packed_rows(packed, [*COLUMNS, "image"], set(items))}
    for item in items:
        row = wanted[item]
        pixels = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            continue  # the pack stage already says so in the packed row
        sample = sample_of(row)
        colours, mask = renderer.colours(sample)
        parts = [
            overlay_picture(np.asarray(pixels, dtype=np.uint8), colours, mask),
            np.rint(255.0 * colours).astype(np.uint8),
            offset_picture(renderer.render([sample])[0]),
        ]
        shown = [
            cv2.resize(part, (size_px, size_px), interpolation=cv2.INTER_AREA) for part in parts
        ]
        write_bytes(out / f"{item.replace('/', '_')}.png", png_bytes(np.concatenate(shown, axis=1)))


def _packed_rows(
    packed: Path, columns: list[str], wanted: set[str] | None = None
) -> list[dict[str, Any]]:
    """Rows of the packed images in item order; only ``wanted`` items, if given."""
    rows: list[dict[str, Any]] = []
    shards = sorted(packed.glob("images-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected images-*.parquet in {packed}; run its pack stage")
    for shard in shards:
        table = read_table(shard, columns)
        if wanted is not None:
            keep = [item.as_py() in wanted for item in table["item_id"]]
            table = table.filter(keep)
        rows.extend(table.to_pylist())
    return sorted(rows, key=lambda row: str(row["item_id"]))


def run(
    p: RenderParams,
    compute: ComputeParams,
    *,
    packed: Path,
    model: Path,
    out: Path,
    work: Path = WORK,
) -> None:
    """Render a packed 300W-LP set.

    Args:
        p: The stage's parameters.
        compute: How the shards are mapped.
        packed: ``data/packed/300w_lp``.
        model: Converted 3DDFA model.
        out: Folder to write.
        work: Folder of the records of earlier runs.

    Raises:
        FileNotFoundError: An input is missing.
        RuntimeError: More photographs failed than ``max_failed_fraction`` allows.
    """
    rows = _packed_rows(packed, list(COLUMNS))
    shards: dict[int, list[dict[str, Any]]] = {}
    index = []
    for row in rows:
        if row["status"] != "ok":
            index.append(_index_row(row, f"not packed: {row['reason']}"))
        else:
            shards.setdefault(shard_of(row["subject_id"], p.shards), []).append(row)
    tasks = [
        ShardTask(f"maps-{number:05d}.pncc", tuple(shards[number])) for number in sorted(shards)
    ]
    renderer = _renderer(model)
    with atomic_directory(out) as scratch:
        facts = read_json(model / "meta.json")
        model_sha256 = sha256_file(model / "model.safetensors")
        deciding = {"dataset": packed.name, "model": model_sha256, "unit_m": facts["unit_m"]}
        known = RowCache.of("render", section=deciding, inputs={}, work=work)
        if p.on_the_fly:
            step: Any = partial(_checked_only, model=model, limit=p.max_landmark_error)
        else:
            step = partial(
                _write_shard, model=model, out=scratch, cache=known, limit=p.max_landmark_error
            )
        seconds = p.seconds_per_item * len(rows) / max(len(tasks), 1)
        for part, keys in map_ordered(
            step, tasks, compute=compute, seconds_per_item=seconds, label="PNCC shards"
        ):
            index.extend(part)
            known.use(keys)
        known.forget_unused()
        index.sort(key=lambda row: str(row["item_id"]))
        failed = [row for row in index if row["status"] != "ok"]
        if len(failed) > p.max_failed_fraction * max(len(index), 1):
            raise RuntimeError(
                f"{len(failed)} of {len(index)} photographs failed, more than "
                f"{p.max_failed_fraction:.0%}; the first: {failed[0]['item_id']}: "
                f"{failed[0]['reason']}"
            )
        flagged = sum(row["flags"] != "[]" for row in index)
        write_table(table_of(index, "rendered"), scratch / "index.parquet")
        write_json(
            {
                "items": len(index),
                "failed": len(failed),
                "flagged": flagged,
                "on_the_fly": p.on_the_fly,
                "model": facts["kind"],
                "model_sha256": model_sha256,
                "synthetic": facts["synthetic"],
                "unit": "mm",
                "encoding": MAGIC.decode(),
                "plane_order": "pncc x y z, offset x y z",
                "planes": PLANES,
                "step_mm": STEP_MM,
                "origin_mm": [float(length) for length in origin_of(renderer.mean_mm)],
                "offset_reach_mm": -OFFSET_ORIGIN_MM,
            },
            scratch / "meta.json",
        )
        shown = [row["item_id"] for row in index if row["status"] == "ok"]
        picked = np.linspace(0, len(shown) - 1, min(p.previews, len(shown))).astype(int)
        _write_previews(
            [shown[at] for at in picked], packed, model, scratch / "preview", p.preview_px
        )
    logger.info(
        "rendered %d of %d photographs, %d with labels that disagree",
        len(index) - len(failed),
        len(index),
        flagged,
    )


def main() -> None:
    """Command line: paths only."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packed", required=True, type=Path, help="packed 300W-LP")
    parser.add_argument("--model", required=True, type=Path, help="converted 3DDFA model")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()

    from stages.runtime.process import begin

    begin("render")
    params = load()
    run(
        params.render,
        params.compute,
        packed=arguments.packed,
        model=arguments.model,
        out=arguments.out,
    )


if __name__ == "__main__":
    from stages.render import main as imported_main  # Ray workers find it by name

    imported_main()
