"""Data and job of MICA: the unified data sets' crops and shapes.

The layout read is the published one: ``<NAME>/FLAME_parameters/<actor>/*.npz`` (``betas``) and
``<NAME>/arcface_input/<actor>/*.npy`` (float32 (3, 112, 112) RGB in [-1, 1]).

As in the publication, Florence validates and is never trained on; where it is not attached, a part
of the other sets' people does. Sets named in ``exclude`` are neither trained on nor validated with.

SIREN is trained towards vertices: of the same shapes, or with ``siren.truth: registrations`` of the
unified neutral meshes, which no basis confines. Its workers read the template and no basis.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from models.face.flame import FlameArrays, shape_vertices
from stages.datasets.meshes import read_mesh
from stages.runtime.artifacts import read_safetensors, write_bytes, write_safetensors
from stages.runtime.contracts import VALIDATION_SETS
from stages.training.assembly import held_out, save_array, to_blobs, user_encoder

if TYPE_CHECKING:
    from stages.training.run import Job

MAX_VALIDATION = 200
"""Validation photographs of each person, or as many as the person with the fewest has."""
VALIDATION_BATCH = 64


def prepare(
    folder: Path,
    *,
    unified: Path,
    encoder: Path | None,
    model: Path,
    section: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Write crops, shapes, region weights and the models that workers need.

    Args:
        folder: To fill.
        unified: MICA's layout.
        encoder: Weights to start from, checked against ``section["encoder"]``; None starts from
            random ones.
        model: Converted FLAME.
        section: The method's parameters, and the encoder's size.
        seed: Decides who validates where no validation set is attached.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: A set to leave out is not there, fewer than two subjects are left for training,
            a person of a validation set is in another set too, the weights do not fit, or a mesh
            has another topology.
    """
    from models.methods.mica import MicaConfig, region_weights

    arrays = FlameArrays.load(model)
    count = section["n_shape"]
    if count > arrays.shapedirs.shape[-1]:
        raise ValueError(
            f"train.mica.n_shape: expected at most the {arrays.shapedirs.shape[-1]} shape "
            f"directions of {model}, got {count}"
        )
    crops, owners, betas = [], [], []
    heads: list[Float[np.ndarray, "V 3"]] = []
    subjects: list[str] = []
    skipped: list[dict[str, str]] = []
    datasets = sorted(path.parent for path in unified.glob("*/FLAME_parameters"))
    unknown = sorted(set(section["exclude"]) - {dataset.name for dataset in datasets})
    if unknown:
        raise ValueError(
            f"train.mica.exclude: expected data sets among {[d.name for d in datasets]} under "
            f"{unified}, got {unknown}"
        )
    for dataset in datasets:
        if dataset.name in section["exclude"]:
            continue
        for actor in sorted((dataset / "FLAME_parameters").iterdir()):
            subject = f"{dataset.name}/{actor.name}"
            inputs = sorted((dataset / "arcface_input" / actor.name).glob("*.npy"))
            parameters = sorted(actor.glob("*.npz"))
            if not inputs or not parameters:
                lacking = "no photograph" if not inputs else "no coefficients"
                skipped.append({"subject_id": subject, "status": "failed", "reason": lacking})
                continue
            with np.load(parameters[0]) as content:
                beta = np.asarray(content["betas"], np.float64).reshape(-1)[:count]
                beta = np.pad(beta, (0, count - len(beta)))
            for file in inputs:
                blob = np.load(file)
                crops.append(np.rint(blob.transpose(1, 2, 0) * 127.5 + 127.5).astype(np.uint8))
                owners.append(len(subjects))
            betas.append(beta)
            if section["decoder"] == "siren":
                if section["siren"]["truth"] == "registrations":
                    mesh = dataset / "registrations" / actor.name / f"{parameters[0].stem}.obj"
                    heads.append(registered_head(mesh, len(arrays.v_template)))
                else:
                    heads.append(shape_vertices(arrays, beta))
            subjects.append(subject)
    kept = validation_subjects(subjects, section["holdout"], seed)
    if len(subjects) - len(kept) < 2:
        raise ValueError(
            f"MICA needs >= 2 training subjects with photographs under {unified}, got "
            f"{len(subjects)} in all, {len(kept)} of them for validation"
        )
    with np.load((model if model.is_dir() else model.parent) / "masks.npz") as masks:
        weights = region_weights(
            MicaConfig(
                face_weight=section["face_weight"],
                side_weight=section["side_weight"],
                rest_weight=section["rest_weight"],
            ),
            dict(masks),
            len(arrays.v_template),
        )
        save_array(masks["face"], folder / "face.npy")
    save_array(np.stack(crops), folder / "crops.npy")
    save_array(np.array(owners), folder / "owners.npy")
    save_array(np.stack(betas).astype(np.float32), folder / "betas.npy")
    save_array(np.array([subject in kept for subject in subjects]), folder / "validation.npy")
    save_array(weights.astype(np.float32), folder / "weights.npy")
    if section["decoder"] == "siren":
        save_array(arrays.v_template.astype(np.float32), folder / "template.npy")
        save_array(np.stack(heads).astype(np.float32), folder / "heads.npy")
    else:
        flame = model / "model.safetensors" if model.is_dir() else model
        write_bytes(folder / "flame.safetensors", flame.read_bytes())
    if encoder is not None:
        state = user_encoder(encoder, section["encoder"], "train.mica.weights")
        write_safetensors(state, folder / "encoder.safetensors", {})
    return {
        "subjects": len(subjects) - len(kept),
        "sets": dict(Counter(s.split("/")[0] for s in subjects if s not in kept)),
        "excluded": sorted(section["exclude"]),
        "validation_subjects": sorted(kept),
        "photographs": len(crops),
        "skipped": skipped,
    }


def registered_head(path: Path, vertices: int) -> Float[np.ndarray, "V 3"]:
    """A unified neutral mesh, metres.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It does not have the model's vertices.
    """
    head = read_mesh(path).vertices
    if len(head) != vertices:
        raise ValueError(
            f"{path}: expected the {vertices} vertices of the face model, got {len(head)}; unify "
            "the registrations with the same model"
        )
    return head


def validation_subjects(subjects: Sequence[str], holdout: float, seed: int) -> set[str]:
    """The people that only validate: a validation set's where it is attached, else a part of all.

    Args:
        subjects: ``<SET>/<actor>`` of everybody with photographs.
        holdout: Fraction kept where no validation set is attached.
        seed: Decides who that is.

    Raises:
        ValueError: An actor's folder is in a validation set and in another set.
    """
    kept = {name for name in subjects if name.split("/")[0] in VALIDATION_SETS}
    actors = {name.split("/")[1] for name in kept}
    twice = sorted(s for s in subjects if s not in kept and s.split("/")[1] in actors)
    if twice:
        raise ValueError(
            f"expected nobody both in training and in {', '.join(sorted(VALIDATION_SETS))}, got "
            f"{', '.join(twice[:3])}; remove them from the training sets"
        )
    if kept or not subjects:
        return kept
    return held_out(subjects, holdout, seed)


def equal_parts(
    photographs: Sequence[Int[np.ndarray, " n"]], most: int = MAX_VALIDATION
) -> Int[np.ndarray, " m"]:
    """As many photographs of everybody as the person with the fewest has, at most ``most``.

    Args:
        photographs: Numbers of each person's, in order; those taken are spread evenly over them.
        most: Largest number of one person.
    """
    each = min(most, min(map(len, photographs)))
    at = [np.linspace(0, len(numbers) - 1, each).astype(int) for numbers in photographs]
    return np.concatenate([numbers[part] for numbers, part in zip(photographs, at, strict=True)])


def build(data: Path, config: Mapping[str, Any]) -> "Job":
    """The worker's job: K photographs of each drawn subject, shapes in metres."""
    import torch

    from models.methods.mica import Mica, MicaConfig
    from models.networks.encoders.augment import Augmentation, augment
    from models.networks.train_loop import load_state, predict, step_rng
    from stages.training.run import Job

    crops = np.load(data / "crops.npy", mmap_mode="r")
    owners, betas = np.load(data / "owners.npy"), np.load(data / "betas.npy")
    validation, face = np.load(data / "validation.npy"), np.load(data / "face.npy")
    members = [np.flatnonzero(owners == subject) for subject in range(len(betas))]
    training = np.flatnonzero(~validation)
    change = Augmentation(**config["augment"])
    settings, weights = MicaConfig.of(config), np.load(data / "weights.npy")
    if settings.decoder == "siren":
        template, heads = np.load(data / "template.npy"), np.load(data / "heads.npy", mmap_mode="r")
        model = Mica(settings, vertex_weights=weights, template=template)

        def truth_of(subjects: list[int]) -> dict[str, torch.Tensor]:
            return {"vertices": torch.from_numpy(heads[subjects])}

        def faces_of(subjects: np.ndarray) -> Float[np.ndarray, "n f 3"]:
            return np.asarray(heads[subjects][:, face], np.float64)
    else:
        arrays = FlameArrays.load(data / "flame.safetensors")
        template = arrays.v_template
        basis = arrays.shapedirs[face][..., : betas.shape[1]].astype(np.float64)
        model = Mica(settings, arrays, weights)

        def truth_of(subjects: list[int]) -> dict[str, torch.Tensor]:
            return {"beta": torch.from_numpy(betas[subjects])}

        def faces_of(subjects: np.ndarray) -> Float[np.ndarray, "n f 3"]:
            return mean + np.einsum("vcs,ns->nvc", basis, betas[subjects])

    mean = template[face].astype(np.float64)
    if (data / "encoder.safetensors").is_file():
        load_state(model.arcface, read_safetensors(data / "encoder.safetensors")[0])

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        images, subjects = [], []
        for slot in slots:
            group, turn = divmod(slot, config["images_per_subject"])
            rng = step_rng(config["seed"], step, group)
            subject = int(rng.choice(training))
            shuffled = rng.permutation(members[subject])  # the same for all slots of the group
            photo = crops[shuffled[turn % len(shuffled)]]
            images.append(augment(photo, change, step_rng(config["seed"] + 1, step, slot)))
            subjects.append(subject)
        return {"image": to_blobs(np.stack(images)), **truth_of(subjects)}

    held = equal_parts([members[subject] for subject in np.flatnonzero(validation)])
    truth = faces_of(owners[held])
    average = faces_of(training).mean(axis=0)
    fixed = {
        "template_mm": float(np.mean([aligned_distance_mm(mean, t) for t in truth])),
        "average_mm": float(np.mean([aligned_distance_mm(average, t) for t in truth])),
    }

    def validate(net: torch.nn.Module) -> dict[str, float]:
        predicted = []
        for i in range(0, len(held), VALIDATION_BATCH):
            codes = predict(net, to_blobs(crops[held[i : i + VALIDATION_BATCH]]))
            predicted.append(model.decode(codes, torch.from_numpy(face)).cpu().numpy())
        errors = [
            aligned_distance_mm(p.astype(np.float64), t)
            for p, t in zip(np.concatenate(predicted), truth, strict=True)
        ]
        return {"face_mm": float(np.mean(errors)), **fixed}

    groups = dict(model.parameter_groups())
    rates = [(groups["mapping"], 1.0)]
    if groups["encoder"]:
        rates.append((groups["encoder"], config["encoder_rate"]))
    return Job(model, batch, validate, rates, "face_mm")


def aligned_distance_mm(
    predicted: Float[np.ndarray, "n 3"], truth: Float[np.ndarray, "n 3"]
) -> float:
    """Mean distance of corresponding points after the best rigid motion, metres in, mm out."""
    p, t = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    u, _, vt = np.linalg.svd(p.T @ t)
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return 1000.0 * float(np.linalg.norm(p @ (u @ vt) - t, axis=1).mean())
