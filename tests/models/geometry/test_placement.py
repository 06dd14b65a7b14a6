"""Placing a head by its shape."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.geometry.mesh import vertex_areas, vertex_normals
from models.geometry.placement import cube_rotations, place_by_shape, systematic_sample


def test_cube_rotations_are_24_proper_and_a_group() -> None:
    turns = cube_rotations()
    assert turns.shape == (24, 3, 3)
    assert len({turn.tobytes() for turn in turns}) == 24
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    products = {(a @ b + 0.0).tobytes() for a in turns for b in turns}
    assert products == {(turn + 0.0).tobytes() for turn in turns}


def test_sample_is_as_dense_as_the_weights() -> None:
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(4000, 3)), np.ones(4000)
    weights[:2000] = 3.0
    weights[:5] = 0.0
    chosen = systematic_sample(weights, points, 400)
    assert not np.isin(np.arange(5), chosen).any()
    assert (chosen < 2000).mean() == pytest.approx(0.75, abs=0.06)
    assert len(np.unique(chosen)) == len(chosen)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_candidate_is_the_right_turn(toy_model, seed: int) -> None:
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    ids, faces = toy_model.skin_ids, toy_model.skin_faces
    vertices = (toy_model.template[ids] @ turn.T + [100.0, -50, 30]) / 1e3
    found = place_by_shape(
        vertices,
        vertex_normals(vertices, faces),
        vertex_areas(vertices, faces),
        toy_model,
        1e3,
        most=4,
    )
    assert 1 <= len(found) <= 4
    gap = np.linalg.norm(found[0].apply(vertices) - toy_model.template[ids], axis=1)
    assert np.median(gap) < 3.0
    assert found[0].scale == 1e3
