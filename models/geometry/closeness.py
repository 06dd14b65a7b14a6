"""How close a registered head and a scan are, both ways."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.geometry.mesh import face_normals
from models.geometry.parametric import Surface
from models.geometry.template import RegistrationModel

REGION_REACH_MM = 15.0
REGION_FACING = 0.3
COVER_MM = 2.0


@dataclass(frozen=True, slots=True)
class Closeness:
    """Measures of one registration.

    Attributes:
        residuals_mm: (K,) distance of each vertex of the surface to the registered head; NaN
            outside the face.
        template_mm: (n,) distance of each vertex of the face to the scan.
        landmark_rms_mm: Root mean square distance of the landmarks; NaN without any.
        coverage: Share of the face's area that lies on the scan.
        flipped_faces: Triangles turned over since the parametric fit.
    """

    residuals_mm: Float[np.ndarray, " k"]
    template_mm: Float[np.ndarray, " n"]
    landmark_rms_mm: float
    coverage: float
    flipped_faces: int


def disc_distances(
    points: Float[np.ndarray, "n 3"], surface: Surface, areas: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " n"]:
    """Distance (n,) of points to a scan, mm.

    It is that to a disc: the tangent plane of the nearest scan vertex, as large as the surface that
    the vertex stands for.

    Args:
        points: In the surface's frame, mm.
        surface: The scan.
        areas: (K,) surface that each of its vertices stands for, mm^2.
    """
    _, nearest = surface.tree.query(points)
    gap = points - surface.vertices[nearest]
    across = (gap * surface.normals[nearest]).sum(axis=1)
    along = np.sqrt(np.maximum((gap**2).sum(axis=1) - across**2, 0.0))
    return np.hypot(across, np.maximum(along - np.sqrt(areas[nearest] / np.pi), 0.0))


def measure(
    model: RegistrationModel,
    refined: Float[np.ndarray, "V 3"],
    fitted: Float[np.ndarray, "V 3"],
    surface: Surface,
    areas: Float[np.ndarray, " k"],
    marks: Float[np.ndarray, "l 3"],
) -> Closeness:
    """Distances both ways over the face, landmarks, coverage and turned triangles.

    A scan vertex counts when its closest triangle lies wholly in the face, within 15 mm, with
    normals that agree, and it is not on the scan's rim. The distance from a vertex of the face to
    the scan is that of ``disc_distances``.

    Args:
        model: The prepared model.
        refined: Registered head, mm, in the surface's frame.
        fitted: The parametric fit before its refinement.
        surface: The scan.
        areas: (K,) surface that each of its vertices stands for, mm^2.
        marks: (L, 3) landmarks, mm; NaN rows are missing.
    """
    faces = np.asarray(model.arrays.faces, dtype=np.int64)
    face_ids = np.flatnonzero(model.face)
    low = refined[face_ids].min(axis=0) - REGION_REACH_MM
    high = refined[face_ids].max(axis=0) + REGION_REACH_MM
    ids = np.flatnonzero(
        ((surface.vertices > low) & (surface.vertices < high)).all(axis=1) & ~surface.rim
    )
    found = model.head_index.moved(refined).query(
        surface.vertices[ids], max_distance=REGION_REACH_MM
    )
    flat = face_normals(refined, faces)
    length = np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    agree = ((flat / length)[found.faces] * surface.normals[ids]).sum(axis=1)
    in_face = np.asarray(model.face[faces].all(axis=1))
    region = (found.faces >= 0) & in_face[found.faces] & (agree > REGION_FACING)
    residuals = np.full(len(surface.vertices), np.nan)
    residuals[ids[region]] = found.distances[region]
    back = disc_distances(refined[face_ids], surface, areas)
    covered = model.areas[face_ids] * (back < COVER_MM)
    given = np.isfinite(marks).all(axis=1)
    corners = refined[faces[model.landmark_faces]]
    apart = (np.einsum("lk,lka->la", model.landmark_bary, corners) - marks)[given]
    turned = (flat * face_normals(fitted, faces)).sum(axis=1) < 0
    return Closeness(
        residuals,
        back,
        float(np.sqrt((apart**2).sum(axis=1).mean())) if len(apart) else float("nan"),
        float(covered.sum() / model.areas[face_ids].sum()),
        int(turned.sum()),
    )
