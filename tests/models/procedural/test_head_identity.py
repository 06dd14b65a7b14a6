"""Identities: anthropometry, linearity, variety."""

import numpy as np
import pytest

from models.procedural.head import ProceduralHead
from models.procedural.identity import (
    SHAPE_COUNT,
    TRAIT_COUNT,
    Identity,
    identity_basis,
    residual_field,
    sample_identity,
    shape_moments,
)
from models.procedural.traits import TRAITS


@pytest.fixture(scope="module")
def head():
    return ProceduralHead.build()


def with_trait(name, amount_mm):
    index = [trait.name for trait in TRAITS].index(name)
    trait = TRAITS[index]
    pooled = np.sqrt(0.5 * (trait.man[1] ** 2 + trait.woman[1] ** 2))
    shape = np.zeros(SHAPE_COUNT)
    shape[index] = amount_mm / pooled
    return Identity(shape)


def spans(head, identity):
    """Measured distances of a head (mm) that traits name."""
    v = head.neutral_mm(identity)
    marks = head.landmarks(v)
    skull = (head.mesh.part != 4) & (head.canonical_mm[:, 1] > 0.0)
    chin = v[np.argmin(np.abs(head.canonical_mm - [0.0, -113.0, 73.0]).sum(axis=1))]
    return {
        "mouth_width": marks[54, 0] - marks[48, 0],
        "interpupillary_distance": v[3931, 0] - v[4477, 0],
        "fissure_length": np.linalg.norm(marks[45] - marks[42]),
        "nose_length": marks[27, 1] - marks[33, 1],
        "lower_face_height": marks[33, 1] - chin[1],
        "head_breadth": np.ptp(v[skull][:, 0]),
        "head_length": np.ptp(v[skull & (head.canonical_mm[:, 1] < 40.0)][:, 2]),
        "upper_lid_opening": marks[43:45, 1].mean() - marks[[46, 47], 1].mean(),
    }


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("mouth_width", 0.7),
        ("interpupillary_distance", 0.85),
        ("fissure_length", 0.5),
        ("nose_length", 0.75),
        ("lower_face_height", 0.75),
        ("head_breadth", 0.8),
        ("head_length", 0.75),
        ("upper_lid_opening", 0.5),
    ],
)
def test_a_trait_moves_its_own_measurement(head, name, least):
    before = spans(head, Identity.mean())[name]
    after = spans(head, with_trait(name, 3.0))[name]
    assert 3.0 * least < after - before < 3.0 * 1.3


def test_mean_head_measures_like_an_adult(head):
    marks = head.landmarks(head.neutral_mm(Identity.mean()))
    outer = np.linalg.norm(marks[36] - marks[45])
    assert outer == pytest.approx(91.5, abs=1.0)  # FLAME's template
    assert np.linalg.norm(marks[39] - marks[42]) == pytest.approx(33.0, abs=1.5)
    assert marks[54, 0] - marks[48, 0] == pytest.approx(52.0, abs=2.0)
    nose = marks[30, 2] - marks[33, 2]
    assert 12.0 < nose < 22.0
    assert np.ptp(head.canonical_mm[head.mesh.part == 4][:, 1]) == pytest.approx(61.5, abs=4.0)


def test_head_is_linear_in_its_shape(head):
    rng = np.random.default_rng(0)
    a, b = sample_identity(rng), sample_identity(rng)
    mean = head.vertices(Identity.mean())
    half = Identity(0.5 * (a.shape + b.shape))
    expected = 0.5 * (head.vertices(a) + head.vertices(b))
    np.testing.assert_allclose(head.vertices(half), expected, atol=2e-7)
    np.testing.assert_allclose(head.vertices(Identity(np.zeros(SHAPE_COUNT))), mean)


def test_moments_describe_the_samples():
    mean, covariance = shape_moments()
    drawn = np.stack([sample_identity(np.random.default_rng(k)).shape for k in range(3000)])
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.12)
    sample = np.cov(drawn.T)
    np.testing.assert_allclose(np.diag(sample), np.diag(covariance), rtol=0.2)
    traits = sample[:TRAIT_COUNT, :TRAIT_COUNT] - covariance[:TRAIT_COUNT, :TRAIT_COUNT]
    assert np.abs(traits).max() < 0.4
    assert (np.linalg.eigvalsh(covariance) > 0.0).all()


def test_sampling_is_deterministic_and_varied(head):
    one, two = (sample_identity(np.random.default_rng([4, k])) for k in (1, 2))
    again = sample_identity(np.random.default_rng([4, 1]))
    np.testing.assert_array_equal(one.shape, again.shape)
    assert (one.sex, one.age_years) == (again.sex, again.age_years)
    face = head.masks["face"]
    gap = np.linalg.norm(head.vertices(one)[face] - head.vertices(two)[face], axis=1)
    assert 1.5e-3 < np.median(gap) < 15e-3


def test_men_and_women_differ_as_published():
    man, woman = Identity.mean("man"), Identity.mean("woman")
    for name in ("bigonial_breadth", "head_length", "nose_length", "neck_breadth", "brow_ridge"):
        assert man.measurement(name) > woman.measurement(name)
    assert man.measurement("upper_vermilion") < woman.measurement("upper_vermilion")
    assert man.measurement("bizygomatic_breadth") == pytest.approx(139.0)
    assert woman.measurement("bizygomatic_breadth") == pytest.approx(131.0)


def test_traits_are_sane():
    names = [trait.name for trait in TRAITS]
    assert len(set(names)) == len(names) >= 40
    for trait in TRAITS:
        assert trait.man[1] > 0.0
        assert trait.woman[1] > 0.0
        assert sum(value**2 for value in trait.loadings) < 1.0


def test_named_traits_are_mirror_symmetric_and_residual_is_slightly_not(head):
    points = head.canonical_mm
    basis = identity_basis(points)
    mirrored = basis[:, head.mesh.mirror] * [-1.0, 1.0, 1.0]
    np.testing.assert_allclose(basis[:TRAIT_COUNT], mirrored[:TRAIT_COUNT], atol=1e-6)
    residual = residual_field(points)
    odd = 0.5 * (residual - residual[:, head.mesh.mirror] * [-1.0, 1.0, 1.0])
    share = (odd**2).sum() / (residual**2).sum()
    assert 0.15 < share < 0.35
    rms = np.sqrt((residual**2).sum(axis=(0, 2)).mean())  # length of a sum of waves
    assert rms == pytest.approx(1.0, rel=0.2)


def test_eyeballs_stay_rigid(head):
    for seed in range(4):
        moved = head.neutral_mm(sample_identity(np.random.default_rng(seed)))
        for start in (3931, 4477):
            ball = slice(start, start + 546)
            shift = moved[ball] - head.canonical_mm[ball]
            np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-4)


def test_bad_identities_are_refused():
    with pytest.raises(ValueError, match="must have"):
        Identity(np.zeros(3))
    with pytest.raises(ValueError, match="must be one of"):
        Identity(np.zeros(SHAPE_COUNT), sex="x")
