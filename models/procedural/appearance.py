"""Who a synthetic person looks like apart from geometry: skin, eyes, brows, lips, beard, hair.

Every number here is an estimate of ours, chosen by looking at renders. Colours are linear RGB
albedo, lengths are millimetres in canonical coordinates (the mean neutral head's own position).
"""

import dataclasses
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float

HairStyle = Literal[
    "bald", "receding", "buzz", "short", "side_part", "curly", "fringe", "bob", "long", "bun",
    "ponytail", "afro",
]  # fmt: skip
BeardStyle = Literal["none", "stubble", "moustache", "goatee", "full"]

HAIR_STYLES: tuple[HairStyle, ...] = (
    "bald", "receding", "buzz", "short", "side_part", "curly", "fringe", "bob", "long", "bun",
    "ponytail", "afro",
)  # fmt: skip
BEARD_STYLES: tuple[BeardStyle, ...] = ("none", "stubble", "moustache", "goatee", "full")

_MELANIN = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
_TONES_SRGB = np.array(
    [
        [233, 199, 178],
        [222, 182, 154],
        [200, 158, 130],
        [160, 115, 89],
        [116, 77, 55],
        [76, 50, 38],
    ],
    dtype=np.float64,
)
_HAEMOGLOBIN = np.array([-0.02, -0.16, -0.12])
_HAIR_SRGB = {
    "black": (24, 20, 19),
    "dark_brown": (46, 32, 24),
    "brown": (80, 54, 36),
    "chestnut": (96, 52, 30),
    "auburn": (124, 58, 30),
    "ginger": (172, 92, 42),
    "dark_blonde": (142, 108, 68),
    "blonde": (196, 160, 106),
    "grey": (140, 138, 136),
    "white": (205, 203, 198),
}
_IRIS_SRGB = {
    "dark_brown": ((46, 26, 16), (62, 36, 20)),
    "brown": ((84, 50, 26), (102, 64, 34)),
    "amber": ((138, 92, 44), (116, 76, 36)),
    "hazel": ((128, 96, 50), (92, 96, 60)),
    "green": ((128, 124, 70), (94, 118, 84)),
    "grey": ((128, 134, 132), (112, 128, 134)),
    "blue": ((118, 146, 166), (92, 128, 160)),
    "light_blue": ((150, 176, 192), (120, 156, 184)),
}


class Person(Protocol):
    """What appearance needs to know of an identity."""

    @property
    def sex(self) -> str:
        """``woman`` or ``man``."""
        ...

    @property
    def age_years(self) -> float:
        """Age in years."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Hair:
    """Scalp hair.

    Attributes:
        style: One of ``HAIR_STYLES``.
        colour: Albedo of the mid length.
        volume_mm: Thickness of the shell over the crown.
        length_mm: How far loose hair hangs below the ear.
        hairline_mm: Height of the hairline above the usual, at the midline.
        recession: 0..1, how far the temples have receded.
        parting: -1 (subject's right) .. 1 (left), where the hair divides.
        roughness: 0 sleek .. 1 frizzy.
        density: 0..1, how much scalp is covered.
        seed: Fixes strands.
    """

    style: HairStyle
    colour: Float[np.ndarray, "3"]
    volume_mm: float
    length_mm: float
    hairline_mm: float
    recession: float
    parting: float
    roughness: float
    density: float
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Beard:
    """Facial hair.

    Attributes:
        style: One of ``BEARD_STYLES``.
        colour: Albedo.
        density: 0..1 over the grown area.
        cheek_mm: Height of the cheek line above the usual.
        shadow: 0..1, bluish shaved shadow under the skin.
    """

    style: BeardStyle
    colour: Float[np.ndarray, "3"]
    density: float
    cheek_mm: float
    shadow: float


@dataclasses.dataclass(frozen=True, slots=True)
class Brows:
    """Eyebrows: colour, half-thickness, arch and height in mm, density 0..1, inner gap in mm."""

    colour: Float[np.ndarray, "3"]
    thickness_mm: float
    arch_mm: float
    height_mm: float
    inner_mm: float
    density: float


@dataclasses.dataclass(frozen=True, slots=True)
class Eyes:
    """Iris, pupil, sclera and lashes.

    Attributes:
        inner: Albedo near the pupil.
        outer: Albedo near the limbus.
        iris_mm: Iris radius.
        pupil_mm: Pupil radius.
        sclera: Albedo of the white.
        lash: 0..1, darkness and thickness of the lash line.
        liner: 0..1, make-up along the lids.
        shadow: Albedo factor of eye shadow over the upper lid.
        shadow_strength: 0..1.
    """

    inner: Float[np.ndarray, "3"]
    outer: Float[np.ndarray, "3"]
    iris_mm: float
    pupil_mm: float
    sclera: Float[np.ndarray, "3"]
    lash: float
    liner: float
    shadow: Float[np.ndarray, "3"]
    shadow_strength: float


@dataclasses.dataclass(frozen=True, slots=True)
class Skin:
    """Skin.

    Attributes:
        melanin: 0 (pale) .. 1 (very dark).
        haemoglobin: -1 (sallow) .. 1 (ruddy).
        tone: The albedo these two give.
        blotch: 0..1, uneven pigment.
        freckles: 0..1.
        pores: 0..1, fine texture.
        cheek_red: 0..1.
        nose_red: 0..1.
        eye_bags: 0..1, dark circles.
        wrinkles: 0..1.
        moles_mm: Canonical positions (m, 3).
        gloss: Specular strength, about 0.5..1.5.
        roughness: Of the specular lobe, 0.3..0.55.
        lip: Albedo of the vermilion.
        lip_gloss: 0..1.
        lip_height: Factor on the height of the vermilion.
    """

    melanin: float
    haemoglobin: float
    tone: Float[np.ndarray, "3"]
    blotch: float
    freckles: float
    pores: float
    cheek_red: float
    nose_red: float
    eye_bags: float
    wrinkles: float
    moles_mm: Float[np.ndarray, "m 3"]
    gloss: float
    roughness: float
    lip: Float[np.ndarray, "3"]
    lip_gloss: float
    lip_height: float


@dataclasses.dataclass(frozen=True, slots=True)
class Appearance:
    """One person's look, constant over all photographs of that person except the clothes.

    Attributes:
        skin: Skin.
        eyes: Eyes.
        brows: Eyebrows.
        beard: Facial hair.
        hair: Scalp hair.
        clothing: Albedo of the garment.
        neckline: 0 crew neck, 1 collar, 2 deep.
        seed: Fixes all skin noise.
    """

    skin: Skin
    eyes: Eyes
    brows: Brows
    beard: Beard
    hair: Hair
    clothing: Float[np.ndarray, "3"]
    neckline: int
    seed: int


def linear_from_srgb(srgb: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Linear RGB of sRGB in [0, 1] (IEC 61966-2-1)."""
    values = np.asarray(srgb, dtype=np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _linear(srgb_bytes: tuple[int, int, int]) -> Float[np.ndarray, "3"]:
    return linear_from_srgb(np.array(srgb_bytes, dtype=np.float64) / 255.0)


def skin_tone(melanin: float, haemoglobin: float) -> Float[np.ndarray, "3"]:
    """Albedo of skin in a two-pigment space.

    Log albedo is interpolated between six tones along melanin and shifted by haemoglobin
    (Beer-Lambert in spirit).

    Args:
        melanin: 0..1.
        haemoglobin: -1..1.

    Raises:
        ValueError: An argument outside its range.
    """
    if not (0.0 <= melanin <= 1.0 and -1.0 <= haemoglobin <= 1.0):
        raise ValueError(
            "skin_tone expected melanin in [0, 1] and haemoglobin in [-1, 1], got "
            f"{melanin} and {haemoglobin}; clip them before the call."
        )
    logs = np.log(linear_from_srgb(_TONES_SRGB / 255.0))
    tone = np.array([np.interp(melanin, _MELANIN, logs[:, c]) for c in range(3)])
    return np.asarray(np.exp(tone + _HAEMOGLOBIN * haemoglobin * (1.0 - 0.5 * melanin)))


def _hair_colour(melanin: float, age: float, rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    names = list(_HAIR_SRGB)[:8]
    if melanin > 0.55:
        weights = [0.75, 0.22, 0.03, 0, 0, 0, 0, 0]
    elif melanin > 0.3:
        weights = [0.40, 0.35, 0.15, 0.06, 0.02, 0, 0.02, 0]
    else:
        weights = [0.08, 0.20, 0.22, 0.10, 0.08, 0.08, 0.12, 0.12]
    probabilities = np.array(weights) / np.sum(weights)
    colour = _linear(_HAIR_SRGB[names[int(rng.choice(len(names), p=probabilities))]])
    grey = float(np.clip((age - rng.uniform(38, 68)) / 16.0, 0.0, 1.0))
    silver = _linear(_HAIR_SRGB["white" if rng.random() < 0.4 else "grey"])
    return np.asarray((1 - grey) * colour + grey * silver) * np.exp(rng.normal(0, 0.08))


def _hair_style(woman: bool, melanin: float, age: float, rng: np.random.Generator) -> HairStyle:
    weights: dict[str, float] = dict.fromkeys(HAIR_STYLES, 0.0)
    if woman:
        weights.update(
            long=0.30, bob=0.20, bun=0.13, ponytail=0.12, fringe=0.09, curly=0.08, short=0.05,
            afro=0.03,
        )  # fmt: skip
        if melanin > 0.6:
            weights.update(afro=0.2, bun=0.2, buzz=0.04)
    else:
        bald = float(np.clip((age - 30) / 60, 0, 0.5))
        weights.update(
            short=0.26, side_part=0.22, buzz=0.16, curly=0.10, fringe=0.06, long=0.04,
            bald=0.04 + 0.3 * bald, receding=0.04 + 0.6 * bald,
        )  # fmt: skip
        if melanin > 0.6:
            weights.update(buzz=0.4, side_part=0.04, afro=0.12, long=0.0)
    values = np.array([weights[s] for s in HAIR_STYLES])
    return HAIR_STYLES[int(rng.choice(len(HAIR_STYLES), p=values / values.sum()))]


def _sample_hair(woman: bool, melanin: float, age: float, rng: np.random.Generator) -> Hair:
    style = _hair_style(woman, melanin, age, rng)
    colour = _hair_colour(melanin, age, rng)
    volume = {
        "bald": 0.0, "receding": 5.0, "buzz": 2.5, "short": 12.0, "side_part": 17.0, "curly": 22.0,
        "fringe": 11.0, "bob": 15.0, "long": 14.0, "bun": 8.0, "ponytail": 8.0, "afro": 42.0,
    }[style]  # fmt: skip
    recession = float(rng.beta(2, 5)) if woman else float(rng.beta(2.5, 3))
    return Hair(
        style=style,
        colour=colour,
        volume_mm=volume * float(rng.uniform(0.8, 1.25)),
        length_mm=float(rng.uniform(20, 45) if style == "bob" else rng.uniform(90, 170)),
        hairline_mm=float(rng.normal(0.0 if woman else 2.0, 3.0)),
        recession=recession * (0.35 if woman else 0.5 + 0.5 * min(age / 60, 1)),
        parting=float(rng.choice([-0.5, 0.0, 0.5] if woman else [-0.6, 0.6])),
        roughness=float(rng.uniform(0.1, 0.6)) if style not in ("curly", "afro") else 1.0,
        density=float(np.clip(rng.normal(0.95, 0.08) - (0.1 if age > 60 else 0), 0.6, 1.0)),
        seed=int(rng.integers(2**31)),
    )


def _sample_beard(
    woman: bool, age: float, hair: Float[np.ndarray, "3"], rng: np.random.Generator
) -> Beard:
    style: BeardStyle = "none"
    shadow = 0.0
    draw = rng.random()
    if not woman and age >= 17:
        limits = (0.42, 0.68, 0.76, 0.84, 1.0)
        style = BEARD_STYLES[int(np.searchsorted(limits, draw))]
        shadow = float(rng.uniform(0.1, 0.7)) if style != "full" else 0.0
    warmth = np.exp(np.array([0.12, 0.0, -0.08]) * rng.uniform(0, 1))
    return Beard(
        style=style,
        colour=np.maximum(hair * warmth * 0.85, [0.034, 0.027, 0.023]),
        density=float(rng.uniform(0.55, 1.0)),
        cheek_mm=float(rng.normal(0, 3.5)),
        shadow=shadow,
    )


def _sample_eyes(woman: bool, melanin: float, rng: np.random.Generator) -> Eyes:
    names = list(_IRIS_SRGB)
    if melanin > 0.5:
        weights = [0.82, 0.16, 0.02, 0, 0, 0, 0, 0]
    elif melanin > 0.28:
        weights = [0.35, 0.35, 0.08, 0.10, 0.05, 0.03, 0.04, 0]
    else:
        weights = [0.08, 0.17, 0.07, 0.14, 0.13, 0.12, 0.20, 0.09]
    inner, outer = _IRIS_SRGB[names[int(rng.choice(8, p=np.array(weights) / np.sum(weights)))]]
    made_up = woman and rng.random() < 0.55
    return Eyes(
        inner=_linear(inner) * np.exp(rng.normal(0, 0.12)),
        outer=_linear(outer) * np.exp(rng.normal(0, 0.12)),
        iris_mm=float(rng.normal(5.9, 0.18)),
        pupil_mm=float(rng.uniform(1.6, 2.6)),
        sclera=_linear((200, 190, 183)) * (1.0 - 0.3 * melanin) * np.exp(rng.normal(0, 0.05)),
        lash=float(rng.uniform(0.7, 1.0) if woman else rng.uniform(0.35, 0.7)),
        liner=float(rng.uniform(0.3, 1.0)) if made_up else 0.0,
        shadow=np.exp(rng.normal(-0.35, 0.2, 3)),
        shadow_strength=float(rng.uniform(0.2, 0.8)) if made_up else 0.0,
    )


def _sample_skin(woman: bool, age: float, melanin: float, rng: np.random.Generator) -> Skin:
    haemoglobin = float(np.clip(rng.normal(0.1 if woman else 0.3, 0.4), -1, 1))
    tone = skin_tone(melanin, haemoglobin)
    red = np.exp(np.array([-0.10, -0.72, -0.52]) * rng.uniform(0.8, 1.25))
    lip = tone * (red * (1 - melanin) + np.array([0.86, 0.62, 0.66]) * melanin)
    lip_gloss = float(rng.uniform(0.2, 0.5))
    if woman and rng.random() < 0.45:
        painted = _linear(
            tuple(rng.integers((130, 26, 36), (190, 86, 96)).tolist())  # type: ignore[arg-type]
        )
        strength = float(rng.uniform(0.35, 0.9))
        lip = (1 - strength) * lip + strength * painted * (1 - 0.4 * melanin)
        lip_gloss = float(rng.uniform(0.4, 1.0))
    moles = int(rng.poisson(2.0))
    azimuth = rng.uniform(-0.6, 0.6, moles)
    height = rng.uniform(-95, 60, moles)
    moles_mm = np.stack([75 * np.sin(azimuth), height, 90 * np.cos(azimuth)], 1)
    return Skin(
        melanin=melanin,
        haemoglobin=haemoglobin,
        tone=tone,
        blotch=float(rng.uniform(0.3, 1.0)),
        freckles=float(rng.uniform(0.3, 1.0) if melanin < 0.35 and rng.random() < 0.25 else 0.0),
        pores=float(rng.uniform(0.4, 1.0)) * (0.7 if woman else 1.0),
        cheek_red=float(rng.uniform(0.1, 1.0)),
        nose_red=float(rng.uniform(0.1, 0.9)),
        eye_bags=float(np.clip(rng.uniform(0.1, 0.6) + (age - 35) / 90, 0, 1)),
        wrinkles=float(np.clip((age - 32) / 42 + rng.normal(0, 0.08), 0, 1)),
        moles_mm=moles_mm,
        gloss=float(rng.uniform(0.6, 1.35)),
        roughness=float(rng.uniform(0.34, 0.5)),
        lip=lip,
        lip_gloss=lip_gloss,
        lip_height=float(rng.normal(1.0, 0.07)) + (0.06 if woman else -0.06),
    )


def sample_appearance(identity: Person, rng: np.random.Generator) -> Appearance:
    """Draw a look that suits a person's sex and age.

    Args:
        identity: Anything with ``sex`` (``woman`` or ``man``) and ``age_years``.
        rng: Source of randomness; the same state gives the same look.

    Raises:
        ValueError: ``sex`` is neither ``woman`` nor ``man``.
    """
    if identity.sex not in ("woman", "man"):
        raise ValueError(
            f"sample_appearance expected sex 'woman' or 'man', got {identity.sex!r}; "
            "draw the identity with sample_identity."
        )
    woman = identity.sex == "woman"
    age = float(identity.age_years)
    melanin = float(np.clip(rng.beta(1.15, 1.5), 0.0, 1.0))
    skin = _sample_skin(woman, age, melanin, rng)
    hair = _sample_hair(woman, melanin, age, rng)
    eyes = _sample_eyes(woman, melanin, rng)
    beard = _sample_beard(woman, age, hair.colour, rng)
    darkening = rng.uniform(0.45, 0.9)
    brows = Brows(
        colour=np.minimum(hair.colour * darkening, 0.35 * skin.tone + 0.1 * hair.colour),
        thickness_mm=float(rng.normal(2.6, 0.45) if woman else rng.normal(3.7, 0.6)),
        arch_mm=float(rng.normal(1.9, 0.7) if woman else rng.normal(0.9, 0.6)),
        height_mm=float(rng.normal(0.4, 0.5) if woman else rng.normal(-0.3, 0.5)),
        inner_mm=float(np.clip(rng.normal(11.5, 1.2), 9.5, 14.5)),
        density=float(rng.uniform(0.6, 1.0)),
    )
    clothing = np.clip(np.exp(rng.normal(-1.9, 0.8)) * np.exp(rng.normal(0, 0.45, 3)), 0.01, 0.85)
    return Appearance(
        skin=skin,
        eyes=eyes,
        brows=brows,
        beard=beard,
        hair=hair,
        clothing=clothing,
        neckline=int(rng.integers(3)),
        seed=int(rng.integers(2**31)),
    )
