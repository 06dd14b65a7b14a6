"""Deng et al. 2019: a linear face's shape, expression, albedo, light and pose from one photograph.

Paper: Deng, Yang, Xu, Chen, Jia, Tong, "Accurate 3D Face Reconstruction with Weakly-Supervised
Learning: From Single Image to Image Set", CVPR Workshops 2019. Reference:
github.com/sicxu/Deep3DFaceRecon_pytorch, whose parameter names are kept (``backbone.*``,
``final_layers.0..6``).

The paper's R-Net. A ResNet-50 gives 257 numbers; the face they describe is drawn over the
photograph, and must have its colours (where they look like skin), its landmarks and its identity as
a recognition network sees it. ``deng2019_aggregate`` holds the network for sets of photographs.

Departures: weights, coloured light and the term that keeps it grey are the reference's, not the
paper's (``lighting="mono"`` is the paper's light); vertex normals weight triangles by their area;
landmarks are compared in the pixel coordinates of the picture, from which the reference's projected
landmarks are half a pixel off; the landmark term counts pixels of a
224 px crop whatever the crop's size; the face is any ``LinearModel`` cut to its front, and without
a mask of its skin every vertex counts for the flatness of the albedo.

Command: ``dvc repro train@deng2019``. At full size (ResNet-50 from ImageNet weights, an iresnet as
recogniser, 260,000 photographs, 20 epochs) days on one GPU; the paper reports 1.66 mm mean on MICC
and 1.81 mm on FaceWarehouse, the reference a NoW median of 1.11 mm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.face.morphable import LinearModel
from models.methods.deng2019_skin import SkinMode
from models.networks.encoders.arcface_crop import CROP_PX
from models.networks.encoders.iresnet import IResNet
from models.networks.encoders.pos_crop import POS_SIZE_PX
from models.networks.encoders.resnet import ResNet, ResNetConfig
from models.networks.encoders.warp_layer import template_matrices, warp_images
from models.rendering.cameras import perspective_clip, perspective_pixels
from models.rendering.rasterize import draw
from models.rendering.shading import sh_basis, vertex_normals

ANGLES, TRANSLATION, BANDS = 3, 3, 9
NOSE_TIP = 30
INNER_LANDMARKS = (28, 29, 30, *range(60, 68))
"""Bridge and tip of the nose and the inner lips, which count more."""
DISTANCE_DM = 10.0
"""From the camera to the origin of an untranslated face."""
NEAR_DM, FAR_DM = 5.0, 15.0
FOCAL_224_PX = 1015.0
FRONT_MM = 125.0
"""Holds as many vertices of BFM 2009 (36,000) as the reference's cut (35,709), 95 % of them its."""
AMBIENT = 0.8
"""Added to the first coefficient of the light of each channel."""
DM_PER_M = 10.0


@dataclass(frozen=True)
class Deng2019Config:
    """Sizes and weights.

    Attributes:
        trunk: Feature extractor.
        n_shape: Identity coefficients, in standard deviations like the next two.
        n_expression: Expression coefficients.
        n_texture: Albedo coefficients.
        lighting: One set of nine light coefficients per channel, or one for all.
        size_px: Side of the crop.
        photo_weight: Of the colour difference.
        landmark_weight: Of the squared landmark distance.
        perceptual_weight: Of the recogniser's cosine distance; 0 spares its passes.
        coefficient_weight: Of the squared coefficients.
        expression_factor: Of expression in them; identity counts once.
        texture_factor: Of albedo in them.
        reflectance_weight: Of the variance of the albedo.
        gamma_weight: Of the difference of the light between the channels.
        inner_weight: Of ``INNER_LANDMARKS``; the others count once.
        skin: Which weights the photometric term's pixels get; whoever makes batches reads it.
    """

    trunk: ResNetConfig = field(default_factory=lambda: ResNetConfig("v1.5"))
    n_shape: int = 80
    n_expression: int = 64
    n_texture: int = 80
    lighting: Literal["rgb", "mono"] = "rgb"
    size_px: int = POS_SIZE_PX
    photo_weight: float = 1.92
    landmark_weight: float = 1.6e-3
    perceptual_weight: float = 0.2
    coefficient_weight: float = 3e-4
    expression_factor: float = 0.8
    texture_factor: float = 1.7e-2
    reflectance_weight: float = 5.0
    gamma_weight: float = 10.0
    inner_weight: float = 20.0
    skin: SkinMode = "thresh"

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Deng2019Config":
        """The configuration that a checkpoint's plain ``config`` describes.

        Args:
            section: ``trunk`` (kind, layers, width) and the other fields by name; more is not read.
        """
        trunk = section["trunk"]
        plain = {f.name: section[f.name] for f in fields(cls) if f.name != "trunk"}
        return cls(
            trunk=ResNetConfig(trunk["kind"], tuple(trunk["layers"]), trunk["width"]), **plain
        )

    @property
    def n_gamma(self) -> int:
        """Light coefficients: 27, or 9 in one colour."""
        return BANDS if self.lighting == "mono" else 3 * BANDS

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers by meaning: identity, expression, albedo, angles, light, shift, depth."""
        shift, depth = TRANSLATION - 1, 1
        coefficients = (self.n_shape, self.n_expression, self.n_texture)
        return (*coefficients, ANGLES, self.n_gamma, shift, depth)

    @property
    def outputs(self) -> int:
        """Numbers per photograph; 257 in the reference, 239 (``mono``) in the paper."""
        return sum(self.sizes)


class FaceCode(NamedTuple):
    """The network's numbers by meaning.

    Attributes:
        shape: Identity, standard deviations.
        expression: Likewise.
        texture: Albedo, likewise.
        angles: Rotations about x, then y, then z, rad.
        gamma: Light of red, green and blue in the order of the ``deep3d`` table, less ``AMBIENT``.
        translation: Of the face, x right, y up, z toward the camera, decimetres.
    """

    shape: Float[Tensor, "B k"]
    expression: Float[Tensor, "B e"]
    texture: Float[Tensor, "B t"]
    angles: Float[Tensor, "B 3"]
    gamma: Float[Tensor, "B 3 9"]
    translation: Float[Tensor, "B 3"]


class DrawnFace(NamedTuple):
    """What a code describes.

    Attributes:
        vertices: In the camera's frame (x right, y up, z toward the viewer), decimetres.
        albedo: RGB as pictures have it, 1 is white; may leave 0..1.
        colour: Albedo in its light.
        landmarks: Pixels of the crop.
    """

    vertices: Float[Tensor, "B V 3"]
    albedo: Float[Tensor, "B V 3"]
    colour: Float[Tensor, "B V 3"]
    landmarks: Float[Tensor, "B 68 2"]


class FaceSurface(nn.Module):
    """Part of a linear face model as a differentiable layer, in decimetres.

    Coefficients count standard deviations. The origin is the mean of the mean face's vertices, or
    a given point: pose and camera are told from there.
    All arrays are buffers that no checkpoint stores.
    """

    mean: Tensor
    shape_basis: Tensor
    expression_basis: Tensor
    texture_mean: Tensor
    texture_basis: Tensor
    faces: Tensor
    keypoints: Tensor
    skin: Tensor

    def __init__(
        self,
        model: LinearModel,
        unit_m: float,
        vertices: Int[np.ndarray, " n"] | None = None,
        skin: Int[np.ndarray, " m"] | None = None,
        origin: Float[np.ndarray, "3"] | None = None,
    ) -> None:
        """Cut a model.

        Args:
            model: Has a texture with values in 0..1.
            unit_m: Metres per unit of the model.
            vertices: Which to keep, see ``LinearModel.part``; None keeps all.
            skin: Vertices of the model whose albedo should be even; those not kept are ignored,
                None means all that are.
            origin: In the model's unit and frame; None takes the mean of the vertices kept.

        Raises:
            ValueError: The model has no texture, or a keypoint or all skin is cut away.
        """
        super().__init__()
        seen = np.arange(len(model.mean_shape)) if skin is None else np.asarray(skin, np.int64)
        if vertices is not None:
            place = np.full(len(model.mean_shape), -1)
            place[vertices] = np.arange(len(vertices))
            seen = place[seen]
            model = model.part(np.asarray(vertices, np.int64))
        seen = seen[seen >= 0]
        basis, mean, sigma = model.texture_basis, model.texture_mean, model.texture_sigma
        if basis is None or mean is None or sigma is None:
            raise ValueError("FaceSurface needs a face model with texture, e.g. BFM 2009 or 2017")
        if not len(seen):
            raise ValueError("FaceSurface needs skin vertices among those that it keeps, got none")
        unit_dm = DM_PER_M * unit_m
        middle = model.mean.mean(axis=0) if origin is None else origin
        arrays = {
            "mean": unit_dm * (model.mean - middle),
            "shape_basis": unit_dm * _rows(model.shape_basis, model.shape_sigma),
            "expression_basis": unit_dm * _rows(model.expression_basis, model.expression_sigma),
            "texture_mean": mean,
            "texture_basis": _rows(basis, sigma),
        }
        for name, array in arrays.items():
            value = torch.as_tensor(np.asarray(array), dtype=torch.float32)
            self.register_buffer(name, value, persistent=False)
        for name, ids in (("faces", model.faces), ("keypoints", model.keypoints), ("skin", seen)):
            value = torch.as_tensor(np.asarray(ids, np.int64))
            self.register_buffer(name, value, persistent=False)

    def vertices(
        self, shape: Float[Tensor, "B k"], expression: Float[Tensor, "B e"]
    ) -> Float[Tensor, "B V 3"]:
        """Faces without pose, decimetres (the paper's eq. 1); fewer coefficients are allowed."""
        moved = shape @ self.shape_basis[: shape.shape[1]]
        moved = moved + expression @ self.expression_basis[: expression.shape[1]]
        return self.mean + moved.reshape(len(shape), -1, 3)

    def albedo(self, texture: Float[Tensor, "B t"]) -> Float[Tensor, "B V 3"]:
        """Vertex colours without light, mostly in 0..1."""
        moved = texture @ self.texture_basis[: texture.shape[1]]
        return self.texture_mean + moved.reshape(len(texture), -1, 3)


class Deng2019(nn.Module):
    """R-Net: face crop to the numbers of ``FaceCode``; neither face nor recogniser is state."""

    def __init__(
        self,
        config: Deng2019Config,
        face: FaceSurface | None = None,
        recognizer: IResNet | None = None,
    ) -> None:
        """Build the network, whose heads start at zero: every photograph shows the mean face.

        Args:
            config: Sizes and weights.
            face: Decoder; ``decode``, ``render`` and ``losses`` need it.
            recognizer: For the perceptual term, which is 0 without one. It is frozen here, follows
                the network to its device, and is neither saved nor trained with it.

        Raises:
            ValueError: The face has fewer coefficients than the network gives.
        """
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.trunk)
        self.final_layers = nn.ModuleList(
            nn.Conv2d(config.trunk.features, size, 1) for size in config.sizes
        )
        for head in self.final_layers:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
        if face is not None:
            bases = (face.shape_basis, face.expression_basis, face.texture_basis)
            have, need = tuple(len(basis) for basis in bases), config.sizes[:3]
            if any(h < n for h, n in zip(have, need, strict=True)):
                raise ValueError(
                    f"Deng2019 needs a face of >= {need} shape, expression and texture "
                    f"coefficients, got {have}; lower n_shape, n_expression or n_texture"
                )
        self.face = face
        # In a tuple, so that it is no submodule.
        self._recognizer = () if recognizer is None else (recognizer.eval().requires_grad_(False),)

    def forward(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B p"]:
        """Numbers of ``split`` for RGB crops in [0, 1]."""
        return self.heads(self.backbone(image))

    def heads(self, features: Float[Tensor, "B d"]) -> Float[Tensor, "B p"]:
        """Numbers of ``split`` for the trunk's features."""
        return torch.cat([head(features[..., None, None]) for head in self.final_layers], 1)[
            ..., 0, 0
        ]

    def split(self, code: Float[Tensor, "B p"]) -> FaceCode:
        """Name the network's numbers; light in one colour is given to all three channels."""
        parts = torch.split(code, list(self.config.sizes), dim=1)
        shape, expression, texture, angles, gamma, shift, depth = parts
        gamma = gamma.reshape(len(code), -1, BANDS).expand(-1, 3, -1)
        return FaceCode(shape, expression, texture, angles, gamma, torch.cat([shift, depth], 1))

    def decode(self, code: Float[Tensor, "B p"]) -> DrawnFace:
        """The lit face in front of the camera.

        X_cam = R X + t - (0, 0, 10 dm) with R = Rz Ry Rx; colour = albedo * (Y(n) gamma) with
        ``AMBIENT`` added to the constant term of each channel.

        Raises:
            ValueError: The network was built without a face.
        """
        face = self._face()
        named = self.split(code)
        R_cam_from_face = rotation(named.angles)
        away = code.new_tensor([0.0, 0.0, DISTANCE_DM])
        vertices = face.vertices(named.shape, named.expression) @ R_cam_from_face.mT
        vertices = vertices + (named.translation - away)[:, None]
        albedo = face.albedo(named.texture)
        ambient = nnf.pad(code.new_tensor([AMBIENT]), (0, BANDS - 1))
        basis = sh_basis(vertex_normals(vertices, face.faces), "deep3d")
        colour = albedo * (basis @ (named.gamma + ambient).mT)
        landmarks = perspective_pixels(vertices[:, face.keypoints], *self._camera())
        return DrawnFace(vertices, albedo, colour, landmarks)

    def render(
        self, code: Float[Tensor, "B p"]
    ) -> tuple[Float[Tensor, "B 3 s s"], Bool[Tensor, "B s s"]]:
        """Draw faces on black; colours may leave 0..1.

        Returns:
            Pictures, differentiable except for what is seen where, and where a face is.

        Raises:
            ValueError: The network was built without a face.
        """
        return self._draw(self.decode(code))

    def losses(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reference's six terms; ``loss`` is their weighted sum.

        Args:
            output: Codes.
            batch: ``image`` (B, 3, s, s) RGB in 0..1, ``landmarks`` (B, 68, 2) in pixels of the
                crop, ``skin`` (B, s, s) weights of its pixels and, for the perceptual term,
                ``crop`` (B, 2, 3), T_112_from_crop of its face.

        Raises:
            ValueError: The network was built without a face.
        """
        c = self.config
        face, code, drawn = self._face(), self.split(output), self.decode(output)
        rgb, mask = self._draw(drawn)
        terms = {
            "photo": photometric_loss(rgb, batch["image"], batch["skin"] * mask),
            "landmarks": (POS_SIZE_PX / c.size_px) ** 2
            * landmark_loss(drawn.landmarks, batch["landmarks"], c.inner_weight),
            "perceptual": self._perceptual(rgb, drawn.landmarks, batch),
            "coefficients": code.shape.square().sum(1).mean()
            + c.expression_factor * code.expression.square().sum(1).mean()
            + c.texture_factor * code.texture.square().sum(1).mean(),
            "reflectance": colour_variance(drawn.albedo[:, face.skin]),
            "gamma": (code.gamma - code.gamma.mean(1, keepdim=True)).square().mean(),
        }
        total = c.photo_weight * terms["photo"] + c.landmark_weight * terms["landmarks"]
        total = total + c.perceptual_weight * terms["perceptual"]
        total = total + c.coefficient_weight * terms["coefficients"]
        total = total + c.reflectance_weight * terms["reflectance"]
        return {"loss": total + c.gamma_weight * terms["gamma"], **terms}

    def _face(self) -> FaceSurface:
        if self.face is None:
            raise ValueError("Deng2019 draws with a face model; build Deng2019(config, face)")
        return self.face

    def _camera(self) -> tuple[float, float, float]:
        """Focal length and principal point, pixels."""
        size = self.config.size_px
        return FOCAL_224_PX * size / POS_SIZE_PX, size / 2, size / 2

    def _draw(self, drawn: DrawnFace) -> tuple[Tensor, Tensor]:
        size, faces = self.config.size_px, self._face().faces
        clip = perspective_clip(
            drawn.vertices, *self._camera(), size, size, near=NEAR_DM, far=FAR_DM
        )
        ids, values = draw(clip, faces, drawn.colour, size, size)
        # Contiguous, because channels that vary fastest made torch 2.13's convolutions of very few
        # channels write beyond their buffers on the CPU.
        return values.permute(0, 3, 1, 2).contiguous(), ids >= 0

    def _perceptual(
        self, rgb: Tensor, landmarks: Tensor, batch: dict[str, Tensor]
    ) -> Float[Tensor, ""]:
        """Mean of 1 - cosine between what the recogniser sees in photograph and drawing (eq. 4).

        The drawing is cropped by its own landmarks, through which no gradient flows.
        """
        if not self._recognizer or self.config.perceptual_weight == 0:
            return rgb.new_zeros(())
        recognizer = self._recognizer[0].to(rgb)
        with torch.no_grad():
            matrices = template_matrices(landmarks)
            seen = recognizer(2.0 * warp_images(batch["image"], batch["crop"], CROP_PX) - 1.0)
        drawn = recognizer(2.0 * warp_images(rgb, matrices, CROP_PX) - 1.0)
        return (1.0 - nnf.cosine_similarity(seen, drawn)).mean()


def rotation(angles: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Rz Ry Rx of angles about x, y and z in radians, for column vectors."""
    zero, one = torch.zeros_like(angles[:, 0]), torch.ones_like(angles[:, 0])
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(1), angles.sin().unbind(1)
    rows = (
        (one, zero, zero, zero, cx, -sx, zero, sx, cx),
        (cy, zero, sy, zero, one, zero, -sy, zero, cy),
        (cz, -sz, zero, sz, cz, zero, zero, zero, one),
    )
    x, y, z = (torch.stack(row, dim=1).reshape(-1, 3, 3) for row in rows)
    return z @ y @ x


def photometric_loss(
    drawn: Float[Tensor, "B 3 s s"],
    image: Float[Tensor, "B 3 s s"],
    weights: Float[Tensor, "B s s"],
) -> Float[Tensor, ""]:
    """Weighted mean colour distance over the pixels of the whole batch (eq. 2).

    ``sum w sqrt(|I - I'|^2 + 1e-6) / max(sum w, 1)``, as in the reference.

    Args:
        drawn: RGB, 1 is white.
        image: Likewise.
        weights: Skin weights on the face, 0 elsewhere.
    """
    distance = ((drawn - image).square().sum(dim=1) + 1e-6).sqrt()
    return (weights * distance).sum() / weights.sum().clamp_min(1.0)


def landmark_loss(
    predicted: Float[Tensor, "B 68 2"], target: Float[Tensor, "B 68 2"], inner_weight: float
) -> Float[Tensor, ""]:
    """Mean of ``w |p - q|^2`` over landmarks and batch, square pixels (eq. 3).

    Args:
        predicted: Pixels.
        target: Pixels.
        inner_weight: w of ``INNER_LANDMARKS``; 1 elsewhere.
    """
    weights = predicted.new_ones(predicted.shape[1])
    weights[list(INNER_LANDMARKS)] = inner_weight
    return (weights * (predicted - target).square().sum(-1)).mean()


def colour_variance(albedo: Float[Tensor, "B n 3"]) -> Float[Tensor, ""]:
    """Variance over the vertices, summed over the channels, mean over the batch (eq. 6)."""
    return (albedo - albedo.mean(1, keepdim=True)).square().mean(1).sum(1).mean()


def front_vertices(
    model: LinearModel, unit_m: float, radius_mm: float = FRONT_MM
) -> Int[np.ndarray, " n"]:
    """Vertices of the face without the neck and the back of the ears, in ascending order.

    Those within a distance of the mean face's nose tip that belong to a whole triangle of such
    vertices, and all keypoints.

    Args:
        model: Any.
        unit_m: Metres per unit of the model.
        radius_mm: The distance.
    """
    mean = model.mean
    away_mm = 1000.0 * unit_m * np.linalg.norm(mean - mean[model.keypoints[NOSE_TIP]], axis=1)
    near = away_mm <= radius_mm
    near[model.keypoints] = True
    kept = np.zeros(len(near), bool)
    kept[model.faces[near[model.faces].all(axis=1)]] = True
    kept[model.keypoints] = True
    return np.flatnonzero(kept)


def _rows(
    basis: Float[np.ndarray, "V 3 k"], sigma: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "k n"]:
    """Displacement of all vertices per standard deviation, one mode a row."""
    return (basis * sigma).reshape(-1, len(sigma)).T.copy()
