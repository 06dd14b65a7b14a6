"""Who a head belongs to: correlated anthropometric traits and a smooth residual field."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from models.procedural.traits import TRAITS, Place, eye_frame

TRAIT_COUNT = len(TRAITS)
RESIDUAL_COUNT = 280
SHAPE_COUNT = TRAIT_COUNT + RESIDUAL_COUNT
SEXES = ("woman", "man")

_RESIDUAL_RMS_MM = 1.0
_EYE_POINT_MM = np.array([[31.2, 0.0, 80.0], [-31.2, 0.0, 80.0]])


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """One person's head shape.

    Attributes:
        shape: Coefficients of the shape basis, sigma units: first the named traits (relative
            to the mean of women and men, in units of the pooled deviation, already correlated),
            then the residual field. The head is linear in them.
        sex: ``"woman"`` or ``"man"``.
        age_years: Age; drives folds, jowls and skin.
        fat: Standard score of facial fat.
    """

    shape: Float[np.ndarray, "k"]
    sex: str = "woman"
    age_years: float = 35.0
    fat: float = 0.0

    def __post_init__(self) -> None:
        """Check the shape vector and the sex."""
        if self.shape.shape != (SHAPE_COUNT,):
            raise ValueError(
                f"Identity.shape must have {SHAPE_COUNT} entries, got {self.shape.shape}; "
                "build it with sample_identity or Identity.mean"
            )
        if self.sex not in SEXES:
            raise ValueError(f"Identity.sex must be one of {SEXES}, got {self.sex!r}")

    @classmethod
    def mean(cls, sex: str | None = None) -> "Identity":
        """The mean head: of both sexes, or of one."""
        shape = np.zeros(SHAPE_COUNT)
        if sex is not None:
            shape[:TRAIT_COUNT] = _sex_offset(sex)
        return cls(shape=shape, sex=sex or "woman")

    def measurement(self, name: str) -> float:
        """The trait's value in its own unit (mm)."""
        index = [trait.name for trait in TRAITS].index(name)
        trait = TRAITS[index]
        return 0.5 * (trait.man[0] + trait.woman[0]) + float(self.shape[index]) * _pooled(index)


def _pooled(index: int) -> float:
    """Within-sex standard deviation (mm), averaged over the sexes."""
    trait = TRAITS[index]
    return float(np.sqrt(0.5 * (trait.man[1] ** 2 + trait.woman[1] ** 2)))


def _sex_offset(sex: str) -> Float[np.ndarray, "t"]:
    half = np.array([0.5 * (t.man[0] - t.woman[0]) / _pooled(k) for k, t in enumerate(TRAITS)])
    return half if sex == "man" else -half


def _age_shift(age_years: float) -> Float[np.ndarray, "t"]:
    """Mean change of the traits with age, sigma units (zero at 35 years)."""
    decades = (age_years - 35.0) / 10.0
    per_decade = {
        "nasolabial_fold": 0.30,
        "jowl": 0.30,
        "submental_fullness": 0.18,
        "under_eye_fullness": 0.2,
        "ear_length": 0.22,
        "ear_lobe": 0.2,
        "upper_vermilion": -0.22,
        "lower_vermilion": -0.16,
        "upper_lid_opening": -0.16,
        "upper_lid_fold": 0.2,
        "nose_length": 0.12,
        "nose_tip_upturn": -0.18,
        "mouth_corner_height": -0.18,
        "upper_lip_height": 0.2,
        "brow_height": -0.12,
        "temple_fullness": -0.16,
        "cheek_fullness": -0.06,
    }
    return np.array([per_decade.get(trait.name, 0.0) for trait in TRAITS]) * decades


def sample_identity(rng: np.random.Generator, sex: str | None = None) -> Identity:
    """Draw one adult: sex, age, fat, traits correlated through four factors, residual field.

    Args:
        rng: The item's own generator.
        sex: Fix the sex; None draws it evenly.
    """
    drawn_sex = SEXES[int(rng.integers(2))] if sex is None else sex
    age = float(np.clip(18.0 + rng.gamma(2.4, 9.0), 18.0, 78.0))
    factors = rng.standard_normal(4)
    loadings = np.array([trait.loadings for trait in TRAITS])
    unique = np.sqrt(1.0 - (loadings**2).sum(axis=1))
    traits = loadings @ factors + unique * rng.standard_normal(TRAIT_COUNT)
    traits = np.clip(traits, -2.6, 2.6) + _sex_offset(drawn_sex) + _age_shift(age)
    residual = rng.standard_normal(RESIDUAL_COUNT)
    return Identity(
        shape=np.concatenate([traits, residual]),
        sex=drawn_sex,
        age_years=age,
        fat=float(factors[3]),
    )


@functools.cache
def _waves() -> tuple[Float[np.ndarray, "r 3"], Float[np.ndarray, "r"], Float[np.ndarray, "r 3"]]:
    """Wave vectors (rad/mm), phases and displacement directions (mm) of the residual field."""
    rng = np.random.default_rng(7)
    heading = rng.standard_normal((RESIDUAL_COUNT, 3))
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    wavelength = 190.0 / (1.0 + 5.0 * (np.arange(RESIDUAL_COUNT) + 0.5) / RESIDUAL_COUNT)
    amplitude = wavelength**1.5
    amplitude *= _RESIDUAL_RMS_MM * np.sqrt(2.0) / np.sqrt((amplitude**2).sum())
    direction = rng.standard_normal((RESIDUAL_COUNT, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    phase = rng.uniform(0.0, 2.0 * np.pi, RESIDUAL_COUNT)
    return (
        heading * (2.0 * np.pi / wavelength)[:, None],
        phase,
        direction * amplitude[:, None],
    )


def residual_field(points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "r n 3"]:
    """The residual basis (mm per sigma): plane waves, a smooth and slightly lopsided field.

    Three quarters of the variance is mirror-symmetric, the rest is asymmetry.
    """
    vector, phase, direction = _waves()
    flip = np.array([-1.0, 1.0, 1.0])
    here = np.cos(points_mm @ vector.T + phase)
    there = np.cos((points_mm * flip) @ vector.T + phase)
    own = here.T[:, :, None] * direction[:, None, :]
    other = there.T[:, :, None] * (direction * flip)[:, None, :]
    even, odd = own + other, own - other
    return np.sqrt(0.5) * (np.sqrt(0.75) * even + np.sqrt(0.25) * odd)


def identity_basis(
    points_mm: Float[np.ndarray, "n 3"], *, rigid_eyes: bool = True
) -> Float[np.ndarray, "k n 3"]:
    """Displacement (mm) per sigma of every shape coefficient at canonical points.

    Around the eyes all fields that are not about the eye become one translation per eye, so
    that lids stay wrapped around a rigid eyeball. Widths of the skull leave the eyes' distance
    alone: that is a measurement of its own, and summing both would double its deviation.
    """
    place = Place(points_mm)
    socket = Place(_EYE_POINT_MM)
    _, weight = eye_frame(place)
    if not rigid_eyes:
        weight = np.zeros_like(weight)
    which = (points_mm[:, 0] < 0.0).astype(int)
    blocks = []
    for index, trait in enumerate(TRAITS):
        field = trait.field(place)
        if not trait.eye:
            rigid = trait.field(socket)[which]
            field = field + weight[:, None] * (rigid - field)
        blocks.append(field * _pooled(index))
    spacing = [trait.name for trait in TRAITS].index("interpupillary_distance")
    spread = _eye_spread(socket)
    for index in range(TRAIT_COUNT):
        if index != spacing:
            blocks[index] = blocks[index] - spread[index] / spread[spacing] * blocks[spacing]
    residual = residual_field(points_mm)
    rigid = residual_field(_EYE_POINT_MM)[:, which]
    residual += weight[None, :, None] * (rigid - residual)
    return np.concatenate([np.stack(blocks), residual])


def _eye_spread(socket: Place) -> Float[np.ndarray, "t"]:
    """How much each trait, per sigma, moves the eyes apart (mm, half the distance)."""
    return np.array(
        [
            0.0
            if trait.eye
            else _pooled(index)
            * np.ptp(trait.field(socket)[:, 0])
            / 2.0
            * np.sign(trait.field(socket)[0, 0])
            for index, trait in enumerate(TRAITS)
        ]
    )


def shape_moments() -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k k"]]:
    """Mean and covariance of ``Identity.shape`` over the sampled population (sexes pooled).

    Ages shift the traits a little; the shift's own variance is included, clipping is not.
    """
    loadings = np.array([trait.loadings for trait in TRAITS])
    unique = 1.0 - (loadings**2).sum(axis=1)
    ages = np.clip(18.0 + np.random.default_rng(3).gamma(2.4, 9.0, 4000), 18.0, 78.0)
    slope = _age_shift(45.0)
    decades = (ages - 35.0) / 10.0
    offset = _sex_offset("man")
    covariance = np.eye(SHAPE_COUNT)
    covariance[:TRAIT_COUNT, :TRAIT_COUNT] = (
        loadings @ loadings.T
        + np.diag(unique)
        + np.outer(offset, offset)
        + np.outer(slope, slope) * decades.var()
    )
    mean = np.zeros(SHAPE_COUNT)
    mean[:TRAIT_COUNT] = slope * decades.mean()
    return mean, covariance
