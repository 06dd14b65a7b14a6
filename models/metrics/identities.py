"""How much a rendered reconstruction looks like the person, by an independent face encoder.

Source: Genova et al. 2018, sections 4.3 and 4.4. Let phi be the unit embedding of a face encoder
that took no part in training, and the rendering of a reconstruction have a fixed camera and light
and no expression.

* Similarity: the cosine between phi of the photograph and phi of its rendering.
* Earth mover's distance, in cosine units, between a method's similarities and those of all pairs
  of photographs of the same person, or of different people. Good is near the first and far from
  the second.
* Clustering recall: rank all photographs by their cosine to a rendering; the share of renderings
  with a photograph of the right person among the first k.

Departures: chance is exact (the paper prints k over the number of people, which is the same
where each has one photograph), and equal cosines count against the method, so that an encoder
that answers the same for everybody earns nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Genova's three measures of one method on one set of photographs.

    Attributes:
        cosines: Similarity of each rendering to its own photograph.
        same: Cosines of all pairs of photographs of one person.
        different: Cosines of all pairs of photographs of two people.
        ranks: Per rendering, from 1: place of the best photograph of the right person.
        emd_same: Earth mover's distance of ``cosines`` to ``same``; None without such pairs.
        emd_different: The same to ``different``.
        recall: Share of renderings with rank <= k, by k.
        chance: What a random order is expected to reach, by k.
    """

    cosines: Float[np.ndarray, " r"]
    same: Float[np.ndarray, " s"]
    different: Float[np.ndarray, " d"]
    ranks: Int[np.ndarray, " r"]
    emd_same: float | None
    emd_different: float | None
    recall: dict[int, float]
    chance: dict[int, float]


def unit(embedding: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows scaled to length one.

    Raises:
        ValueError: A row is zero or not finite.
    """
    values = np.asarray(embedding, np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
    if len(bad):
        raise ValueError(
            f"expected finite embeddings other than zero, got {len(bad)} of {len(values)} "
            f"(the first is row {bad[0]}); check the encoder's weights"
        )
    return values / length


def earth_movers_distance(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """Wasserstein-1 distance of two sets of numbers, each with equal weights.

    The integral of |F_a - F_b| over the line, F being the cumulative share; in the unit of the
    numbers.

    Raises:
        ValueError: A set is empty or not finite.
    """
    if not len(a) or not len(b) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            f"earth_movers_distance needs two sets of finite numbers, got {len(a)} and {len(b)}"
        )
    a, b = np.sort(a), np.sort(b)
    at = np.sort(np.concatenate([a, b]))
    share_a = np.searchsorted(a, at[:-1], "right") / len(a)
    share_b = np.searchsorted(b, at[:-1], "right") / len(b)
    return float(np.abs(share_a - share_b) @ np.diff(at))


def pair_cosines(
    photographs: Float[np.ndarray, "n d"], people: Sequence[str]
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " d2"]]:
    """Cosines of all pairs of photographs: of one person, of two people.

    Args:
        photographs: Unit embeddings, see :func:`unit`.
        people: Who is on each.
    """
    cosine = photographs @ photographs.T
    number = np.unique(np.asarray(people), return_inverse=True)[1]
    first, second = np.triu_indices(len(number), 1)
    alike = number[first] == number[second]
    values = np.clip(cosine[first, second], -1.0, 1.0)
    return values[alike], values[~alike]


def ranks_of_person(
    cosines: Float[np.ndarray, "r n"], wanted: Sequence[str], people: Sequence[str]
) -> Int[np.ndarray, " r"]:
    """Place, from 1, of the best photograph of the right person in each rendering's ranking.

    Args:
        cosines: Rows are renderings, columns photographs.
        wanted: Whose reconstruction each rendering shows.
        people: Who is on each photograph.

    Raises:
        ValueError: A wanted person is on no photograph.
    """
    right = np.asarray(wanted)[:, None] == np.asarray(people)[None]
    absent = np.flatnonzero(~right.any(axis=1))
    if len(absent):
        raise ValueError(
            f"expected a photograph of everybody rendered, got none of {wanted[absent[0]]!r}"
        )
    best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
    ahead = (~right & (cosines >= best)).sum(axis=1)
    return ahead.astype(np.int64) + 1


def chance_of_recall(wanted: Sequence[str], people: Sequence[str], k: int) -> float:
    """Expected recall of a random order: the mean of 1 - C(n - m, k) / C(n, k).

    n is the number of photographs, m that of the right person's.
    """
    total = len(people)
    if not wanted:
        return 0.0
    counts = dict(zip(*np.unique(np.asarray(people), return_counts=True), strict=True))
    misses = []
    for person in wanted:
        wrong = total - int(counts.get(person, 0))
        miss = 1.0
        for drawn in range(min(k, total)):
            miss *= max(wrong - drawn, 0) / (total - drawn)
        misses.append(miss)
    return float(1.0 - np.mean(misses))


def likeness(
    photographs: Float[np.ndarray, "n d"],
    people: Sequence[str],
    renderings: Float[np.ndarray, "r d"],
    own: Int[np.ndarray, " r"],
    ks: Sequence[int] = (1, 5),
) -> Likeness:
    """Measure the renderings of one method.

    Args:
        photographs: Embeddings of all photographs, of any length but zero.
        people: Who is on each photograph.
        renderings: Embeddings of the renderings.
        own: Row of the photograph that each rendering was reconstructed from.
        ks: Depths of the recall.

    Raises:
        ValueError: There is no rendering, an embedding is unusable, or the counts differ.
    """
    if len(people) != len(photographs) or len(own) != len(renderings) or not len(renderings):
        raise ValueError(
            f"expected a person per photograph and a photograph per rendering, got {len(people)} "
            f"for {len(photographs)} and {len(own)} for {len(renderings)}"
        )
    photos, drawn = unit(photographs), unit(renderings)
    cosines = np.clip(drawn @ photos.T, -1.0, 1.0)
    wanted = [people[row] for row in own]
    mine = cosines[np.arange(len(own)), own]
    same, different = pair_cosines(photos, people)
    ranks = ranks_of_person(cosines, wanted, people)
    return Likeness(
        cosines=mine,
        same=same,
        different=different,
        ranks=ranks,
        emd_same=earth_movers_distance(mine, same) if len(same) else None,
        emd_different=earth_movers_distance(mine, different) if len(different) else None,
        recall={k: float(np.mean(ranks <= k)) for k in ks},
        chance={k: chance_of_recall(wanted, people, k) for k in ks},
    )
