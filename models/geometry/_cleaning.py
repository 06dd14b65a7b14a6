"""Compiled checks of a triangle mesh: what is wrong with it, and where."""

import numba
import numpy as np
from numpy.typing import NDArray

HUB = 512
"""Triangles around one vertex beyond which it is called non-manifold without a look."""
THIN = 1e-12
"""Twice the area over the squared longest edge below which a triangle has no area."""

DEGENERATE, DOUBLED_FACES, EDGES, WINDING, FANS, LOOSE = range(6)


@numba.njit(cache=True)
def _area(vertices: NDArray[np.float64], a: int, b: int, c: int) -> tuple[float, float]:
    """Twice the area of a triangle, and its longest edge squared."""
    ux = vertices[b, 0] - vertices[a, 0]
    uy = vertices[b, 1] - vertices[a, 1]
    uz = vertices[b, 2] - vertices[a, 2]
    vx = vertices[c, 0] - vertices[a, 0]
    vy = vertices[c, 1] - vertices[a, 1]
    vz = vertices[c, 2] - vertices[a, 2]
    nx = uy * vz - uz * vy
    ny = uz * vx - ux * vz
    nz = ux * vy - uy * vx
    wx, wy, wz = vx - ux, vy - uy, vz - uz
    longest = max(
        ux * ux + uy * uy + uz * uz, vx * vx + vy * vy + vz * vz, wx * wx + wy * wy + wz * wz
    )
    return np.sqrt(nx * nx + ny * ny + nz * nz), longest


@numba.njit(cache=True)
def find_defects(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Numbers of degenerate and doubled triangles, bad edges, winding breaks, fans, loose vertices.

    Also which triangles have an area, and at which vertices the surface is no manifold.

    The corners around each vertex are gathered once. An edge is bad where more than two triangles
    share it, a winding break where its two triangles run along it the same way; every fan of
    triangles beyond the first around a vertex counts.
    """
    count, triangles = vertices.shape[0], faces.shape[0]
    found = np.zeros(6, dtype=np.int64)
    bad = np.zeros(count, dtype=np.bool_)
    start = np.zeros(count + 1, dtype=np.int64)
    sound = np.ones(triangles, dtype=np.bool_)
    for f in range(triangles):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        start[a + 1] += 1
        start[b + 1] += 1
        start[c + 1] += 1
        if a == b or b == c or c == a:
            sound[f] = False
        else:
            doubled, longest = _area(vertices, a, b, c)
            sound[f] = doubled > THIN * longest
        if not sound[f]:
            found[DEGENERATE] += 1
    for v in range(count):
        if start[v + 1] == 0:
            found[LOOSE] += 1
        start[v + 1] += start[v]
    fill = start[:-1].copy()
    ends = np.empty((2, 3 * triangles), dtype=np.int32)
    for f in range(triangles):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        for v, after, before in ((a, b, c), (b, c, a), (c, a, b)):
            ends[0, fill[v]] = after
            ends[1, fill[v]] = before
            fill[v] += 1
    if found[DEGENERATE] > 0:
        return found, sound, bad  # what follows is about triangles that have an area
    for v in range(count):
        low, high = start[v], start[v + 1]
        if high - low > HUB:
            found[FANS] += 1
            bad[v] = True
            continue
        _around(v, ends[0, low:high], ends[1, low:high], found, bad)
    return found, sound, bad


@numba.njit(cache=True)
def _count_fans(after: NDArray[np.int32], before: NDArray[np.int32]) -> int:
    """Fans of triangles around a vertex whose edges are all regular."""
    size = after.shape[0]
    walked = np.zeros(size, dtype=np.bool_)
    fans = 0
    for first in range(size):
        if walked[first]:
            continue
        fans += 1
        for forward in (True, False):
            at, going = first, True
            while going:
                walked[at] = True
                going = False
                for j in range(size):
                    follows = after[j] == before[at] if forward else before[j] == after[at]
                    if follows and not walked[j]:
                        at, going = j, True
                        break
    return fans


@numba.njit(cache=True)
def _one_fan(after: NDArray[np.int32], before: NDArray[np.int32]) -> bool:
    """Whether a walk from the first triangle, on and then back, meets all of them."""
    size = after.shape[0]
    walked, at, going, closed = 1, 0, True, False
    while going:
        going = False
        for j in range(size):
            if after[j] == before[at]:
                closed = j == 0
                if not closed:
                    at, walked, going = j, walked + 1, True
                break
    at, going = 0, not closed
    while going:
        going = False
        for j in range(size):
            if before[j] == after[at]:
                at, walked, going = j, walked + 1, True
                break
    return walked == size


@numba.njit(cache=True)
def _around(
    v: int,
    after: NDArray[np.int32],
    before: NDArray[np.int32],
    found: NDArray[np.int64],
    bad: NDArray[np.bool_],
) -> None:
    """Check the triangles around one vertex; each edge and triangle counts at its lowest vertex."""
    size = after.shape[0]
    # Most vertices: no neighbour comes twice on one side, and all triangles follow each other.
    plain = True
    links = 0
    for i in range(size):
        for j in range(i):
            turned = after[i] == before[j] and before[i] == after[j]
            if after[i] == after[j] or before[i] == before[j] or turned:
                plain = False
            if after[i] == before[j]:
                links += 1
            if before[i] == after[j]:
                links += 1
    if plain and links >= size - 1 and (size < 4 or _one_fan(after, before)):
        return
    regular = True
    for i in range(size):
        for u in (after[i], before[i]):
            shared = 0
            outward = 0
            seen = False
            for j in range(size):
                if after[j] == u:
                    shared += 1
                    outward += 1
                    seen = seen or j < i
                if before[j] == u:
                    shared += 1
                    seen = seen or j < i
            if shared > 2:
                regular = False
                bad[v] = True
                if v < u and not seen:
                    found[EDGES] += 1
            elif shared == 2 and outward != 1:
                regular = False
                if v < u and not seen:
                    found[WINDING] += 1
        if v < after[i] and v < before[i]:
            for j in range(i):
                same = after[i] == after[j] and before[i] == before[j]
                turned = after[i] == before[j] and before[i] == after[j]
                if same or turned:
                    found[DOUBLED_FACES] += 1
                    bad[v] = bad[after[i]] = bad[before[i]] = True
                    break
    if regular and size > 0:
        fans = _count_fans(after, before)
        if fans > 1:
            found[FANS] += fans - 1
            bad[v] = True


@numba.njit(cache=True)
def turned_faces(count: int, faces: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which triangles to turn over so that each piece is wound as its first triangle is.

    Goes from triangle to triangle across the edges that exactly two share.
    """
    triangles = faces.shape[0]
    start = np.zeros(count + 1, dtype=np.int64)
    for f in range(triangles):
        for k in range(3):
            start[faces[f, k] + 1] += 1
    for v in range(count):
        start[v + 1] += start[v]
    fill = start[:-1].copy()
    owner = np.empty(3 * triangles, dtype=np.int32)
    for f in range(triangles):
        for k in range(3):
            v = faces[f, k]
            owner[fill[v]] = f
            fill[v] += 1
    turned = np.zeros(triangles, dtype=np.bool_)
    reached = np.zeros(triangles, dtype=np.bool_)
    stack = np.empty(triangles, dtype=np.int32)
    for seed in range(triangles):
        if reached[seed]:
            continue
        reached[seed] = True
        stack[0] = seed
        top = 1
        while top > 0:
            top -= 1
            f = stack[top]
            for k in range(3):
                a, b = faces[f, k], faces[f, (k + 1) % 3]
                shared, other, same = 0, -1, False
                for slot in range(start[a], start[a + 1]):
                    g = owner[slot]
                    for m in range(3):
                        c, d = faces[g, m], faces[g, (m + 1) % 3]
                        if (c == a and d == b) or (c == b and d == a):
                            shared += 1
                            if g != f:
                                other, same = g, c == a
                if shared == 2 and other >= 0 and not reached[other]:
                    reached[other] = True
                    turned[other] = turned[f] != same
                    stack[top] = other
                    top += 1
    return turned


@numba.njit(cache=True)
def same_positions(vertices: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """The first vertex at each vertex's exact position, and how many have an earlier one."""
    count = vertices.shape[0]
    size = 16
    while size < 2 * count:
        size *= 2
    slots = np.full(size, -1, dtype=np.int64)
    bits = (vertices + 0.0).view(np.uint64)  # minus zero becomes zero
    earliest = np.arange(count)
    found = 0
    for i in range(count):
        h = np.uint64(0)
        for k in range(3):
            h = (h ^ bits[i, k]) * np.uint64(0x9E3779B97F4A7C15)
            h ^= h >> np.uint64(29)
        slot = np.int64(h & np.uint64(size - 1))
        while slots[slot] >= 0:
            j = slots[slot]
            if (
                vertices[j, 0] == vertices[i, 0]
                and vertices[j, 1] == vertices[i, 1]
                and vertices[j, 2] == vertices[i, 2]
            ):
                earliest[i] = j
                found += 1
                break
            slot = (slot + 1) & (size - 1)
        if slots[slot] < 0:
            slots[slot] = i
    return earliest, found


@numba.njit(cache=True)
def label_pieces(count: int, faces: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Connected piece of each triangle (by shared vertices), and how many there are."""
    parent = np.arange(count)
    for f in range(faces.shape[0]):
        for k in range(2):
            a, b = faces[f, k], faces[f, k + 1]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a < b:
                parent[b] = a
            else:
                parent[a] = b
    number = np.full(count, -1, dtype=np.int64)
    label = np.empty(faces.shape[0], dtype=np.int64)
    pieces = 0
    for f in range(faces.shape[0]):
        a = faces[f, 0]
        while parent[a] != a:
            a = parent[a]
        if number[a] < 0:
            number[a] = pieces
            pieces += 1
        label[f] = number[a]
    return label, pieces
