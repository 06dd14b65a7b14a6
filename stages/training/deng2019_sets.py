"""Second half of Deng et al. 2019: C-Net learns from sets of photographs of one person.

R-Net is trained and stays as it is; its data (base crops of ``stages.training.deng2019``) are used
again.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.runtime.artifacts import read_safetensors, write_safetensors
from stages.training.deng2019 import Photographs, network

if TYPE_CHECKING:
    from stages.training.run import Job


def prepare(folder: Path, *, first: Path, photographs: int) -> dict[str, Any]:
    """Take over R-Net's data and weights.

    Args:
        folder: To fill.
        first: R-Net's run: ``data/`` and ``final.safetensors``.
        photographs: M of a set.

    Returns:
        Facts: how many people have enough photographs.

    Raises:
        ValueError: Nobody has.
    """
    shutil.copytree(first / "data", folder, dirs_exist_ok=True)
    state, _ = read_safetensors(first / "final.safetensors")
    write_safetensors(state, folder / "first.safetensors", {})
    people, known = np.load(folder / "people.npy"), np.load(folder / "known.npy")
    use = known & ~np.load(folder / "validation.npy")
    counts = np.unique(people[use], return_counts=True)[1]
    enough = int((counts >= photographs).sum())
    if not enough:
        most = int(counts.max(initial=0))
        raise ValueError(
            f"train.deng2019.sets.photographs: expected at most the {most} training photographs "
            f"that one person has, got {photographs}; lower it or add photographs"
        )
    return {"set_identities": enough}


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
    use = photographs.known & ~photographs.validation
    people, of_each = np.unique(photographs.people[use], return_counts=True)
    people = people[of_each >= count]
    members = {name: np.flatnonzero(use & (photographs.people == name)) for name in people}

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        samples = []
        for slot in slots:
            rng = step_rng(config["seed"], step, slot)
            person = people[int(rng.integers(len(people)))]
            chosen = rng.choice(members[person], count, replace=False)
            samples += [photographs.varied(int(index), rng) for index in chosen]
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
        return {"set_loss": float(np.mean(losses)) if losses else 0.0}

    return Job(model, batch, validate, None, "set_loss")


def sets_of(photographs: Photographs, count: int) -> list[np.ndarray]:
    """The first ``count`` photographs of everybody who only validates and has as many."""
    found = []
    for name in np.unique(photographs.people[photographs.validation & photographs.known]):
        group = np.flatnonzero(photographs.known & (photographs.people == name))
        if len(group) >= count:
            found.append(group[:count])
    return found
