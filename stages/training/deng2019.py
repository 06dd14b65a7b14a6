"""Data and job of Deng et al. 2019: photographs with 2D landmarks, a skin model, the face model.

R-Net learns from photographs one by one: of known people (VGGFace2) and of unknown ones (300W-LP).
C-Net learns from several of one person. Both see the same base crops, and nothing here reads a 3D
shape of a photograph.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from models.face.landmarks import MIRROR_68, outer_eye_distance
from models.face.morphable import LinearModel
from models.geometry.mesh import coarser
from models.networks.encoders.square_crop import crop_image
from stages.datasets.images import decode_rgb
from stages.photos import landmark_rows, packed_images, points_of
from stages.runtime.artifacts import read_json, read_safetensors, write_safetensors
from stages.training.assembly import (
    encoder_config,
    save_array,
    user_encoder,
    user_trunk,
    validation_people,
)

if TYPE_CHECKING:
    import torch

    from models.methods.deng2019 import Deng2019
    from models.methods.deng2019_skin import SkinMode
    from stages.training.run import Job

MARGIN = 0.2
"""Of the crop's side, around it: what shifts and turns of the augmentation may show."""
MAX_VALIDATION = 120
SKIN_PIXELS = 8_000
"""Pixels of each kind that the skin model is fitted to."""
SKIN_MAP_PX = 512
BROWS_UP = 0.25
"""How far the face goes on above the brows, of the distance from brows to chin."""


@dataclass(frozen=True)
class Photo:
    """A photograph cropped as the method does, with a margin.

    Attributes:
        subject_id: Person, or a name of its own where the person is unknown.
        split: Part of the data set.
        crop: RGB.
        points_px: Landmarks in it.
    """

    subject_id: str
    split: str
    crop: UInt8[np.ndarray, "s s 3"]
    points_px: Float[np.ndarray, "68 2"]


def base_side(size_px: int) -> int:
    """Side of a base crop: the network's crop and its margins."""
    return size_px + 2 * round(MARGIN * size_px)


def read_photos(
    packed: Path, landmarks: Path, size_px: int, known: bool
) -> tuple[list[Photo], Counter[str]]:
    """Base crops of a packed set, and how many photographs were left out for which reason.

    Test photographs of sets of unknown people (AFLW2000-3D) are left out.

    Raises:
        FileNotFoundError: The set is not packed, or its landmarks are missing.
    """
    from models.networks.encoders.pos_crop import pos_crop_matrix

    found = landmark_rows(landmarks)
    side = base_side(size_px)
    photos: list[Photo] = []
    left_out: Counter[str] = Counter()
    columns = ["item_id", "subject_id", "status", "reason", "split", "image"]
    for row in packed_images(packed, columns):
        answer = found.get(row["item_id"])
        if row["status"] != "ok":
            left_out[f"not read: {row['reason']}"] += 1
        elif not known and row["split"] == "test":
            left_out["benchmark photograph"] += 1
        elif answer is None or answer["status"] != "ok":
            left_out[f"no landmarks: {answer['reason'] if answer else 'no row'}"] += 1
        else:
            points = points_of(answer)
            try:
                matrix = pos_crop_matrix(points, size_px)
            except ValueError:
                left_out["no crop: the landmarks do not span a face"] += 1
                continue
            matrix[:, 2] += round(MARGIN * size_px)
            crop = crop_image(decode_rgb(row["image"]), matrix, side)
            moved = points @ matrix[:, :2].T + matrix[:, 2]
            photos.append(Photo(row["subject_id"], row["split"], crop, moved))
    return photos, left_out


def face_area(points_px: Float[np.ndarray, "68 2"], side: int) -> Bool[np.ndarray, "s s"]:
    """Pixels of skin by landmarks: their hull up to the forehead, without eyes, mouth, brows."""
    import cv2

    brows, chin = points_px[17:27], points_px[8]
    raised = brows + BROWS_UP * (brows.mean(axis=0) - chin)
    inside = np.zeros((side, side), np.uint8)
    outline = np.rint(np.concatenate([points_px[:17], raised]) - 0.5).astype(np.int32)
    cv2.fillConvexPoly(inside, cv2.convexHull(outline), 1)
    for part in (slice(36, 42), slice(42, 48), slice(48, 60), slice(17, 22), slice(22, 27)):
        hole = np.rint(points_px[part] - 0.5).astype(np.int32)
        cv2.fillConvexPoly(inside, cv2.convexHull(hole), 0)
    return inside.astype(bool)


def skin_weights(
    photos: list[Photo], learned: Bool[np.ndarray, " n"], mode: "SkinMode", seed: int
) -> UInt8[np.ndarray, "n s s"]:
    """How much every pixel of the base crops counts, of 255.

    The publication's skin classifier is fitted on a set of its own; here the pixels inside the
    landmarks' outline are skin, and those outside it are not, but for the black beyond the
    photograph. All pixels count alike when ``mode`` is ``off``.

    Args:
        photos: Base crops.
        learned: Those that the classifier may be fitted to.
        mode: Which weights.
        seed: Decides which pixels it is fitted to.
    """
    from models.methods.deng2019_skin import fit

    side = len(photos[0].crop)
    if mode == "off":
        return np.full((len(photos), side, side), 255, np.uint8)
    skin: list[UInt8[np.ndarray, "n 3"]] = []
    other: list[UInt8[np.ndarray, "m 3"]] = []
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(np.flatnonzero(learned))[:SKIN_PIXELS]
    for number in numbers:
        photo = photos[number]
        inside = face_area(photo.points_px, side)
        outside = ~inside & photo.crop.any(axis=-1)
        for area, kind in ((inside, skin), (outside, other)):
            pixels = photo.crop[area]
            if len(pixels):
                kind.append(pixels[rng.integers(0, len(pixels), SKIN_PIXELS // len(numbers))])
    model = fit(np.concatenate(skin), np.concatenate(other), seed)
    return np.stack(
        [np.rint(255.0 * model.weights(photo.crop, mode)).astype(np.uint8) for photo in photos]
    )


def skin_vertices(
    mean: Float[np.ndarray, "V 3"], keypoints: Int[np.ndarray, "68"]
) -> Int[np.ndarray, " n"]:
    """Vertices whose albedo should be even: cheeks, nose and forehead of the mean face.

    Those that, seen from the front, lie in the ``face_area`` of its landmarks.

    Args:
        mean: Any unit, y up, z toward the viewer.
        keypoints: The 68 landmarks' vertices.
    """
    low, high = mean[:, :2].min(axis=0), mean[:, :2].max(axis=0)
    scale = (SKIN_MAP_PX - 1) / float((high - low).max())
    flat = scale * (mean[:, :2] - low) + 0.5
    flat[:, 1] = SKIN_MAP_PX - flat[:, 1]
    column, row = np.clip(flat.astype(int), 0, SKIN_MAP_PX - 1).T
    return np.flatnonzero(face_area(flat[keypoints], SKIN_MAP_PX)[row, column])


def prepare(
    folder: Path,
    *,
    packed: Path,
    landmarks: Path,
    unlabelled: Path,
    unlabelled_landmarks: Path,
    model: Path,
    recognizer: Path,
    section: Mapping[str, Any],
    set_photographs: int,
    seed: int,
) -> dict[str, Any]:
    """Write base crops, landmarks, people, skin weights, the front of the face and the recogniser.

    That there are sets of ``set_photographs`` for what follows is seen to here, before any hours
    of training.

    Returns:
        Facts: counts, who validates and ``left_out`` (photographs by reason).

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: There are no two people or no sets, somebody is in training and validation, or
            the face model lacks what the method needs.
    """
    from models.methods.deng2019 import front_vertices

    size = section["size_px"]
    linear = LinearModel.load(model)
    checked_model(linear, section, model)
    encoder = read_safetensors(recognizer)[1]["encoder"]
    state = user_encoder(recognizer, encoder, "recognizer.a")
    write_safetensors(state, folder / "recognizer.safetensors", {"encoder": encoder})
    if section["weights"] is not None:
        trunk = user_trunk(Path(section["weights"]), section["trunk"], "train.deng2019")
        write_safetensors(trunk, folder / "trunk.safetensors", {"weights": "user-supplied"})
    photos, left_out = read_photos(packed, landmarks, size, known=True)
    known = len(photos)
    kept = validation_people(
        [photo.subject_id for photo in photos],
        [photo.split for photo in photos],
        section["holdout"],
        seed,
        packed,
    )
    if section["unlabelled"]:
        more, reasons = read_photos(unlabelled, unlabelled_landmarks, size, known=False)
        photos += more
        left_out += reasons
    people = [photo.subject_id for photo in photos]
    named = set(people[:known])
    validation = np.array([person in kept for person in people])
    if len(named) - len(kept) < 2:
        raise ValueError(
            f"Deng et al. need >= 2 training people with landmarks in {packed}, got {len(named)} "
            f"in all, {len(kept)} of them for validation"
        )
    enough = {
        name: count for name, count in Counter(people[:known]).items() if count >= set_photographs
    }
    if not enough.keys() - kept or not enough.keys() & kept:
        raise ValueError(
            f"train.deng2019.sets.photographs: expected somebody with {set_photographs} "
            f"photographs with landmarks among those who train and among those who validate, got "
            f"{len(enough.keys() - kept)} and {len(enough.keys() & kept)}; lower it"
        )
    save_array(np.stack([photo.crop for photo in photos]), folder / "crops.npy")
    points = np.stack([photo.points_px for photo in photos]).astype(np.float32)
    save_array(points, folder / "points.npy")
    save_array(np.array(people), folder / "people.npy")
    save_array(validation, folder / "validation.npy")
    save_array(np.arange(len(photos)) < known, folder / "known.npy")
    save_array(skin_weights(photos, ~validation, section["skin"], seed), folder / "skin.npy")
    unit_m = float(read_json(model / "meta.json")["unit_m"])
    ids = front_vertices(linear, unit_m)
    sizes = section["n_shape"], section["n_expression"], section["n_texture"]
    front = linear.part(ids, *sizes)
    origin = front.mean.mean(axis=0)  # that of the whole front, which reconstruction draws
    if section["mesh_faces"] is not None:
        faces = coarser(front.mean, front.faces, section["mesh_faces"])
        front = front.part(np.union1d(faces, front.keypoints), *sizes, faces)
    arrays = {name: value for name, value in vars(front).items() if value is not None}
    facts = {"unit_m": unit_m, "origin": origin.tolist()}
    write_safetensors(arrays, folder / "face.safetensors", facts)
    return {
        "identities": len(named) - len(kept),
        "set_identities": len(enough.keys() - kept),
        "validation_identities": sorted(kept),
        "photographs": known,
        "unlabelled_photographs": len(photos) - known,
        "vertices": len(front.mean_shape),
        "left_out": dict(sorted(left_out.items())),
    }


def checked_model(linear: LinearModel, section: Mapping[str, Any], path: Path) -> None:
    """Refuse a face model without texture, landmarks or enough directions.

    Raises:
        ValueError: It is one.
    """
    texture = 0 if linear.texture_basis is None else linear.texture_basis.shape[-1]
    has = {
        "n_shape": linear.shape_basis.shape[-1],
        "n_expression": linear.expression_basis.shape[-1],
        "n_texture": texture,
    }
    for name, count in has.items():
        if section[name] > count:
            raise ValueError(
                f"train.deng2019.{name}: expected at most the {count} directions of {path}, got "
                f"{section[name]}"
            )
    if len(linear.keypoints) != 68:
        raise ValueError(
            f"{path}: expected a face model with 68 landmarks (bfm2009 with its landmark file), "
            f"got {len(linear.keypoints)}"
        )


class Photographs:
    """Varied crops of the prepared photographs, as the losses want them."""

    def __init__(self, data: Path, config: Mapping[str, Any]) -> None:
        from models.networks.encoders.augment import Augmentation

        self.crops = np.load(data / "crops.npy", mmap_mode="r")
        self.skin = np.load(data / "skin.npy", mmap_mode="r")
        self.points = np.load(data / "points.npy").astype(np.float64)
        self.people = np.load(data / "people.npy")
        self.known = np.load(data / "known.npy")
        self.validation = np.load(data / "validation.npy")
        self.size = config["size_px"]
        self.change = Augmentation(**config["augment"])
        held = np.flatnonzero(self.validation)
        most = np.linspace(0, len(held) - 1, min(len(held), MAX_VALIDATION))
        self.held: Int[np.ndarray, " m"] = held[np.unique(most.astype(int))]

    @property
    def standard(self) -> Float[np.ndarray, "2 3"]:
        """T_crop_from_base without variation."""
        margin = (self.crops.shape[1] - self.size) / 2
        return np.c_[np.eye(2), np.full(2, -margin)]

    def varied(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One photograph, moved, perhaps mirrored, and lit another way."""
        from models.networks.encoders.augment import jitter_matrix, occlude, relight

        turn, start = jitter_matrix(self.size, self.change, rng), self.standard
        matrix = np.c_[turn[:, :2] @ start[:, :2], turn[:, :2] @ start[:, 2] + turn[:, 2]]
        return self.sample(
            index, matrix, lambda image: relight(occlude(image, self.change, rng), self.change, rng)
        )

    def sample(
        self,
        index: int,
        matrix: Float[np.ndarray, "2 3"],
        change: Callable[[UInt8[np.ndarray, "s s 3"]], UInt8[np.ndarray, "s s 3"]] | None = None,
    ) -> dict[str, np.ndarray]:
        """``image``, ``landmarks``, ``skin`` and ``crop`` of one photograph under T_crop_from_base.

        A matrix that mirrors exchanges the left landmarks and the right.
        """
        from models.networks.encoders.arcface_crop import TEMPLATE_PX, five_points, similarity_2d
        from models.networks.encoders.augment import warp

        size = self.size
        image = warp(np.ascontiguousarray(self.crops[index]), matrix, size, size)
        image = image if change is None else change(image)
        weight = warp(np.ascontiguousarray(self.skin[index]), matrix, size, size)
        points = self.points[index] @ matrix[:, :2].T + matrix[:, 2]
        if np.linalg.det(matrix[:, :2]) < 0:
            points = points[MIRROR_68]
        return {
            "image": np.ascontiguousarray((image.astype(np.float32) / 255.0).transpose(2, 0, 1)),
            "landmarks": points.astype(np.float32),
            "skin": weight.astype(np.float32) / 255.0,
            "crop": similarity_2d(five_points(points), TEMPLATE_PX).astype(np.float32),
        }

    def stacked(self, samples: list[dict[str, np.ndarray]]) -> "dict[str, torch.Tensor]":
        """A batch; contiguous, see ``input_blob`` of ``models.methods.ringnet``."""
        import torch

        return {
            name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
            for name in samples[0]
        }


def network(data: Path, config: Mapping[str, Any]) -> "Deng2019":
    """R-Net with the face and the recogniser that its losses need."""
    from models.methods.deng2019 import Deng2019, Deng2019Config, FaceSurface
    from models.networks.encoders.iresnet import IResNet, IResNetConfig
    from models.networks.train_loop import load_state

    arrays, facts = read_safetensors(data / "face.safetensors")
    linear = LinearModel(**arrays)
    surface = FaceSurface(
        linear,
        facts["unit_m"],
        skin=skin_vertices(linear.mean, linear.keypoints),
        origin=np.array(facts["origin"]),
    )
    state, about = read_safetensors(data / "recognizer.safetensors")
    recognizer = IResNet(encoder_config(about["encoder"], IResNetConfig))
    load_state(recognizer, state)
    model = Deng2019(Deng2019Config.of(config), surface, recognizer)
    if (data / "trunk.safetensors").is_file():
        load_state(model.backbone, read_safetensors(data / "trunk.safetensors")[0])
    return model


def build(data: Path, config: Mapping[str, Any]) -> "Job":
    """The worker's job of R-Net; one sample of the loop is one photograph."""
    import torch

    from models.networks.train_loop import predict, step_rng
    from stages.training.run import Job

    photographs = Photographs(data, config)
    model = network(data, config)
    training = np.flatnonzero(~photographs.validation)

    def batch(step: int, slots: list[int]) -> dict[str, torch.Tensor]:
        samples = []
        for slot in slots:
            rng = step_rng(config["seed"], step, slot)
            samples.append(photographs.varied(int(rng.choice(training)), rng))
        return photographs.stacked(samples)

    def validate(net: torch.nn.Module) -> dict[str, float]:
        found: list[dict[str, float]] = []
        codes = []
        for index in photographs.held:
            sample = photographs.stacked([photographs.sample(int(index), photographs.standard)])
            code = predict(net, sample["image"])
            seen = model.decode(code).landmarks[0].cpu().numpy().astype(np.float64)
            wanted = sample["landmarks"][0].numpy().astype(np.float64)
            error = np.linalg.norm(seen - wanted, axis=1).mean() / outer_eye_distance(wanted)
            found.append({"landmark_percent": 100.0 * float(error)})
            codes.append(model.split(code).shape[0].cpu().numpy().astype(np.float64))
        means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        return {**means, "shape": float(np.square(codes).sum(axis=1).mean())}

    return Job(model, batch, validate, None, "landmark_percent")
