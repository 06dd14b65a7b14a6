"""One photograph through pix2face: crop, network, correspondences, camera; several: one person.

The steps of Crispell and Bazik 2017, sec. 3.3 and 3.4, in their order. Everything is in the frame
of the face model, millimetres, and in pixels of the photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from models.methods.pix2face import Pix2Face, face_pixels, input_blob
from models.methods.pix2face_camera import MINIMUM, FaceCamera, fit_affine, fit_pinhole
from models.methods.pix2face_fit import ModelFit, Moves, Solution
from models.networks.encoders.square_crop import crop_image, crop_matrix

CAMERAS = {"affine": fit_affine, "pinhole": fit_pinhole}


@dataclass(frozen=True)
class FitSettings:
    """Numbers of the steps behind the network.

    Attributes:
        box_scale: Side of the crop over that of the face's square.
        gate_mm: Pixels farther than this from every vertex name none.
        prior: Ridge in mm per standard deviation.
        minimum: Vertices that a photograph must show, at least ten.
        most: Vertices that count in the solution; None for all.
        camera: Kind of camera.
    """

    box_scale: float
    gate_mm: float
    prior: float
    minimum: int
    most: int | None
    camera: Literal["affine", "pinhole"]


@dataclass(frozen=True)
class Seen:
    """What the network saw on one photograph.

    Attributes:
        moves: Vertices and how far they moved.
        points_mm: Observed points of these vertices, PNCC + offset.
        pixels_px: Where they are in the photograph.
        camera: Fitted to the two.
        cloud_mm: Observed points of all pixels on the face's surface, more than the vertices.
        cloud_rgb: Their colours in the crop.
    """

    moves: Moves
    points_mm: Float[np.ndarray, "n 3"]
    pixels_px: Float[np.ndarray, "n 2"]
    camera: FaceCamera
    cloud_mm: Float[np.ndarray, "m 3"]
    cloud_rgb: UInt8[np.ndarray, "m 3"]


class PhotoFit:
    """A network and a face model, ready for photographs."""

    def __init__(self, net: Pix2Face, fit: ModelFit, settings: FitSettings) -> None:
        """Take a network in evaluation mode and a face model in the frame it was trained in."""
        self.net = net
        self.fit = fit
        self.settings = settings

    def planes_mm(
        self, crop: UInt8[np.ndarray, "s s 3"]
    ) -> tuple[Float[np.ndarray, "s s 3"] | None, Float[np.ndarray, "s s 3"]]:
        """PNCC (None where the network predicts none) and observed point of each pixel, mm."""
        config = self.net.config
        blob = torch.from_numpy(np.ascontiguousarray(input_blob(crop)))[None]
        with torch.no_grad():
            out = self.net(blob)[0].numpy().transpose(1, 2, 0).astype(np.float64)
        planes = config.boxes.decode(out, config.target)
        if config.target == "xyz":
            return None, planes
        return planes[..., :3], planes[..., :3] + planes[..., 3:]

    def see(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        centre_px: Float[np.ndarray, "2"],
        side_px: float,
    ) -> Seen:
        """Crop a face, predict its maps, and find what they say.

        Args:
            image: RGB photograph.
            centre_px: Centre of the square around the face's landmarks.
            side_px: Its side.

        Raises:
            ValueError: The square is empty, too few face pixels or vertices are seen, or they lie
                in a plane.
        """
        if not (np.isfinite(centre_px).all() and np.isfinite(side_px) and side_px > 0):
            raise ValueError(
                f"pix2face needs a face square with a finite centre and a side above 0 px, got "
                f"{np.asarray(centre_px).tolist()} and {side_px}; check the face box"
            )
        settings, size = self.settings, self.net.config.size_px
        matrix = crop_matrix(np.asarray(centre_px), settings.box_scale * side_px, size)
        crop = crop_image(image, matrix, size)
        pncc, shape = self.planes_mm(crop)
        valid = face_pixels(shape if pncc is None else pncc)
        if int(valid.sum()) < MINIMUM:
            raise ValueError(
                f"pix2face needs >= {MINIMUM} face pixels, so that vertices are seen, got "
                f"{int(valid.sum())} of {valid.size}; is there a face in the crop?"
            )
        if pncc is None:
            moves = self.fit.moves_of_shape(
                shape, valid, settings.gate_mm, settings.prior, most=settings.most
            )
        else:
            moves = self.fit.moves(pncc, shape - pncc, valid, settings.gate_mm)
        self.fit.require(moves, max(settings.minimum, MINIMUM))
        points = shape[moves.pixels[:, 0], moves.pixels[:, 1]]
        pixels = (moves.pixels[:, ::-1] + 0.5 - matrix[:, 2]) / matrix[0, 0]
        height, width = image.shape[:2]
        camera = CAMERAS[settings.camera](points, pixels, np.array([width / 2, height / 2]))
        near = moves.near[:, 0], moves.near[:, 1]
        return Seen(moves, points, pixels, camera, shape[near], crop[near])

    def solve(self, photographs: Sequence[Seen]) -> Solution:
        """One identity for all photographs, an expression for each.

        Raises:
            ValueError: See :meth:`ModelFit.solve`.
        """
        settings = self.settings
        return self.fit.solve(
            [seen.moves for seen in photographs], settings.prior, settings.minimum, settings.most
        )
