"""Stage `landmarks`. Reads packed photographs. Writes 68 points (px), score and box per photograph.

One row per photograph, failures included: no face, several faces, a truncated file. The
column ``provider`` says where points and box come from; the points that came with a data
set are used only where params/landmarks.yaml asks for the provider ``files``. A photograph that the
same code, weights and parameters answered before is not looked at again.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from models.face.landmarks import relative_error
from stages.landmarking.landmark_predictor import FILE_NAME
from stages.landmarking.landmark_providers import NoFaceError, Provider, provider_of
from stages.runtime.artifacts import atomic_directory, read_json, write_json, write_table
from stages.runtime.cached_map import cached_map
from stages.runtime.contracts import table_of
from stages.runtime.params import ComputeParams, LandmarksParams, load
from stages.runtime.row_cache import WORK, RowCache
from stages.runtime.rows import keys_of_shard, read_rows

logger = logging.getLogger(__name__)

COLUMNS = [
    "item_id",
    "subject_id",
    "status",
    "reason",
    "image",
    "height_px",
    "width_px",
    "box_px",
    "landmarks_px",
    "landmark_order",
]
PHOTOGRAPHS_AT_ONCE = 32
UNDECIDING = {"provider", "providers", "face_alignment", "max_failed_fraction", "seconds_per_item"}
"""Parameters that change no row; the provider and its weights count by themselves."""
REASON_KINDS = 60
"""Characters of a reason that name its kind in the metrics."""


@lru_cache(maxsize=1)
def _provider(name: str, parameters: str, model: Path) -> Provider:
    """The provider of this process, loaded once."""
    return provider_of(name, LandmarksParams.model_validate_json(parameters), model)


def locate(row: dict[str, Any], provider: Provider) -> dict[str, Any]:
    """The landmarks row of one packed row, and its error where the data set publishes points."""
    result = {
        "item_id": row["item_id"],
        "subject_id": row["subject_id"],
        "status": "failed",
        "reason": f"not packed: {row['reason']}",
        "points_px": None,
        "score": None,
        "box_px": None,
        "provider": "",
        "error": None,
    }
    if row["status"] != "ok":
        return result
    try:
        found = provider(row)
    except NoFaceError as error:
        return {**result, "reason": str(error)}
    if row["landmark_order"] == "ibug68" and len(row["landmarks_px"] or ()) == 136:
        published = np.asarray(row["landmarks_px"], dtype=np.float64).reshape(68, 2)
        result["error"] = float(relative_error(found.points_px, published))
    return {
        **result,
        "status": "ok",
        "reason": "",
        "points_px": found.points_px.astype(np.float32).ravel(),
        "score": found.score,
        "box_px": found.box_px.astype(np.float32),
        "provider": found.provider,
    }


def locate_rows(
    places: Sequence[tuple[Path, int]], *, name: str, parameters: str, model: Path
) -> Iterator[dict[str, Any]]:
    """The rows of packed photographs, with their errors."""
    for row in read_rows(places, rows_at_once=PHOTOGRAPHS_AT_ONCE, columns=COLUMNS):
        plain = {column: value.as_py() for column, value in row.items()}
        yield locate(plain, _provider(name, parameters, model))


def _weights(name: str, p: LandmarksParams, model: Path) -> dict[str, Path | None]:
    """The files that decide a provider's answers; None where the parameters name none."""
    if name == "files":
        return {}
    if name == "face-alignment":
        return {"fan": p.face_alignment.fan, "s3fd": p.face_alignment.s3fd}
    return {"predictor": model / FILE_NAME}


def metrics_of(rows: list[dict[str, Any]], provider: str) -> dict[str, Any]:
    """Counts, reasons, scores, and errors against published points where there are any."""
    done = [row for row in rows if row["status"] == "ok"]
    errors = [100.0 * row["error"] for row in done if row["error"] is not None]
    metrics: dict[str, Any] = {
        "provider": provider,
        "items": len(rows),
        "located": len(done),
        "failed": len(rows) - len(done),
        "reasons": dict(
            sorted(
                Counter(
                    row["reason"][:REASON_KINDS] for row in rows if row["status"] != "ok"
                ).items()
            )
        ),
        "sources": dict(sorted(Counter(row["provider"] for row in done).items())),
    }
    if done:
        metrics["mean_score"] = round(float(np.mean([row["score"] for row in done])), 4)
    if errors and provider != "files":
        metrics["compared"] = len(errors)
        metrics["mean_error_percent"] = round(float(np.mean(errors)), 4)
        metrics["median_error_percent"] = round(float(np.median(errors)), 4)
    return metrics


def run(
    p: LandmarksParams,
    compute: ComputeParams,
    *,
    packed: Path,
    landmark_model: Path,
    out: Path,
    dataset: str | None = None,
    work: Path = WORK,
) -> None:
    """Locate the landmarks of a packed data set.

    Args:
        p: The stage's parameters.
        compute: How the photographs are mapped.
        packed: ``data/packed/<dataset>``; without photographs the table is empty.
        landmark_model: Folder of the trained predictor.
        out: Folder to write.
        dataset: Name for ``landmarks.providers``; None takes the folder's.
        work: Folder of the rows of earlier runs.

    Raises:
        FileNotFoundError: An input or a weight file is missing.
        RuntimeError: More photographs failed than ``max_failed_fraction`` allows.
    """
    name = p.providers.get(dataset or packed.name, p.provider)
    if not packed.is_dir():
        raise FileNotFoundError(f"expected packed photographs in {packed}; run its pack stage")
    shards = sorted(packed.glob("images-*.parquet"))
    parameters = p.model_dump_json()
    weights = _weights(name, p, landmark_model) if shards else {}
    inputs = {kind: path for kind, path in weights.items() if path is not None and path.is_file()}
    if inputs.keys() != weights.keys():
        _provider(name, parameters, landmark_model)  # says which weights are missing
    deciding = p.model_dump(mode="json", exclude=UNDECIDING)
    deciding |= {"dataset": dataset or packed.name, "provider": name}
    known = RowCache.of("landmarks", section=deciding, inputs=inputs, work=work)
    places, keys, subjects = [], [], []
    for shard in shards:
        of_shard = keys_of_shard(shard, known, rows_at_once=PHOTOGRAPHS_AT_ONCE, columns=COLUMNS)
        places += [(shard, position) for position in range(len(of_shard))]
        keys += [photograph.key for photograph in of_shard]
        subjects += [[photograph.subject_id] for photograph in of_shard]
    found = cached_map(
        partial(locate_rows, name=name, parameters=parameters, model=landmark_model),
        places,
        keys=keys,
        subjects=subjects,
        cache=known,
        compute=compute,
        seconds_per_item=p.seconds_per_item,
        label="photographs",
    )
    known.forget_unused()
    rows = sorted(found, key=lambda row: str(row["item_id"]))
    metrics = metrics_of(rows, name)
    meta = packed / "meta.json"
    metrics["synthetic"] = read_json(meta).get("synthetic") if meta.is_file() else None
    if metrics["failed"] > p.max_failed_fraction * max(len(rows), 1):
        raise RuntimeError(
            f"landmarks failed on {metrics['failed']} of {len(rows)} photographs, more than "
            f"{p.max_failed_fraction:.0%}: {metrics['reasons']}"
        )
    with atomic_directory(out) as scratch:
        kept = [{key: value for key, value in row.items() if key != "error"} for row in rows]
        write_table(table_of(kept, "landmarks"), scratch / "landmarks.parquet")
        write_json(metrics, scratch / "metrics.json")
    logger.info("located %d of %d photographs", metrics["located"], len(rows))


def main() -> None:
    """Command line: paths only."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packed", required=True, type=Path)
    parser.add_argument("--landmark-model", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()

    from stages.runtime.process import begin

    begin("landmarks")
    params = load()
    run(
        params.landmarks,
        params.compute,
        packed=arguments.packed,
        landmark_model=arguments.landmark_model,
        out=arguments.out,
    )


if __name__ == "__main__":
    from stages.landmarks import main as imported_main  # Ray workers find it by name

    imported_main()
