"""The basis-free decoder: count, closed forms, initial ranges, gradients, a slow twin."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.networks.siren import SirenConfig, SirenDecoder

TEMPLATE = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.1, 0.4, 0], [0.1, 0.2, 0.1], [0.05, 0.1, 0.02]])
SMALL = SirenConfig(width=6, layers=3, mapping=5)


def small() -> SirenDecoder:
    torch.manual_seed(0)
    return SirenDecoder(TEMPLATE, embedding=4, config=SMALL)


def test_parameters_of_the_published_size() -> None:
    net = SirenDecoder(TEMPLATE)
    assert sum(p.numel() for p in net.parameters()) == 1_975_299
    assert sum(p.numel() for p in net.mapping.parameters()) == 1_447_168
    assert net.state_dict().keys().isdisjoint({"template", "points"})  # licensed: never in a state


def test_the_template_spans_minus_one_to_one() -> None:
    points = small().points.numpy()
    assert points[:, 1].min() == pytest.approx(-1)
    assert points[:, 1].max() == pytest.approx(1)
    np.testing.assert_allclose(points.min(axis=0), -points.max(axis=0), atol=1e-6)
    sides = np.ptp(points, axis=0) / np.ptp(TEMPLATE, axis=0)  # the same scale on every axis
    np.testing.assert_allclose(sides, 5.0, rtol=1e-6)


def test_without_modulation_layers_are_plain_sines_of_frequency_30() -> None:
    """A mapping network that answers zero leaves f = 30, p = 0: sin(30 (W x + b))."""
    net = small()
    for parameter in net.mapping.output.parameters():
        torch.nn.init.zeros_(parameter)
    h = net.points
    for layer in net.network:
        h = torch.sin(30.0 * (h @ layer.weight.T + layer.bias))
    expected = TEMPLATE + 0.2 * (h @ net.final.weight.T + net.final.bias).detach().numpy()
    got = net(torch.randn(2, 4)).detach().numpy()
    np.testing.assert_allclose(got, np.stack([expected, expected]), atol=1e-6)


def test_a_silent_last_layer_gives_the_template() -> None:
    net = small()
    for parameter in net.final.parameters():
        torch.nn.init.zeros_(parameter)
    np.testing.assert_allclose(net(torch.randn(3, 4)).detach().numpy()[1], TEMPLATE, atol=1e-7)


def test_one_unit_by_hand() -> None:
    """One layer of one unit: frequency 15 * 0.4 + 30, phase 0.7, on x / half."""
    net = SirenDecoder(TEMPLATE, embedding=1, config=SirenConfig(width=1, layers=1, mapping=1))
    state = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    state["mapping.output.bias"] = torch.tensor([0.4, 0.7])
    state["network.0.weight"], state["network.0.bias"] = torch.tensor([[2.0, 0, 0]]), torch.ones(1)
    state["final.weight"], state["final.bias"] = torch.tensor([[0.0], [1], [0]]), torch.zeros(3)
    net.load_state_dict(state)
    moved = net(torch.ones(1, 1))[0, 1] - net.template[1]
    x = (0.2 - 0.1) / 0.2
    assert moved.tolist() == pytest.approx([0, 0.2 * math.sin(36 * (2 * x + 1) + 0.7), 0], abs=1e-6)


@pytest.mark.parametrize("middle", [30.0, 12.0])
def test_equals_its_slow_twin(middle: float) -> None:
    torch.manual_seed(0)
    net = SirenDecoder(TEMPLATE, embedding=4, config=replace(SMALL, frequency=middle))
    torch.manual_seed(1)
    z = torch.randn(3, 4)
    got = net(z).detach().numpy()
    codes = net.mapping(z).detach().double().numpy()
    for b in range(3):
        for v in range(len(TEMPLATE)):
            h = net.points[v].double().numpy()
            for k, layer in enumerate(net.network):
                W, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double()
                out = np.empty(6)
                for i in range(6):
                    frequency = middle / 2 * codes[b, 6 * k + i] + middle
                    phase = codes[b, 18 + 6 * k + i]
                    out[i] = math.sin(frequency * (float(W[i] @ h) + float(bias[i])) + phase)
                h = out
            W, bias = net.final.weight.detach().double().numpy(), net.final.bias.detach().double()
            expected = TEMPLATE[v] + 0.2 * (W @ h + bias.numpy())
            np.testing.assert_allclose(got[b, v], expected, atol=2e-5)


def test_some_vertices_are_those_of_all() -> None:
    net, z = small(), torch.randn(2, 4)
    some = torch.tensor([3, 0])
    torch.testing.assert_close(net(z, some), net(z)[:, some])


def test_initial_ranges() -> None:
    torch.manual_seed(2)
    net = SirenDecoder(TEMPLATE)
    bound = math.sqrt(6 / 256) / 25
    first = net.network[0].weight.detach().abs()
    assert 0.32 < float(first.max()) <= 1 / 3
    for layer in (*list(net.network)[1:], net.final):
        largest = float(layer.weight.detach().abs().max())
        assert 0.98 * bound < largest <= bound * (1 + 1e-6)
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_gradients_are_exact() -> None:
    net = small().double()
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    some = torch.tensor([1, 4])
    assert torch.autograd.gradcheck(lambda code: net(code, some), (z,))
    weight = net.network[1].weight
    kept = weight.detach().clone()

    def of_weight(value: torch.Tensor) -> torch.Tensor:
        changed = {"network.1.weight": value}
        return torch.func.functional_call(net, changed, (z.detach(), some))

    assert torch.autograd.gradcheck(of_weight, (kept.requires_grad_(),))


def test_it_learns_an_offset_without_any_basis() -> None:
    net = small()
    z = torch.nn.functional.normalize(torch.randn(2, 4))
    target = net.template + 0.004 * torch.randn(2, 5, 3)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        loss = 1000 * (net(z) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("template", "layers"), [(np.zeros((3, 3)), 2), (TEMPLATE, 0)], ids=["flat", "no layer"]
)
def test_what_it_needs_is_said(template: np.ndarray, layers: int) -> None:
    with pytest.raises(ValueError, match="template with an extent and >= 1 layer, got half"):
        SirenDecoder(template, 4, SirenConfig(width=2, layers=layers, mapping=2))
