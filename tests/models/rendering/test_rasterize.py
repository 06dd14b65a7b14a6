"""The rasteriser against a slow twin, its own invariants and finite differences."""

import numpy as np
import pytest
import torch

from models.rendering.rasterize import draw, interpolate, rasterize
from models.rendering.rasterize_numba import draw_numba
from models.rendering.resolve_kernels import LARGE_BYTES


def slow_rasterize(clip, faces, height, width, cull=False):
    """Every pixel against every triangle by a 3 x 3 solve, float64."""
    ids = np.full((height, width), -1)
    bary = np.zeros((height, width, 3))
    depth = np.ones((height, width))
    for row in range(height):
        for column in range(width):
            pixel = np.array([2 * (column + 0.5) / width - 1, 1 - 2 * (row + 0.5) / height, 1.0])
            for face, corners in enumerate(faces):
                x, y, z, w = clip[corners].astype(np.float64).T
                matrix = np.stack([x, y, w])
                determinant = np.linalg.det(matrix)
                if determinant == 0 or (cull and determinant < 0):
                    continue
                q = np.linalg.solve(matrix, pixel)
                if not (q >= 0).all():
                    continue
                b = q / q.sum()
                nearness = (b @ z) / (b @ w)
                if -1 <= nearness <= depth[row, column]:
                    ids[row, column], bary[row, column], depth[row, column] = face, b, nearness
    return ids, bary, depth


def random_soup(seed, count=12, behind=False):
    rng = np.random.default_rng(seed)
    vertices = rng.uniform(-1.2, 1.2, (3 * count, 4))
    vertices[:, 2] *= 0.6
    vertices[:, 3] = rng.uniform(-0.4 if behind else 0.7, 1.5, 3 * count)
    return vertices, np.arange(3 * count).reshape(-1, 3)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_slow_twin(backend, cull, behind):
    clip, faces = random_soup(3, behind=behind)
    height, width = 23, 31
    ids, bary, depth = (
        part[0].numpy()
        for part in rasterize(
            torch.from_numpy(clip)[None],
            torch.from_numpy(faces),
            height,
            width,
            cull,
            backend=backend,
        )
    )
    slow_ids, slow_bary, slow_depth = slow_rasterize(clip, faces, height, width, cull)
    assert (slow_ids >= 0).mean() > 0.2
    np.testing.assert_array_equal(ids, slow_ids)
    np.testing.assert_allclose(bary, slow_bary, atol=1e-9)
    np.testing.assert_allclose(depth, slow_depth, atol=1e-9)


def test_numpy_and_torch_inputs_agree_and_keep_their_kind():
    clip, faces = random_soup(5)
    arrays = rasterize(clip[None].astype(np.float32), faces, 20, 20)
    tensors = rasterize(
        torch.from_numpy(clip[None].astype(np.float32)), torch.from_numpy(faces), 20, 20
    )
    assert [part.dtype for part in arrays] == [np.int32, np.float32, np.float32]
    for array, tensor in zip(arrays, tensors, strict=True):
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize("width", [32, 41])
@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_pixel_centres_on_an_edge_are_covered(width, backend, order):
    edge = -1 + 2 * (20 + 0.5) / width  # through the centres of column 20
    clip = torch.tensor([[[edge, -2.0, 0, 1], [edge, 2.0, 0, 1], [2.0, 0.0, 0, 1]]])
    faces = torch.tensor([order])
    ids, _, _ = rasterize(clip, faces, 9, width, backend=backend)
    assert (ids[0, 4, 20:] == 0).all()
    assert (ids[0, 4, :20] == -1).all()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_full_screen_quad_has_no_pinholes(backend):
    rng = np.random.default_rng(8)
    side = 13
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side)), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.05, 0.05, (side - 2, side - 2, 2))
    clip = np.concatenate([grid.reshape(-1, 2), np.zeros((side**2, 1)), np.ones((side**2, 1))], 1)
    clip *= rng.uniform(0.5, 2.0, (side**2, 1))
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], 1),
            np.stack([corner + side, corner + 1, corner + side + 1], 1),
        ]
    )
    ids, bary, _ = rasterize(
        torch.from_numpy(clip.astype(np.float32))[None],
        torch.from_numpy(faces),
        64,
        50,
        backend=backend,
    )
    assert (ids >= 0).all()
    np.testing.assert_allclose(bary.sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_what_covers_nothing(backend):
    degenerate = [[-1.0, 0, 0, 1], [0, 0, 0, 1], [1.0, 0, 0, 1]]
    behind = [[-1.0, -1, 0, -1], [1, -1, 0, -1], [0.0, 1, 0, -1]]
    too_far = [[-1.0, -1, 1.5, 1], [1, -1, 1.5, 1], [0.0, 1, 1.5, 1]]
    not_a_number = [[-1.0, -1, 0, 1], [1, -1, 0, 1], [0.0, float("nan"), 0, 1]]
    outside = [[3.0, -1, 0, 1], [5, -1, 0, 1], [4.0, 1, 0, 1]]
    clip = torch.tensor([degenerate + behind + too_far + not_a_number + outside])
    faces = torch.arange(15).reshape(-1, 3)
    ids, bary, depth = rasterize(clip, faces, 15, 15, backend=backend)
    assert (ids == -1).all()
    assert (bary == 0).all()
    assert (depth == 1).all()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_equally_near_triangles_show_the_later(backend):
    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0.0, 1, 0, 1]]])
    ids, _, _ = rasterize(clip, torch.tensor([[0, 1, 2], [0, 2, 1]]), 9, 9, backend=backend)
    assert set(ids.unique().tolist()) == {-1, 1}
    culled, _, _ = rasterize(
        clip, torch.tensor([[0, 1, 2], [0, 2, 1]]), 9, 9, True, backend=backend
    )
    assert set(culled.unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_gradient_meets_finite_differences(backend):
    rng = np.random.default_rng(11)
    clip, faces = random_soup(7, count=4)
    weights = torch.from_numpy(rng.normal(size=(1, 12, 14, 2)))
    attributes = torch.from_numpy(rng.normal(size=(1, 12, 2)))
    faces_tensor = torch.from_numpy(faces)
    variable = torch.from_numpy(clip)[None].requires_grad_()
    colours = attributes.clone().requires_grad_()
    ids, bary, _ = rasterize(variable, faces_tensor, 12, 14, backend=backend)
    (interpolate(colours, faces_tensor, ids, bary) * weights).sum().backward()

    def loss(points, values):
        """Frozen ids: each pixel solves for its triangle's plane."""
        total = 0.0
        for row, column in zip(*np.nonzero(ids[0].numpy() >= 0), strict=True):
            corners = faces[ids[0, row, column]]
            x, y, _, w = points[corners].T
            pixel = np.array([2 * (column + 0.5) / 14 - 1, 1 - 2 * (row + 0.5) / 12, 1.0])
            q = np.linalg.solve(np.stack([x, y, w]), pixel)
            total += (q / q.sum()) @ values[corners] @ weights[0, row, column].numpy()
        return total

    numeric = np.zeros_like(clip)
    for index in np.ndindex(clip.shape):
        step = np.zeros_like(clip)
        step[index] = 1e-6
        high, low = (
            loss(clip + step, attributes[0].numpy()),
            loss(clip - step, attributes[0].numpy()),
        )
        numeric[index] = (high - low) / 2e-6
    assert np.abs(numeric).max() > 1
    np.testing.assert_allclose(variable.grad[0].numpy(), numeric, rtol=1e-5, atol=1e-6)
    assert (variable.grad[..., 2] == 0).all()
    direction = rng.normal(size=attributes[0].shape)
    base = attributes[0].numpy()
    slope = (loss(clip, base + 1e-6 * direction) - loss(clip, base - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose((colours.grad[0].numpy() * direction).sum(), slope, rtol=1e-6)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_gradcheck_in_float64(backend):
    clip = torch.tensor(
        [[[-0.9, -0.8, 0.1, 1.0], [0.9, -0.7, 0.2, 1.3], [0.1, 0.8, 0.0, 0.8]]],
        dtype=torch.float64,
        requires_grad=True,
    )
    faces = torch.tensor([[0, 1, 2]])
    attributes = torch.tensor([[[1.0, 2], [3, -1], [0.5, 4]]], dtype=torch.float64)

    def inner(points, values):
        ids, bary, _ = rasterize(points, faces, 9, 9, backend=backend)
        return interpolate(values, faces, ids, bary)[:, 3:6, 3:6]

    torch.autograd.gradcheck(inner, (clip, attributes.requires_grad_()), eps=1e-7)


def test_tiny_triangles_pass_no_gradient():
    clip = torch.tensor([[[-1e-3, -1e-3, 0, 1], [1e-3, -1e-3, 0, 1], [0, 1e-3, 0, 1]]])
    clip.requires_grad_()
    _, bary, _ = rasterize(clip, torch.tensor([[0, 1, 2]]), 21, 21)
    assert bary.sum() == 1
    bary[..., 0].sum().backward()
    assert (clip.grad == 0).all()


def ellipsoid(rings=90, segments=120):
    """A closed mesh with sub-pixel triangles, counter-clockwise outside."""
    polar = np.linspace(0.02, np.pi - 0.02, rings)[:, None]
    turn = np.linspace(0, 2 * np.pi, segments, endpoint=False)[None]
    points = np.stack(
        [np.sin(polar) * np.sin(turn), np.cos(polar) + 0 * turn, np.sin(polar) * np.cos(turn)], -1
    ).reshape(-1, 3) * [0.6, 0.8, 0.5]
    first = (np.arange(rings - 1)[:, None] * segments + np.arange(segments)).reshape(-1)
    right = (
        np.arange(rings - 1)[:, None] * segments + (np.arange(segments) + 1) % segments
    ).reshape(-1)
    below, below_right = first + segments, right + segments
    faces = np.concatenate(
        [np.stack([first, below, right], 1), np.stack([right, below, below_right], 1)]
    )
    return points, faces


def test_backends_agree_on_a_dense_mesh():
    points, faces = ellipsoid()
    w = 3.0 - points[:, 2:]
    clip = np.concatenate([2 * points[:, :2], w - 2.9, w], 1).astype(np.float32)
    variable = torch.from_numpy(np.stack([clip, clip * [0.9, 1.1, 1, 1]]).astype(np.float32))
    found = {}
    for backend in ("numba", "torch"):
        leaf = variable.clone().requires_grad_()
        ids, bary, depth = rasterize(leaf, torch.from_numpy(faces), 96, 80, backend=backend)
        ramp = torch.linspace(0, 1, bary.numel()).reshape(bary.shape)
        (bary * ramp).sum().backward()
        found[backend] = ids, bary.detach(), depth, leaf.grad
    a, b = found["numba"], found["torch"]
    assert (a[0] != b[0]).float().mean() <= 1e-4
    same = a[0] == b[0]
    torch.testing.assert_close(a[1][same], b[1][same], atol=1e-6, rtol=0)
    torch.testing.assert_close(a[2], b[2], atol=1e-6, rtol=0)
    assert (a[3] - b[3]).norm() <= 2e-3 * a[3].norm()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawing_in_one_pass_gives_the_same_bits_into_any_array(dtype):
    points, faces = ellipsoid(40, 60)
    clip = np.concatenate([points[:, :2], -points[:, 2:], np.ones((len(points), 1))], 1)
    batch = np.stack([clip, clip * [0.8, 1.1, 1, 1], clip[:, [1, 0, 2, 3]]]).astype(dtype)
    batch[2, :, :] *= 1.7  # w is not 1
    values = np.random.default_rng(0).normal(size=(3, len(points), 5)).astype(np.float32)
    for cull in (False, True):
        ids, bary, _ = rasterize(batch, faces, 41, 53, cull)
        expected = interpolate(values, faces, ids, bary)
        out = np.full((3, 41, 53, 5), np.nan, dtype=np.float32)
        found, drawn = draw_numba(batch, faces, values, 41, 53, cull=cull, out=out, workers=4)
        assert drawn is out
        np.testing.assert_array_equal(found, ids)
        assert drawn.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="C-contiguous float32 out of shape"):
        draw_numba(batch, faces, values, 41, 53, out=out[..., :4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("scale", "shift"), [(0.2, 0.31), (0.2, -0.95), (3.0, 0.0), (0.2, 2.0)], ids=str
)
def test_a_large_picture_is_cleared_around_what_is_drawn(dtype, scale, shift):
    points, faces = ellipsoid(30, 40)
    placed = points * [scale, scale, 0.2] + [shift, shift, 0.0]
    clip = np.concatenate([placed, np.ones((len(points), 1))], 1)[None]
    values = np.random.default_rng(0).normal(size=(1, len(points), 7)).astype(dtype)
    height, width, skipped = 290, 310, 3
    size = height * width * 7
    assert size * values.itemsize > LARGE_BYTES
    ids, bary, _ = rasterize(clip, faces, height, width)
    expected = interpolate(values, faces, ids, bary)
    assert (expected == 0).any() or scale > 1
    assert expected.any() == (shift < 2)
    # Over what was there before, from a place that no cache line begins at.
    room = np.full(size + 2 * skipped, np.nan, dtype)
    out = room[skipped:-skipped].reshape(1, height, width, 7)
    draw_numba(clip, faces, values, height, width, out=out)
    assert out.tobytes() == expected.tobytes()
    assert np.isnan(room[:skipped]).all()
    assert np.isnan(room[-skipped:]).all()


def test_a_large_picture_is_cleared_from_an_address_that_fits_no_number():
    points, faces = ellipsoid(30, 40)
    clip = np.concatenate([0.3 * points, np.ones((len(points), 1))], 1)[None]
    values = points.astype(np.float32)[None]
    ids, bary, _ = rasterize(clip, faces, 450, 450)
    room = np.full(450 * 450 * 12 + 2, 255, dtype=np.uint8)
    out = room[1:-1].view(np.float32).reshape(1, 450, 450, 3)
    assert not out.flags.aligned
    draw_numba(clip, faces, values, 450, 450, out=out)
    assert out.tobytes() == interpolate(values, faces, ids, bary).tobytes()
    assert room[0] == room[-1] == 255


def _dense_torch_mesh():
    """Two views of an ellipsoid in perspective, and its triangles."""
    points, faces = ellipsoid(30, 40)
    w = 3.0 - points[:, 2:]
    clip = np.concatenate([2 * points[:, :2], w - 2.9, w], 1)
    views = np.stack([clip, clip * [0.9, 1.1, 1, 1]]).astype(np.float32)
    return torch.from_numpy(views), torch.from_numpy(faces)


@pytest.mark.parametrize("channels", [1, 6, 9, 13])
def test_drawing_passes_the_gradients_of_rasterising_and_interpolating(channels):
    clip, faces = _dense_torch_mesh()
    generator = torch.Generator().manual_seed(channels)
    values = torch.randn((len(clip), clip.shape[1], channels), generator=generator)
    weight = torch.randn((len(clip), 41, 53, channels), generator=generator)
    found = []
    for name in ("fused", "numba", "torch"):
        moved, given = clip.clone().requires_grad_(), values.clone().requires_grad_()
        if name == "fused":
            ids, drawn = draw(moved, faces, given, 41, 53)
        else:
            ids, bary, _ = rasterize(moved, faces, 41, 53)
            drawn = interpolate(given, faces, ids, bary, backend=name)
        (drawn * weight).sum().backward()
        found.append((ids, drawn.detach(), moved.grad, given.grad))
    fused, apart, plain = found
    assert (fused[0] >= 0).any()
    for part, expected in zip(fused, apart, strict=True):
        assert torch.equal(part, expected)
    for part, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attributes_of_another_dtype_than_clip_keep_it(backend, dtype):
    clip, faces = _dense_torch_mesh()
    clip = clip.to(torch.float64 if dtype == torch.float32 else torch.float32)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn((*clip.shape[:2], 5), generator=generator).to(dtype)
    weight = torch.randn((len(clip), 41, 53, 5), generator=generator).double()

    def gradients(clip, values, draw_it):
        moved, given = clip.clone().requires_grad_(), values.clone().requires_grad_()
        drawn = draw_it(moved, given)
        (drawn * weight.to(drawn)).sum().backward()
        return drawn.detach(), moved.grad, given.grad

    def apart(moved, given):
        ids, bary, _ = rasterize(moved, faces, 41, 53, backend=backend)
        return interpolate(given, faces, ids, bary, backend=backend)

    def at_once(moved, given):
        return draw(moved, faces, given, 41, 53, backend=backend)[1]

    exact = gradients(clip.double(), values.double(), apart)
    for draw_it in (apart, at_once):
        found = gradients(clip, values, draw_it)
        assert [part.dtype for part in found] == [dtype, clip.dtype, dtype]
        for part, expected in zip(found, exact, strict=True):
            assert (part.double() - expected).norm() <= 1e-5 * expected.norm()


def test_drawing_takes_shared_attributes_and_refuses_others():
    clip, faces = _dense_torch_mesh()
    values = torch.rand((clip.shape[1], 2))
    shared = draw(clip, faces, values, 20, 20)[1]
    assert torch.equal(shared, draw(clip, faces, values.expand(len(clip), -1, -1), 20, 20)[1])
    plain = draw(clip.numpy(), faces.numpy(), values.numpy(), 20, 20)[1]
    assert np.array_equal(shared.numpy(), plain)
    with pytest.raises(ValueError, match="attributes of shape"):
        draw(clip, faces, values[1:], 20, 20)


def test_same_bytes_for_one_and_four_threads():
    points, faces = ellipsoid()
    w = 3.0 - points[:, 2:]
    clip = np.concatenate([2 * points[:, :2], w - 2.9, w], 1).astype(np.float32)
    batch = torch.from_numpy(np.stack([clip * [1 + 0.05 * i, 1, 1, 1] for i in range(6)])).float()
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 4, 4):
            torch.set_num_threads(count)
            leaf, colours = batch.clone().requires_grad_(), batch[..., :3].clone().requires_grad_()
            ids, bary, depth = rasterize(leaf, torch.from_numpy(faces), 64, 48)
            values = interpolate(colours, torch.from_numpy(faces), ids, bary)
            ramp = torch.linspace(-1, 1, values.numel()).reshape(values.shape)
            values.backward(ramp)
            parts = (ids, bary.detach(), depth, values.detach(), leaf.grad, colours.grad)
            found.append([part.numpy().tobytes() for part in parts])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_floor_that_passes_under_the_camera_is_cut_at_the_near_and_far_planes(backend):
    """The floor y = -1 at distance d is seen at py = -1 / d; its near corners have w < 0."""
    near, far = 1.25, 6.0
    corners = np.array([[x, -1.0, w] for x in (-40.0, 40.0) for w in (-5.0, 30.0)])
    w = corners[:, 2]
    z = ((far + near) * w - 2 * far * near) / (far - near)
    clip = torch.from_numpy(np.stack([corners[:, 0], corners[:, 1], z, w], 1))[None]
    ids, _, depth = rasterize(clip, torch.tensor([[0, 1, 2], [2, 1, 3]]), 60, 17, backend=backend)
    rows = np.arange(60)
    distance = -1 / np.minimum(1 - 2 * (rows + 0.5) / 60, -1e-9)
    seen = (distance >= near) & (distance <= far)
    assert 10 < seen.sum() < 25
    np.testing.assert_array_equal(ids[0].numpy() >= 0, np.repeat(seen[:, None], 17, 1))
    nearness = (far + near) / (far - near) - 2 * far * near / ((far - near) * distance[seen])
    np.testing.assert_allclose(depth[0, seen], np.repeat(nearness[:, None], 17, 1), atol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_no_pinhole_between_triangles_that_pass_the_camera_and_their_neighbours(backend):
    """A floor y = -1 whose near strip reaches behind the camera; it ends at w = 7.5."""
    columns, strips = 9, 3
    corner = (np.arange(strips - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + columns], 1),
            np.stack([corner + columns, corner + 1, corner + columns + 1], 1),
        ]
    )
    batch = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = np.tile(np.linspace(-60, 60, columns), (strips, 1))
        x[:, 1:-1] += rng.uniform(-3, 3, (strips, columns - 2))
        w = np.repeat([[-1.0], [2.0], [7.5]], columns, axis=1)
        w[1] = rng.choice([1.25, 2.0, 2.5, 4.0], columns)  # their rows are those of centres
        batch.append(np.stack([x, 0 * x - 1, 0 * x, w], -1).reshape(-1, 4))
    ids, _, _ = rasterize(
        torch.from_numpy(np.stack(batch)), torch.from_numpy(faces), 40, 33, backend=backend
    )
    floor = 1 - 2 * (np.arange(40) + 0.5) / 40 < -1 / 7.5
    assert ((ids >= 0).numpy() == floor[None, :, None]).all()
    passing = (torch.from_numpy(np.stack(batch))[0, faces, 3] <= 0).any(-1).nonzero()[:, 0]
    share = torch.isin(ids[ids >= 0], passing).double().mean()
    assert 0.2 < share < 0.9


def test_corners_that_are_not_numbers_or_infinite_leave_other_triangles_alone():
    good = [[-1.0, -1, 0.2, 1], [1, -1, 0.2, 1], [0.0, 1, 0.2, 1]]
    bad = [[np.nan, 0, 0, 1], [np.inf, 0, 0, 1], [0, -np.inf, 0, 1], [0, np.nan, 0, 1]]
    bad += [[0, 0, 0, np.nan], [0, 0, np.nan, 1]]
    clip = np.array(good + bad)
    faces = np.array(
        [[0, 1, 2], *[[k, 0, 1] for k in range(3, 9)], *[[1, k, 2] for k in range(3, 9)]]
    )
    ids, bary, depth = rasterize(clip[None], faces, 19, 23)
    alone = rasterize(clip[None], faces[:1], 19, 23)
    np.testing.assert_array_equal(ids, alone[0])
    np.testing.assert_array_equal(bary, alone[1])
    np.testing.assert_array_equal(depth, alone[2])


def test_cull_keeps_the_outside_of_a_closed_mesh():
    points, faces = ellipsoid(40, 60)
    clip = np.concatenate([points[:, :2], -points[:, 2:], np.ones((len(points), 1))], 1)[None]
    both, _, depth_both = rasterize(clip, faces, 50, 50)
    front, _, depth_front = rasterize(clip, faces, 50, 50, True)
    np.testing.assert_array_equal(both >= 0, front >= 0)
    np.testing.assert_allclose(depth_both, depth_front, atol=1e-12)
    reverse, _, depth_back = rasterize(clip, faces[:, ::-1], 50, 50, True)
    assert (depth_back[reverse >= 0] >= depth_front[reverse >= 0] - 1e-12).all()


def test_interpolating_clip_coordinates_returns_the_pixel_centre():
    clip, faces = random_soup(21, count=6)
    ids, bary, depth = rasterize(clip[None], faces, 30, 40)
    values = interpolate(clip, faces, ids, bary)
    rows, columns = np.nonzero(ids[0] >= 0)
    seen = values[0, rows, columns]
    np.testing.assert_allclose(seen[:, 0] / seen[:, 3], 2 * (columns + 0.5) / 40 - 1, atol=1e-9)
    np.testing.assert_allclose(seen[:, 1] / seen[:, 3], 1 - 2 * (rows + 0.5) / 30, atol=1e-9)
    np.testing.assert_allclose(seen[:, 2] / seen[:, 3], depth[0, rows, columns], atol=1e-9)


def test_wrong_requests_are_refused():
    clip, faces = random_soup(1)
    with pytest.raises(ValueError, match=r"shape \(B, V, 4\)"):
        rasterize(clip, faces, 4, 4)
    with pytest.raises(ValueError, match="1-based"):
        rasterize(clip[None], faces + 1, 4, 4)
    with pytest.raises(ValueError, match=r"shape \(F, 3\)"):
        rasterize(clip[None], faces[:, :2], 4, 4)
    with pytest.raises(ValueError, match="positive image size"):
        rasterize(clip[None], faces, 0, 4)
    with pytest.raises(ValueError, match="backend"):
        rasterize(clip[None], faces, 4, 4, backend="gl")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_interpolating_what_does_not_fit_together_is_refused(kind):
    clip, faces = random_soup(1)
    ids, bary, _ = rasterize(clip[None], faces, 5, 4)
    good = {"attributes": clip[None], "faces": faces, "ids": ids, "bary": bary}

    def interpolated(**changed):
        return interpolate(**{name: kind(part) for name, part in (good | changed).items()})

    assert tuple(interpolated().shape) == (1, 5, 4, 4)
    assert tuple(interpolated(attributes=clip).shape) == (1, 5, 4, 4)
    nothing = {"faces": faces[:0], "ids": np.full_like(ids, -1)}
    assert (interpolated(**nothing) == 0).all()
    assert tuple(interpolated(ids=ids[:0], bary=bary[:0], attributes=clip).shape) == (0, 5, 4, 4)
    wrong = r"attributes of shape \(1, V, C\) or \(V, C\), got"
    for attributes in (clip[:, 0], np.stack([clip, clip]), clip[None, None]):
        with pytest.raises(ValueError, match=wrong):
            interpolated(attributes=attributes)
    with pytest.raises(ValueError, match=r"interpolate expects vertex indices in 0..34, got 0..35"):
        interpolated(attributes=clip[:-1])
    with pytest.raises(ValueError, match="got -1..34"):
        interpolated(faces=faces - 1)
    with pytest.raises(ValueError, match=r"interpolate expects faces of shape \(F, 3\)"):
        interpolated(faces=faces[:, :2])
    for changed in (
        {"bary": bary[:, :4]},
        {"bary": bary[..., :2]},
        {"ids": ids[0], "bary": bary[0]},
        {"ids": np.repeat(ids, 2, 0)},
    ):
        with pytest.raises(ValueError, match=r"ids of shape \(B, H, W\) and bary"):
            interpolated(**changed)
    with pytest.raises(ValueError, match=rf"triangles in 0..{ids.max() - 1}, got {ids.max()}"):
        interpolated(faces=faces[: ids.max()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_accelerator_meets_the_cpu():
    points, faces = ellipsoid()
    w = 3.0 - points[:, 2:]
    clip = np.concatenate([2 * points[:, :2], w - 2.9, w], 1).astype(np.float32)[None]
    on_cpu = rasterize(torch.from_numpy(clip), torch.from_numpy(faces), 96, 80)
    leaf = torch.from_numpy(clip).cuda().requires_grad_()
    there = rasterize(leaf, torch.from_numpy(faces).cuda(), 96, 80)
    assert (there[0].cpu() != on_cpu[0]).float().mean() <= 1e-4
    colours = interpolate(leaf[..., :3], torch.from_numpy(faces).cuda(), there[0], there[1])
    colours.sum().backward()
    assert leaf.grad.isfinite().all()
