"""RingNet: counts, iterations, camera, losses, one batch learned, resumed training."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from models.face.flame import FlameArrays, LandmarkEmbedding
from models.face.flame_layer import rotation_matrices
from models.methods import METHODS
from models.methods.ringnet import (
    Regressor,
    RingNet,
    RingNetConfig,
    balanced_units,
    crop_box,
    input_blob,
    mean_camera,
    project,
)
from models.networks.encoders.resnet import ResNetConfig
from models.networks.losses import gated_l1, ring_loss
from models.networks.train_loop import FitResult, FitSettings, fit, make_deterministic, step_rng

V, F, S, E, R = 60, 80, 6, 4, 3
TRUNK = ResNetConfig("v2", (1, 1, 1, 1), 2)


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    yield
    torch.set_deterministic_debug_mode("default")
    torch.utils.deterministic.fill_uninitialized_memory = True


def flame() -> tuple[FlameArrays, LandmarkEmbedding]:
    rng = np.random.default_rng(0)
    arrays = FlameArrays(
        v_template=rng.normal(size=(V, 3)) * 0.05,
        faces=rng.integers(0, V, (F, 3)),
        shapedirs=rng.normal(size=(V, 3, S)) * 0.004,
        exprdirs=rng.normal(size=(V, 3, E)) * 0.004,
        posedirs=np.zeros((V, 3, 36)),
        joint_regressor=np.full((5, V), 1 / V),
        weights=np.full((V, 5), 0.2),
        parents=np.array([-1, 0, 1, 1, 1]),
    )
    marks = LandmarkEmbedding(
        static_faces=rng.integers(0, F, 51),
        static_bary=rng.dirichlet(np.ones(3), 51),
        dynamic_faces=rng.integers(0, F, (79, 17)),
        dynamic_bary=rng.dirichlet(np.ones(3), (79, 17)),
        full_faces=rng.integers(0, F, 68),
        full_bary=rng.dirichlet(np.ones(3), 68),
    )
    return arrays, marks


def tiny(**changes: Any) -> RingNet:
    torch.manual_seed(0)
    settings = {"n_shape": S, "n_expression": E, "hidden": 16, "ring_size": R, **changes}
    config = RingNetConfig(trunk=TRUNK, **settings)
    return RingNet(config, *flame(), camera=np.array([8.0, 0.01, -0.02]))


def test_counts_of_the_paper() -> None:
    config = RingNetConfig()
    with torch.device("meta"):
        model = RingNet(config)
    assert config.outputs == 159
    assert sum(p.numel() for p in model.regressor.parameters()) == 1_474_719
    assert sum(p.numel() for p in model.trunk.parameters()) == 23_519_360


def test_the_code_has_the_paper_s_order() -> None:
    model = RingNet(RingNetConfig(trunk=TRUNK))
    code = model.split(torch.arange(159.0)[None])
    assert code.camera[0].tolist() == [0, 1, 2]
    assert code.pose[0].tolist() == [3, 4, 5, 6, 7, 8]
    assert (float(code.beta[0, 0]), float(code.beta[0, -1])) == (9, 108)
    assert (float(code.psi[0, 0]), float(code.psi[0, -1])) == (109, 158)
    expected = [3, 4, 5, 0, 0, 0, 6, 7, 8, 0, 0, 0, 0, 0, 0]
    assert code.theta[0].tolist() == expected


@pytest.mark.parametrize("n_iter", [1, 3, 8])
def test_the_regressor_corrects_its_own_estimate(n_iter: int) -> None:
    torch.manual_seed(1)
    config = RingNetConfig(trunk=TRUNK, hidden=12, n_iter=n_iter, n_shape=3, n_expression=2)
    net = Regressor(5, config).eval()
    features, estimate = torch.randn(2, 5), torch.randn(2, 14)
    expected = estimate
    for _ in range(n_iter):
        h = torch.cat([features, expected], dim=1)
        h = (h @ net.fc1.weight.T + net.fc1.bias).clamp_min(0)
        h = (h @ net.fc2.weight.T + net.fc2.bias).clamp_min(0)
        expected = expected + h @ net.fc3.weight.T + net.fc3.bias
    torch.testing.assert_close(net(features, estimate), expected)


def test_dropout_acts_in_training_only() -> None:
    model = tiny(dropout=0.5)
    image = torch.randn(3, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(model(image), model(image))
    model.train()
    assert not torch.equal(model(image), model(image))


def test_camera_scales_after_the_shift_and_turns_y_down() -> None:
    points = torch.tensor([[[0.1, 0.2, 9.0]]])
    assert project(points, torch.tensor([[4.0, 0.5, -0.1]]))[0, 0].tolist() == pytest.approx(
        [4 * 0.6, -4 * 0.1]
    )


def test_mean_camera_recovers_a_camera() -> None:
    rng = np.random.default_rng(2)
    template = rng.normal(size=(68, 3)) * 0.05
    camera = np.array([9.0, 0.01, -0.03])
    seen = project(torch.as_tensor(template)[None], torch.as_tensor(camera)[None]).numpy()
    np.testing.assert_allclose(mean_camera(template, np.concatenate([seen, seen])), camera)


def test_first_estimates() -> None:
    assert tiny().initial.abs().sum() == 0
    start = tiny(init_estimate="mean").initial
    np.testing.assert_allclose(start[:3].numpy(), [8, 0.01, -0.02], rtol=1e-6)
    assert start[3:].abs().sum() == 0


def test_corrections_are_counted_from_the_first_estimate_in_units() -> None:
    model = tiny(init_estimate="mean", balanced=True).eval()
    image = torch.randn(2, 3, 32, 32)
    features = model.trunk(image)
    relative = model.regressor(features, torch.zeros(2, model.config.outputs))
    unit = torch.ones(model.config.outputs)
    unit[:6] = torch.tensor([0.8, 0.0125, 0.0125, 0.3, 0.3, 0.3])
    torch.testing.assert_close(model.unit, unit)
    torch.testing.assert_close(model(image), model.initial + unit * relative)
    loaded = RingNet(model.config)  # as at inference: without a camera
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded.eval()(image), model(image))
    assert (tiny(init_estimate="mean").unit == 1).all()


def test_balanced_units_move_a_face_s_landmarks_alike() -> None:
    """On points spread like a face's, every unit moves the picture by 0.03 to 0.3."""
    rng = np.random.default_rng(6)
    points = torch.as_tensor(
        rng.normal(size=(1, 68, 3)) * [0.035, 0.045, 0.03], dtype=torch.float32
    )
    camera = torch.tensor([[8.0, 0.0, 0.0]])
    before = project(points, camera)
    units = balanced_units(8.0)
    moves = []
    for k in range(3):
        changed = camera.clone()
        changed[0, k] += units[k]
        moves.append(float((project(points, changed) - before).norm(dim=-1).mean()))
    for k in range(3):
        turn = torch.zeros(1, 3)
        turn[0, k] = units[3 + k]
        turned = points @ rotation_matrices(turn)[0].T
        moves.append(float((project(turned, camera) - before).norm(dim=-1).mean()))
    assert 0.03 < min(moves) < max(moves) < 0.3


def test_at_scale_zero_only_the_camera_learns_from_landmarks() -> None:
    """Why ``init_estimate`` exists."""
    model = tiny(ring_weight=0.0, shape_penalty=0.0, expression_penalty=0.0)
    target = {"landmarks": torch.rand(R, 68, 2), "confidence": torch.ones(R, 68)}
    for scale, learns in ((0.0, False), (8.0, True)):
        code = torch.zeros(R, model.config.outputs)
        code[:, 0] = scale
        code.requires_grad_()
        model.losses(code, target)["loss"].backward()
        assert code.grad is not None
        assert bool(code.grad[:, 0].abs().sum() > 0)
        assert bool(code.grad[:, 3:].abs().sum() > 0) is learns


def test_total_is_the_weighted_sum_of_its_terms() -> None:
    model = tiny()
    torch.manual_seed(3)
    code = torch.randn(2 * R, model.config.outputs) * 0.3
    batch = {"landmarks": torch.randn(2 * R, 68, 2), "confidence": torch.rand(2 * R, 68)}
    terms = model.losses(code, batch)
    parts = model.split(code)
    assert model.landmarks is not None
    points = project(model.landmarks(parts.beta, parts.psi, parts.theta), parts.camera)
    seen = gated_l1(points, batch["landmarks"], batch["confidence"], 0.41)
    ring = ring_loss(parts.beta.reshape(2, R, S), 0.5)
    expected = ring + 60 * seen
    expected = expected + 1e-4 * (parts.beta**2).sum() / (2 * R)
    expected = expected + 1e-4 * (parts.psi**2).sum() / (2 * R)
    assert float(terms["loss"]) == pytest.approx(float(expected), rel=1e-5)
    unseen = {**batch, "confidence": torch.zeros(2 * R, 68)}
    assert float(model.losses(code, unseen)["landmarks"]) == 0


def test_contour_and_ring_are_switches() -> None:
    batch = {"landmarks": torch.zeros(R, 68, 2), "confidence": torch.ones(R, 68)}
    code = torch.full((R, 9 + S + E), 0.2)
    losses = {
        contour: float(tiny(contour=contour).losses(code, batch)["landmarks"])
        for contour in ("dynamic", "static")
    }
    assert losses["dynamic"] != losses["static"]
    off = tiny(ring_weight=0.0).losses(code, batch)
    on = tiny().losses(code, batch)
    assert float(on["loss"] - off["loss"]) == pytest.approx(float(on["ring"]), rel=1e-4)


def test_what_the_network_needs_is_said() -> None:
    config = RingNetConfig(trunk=TRUNK, n_shape=S + 1, n_expression=E)
    with pytest.raises(ValueError, match=f"FLAME with >= {S + 1} . {E} coefficients, got {S}"):
        RingNet(config, *flame())
    model = RingNet(RingNetConfig(trunk=TRUNK))
    with pytest.raises(ValueError, match="needs FLAME"):
        model.losses(torch.zeros(6, 159), {})
    with pytest.raises(ValueError, match="span a box"):
        crop_box(np.zeros((68, 2)))


def test_crop_box_is_the_mean_of_width_and_height() -> None:
    points = np.tile([[10.0, 20.0]], (68, 1))
    points[0] = [50.0, 40.0]
    centre, side = crop_box(points)
    assert centre.tolist() == [30, 30]
    assert side == 30
    assert input_blob(np.full((2, 2, 3), 255.0)).max() == 1


def batch_of(step: int) -> dict[str, torch.Tensor]:
    rng = step_rng(5, step, 0)
    image = rng.normal(size=(2 * R, 3, 32, 32))
    return {
        "image": torch.as_tensor(image, dtype=torch.float32),
        "landmarks": torch.as_tensor(rng.uniform(-1, 1, (2 * R, 68, 2)), dtype=torch.float32),
        "confidence": torch.ones(2 * R, 68),
    }


def test_learns_one_batch() -> None:
    model = tiny(init_estimate="mean", dropout=0.0, hidden=32)
    model.train()
    batch = batch_of(0)
    truth = torch.randn(2 * R, model.config.outputs) * 0.2
    truth[:, 0] += 8.0
    code = model.split(truth)
    assert model.landmarks is not None
    with torch.no_grad():
        points = model.landmarks(code.beta, code.psi, code.theta)
        batch["landmarks"] = project(points, code.camera)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    seen = []
    for _ in range(120):
        terms = model.losses(model(batch["image"]), batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        seen.append(terms["landmarks"].item())
    assert np.mean(seen[-5:]) < 0.35 * np.mean(seen[:5])


class Memory:
    """A store that may die after one save."""

    def __init__(self, dies: bool) -> None:
        self.content: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None
        self.dies = dies

    def save(self, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.content = ({n: v.copy() for n, v in tensors.items()}, dict(facts))
        if self.dies:
            self.dies = False
            raise KeyboardInterrupt

    def restore(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        return self.content


def test_resumed_training_equals_an_undisturbed_one_dropout_included() -> None:
    settings = FitSettings(steps=5, learning_rate=1e-3, report_every=5, checkpoint_every=2, seed=4)

    def run(store: Memory) -> FitResult:
        make_deterministic(settings.seed)
        model = tiny(init_estimate="mean", dropout=0.5)
        return fit(model, batch_of, settings, store)

    whole = run(Memory(dies=False))
    store = Memory(dies=True)
    with pytest.raises(KeyboardInterrupt):
        run(store)
    resumed = run(store)
    for name, value in whole.state.items():
        np.testing.assert_array_equal(resumed.state[name], value, err_msg=name)
    assert resumed.history == whole.history


def test_state_holds_no_flame() -> None:
    assert METHODS["ringnet"] is RingNet
    names = {name.split(".")[0] for name in tiny().state_dict()}
    assert names == {"trunk", "regressor", "initial", "unit"}
