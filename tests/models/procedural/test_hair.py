"""Every hair style grows; the warp carries points that are no vertices; occluders cover."""

import dataclasses

import numpy as np
import pytest

from models.procedural.albedo import hairline_table
from models.procedural.appearance import HAIR_STYLES, Appearance, sample_appearance
from models.procedural.cage import build_cage
from models.procedural.hair import HairMesh, build_hair
from models.procedural.head import ProceduralHead, to_canonical, to_flame
from models.procedural.identity import sample_identity
from models.procedural.occluders import (
    OCCLUDER_KINDS,
    Occluder,
    build_occluder,
    sample_occluder,
)
from models.procedural.warp import HeadWarp


def look(style: str, seed: int = 1) -> Appearance:
    person = sample_identity(np.random.default_rng(seed))
    base = sample_appearance(person, np.random.default_rng(seed))
    hair = dataclasses.replace(
        base.hair, style=style, volume_mm=14.0, density=1.0, length_mm=120.0, recession=0.0,
        hairline_mm=0.0,
    )  # fmt: skip
    return dataclasses.replace(base, hair=hair)


def grown(style: str) -> HairMesh:
    mesh = build_hair(look(style))
    assert mesh is not None
    return mesh


def test_bald_has_no_hair() -> None:
    assert build_hair(look("bald")) is None


@pytest.mark.parametrize("style", [s for s in HAIR_STYLES if s != "bald"])
def test_styles_are_sound_meshes(style: str) -> None:
    mesh = grown(style)
    count = len(mesh.points)
    assert mesh.strand.shape == mesh.flow.shape == mesh.roots.shape == (count, 3)
    assert np.isfinite(mesh.points).all()
    assert mesh.faces.min() == 0
    assert mesh.faces.max() < count
    assert ((mesh.coverage >= 0) & (mesh.coverage <= 1)).all()
    crown = (mesh.points[:, 1] > 95) & (np.abs(mesh.points[:, 0]) < 20)
    if style != "receding":
        assert mesh.coverage[crown].min() > 0.5
    face = (mesh.points[:, 2] > 60) & (mesh.points[:, 1] < 15)
    assert (mesh.coverage[face] < 0.05).all()
    again = build_hair(look(style))
    assert again is not None
    np.testing.assert_array_equal(mesh.points, again.points)


def test_long_hair_falls_below_the_chin_and_short_does_not() -> None:
    def lowest(style: str) -> float:
        mesh = grown(style)
        return float(mesh.points[mesh.coverage > 0.3, 1].min())

    assert lowest("long") < -150.0
    assert lowest("bob") < -70.0
    assert lowest("short") > -100.0
    assert lowest("ponytail") < -90.0


def test_a_fringe_covers_the_forehead() -> None:
    def front(style: str) -> float:
        mesh = grown(style)
        middle = (np.abs(mesh.points[:, 0]) < 20) & (mesh.points[:, 2] > 60)
        return float(mesh.points[middle & (mesh.coverage > 0.5), 1].min())

    assert front("fringe") < 45.0 < front("short")


def test_hair_lies_over_the_scalp() -> None:
    mesh = grown("short")
    lift = np.linalg.norm(mesh.points, axis=1) - np.linalg.norm(mesh.roots, axis=1)
    inside = mesh.coverage > 0.95
    assert lift[inside].min() > -2.0
    assert lift[inside].max() > 8.0


def test_receding_hairline_is_higher() -> None:
    assert hairline_table(look("receding"))[0, 0] > hairline_table(look("short"))[0, 0] + 8.0


def test_warp_is_exact_for_affine_heads() -> None:
    canonical = ProceduralHead.build().canonical_mm
    linear = np.array([[1.1, 0.02, 0.0], [0.0, 0.95, 0.03], [0.01, 0.0, 1.05]]) * 1e-3
    warp = HeadWarp.fit(canonical, canonical @ linear.T + [0.01, 0.02, 0.03])
    points = np.array([[0.0, 100.0, 20.0], [80.0, 10.0, -10.0], [0.0, -200.0, -300.0]])
    np.testing.assert_allclose(warp(points), points @ linear.T + [0.01, 0.02, 0.03], atol=1e-9)


def test_warp_with_roots_follows_each_head() -> None:
    head = ProceduralHead.build()
    rng = np.random.default_rng(2)
    scalp = (head.canonical_mm[:, 1] > 50.0) & (head.mesh.part == 0)
    for _ in range(3):
        vertices = head.vertices(sample_identity(rng))
        warp = HeadWarp.fit(head.canonical_mm, vertices)
        chosen = head.canonical_mm[scalp]
        error = np.linalg.norm(warp(chosen, chosen) - vertices[scalp], axis=1)
        assert np.median(error) < 0.7e-3
        assert error.max() < 5e-3


def test_the_mean_head_is_the_canonical_one() -> None:
    head = ProceduralHead.build()
    spots = build_cage().point(np.array([0.1, 0.2]), np.array([0.0, 2.0]))
    warp = HeadWarp.fit(head.canonical_mm, to_flame(head.canonical_mm))
    np.testing.assert_allclose(to_canonical(warp(spots)), spots, atol=1e-6)


@pytest.mark.parametrize("kind", OCCLUDER_KINDS)
def test_occluders_are_sound_and_repeat(kind: str) -> None:
    occluder = sample_occluder(np.random.default_rng(9), kind)
    mesh = build_occluder(occluder, np.full(3, 0.3))
    assert mesh.faces.max() < len(mesh.points)
    assert len(mesh.row) == len(mesh.faces)
    assert mesh.row.max() < 3
    assert mesh.roots is None or mesh.roots.shape == mesh.points.shape
    again = build_occluder(occluder, np.full(3, 0.3))
    np.testing.assert_array_equal(mesh.points, again.points)


def test_unknown_occluder_is_an_error() -> None:
    with pytest.raises(ValueError, match="OCCLUDER|kind"):
        build_occluder(Occluder("ghost", 1, np.zeros(3)), np.zeros(3))
