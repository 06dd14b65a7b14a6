"""A small head with FLAME's structure and none of its data: for tests of registration.

An ellipsoid with nose, brow, sockets and chin, open at the neck, two eyeballs, smooth identity and
expression modes, five joints, and 51 landmarks in iBUG order.
"""

import numpy as np

from models.face.flame import FlameArrays, pose_vertices

RINGS, SECTORS = 36, 56
IDENTITY, EXPRESSION = 14, 6


def _bump(points: np.ndarray, centre: tuple[float, float, float], width: float) -> np.ndarray:
    return np.exp(-((points - np.array(centre)) ** 2).sum(axis=1) / (2 * width**2))


def _sphere(rings: int, sectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere with poles on y; triangles counter-clockwise seen from outside."""
    polar = np.linspace(0, np.pi, rings + 1)[1:-1]
    around = np.arange(sectors) * 2 * np.pi / sectors
    body = np.stack(
        [
            np.outer(np.sin(polar), np.sin(around)),
            np.outer(np.cos(polar), np.ones(sectors)),
            np.outer(np.sin(polar), np.cos(around)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    vertices = np.concatenate([body, [[0, 1, 0], [0, -1, 0]]])
    top, bottom = len(body), len(body) + 1
    faces = []
    for s in range(sectors):
        t = (s + 1) % sectors
        faces.append((top, s, t))
        last = (rings - 2) * sectors
        faces.append((bottom, last + t, last + s))
        for r in range(rings - 2):
            a, b = r * sectors + s, r * sectors + t
            c, d = a + sectors, b + sectors
            faces += [(a, c, b), (b, c, d)]
    return vertices, np.array(faces)


def toy_head() -> FlameArrays:
    """The model: 1,960 skin vertices and two eyeballs, metres."""
    unit, faces = _sphere(RINGS, SECTORS)
    skin = unit * np.array([0.075, 0.115, 0.095])
    skin[:, 2] += 0.022 * _bump(skin, (0, -0.005, 0.095), 0.013)
    skin[:, 2] += 0.006 * _bump(skin, (0, -0.085, 0.06), 0.018)
    skin[:, 2] += 0.004 * _bump(skin, (0, 0.045, 0.09), 0.02)
    skin[:, 2] -= 0.004 * _bump(skin, (0, -0.048, 0.085), 0.008)
    for side in (-1, 1):
        skin[:, 2] -= 0.006 * _bump(skin, (side * 0.032, 0.022, 0.083), 0.012)
    keep = (skin[faces][:, :, 1] > -0.1).all(axis=1) | (skin[faces][:, :, 2] > 0.02).any(axis=1)
    faces = faces[keep]
    used = np.unique(faces)
    renumber = np.full(len(skin), -1)
    renumber[used] = np.arange(len(used))
    skin, faces = skin[used], renumber[faces]
    ball, ball_faces = _sphere(8, 12)
    parts, triangles = [skin], [faces]
    for side in (1, -1):
        triangles.append(ball_faces + sum(map(len, parts)))
        parts.append(0.011 * ball + np.array([side * 0.032, 0.022, 0.064]))
    v = np.concatenate(parts)
    joints = np.array(
        [[0, -0.12, -0.02], [0, -0.07, -0.02], [0, -0.02, 0.01], [0.032, 0.022, 0.064], [0, 0, 0]]
    )
    joints[4] = joints[3] * [-1, 1, 1]
    regressor = np.zeros((5, len(v)))
    for j in (0, 1, 2):
        near = np.exp(-((v[: len(skin)] - joints[j]) ** 2).sum(axis=1) / (2 * 0.05**2))
        regressor[j, : len(skin)] = near / near.sum()
    starts = (len(skin), len(skin) + len(ball))
    for j, start in ((3, starts[0]), (4, starts[1])):
        regressor[j, start : start + len(ball)] = 1 / len(ball)
    weights = np.zeros((len(v), 5))
    jaw = 1 / (1 + np.exp((v[:, 1] + 0.045) / 0.006)) / (1 + np.exp((0.02 - v[:, 2]) / 0.008))
    root = 1 / (1 + np.exp((v[:, 1] + 0.1) / 0.006)) * (1 - jaw)
    weights[:, 2], weights[:, 0], weights[:, 1] = jaw, root, 1 - jaw - root
    for j, start in ((3, starts[0]), (4, starts[1])):
        weights[start : start + len(ball)] = np.eye(5)[j]
    pose = np.zeros((len(v), 3, 36))
    pose[:, 2, 9 + 5] = 0.004 * _bump(v, (0, -0.06, 0.08), 0.02)
    modes = _modes(v)
    return FlameArrays(
        v_template=v.astype(np.float32),
        faces=np.concatenate(triangles).astype(np.int64),
        shapedirs=modes[..., :IDENTITY].astype(np.float32),
        exprdirs=modes[..., IDENTITY:].astype(np.float32),
        posedirs=pose.astype(np.float32),
        joint_regressor=regressor.astype(np.float32),
        weights=weights.astype(np.float32),
        parents=np.array([-1, 0, 1, 1, 1]),
    )


def _modes(v: np.ndarray) -> np.ndarray:
    """(V, 3, 20) smooth displacements, metres per standard deviation."""
    modes = np.zeros((len(v), 3, IDENTITY + EXPRESSION))
    for axis in range(3):
        modes[:, axis, axis] = 0.04 * v[:, axis]
    places = [
        ((0, -0.005, 0.1), 0.012, (0, 0, 1)),
        ((0, 0.0, 0.1), 0.018, (0, 1, 0)),
        ((0, 0.045, 0.09), 0.02, (0, 0, 1)),
        ((0, -0.085, 0.06), 0.02, (0, -0.5, 1)),
        ((0.045, -0.02, 0.07), 0.02, (0.7, 0, 0.7)),
        ((-0.045, -0.02, 0.07), 0.02, (-0.7, 0, 0.7)),
        ((0, -0.045, 0.09), 0.015, (0, 0, 1)),
        ((0.06, -0.06, 0.04), 0.03, (1, 0, 0)),
        ((-0.06, -0.06, 0.04), 0.03, (-1, 0, 0)),
        ((0, 0.08, 0.06), 0.03, (0, 0, 1)),
        ((0, 0.03, 0.085), 0.03, (0, 1, 0)),
        ((0.02, -0.045, 0.085), 0.01, (1, 0, 0)),
        ((-0.02, -0.045, 0.085), 0.01, (-1, 0, 0)),
        ((0, -0.05, 0.09), 0.012, (0, 0, 1)),
        ((0, -0.052, 0.09), 0.01, (0, -1, 0)),
        ((0.03, 0.045, 0.08), 0.012, (0, 1, 0)),
        ((-0.03, 0.045, 0.08), 0.012, (0, 1, 0)),
    ]
    for k, (centre, width, direction) in enumerate(places):
        modes[..., 3 + k] = 0.003 * _bump(v, centre, width)[:, None] * np.array(direction)
    return modes


def toy_landmarks(arrays: FlameArrays) -> tuple[np.ndarray, np.ndarray]:
    """Triangles and barycentric weights of 51 landmarks in iBUG order, at triangle centres."""
    right = [(-0.052 + 0.008 * i, 0.045 + 0.004 * (i in (1, 2, 3))) for i in range(5)]
    brows = right + [(-x, y) for x, y in right[::-1]]
    nose = [(0, 0.025 - 0.009 * i) for i in range(4)]
    base = [(x, -0.018) for x in (-0.014, -0.007, 0, 0.007, 0.014)]
    ring = [(-0.013, 0), (-0.005, 0.005), (0.005, 0.005), (0.013, 0), (0.005, -0.005)]
    eye = [*ring, (-0.005, -0.005)]
    eyes = [(side * 0.032 + x, 0.022 + y) for side in (-1, 1) for x, y in eye]
    turn = np.linspace(np.pi, -np.pi, 13)[:-1]
    outer = [(0.025 * np.cos(a), -0.048 + 0.01 * np.sin(a)) for a in turn]
    turn = np.linspace(np.pi, -np.pi, 9)[:-1]
    inner = [(0.018 * np.cos(a), -0.048 + 0.003 * np.sin(a)) for a in turn]
    wanted = np.array(brows + nose + base + eyes + outer + inner)
    faces = arrays.faces
    centres = arrays.v_template[faces].mean(axis=1)
    front = np.flatnonzero((centres[:, 2] > 0.03) & (faces.max(axis=1) < len(arrays.v_template)))
    skin = front[arrays.weights[faces[front, 0], 3:].sum(axis=1) == 0]
    gap = ((centres[skin][None, :, :2] - wanted[:, None]) ** 2).sum(axis=2)
    return skin[gap.argmin(axis=1)], np.full((51, 3), 1 / 3)


def subdivide(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split every triangle into four at the edge midpoints."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    middle = len(vertices) + inverse.reshape(-1, 3)
    a, b, c = faces.T
    ab, bc, ca = middle.T
    split = np.concatenate(
        [
            np.stack(corner, axis=1)
            for corner in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        ]
    )
    return np.concatenate([vertices, vertices[unique].mean(axis=1)]), split


def scan_of(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head of the toy model in millimetres, turned, with its 51 landmarks."""
    arrays, rng = toy_head(), np.random.default_rng(seed)
    head = pose_vertices(arrays, rng.normal(size=14), 0.5 * rng.normal(size=6), np.zeros(15))
    faces, bary = toy_landmarks(arrays)
    marks = np.einsum("lk,lka->la", bary, head[arrays.faces[faces]])
    skin = arrays.weights[:, 3:].sum(axis=1) == 0
    kept = arrays.faces[skin[arrays.faces].all(axis=1)]
    fine, triangles = subdivide(head[: skin.sum()], kept)
    turn = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])
    return 1e3 * fine @ turn.T, triangles, 1e3 * marks @ turn.T
