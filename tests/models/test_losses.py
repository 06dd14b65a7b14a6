"""Losses against closed forms and slow twins."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.networks.losses import (
    angular_margin_logits,
    angular_margin_loss,
    gated_l1,
    masked_l1,
    ring_loss,
    weighted_l1,
)


def test_weighted_l1_of_one_millimetre_everywhere_is_the_mean_weight() -> None:
    weights = torch.tensor([150.0] * 1787 + [0.01] * 2268 + [1.0] * 968)
    target = torch.zeros(2, 5023, 3)
    loss = weighted_l1(target + 1e-3, target, weights)
    assert abs(float(loss) - 53.56) < 0.01
    assert abs(float(weights.mean()) - 53.56) < 0.01


def test_weighted_l1_equals_the_loop() -> None:
    rng = np.random.default_rng(0)
    p, t, w = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3)), rng.random(4)
    total = sum(w[v] * abs(p[b, v, c] - t[b, v, c]) for b, v, c in np.ndindex(2, 4, 3)) / 24
    got = weighted_l1(*(torch.as_tensor(x) for x in (p, t, w)), scale=10.0)
    np.testing.assert_allclose(float(got), 10 * total, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, math.pi), st.floats(0.0, 0.8))
def test_margin_adds_to_the_true_angle(angle: float, margin: float) -> None:
    cosine = torch.full((1, 3), math.cos(angle), dtype=torch.float64)
    logits = angular_margin_logits(cosine, torch.tensor([1]), 64.0, margin)[0] / 64
    assert abs(float(logits[0]) - math.cos(angle)) < 1e-12
    expected = math.cos(angle + margin)
    if angle + margin > math.pi:
        expected = math.cos(angle) - margin * math.sin(margin)
    assert abs(float(logits[1]) - expected) < 1e-5
    assert float(logits[1]) <= float(logits[0]) + 1e-9


def test_zero_margin_is_plain_cosine_softmax() -> None:
    torch.manual_seed(0)
    e, c = torch.randn(5, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 2, 0])
    cosine = nnf.cosine_similarity(e[:, None], c[None], dim=-1)
    want = nnf.cross_entropy(16 * cosine, labels)
    torch.testing.assert_close(angular_margin_loss(e, c, labels, 16.0, 0.0), want)
    assert float(angular_margin_loss(e, c, labels, 16.0, 0.3)) > float(want)


def test_margin_loss_ignores_lengths_and_has_a_right_gradient() -> None:
    torch.manual_seed(1)
    e = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    c = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([4, 0, 2])
    torch.testing.assert_close(
        angular_margin_loss(3 * e, 0.1 * c, labels, 8.0, 0.4),
        angular_margin_loss(e, c, labels, 8.0, 0.4),
    )
    assert torch.autograd.gradcheck(
        lambda a, b: angular_margin_loss(a, b, labels, 8.0, 0.4), (e, c)
    )


def test_masked_l1_weighs_background() -> None:
    target = torch.zeros(1, 6, 2, 2)
    predicted = target.clone()
    predicted[:, :, 0, 0] = 1.0  # on the face
    predicted[:, :, 1, 1] = 3.0  # off it
    mask = torch.tensor([[[True, True], [False, False]]])
    assert float(masked_l1(predicted, target)) == 1.0
    assert float(masked_l1(predicted, target, mask, 0.0)) == 0.5
    assert abs(float(masked_l1(predicted, target, mask, 0.5)) - (1 + 1.5) / 3) < 1e-6


def test_ring_of_equal_shapes_costs_the_margin_per_pair() -> None:
    beta = torch.randn(1, 1, 7).expand(4, 6, 7)
    # every one of the 5 x 5 ordered pairs, j = k included, costs eta; divided by R
    assert float(ring_loss(beta, 0.5)) == pytest.approx(25 * 0.5 / 6)


def test_ring_of_a_distant_stranger_costs_nothing() -> None:
    beta = torch.zeros(2, 5, 3)
    beta[:, -1, 0] = 10.0
    assert float(ring_loss(beta, 0.5)) == 0.0


def test_ring_terms_of_a_photograph_with_itself_count() -> None:
    """A stranger at squared distance 0.3: four pairs j, k of equal shapes, two of them j = k."""
    beta = torch.zeros(1, 3, 2, dtype=torch.float64)
    beta[0, 2, 1] = math.sqrt(0.3)
    assert float(ring_loss(beta, 0.5)) == pytest.approx(4 * 0.2 / 3)


def test_ring_loss_equals_the_printed_sum() -> None:
    rng = np.random.default_rng(5)
    nb, R = 3, 5
    beta = rng.normal(size=(nb, R, 4)) * 0.5
    total = 0.0
    for i in range(nb):
        for j in range(R - 1):
            for k in range(R - 1):
                same = ((beta[i, j] - beta[i, k]) ** 2).sum()
                other = ((beta[i, j] - beta[i, R - 1]) ** 2).sum()
                total += max(0.0, same - other + 0.5)
    assert float(ring_loss(torch.as_tensor(beta), 0.5)) == pytest.approx(total / (nb * R))
    with pytest.raises(ValueError, match=">= 3 photographs per ring"):
        ring_loss(torch.zeros(1, 2, 4), 0.5)


def test_ring_loss_has_the_right_gradient() -> None:
    torch.manual_seed(0)
    beta = (torch.randn(2, 4, 3, dtype=torch.float64) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: ring_loss(b, 0.5), [beta])


def test_gated_l1_is_the_mean_over_coordinates_of_trusted_points() -> None:
    target = torch.zeros(2, 3, 2)
    predicted = target + torch.tensor([0.3, -0.1])
    confidence = torch.tensor([[0.9, 0.41, 0.5], [0.0, 0.4, 0.2]])
    assert float(gated_l1(predicted, target, confidence, 0.41)) == pytest.approx(0.2)
    moved = predicted.clone()
    moved[confidence <= 0.41] = 99.0  # no influence
    assert float(gated_l1(moved, target, confidence, 0.41)) == pytest.approx(0.2)
    nothing = gated_l1(predicted, target, torch.zeros(2, 3), 0.41)
    assert float(nothing) == 0.0
