"""The linear model: closed form, loading, refusals."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.face.morphable import LinearModel


def tiny(seed=0, vertices=80, modes=4, expressions=3):
    rng = np.random.default_rng(seed)
    return {
        "mean_shape": rng.normal(size=(vertices, 3)).astype(np.float32),
        "shape_basis": rng.normal(size=(vertices, 3, modes)).astype(np.float32),
        "shape_sigma": np.ones(modes, np.float32),
        "mean_expression": rng.normal(size=(vertices, 3)).astype(np.float32),
        "expression_basis": rng.normal(size=(vertices, 3, expressions)).astype(np.float32),
        "expression_sigma": np.ones(expressions, np.float32),
        "faces": rng.integers(0, vertices, (100, 3)),
        "keypoints": np.arange(68),
    }


def test_shape_is_the_sum_of_the_directions():
    arrays = tiny()
    model = LinearModel(**arrays)
    alpha, beta = np.array([0.5, -2.0]), np.array([1.0, 0.0, 3.0])
    expected = arrays["mean_shape"].astype(np.float64) + arrays["mean_expression"]
    for mode, weight in enumerate(alpha):
        expected = expected + weight * arrays["shape_basis"][..., mode]
    for mode, weight in enumerate(beta):
        expected = expected + weight * arrays["expression_basis"][..., mode]
    np.testing.assert_allclose(model.shape(alpha, beta), expected, atol=1e-6)
    np.testing.assert_allclose(model.shape(), model.mean, atol=1e-6)


def test_shape_is_linear_in_its_coefficients():
    model = LinearModel(**tiny(3))
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 4))
    left = model.shape(a + b) - model.shape()
    right = (model.shape(a) - model.shape()) + (model.shape(b) - model.shape())
    np.testing.assert_allclose(left, right, atol=1e-9)


def test_load_reads_a_folder_or_a_file_and_ignores_what_it_does_not_know(tmp_path):
    arrays = tiny()
    save_file({**arrays, "other": np.zeros(3)}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = LinearModel.load(path)
        np.testing.assert_array_equal(model.shape_basis, arrays["shape_basis"])
        assert model.texture_basis is None


def test_wrong_models_are_refused(tmp_path):
    arrays = tiny()
    with pytest.raises(ValueError, match="different models"):
        LinearModel(**{**arrays, "shape_basis": arrays["shape_basis"][:-1]})
    with pytest.raises(ValueError, match="1-based"):
        LinearModel(**{**arrays, "faces": arrays["faces"] + 1000})
    with pytest.raises(ValueError, match="larger basis"):
        LinearModel(**arrays).shape(np.zeros(5))
    with pytest.raises(FileNotFoundError, match="convert"):
        LinearModel.load(tmp_path)
    save_file({"faces": arrays["faces"]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks"):
        LinearModel.load(tmp_path)
