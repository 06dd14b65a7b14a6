"""A real scan: the figures that registration has to meet on it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.geometry import closest_points
from models.geometry.mesh import face_normals, normals_and_rim
from models.geometry.registration import Scan, register
from models.geometry.settings import FitSettings, QualityLimits
from models.geometry.template import RegistrationModel
from stages.datasets.flame_files import load_flame, read_masks, read_static_embedding
from stages.datasets.meshes import read_mesh
from stages.runtime import params

LIMITS_MM = {"fast": (0.08, 0.32), "accurate": (0.07, 0.26)}


@pytest.fixture(scope="module")
def real(shared_data):
    mesh = read_mesh(shared_data / "real_scan/scan.obj")
    marks = np.load(shared_data / "real_scan/scan_lmks51.npy")
    embedding = read_static_embedding(shared_data / "real_scan/flame_static_embedding.pkl")
    masks = read_masks(shared_data / "flame_assets/FLAME_masks.pkl")
    arrays = load_flame(shared_data / "open_head/flame_like.npz")
    return Scan(mesh.vertices, mesh.faces), marks, arrays, embedding, masks


def _section(repository) -> params.RegisterParams:
    return params.load(repository / "params.yaml").registration


@pytest.mark.parametrize("preset", ["fast", "accurate"])
@pytest.mark.parametrize("with_masks", [True, False])
def test_figures_over_the_face(real, repository, preset, with_masks) -> None:
    """Scan vertices whose closest triangle lies in FLAME's face mask, whatever the fit used."""
    scan, marks, arrays, embedding, masks = real
    section = _section(repository)
    settings = FitSettings(**section.fit.model_dump(), **section.presets[preset].model_dump())
    limits = QualityLimits(**section.limits.model_dump())
    model = RegistrationModel.build(arrays, *embedding, masks if with_masks else None)
    found = register(scan, marks, model, settings, limits)
    assert found.status == "ok"
    assert found.flags == ()
    assert found.scale == 1.0
    placed = scan.vertices @ found.rotation.T + found.translation
    near = closest_points(placed, found.vertices, arrays.faces)
    normals, rim = normals_and_rim(placed, scan.faces)
    flat = face_normals(found.vertices, arrays.faces)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    in_face = np.isin(arrays.faces, masks["face"]).all(axis=1)
    region = in_face[near.faces] & (near.distances < 0.015) & ~rim
    region &= (flat[near.faces] * normals).sum(axis=1) > 0.3
    distances = 1e3 * near.distances[region]
    assert 18_000 < region.sum() < 25_000
    median, q95 = LIMITS_MM[preset]
    assert np.median(distances) < median
    assert np.percentile(distances, 95) < q95
    assert found.template_median_mm < 0.25
    assert found.landmark_rms_mm < 4.5
    assert found.flipped_faces == 0


def test_real_scan_in_millimetres_and_turned_is_the_same(real, repository) -> None:
    scan, marks, arrays, embedding, masks = real
    section = _section(repository)
    settings = FitSettings(**section.fit.model_dump(), **section.presets["fast"].model_dump())
    limits = QualityLimits(**section.limits.model_dump())
    model = RegistrationModel.build(arrays, *embedding, masks)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn[:, 0] *= np.linalg.det(turn)
    moved = replace(scan, vertices=1e3 * scan.vertices @ turn.T + 40, unit="mm")
    one = register(scan, marks, model, settings, limits)
    other = register(moved, 1e3 * marks @ turn.T + 40, model, settings, limits)
    assert other.scale == pytest.approx(1e-3)
    # Correspondences at a gate or in a tie may fall the other way by rounding: not all are equal.
    gap_mm = 1e3 * np.linalg.norm(other.vertices - one.vertices, axis=1)
    assert np.percentile(gap_mm, 95) < 0.05
    assert gap_mm.max() < 2.0


def test_mirrored_real_landmarks_are_refused(real, repository) -> None:
    scan, marks, arrays, embedding, masks = real
    section = _section(repository)
    settings = FitSettings(**section.fit.model_dump(), **section.presets["fast"].model_dump())
    limits = QualityLimits(**section.limits.model_dump())
    model = RegistrationModel.build(arrays, *embedding, masks)
    with pytest.raises(ValueError, match="mirror image"):
        register(scan, marks * [-1, 1, 1], model, settings, limits)


def test_without_landmarks_in_any_position(real, repository) -> None:
    scan, marks, arrays, embedding, masks = real
    section = _section(repository)
    settings = FitSettings(**section.fit.model_dump(), **section.presets["fast"].model_dump())
    limits = QualityLimits(**section.limits.model_dump())
    model = RegistrationModel.build(arrays, *embedding, masks)
    turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    moved = Scan(1e3 * scan.vertices @ turn.T + 40, scan.faces, unit="mm")
    found = register(moved, None, model, settings, limits)
    assert found.status == "ok"
    assert found.flags == ("no_landmarks",)
    assert found.residual_median_mm < 0.08
    assert found.residual_q95_mm < 0.35
    guided = register(scan, marks, model, settings, limits)
    in_scan = (found.vertices - found.translation) @ found.rotation / found.scale
    in_first = 1e-3 * (in_scan - 40) @ turn
    known = (guided.vertices - guided.translation) @ guided.rotation / guided.scale
    gap_mm = 1e3 * np.linalg.norm(in_first - known, axis=1)[model.face]
    assert np.median(gap_mm) < 4.0
