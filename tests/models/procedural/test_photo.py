"""Photographs repeat to the byte, and their landmarks lie on what they name."""

import dataclasses

import numpy as np
import pytest

from models.procedural.appearance import HAIR_STYLES, Appearance, sample_appearance, skin_tone
from models.procedural.expression import Expression
from models.procedural.features import beard_cover, bump, fraction, smooth_step
from models.procedural.head import ProceduralHead
from models.procedural.identity import Identity, sample_identity
from models.procedural.occluders import sample_occluder
from models.procedural.photo import Photo, clay, photograph
from models.procedural.scene import (
    Background,
    Camera,
    Finish,
    orthographic_camera,
    perspective_camera,
    portrait_light,
    rotation_from_angles,
    sample_scene,
)
from models.procedural.shadow import _TAPS, lit_share, shadow_map

SIZE = 192
GREEN = Background("plain", np.tile([0.02, 0.7, 0.02], (5, 1)), 1)


def person(seed: int) -> tuple[Identity, Appearance]:
    rng = np.random.default_rng(seed)
    identity = sample_identity(rng)
    return identity, sample_appearance(identity, rng)


def pale(seed: int, **hair: object) -> tuple[Identity, Appearance]:
    identity, look = person(seed)
    skin = dataclasses.replace(
        look.skin, tone=skin_tone(0.1, 0.0), melanin=0.1, freckles=0.0, moles_mm=np.zeros((0, 3))
    )
    eyes = dataclasses.replace(look.eyes, inner=np.full(3, 0.05), outer=np.full(3, 0.04))
    beard = dataclasses.replace(look.beard, style="none", shadow=0.0)
    style = dataclasses.replace(look.hair, **hair)
    return identity, dataclasses.replace(look, skin=skin, eyes=eyes, beard=beard, hair=style)


def facing(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, size: int = SIZE) -> Camera:
    rotation = rotation_from_angles(yaw, pitch, roll)
    return perspective_camera(rotation, (size, size), face_fraction=0.6)


def shoot(identity: Identity, look: Appearance, camera: Camera, **extra: object) -> Photo:
    expression = extra.pop("expression", None)
    return photograph(
        ProceduralHead.build(), identity, expression, look, camera, portrait_light(), GREEN,
        SIZE, **extra,
    )  # fmt: skip


def test_equal_arguments_give_equal_bytes() -> None:
    identity, look = person(3)
    scene = sample_scene(np.random.default_rng(1), (SIZE, SIZE))
    pictures = [
        photograph(
            ProceduralHead.build(), identity, None, look, scene.camera, scene.light,
            scene.background, SIZE, rng=np.random.default_rng(8), finish=scene.finish,
        ).image
        for _ in range(2)
    ]  # fmt: skip
    assert pictures[0].dtype == np.uint8
    assert pictures[0].shape == (SIZE, SIZE, 3)
    assert pictures[0].tobytes() == pictures[1].tobytes()


def patch(photo: Photo, where: np.ndarray, radius: float) -> np.ndarray:
    """Mean colour of a disc, pixel centres at +0.5."""
    y, x = np.mgrid[0 : photo.image.shape[0], 0 : photo.image.shape[1]] + 0.5
    inside = np.hypot(x - where[0], y - where[1]) <= radius
    return photo.image[inside].mean(axis=0)


@pytest.mark.parametrize("yaw", [-25.0, 0.0, 25.0])
def test_landmarks_lie_on_their_features(yaw: float) -> None:
    identity, look = pale(11, style="short", volume_mm=10.0)
    photo = shoot(identity, look, facing(yaw))
    points = photo.landmarks_px
    nose = patch(photo, points[29], 2.0).mean()
    for eye in (points[36:42], points[42:48]):
        width = np.linalg.norm(eye[3] - eye[0])
        iris = patch(photo, eye.mean(axis=0), 0.12 * width).mean()
        assert iris < 0.75 * nose
    lips = patch(photo, points[[51, 57, 62, 66]].mean(axis=0), 2.0)
    cheek = patch(photo, 0.5 * (points[29] + points[3]), 3.0)
    assert lips[0] / lips[1] > cheek[0] / cheek[1]
    brows = [patch(photo, points[k], 1.0).mean() for k in (19, 24)]
    assert max(brows) < 1.1 * nose


@pytest.mark.parametrize("yaw", [-40.0, 0.0, 40.0])
def test_the_jaw_follows_the_visible_contour(yaw: float) -> None:
    """Just outside the contour on the far side there is background, just inside skin."""
    identity, look = pale(12, style="bald")
    photo = shoot(identity, look, facing(yaw))
    points = photo.landmarks_px
    side = 1.0 if yaw > 0 else -1.0
    chosen = (11, 12) if yaw > 0 else (4, 5)
    for k in chosen:
        out = points[k] + [4.0 * side, 0.0]
        into = points[k] - [4.0 * side, 0.0]
        skin, back = patch(photo, into, 1.5), patch(photo, out, 1.5)
        assert skin[0] > skin[1]
        assert back[1] > 1.5 * back[0]


def test_fixed_and_seen_landmarks_share_all_but_the_jaw() -> None:
    identity, look = person(5)
    photo = shoot(identity, look, facing(30.0))
    np.testing.assert_array_equal(photo.landmarks_px[17:], photo.landmarks_3d_px[17:])
    assert np.abs(photo.landmarks_px[:17] - photo.landmarks_3d_px[:17]).max() > 1.0
    low, high = photo.box_px[:2], photo.box_px[2:]
    assert (photo.landmarks_px >= low).all()
    assert (photo.landmarks_px <= high).all()
    assert photo.yaw_deg == pytest.approx(30.0)


def test_orthographic_camera_is_the_far_limit_of_perspective() -> None:
    identity, look = person(6)
    rotation = rotation_from_angles(15, 5, 3)
    near = perspective_camera(rotation, (SIZE, SIZE), distance_m=40.0, face_fraction=0.6)
    flat = orthographic_camera(rotation, near.scale_px / 40.0, near.centre_px)
    a, b = shoot(identity, look, near), shoot(identity, look, flat)
    np.testing.assert_allclose(a.landmarks_px, b.landmarks_px, atol=0.5)
    assert np.abs(a.image.astype(float) - b.image).mean() < 4.0


def test_a_moved_camera_moves_the_picture() -> None:
    """Shifting the principal point by whole pixels shifts landmarks and head alike."""
    identity, look = person(7)
    camera = facing()
    shifted = dataclasses.replace(
        camera, centre_px=(camera.centre_px[0] + 6.0, camera.centre_px[1] - 4.0)
    )
    a, b = shoot(identity, look, camera), shoot(identity, look, shifted)
    np.testing.assert_allclose(b.landmarks_px - a.landmarks_px, [[6.0, -4.0]] * 68, atol=1e-9)
    face = (slice(70, 130), slice(70, 120))
    moved = (slice(66, 126), slice(76, 126))
    assert np.abs(a.image[face].astype(float) - b.image[moved]).mean() < 1.0


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_every_style_renders_and_shows(style: str) -> None:
    identity, look = pale(
        13, style=style, colour=np.full(3, 0.01), volume_mm=14.0, density=1.0, length_mm=80.0,
        hairline_mm=0.0, recession=0.0,
    )  # fmt: skip
    photo = shoot(identity, look, facing(35.0))
    dark = (photo.image.max(axis=2) < 75).mean()
    least = {"bald": 0.0, "receding": 0.03}.get(style, 0.07)
    assert least <= dark
    assert style != "bald" or dark < 0.03


def test_occluders_cover_what_they_should() -> None:
    identity, look = pale(14, style="short", colour=np.full(3, 0.05), volume_mm=10.0)
    camera = facing()
    bare = shoot(identity, look, camera)
    points = bare.landmarks_px
    spots = {
        "sunglasses": points[36:42].mean(axis=0),
        "scarf": points[48:68].mean(axis=0),
        "cap": points[27] - 0.75 * (points[8] - points[27]),
    }
    for kind, spot in spots.items():
        occluder = sample_occluder(np.random.default_rng(2), kind)  # type: ignore[arg-type]
        occluder = dataclasses.replace(occluder, colour=np.array([0.02, 0.02, 0.6]))
        worn = shoot(identity, look, camera, occluders=(occluder,))
        change = np.abs(patch(worn, spot, 3.0) - patch(bare, spot, 3.0)).max()
        assert change > 25.0, kind
        np.testing.assert_array_equal(worn.landmarks_px, bare.landmarks_px)
    cap = sample_occluder(np.random.default_rng(2), "latex_cap")
    cap = dataclasses.replace(cap, colour=np.array([0.02, 0.02, 0.6]))
    worn = shoot(identity, look, camera, occluders=(cap,))
    top = patch(worn, spots["cap"], 4.0)
    assert top[2] > 1.5 * top[0]


def test_open_mouth_shows_teeth() -> None:
    identity, look = pale(15, style="short")
    laugh = Expression.prototype("laugh")
    photo = shoot(identity, look, facing(size=SIZE), expression=laugh)
    upper, lower = photo.landmarks_px[61:64].mean(axis=0), photo.landmarks_px[65:68].mean(axis=0)
    teeth = patch(photo, upper + 0.15 * (lower - upper), 1.5)
    cavity = patch(photo, 0.5 * (upper + lower), 1.5)
    assert teeth.mean() > 1.5 * cavity.mean()


def test_eyes_follow_the_gaze() -> None:
    identity, look = pale(16, style="short")
    looks = []
    for yaw in (-20.0, 20.0):
        photo = shoot(identity, look, facing(), gaze_deg=(yaw, 0.0))
        eye = photo.landmarks_px[42:48]
        width = np.linalg.norm(eye[3] - eye[0])
        middle = eye.mean(axis=0)
        sides = [middle + np.array([d * 0.24 * width, 0.0]) for d in (-1, 1)]
        looks.append([patch(photo, s, 1.2).mean() for s in sides])
    assert looks[0][0] < looks[0][1]
    assert looks[1][0] > looks[1][1]


def test_given_vertices_are_drawn() -> None:
    identity, look = person(17)
    head = ProceduralHead.build()
    vertices = head.vertices(identity)
    plain = shoot(identity, look, facing())
    same = shoot(identity, look, facing(), vertices_m=vertices)
    np.testing.assert_array_equal(plain.image, same.image)
    open_mouth = head.vertices(identity, Expression.prototype("mouth_open"))
    changed = shoot(identity, look, facing(), vertices_m=open_mouth)
    assert changed.landmarks_px[8, 1] > plain.landmarks_px[8, 1] + 3.0
    with pytest.raises(ValueError, match="topology"):
        shoot(identity, look, facing(), vertices_m=np.zeros((7, 3)))


def test_finish_blurs_and_adds_noise() -> None:
    identity, look = person(18)
    sharp = shoot(identity, look, facing())
    soft = shoot(identity, look, facing(), finish=Finish(defocus_px=2.0))
    noisy = shoot(identity, look, facing(), finish=Finish(noise=0.05), rng=np.random.default_rng(0))

    def edges(photo: Photo) -> float:
        return float(np.abs(np.diff(photo.image.astype(float), axis=1)).mean())

    assert edges(soft) < edges(sharp) < edges(noisy)
    with pytest.raises(ValueError, match="8x8"):
        photograph(
            ProceduralHead.build(), identity, None, look, facing(), portrait_light(), GREEN, 4
        )


def test_clay_shows_a_shape_on_a_light_ground() -> None:
    head = ProceduralHead.build()
    identity, _ = person(19)
    picture = clay(head.vertices(identity), head.faces, 96)
    assert picture.shape == (96, 96, 3)
    assert picture[0, 0].min() > 200
    assert picture[48, 48].max() < 230
    turned = clay(head.vertices(identity), head.faces, 96, rotation=rotation_from_angles(60, 0, 0))
    assert not np.array_equal(picture, turned)


def test_detectors_fire() -> None:
    dlib = pytest.importorskip("dlib")
    detector = dlib.get_frontal_face_detector()
    found = 0
    for seed in range(40):
        rng = np.random.default_rng([40, seed])
        identity = sample_identity(rng)
        look = sample_appearance(identity, rng)
        scene = sample_scene(rng, (256, 256), yaw_range_deg=(-30, 30), roll_range_deg=(-6, 6))
        photo = photograph(
            ProceduralHead.build(), identity, None, look, scene.camera, scene.light,
            scene.background, 256, rng=rng, finish=scene.finish,
        )  # fmt: skip
        x, y = photo.landmarks_px[17:].mean(axis=0)
        boxes = detector(photo.image, 1)
        found += any(b.left() < x < b.right() and b.top() < y < b.bottom() for b in boxes)
    assert found >= 38


def test_identities_can_be_told_apart() -> None:
    """Nearest centroid of small aligned pictures, over changed light, pose and background."""
    import cv2

    head = ProceduralHead.build()
    people = 8
    features = []
    for number in range(people):
        identity, look = person(100 + number)
        for shot in range(4):
            rng = np.random.default_rng([number, shot])
            scene = sample_scene(rng, (128, 128), yaw_range_deg=(-15, 15))
            photo = photograph(
                head, identity, None, look, scene.camera, scene.light, scene.background, 128
            )
            src = np.float32([photo.landmarks_px[k].tolist() for k in (36, 45, 57)])
            dst = np.float32([[8, 12], [24, 12], [16, 28]])
            small = cv2.warpAffine(photo.image, cv2.getAffineTransform(src, dst), (32, 32))
            lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float64)
            lab = (lab - lab.mean(axis=(0, 1), keepdims=True) * [0.6, 0.3, 0.3]).ravel()
            features.append(lab / np.linalg.norm(lab))
    table = np.array(features).reshape(people, 4, -1)
    table = table - table.mean(axis=(0, 1))
    centroids = table[:, :2].mean(axis=1)
    correct = 0
    for number in range(people):
        for shot in (2, 3):
            distance = np.linalg.norm(centroids - table[number, shot], axis=1)
            correct += int(np.argmin(distance)) == number
    assert correct >= 0.5 * 2 * people  # chance is one in eight


def test_features_that_are_skipped_far_away_have_the_values_of_their_formulas():
    rng = np.random.default_rng(3)
    for value, low, extent in zip(
        rng.uniform(-3, 3, 300), rng.uniform(-1, 1, 300), rng.choice([-2.0, 0.5], 300), strict=True
    ):
        t = min(1.0, max(0.0, (value - low) / (low + extent - low)))
        assert smooth_step(low, low + extent, value) == t * t * (3.0 - 2.0 * t)
        assert fraction(10.0 * value) == (10.0 * value) % 1.0
    for dx, dy in rng.uniform(-9, 9, (300, 2)):
        t = max(0.0, 1.0 - 0.25 * (dx * dx / 9.0 + dy * dy / 4.0))
        assert bump(dx, 3.0, dy, 2.0) == t * t * t * t


def slow_beard(x: float, y: float, z: float, cheek: float) -> float:
    """A full beard, every factor at every point."""
    ax = abs(x)
    if y > 5.0 or y < -150.0:
        return 0.0
    azimuth = float(np.arctan2(ax, z)) * 57.29577951308232
    upper = smooth_step(-45.0, -54.0, y + 0.22 * ax)
    lower = smooth_step(-78.0, -66.0, y + 0.5 * max(0.0, ax - 20.0))
    moustache = upper * lower * smooth_step(34.0, 22.0, ax)
    corners = [0.0, 20.0, 40.0, 62.0, 78.0]
    line = cheek + float(np.interp(azimuth, corners, [-50.0, -50.0, -56.0, -38.0, -2.0]))
    back = smooth_step(92.0, 74.0, azimuth + 0.30 * max(0.0, -y - 55.0))
    floor = -126.0 + 0.25 * max(0.0, ax - 25.0)
    below = smooth_step(floor - 16.0, floor + 10.0, y)
    return max(smooth_step(line + 2.0, line - 9.0, y) * back * below, moustache)


def test_a_beard_without_azimuths_is_the_beard_with_them():
    rng = np.random.default_rng(4)
    grown = 0
    for x, y, z in rng.uniform([-80, -150, -60], [80, 10, 110], (4000, 3)):
        cheek = float(rng.uniform(-6, 6))
        found = beard_cover(x, y, z, 1.0, cheek)
        assert found == pytest.approx(slow_beard(x, y, z, cheek), abs=1e-9)
        grown += found > 0
    assert grown > 400


def test_shadow_taps_that_are_not_weighted_equal_those_that_are():
    rng = np.random.default_rng(5)
    surface = rng.uniform(-0.2, 0.2, (300, 3))
    faces = rng.integers(0, 300, (200, 3)).astype(np.int32)
    light = dataclasses.replace(portrait_light(), shadow_softness=3.5)
    maps, frame = shadow_map([(surface, faces)], light, np.zeros(3))
    depth = maps[0]
    shares = []
    for point in rng.uniform(-0.26, 0.26, (500, 3)):
        u, v, w = frame[:, :3] @ point + frame[:, 3]
        u, v = (u + 1.0) * 80.0 - 0.5, (1.0 - v) * 80.0 - 0.5
        total = 0.0
        for across, down in _TAPS * light.shadow_softness:
            i, j = int(np.floor(v + down)), int(np.floor(u + across))
            if not (0 <= i < 159 and 0 <= j < 159):
                total += 1.0
                continue
            right, lower = u + across - j, v + down - i
            seen = depth[i : i + 2, j : j + 2] >= -w - 0.012
            total += np.array([1 - lower, lower]) @ seen @ np.array([1 - right, right])
        shares.append(total / 8)
        lit = lit_share(*point, maps, frame, light.shadow_softness)
        assert lit == pytest.approx(shares[-1], abs=1e-9)
    assert 0.0 in shares
    assert 1.0 in shares
    assert any(0.0 < share < 1.0 for share in shares)
