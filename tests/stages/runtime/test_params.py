"""Sections of params.yaml that go on in a file of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.runtime import params


def test_a_section_goes_on_in_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("fit: {settings: fit.yaml, steps: 3}\nseed: 1\n")
    (tmp_path / "fit.yaml").write_text("rate: 0.5\nlevels: [1, 2]\n")
    assert params.document(tmp_path / "params.yaml") == {
        "fit": {"steps": 3, "rate": 0.5, "levels": [1, 2]},
        "seed": 1,
    }


def test_a_parameter_is_located_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("fit: {settings: fit.yaml, steps: 3}\nseed: 1\nlone: {settings: lone.yaml}\n")
    assert params.settings_files(path) == {"fit": "fit.yaml", "lone": "lone.yaml"}
    assert params.located("seed", path) == ("params.yaml", "seed")
    assert params.located("fit.steps", path) == ("params.yaml", "fit.steps")
    assert params.located("fit.levels.first", path) == ("fit.yaml", "levels.first")
    assert params.located("lone.a", path) == ("lone.yaml", "a")


def test_a_number_stands_in_one_place(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("fit: {settings: fit.yaml, steps: 3}\n")
    (tmp_path / "fit.yaml").write_text("steps: 4\n")
    with pytest.raises(ValueError, match=r"expected \['steps'\] in fit of .* got both"):
        params.document(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path: Path, copy_params: Callable[[Path], None]) -> None:
    copy_params(tmp_path)
    (tmp_path / "registration.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"registration\.yaml, which register\.settings"):
        params.load(tmp_path / "params.yaml")
    with pytest.raises(FileNotFoundError, match="run from the root of the checkout"):
        params.load(tmp_path / "elsewhere.yaml")


def test_unknown_keys_of_such_a_file_are_refused(
    tmp_path: Path, copy_params: Callable[[Path], None]
) -> None:
    copy_params(tmp_path)
    with (tmp_path / "tracking.yaml").open("a") as file:
        file.write("wieghts: {}\n")
    with pytest.raises(ValueError, match="wieghts"):
        params.load(tmp_path / "params.yaml")
