"""Scans follow the head they are of, with the defects asked for and no others."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree

from stages.corpus import studio
from stages.corpus.people import gapped_numbers, person
from stages.corpus.scan import (
    Placement,
    Scanner,
    compact,
    nearest_vertices,
    scalp_weight,
    scan_head,
    turn,
    waves,
)
from stages.corpus.scan_files import NOW_SEVEN
from stages.runtime.compute import item_rng

PLAIN = Scanner(
    vertices=6000, back=True, covering="none", hair_mm=0.0, noise_mm=0.0, holes=0,
    chin_hole=False, scraps=0, shoulders=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def who():
    return person(1, "test", "someone")


@pytest.fixture(scope="module")
def vertices(who) -> np.ndarray:
    return np.asarray(studio.head().vertices(who.identity))


def test_a_clean_scan_lies_on_the_head(vertices: np.ndarray) -> None:
    head = studio.shape_of(vertices)
    scan = scan_head(head, PLAIN, np.random.default_rng(0))
    assert np.isfinite(scan.vertices_mm).all()
    assert scan.faces.max() == len(scan.vertices_mm) - 1
    # canonical coordinates say where on the head a sample is: its neighbours are near it
    nearest = cKDTree(head.canonical_mm).query(scan.canonical_mm)[1]
    distance = np.linalg.norm(head.vertices_mm[nearest] - scan.vertices_mm, axis=1)
    assert np.median(distance) < 4.0
    assert not scan.covered.any()


def test_noise_has_the_size_asked_for(vertices: np.ndarray) -> None:
    head = studio.shape_of(vertices)
    clean = scan_head(head, PLAIN, np.random.default_rng(0))
    noisy = scan_head(head, dataclasses.replace(PLAIN, noise_mm=0.2), np.random.default_rng(0))
    moved = np.linalg.norm(noisy.vertices_mm - clean.vertices_mm, axis=1)
    assert 0.15 < np.sqrt(np.mean(moved**2)) < 0.25


def test_cap_lifts_the_scalp_and_leaves_the_face(vertices: np.ndarray) -> None:
    head = studio.shape_of(vertices)
    clean = scan_head(head, PLAIN, np.random.default_rng(0))
    capped = scan_head(head, dataclasses.replace(PLAIN, covering="cap"), np.random.default_rng(0))
    moved = np.linalg.norm(capped.vertices_mm - clean.vertices_mm, axis=1)
    weight = scalp_weight(clean.canonical_mm)
    assert moved[weight == 0].max() < 0.9
    assert moved[weight == 1].min() > 2.0
    assert capped.covered.mean() > 0.2


def test_holes_junk_and_scraps(vertices: np.ndarray) -> None:
    head = studio.shape_of(vertices)
    clean = scan_head(head, PLAIN, np.random.default_rng(3))
    worse = dataclasses.replace(PLAIN, holes=6, chin_hole=True, scraps=2, shoulders=True)
    scan = scan_head(head, worse, np.random.default_rng(3))
    junk = np.isnan(scan.canonical_mm[:, 0])
    assert junk.sum() == 64 * 20 + 2 * 7
    assert (~junk).sum() < len(clean.vertices_mm)
    assert scan.faces.max() < len(scan.vertices_mm)


def test_same_generator_same_scan(vertices: np.ndarray) -> None:
    head = studio.shape_of(vertices)
    first = scan_head(head, PLAIN, item_rng(4, "a"))
    again = scan_head(head, PLAIN, item_rng(4, "a"))
    other = scan_head(head, PLAIN, item_rng(4, "b"))
    np.testing.assert_array_equal(first.vertices_mm, again.vertices_mm)
    assert first.vertices_mm.shape != other.vertices_mm.shape or not np.array_equal(
        first.vertices_mm, other.vertices_mm
    )


def test_placed_landmarks_are_on_the_scan_and_pass_the_unit_gate(
    who,
) -> None:
    frame = Placement(0.01, turn(40.0, 45.0, 3.0), np.array([1.0, -2.0, 3.0]))
    scanner = dataclasses.replace(PLAIN, vertices=20000)
    placed = studio.scan_person(
        who, studio.mean_vertices(), scanner, frame, np.random.default_rng(0)
    )
    seven = placed.landmarks[list(NOW_SEVEN)]
    eyes_mm = np.linalg.norm(seven[0] - seven[3]) / frame.scale
    assert 80.0 < eyes_mm < 105.0
    gap = np.linalg.norm(placed.vertices[placed.landmark_vertices] - placed.landmarks, axis=1)
    assert np.median(gap) / frame.scale < 1.5
    assert placed.colours.shape == placed.vertices.shape


def test_placement_is_a_similarity() -> None:
    frame = Placement(2.0, turn(10, 20, 30), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(frame.rotation @ frame.rotation.T, np.eye(3), atol=1e-12)
    points = np.random.default_rng(0).normal(size=(5, 3))
    before = np.linalg.norm(points[0] - points[1])
    after = frame.apply(points)
    assert np.isclose(np.linalg.norm(after[0] - after[1]), 2.0 * before)


def test_waves_have_unit_variance() -> None:
    points = np.random.default_rng(0).uniform(-200, 200, (4000, 3))
    values = waves(points, np.random.default_rng(1), (20.0, 40.0))
    assert 0.8 < values.std() < 1.2


def test_compact_drops_unused_vertices() -> None:
    vertices, faces, ids = compact(np.arange(15.0).reshape(5, 3), np.array([[0, 2, 4]]))
    assert ids.tolist() == [0, 2, 4]
    assert faces.tolist() == [[0, 1, 2]]
    assert vertices.shape == (3, 3)


def test_nearest_vertices(vertices: np.ndarray) -> None:
    scan = scan_head(studio.shape_of(vertices), PLAIN, np.random.default_rng(0))
    index, distance = nearest_vertices(scan, scan.vertices_mm[[7, 70]])
    assert index.tolist() == [7, 70]
    np.testing.assert_allclose(distance, 0.0)


def test_people_are_the_same_everywhere_and_differ_between_sets() -> None:
    first, again = person(5, "now", "a"), person(5, "now", "a")
    np.testing.assert_array_equal(first.identity.shape, again.identity.shape)
    for other in (person(5, "now", "b"), person(5, "lyhm", "a"), person(6, "now", "a")):
        assert not np.array_equal(first.identity.shape, other.identity.shape)
    assert person(5, "stirling", "F1001", "woman").identity.sex == "woman"
    assert person(5, "stirling", "M1001", "man").identity.sex == "man"


def test_gapped_numbers_ascend_with_gaps() -> None:
    numbers = gapped_numbers(20, 100, np.random.default_rng(0))
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 20
    assert numbers[-1] <= 100
    assert numbers[-1] - numbers[0] > 19
