"""Pieces that every method's data assembly uses."""

import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from stages.artifacts import write_bytes


def save_array(array: np.ndarray, path: Path) -> None:
    """Write an ``.npy`` file without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def held_out(subjects: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Subjects kept for validation: the smallest of a seeded hash, at least one.

    Which subjects these are does not change for the others when one more arrives, but for the
    boundary.
    """
    ranked = sorted(subjects, key=lambda name: (zlib.crc32(f"{seed}/{name}".encode()), name))
    return set(ranked[: max(1, round(fraction * len(ranked)))])


def encoder_config(section: Mapping[str, Any], kind: Any) -> Any:  # noqa: ANN401 - late torch import
    """An ``IResNetConfig`` from its plain form."""
    return kind(
        tuple(section["layers"]),
        tuple(section["widths"]),
        section["embedding"],
        section["input_px"],
    )


def to_blobs(crops: UInt8[np.ndarray, "n s s 3"]) -> Any:  # noqa: ANN401 - torch.Tensor
    """Network input of byte crops; see ``arcface_blob``."""
    import torch

    scaled = (np.asarray(crops, np.float32) - 127.5) / 127.5
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def weights_label(steps: int, synthetic: bool) -> str:
    """The word every result carries about its weights."""
    if steps == 0:
        return "random"
    return "synthetic-trained" if synthetic else "trained"


def parameter_count(state: Mapping[str, np.ndarray]) -> int:
    """Numbers in a state that are learned or set, not running statistics."""
    running = ("running_mean", "running_var", "num_batches_tracked")
    return int(sum(value.size for name, value in state.items() if not name.endswith(running)))
