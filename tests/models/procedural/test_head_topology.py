"""The head's mesh: FLAME's composition, a clean manifold, an exact mirror."""

import hashlib

import numpy as np
import pytest

from models.procedural import topology
from models.procedural.cage import Cage, build_cage
from models.procedural.head import CANONICAL_TO_FLAME_MM, ProceduralHead, to_canonical, to_flame
from models.procedural.identity import Identity


@pytest.fixture(scope="module")
def head():
    return ProceduralHead.build()


def edge_uses(faces):
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return np.unique(edges, axis=0, return_counts=True)


def test_composition_is_flames(head):
    assert head.canonical_mm.shape == (5023, 3)
    assert head.faces.shape == (9976, 3)
    skin = (head.faces < 3931).all(axis=1)
    assert skin.sum() == 7800
    for start in (3931, 4477):
        ball = ((head.faces >= start) & (head.faces < start + 546)).all(axis=1)
        assert ball.sum() == 1088
    assert np.unique(head.faces).size == 5023


def test_every_edge_has_two_triangles_but_for_one_neck_ring(head):
    edges, uses = edge_uses(head.faces)
    assert uses.max() == 2
    rim = edges[uses == 1]
    assert len(rim) == 60
    # one closed ring: every rim vertex is in two rim edges, and they are connected
    vertices, degree = np.unique(rim, return_counts=True)
    assert (degree == 2).all()
    assert (head.canonical_mm[vertices, 1] < -190.0).all()
    # Euler characteristic of a disc
    skin = head.faces[(head.faces < 3931).all(axis=1)]
    edges, _ = edge_uses(skin)
    assert 3931 - len(edges) + len(skin) == 1


def test_triangles_are_oriented_alike_and_outward(head):
    directed = np.concatenate([head.faces[:, [0, 1]], head.faces[:, [1, 2]], head.faces[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed)  # no edge runs twice the same way
    for start in (0, 3931, 4477):
        stop = {0: 3931, 3931: 4477, 4477: 5023}[start]
        part = head.faces[((head.faces >= start) & (head.faces < stop)).all(axis=1)]
        middle = head.canonical_mm[start:stop].mean(axis=0)
        a, b, c = (head.canonical_mm[part[:, k]] - middle for k in range(3))
        assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0.0


def test_mean_head_is_its_own_mirror_image(head):
    mirror = head.mesh.mirror
    np.testing.assert_array_equal(mirror[mirror], np.arange(5023))
    np.testing.assert_allclose(
        head.canonical_mm[mirror] * [-1.0, 1.0, 1.0], head.canonical_mm, atol=1e-9
    )
    own = {tuple(sorted(face)) for face in head.faces.tolist()}
    assert {tuple(sorted(face)) for face in mirror[head.faces].tolist()} == own


def test_building_twice_gives_the_same_bytes(head):
    again = topology.build_mesh(Cage())

    def digest(mesh):
        return hashlib.sha256(mesh.vertices_mm.tobytes() + mesh.faces.tobytes()).hexdigest()

    assert digest(again) == digest(head.mesh)


def test_no_degenerate_triangle(head):
    t = head.canonical_mm[head.faces]
    area = 0.5 * np.linalg.norm(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]), axis=1)
    side = ((t - np.roll(t, 1, axis=1)) ** 2).sum(axis=(1, 2))
    quality = 4.0 * np.sqrt(3.0) * area / side  # 1 for equilateral, 0 for a sliver
    assert area.min() > 1e-3
    assert (quality < 0.15).sum() < 164  # the feasibility study's figure
    outside = (head.mesh.part[head.faces] == 0).all(axis=1)
    assert quality[outside].min() > 0.15


def test_frame_and_scale_are_flames(head):
    vertices = head.vertices(Identity.mean())
    for start, x in ((3931, 0.0312), (4477, -0.0312)):
        middle = head.joint_regressor[3 if x > 0 else 4] @ vertices
        np.testing.assert_allclose(middle, [x, 0.0214, 0.0254], atol=1e-4)
        assert np.linalg.norm(vertices[start] - middle) == pytest.approx(0.012 * 1.035, rel=1e-3)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    np.testing.assert_allclose(low, [-0.1, -0.18, -0.155], atol=0.015)
    np.testing.assert_allclose(high, [0.1, 0.132, 0.072], atol=0.015)
    np.testing.assert_allclose(
        to_canonical(to_flame(head.canonical_mm)), head.canonical_mm, atol=1e-9
    )
    np.testing.assert_allclose(to_flame(np.zeros((1, 3)))[0], CANONICAL_TO_FLAME_MM * 1e-3)


def test_cage_lookup_inverts_the_surface():
    cage = build_cage()
    targets = np.array([[10.0, 20.0], [31.2, 0.0], [-25.0, -65.0], [0.0, -100.0]])
    found = cage.locate((0, 1), targets, "front")
    np.testing.assert_allclose(cage.point(found[:, 0], found[:, 1])[:, :2], targets, atol=1e-6)
    sides = np.array([[-12.0, -8.0], [10.0, -20.0]])
    found = cage.locate((1, 2), sides, "left")
    points = cage.point(found[:, 0], found[:, 1])
    np.testing.assert_allclose(points[:, 1:], sides, atol=1e-6)
    assert (points[:, 0] > 60.0).all()
    directions = cage.direction(found[:, 0], found[:, 1])
    np.testing.assert_allclose(cage.parameters(directions), found, atol=1e-4)


def test_sphere_map_is_nearly_conformal():
    cage = build_cage()
    s, phi = (
        part.ravel() for part in np.meshgrid(np.linspace(0.4, 0.7, 9), np.linspace(-3, 3, 13))
    )
    h = 1e-4
    stretch = []
    for ds, dphi in ((h, 0.0), (0.0, h)):
        space = np.linalg.norm(cage.point(s + ds, phi + dphi) - cage.point(s, phi), axis=1)
        sphere = cage.direction(s + ds, phi + dphi) - cage.direction(s, phi)
        stretch.append(space / np.linalg.norm(sphere, axis=1))
    ratio = stretch[0] / stretch[1]
    assert 0.7 < np.median(ratio) < 1.4
    assert ratio.min() > 0.3
    assert ratio.max() < 3.0


def test_wrong_ring_sizes_are_refused(monkeypatch):
    monkeypatch.setattr(topology, "MIDLINE_FREE", topology.MIDLINE_FREE + 1)
    with pytest.raises(ValueError, match="change MIDLINE_FREE"):
        topology.build_mesh(build_cage())
