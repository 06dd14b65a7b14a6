"""Stage `train`: one reconstruction method, through Ray Train, resumable, the same bytes each time.

Reads the method's own inputs below the data folder. Writes ``model.safetensors`` (weights with
embedded facts: method, sizes, input hashes, parameters, provenance of the weights),
``metrics.json`` and ``history.json``.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.photos import is_synthetic
from stages.runtime import params
from stages.runtime.artifacts import atomic_directory, read_facts, write_json, write_safetensors
from stages.runtime.process import begin
from stages.training import deng2019, deng2019_sets, mica, pix2face, pix2face_landmarks, ringnet
from stages.training.assembly import parameter_count, weights_label
from stages.training.run import WORK, Trained, folder_of, forget, train


@dataclass(frozen=True)
class Recipe:
    """How one method's data is assembled, its worker built, and what follows the training.

    Attributes:
        second: What is trained next, on the first run's folder; its state replaces the first's.
        finish: From the trained state and the preparation's facts, further facts; or None.
    """

    inputs: dict[str, Path]
    config: dict[str, Any]
    prepare: Callable[[Path], dict[str, Any]]
    build: Callable[..., Any]
    loop: params.LoopParams
    labelled: tuple[Path, ...]
    second: "Second | None" = None
    finish: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Second:
    """A training that begins where another has ended.

    Attributes:
        config: What its worker gets besides the first's.
        prepare: Fills a folder, given that of the first run as ``first``.
        build: The worker's job.
        loop: Numbers of the loop.
        code: Modules that hold it.
    """

    config: dict[str, Any]
    prepare: Callable[..., dict[str, Any]]
    build: Callable[..., Any]
    loop: params.LoopParams
    code: tuple[str, ...]


def deng2019_recipe(section: params.Deng2019Params, seed: int, data: Path) -> Recipe:
    """Deng et al.: VGGFace2 by identity, 300W-LP besides, landmarks, BFM 2009, recogniser ``a``.

    R-Net first, then C-Net on top of it.
    """
    plain = section.model_dump(mode="json", exclude={"fit", "sets"})
    sets = section.sets.model_dump(mode="json", exclude={"fit"})
    inputs = {
        "packed": data / "packed" / "vggface2",
        "landmarks": data / "landmarks" / "vggface2",
        "model": data / "models" / "bfm2009",
        "recognizer": data / "recognizers" / "a" / "model.safetensors",
    }
    unknown = {
        "unlabelled": data / "packed" / "300w_lp",
        "unlabelled_landmarks": data / "landmarks" / "300w_lp",
    }
    prepare = partial(
        deng2019.prepare,
        **inputs,
        **unknown,
        section=plain,
        set_photographs=section.sets.photographs,
        seed=seed,
    )
    labelled = [inputs["packed"], inputs["model"]]
    if section.unlabelled:
        inputs |= unknown
        labelled.append(unknown["unlabelled"])
    if section.weights is not None:
        inputs["weights"] = section.weights
    return Recipe(
        inputs,
        plain,
        prepare,
        deng2019.build,
        section.fit,
        tuple(labelled),
        Second(
            {"sets": sets},
            deng2019_sets.prepare,
            deng2019_sets.build,
            section.sets.fit,
            ("models.methods.deng2019_aggregate", "stages.training.deng2019_sets"),
        ),
    )


def mica_recipe(section: params.MicaParams, seed: int, data: Path) -> Recipe:
    """MICA: unified shapes and crops, FLAME, recogniser ``a``'s size and mostly its weights."""
    recognizer = data / "recognizers" / "a"
    facts = read_facts(recognizer / "model.safetensors")
    plain = section.model_dump(mode="json", exclude={"fit"})
    inputs = {"unified": data / "unified", "model": data / "models" / "flame"}
    weights = None
    if section.pretrained:
        weights = section.weights or recognizer / "model.safetensors"
        inputs["encoder"] = weights
    return Recipe(
        inputs,
        {**plain, "encoder": facts["encoder"]},
        partial(
            mica.prepare,
            unified=inputs["unified"],
            encoder=weights,
            model=inputs["model"],
            section={**plain, "encoder": facts["encoder"]},
            seed=seed,
        ),
        mica.build,
        section.fit,
        (inputs["unified"], inputs["model"]),
    )


def pix2face_recipe(section: params.Pix2FaceParams, seed: int, data: Path) -> Recipe:
    """pix2face: 300W-LP photographs, their rendered maps, the 3DDFA model."""
    plain = section.model_dump(mode="json", exclude={"fit"})
    inputs = {
        "packed": data / "packed" / "300w_lp",
        "rendered": data / "rendered" / "300w_lp",
        "model": data / "models" / "3ddfa",
    }
    return Recipe(
        inputs,
        plain,
        partial(pix2face.prepare, **inputs, section=plain, seed=seed),
        pix2face.build,
        section.fit,
        tuple(inputs.values()),
        finish=partial(
            pix2face_landmarks.choose_landmarks,
            packed=inputs["packed"],
            model=inputs["model"],
            section=plain,
            seed=seed,
        ),
    )


def ringnet_recipe(section: params.RingNetParams, seed: int, data: Path) -> Recipe:
    """RingNet: VGGFace2 by identity, 300W-LP as unlabelled photographs, their landmarks, FLAME."""
    plain = section.model_dump(mode="json", exclude={"fit"})
    inputs = {
        "packed": data / "packed" / "vggface2",
        "landmarks": data / "landmarks" / "vggface2",
        "unlabelled": data / "packed" / "300w_lp",
        "unlabelled_landmarks": data / "landmarks" / "300w_lp",
        "model": data / "models" / "flame",
    }
    prepare = partial(ringnet.prepare, **inputs, section=plain, seed=seed)
    if section.weights is not None:
        inputs["weights"] = section.weights
    labelled = (inputs["packed"], inputs["unlabelled"], inputs["model"])
    return Recipe(inputs, plain, prepare, ringnet.build, section.fit, labelled)


RECIPES: dict[str, Callable[..., Recipe]] = {
    "deng2019": deng2019_recipe,
    "mica": mica_recipe,
    "pix2face": pix2face_recipe,
    "ringnet": ringnet_recipe,
}


def run(
    section: params.Deng2019Params
    | params.MicaParams
    | params.Pix2FaceParams
    | params.RingNetParams,
    compute: params.ComputeParams,
    *,
    method: str,
    seed: int,
    data: Path,
    out: Path,
    work: Path = WORK,
) -> None:
    """Train one method.

    Args:
        section: The method's parameters.
        compute: Ray settings.
        method: Name in ``RECIPES``.
        seed: Root of every draw.
        data: Folder of all stages' outputs.
        out: Replaced when all is done.
        work: Folder of resumable state.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: The data do not suffice.
    """
    recipe = RECIPES[method](section, seed, data)
    trained = train(
        method,
        inputs=recipe.inputs,
        config=recipe.config,
        code=(f"models.methods.{method}", f"stages.training.{method}"),
        fit=recipe.loop,
        seed=seed,
        prepare=recipe.prepare,
        build=recipe.build,
        compute=compute,
        work=work,
    )
    runs, history = [trained], [*trained.history]
    if recipe.second is not None:
        second = train_second(method, recipe, recipe.second, trained, seed, compute, work)
        runs.append(second)
        history += [{**row, "step": recipe.loop.steps + row["step"]} for row in second.history]
    state = runs[-1].state
    config = {**recipe.config, **(recipe.second.config if recipe.second else {})}
    data_facts = {name: value for run in runs for name, value in run.data.items()}
    if recipe.finish is not None:
        data_facts = {**data_facts, **recipe.finish(state, trained.data)}
    synthetic = is_synthetic(*recipe.labelled)
    weights = weights_label(recipe.loop.steps, synthetic)
    facts = {
        "kind": "method",
        "method": method,
        "weights": weights,
        "synthetic": synthetic,
        "config": config,
        "data": data_facts,
        "inputs": trained.inputs,
        "fit": recipe.loop.model_dump(mode="json"),
        "seed": seed,
        "fingerprint": trained.fingerprint,
        "step": trained.step,
    }
    if recipe.second is not None:
        facts["second"] = {
            "fit": recipe.second.loop.model_dump(mode="json"),
            "fingerprint": runs[-1].fingerprint,
            "step": runs[-1].step,
        }
    metrics = {
        "method": method,
        "weights": weights,
        "synthetic": synthetic,
        "parameters": parameter_count(state),
        "data": data_facts,
        **figures_of(trained),
    }
    if len(runs) > 1:
        metrics["second"] = figures_of(runs[-1])
    with atomic_directory(out) as scratch:
        write_safetensors(state, scratch / "model.safetensors", facts)
        write_json(metrics, scratch / "metrics.json")
        write_json(history, scratch / "history.json")
    for each in runs:
        forget(each.fingerprint, work)


def figures_of(run: Trained) -> dict[str, Any]:
    """The step whose weights a run gave, and its row of the history."""
    chosen = next((row for row in run.history if row["step"] == run.step), {})
    return {
        "step": run.step,
        "train": chosen.get("train", {}),
        "validation": chosen.get("validation", {}),
    }


def train_second(
    method: str,
    recipe: Recipe,
    second: Second,
    first: Trained,
    seed: int,
    compute: params.ComputeParams,
    work: Path,
) -> Trained:
    """Train what follows; killed, it continues without the first part's being repeated."""
    return train(
        f"{method}-second",
        inputs=recipe.inputs,
        config={**recipe.config, **second.config, "first": first.fingerprint},
        code=(f"models.methods.{method}", f"stages.training.{method}", *second.code),
        fit=second.loop,
        seed=seed,
        prepare=partial(second.prepare, first=folder_of(first.fingerprint, work)),
        build=second.build,
        compute=compute,
        work=work,
    )


def main() -> None:
    """Command line: the method's name and paths only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=sorted(RECIPES), required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin(f"train@{args.method}")
    loaded = params.load()
    run(
        getattr(loaded.train, args.method),
        loaded.compute,
        method=args.method,
        seed=loaded.seed,
        data=args.data,
        out=args.out,
    )


if __name__ == "__main__":
    from stages.train import main as imported_main  # Ray workers find it by name

    imported_main()
