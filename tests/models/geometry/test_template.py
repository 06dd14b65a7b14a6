"""What the prepared model says about the head."""

import numpy as np
import pytest

from models.geometry.settings import FitSettings
from models.geometry.template import RegistrationModel


def test_parts_of_the_head(toy_model: RegistrationModel) -> None:
    assert len(toy_model.eyeballs) == 2
    balls = np.concatenate([ball for ball, _ in toy_model.eyeballs])
    assert not toy_model.skin[balls].any()
    assert toy_model.skin.sum() + len(balls) == len(toy_model.template)
    for ball, lids in toy_model.eyeballs:
        centre = toy_model.template[ball].mean(axis=0)
        assert toy_model.skin[lids].all()
        assert np.linalg.norm(toy_model.template[lids] - centre, axis=1).max() < 30


def test_regions_do_not_overlap_and_lie_where_they_should(toy_model: RegistrationModel) -> None:
    assert not (toy_model.face & toy_model.scalp).any()
    face, scalp = toy_model.template[toy_model.face], toy_model.template[toy_model.scalp]
    assert face[:, 2].mean() > 40
    assert scalp[:, 1].mean() > 20
    nose = np.argmax(toy_model.template[:, 2])
    crown = np.argmax(toy_model.template[:, 1])
    assert toy_model.face[nose]
    assert toy_model.scalp[crown]


def test_masks_come_first(toy, toy_model: RegistrationModel) -> None:
    arrays = toy_model.arrays
    ids = np.flatnonzero(toy_model.face)[:50]
    model = RegistrationModel.build(arrays, *toy.toy_landmarks(arrays), {"face": ids})
    np.testing.assert_array_equal(np.flatnonzero(model.face), ids)


def test_bilaplacian_is_the_energy_of_a_curved_field(toy_model: RegistrationModel) -> None:
    constant = np.ones(len(toy_model.mass))
    assert abs(constant @ (toy_model.bilaplacian @ constant)) < 1e-9
    field = np.random.default_rng(0).normal(size=len(constant))
    assert field @ (toy_model.bilaplacian @ field) > 0
    assert toy_model.mass.sum() == pytest.approx(toy_model.areas[toy_model.skin].sum(), rel=1e-6)


def test_an_embedding_of_another_topology_is_refused(toy, toy_model: RegistrationModel) -> None:
    faces, bary = toy.toy_landmarks(toy_model.arrays)
    with pytest.raises(ValueError, match="another topology"):
        RegistrationModel.build(toy_model.arrays, faces + 10_000, bary)


def test_settings_need_one_entry_per_level(settings: FitSettings) -> None:
    content = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    with pytest.raises(ValueError, match="one entry per level"):
        FitSettings(**(content | {"smoothing_mm": (1.0,)}))


def test_the_skin_is_numbered_so_that_a_factor_fills_little(toy_model: RegistrationModel) -> None:
    from scipy import sparse
    from scipy.sparse.linalg import splu

    system = (toy_model.bilaplacian + sparse.diags_array(toy_model.mass)).tocsc()
    options = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
    as_numbered = splu(system, permc_spec="NATURAL", **options)
    best = splu(system, permc_spec="MMD_AT_PLUS_A", **options)
    assert as_numbered.L.nnz <= 1.05 * best.L.nnz
    assert sorted(toy_model.skin_ids) == np.flatnonzero(toy_model.skin).tolist()
    corners = toy_model.skin_ids[toy_model.skin_faces]
    np.testing.assert_array_equal(corners, toy_model.arrays.faces[toy_model.skin_face_ids])
