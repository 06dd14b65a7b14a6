"""The rasteriser's one entry: NumPy arrays in, NumPy out; torch tensors in, torch out.

Conventions. Clip coordinates (x, y, z, w) are OpenGL's: x right, y up, visible
where -1 <= z/w <= 1, smaller is nearer. Images have row 0 at the TOP; the pixel
in column i and row j is sampled at its centre, px = 2(i + 0.5)/W - 1 and
py = 1 - 2(j + 0.5)/H. Edges are inclusive (no pinholes between neighbours), a
degenerate triangle covers nothing, both sides are drawn unless ``cull`` keeps only
counter-clockwise ones, and of equally near triangles the later is seen.
"""

from typing import Any, TypeVar, cast

import numpy as np

Array = TypeVar("Array")

BACKENDS = ("auto", "numba", "torch", "cuda")


def _check(clip: Any, faces: Any, height: int, width: int) -> None:  # noqa: ANN401
    if clip.ndim != 3 or clip.shape[2] != 4:
        raise ValueError(f"rasterize expects clip of shape (B, V, 4), got {tuple(clip.shape)}")
    _check_faces("rasterize", faces)
    if height < 1 or width < 1:
        raise ValueError(f"rasterize expects a positive image size, got {height} x {width}")
    _check_indices("rasterize", faces, clip.shape[1])


def _check_faces(caller: str, faces: Any) -> None:  # noqa: ANN401
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"{caller} expects faces of shape (F, 3), got {tuple(faces.shape)}")


def _check_indices(caller: str, faces: Any, vertices: int) -> None:  # noqa: ANN401
    if not len(faces):
        return
    low, high = int(faces.min()), int(faces.max())
    if not (low >= 0 and high < vertices):
        raise ValueError(
            f"{caller} expects vertex indices in 0..{vertices - 1}, got "
            f"{low}..{high}; are the faces 1-based?"
        )


def _check_attributes(caller: str, attributes: Any, images: int, vertices: int | str) -> None:  # noqa: ANN401
    """Refuse other shapes than (B, V, C) and (V, C); ``vertices`` is a word where V is free."""
    given = tuple(attributes.shape)
    count = given[-2] if isinstance(vertices, str) and len(given) > 1 else vertices
    if given[:-1] not in ((images, count), (count,)):
        raise ValueError(
            f"{caller} expects attributes of shape ({images}, {vertices}, C) or ({vertices}, C), "
            f"got {given}"
        )


def _check_seen(attributes: Any, faces: Any, ids: Any, bary: Any) -> None:  # noqa: ANN401
    """Refuse what ``interpolate`` would read past the end of; on a GPU, shapes alone."""
    _check_faces("interpolate", faces)
    pixels = tuple(ids.shape)
    if len(pixels) != 3 or tuple(bary.shape) != (*pixels, 3):
        raise ValueError(
            "interpolate expects ids of shape (B, H, W) and bary of shape (B, H, W, 3), got "
            f"{pixels} and {tuple(bary.shape)}; take both from one call of rasterize"
        )
    _check_attributes("interpolate", attributes, pixels[0], "V")
    if not isinstance(faces, np.ndarray):
        if {faces.device.type, ids.device.type} != {"cpu"}:
            return  # looking at the numbers would wait for the device
        faces, ids = faces.numpy(), ids.numpy()  # which finds extremes sooner
    _check_indices("interpolate", faces, attributes.shape[-2])
    last = int(ids.max(initial=-1))
    if last >= len(faces):
        raise ValueError(
            f"interpolate expects ids of triangles in 0..{len(faces) - 1}, got {last}; "
            "pass the faces that were rasterised"
        )


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"rasterize expects a backend of {BACKENDS}, got {backend!r}")


def rasterize(
    clip: Array,
    faces: Array,
    height: int,
    width: int,
    cull: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Array, Array, Array]:
    """Find which triangle each pixel sees, and where on it.

    Args:
        clip: (B, V, 4) floating-point clip coordinates, NumPy or torch.
        faces: (F, 3) integer vertex indices, same kind.
        height: Rows.
        width: Columns.
        cull: Draw only triangles that are counter-clockwise on the screen.
        backend: ``numba`` (CPU), ``torch`` (any device), ``cuda`` (kernels compiled at run
            time, or torch where that fails) or ``auto``: numba on the CPU; on a CUDA device the
            kernels, or torch where deterministic algorithms are demanded, because the kernels'
            gradients may differ in their last bits; torch elsewhere.
            NumPy input is always drawn by numba.

    Returns:
        ids (B, H, W) int32 with -1 for background; bary (B, H, W, 3)
        perspective-correct, zero on background; depth (B, H, W) z/w, 1 on
        background. With torch input ``bary`` is differentiable in x, y, w.

    Raises:
        ValueError: A shape, index or backend is wrong.
    """
    _check(clip, faces, height, width)
    _check_backend(backend)
    if isinstance(clip, np.ndarray):
        from models.rendering.rasterize_numba import rasterize_numba

        fragments = rasterize_numba(clip, cast("np.ndarray", faces), height, width, cull=cull)
        return cast("tuple[Array, Array, Array]", tuple(fragments))
    from models.rendering.rasterize_torch import rasterize_torch

    return cast(
        "tuple[Array, Array, Array]",
        rasterize_torch(
            cast("Any", clip), cast("Any", faces), height, width, cull=cull, backend=backend
        ),
    )


def interpolate(
    attributes: Array, faces: Array, ids: Array, bary: Array, *, backend: str = "auto"
) -> Array:
    """Interpolate vertex attributes at the visible pixels.

    Args:
        attributes: (B, V, C), or (V, C) shared by the batch.
        faces: (F, 3).
        ids: (B, H, W) from :func:`rasterize`.
        bary: (B, H, W, 3) from :func:`rasterize`.
        backend: As there.

    Returns:
        (B, H, W, C) in the dtype of the attributes, zero on background; differentiable
        in attributes and bary when they are torch tensors.

    Raises:
        ValueError: A shape, index or backend is wrong, or the backend does not draw on the
            tensors' device. Indices of tensors on a GPU are not looked at, which would wait
            for it.
    """
    _check_backend(backend)
    _check_seen(attributes, faces, ids, bary)
    if isinstance(attributes, np.ndarray):
        from models.rendering.rasterize_numba import interpolate_numba

        count = cast("np.ndarray", ids).shape[0]
        values: np.ndarray = attributes
        if values.ndim == 2:
            values = np.broadcast_to(values, (count, *values.shape))
        return cast(
            "Array",
            interpolate_numba(
                values,
                cast("np.ndarray", faces),
                cast("np.ndarray", ids),
                cast("np.ndarray", bary),
            ),
        )
    from models.rendering.rasterize_torch import interpolate_torch

    return cast(
        "Array",
        interpolate_torch(
            *(cast("Any", part) for part in (attributes, faces, ids, bary)), backend=backend
        ),
    )


def draw(
    clip: Array,
    faces: Array,
    attributes: Array,
    height: int,
    width: int,
    cull: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Array, Array]:
    """Rasterise and interpolate, where the barycentrics are not wanted.

    On the CPU this is one pass forward and one backward instead of two and two, with the same
    values and gradients to the last bit as :func:`interpolate` of :func:`rasterize`.

    Args:
        clip: As for :func:`rasterize`.
        faces: As for :func:`rasterize`.
        attributes: (B, V, C), or (V, C) shared by the batch.
        height: Rows.
        width: Columns.
        cull: Draw only counter-clockwise triangles.
        backend: As for :func:`rasterize`.

    Returns:
        ids (B, H, W) int32 with -1 for background, and values (B, H, W, C), zero there; with
        torch input the values are differentiable in ``attributes`` and in x, y, w of ``clip``.

    Raises:
        ValueError: A shape, index or backend is wrong.
    """
    _check(clip, faces, height, width)
    _check_backend(backend)
    _check_attributes("draw", attributes, *cast("Any", clip).shape[:2])
    if isinstance(clip, np.ndarray):
        from models.rendering.rasterize_numba import draw_numba

        values = cast("np.ndarray", attributes)
        if values.ndim == 2:
            values = np.broadcast_to(values, (clip.shape[0], *values.shape))
        drawn = draw_numba(clip, cast("np.ndarray", faces), values, height, width, cull=cull)
        return cast("tuple[Array, Array]", drawn)
    from models.rendering.rasterize_torch import draw_torch

    found = draw_torch(
        cast("Any", clip),
        cast("Any", faces),
        cast("Any", attributes),
        height,
        width,
        cull=cull,
        backend=backend,
    )
    return cast("tuple[Array, Array]", found)
