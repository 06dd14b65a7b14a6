"""Shades the solid pixels of a photograph: albedo, soft light, gloss, a shadow.

Diffuse light is wrapped a little further in red than in blue (light that travels under the
skin); gloss is the GGX lobe (Walter et al. 2007) with Schlick's Fresnel term.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from models.procedural.features import blend, eye_colour, skin_colour, smooth_step
from models.procedural.noise import lattice_noise
from models.procedural.shadow import lit_share
from models.rendering.jit import kernel, leaf, part

SKIN, EYE, TEETH, CLOTH, PALETTE = 0, 1, 2, 3, 4
"""Materials of faces; ``PALETTE + k`` is the k-th row of the palette."""


class Surface(NamedTuple):
    """A mesh ready to be shaded, camera frame.

    Attributes:
        positions: (V, 3) m.
        normals: (V, 3) unit, smooth.
        canonical: (V, 3) mm; for hair (across mm, along mm, height mm).
        extra: (V, 4) skin: inside of the mouth 0..1, unused; hair: coverage, tangent (3).
        faces: (F, 3) int32.
        materials: (F,) int32.
    """

    positions: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    canonical: Float[np.ndarray, "v 3"]
    extra: Float[np.ndarray, "v 4"]
    faces: Int[np.ndarray, "f 3"]
    materials: Int[np.ndarray, "f"]


def join_surfaces(surfaces: list[Surface]) -> Surface:
    """One surface of several."""
    offsets = np.cumsum([0] + [len(s.positions) for s in surfaces[:-1]])
    return Surface(
        np.concatenate([s.positions for s in surfaces]),
        np.concatenate([s.normals for s in surfaces]),
        np.concatenate([s.canonical for s in surfaces]),
        np.concatenate([s.extra for s in surfaces]),
        np.concatenate([s.faces + o for s, o in zip(surfaces, offsets, strict=True)]).astype(
            np.int32
        ),
        np.concatenate([s.materials for s in surfaces]).astype(np.int32),
    )


@kernel
@no_type_check
def _accumulate_normals(vertices: np.ndarray, faces: np.ndarray, out: np.ndarray) -> None:
    for f in range(faces.shape[0]):
        a = faces[f, 0]
        b = faces[f, 1]
        c = faces[f, 2]
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        vx = vertices[c, 0] - vertices[a, 0]
        vy = vertices[c, 1] - vertices[a, 1]
        vz = vertices[c, 2] - vertices[a, 2]
        nx = uy * vz - uz * vy
        ny = uz * vx - ux * vz
        nz = ux * vy - uy * vx
        for k in faces[f]:
            out[k, 0] += nx
            out[k, 1] += ny
            out[k, 2] += nz
    for v in range(out.shape[0]):
        length = np.sqrt(out[v, 0] ** 2 + out[v, 1] ** 2 + out[v, 2] ** 2) + 1e-20
        out[v, 0] /= length
        out[v, 1] /= length
        out[v, 2] /= length


def smooth_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    """Unit vertex normals, area weighted."""
    out = np.zeros((len(vertices), 3))
    _accumulate_normals(np.ascontiguousarray(vertices, dtype=np.float64), faces, out)
    return out


@part
@no_type_check
def _lobe(nl: float, nv: float, nh: float, vh: float, roughness: float) -> float:
    """GGX times Schlick's Fresnel for skin (F0 = 0.028), without the cosine's division."""
    a2 = roughness**4
    d = nh * nh * (a2 - 1.0) + 1.0
    k = 0.5 * roughness * roughness
    g = (nl / (nl * (1.0 - k) + k)) / (nv * (1.0 - k) + k)
    f = 0.028 + 0.972 * (1.0 - vh) ** 5
    return 0.25 * f * g * a2 / (3.141592653589793 * d * d)


@part
@no_type_check
def irradiance(
    n0: float, n1: float, n2: float, c0: float, c1: float, c2: float, c3: float, c4: float,
    c5: float, c6: float, c7: float, c8: float,
) -> float:  # fmt: skip
    """Irradiance over pi from nine polynomial coefficients."""
    return max(
        0.0,
        c0
        + c1 * n1
        + c2 * n2
        + c3 * n0
        + c4 * n0 * n1
        + c5 * n1 * n2
        + c6 * (3.0 * n2 * n2 - 1.0)
        + c7 * n0 * n2
        + c8 * (n0 * n0 - n1 * n1),
    )


@leaf
@no_type_check
def ambient_light(n0: float, n1: float, n2: float, c: np.ndarray, channel: int) -> float:
    """:func:`irradiance` of one colour channel of (9, 3) coefficients."""
    return irradiance(
        n0, n1, n2, c[0, channel], c[1, channel], c[2, channel], c[3, channel], c[4, channel],
        c[5, channel], c[6, channel], c[7, channel], c[8, channel],
    )  # fmt: skip


@leaf
@no_type_check
def gather(
    face: int,
    q0: float,
    q1: float,
    q2: float,
    faces: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill ``out`` (k,) with the vertices' values (v, k) at barycentric weights of one face."""
    i0 = faces[face, 0]
    i1 = faces[face, 1]
    i2 = faces[face, 2]
    for k in range(values.shape[1]):
        out[k] = q0 * values[i0, k] + q1 * values[i1, k] + q2 * values[i2, k]


@leaf
@no_type_check
def tooth_colour(
    x: float, y: float, z: float, tissue: float, table: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``out`` for a point of the teeth (tissue 0), the gums (1) or the tongue (2)."""
    if tissue > 0.5:
        rough = 1.0 + 0.15 * lattice_noise(table, x * 0.8, y * 0.8, z * 0.8)
        out[0] = 0.44 * rough
        out[1] = 0.15 * rough
        out[2] = 0.14 * rough
        out[3] = 0.8
        out[4] = 0.35
        return
    yellow = smooth_step(4.0, 9.0, abs(y + 66.0))
    out[0] = 0.66
    out[1] = 0.60 - 0.05 * yellow
    out[2] = 0.50 - 0.10 * yellow
    out[3] = 1.1
    out[4] = 0.24


@leaf
@no_type_check
def ball_colour(
    a: np.ndarray, p: np.ndarray, table: np.ndarray, gaze: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``out`` for a point of an eyeball turned by its gaze, in the shade of the lids."""
    side = 0 if a[6] > 0.0 else 1
    centre = 31.2 if a[6] > 0.0 else -31.2
    x = a[6] - centre
    y = a[7]
    z = a[8] - 70.5
    eye_colour(
        centre + gaze[side, 0, 0] * x + gaze[side, 0, 1] * y + gaze[side, 0, 2] * z,
        gaze[side, 1, 0] * x + gaze[side, 1, 1] * y + gaze[side, 1, 2] * z,
        70.5 + gaze[side, 2, 0] * x + gaze[side, 2, 1] * y + gaze[side, 2, 2] * z,
        p, table, out,
    )  # fmt: skip
    lid = 0.62 * smooth_step(0.8, 5.2, y)
    corner = 0.38 * smooth_step(6.0, 13.5, abs(x))
    out[5] = 0.84 * (1.0 - lid) * (1.0 - corner)


@leaf
@no_type_check
def surface_colour(
    material: int, a: np.ndarray, p: np.ndarray, table: np.ndarray, hairline: np.ndarray,
    palette: np.ndarray, gaze: np.ndarray, octaves: np.ndarray, out: np.ndarray,
) -> float:  # fmt: skip
    """Fill ``out`` (see ``features``) for one point; return how far light wraps under its skin.

    ``a`` (13,): position, normal, canonical position, then 9: the inside of the mouth (skin) or
    ambient light (teeth, cloth), 10: tissue of the mouth.
    """
    if material == 0:
        skin_colour(a[6], a[7], a[8], p, table, hairline, octaves, out)
        if a[9] > 0.0:
            wet = smooth_step(0.25, 0.85, a[9])
            blend(out, wet, 0.16, 0.028, 0.024)
            out[3] *= 1.0 - 0.6 * wet
            out[5] *= 1.0 - 0.72 * wet
        return 1.0
    if material == 1:
        ball_colour(a, p, table, gaze, out)
        return 0.6
    if material == 2:
        tooth_colour(a[6], a[7], a[8], a[10], table, out)
        out[5] = a[9]
        return 0.8
    row = max(0, material - 4)
    grain = 1.0 + palette[row, 5] * lattice_noise(table, a[6] * 0.5, a[7] * 0.5, a[8] * 0.5)
    out[5] = 1.0
    if material == 3:
        weave = lattice_noise(table, a[6] * 0.9, a[7] * 0.9, a[8] * 0.9)
        folds = lattice_noise(table, a[6] * 0.03, a[7] * 0.015, a[8] * 0.03)
        grain = 1.0 + 0.10 * weave + 0.25 * folds
        out[5] = a[9]
    out[0] = palette[row, 0] * grain
    out[1] = palette[row, 1] * grain
    out[2] = palette[row, 2] * grain
    out[3] = palette[row, 3]
    out[4] = palette[row, 4]
    return 0.0


CHUNK = 64
"""Pixels shaded together: what is known of them stays in the cache, and four go at a time."""
(
    _X, _Y, _Z, _NX, _NY, _NZ, _VX, _VY, _VZ, _NV, _RED, _GREEN, _BLUE, _GLOSS, _ROUGH, _AO,
    _WRAP, _MATERIAL, _LIT, _DIFFUSE_R, _DIFFUSE_G, _DIFFUSE_B, _SPECULAR_R, _SPECULAR_G,
    _SPECULAR_B,
) = range(0, 25 * CHUNK, CHUNK)  # fmt: skip
"""Where each quantity's ``CHUNK`` values begin in the working space of ``shade_solid``.

One array at fixed distances, so that the compiler sees that its rows do not overlap.
"""
_WORK = 25 * CHUNK


@leaf
@no_type_check
def _face_viewer(work: np.ndarray, n: int, eye_point: np.ndarray) -> None:
    """Unit normals and view directions of ``n`` points; both sides of a surface look at us."""
    e0, e1, e2 = eye_point[0], eye_point[1], eye_point[2]
    for k in range(n):
        n0, n1, n2 = work[_NX + k], work[_NY + k], work[_NZ + k]
        length = np.sqrt(n0 * n0 + n1 * n1 + n2 * n2) + 1e-12
        n0 /= length
        n1 /= length
        n2 /= length
        v0 = e0 - work[_X + k]
        v1 = e1 - work[_Y + k]
        v2 = e2 - work[_Z + k]
        length = np.sqrt(v0 * v0 + v1 * v1 + v2 * v2)
        v0 /= length
        v1 /= length
        v2 /= length
        nv = n0 * v0 + n1 * v1 + n2 * v2
        behind = nv < 0.0
        ao = work[_AO + k]
        work[_AO + k] = ao * 0.35 if behind & (work[_MATERIAL + k] == 0.0) else ao
        work[_NX + k] = -n0 if behind else n0
        work[_NY + k] = -n1 if behind else n1
        work[_NZ + k] = -n2 if behind else n2
        work[_VX + k] = v0
        work[_VY + k] = v1
        work[_VZ + k] = v2
        work[_NV + k] = max(-nv if behind else nv, 0.04)


@leaf
@no_type_check
def _diffuse_ambient(work: np.ndarray, n: int, ambient: np.ndarray) -> None:
    """Start the light of ``n`` points with what comes from everywhere."""
    for channel in range(3):
        c0, c1, c2 = ambient[0, channel], ambient[1, channel], ambient[2, channel]
        c3, c4, c5 = ambient[3, channel], ambient[4, channel], ambient[5, channel]
        c6, c7, c8 = ambient[6, channel], ambient[7, channel], ambient[8, channel]
        bleeding = 0.0 if channel == 0 else (0.12 if channel == 1 else 0.16)
        diffuse = work[_DIFFUSE_R + channel * CHUNK :]
        specular = work[_SPECULAR_R + channel * CHUNK :]
        for k in range(n):
            ao = work[_AO + k]
            light = irradiance(
                work[_NX + k], work[_NY + k], work[_NZ + k], c0, c1, c2, c3, c4, c5, c6, c7, c8
            )
            diffuse[k] = light * ao * (1.0 - bleeding * work[_WRAP + k] * (1.0 - ao))
        for k in range(n):
            specular[k] = 0.0


@leaf
@no_type_check
def _add_light(
    work: np.ndarray, n: int, direction: np.ndarray, colour: np.ndarray, shadowed: bool
) -> None:
    """Add one directional light to ``n`` points; ``_LIT`` is its share where ``shadowed``."""
    l0, l1, l2 = direction[0], direction[1], direction[2]
    c0, c1, c2 = colour[0], colour[1], colour[2]
    for k in range(n):
        n0, n1, n2 = work[_NX + k], work[_NY + k], work[_NZ + k]
        v0, v1, v2 = work[_VX + k], work[_VY + k], work[_VZ + k]
        nv, wrap, gloss = work[_NV + k], work[_WRAP + k], work[_GLOSS + k]
        lit = work[_LIT + k] if shadowed else 1.0
        nl = n0 * l0 + n1 * l1 + n2 * l2
        reached = nl >= -0.35
        direct = 0.35 + 0.65 * work[_AO + k]
        wr = max(0.0, (nl + 0.30 * wrap) / (1.0 + 0.30 * wrap))
        wg = max(0.0, (nl + 0.14 * wrap) / (1.0 + 0.14 * wrap))
        wb = max(0.0, (nl + 0.09 * wrap) / (1.0 + 0.09 * wrap))
        lit_red = lit + 0.10 * wrap * (1.0 - lit) * lit * 4.0
        work[_DIFFUSE_R + k] += c0 * wr * lit_red * direct if reached else 0.0
        work[_DIFFUSE_G + k] += c1 * wg * lit * direct if reached else 0.0
        work[_DIFFUSE_B + k] += c2 * wb * lit * direct if reached else 0.0
        h0 = l0 + v0
        h1 = l1 + v1
        h2 = l2 + v2
        length = np.sqrt(h0 * h0 + h1 * h1 + h2 * h2) + 1e-12
        nh = (n0 * h0 + n1 * h1 + n2 * h2) / length
        vh = (v0 * h0 + v1 * h1 + v2 * h2) / length
        s = 3.141592653589793 * _lobe(nl, nv, nh, vh, work[_ROUGH + k]) * nl * lit * gloss
        s = min(s, 3.0) * direct if (nl > 0.0) & (gloss > 0.0) else 0.0
        work[_SPECULAR_R + k] += c0 * s
        work[_SPECULAR_G + k] += c1 * s
        work[_SPECULAR_B + k] += c2 * s


@leaf
@no_type_check
def _mirror(work: np.ndarray, n: int, ambient: np.ndarray, wetness: np.ndarray) -> None:
    """Mirror of the surroundings, mostly at grazing angles; wet eyes see a window."""
    w0, w1, w2, w3 = wetness[0], wetness[1], wetness[2], wetness[3]
    for channel in range(3):
        c0, c1, c2 = ambient[0, channel], ambient[1, channel], ambient[2, channel]
        c3, c4, c5 = ambient[3, channel], ambient[4, channel], ambient[5, channel]
        c6, c7, c8 = ambient[6, channel], ambient[7, channel], ambient[8, channel]
        specular = work[_SPECULAR_R + channel * CHUNK :]
        for k in range(n):
            nv = work[_NV + k]
            r0 = 2.0 * nv * work[_NX + k] - work[_VX + k]
            r1 = 2.0 * nv * work[_NY + k] - work[_VY + k]
            r2 = 2.0 * nv * work[_NZ + k] - work[_VZ + k]
            eye = work[_MATERIAL + k] == 1.0
            fresnel = 0.028 + 0.22 * (1.0 - nv) ** 5
            t = (r0 * w0 + r1 * w1 + r2 * w2 - 0.968) / (0.982 - 0.968)
            t = min(1.0, max(0.0, t))
            window = t * t * (3.0 - 2.0 * t) * w3 if eye else 0.0
            fresnel = (fresnel * 1.3 if eye else fresnel) * (work[_GLOSS + k] * work[_AO + k])
            light = irradiance(r0, r1, r2, c0, c1, c2, c3, c4, c5, c6, c7, c8)
            specular[k] = specular[k] + window + fresnel * light


@kernel
@no_type_check
def shade_solid(
    ids: np.ndarray,
    bary: np.ndarray,
    faces: np.ndarray,
    materials: np.ndarray,
    values: np.ndarray,
    p: np.ndarray,
    table: np.ndarray,
    hairline: np.ndarray,
    palette: np.ndarray,
    gaze: np.ndarray,
    ambient: np.ndarray,
    directions: np.ndarray,
    colours: np.ndarray,
    shadow: np.ndarray,
    shadow_frame: np.ndarray,
    softness: float,
    eye_point: np.ndarray,
    wetness: np.ndarray,
    cover: np.ndarray,
    image: np.ndarray,
) -> None:
    """Shade every pixel that sees the solid surface and is not wholly under hair.

    ``values`` (V, 13): position, normal, canonical, extra. ``eye_point`` is the camera centre,
    or for orthographic cameras a far point. Colours are found point by point, light is added to
    ``CHUNK`` points at a time.
    """
    height, width = ids.shape
    a = np.empty(13)
    m = np.empty(6)
    octaves = np.empty(4)
    work = np.empty(_WORK)
    places = np.empty((CHUNK, 2), dtype=np.int64)
    lights = directions.shape[0]
    key0, key1, key2 = directions[0, 0], directions[0, 1], directions[0, 2]
    n = 0
    for row in range(height):
        for column in range(width):
            face = ids[row, column]
            if face >= 0 and cover[row, column] <= 0.995:
                gather(
                    face, bary[row, column, 0], bary[row, column, 1], bary[row, column, 2],
                    faces, values, a,
                )  # fmt: skip
                material = materials[face]
                work[_WRAP + n] = surface_colour(
                    material, a, p, table, hairline, palette, gaze, octaves, m
                )
                work[_MATERIAL + n] = material
                work[_X + n], work[_Y + n], work[_Z + n] = a[0], a[1], a[2]
                work[_NX + n], work[_NY + n], work[_NZ + n] = a[3], a[4], a[5]
                work[_RED + n], work[_GREEN + n], work[_BLUE + n] = m[0], m[1], m[2]
                work[_GLOSS + n], work[_ROUGH + n], work[_AO + n] = m[3], m[4], m[5]
                places[n, 0], places[n, 1] = row, column
                n += 1
            last = row == height - 1 and column == width - 1
            if n < CHUNK and not (last and n > 0):
                continue
            _face_viewer(work, n, eye_point)
            _diffuse_ambient(work, n, ambient)
            for k in range(n):
                n0, n1, n2 = work[_NX + k], work[_NY + k], work[_NZ + k]
                if n0 * key0 + n1 * key1 + n2 * key2 >= -0.35:
                    work[_LIT + k] = lit_share(
                        work[_X + k] + 0.003 * n0, work[_Y + k] + 0.003 * n1,
                        work[_Z + k] + 0.003 * n2, shadow, shadow_frame, softness,
                    )  # fmt: skip
                else:
                    work[_LIT + k] = 0.0
            for light in range(lights):
                _add_light(work, n, directions[light], colours[light], light == 0)
            _mirror(work, n, ambient, wetness)
            for k in range(n):
                i, j = places[k, 0], places[k, 1]
                image[i, j, 0] = work[_RED + k] * work[_DIFFUSE_R + k] + work[_SPECULAR_R + k]
                image[i, j, 1] = work[_GREEN + k] * work[_DIFFUSE_G + k] + work[_SPECULAR_G + k]
                image[i, j, 2] = work[_BLUE + k] * work[_DIFFUSE_B + k] + work[_SPECULAR_B + k]
            n = 0
