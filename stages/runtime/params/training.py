"""Recognisers and methods that are trained."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from stages.runtime.params.section import Section


class LoopParams(Section):
    """Numbers of one training run; see ``models.networks.train_loop.FitSettings``."""

    workers: int = Field(ge=0, description="world size; it changes the result. 0: no Ray, 1 worker")
    gpu: bool = Field(description="one GPU per worker")
    loaders: int = Field(ge=0, description="threads per worker that prepare coming batches")
    steps: int = Field(ge=0, description="optimiser steps; 0 keeps the initial weights")
    batch: int = Field(ge=1, description="samples per step over all workers")
    learning_rate: float = Field(gt=0)
    final_rate: float = Field(gt=0, le=1, description="rate at the last step over the first")
    schedule: Literal["constant", "geometric", "cosine"]
    weight_decay: float = Field(ge=0)
    betas: tuple[float, float] = Field(description="Adam's averaging constants")
    clip_norm: float = Field(ge=0, description="largest gradient norm, 0 for none")
    report_every: int = Field(ge=1, description="steps between validations")
    checkpoint_every: int = Field(ge=1, description="steps between checkpoints")
    keep: Literal["best", "smoothed", "last"] = Field(
        description="weights of the best validation, of its best running mean, or the last"
    )
    window: int = Field(ge=1, description="validations that the running mean spans; MICA's 7")


class EncoderParams(Section):
    """Size of an iresnet; the public one has 3, 13, 30, 3 blocks of 64 to 512 channels."""

    layers: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    embedding: int = Field(ge=2)
    input_px: int = Field(description="working size; divides 112")


class AugmentParams(Section):
    """Random changes of a training photograph."""

    shift: float = Field(ge=0, description="largest shift, fraction of the crop")
    zoom: float = Field(ge=0, description="largest change of scale, fraction")
    rotate_deg: float = Field(ge=0, description="largest rotation in the image")
    gamma: float = Field(ge=0, description="largest |log2 gamma|")
    gain: float = Field(ge=0, description="largest relative change of a channel")
    noise: float = Field(ge=0, description="standard deviation of pixel noise, of 255")
    flip: bool
    occlude: float = Field(ge=0, le=1, description="chance of a flat patch over the face")


class RecognizerVariant(Section):
    """One recogniser."""

    weights: Path | None = Field(description="your own checkpoint instead of training; null trains")
    encoder: EncoderParams
    scale: float = Field(gt=0, description="s of the angular margin")
    margin: float = Field(ge=0, description="m of the angular margin, rad")
    holdout: float = Field(gt=0, lt=1, description="fraction of identities kept for validation")
    seed_offset: int = Field(ge=0, description="added to the seed, so that a and b differ")
    augment: AugmentParams
    fit: LoopParams


class RecognizerParams(Section):
    """Two recognisers: ``a`` for encoders and losses, ``b`` for evaluation only."""

    a: RecognizerVariant
    b: RecognizerVariant


class SirenParams(Section):
    """MICA's decoder without a basis."""

    width: int = Field(ge=1, description="of every sine layer; the published 256")
    layers: int = Field(ge=1, description="sine layers; the published 9")
    mapping: int = Field(ge=1, description="width of its mapping network; the published 256")
    frequency: float = Field(gt=0, description="of its sine layers; the published 30")
    points: int = Field(ge=0, description="vertices drawn for a training step; 0 takes all")
    truth: Literal["shapes", "registrations"] = Field(
        description="vertices learned: of the fitted coefficients, or of the unified meshes"
    )


class MicaParams(Section):
    """MICA; the encoder has the size of recogniser ``a``."""

    trainable: Literal["none", "L4", "L3-4", "L2-4", "all"]
    bn_drift: Literal["frozen", "reference"] = Field(
        description="frozen batch norms keep their statistics; reference: they drift"
    )
    pretrained: bool = Field(description="start from recogniser a; false: from random weights")
    weights: Path | None = Field(
        description="your own iresnet checkpoint of that size to start from, instead of a"
    )
    decoder: Literal["flame", "siren"] = Field(description="FLAME's basis, or a network")
    siren: SirenParams
    exclude: tuple[str, ...] = Field(
        description="data sets left out, by their folders under unified/: LYHM, STIRLING, ..."
    )
    n_shape: int = Field(ge=1, description="identity coefficients")
    hidden: int = Field(ge=1, description="width of the mapping network")
    face_weight: float = Field(ge=0)
    side_weight: float = Field(ge=0, description="eyeballs and ears")
    rest_weight: float = Field(ge=0)
    shape_penalty: float = Field(
        ge=0, description="weight of the mean squared coefficient; siren: offset in mm"
    )
    encoder_rate: float = Field(ge=0, description="factor on the encoder's learning rate")
    images_per_subject: int = Field(ge=1, description="K photographs of each drawn subject")
    holdout: float = Field(
        gt=0, lt=1, description="fraction of subjects for validation without Florence"
    )
    augment: AugmentParams
    fit: LoopParams


class LandmarkChoiceParams(Section):
    """How pix2face's landmark vertices are chosen on training photographs."""

    frames: int = Field(ge=1, description="annotated training photographs")
    gate_mm: float = Field(gt=0, description="largest PNCC distance of a vertex to its pixel")
    coefficient_prior: float = Field(ge=0, description="ridge per coefficient in sigma units, mm")
    camera: Literal["affine", "pinhole"]


class Pix2FaceParams(Section):
    """pix2face."""

    size_px: int = Field(ge=8, description="side of the crop the network sees")
    width: int = Field(ge=1, description="channels of the first convolution")
    depth: int = Field(ge=3, description="halvings")
    up: Literal["bilinear", "transposed"] = Field(description="how the decoder doubles")
    target: Literal["pncc_offset", "xyz"] = Field(description="what the planes hold")
    background_weight: float = Field(ge=0, le=1)
    target_box: Literal["fitted", "published"] = Field(
        description="mm that [-1, 1] stands for: fitted to the mean face, or the paper's numbers"
    )
    largest_offset_mm: float = Field(gt=0, description="range of the offset planes, if fitted")
    box_scale: tuple[float, float] = Field(description="range of the crop's side over the box's")
    box_shift: float = Field(ge=0, description="largest shift, fraction of the box")
    holdout: float = Field(gt=0, lt=1, description="fraction of subjects kept for validation")
    colour: Literal["augment", "published"] = Field(
        description="gamma, gains and noise of `augment`, or the paper's gamma and gains"
    )
    augment: AugmentParams
    landmarks: LandmarkChoiceParams
    fit: LoopParams


class TrunkParams(Section):
    """Size of a ResNet with bottlenecks; ResNet-50 has 3, 4, 6, 3 units and width 64."""

    kind: Literal["v2", "v1.5"]
    layers: tuple[int, int, int, int]
    width: int = Field(ge=1, description="channels of the stem")


class RingParams(Section):
    """The ring of RingNet."""

    size: int = Field(ge=3, description="R: photographs per ring, R - 1 of one person")
    weight: float = Field(ge=0, description="of the shape consistency; 0 switches it off")
    margin: float = Field(ge=0, description="eta, in squared sigma")
    pseudo_share: float = Field(
        ge=0, lt=1, description="rings of crops of one unlabelled photograph"
    )


class IterativeParams(Section):
    """RingNet's error feedback."""

    n_iter: int = Field(ge=1, description="corrections of the estimate")
    init_estimate: Literal["zeros", "mean"] = Field(description="mean: the average camera")
    balanced: bool = Field(
        description="corrections of camera and rotation in units that move landmarks alike"
    )


class RingNetParams(Section):
    """RingNet."""

    size_px: int = Field(ge=32, description="side of the crop the network sees")
    trunk: TrunkParams
    weights: Path | None = Field(description="your own torch ResNet-50 (v1.5) to start from")
    n_shape: int = Field(ge=1, description="identity coefficients; the paper's 100")
    n_expression: int = Field(ge=1, description="expression coefficients; the paper's 50")
    hidden: int = Field(ge=1, description="width of the regressor")
    dropout: float = Field(ge=0, lt=1)
    ring: RingParams
    ief: IterativeParams
    contour: Literal["dynamic", "static"]
    landmark_weight: float = Field(ge=0)
    shape_penalty: float = Field(ge=0, description="weight of the mean squared norm of beta")
    expression_penalty: float = Field(ge=0, description="likewise of psi")
    confidence_gate: float = Field(ge=0, le=1, description="landmarks count above it")
    box_scale: tuple[float, float] = Field(description="range of the crop's side over the box's")
    box_shift: float = Field(ge=0, description="largest shift, fraction of the box")
    holdout: float = Field(
        gt=0, lt=1, description="fraction of identities for validation where the set has none"
    )
    augment: AugmentParams
    fit: LoopParams

    @field_validator("augment")
    @classmethod
    def _as_seen(cls, augment: AugmentParams) -> AugmentParams:
        """Refuse mirrored photographs: a mirror exchanges the left landmarks and the right."""
        if augment.flip:
            raise ValueError("RingNet learns landmarks of photographs as they are; expected false")
        return augment


class SetParams(Section):
    """C-Net, which weighs the photographs of a person."""

    photographs: int = Field(ge=2, description="M of a training set; the paper's 5")
    fit: LoopParams


class Deng2019Params(Section):
    """Deng et al. 2019."""

    size_px: int = Field(ge=32, description="side of the crop the network sees; the paper's 224")
    trunk: TrunkParams
    mesh_faces: int | None = Field(
        ge=100, description="most triangles of the drawn face; null: all, 70,789 in the paper"
    )
    n_shape: int = Field(ge=1, description="identity coefficients; the paper's 80")
    n_expression: int = Field(ge=1, description="expression coefficients; the paper's 64")
    n_texture: int = Field(ge=1, description="texture coefficients; the paper's 80")
    lighting: Literal["rgb", "mono"] = Field(description="mono: the paper's; rgb: its releases'")
    weights: Path | None = Field(description="your own torch ResNet-50 (v1.5) to start from")
    unlabelled: bool = Field(description="learn from 300W-LP's unknown people, too")
    skin: Literal["off", "raw", "thresh"] = Field(
        description="photo term: all pixels alike, the skin probability, or 1 where it is above 0.5"
    )
    photo_weight: float = Field(ge=0)
    landmark_weight: float = Field(ge=0)
    perceptual_weight: float = Field(ge=0)
    coefficient_weight: float = Field(ge=0, description="of the mean squared norm of the shape")
    expression_factor: float = Field(ge=0, description="of the expression besides")
    texture_factor: float = Field(ge=0, description="of the texture besides")
    reflectance_weight: float = Field(
        ge=0, description="of the variance of the albedo of cheeks, nose and forehead"
    )
    gamma_weight: float = Field(ge=0, description="of the lights' distance to white")
    inner_weight: float = Field(ge=0, description="of nose ridge and inner lips, others count 1")
    holdout: float = Field(
        gt=0, lt=1, description="fraction of identities for validation where the set has none"
    )
    augment: AugmentParams
    fit: LoopParams
    sets: SetParams


class TrainParams(Section):
    """The methods that are trained."""

    deng2019: Deng2019Params
    mica: MicaParams
    pix2face: Pix2FaceParams
    ringnet: RingNetParams
