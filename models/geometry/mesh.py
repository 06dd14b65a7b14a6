"""Differential geometry of triangle meshes: normals, areas, rims, Laplacian, occlusion."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components as _graph_components


def face_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "f 3"]:
    """Cross products of the triangles' edges: direction is the normal, length twice the area."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    """Area-weighted unit normals; zero for vertices without area."""
    return normals_and_rim(vertices, faces)[0]


def normals_and_rim(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "v 3"], Bool[np.ndarray, " v"]]:
    """Area-weighted unit normals, and which vertices lie on the rim.

    The rim is where the surface ends or stops being an oriented manifold: borders of holes,
    edges shared by more than two triangles, changes of winding, vertices without area.
    """
    return surface_at(vertices, faces, np.ones(len(vertices), dtype=bool))[:2]


def surface_at(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    wanted: Bool[np.ndarray, " v"],
) -> tuple[Float[np.ndarray, "v 3"], Bool[np.ndarray, " v"], Float[np.ndarray, " v"]]:
    """Unit normals, rim flags and areas (a third of the triangles around) of the wanted vertices.

    What stands at the others has no meaning.
    """
    from models.geometry import _mesh

    return _mesh.surface_at(
        np.ascontiguousarray(vertices, dtype=np.float64),
        np.ascontiguousarray(faces, dtype=np.int64),
        np.ascontiguousarray(wanted),
    )


def crop(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    centre: Float[np.ndarray, "3"],
    radius: float,
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, "m 3"]]:
    """Triangles with all corners within ``radius`` of ``centre``, in the mesh's unit.

    Returns:
        Ids (K,) of their vertices, ascending, and the triangles (M, 3) numbered within those.
    """
    from models.geometry import _mesh

    return _mesh.crop(
        np.ascontiguousarray(vertices, dtype=np.float64),
        np.ascontiguousarray(faces, dtype=np.int64),
        np.ascontiguousarray(centre, dtype=np.float64),
        float(radius),
    )


def coarser(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], most: int
) -> Int[np.ndarray, "G 3"]:
    """Fewer triangles between vertices of the mesh, about the same surface.

    Quadric decimation (Garland and Heckbert 1997, as Open3D has it), its vertices moved to the
    nearest ones of the mesh; triangles that this flattens to a line are left out.

    Args:
        vertices: Of the mesh.
        faces: Its triangles.
        most: Largest number of triangles; a mesh that has no more is returned as it is.
    """
    if len(faces) <= most:
        return faces
    import open3d as o3d
    from scipy.spatial import cKDTree

    mesh = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(np.asarray(vertices, np.float64)),
        o3d.utility.Vector3iVector(np.asarray(faces, np.int32)),
    ).simplify_quadric_decimation(most)
    nearest = cKDTree(vertices).query(np.asarray(mesh.vertices))[1]
    found = nearest[np.asarray(mesh.triangles)]
    a, b, c = found.T
    return np.asarray(found[(a != b) & (b != c) & (c != a)], faces.dtype)


def vertex_areas(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, " v"]:
    """A third of the area of the triangles around each vertex, in squared units."""
    third = np.linalg.norm(face_normals(vertices, faces), axis=1) / 6.0
    return np.bincount(faces.ravel(), np.repeat(third, 3), minlength=len(vertices))


def cotangent_laplacian(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> sparse.csr_array:
    """Stiffness matrix C of the Laplace operator by linear finite elements.

    ``(C x)_i`` is the sum over the edges ij of ``(cot a + cot b) / 2 (x_i - x_j)``, with a and b
    the angles opposite the edge (Pinkall and Polthier 1993). Symmetric, rows sum to zero,
    positive semidefinite, free of units. Degenerate triangles contribute nothing.

    Returns:
        (V, V) sparse matrix.
    """
    rows, cols, values = [], [], []
    doubled = np.linalg.norm(face_normals(vertices, faces), axis=1)
    good = doubled > 1e-14 * max(float(doubled.max(initial=0.0)), np.finfo(float).tiny)
    for k in range(3):
        apex, i, j = faces[good, k], faces[good, (k + 1) % 3], faces[good, (k + 2) % 3]
        u, v = vertices[i] - vertices[apex], vertices[j] - vertices[apex]
        half = 0.5 * np.einsum("fa,fa->f", u, v) / doubled[good]
        rows += [i, j, i, j]
        cols += [j, i, i, j]
        values += [-half, -half, half, half]
    count = len(vertices)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols)))
    return sparse.coo_array(entries, shape=(count, count)).tocsr()


def connected_components(
    vertex_count: int, faces: Int[np.ndarray, "f 3"]
) -> tuple[int, Int[np.ndarray, " v"]]:
    """Number of connected components and the component of each vertex."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_array(
        (np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])),
        shape=(vertex_count, vertex_count),
    )
    count, labels = _graph_components(graph, directed=False)
    return int(count), labels.astype(np.int64)


def ambient_openness(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    rays: int,
    reach: float,
) -> Float[np.ndarray, " v"]:
    """Cosine-weighted share of the sky that each vertex sees, in [0, 1].

    One minus ambient occlusion: an exposed vertex is near 1, the inside of a nostril near 0.

    Args:
        vertices: Closed or open surface.
        faces: Wound counter-clockwise seen from outside.
        rays: Directions per vertex, the same Fibonacci spiral in every tangent frame.
        reach: Longest distance at which something occludes, in the mesh's unit.
    """
    from models.geometry import _bvh

    corners = np.ascontiguousarray(vertices[faces], dtype=np.float64)
    order, bounds, nodes = _bvh.build(corners)
    normals = vertex_normals(vertices, faces)
    helper = np.where(np.abs(normals[:, :1]) > 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
    tangent = np.cross(normals, helper)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    bitangent = np.cross(normals, tangent)
    index = np.arange(rays) + 0.5
    radius, angle = np.sqrt(index / rays), np.pi * (1 + np.sqrt(5)) * index
    local = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - index / rays)], 1)
    frames = np.stack([tangent, bitangent, normals], axis=1)
    directions = np.einsum("rk,vka->vra", local, frames)
    lift = 1e-4 * reach
    origins = np.repeat(vertices + lift * normals, rays, axis=0)
    hits = _bvh.occluded(
        np.ascontiguousarray(origins, dtype=np.float64),
        np.ascontiguousarray(directions.reshape(-1, 3)),
        np.ascontiguousarray(corners[order]),
        bounds,
        nodes,
        lift,
        reach,
    )
    return 1.0 - hits.reshape(len(vertices), rays).mean(axis=1)
