"""Looks suit the person; albedo is where the features are, smooth and in range."""

import dataclasses

import numpy as np
import pytest

from models.procedural.albedo import (
    albedo_bytes,
    evaluate_albedo,
    hairline_table,
    pack_appearance,
)
from models.procedural.anatomy import lid_margin
from models.procedural.appearance import Appearance, sample_appearance, skin_tone
from models.procedural.features import PACKED_SIZE, bell, brow_height, lid_heights, mouth_line
from models.procedural.head import ProceduralHead
from models.procedural.mouth import line
from models.procedural.noise import lattice_noise, noise_table


@dataclasses.dataclass(frozen=True)
class Someone:
    sex: str = "woman"
    age_years: float = 30.0


def look(seed: int, sex: str = "woman", age: float = 30.0) -> Appearance:
    return sample_appearance(Someone(sex, age), np.random.default_rng(seed))


def plain(seed: int = 0) -> Appearance:
    """A pale shaven look with strong brows: features stand out from the skin."""
    base = look(seed, "man")
    skin = dataclasses.replace(
        base.skin, tone=skin_tone(0.1, 0.0), melanin=0.1, freckles=0.0, moles_mm=np.zeros((0, 3))
    )
    beard = dataclasses.replace(base.beard, style="none", shadow=0.0)
    brows = dataclasses.replace(
        base.brows, colour=np.full(3, 0.02), thickness_mm=4.0, density=1.0, height_mm=0.0,
        arch_mm=1.0, inner_mm=11.0,
    )  # fmt: skip
    eyes = dataclasses.replace(base.eyes, inner=np.full(3, 0.1), outer=np.full(3, 0.08))
    return dataclasses.replace(base, skin=skin, beard=beard, brows=brows, eyes=eyes)


def at(
    appearance: Appearance, *points: tuple[float, float, float], eye: bool = False
) -> np.ndarray:
    canonical = np.array(points, dtype=np.float64)
    return evaluate_albedo(canonical, np.full(len(canonical), eye), appearance)[0]


def luminance(colour: np.ndarray) -> np.ndarray:
    return colour @ np.array([0.2126, 0.7152, 0.0722])


def test_same_seed_same_look() -> None:
    np.testing.assert_array_equal(pack_appearance(look(4)), pack_appearance(look(4)))
    assert look(4).hair.style == look(4).hair.style
    assert not np.array_equal(pack_appearance(look(4)), pack_appearance(look(5)))
    assert pack_appearance(look(4)).shape == (PACKED_SIZE,)


def test_women_and_men_differ_as_groups() -> None:
    women = [look(seed, "woman") for seed in range(60)]
    men = [look(seed, "man") for seed in range(60)]
    assert all(w.beard.style == "none" and w.beard.shadow == 0.0 for w in women)
    assert sum(m.beard.style != "none" for m in men) > 15
    loose = ("long", "bob", "bun", "ponytail")
    assert np.mean([w.hair.style in loose for w in women]) > 0.5
    assert np.mean([m.hair.style in loose for m in men]) < 0.2
    assert np.mean([w.brows.thickness_mm for w in women]) < np.mean(
        [m.brows.thickness_mm for m in men]
    )


def test_tones_cover_a_wide_range() -> None:
    tones = np.array([look(seed).skin.tone for seed in range(80)])
    assert luminance(tones).min() < 0.12
    assert luminance(tones).max() > 0.45
    assert len({look(seed).hair.style for seed in range(80)}) >= 6


def test_age_brings_wrinkles_and_grey() -> None:
    young = [look(seed, "man", 22.0) for seed in range(30)]
    old = [look(seed, "man", 75.0) for seed in range(30)]
    assert np.mean([o.skin.wrinkles for o in old]) > 0.5 + np.mean([y.skin.wrinkles for y in young])
    saturation = [np.ptp(o.hair.colour) / o.hair.colour.max() for o in old]
    assert np.median(saturation) < np.median(
        [np.ptp(y.hair.colour) / y.hair.colour.max() for y in young]
    )


def test_unknown_sex_is_an_error() -> None:
    with pytest.raises(ValueError, match="woman"):
        look(1, "robot")


def test_skin_tone_is_monotone_and_checked() -> None:
    levels = luminance(np.array([skin_tone(m, 0.0) for m in np.linspace(0, 1, 21)]))
    assert (np.diff(levels) < 0).all()
    ruddy, sallow = skin_tone(0.2, 1.0), skin_tone(0.2, -1.0)
    assert ruddy[0] / ruddy[1] > sallow[0] / sallow[1]
    with pytest.raises(ValueError, match="melanin"):
        skin_tone(1.2, 0.0)


def test_features_are_where_they_belong() -> None:
    who = plain()
    cheek, lip, brow, chin = at(
        who, (40, -30, 80), (0, -70, 95), (32, 19.5, 90), (0, -100, 92)
    )  # fmt: skip
    assert luminance(brow) < 0.3 * luminance(cheek)
    assert lip[0] / lip[1] > 1.15 * cheek[0] / cheek[1]
    assert luminance(chin) > 0.75 * luminance(cheek)
    left, right = at(who, (40, -30, 80), (-40, -30, 80))
    assert np.abs(left - right).max() < 0.2


def test_eye_is_pupil_iris_ring_sclera() -> None:
    who = plain()
    z = [70.5 + np.sqrt(144.0 - r * r) for r in (0.0, 3.6, 5.8, 9.0)]
    for side in (1.0, -1.0):
        pupil, iris, ring, white = luminance(
            at(
                who, (31.2 * side, 0, z[0]), (31.2 * side, -3.6, z[1]), (31.2 * side, -5.8, z[2]),
                (31.2 * side, -9.0, z[3]), eye=True,
            )
        )  # fmt: skip
        assert pupil < 0.3 * iris
        assert ring < white
        assert white > 3.0 * iris


def test_beard_grows_on_the_jaw_only() -> None:
    base = plain()
    full = dataclasses.replace(
        base, beard=dataclasses.replace(base.beard, style="full", density=1.0,
                                        colour=np.full(3, 0.02), cheek_mm=0.0)
    )  # fmt: skip
    bare = at(base, (0, -100, 92), (0, 50, 95), (0, -70, 95))
    grown = at(full, (0, -100, 92), (0, 50, 95), (0, -70, 95))
    assert luminance(grown[0]) < 0.4 * luminance(bare[0])
    np.testing.assert_allclose(grown[1], bare[1])
    assert luminance(grown[2]) > 0.6 * luminance(bare[2])


def test_beard_has_no_straight_edge() -> None:
    """The border of a beard wanders: its height differs from column to column."""
    base = plain(3)
    full = dataclasses.replace(
        base, beard=dataclasses.replace(base.beard, style="goatee", density=1.0,
                                        colour=np.full(3, 0.02))
    )  # fmt: skip
    heights = np.arange(-118.0, -96.0, 0.25)
    lowest = []
    for x in np.arange(-12.0, 12.1, 1.5):
        column = at(full, *[(x, y, 88.0) for y in heights])
        lowest.append(heights[int(np.argmax(luminance(column) < 0.15))])
    assert np.std(lowest) > 0.4


def test_albedo_is_continuous_and_in_range() -> None:
    who = look(8)
    t = np.linspace(0, 1, 4001)
    path = np.stack([-60 + 120 * t, -100 + 190 * t, 90 - 20 * np.abs(2 * t - 1)], 1)
    colours, specular = evaluate_albedo(path, np.zeros(len(path), dtype=bool), who)
    assert colours.min() > 0.0
    assert colours.max() <= 1.0
    assert np.isfinite(specular).all()
    assert np.abs(np.diff(colours, axis=0)).max() < 0.08


def test_bytes_are_srgb() -> None:
    who = look(2)
    points = np.array([[40.0, -30.0, 80.0], [0.0, 50.0, 95.0]])
    eye = np.zeros(2, dtype=bool)
    linear, _ = evaluate_albedo(points, eye, who)
    back = albedo_bytes(points, eye, who) / 255.0
    decoded = np.where(back <= 0.04045, back / 12.92, ((back + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(decoded, linear, atol=0.006)


def test_wrong_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="canonical_mm"):
        evaluate_albedo(np.zeros((3, 2)), np.zeros(3, dtype=bool), look(1))


def test_hairline_is_higher_in_front_than_at_the_nape() -> None:
    table = hairline_table(look(1))
    assert table.shape == (181, 2)
    assert table[0, 0] > 55.0 > table[180, 0]
    assert ((table[:, 1] > 0) & (table[:, 1] <= 1)).all()


def test_noise_is_smooth_and_periodic() -> None:
    table = noise_table()
    x = np.linspace(0.0, 32.0, 2001)
    values = np.array([lattice_noise(table, v, 1.3, 4.7) for v in x])
    assert values[0] == pytest.approx(values[-1], abs=1e-6)
    assert np.abs(np.diff(values)).max() < 0.06
    assert values.std() > 0.15
    assert lattice_noise(table, 3.0, 4.0, 5.0) == pytest.approx(float(table[3, 4, 5]))
    assert lattice_noise(table, -0.5, -1.2, 0.3) == pytest.approx(
        lattice_noise(table, 31.5, 30.8, 32.3), abs=1e-6
    )


def test_bell_is_close_to_a_gaussian() -> None:
    square = np.linspace(0.0, 6.0, 61)
    values = np.array([bell(s) for s in square])
    assert np.abs(values - np.exp(-square)).max() < 0.08
    assert values[0] == 1.0
    assert (values[square >= 4.0] == 0.0).all()


def test_painted_lines_follow_the_geometry() -> None:
    """Brows, lash lines and mouth line lie where the mean head has their landmarks."""
    angle = 2.0 * np.pi * np.arange(64) / 64
    for x, y in lid_margin(angle):
        upper, lower = lid_heights((x - 31.2) / 14.5)
        assert min(abs(y - upper), abs(y - lower)) < 0.45
    head = ProceduralHead.build()
    for x, y in head.landmarks(head.canonical_mm)[22:27, :2]:
        assert abs(brow_height((x - 11.5) / 41.5, 0.0, 1.4) - y) < 1.5
    across = np.linspace(-25.0, 25.0, 51)
    painted = np.array([mouth_line(x) for x in across])
    np.testing.assert_allclose(painted, line(across)[:, 0], atol=0.12)
