"""Range images in text (``.abs``), and the surface that their pixels span.

Three header lines (``480 rows``, ``640 columns``, ``pixels (flag X Y Z):``), then four blocks of
rows times columns numbers: a flag (0: nothing measured), x, y, z. The camera stands at the origin
and looks along -z, y is up.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from stages.datasets.meshes import Mesh, MeshError, checked, decompressed, numbers

NOTHING = -999998.0  # coordinates below it mark pixels without a measurement
# A face is sampled at about 1 mm: 8 mm between neighbours is a surface seen at more than 80
# degrees, of which the sensor knows next to nothing, or a jump from the nose to the cheek behind.
MAX_EDGE_MM = 8.0


@dataclass(frozen=True, slots=True)
class RangeImage:
    """A measured point per pixel.

    Attributes:
        points: In the file's unit and frame; meaningless where not valid.
        valid: Where something was measured.
    """

    points: Float[np.ndarray, "h w 3"]
    valid: Bool[np.ndarray, "h w"]


def read_range_image(path: Path) -> RangeImage:
    """Read an ``.abs`` file, gzipped or not.

    Raises:
        MeshError: Another header, another count of numbers, a valid pixel that is no number.
        FileNotFoundError: There is no such file.
    """
    content = decompressed(path).removeprefix(b"\xef\xbb\xbf")
    try:
        return _parse(content)
    except (ValueError, OverflowError) as error:
        raise MeshError(f"{path}: {error}") from error


def read_range_surface(path: Path, max_edge: float = MAX_EDGE_MM) -> Mesh:
    """Read an ``.abs`` file as a mesh.

    Args:
        path: The file.
        max_edge: See :func:`surface`.

    Raises:
        MeshError: As :func:`read_range_image`; or no three neighbouring pixels are valid.
    """
    image = read_range_image(path)
    if not image.valid.any():
        raise MeshError(f"{path}: none of its {image.valid.size} pixels is valid; it holds no scan")
    mesh = surface(image, max_edge)
    if len(mesh.faces) == 0:
        raise MeshError(
            f"{path}: {int(image.valid.sum())} pixels are valid, but no three neighbours within "
            f"{max_edge:g} of each other; it holds no surface"
        )
    return checked(mesh, path)


def _parse(content: bytes) -> RangeImage:
    lines = content.split(b"\n", 3)
    if len(lines) < 4:
        raise MeshError("the range image ends inside its header: truncated")
    sizes = {}
    for line, name in zip(lines, ("row", "col"), strict=False):
        words = line.lower().split()
        if len(words) != 2 or not words[0].isdigit() or not words[1].startswith(name.encode()):
            raise MeshError(f"expected a line such as '480 {name}...', got {_shown(line)}")
        sizes[name] = int(words[0])
    if not lines[2].lower().split()[:1] == [b"pixels"]:
        raise MeshError(f"expected a line 'pixels (flag X Y Z):', got {_shown(lines[2])}")
    height, width = sizes["row"], sizes["col"]
    values = numbers(lines[3], "the pixels")
    if len(values) != 4 * height * width:
        raise MeshError(
            f"{height} rows of {width} columns need 4 x {height * width} numbers, got "
            f"{len(values)}; the file is truncated or damaged"
        )
    blocks = values.reshape(4, height, width)
    points = np.moveaxis(blocks[1:], 0, -1)
    valid = (blocks[0] != 0) & ~(points <= NOTHING).any(axis=-1)
    broken = valid & ~np.isfinite(points).all(axis=-1)
    if broken.any():
        row, column = np.argwhere(broken)[0]
        raise MeshError(
            f"{int(broken.sum())} valid pixels are NaN or infinite, the first in row {row}, column "
            f"{column}; the scan is damaged"
        )
    return RangeImage(np.ascontiguousarray(points), valid)


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("latin1").strip())


def surface(image: RangeImage, max_edge: float = MAX_EDGE_MM) -> Mesh:
    """Join neighbouring valid pixels to triangles that face the camera.

    Four neighbours are cut along the shorter diagonal, three make one triangle. Triangles with an
    edge above ``max_edge`` span a jump in depth and are left out, with the pixels that then belong
    to none.

    Args:
        image: The range image.
        max_edge: Longest edge, in the image's unit.
    """
    height, width = image.valid.shape
    if height < 2 or width < 2:
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    faces = _grid_triangles(image)
    corners = image.points.reshape(-1, 3)[faces]
    sides = corners - np.roll(corners, 1, axis=1)
    near = (np.einsum("fkc,fkc->fk", sides, sides) <= max_edge**2).all(axis=1)
    normals = np.cross(sides[:, 1], sides[:, 2])
    keep = near & (normals != 0).any(axis=1)
    faces, normals = faces[keep], normals[keep]
    if normals[:, 2].sum() < 0:  # columns that run against x
        faces = faces[:, ::-1]
    ids = np.unique(faces)
    place = np.zeros(height * width, dtype=np.int64)
    place[ids] = np.arange(len(ids))
    return Mesh(image.points.reshape(-1, 3)[ids], place[faces])


def _grid_triangles(image: RangeImage) -> Int[np.ndarray, "f 3"]:
    """All triangles of valid neighbours, counter-clockwise on the picture, by pixel number."""
    height, width = image.valid.shape
    pixel = np.arange(height * width).reshape(height, width)
    a, b = pixel[:-1, :-1].ravel(), pixel[:-1, 1:].ravel()
    c, d = pixel[1:, :-1].ravel(), pixel[1:, 1:].ravel()
    valid, points = image.valid.ravel(), image.points.reshape(-1, 3)
    count = sum(valid[corner].astype(np.int8) for corner in (a, b, c, d))
    full = np.flatnonzero(count == 4)
    falling = points[a[full]] - points[d[full]]
    rising = points[b[full]] - points[c[full]]
    along = np.einsum("nc,nc->n", falling, falling) <= np.einsum("nc,nc->n", rising, rising)
    first, second = full[along], full[~along]
    three = np.flatnonzero(count == 3)
    parts = [(a, c, d, first), (a, d, b, first), (a, c, b, second), (b, c, d, second)]
    for missing, triangle in ((a, (b, c, d)), (b, (a, c, d)), (c, (a, d, b)), (d, (a, c, b))):
        parts.append((*triangle, three[~valid[missing[three]]]))
    rows = [np.stack([p[cells], q[cells], r[cells]], axis=1) for p, q, r, cells in parts]
    return np.concatenate(rows)
