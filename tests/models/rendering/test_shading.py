"""Shading: known normals and reflections, quadrature, kind and gradient."""

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from models.rendering.shading import (
    normalize,
    phong,
    sh_basis,
    sh_irradiance,
    spherical_harmonics,
    vertex_normals,
)


def sphere(count=600):
    """Fibonacci points with outward triangles."""
    index = np.arange(count) + 0.5
    z = 1 - 2 * index / count
    turn = index * np.pi * (3 - np.sqrt(5))
    points = np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], 1)
    faces = ConvexHull(points).simplices.astype(np.int64)
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return points, faces


def test_normals_of_a_sphere_point_outward_and_turn_with_it():
    points, faces = sphere()
    normals = vertex_normals(points, faces)
    assert ((normals * points).sum(1) > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-12)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    np.testing.assert_allclose(vertex_normals(points @ turn.T, faces), normals @ turn.T, atol=1e-9)


def test_normals_of_tensors_batches_and_lonely_vertices():
    points, faces = sphere(80)
    lonely = np.concatenate([points, [[5.0, 5, 5]]])
    batch = np.stack([lonely, 2 * lonely + 1])
    ours = vertex_normals(batch, faces)
    theirs = vertex_normals(torch.from_numpy(batch), torch.from_numpy(faces))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-12)
    assert (ours[:, -1] == 0).all()
    variable = torch.from_numpy(lonely).requires_grad_()
    vertex_normals(variable, torch.from_numpy(faces))[:, 0].sum().backward()
    assert variable.grad.isfinite().all()


def test_harmonics_are_orthonormal():
    directions = sphere_directions(40_000)
    basis = spherical_harmonics(directions)
    gram = 4 * np.pi * basis.T @ basis / len(directions)
    np.testing.assert_allclose(gram, np.eye(9), atol=2e-3)


def sphere_directions(count):
    index = np.arange(count) + 0.5
    z = 1 - 2 * index / count
    turn = index * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], 1)


def test_irradiance_equals_the_cosine_integral_of_a_band_limited_light():
    rng = np.random.default_rng(4)
    radiance = rng.normal(size=(9, 2))
    normals = normalize(rng.normal(size=(5, 3)))
    directions = sphere_directions(40_000)
    light = spherical_harmonics(directions) @ radiance
    cosine = np.maximum(normals @ directions.T, 0)
    integral = cosine @ light * (4 * np.pi / len(directions)) / np.pi
    np.testing.assert_allclose(sh_irradiance(normals, radiance), integral, atol=2e-3)
    tensors = sh_irradiance(torch.from_numpy(normals), torch.from_numpy(radiance))
    np.testing.assert_allclose(tensors.numpy(), sh_irradiance(normals, radiance), atol=1e-12)


def test_published_tables_at_known_directions():
    """Written out from the constants of the two methods."""
    x, y, z = n = np.array([2.0, -3.0, 6.0]) / 7.0
    a = np.pi * np.array([1, 2 / np.sqrt(3), 2 / np.sqrt(8)])
    c = np.array([1, np.sqrt(3), 3 * np.sqrt(5 / 3)]) / np.sqrt(4 * np.pi)
    zero, one, two = a * c
    deep3d = [
        zero,
        *(one * np.array([-y, z, -x])),
        *(two * np.array([x * y, -y * z, (3 * z * z - 1) / (2 * np.sqrt(3)), -x * z])),
        two * (x * x - y * y) / 2,
    ]
    np.testing.assert_allclose(sh_basis(n[None], "deep3d")[0], deep3d, atol=1e-5)
    one, two = 2 * np.pi / 3 * c[1], np.pi / 4 * c[2]
    tracker = [
        c[0],
        *(one * n),
        *(two * np.array([x * y, x * z, y * z])),
        two * (x * x - y * y) / 2,
    ]
    tracker.append(np.pi / 8 * np.sqrt(5 / (4 * np.pi)) * (3 * z * z - 1))
    np.testing.assert_allclose(sh_basis(n[None], "tracker")[0], tracker, atol=1e-5)
    with pytest.raises(ValueError, match="expects a table"):
        sh_basis(n[None], "flame")


@pytest.mark.parametrize("table", ["deep3d", "tracker"])
def test_published_tables_span_what_the_harmonics_span(table):
    """Orthogonal over the sphere, one scale per degree, same values as tensors with a gradient."""
    directions = sphere_directions(40_000)
    basis = sh_basis(directions, table)
    gram = 4 * np.pi * basis.T @ basis / len(directions)
    scales = np.sqrt(np.diag(gram))
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=0.05)
    np.testing.assert_allclose(scales[1:4], scales[1], rtol=2e-3)
    np.testing.assert_allclose(scales[4:], scales[4], rtol=2e-3)
    few = torch.from_numpy(directions[:3]).requires_grad_()
    np.testing.assert_allclose(sh_basis(few, table).detach().numpy(), basis[:3], atol=1e-12)
    assert torch.autograd.gradcheck(lambda n: sh_basis(n, table), few)


def test_lambert_is_phong_without_a_highlight():
    """Light on the normal's far side gives nothing; else I kd cos, whatever the distance."""
    angles = np.radians([0.0, 30, 60, 89, 91, 180])
    normals = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], 1)
    kd = np.full((len(angles), 3), [0.2, 0.5, 0.9])
    for distance in (1.0, 50.0):
        light = np.array([[0.0, 0, distance]])
        colour = phong(np.zeros_like(normals), normals, kd, light, 3 * np.ones((1, 3)), light[0])
        np.testing.assert_allclose(colour, 3 * kd * np.maximum(np.cos(angles), 0)[:, None])


def test_phong_of_a_point_does_not_depend_on_the_other_points():
    """Genova et al.'s equation has no norm over the image; their published code does."""
    rng = np.random.default_rng(2)
    positions, normals = rng.normal(size=(40, 3)), normalize(rng.normal(size=(40, 3)))
    kd, ks, light = rng.uniform(size=(40, 3)), rng.uniform(size=(40, 3)), rng.normal(size=(2, 3))
    eye, power = np.array([0.0, 1, 5]), np.ones((2, 3))

    def shaded(part):
        return phong(positions[part], normals[part], kd[part], light, power, eye, specular=ks[part])

    whole = shaded(slice(None))
    assert (whole > phong(positions, normals, kd, light, power, eye) + 1e-3).any()
    np.testing.assert_allclose(shaded(slice(7, 9)), whole[7:9], atol=1e-15)


def test_phong_closed_form():
    point, normal = np.zeros((1, 3)), np.array([[0.0, 0, 1]])
    kd, ks = np.array([[0.5, 0.25, 0.0]]), np.array([[0.2, 0.2, 0.2]])
    eye = np.array([0.0, 0, 3])
    oblique = np.array([[np.sqrt(3), 0, 1.0]])  # 60 degrees off the normal
    colour = phong(
        point,
        normal,
        kd,
        oblique,
        np.array([[2.0, 2, 2]]),
        eye,
        specular=ks,
        shininess=3.0,
        ambient=np.array([0.1, 0.1, 0.1]),
    )
    np.testing.assert_allclose(colour, 0.1 * kd + 2 * (0.5 * kd + 0.5**3 * ks))
    below = phong(point, normal, kd, -oblique, np.ones((1, 3)), eye, specular=ks)
    assert (below == 0).all()


def test_phong_highlight_is_brightest_at_the_mirror_direction():
    """The dot product is not normalised over the pixels, so the highlight is there."""
    eyes = [np.array([np.sin(a), 0.0, np.cos(a)]) for a in np.radians(np.arange(-80, 81, 10))]
    light = np.array([[np.sin(-0.5235987755982988), 0.0, np.cos(0.5235987755982988)]])
    values = [
        phong(
            np.zeros((1, 3)),
            np.array([[0.0, 0, 1]]),
            np.zeros((1, 3)),
            light,
            np.ones((1, 3)),
            eye,
            specular=np.ones((1, 3)),
            shininess=20.0,
        )[0, 0]
        for eye in eyes
    ]
    assert np.argmax(values) == 11  # +30 degrees
    assert max(values) == pytest.approx(1)


def test_phong_of_tensors_has_finite_gradients():
    rng = np.random.default_rng(9)
    positions, normals = rng.normal(size=(50, 3)), normalize(rng.normal(size=(50, 3)))
    kd, ks = rng.uniform(size=(50, 3)), rng.uniform(size=(50, 3))
    lights, power, eye = (
        rng.normal(size=(2, 3)) * 5,
        rng.uniform(size=(2, 3)),
        np.array([0, 0, 4.0]),
    )
    expected = phong(positions, normals, kd, lights, power, eye, specular=ks, shininess=7.5)
    leaf = torch.from_numpy(normals).requires_grad_()
    tensors = [torch.from_numpy(part) for part in (positions, kd, lights, power, eye, ks)]
    ours = phong(tensors[0], leaf, *tensors[1:5], specular=tensors[5], shininess=7.5)
    np.testing.assert_allclose(ours.detach().numpy(), expected, atol=1e-12)
    ours.sum().backward()
    assert leaf.grad.isfinite().all()
