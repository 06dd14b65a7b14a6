"""Bilinear doubling: two matrix products are torch's own."""

import pytest
import torch

from models.networks.encoders.upsample import doubled, doubled_by_products


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 2), (5, 8), (32, 32)])
def test_products_are_torchs_interpolation_and_its_gradient(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn((2, 3, height, width), generator=generator, dtype=torch.float64)
    weight = torch.randn((2, 3, 2 * height, 2 * width), generator=generator, dtype=torch.float64)
    found = []
    for double in (doubled, doubled_by_products):
        leaf = x.clone().requires_grad_()
        out = double(leaf)
        (out * weight).sum().backward()
        found.append((out.detach(), leaf.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_corners_stay_and_a_ramp_is_a_ramp() -> None:
    ramp = torch.linspace(0, 3, 4).expand(1, 1, 4, 4)
    out = doubled_by_products(ramp)
    torch.testing.assert_close(out[0, 0, 0], torch.linspace(0, 3, 8))
