"""The one training loop: step-indexed, resumable, the same bits every time.

Everything random depends on the step's number, never on what ran before: a run that was killed and
resumed equals one that was not, bit for bit. The loop knows neither files nor Ray; a ``Store``
keeps its checkpoints, and ``wrap`` may add gradient averaging over workers.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class Trainable(Protocol):
    """What the loop asks of a model, which is also an ``nn.Module``."""

    def losses(self, output: Any, batch: Batch) -> dict[str, Tensor]:  # noqa: ANN401
        """Terms by name; ``loss`` is minimised."""
        ...


class Store(Protocol):
    """Keeps the newest checkpoint; saving replaces it atomically."""

    def save(self, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        ...

    def restore(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the checkpoint, or None where there is none."""
        ...


@dataclass(frozen=True)
class FitSettings:
    """Numbers of one training run.

    Attributes:
        steps: Optimiser steps.
        learning_rate: At step 0.
        final_rate: Learning rate at the last step, as a fraction of the first.
        schedule: How the rate moves there.
        weight_decay: Decoupled (AdamW); 0 makes it Adam.
        betas: Adam's averaging constants.
        clip_norm: Largest gradient norm; 0 for no limit.
        report_every: Steps between history rows and validations.
        checkpoint_every: Steps between checkpoints.
        keep: ``best`` returns the weights of the best validation, ``smoothed`` those at the lowest
            running mean of validations, which one lucky value does not decide, ``last`` the final
            ones.
        monitor: Validation metric that is minimised.
        window: The running mean moves a ``window``-th part of the way to each validation; its first
            value is the first validation (as in MICA's release, window 7).
        seed: Root of initialisation and sampling.
        loaders: Threads that prepare coming batches; 0 prepares each when it is needed. They
            change no result: a batch is a function of its step.
    """

    steps: int
    learning_rate: float
    final_rate: float = 1.0
    schedule: Literal["constant", "geometric", "cosine"] = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.0
    report_every: int = 100
    checkpoint_every: int = 100
    keep: Literal["best", "smoothed", "last"] = "last"
    monitor: str = "loss"
    window: int = 7
    seed: int = 0
    loaders: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0."""
        t = step / max(self.steps - 1, 1)
        if self.schedule == "geometric":
            return self.learning_rate * self.final_rate**t
        if self.schedule == "cosine":
            low = self.learning_rate * self.final_rate
            return low + (self.learning_rate - low) * 0.5 * (1.0 + math.cos(math.pi * t))
        return self.learning_rate

    def smoothed(self, running: float | None, value: float) -> float:
        """The running mean after one more validation."""
        return value if running is None else running + (value - running) / self.window


@dataclass(frozen=True)
class FitResult:
    """What training leaves.

    Attributes:
        state: Weights and buffers by name.
        step: Number of steps behind them.
        history: One row per report: ``step``, ``rate``, ``train``, ``validation``.
    """

    state: dict[str, np.ndarray]
    step: int
    history: list[dict[str, Any]] = field(default_factory=list)


class _Objective(nn.Module):
    """Forward pass and losses as one module, so that a wrapper sees every gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model: Any = self.model
        return model.losses(model(batch["image"]), batch)


def make_deterministic(seed: int) -> None:
    """Seed torch, allow only deterministic kernels and pin this process to one thread.

    ``set_deterministic_debug_mode`` is ``use_deterministic_algorithms`` without the import of
    torch's compiler, seconds per process. Filling every new tensor, an eighth of a step's time,
    would matter only to a kernel that reads what it never wrote.
    """
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(1)


def predict(net: nn.Module, image: Tensor) -> Tensor:
    """Output for a batch of images, on the network's device."""
    output: Tensor = net(image.to(next(net.parameters()).device))
    return output


def step_rng(seed: int, step: int, slot: int) -> np.random.Generator:
    """Generator of one sample of one step; the same whatever ran before, on any worker."""
    return np.random.default_rng([seed, step, slot])


def slots(batch_size: int, rank: int, world_size: int) -> list[int]:
    """Positions in the step's global batch that one worker fills.

    Raises:
        ValueError: The batch does not divide evenly, so that gradients would be weighted unevenly.
    """
    if batch_size % world_size:
        raise ValueError(
            f"batch size must be a multiple of the {world_size} workers, got {batch_size}"
        )
    return list(range(rank, batch_size, world_size))


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    settings: FitSettings,
    store: Store,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    parameter_rates: Sequence[tuple[list[nn.Parameter], float]] | None = None,
    rank: int = 0,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    device: str = "cpu",
) -> FitResult:
    """Train ``model`` from its current weights, or from where ``store`` left off.

    Args:
        model: Has ``losses(output, batch)``; its input is ``batch["image"]``.
        batches: The batch of a step, a pure function of the step's number.
        settings: Numbers.
        store: Where checkpoints go; only rank 0 saves, every rank restores.
        validate: Metrics of a model in evaluation mode; called on rank 0 only.
        parameter_rates: Parameters with factors on the learning rate; None trains all alike.
        rank: This worker's number.
        wrap: Adds gradient averaging (DDP); None for a single worker.
        device: Where the model is trained, as torch names it; batches are made on the CPU.

    Raises:
        FloatingPointError: The loss is not finite.
        KeyError: ``settings.keep`` needs the monitored metric and ``validate`` lacks it.
    """
    model.to(device)
    groups = parameter_rates or [([p for p in model.parameters() if p.requires_grad], 1.0)]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "factor": factor} for parameters, factor in groups],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    start, history, sums, best = 0, [], {}, {}
    best_value, best_step = math.inf, settings.steps
    running: float | None = None
    restored = store.restore()
    if restored is not None:
        tensors, facts = restored
        start, history, sums = int(facts["step"]), facts["history"], facts["sums"]
        best_value = math.inf if facts["best_value"] is None else float(facts["best_value"])
        running = facts["running"]
        best, best_step = _with_prefix(tensors, "best/"), int(facts["best_step"])
        load_state(model, _with_prefix(tensors, "model/"))
        _load_optimizer(optimizer, _with_prefix(tensors, "optimizer/"))
        logger.info("resumed at step %d of %d", start, settings.steps)
    objective: nn.Module = _Objective(model)
    if wrap is not None:
        objective = wrap(objective)

    coming = _batches_from(start, batches, settings)
    for step, batch in enumerate(coming, start):
        torch.manual_seed(_torch_seed(settings.seed, step, rank))
        model.train()
        rate = settings.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        terms = objective({name: part.to(device) for name, part in batch.items()})
        loss = terms["loss"]
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"training step {step}: expected a finite loss, got {loss.item()}; "
                "lower the learning rate or look at the batch"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()

        done = step + 1
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        sums["count"] = sums.get("count", 0.0) + 1
        last = done == settings.steps
        if rank == 0 and (done % settings.report_every == 0 or last):
            count = sums.pop("count")
            row: dict[str, Any] = {
                "step": done,
                "rate": rate,
                "train": {name: total / count for name, total in sums.items()},
            }
            if validate is not None:
                model.eval()
                with torch.no_grad():
                    row["validation"] = validate(model)
                if settings.keep != "last":
                    value = row["validation"][settings.monitor]
                    running = settings.smoothed(running, value)
                    judged = value if settings.keep == "best" else running
                    if judged < best_value:
                        best_value, best_step, best = judged, done, state_arrays(model)
            history.append(row)
            logger.info("step %d: %s %s", done, row["train"], row.get("validation", ""))
            sums = {}
        if rank == 0 and (done % settings.checkpoint_every == 0 or last):
            tensors = {
                **{f"model/{name}": value for name, value in state_arrays(model).items()},
                **{f"optimizer/{name}": v for name, v in _optimizer_arrays(optimizer).items()},
                **{f"best/{name}": value for name, value in best.items()},
            }
            facts = {
                "step": done,
                "history": history,
                "sums": sums,
                "best_value": None if math.isinf(best_value) else best_value,
                "best_step": best_step,
                "running": running,
            }
            store.save(tensors, facts)
    if best:
        return FitResult(best, best_step, history)
    return FitResult(state_arrays(model), settings.steps, history)


def _batches_from(
    start: int, batches: Callable[[int], Batch], settings: FitSettings
) -> Iterator[Batch]:
    """Batches of the steps from ``start`` on, in order, coming ones prepared meanwhile."""
    steps = range(start, settings.steps)
    if settings.loaders == 0:
        yield from map(batches, steps)
        return
    with ThreadPoolExecutor(settings.loaders) as pool:
        waiting: deque[Future[Batch]] = deque()
        for step in steps:
            waiting.append(pool.submit(batches, step))
            if len(waiting) > 2 * settings.loaders:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _torch_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what a model itself draws in a step (dropout), whatever ran before."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of a model's weights and buffers by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def load_state(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into a model, strictly by name and shape.

    Raises:
        RuntimeError: A name or shape differs.
    """
    model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in state.items()})


def _with_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Adam's moments and counters by ``<parameter>/<name>``."""
    return {
        f"{index}/{name}": value.detach().cpu().numpy().copy()
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """Inverse of ``_optimizer_arrays``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in arrays.items():
        index, name = key.split("/")
        tensor = torch.from_numpy(np.array(value))
        state.setdefault(int(index), {})[name] = tensor.reshape(()) if name == "step" else tensor
    content = optimizer.state_dict()
    content["state"] = state
    optimizer.load_state_dict(content)
