"""MICA's face tracker: analysis by synthesis with a metric head.

Paper: Zielonka, Bolkart, Thies, "Towards Metrical Reconstruction of Human Faces", ECCV 2022,
section 4. Reference: github.com/Zielon/metrical-tracker. The shape is given (MICA's); Adam fits a
perspective camera, spherical-harmonics light and albedo to the first frames, then expression, jaw,
eyes, pose and light to every frame, each started from the one before. Visible points come from a
rasteriser whose triangles and barycentrics are frozen for some steps; colours are sampled from the
image where the points project.

Departures: the camera starts from the closed-form pose of the landmarks instead of a metre away;
learning rates may fall within a level (``final_rate``; 1 as published); the sparse level of the
first frames, whose published image is an up-sampled quarter-size one, looks at the quarter-size
image itself; without FLAME's texture space the albedo is a free colour per vertex; light is in the
camera's frame. No MediaPipe points, no eyelid shapes.

Command: ``faceline track VIDEO --out DIR [--preset paper]``. The published schedule is about 300
steps a frame at 512 px, made for a GPU; the small one 40 at 256 px. The paper reports 5.7 mm depth
RMSE on one sequence, 11.0 for Face2Face.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.face.rotations import six_of_matrix
from models.methods.pose import fit_scaled_orthographic
from models.methods.tracker_energy import Energy, Fragments, State, Target

Terms = Callable[[State, Fragments | None], dict[str, Tensor]]
PER_VIDEO = ("beta", "focal", "principal", "texture", "trusted")
"""Unknowns that are fixed once the first frames are fitted."""
BLUR = (7, 9.0)
"""Kernel and standard deviation in pixels before an image is made smaller, as published."""
UNKNOWNS = (
    "beta", "psi", "jaw", "eyes", "rotation", "translation", "focal", "principal", "light",
    "texture",
)  # fmt: skip


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes:
        scale: Of the image.
        steps: Adam steps in a frame.
        dense: Whether colours count.
    """

    scale: float
    steps: int
    dense: bool


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; the defaults are the published ones.

    Attributes:
        camera_steps: Steps that fit the camera alone.
        camera_rate: Their learning rate.
        camera_drop_every: Steps after which it falls to a tenth.
        levels: Coarse to fine.
        start_factor: How many times as many steps the first frames take.
        raster_every: Steps between rasterisations.
        final_rate: Learning rate at a level's last step as a fraction of the first.
        colour_rates: Learning rate per unknown while light and albedo are found.
        keyframe_rates: While the first frames are fitted.
        frame_rates: In every frame.
    """

    camera_steps: int = 1000
    camera_rate: float = 0.05
    camera_drop_every: int = 300
    levels: tuple[Level, ...] = (
        Level(1.0, 161, False),
        Level(0.25, 41, True),
        Level(0.5, 41, True),
        Level(1.0, 71, True),
    )
    start_factor: int = 2
    raster_every: int = 8
    final_rate: float = 1.0
    colour_rates: Mapping[str, float] = field(
        default_factory=lambda: {"light": 0.05, "texture": 0.05}
    )
    keyframe_rates: Mapping[str, float] = field(
        default_factory=lambda: {
            "psi": 0.025, "eyes": 0.001, "jaw": 0.001, "light": 0.01, "translation": 0.005,
            "rotation": 0.005, "focal": 0.001, "principal": 0.001, "beta": 0.025,
        }
    )  # fmt: skip
    frame_rates: Mapping[str, float] = field(
        default_factory=lambda: {
            "psi": 0.025, "eyes": 0.001, "jaw": 0.001, "rotation": 0.2, "translation": 0.003,
            "light": 0.001,
        }
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the names of unknowns and that colours count somewhere."""
        for rates in (self.colour_rates, self.keyframe_rates, self.frame_rates):
            unknown = sorted(set(rates) - set(UNKNOWNS))
            if unknown:
                raise ValueError(f"tracker rates: expected unknowns of {UNKNOWNS}, got {unknown}")
        fixed = sorted(set(self.frame_rates) & set(PER_VIDEO))
        if fixed:
            raise ValueError(f"tracker rates: {fixed} are fixed after the first frames")


@dataclass(frozen=True)
class Frame:
    """One frame to fit.

    Attributes:
        image: RGB.
        points_px: Detected landmarks in its pixels.
    """

    image: UInt8[np.ndarray, "h w 3"]
    points_px: Float[np.ndarray, "68 2"]


class StartError(ValueError):
    """One of the first frames cannot be fitted.

    Attributes:
        frame: Its place among those given, from 0.
    """

    def __init__(self, frame: int, reason: str) -> None:
        super().__init__(reason)
        self.frame = frame


class Tracker:
    """Fits frames of one size to one person's head."""

    def __init__(
        self,
        energy: Energy,
        schedule: Schedule,
        *,
        focal_ndc: float | None = None,
        free_shape: bool = False,
        dense: bool = True,
    ) -> None:
        """Keep energy and schedule.

        Args:
            energy: Surface, albedo, weights and the given shape.
            schedule: Steps and rates.
            focal_ndc: The camera's focal length where it is known, then neither it nor the
                principal point (the image's centre) is fitted; None fits both.
            free_shape: Fit the shape to the first frames as well.
            dense: Whether colours count at all.
        """
        self.energy, self.schedule, self.dense = energy, schedule, dense
        self._focal = focal_ndc
        self._fixed = {
            *(() if focal_ndc is None else ("focal", "principal")),
            *(() if free_shape else ("beta",)),
        }

    def start(self, frames: Sequence[Frame]) -> State:
        """Fit camera, light, albedo and the first frames; returns the first one's state.

        The frames are fitted one after the other, each from the last; the camera, the shape and the
        albedo go on, and the first frame is given with what they have become.

        Raises:
            StartError: The landmarks of a frame determine no pose, or its fit is lost.
        """
        first, state = None, self._blank(frames[0])
        for index, frame in enumerate(frames):
            try:
                state = self._fit_first(state, frame, colours=index == 0)
            except ValueError as error:
                raise StartError(index, str(error)) from error
            first = first or state
        assert first is not None
        return first | {name: state[name] for name in PER_VIDEO}

    def _fit_first(self, state: State, frame: Frame, *, colours: bool) -> State:
        """Pose, camera, where asked for light and albedo, then all that a frame has."""
        state = self._fit_camera(self._posed(state, frame), frame)
        if self.dense:
            if colours:
                state = self._fit_colours(state, frame)
            state = self._trust(state, frame)
        rates = self._allowed(self.schedule.keyframe_rates)
        return self._levels(state, frame, rates, self.schedule.start_factor)

    def follow(self, state: State, frame: Frame, *, jumped: bool = False) -> State:
        """Fit the next frame from the state of the last one.

        Args:
            state: Of the last frame that was fitted.
            frame: The next one.
            jumped: Frames in between were not fitted: the pose starts from the landmarks again.

        Raises:
            ValueError: The fit is lost: the head leaves the image or a value is not finite.
        """
        if jumped:
            state = self._posed(state, frame)
        return self._levels(state, frame, dict(self.schedule.frame_rates), 1)

    def _blank(self, frame: Frame) -> State:
        height, _ = frame.image.shape[:2]
        flame, beta = self.energy.surface.flame, self.energy.beta
        focal = 5000.0 / height if self._focal is None else self._focal
        zeros = beta.new_zeros
        return {
            "beta": beta.clone(),
            "psi": zeros(flame.exprdirs.shape[2]),
            "jaw": self.energy.rest.clone(),
            "eyes": self.energy.rest.repeat(2, 1),
            "rotation": self.energy.rest.clone(),
            "translation": zeros(3),
            "focal": zeros(()) + focal,
            "principal": zeros(2),
            "light": zeros(9, 3),
            "texture": self.energy.albedo.zeros(),
            "trusted": zeros(len(self.energy.surface.used)),
        }

    def _posed(self, state: State, frame: Frame) -> State:
        """The scaled-orthographic pose of the inner landmarks, as far away as its scale says."""
        height, width = frame.image.shape[:2]
        surface = self.energy.surface
        head = surface.vertices(state)
        eye = torch.eye(3, dtype=head.dtype, device=head.device)
        inner = surface.landmarks(head, eye)[17:].detach().cpu().numpy().astype(np.float64)
        pose = fit_scaled_orthographic(inner, frame.points_px[17:])
        half = 0.5 * min(height, width)
        focal = float(state["focal"]) * half
        distance = focal / pose.scale_px
        px, py = (float(value) * half for value in state["principal"])
        x = pose.centre_px[0] - (0.5 * width - px)
        y = (0.5 * height - py) - pose.centre_px[1]
        at = [x * distance / focal, y * distance / focal, -distance]
        like = state["rotation"]
        R = torch.as_tensor(pose.rotation, dtype=like.dtype, device=like.device)
        moved = torch.tensor(at, dtype=like.dtype, device=like.device)
        return state | {"rotation": six_of_matrix(R), "translation": moved}

    def _fit_camera(self, state: State, frame: Frame) -> State:
        s = self.schedule
        names = ("rotation", "translation", "focal", "principal")
        rates = self._allowed(dict.fromkeys(names, s.camera_rate))
        target = self._target(frame, 1.0)

        def terms(now: State, _: Fragments | None) -> dict[str, Tensor]:
            return self.energy.camera_terms(now, target)

        return self._descend(
            state, rates, s.camera_steps, terms, rate=lambda k: 0.1 ** (k // s.camera_drop_every)
        )

    def _fit_colours(self, state: State, frame: Frame) -> State:
        """Light and albedo; the sparse levels look at the coarsest image that counts."""
        coarsest = min(level.scale for level in self.schedule.levels)
        levels = [
            level if level.dense else Level(coarsest, level.steps, True)
            for level in self.schedule.levels
        ]
        rates = dict(self.schedule.colour_rates)
        everything = state | {"trusted": torch.ones_like(state["trusted"])}
        found = self._levels(everything, frame, rates, self.schedule.start_factor, levels)
        return found | {"trusted": state["trusted"]}

    def _trust(self, state: State, frame: Frame) -> State:
        """Trust the albedo of vertices that this or an earlier first frame shows."""
        everything = state | {"trusted": torch.ones_like(state["trusted"])}
        if self.energy.albedo.basis is not None:
            return everything
        height, width = frame.image.shape[:2]
        seen = torch.zeros_like(state["trusted"])
        seen[self.energy.fragments(everything, height, width).corners.reshape(-1)] = 1.0
        return state | {"trusted": torch.maximum(state["trusted"], seen)}

    def _allowed(self, rates: Mapping[str, float]) -> dict[str, float]:
        return {name: rate for name, rate in rates.items() if name not in self._fixed}

    def _levels(
        self,
        state: State,
        frame: Frame,
        rates: Mapping[str, float],
        factor: int,
        levels: Sequence[Level] | None = None,
    ) -> State:
        """Descend the pyramid with a fresh optimiser per level."""
        for level in self.schedule.levels if levels is None else levels:
            target = self._target(frame, level.scale)
            steps = factor * level.steps
            last = max(steps - 1, 1)

            def terms(now: State, seen: Fragments | None, to: Target = target) -> dict[str, Tensor]:
                return self.energy.terms(now, to, seen)

            state = self._descend(
                state,
                rates,
                steps,
                terms,
                rate=partial(_falling, self.schedule.final_rate, last),
                size=tuple(target.image.shape[2:]) if level.dense and self.dense else None,
            )
        return state

    def _target(self, frame: Frame, scale: float) -> Target:
        height, width = frame.image.shape[:2]
        image = frame.image
        if scale < 1.0:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            blurred = cv2.GaussianBlur(image, (BLUR[0], BLUR[0]), BLUR[1])
            image = np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_AREA), np.uint8)
        like = self.energy.beta
        picture = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        points = torch.as_tensor(frame.points_px / [width, height], dtype=like.dtype)
        return Target(picture[None].to(like.device, like.dtype) / 255.0, points.to(like.device))

    def _descend(
        self,
        state: State,
        rates: Mapping[str, float],
        steps: int,
        terms: Terms,
        *,
        rate: Callable[[int], float],
        size: tuple[int, ...] | None = None,
    ) -> State:
        """Adam over the unknowns in ``rates``; returns the best of all iterates.

        Raises:
            ValueError: No iterate has a finite energy.
        """
        moving = {
            name: state[name].detach().clone().requires_grad_(True)
            for name, value in rates.items()
            if value > 0
        }
        if not moving or not steps:
            return state
        rated = [rates[name] for name in moving]
        adam = torch.optim.Adam([{"params": [leaf]} for leaf in moving.values()])
        best, kept, seen = float("inf"), moving, None
        for step in range(steps):
            now = state | moving
            if size is not None and step % self.schedule.raster_every == 0:
                seen = self.energy.fragments(now, size[0], size[1])
            loss = torch.stack(list(terms(now, seen).values())).sum()
            value = float(loss.detach())
            if not np.isfinite(value):
                break
            if value < best:
                best = value
                kept = {name: leaf.detach().clone() for name, leaf in moving.items()}
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group, full in zip(adam.param_groups, rated, strict=True):
                group["lr"] = rate(step) * full
            adam.step()
        if not np.isfinite(best):
            raise ValueError("the tracker lost the face: its energy is not finite in this frame")
        return state | kept


def _falling(final: float, last: int, step: int) -> float:
    """Factor on a learning rate that falls geometrically from 1 to ``final`` at step ``last``."""
    return float(final ** (step / last))
