"""Hair as a shell that grows out of the scalp and, for long styles, falls past the ears.

One grid per head: columns are azimuths, rows start at the crown. Rows follow the scalp, lifted by
the style's volume, and at a column's release height leave it to hang. Coverage, per vertex and
broken up by strand noise per pixel, makes the hairline and the tips.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from models.procedural.albedo import hairline_table
from models.procedural.appearance import Appearance, Hair
from models.procedural.cage import build_cage

COLUMNS = 96
SCALP_ROWS = 40
HANGING_ROWS = 18
LOOSE_STYLES = ("bob", "long")
GATHERED_STYLES = ("bun", "ponytail")


class HairMesh(NamedTuple):
    """Hair in canonical mm.

    Attributes:
        points: (V, 3) mm.
        strand: (V, 3) mm across, along, and height above the scalp.
        coverage: (V,) 0..1 before strand noise.
        flow: (V, 3) canonical direction in which strands run.
        roots: (V, 3) where on the skin each point is tied, mm.
        faces: (F, 3) int32.
    """

    points: Float[np.ndarray, "v 3"]
    strand: Float[np.ndarray, "v 3"]
    coverage: Float[np.ndarray, "v"]
    flow: Float[np.ndarray, "v 3"]
    roots: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]


def _smooth(low: float, high: float, value: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _grid_faces(rows: int, columns: int) -> Int[np.ndarray, "f 3"]:
    """Triangles of a grid that closes around its columns, seen counter-clockwise from outside."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    n = (c + 1) % columns
    a, b = r * columns + c, r * columns + n
    d, e = (r + 1) * columns + c, (r + 1) * columns + n
    first = np.stack([a, d, e], -1).reshape(-1, 3)
    second = np.stack([a, e, b], -1).reshape(-1, 3)
    return np.concatenate([first, second]).astype(np.int32)


def _excess(
    points: Float[np.ndarray, "n 3"], hairline: Float[np.ndarray, "181 2"]
) -> Float[np.ndarray, "n"]:
    azimuth = np.degrees(np.arctan2(np.abs(points[:, 0]), points[:, 2]))
    height = np.interp(azimuth, np.arange(181.0), hairline[:, 0])
    cosine = np.interp(azimuth, np.arange(181.0), hairline[:, 1])
    return np.asarray((points[:, 1] - height) * cosine)


def _lattice(seed: int, points: Float[np.ndarray, "n 3"], cell: float) -> Float[np.ndarray, "n"]:
    """Coarse smooth noise for lumps of hair, in [-1, 1]."""
    rng = np.random.default_rng([seed, 3])
    waves = rng.normal(0.0, 1.0, (10, 3))
    waves *= (
        (2.0 * np.pi / cell)
        * rng.uniform(0.7, 1.4, (10, 1))
        / np.linalg.norm(waves, axis=1, keepdims=True)
    )
    phases = rng.uniform(0, 2 * np.pi, 10)
    return np.asarray(np.sin(points @ waves.T + phases).sum(1) / 4.5)


def _shell_hairline(hair: Hair, appearance: Appearance) -> Float[np.ndarray, "181 2"]:
    """The hairline of the shell: as the scalp's, but a fringe hangs below it in front."""
    table = hairline_table(appearance).copy()
    if hair.style == "fringe":
        degrees = np.arange(181.0)
        front = 1.0 - _smooth(46.0, 62.0, degrees)
        table[:, 0] += front * (35.0 - table[:, 0])
        table[:, 1] += front * (1.0 - table[:, 1])
    return table


def _thickness(
    hair: Hair,
    points: Float[np.ndarray, "n 3"],
    excess: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n"]:
    """Height of the shell over the scalp, mm."""
    x, y, z = points.T
    volume = hair.volume_mm
    rise = _smooth(-2.0, 26.0, excess)
    top = _smooth(30.0, 95.0, y)
    lumps = _lattice(hair.seed, points, 60.0)
    if hair.style in ("buzz", "receding"):
        return volume * _smooth(-4.0, 10.0, excess)
    if hair.style == "afro":
        return volume * rise * (0.75 + 0.25 * top) * (1.0 + 0.07 * _lattice(hair.seed, points, 24))
    if hair.style == "curly":
        small = _lattice(hair.seed, points, 26.0)
        return volume * rise * (0.55 + 0.45 * top) * (1.0 + 0.16 * small + 0.1 * lumps)
    if hair.style in GATHERED_STYLES:
        return volume * _smooth(-3.0, 14.0, excess) * (0.8 + 0.2 * top)
    if hair.style in LOOSE_STYLES:
        part = np.exp(-(((x - 30.0 * hair.parting) / 7.0) ** 2)) * _smooth(-30.0, 30.0, z)
        return volume * rise * (0.85 + 0.15 * top + 0.06 * lumps) * (1.0 - 0.45 * part)
    front = _smooth(20.0, 70.0, z) * top
    body = volume * rise * (0.36 + 0.64 * top) * (1.0 + 0.10 * lumps)
    if hair.style == "side_part":
        sign = np.sign(hair.parting) or 1.0
        part = np.exp(-(((x - sign * 34.0) / 5.0) ** 2)) * top * _smooth(-40.0, 10.0, z)
        sweep = 1.0 - 0.35 * _smooth(-20.0, 60.0, sign * x) * top
        return body * sweep * (1.0 + 0.45 * front) * (1.0 - 0.55 * part)
    if hair.style == "fringe":
        apron = _smooth(40.0, 70.0, z)
        return np.where(
            apron > 0, np.maximum(body, 6.5 * apron * _smooth(-3.0, 12.0, excess)), body
        )
    return body * (1.0 + 0.30 * front)


def _flow(
    hair: Hair, points: Float[np.ndarray, "r c 3"], normals: Float[np.ndarray, "r c 3"]
) -> tuple[Float[np.ndarray, "r c 3"], Float[np.ndarray, "r c 2"]]:
    """Strand direction and (across, along) coordinates, mm."""
    x, y, z = np.moveaxis(points, -1, 0)
    azimuth = np.arctan2(x, z + 15.0)
    radial = np.gradient(points, axis=0)
    if hair.style in LOOSE_STYLES:
        from_part = np.abs(x - 30.0 * hair.parting * _smooth(40.0, 90.0, y))
        back = 80.0 * np.maximum(0.0, np.abs(azimuth) - 0.5 * np.pi)
        across = np.where(z > -15.0, z, -15.0 - back) + np.where(x > 0, 400.0, 0.0)
        along = from_part - y
        sideways = (
            np.cross(normals, np.array([0.0, 0.0, 1.0]))
            * np.sign(x - 30.0 * hair.parting)[..., None]
        )
        mix = _smooth(-60.0, 0.0, z)[..., None] * _smooth(20.0, 60.0, y)[..., None]
        down = np.array([0.0, -1.0, 0.0]) + 0.0 * normals
        down = down - np.sum(down * normals, -1, keepdims=True) * normals
        return mix * sideways + (1 - mix) * down, np.stack([across, along], -1)
    if hair.style == "side_part":
        sign = np.sign(hair.parting) or 1.0
        across = z + 0.5 * y + np.where(sign * x > 34.0, 300.0, 0.0)
        along = np.abs(x - sign * 34.0) - 0.3 * y
        sideways = -sign * np.cross(normals, np.array([0.0, 0.45, 0.9]))
        mix = (_smooth(20.0, 55.0, y) * _smooth(-60.0, 0.0, z))[..., None]
        side = np.abs(azimuth) * 80.0
        blend = mix[..., 0]
        across = np.where(blend > 0.5, across, side + 700.0)
        along = np.where(blend > 0.5, along, -y)
        return mix * sideways + (1 - mix) * radial, np.stack([across, along], -1)
    if hair.style in GATHERED_STYLES:
        target = np.array([0.0, 62.0, -120.0])
        pull = target - points
        pull = pull - np.sum(pull * normals, -1, keepdims=True) * normals
        angle = np.arctan2(x, y - 62.0 + 0.45 * (z + 20.0))
        distance = np.linalg.norm(points - target, axis=-1)
        return pull, np.stack([angle * 75.0, distance], -1)
    along = np.cumsum(np.linalg.norm(radial, axis=-1), axis=0)
    return radial, np.stack([azimuth * 80.0, along], -1)


def _blob(
    centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Float[np.ndarray, "v 2"]]:
    """An ellipsoid grid: points, faces, (azimuth, polar) angles."""
    rows, columns = 15, 24
    polar, azimuth = np.meshgrid(
        np.linspace(0.02, np.pi - 0.02, rows),
        np.linspace(-np.pi, np.pi, columns, endpoint=False),
        indexing="ij",
    )
    unit = np.stack(
        [np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)], -1
    )
    points = np.asarray(centre) + unit.reshape(-1, 3) * np.asarray(radii)
    return points, _grid_faces(rows, columns), np.stack([azimuth, polar], -1).reshape(-1, 2)


def _gathered(hair: Hair) -> HairMesh:
    """The bun or the tail behind the head."""
    if hair.style == "bun":
        radius = 24.0 + hair.volume_mm
        points, faces, angles = _blob((0.0, 74.0, -118.0), (radius, 0.9 * radius, 0.85 * radius))
        across, along = angles[:, 1] * 28.0, angles[:, 0] * 30.0
        flow = np.stack([np.cos(angles[:, 0]), 0.2 + 0 * along, -np.sin(angles[:, 0])], -1)
    else:
        points, faces, angles = _blob((0.0, -25.0, -138.0), (26.0, 95.0, 22.0))
        points[:, 2] += 0.10 * (points[:, 1] + 25.0)
        across, along = angles[:, 0] * 24.0, angles[:, 1] * 60.0
        flow = np.tile([0.0, -1.0, 0.0], (len(points), 1))
    strand = np.stack([across, along, np.full(len(points), 20.0)], -1)
    roots = np.tile([0.0, 62.0, -102.0], (len(points), 1))
    return HairMesh(points, strand, np.ones(len(points)), flow, roots, faces)


def _hang(
    hair: Hair,
    points: Float[np.ndarray, "r c 3"],
    phi: Float[np.ndarray, "c"],
    front_deg: float,
    ear_mm: float,
) -> tuple[Float[np.ndarray, "r c 3"], Float[np.ndarray, "r c"]]:
    """Extra rows below the scalp rows: hair that falls, and its coverage."""
    start = points[-1]
    end_y = (-62.0 if hair.style == "bob" else -75.0) - hair.length_mm
    v = np.linspace(0.0, 1.0, HANGING_ROWS + 1)[1:, None]
    y = start[None, :, 1] + (end_y - start[None, :, 1]) * v
    side = np.abs(np.sin(phi))[None]
    if hair.style == "bob":
        width = 97.0 + 4.0 * np.sin(np.pi * np.clip(v, 0, 1)) - 7.0 * v**3
        back = -112.0 + 22.0 * v**2
    else:
        width = 96.0 + 2.0 * v - 5.0 * np.sin(np.pi * v) + 10.0 * v**2
        back = -113.0 + 25.0 * _smooth(0.0, 0.6, v) - 12.0 * v**2
    width = width + 0.5 * (hair.volume_mm - 14.0)
    front = 40.0 + 12.0 * _smooth(0.3, 1.0, v)
    cosine = np.cos(phi)[None]
    x = width * np.sign(np.sin(phi))[None] * side**0.75
    x = x * (1.0 - 0.24 * np.clip(np.cos(phi), 0.0, 1.0))[None]
    z = np.where(cosine > 0, -12.0 + (front + 12.0) * cosine * 1.5, -12.0 + (back + 12.0) * -cosine)
    over_ear = np.exp(-(((y + 3.0) / 40.0) ** 2) - ((z + 8.0) / 28.0) ** 2)
    bow = ear_mm * over_ear * _smooth(0.0, 0.12, v) * np.sign(x)
    blend = _smooth(0.0, 0.35, v)
    wave = hair.roughness * 5.0 * np.sin(0.05 * y + 3.0 * phi[None] + hair.seed % 7) * v
    hanging = np.stack(
        [
            start[None, :, 0] + (x - start[None, :, 0]) * blend + wave * np.sign(x) + bow,
            y,
            start[None, :, 2] + (z - start[None, :, 2]) * blend,
        ],
        -1,
    )
    degrees = np.degrees(np.abs(phi))
    present = _smooth(front_deg, front_deg + 9.0, degrees)[None]
    tips = 1.0 - _smooth(0.86, 1.02, v)
    return hanging, present * (0.25 + 0.75 * tips)


def build_hair(appearance: Appearance, *, ear_mm: float = 7.0) -> HairMesh | None:
    """Hair of one person in canonical mm, or None when there is none.

    Args:
        appearance: The person; only ``hair`` matters.
        ear_mm: How far loose hair bows out over the ears.
    """
    hair = appearance.hair
    if hair.style == "bald":
        return None
    cage = build_cage()
    phi = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)
    lowest = np.full(COLUMNS, 0.60)
    loose = hair.style in LOOSE_STYLES
    front_deg = 52.0
    degrees = np.degrees(np.abs(phi))
    if loose:
        lowest = 0.60 - 0.32 * _smooth(front_deg - 14.0, front_deg + 6.0, degrees)
    s = np.linspace(0.004, 1.0, SCALP_ROWS)[:, None] * lowest[None]
    flat_phi = np.broadcast_to(phi, s.shape).ravel()
    scalp = cage.point(s.ravel(), flat_phi).reshape(SCALP_ROWS, COLUMNS, 3)
    d_row = np.gradient(scalp, axis=0)
    d_column = 0.5 * (np.roll(scalp, -1, axis=1) - np.roll(scalp, 1, axis=1))
    normals = np.cross(d_row, d_column)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    normals[0] = [0.0, 1.0, 0.0]
    hairline = _shell_hairline(hair, appearance)
    flat = scalp.reshape(-1, 3)
    excess = _excess(flat, hairline)
    ear = ((flat[:, 2] + 8.0) / 20.0) ** 2 + ((flat[:, 1] + 12.0) / 33.0) ** 2
    clear = np.where((np.abs(flat[:, 0]) > 45.0) & (not loose), _smooth(1.0, 1.55, ear), 1.0)
    lift = _thickness(hair, flat, excess) * clear - 1.6
    height = lift.reshape(SCALP_ROWS, COLUMNS)
    coverage = (_smooth(-7.0, 9.0, excess) * clear * hair.density).reshape(SCALP_ROWS, COLUMNS)
    if hair.style in ("buzz", "receding"):
        coverage = coverage * 0.8
    if hair.style == "receding":
        crown = _smooth(86.0, 66.0, flat[:, 1]).reshape(SCALP_ROWS, COLUMNS)
        coverage = coverage * (0.15 + 0.85 * crown)
    points = scalp + normals * height[..., None]
    if hair.style == "side_part" or hair.style == "short":
        lift = _smooth(35.0, 85.0, scalp[..., 2]) * _smooth(60.0, 90.0, scalp[..., 1])
        points[..., 2] += 3.0 * lift
        points[..., 1] += 4.0 * lift
    flow, strand = _flow(hair, points, normals)
    if loose:
        hanging, hanging_cover = _hang(hair, points, phi, front_deg, ear_mm)
        along = strand[-1:, :, 1] + (points[-1:, :, 1] - hanging[..., 1])
        hanging_strand = np.stack([np.broadcast_to(strand[-1:, :, 0], along.shape), along], -1)
        points = np.concatenate([points, hanging])
        coverage = np.concatenate([coverage, hanging_cover])
        strand = np.concatenate([strand, hanging_strand])
        height = np.concatenate([height, np.full(hanging.shape[:2], 18.0)])
        flow = np.concatenate([flow, np.broadcast_to(np.array([0.0, -1.0, 0.0]), hanging.shape)])
    rows = len(points)
    mesh = HairMesh(
        points.reshape(-1, 3),
        np.concatenate([strand, height[..., None]], -1).reshape(-1, 3),
        coverage.reshape(-1),
        flow.reshape(-1, 3),
        scalp[np.minimum(np.arange(rows), SCALP_ROWS - 1)].reshape(-1, 3),
        _grid_faces(rows, COLUMNS),
    )
    if hair.style in GATHERED_STYLES:
        extra = _gathered(hair)
        mesh = HairMesh(
            np.concatenate([mesh.points, extra.points]),
            np.concatenate([mesh.strand, extra.strand]),
            np.concatenate([mesh.coverage, extra.coverage]),
            np.concatenate([mesh.flow, extra.flow]),
            np.concatenate([mesh.roots, extra.roots]),
            np.concatenate([mesh.faces, extra.faces + len(mesh.points)]).astype(np.int32),
        )
    return mesh
