"""FLAME's texture file at the vertices."""

from pathlib import Path

import numpy as np
import pytest

from stages.tracking.texture import read_texture

FACES = np.array([[0, 1, 2], [2, 1, 3]])


def texture(path: Path, **more: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    content = {
        "mean": rng.uniform(0, 255, (4, 8, 3)), "tex_dir": rng.normal(size=(4, 8, 3, 5)),
        "vt": np.array([[0.01, 0.01], [0.99, 0.01], [0.01, 0.99], [0.99, 0.99], [0.5, 0.5]]),
        "ft": np.array([[0, 1, 2], [4, 1, 3]]),
    }  # fmt: skip
    np.savez(path, **(content | more))
    return path


def test_places_order_of_colours_and_seams(tmp_path: Path) -> None:
    file = texture(tmp_path / "t.npz")
    got = read_texture(file, FACES, 3)
    content = np.load(file)
    corners = [(3, 0), (3, 7), (0, 0), (0, 7)]  # rows from the top; vertex 2's second place is 4
    for vertex, (row, column) in enumerate(corners):
        np.testing.assert_allclose(got.mean[vertex], content["mean"][row, column, ::-1] / 255)
        expected = content["tex_dir"][row, column, ::-1, :3] / 255
        np.testing.assert_allclose(got.basis[vertex], expected)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"FLAME_texture\.npz"):
        read_texture(tmp_path / "none.npz", FACES, 3)
    with pytest.raises(ValueError, match="is it the texture of this FLAME"):
        read_texture(texture(tmp_path / "t.npz", ft=np.array([[0, 1, 2]])), FACES, 3)
    np.savez(tmp_path / "u.npz", mean=np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="are missing"):
        read_texture(tmp_path / "u.npz", FACES, 3)
