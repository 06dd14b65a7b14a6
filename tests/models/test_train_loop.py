"""The training loop: resumed equals uninterrupted, two workers see the batch of one."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.networks.train_loop import (
    FitResult,
    FitSettings,
    fit,
    make_deterministic,
    predict,
    slots,
    step_rng,
)


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    yield
    torch.set_deterministic_debug_mode("default")
    torch.utils.deterministic.fill_uninitialized_memory = True


class Line(nn.Module):
    """A regression with a hidden layer, batch norm included: its buffers must resume too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = (output - batch["y"]).square().mean()
        return {"loss": loss, "twice": 2 * loss}


class Memory:
    """A store that dies after a number of saves, as a killed process would."""

    def __init__(self, saves_left: int | None = None) -> None:
        self.content: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None
        self.saves_left = saves_left

    def save(self, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.content = ({n: v.copy() for n, v in tensors.items()}, dict(facts))
        if self.saves_left is not None:
            self.saves_left -= 1
            if self.saves_left == 0:
                raise KeyboardInterrupt

    def restore(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        return self.content


SETTINGS = FitSettings(
    steps=23, learning_rate=1e-2, final_rate=0.1, schedule="cosine", weight_decay=1e-3,
    report_every=5, checkpoint_every=4, keep="best", monitor="error", seed=3, clip_norm=1.0,
)  # fmt: skip


def batches(step: int) -> dict[str, Tensor]:
    x = np.stack([step_rng(SETTINGS.seed, step, slot).normal(size=3) for slot in range(8)])
    return {
        "image": torch.as_tensor(x, dtype=torch.float32),
        "y": torch.as_tensor(np.sin(x.sum(1, keepdims=True)), dtype=torch.float32),
    }


def validate(model: nn.Module) -> dict[str, float]:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    return {"error": float((model(x) - x.sum(1, keepdim=True).sin()).abs().mean())}


def run(store: Memory, settings: FitSettings = SETTINGS) -> FitResult:
    make_deterministic(settings.seed)
    return fit(Line(), batches, settings, store, validate=validate)


def same(a: FitResult, b: FitResult) -> None:
    assert a.state.keys() == b.state.keys()
    for name in a.state:
        np.testing.assert_array_equal(a.state[name], b.state[name], err_msg=name)
    assert a.history == b.history
    assert a.step == b.step


def test_batches_prepared_ahead_change_nothing() -> None:
    same(run(Memory()), run(Memory(), replace(SETTINGS, loaders=3)))


def test_a_batch_that_fails_ahead_is_an_error() -> None:
    def breaks(step: int) -> dict[str, Tensor]:
        if step == 7:
            raise ValueError("no such photograph")
        return batches(step)

    with pytest.raises(ValueError, match="no such photograph"):
        fit(Line(), breaks, replace(SETTINGS, loaders=2), Memory(), validate=validate)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_repeats_itself_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def on_gpu(store: Memory, settings: FitSettings = SETTINGS) -> FitResult:
        make_deterministic(settings.seed)
        return fit(Line(), batches, settings, store, validate=measured, device="cuda")

    def measured(model: nn.Module) -> dict[str, float]:
        x = torch.linspace(-1, 1, 12).reshape(4, 3)
        gap = predict(model, x).cpu() - x.sum(1, keepdim=True).sin()
        return {"error": float(gap.abs().mean())}

    whole, killed = on_gpu(Memory()), Memory(saves_left=2)
    with pytest.raises(KeyboardInterrupt):
        on_gpu(killed)
    killed.saves_left = None
    same(whole, on_gpu(killed))
    once = replace(SETTINGS, steps=1)  # after more, Adam has made much of the last bits
    ours, theirs = (
        r.history[0]["train"]["loss"] for r in (on_gpu(Memory(), once), run(Memory(), once))
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("saves", [1, 2, 4])
@pytest.mark.parametrize("keep", ["best", "smoothed", "last"])
def test_resumed_equals_uninterrupted(saves: int, keep: str) -> None:
    settings = replace(SETTINGS, keep=keep)
    whole = run(Memory(), settings)
    store = Memory(saves)
    with pytest.raises(KeyboardInterrupt):
        run(store, settings)
    same(run(store, settings), whole)


def test_rerun_and_reload_give_the_same_bits() -> None:
    store = Memory()
    first = run(store)
    same(run(Memory()), first)
    same(run(store), first)  # finished: nothing is left to do


def test_loss_falls_and_history_has_every_report() -> None:
    settings = replace(SETTINGS, steps=240, report_every=60, learning_rate=5e-2)
    result = run(Memory(), settings)
    assert [row["step"] for row in result.history] == [60, 120, 180, 240]
    assert result.history[-1]["train"]["loss"] < 0.7 * result.history[0]["train"]["loss"]
    row = result.history[0]["train"]
    assert row["twice"] == pytest.approx(2 * row["loss"])


def test_best_returns_the_best_validation() -> None:
    result = run(Memory())
    best = min(result.history, key=lambda row: row["validation"]["error"])
    assert result.step == best["step"]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_smoothed_returns_the_lowest_running_mean(window: int) -> None:
    """Reference: r <- r (n - 1) / n + a / n from r = a_1; a lucky validation decides nothing."""
    values = [9.0, 5.0, 8.0, 2.0, 6.0, 5.5, 5.0, 4.5]
    left = iter(values)
    settings = replace(SETTINGS, steps=8, report_every=1, keep="smoothed", window=window)
    make_deterministic(settings.seed)
    result = fit(Line(), batches, settings, Memory(), validate=lambda _: {"error": next(left)})
    running = values[:1]
    for value in values[1:]:
        running.append(running[-1] * (window - 1) / window + value / window)
    assert result.step == 1 + int(np.argmin(running))
    assert (result.step == 4) == (window == 1)  # window 1 is the best validation


def test_another_seed_gives_other_weights() -> None:
    other = run(Memory(), replace(SETTINGS, seed=4))
    assert not np.array_equal(other.state["net.0.weight"], run(Memory()).state["net.0.weight"])


def test_rates() -> None:
    geometric = replace(SETTINGS, schedule="geometric", steps=60, final_rate=0.021)
    for epoch in (0, 17, 59):
        assert geometric.rate(epoch) == pytest.approx(1e-2 * 0.021 ** (epoch / 59))
    cosine = replace(SETTINGS, schedule="cosine", steps=11)
    assert cosine.rate(0) == pytest.approx(1e-2)
    assert cosine.rate(5) == pytest.approx((1e-2 + 1e-3) / 2)
    assert cosine.rate(10) == pytest.approx(1e-3)
    assert replace(SETTINGS, schedule="constant").rate(9) == 1e-2


def test_groups_move_at_their_own_rate() -> None:
    make_deterministic(0)
    model = Line()
    before = model.net[0].weight.detach().clone()
    groups = [(list(model.net[0].parameters()), 0.0), (list(model.net[3].parameters()), 1.0)]
    settings = replace(SETTINGS, steps=3, weight_decay=0.0)
    fit(model, batches, settings, Memory(), validate=validate, parameter_rates=groups)
    assert torch.equal(model.net[0].weight, before)


def test_two_workers_share_the_batch_of_one() -> None:
    assert sorted(slots(8, 0, 2) + slots(8, 1, 2)) == slots(8, 0, 1)
    with pytest.raises(ValueError, match="multiple of the 3 workers, got 8"):
        slots(8, 0, 3)


def test_only_rank_zero_saves() -> None:
    store = Memory()
    make_deterministic(0)
    fit(Line(), batches, replace(SETTINGS, keep="last"), store, rank=1)
    assert store.content is None


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    def broken(step: int) -> dict[str, Tensor]:
        batch = batches(step)
        return {**batch, "y": batch["y"] * (math.nan if step == 2 else 1.0)}

    make_deterministic(0)
    with pytest.raises(FloatingPointError, match="step 2"):
        fit(Line(), broken, SETTINGS, Memory(), validate=validate)
