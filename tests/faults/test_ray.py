"""Ray under fault: the same bytes for any number of workers and after a killed one."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.networks.train_loop import FitSettings, fit, make_deterministic, slots, step_rng
from stages.runtime import compute
from stages.runtime.artifacts import write_safetensors
from stages.runtime.compute import WorkerContext
from stages.runtime.params import ComputeParams
from stages.training.run import FileStore

pytestmark = pytest.mark.faults

SETTINGS = FitSettings(
    steps=12, learning_rate=1e-2, final_rate=0.1, schedule="cosine", weight_decay=1e-3,
    report_every=4, checkpoint_every=3, keep="best", monitor="error", seed=3, clip_norm=1.0,
)  # fmt: skip


def on_ray(workers: int) -> ComputeParams:
    return ComputeParams(workers=workers, ray_threshold_s=0, object_store_mb=80)


def bytes_of(item: str, *, die_once: Path | None = None) -> bytes:
    """A row of bytes; the first worker to meet item 9 with ``die_once`` ends without a word."""
    if die_once is not None and item == "item9":
        try:
            die_once.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return compute.item_rng(5, item).normal(size=32).tobytes()


@pytest.mark.parametrize(("workers", "killed"), [(1, False), (2, False), (4, False), (2, True)])
def test_a_map_gives_the_same_bytes(workers: int, killed: bool, tmp_path: Path) -> None:
    items = [f"item{index}" for index in range(40)]
    expected = [bytes_of(item) for item in items]
    died = tmp_path / "died"
    rows = compute.map_ordered(
        partial(bytes_of, die_once=died if killed else None),
        items,
        compute=on_ray(workers),
        seconds_per_item=9,
        label="rows",
    )
    assert rows == expected
    assert died.exists() == killed


def line(config: dict[str, Any], context: WorkerContext) -> None:
    """A small training; rank 1 kills itself once, at a step between two checkpoints."""
    make_deterministic(SETTINGS.seed)
    mine = slots(8, context.rank, context.world_size)
    died = Path(config["died"]) if config["died"] else None

    def batch(step: int) -> dict[str, torch.Tensor]:
        if died is not None and step == 7 and context.rank == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.tensor([step_rng(3, step, slot).normal(size=3).tolist() for slot in mine])
        return {"image": x, "y": x.sum(1, keepdim=True).sin()}

    model = Line()
    result = fit(
        model,
        batch,
        SETTINGS,
        FileStore(context.resume_dir),
        validate=lambda net: {"error": float(net(torch.eye(3)).abs().mean())},
        rank=context.rank,
        wrap=context.wrap_model,
    )
    if context.rank == 0:
        write_safetensors(result.state, context.resume_dir / "final.safetensors", {})


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def losses(
        self, output: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {"loss": (output - batch["y"]).square().mean()}


def worker(context: WorkerContext, config: dict[str, Any]) -> None:
    line(config, context)


def test_a_killed_training_equals_the_undisturbed_one(tmp_path: Path) -> None:
    """Two workers over gloo; one is killed by SIGKILL, Ray starts them again, they resume."""
    died = tmp_path / "died"
    files = []
    for name, config in (("whole", {"died": ""}), ("killed", {"died": str(died)})):
        folder = compute.run_training(
            worker, config, fingerprint=name, num_workers=2, compute=on_ray(2), work=tmp_path
        )
        files.append((folder / "final.safetensors").read_bytes())
    assert died.exists()
    assert files[0] == files[1]
