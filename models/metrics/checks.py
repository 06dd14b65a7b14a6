"""What a mesh and its landmarks must be to be measured."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from models.metrics._normal_equations import face_normals
from models.metrics.protocols import Protocol
from models.metrics.region import NOSE_TIP, box_sides

_AREA_TOLERANCE: Final = 1e-14


def usable_faces(
    what: str, vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Int[np.ndarray, "g 3"], int]:
    """Faces with area, and how many had none."""
    require_finite(f"{what} vertices", vertices)
    require_indices(what, faces, len(vertices))
    positions = np.ascontiguousarray(vertices, np.float64)
    numbers = np.ascontiguousarray(faces, np.int64)
    _, doubled = face_normals(positions, numbers)
    extent = float(box_sides(positions).max())
    whole: Bool[np.ndarray, " f"] = doubled > _AREA_TOLERANCE * extent**2
    if not whole.any():
        raise ValueError(
            f"expected a surface, got {len(faces)} faces of which none has area; a point cloud "
            "cannot be scored by scan-to-mesh distance"
        )
    return numbers if whole.all() else numbers[whole], int((~whole).sum())


def require_overlap(chosen: Bool[np.ndarray, " n"]) -> None:
    """Refuse an alignment in which nothing faces anything."""
    if not chosen.any():
        raise ValueError(
            "expected scan and prediction to overlap, got no pair of closest points away from the "
            "borders; it was not aligned: check its landmarks and unit, and its faces' orientation"
        )


def require_finite(what: str, values: Float[np.ndarray, "n 3"]) -> None:
    """Refuse no points at all, NaN and infinity."""
    if len(values) == 0:
        raise ValueError(f"expected {what}, got none")
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise ValueError(f"expected finite {what}, got {bad} of {len(values)} with NaN or infinity")


def require_landmarks(what: str, landmarks: Float[np.ndarray, "m 3"], protocol: Protocol) -> None:
    """Refuse landmarks that a protocol cannot align by."""
    if protocol.landmarks == "correspondence":
        return
    if protocol.landmarks == "seven" and landmarks.shape != (7, 3):
        raise ValueError(f"expected {what} of shape (7, 3), got {landmarks.shape}")
    if len(landmarks) not in (7, *NOSE_TIP) or (
        protocol.landmarks == "nose-tip" and len(landmarks) not in NOSE_TIP
    ):
        raise ValueError(
            f"expected {what} for {protocol.name} as the nose tip alone, 51 or 68 points, got "
            f"{landmarks.shape}"
        )
    require_finite(what, landmarks)
    if len(landmarks) == 1:
        return
    spread = np.linalg.svd(landmarks - landmarks.mean(axis=0), compute_uv=False)
    if spread[1] <= 1e-6 * spread[0]:
        raise ValueError(f"expected {what} that span a plane, got points on one line or one spot")


def require_indices(what: str, faces: Int[np.ndarray, "f 3"], vertices: int) -> None:
    """Refuse faces that name vertices there are not."""
    if len(faces) and not (faces.min() >= 0 and faces.max() < vertices):
        raise ValueError(
            f"expected {what} faces within 0..{vertices - 1}, got {faces.min()}..{faces.max()}"
        )
