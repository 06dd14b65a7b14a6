"""The CUDA kernels: their very text compiled as C++ and run thread after thread on the CPU."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch

from models.rendering import rasterize_cuda, rasterize_torch
from models.rendering.rasterize import interpolate, rasterize
from models.rendering.rasterize_cuda import NAMES, CudaKernels, source_for

SHIM = """
#include <cmath>
using std::fabs;
#define __global__
#define __device__ static
static struct { int x; } blockIdx, threadIdx, blockDim;
static void atomicMin(unsigned long long* at, unsigned long long value) {
    if (value < *at) *at = value;
}
static void atomicAdd(double* at, double value) { *at += value; }
extern "C" void set_thread(int block, int thread, int size) {
    blockIdx.x = block; threadIdx.x = thread; blockDim.x = size;
}
"""


def host_compiler(folder):
    """Compile the kernels with g++; a launch runs the threads from the last to the first."""
    libraries = {}

    def library(source):
        if source not in libraries:
            stem = folder / f"kernels{len(libraries)}"
            stem.with_suffix(".cpp").write_text(SHIM + source)
            subprocess.run(
                ["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror",
                 "-o", str(stem.with_suffix(".so")), str(stem.with_suffix(".cpp"))],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            libraries[source] = ctypes.CDLL(str(stem.with_suffix(".so")))
        return libraries[source]

    def compiler(source, name):
        own = library(source)
        function = getattr(own, name)

        def launch(grid, block, args):
            assert grid[1:] == block[1:] == (1, 1)
            kinds = {torch.Tensor: ctypes.c_void_p, int: ctypes.c_int, float: ctypes.c_double}
            assert all(part.is_contiguous() for part in args if isinstance(part, torch.Tensor))
            passed = [
                kinds[type(part)](part.data_ptr() if isinstance(part, torch.Tensor) else part)
                for part in args
            ]
            for number in reversed(range(grid[0] * block[0])):
                own.set_thread(*divmod(number, block[0]), block[0])
                function(*passed)

        return launch

    return compiler


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """Kernels by dtype that run on CPU tensors."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels' text for the CPU")
    compiler = host_compiler(tmp_path_factory.mktemp("kernels"))
    return {dtype: CudaKernels(dtype, compiler) for dtype in (torch.float32, torch.float64)}


def scene(seed=4, dtype=torch.float32, behind=False):
    """A bumpy sheet over a soup; some corners lie behind the camera."""
    rng = np.random.default_rng(seed)
    side = 14
    x, y = np.meshgrid(np.linspace(-0.8, 0.8, side), np.linspace(-0.7, 0.9, side))
    x, y = x + rng.uniform(-0.01, 0.01, x.shape), y + rng.uniform(-0.01, 0.01, x.shape)
    z = 0.3 * np.sin(4 * x) * np.cos(3 * y)
    w = 1.0 + 0.3 * rng.uniform(-1, 1, x.shape)
    sheet = np.stack([x * w, y * w, z * w, w], -1).reshape(-1, 4)
    soup = rng.uniform(-1.2, 1.2, (36, 4)) * [1, 1, 0.6, 1]
    soup[:, 3] = rng.uniform(-0.4 if behind else 0.7, 1.5, 36)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], 1),
            np.stack([corner + side, corner + 1, corner + side + 1], 1),
            len(sheet) + np.arange(36).reshape(-1, 3),
        ]
    )
    one = np.concatenate([sheet, soup])
    two = one * [0.9, 1.1, 1, 1]
    return torch.from_numpy(np.stack([one, two])).to(dtype), torch.from_numpy(faces)


def drawn(clip, faces, backend, cull, dtype=None):
    """ids, barycentrics, depth, values (of ``dtype``, or clip's) and both gradients."""
    generator = torch.Generator().manual_seed(2)
    leaf = clip.clone().requires_grad_()
    attributes = torch.randn((*clip.shape[:2], 4), generator=generator)
    attributes = attributes.to(clip.device, dtype or clip.dtype).requires_grad_()
    ids, bary, depth = rasterize(leaf, faces, 26, 33, cull, backend=backend)
    values = interpolate(attributes, faces, ids, bary, backend=backend)
    values.backward(torch.randn(values.shape, generator=generator).to(values))
    return ids, bary.detach(), depth, values.detach(), leaf.grad, attributes.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attribute_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cull", "behind"), [(False, False), (True, False), (False, True)])
def test_kernels_on_the_cpu_meet_numba(on_host, monkeypatch, dtype, attribute_dtype, cull, behind):
    monkeypatch.setattr(rasterize_torch, "cuda_kernels", lambda tensor: on_host[tensor.dtype])
    clip, faces = scene(dtype=dtype, behind=behind)
    found = drawn(clip, faces, "cuda", cull, attribute_dtype)
    expected = drawn(clip, faces, "numba", cull, attribute_dtype)
    assert 0.3 < (found[0] >= 0).float().mean() < 1
    assert (found[0] >= 338).any()  # the soup too
    torch.testing.assert_close(found[0], expected[0], atol=0, rtol=0)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype
        scale = float(theirs.abs().max())
        both_double = dtype == attribute_dtype == torch.float64
        tolerance = (1e-12 if both_double else 2e-6) * scale
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_kernels_read_ids_of_any_layout_and_type(on_host, monkeypatch):
    monkeypatch.setattr(rasterize_torch, "cuda_kernels", lambda tensor: on_host[tensor.dtype])
    clip, faces = scene()
    values = torch.randn((*clip.shape[:2], 4), generator=torch.Generator().manual_seed(3))
    ids, bary, _ = rasterize(clip, faces, 26, 33)
    ids, bary = ids[:, ::2, 5:].long(), bary[:, ::2, 5:]
    found = interpolate(values, faces, ids, bary, backend="cuda")
    expected = interpolate(values, faces, ids, bary, backend="numba")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    current, launched = [], []

    class Guard:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    kernels = CudaKernels(
        torch.float32,
        lambda source, name: lambda grid, block, args: launched.append((name, *current)),
    )
    clip, faces = scene()
    ids, bary, _ = kernels.rasterize(clip, faces, 9, 9, cull=False)
    kernels.rasterize_backward(clip, faces, ids, bary, bary, 0.01)
    kernels.interpolate(clip, faces, ids, bary)
    kernels.interpolate_backward(clip, faces, ids, bary, torch.zeros(2, 9, 9, 4))
    assert sorted(launched) == sorted((name, clip.device) for name in NAMES)


def test_equally_near_triangles_show_the_later_whatever_the_order_of_threads(on_host, monkeypatch):
    monkeypatch.setattr(rasterize_torch, "cuda_kernels", lambda tensor: on_host[tensor.dtype])
    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0.0, 1, 0, 1]]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 1]])
    ids, _, _ = rasterize(clip, faces, 9, 9, backend="cuda")
    assert set(ids.unique().tolist()) == {-1, 1}
    nothing = clip.clone()
    nothing[..., 0] = float("nan")
    assert (rasterize(nothing, faces, 9, 9, backend="cuda")[0] == -1).all()
    assert (rasterize(clip, faces[:0], 9, 9, backend="cuda")[0] == -1).all()


def test_nvcc_accepts_the_kernels(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc to compile the kernels with")
    path = tmp_path / "kernels.cu"
    path.write_text(source_for(torch.float32))
    command = ["nvcc", "-ptx", "-arch=sm_80", "--fmad=false", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernels.ptx"), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "kernels.ptx").read_text()
    assert all(f".visible .entry {name}(" in text for name in NAMES)


def test_what_the_cuda_backend_refuses_and_falls_back_from(monkeypatch, caplog):
    clip, faces = scene()
    with pytest.raises(ValueError, match="draws CUDA tensors, got cpu"):
        rasterize(clip, faces, 9, 9, backend="cuda")
    with pytest.raises(ValueError, match="float32 or float64"):
        source_for(torch.float16)
    monkeypatch.setattr(torch.cuda, "_compile_kernel", None)
    with pytest.raises(RuntimeError, match="has no torch.cuda._compile_kernel"):
        rasterize_cuda.compile_with_nvrtc("", "nearest")
    # Without kernels the tensor backend draws.
    monkeypatch.setattr(rasterize_torch, "cuda_kernels", lambda tensor: None)
    ids, _, _ = rasterize(clip, faces, 9, 9, backend="cuda")
    torch.testing.assert_close(ids, rasterize(clip, faces, 9, 9, backend="torch")[0])
    rasterize_cuda.kernels_for.cache_clear()
    assert rasterize_cuda.kernels_for(torch.float32, torch.device("cuda", 0)) is None
    assert "drawing with tensor operations instead" in caplog.text
    rasterize_cuda.kernels_for.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "auto", "torch"])
@pytest.mark.parametrize("behind", [False, True])
def test_every_backend_on_a_gpu_meets_numba(backend, behind):
    clip, faces = scene(behind=behind, dtype=torch.float64)
    expected = drawn(clip, faces, "numba", False)
    assert rasterize_cuda.cuda_kernels(clip.cuda()) is not None
    found = drawn(clip.cuda(), faces.cuda(), backend, False)
    torch.testing.assert_close(found[0].cpu(), expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours.cpu() - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("index", [0, 1])
def test_tensors_of_another_than_the_current_gpu_are_drawn_there(index):
    clip, faces = scene(dtype=torch.float64)
    expected = drawn(clip, faces, "numba", False)
    there = torch.device("cuda", index)
    with torch.cuda.device(1 - index):
        found = drawn(clip.to(there), faces.to(there), "cuda", False)
        assert torch.cuda.current_device() == 1 - index
    assert all(part.device == there for part in found)
    torch.testing.assert_close(found[0].cpu(), expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours.cpu() - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_where_bits_must_repeat_on_a_gpu_tensor_operations_draw():
    clip, faces = (part.cuda() for part in scene())
    torch.set_deterministic_debug_mode("error")
    try:
        one, two = (drawn(clip, faces, "auto", False) for _ in range(2))
    finally:
        torch.set_deterministic_debug_mode("default")
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
