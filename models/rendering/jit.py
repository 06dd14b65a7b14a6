"""How numeric kernels are compiled: without the GIL, cached on disk, IEEE arithmetic."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def kernel(function: Kernel) -> Kernel:
    """Compile ``function`` with numba.

    Fast-math stays off: shared edges are watertight only while products are
    neither reordered nor contracted. Division by zero gives inf or NaN, as in NumPy.
    Mark kernels ``@no_type_check`` as well, so that run-time type checkers leave
    them alone.
    """
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return cast("Kernel", compiled)


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
    return cast("Kernel", compiled)
