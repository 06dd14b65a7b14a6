"""Cleaning: closed forms, slow twins of the checks, invariances, what passes untouched."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from models.geometry import _cleaning as checks
from models.geometry.cleaning import clean_scan
from models.geometry.settings import CleaningSettings

NAMES = ("degenerate", "doubled", "edges", "winding", "fans", "loose")


@pytest.fixture(scope="module")
def junk() -> CleaningSettings:
    return CleaningSettings(
        speck_area=0.001,
        speck_faces=0.001,
        scrap_area=0.02,
        scrap_distance=0.03,
        max_dropped=0.2,
        facing_area=0.02,
        seam_distance=0.01,
        seam_cosine=0.5,
        cloud_neighbours=12,
    )


@pytest.fixture(scope="module")
def ball(toy) -> tuple[np.ndarray, np.ndarray]:
    return toy._sphere(40, 60)


def defects(vertices: np.ndarray, faces: np.ndarray) -> dict[str, int]:
    found = checks.find_defects(np.asarray(vertices, float), np.asarray(faces, np.int64))[0]
    return {name: int(count) for name, count in zip(NAMES, found, strict=True) if count}


def slow_defects(vertices: np.ndarray, faces: np.ndarray) -> dict[str, int]:
    """The same by dictionaries, from the definitions."""
    count = len(vertices)
    used = set(faces.ravel().tolist())
    directed = Counter(
        (int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)
    )
    edges = Counter(tuple(sorted(e)) for e in directed.elements())
    wrong = {e for e, n in edges.items() if n > 2}
    breaks = {e for e, n in edges.items() if n == 2 and directed[e] != 1}
    sets = Counter(tuple(sorted(f.tolist())) for f in faces)
    fans = 0
    for v in used:
        if any(v in e for e in wrong | breaks):
            continue
        around = [set(f.tolist()) - {v} for f in faces if v in f]
        groups: list[set[int]] = []
        for pair in around:
            touching = [g for g in groups if g & pair]
            groups = [g for g in groups if not g & pair] + [set().union(pair, *touching)]
        fans += len(groups) - 1
    out = {
        "doubled": sum(n - 1 for n in sets.values()),
        "edges": len(wrong),
        "winding": len(breaks),
        "fans": fans,
        "loose": count - len(used),
    }
    return {name: n for name, n in out.items() if n}


TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
CORNERS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [5, 5, 5], [6, 5, 5], [5, 6, 5]])


@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        (TETRAHEDRON, {"loose": 3}),
        ([[0, 1, 2], [0, 1, 1], [0, 1, 3]], {"degenerate": 1, "loose": 3}),
        ([[0, 1, 2], [2, 0, 1]], {"doubled": 1, "winding": 3, "loose": 4}),
        ([[0, 1, 2], [0, 2, 1]], {"doubled": 1, "loose": 4}),
        ([[0, 1, 2], [0, 1, 3]], {"winding": 1, "loose": 3}),
        ([[0, 1, 2], [1, 0, 3], [0, 1, 4]], {"edges": 1, "loose": 2}),
        ([[0, 1, 2], [0, 4, 5]], {"fans": 1, "loose": 2}),
    ],
)
def test_defects_of_small_meshes(faces, expected) -> None:
    assert defects(CORNERS, np.array(faces)) == expected


@examples(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_defects_agree_with_the_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(9, 3))
    rows = [rng.choice(9, 3, replace=False) for _ in range(rng.integers(1, 14))]
    faces = np.array(rows)
    assert defects(vertices, faces) == slow_defects(vertices, faces)


def test_orientation_agrees_with_meshlab(toy) -> None:
    import pymeshlab

    vertices, faces = toy._sphere(20, 30)
    flat = faces[(vertices[faces][:, :, 2] > -0.3).all(axis=1)]  # with a border
    faces = np.concatenate([flat, faces + len(vertices)])
    vertices = np.concatenate([vertices, vertices + np.array([3, 0, 0])])
    turned = np.random.default_rng(5).random(len(faces)) < 0.4
    mixed = np.where(turned[:, None], faces[:, ::-1], faces)
    ours = checks.turned_faces(len(vertices), mixed)
    document = pymeshlab.MeshSet(verbose=False)
    document.add_mesh(pymeshlab.Mesh(vertices, mixed.astype(np.int32)))
    document.meshing_re_orient_faces_coherently()
    theirs = np.asarray(document.current_mesh().face_matrix())
    np.testing.assert_array_equal(np.sort(theirs, axis=1), np.sort(mixed, axis=1))
    even = [
        any((np.roll(t, k) == m).all() for k in range(3))
        for t, m in zip(theirs, mixed, strict=True)
    ]
    for piece in (np.arange(len(faces)) < len(flat), np.arange(len(faces)) >= len(flat)):
        agree = ours[piece] == ~np.array(even)[piece]
        assert agree.all() or not agree.any()
        right = ours[piece] == turned[piece]
        assert right.all() or not right.any()


def test_a_moebius_strip_is_reported_not_forced(junk) -> None:
    around = np.arange(24) * 2 * np.pi / 24
    half = np.array([-0.3, 0.3])[:, None]
    radius = 1 + half * np.cos(around / 2)
    strip = np.stack(
        [radius * np.cos(around), radius * np.sin(around), half * np.sin(around / 2)], axis=-1
    ).reshape(-1, 3)
    faces = []
    for i in range(24):
        a, b = i, i + 24
        c, d = (i + 1, i + 25) if i < 23 else (24, 0)
        faces += [(a, c, b), (b, c, d)]
    found = clean_scan(strip, np.array(faces), junk)
    assert found.report["unmended"] >= 1
    assert len(found.faces) == 48


@examples(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_first_of_equal_positions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.integers(-1, 2, (40, 3)) * rng.choice([1.0, -0.0, 1e-300])
    earliest, doubled = checks.same_positions(vertices + np.zeros(3))
    slow = [next(j for j in range(40) if (vertices[j] == v).all()) for v in vertices]
    np.testing.assert_array_equal(earliest, slow)
    assert doubled == sum(j != i for i, j in enumerate(slow))


def test_a_clean_mesh_is_the_same_arrays(ball, junk) -> None:
    vertices, faces = ball
    found = clean_scan(vertices, faces, junk)
    assert found.vertices is vertices
    assert found.faces is faces
    assert found.report == {}
    np.testing.assert_array_equal(found.kept, np.arange(len(vertices)))


def test_what_no_mesh_can_be_made_of_is_left_to_who_uses_it(ball, junk) -> None:
    vertices, faces = ball
    broken = vertices.copy()
    broken[3, 1] = np.nan
    for bad, triangles in (
        (broken, faces),
        (np.zeros((0, 3)), faces[:0]),
        (vertices, faces + 1),
        (vertices[:5], faces[:0]),
        (np.zeros((200, 3)), faces[:0]),
    ):
        found = clean_scan(bad, triangles, junk)
        assert found.vertices is bad
        assert found.faces is triangles
        assert found.report == {}


def same_surface(found, vertices: np.ndarray, faces: np.ndarray) -> None:
    """The same oriented triangles at the same places, in any order."""

    def corners(v, f):
        flat = v[f].reshape(len(f), 3, 3)
        first = np.array([min(range(3), key=lambda k, t=t: tuple(t[k])) for t in flat])
        turned = flat[np.arange(len(f))[:, None], (first[:, None] + np.arange(3)) % 3]
        return turned.reshape(len(f), 9)[np.lexsort(turned.reshape(len(f), 9).T[::-1])]

    np.testing.assert_array_equal(corners(found.vertices, found.faces), corners(vertices, faces))


def test_soup_is_welded(ball, junk) -> None:
    vertices, faces = ball
    found = clean_scan(
        vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3), junk
    )
    same_surface(found, vertices, faces)
    assert found.report == {"duplicate_vertices": 3 * len(faces) - len(vertices)}


def test_turned_triangles_are_turned_back(ball, junk) -> None:
    vertices, faces = ball
    turned = np.random.default_rng(0).random(len(faces)) < 0.3
    mixed = np.where(turned[:, None], faces[:, ::-1], faces)
    found = clean_scan(vertices, mixed, junk)
    same_surface(found, vertices, faces)
    assert found.report["turned_faces"] == turned.sum()
    # Most of the area decides: the other way round the turned ones win.
    other = clean_scan(vertices, mixed[:, ::-1], junk)
    same_surface(other, vertices, faces[:, ::-1])


def test_a_half_that_faces_the_other_way_is_turned_over(ball, junk) -> None:
    vertices, faces = ball
    left = vertices[faces].mean(axis=1)[:, 0] > 0.1
    apart = np.concatenate([vertices, vertices + 1e-6])
    mixed = np.concatenate([faces[~left], faces[left][:, ::-1] + len(vertices)])
    found = clean_scan(apart, mixed, junk)
    assert found.report["turned_faces"] == left.sum()
    normals = np.cross(
        found.vertices[found.faces[:, 1]] - found.vertices[found.faces[:, 0]],
        found.vertices[found.faces[:, 2]] - found.vertices[found.faces[:, 0]],
    )
    middles = found.vertices[found.faces].mean(axis=1)
    assert ((normals * middles).sum(axis=1) > 0).all()


def test_a_sheet_below_that_faces_up_is_left_alone(ball, junk) -> None:
    """Shoulders: seen from the head they face inward, and that is right."""
    vertices, faces = ball
    x, z = np.meshgrid(np.linspace(-2, 2, 30), np.linspace(-1, 1, 20), indexing="ij")
    sheet = np.stack([x, np.full_like(x, -1.2), z], axis=-1).reshape(-1, 3)
    a = (np.arange(29)[:, None] * 20 + np.arange(19)).ravel()
    up = np.concatenate([np.stack([a, a + 1, a + 21], 1), np.stack([a, a + 21, a + 20], 1)])
    both = np.concatenate([vertices, sheet])
    for lower in (up, up[:, ::-1]):
        found = clean_scan(both, np.concatenate([faces, lower + len(vertices)]), junk)
        assert found.report == {}


def test_doubled_and_degenerate_triangles_go(ball, junk) -> None:
    vertices, faces = ball
    rng = np.random.default_rng(1)
    some = faces[rng.choice(len(faces), 40, replace=False)]
    thin = some.copy()
    thin[:, 2] = thin[:, 1]
    found = clean_scan(vertices, np.concatenate([faces, some, thin]), junk)
    same_surface(found, vertices, faces)
    assert found.report["degenerate_faces"] == 40
    assert found.report["duplicate_faces"] == 40


def test_fins_are_cut_and_touching_fans_parted(ball, junk) -> None:
    vertices, faces = ball
    fin = np.concatenate([vertices, 1.5 * vertices[faces[:60, 0]]])
    third = len(vertices) + np.arange(60)
    added = np.stack([faces[:60, 0], faces[:60, 1], third], axis=1)
    found = clean_scan(fin, np.concatenate([faces, added]), junk)
    assert "unmended" not in found.report
    assert found.report["non_manifold_edges"] > 0
    after = defects(found.vertices, found.faces)
    assert set(after) <= set()
    np.testing.assert_array_equal(found.vertices, fin[found.kept])
    # Two balls that share one vertex: both stay whole, on vertices of their own.
    two = np.concatenate([vertices, vertices[1:] + vertices[0] * 2])
    shifted = np.where(faces == 0, 0, faces + len(vertices) - 1)
    joined = clean_scan(two, np.concatenate([faces, shifted]), junk)
    assert joined.report["non_manifold_vertices"] == 1
    assert len(joined.vertices) == len(two) + 1
    assert len(joined.faces) == 2 * len(faces)


def test_junk_goes_and_shoulders_stay(ball, junk) -> None:
    vertices, faces = ball
    rng = np.random.default_rng(2)
    specks = (rng.uniform(-2, 2, (300, 1, 3)) + 0.02 * rng.normal(size=(300, 3, 3))).reshape(-1, 3)
    shoulders = 0.6 * vertices + [0, -2.5, 0]
    loose = rng.normal(size=(17, 3))
    count = len(vertices)
    found = clean_scan(
        np.concatenate([vertices, specks, shoulders, loose]),
        np.concatenate([faces, np.arange(900).reshape(-1, 3) + count, faces + count + 900]),
        junk,
    )
    assert found.report == {
        "junk_pieces": 300,
        "junk_faces": 300,
        "unreferenced_vertices": 900 + 17,
    }
    np.testing.assert_array_equal(found.vertices, np.concatenate([vertices, shoulders]))


def test_a_scrap_is_junk_only_far_off(ball, toy, junk) -> None:
    vertices, faces = ball
    small, scrap = toy._sphere(8, 12)
    for at, gone in ((1.11, False), (1.8, True)):
        both = np.concatenate([vertices, 0.1 * small + [0, 0, at]])
        found = clean_scan(both, np.concatenate([faces, scrap + len(vertices)]), junk)
        assert ("junk_pieces" in found.report) == gone


def test_a_shattered_scan_is_no_junk(ball, junk) -> None:
    vertices, faces = ball
    rng = np.random.default_rng(3)
    soup = vertices[faces].reshape(-1, 3) + 1e-5 * rng.normal(size=(3 * len(faces), 3))
    found = clean_scan(soup, np.arange(len(soup)).reshape(-1, 3), junk)
    assert len(found.faces) == len(faces)


def test_a_point_cloud_is_meshed_on_its_own_points(ball, junk) -> None:
    vertices, faces = ball
    found = clean_scan(vertices, faces[:0], junk)
    assert found.report["meshed_point_cloud"] > 0.9 * len(faces)
    np.testing.assert_array_equal(found.vertices, vertices[found.kept])
    # The ball's area within 3 %, once and not twice.
    a, b, c = (found.vertices[found.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert area == pytest.approx(4 * np.pi, rel=0.03)
    assert "winding" not in defects(found.vertices, found.faces)


@examples(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_triangles_and_place_make_no_difference(seed: int) -> None:
    """Property: the same surface and counts whatever the order of triangles; nothing moves."""
    rng = np.random.default_rng(seed)
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location("toy_head", Path(__file__).with_name("toy_head.py"))
    assert spec is not None
    assert spec.loader is not None
    toy = module_from_spec(spec)
    spec.loader.exec_module(toy)
    junk = CleaningSettings(0.001, 0.001, 0.02, 0.03, 0.2, 0.02, 0.01, 0.5, 12)
    vertices, faces = toy._sphere(14, 18)
    vertices = vertices + 0.02 * rng.normal(size=vertices.shape)
    turned = rng.random(len(faces)) < 0.2
    dirty = np.concatenate(
        [np.where(turned[:, None], faces[:, ::-1], faces), faces[rng.integers(0, len(faces), 9)]]
    )
    one = clean_scan(vertices, dirty, junk)
    other = clean_scan(vertices, dirty[rng.permutation(len(dirty))], junk)
    assert len(one.faces) == len(other.faces)
    assert one.report["duplicate_faces"] == other.report["duplicate_faces"]
    assert defects(one.vertices, one.faces) == defects(other.vertices, other.faces) == {}
    same_surface(one, vertices, faces)
    again = clean_scan(vertices, dirty, junk)
    assert again.faces.tobytes() == one.faces.tobytes()
    assert again.report == one.report
