"""FLAME, Basel and 3DDFA files hold what was put in, with the owners' conventions."""

import io
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from stages.corpus import basel_topology, bfm2009, bfm2017, flame, three_ddfa
from stages.corpus.linear_files import LinearFiles
from stages.runtime.unpickle import read_npy, read_pickle


def small_flame() -> flame.FlameFiles:
    rng = np.random.default_rng(5)
    return flame.FlameFiles(
        v_template=rng.normal(size=(12, 3)),
        faces=rng.integers(0, 12, (8, 3)),
        shapedirs=rng.normal(size=(12, 3, 400)),
        posedirs=rng.normal(size=(12, 3, 36)),
        joint_regressor=rng.random((5, 12)) * (rng.random((5, 12)) < 0.4),
        weights=rng.random((12, 5)),
        parents=np.array([-1, 0, 1, 1, 1]),
    )


def small_embeddings() -> flame.Embeddings:
    rng = np.random.default_rng(6)
    return flame.Embeddings(
        rng.integers(0, 8, 51),
        rng.dirichlet([1, 1, 1], 51),
        rng.integers(0, 8, (79, 17)),
        rng.dirichlet([1, 1, 1], (79, 17)),
        rng.integers(0, 8, 68),
        rng.dirichlet([1, 1, 1], 68),
    )


def small_linear(vertices: int = 30, shapes: int = 6, expressions: int = 79) -> LinearFiles:
    rng = np.random.default_rng(7)
    n = 3 * vertices

    def basis(k: int) -> np.ndarray:
        return np.linalg.qr(rng.normal(size=(n, max(k, 1))))[0]

    return LinearFiles(
        mean_shape=rng.normal(size=n) * 1e4,
        shape_basis=basis(shapes),
        shape_sigma=1e5 * 0.8 ** np.arange(shapes),
        mean_expression=rng.normal(size=n),
        expression_basis=basis(expressions),
        expression_sigma=1e4 * 0.8 ** np.arange(expressions),
        texture_mean=rng.random(n),
        texture_basis=basis(shapes),
        texture_sigma=0.8 ** np.arange(shapes),
        faces=np.array([[0, 1, 2], [2, 1, 3]]),
        keypoints=np.arange(68) % vertices,
    )


@pytest.mark.parametrize("chumpy_objects", [False, True])
def test_flame_pickle(chumpy_objects: bool) -> None:
    model = small_flame()
    data = flame.model_pickle(model, chumpy_objects=chumpy_objects)
    assert data[:2] == b"\x80\x02"
    assert (b"chumpy" in data) is chumpy_objects
    read = read_pickle(data)
    assert isinstance(read, dict)
    np.testing.assert_array_equal(read["shapedirs"], model.shapedirs)
    np.testing.assert_array_equal(read["v_template"], model.v_template)
    np.testing.assert_allclose(read["J_regressor"].toarray(), model.joint_regressor)
    np.testing.assert_allclose(read["J"], model.joint_regressor @ model.v_template)
    assert read["kintree_table"][0, 0] == 2**32 - 1
    assert read["kintree_table"].dtype == np.uint32
    assert read["bs_type"] == "lrotmin"


def test_flame_release(tmp_path: Path) -> None:
    model, embeddings = small_flame(), small_embeddings()
    masks = {"face": np.arange(5), "left_eyeball": np.arange(5, 8)}
    rng = np.random.default_rng(0)
    flame.write_release(tmp_path, model, model, masks, embeddings, rng)
    read = read_npy(tmp_path / "landmark_embedding.npy")
    assert read["full_lmk_faces_idx"].shape == (1, 68)
    assert read["full_lmk_bary_coords"].dtype == np.float32
    np.testing.assert_array_equal(read["dynamic_lmk_bary_coords"], embeddings.dynamic_bary)
    dynamic = read_npy(tmp_path / "flame_dynamic_embedding.npy")
    assert len(dynamic["lmk_face_idx"]) == 79
    assert dynamic["lmk_face_idx"][3].dtype == np.uint32
    np.testing.assert_array_equal(dynamic["lmk_b_coords"][7], embeddings.dynamic_bary[7])
    first = read_pickle(tmp_path / "flame_static_embedding.pkl")
    other = read_pickle(tmp_path / "flame-fitting" / "flame_static_embedding.pkl")
    assert isinstance(first, dict)
    assert isinstance(other, dict)
    moved = np.abs(first["lmk_b_coords"] - other["lmk_b_coords"]).max(axis=1) > 1e-9
    assert moved[:14].all()
    assert not moved[14:].any()
    read_masks = read_pickle(tmp_path / "FLAME_masks.pkl")
    assert isinstance(read_masks, dict)
    np.testing.assert_array_equal(read_masks["left_eyeball"], [5, 6, 7])


def test_bfm2009_files(tmp_path: Path) -> None:
    model = small_linear()
    segments = np.zeros((30, 4), dtype=np.uint8)
    trim, front = np.arange(1, 28), np.arange(3, 20)
    bfm2009.write_release(tmp_path, model, segments, trim, front)
    read = scipy.io.loadmat(tmp_path / "01_MorphableModel.mat")
    np.testing.assert_array_equal(read["tl"], [[1, 3, 2], [3, 4, 2]])
    np.testing.assert_allclose(read["shapeEV"][:, 0], model.shape_sigma, rtol=1e-6)
    np.testing.assert_allclose(read["texMU"][:, 0], 255 * model.texture_mean, rtol=1e-6)
    raw = (tmp_path / "Exp_Pca.bin").read_bytes()
    assert int(np.frombuffer(raw[:4], "<i4")[0]) == 79
    values = np.frombuffer(raw[4:], "<f4").reshape(80, -1)
    np.testing.assert_allclose(values[5], model.expression_basis[:, 4], rtol=1e-6)
    chosen = scipy.io.loadmat(tmp_path / "select_vertex_id.mat")["select_id"][:, 0].astype(int)
    np.testing.assert_array_equal(chosen, trim[front] + 1)


def test_expression_file_has_the_published_size() -> None:
    numbers = 3 * basel_topology.TRIMMED
    data = bfm2009.expression_bin(np.zeros(numbers), np.zeros((numbers, 79), dtype=np.float32))
    assert len(data) == 51_086_404


def test_bfm2017_file() -> None:
    model = small_linear(shapes=5, expressions=4)
    data = bfm2017.model_h5(model)
    time.sleep(1.1)  # HDF5 can store times, in seconds
    assert data == bfm2017.model_h5(model)
    with h5py.File(io.BytesIO(data), "r") as file:
        np.testing.assert_allclose(
            file["shape/model/pcaVariance"][:], model.shape_sigma**2, rtol=1e-6
        )
        assert file["expression/model/pcaBasis"].shape == (90, 4)
        assert file["shape/representer/cells"].shape == (3, 2)
        text = file["metadata/landmarks/json"][:].astype(np.uint8).tobytes()
        assert b"center.nose.tip" in text


def test_3ddfa_conventions(tmp_path: Path) -> None:
    model = small_linear(expressions=29)
    three_ddfa.write_release(tmp_path, model, np.arange(30), np.zeros((30, 4), dtype=np.uint8))
    expression = scipy.io.loadmat(tmp_path / "Model_Expression.mat")
    spread = three_ddfa.expression_coefficient_sigma(29)
    norms = np.linalg.norm(expression["w_exp"], axis=0)
    np.testing.assert_allclose(norms * spread, model.expression_sigma, rtol=1e-5)
    shape = scipy.io.loadmat(tmp_path / "Model_Shape.mat")
    np.testing.assert_allclose(np.linalg.norm(shape["w"], axis=0), 1.0, rtol=1e-5)
    code = scipy.io.loadmat(tmp_path / "vertex_code.mat")["vertex_code"]
    mean = model.mean_shape.reshape(-1, 3).T
    span = mean.max(1, keepdims=True) - mean.min(1, keepdims=True)
    np.testing.assert_allclose(code, (mean - mean.min(1, keepdims=True)) / span, atol=1e-6)
    assert shape["tri"].shape == (3, 2)
    assert shape["tri"].dtype == np.uint16


def test_layouts_have_the_published_counts() -> None:
    layout = basel_topology.full()
    assert layout.directions.shape == (53490, 3)
    assert layout.faces.shape == (106466, 3)
    trim = basel_topology.trim_indices()
    assert trim.shape == (53215,)
    assert np.all(np.diff(trim) > 0)
    faces = basel_topology.trimmed_faces()
    assert faces.shape == (105840, 3)
    assert len(np.unique(faces)) == 53215
    front = basel_topology.front_indices()
    assert front.shape == (35709,)
    assert np.all(np.diff(front) > 0)
    newer = basel_topology.edition_2017()
    assert newer.directions.shape == (53149, 3)
    assert newer.faces.shape == (105694, 3)


def test_layout_is_an_oriented_disc_of_unit_directions() -> None:
    layout = basel_topology.full()
    np.testing.assert_allclose(np.linalg.norm(layout.directions, axis=1), 1.0, atol=1e-12)
    edges = np.concatenate(
        [layout.faces[:, [0, 1]], layout.faces[:, [1, 2]], layout.faces[:, [2, 0]]]
    )
    assert len(np.unique(edges, axis=0)) == len(edges)  # every directed edge once: oriented
    undirected = np.unique(np.sort(edges, axis=1), axis=0)
    euler = 53490 - len(undirected) + 106466
    assert euler == 1
    corners = layout.directions[layout.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("fi,fi->f", normal, corners.mean(axis=1)) > 0).all()
