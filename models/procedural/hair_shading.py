"""Shades hair over what lies under it (Kajiya & Kay 1989, with Marschner's two highlights)."""

from typing import no_type_check

import numpy as np

from models.procedural.features import bell, smooth_step
from models.procedural.noise import lattice_noise
from models.procedural.shading import ambient_light, gather
from models.procedural.shadow import lit_share
from models.rendering.jit import kernel


@kernel
@no_type_check
def cover_hair(
    ids: np.ndarray,
    bary: np.ndarray,
    depth: np.ndarray,
    solid_depth: np.ndarray,
    faces: np.ndarray,
    values: np.ndarray,
    look: np.ndarray,
    table: np.ndarray,
    cover: np.ndarray,
    camera_z: float,
) -> None:
    """How opaque the hair is at each pixel where it lies in front of the solid surface.

    ``values`` (V, 13): position, normal, strand coordinates, coverage and tangent.
    ``look``: roughness, seed shift, strands per mm across, curliness, strands per mm along.
    """
    height, width = ids.shape
    a = np.empty(13)
    for row in range(height):
        for column in range(width):
            face = ids[row, column]
            if face < 0 or depth[row, column] > solid_depth[row, column]:
                continue
            gather(
                face, bary[row, column, 0], bary[row, column, 1], bary[row, column, 2], faces,
                values, a,
            )  # fmt: skip
            strand = lattice_noise(
                table, a[6] * look[2] + look[1], a[7] * look[4] + 0.5 * look[1], 1.5
            )
            clump = lattice_noise(table, a[6] * look[2] * 0.22 + look[1], a[7] * 0.02, 7.5)
            length = np.sqrt(a[3] * a[3] + a[4] * a[4] + a[5] * a[5]) + 1e-12
            distance = np.sqrt(a[0] * a[0] + a[1] * a[1] + (a[2] - camera_z) ** 2)
            facing = a[3] * a[0] + a[4] * a[1] + a[5] * (a[2] - camera_z)
            facing = abs(facing) / (length * distance)
            edge = 1.25 * a[9] + 0.30 * strand + 0.26 * clump
            edge -= (0.15 + 0.45 * strand) * (1.0 - smooth_step(0.0, 0.12, facing))
            cover[row, column] = smooth_step(0.30, 0.62, edge)


@kernel
@no_type_check
def shade_hair(
    ids: np.ndarray,
    bary: np.ndarray,
    faces: np.ndarray,
    values: np.ndarray,
    colour: np.ndarray,
    look: np.ndarray,
    table: np.ndarray,
    ambient: np.ndarray,
    directions: np.ndarray,
    colours: np.ndarray,
    shadow: np.ndarray,
    shadow_frame: np.ndarray,
    softness: float,
    eye_point: np.ndarray,
    cover: np.ndarray,
    image: np.ndarray,
) -> None:
    """Blend shaded hair over ``image`` by ``cover``."""
    height, width = ids.shape
    a = np.empty(13)
    lights = directions.shape[0]
    for row in range(height):
        for column in range(width):
            opacity = cover[row, column]
            if opacity <= 0.0:
                continue
            face = ids[row, column]
            gather(
                face, bary[row, column, 0], bary[row, column, 1], bary[row, column, 2], faces,
                values, a,
            )  # fmt: skip
            length = np.sqrt(a[3] * a[3] + a[4] * a[4] + a[5] * a[5]) + 1e-12
            n0 = a[3] / length
            n1 = a[4] / length
            n2 = a[5] / length
            v0 = eye_point[0] - a[0]
            v1 = eye_point[1] - a[1]
            v2 = eye_point[2] - a[2]
            length = np.sqrt(v0 * v0 + v1 * v1 + v2 * v2)
            v0 /= length
            v1 /= length
            v2 /= length
            inside = 1.0
            if n0 * v0 + n1 * v1 + n2 * v2 < 0.0:
                n0 = -n0
                n1 = -n1
                n2 = -n2
                inside = 0.28
            length = np.sqrt(a[10] * a[10] + a[11] * a[11] + a[12] * a[12]) + 1e-12
            t0 = a[10] / length
            t1 = a[11] / length
            t2 = a[12] / length
            u = a[6] * look[2] + look[1]
            v = a[7] * look[4] + 0.5 * look[1]
            strand = lattice_noise(table, u, v, 1.5)
            fine = lattice_noise(table, u * 2.7, v * 1.6, 4.5)
            clump = lattice_noise(table, u * 0.22, v * 0.6, 7.5)
            rough = look[0]
            tone = 1.0 + 0.30 * strand + 0.20 * fine + 0.28 * clump
            if look[3] > 0.5:
                curls = lattice_noise(table, a[6] * 0.28, a[7] * 0.28, look[1])
                small = lattice_noise(table, a[6] * 0.7, a[7] * 0.7, look[1] + 5.0)
                tone = 1.0 + 0.55 * curls + 0.35 * small
                strand = curls
                t0 += 0.8 * small
                t2 += 0.8 * curls
            tone = max(0.25, tone) * inside
            # Shadow among the strands: deeper where the shell is thin or low.
            root = 0.62 + 0.38 * smooth_step(0.4, 1.0, a[9])
            tr = colour[0] * tone
            tg = colour[1] * tone
            tb = colour[2] * tone
            r = tr * ambient_light(n0, n1, n2, ambient, 0) * root
            g = tg * ambient_light(n0, n1, n2, ambient, 1) * root
            b = tb * ambient_light(n0, n1, n2, ambient, 2) * root
            jitter = 0.10 * strand + 0.06 * fine
            for light in range(lights):
                l0 = directions[light, 0]
                l1 = directions[light, 1]
                l2 = directions[light, 2]
                nl = n0 * l0 + n1 * l1 + n2 * l2
                lit = inside
                if light == 0:
                    lit *= 0.15 + 0.85 * lit_share(
                        a[0] + 0.012 * n0, a[1] + 0.012 * n1, a[2] + 0.012 * n2, shadow,
                        shadow_frame, softness,
                    )  # fmt: skip
                tl = t0 * l0 + t1 * l1 + t2 * l2
                facing = max(0.0, (nl + 0.25) / 1.25)
                diffuse = facing * (0.55 + 0.45 * np.sqrt(max(0.0, 1.0 - tl * tl)))
                h0 = l0 + v0
                h1 = l1 + v1
                h2 = l2 + v2
                length = np.sqrt(h0 * h0 + h1 * h1 + h2 * h2) + 1e-12
                th = (t0 * h0 + t1 * h1 + t2 * h2) / length
                first = (th - 0.07 + jitter) ** 2 * (90.0 - 60.0 * rough)
                second = (th + 0.12 + jitter) ** 2 * (22.0 - 12.0 * rough)
                gloss = bell(first) * (0.10 - 0.06 * rough)
                sheen = bell(second) * (0.55 - 0.3 * rough)
                gloss *= smooth_step(-0.1, 0.4, nl)
                sheen *= smooth_step(-0.1, 0.4, nl)
                r += colours[light, 0] * lit * (tr * (diffuse + sheen) + gloss)
                g += colours[light, 1] * lit * (tg * (diffuse + sheen) + gloss)
                b += colours[light, 2] * lit * (tb * (diffuse + sheen) + gloss)
            image[row, column, 0] += opacity * (r - image[row, column, 0])
            image[row, column, 1] += opacity * (g - image[row, column, 1])
            image[row, column, 2] += opacity * (b - image[row, column, 2])
