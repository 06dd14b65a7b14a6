"""From a photograph to coefficients with a network that is always right, and what stops it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.face.morphable import LinearModel
from models.methods.pix2face import Boxes, Pix2FaceConfig
from models.methods.pix2face_fit import ModelFit
from models.methods.pix2face_landmarks import LandmarkChoice
from models.methods.pix2face_photo import FitSettings, PhotoFit
from models.networks.encoders.square_crop import crop_matrix
from models.rendering.pncc import PnccRenderer, Sample, Window

SIZE, SIDE = 64, 100.0
SETTINGS = FitSettings(
    box_scale=1.4, gate_mm=4.0, prior=1e-3, minimum=10, most=None, camera="affine"
)


def face_model() -> LinearModel:
    """A dome of 31 x 31 vertices, 4 mm apart, with smooth directions, in millimetres."""
    x, y = (part.ravel() for part in np.meshgrid(np.arange(31) * 4.0 - 60, 60 - np.arange(31) * 4))
    mean = np.stack([x, y, 100 - (x**2 + y**2) / 90], axis=1)
    waves = np.random.default_rng(0).normal(size=(3, 5)) / 40
    directions = np.sin(mean @ waves)[:, None, :] * np.random.default_rng(1).normal(size=(1, 3, 5))
    ids = np.arange(31 * 31).reshape(31, 31)
    a, b, c, d = (part.ravel() for part in (ids[:-1, :-1], ids[1:, :-1], ids[1:, 1:], ids[:-1, 1:]))
    return LinearModel(
        mean_shape=mean,
        shape_basis=directions[..., :3],
        shape_sigma=np.array([3.0, 2.0, 1.5]),
        mean_expression=np.zeros_like(mean),
        expression_basis=directions[..., 3:],
        expression_sigma=np.array([1.5, 1.0]),
        faces=np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]),
        keypoints=np.arange(0, 68 * 14, 14),
    )


class Oracle:
    """Answers every crop with the true maps, whatever the picture."""

    def __init__(self, planes_mm: np.ndarray, target: str, boxes: Boxes = Boxes()) -> None:  # noqa: B008
        self.config = Pix2FaceConfig(size_px=SIZE, width=4, depth=3, boxes=boxes, target=target)
        coded = self.config.boxes.encode(planes_mm, target)
        self._out = torch.from_numpy(coded.astype(np.float32).transpose(2, 0, 1))[None]

    def __call__(self, _: torch.Tensor) -> torch.Tensor:
        return self._out


def photographed(
    target: str = "pncc_offset", settings: FitSettings = SETTINGS
) -> tuple[PhotoFit, Sample, np.ndarray, np.ndarray]:
    """A fit with a perfect network, the sample it sees, its sigma coefficients, its centre."""
    model = face_model()
    z, w = np.array([0.7, -0.4, 0.5]), np.array([0.5, -0.8])
    pose = np.array([-0.1, 0.25, 0.05, 90.0, 110.0, 0.0, 0.7])
    sample = Sample(z * model.shape_sigma, w * model.expression_sigma, pose, 200, 180)
    centre = np.array([90.0, 88.0])
    side = SETTINGS.box_scale * SIDE
    window = Window(*(centre - side / 2).tolist(), side, SIZE)
    [maps] = PnccRenderer(model, 1e-3).render([sample], [window])
    planes = [maps.pncc_mm, maps.offset_mm] if target == "pncc_offset" else None
    shape = np.concatenate(planes, axis=-1) if planes else maps.pncc_mm + maps.offset_mm
    fit = ModelFit(model, 1e-3)
    return PhotoFit(Oracle(shape, target), fit, settings), sample, np.r_[z, w], centre


IMAGE = np.full((200, 180, 3), 77, np.uint8)


@pytest.mark.parametrize("camera", ["affine", "pinhole"])
def test_a_perfect_network_gives_back_camera_and_coefficients(camera: str) -> None:
    photo, sample, truth, centre = photographed(settings=replace(SETTINGS, camera=camera))
    seen = photo.see(IMAGE, centre, SIDE)
    solution = photo.solve([seen])
    found = np.r_[solution.identity, solution.expressions[0]]
    np.testing.assert_allclose(found, truth, atol=0.1)  # a vertex takes its pixel's offset
    posed = photo.fit.posed_mm(solution.identity, solution.expressions[0])
    true = photo.fit.posed_mm(truth[:3], truth[3:])
    assert np.linalg.norm(posed - true, axis=1).mean() < 0.3
    renderer = PnccRenderer(face_model(), 1e-3)
    expected = renderer.keypoints_px(sample)
    pixels = seen.camera.project(true[face_model().keypoints])
    assert np.linalg.norm(pixels - expected, axis=1).max() < 0.3
    assert len(seen.cloud_mm) == len(seen.cloud_rgb) >= len(seen.points_mm)
    assert (seen.cloud_rgb == 77).all()
    # correspondences are in the photograph: the crop's pixel centres carried back
    matrix = crop_matrix(centre, SETTINGS.box_scale * SIDE, SIZE)
    crop = seen.pixels_px @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(crop - 0.5, seen.moves.pixels[:, ::-1], atol=1e-9)


def test_two_photographs_share_the_identity() -> None:
    photo, _, _, centre = photographed()
    seen = photo.see(IMAGE, centre, SIDE)
    alone, both = photo.solve([seen]), photo.solve([seen, seen])
    np.testing.assert_allclose(alone.identity, both.identity, atol=1e-3)
    assert both.expressions.shape == (2, 2)


def test_direct_xyz_finds_correspondences_by_itself() -> None:
    photo, _, truth, centre = photographed("xyz", replace(SETTINGS, prior=0.05))
    solution = photo.solve([photo.see(IMAGE, centre, SIDE)])
    posed = photo.fit.posed_mm(solution.identity, solution.expressions[0])
    true = photo.fit.posed_mm(truth[:3], truth[3:])
    mean_error = np.linalg.norm(photo.fit.mean_mm - true, axis=1).mean()
    assert np.linalg.norm(posed - true, axis=1).mean() < 0.7 * mean_error


def test_what_a_photograph_cannot_show() -> None:
    photo, _, _, centre = photographed()
    with pytest.raises(ValueError, match="a side above 0 px"):
        photo.see(IMAGE, centre, 0.0)
    fit = photo.fit
    empty = PhotoFit(Oracle(np.zeros((SIZE, SIZE, 6)), "pncc_offset"), fit, SETTINGS)
    with pytest.raises(ValueError, match=">= 10 face pixels, so that vertices are seen, got 0 of"):
        empty.see(IMAGE, centre, SIDE)
    flat = np.zeros((SIZE, SIZE, 6))
    ids = np.arange(31 * 31).reshape(31, 31)[2:-2, 2:-2]
    flat[10:37, 10:37, :3] = fit.mean_mm[ids]
    flat[10:37, 10:37, 5] = 80.0 - fit.mean_mm[ids][..., 2]  # offsets that make a plane of it
    wide = Oracle(flat, "pncc_offset", Boxes(offset_mm=120.0))
    with pytest.raises(ValueError, match="off a plane"):
        PhotoFit(wide, fit, SETTINGS).see(IMAGE, centre, SIDE)
    far = PhotoFit(photo.net, fit, replace(SETTINGS, minimum=10**6))
    with pytest.raises(ValueError, match="needs >= 1000000 vertices seen"):
        far.see(IMAGE, centre, SIDE)


def test_landmark_vertices_are_those_nearest_on_average() -> None:
    rng = np.random.default_rng(2)
    planted = rng.choice(200, 68, replace=False)
    choice = LandmarkChoice(200)
    with pytest.raises(ValueError, match="got none that was fitted"):
        choice.chosen()
    sums = np.zeros((68, 200))
    for _ in range(5):
        projected = rng.uniform(0, 60, (200, 2))
        annotated = projected[planted] + rng.normal(0, 0.5, (68, 2))
        choice.add(projected, annotated)
        sums += np.linalg.norm(annotated[:, None] - projected, axis=-1)
    chosen = choice.chosen()
    np.testing.assert_array_equal(chosen.vertices, planted)
    np.testing.assert_array_equal(chosen.vertices, sums.argmin(axis=1))
    np.testing.assert_allclose(chosen.error, sums.min(axis=1) / 5, atol=1e-4)
    with pytest.raises(ValueError, match="finite"):
        choice.add(np.full((200, 2), np.nan), annotated)
