"""Compiled kernels of the closest-point query: a bounding volume hierarchy over triangles.

The tree is a median split over the widest axis of the triangle centroids. All arithmetic is
float64 and runs on one thread, so that answers do not depend on a worker's core count. The
point-triangle distance is the Voronoi-region case analysis of Ericson, "Real-Time Collision
Detection" (2005), section 5.1.5.
"""

import numba
import numpy as np
from numpy.typing import NDArray

LEAF_SIZE = 1
_STACK = 128
_SLACK = 1.0 + 1e-9
"""A box is left aside only when it is farther than rounding explains, so that of triangles that are
equally close but for rounding the same one answers whatever the tree looks like."""
_MOST_TESTS = 256
"""Triangles tested for one query from which a search stops looking for ties: a mesh so small for
its distance that rounding hides its shape would have all of them tested."""
_MARGIN_TESTS = 64
"""Triangles tested for one query from which a tracker's search gives up its margin: a mesh not much
larger than the margin would have all of them tested, for every query and at every step."""


@numba.njit(cache=True)
def _select(order: NDArray[np.int64], keys: NDArray[np.float64], lo: int, hi: int, k: int) -> None:
    """Reorder ``order[lo:hi]`` so that position ``k`` splits it by ``keys`` (quickselect)."""
    hi -= 1
    while lo < hi:
        pivot = keys[order[(lo + hi) // 2]]
        i = lo
        j = hi
        while i <= j:
            while keys[order[i]] < pivot:
                i += 1
            while keys[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if k <= j:
            hi = j
        elif k >= i:
            lo = i
        else:
            return


@numba.njit(cache=True)
def build(
    triangles: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Build the tree over ``triangles`` (F, 3, 3).

    Returns:
        ``order`` (F,): triangle ids in leaf order. ``bounds`` (M, 6): lower then upper corner of
        each node. ``nodes`` (M, 2): (first child, 0) for an inner node, whose children are
        adjacent, and (first position in ``order``, count) for a leaf.
    """
    count = triangles.shape[0]
    order = np.arange(count)
    centroids = np.empty((3, count))
    for f in range(count):
        for a in range(3):
            centroids[a, f] = triangles[f, 0, a] + triangles[f, 1, a] + triangles[f, 2, a]
    capacity = 2 * count + 1
    bounds = np.empty((capacity, 6))
    nodes = np.empty((capacity, 2), dtype=np.int64)
    stack = np.empty((_STACK, 3), dtype=np.int64)
    used = 1
    top = 1
    stack[0, 0] = 0
    stack[0, 1] = 0
    stack[0, 2] = count
    while top > 0:
        top -= 1
        node = stack[top, 0]
        start = stack[top, 1]
        end = stack[top, 2]
        for a in range(3):
            low = np.inf
            high = -np.inf
            for i in range(start, end):
                for c in range(3):
                    value = triangles[order[i], c, a]
                    low = min(low, value)
                    high = max(high, value)
            bounds[node, a] = low
            bounds[node, 3 + a] = high
        if end - start <= LEAF_SIZE:
            nodes[node, 0] = start
            nodes[node, 1] = end - start
            continue
        axis = 0
        widest = -1.0
        for a in range(3):
            low = np.inf
            high = -np.inf
            for i in range(start, end):
                value = centroids[a, order[i]]
                low = min(low, value)
                high = max(high, value)
            if high - low > widest:
                widest = high - low
                axis = a
        middle = (start + end) // 2
        _select(order, centroids[axis], start, end, middle)
        nodes[node, 0] = used
        nodes[node, 1] = 0
        stack[top, 0] = used
        stack[top, 1] = start
        stack[top, 2] = middle
        stack[top + 1, 0] = used + 1
        stack[top + 1, 1] = middle
        stack[top + 1, 2] = end
        top += 2
        used += 2
    return order, bounds[:used].copy(), nodes[:used].copy()


@numba.njit(cache=True)
def refit(triangles: NDArray[np.float64], nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bounds (M, 6) of a tree whose triangles (F, 3, 3), in leaf order, have moved.

    Children come after their parent, so one backward pass does.
    """
    bounds = np.empty((nodes.shape[0], 6))
    for node in range(nodes.shape[0] - 1, -1, -1):
        first = nodes[node, 0]
        leaf = nodes[node, 1]
        for a in range(3):
            low = np.inf
            high = -np.inf
            if leaf > 0:
                for j in range(first, first + leaf):
                    for c in range(3):
                        low = min(low, triangles[j, c, a])
                        high = max(high, triangles[j, c, a])
            else:
                low = min(bounds[first, a], bounds[first + 1, a])
                high = max(bounds[first, 3 + a], bounds[first + 1, 3 + a])
            bounds[node, a] = low
            bounds[node, 3 + a] = high
    return bounds


@numba.njit(cache=True, inline="always")
def _box_distance(px: float, py: float, pz: float, box: NDArray[np.float64]) -> float:
    """Squared distance from a point to an axis-aligned box."""
    dx = max(box[0] - px, 0.0, px - box[3])
    dy = max(box[1] - py, 0.0, py - box[4])
    dz = max(box[2] - pz, 0.0, pz - box[5])
    return dx * dx + dy * dy + dz * dz


@numba.njit(cache=True, inline="always")
def _on_segment(
    px: float, py: float, pz: float, a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[float, float]:
    """Parameter of the closest point on segment ab, and its squared distance."""
    ex = b[0] - a[0]
    ey = b[1] - a[1]
    ez = b[2] - a[2]
    length = ex * ex + ey * ey + ez * ez
    t = 0.0
    if length > 0.0:
        t = ((px - a[0]) * ex + (py - a[1]) * ey + (pz - a[2]) * ez) / length
        t = min(1.0, max(0.0, t))
    dx = a[0] + t * ex - px
    dy = a[1] + t * ey - py
    dz = a[2] + t * ez - pz
    return t, dx * dx + dy * dy + dz * dz


@numba.njit(cache=True)
def _point_triangle(
    px: float, py: float, pz: float, triangle: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Squared distance and barycentric weights of the closest point of a triangle."""
    a = triangle[0]
    b = triangle[1]
    c = triangle[2]
    abx = b[0] - a[0]
    aby = b[1] - a[1]
    abz = b[2] - a[2]
    acx = c[0] - a[0]
    acy = c[1] - a[1]
    acz = c[2] - a[2]
    nx = aby * acz - abz * acy
    ny = abz * acx - abx * acz
    nz = abx * acy - aby * acx
    area = nx * nx + ny * ny + nz * nz
    ab_len = abx * abx + aby * aby + abz * abz
    ac_len = acx * acx + acy * acy + acz * acz
    if area > 1e-24 * ab_len * ac_len:
        qx = px - a[0]
        qy = py - a[1]
        qz = pz - a[2]
        # Barycentric weights of the projection onto the plane, by signed sub-areas.
        v = (
            nx * (qy * acz - qz * acy) + ny * (qz * acx - qx * acz) + nz * (qx * acy - qy * acx)
        ) / area
        w = (
            nx * (aby * qz - abz * qy) + ny * (abz * qx - abx * qz) + nz * (abx * qy - aby * qx)
        ) / area
        if v >= 0.0 and w >= 0.0 and v + w <= 1.0:
            height = nx * qx + ny * qy + nz * qz
            return height * height / area, 1.0 - v - w, v, w
    t_ab, d_ab = _on_segment(px, py, pz, a, b)
    t_ac, d_ac = _on_segment(px, py, pz, a, c)
    t_bc, d_bc = _on_segment(px, py, pz, b, c)
    if d_ab <= d_ac and d_ab <= d_bc:
        return d_ab, 1.0 - t_ab, t_ab, 0.0
    if d_ac <= d_bc:
        return d_ac, 1.0 - t_ac, 0.0, t_ac
    return d_bc, 0.0, 1.0 - t_bc, t_bc


@numba.njit(cache=True, inline="always")
def _farther(
    px: float, py: float, pz: float, triangle: NDArray[np.float64], squared: float
) -> bool:
    """Whether a triangle is certainly farther from a point than a squared distance.

    Along the direction w from corner a to the point, the triangle ends m / |w| before a, with m the
    largest of 0, w . (b - a) and w . (c - a); so its distance is at least (w . w - m) / |w|.
    """
    ax = triangle[0, 0]
    ay = triangle[0, 1]
    az = triangle[0, 2]
    wx = px - ax
    wy = py - ay
    wz = pz - az
    b = wx * (triangle[1, 0] - ax) + wy * (triangle[1, 1] - ay) + wz * (triangle[1, 2] - az)
    c = wx * (triangle[2, 0] - ax) + wy * (triangle[2, 1] - ay) + wz * (triangle[2, 2] - az)
    length = wx * wx + wy * wy + wz * wz
    least = length - max(0.0, b, c)
    return least > 0.0 and least * least > squared * _SLACK * length


@numba.njit(cache=True)
def query(
    points: NDArray[np.float64],
    triangles: NDArray[np.float64],
    order: NDArray[np.int64],
    bounds: NDArray[np.float64],
    nodes: NDArray[np.int64],
    limit: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], int]:
    """Closest point of each query within ``limit``.

    The search starts from the distance of the triangle that answered the query before, which is
    near where queries come in spatial order. Answers do not depend on it.

    Args:
        points: (N, 3) queries.
        triangles: (F, 3, 3) corners in leaf order.
        order: (F,) original id of each triangle.
        bounds: (M, 6) node boxes.
        nodes: (M, 2) node links.
        limit: Search radius; may be infinite.

    Returns:
        Squared distances (N,), inf where nothing lies within the limit; face ids (N,), -1 there;
        barycentric weights (N, 3); how many triangles were tested.
    """
    count = points.shape[0]
    squared = np.full(count, np.inf)
    faces = np.full(count, -1, dtype=np.int64)
    bary = np.zeros((count, 3))
    stack = np.empty(_STACK, dtype=np.int64)
    stack_distance = np.empty(_STACK)
    radius = limit * limit
    before = 0
    tests = 0
    for i in range(count):
        px = points[i, 0]
        py = points[i, 1]
        pz = points[i, 2]
        best = radius
        found = -1
        b0 = 0.0
        b1 = 0.0
        b2 = 0.0
        d, u, v, w = _point_triangle(px, py, pz, triangles[before])
        if d <= best:
            best = d
            found = order[before]
            b0 = u
            b1 = v
            b2 = w
        stack[0] = 0
        stack_distance[0] = _box_distance(px, py, pz, bounds[0])
        top = 1
        tested = 1
        while top > 0:
            top -= 1
            if stack_distance[top] > best * _SLACK:
                continue
            if tested > _MOST_TESTS and stack_distance[top] >= best:
                continue
            node = stack[top]
            first = nodes[node, 0]
            leaf = nodes[node, 1]
            if leaf > 0:
                for j in range(first, first + leaf):
                    if _farther(px, py, pz, triangles[j], best):
                        continue
                    tested += 1
                    d, u, v, w = _point_triangle(px, py, pz, triangles[j])
                    if d < best or (d == best and (found < 0 or order[j] < found)):
                        best = d
                        found = order[j]
                        before = j
                        b0 = u
                        b1 = v
                        b2 = w
                continue
            left = _box_distance(px, py, pz, bounds[first])
            right = _box_distance(px, py, pz, bounds[first + 1])
            if left <= right:
                stack[top] = first + 1
                stack_distance[top] = right
                stack[top + 1] = first
                stack_distance[top + 1] = left
            else:
                stack[top] = first
                stack_distance[top] = left
                stack[top + 1] = first + 1
                stack_distance[top + 1] = right
            top += 2
        tests += tested
        if found >= 0:
            squared[i] = best
            faces[i] = found
            bary[i, 0] = b0
            bary[i, 1] = b1
            bary[i, 2] = b2
    return squared, faces, bary, tests


@numba.njit(cache=True)
def track(
    points: NDArray[np.float64],
    triangles: NDArray[np.float64],
    order: NDArray[np.int64],
    bounds: NDArray[np.float64],
    nodes: NDArray[np.int64],
    margin: float,
    places: NDArray[np.int64],
    origins: NDArray[np.float64],
    others: NDArray[np.float64],
    near: NDArray[np.int32],
    near_distances: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], int]:
    """Closest point of queries that have moved a little since they were searched for.

    Of each query the last search left the triangles that were nearly as close as the answer, and a
    distance that no other triangle was nearer than. A query that has moved by m finds its answer
    among those while its distance plus m is below that distance; else it is searched for again.

    Args:
        points: (N, 3) queries.
        triangles: (F, 3, 3) corners in leaf order.
        order: (F,) original id of each triangle.
        bounds: (M, 6) node boxes.
        nodes: (M, 2) node links.
        margin: How far beyond the answer a search looks for further triangles.
        places: (N,) the answers' positions in leaf order; changed.
        origins: (N, 3) the queries when they were searched for, at first inf; changed.
        others: (N,) distance that no triangle outside the list was nearer than; changed.
        near: (N, K) list of nearly as close triangles, by distance, ended by -1; changed.
        near_distances: (N, K) their distances; changed.

    Returns:
        Squared distances (N,), surface points (N, 3), face ids (N,), barycentric weights (N, 3);
        how many triangles were tested.
    """
    count = points.shape[0]
    most = near.shape[1]
    squared = np.empty(count)
    surface = np.empty((count, 3))
    faces = np.empty(count, dtype=np.int64)
    bary = np.empty((count, 3))
    stack = np.empty(_STACK, dtype=np.int64)
    stack_distance = np.empty(_STACK)
    before = 0
    tests = count
    for i in range(count):
        px = points[i, 0]
        py = points[i, 1]
        pz = points[i, 2]
        fresh = np.isinf(origins[i, 0])
        start = before if fresh else places[i]
        place = start
        best, b0, b1, b2 = _point_triangle(px, py, pz, triangles[place])
        if not fresh:
            dx = px - origins[i, 0]
            dy = py - origins[i, 1]
            dz = pz - origins[i, 2]
            moved = np.sqrt(dx * dx + dy * dy + dz * dz)
            for k in range(most):
                j = near[i, k]
                if j < 0 or (np.sqrt(best) + moved) * _SLACK < near_distances[i, k]:
                    break
                if j == start:
                    continue
                tests += 1
                d, u, v, w = _point_triangle(px, py, pz, triangles[j])
                if d < best or (d == best and order[j] < order[place]):
                    best = d
                    place = j
                    b0 = u
                    b1 = v
                    b2 = w
            fresh = (np.sqrt(best) + moved) * _SLACK >= others[i]
        if fresh:
            reach = (np.sqrt(best) + margin) ** 2
            listed = 1
            near[i, 0] = place
            near_distances[i, 0] = best
            left_out = np.inf
            first_place = place
            stack[0] = 0
            stack_distance[0] = _box_distance(px, py, pz, bounds[0])
            top = 1
            tested = 0
            while top > 0:
                top -= 1
                if tested > _MARGIN_TESTS:
                    reach = best * _SLACK
                if stack_distance[top] > reach:
                    continue
                if tested > _MOST_TESTS and stack_distance[top] >= best:
                    continue
                node = stack[top]
                first = nodes[node, 0]
                leaf = nodes[node, 1]
                if leaf > 0:
                    for j in range(first, first + leaf):
                        if j == first_place or _farther(px, py, pz, triangles[j], reach):
                            continue
                        tested += 1
                        d, u, v, w = _point_triangle(px, py, pz, triangles[j])
                        if d > reach:
                            continue
                        if d < best or (d == best and order[j] < order[place]):
                            best = d
                            place = j
                            b0 = u
                            b1 = v
                            b2 = w
                            reach = min(reach, (np.sqrt(best) + margin) ** 2)
                        if listed == most:
                            left_out = min(left_out, max(d, near_distances[i, most - 1]))
                            if d >= near_distances[i, most - 1]:
                                continue
                            listed -= 1
                        k = listed
                        while k > 0 and near_distances[i, k - 1] > d:
                            near_distances[i, k] = near_distances[i, k - 1]
                            near[i, k] = near[i, k - 1]
                            k -= 1
                        near_distances[i, k] = d
                        near[i, k] = j
                        listed += 1
                    continue
                left = _box_distance(px, py, pz, bounds[first])
                right = _box_distance(px, py, pz, bounds[first + 1])
                if left <= right:
                    stack[top] = first + 1
                    stack_distance[top] = right
                    stack[top + 1] = first
                    stack_distance[top + 1] = left
                else:
                    stack[top] = first
                    stack_distance[top] = left
                    stack[top + 1] = first + 1
                    stack_distance[top + 1] = right
                top += 2
            tests += tested
            origins[i, 0] = px
            origins[i, 1] = py
            origins[i, 2] = pz
            # Without its margin a search has not looked for further triangles.
            others[i] = np.sqrt(min(left_out, reach)) if tested <= _MARGIN_TESTS else 0.0
            for k in range(listed):
                near_distances[i, k] = np.sqrt(near_distances[i, k])
            if listed < most:
                near[i, listed] = -1
        places[i] = place
        before = place
        squared[i] = best
        faces[i] = order[place]
        bary[i, 0] = b0
        bary[i, 1] = b1
        bary[i, 2] = b2
        for a in range(3):
            surface[i, a] = (
                b0 * triangles[place, 0, a] + b1 * triangles[place, 1, a]
            ) + b2 * triangles[place, 2, a]
    return squared, surface, faces, bary, tests


@numba.njit(cache=True, inline="always")
def _ray_meets_box(
    origin: NDArray[np.float64],
    inverse: NDArray[np.float64],
    box: NDArray[np.float64],
    near: float,
    far: float,
) -> bool:
    """Slab test of a ray segment; ``inverse`` holds the reciprocals of the direction."""
    for a in range(3):
        t0 = (box[a] - origin[a]) * inverse[a]
        t1 = (box[3 + a] - origin[a]) * inverse[a]
        near = max(near, min(t0, t1))
        far = min(far, max(t0, t1))
    return near <= far


@numba.njit(cache=True, inline="always")
def _ray_meets_triangle(
    o: NDArray[np.float64],
    d: NDArray[np.float64],
    triangle: NDArray[np.float64],
    near: float,
    far: float,
) -> bool:
    """Two-sided Moller-Trumbore test between the distances ``near`` and ``far``."""
    ax, ay, az = triangle[0, 0], triangle[0, 1], triangle[0, 2]
    ux, uy, uz = triangle[1, 0] - ax, triangle[1, 1] - ay, triangle[1, 2] - az
    vx, vy, vz = triangle[2, 0] - ax, triangle[2, 1] - ay, triangle[2, 2] - az
    px = d[1] * vz - d[2] * vy
    py = d[2] * vx - d[0] * vz
    pz = d[0] * vy - d[1] * vx
    determinant = ux * px + uy * py + uz * pz
    if determinant == 0.0:
        return False
    sx, sy, sz = o[0] - ax, o[1] - ay, o[2] - az
    u = (sx * px + sy * py + sz * pz) / determinant
    if u < 0.0 or u > 1.0:
        return False
    qx = sy * uz - sz * uy
    qy = sz * ux - sx * uz
    qz = sx * uy - sy * ux
    v = (d[0] * qx + d[1] * qy + d[2] * qz) / determinant
    if v < 0.0 or u + v > 1.0:
        return False
    t = (vx * qx + vy * qy + vz * qz) / determinant
    return near < t < far


@numba.njit(cache=True)
def occluded(
    origins: NDArray[np.float64],
    directions: NDArray[np.float64],
    triangles: NDArray[np.float64],
    bounds: NDArray[np.float64],
    nodes: NDArray[np.int64],
    near: float,
    far: float,
) -> NDArray[np.bool_]:
    """Whether each ray segment (N, 3), (N, 3) hits any triangle between ``near`` and ``far``."""
    count = origins.shape[0]
    hits = np.zeros(count, dtype=np.bool_)
    stack = np.empty(_STACK, dtype=np.int64)
    inverse = np.empty(3)
    for i in range(count):
        for a in range(3):
            d = directions[i, a]
            if abs(d) < 1e-12:
                d = 1e-12
            inverse[a] = 1.0 / d
        stack[0] = 0
        top = 1
        while top > 0:
            top -= 1
            node = stack[top]
            if not _ray_meets_box(origins[i], inverse, bounds[node], near, far):
                continue
            first = nodes[node, 0]
            leaf = nodes[node, 1]
            if leaf == 0:
                stack[top] = first
                stack[top + 1] = first + 1
                top += 2
                continue
            for j in range(first, first + leaf):
                if _ray_meets_triangle(origins[i], directions[i], triangles[j], near, far):
                    hits[i] = True
                    top = 0
                    break
    return hits
