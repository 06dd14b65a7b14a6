"""Regions with FLAME's counts, landmarks on the right features, contour, teeth."""

import numpy as np
import pytest

from models.procedural.expression import Expression
from models.procedural.head import ProceduralHead
from models.procedural.identity import Identity, sample_identity
from models.procedural.landmarks import contour_row
from models.procedural.regions import REGION_COUNTS
from models.procedural.teeth import GUM, TONGUE, TOOTH, build_oral


@pytest.fixture(scope="module")
def head():
    return ProceduralHead.build()


@pytest.fixture(scope="module")
def marks(head):
    return head.landmarks(head.canonical_mm)


def test_regions_have_flames_counts_and_relations(head):
    masks = {name: set(ids.tolist()) for name, ids in head.masks.items()}
    for name, count in REGION_COUNTS.items():
        assert len(masks[name]) == count == len(head.masks[name])
    assert masks["left_eyeball"] == set(range(3931, 4477))
    assert masks["right_eyeball"] == set(range(4477, 5023))
    low_weight = masks["left_ear"] | masks["right_ear"] | masks["left_eyeball"]
    low_weight |= masks["right_eyeball"]
    # the census behind MICA's vertex weights: 1787 face, 2268 ears and eyeballs, 968 others
    assert len(low_weight) == 2268
    assert not masks["face"] & low_weight
    assert 5023 - len(masks["face"] | low_weight) == 968
    for name in ("eye_region", "lips", "forehead"):
        assert masks[name] <= masks["face"]
    assert masks["left_eye_region"] | masks["right_eye_region"] <= masks["eye_region"]


def test_regions_are_mirror_images(head):
    mirror = head.mesh.mirror
    for name, ids in head.masks.items():
        other = name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        np.testing.assert_array_equal(np.sort(mirror[ids]), head.masks[other])


def test_landmarks_are_ibug_ordered(marks):
    x, y, z = marks.T
    assert (np.diff(x[:17]) > 0.0).all()  # contour from the subject's right to the left
    assert y[8] == y[:17].min()
    assert (np.diff(x[17:27]) > 0.0).all()
    assert (np.diff(y[27:31]) < 0.0).all()
    assert (np.diff(z[27:31]) > 0.0).all()
    assert (np.diff(x[31:36]) > 0.0).all()
    assert x[36] < x[37] < x[38] < x[39] < 0.0 < x[42] < x[43] < x[44] < x[45]
    assert min(y[37], y[38]) > y[36] > max(y[40], y[41])
    assert x[48] < x[49] < x[50] < x[51] < x[52] < x[53] < x[54]
    assert x[54] > x[55] > x[56] > x[57] > x[58] > x[59] > x[48]
    assert y[51] > y[62] > y[66] > y[57]
    assert (y[17:27] > y[36:48].max()).all()


def test_landmarks_are_mirror_images(marks):
    contour, brows = list(range(16, -1, -1)), list(range(26, 16, -1))
    nose, eyes = [27, 28, 29, 30, 35, 34, 33, 32, 31], [45, 44, 43, 42, 47, 46]
    eyes += [39, 38, 37, 36, 41, 40]
    lips = [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55]
    inside = [64, 63, 62, 61, 60, 67, 66, 65]
    pairs = np.array([*contour, *brows, *nose, *eyes, *lips, *inside])
    np.testing.assert_allclose(marks[pairs] * [-1, 1, 1], marks, atol=0.7)


def test_eye_landmarks_lie_on_the_lid_margin_for_everyone(head):
    for seed in range(4):
        vertices = head.vertices(sample_identity(np.random.default_rng(seed)))
        marks = head.landmarks(vertices)
        for side, ids in (("right", range(36, 42)), ("left", range(42, 48))):
            margin = vertices[head.mesh.patches[f"eye_{side}"][5]]
            for k in ids:
                assert np.linalg.norm(margin - marks[k], axis=1).min() < 1.8e-3


def test_embeddings_are_convex_weights(head):
    table = head.embeddings
    assert table.dynamic_faces.shape == (79, 17)
    for faces, bary in (
        (table.static_faces, table.static_bary),
        (table.dynamic_faces, table.dynamic_bary),
        (table.full_faces, table.full_bary),
    ):
        np.testing.assert_allclose(bary.sum(axis=-1), 1.0)
        assert bary.min() >= 0.0
        assert (head.faces[faces] < 3931).all()
    np.testing.assert_array_equal(table.full_faces[:17], table.dynamic_faces[0])
    np.testing.assert_array_equal(table.full_faces[17:], table.static_faces)


@pytest.mark.parametrize("yaw", [-39, -20, 0, 20, 39])
def test_contour_is_the_outline_of_the_turned_face(head, yaw):
    points = head.contour_landmarks(head.canonical_mm, yaw)
    angle = np.radians(yaw)
    turned = np.cos(angle) * points[:, 0] + np.sin(angle) * points[:, 2]
    assert (np.diff(turned) > -2.0).all()
    # nothing of the cheeks and jaw sticks out beyond the far side of the contour
    everything = head.canonical_mm[head.masks["face"]]
    everything = everything[(everything[:, 1] < -45.0) & (everything[:, 1] > -80.0)]
    image = np.cos(angle) * everything[:, 0] + np.sin(angle) * everything[:, 2]
    if yaw >= 0:
        assert image.max() < np.interp(-45.0, points[8:, 1], turned[8:]) + 2.0
    if yaw <= 0:
        assert image.min() > np.interp(-45.0, points[8::-1, 1], turned[8::-1]) - 2.0


def test_far_contour_moves_toward_the_nose(head):
    front = head.contour_landmarks(head.canonical_mm, 0)
    left = head.contour_landmarks(head.canonical_mm, 39)
    right = head.contour_landmarks(head.canonical_mm, -39)
    assert left[14, 0] < front[14, 0] - 5.0
    assert left[14, 2] > front[14, 2] + 10.0
    np.testing.assert_allclose(left[::-1] * [-1, 1, 1], right, atol=4.0)


def test_contour_rows():
    assert [contour_row(yaw) for yaw in (0, 1, 39, 80, -1, -39, -80)] == [0, 1, 39, 39, 40, 78, 78]


def test_teeth_sit_behind_the_lips_and_follow_the_jaw(head):
    oral = build_oral()
    assert set(np.unique(oral.tissue)) == {TOOTH, GUM, TONGUE}
    identity = Identity.mean()
    closed = head.teeth(identity)
    opened = head.teeth(identity, Expression.of(jaw_open=1.0))
    np.testing.assert_allclose(opened.vertices[~oral.lower], closed.vertices[~oral.lower])
    drop = closed.vertices[oral.lower, 1] - opened.vertices[oral.lower, 1]
    assert drop.mean() > 0.02
    for seed in range(5):
        person = sample_identity(np.random.default_rng(seed))
        skin, teeth = head.vertices(person), head.teeth(person)
        lips = skin[head.mesh.patches["mouth"][4]]  # the crest of both lips
        front = teeth.vertices[np.abs(teeth.vertices[:, 0]) < 8e-3]
        assert front[:, 2].max() < lips[[9, 27], 2].min() - 3e-3


def test_teeth_are_closed_surfaces_facing_out():
    oral = build_oral()
    for kind in (TOOTH, TONGUE):
        faces = oral.faces[(oral.tissue[oral.faces] == kind).all(axis=1)]
        edges = np.sort(
            np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1
        )
        _, uses = np.unique(edges, axis=0, return_counts=True)
        assert (uses == 2).all()
        a, b, c = (oral.vertices[faces[:, k]] - [0.0, -65.0, 80.0] for k in range(3))
        assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0.0
