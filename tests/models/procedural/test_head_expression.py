"""Expressions: units, blink, jaw, lips that do not cross."""

import numpy as np
import pymeshlab
import pytest

from models.procedural.expression import (
    JAW_OPEN_DEG,
    LINEAR_UNITS,
    PROTOTYPES,
    UNIT_COUNT,
    UNITS,
    Expression,
    sample_expression,
)
from models.procedural.head import ProceduralHead
from models.procedural.identity import Identity, sample_identity


@pytest.fixture(scope="module")
def head():
    return ProceduralHead.build()


@pytest.fixture(scope="module")
def neutral(head):
    return head.vertices(Identity.mean())


def crossing_triangles(head, vertices):
    """Skin triangles that cut another one, inner lining of lids and mouth corners left out."""
    skin = head.faces[(head.faces < 3931).all(axis=1)]
    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(vertices[:3931] * 1e3, skin))
    meshes.compute_selection_by_self_intersections_per_face()
    found = skin[meshes.current_mesh().face_selection_array()]
    lining = (head.mesh.part == 1) & (head.mesh.ring >= 6)
    return found[~lining[found].any(axis=1)]


@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_prototypes_do_not_cut_through_themselves(head, name):
    found = crossing_triangles(head, head.vertices(Identity.mean(), Expression.prototype(name)))
    assert len(found) <= (8 if name == "jaw_left" else 0)


def test_sampled_people_do_not_cut_through_themselves(head):
    counts = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        vertices = head.vertices(sample_identity(rng), sample_expression(rng))
        counts.append(len(crossing_triangles(head, vertices)))
    assert np.median(counts) == 0
    assert max(counts) < 30


def test_lids_stay_outside_the_eyeball(head):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        identity = sample_identity(rng)
        joints = head.joints(head.vertices(identity))
        for expression in (None, Expression.prototype("laugh"), Expression.of(blink=1.0)):
            vertices = head.vertices(identity, expression)
            for joint, side in ((3, "left"), (4, "right")):
                lid = vertices[head.mesh.patches[f"eye_{side}"][1:7]].reshape(-1, 3)
                distance = np.linalg.norm(lid - joints[joint], axis=1)
                assert distance.min() > 0.0117  # the ball's radius is 12 mm


def test_blink_closes_the_eye_and_only_that_eye(head, neutral):
    marks = head.landmarks(neutral)
    shut = head.landmarks(head.vertices(Identity.mean(), Expression.of(blink_left=1.0)))

    def opening(points, upper, lower):
        return np.linalg.norm(points[upper].mean(axis=0) - points[lower].mean(axis=0))

    left, right = ([43, 44], [46, 47]), ([37, 38], [40, 41])
    assert opening(marks, *left) > 7e-3
    assert opening(shut, *left) < 1.5e-3
    assert opening(shut, *right) == pytest.approx(opening(marks, *right))
    # the upper lid travels on a sphere about the eye, it does not cut the corner
    half = head.vertices(Identity.mean(), Expression.of(blink_left=0.5))
    margin = head.mesh.patches["eye_left"][5][6:11]
    centre = head.joints(neutral)[3]
    radius = np.linalg.norm(half[margin] - centre, axis=1)
    assert (radius > np.linalg.norm(neutral[margin] - centre, axis=1) - 1e-6).all()


def test_jaw_opens_by_rotation_about_its_joint(head, neutral):
    joint = head.joints(neutral)[2]
    moved = head.vertices(Identity.mean(), Expression.of(jaw_open=1.0))
    chin = int(np.argmin(np.abs(head.canonical_mm - [0.0, -105.0, 86.0]).sum(axis=1)))
    assert head.jaw[chin] > 0.97
    before, after = neutral[chin] - joint, moved[chin] - joint
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-9)
    angle = np.degrees(np.arctan2(before[1], before[2]) - np.arctan2(after[1], after[2]))
    assert angle == pytest.approx(JAW_OPEN_DEG * head.jaw[chin], rel=1e-6)
    skull = head.canonical_mm[:, 1] > 5.0
    np.testing.assert_allclose(moved[skull], neutral[skull], atol=1e-9)
    marks = head.landmarks(moved)
    assert marks[62, 1] - marks[66, 1] > 0.03  # lips apart by 3 cm


@pytest.mark.parametrize(
    ("unit", "landmark", "axis", "sign"),
    [
        ("smile", 54, 1, 1),
        ("smile", 54, 0, 1),
        ("frown", 54, 1, -1),
        ("pucker", 54, 0, -1),
        ("pucker", 51, 2, 1),
        ("stretch", 54, 0, 1),
        ("brow_raise_inner", 22, 1, 1),
        ("brow_raise_outer", 26, 1, 1),
        ("brow_lower", 22, 1, -1),
        ("lip_raise", 51, 1, 1),
        ("lip_lower", 57, 1, -1),
        ("nose_wrinkle", 35, 1, 1),
        ("jaw_lateral", 8, 0, 1),
        ("jaw_forward", 8, 2, 1),
    ],
)
def test_units_move_what_they_name(head, neutral, unit, landmark, axis, sign):
    before = head.landmarks(neutral)
    after = head.landmarks(head.vertices(Identity.mean(), Expression.of(**{unit: 1.0})))
    assert sign * (after - before)[landmark, axis] > 1.2e-3


def test_one_sided_units_are_mirror_images(head, neutral):
    mirror, flip = head.mesh.mirror, np.array([-1.0, 1.0, 1.0])
    for unit in ("smile", "brow_lower", "cheek_puff", "blink"):
        left = head.vertices(Identity.mean(), Expression.of(**{f"{unit}_left": 0.7})) - neutral
        right = head.vertices(Identity.mean(), Expression.of(**{f"{unit}_right": 0.7})) - neutral
        np.testing.assert_allclose(left[mirror] * flip, right, atol=2e-6)


def test_gaze_and_neck_turn_rigidly(head, neutral):
    looked = head.vertices(Identity.mean(), gaze_deg=(10.0, 20.0))
    np.testing.assert_array_equal(looked[:3931], neutral[:3931])
    centre = head.joints(neutral)[3]
    pupil = looked[3931] - centre
    assert np.degrees(np.arctan2(pupil[0], pupil[2])) == pytest.approx(20.0, abs=1.5)
    assert np.degrees(np.arcsin(pupil[1] / np.linalg.norm(pupil))) == pytest.approx(10.0, abs=1.5)
    turned = head.vertices(Identity.mean(), neck_deg=(0.0, 30.0, 0.0))
    assert head.landmarks(turned)[30, 0] > 0.03
    rim = np.argsort(head.canonical_mm[:, 1])[:40]
    np.testing.assert_allclose(turned[rim], neutral[rim], atol=1e-9)


def test_units_are_named_and_checked():
    assert len(set(UNITS)) == UNIT_COUNT >= 30
    assert UNITS[-len(LINEAR_UNITS) :] == LINEAR_UNITS
    assert Expression.of(smile=0.5).weight("smile_right") == 0.5
    with pytest.raises(ValueError, match="unknown expression unit"):
        Expression.of(wiggle=1.0)
    with pytest.raises(ValueError, match="unknown prototype"):
        Expression.prototype("wiggle")
    with pytest.raises(ValueError, match="must have"):
        Expression(np.zeros(3))
    np.testing.assert_array_equal(
        sample_expression(np.random.default_rng(1)).weights,
        sample_expression(np.random.default_rng(1)).weights,
    )
    assert not sample_expression(np.random.default_rng(1), 0.0).weights.any()
