"""pix2face: the released size and names, boxes, masks, one batch learned."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.methods.pix2face import (
    Boxes,
    Pix2Face,
    Pix2FaceConfig,
    face_pixels,
    fit_boxes,
    input_blob,
    published_boxes,
    published_jitter,
    target_planes,
)
from models.networks.train_loop import FitSettings
from pipelines import presets
from stages.runtime import params

TINY = Pix2FaceConfig(size_px=32, width=8, depth=4, background_weight=0.3)


def test_full_size_count_and_names() -> None:
    with torch.device("meta"):
        model = Pix2Face(Pix2FaceConfig())
        out = model(torch.empty(1, 3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) == 39_156_870
    names = {
        f"{kind}{i}.{p}"
        for kind in ("conv", "dconv")
        for i in range(1, 9)
        for p in ("weight", "bias")
    }
    assert set(model.state_dict()) == names
    assert out.shape == (1, 6, 256, 256)


def test_small_variant_keeps_the_size_and_stays_in_range() -> None:
    torch.manual_seed(0)
    out = Pix2Face(TINY)(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 6, 32, 32)
    assert float(out.detach().abs().max()) < 1


def test_published_background_code() -> None:
    zero = Boxes().encode(np.zeros(6))
    np.testing.assert_allclose(zero, [0, 0.130, -0.714, 0, 0, 0], atol=5e-4)


def test_boxes_round_trip_and_clip() -> None:
    boxes = Boxes()
    rng = np.random.default_rng(0)
    low, high = boxes.ranges()
    planes = rng.uniform(low, high, (5, 4, 6))
    np.testing.assert_allclose(boxes.decode(boxes.encode(planes)), planes, atol=1e-9)
    assert boxes.encode(np.full(6, 1e4)).max() == 1.0


def test_published_box_is_taken_for_faces_that_it_holds():
    face = np.array([[-90.0, -120, -20], [90, 95, 140]])
    assert published_boxes(face) == Boxes()
    for outside in ([0.0, 0, -25.1], [0.0, 100.1, 0]):
        with pytest.raises(ValueError, match="does not hold a mean face"):
            published_boxes(np.vstack([face, outside]))


def test_fitted_boxes_hold_the_mean_and_keep_it_from_the_origin() -> None:
    rng = np.random.default_rng(1)
    mean = rng.uniform([-70, -80, 30], [70, 90, 110], (500, 3))
    boxes = fit_boxes(mean, 18.2)
    low, high = boxes.ranges()
    assert (mean > low[:3]).all()
    assert (mean < high[:3]).all()
    assert boxes.offset_mm == 20
    assert (low[:3] < 0).all()
    with pytest.raises(ValueError, match="10.0 mm from the origin"):
        fit_boxes(np.vstack([mean, [[1.0, 2.0, 3.0]]]), 18.2)


def test_targets_mask_before_encoding() -> None:
    pncc = np.full((3, 3, 3), 50.0)
    offset = np.full((3, 3, 3), 5.0)
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    planes = target_planes(pncc, offset, mask, Boxes())
    assert planes.dtype == np.float32
    np.testing.assert_allclose(
        planes[:, 1, 1], Boxes().encode(np.array([50, 50, 50, 5, 5, 5.0])), atol=1e-6
    )
    np.testing.assert_allclose(planes[:, 0, 2], Boxes().encode(np.zeros(6)), atol=1e-6)


def test_face_pixels_are_eroded_and_end_at_the_border() -> None:
    pncc = np.zeros((7, 9, 3))
    pncc[1:6, 2:8] = [0, 30, 80]
    pncc[0:2, 0:2] = [0, 0, 9]  # too near the origin
    want = np.zeros((7, 9), bool)
    want[2:5, 3:7] = True
    np.testing.assert_array_equal(face_pixels(pncc), want)
    assert not face_pixels(np.full((4, 4, 3), 50.0))[0].any()


def test_input_is_centred() -> None:
    crop = np.array([[[0, 255, 51]]], np.uint8)
    np.testing.assert_allclose(input_blob(crop)[:, 0, 0], [-0.5, 0.5, -0.3], atol=1e-6)


def test_depth_must_fit_the_size() -> None:
    with pytest.raises(ValueError, match="size_px=48, depth=5"):
        Pix2FaceConfig(size_px=48, depth=5)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = Pix2Face(TINY)
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    image = torch.rand(2, 3, 32, 32) * 0.1
    image[:, :, 8:24, 8:24] += 0.3
    target = torch.zeros(2, 6, 32, 32)
    target[:, :, 8:24, 8:24] = torch.linspace(-0.8, 0.8, 16)[None, None, None, :]
    batch = {"image": image, "target": target, "mask": mask}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(120):
        loss = model.losses(model(batch["image"]), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_transposed_variant_has_its_own_count_and_the_same_shapes() -> None:
    with torch.device("meta"):
        model = Pix2Face(Pix2FaceConfig(up="transposed"))
        out = model(torch.empty(1, 3, 256, 256))
    bilinear = 39_156_870
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    outputs = [*widths[-2::-1], 6]
    inputs = [512, *[2 * width for width in widths[-2::-1]]]
    kernels = sum(a * b for a, b in zip(inputs, outputs, strict=True))
    assert sum(p.numel() for p in model.parameters()) == bilinear + (16 - 9) * kernels
    assert out.shape == (1, 6, 256, 256)


def test_direct_xyz_has_three_planes_that_hold_mean_and_offset() -> None:
    config = Pix2FaceConfig(size_px=32, width=8, depth=4, target="xyz")
    assert Pix2Face(config)(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    pncc, offset = np.full((2, 2, 3), [50.0, -40, 90]), np.full((2, 2, 3), [-3.0, 25, 1])
    mask = np.array([[True, False], [True, True]])
    planes = target_planes(pncc, offset, mask, Boxes(), "xyz")
    assert planes.shape == (3, 2, 2)
    shape = Boxes().decode(planes.transpose(1, 2, 0), "xyz")
    np.testing.assert_allclose(shape[mask], (pncc + offset)[mask], atol=1e-4)
    np.testing.assert_allclose(shape[0, 1], 0, atol=1e-4)  # background: the zero vector
    low, high = Boxes().ranges("xyz")
    np.testing.assert_array_equal(low, [-125, -155, -50])
    np.testing.assert_array_equal(high, [125, 125, 175])


def test_published_jitter_written_out() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 200, (5, 6, 3)).astype(np.uint8)
    lit = published_jitter(image, np.random.default_rng(4))
    draws = np.random.default_rng(4)
    exponent, gains = 1 + 0.4 * (draws.random() - 0.5), 1 - 0.2 * draws.random(3)
    values = image.astype(float) ** exponent * gains
    np.testing.assert_array_equal(lit, np.rint(values * image.max() / values.max()))
    assert lit.max() == image.max()
    assert not published_jitter(np.zeros((2, 2, 3), np.uint8), rng).any()


def test_paper_preset_is_the_papers_schedule(
    repository: Path, tmp_path: Path, copy_params: Callable[[Path], None]
) -> None:
    shutil.copytree(repository / "presets", tmp_path / "presets")
    copy_params(tmp_path)
    presets.apply("paper", tmp_path)
    section = params.load(tmp_path / "params.yaml").train.pix2face
    fit = section.fit
    assert fit.steps * fit.batch == 60 * 100_000
    assert fit.batch == 4
    assert tuple(fit.betas) == (0.5, 0.9)
    rate = FitSettings(
        fit.steps, fit.learning_rate, fit.final_rate, fit.schedule, betas=tuple(fit.betas)
    ).rate
    assert rate(0) == pytest.approx(1e-3)
    assert rate(fit.steps - 1) == pytest.approx(2.1e-5)
    epoch = fit.steps / 60
    for e in (10, 30, 59):  # one factor per epoch, as 0.001 * 0.021 ** (e / 59) but for 1 / 60
        assert rate(round(e * epoch)) == pytest.approx(1e-3 * 0.021 ** (e / 60), rel=1e-4)
    assert section.augment.rotate_deg == 0
    assert not section.augment.flip
    config = Pix2FaceConfig(section.size_px, section.width, section.depth, up=section.up)
    with torch.device("meta"):
        assert sum(p.numel() for p in Pix2Face(config).parameters()) == 39_156_870
