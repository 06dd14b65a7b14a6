"""Trimesh's `nricp_amberg` with its default and two hand-set schedules, as a peer to measure."""

import numpy as np

from models.geometry import align_similarity, closest_points
from models.geometry.mesh import face_normals, normals_and_rim

TUNED_STEPS = [
    [0.05, 10, 0.5, 10],
    [0.02, 5, 0.5, 10],
    [0.01, 2, 0.5, 10],
    [0.005, 1, 0.5, 10],
    [0.002, 0.5, 0.5, 10],
]
# Per schedule: the arguments given to nricp_amberg beside the landmarks.
NRICP: dict[str, dict[str, object]] = {
    "default": {},
    "tuned": {"distance_threshold": 0.03, "steps": TUNED_STEPS},
    "strong": {
        "distance_threshold": 0.03,
        "steps": [*TUNED_STEPS, [0.0007, 0.2, 0.5, 10]],
        "eps": 1e-6,
    },
}
REACH_M = 0.015
FACING = 0.3
VISIBLE_FACING = 0.5


def nricp(
    schedule: str,
    template: np.ndarray,
    template_faces: np.ndarray,
    embedding: tuple[np.ndarray, np.ndarray],
    scan: np.ndarray,
    scan_faces: np.ndarray,
    landmarks: np.ndarray,
) -> np.ndarray:
    """Registered vertices (V, 3), metres: a landmark similarity, then `nricp_amberg`."""
    import trimesh
    from trimesh.registration import nricp_amberg

    triangles, bary = embedding
    marks = np.einsum("lk,lka->la", bary, template[template_faces[triangles]])
    placed = align_similarity(marks, landmarks)
    source = trimesh.Trimesh(placed.apply(template), template_faces, process=False)
    target = trimesh.Trimesh(scan, scan_faces, process=False)
    moved = nricp_amberg(
        source,
        target,
        source_landmarks=(triangles, bary),
        target_positions=landmarks,
        **NRICP[schedule],
    )
    return np.asarray(moved)


def unit_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Of triangles."""
    flat = face_normals(vertices, faces)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


class Yardstick:
    """Distances of a registered mesh to one scan, the same for every method.

    The region of scan-to-mesh distances is fixed once, from a first fit: scan vertices off the
    rim whose closest triangle lies wholly in FLAME's face mask, within 15 mm, normals agreeing.
    """

    def __init__(
        self,
        scan: np.ndarray,
        scan_faces: np.ndarray,
        flame_faces: np.ndarray,
        face: np.ndarray,
        first: np.ndarray,
    ) -> None:
        self.scan, self.scan_faces, self.flame_faces, self.face = (
            scan,
            scan_faces,
            flame_faces,
            face,
        )
        normals, self.rim = normals_and_rim(scan, scan_faces)
        near = closest_points(scan, first, flame_faces, REACH_M)
        flat = unit_normals(first, flame_faces)
        agree = (flat[near.faces] * normals).sum(axis=1) > FACING
        inside = np.isin(flame_faces, face).all(axis=1)[near.faces] & (near.faces >= 0)
        self.region = np.flatnonzero(inside & agree & ~self.rim)

    def to_mesh_mm(self, vertices: np.ndarray) -> np.ndarray:
        """Distance of every scan vertex of the region to the mesh."""
        return 1e3 * closest_points(self.scan[self.region], vertices, self.flame_faces).distances

    def to_scan_mm(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance of every face vertex to the scan, and whether it is visible skin.

        Visible: the closest triangle is off the scan's rim and faces the same way within 60 deg.
        """
        normals, _ = normals_and_rim(vertices, self.flame_faces)
        found = closest_points(vertices[self.face], self.scan, self.scan_faces)
        flat = unit_normals(self.scan, self.scan_faces)[found.faces]
        seen = (flat * normals[self.face]).sum(axis=1) > VISIBLE_FACING
        seen &= ~self.rim[self.scan_faces[found.faces]].any(axis=1)
        return 1e3 * found.distances, seen

    def flipped(self, vertices: np.ndarray) -> int:
        """Triangles of the face turned against their neighbours' mean normal."""
        normals, _ = normals_and_rim(vertices, self.flame_faces)
        inside = np.isin(self.flame_faces, self.face).all(axis=1)
        flat = face_normals(vertices, self.flame_faces)
        mean = normals[self.flame_faces].sum(axis=1)
        return int(((flat * mean).sum(axis=1) < 0)[inside].sum())
