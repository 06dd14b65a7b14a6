"""Raw CUDA kernels of the rasteriser, compiled when first asked for; no compiler at install time.

The same conventions and float64 arithmetic as the CPU loops. Visibility is one thread per
(image, triangle) that lowers ``depth << 32 | triangle`` at each pixel it covers with an atomic
minimum, so ids do not depend on the order of the threads. Gradients are added atomically in
float64, so their last bits may differ between runs. Products must not be contracted into
fused multiply-adds: the two triangles of an edge would get different numbers for it.

The kernels are written in the common part of CUDA C++ and C++, and the tests run this very text
on the CPU. ``backend="auto"`` chooses them for CUDA tensors, but where torch was told to use
deterministic algorithms only: there the tensor operations draw.
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

logger = logging.getLogger(__name__)

BLOCK = 128
"""Threads per block."""
LEVELS = (1 << 30) - 1
NAMES = ("nearest", "describe", "blend", "blend_backward", "describe_backward")

Launch = Callable[..., None]
"""Called with grid, block (three ints each) and args (tensors, ints, floats)."""
Compile = Callable[[str, str], Launch]
"""From source and kernel name."""

SOURCE = """
typedef unsigned long long Key;
#define THREAD ((long long)blockIdx.x * blockDim.x + threadIdx.x)

struct Triangle {
    int vertex[3];
    double x[3], y[3], z[3], w[3];
    double u[3], v[3];      // column and row, pixel centres at integers, where w > 0
    bool all_before, any_before, finite;
};

__device__ Triangle triangle_of(const REAL* clip, const int* faces, int face,
                                int height, int width) {
    Triangle t;
    double sum = 0.0;
    t.all_before = true;
    t.any_before = false;
    for (int k = 0; k < 3; ++k) {
        t.vertex[k] = faces[3 * face + k];
        const REAL* c = clip + 4LL * t.vertex[k];
        t.x[k] = c[0]; t.y[k] = c[1]; t.z[k] = c[2]; t.w[k] = c[3];
        const bool before = t.w[k] > 0.0;
        t.all_before = t.all_before && before;
        t.any_before = t.any_before || before;
        t.u[k] = before ? (t.x[k] / t.w[k] + 1.0) * (0.5 * width) - 0.5 : 0.0;
        t.v[k] = before ? (1.0 - t.y[k] / t.w[k]) * (0.5 * height) - 0.5 : 0.0;
        sum += fabs(t.x[k]) + fabs(t.y[k]) + fabs(t.z[k]) + fabs(t.w[k])
             + fabs(t.u[k]) + fabs(t.v[k]);
    }
    t.finite = sum - sum == 0.0;
    return t;
}

__device__ void edges_at(const Triangle& t, double px, double py, double* e) {
    double X[3], Y[3];
    for (int k = 0; k < 3; ++k) {
        X[k] = t.x[k] - px * t.w[k];
        Y[k] = t.y[k] - py * t.w[k];
    }
    e[0] = X[1] * Y[2] - X[2] * Y[1];
    e[1] = X[2] * Y[0] - X[0] * Y[2];
    e[2] = X[0] * Y[1] - X[1] * Y[0];
}

__device__ double column_centre(int column, int width) {
    return (column + 0.5) * (2.0 / width) - 1.0;
}

__device__ double row_centre(int row, int height) {
    return 1.0 - (row + 0.5) * (2.0 / height);
}

extern "C" __global__ void nearest(const REAL* clip, const int* faces, Key* keys, int images,
                                   int vertices, int triangles, int height, int width, int cull) {
    const long long thread = THREAD;
    if (thread >= (long long)images * triangles) return;
    const int image = (int)(thread / triangles), face = (int)(thread % triangles);
    const Triangle t = triangle_of(clip + 4LL * image * vertices, faces, face, height, width);
    if (!t.finite || !t.any_before) return;
    int left = 0, right = width - 1, top = 0, bottom = height - 1;
    if (t.all_before) {
        left = (int)fmin(fmax(ceil(fmin(t.u[0], fmin(t.u[1], t.u[2]))), 0.0), (double)width);
        right = (int)fmax(fmin(floor(fmax(t.u[0], fmax(t.u[1], t.u[2]))), width - 1.0), -1.0);
        top = (int)fmin(fmax(ceil(fmin(t.v[0], fmin(t.v[1], t.v[2]))), 0.0), (double)height);
        bottom = (int)fmax(fmin(floor(fmax(t.v[0], fmax(t.v[1], t.v[2]))), height - 1.0), -1.0);
    }
    const double area = 4.0 / ((double)height * width);
    for (int row = top; row <= bottom; ++row) {
        for (int column = left; column <= right; ++column) {
            const double px = column_centre(column, width), py = row_centre(row, height);
            double e[3];
            edges_at(t, px, py, e);
            for (int k = 0; k < 3; ++k) {
                // Between corners before the camera: from the screen, as its other triangle has it.
                const int i = (k + 1) % 3, j = (k + 2) % 3;
                if (t.w[i] > 0.0 && t.w[j] > 0.0) {
                    const double away = (t.u[j] - column) * (t.v[i] - row)
                                      - (t.u[i] - column) * (t.v[j] - row);
                    e[k] = away * (t.w[i] * t.w[j] * area);
                }
            }
            const bool front = e[0] >= 0.0 && e[1] >= 0.0 && e[2] >= 0.0;
            const bool back = e[0] <= 0.0 && e[1] <= 0.0 && e[2] <= 0.0;
            const double det = e[0] * t.w[0] + e[1] * t.w[1] + e[2] * t.w[2];
            if (det == 0.0 || !((front && det > 0.0) || (!cull && back && det < 0.0))) continue;
            const double z = (e[0] * t.z[0] + e[1] * t.z[1] + e[2] * t.z[2]) / det;
            if (!(z >= -1.0 && z <= 1.0)) continue;
            const Key level = (Key)rint((z + 1.0) * (0.5 * LEVELS));
            const Key key = (level << 32) | (Key)(2147483647 - face);  // the later one of equals
            atomicMin(keys + ((long long)image * height + row) * width + column, key);
        }
    }
}

extern "C" __global__ void describe(const REAL* clip, const int* faces, const Key* keys, int* ids,
                                    REAL* bary, REAL* depth, int images, int vertices, int height,
                                    int width) {
    const long long thread = THREAD, pixels = (long long)height * width;
    if (thread >= images * pixels) return;
    const Key key = keys[thread];
    ids[thread] = -1;
    depth[thread] = 1;
    if ((key >> 32) > (Key)LEVELS) return;
    const int face = 2147483647 - (int)(key & 0xFFFFFFFFULL);
    const int at = (int)(thread % pixels);
    const Triangle t =
        triangle_of(clip + 4LL * (thread / pixels) * vertices, faces, face, height, width);
    double e[3];
    edges_at(t, column_centre(at % width, width), row_centre(at / width, height), e);
    const double inverse = 1.0 / (e[0] + e[1] + e[2]);
    double over = 0.0, under = 0.0;
    for (int k = 0; k < 3; ++k) {
        bary[3 * thread + k] = (REAL)(e[k] * inverse);
        over += e[k] * t.z[k];
        under += e[k] * t.w[k];
    }
    ids[thread] = face;
    depth[thread] = (REAL)(over / under);
}

extern "C" __global__ void blend(const REAL* attributes, const int* faces, const int* ids,
                                 const REAL* bary, REAL* out, int images, int vertices, int pixels,
                                 int channels) {
    const long long thread = THREAD;
    if (thread >= (long long)images * pixels || ids[thread] < 0) return;
    const REAL* own = attributes + (thread / pixels) * vertices * channels;
    const int* corner = faces + 3LL * ids[thread];
    for (int c = 0; c < channels; ++c) {
        REAL sum = 0;
        for (int k = 0; k < 3; ++k) {
            sum += bary[3 * thread + k] * own[(long long)corner[k] * channels + c];
        }
        out[thread * channels + c] = sum;
    }
}

extern "C" __global__ void blend_backward(const REAL* attributes, const int* faces, const int* ids,
                                          const REAL* bary, const REAL* gradient,
                                          double* to_attributes, REAL* to_bary, int images,
                                          int vertices, int pixels, int channels) {
    const long long thread = THREAD;
    if (thread >= (long long)images * pixels || ids[thread] < 0) return;
    const long long first = (thread / pixels) * vertices;
    const int* corner = faces + 3LL * ids[thread];
    for (int k = 0; k < 3; ++k) {
        const long long own = (first + corner[k]) * channels;
        double sum = 0.0;
        for (int c = 0; c < channels; ++c) {
            const double g = gradient[thread * channels + c];
            sum += g * attributes[own + c];
            atomicAdd(to_attributes + own + c, g * bary[3 * thread + k]);
        }
        to_bary[3 * thread + k] = (REAL)sum;
    }
}

extern "C" __global__ void describe_backward(const REAL* clip, const int* faces, const int* ids,
                                             const REAL* bary, const REAL* gradient, double* out,
                                             int images, int vertices, int height, int width,
                                             double minimum_area) {
    const long long thread = THREAD, pixels = (long long)height * width;
    if (thread >= images * pixels || ids[thread] < 0) return;
    const long long first = (thread / pixels) * vertices;
    const int at = (int)(thread % pixels);
    const double px = column_centre(at % width, width), py = row_centre(at / width, height);
    const Triangle t = triangle_of(clip + 4 * first, faces, ids[thread], height, width);
    double e[3], q[3], h[3], X[3], Y[3];
    edges_at(t, px, py, e);
    const double det = e[0] * t.w[0] + e[1] * t.w[1] + e[2] * t.w[2];
    const double product = t.w[0] * t.w[1] * t.w[2];
    if (det == 0.0) return;
    if (product > 0.0 && fabs(det) * (0.125 * width * height) < minimum_area * product) return;
    double mean = 0.0;
    for (int k = 0; k < 3; ++k) {
        q[k] = bary[3 * thread + k];
        mean += gradient[3 * thread + k] * q[k];
        X[k] = t.x[k] - px * t.w[k];
        Y[k] = t.y[k] - py * t.w[k];
    }
    double lx = 0.0, ly = 0.0;
    for (int k = 0; k < 3; ++k) {
        const int i = (k + 1) % 3, j = (k + 2) % 3;
        h[k] = gradient[3 * thread + k] - mean;
        lx += h[k] * (Y[i] * t.w[j] - Y[j] * t.w[i]);
        ly += h[k] * (X[j] * t.w[i] - X[i] * t.w[j]);
    }
    lx /= -det;
    ly /= -det;
    const double lw = -(px * lx + py * ly);
    for (int k = 0; k < 3; ++k) {
        double* own = out + 4 * (first + t.vertex[k]);
        atomicAdd(own, lx * q[k]);
        atomicAdd(own + 1, ly * q[k]);
        atomicAdd(own + 3, lw * q[k]);
    }
}
"""
_REALS = {torch.float32: "float", torch.float64: "double"}


def source_for(dtype: torch.dtype) -> str:
    """The kernels for tensors of ``dtype``.

    Raises:
        ValueError: It is neither float32 nor float64.
    """
    if dtype not in _REALS:
        raise ValueError(f"the cuda backend draws float32 or float64 tensors, got {dtype}")
    return f"#define REAL {_REALS[dtype]}\n#define LEVELS {LEVELS}.0\n{SOURCE}"


def compile_with_nvrtc(source: str, name: str) -> Launch:
    """One kernel by NVRTC through torch's private ``torch.cuda._compile_kernel``.

    Raises:
        RuntimeError: This torch has no such function, or the kernel does not compile.
    """
    compiler = getattr(torch.cuda, "_compile_kernel", None)
    if compiler is None:
        raise RuntimeError(f"torch {torch.__version__} has no torch.cuda._compile_kernel")
    launch: Launch = compiler(source, name, nvcc_options=["--fmad=false"])
    return launch


class CudaKernels:
    """The compiled kernels for one dtype, with the shapes and buffers that they expect."""

    def __init__(self, dtype: torch.dtype, compiler: Compile = compile_with_nvrtc) -> None:
        """Compile.

        Args:
            dtype: float32 or float64.
            compiler: Makes a kernel of source and name.

        Raises:
            ValueError: Another dtype.
            RuntimeError: The compiler fails.
        """
        source = source_for(dtype)
        self._kernels = {name: compiler(source, name) for name in NAMES}

    def _launch(
        self, name: str, threads: int, first: Tensor, *others: Tensor | int | float
    ) -> None:
        """Launch on the device of ``first``, which need not be the current one."""
        if threads:
            grid = ((threads + BLOCK - 1) // BLOCK, 1, 1)
            with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
                self._kernels[name](grid=grid, block=(BLOCK, 1, 1), args=[first, *others])

    def rasterize(
        self,
        clip: Float[Tensor, "b v 4"],
        faces: Integer[Tensor, "f 3"],
        height: int,
        width: int,
        *,
        cull: bool,
    ) -> tuple[Int[Tensor, "b h w"], Float[Tensor, "b h w 3"], Float[Tensor, "b h w"]]:
        """ids, bary and depth, as ``models.rendering.rasterize.rasterize`` describes them."""
        clip, indices = clip.detach().contiguous(), faces.int().contiguous()
        images, vertices = clip.shape[:2]
        shape = (images, height, width)
        keys = torch.full(shape, (LEVELS + 1) << 32, dtype=torch.int64, device=clip.device)
        ids = torch.empty(shape, dtype=torch.int32, device=clip.device)
        bary, depth = clip.new_zeros((*shape, 3)), clip.new_empty(shape)
        count = len(indices)
        self._launch(
            "nearest", images * count,
            clip, indices, keys, images, vertices, count, height, width, int(cull),
        )  # fmt: skip
        self._launch(
            "describe", keys.numel(),
            clip, indices, keys, ids, bary, depth, images, vertices, height, width,
        )  # fmt: skip
        return ids, bary, depth

    def rasterize_backward(
        self, clip: Tensor, faces: Tensor, ids: Tensor, bary: Tensor, gradient: Tensor, area: float
    ) -> Float[Tensor, "b v 4"]:
        """Gradient for ``clip``; triangles smaller than ``area`` px^2 pass none."""
        clip, indices = clip.detach().contiguous(), faces.int().contiguous()
        out = torch.zeros(clip.shape, dtype=torch.float64, device=clip.device)
        images, height, width = ids.shape
        self._launch(
            "describe_backward", ids.numel(),
            clip, indices, ids, bary, gradient.contiguous(), out,
            images, clip.shape[1], height, width, float(area),
        )  # fmt: skip
        return out.to(clip.dtype)

    def interpolate(
        self, attributes: Float[Tensor, "b v c"], faces: Tensor, ids: Tensor, bary: Tensor
    ) -> Float[Tensor, "b h w c"]:
        """Weighted sums of vertex attributes, in their dtype; zero where nothing is."""
        attributes, indices = attributes.detach().contiguous(), faces.int().contiguous()
        images, vertices, channels = attributes.shape
        ids, weights = ids.int().contiguous(), bary.detach().to(attributes.dtype).contiguous()
        out = attributes.new_zeros((*ids.shape, channels))
        pixels = ids.shape[1] * ids.shape[2]
        self._launch(
            "blend", ids.numel(),
            attributes, indices, ids, weights, out,
            images, vertices, pixels, channels,
        )  # fmt: skip
        return out

    def interpolate_backward(
        self, attributes: Tensor, faces: Tensor, ids: Tensor, bary: Tensor, gradient: Tensor
    ) -> tuple[Float[Tensor, "b v c"], Float[Tensor, "b h w 3"]]:
        """Gradients for the attributes and the barycentrics, each in its own dtype."""
        attributes, indices = attributes.detach().contiguous(), faces.int().contiguous()
        images, vertices, channels = attributes.shape
        to_attributes = torch.zeros(attributes.shape, dtype=torch.float64, device=attributes.device)
        ids, weights = ids.int().contiguous(), bary.detach().to(attributes.dtype).contiguous()
        to_weights = torch.zeros_like(weights)
        gradient = gradient.to(attributes.dtype).contiguous()
        pixels = ids.shape[1] * ids.shape[2]
        self._launch(
            "blend_backward", ids.numel(),
            attributes, indices, ids, weights, gradient, to_attributes, to_weights,
            images, vertices, pixels, channels,
        )  # fmt: skip
        return to_attributes.to(attributes.dtype), to_weights.to(bary.dtype)


@lru_cache(maxsize=8)
def kernels_for(dtype: torch.dtype, device: torch.device) -> CudaKernels | None:
    """Kernels for a device, compiled once; None, and a warning, where that is impossible."""
    try:
        with torch.cuda.device(device):
            return CudaKernels(dtype)
    except (RuntimeError, OSError, AssertionError, AttributeError, ImportError) as error:
        logger.warning("no CUDA kernels, drawing with tensor operations instead: %s", error)
        return None


def cuda_kernels(tensor: Tensor) -> CudaKernels | None:
    """Kernels for a tensor's dtype and device, or None.

    Raises:
        ValueError: The tensor is not on a CUDA device, or of another dtype.
    """
    if tensor.device.type != "cuda":
        raise ValueError(
            f"the cuda backend draws CUDA tensors, got {tensor.device}; use backend='auto'"
        )
    source_for(tensor.dtype)
    return kernels_for(tensor.dtype, tensor.device)
