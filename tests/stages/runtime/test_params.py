"""Sections of the parameters that stand in a file of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.runtime import params


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A section in two files, one in a file of its own, one in params.yaml."""
    (tmp_path / "params").mkdir()
    (tmp_path / "params.yaml").write_text("fit: {steps: 3}\nseed: 1\n")
    (tmp_path / "params/fit.yaml").write_text("rate: 0.5\nlevels: [1, 2]\n")
    (tmp_path / "params/lone.yaml").write_text("a: 1\n")
    return tmp_path / "params.yaml"


def test_a_section_stands_or_goes_on_in_its_file(path: Path) -> None:
    assert params.document(path) == {
        "fit": {"steps": 3, "rate": 0.5, "levels": [1, 2]},
        "seed": 1,
        "lone": {"a": 1},
    }


def test_a_parameter_is_located_in_its_file(path: Path) -> None:
    assert params.section_files(path) == {"fit": "params/fit.yaml", "lone": "params/lone.yaml"}
    assert params.located("seed", path) == ("params.yaml", "seed")
    assert params.located("fit.steps", path) == ("params.yaml", "fit.steps")
    assert params.located("fit.levels.first", path) == ("params/fit.yaml", "levels.first")
    assert params.located("lone.a", path) == ("params/lone.yaml", "a")


def test_a_number_stands_in_one_place(path: Path) -> None:
    (path.parent / "params/fit.yaml").write_text("steps: 4\n")
    with pytest.raises(ValueError, match=r"expected \['steps'\] of fit in .* got both"):
        params.document(path)


def test_a_missing_file_is_named(tmp_path: Path, copy_params: Callable[[Path], None]) -> None:
    copy_params(tmp_path)
    (tmp_path / "params/render.yaml").unlink()
    with pytest.raises(ValueError, match="render\n *Field required"):
        params.load(tmp_path / "params.yaml")
    with pytest.raises(FileNotFoundError, match="run from the root of the checkout"):
        params.load(tmp_path / "elsewhere.yaml")


def test_unknown_files_and_keys_are_refused(
    tmp_path: Path, copy_params: Callable[[Path], None]
) -> None:
    copy_params(tmp_path)
    with (tmp_path / "params/track.yaml").open("a") as file:
        file.write("wieghts: {}\n")
    (tmp_path / "params/rendr.yaml").write_text("shards: 1\n")
    with pytest.raises(ValueError, match=r"rendr(.|\n)*wieghts|wieghts(.|\n)*rendr"):
        params.load(tmp_path / "params.yaml")
