"""What is wrong with a scan's mesh, mended before anything is fitted to it.

Compiled checks look first; a mesh in which they find nothing passes as it came. MeshLab's filters
(Cignoni et al. 2008, through pymeshlab) mend the spots that are no manifold and mesh point clouds
by ball pivoting (Bernardini et al. 1999). No vertex is moved or invented: every vertex of the
result is one of the input.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from models.geometry.mesh import face_normals, vertex_normals
from models.geometry.settings import CleaningSettings

ROUNDS = 8
FEWEST_POINTS = 16


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A scan's mesh after cleaning.

    Attributes:
        vertices: (n, 3) in the scan's own frame and unit; the input itself where nothing was found.
        faces: (m, 3) triangles.
        kept: (n,) the input's vertex that each vertex is.
        report: What was found and mended, by kind; empty for a clean mesh. Counts of
            ``duplicate_vertices``, ``degenerate_faces``, ``duplicate_faces``,
            ``non_manifold_edges``, ``non_manifold_vertices``, ``winding_breaks`` (edges),
            ``turned_faces``, ``junk_pieces``, ``junk_faces``, ``unreferenced_vertices``,
            ``meshed_point_cloud`` (triangles made), and ``unmended`` (defects that stayed).
    """

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    kept: Int[np.ndarray, " n"]
    report: dict[str, int]


def clean_scan(
    vertices: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "m 3"],
    settings: CleaningSettings,
) -> Cleaned:
    """Mend a scan's mesh.

    What no mesh can be made of (nothing, NaN, vertex numbers that do not exist) passes unchanged:
    whoever uses it refuses it.

    Args:
        vertices: In any unit.
        faces: Triangles; none for a point cloud, which is meshed.
        settings: What counts as junk.
    """
    points = np.ascontiguousarray(vertices, dtype=np.float64)
    triangles = np.ascontiguousarray(faces, dtype=np.int64)
    if not _usable(points, triangles):
        return Cleaned(vertices, faces, np.arange(len(points)), {})
    report: Counter[str] = Counter()
    kept = np.arange(len(points))
    if len(triangles) == 0:
        triangles = _mesh_cloud(points, settings.cloud_neighbours)
        if len(triangles) == 0:
            return Cleaned(vertices, faces, kept, {})
        report["meshed_point_cloud"] = len(triangles)
    source = triangles
    triangles, copies = _mended(points, triangles, report)
    if len(copies):
        points, kept = np.concatenate([points, points[copies]]), np.concatenate([kept, copies])
    triangles = _without_junk(points, triangles, settings, report)
    used = np.zeros(len(points), dtype=bool)
    used[triangles] = True
    lost = int(len(used) - used.sum()) - report["duplicate_vertices"]
    if triangles is source and not any(report.values()) and lost == 0:
        return Cleaned(vertices, faces, kept, {})
    if lost > 0:
        report["unreferenced_vertices"] = lost
    renumber = np.cumsum(used) - 1
    found = {name: int(count) for name, count in sorted(report.items()) if count}
    return Cleaned(points[used], renumber[triangles], kept[used], found)


def _usable(points: np.ndarray, triangles: np.ndarray) -> bool:
    if points.ndim != 2 or points.shape[1] != 3 or len(points) < 3:
        return False
    if not np.isfinite(points).all():
        return False
    if triangles.size == 0:
        return len(points) >= FEWEST_POINTS
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        return False
    return bool(triangles.min() >= 0 and triangles.max() < len(points))


def _mended(
    points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, "m 3"], report: Counter[str]
) -> tuple[Int[np.ndarray, "k 3"], Int[np.ndarray, " c"]]:
    """Triangles that form an oriented manifold, and the vertices of which there are now copies.

    Copies are numbered on from the last vertex.
    """
    from models.geometry import _cleaning as checks

    earliest, doubled = checks.same_positions(points)
    if doubled:
        report["duplicate_vertices"] = doubled
        triangles = earliest[triangles]
    copies = np.zeros(0, dtype=np.int64)
    for attempt in range(ROUNDS):
        every = np.concatenate([points, points[copies]]) if len(copies) else points
        found, sound, bad = checks.find_defects(every, triangles)
        if found[checks.DEGENERATE]:
            report["degenerate_faces"] += int(found[checks.DEGENERATE])
            triangles = triangles[sound]
            continue
        names = ("duplicate_faces", "non_manifold_edges", "non_manifold_vertices")
        wrong = found[[checks.DOUBLED_FACES, checks.EDGES, checks.FANS]]
        if attempt == ROUNDS - 1:
            report["unmended"] = int(wrong.sum() + found[checks.WINDING])
            break
        for name, count in zip(names, wrong, strict=True):
            report[name] += int(count)
        if bad.any():
            triangles, copies = _manifold(every, triangles, bad, len(points), copies)
        elif found[checks.WINDING]:
            report["winding_breaks"] += int(found[checks.WINDING])
            triangles = _oriented(every, triangles, report)
        else:
            break
    return triangles, copies


def _mesh_set(points: np.ndarray, triangles: np.ndarray) -> Any:  # noqa: ANN401 - pymeshlab
    """A MeshLab document whose vertices carry their number as their scalar."""
    import pymeshlab

    document = pymeshlab.MeshSet(verbose=False)
    document.add_mesh(
        pymeshlab.Mesh(
            vertex_matrix=points,
            face_matrix=triangles.astype(np.int32),
            v_scalar_array=np.arange(len(points), dtype=np.float64),
        )
    )
    return document


def _manifold(
    points: Float[np.ndarray, "n 3"],
    triangles: Int[np.ndarray, "m 3"],
    bad: Bool[np.ndarray, " n"],
    originals: int,
    copies: Int[np.ndarray, " c"],
) -> tuple[Int[np.ndarray, "k 3"], Int[np.ndarray, " d"]]:
    """Mend the triangles around the bad vertices; the rest of the mesh is not touched."""
    touched = bad[triangles].any(axis=1)
    ids, local = np.unique(triangles[touched], return_inverse=True)
    document = _mesh_set(points[ids], local.reshape(-1, 3))
    document.meshing_remove_duplicate_faces()
    document.meshing_repair_non_manifold_edges(method="Remove Faces")
    document.meshing_repair_non_manifold_vertices()
    mesh = document.current_mesh()
    corners = np.asarray(mesh.face_matrix(), dtype=np.int64).reshape(-1, 3)
    origin = ids[np.asarray(mesh.vertex_scalar_array()).astype(np.int64)]
    number = origin.copy()
    # The border of what was cut out looks split too; only bad vertices really are.
    new = np.flatnonzero((np.arange(len(origin)) >= len(ids)) & bad[origin])
    number[new] = len(points) + np.arange(len(new))
    root = np.concatenate([np.arange(originals), copies])[origin[new]]
    return (
        np.concatenate([triangles[~touched], number[corners]]),
        np.concatenate([copies, root]).astype(np.int64),
    )


def _oriented(
    points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, "m 3"], report: Counter[str]
) -> Int[np.ndarray, "m 3"]:
    """Make the winding the same within each piece: the one that most of its area has."""
    from models.geometry import _cleaning as checks

    turned = checks.turned_faces(len(points), triangles)
    label, pieces = checks.label_pieces(len(points), triangles)
    areas = np.linalg.norm(face_normals(points, triangles), axis=1)
    share = np.bincount(label, areas * turned, minlength=pieces)
    turned ^= (share > 0.5 * np.bincount(label, areas, minlength=pieces))[label]
    report["turned_faces"] += int(turned.sum())
    return np.where(turned[:, None], triangles[:, ::-1], triangles)


def _without_junk(
    points: Float[np.ndarray, "n 3"],
    triangles: Int[np.ndarray, "m 3"],
    settings: CleaningSettings,
    report: Counter[str],
) -> Int[np.ndarray, "k 3"]:
    """Drop small pieces; turn over large ones whose seam with the largest faces the other way."""
    from models.geometry import _cleaning as checks

    if len(triangles) == 0:
        return triangles
    label, pieces = checks.label_pieces(len(points), triangles)
    if pieces == 1:
        return triangles
    doubled = np.linalg.norm(face_normals(points, triangles), axis=1)
    areas = np.bincount(label, doubled, minlength=pieces)
    sizes = np.bincount(label, minlength=pieces)
    largest = int(np.argmax(areas * sizes))  # by both: one huge triangle is no scan
    drop = areas < settings.speck_area * areas[largest]
    drop |= sizes < settings.speck_faces * sizes[largest]
    main = np.unique(triangles[label == largest])
    extent = float(np.linalg.norm(np.ptp(points[main], axis=0)))
    tree = cKDTree(points[main])
    for piece in np.flatnonzero(~drop & (areas < settings.scrap_area * areas[largest])):
        spots = points[np.unique(triangles[label == piece])]
        near, _ = tree.query(spots, distance_upper_bound=settings.scrap_distance * extent)
        drop[piece] = not np.isfinite(near).any()
    if sizes[drop].sum() > settings.max_dropped * len(triangles):
        drop[:] = False
    if drop.any():
        report["junk_pieces"] = int(drop.sum())
        report["junk_faces"] = int(drop[label].sum())
        triangles, label = triangles[~drop[label]], label[~drop[label]]
    normals = vertex_normals(points, triangles)
    over = np.zeros(pieces, dtype=bool)
    for piece in np.flatnonzero(~drop & (areas > settings.facing_area * areas[largest])):
        ids = np.unique(triangles[label == piece])
        near, at = tree.query(points[ids], distance_upper_bound=settings.seam_distance * extent)
        seam = np.isfinite(near)
        if piece != largest and seam.any():
            facing = (normals[ids[seam]] * normals[main[at[seam]]]).sum(axis=1)
            over[piece] = facing.mean() < -settings.seam_cosine
    if over.any():
        report["turned_faces"] += int(over[label].sum())
        triangles = np.where(over[label][:, None], triangles[:, ::-1], triangles)
    return triangles


def _mesh_cloud(points: Float[np.ndarray, "n 3"], neighbours: int) -> Int[np.ndarray, "m 3"]:
    """Triangles over a point cloud by ball pivoting; vertices in the cloud's order."""
    import pymeshlab

    unique, first = np.unique(points, axis=0, return_index=True)
    if len(unique) < FEWEST_POINTS:
        return np.zeros((0, 3), dtype=np.int64)
    order = np.sort(first)
    document = pymeshlab.MeshSet(verbose=False)
    document.add_mesh(pymeshlab.Mesh(vertex_matrix=points[order]))
    try:
        document.compute_normal_for_point_clouds(k=neighbours)
        document.generate_surface_reconstruction_ball_pivoting()
    except pymeshlab.PyMeshLabException:
        return np.zeros((0, 3), dtype=np.int64)
    mesh = document.current_mesh()
    if mesh.vertex_number() != len(order):
        raise RuntimeError("expected MeshLab to keep the points that it meshes")
    return order[np.asarray(mesh.face_matrix(), dtype=np.int64).reshape(-1, 3)]
