"""What comes of every way in which a scan goes wrong: small versions, on the toy head.

The same cases on six procedural heads: ``tests/benchmarks/registration_failures.py``.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from models.geometry.registration import Registration, Scan
from stages.registration.scan import register
from stages.runtime import params

SEED = 0

# Case: status, words of the reason, bounds of residual median and 95 %, mm, of flags and cleaning.
EXPECTED: dict[str, tuple[str, str, float, float]] = {
    "clean": ("ok", "", 0.09, 0.3),
    "noise 0.2 mm": ("ok", "", 0.2, 0.55),
    "noise 0.5 mm": ("ok", "", 0.4, 1.2),
    "20 holes": ("ok", "", 0.09, 0.3),
    "hair-cap bumps": ("ok", "", 0.09, 0.3),
    "all normals flipped": ("ok", "", 0.09, 0.3),
    "30 % of faces flipped": ("ok", "", 0.09, 0.3),
    "a half wound the other way": ("ok", "", 0.09, 0.3),
    "duplicates, non-manifold, 1500 junk triangles": ("ok", "", 0.09, 0.3),
    "7 landmarks": ("ok", "", 0.09, 0.3),
    "4 landmarks": ("ok", "", 0.09, 0.3),
    "landmark noise 4 mm": ("ok", "", 0.09, 0.3),
    "3 landmarks off by 25 mm": ("ok", "", 0.09, 0.3),
    "half a face": ("rejected", "coverage 0.", 0.1, 0.3),
    "lower face only": ("rejected", "coverage 0.", 0.1, 0.3),
    "unit m": ("ok", "", 0.09, 0.3),
    "unit cm": ("ok", "", 0.09, 0.3),
    "unit declared wrong": ("ok", "", 0.09, 0.3),
    "scale 0.37": ("ok", "", 0.09, 0.3),
    "strong expression": ("ok", "", 0.12, 0.6),
    "open mouth": ("ok", "", 0.09, 0.3),
    "open mouth, 7 landmarks": ("ok", "", 0.09, 0.3),
    "open mouth, landmarks of a closed one": ("ok", "", 0.09, 0.3),
    "open mouth, no landmarks": ("ok", "", 0.09, 0.3),
    "scalp under hair": ("ok", "", 0.09, 0.3),
    "closed eyes": ("ok", "", 0.09, 0.3),
    "mirrored scan": ("failed", "mirror image", 0, 0),
    "left and right landmarks swapped": ("failed", "mirror image", 0, 0),
    "collar inside the neck": ("ok", "", 0.09, 0.3),
    "degenerate triangles": ("ok", "", 0.09, 0.3),
    "NaN vertices": ("failed", "expected finite scan vertices, got", 0, 0),
    "point cloud": ("ok", "", 0.09, 0.3),
    "empty after the crop": ("failed", "scan vertices with surface within 160 mm", 0, 0),
    "a sphere": ("rejected", "landmark RMS", 0.2, 1.5),
    "a random blob": ("rejected", "landmark RMS", 1.0, 20.0),
    "landmark noise 12 mm": ("rejected", "landmark RMS", 0.09, 0.3),
    "4 landmarks, noise 10 mm": ("rejected", "landmark RMS", 0.1, 0.3),
    "landmarks shifted 15 mm": ("rejected", "landmark RMS", 0.1, 0.4),
    "landmarks shifted 40 mm": ("rejected", "landmark RMS", 2.0, 20.0),
    "landmarks turned 15 deg": ("rejected", "landmark RMS", 0.1, 0.4),
    "landmarks turned 45 deg": ("rejected", "residual 95th percentile", 3.0, 20.0),
    "no landmarks": ("ok", "", 0.09, 0.3),
}

CLEANED: dict[str, set[str]] = {
    "clean": set(),
    "all normals flipped": set(),
    "30 % of faces flipped": {"winding_breaks", "turned_faces"},
    "a half wound the other way": {"turned_faces", "unreferenced_vertices"},
    "duplicates, non-manifold, 1500 junk triangles": {
        "duplicate_faces",
        "non_manifold_edges",
        "junk_pieces",
        "junk_faces",
    },
    "degenerate triangles": {"degenerate_faces"},
    "point cloud": {"meshed_point_cloud"},
}

FLAGS = {
    "all normals flipped": "normals_flipped",
    "unit declared wrong": "unit_mismatch",
    "scale 0.37": "scale_not_metric",
    "no landmarks": "no_landmarks",
    "open mouth, no landmarks": "no_landmarks",
}


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "failure_cases", Path(__file__).with_name("failure_cases.py")
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["failure_cases"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def section(repository) -> params.RegisterParams:
    return params.load(repository / "params.yaml").registration


@pytest.fixture(scope="module")
def heads(cases) -> Any:
    return cases.LinearHeads.toy()


def test_every_case_has_an_expectation(cases) -> None:
    assert list(EXPECTED) == list(cases.CASES)
    assert sorted(cases.SWAPPED_51) == list(range(51))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_comes_out(cases, heads, section, name) -> None:
    from models.geometry.cleaning import clean_scan
    from models.geometry.settings import CleaningSettings

    specimen = cases.spoiled(heads, name, SEED)

    def fit(scan: Scan, marks: np.ndarray | None) -> Registration:
        return register(scan, marks, section, heads.model)

    came = cases.outcome(specimen, fit, heads.model)
    status, words, median_mm, q95_mm = EXPECTED[name]
    assert came.status == status, came.reason
    assert words in came.reason
    assert (came.reason == "") == (status == "ok")
    # Nothing wrong is accepted.
    assert came.right or status != "ok"
    if name in CLEANED:
        report = clean_scan(
            specimen.vertices, specimen.faces, CleaningSettings(**section.cleaning.model_dump())
        ).report
        assert set(report) >= CLEANED[name]
        assert bool(report) == bool(CLEANED[name])
    if came.found is None:
        assert status == "failed"
        return
    assert came.found.residual_median_mm < median_mm
    assert came.found.residual_q95_mm < q95_mm
    assert len(came.found.residuals_mm) == len(specimen.vertices)
    assert 0.0 <= came.found.score <= 1.0
    if status == "ok":
        assert came.found.score >= section.limits.min_score
    assert (FLAGS.get(name, "") in came.found.flags) == (name in FLAGS)


@pytest.mark.parametrize("name", ["landmarks shifted 40 mm", "landmarks turned 45 deg"])
def test_the_score_alone_refuses_what_lies_elsewhere(cases, heads, section, name) -> None:
    specimen = cases.spoiled(heads, name, SEED)
    open_limits = section.limits.model_copy(
        update={
            "max_median_mm": 1e3,
            "max_q95_mm": 1e3,
            "max_landmark_rms_mm": 1e3,
            "max_landmark_drift_mm": 1e3,
            "min_coverage": 0.0,
            "min_lower_face": 0.0,
            "max_flipped_faces": 10_000,
        }
    )
    # Trying the mouth anew would move one of these faces to where it belongs.
    as_placed = section.fit.model_copy(update={"mouth_support": 0.0})
    loose = section.model_copy(update={"limits": open_limits, "fit": as_placed})

    def fit(scan: Scan, marks: np.ndarray | None) -> Registration:
        return register(scan, marks, loose, heads.model)

    came = cases.outcome(specimen, fit, heads.model)
    assert came.status == "rejected"
    assert came.reason.startswith("score ")
    assert not came.right


def test_an_open_mouth_is_found_by_shape_alone(cases, section) -> None:
    """From a closed mouth this fit ends with the chin 47 mm off and small residuals."""
    heads = cases.ProceduralHeads.build()
    rng = np.random.default_rng([1, 73])
    mouth_open = heads.specimen(1, expression="strong")
    specimen = cases.posed(replace(mouth_open, marks=None), rng, 1.0, "mm")

    def fit(scan: Scan, marks: np.ndarray | None) -> Registration:
        return register(scan, marks, section, heads.model)

    came = cases.outcome(specimen, fit, heads.model)
    assert came.found is not None
    assert came.found.flags == ("no_landmarks",)
    assert came.right, (came.error_median_mm, came.error_q95_mm)
    assert came.found.theta[6] > 0.1  # rad about x: open


def test_an_open_mouth_is_found_whatever_its_landmarks_say(cases, section) -> None:
    """Landmarks that call it closed leave the chin 20 to 40 mm off, at small residuals."""
    heads = cases.ProceduralHeads.build()
    specimen = cases.spoiled(heads, "open mouth, landmarks of a closed one", 1)

    def outcome(chosen: params.RegisterParams) -> Any:
        def fit(scan: Scan, marks: np.ndarray | None) -> Registration:
            return register(scan, marks, chosen, heads.model)

        return cases.outcome(specimen, fit, heads.model)

    untried = section.model_copy(
        update={"fit": section.fit.model_copy(update={"mouth_support": 0.0})}
    )
    closed, came, again = outcome(untried), outcome(section), outcome(section)
    assert closed.found.theta[6] < 0.1
    assert closed.error_q95_mm > 15
    assert closed.found.residual_q95_mm < 1.0
    assert closed.reason.startswith("lower face on the scan 0.")
    assert came.right, (came.error_median_mm, came.error_q95_mm)
    assert came.found.flags == ("mouth_from_surface",)
    assert came.found.theta[6] > 0.2
    # Right, but a third of its landmarks lie elsewhere: for a person to look at.
    assert came.status == "rejected"
    assert came.reason.startswith("landmark RMS, mm, ")
    assert again.found.vertices.tobytes() == came.found.vertices.tobytes()


@pytest.mark.parametrize("name", ["clean", "open mouth"])
def test_a_mouth_as_its_landmarks_say_is_not_doubted(cases, section, name) -> None:
    heads = cases.ProceduralHeads.build()
    specimen = cases.spoiled(heads, name, 1)
    scan = Scan(specimen.vertices, specimen.faces, unit=specimen.unit, bald=specimen.bald)
    found = register(scan, specimen.marks, section, heads.model)
    assert found.status == "ok"
    assert found.flags == ()
    assert found.lower_face > section.fit.mouth_support


def test_closed_lips_neither_part_nor_cross(cases, section) -> None:
    """Distances across the mouth against the known head's; no scan shows the inside."""
    heads = cases.ProceduralHeads.build()
    model, specimen = heads.model, heads.specimen(3, expression="none")
    pairs = model.skin_ids[model.lips]
    assert len(pairs) > 20
    assert (model.normals[pairs[:, 0]] * model.normals[pairs[:, 1]]).sum(axis=1).max() < 0
    off = {}
    for weight in (0.0, section.fit.lip_weight):
        fit = section.fit.model_copy(update={"lip_weight": weight})
        chosen = section.model_copy(update={"fit": fit})
        found = register(
            Scan(specimen.vertices, specimen.faces, "mm", bald=True), specimen.marks, chosen, model
        )
        assert specimen.head is not None
        known = found.scale * specimen.head @ found.rotation.T + found.translation
        gap = [
            1e3 * ((head[pairs[:, 1]] - head[pairs[:, 0]]) * model.normals[pairs[:, 0]]).sum(axis=1)
            for head in (found.vertices, known)
        ]
        off[weight] = np.abs(gap[0] - gap[1])
    assert off[section.fit.lip_weight].mean() < 0.5 * off[0.0].mean()
    assert off[section.fit.lip_weight].max() < 0.6


def test_the_score_tells_good_from_bad_on_a_real_scan(section, shared_data) -> None:
    """Not one of the heads that the weights were fitted on, and another basis."""
    from models.geometry.template import RegistrationModel
    from stages.datasets.flame_files import load_flame, read_masks, read_static_embedding
    from stages.datasets.meshes import read_mesh

    mesh = read_mesh(shared_data / "real_scan/scan.obj")
    marks = np.load(shared_data / "real_scan/scan_lmks51.npy")
    model = RegistrationModel.build(
        load_flame(shared_data / "open_head/flame_like.npz"),
        *read_static_embedding(shared_data / "real_scan/flame_static_embedding.pkl"),
        read_masks(shared_data / "flame_assets/FLAME_masks.pkl"),
    )
    scan = Scan(mesh.vertices, mesh.faces)
    good = register(scan, marks, section, model)
    assert good.status == "ok"
    assert good.score > 0.9
    bad = register(scan, marks + np.array([0.02, 0.0, 0.0]), section, model)
    assert bad.status == "rejected"
    assert bad.score < 0.3
    assert "score" in bad.reason
