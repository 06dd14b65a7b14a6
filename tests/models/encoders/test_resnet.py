"""ResNet-50: counts, public names, strides, a TF-slim checkpoint's variables."""

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from models.networks.encoders.resnet import ResNet, ResNetConfig, slim_state

TINY = {"layers": (2, 1, 1, 1), "width": 4}


def count(kind: str) -> int:
    with torch.device("meta"):
        net = ResNet(ResNetConfig(kind))  # type: ignore[arg-type]
    return sum(p.numel() for p in net.parameters())


def test_full_size_counts() -> None:
    assert count("v1.5") == 23_508_032
    assert count("v2") == 23_519_360  # as published for ResNet50V2 without its classifier


def test_names_of_the_public_torch_checkpoints() -> None:
    with torch.device("meta"):
        names = set(ResNet(ResNetConfig("v1.5")).state_dict())
    assert len(names) == 318
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.1.bias"} <= names
    assert {"layer3.5.conv3.weight", "layer4.2.bn3.weight"} <= names
    assert not {"conv1.bias", "layer1.1.downsample.0.weight"} & names


@pytest.mark.parametrize(("kind", "sides"), [("v2", (8, 4, 2, 2)), ("v1.5", (16, 8, 4, 2))])
def test_where_the_strides_are(kind: str, sides: tuple[int, ...]) -> None:
    net = ResNet(ResNetConfig(kind, **TINY)).eval()  # type: ignore[arg-type]
    seen = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda *call: seen.append(call[2].shape[-1]))
    features = net(torch.zeros(2, 3, 64, 64))
    assert tuple(seen) == sides
    assert features.shape == (2, net.config.features)
    assert net.config.features == 128


def test_a_pre_activation_unit_written_out() -> None:
    torch.manual_seed(0)
    unit = ResNet(ResNetConfig("v2", **TINY)).layer1[1].eval()  # stride 2, identity shortcut
    x = torch.randn(2, 16, 6, 6)
    a = nnf.relu(unit.bn1(x))
    a = nnf.relu(unit.bn2(nnf.conv2d(a, unit.conv1.weight)))
    a = nnf.relu(unit.bn3(nnf.conv2d(a, unit.conv2.weight, stride=2, padding=1)))
    a = nnf.conv2d(a, unit.conv3.weight, unit.conv3.bias)
    torch.testing.assert_close(unit(x), x[..., ::2, ::2] + a)


def slim_variables(net: ResNet) -> dict[str, np.ndarray]:
    """The variables of a slim checkpoint, written by hand from slim's naming."""
    out = {}

    def conv(scope: str, module: torch.nn.Conv2d) -> None:
        out[f"{scope}/weights"] = module.weight.detach().numpy().transpose(2, 3, 1, 0)
        if module.bias is not None:
            out[f"{scope}/biases"] = module.bias.detach().numpy()

    def norm(scope: str, module: torch.nn.BatchNorm2d) -> None:
        out[f"{scope}/gamma"] = module.weight.detach().numpy()
        out[f"{scope}/beta"] = module.bias.detach().numpy()
        out[f"{scope}/moving_mean"] = module.running_mean.numpy()
        out[f"{scope}/moving_variance"] = module.running_var.numpy()

    root = "resnet_v2_50"
    conv(f"{root}/conv1", net.conv1)
    norm(f"{root}/postnorm", net.norm)
    for block in range(1, 5):
        for index, unit in enumerate(net.get_submodule(f"layer{block}"), start=1):
            scope = f"{root}/block{block}/unit_{index}/bottleneck_v2"
            norm(f"{scope}/preact", unit.bn1)
            conv(f"{scope}/conv1", unit.conv1)
            norm(f"{scope}/conv1/BatchNorm", unit.bn2)
            conv(f"{scope}/conv2", unit.conv2)
            norm(f"{scope}/conv2/BatchNorm", unit.bn3)
            conv(f"{scope}/conv3", unit.conv3)
            if unit.downsample is not None:
                conv(f"{scope}/shortcut", unit.downsample[0])
    return out


def test_a_slim_checkpoint_loads_strictly() -> None:
    torch.manual_seed(1)
    source, other = (ResNet(ResNetConfig("v2", **TINY)).eval() for _ in range(2))
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    variables = slim_variables(source)
    extra = {"resnet_v2_50/logits/biases": np.zeros(3), "global_step": np.array(5)}
    other.load_state_dict(slim_state({**variables, **extra}))
    image = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(other(image), source(image))
    with pytest.raises(ValueError, match="resnet_v2_50/odd/thing"):
        slim_state({"resnet_v2_50/odd/thing/weights": np.zeros(1)})
