"""Torch entry of the rasteriser: visibility by any backend, gradients by one formula.

Visibility comes from the numba kernels (CPU), from CUDA kernels compiled at run time, or from
plain tensor operations (any device): every (triangle, pixel of its bounding box) pair is
enumerated, tested, and the nearest is found with one integer ``scatter_reduce_(amin)`` on the
packed key ``depth << 32 | triangle``. An integer minimum does not depend on the order of the
updates, so the result is the same in every run.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from models.rendering.rasterize_cuda import CudaKernels, cuda_kernels
from models.rendering.rasterize_numba import (
    MINIMUM_AREA_PX2,
    draw_numba,
    draw_numba_backward,
    interpolate_numba,
    interpolate_numba_backward,
    rasterize_numba,
    rasterize_numba_backward,
)

DEPTH_LEVELS = (1 << 30) - 1
PAIRS_PER_PASS = 1 << 22
_LAST = (1 << 31) - 1
_NOTHING = (DEPTH_LEVELS + 1) << 32


def _working_dtype(clip: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no other."""
    return torch.float32 if clip.device.type == "mps" else torch.float64


def _edges(corners: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of adj(M) and det M for (..., 3, 4) triangles: edge i = a_i px + b_i py + c_i."""
    x, y, w = corners[..., 0], corners[..., 1], corners[..., 3]
    xj, xk = x.roll(-1, -1), x.roll(-2, -1)
    yj, yk = y.roll(-1, -1), y.roll(-2, -1)
    wj, wk = w.roll(-1, -1), w.roll(-2, -1)
    a = yj * wk - yk * wj
    b = xk * wj - xj * wk
    c = xj * yk - xk * yj
    return a, b, c, (c * w).sum(-1)


def _boxes(corners: Tensor, height: int, width: int) -> Tensor:
    """First and last column and row, (..., 4) int64, of each triangle's pixels (may be empty)."""
    w = corners[..., 3]
    safe = torch.where(w > 0, w, torch.ones_like(w))
    u = (corners[..., 0] / safe + 1.0) * (0.5 * width) - 0.5
    v = (1.0 - corners[..., 1] / safe) * (0.5 * height) - 0.5
    slack = 1e-7 if corners.dtype == torch.float64 else 1e-3
    left = (u.amin(-1) - slack).ceil().clamp(0, width)
    right = (u.amax(-1) + slack).floor().clamp(-1, width - 1)
    top = (v.amin(-1) - slack).ceil().clamp(0, height)
    bottom = (v.amax(-1) + slack).floor().clamp(-1, height - 1)
    whole = (w <= 0).any(-1)
    zero = torch.zeros_like(left)
    left, top = torch.where(whole, zero, left), torch.where(whole, zero, top)
    right = torch.where(whole, zero + (width - 1), right)
    bottom = torch.where(whole, zero + (height - 1), bottom)
    return torch.stack([left, right, top, bottom], dim=-1).nan_to_num(-1.0).long()


def _nearest(
    corners: Float[Tensor, "f 3 4"], height: int, width: int, *, cull: bool
) -> Int[Tensor, " n"]:
    """Packed keys of one image, (H * W,) int64; ``_NOTHING`` where no triangle is."""
    device = corners.device
    a, b, c, determinant = _edges(corners)
    if not cull:
        sign = determinant.sign()[:, None]
        a, b, c, determinant = a * sign, b * sign, c * sign, determinant.abs()
    boxes = _boxes(corners, height, width)
    columns = (boxes[:, 1] - boxes[:, 0] + 1).clamp_min(0)
    rows = (boxes[:, 3] - boxes[:, 2] + 1).clamp_min(0)
    drawn = (
        (determinant > 0)
        & determinant.isfinite()
        & (corners[..., 3] > 0).any(-1)
        & corners.isfinite().all(-1).all(-1)
    )
    counts = torch.where(drawn, columns * rows, 0)
    safe = torch.where(drawn, determinant, torch.ones_like(determinant))
    depth_of_corner = corners[..., 2] / safe[:, None]
    planes = torch.stack([(term * depth_of_corner).sum(-1) for term in (a, b, c)], dim=-1)
    keys = torch.full((height * width,), _NOTHING, dtype=torch.int64, device=device)
    faces = counts.nonzero()[:, 0]
    ends = counts[faces].cumsum(0)
    start = 0
    while start < len(faces):
        done = int(ends[start - 1]) if start else 0
        stop = int(torch.searchsorted(ends, done + PAIRS_PER_PASS, right=True))
        stop = max(stop, start + 1)
        chunk = faces[start:stop]
        sizes = counts[chunk]
        which = torch.repeat_interleave(chunk, sizes)
        first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        offset = torch.arange(len(which), device=device) - first
        column = boxes[which, 0] + offset % columns[which]
        row = boxes[which, 2] + offset // columns[which]
        px = (column.to(corners.dtype) + 0.5) * (2.0 / width) - 1.0
        py = 1.0 - (row.to(corners.dtype) + 0.5) * (2.0 / height)
        inside = (a[which] * px[:, None] + (b[which] * py[:, None] + c[which]) >= 0).all(-1)
        plane = planes[which]
        z = plane[:, 0] * px + (plane[:, 1] * py + plane[:, 2])
        seen = inside & (z >= -1.0) & (z <= 1.0)
        level = ((z[seen] + 1.0) * (0.5 * DEPTH_LEVELS)).round().long().clamp(0, DEPTH_LEVELS)
        # Of equal depths the later triangle has the smaller key.
        packed = (level << 32) | (_LAST - which[seen])
        keys.scatter_reduce_(0, (row * width + column)[seen], packed, "amin", include_self=True)
        start = stop
    return keys


def visible_torch(
    clip: Float[Tensor, "b v 4"],
    faces: Integer[Tensor, "f 3"],
    height: int,
    width: int,
    *,
    cull: bool = False,
) -> Int[Tensor, "b h w"]:
    """Triangle ids by tensor operations alone, on the device of ``clip``.

    Depth is compared in steps of 2^-29, so triangles closer together than that
    count as equally near and the later one is seen.
    """
    ids = []
    for image in clip.detach().to(_working_dtype(clip)):
        keys = _nearest(image[faces.long()], height, width, cull=cull)
        face = _LAST - (keys & 0xFFFFFFFF)
        ids.append(torch.where(keys < _NOTHING, face, -1).to(torch.int32).view(height, width))
    return torch.stack(ids) if ids else clip.new_zeros((0, height, width), dtype=torch.int32)


def _pixel_centres(
    pixels: Tensor, height: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Image index and normalised device coordinates of flat (B*H*W) pixel indices."""
    image = pixels // (height * width)
    column = (pixels % width).to(dtype)
    row = ((pixels // width) % height).to(dtype)
    px = (column + 0.5) * (2.0 / width) - 1.0
    py = 1.0 - (row + 0.5) * (2.0 / height)
    return image, px, py


class _VisiblePixels:
    """The covered pixels of a batch with their triangles' corners, pixel moved to the origin."""

    def __init__(self, clip: Tensor, faces: Tensor, ids: Tensor) -> None:
        height, width = ids.shape[1:]
        flat = ids.reshape(-1)
        self.pixels = (flat >= 0).nonzero()[:, 0]
        dtype = _working_dtype(clip)
        image, self.px, self.py = _pixel_centres(self.pixels, height, width, dtype)
        self.corner = faces.long()[flat[self.pixels].long()] + image[:, None] * clip.shape[1]
        corners = clip.detach().reshape(-1, 4)[self.corner].to(dtype)
        self.w = corners[..., 3]
        self.x = corners[..., 0] - self.px[:, None] * self.w
        self.y = corners[..., 1] - self.py[:, None] * self.w
        self.z = corners[..., 2]

    def edges(self) -> Tensor:
        """(N, 3) edge values."""
        x, y = self.x, self.y
        return x.roll(-1, -1) * y.roll(-2, -1) - x.roll(-2, -1) * y.roll(-1, -1)


def _barycentrics(clip: Tensor, faces: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentrics (B, H, W, 3) and depth (B, H, W) of known triangles, on any device."""
    visible = _VisiblePixels(clip, faces, ids)
    edges = visible.edges()
    weights = edges / edges.sum(-1, keepdim=True)
    bary = clip.new_zeros((ids.numel(), 3))
    bary[visible.pixels] = weights.to(clip.dtype)
    depth = clip.new_ones(ids.numel())
    nearness = (weights * visible.z).sum(-1) / (weights * visible.w).sum(-1)
    depth[visible.pixels] = nearness.to(clip.dtype)
    return bary.view(*ids.shape, 3), depth.view(ids.shape)


def _backward(clip: Tensor, faces: Tensor, ids: Tensor, bary: Tensor, gradient: Tensor) -> Tensor:
    """Tensor twin of ``rasterize_numba_backward``."""
    visible = _VisiblePixels(clip, faces, ids)
    height, width = ids.shape[1:]
    x, y, w = visible.x, visible.y, visible.w
    edges = visible.edges()
    determinant = (edges * w).sum(-1)
    product = w.prod(-1)
    large = determinant.abs() * (0.125 * width * height) >= MINIMUM_AREA_PX2 * product
    kept = (determinant != 0) & (large | (product <= 0))
    safe = torch.where(kept, determinant, torch.ones_like(determinant))
    weights = bary.reshape(-1, 3)[visible.pixels].to(x.dtype)
    h = gradient.reshape(-1, 3)[visible.pixels].to(x.dtype)
    h = h - (h * weights).sum(-1, keepdim=True)
    rows_x = y.roll(-1, -1) * w.roll(-2, -1) - y.roll(-2, -1) * w.roll(-1, -1)
    rows_y = x.roll(-2, -1) * w.roll(-1, -1) - x.roll(-1, -1) * w.roll(-2, -1)
    lx = torch.where(kept, -(h * rows_x).sum(-1) / safe, 0.0)
    ly = torch.where(kept, -(h * rows_y).sum(-1) / safe, 0.0)
    lw = -(visible.px * lx + visible.py * ly)
    lines = torch.stack([lx, ly, torch.zeros_like(lx), lw], dim=-1)
    out = torch.zeros((clip.shape[0] * clip.shape[1], 4), dtype=x.dtype, device=clip.device)
    contributions = (weights[..., None] * lines[:, None, :]).reshape(-1, 4)
    out.index_put_((visible.corner.reshape(-1),), contributions, accumulate=True)
    return out.view(clip.shape).to(clip.dtype)


Engine = CudaKernels | Literal["numba", "torch"]


def _engine(backend: str, tensor: Tensor) -> Engine:
    """What draws ``tensor``: a backend's name, or its compiled kernels."""
    on_cpu = tensor.device.type == "cpu"
    by_kernels = tensor.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    if backend == "cuda" or (backend == "auto" and by_kernels):
        return cuda_kernels(tensor) or "torch"
    if backend == "numba" and not on_cpu:
        raise ValueError(
            f"the numba backend draws CPU tensors, got {tensor.device}; use backend='torch'"
        )
    return "numba" if backend == "numba" or (backend == "auto" and on_cpu) else "torch"


class _Rasterize(torch.autograd.Function):
    """ids, bary, depth; only bary carries a gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        clip: Tensor,
        faces: Tensor,
        height: int,
        width: int,
        cull: bool,
        engine: Engine,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(engine, CudaKernels):
            ids, bary, depth = engine.rasterize(clip, faces, height, width, cull=cull)
        elif engine == "numba":
            faces = faces.int()  # once, for both directions
            found = rasterize_numba(
                clip.detach().numpy(),
                faces.numpy(),
                height,
                width,
                cull=cull,
                workers=torch.get_num_threads(),
            )
            ids, bary, depth = (torch.from_numpy(part) for part in found)
        else:
            ids = visible_torch(clip, faces, height, width, cull=cull)
            bary, depth = _barycentrics(clip, faces, ids)
        ctx.save_for_backward(clip, faces, ids, bary)
        ctx.engine = engine
        ctx.mark_non_differentiable(ids, depth)
        return ids, bary, depth

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, None, None, None, None, None]:
        clip, faces, ids, bary = ctx.saved_tensors
        gradient = gradients[1]
        if isinstance(ctx.engine, CudaKernels):
            to_clip = ctx.engine.rasterize_backward(
                clip, faces, ids, bary, gradient, MINIMUM_AREA_PX2
            )
        elif ctx.engine == "numba":
            to_clip = torch.from_numpy(
                rasterize_numba_backward(
                    clip.detach().numpy(),
                    faces.numpy(),
                    ids.numpy(),
                    bary.numpy(),
                    gradient.detach().numpy(),
                    workers=torch.get_num_threads(),
                )
            )
        else:
            to_clip = _backward(clip, faces, ids, bary, gradient)
        return to_clip, None, None, None, None, None


class _Interpolate(torch.autograd.Function):
    """The fused interpolation of compiled backends with its analytic gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        attributes: Tensor,
        faces: Tensor,
        ids: Tensor,
        bary: Tensor,
        engine: Engine,
    ) -> Tensor:
        faces = faces if isinstance(engine, CudaKernels) else faces.int()  # once, for both ways
        ctx.save_for_backward(attributes, faces, ids, bary)
        ctx.engine = engine
        if isinstance(engine, CudaKernels):
            return engine.interpolate(attributes, faces, ids, bary)
        parts = (part.detach().numpy() for part in (attributes, faces, ids, bary))
        return torch.from_numpy(interpolate_numba(*parts, workers=torch.get_num_threads()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, None, None, Tensor, None]:
        if isinstance(ctx.engine, CudaKernels):
            attributes, faces, ids, bary = ctx.saved_tensors
            found = ctx.engine.interpolate_backward(attributes, faces, ids, bary, gradients[0])
            return found[0], None, None, found[1], None
        parts = (part.detach().numpy() for part in (*ctx.saved_tensors, gradients[0]))
        to_attributes, to_bary = interpolate_numba_backward(*parts, workers=torch.get_num_threads())
        return torch.from_numpy(to_attributes), None, None, torch.from_numpy(to_bary), None


class _Draw(torch.autograd.Function):
    """ids and values by the CPU's fused passes: barycentrics are neither kept nor passed on."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        clip: Tensor,
        faces: Tensor,
        attributes: Tensor,
        height: int,
        width: int,
        cull: bool,
    ) -> tuple[Tensor, Tensor]:
        faces = faces.int()  # once, for both directions
        clip, attributes = clip.detach().contiguous(), attributes.detach().contiguous()
        found = draw_numba(
            clip.numpy(),
            faces.numpy(),
            attributes.numpy(),
            height,
            width,
            cull=cull,
            workers=torch.get_num_threads(),
        )
        ids, values = map(torch.from_numpy, found)
        ctx.save_for_backward(clip, faces, attributes, ids)
        ctx.mark_non_differentiable(ids)
        return ids, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, None, Tensor, None, None, None]:
        parts = (part.numpy() for part in (*ctx.saved_tensors, gradients[1].detach()))
        to_clip, to_attributes = draw_numba_backward(*parts, workers=torch.get_num_threads())
        return torch.from_numpy(to_clip), None, torch.from_numpy(to_attributes), None, None, None


def rasterize_torch(
    clip: Float[Tensor, "b v 4"],
    faces: Integer[Tensor, "f 3"],
    height: int,
    width: int,
    *,
    cull: bool = False,
    backend: str = "auto",
) -> tuple[Int[Tensor, "b h w"], Float[Tensor, "b h w 3"], Float[Tensor, "b h w"]]:
    """Rasterise tensors; see ``models.rendering.rasterize.rasterize``.

    Raises:
        ValueError: A backend is asked for tensors on a device that it does not draw on.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _Rasterize.apply(
        clip, faces, height, width, cull, _engine(backend, clip)
    )  # type: ignore[no-untyped-call]
    return outputs


def interpolate_torch(
    attributes: Float[Tensor, "*b v c"],
    faces: Integer[Tensor, "f 3"],
    ids: Int[Tensor, "b h w"],
    bary: Float[Tensor, "b h w 3"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "b h w c"]:
    """Interpolate vertex attributes, in their dtype; differentiable in them and in ``bary``."""
    count = ids.shape[0]
    if attributes.ndim == 2:
        attributes = attributes.expand(count, *attributes.shape)
    engine = _engine(backend, attributes)
    if engine != "torch":
        values: Tensor = _Interpolate.apply(attributes, faces, ids, bary, engine)  # type: ignore[no-untyped-call]
        return values
    flat = ids.reshape(-1)
    pixels = (flat >= 0).nonzero()[:, 0]
    image = pixels // (ids.shape[1] * ids.shape[2])
    corner = faces.long()[flat[pixels].long()] + image[:, None] * attributes.shape[1]
    corners = attributes.reshape(-1, attributes.shape[-1])[corner]
    weights = bary.reshape(-1, 3)[pixels].to(attributes.dtype)
    weighted = (corners * weights[..., None]).sum(-2)
    empty = attributes.new_zeros((flat.shape[0], attributes.shape[-1]))
    return empty.index_copy(0, pixels, weighted).view(*ids.shape, attributes.shape[-1])


def draw_torch(
    clip: Float[Tensor, "b v 4"],
    faces: Integer[Tensor, "f 3"],
    attributes: Float[Tensor, "*b v c"],
    height: int,
    width: int,
    *,
    cull: bool = False,
    backend: str = "auto",
) -> tuple[Int[Tensor, "b h w"], Float[Tensor, "b h w c"]]:
    """Rasterise and interpolate tensors; differentiable in ``clip`` and ``attributes``.

    Raises:
        ValueError: A backend is asked for tensors on a device that it does not draw on.
    """
    if attributes.ndim == 2:
        attributes = attributes.expand(clip.shape[0], *attributes.shape)
    if _engine(backend, clip) == "numba":
        drawn: tuple[Tensor, Tensor] = _Draw.apply(clip, faces, attributes, height, width, cull)  # type: ignore[no-untyped-call]
        return drawn
    ids, bary, _ = rasterize_torch(clip, faces, height, width, cull=cull, backend=backend)
    return ids, interpolate_torch(attributes, faces, ids, bary, backend=backend)
