"""Vertex normals, second-order spherical harmonics and Phong reflection.

Functions of NumPy arrays or torch tensors; the result is of the same kind.
Intensities are linear; nothing is clipped here.
"""

from typing import Any, TypeVar, cast

import numpy as np

Array = TypeVar("Array")

# Y_lm constants (Ramamoorthi & Hanrahan 2001, eq. 3): 1; x, y, z; xy, yz, xz; 3z^2-1; x^2-y^2.
SH_CONSTANTS = (0.282095, 0.488603, 1.092548, 0.315392, 0.546274)
# Cosine-lobe attenuation A_l of the same paper (eq. 8), for l = 0, 1, 2.
SH_ATTENUATION = (float(np.pi), 2.0 * float(np.pi) / 3.0, float(np.pi) / 4.0)
# Published nine-term tables: places in the order of ``spherical_harmonics``, and the factor there.
_ROOT_3, _ROOT_8 = 3.0**0.5, 8.0**0.5
_DEEP3D = tuple(float(np.pi) * a for a in (1.0, 2.0 / _ROOT_3, 2.0 / _ROOT_8))
_TRACKER = (1.0, *SH_ATTENUATION[1:])
SH_TABLES = {
    # Deng et al. 2019, microsoft/Deep3DFaceReconstruction: 1, -y, z, -x, xy, -yz, 3z^2-1, -xz, ...
    "deep3d": (
        (0, 1, 2, 3, 4, 5, 6, 7, 8),
        (
            _DEEP3D[0],
            *(s * _DEEP3D[1] for s in (-1.0, 1.0, -1.0)),
            *(s * _DEEP3D[2] for s in (1.0, -1.0, 1.0, -1.0, 1.0)),
        ),
    ),
    # Zielonka et al. 2022, metrical tracker: 1, x, y, z, xy, xz, yz, x^2-y^2, 3z^2-1; its constant
    # term is not attenuated.
    "tracker": (
        (0, 3, 1, 2, 4, 7, 5, 8, 6),
        (_TRACKER[0], *(_TRACKER[1],) * 3, *(_TRACKER[2],) * 5),
    ),
}


def _stack(columns: list[Any], like: Any) -> Any:  # noqa: ANN401
    if isinstance(like, np.ndarray):
        return np.stack(columns, axis=-1)
    import torch

    return torch.stack(columns, dim=-1)


def normalize(vectors: Array, epsilon: float = 1e-12) -> Array:
    """Scale (..., 3) vectors to unit length; vectors shorter than ``epsilon`` become shorter."""
    values = cast("Any", vectors)
    squared = (values * values).sum(-1)[..., None]
    if isinstance(vectors, np.ndarray):
        return cast("Array", values / np.sqrt(np.maximum(squared, epsilon * epsilon)))
    return cast("Array", values / squared.clamp_min(epsilon * epsilon).sqrt())


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Unit normals per vertex, triangles weighted by their area.

    Args:
        vertices: (V, 3) or (B, V, 3).
        faces: (F, 3) counter-clockwise seen from outside.

    Returns:
        Same shape as ``vertices``; zero where a vertex has no triangle.
    """
    points, corners = cast("Any", vertices), cast("Any", faces)
    if isinstance(vertices, np.ndarray):
        batch = points.reshape(-1, *points.shape[-2:]).astype(np.float64)
        a, b, c = (batch[:, corners[:, i]] for i in range(3))
        areas = np.cross(b - a, c - a)
        out: np.ndarray = np.empty_like(batch)
        flat = corners.T.reshape(-1)
        for image in range(len(batch)):
            for axis in range(3):
                weights = np.tile(areas[image, :, axis], 3)
                out[image, :, axis] = np.bincount(flat, weights, minlength=batch.shape[1])
        return cast("Array", normalize(out).reshape(points.shape).astype(points.dtype))
    import torch

    index = corners.long()
    shape = points.shape
    # A vertex's numbers of all images side by side: gathered and added at a third less cost.
    rows = points.reshape(-1, *shape[-2:]).transpose(0, 1).contiguous()
    flat = rows.reshape(len(rows), -1)
    a, b, c = (flat.index_select(0, index[:, i]).reshape(-1, *rows.shape[1:]) for i in range(3))
    normals = torch.cross(b - a, c - a, dim=-1).reshape(len(index), -1)
    total: Any = torch.zeros_like(flat)
    for i in range(3):
        total = total.index_add(0, index[:, i], normals)
    summed = total.reshape(rows.shape).transpose(0, 1).reshape(shape)
    return normalize(cast("Array", summed))


def spherical_harmonics(normals: Array) -> Array:
    """The nine real spherical harmonics up to order two at unit directions.

    Order: 1, y, z, x, xy, yz, 3z^2 - 1, xz, x^2 - y^2, each with its
    normalisation (Ramamoorthi & Hanrahan 2001, eq. 3).

    Args:
        normals: (..., 3) unit vectors.

    Returns:
        (..., 9).
    """
    directions = cast("Any", normals)
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    c0, c1, c2, c3, c4 = SH_CONSTANTS
    return cast(
        "Array",
        _stack(
            [
                c0 + 0.0 * x,
                c1 * y,
                c1 * z,
                c1 * x,
                c2 * x * y,
                c2 * y * z,
                c3 * (3.0 * z * z - 1.0),
                c2 * x * z,
                c4 * (x * x - y * y),
            ],
            directions,
        ),
    )


def sh_basis(normals: Array, table: str) -> Array:
    """The nine shading terms of a published method, so that its coefficients mean the same here.

    The tables differ in order, sign and scale: coefficients are not interchangeable.

    Args:
        normals: (..., 3) unit vectors.
        table: A key of ``SH_TABLES``.

    Returns:
        (..., 9); colour = albedo * (result @ coefficients).

    Raises:
        ValueError: There is no such table.
    """
    if table not in SH_TABLES:
        raise ValueError(f"sh_basis expects a table of {sorted(SH_TABLES)}, got {table!r}")
    places, factors = SH_TABLES[table]
    basis = cast("Any", spherical_harmonics(normals))[..., list(places)]
    if isinstance(basis, np.ndarray):
        return cast("Array", basis * np.asarray(factors, dtype=basis.dtype))
    return cast("Array", basis * basis.new_tensor(factors))


def sh_irradiance(normals: Array, radiance: Array) -> Array:
    """Irradiance / pi of a distant environment, so that colour = albedo * result.

    Args:
        normals: (..., 3) unit vectors.
        radiance: (9, C) coefficients of the incoming light in the order of
            :func:`spherical_harmonics`.

    Returns:
        (..., C): sum over l, m of A_l / pi L_lm Y_lm(n).
    """
    basis, light = cast("Any", spherical_harmonics(normals)), cast("Any", radiance)
    a0, a1, a2 = (attenuation / float(np.pi) for attenuation in SH_ATTENUATION)
    factors = [a0, a1, a1, a1, a2, a2, a2, a2, a2]
    if isinstance(basis, np.ndarray):
        weights = np.asarray(factors, dtype=basis.dtype)
    else:
        weights = basis.new_tensor(factors)
    return cast("Array", (basis * weights) @ light)


def phong(
    positions: Array,
    normals: Array,
    diffuse: Array,
    lights: Array,
    intensities: Array,
    eye: Array,
    *,
    specular: Array | None = None,
    shininess: float | Array = 16.0,
    ambient: Array | None = None,
) -> Array:
    """Phong reflection of point lights, without fall-off, shadows or a tone curve.

    colour = ambient kd + sum over lights I (kd max(n.l, 0) + ks max(r.v, 0)^shininess),
    with r = 2 (n.l) n - l and no highlight where n.l <= 0 (Phong 1975).

    Args:
        positions: (..., 3) shaded points.
        normals: (..., 3) unit normals.
        diffuse: (..., C) kd.
        lights: (L, 3) light positions.
        intensities: (L, C) light colours.
        eye: (3,) camera position.
        specular: (..., C) ks; None draws no highlight.
        shininess: Exponent, a number or (..., 1).
        ambient: (C,) ambient colour; None is black.

    Returns:
        (..., C) linear colours.
    """
    points, n, kd = cast("Any", positions), cast("Any", normals), cast("Any", diffuse)
    sources, colours = cast("Any", lights), cast("Any", intensities)
    colour = kd * 0.0 if ambient is None else kd * cast("Any", ambient)
    view = cast("Any", normalize(cast("Any", eye) - points))
    for source, intensity in zip(sources, colours, strict=True):
        to_light = cast("Any", normalize(source - points))
        facing = (n * to_light).sum(-1)[..., None]
        lit = facing * (facing > 0.0)
        colour = colour + intensity * kd * lit
        if specular is not None:
            mirrored = ((2.0 * facing * n - to_light) * view).sum(-1)[..., None]
            seen = (facing > 0.0) & (mirrored > 0.0)
            # The base is 1 where no highlight is seen, so its gradient stays finite.
            base = mirrored * seen + (1.0 * ~seen)
            colour = colour + intensity * cast("Any", specular) * (base**shininess * seen)
    return cast("Array", colour)
