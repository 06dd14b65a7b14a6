"""Clay renders of random people are faces to a detector that knows nothing of this project."""

import warnings

import numpy as np

from models.procedural.head import ProceduralHead
from models.procedural.identity import sample_identity
from models.rendering.rasterize import interpolate, rasterize


def clay(head, vertices, yaw_deg, size):
    """Grey picture of a turned head under one lamp, orthographic."""
    yaw = np.radians(yaw_deg)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    points = vertices @ turn.T
    clip = np.concatenate(
        [points[:, :2] / 0.16, -points[:, 2:] / 0.5, np.ones((len(points), 1))], axis=1
    )
    corners = points[head.faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(points)
    for k in range(3):
        np.add.at(normals, head.faces[:, k], flat)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    lamp = np.array([-0.4, 0.5, 0.77])
    light = 0.15 + 0.75 * np.clip(normals @ lamp, 0.0, 1.0)
    for name in ("mouth_interior", "nostril_interior"):
        light[head.masks[name]] *= 0.3
    ids, bary, _ = rasterize(clip[None].astype(np.float32), head.faces.astype(np.int32), size, size)
    grey = interpolate(light[None, :, None].astype(np.float32), head.faces, ids, bary)[0, ..., 0]
    grey[ids[0] < 0] = 0.35
    return np.repeat((np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def test_hog_detector_fires_on_clay():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dlib
    head = ProceduralHead.build()
    detector = dlib.get_frontal_face_detector()
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        picture = clay(head, head.vertices(sample_identity(rng)), rng.uniform(-30, 30), 224)
        found += len(detector(np.ascontiguousarray(picture), 1)) == 1
    assert found >= 19
