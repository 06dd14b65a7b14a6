"""Named vertex regions with FLAME's names and counts, and the inner surfaces by name."""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from models.procedural.anatomy import EYE_CENTRE_MM
from models.procedural.ears import EAR_CENTRE_MM
from models.procedural.mouth import line
from models.procedural.topology import EYEBALL_VERTICES, PARTS, SKIN_VERTICES, Mesh

# Counts of the published FLAME_masks.pkl.
REGION_COUNTS = {
    "face": 1787,
    "scalp": 489,
    "forehead": 133,
    "eye_region": 751,
    "left_eye_region": 287,
    "right_eye_region": 287,
    "left_eyeball": EYEBALL_VERTICES,
    "right_eyeball": EYEBALL_VERTICES,
    "nose": 379,
    "lips": 254,
    "left_ear": 588,
    "right_ear": 588,
    "neck": 253,
    "boundary": 114,
}


def _nearest(
    score: Float[np.ndarray, "v"], mirror: Int[np.ndarray, "v"], count: int
) -> Int[np.ndarray, "n"]:
    """The ``count`` vertices of least score; a vertex and its mirror image come together.

    Scores must be mirror-symmetric. An odd remainder is filled by the best midline vertex.
    """
    order = np.lexsort((np.minimum(np.arange(len(score)), mirror), np.round(score, 6)))
    chosen: list[int] = []
    taken = np.zeros(len(score), dtype=bool)
    for vertex in order:
        group = {int(vertex), int(mirror[vertex])}
        if taken[vertex] or len(chosen) + len(group) > count or not np.isfinite(score[vertex]):
            continue
        chosen += sorted(group)
        taken[list(group)] = True
        if len(chosen) == count:
            return np.sort(np.array(chosen, dtype=np.int64))
    raise ValueError(f"a region wants {count} vertices, only {len(chosen)} qualify")


def _open_edge(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "n"]:
    """Vertices on edges that only one triangle uses."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    found, uses = np.unique(edges, axis=0, return_counts=True)
    return np.unique(found[uses == 1])


def build_regions(mesh: Mesh) -> dict[str, Int[np.ndarray, "n"]]:
    """Sorted vertex ids by region: FLAME's fourteen, then the inner surfaces.

    ``face`` holds the eye regions, the forehead and the lips and shares no vertex with ears and
    eyeballs, as FLAME's does. ``mouth_interior``, ``nostril_interior`` and ``eye_cups`` are the
    surfaces that ambient light does not reach.
    """
    p = mesh.vertices_mm
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    skin = np.arange(len(p)) < SKIN_VERTICES
    part = {name: mesh.part == PARTS.index(name) for name in PARTS}
    never = np.where(skin, 0.0, np.inf)
    every = np.arange(len(p))

    def one_sided(score: Float[np.ndarray, "v"], count: int) -> Int[np.ndarray, "n"]:
        left = np.where(p[:, 0] > 0.0, score, np.inf) + never
        return np.sort(np.argsort(left, kind="stable")[:count]).astype(np.int64)

    regions: dict[str, np.ndarray] = {}
    ear = np.hypot((y - EAR_CENTRE_MM[0]) / 33.0, (z - EAR_CENTRE_MM[1]) / 21.0)
    ear = np.where(part["ear"], -1.0, ear + 10.0 * (x < 50.0))
    regions["left_ear"] = one_sided(ear, REGION_COUNTS["left_ear"])
    in_ear = np.zeros(len(p), dtype=bool)
    in_ear[regions["left_ear"]] = True
    in_ear |= in_ear[mesh.mirror]
    eye = np.hypot((x - EYE_CENTRE_MM[0]) / 1.25, y - EYE_CENTRE_MM[1]) + 30.0 * (z < 50.0)
    eye = np.where(part["eye"], -30.0 - mesh.ring, eye)
    eye_one = np.where(in_ear, np.inf, eye)
    regions["left_eye_region"] = one_sided(eye_one, REGION_COUNTS["left_eye_region"])
    for name in ("ear", "eye_region"):
        regions[f"right_{name}"] = np.sort(mesh.mirror[regions[f"left_{name}"]])
    ball = every[~skin]
    regions["left_eyeball"], regions["right_eyeball"] = np.split(ball, 2)
    brow = np.where(
        eye < 0.0, eye, np.hypot(np.maximum(x - 46.0, 0.0), (y - 7.0) * 1.3) + 30.0 * (z < 45.0)
    )
    in_eyes = np.isin(every, regions["left_eye_region"]) | np.isin(
        every, regions["right_eye_region"]
    )
    brow = np.where(in_eyes, -99.0, brow)
    inner = part["mouth"] | part["nostril"]
    free = np.where(in_ear, np.inf, never)

    def region(name: str, score: Float[np.ndarray, "v"]) -> None:
        regions[name] = _nearest(score, mesh.mirror, REGION_COUNTS[name])

    region("eye_region", brow + free + np.where(inner, np.inf, 0.0))
    region(
        "lips",
        np.where(part["mouth"], mesh.ring.astype(float), 50.0 + np.abs(y - line(p[:, 0])[:, 0]))
        + free,
    )
    nose = np.hypot(x / 1.0, np.maximum(np.abs(y + 20.0) - 22.0, 0.0) * 1.4) + 40.0 * (z < 70.0)
    region(
        "nose",
        np.where(part["nostril"], -1.0, nose) + np.where(part["mouth"] | part["eye"], np.inf, free),
    )
    front = np.hypot(x / 52.0, (y - 48.0) / 26.0) + 5.0 * (y < 20.0) + 5.0 * (z < 40.0)
    region("forehead", front + free)
    # the face: everything named so far, then outward from its middle over the skin
    face = np.hypot(x / 66.0, np.where(y > -35.0, (y + 35.0) / 105.0, (y + 35.0) / 84.0))
    face = face + np.maximum(0.0, 25.0 - z) / 30.0
    for name in ("eye_region", "lips", "forehead"):
        face[regions[name]] = -1.0
    face[part["nostril"] | part["mouth"]] = -0.5
    region("face", face + free)
    in_face = np.isin(every, regions["face"])
    back = free + np.where(in_face, np.inf, 0.0)
    region("scalp", -(y - 0.35 * z) + back)
    region("neck", np.hypot(np.abs(y + 158.0) / 1.0, np.maximum(-z - 60.0, 0.0)) + back)
    rim = cKDTree(p[_open_edge(mesh.faces)])
    region("boundary", rim.query(p)[0] + back)
    regions["mouth_interior"] = np.flatnonzero(part["mouth"] & (mesh.ring >= 7))
    regions["nostril_interior"] = np.flatnonzero(part["nostril"] & (mesh.ring >= 2))
    regions["eye_cups"] = np.flatnonzero(part["eye"] & (mesh.ring >= 7))
    return regions
