"""Stage `recognizer`: a small face recogniser from identity-labelled photographs.

Reads packed photographs and their landmarks (px). Writes ``model.safetensors`` (the encoder only,
in the public iresnet names) and ``metrics.json``. With ``weights`` set, your own checkpoint is
checked and exported instead of training.
"""

import argparse
from functools import partial
from pathlib import Path

from stages.photos import is_synthetic
from stages.runtime import params
from stages.runtime.artifacts import atomic_directory, sha256_file, write_json, write_safetensors
from stages.runtime.process import begin
from stages.training import recognizer as assembly
from stages.training.assembly import parameter_count, user_encoder, weights_label
from stages.training.run import WORK, forget, train


def run(
    section: params.RecognizerVariant,
    compute: params.ComputeParams,
    *,
    name: str,
    seed: int,
    packed: Path,
    landmarks: Path,
    out: Path,
    work: Path = WORK,
) -> None:
    """Train or export one recogniser.

    Args:
        section: Its parameters.
        compute: Ray settings.
        name: ``a`` or ``b``.
        seed: Root of every draw.
        packed: Packed photographs.
        landmarks: Their landmarks.
        out: Replaced when all is done.
        work: Folder of resumable state.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: The photographs do not suffice, or the given weights do not fit.
    """
    encoder = section.encoder.model_dump(mode="json")
    if section.weights is not None:
        state = user_encoder(section.weights, encoder, "recognizer.*.weights")
        facts = {
            "kind": "recognizer",
            "encoder": encoder,
            "weights": "user-supplied",
            "synthetic": False,
            "inputs": {"weights": sha256_file(section.weights)},
        }
        with atomic_directory(out) as scratch:
            write_safetensors(state, scratch / "model.safetensors", facts)
            write_json({"name": name, "weights": "user-supplied"}, scratch / "metrics.json")
        return

    own_seed = seed + section.seed_offset
    config = section.model_dump(mode="json", include={"encoder", "scale", "margin", "augment"})
    trained = train(
        f"recognizer-{name}",
        inputs={"packed": packed, "landmarks": landmarks},
        config={**config, "holdout": section.holdout},
        code=("models.methods.recognizer", "stages.training.recognizer"),
        fit=section.fit,
        seed=own_seed,
        prepare=partial(
            assembly.prepare,
            packed=packed,
            landmarks=landmarks,
            holdout=section.holdout,
            seed=own_seed,
        ),
        build=assembly.build,
        compute=compute,
        work=work,
    )
    synthetic = is_synthetic(packed)
    weights = weights_label(section.fit.steps, synthetic)
    prefix = "encoder."
    state = {n.removeprefix(prefix): v for n, v in trained.state.items() if n.startswith(prefix)}
    facts = {
        "kind": "recognizer",
        "encoder": encoder,
        "weights": weights,
        "synthetic": synthetic,
        "inputs": trained.inputs,
        "params": section.model_dump(mode="json"),
        "seed": own_seed,
        "fingerprint": trained.fingerprint,
        "step": trained.step,
    }
    last = trained.history[-1] if trained.history else {}
    metrics = {
        "name": name,
        "weights": weights,
        "synthetic": synthetic,
        "parameters": parameter_count(state),
        "data": trained.data,
        "step": trained.step,
        "validation": last.get("validation", {}),
        "history": trained.history,
    }
    with atomic_directory(out) as scratch:
        write_safetensors(state, scratch / "model.safetensors", facts)
        write_json(metrics, scratch / "metrics.json")
    forget(trained.fingerprint, work)


def main() -> None:
    """Command line: the variant's name and paths only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=("a", "b"), required=True)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--landmarks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin(f"recognizer@{args.name}")
    loaded = params.load()
    run(
        getattr(loaded.recognizer, args.name),
        loaded.compute,
        name=args.name,
        seed=loaded.seed,
        packed=args.packed,
        landmarks=args.landmarks,
        out=args.out,
    )


if __name__ == "__main__":
    from stages.recognizer import main as imported_main  # Ray workers find it by name

    imported_main()
