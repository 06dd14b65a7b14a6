"""Compile the numeric kernels once, when the project is installed, instead of in its first stages.

``kernels.txt`` beside this file names the kernels that the graph runs and the types it calls them
with. ``python -m pipelines.kernels`` compiles those that numba's cache lacks; a kernel that is not
listed compiles where it is first called. ``--write`` renews the list from the caches of this
checkout: build the graph in a fresh clone before, so that they hold what the graph needs and no
more.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from numba import types
from numba.core.dispatcher import Dispatcher

from stages.runtime.artifacts import write_bytes
from stages.runtime.fingerprint import PACKAGES

LIST: Final = Path(__file__).with_suffix(".txt")
_ARRAY = re.compile(r"(readonly )?array\((\w+), (\d)d, ([ACF])\)")
_TUPLE = re.compile(r"UniTuple\((\w+) x (\d+)\)")


def type_of(text: str) -> Any:  # noqa: ANN401 - numba has no types for its types
    """Return the numba type that prints as ``text``: a scalar, an array or a tuple of scalars.

    Raises:
        ValueError: It is another kind of type.
    """
    if match := _ARRAY.fullmatch(text):
        readonly, scalar, dimensions, layout = match.groups()
        return types.Array(_scalar(scalar), int(dimensions), layout, readonly=bool(readonly))
    if match := _TUPLE.fullmatch(text):
        return types.UniTuple(_scalar(match[1]), int(match[2]))
    return _scalar(text)


def _scalar(name: str) -> Any:  # noqa: ANN401
    found = types.boolean if name == "bool" else getattr(types, name, None)
    if not isinstance(found, types.Number | types.Boolean):
        raise ValueError(  # noqa: TRY004 - a wrong text
            f"expected a type like float64 or array(int64, 2d, C), got {name!r}"
        )
    return found


def read_list(text: str) -> dict[str, list[tuple[str, tuple[Any, ...]]]]:
    """Return, by module, the kernels to compile with the types of their arguments.

    Raises:
        ValueError: A line is not ``module.kernel: type; type``.
    """
    found: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, arguments = line.partition(":")
        module, dot, kernel = name.rpartition(".")
        if not colon or not dot:
            raise ValueError(f"expected 'module.kernel: type; type', got {line!r}")
        signature = tuple(type_of(part.strip()) for part in arguments.split(";"))
        found.setdefault(module, []).append((kernel, signature))
    return found


def compile_module(module: str, wanted: list[tuple[str, tuple[Any, ...]]]) -> int:
    """Compile a module's kernels where numba's cache lacks them; return how many it lacked.

    Raises:
        AttributeError: The module has no such kernel: the list is old.
    """
    loaded = importlib.import_module(module)
    lacked: dict[str, int] = {}
    for name, signature in wanted:
        dispatcher = getattr(loaded, name)
        if isinstance(dispatcher, Dispatcher):  # not where numba is switched off
            dispatcher.compile(signature)
            lacked[name] = sum(dispatcher.stats.cache_misses.values())
    return sum(lacked.values())


def cached_in(root: Path) -> Iterator[str]:
    """Yield the lines of the list: what numba keeps, compiled, of the code below ``root``."""
    for file in sorted(path for name in PACKAGES for path in (root / name).rglob("*.py")):
        if not any((file.parent / "__pycache__").glob(f"{file.stem}.*.nbi")):
            continue
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        for name, kernel in sorted(vars(importlib.import_module(module)).items()):
            if not isinstance(kernel, Dispatcher) or kernel.py_func.__module__ != module:
                continue
            file_of_cache = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
            kept = file_of_cache._load_index() if file_of_cache else {}
            for arguments in sorted({"; ".join(map(str, key[0])) for key in kept}):
                if "Literal" not in arguments:  # those are compiled with their callers
                    yield f"{module}.{name}: {arguments}"


def main() -> None:
    """Compile, in as many processes as there are cores, or renew the list."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="renew the list from the caches")
    if parser.parse_args().write:
        write_bytes(LIST, "".join(f"{line}\n" for line in cached_in(Path())).encode())
        return
    began = time.monotonic()
    wanted = read_list(LIST.read_text(encoding="utf-8"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        counts = list(pool.map(compile_module, wanted, wanted.values()))
    if sum(counts):
        print(  # noqa: T201
            f"compiled {sum(counts)} kernels in {time.monotonic() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
