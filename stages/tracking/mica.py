"""MICA's tracker on the frames of a video."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.face.flame import FlameArrays, LandmarkEmbedding
from models.face.flame_layer import Flame
from models.face.rotations import matrix_of_six
from models.methods.tracker import PER_VIDEO, Frame, Level, Schedule, Tracker
from models.methods.tracker_energy import (
    Albedo,
    Energy,
    State,
    Surface,
    TermWeights,
    in_camera,
    to_pixels,
)
from models.rendering.cameras import perspective_clip, pixels_of_ndc
from models.rendering.rasterize_numba import interpolate_numba, rasterize_numba
from stages.inference.overlay import clay_over
from stages.photos import is_synthetic
from stages.runtime.artifacts import sha256_file
from stages.runtime.params import TrackParams, TrackPreset
from stages.tracking.texture import read_texture
from stages.tracking.types import Answer, Arrays, Facts

MARK_RGB = (40, 220, 90)


class MicaTracking:
    """Shape from a MICA checkpoint, everything else by descent."""

    per_video: tuple[str, ...] = PER_VIDEO

    def __init__(
        self,
        checkpoint: Path | None,
        flame: Path,
        p: TrackParams,
        *,
        focal_px: float | None = None,
        shape: Path | None = None,
    ) -> None:
        """Read the converted FLAME folder and, where the shape is MICA's, a checkpoint.

        Args:
            checkpoint: ``model.safetensors`` of train@mica; not read for other shapes.
            flame: Converted folder with masks and landmarks.
            p: Schedule, weights, shape.
            focal_px: The camera's focal length in pixels of the frames, where it is known.
            shape: A known person's ``beta``, kept as it is, instead of ``p.shape_init``: ``.npy``,
                or the ``parameters.npz`` of ``faceline register``.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The checkpoint is of another method.
        """
        self._p, self._preset = p, p.presets[p.preset]
        self._arrays = FlameArrays.load(flame)
        masks = _masks(flame / "masks.npz")
        self._surface = Surface(self._arrays, LandmarkEmbedding.load(flame), masks["face"])
        inputs = {"flame": sha256_file(flame / "model.safetensors")}
        self._albedo = self._albedo_of(p)
        if p.texture is not None:
            inputs["texture"] = sha256_file(p.texture)
        self._flame = Flame(self._arrays)
        self._focal_px = focal_px
        self._shape: Any = None
        S = self._arrays.shapedirs.shape[2]
        self._beta = np.zeros(S) if shape is None else _known_shape(shape, S)
        weights, synthetic = "none", is_synthetic(flame)
        if shape is not None:
            inputs["shape"] = sha256_file(shape)
        elif p.shape_init == "mica":
            from stages.inference.mica import MicaReconstructor

            if checkpoint is None or not checkpoint.is_file():
                raise FileNotFoundError(
                    f"expected a MICA checkpoint at {checkpoint}; train one (faceline run "
                    "train@mica), give --checkpoint, or track with --shape-init mean"
                )
            self._shape = MicaReconstructor(checkpoint, flame)
            weights = self._shape.facts["weights"]
            synthetic = synthetic or self._shape.facts["synthetic"]
            inputs["checkpoint"] = sha256_file(checkpoint)
        self.faces = self._arrays.faces
        self._drawn = self.faces[_inside(masks, len(self._arrays.v_template))[self.faces].all(1)]
        more = {
            "shape_init": p.shape_init if shape is None else "given",
            "dense": p.dense,
            "preset": p.preset,
            "albedo": "a free colour per vertex, from the first frame"
            if p.texture is None
            else f"FLAME's texture space, {p.texture_modes} modes",
        }
        self.facts = Facts(weights, synthetic, inputs, more)
        self._free = shape is None and p.shape_init == "free"
        self.first_frames = max(p.keyframes, 1 if self._shape is None else p.shape_frames)
        self._tracker: Tracker | None = None

    def _albedo_of(self, p: TrackParams) -> Albedo:
        used, faces = self._surface.used, self._surface.faces.numpy()
        if p.texture is None:
            return Albedo(len(used), faces)
        texture = read_texture(p.texture, self._arrays.faces, p.texture_modes)
        return Albedo(len(used), faces, texture.mean[used], texture.basis[used])

    def begin(self, frames: Sequence[Frame]) -> Arrays:
        """Shape from the first frames, then camera, light, albedo and the first fit.

        Raises:
            StartError: One of the frames cannot be fitted.
            ValueError: The checkpoint has no shapes, or landmarks determine no crop.
        """
        beta = self._beta.copy()
        if self._shape is not None:
            given = [(f.image, f.points_px) for f in frames[: self._p.shape_frames]]
            found = self._shape.shape_of(given)
            beta[: len(found)] = found
        size = frames[0].image.shape[:2]
        small = [self._smaller(frame) for frame in frames[: self._p.keyframes]]
        self._tracker = None
        tracker = self._tracker_of(torch.as_tensor(beta, dtype=torch.float32), size)
        return _arrays(tracker.start(small))

    def fit(self, before: Arrays, frame: Frame, *, jumped: bool) -> Arrays:
        """Descend from the last state.

        Raises:
            ValueError: The fit is lost.
        """
        state = _state(before)
        if self._tracker is None:
            self._tracker = self._tracker_of(state["beta"], frame.image.shape[:2])
        return _arrays(self._tracker.follow(state, self._smaller(frame), jumped=jumped))

    def points_px(self, state: Arrays, size: tuple[int, int]) -> Float[np.ndarray, "68 2"]:
        """Projected landmarks; the contour follows the head's yaw."""
        now = _state(state)
        seen = in_camera(self._surface.vertices(now), now)
        marks = self._surface.landmarks(seen, matrix_of_six(now["rotation"]))
        return to_pixels(marks, now, *size).numpy().astype(np.float64)

    def answer(self, state: Arrays, size: tuple[int, int]) -> Answer:
        """Mesh, depth and colours at the frame's own size."""
        height, width = size
        now = _state(state)
        head = self._posed(now)
        seen = in_camera(head, now)
        clip = self._clip(now, seen, size)
        corners = np.ascontiguousarray(self._drawn, np.int32)
        ids, bary, _ = rasterize_numba(clip, corners, height, width)
        values = interpolate_numba(-1000.0 * seen.numpy()[None, :, 2:], corners, ids, bary)[0]
        depth = np.where(ids[0] >= 0, values[..., 0], np.nan).astype(np.float64)
        colours = self._colours(now, size) if self._p.dense else None
        camera = pixels_of_ndc(
            float(now["focal"]), float(now["principal"][0]), float(now["principal"][1]), *size
        )
        parameters = {
            "beta": state["beta"],
            "psi": state["psi"],
            "jaw": matrix_of_six(now["jaw"]).numpy(),
            "eyes": matrix_of_six(now["eyes"]).numpy(),
            "rotation": matrix_of_six(now["rotation"]).numpy(),
            "translation": state["translation"],
            "light": state["light"],
            "camera_px": np.array(camera),
        }
        return Answer(parameters, 1000.0 * head.numpy().astype(np.float64), depth, colours)

    def draw(self, state: Arrays, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The face in clay with its landmarks."""
        now = _state(state)
        size = (image.shape[0], image.shape[1])
        seen = in_camera(self._posed(now), now)
        return clay_over(image, self._clip(now, seen, size), seen.numpy(), self._drawn)

    def _tracker_of(self, beta: torch.Tensor, size: tuple[int, int]) -> Tracker:
        """A tracker that holds this shape, or starts from it where the shape is free."""
        p, w = self._p, self._p.weights
        focal = None if self._focal_px is None else self._focal_px / (0.5 * min(size))
        energy = Energy(self._surface, self._albedo, TermWeights(**w.model_dump()), beta)
        return Tracker(
            energy,
            schedule_of(self._preset),
            focal_ndc=focal,
            free_shape=self._free,
            dense=p.dense,
        )

    def _smaller(self, frame: Frame) -> Frame:
        """The frame at the preset's size, or as it is where it is not larger."""
        height, width = frame.image.shape[:2]
        zoom = self._preset.size_px / max(height, width)
        if zoom >= 1.0:
            return frame
        size = (round(width * zoom), round(height * zoom))
        image = np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        return Frame(image, frame.points_px * [size[0] / width, size[1] / height])

    def _posed(self, now: State) -> torch.Tensor:
        still = torch.eye(3).expand(2, 3, 3)
        moving = matrix_of_six(torch.stack([now["jaw"], *now["eyes"]]))
        R = torch.cat([still, moving])[None]
        return self._flame.articulated(now["beta"][None], now["psi"][None], R)[0]

    def _clip(
        self, now: State, seen: torch.Tensor, size: tuple[int, int]
    ) -> Float[np.ndarray, "1 V 4"]:
        x, y = (float(value) for value in now["principal"])
        camera = pixels_of_ndc(float(now["focal"]), x, y, *size)
        near, far = -float(seen[:, 2].max()), -float(seen[:, 2].min())
        return perspective_clip(seen.numpy()[None], *camera, *size, near=0.9 * near, far=1.1 * far)

    def _colours(self, now: State, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
        energy = self._tracker_of(now["beta"], size).energy
        rows, columns, fragments = energy.visible(now, *size)
        out = np.full((*size, 3), np.nan)
        kept = fragments.weight.numpy() > 0
        shaded = 255.0 * energy.shaded(now, fragments).numpy()
        out[rows.numpy()[kept], columns.numpy()[kept]] = shaded[kept]
        return out


def schedule_of(preset: TrackPreset) -> Schedule:
    """The tracker's schedule of a preset."""
    levels = tuple(Level(level.scale, level.steps, level.dense) for level in preset.levels)
    values = preset.model_dump(exclude={"levels", "size_px"})
    return Schedule(levels=levels, **values)


def _masks(file: Path) -> Arrays:
    if not file.is_file():
        raise FileNotFoundError(
            f"expected FLAME's vertex masks in {file}; run convert@flame with FLAME_masks.pkl "
            "beside the model"
        )
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _known_shape(file: Path, count: int) -> Float[np.ndarray, " s"]:
    """A person's coefficients, filled up with zeros.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no coefficients, or more than the model has.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected a shape (.npy or .npz with beta) at {file}, found none")
    with contextlib.ExitStack() as stack:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            stack.enter_context(content)
            content = content["beta"] if "beta" in content else np.zeros((0, 0))
        beta = np.asarray(content)
    if beta.ndim != 1 or beta.dtype.kind != "f" or not 0 < len(beta) <= count:
        raise ValueError(
            f"expected 1 to {count} shape coefficients in {file}, got an array of {beta.shape} "
            f"{beta.dtype}; give the beta of the same face model"
        )
    return np.pad(beta.astype(np.float64), (0, count - len(beta)))


def _inside(masks: Arrays, vertices: int) -> np.ndarray:
    """Which vertices are drawn: the face and the eyeballs."""
    inside = np.zeros(vertices, bool)
    for name in ("face", "left_eyeball", "right_eyeball"):
        inside[masks[name]] = True
    return inside


def _arrays(state: State) -> Arrays:
    return {name: value.detach().numpy() for name, value in state.items()}


def _state(arrays: Arrays) -> State:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
