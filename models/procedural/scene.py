"""Cameras, lights, backgrounds and finishes for photographs of the procedural head.

Camera frame: x right, y up, z toward the viewer, metres; a camera whose rotation is the identity
sees the head from the front, because the head frame is +x subject's left, +y up, +z forward.
Pixel frame: x right, y down, the centre of the first pixel at (0.5, 0.5).
Lights live in the camera frame, linear RGB.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

BackgroundKind = Literal["plain", "gradient", "bokeh", "wall", "outdoor", "studio"]
BACKGROUND_KINDS: tuple[BackgroundKind, ...] = (
    "plain",
    "gradient",
    "bokeh",
    "wall",
    "outdoor",
    "studio",
)


def rotation_from_angles(
    yaw_deg: float, pitch_deg: float, roll_deg: float
) -> Float[np.ndarray, "3 3"]:
    """Rotation R_cam_from_head = Rz(roll) Rx(pitch) Ry(yaw).

    Args:
        yaw_deg: Positive turns the face to the picture's right (the subject's left).
        pitch_deg: Positive turns the face down.
        roll_deg: Positive turns the picture counter-clockwise.
    """
    yaw, pitch, roll = np.radians([yaw_deg, pitch_deg, roll_deg])
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
    about_z = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(about_z @ about_x @ about_y)


def angles_of_rotation(
    rotation: Float[np.ndarray, "3 3"],
) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, the inverse of ``rotation_from_angles``."""
    yaw = np.arctan2(-rotation[2, 0], rotation[2, 2])
    pitch = np.arcsin(np.clip(rotation[2, 1], -1.0, 1.0))
    roll = np.arctan2(-rotation[0, 1], rotation[1, 1])
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


@dataclasses.dataclass(frozen=True, slots=True)
class Camera:
    """A perspective or scaled-orthographic camera.

    Attributes:
        rotation: R_cam_from_head (3, 3).
        translation: t_cam_from_head (3,), metres; perspective cameras need z < 0 (in front).
        scale_px: Focal length in pixels (perspective) or pixels per metre (orthographic).
        centre_px: Principal point, or the picture position of camera x = y = 0.
        orthographic: Whether depth leaves the picture position alone.
    """

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    scale_px: float
    centre_px: tuple[float, float]
    orthographic: bool = False

    def in_camera(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Take head-frame points (m) to the camera frame (m)."""
        return np.asarray(points @ self.rotation.T + self.translation)

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Project head-frame points (m) to picture positions (px).

        Raises:
            ValueError: A perspective camera with a point at or behind its centre.
        """
        moved = self.in_camera(points)
        if self.orthographic:
            scaled = moved[:, :2] * self.scale_px
        else:
            depth = -moved[:, 2]
            if not np.all(depth > 1e-3):
                raise ValueError(
                    "Camera.project expected points in front of the camera (z < -1 mm), got "
                    f"z up to {moved[:, 2].max():.4f} m; move the head away from the camera."
                )
            scaled = moved[:, :2] * (self.scale_px / depth)[:, None]
        return np.stack([self.centre_px[0] + scaled[:, 0], self.centre_px[1] - scaled[:, 1]], 1)

    @property
    def yaw_deg(self) -> float:
        """Yaw of the head in degrees, positive when the face looks to the picture's right."""
        return angles_of_rotation(self.rotation)[0]


def perspective_camera(
    rotation: Float[np.ndarray, "3 3"],
    size_px: tuple[int, int],
    *,
    distance_m: float = 1.2,
    face_fraction: float = 0.62,
    centre_fraction: tuple[float, float] = (0.5, 0.52),
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Camera:
    """A perspective camera that frames the face.

    Args:
        rotation: R_cam_from_head.
        size_px: Picture (height, width).
        distance_m: From the camera to ``target_m``.
        face_fraction: Share of the picture's height taken by 0.20 m (brow to below the chin).
        centre_fraction: Where ``target_m`` falls, as fractions of width and height.
        target_m: The head-frame point that is centred.
    """
    height, width = size_px
    focal = face_fraction * height * distance_m / 0.20
    translation = np.array([0.0, 0.0, -distance_m]) - rotation @ np.asarray(target_m)
    centre = (centre_fraction[0] * width, centre_fraction[1] * height)
    return Camera(rotation, translation, float(focal), centre)


def orthographic_camera(
    rotation: Float[np.ndarray, "3 3"],
    scale_px_per_m: float,
    centre_px: tuple[float, float],
    *,
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Camera:
    """A scaled-orthographic camera that puts ``target_m`` at ``centre_px`` (300W-LP's model)."""
    translation = -(rotation @ np.asarray(target_m))
    return Camera(rotation, translation, float(scale_px_per_m), centre_px, orthographic=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Light:
    """Lighting in the camera frame, linear RGB.

    Attributes:
        ambient: Second-order spherical harmonics of irradiance / pi, (9, 3), in the order
            1, y, z, x, xy, yz, 3z^2-1, xz, x^2-y^2 with plain polynomial factors.
        directions: Unit vectors toward each directional light (L, 3), L >= 1; the first casts
            shadows.
        colours: Radiance of each directional light (L, 3).
        shadow_softness: Width of the first light's penumbra, in shadow-map cells.
    """

    ambient: Float[np.ndarray, "9 3"]
    directions: Float[np.ndarray, "l 3"]
    colours: Float[np.ndarray, "l 3"]
    shadow_softness: float = 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class Background:
    """A procedural background; ``paint`` in ``backdrop`` order of kinds."""

    kind: BackgroundKind
    colours: Float[np.ndarray, "c 3"]
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Finish:
    """What the camera does to the picture after the light has arrived.

    Attributes:
        exposure: Linear gain.
        contrast: Strength of the tone curve, 0 = plain sRGB.
        saturation: 1 leaves colours alone, 0 is a grey picture.
        white_balance: Gains per channel.
        defocus_px: Standard deviation of the blur, output pixels.
        noise: Standard deviation of sensor noise at mid grey, in [0, 1] units.
        vignette: Darkening at the corners, 0..1.
        jpeg_quality: A JPEG round trip at this quality, or None.
    """

    exposure: float = 1.0
    contrast: float = 0.25
    saturation: float = 1.0
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    defocus_px: float = 0.0
    noise: float = 0.0
    vignette: float = 0.0
    jpeg_quality: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """Everything about a photograph that is not the person."""

    camera: Camera
    light: Light
    background: Background
    finish: Finish


def colour_of_temperature(kelvin: float) -> Float[np.ndarray, "3"]:
    """Linear RGB of a black body relative to 6,500 K, luminance 1 (a smooth fit, 2,500-12,000 K).

    Args:
        kelvin: Colour temperature.
    """
    mired = 1e6 / float(kelvin) - 1e6 / 6500.0
    colour = np.exp(np.array([0.0024, 0.0, -0.0044]) * mired)
    luminance = colour @ np.array([0.2126, 0.7152, 0.0722])
    return np.asarray(colour / luminance)


def portrait_light(*, key_yaw_deg: float = -35.0, key_pitch_deg: float = 35.0) -> Light:
    """A soft, neutral, repeatable light: what tests and reports use."""
    ambient = np.zeros((9, 3))
    ambient[0] = 0.42
    ambient[1] = 0.12
    ambient[2] = 0.08
    directions = np.stack([_direction(key_yaw_deg, key_pitch_deg), _direction(50.0, 10.0)])
    colours = np.array([[0.62, 0.60, 0.57], [0.13, 0.14, 0.15]])
    return Light(ambient, directions, colours, 2.0)


def _direction(yaw_deg: float, pitch_deg: float) -> Float[np.ndarray, "3"]:
    """Unit vector: yaw to the picture's right, pitch upward, zero toward the viewer."""
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    return np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])


def sample_light(rng: np.random.Generator) -> Light:
    """Draw a light: ambient sky and bounce, one key light, up to two more.

    The total irradiance on a surface that faces the viewer stays near 1, so that exposure is
    a matter of ``Finish``.
    """
    outdoor = rng.random() < 0.5
    key_kelvin = rng.uniform(4800, 6800) if outdoor else rng.uniform(3200, 5600)
    fill_kelvin = rng.uniform(6500, 9500) if outdoor else rng.uniform(3800, 7000)
    key_colour = colour_of_temperature(0.4 * key_kelvin + 3900.0)
    fill_colour = colour_of_temperature(0.4 * fill_kelvin + 3900.0)
    key_share = rng.uniform(0.30, 0.75)
    key = _direction(rng.uniform(-65, 65), rng.uniform(5, 60))
    directions = [key]
    colours = [key_colour * key_share * rng.uniform(0.9, 1.1)]
    for _ in range(int(rng.integers(0, 3))):
        rim = rng.random() < 0.4
        yaw = rng.uniform(100, 160) if rim else rng.uniform(-80, 80)
        directions.append(_direction(yaw * rng.choice([-1.0, 1.0]), rng.uniform(-10, 45)))
        strength = rng.uniform(0.2, 0.7) if rim else rng.uniform(0.05, 0.25)
        colours.append(fill_colour * strength)
    ambient = np.zeros((9, 3))
    level = 1.02 - 0.85 * key_share * max(0.25, float(key[2]))
    ambient[0] = level * 0.80 * fill_colour
    ambient[1] = level * rng.uniform(0.05, 0.25) * fill_colour
    ambient[2] = level * rng.uniform(0.10, 0.25) * (0.5 * fill_colour + 0.5)
    ambient[3] = level * rng.uniform(-0.15, 0.15) * fill_colour
    ambient[6] = level * rng.uniform(-0.03, 0.03)
    softness = rng.uniform(1.0, 3.5)
    return Light(ambient, np.stack(directions), np.stack(colours), float(softness))


def sample_background(rng: np.random.Generator) -> Background:
    """Draw a background kind and its palette (linear RGB)."""
    kind = BACKGROUND_KINDS[int(rng.integers(len(BACKGROUND_KINDS)))]
    base = rng.uniform(0.03, 0.75)
    tint = np.exp(rng.normal(0.0, 0.28, (5, 3)))
    spread = np.exp(rng.normal(0.0, 0.75, (5, 1)))
    colours = np.clip(base * tint * spread, 0.01, 0.95)
    return Background(kind, colours, int(rng.integers(2**31)))


def sample_finish(rng: np.random.Generator, *, quality: float = 0.7) -> Finish:
    """Draw a finish.

    Args:
        rng: Source of randomness.
        quality: 1 is a studio camera, 0 an old telephone.
    """
    poor = 1.0 - quality
    return Finish(
        exposure=float(np.exp(rng.normal(0.0, 0.13))),
        contrast=float(rng.uniform(0.1, 0.55)),
        saturation=float(rng.uniform(0.85, 1.12)),
        white_balance=tuple(np.exp(rng.normal(0.0, 0.03, 3)).tolist()),
        defocus_px=float(abs(rng.normal(0.0, 0.25 + 0.7 * poor))),
        noise=float(rng.uniform(0.002, 0.006 + 0.022 * poor)),
        vignette=float(rng.uniform(0.0, 0.2)),
        jpeg_quality=int(rng.integers(70, 96)),
    )


def sample_scene(
    rng: np.random.Generator,
    size_px: tuple[int, int],
    *,
    yaw_range_deg: tuple[float, float] = (-40.0, 40.0),
    pitch_range_deg: tuple[float, float] = (-15.0, 15.0),
    roll_range_deg: tuple[float, float] = (-12.0, 12.0),
    face_fraction_range: tuple[float, float] = (0.5, 0.68),
    distance_range_m: tuple[float, float] = (0.7, 2.0),
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    quality: float = 0.7,
) -> Scene:
    """Draw a whole scene with a perspective camera that frames the face.

    Args:
        rng: Source of randomness.
        size_px: Picture (height, width).
        yaw_range_deg: Uniform range; positive looks to the picture's right.
        pitch_range_deg: Uniform range; positive looks down.
        roll_range_deg: Uniform range.
        face_fraction_range: See ``perspective_camera``.
        distance_range_m: Camera distance.
        target_m: Head-frame point near which the picture is centred.
        quality: See ``sample_finish``.
    """
    angles = [float(rng.uniform(*r)) for r in (yaw_range_deg, pitch_range_deg, roll_range_deg)]
    camera = perspective_camera(
        rotation_from_angles(*angles),
        size_px,
        distance_m=float(rng.uniform(*distance_range_m)),
        face_fraction=float(rng.uniform(*face_fraction_range)),
        centre_fraction=(float(rng.uniform(0.46, 0.54)), float(rng.uniform(0.48, 0.56))),
        target_m=target_m,
    )
    return Scene(
        camera, sample_light(rng), sample_background(rng), sample_finish(rng, quality=quality)
    )
