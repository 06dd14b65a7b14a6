# ruff: noqa: T201
"""The rasteriser on the real BFM: time against Open3D and the torch backend, error against solving.

CPU time throughout, the candidates interleaved round by round in one process; figures are medians
over rounds. One thread and two are timed by the wall, the fastest round of each, since other
processes on the machine slow two threads more than one. What two threads can give at all is
measured beside them: two batches at once, a thread each, that share nothing.

Barycentrics and gradients are compared with those of an independent formula: the 3 x 3 system of
each pixel's triangle solved by torch in float64, differentiated by autograd.

    python tests/benchmarks/rasterize.py --real-data ../shared/data --out rasterize.json
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
import scipy.io
import torch

from models.rendering.cameras import orthographic_clip, perspective_clip
from models.rendering.pncc import camera_300w_lp, rotation_300w_lp
from models.rendering.rasterize import draw, interpolate, rasterize
from models.rendering.rasterize_numba import (
    MINIMUM_AREA_PX2,
    draw_numba,
    draw_numba_backward,
)

PHOTO_PX = 450  # the side of every 300W-LP photograph
SMALL_VERTICES_FACES = 9_975
BATCH, SIDE = 8, 224
WALL_ROUNDS = 60  # short ones, so that some fall where both cores are free
FOCAL_PX, DISTANCE, NEAR, FAR = 1015.0, 10.0, 5.0, 15.0  # Deep3D's camera, decimetres
GOALS = {
    "real 450": {"ms": 3.0, "ratio": 11.0},
    "real 256": {"ms": 1.9, "ratio": 13.0},
    "5k": {"ms": 3.2, "ratio": 3.0},
    "36k": {"ms": 6.0, "ratio": 3.0},
    "threads": 1.5,
    "barycentrics": 2e-3,
    "gradient": 2e-3,
    "mismatches": 1e-4,
}


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def interleaved(
    candidates: dict[Any, Callable[[], object]],
    rounds: int,
    clock: Callable = cpu_ms,
    summary: Callable = np.median,
) -> dict[Any, float]:
    """Median ms of each candidate; every round runs all of them once."""
    taken: dict[Any, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(rounds):
        for name, work in candidates.items():
            taken[name].append(clock(work))
    return {name: float(summary(times)) for name, times in taken.items()}


def wall_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


class RealFaces:
    """The mean BFM face under the real poses of the samples beside it."""

    def __init__(self, folder: Path) -> None:
        real = folder / "real_300wlp"
        mean = np.load(real / "bfm_u_shp.npy") + np.load(real / "bfm_u_exp.npy")
        self.mean = mean.reshape(-1, 3).astype(np.float64)
        triangles = scipy.io.loadmat(real / "bfm_tri.mat")["tri"].T.astype(np.int64) - 1
        self.faces = np.ascontiguousarray(triangles, dtype=np.int32)
        samples = sorted(real.glob("image*.mat")) + sorted(real.glob("IBUG*.mat"))
        self.poses = [scipy.io.loadmat(path)["Pose_Para"].reshape(7) for path in samples]
        front = scipy.io.loadmat(folder / "deep3d/BFM_front_idx.mat")["idx"].reshape(-1)
        self.front = front.astype(np.int64) - 1

    def clips(self, side: int) -> list[np.ndarray]:
        """(1, V, 4) float32 of each sample, its photograph scaled to ``side`` pixels."""
        zoom = side / PHOTO_PX
        found = []
        for pose in self.poses:
            scale, x, y = (zoom * float(part) for part in camera_300w_lp(pose, PHOTO_PX))
            turned = (self.mean @ rotation_300w_lp(pose).T).astype(np.float32)
            found.append(orthographic_clip(turned[None], scale, x, y, side, side))
        return found

    def frontal(self) -> tuple[np.ndarray, np.ndarray]:
        """Deep3D's crop, centred, in decimetres."""
        index = np.full(len(self.mean), -1)
        index[self.front] = np.arange(len(self.front))
        faces = index[self.faces]
        points = 1e-5 * self.mean[self.front]
        return points - points.mean(0), faces[(faces >= 0).all(1)]

    def decimated(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole face at FLAME's size."""
        mesh = o3d.geometry.TriangleMesh(
            o3d.utility.Vector3dVector(1e-5 * self.mean), o3d.utility.Vector3iVector(self.faces)
        ).simplify_quadric_decimation(SMALL_VERTICES_FACES)
        points = np.asarray(mesh.vertices)
        return points - points.mean(0), np.asarray(mesh.triangles).astype(np.int64)


def open3d_cast(clip: np.ndarray, faces: np.ndarray, rays: o3d.core.Tensor) -> object:
    """Build the scene of one image and cast a ray through every pixel."""
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor(np.ascontiguousarray(clip[0, :, :3])), o3d.core.Tensor(faces)
    )
    return scene.cast_rays(rays, nthreads=1)["primitive_ids"].numpy()


def pixel_rays(side: int) -> o3d.core.Tensor:
    centres = 2 * (np.arange(side, dtype=np.float32) + 0.5) / side - 1
    rays = np.zeros((side, side, 6), dtype=np.float32)
    rays[..., 0], rays[..., 1] = centres[None], -centres[:, None]
    rays[..., 2], rays[..., 5] = -2.0, 1.0
    return o3d.core.Tensor(rays)


def bulk(real: RealFaces, side: int, rounds: int) -> dict[str, float]:
    """Six float channels of one image, both sides and culled, against Open3D."""
    values = np.concatenate([real.mean, 0.1 * real.mean], axis=1).astype(np.float32)[None]
    out = np.empty((1, side, side, 6), dtype=np.float32)

    def ours(cull: bool) -> object:
        return draw_numba(clip, real.faces, values, side, side, cull=cull, out=out)

    def apart() -> object:
        ids, bary, _ = rasterize(clip, real.faces, side, side)
        return interpolate(values, real.faces, ids, bary)

    rays, faces = pixel_rays(side), real.faces.astype(np.uint32)
    each, agreement = [], []
    for clip in real.clips(side):
        candidates = {
            "two_sided_ms": partial(ours, False),
            "culled_ms": partial(ours, True),
            "rasterize_then_interpolate_ms": apart,
            "open3d_ms": partial(open3d_cast, clip, faces, rays),
        }
        each.append(interleaved(candidates, rounds))
        ids = rasterize(clip, real.faces, side, side)[0][0]
        theirs = open3d_cast(clip, faces, rays).astype(np.int64)
        theirs[theirs == 0xFFFFFFFF] = -1
        agreement.append(float(((ids >= 0) != (theirs >= 0)).mean()))
    figures = {name: float(np.mean([row[name] for row in each])) for name in each[0]}
    figures["ratio"] = figures["open3d_ms"] / figures["two_sided_ms"]
    figures["ratio_culled"] = figures["open3d_ms"] / figures["culled_ms"]
    figures["coverage_differs_from_open3d"] = max(agreement)
    return figures


def batch_clip(points: np.ndarray) -> torch.Tensor:
    """(8, V, 4) float32: a fan of yaws and pitches before Deep3D's camera."""
    clips = []
    for yaw in np.linspace(-0.7, 0.7, BATCH):
        pose = np.array([0.2 * np.sin(5 * yaw), yaw, 0.1 * yaw, 0, 0, 0, 1])
        placed = points @ rotation_300w_lp(pose).T - [0, 0, DISTANCE]
        half = SIDE / 2
        clips.append(
            perspective_clip(placed[None], FOCAL_PX, half, half, SIDE, SIDE, near=NEAR, far=FAR)[0]
        )
    return torch.from_numpy(np.stack(clips).astype(np.float32))


class Step:
    """Forward and backward of nine attributes of a batch."""

    def __init__(self, points: np.ndarray, faces: np.ndarray) -> None:
        generator = torch.Generator().manual_seed(0)
        self.clip, self.faces = batch_clip(points), torch.from_numpy(faces)
        shape = (BATCH, len(points), 9)
        self.attributes = torch.randn(shape, generator=generator)
        self.gradient = torch.randn((BATCH, SIDE, SIDE, 9), generator=generator)

    def drawn(self, backend: str) -> None:
        """Both directions in one call each, as where the barycentrics are not wanted."""
        clip = self.clip.detach().requires_grad_()
        attributes = self.attributes.detach().requires_grad_()
        _, values = draw(clip, self.faces, attributes, SIDE, SIDE, backend=backend)
        values.backward(self.gradient)

    def __call__(self, backend: str, dtype: torch.dtype = torch.float32) -> tuple:
        clip = self.clip.detach().to(dtype).requires_grad_()
        attributes = self.attributes.detach().to(dtype).requires_grad_()
        ids, bary, _ = rasterize(clip, self.faces, SIDE, SIDE, backend=backend)
        values = interpolate(attributes, self.faces, ids, bary)
        values.backward(self.gradient.to(dtype))
        return ids, bary.detach(), clip.grad, attributes.grad

    def kernels(self, workers: int) -> None:
        """The same two passes without torch, whose own threads would be timed with them."""
        clip, faces = self.clip.numpy(), self.faces.numpy()
        attributes, gradient = self.attributes.numpy(), self.gradient.numpy()
        ids, _ = draw_numba(clip, faces, attributes, SIDE, SIDE, workers=workers)
        draw_numba_backward(clip, faces, attributes, ids, gradient, workers=workers)


def at_once(steps: Sequence[Step]) -> None:
    """A batch in each of as many threads; the kernels hold no lock."""
    with ThreadPoolExecutor(len(steps)) as pool:
        list(pool.map(lambda step: step.kernels(1), steps))


def screen_area_px2(corners: torch.Tensor, side: int) -> torch.Tensor:
    """(N,) areas of (N, 3, 4) triangles before the camera, infinite where a corner is behind."""
    screen = corners[..., :2] / corners[..., 3:] * (side / 2)
    (ax, ay), (bx, by) = ((screen[:, k] - screen[:, 0]).unbind(-1) for k in (1, 2))
    before = (corners[..., 3] > 0).all(-1)
    return torch.where(before, (ax * by - ay * bx).abs() / 2, torch.inf)


def solved(step: Step, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``step`` should find where ``ids`` (B, H, W) are seen, in float64.

    With q of [x; y; w] q = (px, py, 1) for the corners of the seen triangle, its barycentrics are
    q / sum(q). Triangles under ``MINIMUM_AREA_PX2`` pass no gradient to their corners.

    Returns:
        Barycentrics of the (N, 3) seen pixels in order, and the gradients of the same loss for
        clip and attributes.
    """
    clip = step.clip.double().requires_grad_()
    attributes = step.attributes.double().requires_grad_()
    image, row, column = (ids >= 0).nonzero(as_tuple=True)
    vertices = step.faces[ids[image, row, column].long()]
    corners = clip[image[:, None], vertices]
    small = screen_area_px2(corners.detach(), SIDE) < MINIMUM_AREA_PX2
    corners = torch.where(small[:, None, None], corners.detach(), corners)
    px, py = 2 * (column.double() + 0.5) / SIDE - 1, 1 - 2 * (row.double() + 0.5) / SIDE
    pixel = torch.stack([px, py, torch.ones_like(px)], -1)
    found = torch.linalg.solve(corners[..., [0, 1, 3]].mT, pixel)
    bary = found / found.sum(-1, keepdim=True)
    values = (bary[..., None] * attributes[image[:, None], vertices]).sum(1)
    (values * step.gradient.double()[image, row, column]).sum().backward()
    assert clip.grad is not None
    assert attributes.grad is not None
    return bary.detach(), clip.grad, attributes.grad


def accuracy(step: Step) -> dict[str, float]:
    """Errors of the CPU kernels against solving, and where other arithmetic sees otherwise."""
    ours, exact, plain = step("numba"), step("numba", torch.float64), step("torch")
    bary, to_clip, to_attributes = solved(step, ours[0])
    return {
        "bary_max_error": float((ours[1][ours[0] >= 0] - bary).abs().max()),
        "clip_gradient_error": relative(ours[2], to_clip),
        "attribute_gradient_error": relative(ours[3], to_attributes),
        "ids_differ_from_float64": float((ours[0] != exact[0]).double().mean()),
        "ids_differ_between_backends": float((ours[0] != plain[0]).double().mean()),
        "clip_gradient_differs_between_backends": relative(ours[2], plain[2]),
    }


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def differentiable(
    points: np.ndarray, faces: np.ndarray, rounds: int
) -> dict[str, float | list[int]]:
    """Time per frame of each backend, threads, and accuracy."""
    step = Step(points, faces)
    torch.set_num_threads(1)
    times = interleaved(
        {
            "numba": partial(step.drawn, "numba"),
            "rasterize_then_interpolate": partial(step, "numba"),
            "torch": partial(step.drawn, "torch"),
        },
        max(3, rounds // 2),
    )
    figures: dict[str, float | list[int]] = {"vertices": len(points), "faces": len(faces)}
    figures |= {f"{name}_ms": value / BATCH for name, value in times.items()}
    figures["ratio"] = times["torch"] / times["numba"]

    for name, clock in (("wall", wall_ms), ("cpu", cpu_ms)):
        both: dict[Any, Callable[[], object]] = {n: partial(step.kernels, n) for n in (1, 2)}
        if name == "wall":
            both["pair"] = partial(at_once, [step, Step(points, faces)])
        taken = interleaved(both, WALL_ROUNDS if name == "wall" else 2 * rounds, clock, np.min)
        figures |= {f"{name}_of_{n}_threads_ms": taken[n] / BATCH for n in (1, 2)}
        if name == "wall":
            figures["speed_up_of_2_threads"] = taken[1] / taken[2]
            figures["speed_up_of_2_batches_at_once"] = 2 * taken[1] / taken["pair"]
    figures["load_average"] = os.getloadavg()[0]
    return figures | accuracy(step)


def verdicts(figures: dict[str, dict]) -> list[tuple[str, float, str, float, bool]]:
    """(line, measured, relation, goal, met)."""
    rows = []

    def line(name: str, value: float, relation: str, goal: float) -> None:
        met = value <= goal if relation == "<=" else value >= goal
        rows.append((name, value, relation, goal, met))

    for side in (450, 256):
        found, goal = figures[f"real {side}"], GOALS[f"real {side}"]
        line(f"6 channels, {side} px, two-sided, ms", found["two_sided_ms"], "<=", goal["ms"])
        line(f"6 channels, {side} px, Open3D / ours", found["ratio"], ">=", goal["ratio"])
    for size in ("5k", "36k"):
        found, goal = figures[size], GOALS[size]
        line(f"{size} forward + backward, ms per frame", found["numba_ms"], "<=", goal["ms"])
        line(f"{size} torch backend / ours", found["ratio"], ">=", goal["ratio"])
        line(f"{size} one / two threads", found["speed_up_of_2_threads"], ">=", GOALS["threads"])
        line(
            f"{size} ids differ between backends",
            found["ids_differ_between_backends"],
            "<=",
            GOALS["mismatches"],
        )
        error = found["bary_max_error"]
        line(f"{size} barycentrics, max error", error, "<=", GOALS["barycentrics"])
        for name in ("clip", "attribute"):
            error = found[f"{name}_gradient_error"]
            line(f"{size} {name} gradient, rel. L2", error, "<=", GOALS["gradient"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real-data", type=Path, required=True, help="folder of the real samples")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    real = RealFaces(options.real_data)
    figures: dict[str, dict] = {
        f"real {side}": bulk(real, side, options.rounds) for side in (450, 256)
    }
    figures["5k"] = differentiable(*real.decimated(), options.rounds)
    figures["36k"] = differentiable(*real.frontal(), options.rounds)
    for section, values in figures.items():
        print(section)
        for name, value in values.items():
            print(f"  {name:42} {value:.4g}")
    print()
    for name, value, relation, goal, met in verdicts(figures):
        print(f"{'met' if met else 'NOT MET':8}{name:44}{value:10.4g}  goal {relation} {goal:g}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
