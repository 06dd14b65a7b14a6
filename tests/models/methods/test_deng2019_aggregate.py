"""C-Net: counts, the plain mean at the start, sets of any size, a frozen R-Net."""

import numpy as np
import pytest
import torch

from models.methods.deng2019 import Deng2019, Deng2019Config
from models.methods.deng2019_aggregate import ConfidenceNet, Deng2019Set, aggregate
from models.networks.encoders.resnet import ResNetConfig

TRUNK = ResNetConfig("v1.5", (1, 1, 1, 1), 2)
CONFIG = Deng2019Config(trunk=TRUNK, n_shape=6, n_expression=3, n_texture=4, size_px=32)


def some(set_size: int = 3, *, confident: bool = False) -> Deng2019Set:
    torch.manual_seed(0)
    r_net = Deng2019(CONFIG)
    for head in r_net.final_layers:
        torch.nn.init.normal_(head.weight)
    model = Deng2019Set(r_net, set_size)
    if confident:
        torch.nn.init.normal_(model.c_net.fc2.weight)
    return model.train()


def test_counts_of_the_paper() -> None:
    with torch.device("meta"):
        net = ConfidenceNet(ResNetConfig("v1.5"), 80)
    assert sum(p.numel() for p in net.parameters()) == 2_991_440
    assert net.fc1.in_features == 256 + 2048
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["convs.2.weight"] == (256, 256, 3, 3)
    assert shapes["fc2.weight"] == (80, 512)


def test_means_weigh_each_coefficient() -> None:
    alpha = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    confidence = torch.tensor([[0.25, 0.9], [0.75, 0.1]])
    torch.testing.assert_close(aggregate(alpha, confidence), torch.tensor([2.5, 12.0]))
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 5, 4)), rng.uniform(0.1, 1, (2, 5, 4))
    many = aggregate(torch.as_tensor(a), torch.as_tensor(c))
    np.testing.assert_allclose(many, (a * c).sum(1) / c.sum(1))


def test_an_untrained_c_net_gives_the_plain_mean() -> None:
    model = some()
    image = torch.rand(6, 3, 32, 32)
    code, confidence = model.estimates(image)
    assert (confidence == 0.5).all()
    joint = model(image)
    mean = code[:, :6].reshape(2, 3, 6).mean(1).repeat_interleave(3, dim=0)
    torch.testing.assert_close(joint[:, :6], mean)
    assert torch.equal(joint[:, 6:], code[:, 6:])


def test_order_and_size_of_a_set_are_free() -> None:
    model = some(confident=True)
    image = torch.rand(4, 3, 32, 32)
    joint = model(image, set_size=4)
    assert torch.equal(joint[0, :6], joint[3, :6])
    order = [2, 0, 3, 1]
    torch.testing.assert_close(model(image[order], set_size=4), joint[order])
    code, confidence = model.estimates(image)
    assert confidence.std() > 0.01
    torch.testing.assert_close(joint[0, :6], aggregate(code[:, :6], confidence))
    torch.testing.assert_close(model(image[:1], set_size=1), code[:1])
    with pytest.raises(ValueError, match="sets of 3 photographs, got 4"):
        model(image)


def test_only_the_c_net_learns() -> None:
    model = some(confident=True)
    before = {name: value.clone() for name, value in model.r_net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.rand(3, 3, 32, 32))[:, :6].square().sum().backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.c_net.parameters())
    assert all(p.grad is None for p in model.r_net.parameters())
    for name, value in model.r_net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.c_net.training
    assert not model.r_net.backbone.training
    assert {name.split(".")[0] for name in model.state_dict()} == {"r_net", "c_net"}


def test_the_perceptual_term_counts_less_in_sets_unless_it_is_off() -> None:
    assert some().r_net.config.perceptual_weight == 0.1
    off = Deng2019(Deng2019Config(trunk=TRUNK, perceptual_weight=0.0))
    assert Deng2019Set(off).r_net.config.perceptual_weight == 0.0


def test_learns_which_photographs_to_believe() -> None:
    """R-Net's estimate from bright photographs is right, that from dark ones is not."""
    model = some(set_size=2)
    generator = torch.Generator().manual_seed(3)
    image = (
        torch.rand(8, 3, 32, 32, generator=generator)
        * torch.tensor([1.0, 0.1] * 4)[:, None, None, None]
    )
    with torch.no_grad():
        right = model.estimates(image)[0][::2, :6].repeat_interleave(2, dim=0)
    optimizer = torch.optim.Adam(model.c_net.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = (model(image)[:, :6] - right).square().mean()
        loss.backward()
        optimizer.step()
    confidence = model.estimates(image)[1]
    assert confidence[::2].mean() > 2 * confidence[1::2].mean()
