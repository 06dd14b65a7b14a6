"""Genova's likeness measures: the micro-checks of the papers, closed forms, a slow twin."""

from math import comb

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from models.metrics.identities import (
    chance_of_recall,
    earth_movers_distance,
    likeness,
    pair_cosines,
    ranks_of_person,
    unit,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_renderings_equal_to_the_photographs_have_cosine_and_recall_one(
    rng: np.random.Generator,
) -> None:
    photos = rng.normal(size=(12, 6))
    people = [f"p{i // 3}" for i in range(12)]
    found = likeness(photos, people, 2.5 * photos, np.arange(12))
    assert found.cosines == pytest.approx(1.0)
    assert found.recall == {1: 1.0, 5: 1.0}
    assert (found.ranks == 1).all()


def test_earth_movers_distance_of_a_shifted_set_is_the_shift(rng: np.random.Generator) -> None:
    values = rng.normal(size=31)
    assert earth_movers_distance(values, values) == 0.0
    for shift in (0.3, -1.25):
        moved = earth_movers_distance(values, values + shift)
        assert moved == pytest.approx(abs(shift), abs=1e-12)


def test_earth_movers_distance_of_equal_counts_pairs_the_sorted(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=40), rng.uniform(size=40)
    expected = np.abs(np.sort(a) - np.sort(b)).mean()
    assert earth_movers_distance(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 50), (200, 7)])
def test_earth_movers_distance_agrees_with_scipy(n: int, m: int, rng: np.random.Generator) -> None:
    a, b = rng.normal(size=n), rng.normal(1.0, 2.0, size=m)
    assert earth_movers_distance(a, b) == pytest.approx(wasserstein_distance(a, b), abs=1e-12)
    assert earth_movers_distance(b, a) == pytest.approx(earth_movers_distance(a, b), abs=1e-12)


def test_repeating_every_number_changes_no_distance(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=5), rng.normal(size=8)
    assert earth_movers_distance(np.repeat(a, 3), b) == pytest.approx(earth_movers_distance(a, b))


def test_pairs_are_every_pair_once() -> None:
    photos = unit(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    same, different = pair_cosines(photos, ["a", "a", "b"])
    assert same == pytest.approx([np.sqrt(0.5)])
    assert sorted(different) == pytest.approx([0.0, np.sqrt(0.5)])


def test_ranks_agree_with_sorting(rng: np.random.Generator) -> None:
    cosines = rng.normal(size=(20, 30))
    people = [f"p{i % 7}" for i in range(30)]
    wanted = [f"p{i % 7}" for i in range(20)]
    ranks = ranks_of_person(cosines, wanted, people)
    for row, person, rank in zip(cosines, wanted, ranks, strict=True):
        order = [people[i] for i in np.argsort(-row)]
        assert rank == order.index(person) + 1


def test_an_encoder_that_says_the_same_for_all_earns_nothing() -> None:
    photos = np.ones((6, 4))
    people = ["a", "a", "b", "b", "c", "c"]
    found = likeness(photos, people, np.ones((6, 4)), np.arange(6), ks=(1, 4, 5))
    assert (found.ranks == 5).all()  # behind the four photographs of others
    assert found.recall == {1: 0.0, 4: 0.0, 5: 1.0}


def test_chance_is_hypergeometric_and_k_over_people_with_one_photograph_each() -> None:
    people = [f"p{i}" for i in range(50)]
    assert chance_of_recall(people, people, 1) == pytest.approx(1 / 50)
    assert chance_of_recall(people, people, 5) == pytest.approx(5 / 50)
    crowd = ["a"] * 4 + ["b"] * 6
    expected = 1 - np.mean([comb(6, 3) / comb(10, 3), comb(4, 3) / comb(10, 3)])
    assert chance_of_recall(["a", "b"], crowd, 3) == pytest.approx(expected)
    assert chance_of_recall(["a"], crowd, 99) == 1.0


def test_a_random_order_reaches_chance(rng: np.random.Generator) -> None:
    people = ["a"] * 3 + ["b"] * 9 + ["c"] * 8
    wanted = ["a", "b", "c"] * 1000
    ranks = ranks_of_person(rng.uniform(size=(3000, 20)), wanted, people)
    for k in (1, 5):
        expected = chance_of_recall(wanted, people, k)
        assert np.mean(ranks <= k) == pytest.approx(expected, abs=0.03)  # three standard errors


def test_a_set_of_one_person_has_no_different_pairs(rng: np.random.Generator) -> None:
    photos = rng.normal(size=(3, 4))
    found = likeness(photos, ["a"] * 3, photos, np.arange(3))
    assert found.emd_different is None
    assert found.emd_same is not None


def test_bad_input_is_said() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 \(the first is row 1\)"):
        unit(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="two sets of finite numbers, got 0 and 2"):
        earth_movers_distance(np.zeros(0), np.zeros(2))
    with pytest.raises(ValueError, match="got none of 'c'"):
        ranks_of_person(np.zeros((1, 2)), ["c"], ["a", "b"])
    with pytest.raises(ValueError, match="a photograph per rendering"):
        likeness(np.ones((2, 3)), ["a", "b"], np.ones((2, 3)), np.array([0]))
