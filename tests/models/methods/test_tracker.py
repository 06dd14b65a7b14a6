"""MICA's tracker on a small bumpy mesh: gradients, closed forms, known motion found again."""

import dataclasses

import numpy as np
import pytest
import torch

from models.face.flame import FlameArrays, LandmarkEmbedding
from models.face.rotations import matrix_of_six, six_of_matrix
from models.methods.tracker import Frame, Level, Schedule, StartError, Tracker
from models.methods.tracker_energy import (
    LIP_PAIRS,
    Albedo,
    Energy,
    Surface,
    Target,
    TermWeights,
    in_camera,
    to_pixels,
)
from models.rendering.shading import sh_basis, vertex_normals

SIDE, S, E = 15, 3, 6
SIZE = 96


def bumpy() -> FlameArrays:
    """A mask-like sheet of 225 vertices (m), bulging toward the viewer, with smooth modes."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-0.07, 0.07, SIDE), np.linspace(-0.09, 0.09, SIDE))
    z = 0.06 * (1 - (x / 0.1) ** 2 - (y / 0.13) ** 2) + 0.02 * np.exp(-((x**2 + y**2) / 0.015**2))
    template = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    index = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    waves = np.cos(template @ rng.normal(size=(3, S + E)) * 40 + rng.uniform(0, 6, S + E))
    modes = 0.004 * waves[:, None, :] * rng.normal(size=(1, 3, S + E))
    jaw = np.clip(-(template[:, 1] + 0.02) / 0.04, 0, 1)
    weights = np.stack([0 * jaw, 1 - jaw, jaw, 0 * jaw, 0 * jaw], axis=1)
    regressor = np.zeros((5, SIDE * SIDE))
    regressor[:, index[SIDE // 2, SIDE // 2]] = 1.0
    return FlameArrays(
        template, faces, modes[..., :S], modes[..., S:],
        1e-4 * rng.normal(size=(SIDE * SIDE, 3, 36)), regressor, weights,
        np.array([-1, 0, 1, 1, 1]),
    )  # fmt: skip


def embedding(faces: int) -> LandmarkEmbedding:
    rng = np.random.default_rng(1)
    picked = rng.choice(faces, 68, replace=False)
    bary = rng.dirichlet(np.ones(3), 68)
    return LandmarkEmbedding(
        picked[17:], bary[17:], np.tile(picked[:17], (79, 1)), np.tile(bary[:17], (79, 1, 1)),
        picked, bary,
    )  # fmt: skip


@pytest.fixture(scope="module")
def surface() -> Surface:
    arrays = bumpy()
    return Surface(arrays, embedding(len(arrays.faces)), np.arange(len(arrays.v_template)))


def energy_of(surface: Surface, **weights: float) -> Energy:
    albedo = Albedo(len(surface.used), surface.faces.numpy())
    return Energy(surface, albedo, TermWeights(**weights), torch.zeros(S))


def known(surface: Surface, seed: int = 3, *, turn: float = 0.15) -> dict[str, torch.Tensor]:
    """A plausible state: a head half a metre away, lit, textured, with an expression."""
    rng = np.random.default_rng(seed)
    N = len(surface.used)
    c, s = np.cos(turn), np.sin(turn)
    R = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float32)
    waves = np.cos(surface.flame.v_template.numpy() @ rng.normal(size=(3, 3)) * 60)
    light = torch.zeros(9, 3)
    light[0], light[1], light[3] = 1.8, 0.3, 0.4
    texture = torch.as_tensor(0.2 * waves, dtype=torch.float32)
    return {
        "beta": torch.zeros(S),
        "psi": torch.as_tensor(0.5 * rng.normal(size=E), dtype=torch.float32),
        "jaw": six_of_matrix(torch.eye(3)),
        "eyes": six_of_matrix(torch.eye(3)).repeat(2, 1),
        "rotation": six_of_matrix(R),
        "translation": torch.tensor([0.004, -0.006, -0.5]),
        "focal": torch.tensor(4.0),
        "principal": torch.zeros(2),
        "light": light,
        "texture": texture,
        "trusted": torch.ones(N),
    }


def photographed(energy: Energy, state: dict[str, torch.Tensor]) -> Frame:
    """The model's own picture of a state, at twice the size and averaged, on grey."""
    import cv2

    rows, columns, fragments = energy.visible(state, 2 * SIZE, 2 * SIZE)
    image = np.full((2 * SIZE, 2 * SIZE, 3), 0.5)
    image[rows, columns] = energy.shaded(state, fragments).numpy()
    image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    seen = in_camera(energy.surface.vertices(state), state)
    marks = energy.surface.landmarks(seen, matrix_of_six(state["rotation"]))
    points = to_pixels(marks, state, SIZE, SIZE).numpy().astype(np.float64)
    return Frame(np.clip(np.rint(255 * image), 0, 255).astype(np.uint8), points)


def target_of(frame: Frame, dtype: torch.dtype = torch.float32) -> Target:
    image = torch.as_tensor(frame.image.transpose(2, 0, 1)[None] / 255.0, dtype=dtype)
    return Target(image, torch.as_tensor(frame.points_px / SIZE, dtype=dtype))


def test_perfect_landmarks_cost_nothing_and_a_shift_costs_its_square(surface: Surface) -> None:
    energy, state = energy_of(surface), known(surface)
    frame = photographed(energy, state)
    terms = energy.terms(state, target_of(frame), None)
    for name in ("points", "oval", "lids", "lips"):
        assert float(terms[name]) < 1e-6, name
    moved = dataclasses.replace(frame, points_px=frame.points_px + np.array([3.0, 0.0]))
    terms = energy.terms(state, target_of(moved), None)
    square = (3.0 / SIZE) ** 2 / 2  # one of two coordinates
    assert float(terms["points"]) == pytest.approx(1000 * square, rel=1e-3)
    assert float(terms["oval"]) == pytest.approx(2000 * square, rel=1e-3)
    assert float(terms["lids"]) < 1e-6, "a gap does not move with its points"
    opened = frame.points_px.copy()
    opened[LIP_PAIRS[0][1]] += [0.0, 6.0]
    terms = energy.terms(state, target_of(dataclasses.replace(frame, points_px=opened)), None)
    expected = 15000 * (6.0 / SIZE) ** 2 / (2 * len(LIP_PAIRS))
    assert float(terms["lips"]) == pytest.approx(expected, rel=1e-3)


def test_regularisers_in_closed_form(surface: Surface) -> None:
    energy, state = energy_of(surface), known(surface)
    state["psi"] = torch.full((E,), 2.0)
    state["beta"] = torch.full((S,), 0.5)
    state["principal"] = torch.tensor([0.3, -0.4])
    state["jaw"] = state["jaw"] + 0.1
    state["eyes"] = state["eyes"] + torch.tensor([[0.2], [0.0]])
    terms = energy.terms(state, target_of(photographed(energy, state)), None)
    expected = {
        "expression": 0.02 * 4 * E, "shape": 0.3 * 0.25 * S, "principal": 0.25,
        "jaw": 0.05 * 6 * 0.01, "eyes": 6 * 0.04, "eye_symmetry": 8 * 6 * 0.04,
    }  # fmt: skip
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-5), name


def test_dense_term_equals_a_loop_over_points(surface: Surface) -> None:
    energy, state = energy_of(surface), known(surface)
    frame = photographed(energy, known(surface, seed=5))
    target = target_of(frame)
    state["trusted"][::7] = 0.0
    seen = energy.fragments(state, SIZE, SIZE)
    head = in_camera(surface.vertices(state), state)
    image = frame.image / 255.0
    normals = vertex_normals(head.double().numpy(), surface.faces.numpy())
    colours = (0.6 + state["texture"]).double().numpy()
    total = count = 0.0
    for corner, bary, weight in zip(seen.corners, seen.bary, seen.weight, strict=True):
        w = bary.double().numpy()
        x, y, z = w @ head.double().numpy()[corner]
        u, v = SIZE / 2 + 4.0 * SIZE / 2 * x / -z - 0.5, SIZE / 2 - 4.0 * SIZE / 2 * y / -z - 0.5
        u, v = np.clip(u, 0, SIZE - 1), np.clip(v, 0, SIZE - 1)
        i, j = min(int(v), SIZE - 2), min(int(u), SIZE - 2)
        a, b = v - i, u - j
        there = (1 - a) * ((1 - b) * image[i, j] + b * image[i, j + 1])
        there += a * ((1 - b) * image[i + 1, j] + b * image[i + 1, j + 1])
        n = w @ normals[corner]
        shade = sh_basis(n / np.linalg.norm(n), "tracker") @ state["light"].double().numpy()
        total += float(weight) * np.abs((w @ colours[corner]) * shade - there).sum()
        count += float(weight)
    assert 0 < count < len(seen.weight)
    assert float(energy.dense(head, state, target, seen)) == pytest.approx(total / count, rel=1e-4)


def test_gradients_with_frozen_points(surface: Surface) -> None:
    import copy

    double = copy.deepcopy(surface).double()
    albedo = Albedo(len(double.used), double.faces.numpy()).double()
    energy = Energy(double, albedo, TermWeights(), torch.zeros(S, dtype=torch.float64))
    state = {name: value.double() for name, value in known(surface).items()}
    seen = energy.fragments(state, SIZE, SIZE)
    seen = type(seen)(*(part[::37] for part in seen))
    ramp = torch.linspace(0, 1, SIZE, dtype=torch.float64)  # linear: no kinks between pixels
    image = torch.stack(
        [ramp.expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE), ramp + 0 * ramp[:, None]]
    )
    frame = photographed(energy_of(surface), known(surface, seed=7))
    target = Target(image[None], torch.as_tensor(frame.points_px / SIZE))
    names = ("psi", "jaw", "eyes", "rotation", "translation", "focal", "principal", "light")

    def total(*values: torch.Tensor) -> torch.Tensor:
        now = state | dict(zip(names, values, strict=True))
        return torch.stack(list(energy.terms(now, target, seen).values())).sum()

    inputs = tuple(state[name].clone().requires_grad_(True) for name in names)
    assert torch.autograd.gradcheck(total, inputs, rtol=1e-4)


QUICK = Schedule(
    camera_steps=60,
    camera_rate=0.01,
    camera_drop_every=30,
    levels=(Level(0.5, 15, False), Level(0.5, 15, True), Level(1.0, 15, True)),
    final_rate=0.1,
    keyframe_rates={"psi": 0.05, "light": 0.01, "translation": 0.002, "rotation": 0.005,
                    "focal": 0.001, "principal": 0.001, "beta": 0.02},
    frame_rates={"psi": 0.08, "rotation": 0.01, "translation": 0.002, "light": 0.001},
)  # fmt: skip


def test_a_known_motion_is_found_again(surface: Surface) -> None:
    energy, before = energy_of(surface), known(surface)
    true = known(surface, turn=0.08)
    true["psi"] = before["psi"] + 0.3
    true["translation"] = before["translation"] + torch.tensor([0.004, 0.002, -0.006])
    frame = photographed(energy, true)
    state = Tracker(energy, QUICK, focal_ndc=4.0).follow(before, frame)
    place = in_camera(surface.vertices(true), true)
    moved, left = (
        float((in_camera(surface.vertices(now), now) - place).norm(dim=1).mean())
        for now in (before, state)
    )
    assert moved > 0.005
    assert left < 0.5 * moved
    for name in ("focal", "principal", "beta", "texture"):
        assert torch.equal(state[name], before[name]), name


def test_the_first_frame_is_explained_without_knowing_anything(surface: Surface) -> None:
    energy = energy_of(surface)
    frame = photographed(energy, known(surface))
    state = Tracker(energy, QUICK, focal_ndc=4.0).start([frame])
    marks = surface.landmarks(
        in_camera(surface.vertices(state), state), matrix_of_six(state["rotation"])
    )
    apart = to_pixels(marks, state, SIZE, SIZE).numpy() - frame.points_px
    assert np.sqrt((apart**2).sum(1).mean()) < 2.5
    assert 0.5 < float(state["trusted"].mean()) <= 1.0


def test_light_and_albedo_are_found_from_black(surface: Surface) -> None:
    energy, true = energy_of(surface), known(surface)
    frame = photographed(energy, true)
    black = true | {"light": torch.zeros(9, 3), "texture": torch.zeros_like(true["texture"])}
    found = Tracker(energy, QUICK, focal_ndc=4.0)._fit_colours(black, frame)
    rows, columns, seen = energy.visible(true, SIZE, SIZE)
    colours = frame.image[rows, columns] / 255.0
    flat = np.abs(colours - np.median(colours, axis=0)).mean()
    assert np.abs(energy.shaded(found, seen).numpy() - colours).mean() < 0.25 * flat
    for name in ("psi", "rotation", "translation"):
        assert torch.equal(found[name], true[name]), name


def test_an_unknown_camera_and_a_free_shape_move_and_only_then(surface: Surface) -> None:
    energy = energy_of(surface)
    frame = photographed(energy, known(surface))
    state = Tracker(energy, QUICK, free_shape=True).start([frame])
    assert float(state["focal"]) != pytest.approx(5000 / SIZE)
    assert state["beta"].any()
    after = Tracker(energy, QUICK, free_shape=True).follow(state, frame)
    for name in ("beta", "focal", "principal", "texture", "trusted"):
        assert torch.equal(after[name], state[name]), name


def test_landmarks_alone_never_rasterise(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = energy_of(surface)
    frame = photographed(energy, known(surface))
    monkeypatch.setattr(Energy, "fragments", None)
    tracker = Tracker(energy, QUICK, focal_ndc=4.0, dense=False)
    state = tracker.follow(tracker.start([frame]), frame)
    assert not state["light"].any()
    assert not state["texture"].any()


def test_the_best_iterate_is_kept(surface: Surface) -> None:
    energy = energy_of(surface)
    true = known(surface)
    frame = photographed(energy, true)
    wild = dataclasses.replace(
        QUICK, levels=(Level(1.0, 6, False),), frame_rates={"rotation": 2.0, "translation": 1.0}
    )
    state = Tracker(energy, wild, focal_ndc=4.0, dense=False).follow(true, frame)
    before, after = (
        sum(float(term) for term in energy.terms(now, target_of(frame), None).values())
        for now in (true, state)
    )
    assert after <= before


def test_a_lost_face_is_said(surface: Surface) -> None:
    energy, state = energy_of(surface), known(surface)
    with pytest.raises(ValueError, match="left the image"):
        energy.fragments(state | {"translation": torch.tensor([2.0, 0.0, -0.5])}, SIZE, SIZE)
    with pytest.raises(ValueError, match="before the camera"):
        energy.fragments(state | {"translation": torch.tensor([0.0, 0.0, 0.5])}, SIZE, SIZE)
    frame = photographed(energy, state)
    lost = dataclasses.replace(frame, points_px=np.full((68, 2), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        Tracker(energy, QUICK, focal_ndc=4.0, dense=False).follow(state, lost)


def test_schedules_name_unknowns_and_fix_what_belongs_to_the_video() -> None:
    with pytest.raises(ValueError, match="expected unknowns"):
        Schedule(colour_rates={"colour": 0.1})
    with pytest.raises(ValueError, match="fixed after the first frames"):
        Schedule(frame_rates={"texture": 0.1})


def test_a_basis_gives_linear_colours_and_its_own_prior() -> None:
    rng = np.random.default_rng(0)
    mean, basis = rng.random((4, 3)), rng.normal(size=(4, 3, 2))
    albedo = Albedo(4, np.array([[0, 1, 2], [1, 3, 2]]), mean, basis)
    texture = torch.tensor([0.5, -1.0])
    np.testing.assert_allclose(
        albedo.colours(texture).numpy(), mean + basis @ [0.5, -1.0], rtol=1e-5
    )
    assert float(albedo.prior(texture)) == pytest.approx(1.25)
    free = Albedo(4, np.array([[0, 1, 2], [1, 3, 2]]), smoothness=2.0)
    texture = torch.zeros(4, 3)
    texture[0] = 0.1  # two edges lead to vertex 0
    assert float(free.prior(texture)) == pytest.approx(3 * 0.01 * (1 + 2.0 * 2))


def test_a_texture_basis_trusts_every_vertex(surface: Surface) -> None:
    N, faces = len(surface.used), surface.faces.numpy()
    waves = np.cos(
        surface.flame.v_template.numpy() @ np.random.default_rng(2).normal(size=(3, 2)) * 60
    )
    albedo = Albedo(N, faces, np.full((N, 3), 0.5), 0.1 * waves[:, None, :].repeat(3, axis=1))
    energy = Energy(surface, albedo, TermWeights(), torch.zeros(S))
    true = known(surface) | {"texture": torch.tensor([1.0, -2.0])}
    frame = photographed(energy, true)
    black = true | {"light": torch.zeros(9, 3), "texture": torch.zeros(2)}
    tracker = Tracker(energy, QUICK, focal_ndc=4.0)
    found = tracker._fit_colours(black, frame)
    assert float(found["texture"][0]) > 0.3
    assert float(found["texture"][1]) < -0.6
    assert float(tracker._trust(found | {"trusted": torch.zeros(N)}, frame)["trusted"].min()) == 1.0


def test_a_first_frame_that_cannot_be_fitted_is_named(surface: Surface) -> None:
    energy, state = energy_of(surface), known(surface)
    frame = photographed(energy, state)
    away = Frame(frame.image, frame.points_px + 1e7)
    schedule = Schedule(camera_steps=1, levels=(Level(1.0, 1, True),))
    with pytest.raises(StartError, match="the tracke") as caught:
        Tracker(energy, schedule, focal_ndc=4.0).start([frame, away])
    assert caught.value.frame == 1
