"""Second half of Deng et al. 2019: C-Net learns from sets of photographs of one person.

R-Net is trained and stays as it is; its data (base crops of ``stages.training.deng2019``) are used
again.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from stages.runtime.artifacts import read_safetensors, write_safetensors
from stages.training.deng2019 import Photographs, network

if TYPE_CHECKING:
    from stages.training.run import Job

MAX_SETS = 24
"""People whose sets validate."""


def prepare(folder: Path, *, first: Path) -> dict[str, Any]:
    """Take over R-Net's data, as links, and its weights.

    Args:
        folder: To fill.
        first: R-Net's run: ``data/`` and ``final.safetensors``.
    """
    shutil.copytree(first / "data", folder, copy_function=os.link, dirs_exist_ok=True)
    state, _ = read_safetensors(first / "final.safetensors")
    write_safetensors(state, folder / "first.safetensors", {})
    return {}


class SetSampler:
    """Draws several photographs of one person who trains."""

    def __init__(self, photographs: Photographs, count: int) -> None:
        """Group the photographs of those who have ``count``; unknown people make no sets."""
        self.count = count
        use = np.flatnonzero(photographs.known & ~photographs.validation)
        _, of_person = np.unique(photographs.people[use], return_inverse=True)
        groups = np.split(
            use[np.argsort(of_person, kind="stable")], np.cumsum(np.bincount(of_person))[:-1]
        )
        self.groups = [group for group in groups if len(group) >= count]

    def draw(self, rng: np.random.Generator) -> Int[np.ndarray, " M"]:
        """Different photographs of one person."""
        group = self.groups[int(rng.integers(len(self.groups)))]
        return rng.choice(group, self.count, replace=False)


def build(data: Path, config: Mapping[str, Any]) -> "Job":
    """The worker's job of C-Net; one sample of the loop is one set."""
    import torch

    from models.methods.deng2019_aggregate import Deng2019Set
    from models.networks.train_loop import load_state, predict, step_rng
    from stages.training.run import Job

    photographs = Photographs(data, config)
    single = network(data, config)
    load_state(single, read_safetensors(data / "first.safetensors")[0])
    count = config["sets"]["photographs"]
    model = Deng2019Set(single, count)
    sampler = SetSampler(photographs, count)

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        samples = []
        for slot in slots:
            rng = step_rng(config["seed"], step, slot)
            samples += [photographs.varied(int(index), rng) for index in sampler.draw(rng)]
        return photographs.stacked(samples)

    held = sets_of(photographs, count)

    def validate(net: torch.nn.Module) -> dict[str, float]:
        losses: list[float] = []
        for group in held:
            plain = [photographs.sample(int(index), photographs.standard) for index in group]
            sample = photographs.stacked(plain)
            device = next(net.parameters()).device
            given = {name: value.to(device) for name, value in sample.items()}
            with torch.no_grad():
                terms = model.losses(predict(net, given["image"]), given)
            losses.append(float(terms["loss"]))
        return {"set_loss": float(np.mean(losses))}

    return Job(model, batch, validate, None, "set_loss")


def sets_of(photographs: Photographs, count: int) -> list[Int[np.ndarray, " M"]]:
    """The first ``count`` photographs of people who only validate, of at most ``MAX_SETS``."""
    use = photographs.validation & photographs.known
    found = []
    for name in np.unique(photographs.people[use]):
        group = np.flatnonzero(use & (photographs.people == name))
        if len(group) >= count:
            found.append(group[:count])
        if len(found) == MAX_SETS:
            break
    return found
