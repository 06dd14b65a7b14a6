"""Named anthropometric traits: means and standard deviations by sex, and how each moves the skin.

Every trait is a vector field over canonical millimetres. One unit of a field changes its
measurement by about one millimetre, so a trait's coefficient is its deviation in millimetres.
Means and deviations follow published surveys of adults (Farkas 1994, North American; ISO 7250);
values without a survey (bulges, depths) are estimates and say so.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from models.procedural.anatomy import EYE_CENTRE_MM, smoothstep
from models.procedural.mouth import line

Field = Callable[["Place"], Float[np.ndarray, "n 3"]]


class Place:
    """Canonical points with the windows that the fields share."""

    def __init__(self, points: Float[np.ndarray, "n 3"]) -> None:
        """Split ``points`` (mm) into mirrored coordinates."""
        self.x = points[:, 0]
        self.side = np.tanh(points[:, 0] / 1.5)
        self.far = np.abs(points[:, 0])
        self.y = points[:, 1]
        self.z = points[:, 2]
        self.front = smoothstep(self.z, -15.0, 45.0)
        self.lip = self.y - line(points[:, 0])[:, 0]
        self.mouth_taper = np.sqrt(np.clip(1.0 - (self.far / 27.0) ** 2, 0.0, 1.0))

    def bell(self, name: str, centre: float, sigma: float) -> Float[np.ndarray, "n"]:
        """Gaussian of one coordinate (``x`` means |x|)."""
        value = {"x": self.far, "y": self.y, "z": self.z, "lip": self.lip}[name]
        return np.exp(-0.5 * ((value - centre) / sigma) ** 2)

    def ball(
        self, centre: tuple[float, float, float], sigma: tuple[float, float, float]
    ) -> Float[np.ndarray, "n"]:
        """Gaussian ball mirrored in x."""
        parts = zip("xyz", centre, sigma, strict=True)
        return np.prod([self.bell(name, c, s) for name, c, s in parts], axis=0)

    def below(self, top: float, bottom: float) -> Float[np.ndarray, "n"]:
        """0 above ``top``, 1 under ``bottom``, fading out again down the front of the neck."""
        return (
            smoothstep(self.y, top, bottom)
            * smoothstep(self.y, -196.0, -122.0)
            * smoothstep(self.z, -35.0, 40.0)
        )

    def vector(
        self,
        x: Float[np.ndarray, "n"] | float = 0.0,
        y: Float[np.ndarray, "n"] | float = 0.0,
        z: Float[np.ndarray, "n"] | float = 0.0,
    ) -> Float[np.ndarray, "n 3"]:
        """A field from its components; ``x`` is outward (away from the middle) on both sides."""
        one = np.ones_like(self.x)
        return np.stack([x * self.side, y * one, z * one], axis=1)


def eye_frame(place: Place) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Distance (mm) to the nearer eye's centre, and the weight of its rigid surroundings."""
    distance = np.sqrt(
        (place.far - EYE_CENTRE_MM[0]) ** 2
        + (place.y - EYE_CENTRE_MM[1]) ** 2
        + (place.z - EYE_CENTRE_MM[2]) ** 2
    )
    return distance, smoothstep(distance, 25.0, 15.5)


@dataclasses.dataclass(frozen=True, slots=True)
class Trait:
    """One measurement.

    Attributes:
        man, woman: Mean and standard deviation (mm) for each sex.
        loadings: Correlation with head size, long-facedness, robustness and fat; squares sum
            to less than one.
        field: Displacement (mm) per millimetre of the measurement.
        eye: True where the field is about the eye itself, so lids do not follow rigidly.
    """

    name: str
    man: tuple[float, float]
    woman: tuple[float, float]
    loadings: tuple[float, float, float, float]
    field: Field
    eye: bool = False


def _cranium(p: Place) -> Float[np.ndarray, "n"]:
    return smoothstep(p.y, -60.0, 25.0)


def _tall(p: Place) -> Float[np.ndarray, "n"]:
    return smoothstep(p.y, -200.0, -110.0)


def _lid(p: Place, upper: bool) -> Float[np.ndarray, "n 3"]:
    """Rotation of one lid about the eye's transverse axis, one millimetre at the margin."""
    distance, _ = eye_frame(p)
    y, z = p.y - EYE_CENTRE_MM[1], p.z - EYE_CENTRE_MM[2]
    across = np.clip(1.0 - ((p.far - EYE_CENTRE_MM[0]) / 14.5) ** 2, 0.0, 1.0)
    near = smoothstep(distance, 21.0, 14.0) * across * smoothstep(z, 0.0, 5.0)
    near = near * smoothstep(distance, 12.2, 12.8)
    which = smoothstep(y, -0.5, 2.0) if upper else smoothstep(y, 0.5, -2.0)
    sign = 1.0 if upper else -1.0
    return sign * near[:, None] * which[:, None] * p.vector(0.0, z / 13.5, -y / 13.5)


def _vermilion(p: Place, upper: bool) -> Float[np.ndarray, "n 3"]:
    height = p.lip if upper else -p.lip
    full = 7.4 if upper else 9.0
    ramp = smoothstep(height, 0.4, full) * smoothstep(height, full + 11.0, full)
    amount = ramp * p.mouth_taper * smoothstep(p.z, 70.0, 82.0)
    return p.vector(0.0, amount if upper else -amount, 0.0)


def _lip_forward(p: Place, upper: bool) -> Float[np.ndarray, "n 3"]:
    centre = 4.5 if upper else -5.0
    amount = p.bell("lip", centre, 4.8) * p.mouth_taper * smoothstep(p.z, 72.0, 84.0)
    return p.vector(0.0, 0.0, amount)


def _ear(p: Place) -> Float[np.ndarray, "n"]:
    inside = np.hypot((p.y + 13.0) / 34.0, (p.z + 11.0) / 23.0)
    return smoothstep(inside, 1.35, 0.85) * smoothstep(p.far, 58.0, 68.0)


TRAITS: tuple[Trait, ...] = (
    Trait(
        "head_length",
        (196.0, 7.0),
        (187.5, 6.6),
        (0.75, 0.1, 0.2, 0.0),
        lambda p: p.vector(0.0, 0.0, (p.z + 5.0) / 196.0 * _tall(p)),
    ),
    Trait(
        "head_breadth",
        (153.0, 5.8),
        (146.0, 5.4),
        (0.65, -0.3, 0.1, 0.1),
        lambda p: p.vector(p.far / 153.0 * _cranium(p)),
    ),
    Trait(
        "head_height",
        (118.0, 6.0),
        (113.0, 5.8),
        (0.55, 0.25, 0.0, 0.0),
        lambda p: p.vector(0.0, smoothstep(p.y, 5.0, 105.0)),
    ),
    Trait(
        "bizygomatic_breadth",
        (139.0, 5.6),
        (131.0, 5.0),
        (0.6, -0.3, 0.3, 0.35),
        lambda p: p.vector(p.far / 139.0 * p.bell("y", -18.0, 30.0) * smoothstep(p.z, -45.0, 15.0)),
    ),
    Trait(
        "minimum_frontal_breadth",
        (106.0, 4.8),
        (102.0, 4.6),
        (0.5, -0.15, 0.1, 0.1),
        lambda p: p.vector(p.far / 106.0 * p.bell("y", 30.0, 22.0) * smoothstep(p.z, 5.0, 45.0)),
    ),
    Trait(
        "bigonial_breadth",
        (107.0, 6.6),
        (97.0, 5.6),
        (0.35, -0.25, 0.45, 0.4),
        lambda p: p.vector(p.far / 107.0 * p.bell("y", -74.0, 24.0) * smoothstep(p.z, -45.0, 5.0)),
    ),
    Trait(
        "nose_length",
        (54.0, 3.6),
        (50.0, 3.2),
        (0.35, 0.5, 0.1, 0.0),
        lambda p: p.vector(0.0, -p.below(4.0, -44.0)),
    ),
    Trait(
        "lower_face_height",
        (72.6, 4.8),
        (65.0, 4.2),
        (0.35, 0.6, 0.25, 0.1),
        lambda p: p.vector(0.0, -p.below(-46.0, -113.0)),
    ),
    Trait(
        "upper_lip_height",
        (22.6, 2.3),
        (20.2, 2.0),
        (0.1, 0.4, 0.1, 0.0),
        lambda p: p.vector(0.0, -p.ball((0, -65, 92), (26, 9, 18))),
    ),
    Trait(
        "chin_height",
        (31.0, 2.8),
        (28.0, 2.5),
        (0.2, 0.35, 0.3, 0.0),
        lambda p: p.vector(0.0, p.ball((0, -83, 90), (24, 9, 20))),
    ),
    Trait(
        "nose_width",
        (35.4, 2.9),
        (31.8, 2.4),
        (0.2, -0.2, 0.15, 0.15),
        lambda p: p.vector(p.far / 34.0 * p.ball((13, -38, 98), (9, 9, 14))),
    ),
    Trait(
        "nose_protrusion",
        (20.2, 2.1),
        (18.6, 1.9),
        (0.2, 0.25, 0.1, -0.1),
        lambda p: p.vector(0.0, 0.0, p.ball((0, -35, 112), (11, 10, 12))),
    ),
    Trait(
        "nasal_root_depth",
        (17.0, 2.2),
        (15.5, 2.0),
        (0.1, 0.1, 0.3, 0.0),
        lambda p: p.vector(0.0, 0.0, p.ball((0, 1, 94), (9, 11, 12))),
    ),
    Trait(
        "nasal_hump",
        (0.9, 1.2),
        (-0.3, 1.1),
        (0.0, 0.15, 0.25, -0.1),
        lambda p: p.vector(0.0, 0.0, p.ball((0, -15, 103), (6.5, 7, 14))),
    ),
    Trait(
        "nasal_bridge_width",
        (17.0, 2.0),
        (15.6, 1.8),
        (0.2, -0.2, 0.2, 0.1),
        lambda p: p.vector(p.far / 16.0 * p.ball((7, -14, 96), (8, 14, 12))),
    ),
    Trait(
        "nose_tip_upturn",
        (-0.7, 1.9),
        (0.7, 1.8),
        (-0.1, -0.2, -0.2, 0.0),
        lambda p: p.vector(0.0, p.ball((0, -36, 110), (11, 10, 10))),
    ),
    Trait(
        "nose_tip_breadth",
        (20.0, 2.0),
        (18.2, 1.8),
        (0.15, -0.1, 0.15, 0.15),
        lambda p: p.vector(p.far / 16.0 * p.ball((6, -34, 107), (8, 9, 9))),
    ),
    Trait(
        "alar_height",
        (0.2, 1.1),
        (-0.2, 1.0),
        (0.0, 0.1, 0.1, 0.0),
        lambda p: p.vector(0.0, p.ball((14, -40, 95), (6, 8, 10))),
    ),
    Trait(
        "mouth_width",
        (54.5, 3.6),
        (50.5, 3.4),
        (0.3, 0.0, 0.15, 0.1),
        lambda p: p.vector(p.far / 51.0 * p.ball((24, -65, 88), (16, 14, 22))),
    ),
    Trait(
        "upper_vermilion",
        (7.6, 1.5),
        (8.5, 1.4),
        (0.0, -0.1, -0.1, 0.05),
        lambda p: _vermilion(p, upper=True),
    ),
    Trait(
        "lower_vermilion",
        (9.2, 1.6),
        (9.5, 1.5),
        (0.0, -0.1, -0.1, 0.05),
        lambda p: _vermilion(p, upper=False),
    ),
    Trait(
        "upper_lip_protrusion",
        (-0.1, 1.4),
        (0.1, 1.3),
        (0.0, 0.1, -0.1, 0.05),
        lambda p: _lip_forward(p, upper=True),
    ),
    Trait(
        "lower_lip_protrusion",
        (-0.1, 1.4),
        (0.1, 1.3),
        (0.0, 0.1, -0.1, 0.05),
        lambda p: _lip_forward(p, upper=False),
    ),
    Trait(
        "mouth_corner_height",
        (0.0, 1.1),
        (0.3, 1.1),
        (0.0, 0.0, 0.0, 0.0),
        lambda p: p.vector(0.0, p.ball((25, -65, 85), (8, 9, 14))),
    ),
    Trait(
        "dental_arch_depth",
        (0.0, 1.9),
        (0.0, 1.8),
        (0.1, 0.15, 0.0, 0.0),
        lambda p: p.vector(0.0, 0.0, p.ball((0, -64, 85), (26, 17, 28))),
    ),
    Trait(
        "interpupillary_distance",
        (64.2, 3.4),
        (61.6, 3.3),
        (0.45, -0.1, 0.1, 0.05),
        lambda p: p.vector(0.5 * p.ball((33, 0, 74), (20, 26, 34))),
    ),
    Trait(
        "fissure_length",
        (30.0, 1.3),
        (29.4, 1.3),
        (0.2, 0.0, 0.0, 0.0),
        lambda p: p.vector(
            (p.far - 31.2) / 15.5 * p.ball((31, 0, 78), (13, 11, 14)) * np.sign(p.far)
        ),
        eye=True,
    ),
    Trait(
        "upper_lid_opening",
        (4.7, 0.8),
        (5.2, 0.8),
        (0.0, 0.0, -0.1, -0.15),
        lambda p: _lid(p, upper=True),
        eye=True,
    ),
    Trait(
        "lower_lid_opening",
        (4.4, 0.6),
        (4.4, 0.6),
        (0.0, 0.0, -0.05, -0.1),
        lambda p: _lid(p, upper=False),
        eye=True,
    ),
    Trait(
        "canthal_tilt",
        (0.0, 1.2),
        (0.6, 1.2),
        (0.0, 0.0, -0.1, 0.0),
        lambda p: p.vector(0.0, (p.far - 31.2) / 14.5 * p.ball((31, 0, 76), (15, 12, 16))),
        eye=True,
    ),
    Trait(
        "eye_height",
        (0.0, 1.6),
        (0.0, 1.5),
        (0.0, 0.2, 0.0, 0.0),
        lambda p: p.vector(0.0, p.ball((31, 0, 74), (18, 18, 28))),
    ),
    Trait(
        "eye_depth",
        (0.6, 1.6),
        (-0.6, 1.5),
        (0.0, 0.1, 0.3, -0.1),
        lambda p: p.vector(0.0, 0.0, -p.ball((32, -1, 74), (18, 15, 28))),
    ),
    Trait(
        "upper_lid_fold",
        (0.3, 0.8),
        (-0.3, 0.8),
        (0.0, 0.0, 0.1, 0.2),
        lambda p: p.vector(
            0.0, -0.7 * p.ball((33, 9, 82), (12, 4, 9)), p.ball((33, 9, 82), (12, 4, 9))
        ),
    ),
    Trait(
        "under_eye_fullness",
        (0.0, 0.8),
        (0.0, 0.8),
        (0.0, 0.0, 0.0, 0.3),
        lambda p: p.vector(0.0, 0.0, p.ball((30, -13, 80), (13, 5, 12))),
    ),
    Trait(
        "brow_ridge",
        (1.0, 1.2),
        (-1.0, 1.0),
        (0.05, 0.1, 0.5, -0.1),
        lambda p: p.vector(0.0, 0.0, p.ball((15, 15, 94), (19, 7.5, 20))),
    ),
    Trait(
        "brow_height",
        (-1.2, 1.9),
        (1.2, 1.9),
        (0.0, 0.1, -0.35, 0.0),
        lambda p: p.vector(0.0, p.ball((24, 17, 88), (22, 8, 24))),
    ),
    Trait(
        "forehead_slope",
        (1.9, 3.6),
        (-1.9, 3.4),
        (0.1, 0.1, 0.35, 0.0),
        lambda p: p.vector(0.0, 0.0, -smoothstep(p.y, 22.0, 95.0) * smoothstep(p.z, 0.0, 60.0)),
    ),
    Trait(
        "forehead_bossing",
        (-0.6, 1.5),
        (0.6, 1.5),
        (0.0, 0.0, -0.3, 0.0),
        lambda p: p.vector(0.0, 0.0, p.ball((22, 58, 82), (26, 18, 26))),
    ),
    Trait(
        "temple_fullness",
        (0.0, 1.5),
        (0.0, 1.5),
        (0.1, -0.1, 0.0, 0.45),
        lambda p: p.vector(p.ball((64, 14, 45), (18, 18, 22))),
    ),
    Trait(
        "cheekbone_forward",
        (-0.2, 1.8),
        (0.2, 1.7),
        (0.05, 0.0, 0.0, 0.1),
        lambda p: p.vector(
            0.3 * p.ball((44, -22, 70), (17, 12, 26)), 0.0, p.ball((44, -22, 70), (17, 12, 26))
        ),
    ),
    Trait(
        "cheek_fullness",
        (-0.4, 2.2),
        (0.4, 2.2),
        (0.05, -0.15, 0.0, 0.75),
        lambda p: p.vector(
            0.8 * p.ball((50, -52, 55), (18, 17, 34)),
            0.0,
            0.55 * p.ball((46, -52, 60), (16, 17, 34)),
        ),
    ),
    Trait(
        "nasolabial_fold",
        (0.1, 0.7),
        (-0.1, 0.6),
        (0.0, 0.0, 0.1, 0.3),
        lambda p: p.vector(
            0.0,
            0.0,
            p.ball((33, -52, 84), (6, 11, 14)) - 0.8 * p.ball((24, -54, 88), (3.5, 10, 12)),
        ),
    ),
    Trait(
        "chin_projection",
        (0.9, 2.6),
        (-0.9, 2.4),
        (0.1, 0.0, 0.35, -0.1),
        lambda p: p.vector(0.0, 0.0, p.ball((0, -100, 86), (22, 14, 24))),
    ),
    Trait(
        "chin_breadth",
        (34.0, 4.0),
        (30.0, 3.4),
        (0.15, -0.2, 0.45, 0.1),
        lambda p: p.vector(p.far / 36.0 * p.ball((17, -102, 80), (14, 13, 22))),
    ),
    Trait(
        "mentolabial_depth",
        (0.2, 1.0),
        (-0.2, 1.0),
        (0.0, -0.2, 0.2, 0.0),
        lambda p: p.vector(0.0, 0.0, -p.ball((0, -84, 92), (18, 6, 12))),
    ),
    Trait(
        "gonial_drop",
        (2.2, 4.0),
        (-2.2, 3.8),
        (0.15, 0.1, 0.45, 0.1),
        lambda p: p.vector(0.0, -p.ball((52, -76, 12), (18, 22, 26))),
    ),
    Trait(
        "jaw_depth",
        (0.8, 3.2),
        (-0.8, 3.0),
        (0.3, 0.1, 0.2, 0.0),
        lambda p: p.vector(0.0, 0.0, p.below(-20.0, -80.0) * smoothstep(p.z, 10.0, 70.0)),
    ),
    Trait(
        "submental_fullness",
        (0.2, 3.2),
        (-0.2, 3.0),
        (0.05, -0.1, 0.0, 0.8),
        lambda p: p.vector(
            0.0, -p.ball((0, -122, 45), (32, 15, 24)), 0.5 * p.ball((0, -126, 40), (32, 17, 20))
        ),
    ),
    Trait(
        "jowl",
        (0.1, 1.4),
        (-0.1, 1.3),
        (0.0, 0.0, 0.0, 0.5),
        lambda p: p.vector(
            0.5 * p.ball((36, -94, 58), (12, 11, 18)), -p.ball((36, -96, 58), (12, 11, 18))
        ),
    ),
    Trait(
        "neck_breadth",
        (122.0, 8.5),
        (104.0, 6.5),
        (0.3, -0.15, 0.4, 0.5),
        lambda p: p.vector(
            p.far / 112.0 * smoothstep(p.y, -85.0, -130.0) * smoothstep(p.z, 75.0, 45.0)
        ),
    ),
    Trait(
        "neck_depth",
        (124.0, 8.0),
        (109.0, 7.0),
        (0.3, -0.1, 0.35, 0.5),
        lambda p: p.vector(0.0, 0.0, (p.z + 18.0) / 108.0 * smoothstep(p.y, -118.0, -150.0)),
    ),
    Trait(
        "larynx",
        (2.2, 1.3),
        (-0.8, 0.6),
        (0.0, 0.0, 0.3, -0.2),
        lambda p: p.vector(0.0, 0.0, p.ball((0, -148, 34), (8, 10, 16))),
    ),
    Trait(
        "occiput",
        (0.0, 3.4),
        (0.0, 3.4),
        (0.0, 0.0, 0.0, 0.0),
        lambda p: p.vector(0.0, 0.0, -p.ball((0, 8, -104), (48, 34, 40))),
    ),
    Trait(
        "crown_flatness",
        (0.0, 3.0),
        (0.0, 3.0),
        (0.0, 0.0, 0.0, 0.0),
        lambda p: p.vector(0.0, p.ball((0, 100, -50), (60, 30, 34))),
    ),
    Trait(
        "ear_length",
        (63.4, 4.0),
        (59.0, 3.8),
        (0.25, 0.1, 0.2, 0.05),
        lambda p: p.vector(0.0, (p.y + 13.0) / 63.0 * _ear(p)),
    ),
    Trait(
        "ear_width",
        (36.2, 2.5),
        (34.0, 2.3),
        (0.2, 0.0, 0.1, 0.0),
        lambda p: p.vector(0.0, 0.0, (p.z + 5.0) / 36.0 * _ear(p)),
    ),
    Trait(
        "ear_protrusion",
        (18.5, 3.2),
        (17.5, 3.0),
        (0.05, 0.0, 0.0, 0.0),
        lambda p: p.vector(smoothstep(p.far, 72.0, 90.0) * _ear(p)),
    ),
    Trait(
        "ear_height",
        (0.0, 3.0),
        (0.0, 3.0),
        (0.0, 0.0, 0.0, 0.0),
        lambda p: p.vector(0.0, p.ball((74, -13, -10), (26, 38, 30))),
    ),
    Trait(
        "ear_lobe",
        (0.0, 2.0),
        (0.0, 2.0),
        (0.0, 0.0, 0.0, 0.0),
        lambda p: p.vector(0.0, -p.ball((76, -42, -6), (12, 9, 12)) * _ear(p)),
    ),
)
