"""Takes photographs of the procedural head.

A photograph is drawn in two layers by the project's rasteriser: everything solid (skin, eyes,
garment, occluders) and, over it, hair with soft coverage. Both are shaded per pixel at twice the
resolution, averaged in linear light, then finished like a camera would.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.procedural.albedo import hairline_table, pack_appearance
from models.procedural.appearance import Appearance, Hair
from models.procedural.assembly import (
    body_surface,
    gaze_matrices,
    hair_surface,
    head_surface,
    occluder_surface,
    teeth_surface,
)
from models.procedural.backdrop import paint_background
from models.procedural.hair_shading import cover_hair, shade_hair
from models.procedural.noise import noise_table
from models.procedural.occluders import Occluder, build_occluder
from models.procedural.scene import Background, Camera, Finish, Light, orthographic_camera
from models.procedural.shading import Surface, join_surfaces, shade_solid, smooth_normals
from models.procedural.shadow import shadow_map
from models.procedural.warp import HeadWarp

if TYPE_CHECKING:
    from models.procedural.expression import Expression
    from models.procedural.head import ProceduralHead
    from models.procedural.identity import Identity


@dataclasses.dataclass(frozen=True, slots=True)
class Photo:
    """A photograph and the truth about it.

    Attributes:
        image: (H, W, 3) sRGB bytes.
        landmarks_px: (68, 2) iBUG points; the jaw follows the visible contour.
        landmarks_3d_px: (68, 2) projections of the fixed 3-D points, jaw included.
        box_px: (4,) left, top, right, bottom around ``landmarks_px``.
        rotation: R_cam_from_head.
        yaw_deg: Positive looks to the picture's right.
        vertices: (V, 3) head-frame vertices that were drawn, m.
        camera: The camera.
    """

    image: UInt8[np.ndarray, "h w 3"]
    landmarks_px: Float[np.ndarray, "68 2"]
    landmarks_3d_px: Float[np.ndarray, "68 2"]
    box_px: Float[np.ndarray, "4"]
    rotation: Float[np.ndarray, "3 3"]
    yaw_deg: float
    vertices: Float[np.ndarray, "v 3"]
    camera: Camera


def _clip_positions(
    positions: Float[np.ndarray, "v 3"], camera: Camera, height: int, width: int
) -> Float[np.ndarray, "v 4"]:
    """OpenGL clip coordinates of camera-frame points for a picture of the given size."""
    scale = camera.scale_px
    cx, cy = camera.centre_px
    out = np.empty((len(positions), 4))
    x, y, z = positions.T
    if camera.orthographic:
        out[:, 0] = 2.0 * (cx + scale * x) / width - 1.0
        out[:, 1] = 1.0 - 2.0 * (cy - scale * y) / height
        middle = float(z.mean())
        out[:, 2] = np.clip((middle - z) / 2.0, -0.999, 0.999)
        out[:, 3] = 1.0
        return out
    w = np.maximum(-z, 1e-4)
    near, far = 0.1, 50.0
    out[:, 0] = 2.0 * (cx * w + scale * x) / width - w
    out[:, 1] = w - 2.0 * (cy * w - scale * y) / height
    out[:, 2] = (far + near) / (far - near) * w - 2.0 * far * near / (far - near)
    out[:, 3] = w
    return out


def _values(surface: Surface) -> Float[np.ndarray, "v 13"]:
    return np.concatenate(
        [surface.positions, surface.normals, surface.canonical, surface.extra], axis=1
    )


def _strand_look(hair: Hair) -> Float[np.ndarray, "5"]:
    """Roughness, noise shift, strands per mm across, curliness, strands per mm along."""
    curly = hair.style in ("curly", "afro")
    across = {"curly": 0.35, "afro": 0.35, "buzz": 1.7, "receding": 1.2}.get(hair.style, 0.55)
    along = {"buzz": 1.2, "receding": 0.3}.get(hair.style, 0.035)
    return np.array([hair.roughness, hair.seed % 29 + 0.5, across, float(curly), along])


def _render(
    solid: Surface,
    hair: Surface | None,
    appearance: Appearance,
    camera: Camera,
    light: Light,
    palette: Float[np.ndarray, "k 6"],
    gaze: Float[np.ndarray, "2 3 3"],
    centre: Float[np.ndarray, "3"],
    picture: Float[np.ndarray, "h w 3"],
) -> None:
    """Draw both layers over ``picture`` (linear RGB), in place."""
    from models.rendering.rasterize import rasterize

    height, width, _ = picture.shape
    casters = [(solid.positions, solid.faces)]
    if hair is not None:
        dense = hair.extra[:, 0] > 0.45
        casters.append((hair.positions, hair.faces[dense[hair.faces].all(axis=1)]))
    shadow, frame = shadow_map(casters, light, centre)
    eye_point = np.array([0.0, 0.0, 100.0 if camera.orthographic else 0.0])
    table = noise_table()
    directions = light.directions / np.linalg.norm(light.directions, axis=1, keepdims=True)
    key = directions[0]
    window = np.array([key[0] * 0.5, 0.34 + 0.3 * key[1], 0.9])
    wetness = np.append(window / np.linalg.norm(window), 0.7)
    clip = _clip_positions(solid.positions, camera, height, width)
    ids, bary, depth = rasterize(clip[None], solid.faces, height, width)
    cover = np.zeros((height, width))
    hair_values = None
    if hair is not None:
        hair_clip = _clip_positions(hair.positions, camera, height, width)
        if camera.orthographic:
            shift = solid.positions[:, 2].mean() - hair.positions[:, 2].mean()
            hair_clip[:, 2] = np.clip(hair_clip[:, 2] + 0.5 * shift, -0.999, 0.999)
        hair_ids, hair_bary, hair_depth = rasterize(hair_clip[None], hair.faces, height, width)
        hair_values = _values(hair)
        look = _strand_look(appearance.hair)
        cover_hair(
            hair_ids[0], hair_bary[0], hair_depth[0], depth[0], hair.faces, hair_values, look,
            table, cover, eye_point[2],
        )  # fmt: skip
    shade_solid(
        ids[0], bary[0], solid.faces, solid.materials, _values(solid),
        pack_appearance(appearance), table, hairline_table(appearance), palette, gaze,
        light.ambient, directions, light.colours, shadow, frame, light.shadow_softness,
        eye_point, wetness, cover, picture,
    )  # fmt: skip
    if hair is not None:
        shade_hair(
            hair_ids[0], hair_bary[0], hair.faces, hair_values, appearance.hair.colour, look,
            table, light.ambient, directions, light.colours, shadow, frame,
            light.shadow_softness, eye_point, cover, picture,
        )  # fmt: skip


def _finish(
    linear: Float[np.ndarray, "h w 3"],
    finish: Finish,
    exposure: float,
    rng: np.random.Generator | None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Blur, expose, tone, add noise, quantise, and optionally compress."""
    import cv2

    height, width, _ = linear.shape
    picture = np.asarray(linear, dtype=np.float32)
    if finish.defocus_px > 0.05:
        picture = cv2.GaussianBlur(picture, (0, 0), finish.defocus_px)
    gain = exposure * finish.exposure * np.asarray(finish.white_balance, dtype=np.float32)
    picture = picture * gain.astype(np.float32)
    if finish.vignette > 0:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        r2 = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2
        picture = picture * (1.0 - 2.0 * finish.vignette * r2)[..., None]
    if finish.saturation != 1.0:
        grey = picture @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
        picture = grey[..., None] + (picture - grey[..., None]) * np.float32(finish.saturation)
    steps = np.linspace(0.0, 1.0, 4096) ** 2 * 4.0
    rolled = np.where(steps < 0.6, steps, 0.6 + 0.4 * (1.0 - np.exp(-(steps - 0.6) / 0.4)))
    shown = np.where(rolled <= 0.0031308, 12.92 * rolled, 1.055 * rolled ** (1 / 2.4) - 0.055)
    curve = shown + finish.contrast * 0.5 * (shown * shown * (3 - 2 * shown) - shown)
    index = np.sqrt(np.clip(picture, 0.0, 4.0) * 0.25) * 4095.0
    display = curve.astype(np.float32)[index.astype(np.int32)]
    if finish.noise > 0 and rng is not None:
        grain = rng.standard_normal((height, width, 3), dtype=np.float32)
        display = display + np.float32(finish.noise) * grain * (0.6 + 0.8 * (1.0 - display))
    image = np.asarray(np.rint(np.clip(display, 0.0, 1.0) * 255.0), dtype=np.uint8)
    if finish.jpeg_quality is not None:
        done, data = cv2.imencode(
            ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, finish.jpeg_quality]
        )
        assert done, "JPEG encoding of a uint8 picture cannot fail"
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None, "what was just encoded can be decoded"
        image = np.ascontiguousarray(decoded[..., ::-1])
    return image


def landmarks_of(
    head: "ProceduralHead", vertices: Float[np.ndarray, "v 3"], camera: Camera
) -> tuple[Float[np.ndarray, "68 2"], Float[np.ndarray, "68 2"]]:
    """Picture positions of the 68 points: with the visible contour as jaw, and all fixed."""
    fixed = head.landmarks(vertices)
    contour = head.contour_landmarks(vertices, camera.yaw_deg)
    seen = np.concatenate([contour, fixed[17:]])
    return camera.project(seen), camera.project(fixed)


def photograph(
    head: "ProceduralHead",
    identity: "Identity",
    expression: "Expression | None",
    appearance: Appearance,
    camera: Camera,
    light: Light,
    background: Background,
    size_px: int | tuple[int, int],
    *,
    rng: np.random.Generator | None = None,
    finish: Finish | None = None,
    occluders: tuple[Occluder, ...] = (),
    vertices_m: Float[np.ndarray, "v 3"] | None = None,
    gaze_deg: tuple[float, float] | None = None,
    supersample: int = 2,
) -> Photo:
    """Photograph one person.

    Args:
        head: The procedural head.
        identity: Whose geometry.
        expression: What the face does; None is neutral.
        appearance: The look that belongs to the identity.
        camera: Where from; its pixel frame is that of the finished picture.
        light: Camera-frame lighting.
        background: What is behind.
        size_px: Side, or (height, width).
        rng: Sensor noise; None leaves noise out.
        finish: Exposure, blur, noise, compression; None is a clean camera.
        occluders: Things in front of the face.
        vertices_m: Head-frame vertices to draw instead of the identity's (posed, or from
            another model of the same topology).
        gaze_deg: Yaw and pitch of both eyes; None looks at the camera as far as eyes turn.
        supersample: Samples per pixel side.

    Returns:
        The picture with its landmarks. Equal arguments give equal bytes.

    Raises:
        ValueError: The size or the vertices have a wrong shape.
    """
    import cv2

    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    if height < 8 or width < 8 or supersample < 1:
        raise ValueError(
            f"photograph expected at least 8x8 px and supersample >= 1, got {height}x{width} "
            f"and {supersample}."
        )
    vertices = head.vertices(identity, expression) if vertices_m is None else vertices_m
    if vertices.shape != (len(head.canonical_mm), 3):
        raise ValueError(
            f"photograph expected vertices ({len(head.canonical_mm)}, 3) in metres, got "
            f"{vertices.shape}; pass vertices of the procedural head's own topology."
        )
    fine = dataclasses.replace(
        camera,
        scale_px=camera.scale_px * supersample,
        centre_px=(camera.centre_px[0] * supersample, camera.centre_px[1] * supersample),
    )
    warp = HeadWarp.fit(head.canonical_mm, vertices)
    palette = [np.array([[*appearance.clothing, 0.05, 0.6, 0.0]])]
    surfaces = [
        head_surface(head, vertices, fine, appearance.neckline),
        body_surface(appearance, warp, fine),
    ]
    oral = head.teeth(identity, expression).vertices if vertices_m is None else None
    teeth = teeth_surface(head, vertices, fine, oral)
    if teeth is not None:
        surfaces.append(teeth)
    hides: float | None = None
    for occluder in occluders:
        mesh = build_occluder(occluder, appearance.skin.tone)
        row = sum(len(p) for p in palette)
        surfaces.append(occluder_surface(mesh, warp, fine, row))
        palette.append(mesh.palette)
        if mesh.hides_hair_above_mm is not None:
            hides = min(mesh.hides_hair_above_mm, 1e9 if hides is None else hides)
    picture = paint_background(background, height, width)
    canvas = cv2.resize(
        np.asarray(picture, dtype=np.float32),
        (width * supersample, height * supersample),
        interpolation=cv2.INTER_LINEAR,
    )
    _render(
        join_surfaces(surfaces),
        hair_surface(head, vertices, appearance, warp, fine, hides),
        appearance,
        fine,
        light,
        np.concatenate(palette),
        gaze_matrices(vertices, warp, camera, gaze_deg),
        fine.in_camera(warp(np.array([[0.0, -10.0, 0.0]])))[0],
        canvas,
    )
    linear = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    luminance = float(appearance.skin.tone @ np.array([0.2126, 0.7152, 0.0722]))
    adapted = (0.30 / max(luminance, 0.03)) ** 0.33
    image = _finish(linear, finish or Finish(), adapted, rng)
    seen, fixed = landmarks_of(head, vertices, camera)
    box = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
    return Photo(image, seen, fixed, box, camera.rotation, camera.yaw_deg, vertices, camera)


def clay(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    size_px: int | tuple[int, int] = 256,
    *,
    camera: Camera | None = None,
    rotation: Float[np.ndarray, "3 3"] | None = None,
    colour: tuple[float, float, float] = (0.62, 0.60, 0.57),
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a bare mesh in grey clay, for judging geometry.

    Args:
        vertices: (V, 3) m.
        faces: (F, 3).
        size_px: Side, or (height, width).
        camera: Where from; None frames the whole mesh orthographically.
        rotation: R_cam_from_mesh when ``camera`` is None.
        colour: Linear albedo.
    """
    import cv2

    from models.rendering.rasterize import interpolate, rasterize

    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    if camera is None:
        turned = vertices @ (np.eye(3) if rotation is None else rotation).T
        low, high = turned.min(axis=0), turned.max(axis=0)
        middle = 0.5 * (low + high)
        scale = 0.94 * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
        camera = orthographic_camera(
            np.eye(3) if rotation is None else rotation, scale, (0.5 * width, 0.5 * height)
        )
        camera = dataclasses.replace(camera, translation=-middle)
    fine = dataclasses.replace(
        camera,
        scale_px=2 * camera.scale_px,
        centre_px=(2 * camera.centre_px[0], 2 * camera.centre_px[1]),
    )
    triangles = np.asarray(faces, dtype=np.int32)
    positions = fine.in_camera(np.asarray(vertices, dtype=np.float64))
    normals = smooth_normals(positions, triangles)
    clip = _clip_positions(positions, fine, 2 * height, 2 * width)
    ids, bary, _ = rasterize(clip[None], triangles, 2 * height, 2 * width)
    n = interpolate(normals, triangles, ids, bary)[0]
    n = n / (np.linalg.norm(n, axis=-1, keepdims=True) + 1e-12)
    n = n * np.where(n[..., 2:] < 0, -1.0, 1.0)
    key = np.array([-0.42, 0.52, 0.74])
    fill = np.array([0.75, 0.05, 0.65])
    light = 0.18 + 0.12 * n[..., 1] + 0.72 * np.maximum(n @ key, 0) + 0.16 * np.maximum(n @ fill, 0)
    half = key + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    gloss = 0.10 * np.maximum(n @ half, 0) ** 24
    shaded = light[..., None] * np.asarray(colour) + gloss[..., None]
    shaded[ids[0] < 0] = 0.86
    small = cv2.resize(shaded, (width, height), interpolation=cv2.INTER_AREA)
    return _finish(small, Finish(contrast=0.0), 1.0, None)
