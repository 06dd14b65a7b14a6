# ruff: noqa: T201
"""What a GPU gives: the rasteriser's backends and training, against the CPU of the same machine.

    python -m tests.benchmarks.gpu --prepare mica DIR           # on any machine, needs data/
    python -m tests.benchmarks.gpu --out gpu.json [--prepared DIR ...]

`render`: nine attributes forward and backward on a closed bumpy surface, every backend on the same
batch, times by CUDA events (median of the rounds, after a warm-up), differences from float64.
`step`: one optimiser step of each network at the size of its publication on random photographs,
with TF32 multiplications and without, and how far loss and gradients are from the CPU's.
`train`: a whole small training from a folder that `--prepare` filled: twice on the GPU (the same
bits?), with batches prepared ahead, and once on the CPU.
Prints one JSON document; where there is no GPU it says so and exits with 1.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.methods.pix2face import Pix2Face, Pix2FaceConfig
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from models.rendering.rasterize import interpolate, rasterize

SIDE = 224
CHANNELS = 9


def surface(rings: int, sectors: int) -> tuple[np.ndarray, np.ndarray]:
    """A bumpy closed surface, (V, 3) within the unit cube, and its triangles."""
    polar = np.linspace(0, np.pi, rings + 2)[1:-1, None]
    round_ = np.linspace(0, 2 * np.pi, sectors, endpoint=False)[None]
    radius = 0.75 + 0.05 * np.sin(5 * polar) * np.cos(7 * round_)
    points = radius[..., None] * np.stack(
        [
            np.sin(polar) * np.cos(round_),
            np.cos(polar) + 0 * round_,
            np.sin(polar) * np.sin(round_),
        ],
        axis=-1,
    )
    corner = np.arange(rings * sectors).reshape(rings, sectors)
    right = np.roll(corner, -1, axis=1)
    a, b, c, d = corner[:-1], right[:-1], corner[1:], right[1:]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([b, d, c], -1)]).reshape(-1, 3)
    return points.reshape(-1, 3), faces


def clips(points: np.ndarray, batch: int) -> torch.Tensor:
    """(B, V, 4) float64 perspective clip coordinates of a fan of yaws."""
    out = []
    for yaw in np.linspace(-1, 1, batch):
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        x, y, z = (points @ turn.T).T
        w = 4.0 - z
        out.append(np.stack([3.5 * x, 3.5 * y, (w - 4.0) / 1.5 * w, w], axis=-1))
    return torch.from_numpy(np.stack(out))


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Median milliseconds between CUDA events, warmed up."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(rounds):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        last.synchronize()
        taken.append(first.elapsed_time(last))
    return statistics.median(taken)


def median_cpu_ms(work: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of CPU time over all threads, warmed up: compiling is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(1e3 * (time.process_time() - started))
    return statistics.median(taken)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    found, exact = found.double().cpu(), exact.double().cpu()
    return float((found - exact).norm() / exact.norm().clamp_min(1e-300))


class Drawing:
    """Forward and backward of one batch."""

    def __init__(self, rings: int, sectors: int, batch: int) -> None:
        points, faces = surface(rings, sectors)
        generator = torch.Generator().manual_seed(0)
        self.clip, self.faces = clips(points, batch), torch.from_numpy(faces)
        self.values = torch.randn((batch, len(points), CHANNELS), generator=generator).double()
        self.gradient = torch.randn((batch, SIDE, SIDE, CHANNELS), generator=generator).double()

    def to(self, device: str, dtype: torch.dtype) -> "Drawing":
        """The same batch elsewhere."""
        moved = object.__new__(Drawing)
        moved.faces = self.faces.to(device)
        for name in ("clip", "values", "gradient"):
            setattr(moved, name, getattr(self, name).to(device, dtype))
        return moved

    def __call__(self, backend: str) -> tuple[torch.Tensor, ...]:
        """ids, barycentrics, picture and both gradients."""
        clip = self.clip.detach().requires_grad_()
        values = self.values.detach().requires_grad_()
        ids, bary, _ = rasterize(clip, self.faces, SIDE, SIDE, backend=backend)
        picture = interpolate(values, self.faces, ids, bary, backend=backend)
        picture.backward(self.gradient)
        assert clip.grad is not None
        assert values.grad is not None
        return ids, bary.detach(), picture.detach(), clip.grad, values.grad


def render(rounds: int) -> dict[str, Any]:
    """Backends on 5,000 and 36,000 vertices."""
    figures: dict[str, Any] = {}
    for name, rings, sectors, batch in (
        ("5k", 50, 100, 8),
        ("36k", 150, 240, 8),
        ("5k x64", 50, 100, 64),
    ):
        whole = Drawing(rings, sectors, batch)
        exact = whole(backend="numba")
        on_cpu = partial(whole.to("cpu", torch.float32), "numba")
        row: dict[str, Any] = {
            "vertices": whole.values.shape[1],
            "batch": batch,
            "numba_cpu_ms": median_cpu_ms(on_cpu, rounds),
        }
        for backend in ("cuda", "torch"):
            for dtype in (torch.float32, torch.float64):
                own = whole.to("cuda", dtype)
                found = own(backend)
                ids = found[0].cpu()
                both = (ids == exact[0]) & (ids >= 0)
                row[f"{backend} {str(dtype)[6:]}"] = {
                    "ms": median_ms(partial(own, backend), rounds),
                    "ids_differ": float((ids != exact[0]).double().mean()),
                    "bary_max_error": float((found[1].cpu() - exact[1])[both].abs().max()),
                    "clip_gradient_error": relative(found[3], exact[3]),
                    "attribute_gradient_error": relative(found[4], exact[4]),
                    "ids_repeat": bool((own(backend)[0].cpu() == ids).all()),
                }
        figures[name] = row
    return figures


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Published sizes: the network and its batch of images."""
    return {
        "pix2face U-Net, 4 x 256 px": (lambda: Pix2Face(Pix2FaceConfig()), (4, 3, 256, 256)),
        "pix2face U-Net, 24 x 256 px": (lambda: Pix2Face(Pix2FaceConfig()), (24, 3, 256, 256)),
        "iresnet100, 16 x 112 px": (lambda: IResNet(IResNetConfig()), (16, 3, 112, 112)),
    }


def one_step(net: nn.Module, image: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Mean square of the output, minimised once."""
    optimizer.zero_grad(set_to_none=True)
    loss = net(image).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def gradients(net: nn.Module, image: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Loss and all gradients in one vector."""
    net.zero_grad(set_to_none=True)
    loss = net(image).square().mean()
    loss.backward()
    parts = [p.grad.reshape(-1) for p in net.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(parts).double().cpu()


def step(rounds: int) -> dict[str, Any]:
    """Optimiser steps at the published sizes."""
    figures: dict[str, Any] = {}
    for name, (build, shape) in networks().items():
        torch.manual_seed(0)
        net = build().train()
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5
        started = time.perf_counter()
        loss, exact = gradients(net, image)
        row: dict[str, Any] = {"cpu_forward_backward_s": time.perf_counter() - started}
        net, image = net.cuda(), image.cuda()
        for tf32 in (False, True):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            found, own = gradients(net, image)
            kind = "tf32" if tf32 else "fp32"
            row[f"{kind}_loss_error"] = abs(found - loss) / loss
            row[f"{kind}_gradient_error"] = relative(own, exact)
        torch.backends.cuda.matmul.allow_tf32 = False  # as torch comes: convolutions only
        for deterministic in (False, True):
            torch.set_deterministic_debug_mode("error" if deterministic else "default")
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
            kind = "deterministic_ms" if deterministic else "free_ms"
            row[kind] = median_ms(partial(one_step, net, image, optimizer), rounds)
        torch.set_deterministic_debug_mode("default")
        row["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        figures[name] = row
        del net, image, optimizer
        torch.cuda.empty_cache()
    return figures


def prepare(method: str, folder: Path, data: Path) -> None:
    """What a training of ``params.yaml`` reads, in one folder that can be carried elsewhere."""
    from stages.runtime import params
    from stages.runtime.artifacts import write_json
    from stages.train import RECIPES

    loaded = params.load()
    recipe = RECIPES[method](getattr(loaded.train, method), loaded.seed, data)
    (folder / "data").mkdir(parents=True)
    write_json(recipe.prepare(folder / "data"), folder / "data" / "facts.json")
    fit = recipe.loop.model_dump(mode="json")
    kept = {"name": method, "config": recipe.config, "fit": fit, "seed": loaded.seed}
    write_json(kept, folder / "recipe.json")


def train(prepared: Path) -> dict[str, Any]:
    """Twice on the GPU, once on the CPU, and with batches prepared ahead."""
    from stages.runtime.artifacts import read_safetensors
    from stages.runtime.compute import WorkerContext
    from stages.training import mica, pix2face, ringnet
    from stages.training.run import work_of_worker

    builds = {"mica": mica.build, "pix2face": pix2face.build, "ringnet": ringnet.build}
    recipe = json.loads((prepared / "recipe.json").read_text(encoding="utf-8"))
    fit = recipe["fit"]
    runs: dict[str, Any] = {}
    states: dict[str, bytes] = {}
    for name, device, loaders in (
        ("gpu", "cuda", 0),
        ("gpu again", "cuda", 0),
        ("gpu, 8 loaders", "cuda", 8),
        ("cpu", "cpu", 0),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            shutil.copytree(prepared / "data", folder / "data")
            arguments = {
                "build": builds[recipe["name"]],
                "config": {**recipe["config"], "seed": recipe["seed"], "batch": fit["batch"]},
                "fit": {**fit, "seed": recipe["seed"], "loaders": loaders},
            }
            started = time.perf_counter()
            work_of_worker(WorkerContext(0, 1, folder, device), arguments)
            seconds = time.perf_counter() - started
            states[name] = (folder / "final.safetensors").read_bytes()
            _, facts = read_safetensors(folder / "final.safetensors")
            last = facts["history"][-1]
            runs[name] = {"s": seconds, "train": last["train"], "validation": last["validation"]}
    torch.set_deterministic_debug_mode("default")
    runs["same_bits_twice"] = states["gpu"] == states["gpu again"]
    runs["same_bits_with_loaders"] = states["gpu"] == states["gpu, 8 loaders"]
    return runs


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prepared", type=Path, nargs="*", default=[], metavar="DIR")
    parser.add_argument("--prepare", nargs=2, metavar=("METHOD", "DIR"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="a built graph's outputs")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare[0], Path(options.prepare[1]), options.data)
        return 0
    if not torch.cuda.is_available():
        print(json.dumps({"gpu": None, "why": "torch sees no GPU here; nothing was measured"}))
        return 1
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    parts: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("render", partial(render, options.rounds)),
        ("step", partial(step, options.rounds)),
    ]
    parts += [(f"train {folder.name}", partial(train, folder)) for folder in options.prepared]
    failed = False
    for name, part in parts:
        try:
            figures[name] = part()
        except (RuntimeError, ValueError, AssertionError) as error:
            figures[name], failed = {"failed": str(error)}, True
        print(name, json.dumps(figures[name], indent=1), file=sys.stderr, flush=True)
    text = json.dumps(figures, indent=2)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
