"""R-Net: counts and names, the drawn face, each loss against NumPy, gradients, a fit."""

from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from models.face.morphable import LinearModel
from models.methods.deng2019 import (
    Deng2019,
    Deng2019Config,
    FaceSurface,
    front_vertices,
    photometric_loss,
    rotation,
)
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from models.networks.encoders.resnet import ResNetConfig
from models.networks.encoders.warp_layer import template_matrices
from models.rendering.shading import sh_basis, vertex_normals

TRUNK = ResNetConfig("v1.5", (1, 1, 1, 1), 2)
K, E, T, SIZE = 6, 3, 4, 48


def round_face() -> LinearModel:
    """A ball in metres, off the origin; its bases are smooth functions of the direction."""
    rng = np.random.default_rng(0)
    ball = trimesh.creation.icosphere(subdivisions=3, radius=1.0)
    way = np.asarray(ball.vertices)
    smooth = np.c_[way, way[:, :1] * way[:, 1:2], way[:, 1:] ** 2, np.sin(3 * way)]
    front = np.argsort(-way[:, 2])
    keypoints = front[np.linspace(0, len(way) // 3, 68).astype(int)]
    keypoints[30] = front[0]

    def basis(count: int, size: float) -> np.ndarray:
        mixed = rng.normal(size=(smooth.shape[1], 3 * count))
        return size * (smooth @ mixed).reshape(len(way), 3, count)

    return LinearModel(
        mean_shape=0.08 * way + [0.01, -0.02, 0.03],
        shape_basis=basis(K, 0.0015),
        shape_sigma=np.linspace(1.5, 0.5, K),
        mean_expression=np.zeros_like(way),
        expression_basis=basis(E, 0.001),
        expression_sigma=np.linspace(1.2, 0.8, E),
        faces=np.asarray(ball.faces),
        keypoints=keypoints,
        texture_mean=np.clip(0.5 + 0.2 * smooth[:, [0, 1, 6]], 0.1, 0.9),
        texture_basis=basis(T, 0.05),
        texture_sigma=np.linspace(1.0, 0.5, T),
    )


MODEL = round_face()
SKIN = np.flatnonzero(MODEL.mean_shape[:, 2] > 0.06)


def recognizer() -> IResNet:
    torch.manual_seed(5)
    return IResNet(IResNetConfig((1, 1, 1, 1), (4, 4, 8, 8), 16, 28))


def small(*, seeing: bool = False, **changes: Any) -> Deng2019:
    torch.manual_seed(0)
    sizes = {"n_shape": K, "n_expression": E, "n_texture": T, "size_px": SIZE}
    settings = {"trunk": TRUNK, **sizes, **changes}
    face = FaceSurface(MODEL, 1.0, front_vertices(MODEL, 1.0), SKIN)
    return Deng2019(Deng2019Config(**settings), face, recognizer() if seeing else None)


def some_code(model: Deng2019, seed: int = 1, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    code = torch.randn(count, model.config.outputs, generator=generator)
    scale = torch.full((model.config.outputs,), 0.5)
    scale[K + E + T :] = 0.15
    assert model.face is not None
    return (code * scale).to(model.face.mean)


def some_batch(model: Deng2019, seed: int = 2, count: int = 2) -> dict[str, torch.Tensor]:
    """Another face's picture, seen by the network's own camera."""
    code = some_code(model, seed, count)
    with torch.no_grad():
        rgb, mask = model.render(code)
        landmarks = model.decode(code).landmarks
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(rgb.shape, generator=generator).to(rgb)
    return {
        "image": torch.where(mask[:, None], rgb, noise).clamp(0, 1),
        "landmarks": landmarks,
        "skin": torch.rand(mask.shape, generator=generator).to(rgb),
        "crop": template_matrices(landmarks),
    }


def public_names() -> set[str]:
    """Parameters and statistics of the reference's network, written from its naming."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", *(f"bn1.{leaf}" for leaf in norm)}
    for stage, units in enumerate((3, 4, 6, 3), 1):
        for unit in range(units):
            at = f"layer{stage}.{unit}"
            for number in (1, 2, 3):
                names.add(f"{at}.conv{number}.weight")
                names |= {f"{at}.bn{number}.{leaf}" for leaf in norm}
            if unit == 0:
                names.add(f"{at}.downsample.0.weight")
                names |= {f"{at}.downsample.1.{leaf}" for leaf in norm}
    heads = {f"final_layers.{k}.{leaf}" for k in range(7) for leaf in ("weight", "bias")}
    return {f"backbone.{name}" for name in names} | heads


def test_counts_and_names_of_the_reference() -> None:
    with torch.device("meta"):
        model = Deng2019(Deng2019Config())
    assert model.config.outputs == 257
    assert sum(p.numel() for p in model.parameters()) == 24_034_625
    assert sum(p.numel() for p in model.backbone.parameters()) == 23_508_032
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert set(shapes) == public_names()
    sizes = [shapes[f"final_layers.{k}.weight"] for k in range(7)]
    assert sizes == [(n, 2048, 1, 1) for n in (80, 64, 80, 3, 27, 2, 1)]
    assert Deng2019Config(lighting="mono").outputs == 239


def test_the_code_has_the_reference_s_order() -> None:
    code = Deng2019(Deng2019Config(trunk=TRUNK)).split(torch.arange(257.0)[None])
    for part, first, last in (
        (code.shape, 0, 79),
        (code.expression, 80, 143),
        (code.texture, 144, 223),
        (code.angles, 224, 226),
        (code.translation, 254, 256),
    ):
        assert (float(part[0, 0]), float(part[0, -1])) == (first, last)
    assert code.gamma[0, :, 0].tolist() == [227, 236, 245]
    mono = Deng2019(Deng2019Config(trunk=TRUNK, lighting="mono")).split(torch.arange(239.0)[None])
    assert mono.gamma[0, 1].tolist() == mono.gamma[0, 2].tolist() == list(range(227, 236))
    assert mono.translation[0].tolist() == [236, 237, 238]


def test_the_configuration_of_a_checkpoint() -> None:
    section = {
        **{name: getattr(Deng2019Config(), name) for name in Deng2019Config.__dataclass_fields__},
        "trunk": {"kind": "v1.5", "layers": [1, 2, 1, 1], "width": 8},
        "lighting": "mono",
        "learning_rate": 1e-4,
    }
    expected = Deng2019Config(ResNetConfig("v1.5", (1, 2, 1, 1), 8), lighting="mono")
    assert Deng2019Config.of(section) == expected


def test_an_untrained_network_draws_the_mean_face_in_the_middle() -> None:
    model = small().eval()
    code = model(torch.rand(2, 3, SIZE, SIZE)).detach()
    assert (code == 0).all()
    assert model.face is not None
    drawn = model.decode(code)
    kept = MODEL.mean[front_vertices(MODEL, 1.0)]
    expected = 10 * (kept - kept.mean(axis=0)) - [0, 0, 10]
    np.testing.assert_allclose(drawn.vertices[0], expected, atol=1e-5)
    rgb, mask = model.render(code)
    assert rgb.shape == (2, 3, SIZE, SIZE)
    assert (rgb.abs().sum(1)[~mask] == 0).all()
    rows, columns = torch.nonzero(mask[0], as_tuple=True)
    assert float(columns.double().mean()) + 0.5 == pytest.approx(SIZE / 2, abs=1)
    assert float(rows.double().mean()) + 0.5 == pytest.approx(SIZE / 2, abs=1)


def test_rotation_is_about_x_then_y_then_z() -> None:
    angles = np.random.default_rng(0).normal(size=(5, 3))
    expected = Rotation.from_euler("xyz", angles).as_matrix()
    np.testing.assert_allclose(rotation(torch.as_tensor(angles)), expected, atol=1e-12)


def test_projection_in_closed_form() -> None:
    model = small(n_shape=2).double()
    code = some_code(model)
    named = model.split(code)
    assert model.face is not None
    at = model.face.keypoints.numpy()
    mean, basis = model.face.mean.numpy(), model.face.shape_basis.numpy()
    loose = model.face.expression_basis.numpy()
    for image in range(2):
        X = mean + (named.shape[image].numpy() @ basis[:2]).reshape(-1, 3)
        X = (X + (named.expression[image].numpy() @ loose).reshape(-1, 3))[at]
        R = Rotation.from_euler("xyz", named.angles[image].numpy()).as_matrix()
        x, y, z = (X @ R.T + named.translation[image].numpy()).T
        focal = 1015 * SIZE / 224
        expected = np.stack(
            [SIZE / 2 + focal * x / (10 - z), SIZE / 2 - focal * y / (10 - z)], axis=1
        )
        np.testing.assert_allclose(model.decode(code).landmarks[image], expected)


def test_bases_are_in_decimetres_per_deviation() -> None:
    face = FaceSurface(MODEL, 1.0).double()
    alpha, beta = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5]]).double()
    seen = face.vertices(alpha, beta)[0].numpy()
    expected = MODEL.shape(MODEL.shape_sigma[:2] * [1, -2], MODEL.expression_sigma[:1] * 0.5)
    np.testing.assert_allclose(seen, 10 * (expected - MODEL.mean.mean(axis=0)), atol=1e-6)
    in_mm = LinearModel(
        **{
            **vars(MODEL),
            "mean_shape": 1000 * MODEL.mean_shape,
            "shape_basis": 1000 * MODEL.shape_basis,
            "expression_basis": 1000 * MODEL.expression_basis,
        }
    )
    same = FaceSurface(in_mm, 1e-3).double().vertices(alpha, beta)[0]
    np.testing.assert_allclose(same, seen, atol=1e-6)
    assert not face.state_dict()


def test_constant_light_gives_the_albedo() -> None:
    model = small()
    code = torch.zeros(1, model.config.outputs)
    drawn = model.decode(code)
    constant = 0.8 * np.pi * 0.282095
    torch.testing.assert_close(drawn.colour, drawn.albedo * constant)
    start = K + E + T + 3
    code[0, start + 9] = 0.3  # the constant term of green
    brighter = model.decode(code).colour
    torch.testing.assert_close(brighter[..., 1], drawn.colour[..., 1] * (1.1 / 0.8))
    assert torch.equal(brighter[..., 0], drawn.colour[..., 0])


def test_light_from_above_falls_on_what_faces_up() -> None:
    """The first band's terms are -y, z and -x of the camera's frame."""
    model = small(lighting="mono")
    code = torch.zeros(1, model.config.outputs)
    start = K + E + T + 3
    code[0, start + 1] = -0.5
    drawn = model.decode(code)
    shade = (drawn.colour / drawn.albedo)[0, :, 0]
    up = drawn.vertices[0, :, 1] > 0.4
    assert shade[up].mean() > 0.8 > 0.6 > shade[drawn.vertices[0, :, 1] < -0.4].mean()


def test_the_front_of_a_head() -> None:
    assert len(front_vertices(MODEL, 1.0, 1000.0)) == len(MODEL.mean)
    ids = front_vertices(MODEL, 1.0, 60.0)
    nose = MODEL.mean[MODEL.keypoints[30]]
    away = np.linalg.norm(MODEL.mean - nose, axis=1)
    assert set(MODEL.keypoints) <= set(ids)
    others = np.setdiff1d(ids, MODEL.keypoints)
    assert away[others].max() <= 0.06
    assert len(np.setdiff1d(np.flatnonzero(away < 0.05), ids)) == 0
    face = FaceSurface(MODEL, 1.0, ids)
    kept = {tuple(sorted(ids[list(f)])) for f in face.faces.tolist()}
    whole = MODEL.faces[np.isin(MODEL.faces, ids).all(axis=1)]
    assert kept == {tuple(sorted(f)) for f in whole.tolist()}
    np.testing.assert_array_equal(ids[face.keypoints], MODEL.keypoints)


def numpy_terms(model: Deng2019, code: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict:
    """The reference's formulas, written out per image and pixel."""
    named = model.split(code)
    rgb, mask = (part.detach().numpy() for part in model.render(code))
    drawn = model.decode(code)
    image, skin = batch["image"].numpy(), batch["skin"].numpy()
    total, weight = 0.0, 0.0
    for b in range(len(code)):
        for i in range(SIZE):
            for j in range(SIZE):
                if mask[b, i, j]:
                    squared = sum((rgb[b, c, i, j] - image[b, c, i, j]) ** 2 for c in range(3))
                    total += skin[b, i, j] * (squared + 1e-6) ** 0.5
                    weight += skin[b, i, j]
    inner = {28, 29, 30, 60, 61, 62, 63, 64, 65, 66, 67}
    marks = 0.0
    for b in range(len(code)):
        for n in range(68):
            d = drawn.landmarks[b, n].numpy() - batch["landmarks"][b, n].numpy()
            marks += (20.0 if n in inner else 1.0) * (d @ d) * (224 / SIZE) ** 2
    coefficients = sum(
        float((a @ a) + 0.8 * (b @ b) + 1.7e-2 * (t @ t))
        for a, b, t in zip(
            named.shape.numpy(), named.expression.numpy(), named.texture.numpy(), strict=True
        )
    )
    assert model.face is not None
    albedo = drawn.albedo.numpy()[:, model.face.skin.numpy()]
    gamma = named.gamma.numpy()
    return {
        "photo": total / max(weight, 1.0),
        "landmarks": marks / (68 * len(code)),
        "coefficients": coefficients / len(code),
        "reflectance": np.mean([face.var(axis=0).sum() for face in albedo]),
        "gamma": np.mean((gamma - gamma.mean(axis=1, keepdims=True)) ** 2),
    }


def test_losses_against_numpy() -> None:
    model = small().double()
    code, batch = some_code(model), some_batch(model)
    terms = model.losses(code, batch)
    expected = numpy_terms(model, code, batch)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-6), name
        assert value > 0
    assert float(terms["perceptual"]) == 0
    weights = {
        "photo": 1.92,
        "landmarks": 1.6e-3,
        "coefficients": 3e-4,
        "reflectance": 5,
        "gamma": 10,
    }
    total = sum(weight * expected[name] for name, weight in weights.items())
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-6)


def test_light_of_one_colour_has_no_gamma_term() -> None:
    model = small(lighting="mono")
    assert float(model.losses(some_code(model), some_batch(model))["gamma"]) == pytest.approx(0)


def test_a_face_out_of_sight_still_has_finite_losses() -> None:
    model = small(seeing=True)
    code = some_code(model)
    code[:, -3] = 50.0
    code.requires_grad_()
    terms = model.losses(code, some_batch(model))
    terms["loss"].backward()
    assert terms["photo"].item() == 0
    assert code.grad is not None
    assert bool(code.grad.isfinite().all())
    zero = torch.zeros(1, 3, 4, 4)
    assert float(photometric_loss(zero, zero, zero[:, 0])) == 0


def test_gradients_by_finite_differences() -> None:
    """One number of each kind; the recogniser's crop does not follow the landmarks' gradient."""
    model = small(inner_weight=3.0).double()
    batch = some_batch(model)
    code = some_code(model).requires_grad_()
    model.losses(code, batch)["loss"].backward()
    assert code.grad is not None
    start = K + E + T
    step = 1e-6
    for place in (0, 3, K, K + E + 1, start, start + 2, start + 4, start + 14, -3, -2, -1):
        moved = []
        for sign in (1, -1):
            other = code.detach().clone()
            other[1, place] += sign * step
            moved.append(float(model.losses(other, batch)["loss"]))
        slope = (moved[0] - moved[1]) / (2 * step)
        assert float(code.grad[1, place]) == pytest.approx(slope, rel=2e-4, abs=1e-7), place


def test_the_perceptual_gradient_reaches_the_code_alone() -> None:
    model = small(seeing=True, photo_weight=0.0, landmark_weight=0.0, coefficient_weight=0.0)
    batch = some_batch(model)
    code = some_code(model).requires_grad_()
    terms = model.losses(code, batch)
    assert 0 < terms["perceptual"].item() < 2
    terms["perceptual"].backward()
    assert code.grad is not None
    assert (code.grad[:, : K + E + T].abs().sum(1) > 0).all()
    (net,) = model._recognizer
    assert not net.training
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert model.train().state_dict().keys() == small().state_dict().keys()
    assert not net.training
    assert {id(p) for p in net.parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_the_perceptual_term_is_zero_for_the_same_picture() -> None:
    model = small(seeing=True)
    code = some_code(model)
    rgb, _ = model.render(code)
    landmarks = model.decode(code).landmarks
    batch = {**some_batch(model), "image": rgb, "crop": template_matrices(landmarks)}
    assert float(model.losses(code, batch)["perceptual"]) == pytest.approx(0, abs=1e-5)
    off = small(seeing=True, perceptual_weight=0.0)
    assert float(off.losses(code, some_batch(model))["perceptual"]) == 0


def test_training_needs_no_kernel_that_differs_between_runs() -> None:
    model = small(seeing=True).train()
    batch = some_batch(model)
    gradients = []
    for _ in range(2):
        torch.set_deterministic_debug_mode("error")
        try:
            model.zero_grad()
            model.losses(model(batch["image"]), batch)["loss"].backward()
        finally:
            torch.set_deterministic_debug_mode("default")
        gradients.append([head.weight.grad for head in model.final_layers])
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert float(first.abs().sum()) > 0
        assert torch.equal(first, second)


def test_the_recogniser_follows_the_network_s_precision() -> None:
    model = small(seeing=True).double()
    batch = some_batch(model)
    assert model.losses(some_code(model), batch)["perceptual"].dtype == torch.float64


def test_fitting_a_picture_finds_the_face() -> None:
    model = small(seeing=True, coefficient_weight=1e-5, reflectance_weight=0.0)
    truth = some_code(model, seed=9)
    truth[:, K + E + T + 3 : -3] = 0.0  # white light, of which the albedo is not mistaken
    with torch.no_grad():
        rgb, mask = model.render(truth)
        drawn = model.decode(truth)
    batch = {
        "image": rgb,
        "landmarks": drawn.landmarks,
        "skin": torch.ones(mask.shape),
        "crop": template_matrices(drawn.landmarks),
    }
    code = torch.zeros_like(truth).requires_grad_()
    optimizer = torch.optim.Adam([code], 0.03)
    for _ in range(120):
        optimizer.zero_grad()
        terms = model.losses(code, batch)
        terms["loss"].backward()
        optimizer.step()
    assert model.face is not None
    with torch.no_grad():
        found, known = model.split(code), model.split(truth)
        zero = torch.zeros_like(known.expression)
        shapes = [
            model.face.vertices(s, zero)
            for s in (found.shape, torch.zeros_like(found.shape), known.shape)
        ]
        colours = [
            part.colour for part in (model.decode(code), model.decode(torch.zeros_like(code)))
        ]
    shape, mean_shape = ((part - shapes[2]).norm(dim=-1).mean() for part in shapes[:2])
    colour, mean_colour = ((part - drawn.colour).abs().mean() for part in colours)
    assert shape < 0.5 * mean_shape
    assert colour < 0.3 * mean_colour


def test_learns_one_batch() -> None:
    model = small(trunk=ResNetConfig("v1.5", (1, 1, 1, 1), 4)).train()
    batch = some_batch(model, count=4)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    seen = []
    for _ in range(60):
        terms = model.losses(model(batch["image"]), batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        seen.append((terms["photo"].item(), terms["landmarks"].item()))
    first, last = np.mean(seen[:3], axis=0), np.mean(seen[-3:], axis=0)
    assert last[0] < 0.7 * first[0]
    assert last[1] < 0.1 * first[1]


def test_what_is_missing_is_said() -> None:
    plain = LinearModel(**{**vars(MODEL), "texture_mean": None})
    with pytest.raises(ValueError, match="with texture"):
        FaceSurface(plain, 1.0)
    with pytest.raises(ValueError, match="every keypoint kept"):
        FaceSurface(MODEL, 1.0, np.arange(20))
    with pytest.raises(ValueError, match=r"got \(6, 3, 4\)"):
        small(n_shape=K + 1)
    with pytest.raises(ValueError, match="face model"):
        Deng2019(Deng2019Config(trunk=TRUNK)).render(torch.zeros(1, 257))


def test_shading_turns_with_the_head() -> None:
    """Normals are those of the turned face: the light stays with the camera."""
    model = small().double()
    code = some_code(model)
    drawn, named = model.decode(code), model.split(code)
    assert model.face is not None
    faces = model.face.faces.numpy()
    for image in range(2):
        normals = vertex_normals(drawn.vertices[image].numpy(), faces)
        light = named.gamma[image].numpy().copy()
        light[:, 0] += 0.8
        expected = drawn.albedo[image].numpy() * (sh_basis(normals, "deep3d") @ light.T)
        np.testing.assert_allclose(drawn.colour[image], expected, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_accelerator_meets_the_cpu() -> None:
    model = small(seeing=True)
    code, given = some_code(model), some_batch(model)
    found = []
    for device in ("cpu", "cuda"):
        leaf = code.to(device).requires_grad_()
        there = {name: value.to(device) for name, value in given.items()}
        terms = model.to(device).losses(leaf, there)
        terms["loss"].backward()
        assert leaf.grad is not None
        found.append((float(terms["loss"]), leaf.grad.cpu()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-4)
