"""Text files that come with scans: metadata, landmarks, camera calibrations, picked points."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8

NOW_SEVEN = (36, 39, 42, 45, 33, 48, 54)  # iBUG-68 places of the seven benchmark landmarks


def metadata_text(fields: Mapping[str, str]) -> str:
    """Return Headspace's subject text: one ``key:value`` per line, values may be empty."""
    return "".join(f"{key}:{value}\r\n" for key, value in fields.items())


def index_lines(indices: Int[np.ndarray, "n"]) -> str:
    """Return Headspace's ``ldmks<capture>.txt``: one 1-based vertex index per line."""
    return "".join(f"{index + 1}\n" for index in indices)


def lnd_text(points: Float[np.ndarray, "n 3"]) -> str:
    """Return a ``.lnd``: rows ``k x y z``."""
    return "".join(f"{k} {x:.6f} {y:.6f} {z:.6f}\n" for k, (x, y, z) in enumerate(points, 1))


def land_text(points_px: Float[np.ndarray, "n 2"], height_px: int, width_px: int) -> str:
    """Return FaceWarehouse's ``.land``: the count, then x and y in [0, 1], y up."""
    scaled = points_px / np.array([width_px, height_px])
    rows = "".join(f"{x:.6f} {1.0 - y:.6f}\n" for x, y in scaled)
    return f"{len(points_px)}\n{rows}"


def picked_points(points: Float[np.ndarray, "n 3"], scan_name: str) -> str:
    """Return MeshLab's PickedPoints XML with exactly eight lines before the first point.

    The official reader takes lines 9 to 15 of the file by position.
    """
    head = [
        "<!DOCTYPE PickedPoints>",
        "<PickedPoints>",
        " <DocumentData>",
        '  <DateTime time="14:22:06" date="2018-05-02"/>',
        '  <User name="user"/>',
        f'  <DataFileName name="{scan_name}"/>',
        '  <templateName name="new Template"/>',
        " </DocumentData>",
    ]
    rows = [
        f' <point active="1" x="{x:.6g}" y="{y:.6g}" z="{z:.6g}" name="{k}"/>'
        for k, (x, y, z) in enumerate(points)
    ]
    return "\n".join([*head, *rows, "</PickedPoints>", ""])


def tka_text(
    R_cam_from_world: Float[np.ndarray, "3 3"],
    centre: Float[np.ndarray, "3"],
    focal_mm: float,
    pixel_mm: float,
    size_px: tuple[int, int],
    principal_px: tuple[float, float],
) -> str:
    """Return a 3dMD ``.tka`` camera calibration.

    Args:
        R_cam_from_world: Rotation from scan axes to camera axes (x right, y down, z forward).
        centre: Camera centre in scan units.
        focal_mm: Focal length.
        pixel_mm: Size of a pixel.
        size_px: Height and width.
        principal_px: Principal point x, y.
    """
    rows = "\n".join("   " + " ".join(f"{value:.9g}" for value in row) for row in R_cam_from_world)
    height, width = size_px
    return (
        "%\n% camera calibration\n%\n"
        f"%M\n{rows}\n"
        f"%X {centre[0]:.9g}\n%Y {centre[1]:.9g}\n%Z {centre[2]:.9g}\n"
        f"%f {focal_mm:.9g}\n%K 0\n%K2 0\n"
        f"%x {principal_px[0] * pixel_mm:.9g}\n%y {principal_px[1] * pixel_mm:.9g}\n"
        f"%s {pixel_mm:.9g} {pixel_mm:.9g}\n%is {width} {height}\n"
    )


def material_text(name: str, texture: str | None) -> str:
    """Return an ``.mtl`` with one material."""
    image = f"map_Kd {texture}\n" if texture else ""
    return f"newmtl {name}\nKa 1.0 1.0 1.0\nKd 1.0 1.0 1.0\nKs 0.0 0.0 0.0\nillum 1\n{image}"


def shape_bs(shapes: Float[np.ndarray, "s v 3"], face_count: int) -> bytes:
    """Return FaceWarehouse's ``shape.bs``: counts, then neutral and blendshape positions.

    Args:
        shapes: Neutral first, absolute positions.
        face_count: Number of polygons of the mesh.
    """
    counts = np.array([len(shapes) - 1, shapes.shape[1], face_count], dtype="<i4")
    return counts.tobytes() + np.ascontiguousarray(shapes, dtype="<f4").tobytes()


def planar_texture(
    vertices: Float[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"], size_px: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the texture that ``obj_text``'s planar coordinates look up: the nearest colour.

    Args:
        vertices: As written to the OBJ.
        colours: RGB per vertex.
        size_px: Height and width.
    """
    from scipy.spatial import cKDTree

    height, width = size_px
    low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height)
    _, index = cKDTree((vertices[:, :2] - low) / (high - low)).query(np.stack([u, v], axis=-1))
    return np.asarray(colours[index])


def ply_bytes(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> bytes:
    """Return a binary little-endian PLY of triangles."""
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    polygons = np.zeros(len(faces), dtype=[("count", "u1"), ("corners", "<i4", (3,))])
    polygons["count"], polygons["corners"] = 3, faces
    return header.encode() + vertices.astype("<f4").tobytes() + polygons.tobytes()
