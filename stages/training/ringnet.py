"""Data and job of RingNet: photographs of known people and of unknown ones, with 2D landmarks.

Identity photographs (VGGFace2) make rings of R - 1 of one person and one of another. Photographs
whose person is unknown (300W-LP) make rings of R - 1 crops of one photograph and one photograph of
somebody else, as the publication does with its extreme poses. Nothing here reads a 3D shape.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from models.face.flame import FlameArrays, LandmarkEmbedding
from models.networks.encoders.square_crop import crop_image, crop_matrix
from stages.datasets.images import decode_rgb
from stages.photos import landmark_rows, packed_images, points_of
from stages.runtime.artifacts import read_safetensors, write_bytes, write_safetensors
from stages.training.assembly import save_array, user_trunk, validation_people

if TYPE_CHECKING:
    from stages.training.run import Job

MAX_VALIDATION = 200


@dataclass(frozen=True)
class Photo:
    """A base crop: the photograph around its face, wide enough for the largest window.

    Attributes:
        subject_id: Person, or a name of its own where the person is unknown.
        split: Part of the data set.
        crop: RGB.
        points_px: Landmarks in it.
        confidence: 0 to 1, of all its landmarks.
    """

    subject_id: str
    split: str
    crop: UInt8[np.ndarray, "s s 3"]
    points_px: Float[np.ndarray, "68 2"]
    confidence: float


class RingSampler:
    """Draws rings: R - 1 photographs of one group, then one that is certainly of somebody else."""

    def __init__(
        self,
        people: Sequence[str],
        pseudo: Bool[np.ndarray, " n"],
        usable: Bool[np.ndarray, " n"],
        size: int,
        pseudo_share: float,
    ) -> None:
        """Group the photographs.

        Args:
            people: Whose each photograph is.
            pseudo: Photographs whose rings are crops of themselves.
            usable: Photographs that training may see.
            size: R.
            pseudo_share: Chance of a ring of crops, where there are any.

        Raises:
            ValueError: Nobody has enough photographs, or there is no second person.
        """
        self.size = size
        self.people = np.unique(np.asarray(people), return_inverse=True)[1]
        self.usable = np.flatnonzero(usable)
        known = np.flatnonzero(usable & ~pseudo)
        counts = np.bincount(self.people[known], minlength=1)
        self.groups = [
            known[self.people[known] == person] for person in np.flatnonzero(counts >= size - 1)
        ]
        self.alone = np.flatnonzero(usable & pseudo)
        self.pseudo_share = pseudo_share if len(self.alone) else 0.0
        others = len(np.unique(self.people[self.usable]))
        if not self.groups or others < 2:
            raise ValueError(
                f"a ring of {size} needs a person with >= {size - 1} photographs with landmarks "
                f"and a second person, got {len(self.groups)} such people of {others}; lower "
                "ring.size or add photographs"
            )

    def draw(self, rng: np.random.Generator) -> Int[np.ndarray, " R"]:
        """Photographs of one ring; a ring of crops names one photograph R - 1 times."""
        if rng.random() < self.pseudo_share:
            first = np.full(self.size - 1, rng.choice(self.alone))
        else:
            group = self.groups[int(rng.integers(len(self.groups)))]
            first = rng.choice(group, self.size - 1, replace=False)
        while True:  # at most a few draws: a second person exists
            other = rng.choice(self.usable)
            if self.people[other] != self.people[first[0]]:
                return np.r_[first, other]


def read_photos(
    packed: Path, landmarks: Path, section: Mapping[str, Any], base_px: int
) -> tuple[list[Photo], Counter[str]]:
    """Base crops of a packed set, and how many photographs were left out for which reason.

    Test photographs of 300W-LP (AFLW2000-3D) are left out.

    Raises:
        FileNotFoundError: The set is not packed, or its landmarks are missing.
    """
    from models.methods.ringnet import crop_box

    wide = section["box_scale"][1] * (1 + 2 * section["box_shift"])
    found = landmark_rows(landmarks)
    photos: list[Photo] = []
    left_out: Counter[str] = Counter()
    columns = ["item_id", "subject_id", "status", "reason", "split", "image"]
    for row in packed_images(packed, columns):
        answer = found.get(row["item_id"])
        if row["status"] != "ok":
            left_out[f"not read: {row['reason']}"] += 1
        elif packed.name == "300w_lp" and row["split"] == "test":
            left_out["benchmark photograph"] += 1
        elif answer is None or answer["status"] != "ok":
            left_out[f"no landmarks: {answer['reason'] if answer else 'no row'}"] += 1
        else:
            points = points_of(answer)
            centre, side = crop_box(points)
            matrix = crop_matrix(centre, wide * side, base_px)
            crop = crop_image(decode_rgb(row["image"]), matrix, base_px)
            moved = points @ matrix[:, :2].T + matrix[:, 2]
            score = answer.get("score")
            confidence = 1.0 if score is None else float(score)
            photos.append(Photo(row["subject_id"], row["split"], crop, moved, confidence))
    return photos, left_out


def prepare(
    folder: Path,
    *,
    packed: Path,
    landmarks: Path,
    unlabelled: Path,
    unlabelled_landmarks: Path,
    model: Path,
    section: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Write base crops, landmarks, people and FLAME.

    Returns:
        Facts: counts, who validates, ``left_out`` (photographs by reason) and ``short``: a row per
        person with too few photographs for a ring, who still appears as the other person.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: There is nobody to build a ring of, or somebody is in training and validation.
    """
    size = section["ring"]["size"]
    low, high = section["box_scale"]
    base_px = round(section["size_px"] * high * (1 + 2 * section["box_shift"]) / low)
    photos, left_out = read_photos(packed, landmarks, section, base_px)
    known = len(photos)
    if section["ring"]["pseudo_share"] > 0:
        more, reasons = read_photos(unlabelled, unlabelled_landmarks, section, base_px)
        photos += more
        left_out += reasons
    people = [photo.subject_id for photo in photos]
    pseudo = np.arange(len(photos)) >= known
    named = sorted(set(people[:known]))
    splits = [photo.split for photo in photos[:known]]
    kept = validation_people(people[:known], splits, section["holdout"], seed, packed)
    validation = np.array([person in kept for person in people])
    counts = Counter(people[:known])
    RingSampler(people, pseudo, ~validation, size, section["ring"]["pseudo_share"])
    save_array(np.stack([photo.crop for photo in photos]), folder / "crops.npy")
    points = np.stack([photo.points_px for photo in photos]).astype(np.float32)
    save_array(points, folder / "points.npy")
    confidence = np.array([photo.confidence for photo in photos], np.float32)
    save_array(confidence, folder / "confidence.npy")
    save_array(np.array(people), folder / "people.npy")
    save_array(pseudo, folder / "pseudo.npy")
    save_array(validation, folder / "validation.npy")
    for name in ("model.safetensors", "embeddings.npz"):
        write_bytes(folder / name, (model / name).read_bytes())
    if section["weights"] is not None:
        trunk = user_trunk(Path(section["weights"]), section["trunk"], "train.ringnet")
        write_safetensors(trunk, folder / "trunk.safetensors", {"weights": "user-supplied"})
    short = [
        {
            "subject_id": person,
            "status": "failed",
            "reason": f"{counts[person]} photographs with landmarks, expected >= {size - 1} of one "
            f"person for a ring of {size}; used as the other person only",
        }
        for person in named
        if counts[person] < size - 1 and person not in kept
    ]
    return {
        "identities": len(named) - len(kept),
        "validation_identities": sorted(kept),
        "photographs": known,
        "unlabelled_photographs": len(photos) - known,
        "left_out": dict(sorted(left_out.items())),
        "short": short,
    }


def build(data: Path, config: Mapping[str, Any]) -> "Job":
    """The worker's job; one sample of the loop is one ring."""
    import torch

    from models.methods.ringnet import RingNet, RingNetConfig, input_blob, mean_camera, project
    from models.networks.encoders.augment import Augmentation, jitter_matrix, occlude, relight
    from models.networks.train_loop import load_state, predict, step_rng
    from stages.training.run import Job

    crops = np.load(data / "crops.npy", mmap_mode="r")
    points = np.load(data / "points.npy").astype(np.float64)
    confidence = np.load(data / "confidence.npy")
    validation, pseudo = np.load(data / "validation.npy"), np.load(data / "pseudo.npy")
    people = np.load(data / "people.npy")
    size, base = config["size_px"], crops.shape[1]
    low, high = config["box_scale"]
    unit = base / (high * (1 + 2 * config["box_shift"]))  # the landmarks' box in base pixels
    change = Augmentation(**config["augment"])
    sampler = RingSampler(
        people, pseudo, ~validation, config["ring"]["size"], config["ring"]["pseudo_share"]
    )
    arrays = FlameArrays.load(data / "model.safetensors")
    embedding = LandmarkEmbedding.load(data / "embeddings.npz")

    def window(scale: float, shift: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2 3"]:
        return crop_matrix(np.full(2, base / 2) + shift * unit, scale * unit, size)

    def placed(index: int, matrix: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "68 2"]:
        return (points[index] @ matrix[:, :2].T + matrix[:, 2]) * (2.0 / size) - 1.0

    standard = window(0.5 * (low + high), np.zeros(2))
    training = np.flatnonzero(~validation)
    camera = mean_camera(
        embedding.all68(arrays.v_template.astype(np.float64), arrays.faces),
        np.stack([placed(int(index), standard) for index in training]),
    )
    model = RingNet(RingNetConfig.of(config), arrays, embedding, camera)
    if (data / "trunk.safetensors").is_file():
        load_state(model.trunk, read_safetensors(data / "trunk.safetensors")[0])

    def varied(
        index: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "3 s s"], Float[np.ndarray, "68 2"]]:
        shift = rng.uniform(-config["box_shift"], config["box_shift"], 2)
        matrix = window(rng.uniform(low, high), shift)
        turn = jitter_matrix(size, change, rng)
        matrix = np.c_[turn[:, :2] @ matrix[:, :2], turn[:, :2] @ matrix[:, 2] + turn[:, 2]]
        picture = crop_image(np.ascontiguousarray(crops[index]), matrix, size)
        picture = relight(occlude(picture, change, rng), change, rng)
        return input_blob(picture), placed(index, matrix)

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        blobs, wanted, weights = [], [], []
        for slot in slots:
            rng = step_rng(config["seed"], step, slot)
            for index in sampler.draw(rng):
                blob, target = varied(int(index), rng)
                blobs.append(blob)
                wanted.append(target)
                weights.append(np.full(68, confidence[index]))
        return {
            "image": torch.from_numpy(np.stack(blobs)),
            "landmarks": torch.from_numpy(np.stack(wanted).astype(np.float32)),
            "confidence": torch.from_numpy(np.stack(weights).astype(np.float32)),
        }

    held = np.flatnonzero(validation)
    held = held[
        np.unique(np.linspace(0, len(held) - 1, min(len(held), MAX_VALIDATION)).astype(int))
    ]

    def validate(net: torch.nn.Module) -> dict[str, float]:
        codes, gaps = [], []
        for index in held:
            picture = crop_image(np.ascontiguousarray(crops[index]), standard, size)
            code = model.split(predict(net, torch.from_numpy(input_blob(picture))[None]))
            assert model.landmarks is not None
            seen = (
                project(model.landmarks(code.beta, code.psi, code.theta), code.camera)[0]
                .cpu()
                .numpy()
            )
            target = placed(int(index), standard)
            eyes = np.linalg.norm(target[36] - target[45])
            gaps.append(np.linalg.norm(seen - target, axis=1).mean() / max(eyes, 1e-6))
            codes.append(code.beta[0].cpu().numpy().astype(np.float64))
        return {
            "landmark_percent": 100.0 * float(np.mean(gaps)),
            **consistency(np.stack(codes), people[held]),
        }

    return Job(model, batch, validate, None, "landmark_percent")


def consistency(
    beta: Float[np.ndarray, "n s"], people: Sequence[str] | np.ndarray
) -> dict[str, float]:
    """Mean squared distances of shapes within and between people, and the shapes' own size.

    Without a pair of a kind its distance is 0.
    """
    gaps = ((beta[:, None] - beta[None]) ** 2).sum(axis=-1)
    same = np.asarray(people)[:, None] == np.asarray(people)[None]
    upper = np.triu(np.ones_like(same), 1)
    within, between = gaps[same & upper], gaps[~same & upper]
    return {
        "within": float(within.mean()) if len(within) else 0.0,
        "between": float(between.mean()) if len(between) else 0.0,
        "shape": float((beta**2).sum(axis=1).mean()),
    }
