"""What the generators of Binghamton's two sets share: 83 points per scan, quads in a mesh."""

import numpy as np
from jaxtyping import Float, Int

_EYES, _BROWS = (range(36, 42), range(42, 48)), (range(17, 22), range(22, 27))
_NOSE, _OUTER, _INNER, _JAW = range(27, 36), range(48, 60), range(60, 68), range(17)


def points83(landmarks: Float[np.ndarray, "68 3"]) -> Float[np.ndarray, "83 3"]:
    """Return 83 points in groups like the owner's: eyes, brows, nose, lips, jaw.

    Where the owner's points begin within a group is not public; ours are iBUG's, resampled.
    """
    groups = [(places, 8, True) for places in _EYES]
    groups += [(places, 10, False) for places in _BROWS]
    groups += [(_NOSE, 12, False), (_OUTER, 12, True), (_INNER, 8, True), (_JAW, 15, False)]
    return np.concatenate([_along(landmarks[list(p)], n, closed) for p, n, closed in groups])


def _along(points: Float[np.ndarray, "k 3"], count: int, closed: bool) -> Float[np.ndarray, "n 3"]:
    """``count`` points at equal steps of the index along a line, or around a closed one."""
    if closed:
        points = np.concatenate([points, points[:1]])
    place = np.linspace(0.0, len(points) - 1.0, count + 1)[:-1] if closed else None
    if place is None:
        place = np.linspace(0.0, len(points) - 1.0, count)
    low = np.minimum(place.astype(int), len(points) - 2)
    return points[low] + (place - low)[:, None] * (points[low + 1] - points[low])


def with_quads(faces: Int[np.ndarray, "f 3"]) -> list[Int[np.ndarray, "f k"]]:
    """Join each triangle with the next in the list where both are fans of one corner.

    Returns:
        Quads, then the triangles that are left; fanning the quads gives the triangles back.
    """
    first, second = faces[:-1], faces[1:]
    fits = np.zeros(len(first), dtype=bool)
    quads = np.zeros((len(first), 4), dtype=np.int64)
    for one in range(3):
        a = np.roll(first, -one, axis=1)
        for other in range(3):
            b = np.roll(second, -other, axis=1)
            fan = (a[:, 0] == b[:, 0]) & (a[:, 2] == b[:, 1]) & ~fits
            quads[fan] = np.concatenate([a[fan], b[fan, 2:]], axis=1)
            fits |= fan
    taken = np.zeros(len(faces), dtype=bool)
    chosen = []
    for k in np.flatnonzero(fits).tolist():
        if not taken[k]:
            taken[k : k + 2] = True
            chosen.append(k)
    return [quads[chosen], faces[~taken]]
