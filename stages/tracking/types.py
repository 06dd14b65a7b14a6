"""What a method does with a video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.methods.tracker import Frame

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What a state says about its frame, in the frame's own pixels.

    Attributes:
        parameters: Named arrays of fixed shape, one per frame.
        vertices_mm: The head with its expression, in its own frame.
        depth_mm: Depth of the drawn face along the optical axis, NaN elsewhere; None where the
            method has no metric camera.
        colours: The drawn face, RGB in 0..255, NaN elsewhere; None where the method has no colours.
    """

    parameters: Mapping[str, np.ndarray]
    vertices_mm: Float[np.ndarray, "V 3"]
    depth_mm: Float[np.ndarray, "h w"] | None = None
    colours: Float[np.ndarray, "h w 3"] | None = None


@dataclass(frozen=True)
class Facts:
    """What ``meta.json`` says about a method.

    Attributes:
        weights: random, synthetic-trained, user-supplied or none.
        synthetic: Whether any input is.
        inputs: SHA-256 of weights and models by name.
        more: Method's own.
    """

    weights: str
    synthetic: bool
    inputs: dict[str, str]
    more: dict[str, Any] = field(default_factory=dict)


class VideoMethod(Protocol):
    """A method with its weights and models in memory.

    States are plain arrays, so that they can be kept in files: what comes after depends on them and
    on the frame alone.
    """

    facts: Facts
    faces: Int[np.ndarray, "F 3"]
    per_video: tuple[str, ...]
    """Names of arrays that ``begin`` decides and ``fit`` never changes."""
    first_frames: int
    """How many of the first usable frames ``begin`` wants."""

    def begin(self, frames: Sequence[Frame]) -> Arrays:
        """What the first frames decide for the whole video, and the state to start from.

        Raises:
            ValueError: They cannot be started on. A ``StartError`` names the frame at fault; of any
                other the first frame is. It becomes a failed row with the message.
        """
        ...

    def fit(self, before: Arrays, frame: Frame, *, jumped: bool) -> Arrays:
        """The state of a frame after the state of the last usable one.

        Raises:
            ValueError: The frame cannot be fitted; the message is the row's reason.
        """
        ...

    def points_px(self, state: Arrays, size: tuple[int, int]) -> Float[np.ndarray, "68 2"]:
        """The 68 landmarks of the fitted head in a frame of ``size`` (height, width)."""
        ...

    def answer(self, state: Arrays, size: tuple[int, int]) -> Answer:
        """What else a state says about the frame."""
        ...

    def draw(self, state: Arrays, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The fitted face over its frame."""
        ...
