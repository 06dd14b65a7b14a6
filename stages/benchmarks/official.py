"""Result files in the form of the public evaluation codes, for comparison with them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from stages.runtime.artifacts import write_bytes


def write_now_results(
    folder: Path,
    method: str,
    names: Sequence[str],
    distances_mm: Sequence[Float[np.ndarray, " _"]],
    missing: int,
    *,
    metric: bool,
    challenge: str = "",
) -> Path:
    """``<method>[_metrical]_computed_distances[_<challenge>].npy`` of the NoW evaluation.

    A pickled dict, because that is the form the public plotting code reads: ``computed_distances``
    (a list of arrays, mm; here in scan order, not shuffled), ``num_missing_files`` and
    ``input_files``. It is written for others; nothing of this project reads it or any raw pickle.

    Returns:
        The file written.
    """
    content = {
        "computed_distances": [np.asarray(values, np.float64) for values in distances_mm],
        "num_missing_files": missing,
        "input_files": list(names),
    }
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    tail = f"_{challenge}" if challenge else ""
    name = f"{method}{'_metrical' if metric else ''}_computed_distances{tail}.npy"
    write_bytes(folder / name, buffer.getvalue())
    return folder / name


def write_feng_results(
    folder: Path, image: str, kept: Int[np.ndarray, " k"], distances_mm: Float[np.ndarray, " k"]
) -> Path:
    """``<image>_distances.txt`` of the FG2018 competition: lines ``vertex_index distance``.

    Returns:
        The file written.
    """
    pairs = zip(kept.tolist(), distances_mm.tolist(), strict=True)
    text = "".join(f"{number} {distance:.6f}\n" for number, distance in pairs)
    path = folder / f"{image}_distances.txt"
    write_bytes(path, text.encode("ascii"))
    return path
