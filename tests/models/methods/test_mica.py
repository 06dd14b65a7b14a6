"""MICA: counts and names of the release, region weights, what learns, one batch learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from models.face.flame import FlameArrays
from models.methods import METHODS
from models.methods.mica import Mica, MicaConfig, public_state, region_weights
from models.networks.encoders.iresnet import IResNetConfig
from models.networks.mapping import MappingNetwork
from models.networks.siren import SirenConfig
from stages.corpus.flame import masks_pickle
from stages.datasets.flame_files import read_masks

TINY = IResNetConfig(layers=(1, 1, 1, 1), widths=(4, 4, 6, 8), embedding=16, input_px=28)
V, S = 30, 5


def flame() -> FlameArrays:
    rng = np.random.default_rng(0)
    weights = np.full((V, 5), 0.2)
    return FlameArrays(
        v_template=rng.normal(size=(V, 3)) * 0.1,
        faces=rng.integers(0, V, (40, 3)),
        shapedirs=rng.normal(size=(V, 3, S)) * 0.003,
        exprdirs=np.zeros((V, 3, 2)),
        posedirs=np.zeros((V, 3, 36)),
        joint_regressor=np.full((5, V), 1 / V),
        weights=weights,
        parents=np.array([-1, 0, 1, 1, 1]),
    )


def tiny(**changes: object) -> Mica:
    torch.manual_seed(0)
    config = MicaConfig(encoder=TINY, n_shape=S, hidden=12, **changes)  # type: ignore[arg-type]
    return Mica(config, flame(), np.linspace(0.1, 2, V))


def siren(**changes: object) -> Mica:
    torch.manual_seed(0)
    settings = {"decoder": "siren", "siren": SirenConfig(8, 3, 6), **changes}
    config = MicaConfig(encoder=TINY, **settings)  # type: ignore[arg-type]
    weights = np.linspace(0.1, 2, V)
    return Mica(config, vertex_weights=weights, template=flame().v_template)


def count(parameters: object) -> int:
    return sum(p.numel() for p in parameters)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("trainable", "learning"),
    [
        ("none", 0),
        ("L4", 25_965_568),
        ("L3-4", 61_146_880),
        ("L2-4", 64_926_976),
        ("all", 65_155_648),
    ],
)
def test_full_size_counts(trainable: str, learning: int) -> None:
    """The encoder's 65,156,160 parameters; 512 of them, the scale of its last norm, never learn."""
    with torch.device("meta"):
        model = Mica(MicaConfig(trainable=trainable))  # type: ignore[arg-type]
    assert model.flameModel is not None
    assert count(model.flameModel.parameters()) == 515_100
    assert count(model.arcface.parameters()) == 65_156_160
    assert count(p for p in model.arcface.parameters() if p.requires_grad) == learning


def test_the_siren_decoder_has_its_published_size_and_no_flame() -> None:
    model = Mica(MicaConfig(encoder=TINY, decoder="siren"), template=flame().v_template)
    assert model.flameModel is None
    full = Mica(
        MicaConfig(encoder=IResNetConfig((1, 1, 1, 1), (4, 4, 6, 8), 512, 28), decoder="siren"),
        template=flame().v_template,
    )
    assert count(dict(full.parameter_groups())["mapping"]) == 1_975_299
    assert {name.split(".")[0] for name in model.state_dict()} == {"arcface", "siren"}
    with pytest.raises(ValueError, match="needs Mica"):
        Mica(MicaConfig(encoder=TINY, decoder="siren"))


def test_mapping_network_equals_its_formula_and_names() -> None:
    torch.manual_seed(0)
    net = MappingNetwork(7, 5, 3, layers=4, kaiming_output=False)
    names = {f"network.{i}.{n}" for i in range(4) for n in ("weight", "bias")}
    assert set(net.state_dict()) == names | {"output.weight", "output.bias"}
    z = torch.randn(2, 7)
    h = z
    for layer in net.network:
        h = h @ layer.weight.T + layer.bias
        h = torch.where(h > 0, h, 0.2 * h)
    torch.testing.assert_close(net(z), h @ net.output.weight.T + net.output.bias)


@pytest.mark.parametrize("kaiming_output", [False, True])
def test_initial_scale_of_the_mapping_network(kaiming_output: bool) -> None:
    """MICA's linear layer starts from U(+-1/sqrt(n)) / 4, whose deviation is 1/sqrt(3 n) / 4."""
    torch.manual_seed(0)
    net = MappingNetwork(512, 300, 300, layers=4, kaiming_output=kaiming_output)
    gain = np.sqrt(2 / (1 + 0.2**2))
    assert float(net.network[1].weight.detach().std()) == pytest.approx(
        gain / np.sqrt(300), rel=0.02
    )
    last = (gain if kaiming_output else 1 / np.sqrt(3)) / np.sqrt(300)
    assert float(net.output.weight.detach().std()) == pytest.approx(0.25 * last, rel=0.02)


def test_mica_starts_from_the_small_linear_layer() -> None:
    regressor = Mica(MicaConfig(encoder=TINY, hidden=300)).flameModel.regressor
    assert float(regressor.output.weight.detach().abs().max()) <= 0.25 / np.sqrt(300)


@pytest.mark.parametrize(
    ("trainable", "learns"),
    [
        ("none", set()),
        ("L4", {"layer4", "bn2", "fc", "features"}),
        ("L3-4", {"layer3", "layer4", "bn2", "fc", "features"}),
        ("L2-4", {"layer2", "layer3", "layer4", "bn2", "fc", "features"}),
        (
            "all",
            {"conv1", "bn1", "prelu", "layer1", "layer2", "layer3", "layer4", "bn2", "fc"}
            | {"features"},
        ),
    ],
)
def test_trainable_sets(trainable: str, learns: set[str]) -> None:
    model = tiny(trainable=trainable)
    learning = {n.split(".")[0] for n, p in model.arcface.named_parameters() if p.requires_grad}
    assert learning == learns
    groups = dict(model.parameter_groups())
    assert bool(groups["encoder"]) == bool(learns)


def test_frozen_stages_do_not_drift() -> None:
    images = torch.randn(4, 3, 28, 28)
    for drift, still in (("frozen", True), ("reference", False)):
        model = tiny(bn_drift=drift).train()
        before = {n: v.clone() for n, v in model.arcface.state_dict().items()}
        model(images)
        after = model.arcface.state_dict()
        frozen = torch.equal(
            after["layer1.0.bn1.running_mean"], before["layer1.0.bn1.running_mean"]
        )
        assert frozen is still
        assert not torch.equal(after["bn2.running_mean"], before["bn2.running_mean"])


CENSUS = {150.0: 1787, 1.0: 968, 0.01: 2268}
"""Vertices by weight on FLAME's published masks."""


def census(masks: dict[str, np.ndarray]) -> dict[float, int]:
    weights, counts = np.unique(region_weights(MicaConfig(), masks, 5023), return_counts=True)
    return dict(zip(weights.tolist(), counts.tolist(), strict=True))


def test_vertices_by_weight_on_a_masks_file(tmp_path: Path) -> None:
    """The owners' file format with the owners' counts: 1787 face, 546 per eye, 588 per ear."""
    sizes = {"face": 1787, "left_eyeball": 546, "right_eyeball": 546, "left_ear": 588}
    sizes |= {"right_ear": 588, "scalp": 489}
    ids = np.random.default_rng(0).permutation(5023)
    ends = np.cumsum(list(sizes.values()))
    parts = np.split(ids, ends[:-1])
    parts[-1] = parts[-1][:489]
    masks = {name: np.sort(part) for name, part in zip(sizes, parts, strict=True)}
    file = tmp_path / "FLAME_masks.pkl"
    file.write_bytes(masks_pickle(masks))
    read = read_masks(file)
    assert census(read) == CENSUS
    assert region_weights(MicaConfig(), read, 5023).mean() == pytest.approx(53.56, abs=0.005)


def test_vertices_by_weight_on_the_owners_file(shared_data: Path) -> None:
    assert census(read_masks(shared_data / "flame_assets" / "FLAME_masks.pkl")) == CENSUS


def test_region_weights_let_the_face_win() -> None:
    masks = {
        "left_eyeball": np.array([0, 1]),
        "right_eyeball": np.array([2]),
        "left_ear": np.array([3, 4]),
        "right_ear": np.array([5]),
        "face": np.array([4, 6, 7]),
    }
    weights = region_weights(MicaConfig(), masks, 9)
    np.testing.assert_array_equal(weights, [0.01, 0.01, 0.01, 0.01, 150, 0.01, 150, 150, 1])
    del masks["face"]
    with pytest.raises(KeyError):
        region_weights(MicaConfig(), masks, 9)


def test_loss_is_the_weighted_distance_of_the_neutral_meshes() -> None:
    model = tiny(shape_penalty=0.5)
    beta, target = torch.randn(2, S), torch.randn(2, S)
    arrays = flame()
    difference = np.abs(arrays.shapedirs @ (beta - target).numpy().T)  # V 3 B
    vertices = 1000 * (difference * np.linspace(0.1, 2, V)[:, None, None]).mean()
    terms = model.losses(beta, {"beta": target})
    assert float(terms["vertices"]) == pytest.approx(vertices, rel=1e-4)
    total = vertices + 0.5 * float(beta.square().mean())
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-4)
    assert float(model.losses(target, {"beta": target})["vertices"]) == 0


def test_siren_s_loss_is_the_same_on_vertices() -> None:
    model = siren(shape_penalty=0.25).eval()
    assert model.siren is not None
    z, target = torch.randn(2, 16), torch.randn(2, V, 3) * 0.1
    with torch.no_grad():
        predicted = model.decode(z)
        terms = model.losses(z, {"vertices": target})
    weighted = (predicted - target).abs() * torch.linspace(0.1, 2, V)[:, None]
    assert float(terms["vertices"]) == pytest.approx(1000 * float(weighted.mean()), rel=1e-4)
    offsets = 1000 * (predicted - model.siren.template)
    total = float(terms["vertices"]) + 0.25 * float(offsets.square().mean())
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-4)


def test_siren_trains_on_drawn_vertices_and_is_judged_on_all() -> None:
    z, target = torch.randn(2, 16), torch.randn(2, V, 3) * 0.1

    def loss(model: Mica) -> float:
        with torch.no_grad():
            return float(model.losses(z, {"vertices": target})["vertices"])

    whole = loss(siren().train())
    model = siren(siren_points=V // 2).train()
    torch.manual_seed(4)
    drawn = [loss(model) for _ in range(400)]
    assert np.std(drawn) > 0.01 * whole
    assert np.mean(drawn) == pytest.approx(whole, rel=0.03)  # without bias
    torch.manual_seed(4)
    assert loss(model) == drawn[0]
    assert loss(model.eval()) == pytest.approx(whole, rel=1e-6)


def test_a_decoder_gives_some_vertices() -> None:
    some = torch.tensor([7, 2])
    for model, size in ((tiny(), S), (siren(), 16)):
        code = torch.randn(2, size)
        torch.testing.assert_close(model.decode(code, some), model.decode(code)[:, some])


def test_prediction_depends_on_the_direction_of_the_embedding_only() -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 28, 28)
    embedding = model.arcface(images)
    assert model.flameModel is not None
    want = model.flameModel.regressor(nnf.normalize(5 * embedding))
    torch.testing.assert_close(model(images), want)


def test_state_holds_no_flame_and_loads_a_release() -> None:
    model = tiny()
    state = model.state_dict()
    assert all(n.startswith(("arcface.", "flameModel.regressor.")) for n in state)
    arcface = {n.removeprefix("arcface."): v for n, v in state.items() if n.startswith("arcface")}
    shape = {n.removeprefix("flameModel."): v for n, v in state.items() if "regressor" in n}
    released = public_state(arcface, {**shape, "generator.v_template": torch.zeros(1)})
    tiny().load_state_dict(released)
    with pytest.raises(ValueError, match="surprise"):
        public_state(arcface, {"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match="needs FLAME"):
        Mica(MicaConfig(encoder=TINY, n_shape=S)).decode(torch.zeros(1, S))


@pytest.mark.parametrize("decoder", ["flame", "siren"])
def test_overfits_one_batch(decoder: str) -> None:
    model = (tiny if decoder == "flame" else siren)(trainable="all").train()
    batch = {"image": torch.randn(4, 3, 28, 28), "beta": torch.randn(4, S)}
    if decoder == "siren":
        heads = torch.as_tensor(flame().v_template, dtype=torch.float32)
        batch = {"image": batch["image"], "vertices": heads + 0.01 * torch.randn(4, V, 3)}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(150):
        loss = model.losses(model(batch["image"]), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.1 if decoder == "flame" else 0.5) * losses[0]


def test_methods_are_listed_explicitly() -> None:
    assert METHODS["mica"] is Mica
    assert set(METHODS) >= {"mica", "pix2face"}
