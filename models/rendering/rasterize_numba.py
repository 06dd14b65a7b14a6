"""CPU rasteriser: triangle ids by edge functions, then barycentrics of the visible pixels.

Arrays and threads around the loops of ``rasterize_kernels`` and ``resolve_kernels``.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from models.rendering import rasterize_kernels, resolve_kernels
from models.rendering.rectangle import Rectangle

MINIMUM_AREA_PX2 = 0.01
"""Triangles smaller than this (in pixels squared) pass no gradient."""


class Fragments(NamedTuple):
    """What is seen at each pixel.

    Attributes:
        ids: (B, H, W) int32 triangle index, -1 where nothing is.
        bary: (B, H, W, 3) perspective-correct barycentrics, zero where nothing is.
        depth: (B, H, W) z/w, 1 where nothing is.
    """

    ids: Int[np.ndarray, "b h w"]
    bary: Float[np.ndarray, "b h w 3"]
    depth: Float[np.ndarray, "b h w"]


class _Scratch(threading.local):
    """Buffers of one thread, kept between calls: fresh pages cost more than what is drawn on them.

    The contents are undefined; the names keep buffers of one call apart.
    """

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """A float64 array of ``shape``, valid until the thread asks for ``name`` again."""
        size = int(np.prod(shape))
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = np.empty(size, dtype=np.float64)
        return self._kept[name][:size].reshape(shape)


_scratch = _Scratch()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a pool's threads do not survive a fork


def _each_image(work: Callable[[Iterable[int]], None], count: int, workers: int) -> None:
    """Call ``work`` with the images of each worker; threads run it where there are several.

    Who is free takes the next image, so that nobody waits for a thread that was kept from running.
    An image is drawn by one thread into its own rows: the bytes do not depend on ``workers``.
    """
    workers = min(workers, count)
    if workers <= 1:
        work(range(count))
        return
    remaining = iter(range(count))  # of which each number goes to one thread, by the GIL
    if workers not in _pools:
        _pools[workers] = ThreadPoolExecutor(workers - 1, thread_name_prefix="rasterize")
    others = [_pools[workers].submit(work, remaining) for _ in range(workers - 1)]
    work(remaining)
    for other in others:
        other.result()


def _nearest(
    clip: np.ndarray, faces: np.ndarray, cull: bool, ids: np.ndarray
) -> tuple[Rectangle, np.ndarray]:
    """Fill ``ids`` (H, W) of one image.

    Returns:
        The rectangle outside which nothing is seen, and the depths in it, float64, in this
        thread's scratch.
    """
    height, width = ids.shape
    place = _scratch("place", clip.shape[0], 3)
    all_known, bounds = rasterize_kernels.screen(clip, height, width, place)
    whole = Rectangle(0, 0, height, width)  # what passes the camera may be seen anywhere
    rectangle = Rectangle.between(bounds, height, width) if all_known else whole
    top, left, rows, columns = rectangle
    depth = _scratch("depth", rows, width)
    inside = depth[:, left : left + columns]
    inside.fill(1.0)
    ids.fill(-1)
    if rows:
        drawn = ids[top : top + rows]
        rasterize_kernels.visible(place, clip, faces, cull, -1.0, top, 0, drawn, depth)
    return rectangle, inside


def rasterize_numba(
    clip: Float[np.ndarray, "b v 4"],
    faces: Integer[np.ndarray, "f 3"],
    height: int,
    width: int,
    *,
    cull: bool = False,
    workers: int = 1,
) -> Fragments:
    """Rasterise on the CPU; see ``models.rendering.rasterize.rasterize`` for the conventions.

    Edges and depths are computed in float64 whatever the input; ``bary`` and
    ``depth`` come back in the dtype of ``clip``. ``workers`` threads share the batch.
    """
    clip = np.ascontiguousarray(clip)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    count = clip.shape[0]
    ids = np.empty((count, height, width), dtype=np.int32)
    depth = np.empty((count, height, width), dtype=clip.dtype)
    bary = np.empty((count, height, width, 3), dtype=clip.dtype)

    def draw(images: Iterable[int]) -> None:
        for image in images:
            (top, left, rows, columns), inside = _nearest(clip[image], indices, cull, ids[image])
            depth[image] = 1.0
            depth[image, top : top + rows, left : left + columns] = inside
            resolve_kernels.barycentrics(clip[image], indices, ids[image], bary[image])

    _each_image(draw, count, workers)
    return Fragments(ids, bary, depth)


def draw_numba(
    clip: Float[np.ndarray, "b v 4"],
    faces: Integer[np.ndarray, "f 3"],
    attributes: Float[np.ndarray, "b v c"],
    height: int,
    width: int,
    *,
    cull: bool = False,
    workers: int = 1,
    out: Float[np.ndarray, "b h w c"] | None = None,
) -> tuple[Int[np.ndarray, "b h w"], Float[np.ndarray, "b h w c"]]:
    """Rasterise and interpolate where nothing is differentiated: no barycentrics are kept.

    Args:
        clip: As for :func:`rasterize_numba`.
        faces: As for :func:`rasterize_numba`.
        attributes: Per image and vertex.
        height: Rows.
        width: Columns.
        cull: Draw only counter-clockwise triangles.
        workers: Threads that share the batch.
        out: Where to put the values, C-contiguous; None makes a new array.

    Returns:
        ids, and the values: bit for bit those of :func:`interpolate_numba`.

    Raises:
        ValueError: ``out`` has another shape or type.
    """
    clip = np.ascontiguousarray(clip)
    attributes = np.ascontiguousarray(attributes)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    shape = (clip.shape[0], height, width, attributes.shape[2])
    values = np.empty(shape, dtype=attributes.dtype) if out is None else out
    if values.shape != shape or values.dtype != attributes.dtype or not values.flags.c_contiguous:
        raise ValueError(
            f"draw_numba expects a C-contiguous {attributes.dtype} out of shape {shape}, "
            f"got {values.dtype} {values.shape}"
        )
    ids = np.empty(shape[:3], dtype=np.int32)

    def draw(images: Iterable[int]) -> None:
        for image in images:
            rectangle, _ = _nearest(clip[image], indices, cull, ids[image])
            resolve_kernels.resolve(
                clip[image], indices, ids[image], attributes[image], tuple(rectangle), values[image]
            )

    _each_image(draw, shape[0], workers)
    return ids, values


def rasterize_numba_backward(
    clip: Float[np.ndarray, "b v 4"],
    faces: Integer[np.ndarray, "f 3"],
    ids: Int[np.ndarray, "b h w"],
    bary: Float[np.ndarray, "b h w 3"],
    gradient: Float[np.ndarray, "b h w 3"],
    *,
    minimum_area_px2: float = MINIMUM_AREA_PX2,
    workers: int = 1,
) -> Float[np.ndarray, "b v 4"]:
    """Gradient of a loss with respect to ``clip``, given its gradient with respect to ``bary``.

    The visible triangle is held fixed and its plane extended without bound, so a
    corner keeps its gradient when it moves across the pixel (Genova et al. 2018).
    With the pixel moved to the origin (X = x - px w, Y = y - py w), h = g - g.b:
    lx = -sum_i h_i (Y_j w_k - Y_k w_j) / det, ly likewise, lw = -(px lx + py ly),
    and each corner c receives b_c (lx, ly, 0, lw).
    """
    clip = np.ascontiguousarray(clip)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    gradient = np.ascontiguousarray(gradient)
    out = np.empty_like(clip)

    def gather(images: Iterable[int]) -> None:
        total = _scratch("total", *clip.shape[1:])
        for image in images:
            total.fill(0.0)
            resolve_kernels.backward(
                clip[image],
                indices,
                ids[image],
                bary[image],
                gradient[image],
                minimum_area_px2,
                total,
            )
            out[image] = total

    _each_image(gather, clip.shape[0], workers)
    return out


def draw_numba_backward(
    clip: Float[np.ndarray, "b v 4"],
    faces: Integer[np.ndarray, "f 3"],
    attributes: Float[np.ndarray, "b v c"],
    ids: Int[np.ndarray, "b h w"],
    gradient: Float[np.ndarray, "b h w c"],
    *,
    minimum_area_px2: float = MINIMUM_AREA_PX2,
    workers: int = 1,
) -> tuple[Float[np.ndarray, "b v 4"], Float[np.ndarray, "b v c"]]:
    """Gradients of ``draw_numba`` with respect to ``clip`` and to the attributes.

    Bit for bit those of ``interpolate_numba_backward`` and ``rasterize_numba_backward``.
    """
    clip = np.ascontiguousarray(clip)
    attributes = np.ascontiguousarray(attributes)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    gradient = np.ascontiguousarray(gradient)
    to_clip = np.empty_like(clip)
    to_attributes = np.empty(attributes.shape, dtype=attributes.dtype)

    def gather(images: Iterable[int]) -> None:
        total = _scratch("total", *clip.shape[1:])
        for image in images:
            to_attributes[image] = 0.0
            total.fill(0.0)
            resolve_kernels.resolve_backward(
                clip[image],
                indices,
                ids[image],
                attributes[image],
                gradient[image],
                minimum_area_px2,
                to_attributes[image],
                total,
            )
            to_clip[image] = total

    _each_image(gather, ids.shape[0], workers)
    return to_clip, to_attributes


def interpolate_numba(
    attributes: Float[np.ndarray, "b v c"],
    faces: Integer[np.ndarray, "f 3"],
    ids: Int[np.ndarray, "b h w"],
    bary: Float[np.ndarray, "b h w 3"],
    *,
    workers: int = 1,
) -> Float[np.ndarray, "b h w c"]:
    """Weighted sums of vertex attributes at the visible pixels, zero elsewhere."""
    attributes = np.ascontiguousarray(attributes)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    out = np.empty((*ids.shape, attributes.shape[2]), dtype=attributes.dtype)

    def fill(images: Iterable[int]) -> None:
        for image in images:
            resolve_kernels.interpolate(
                attributes[image], indices, ids[image], bary[image], out[image]
            )

    _each_image(fill, ids.shape[0], workers)
    return out


def interpolate_numba_backward(
    attributes: Float[np.ndarray, "b v c"],
    faces: Integer[np.ndarray, "f 3"],
    ids: Int[np.ndarray, "b h w"],
    bary: Float[np.ndarray, "b h w 3"],
    gradient: Float[np.ndarray, "b h w c"],
    *,
    workers: int = 1,
) -> tuple[Float[np.ndarray, "b v c"], Float[np.ndarray, "b h w 3"]]:
    """Gradients of ``interpolate_numba`` with respect to the attributes and the barycentrics."""
    attributes = np.ascontiguousarray(attributes)
    indices = np.ascontiguousarray(faces, dtype=np.int32)
    gradient = np.ascontiguousarray(gradient)
    to_attributes = np.empty(attributes.shape, dtype=attributes.dtype)
    to_bary = np.empty(bary.shape, dtype=bary.dtype)

    def gather(images: Iterable[int]) -> None:
        for image in images:
            to_attributes[image] = 0.0
            resolve_kernels.interpolate_backward(
                attributes[image],
                indices,
                ids[image],
                bary[image],
                gradient[image],
                to_attributes[image],
                to_bary[image],
            )

    _each_image(gather, ids.shape[0], workers)
    return to_attributes, to_bary
