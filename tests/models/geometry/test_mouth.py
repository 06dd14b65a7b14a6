"""How much of the lower face lies on a scan: closed forms, its region, what lowers it.

That an open mouth is found is tested with the procedural heads, in ``test_failures.py``.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from models.geometry.closeness import disc_distances
from models.geometry.mesh import vertex_normals
from models.geometry.mouth import SUPPORT_MM, lower_face_support, with_the_mouth_as_open
from models.geometry.parametric import FitState, Surface
from models.geometry.template import UNDER_NOSE, RegistrationModel


def surface_of(vertices: np.ndarray, normals: np.ndarray) -> Surface:
    return Surface(vertices, normals, np.zeros(len(vertices), dtype=bool), cKDTree(vertices))


@pytest.fixture(scope="module")
def own_scan(toy_model) -> Surface:
    """The mean head's own vertices as a scan."""
    faces = np.asarray(toy_model.arrays.faces, dtype=np.int64)
    return surface_of(toy_model.template, vertex_normals(toy_model.template, faces))


@pytest.fixture
def mean(toy_model) -> FitState:
    return FitState(np.zeros(toy_model.basis.shape[2]))


def test_distance_to_a_disc_in_closed_form() -> None:
    # One vertex at the origin that stands for a disc of radius 3 in the xy plane.
    one = surface_of(np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]]))
    points = np.array([[0, 0, 2.0], [3, 0, -2.0], [0, 7, 3.0], [1, 0, 0]])
    found = disc_distances(points, one, np.array([9 * np.pi]))
    assert found == pytest.approx([2.0, 2.0, 5.0, 0.0])


def test_distance_to_discs_is_that_of_one_point_after_the_other() -> None:
    rng = np.random.default_rng(3)
    normals = rng.normal(size=(40, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    scan, areas = surface_of(rng.normal(size=(40, 3)), normals), rng.uniform(0.01, 0.5, 40)
    points = rng.normal(size=(25, 3))
    slow = []
    for point in points:
        near = int(np.argmin([np.linalg.norm(point - vertex) for vertex in scan.vertices]))
        gap, normal = point - scan.vertices[near], normals[near]
        height = gap @ normal
        beyond = np.linalg.norm(gap - height * normal) - np.sqrt(areas[near] / np.pi)
        slow.append(np.sqrt(height**2 + max(beyond, 0.0) ** 2))
    assert disc_distances(points, scan, areas) == pytest.approx(slow)


def test_the_lower_face_is_face_below_the_nose(toy, toy_model) -> None:
    lower = toy_model.lower_face
    assert 20 < lower.sum() < toy_model.face.sum()
    assert not (lower & ~(toy_model.face & toy_model.exposed)).any()
    assert toy_model.template[lower, 1].max() < toy_model.landmarks[UNDER_NOSE, 1]
    triangles, bary = toy.toy_landmarks(toy_model.arrays)
    few = RegistrationModel.build(toy_model.arrays, triangles[:7], bary[:7])
    assert not few.lower_face.any()


def test_support_in_closed_form(toy_model, own_scan, mean) -> None:
    areas = np.full(len(own_scan.vertices), 1e-9)  # points rather than discs
    assert lower_face_support(toy_model, mean, own_scan, areas) == pytest.approx(1.0)
    # Off the surface by d everywhere: 1 / (1 + (d / 2 mm)^2).
    moved = own_scan.vertices - SUPPORT_MM * own_scan.normals
    off = surface_of(moved, own_scan.normals)
    half = lower_face_support(toy_model, mean, off, areas)
    assert half == pytest.approx(0.5, abs=0.02)
    # The motion belongs to the fit.
    shift = np.array([30.0, -200.0, 7.0])
    there = surface_of(moved + shift, own_scan.normals)
    carried = replace(mean, translation=shift)
    assert lower_face_support(toy_model, carried, there, areas) == pytest.approx(half, abs=1e-9)


def test_what_bridges_a_hole_is_not_supported(toy_model, own_scan, mean) -> None:
    areas = np.full(len(own_scan.vertices), 1.0)
    lower = np.flatnonzero(toy_model.lower_face)
    chin = lower[toy_model.template[lower, 1] < np.median(toy_model.template[lower, 1])]
    kept = np.setdiff1d(np.arange(len(own_scan.vertices)), chin)
    holed = surface_of(own_scan.vertices[kept], own_scan.normals[kept])
    share = toy_model.areas[chin].sum() / toy_model.areas[lower].sum()
    found = lower_face_support(toy_model, mean, holed, areas[kept])
    assert 1 - share <= found < 1 - 0.5 * share
    none = replace(toy_model, lower_face=np.zeros_like(toy_model.lower_face))
    assert lower_face_support(none, mean, holed, areas[kept]) == 1.0


def test_a_supported_mouth_is_left_as_it_is(toy_model, own_scan, mean, settings) -> None:
    areas = np.full(len(own_scan.vertices), 1.0)
    found, support = with_the_mouth_as_open(
        toy_model, mean, toy_model.landmarks, own_scan, areas, settings, bald=True
    )
    assert found is mean
    assert support == pytest.approx(1.0)
