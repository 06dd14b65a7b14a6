"""One training run on files: fingerprint, prepared data, workers, checkpoints, result.

The resumable state lives in ``.work/train/<fingerprint>/``, outside every stage output: ``data/``
(arrays that the workers map into memory), ``checkpoint.safetensors`` and ``final.safetensors``. The
fingerprint covers inputs, code and parameters, so a killed run continues and a changed one does not
find anything to continue from.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.runtime.artifacts import (
    atomic_directory,
    read_safetensors,
    sha256_json,
    write_json,
    write_safetensors,
)
from stages.runtime.compute import WorkerContext, run_training
from stages.runtime.fingerprint import hash_code, hash_input
from stages.runtime.params import ComputeParams, LoopParams
from stages.runtime.process import SAME_SUMS_ON_GPU

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

WORK = Path(".work")


class FileStore:
    """The newest checkpoint of one run, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.safetensors"

    def save(self, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        write_safetensors(tensors, self.path, facts)

    def restore(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the checkpoint, or None at the start of a run."""
        return read_safetensors(self.path) if self.path.is_file() else None


@dataclass(frozen=True)
class Job:
    """What one worker trains.

    Attributes:
        model: Freshly initialised, or holding the weights to start from.
        batch: Samples of a step at the given slots of the global batch.
        validate: Metrics of the model in evaluation mode.
        rates: Parameters with factors on the learning rate; None for all alike.
        monitor: Metric that decides the best weights; smaller is better.
    """

    model: "nn.Module"
    batch: Callable[[int, list[int]], "dict[str, Tensor]"]
    validate: "Callable[[nn.Module], dict[str, float]]"
    rates: "list[tuple[list[nn.Parameter], float]] | None"
    monitor: str


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        state: Weights and buffers by name.
        step: Steps behind them.
        history: One row per report.
        data: Facts that the preparation left.
        inputs: Hash of each input.
        fingerprint: Name of the run.
    """

    state: dict[str, np.ndarray]
    step: int
    history: list[dict[str, Any]]
    data: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str


def train(
    name: str,
    *,
    inputs: Mapping[str, Path],
    config: Mapping[str, Any],
    code: tuple[str, ...],
    fit: LoopParams,
    seed: int,
    prepare: Callable[[Path], dict[str, Any]],
    build: Callable[[Path, Mapping[str, Any]], Job],
    compute: ComputeParams,
    work: Path = WORK,
) -> Trained:
    """Train once, or continue what a killed process left.

    Args:
        name: What is trained, for the log.
        inputs: Files and folders that decide the result.
        config: Plain, JSON-like arguments for ``build``.
        code: Modules that hold the method and the assembly of its data.
        fit: Numbers of the loop.
        seed: Root of every draw.
        prepare: Fills a folder with the arrays that workers read; returns facts about them.
        build: Top-level callable (or a partial of one) that makes a worker's job.
        compute: Ray settings.
        work: Folder of resumable state.

    Raises:
        FileNotFoundError: An input is missing.
    """
    hashes = {key: hash_input(path) for key, path in sorted(inputs.items())}
    recipe = {
        "name": name,
        "inputs": hashes,
        "config": dict(config),
        "fit": fit.model_dump(mode="json"),
        "seed": seed,
    }
    fingerprint = sha256_json({**recipe, "code": hash_code(__name__, *code)})[:16]
    folder = folder_of(fingerprint, work)
    data, final = folder / "data", folder / "final.safetensors"
    began = time.monotonic()
    if not data.is_dir():
        with atomic_directory(data) as scratch:
            facts = prepare(scratch)
            write_json(facts, scratch / "facts.json")
    prepared = time.monotonic()
    if not final.is_file():
        arguments = {
            "build": partial(build),
            "config": {**config, "seed": seed, "batch": fit.batch},
            "fit": {**fit.model_dump(mode="json"), "seed": seed},
        }
        run_training(
            work_of_worker,
            arguments,
            fingerprint=fingerprint,
            num_workers=fit.workers,
            compute=compute,
            work=work,
            use_gpu=fit.gpu,
        )
    state, facts = read_safetensors(final)
    write_json(
        {
            "prepare_s": round(prepared - began, 2),
            "train_s": round(time.monotonic() - prepared, 2),
            "recipe": recipe,
        },
        work / "timings" / f"train-{name}.json",
    )
    from stages.runtime.artifacts import read_json

    return Trained(
        state, facts["step"], facts["history"], read_json(data / "facts.json"), hashes, fingerprint
    )


def folder_of(fingerprint: str, work: Path = WORK) -> Path:
    """Where the resumable state of a run is."""
    return (work / "train" / fingerprint).resolve()


def forget(fingerprint: str, work: Path = WORK) -> None:
    """Drop the resumable state of a run whose result has been exported."""
    shutil.rmtree(folder_of(fingerprint, work), ignore_errors=True)


def work_of_worker(context: WorkerContext, arguments: dict[str, Any]) -> None:
    """Body of one training worker; rank 0 leaves ``final.safetensors``."""
    from models.networks.train_loop import FitSettings, fit, make_deterministic, slots

    numbers = dict(arguments["fit"])
    for key in ("workers", "gpu", "batch"):
        numbers.pop(key)
    numbers["betas"] = tuple(numbers["betas"])
    os.environ.update(SAME_SUMS_ON_GPU)
    make_deterministic(numbers["seed"])
    job: Job = arguments["build"](context.resume_dir / "data", arguments["config"])
    settings = FitSettings(**numbers, monitor=job.monitor)
    mine = slots(arguments["config"]["batch"], context.rank, context.world_size)
    result = fit(
        job.model,
        lambda step: job.batch(step, mine),
        settings,
        FileStore(context.resume_dir),
        validate=job.validate,
        parameter_rates=job.rates,
        rank=context.rank,
        wrap=None if context.world_size == 1 else context.wrap_model,
        device=context.device,
    )
    if context.rank == 0:
        write_safetensors(
            result.state,
            context.resume_dir / "final.safetensors",
            {"step": result.step, "history": result.history},
        )
