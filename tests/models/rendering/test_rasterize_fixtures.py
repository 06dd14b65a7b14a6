"""The rasteriser against the published renderings and Jacobians of another one."""

import cv2
import numpy as np
import pytest
import torch

from models.rendering.cameras import look_at, perspective_clip, transform_points
from models.rendering.rasterize import interpolate, rasterize
from models.rendering.shading import normalize, phong

HEIGHT, WIDTH = 480, 640
KERNEL_SCENES = (
    "Simple_Triangle",
    "Perspective_Corrected_Triangle",
    "External_Triangle",
    "Inside_Box",
    "Simple_Tetrahedron",
    "Barycentrics_Cube",
)


@pytest.fixture(scope="module")
def scenes(shared_data):
    with np.load(shared_data / "tf_mesh_renderer" / "fixture.npz") as stored:
        return {name: stored[name] for name in stored}


@pytest.fixture(scope="module")
def picture(shared_data):
    def read(name):
        path = shared_data / "tf_mesh_renderer" / "png" / f"{name}.png"
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels is not None, path
        order = cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        return cv2.cvtColor(pixels, order) / 255.0

    return read


def outlier_fraction(rendered, expected):
    wrong = np.abs(np.clip(rendered, 0.0, 1.0) - expected) > 0.01
    return wrong.any(axis=-1).mean()


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("name", KERNEL_SCENES)
def test_kernel_scene_meets_picture_ids_bary_and_depth(scenes, picture, name, backend):
    clip = torch.from_numpy(scenes[f"clip_{name}"])[None]
    faces = torch.from_numpy(scenes[f"tri_{name}"].astype(np.int64))
    ids, bary, depth = (
        part[0].numpy()[::-1]  # the reference stores the bottom row first
        for part in rasterize(clip, faces, HEIGHT, WIDTH, backend=backend)
    )
    assert outlier_fraction(bary, picture(name)) <= 1e-4
    covered = scenes[f"baryf16_{name}"].astype(np.float64).sum(-1) > 0.5
    np.testing.assert_array_equal(ids >= 0, covered)
    same = covered & (ids == scenes[f"ids_{name}"])
    assert (covered & ~same).sum() <= 4  # equally near on shared edges
    half = scenes[f"baryf16_{name}"].astype(np.float64)
    np.testing.assert_allclose(bary[same], half[same], atol=3e-4)
    np.testing.assert_allclose(depth[covered], scenes[f"z_{name}"][covered], atol=1e-6)


def test_wrongly_flipped_picture_fails(scenes, picture):
    name = "Simple_Triangle"
    _, bary, _ = rasterize(scenes[f"clip_{name}"][None], scenes[f"tri_{name}"], HEIGHT, WIDTH)
    assert outlier_fraction(bary[0], picture(name)) > 0.1


@pytest.mark.parametrize("image", [0, 1])
def test_unlit_cubes(scenes, picture, image):
    faces = scenes["cube_tri"]
    ids, bary, _ = rasterize(scenes["unlit_clip"], faces, HEIGHT, WIDTH)
    colour = interpolate(scenes["unlit_attr"], faces, ids, bary)[image, ::-1, :, :3]
    assert outlier_fraction(colour, picture(f"Unlit_Cube_{image}")) <= 1e-4


def _shaded(scenes, prefix, image, fov_deg, near, far, ambient):
    """One lit cube through our cameras, rasteriser and shading, top row first."""
    vertices, faces = scenes[f"{prefix}_v"][image].astype(np.float64), scenes["cube_tri"]
    eye = scenes[f"{prefix}_eye"][image]
    camera = look_at(eye, scenes[f"{prefix}_cen"][image], scenes[f"{prefix}_up"][image])
    focal = 0.5 * HEIGHT / np.tan(np.radians(fov_deg) / 2.0)
    seen = transform_points(camera, vertices[None])
    clip = perspective_clip(seen, focal, WIDTH / 2, HEIGHT / 2, HEIGHT, WIDTH, near=near, far=far)
    ids, bary, _ = rasterize(clip, faces, HEIGHT, WIDTH)
    attributes = np.concatenate(
        [scenes[f"{prefix}_n"][image], vertices, scenes[f"{prefix}_dif"][image]], axis=1
    )
    values = interpolate(attributes, faces, ids, bary)[0]
    colour = phong(
        values[..., 3:6],
        normalize(values[..., 0:3]),
        values[..., 6:9],
        scenes[f"{prefix}_lp"][image],
        scenes[f"{prefix}_li"][image],
        eye,
        ambient=ambient,
    )
    return np.where((ids[0] >= 0)[..., None], colour, 0.0)


@pytest.mark.parametrize("image", [0, 1])
def test_gray_cubes_through_our_camera_and_shading(scenes, picture, image):
    colour = _shaded(scenes, "gray", image, 40.0, 0.01, 10.0, None)
    assert outlier_fraction(colour, picture(f"Gray_Cube_{image}")) <= 1e-4


def test_colored_cubes_through_our_camera_and_shading(scenes, picture):
    """The reference normalises its highlight over the pixels, which leaves nothing of it."""
    for image in (0, 1):
        near, far = float(scenes["color_near"]), float(scenes["color_far"])
        fov = float(scenes["color_fov"][image])
        colour = _shaded(scenes, "color", image, fov, near, far, scenes["color_amb"][image])
        toned = colour**0.7
        toned = toned / toned.max()
        assert outlier_fraction(toned, picture(f"Colored_Cube_{image}")) <= 1e-4


def _jacobian(clip, faces, height, width, backend, pixel=None):
    variable = torch.from_numpy(clip)[None].requires_grad_()
    _, bary, _ = rasterize(variable, faces, height, width, backend=backend)
    bary = bary.flip(1)[0]
    outputs = bary.reshape(-1) if pixel is None else bary[pixel]
    rows = [torch.autograd.grad(value, variable, retain_graph=True)[0] for value in outputs]
    return torch.stack(rows).reshape(len(rows), -1).numpy()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_jacobian_of_one_pixel(scenes, backend):
    faces = torch.from_numpy(scenes["tri_Simple_Triangle"].astype(np.int64))
    ours = _jacobian(scenes["grad1_clip"], faces, HEIGHT, WIDTH, backend, (245, 325))
    np.testing.assert_allclose(ours, scenes["grad1_jac"], atol=1e-6)
    numeric = scenes["grad1_num"]
    known = np.abs(numeric) > 1e-6
    assert (np.abs(ours - numeric)[known] <= 0.01 * np.abs(numeric)[known]).all()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_jacobian_of_a_cube(scenes, backend):
    faces = torch.from_numpy(scenes["cube_tri"].astype(np.int64))
    ours = _jacobian(scenes["grad2_clip"], faces, 21, 28, backend)
    np.testing.assert_allclose(ours, scenes["grad2_jac"], atol=3e-5)
