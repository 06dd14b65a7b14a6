"""iresnet: size and names of the public checkpoints, behaviour of the small variants."""

import pytest
import torch

from models.networks.encoders.iresnet import IResNet, IResNetConfig

TINY = IResNetConfig(layers=(1, 2, 1, 1), widths=(4, 4, 6, 8), embedding=16, input_px=28)


def public_names(layers: tuple[int, ...]) -> set[str]:
    """Keys of an ``arcface_torch`` backbone, spelled out independently of the module."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    names |= {f"{m}.{n}" for m in ("bn1", "bn2", "features") for n in norm}
    for layer, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            root = f"layer{layer}.{block}"
            names |= {f"{root}.{m}.{n}" for m in ("bn1", "bn2", "bn3") for n in norm}
            names |= {f"{root}.{m}.weight" for m in ("conv1", "conv2", "prelu")}
        names |= {f"layer{layer}.0.downsample.0.weight"}
        names |= {f"layer{layer}.0.downsample.1.{n}" for n in norm}
    return names


@pytest.mark.parametrize(
    ("layers", "entries", "numbers"),
    [((3, 13, 30, 3), 925, 65_156_160), ((3, 4, 14, 3), 475, 43_590_848)],
)
def test_full_sizes_have_the_public_names_and_counts(
    layers: tuple[int, int, int, int], entries: int, numbers: int
) -> None:
    with torch.device("meta"):
        net = IResNet(IResNetConfig(layers=layers))
    assert set(net.state_dict()) == public_names(layers)
    assert len(net.state_dict()) == entries
    assert sum(p.numel() for p in net.parameters()) == numbers
    assert net.fc.weight.shape == (512, 25088)


def test_a_checkpoint_with_the_public_names_loads_strictly() -> None:
    net = IResNet(TINY)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    file = {name: torch.rand(shapes[name]) for name in public_names(TINY.layers)}
    file |= {n: torch.tensor(7) for n in file if n.endswith("num_batches_tracked")}
    net.load_state_dict(file)
    del file["bn2.bias"]
    with pytest.raises(RuntimeError, match=r"bn2\.bias"):
        net.load_state_dict(file)


def test_crops_are_averaged_down_to_the_working_size() -> None:
    torch.manual_seed(0)
    net = IResNet(TINY).eval()
    small = torch.randn(2, 3, 28, 28)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(net(large), net(small), atol=1e-5, rtol=1e-5)
    assert net(small).shape == (2, 16)


def test_evaluation_treats_each_image_alone() -> None:
    torch.manual_seed(0)
    net = IResNet(TINY).eval()
    images = torch.randn(3, 3, 28, 28)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]), atol=1e-5, rtol=1e-5)


def test_gradient_reaches_every_learning_parameter() -> None:
    torch.manual_seed(0)
    net = IResNet(TINY)
    net(torch.randn(4, 3, 28, 28)).square().sum().backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
    assert net.features.weight.grad is None


def test_a_size_that_does_not_divide_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="divide 112, got 50"):
        IResNetConfig(input_px=50)
