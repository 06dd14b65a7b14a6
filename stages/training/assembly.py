"""Pieces that every method's data assembly uses."""

import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from stages.runtime.artifacts import read_safetensors, write_bytes


def save_array(array: np.ndarray, path: Path) -> None:
    """Write an ``.npy`` file without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def held_out(subjects: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Subjects kept for validation: the smallest of a seeded hash, at least one.

    Which subjects these are does not change for the others when one more arrives, but for the
    boundary.
    """
    ranked = sorted(subjects, key=lambda name: (zlib.crc32(f"{seed}/{name}".encode()), name))
    return set(ranked[: max(1, round(fraction * len(ranked)))])


HELD_OUT = frozenset({"val", "test"})


def validation_people(
    people: Sequence[str], splits: Sequence[str], fraction: float, seed: int, packed: Path
) -> set[str]:
    """Those whom a set of identities keeps for validation, or ``held_out`` where it keeps nobody.

    Args:
        people: Whose each photograph is.
        splits: Its part of the set.
        fraction: Of the people, where the set keeps nobody.
        seed: Decides who that is.
        packed: The set, for errors.

    Raises:
        ValueError: Somebody is both in training and in validation.
    """
    kept = {person for person, split in zip(people, splits, strict=True) if split in HELD_OUT}
    others = {person for person, split in zip(people, splits, strict=True) if split not in HELD_OUT}
    if twice := sorted(kept & others):
        raise ValueError(
            f"expected nobody both in training and in validation, got {', '.join(twice[:3])}; "
            f"correct the splits of these people in {packed}"
        )
    return kept or (held_out(sorted(others), fraction, seed) if others else set())


def encoder_config(section: Mapping[str, Any], kind: Any) -> Any:  # noqa: ANN401 - late torch import
    """An ``IResNetConfig`` from its plain form."""
    return kind(
        tuple(section["layers"]),
        tuple(section["widths"]),
        section["embedding"],
        section["input_px"],
    )


def to_blobs(crops: UInt8[np.ndarray, "n s s 3"]) -> Any:  # noqa: ANN401 - torch.Tensor
    """Network input of byte crops; see ``arcface_blob``."""
    import torch

    scaled = (np.asarray(crops, np.float32) - 127.5) / 127.5
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def weights_label(steps: int, synthetic: bool) -> str:
    """The word every result carries about its weights."""
    if steps == 0:
        return "random"
    return "synthetic-trained" if synthetic else "trained"


def parameter_count(state: Mapping[str, np.ndarray]) -> int:
    """Numbers in a state that are learned or set, not running statistics."""
    running = ("running_mean", "running_var", "num_batches_tracked")
    return int(sum(value.size for name, value in state.items() if not name.endswith(running)))


def user_encoder(path: Path, encoder: Mapping[str, Any], setting: str) -> dict[str, np.ndarray]:
    """An iresnet checkpoint, checked strictly against the configured size.

    Args:
        path: ``.safetensors``, or a torch file of plain tensors.
        encoder: ``layers``, ``widths``, ``embedding``, ``input_px``.
        setting: The parameter that names the file, for errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Names or shapes differ.
    """
    import torch
    from safetensors.torch import load_file

    from models.networks.encoders.iresnet import IResNet, IResNetConfig

    if not path.is_file():
        raise FileNotFoundError(
            f"expected your recogniser weights at {path} (parameter {setting}), an iresnet "
            "checkpoint such as arcface_torch's backbone.pth"
        )
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    net = IResNet(encoder_config(encoder, IResNetConfig))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{setting}: {path} does not fit the encoder {dict(encoder)} in the parameters: {error}"
        ) from error
    return {key: value.numpy() for key, value in net.state_dict().items()}


def user_trunk(path: Path, trunk: Mapping[str, Any], setting: str) -> dict[str, np.ndarray]:
    """A user's ResNet checkpoint, checked strictly against the configured size.

    Args:
        path: ``.safetensors``, or a torch file of plain tensors; the classifier (``fc``) is left.
        trunk: ``kind``, ``layers``, ``width``.
        setting: The method's parameters, for errors.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: Names or shapes do not fit.
    """
    import torch

    from models.networks.encoders.resnet import ResNet, ResNetConfig
    from models.networks.train_loop import state_arrays

    if not path.is_file():
        raise FileNotFoundError(
            f"expected your ResNet weights at {path} (parameter {setting}.weights)"
        )
    if path.suffix == ".safetensors":
        state = {name: torch.from_numpy(v) for name, v in read_safetensors(path)[0].items()}
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = {name: v for name, v in state.items() if not name.startswith("fc.")}
    net = ResNet(ResNetConfig(trunk["kind"], tuple(trunk["layers"]), trunk["width"]))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: expected the names and shapes of {setting}.trunk {dict(trunk)}: {error}"
        ) from error
    return state_arrays(net)
