"""MATLAB files of other people, with errors that name the file and the variable."""

import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


class MatError(ValueError):
    """A .mat file cannot be used; the message names it and says why."""


def read_mat(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read the variables of a MATLAB level 5 (v7 or older) file.

    Args:
        path: The file.
        names: Only these variables; None for all.

    Raises:
        MatError: The file is damaged, is of the HDF5 based v7.3, or is not MATLAB's.
        FileNotFoundError: There is no such file.
    """
    import scipy.io

    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; the file is missing")
    wanted = None if names is None else list(names)
    try:
        content: dict[str, Any] = scipy.io.loadmat(str(path), variable_names=wanted)
    except NotImplementedError as error:
        raise MatError(
            f"{path} is a MATLAB v7.3 (HDF5) file; expected v7 or older as its owner gives it"
        ) from error
    except (
        ValueError,
        TypeError,
        OSError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        zlib.error,
        struct.error,
        scipy.io.matlab.MatReadError,
    ) as error:
        raise MatError(f"{path} is not a readable .mat file ({error}); fetch it again") from error
    return {name: value for name, value in content.items() if not name.startswith("__")}


def numeric(content: dict[str, np.ndarray], name: str, path: Path, size: int) -> np.ndarray:
    """Return variable ``name`` as finite float64, flattened.

    Raises:
        MatError: It is missing, not numeric, not finite, or has not ``size`` numbers.
    """
    if name not in content:
        raise MatError(f"{path} has no {name}; expected {size} numbers, got {sorted(content)}")
    value = content[name]
    if value.dtype.kind not in "biuf" or value.size != size:
        raise MatError(
            f"{path}: {name} is {value.shape} of {value.dtype}, expected {size} real numbers"
        )
    flat = value.astype(np.float64).ravel()
    if not np.isfinite(flat).all():
        raise MatError(f"{path}: {name} holds NaN or infinite values")
    return flat
