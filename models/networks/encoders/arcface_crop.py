"""The 112 px face crop that ArcFace-type encoders read: five points to a fixed template.

Pixel coordinates are ours: the centre of pixel (0, 0) is (0.5, 0.5), y down. "Right" and "left" are
the subject's; the right eye is on the image's left.
"""

import numpy as np
from jaxtyping import Float, UInt8

CROP_PX = 112
TEMPLATE_PX = np.array(
    [
        [38.7946, 52.1963],  # right eye
        [74.0318, 52.0014],  # left eye
        [56.5252, 72.2366],  # nose tip
        [42.0493, 92.8655],  # right mouth corner
        [71.2299, 92.7041],  # left mouth corner
    ]
)
"""The published 112 px template, moved by half a pixel to our convention."""


def five_points(landmarks_px: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "5 2"]:
    """Eye centres, nose tip and mouth corners of 68 iBUG points, in the template's order.

    An eye centre is the mean of its six contour points.
    """
    return np.stack(
        [
            landmarks_px[36:42].mean(axis=0),
            landmarks_px[42:48].mean(axis=0),
            landmarks_px[30],
            landmarks_px[48],
            landmarks_px[54],
        ]
    )


def similarity_2d(
    src: Float[np.ndarray, "n 2"], dst: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "2 3"]:
    """Least-squares rotation, uniform scale and translation taking ``src`` to ``dst``.

    With points as complex numbers the map is ``z -> a z + b``: a linear least-squares problem with
    a closed form that never reflects.

    Raises:
        ValueError: The source points coincide or are not finite.
    """
    s = src[:, 0] + 1j * src[:, 1]
    d = dst[:, 0] + 1j * dst[:, 1]
    centred = s - s.mean()
    spread = float(np.sum(np.abs(centred) ** 2))
    if not np.isfinite(spread) or spread < 1e-12 or not np.isfinite(d).all():
        raise ValueError(
            "similarity_2d needs finite points that do not coincide; check the face landmarks"
        )
    a = np.sum(np.conj(centred) * (d - d.mean())) / spread
    b = d.mean() - a * s.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def arcface_crop(
    image: UInt8[np.ndarray, "h w 3"],
    points_px: Float[np.ndarray, "5 2"],
    size_px: int = CROP_PX,
) -> UInt8[np.ndarray, "s s 3"]:
    """Warp a photograph so that its five points meet the template; outside is black.

    Args:
        image: RGB.
        points_px: Five points in the template's order, see ``five_points``.
        size_px: Side of the crop; the template scales with it.

    Raises:
        ValueError: The points do not determine a similarity.
    """
    import cv2

    T_crop_from_image = similarity_2d(
        np.asarray(points_px, dtype=np.float64), TEMPLATE_PX * (size_px / CROP_PX)
    )
    M = T_crop_from_image.copy()
    M[:, 2] += M[:, :2] @ [0.5, 0.5] - 0.5  # cv2 puts pixel centres on integers
    return cv2.warpAffine(image, M, (size_px, size_px), flags=cv2.INTER_LINEAR)


def arcface_blob(crop: UInt8[np.ndarray, "s s 3"]) -> Float[np.ndarray, "3 s s"]:
    """RGB bytes to the network's input: CHW float32, (x - 127.5) / 127.5.

    The result is contiguous: stacked views would make a batch whose channels vary fastest, with
    which torch 2.13's convolutions of very few channels wrote beyond their buffers on the CPU.
    """
    return np.ascontiguousarray(((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1))
