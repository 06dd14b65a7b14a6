"""How numeric kernels are compiled: without the GIL, cached on disk, IEEE arithmetic."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def kernel(function: Kernel) -> Kernel:
    """Compile ``function`` with numba.

    Fast-math stays off: shared edges are watertight only while products are
    neither reordered nor contracted. Mark kernels ``@no_type_check`` as well, so
    that run-time type checkers leave them alone.
    """
    return cast("Kernel", numba.njit(nogil=True, cache=True)(function))
