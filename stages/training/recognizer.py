"""Data and job of the recogniser: aligned crops of identity-labelled photographs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from models.networks.encoders.arcface_crop import arcface_crop, five_points
from stages.datasets.images import decode_rgb
from stages.photos import landmarks_by_item, packed_images
from stages.training.assembly import encoder_config, held_out, save_array, to_blobs

if TYPE_CHECKING:
    from stages.training.run import Job


def prepare(
    folder: Path, *, packed: Path, landmarks: Path, holdout: float, seed: int
) -> dict[str, Any]:
    """Write ``crops.npy`` (N, 112, 112, 3), ``labels.npy`` and ``validation.npy``.

    Labels number the training identities from 0; validation identities come after them. The set's
    own test identities are the validation set; without any, ``holdout`` of the identities is.

    Raises:
        ValueError: Fewer than two training identities are left.
    """
    points = landmarks_by_item(landmarks)
    crops, subjects, splits, skipped = [], [], [], 0
    columns = ["item_id", "subject_id", "status", "split", "image"]
    for row in packed_images(packed, columns):
        if row["status"] != "ok" or row["item_id"] not in points:
            skipped += 1
            continue
        five = five_points(points[row["item_id"]])
        crops.append(arcface_crop(decode_rgb(row["image"]), five))
        subjects.append(row["subject_id"])
        splits.append(row["split"])
    names = sorted(set(subjects))
    kept = {s for s, split in zip(subjects, splits, strict=True) if split in {"val", "test"}}
    if not kept and names:
        kept = held_out(names, holdout, seed)
    training = [name for name in names if name not in kept]
    if len(training) < 2:
        raise ValueError(
            f"the recogniser needs >= 2 training identities with landmarks in {packed}, got "
            f"{len(training)} (and {len(kept)} for validation, {skipped} photographs skipped)"
        )
    number = {name: index for index, name in enumerate([*training, *sorted(kept)])}
    labels = np.array([number[name] for name in subjects], np.int64)
    save_array(np.stack(crops), folder / "crops.npy")
    save_array(labels, folder / "labels.npy")
    save_array(labels >= len(training), folder / "validation.npy")
    return {
        "identities": len(training),
        "validation_identities": len(kept),
        "photographs": len(crops),
        "skipped": skipped,
    }


def build(data: Path, config: Mapping[str, Any]) -> "Job":
    """The worker's job: balanced identities, margin loss, verification metrics."""
    import torch

    from models.methods.recognizer import Recognizer, RecognizerConfig
    from models.networks.encoders.augment import Augmentation, augment
    from models.networks.encoders.iresnet import IResNetConfig
    from models.networks.train_loop import predict, step_rng
    from stages.training.run import Job

    crops = np.load(data / "crops.npy", mmap_mode="r")
    labels = np.load(data / "labels.npy")
    validation = np.load(data / "validation.npy")
    identities = int(labels[~validation].max()) + 1
    members = [np.flatnonzero(labels == label) for label in range(identities)]
    change = Augmentation(**config["augment"])
    model = Recognizer(
        RecognizerConfig(
            encoder_config(config["encoder"], IResNetConfig),
            identities,
            config["scale"],
            config["margin"],
        )
    )

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        images, wanted = [], []
        for slot in slots:
            rng = step_rng(config["seed"], step, slot)
            label = int(rng.integers(identities))
            images.append(augment(crops[rng.choice(members[label])], change, rng))
            wanted.append(label)
        return {"image": to_blobs(np.stack(images)), "label": torch.tensor(wanted)}

    held = np.flatnonzero(validation)

    def validate(net: torch.nn.Module) -> dict[str, float]:
        embedded = [
            predict(net, to_blobs(crops[held[i : i + 64]])).cpu().numpy()
            for i in range(0, len(held), 64)
        ]
        return verification(np.concatenate(embedded), labels[held])

    return Job(model, batch, validate, None, "error")


def verification(
    embedding: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """How well cosines tell identities apart.

    Returns:
        ``auc``: chance that a pair of one identity is more similar than one of two; ``rank1``:
        fraction of photographs whose nearest other photograph is of the same identity; ``error``:
        1 - auc. Each is NaN-free: without pairs of either kind it is 0.5, 0 and 0.5.
    """
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(1e-12)
    cosine = unit @ unit.T
    same = labels[:, None] == labels[None]
    upper = np.triu(np.ones_like(same), 1)
    positive, negative = np.sort(cosine[same & upper]), np.sort(cosine[~same & upper])
    auc = 0.5
    if len(positive) and len(negative):
        below = np.searchsorted(negative, positive, "left")
        upto = np.searchsorted(negative, positive, "right")
        auc = float((below + upto).sum() / 2 / (len(positive) * len(negative)))
    others = cosine - 4.0 * np.eye(len(cosine))
    paired = same.sum(1) > 1
    rank1 = (
        float(np.mean(labels[others.argmax(1)] == labels, where=paired)) if paired.any() else 0.0
    )
    return {"auc": auc, "rank1": rank1, "error": 1.0 - auc}
