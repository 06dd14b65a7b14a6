"""Named facial movements and the displacement each one makes (mm at full strength)."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from models.procedural.anatomy import smoothstep
from models.procedural.traits import Place, eye_frame

JAW_OPEN_DEG = 25.0

MovementField = Callable[[Place], Float[np.ndarray, "n 3"]]


def jaw_weight(place: Place) -> Float[np.ndarray, "n"]:
    """How much of the jaw's motion a point follows: 1 on chin and lower lip, 0 on the skull."""
    opening = np.sqrt(np.clip(1.0 - (place.far / 25.6) ** 2, 0.0, 1.0))
    reach = smoothstep(np.abs(place.lip), 0.0, 30.0)
    sign = np.sign(place.lip)
    lower = 0.5 - 0.5 * sign * (opening + (1.0 - opening) * reach)
    # around the chewing muscle and the ear the skin hardly follows
    back = smoothstep(place.z, -12.0, 42.0)
    throat = smoothstep(place.y, -158.0, -112.0)
    hidden = smoothstep(place.z, 48.0, 62.0)  # the far end of the mouth's bag
    bag = (np.abs(place.lip) < 14.0) & (place.far < 26.0) & (place.z < 90.0) & (place.z > 55.0)
    lower = np.where(bag, 0.5 + (lower - 0.5) * hidden, lower)
    return lower * back * throat


def _upper(p: Place) -> Float[np.ndarray, "n"]:
    """1 on the upper lip and above, 0 on the lower lip, 0 at the corners."""
    return np.clip(1.0 - 2.0 * jaw_weight(p), 0.0, 1.0)


def _lower(p: Place) -> Float[np.ndarray, "n"]:
    return np.clip(2.0 * jaw_weight(p) - 1.0, 0.0, 1.0)


def _lips(p: Place, wide: float = 30.0, tall: float = 17.0) -> Float[np.ndarray, "n"]:
    """The muscle around the mouth, the bag's mouth included."""
    return p.ball((0, -65, 92), (wide, tall, 26)) * smoothstep(p.z, 45.0, 80.0)


def _smile(p: Place) -> Float[np.ndarray, "n 3"]:
    corner = p.ball((27, -65, 84), (15, 13, 24))
    cheek = p.ball((43, -33, 72), (15, 13, 24))
    fold = p.ball((22, -50, 90), (5, 10, 14))
    taut = p.ball((6, -60, 95), (14, 9, 18)) * _upper(p)
    outward = smoothstep(p.far, 0.0, 24.0)
    return p.vector(
        9.0 * corner * outward + 1.5 * cheek,
        7.6 * corner * outward**1.6 + 4.5 * cheek + 2.6 * taut,
        -6.5 * corner * outward + 4.0 * cheek - 1.8 * fold - 1.6 * taut,
    )


def _pucker(p: Place) -> Float[np.ndarray, "n 3"]:
    window = _lips(p, 30.0, 19.0)
    centre = _lips(p, 17.0, 12.0)
    # the red of both lips swells and turns outward
    swell = (
        np.sign(p.lip) * smoothstep(np.abs(p.lip), 0.3, 9.0) * smoothstep(np.abs(p.lip), 24.0, 9.0)
    )
    side = 0.8 * p.bell("x", 15.0, 7.0) * smoothstep(p.z, 62.0, 78.0)
    return p.vector(
        -0.46 * p.far * window, 2.8 * swell * (centre + side), 8.5 * centre - 1.0 * window
    )


def _funnel(p: Place) -> Float[np.ndarray, "n 3"]:
    window, centre = _lips(p, 30.0, 17.0), _lips(p, 15.0, 14.0)
    part = 4.0 * _upper(p) * p.bell("lip", 3.0, 8.0) - 5.0 * _lower(p) * p.bell("lip", -3.0, 8.0)
    return p.vector(-0.30 * p.far * window, part * smoothstep(p.z, 55.0, 80.0), 7.0 * centre)


def _lip_raise(p: Place) -> Float[np.ndarray, "n 3"]:
    window = p.ball((11, -58, 94), (10, 11, 18)) * _upper(p)
    fold = p.ball((22, -44, 88), (8, 9, 14))
    return p.vector(0.6 * window, 6.0 * window + 2.2 * fold, 1.0 * window + 1.2 * fold)


def _lip_lower(p: Place) -> Float[np.ndarray, "n 3"]:
    window = p.ball((11, -71, 93), (11, 12, 18)) * _lower(p)
    return p.vector(0.6 * window, -6.5 * window, 0.4 * window)


def _press(p: Place) -> Float[np.ndarray, "n 3"]:
    height = np.abs(p.lip)
    thin = smoothstep(height, 0.6, 7.5) * smoothstep(height, 22.0, 8.0) * p.mouth_taper
    window = smoothstep(p.z, 70.0, 82.0)
    return p.vector(
        0.0,
        -np.sign(p.lip) * 3.2 * thin * window,
        -2.4 * np.exp(-0.5 * (height / 4.5) ** 2) * p.mouth_taper * window,
    )


def _brow(p: Place, centre: float, width: float) -> Float[np.ndarray, "n"]:
    brow = p.ball((centre, 18, 90), (width, 9, 26))
    forehead = p.ball((centre, 42, 88), (width * 1.3, 16, 30))
    return brow + 0.45 * forehead


def _brow_lower(p: Place) -> Float[np.ndarray, "n 3"]:
    window = p.ball((15, 15, 90), (14, 8, 22))
    knit = p.ball((9, 14, 95), (8, 8, 16))
    return p.vector(-3.6 * knit, -6.0 * window, 1.6 * knit)


def _squint(p: Place) -> Float[np.ndarray, "n 3"]:
    distance, _ = eye_frame(p)
    under = p.ball((31, -9, 80), (15, 6, 12)) * smoothstep(distance, 12.0, 13.0)
    crow = p.ball((50, -3, 66), (8, 8, 14))
    return p.vector(-1.6 * crow, 2.4 * under, 1.2 * under)


def _wrinkle(p: Place) -> Float[np.ndarray, "n 3"]:
    wing = p.ball((13, -37, 98), (8, 9, 14))
    bridge = p.ball((7, -4, 96), (9, 10, 14))
    tip = p.ball((0, -37, 110), (9, 8, 12))
    return p.vector(1.0 * wing, 4.2 * wing - 2.0 * bridge + 1.6 * tip, 0.8 * bridge)


def _puff(p: Place) -> Float[np.ndarray, "n 3"]:
    cheek = p.ball((44, -56, 66), (15, 16, 30))
    lips = p.ball((0, -62, 94), (24, 14, 16)) * smoothstep(p.z, 78.0, 90.0)
    return p.vector(8.0 * cheek, 0.0, 5.5 * cheek + 1.5 * lips)


# name -> (field, one-sided). A one-sided movement yields "<name>_left" and "<name>_right".
_MOVEMENTS: dict[str, tuple[MovementField, bool]] = {
    "jaw_forward": (lambda p: p.vector(0.0, 0.0, 5.0 * jaw_weight(p)), False),
    "jaw_lateral": (lambda p: np.stack([6.0 * jaw_weight(p), 0.0 * p.x, 0.0 * p.x], axis=1), False),
    "smile": (_smile, True),
    "frown": (
        lambda p: p.vector(
            1.5 * p.ball((27, -67, 84), (11, 12, 20)),
            -7.5 * p.ball((27, -67, 84), (11, 12, 20)) * smoothstep(p.far, 4.0, 24.0),
            -1.0 * p.ball((27, -67, 84), (11, 12, 20)),
        ),
        True,
    ),
    "stretch": (
        lambda p: p.vector(
            8.0 * p.ball((28, -66, 84), (16, 14, 24)) * smoothstep(p.far, 0.0, 24.0),
            -1.5 * p.ball((28, -70, 84), (16, 12, 24)),
            -5.0 * p.ball((28, -66, 84), (14, 13, 24)) * smoothstep(p.far, 0.0, 24.0),
        ),
        True,
    ),
    "dimple": (
        lambda p: p.vector(
            2.0 * p.ball((30, -65, 80), (8, 9, 16)), 0.0, -3.0 * p.ball((30, -65, 80), (8, 9, 16))
        ),
        True,
    ),
    "lip_raise": (_lip_raise, True),
    "lip_lower": (_lip_lower, True),
    "pucker": (_pucker, False),
    "funnel": (_funnel, False),
    "lip_press": (_press, False),
    "lip_roll_upper": (
        lambda p: p.vector(
            0.0,
            0.0,
            -2.6
            * p.bell("lip", 3.0, 4.0)
            * p.mouth_taper
            * smoothstep(p.z, 84.0, 92.0)
            * _upper(p),
        ),
        False,
    ),
    "lip_roll_lower": (
        lambda p: p.vector(
            0.0,
            0.0,
            -2.8
            * p.bell("lip", -3.5, 4.5)
            * p.mouth_taper
            * smoothstep(p.z, 84.0, 92.0)
            * _lower(p),
        ),
        False,
    ),
    "mouth_lateral": (
        lambda p: np.stack([7.0 * _lips(p, 28.0, 15.0), 0.0 * p.x, 0.0 * p.x], axis=1),
        False,
    ),
    "chin_raise": (
        lambda p: p.vector(
            0.0,
            3.4 * _lips(p, 20.0, 14.0) + 2.5 * p.ball((0, -92, 92), (18, 9, 16)),
            1.8 * p.ball((0, -74, 94), (16, 7, 14)) + 1.5 * p.ball((0, -96, 92), (14, 8, 14)),
        ),
        False,
    ),
    "cheek_puff": (_puff, True),
    "cheek_suck": (lambda p: -0.6 * _puff(p), False),
    "cheek_raise": (
        lambda p: p.vector(
            1.0 * p.ball((44, -22, 72), (15, 11, 22)),
            4.2 * p.ball((43, -21, 74), (16, 11, 22)),
            2.4 * p.ball((43, -21, 74), (15, 9, 22)),
        ),
        True,
    ),
    "brow_raise_inner": (
        lambda p: p.vector(0.0, 7.0 * _brow(p, 12.0, 11.0), 0.8 * _brow(p, 12.0, 11.0)),
        False,
    ),
    "brow_raise_outer": (lambda p: p.vector(0.0, 7.5 * _brow(p, 36.0, 14.0), 0.0), True),
    "brow_lower": (_brow_lower, True),
    "squint": (_squint, True),
    "nose_wrinkle": (_wrinkle, True),
    "nostril_flare": (
        lambda p: p.vector(
            2.4 * p.ball((14, -39, 96), (7, 7, 12)), 0.6 * p.ball((14, -39, 96), (7, 7, 12))
        ),
        False,
    ),
    "lip_tighten": (
        lambda p: p.vector(-0.16 * p.far * _lips(p, 26.0, 12.0), 0.0, -0.8 * _lips(p, 22.0, 8.0)),
        False,
    ),
    "neck_tighten": (
        lambda p: p.vector(
            3.0 * p.ball((38, -128, 22), (13, 26, 26)),
            0.0,
            2.5 * p.ball((24, -132, 34), (14, 24, 22)),
        ),
        False,
    ),
}
# Movements that are not a fixed displacement: rotations about the eye and about the jaw's hinge.
_ROTATIONS = ("jaw_open", "blink_left", "blink_right", "eye_wide_left", "eye_wide_right")
LINEAR_UNITS: tuple[str, ...] = tuple(
    unit
    for name, (_, one_sided) in _MOVEMENTS.items()
    for unit in ((f"{name}_left", f"{name}_right") if one_sided else (name,))
)
UNITS: tuple[str, ...] = _ROTATIONS + LINEAR_UNITS
UNIT_COUNT = len(UNITS)
# Both signs make sense for these; all others are activations in [0, 1].
SIGNED = ("jaw_lateral", "mouth_lateral", "jaw_forward")

PROTOTYPES: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {
        "smile": 1.0,
        "cheek_raise": 0.7,
        "squint": 0.5,
        "lip_raise": 0.25,
        "lip_lower": 0.12,
        "jaw_open": 0.06,
    },
    "smile_closed": {"smile": 0.75, "cheek_raise": 0.5, "squint": 0.3, "dimple": 0.3},
    "laugh": {
        "smile": 0.9,
        "cheek_raise": 1.0,
        "squint": 0.8,
        "lip_raise": 0.6,
        "lip_lower": 0.4,
        "jaw_open": 0.5,
    },
    "mouth_open": {"jaw_open": 0.8, "lip_tighten": 0.35},
    "surprise": {
        "jaw_open": 0.75,
        "brow_raise_inner": 1.0,
        "brow_raise_outer": 1.0,
        "eye_wide": 0.9,
        "funnel": 0.25,
        "lip_tighten": 0.3,
    },
    "anger": {
        "brow_lower": 1.0,
        "squint": 0.5,
        "lip_press": 0.7,
        "nostril_flare": 0.7,
        "chin_raise": 0.35,
        "lip_tighten": 0.5,
    },
    "sadness": {
        "brow_raise_inner": 0.9,
        "frown": 1.0,
        "chin_raise": 0.45,
        "blink": 0.22,
        "brow_lower": 0.25,
    },
    "disgust": {
        "nose_wrinkle": 1.0,
        "lip_raise": 0.8,
        "brow_lower": 0.6,
        "squint": 0.6,
        "frown": 0.3,
    },
    "fear": {
        "brow_raise_inner": 0.9,
        "brow_raise_outer": 0.5,
        "eye_wide": 0.9,
        "stretch": 0.8,
        "jaw_open": 0.3,
        "neck_tighten": 0.6,
    },
    "kiss": {"pucker": 1.0, "lip_tighten": 0.3},
    "funnel": {"funnel": 1.0, "jaw_open": 0.2},
    "blink": {"blink": 1.0},
    "cheek_puff": {"cheek_puff": 1.0, "lip_press": 0.3},
    "sneer_left": {
        "nose_wrinkle_left": 0.8,
        "lip_raise_left": 0.9,
        "squint_left": 0.5,
        "brow_lower_left": 0.4,
    },
    "jaw_left": {"jaw_lateral": 0.9, "jaw_open": 0.15},
    "shout": {
        "jaw_open": 1.0,
        "lip_raise": 0.4,
        "lip_lower": 0.5,
        "brow_lower": 0.6,
        "nose_wrinkle": 0.4,
        "squint": 0.5,
    },
}


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """One facial expression: a weight per unit of ``UNITS`` (1 is full strength)."""

    weights: Float[np.ndarray, "u"]

    def __post_init__(self) -> None:
        """Check the number of weights."""
        if self.weights.shape != (UNIT_COUNT,):
            raise ValueError(
                f"Expression.weights must have {UNIT_COUNT} entries, got {self.weights.shape}; "
                "build it with Expression.of(name=weight, ...)"
            )

    @classmethod
    def of(cls, **units: float) -> "Expression":
        """An expression from unit names; a name without its side sets both sides.

        Raises:
            ValueError: A name is not a unit.
        """
        weights = np.zeros(UNIT_COUNT)
        for name, weight in units.items():
            names = [name] if name in UNITS else [f"{name}_left", f"{name}_right"]
            if names[0] not in UNITS:
                raise ValueError(f"unknown expression unit {name!r}; expected one of {UNITS}")
            for unit in names:
                weights[UNITS.index(unit)] = weight
        return cls(weights)

    @classmethod
    def prototype(cls, name: str, strength: float = 1.0) -> "Expression":
        """A named expression of ``PROTOTYPES``, scaled."""
        if name not in PROTOTYPES:
            raise ValueError(f"unknown prototype {name!r}; expected one of {tuple(PROTOTYPES)}")
        return cls(cls.of(**PROTOTYPES[name]).weights * strength)

    def weight(self, unit: str) -> float:
        """The weight of one unit."""
        return float(self.weights[UNITS.index(unit)])


def sample_expression(rng: np.random.Generator, strength: float = 1.0) -> Expression:
    """Draw a face: now and then nearly neutral, else a prototype with traces of another.

    Args:
        rng: The item's own generator.
        strength: Scales everything; 0 is neutral.
    """
    weights = np.zeros(UNIT_COUNT)
    names = list(PROTOTYPES)
    main, trace = rng.choice(len(names), size=2)
    weights += Expression.prototype(names[main]).weights * rng.uniform(0.3, 1.0)
    weights += Expression.prototype(names[trace]).weights * rng.uniform(0.0, 0.35)
    extra = rng.random(UNIT_COUNT) < 0.08
    weights += np.where(extra, rng.uniform(0.0, 0.5, UNIT_COUNT), 0.0)
    weights *= 0.2 if rng.random() < 0.2 else 1.0
    for name in SIGNED:
        weights[UNITS.index(name)] = 0.5 * rng.standard_normal() * (rng.random() < 0.3)
    return limited(weights * strength)


def limited(weights: Float[np.ndarray, "u"]) -> Expression:
    """Clip weights to what a face can do and drop contradictions."""
    w = np.clip(weights, 0.0, 1.0)
    for name in SIGNED:
        index = UNITS.index(name)
        w[index] = np.clip(weights[index], -1.0, 1.0)
    w[UNITS.index("jaw_forward")] = max(w[UNITS.index("jaw_forward")], -0.3)

    def at(name: str) -> int:
        return UNITS.index(name)

    mouth = max(w[at("pucker")], w[at("funnel")])
    for name in ("smile", "stretch", "frown"):
        for side in ("left", "right"):
            w[at(f"{name}_{side}")] *= 1.0 - 0.8 * mouth
    opened = max(w[at("jaw_open")], w[at("funnel")])
    for name in ("lip_press", "chin_raise", "lip_roll_upper", "lip_roll_lower"):
        w[at(name)] *= 1.0 - min(1.0, 2.0 * opened)
    w[at("funnel")] *= 1.0 - 0.7 * w[at("pucker")]
    for side in ("left", "right"):
        w[at(f"eye_wide_{side}")] *= 1.0 - w[at(f"blink_{side}")]
    return Expression(w)


def movement_basis(points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "u n 3"]:
    """Displacement (mm) at full strength of each of ``LINEAR_UNITS`` at canonical points.

    The eyeball and the rim of the lids keep still: ``eye_frame``'s weight damps every field but
    the eye's own.
    """
    place = Place(points_mm)
    distance, _ = eye_frame(place)
    free = smoothstep(distance, 12.4, 22.0)
    left = smoothstep(place.x, -7.0, 7.0)
    blocks = []
    for name, (field, one_sided) in _MOVEMENTS.items():
        moved = field(place)
        if name != "squint":
            moved = moved * free[:, None]
        if one_sided:
            blocks += [moved * left[:, None], moved * (1.0 - left)[:, None]]
        else:
            blocks.append(moved)
    return np.stack(blocks)
