"""How numeric kernels are compiled: without the GIL, cached on disk, IEEE arithmetic."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher

Kernel = TypeVar("Kernel", bound=Callable[..., object])

SOURCES = [Path(__file__).resolve().parents[1] / name for name in ("procedural", "rendering")]
"""Folders of the kernels that call each other across files."""


def kernel(function: Kernel) -> Kernel:
    """Compile ``function`` with numba.

    Fast-math stays off: shared edges are watertight only while products are
    neither reordered nor contracted. Division by zero gives inf or NaN, as in NumPy.
    Mark kernels ``@no_type_check`` as well, so that run-time type checkers leave
    them alone.
    """
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return cast("Kernel", _dated(compiled))


def part(function: Kernel) -> Kernel:
    """A step of pixel loops: its lines are put in place of each call, which costs nothing then."""
    compiled = numba.njit(nogil=True, inline="always", error_model="numpy")(function)
    return cast("Kernel", compiled)


def leaf(function: Kernel) -> Kernel:
    """As :func:`kernel`, for functions called once a pixel that make no arrays, only use them.

    Compiled without reference counts. Numba would count up and down each array at each call,
    by atomic additions, and they took half the time of shading a point of skin.
    """
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy", _nrt=False)(function)
    return cast("Kernel", _dated(compiled))


def _dated(compiled: Any) -> Any:  # noqa: ANN401 - numba's dispatcher
    """Let compiled code on disk stand for the source of all kernels, not of its own file alone.

    Numba puts the code of called kernels into their caller's, and would go on using it after the
    file of the called one has changed.
    """
    if isinstance(compiled, Dispatcher):  # not where numba is switched off
        file = cast("Any", compiled)._cache._cache_file
        file._source_stamp = (file._source_stamp, _digest())
    return compiled


@cache
def _digest() -> str:
    """Hash of the text of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
