"""The list of kernels that installation compiles."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import types
from numba.core.dispatcher import Dispatcher

from pipelines import kernels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float64", types.float64),
        ("bool", types.boolean),
        ("array(float32, 2d, C)", types.float32[:, ::1]),
        ("array(bool, 1d, A)", types.boolean[:]),
        ("readonly array(uint8, 1d, C)", types.Array(types.uint8, 1, "C", readonly=True)),
        ("UniTuple(int64 x 4)", types.UniTuple(types.int64, 4)),
    ],
)
def test_a_type_is_read_as_numba_prints_it(text: str, expected: types.Type) -> None:
    assert kernels.type_of(text) == expected
    assert str(kernels.type_of(text)) == text


@pytest.mark.parametrize("text", ["np.float64", "unicode_type", "array(object, 1d, C)", "List"])
def test_other_types_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a type like float64"):
        kernels.type_of(text)


def test_a_line_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 'module\.kernel: type; type', got 'build'"):
        kernels.read_list("build\n")


def test_the_committed_list_names_kernels_that_exist() -> None:
    wanted = kernels.read_list(kernels.LIST.read_text())
    assert sum(map(len, wanted.values())) > 80
    for module, listed in wanted.items():
        loaded = importlib.import_module(module)
        for name, signature in listed:
            kernel = getattr(loaded, name)
            assert isinstance(kernel, Dispatcher), f"{module}.{name}"
            assert len(signature) == kernel.py_func.__code__.co_argcount, f"{module}.{name}"


def test_what_was_compiled_is_found_again(tmp_path: Path, repository: Path) -> None:
    code = (
        "from numba import float64\n"
        "from pipelines.kernels import compile_module\n"
        "print(compile_module('models.procedural.features', [('bell', (float64,))]))\n"
    )
    for expected in ("1", "0"):
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=repository,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == expected
