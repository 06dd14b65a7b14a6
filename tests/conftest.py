"""Fixtures shared by every test; one thread per library, because tests share the cores."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.runtime.params import section_files

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real samples beside the checkout; the test is skipped without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real samples (../shared/data) are not beside this checkout: research licences")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def copy_params(repository: Path) -> Callable[[Path], None]:
    """Copies params.yaml into a folder, with the sections' own files."""

    def copy(folder: Path) -> None:
        (folder / "params").mkdir(exist_ok=True)
        for name in ["params.yaml", *section_files(repository / "params.yaml").values()]:
            shutil.copy(repository / name, folder / name)

    return copy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the build of the whole graph, so that other tests fill the other core."""
    items.sort(key=lambda item: item.path.name != "test_graph_tiny.py")
