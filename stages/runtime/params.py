"""Every number of the pipeline, read from ``params.yaml`` and checked.

Only this module reads YAML. Unknown keys are refused, so a typing error cannot silently fall back
to a default; no default lives here, so every number stands in ``params.yaml`` once.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen group of parameters that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetParams(Section):
    """Where one raw data set lies."""

    root: Path = Field(description="folder in the owner's own layout")


class ModelParams(Section):
    """Where one raw face model lies."""

    root: Path = Field(description="folder that holds the owner's files")


class ComputeParams(Section):
    """How maps over items run; never changes any output byte."""

    workers: int = Field(ge=1, description="processes for a map over items")
    ray_threshold_s: float = Field(
        ge=0, description="below this estimate no Ray is started for a map: it runs in processes"
    )
    object_store_mb: int = Field(ge=80, description="Ray object store when no head is attached, MB")


class ServersParams(Section):
    """What ``faceline up`` starts on this machine; changes no output byte, read by no stage."""

    host: str = Field(description="address they listen at")
    folder: Path = Field(description="their data, logs and secrets")
    secrets: bool = Field(description="ask clients for a login (Prefect) and a token (Ray)")
    prefect_port: int = Field(ge=1, le=65535)
    ray_port: int = Field(ge=1, le=65535)
    ray_dashboard_port: int | None = Field(description="null: no dashboard, no job server")
    ray_cpus: int = Field(ge=1, description="cores that the head hands out")
    ray_object_store_mb: int = Field(ge=80, description="shared memory for objects, MB")


# Sections of single stages, each owned by its stage.


class MorphableSizes(Section):
    """Stand-ins of the Basel models and of 3DDFA's (199 + 29 components, fixed by its users)."""

    heads: int = Field(ge=100, description="people behind the components, mirrored as well")
    modes_2009: int = Field(ge=1, le=199, description="the real file has 199")
    modes_2017: int = Field(ge=1, le=199, description="the real file has 199")
    expressions_2017: int = Field(ge=1, le=100, description="the real file has 100")


class Faces300WSizes(Section):
    """300W-LP and AFLW2000-3D."""

    faces: int = Field(ge=4, description="source photographs, each of another person")
    views: int = Field(ge=1, le=18, description="views per photograph, k = 0 the original")
    flip_every: int = Field(ge=1, description="every n-th photograph is flipped too")
    aflw: int = Field(ge=0, description="AFLW2000-3D samples")


class ScanSetSizes(Section):
    """A set of scans with photographs."""

    subjects: int = Field(ge=1)
    photos: int = Field(ge=1, description="per subject")
    size_px: int = Field(ge=96, description="longer side of a photograph")
    scan_vertices: int = Field(ge=2000, description="samples per scan before trimming")


class RangeSetSizes(ScanSetSizes):
    """FRGC; its range images have 480 x 640 pixels always."""

    scans: int = Field(ge=1, description="range images per subject, each with a photograph")
    photos: int = Field(ge=1, description="further photographs per subject")


class ExpressionSetSizes(ScanSetSizes):
    """BU-3DFE."""

    scans: int = Field(ge=1, le=7, description="expressions per subject, the first neutral")


class FrameSetSizes(Section):
    """BP4D+: every frame has a mesh and a photograph."""

    subjects: int = Field(ge=1)
    frames: int = Field(ge=1, description="per subject")
    size_px: int = Field(ge=96, description="longer side of a photograph")
    scan_vertices: int = Field(ge=2000, description="samples per scan before trimming")


class FaceWarehouseSizes(Section):
    """FaceWarehouse; its meshes have 11,510 vertices always."""

    subjects: int = Field(ge=1, le=150)
    poses: int = Field(ge=1, le=20, description="photographs per subject")
    meshes: int = Field(ge=1, le=20, description="of the poses, how many come with a mesh")
    blendshapes: int = Field(ge=0, description="subjects with shape.bs")
    size_px: int = Field(ge=96)


class SequenceSizes(Section):
    """D3DFACS; it has ten people."""

    subjects: int = Field(ge=1, le=10)
    sequences: int = Field(ge=1, le=10, description="per subject")
    scans: int = Field(ge=3, description="per sequence, from rest to the peak and back")
    photos: int = Field(ge=1, description="per subject")
    size_px: int = Field(ge=96, description="longer side of a photograph")
    scan_vertices: int = Field(ge=2000, description="samples per scan before trimming")


class IdentitySizes(Section):
    """VGGFace2."""

    identities: int = Field(ge=2)
    photos: int = Field(ge=2, description="per identity")
    size_px: int = Field(ge=64)


class SynthesizeParams(Section):
    """The embedded corpus."""

    broken: int = Field(ge=0, description="deliberately broken inputs of each kind")
    seconds_per_item: float = Field(gt=0, description="rough cost of a photograph or scan, s")
    morphable: MorphableSizes
    faces_300w: Faces300WSizes
    lyhm: ScanSetSizes
    stirling: ScanSetSizes
    facewarehouse: FaceWarehouseSizes
    frgc: RangeSetSizes
    bu3dfe: ExpressionSetSizes
    bp4d: FrameSetSizes
    now: ScanSetSizes
    vggface2: IdentitySizes
    d3dfacs: SequenceSizes
    florence: ScanSetSizes


class ConvertParams(Section):
    """Owners' face models to safetensors."""

    texture: bool = Field(description="keep the texture bases of morphable models")
    leading_mode_min_mm: float = Field(gt=0, description="rms move by one sigma of mode 1, mm")
    leading_mode_max_mm: float = Field(gt=0, description="beyond: variances or a wrong unit, mm")


class PackParams(Section):
    """Raw trees to Parquet shards."""

    shards: int = Field(ge=1, description="fixed buckets sha256(subject) mod shards")
    max_failed_fraction: float = Field(ge=0, le=1, description="more unreadable items stop it")
    seconds_per_image: float = Field(ge=0, description="estimate that decides whether Ray starts")
    seconds_per_scan: float = Field(ge=0, description="likewise")


class EvaluateParams(Section):
    """Scores against the benchmarks' scans."""

    protocols: tuple[str, ...] = Field(min_length=1, description="names in models.metrics, for NoW")
    benchmarks: dict[str, tuple[str, ...]] = Field(description="protocols of the other benchmarks")
    curve_max_mm: float = Field(gt=0, description="end of the cumulative error curve, mm")
    curve_step_mm: float = Field(gt=0, description="its step, mm")
    max_unscored_fraction: float = Field(ge=0, le=1, description="more missing images stop it")

    @field_validator("benchmarks")
    @classmethod
    def _attached(cls, protocols: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        known = ("stirling", "florence", "facewarehouse", "bu3dfe")
        if unknown := sorted(protocols.keys() - set(known)):
            raise ValueError(f"expected benchmarks among {', '.join(known)}, got {unknown}")
        return protocols

    @field_validator("protocols")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("now", "now-metric", "feng2018", "feng2018-metric")  # those on seven landmarks
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"expected protocols among {', '.join(known)}, got {unknown}")
        return names


class ReportParams(Section):
    """How much the report shows."""

    reconstructions: int = Field(ge=0, description="photographs shown with their reconstructions")
    qa_pictures: int = Field(ge=0, description="registration pictures per data set")
    pncc_pictures: int = Field(ge=0, description="PNCC previews")
    picture_px: int = Field(ge=64, le=512, description="longest side of a picture, px")
    sheet_pages: int = Field(ge=0, description="pages of the worst registrations per data set")
    sheet_px: int = Field(ge=64, le=4096, description="their width, px")


class ScanFitParams(Section):
    """How a scan is registered; every field is explained in models.geometry.settings."""

    crop_mm: float = Field(gt=0, description="scan kept around the landmarks, mm")
    surface_vertices: int = Field(ge=1000, description="scan vertices searched at most")
    sample_vertices: int = Field(ge=100, description="template vertices in the parametric stage")
    landmark_steps: int = Field(ge=1, description="Gauss-Newton steps on landmarks alone")
    icp_steps: int = Field(ge=0, description="Gauss-Newton steps on landmarks and surface")
    data_weight_per_mm2: float = Field(gt=0, description="surface residuals against the prior")
    robust_start_mm: float = Field(gt=0, description="robust scale of the first surface step, mm")
    robust_end_mm: float = Field(gt=0, description="robust scale of the last one, mm")
    landmark_sigma_start_mm: float = Field(gt=0, description="landmark noise, first step, mm")
    landmark_sigma_end_mm: float = Field(gt=0, description="landmark noise, last step, mm")
    gate_factor: float = Field(gt=0, description="longest correspondence, in robust scales")
    gate_angle_deg: float = Field(gt=0, le=90, description="largest angle between normals")
    pose_sigma_rad: float = Field(gt=0, description="prior of neck and jaw rotations")
    template_share: float = Field(ge=0, description="template's pull where the scan pulls")
    tangential: float = Field(ge=0, le=1, description="weight across the normal")
    pull: float = Field(ge=0, description="weight of staying at the parametric fit")
    scalp_weight: float = Field(ge=0, le=1, description="data weight of hair")
    lip_gap_mm: float = Field(gt=0, description="lips this far apart count as open, mm")
    lip_weight: float = Field(ge=0, description="of closed lips staying together; 0: do not")
    mouth_support: float = Field(ge=0, le=1, description="lower face below it: mouth tried anew")


class FitPreset(Section):
    """The non-rigid schedule: one entry per level."""

    smoothing_mm: tuple[float, ...] = Field(description="smoothing length of each level, mm")
    template_to_scan: tuple[bool, ...] = Field(description="who looks for whom, per level")
    steps_per_level: tuple[int, ...] = Field(description="correspondence updates, per level")
    scan_samples: int = Field(ge=100, description="scan vertices that carry data")
    solver_tolerance: float = Field(gt=0, lt=1, description="of the conjugate gradients")


class QualityParams(Section):
    """Beyond which a registration is rejected."""

    max_median_mm: float = Field(gt=0, description="median scan-to-mesh distance, face, mm")
    max_q95_mm: float = Field(gt=0, description="its 95th percentile, mm")
    max_landmark_rms_mm: float = Field(gt=0, description="root mean square landmark distance, mm")
    max_landmark_drift_mm: float = Field(gt=0, description="rigid part of the landmark error, mm")
    min_coverage: float = Field(ge=0, le=1, description="share of the face on the scan")
    min_lower_face: float = Field(ge=0, le=1, description="of the lower face, parametric fit")
    max_prior_energy: float = Field(gt=0, description="sum of squared coefficients")
    max_flipped_faces: int = Field(ge=0, description="triangles turned by the refinement")
    min_score: float = Field(ge=0, le=1, description="estimated probability of being right")


class ScoreParams(Section):
    """Weights of the score; every field is explained in models.geometry.quality."""

    provenance: str = Field(min_length=1, description="what the weights were fitted on")
    intercept: float = Field(description="log odds where nothing speaks against a result")
    landmark_drift_mm: float = Field(ge=0, description="weight of log(1 + mm)")
    landmark_median_mm: float = Field(ge=0, description="weight of log(1 + mm)")
    scarcity: float = Field(ge=0, description="weight of log(1 + 1 / landmarks)")
    no_landmarks: float = Field(ge=0, description="weight of log(2) without landmarks")
    residual_median_mm: float = Field(ge=0, description="weight of log(1 + mm)")
    residual_q95_mm: float = Field(ge=0, description="weight of log(1 + mm)")
    free_q95_mm: float = Field(ge=0, description="weight of log(1 + mm)")
    uncovered: float = Field(ge=0, description="weight of log(1 + share of the face)")
    flipped_faces: float = Field(ge=0, description="weight of log(1 + triangles)")
    prior_energy: float = Field(ge=0, description="weight of log(1 + energy)")


class CleaningParams(Section):
    """What of a scan is junk; every field is explained in models.geometry.settings."""

    speck_area: float = Field(ge=0, lt=1, description="of the largest piece: dropped below it")
    speck_faces: float = Field(ge=0, lt=1, description="the same in triangles")
    scrap_area: float = Field(ge=0, lt=1, description="dropped below it where far off")
    scrap_distance: float = Field(ge=0, description="that far, of the largest piece's diagonal")
    max_dropped: float = Field(ge=0, le=1, description="share of all triangles that may go")
    facing_area: float = Field(ge=0, le=1, description="winding compared above it")
    seam_distance: float = Field(ge=0, description="seam within it, of that diagonal")
    seam_cosine: float = Field(ge=0, le=1, description="seams face apart below minus it")
    cloud_neighbours: int = Field(ge=4, description="points behind a point cloud's normal")


class ViewsParams(Section):
    """How a scan without landmarks is looked at."""

    cell_mm: float = Field(gt=0, description="grain of the coarse copy that is searched, mm")
    search_px_per_mm: float = Field(gt=0, description="resolution of the search")
    search_reach_mm: float = Field(gt=0, description="half the side of a searched picture, mm")
    rolls: int = Field(ge=1, description="turns about each of the 26 axes of view")
    min_score: float = Field(description="weaker detections are not faces")
    sure_score: float = Field(description="a detection that ends the search")
    same_deg: float = Field(gt=0, description="detections from closer by are one face")
    climb_deg: tuple[float, ...] = Field(description="turns by which a detection is made clearer")
    roll_deg: float = Field(ge=0, description="turn that the detector does not notice")
    tries: int = Field(ge=1, description="detections that are followed up, best first")
    px_per_mm: float = Field(gt=0, description="resolution at which landmarks are found")
    size_px: int = Field(ge=64, description="side of such a picture")
    distance_mm: float = Field(gt=0, description="camera to face, mm")
    passes: int = Field(ge=1, description="times the front is drawn again")
    side_yaw_deg: float = Field(gt=0, lt=60, description="of the two views besides the front")
    reach_px: float = Field(ge=0, description="farthest covered pixel that stands for a point")
    jump_px: float = Field(gt=0, description="neighbouring pixels further apart are two surfaces")
    agree_mm: float = Field(gt=0, description="views further apart on a point disagree, mm")
    sure_rms_mm: float = Field(gt=0, description="landmarks this near: no other turn is tried")
    max_rms_mm: float = Field(gt=0, description="landmarks further from the mean head's: doubt")
    max_spread_mm: float = Field(gt=0, description="median distance between views: doubt")
    max_missing: float = Field(ge=0, le=1, description="share of disputed landmarks: doubt")
    min_confidence: float = Field(ge=0, le=1, description="of the provider: below it, doubt")
    landmark_sigma_mm: float = Field(gt=0, description="noise of lifted landmarks, first step, mm")
    icp_steps: int = Field(ge=1, description="Gauss-Newton steps on lifted landmarks and surface")


LandmarkOrder = Literal["ibug68", "ibug51", "now7", "none"]
LandmarkEdition = Literal["mica", "flame-fitting"]


class ScanLandmarksParams(Section):
    """What the landmarks of one data set's scans mean."""

    order: LandmarkOrder = Field(description="numbering of the points; none: it has no points")
    edition: LandmarkEdition = Field(description="whose embedding puts the points on FLAME")


class RegisterParams(Section):
    """Registration of head scans to FLAME."""

    landmarks: dict[str, ScanLandmarksParams] = Field(description="by data set")
    preset: str = Field(description="entry of presets that the stage uses")
    cleaning: CleaningParams
    fit: ScanFitParams
    presets: dict[str, FitPreset]
    limits: QualityParams
    quality: ScoreParams
    without_landmarks: bool = Field(
        description="place scans without landmarks by their shape, not fail them"
    )
    views: ViewsParams
    max_failed_fraction: float = Field(ge=0, le=1, description="more failed scans stop the stage")
    qa_pictures: int = Field(ge=0, description="scans per data set with a picture, at random")
    qa_size_px: int = Field(ge=64, le=2048, description="side of one view in a picture")
    qa_heat_max_mm: float = Field(gt=0, description="residual of the last colour, mm")
    qa_worst: int = Field(ge=0, description="largest residuals on the page of the worst")
    qa_rejected: int = Field(ge=0, description="rejected registrations on it at most")
    qa_cell_px: int = Field(ge=128, le=1024, description="side of one view in its cells")

    @model_validator(mode="after")
    def _preset_exists(self) -> "RegisterParams":
        if self.preset not in self.presets:
            raise ValueError(f"preset {self.preset!r} is not among {sorted(self.presets)}")
        return self


class UnifyParams(Section):
    """One neutral FLAME mesh per subject in MICA's layout."""

    arcface_size_px: int = Field(ge=64, description="side of the recogniser's input")
    images_per_subject: int = Field(ge=1, description="photographs kept per subject")
    min_landmark_score: float = Field(ge=0, le=1, description="detections below it are not used")


class LoopParams(Section):
    """Numbers of one training run; see ``models.train_loop.FitSettings``."""

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


class TrainParams(Section):
    """The methods that are trained."""

    mica: MicaParams
    pix2face: Pix2FaceParams
    ringnet: RingNetParams


class BenchmarkSizes(Section):
    """Most meshes of each benchmark: null for all, 0 for none."""

    now: int | None = Field(ge=0, description="photographs")
    stirling: int | None = Field(ge=0, description="photographs")
    florence: int | None = Field(ge=0, description="videos")
    facewarehouse: int | None = Field(ge=0, description="photographs")
    bu3dfe: int | None = Field(ge=0, description="people")


class Pix2FaceFitParams(Section):
    """What follows pix2face's network."""

    box_scale: float = Field(gt=0, description="side of the crop over the landmarks' square's")
    gate_mm: float = Field(gt=0, description="largest PNCC distance of a vertex to its pixel")
    coefficient_prior: float = Field(
        ge=0, description="ridge per coefficient in sigma units, mm; the paper's is 0.025"
    )
    min_correspondences: int = Field(ge=10)
    most_vertices: int | None = Field(
        ge=10, description="evenly spread ones that count in the solution; null: all"
    )
    camera: Literal["affine", "pinhole"]
    joint: int = Field(
        ge=1, description="photographs of a person solved together; 1: each by itself"
    )
    landmark_photographs: int | None = Field(
        ge=0,
        description="held-out photographs of 300W-LP, and as many of AFLW2000-3D, whose landmarks "
        "are measured; null: all, 0: none",
    )


class ReconstructParams(Section):
    """From photographs to meshes."""

    photographs: BenchmarkSizes
    pix2face: Pix2FaceFitParams
    detector_min_score: float = Field(description="smallest detection score in user photographs")
    detector_max_side_px: int = Field(ge=64, description="user photographs are searched this large")
    max_failed_fraction: float = Field(ge=0, le=1, description="more failures stop the stage")


class PyramidLevel(Section):
    """One level of the tracker's image pyramid."""

    scale: float = Field(gt=0, le=1, description="of the tracked image")
    steps: int = Field(ge=0, description="Adam steps in a frame")
    dense: bool = Field(description="whether colours count")


class TrackPreset(Section):
    """How long and how fast MICA's tracker descends."""

    size_px: int = Field(ge=64, description="frames are tracked at most this large, longer side")
    camera_steps: int = Field(ge=0, description="that fit the camera alone, first frames")
    camera_rate: float = Field(gt=0)
    camera_drop_every: int = Field(ge=1, description="steps after which the rate is a tenth")
    levels: tuple[PyramidLevel, ...] = Field(min_length=1)
    start_factor: int = Field(ge=1, description="first frames take this many times as many steps")
    raster_every: int = Field(ge=1, description="steps between rasterisations")
    final_rate: float = Field(gt=0, le=1, description="rate at a level's end, of its start")
    colour_rates: dict[str, float] = Field(description="unknown to learning rate: first colours")
    keyframe_rates: dict[str, float] = Field(description="first frames")
    frame_rates: dict[str, float] = Field(description="every frame")


class TrackWeights(Section):
    """Terms of the tracker's energy; 0 switches one off."""

    dense: float = Field(ge=0, description="mean L1 colour difference of the visible face")
    points: float = Field(ge=0, description="68 landmarks, squared, fractions of the image")
    oval: float = Field(ge=0, description="contour landmarks besides")
    lids: float = Field(ge=0, description="differences of upper and lower lids")
    lips: float = Field(ge=0, description="differences of upper and lower lips")
    expression: float = Field(ge=0)
    texture: float = Field(ge=0)
    jaw: float = Field(ge=0)
    shape: float = Field(ge=0)
    principal: float = Field(ge=0)
    eyes: float = Field(ge=0)
    eye_symmetry: float = Field(ge=0)
    camera: float = Field(gt=0, description="68 landmarks while only the camera is fitted")


class SmoothParams(Section):
    """Frames over which 2-D landmarks are averaged: MICA's detected ones, pix2face's answers."""

    mica: Literal[1, 3]
    pix2face: Literal[1, 3]


class TrackParams(Section):
    """Faces in videos."""

    smooth: SmoothParams
    longest_gap: int = Field(ge=0, description="frames without a detection that are bridged")
    min_landmark_score: float = Field(ge=0, le=1, description="frames below it are not tracked")
    detector_min_score: float
    detector_max_side_px: int = Field(ge=64, description="frames are searched at most this large")
    max_failed_fraction: float = Field(ge=0, le=1, description="more failed frames fail the video")
    shape_init: Literal["mica", "mean", "free"] = Field(
        description="MICA's shape, the average head's, or fitted to the first frames from there"
    )
    shape_frames: int = Field(ge=1, description="first frames whose MICA embeddings are averaged")
    keyframes: int = Field(ge=1, description="first frames that camera and shape are fitted to")
    dense: bool = Field(description="colours count; false: landmarks alone")
    texture: Path | None = Field(description="FLAME_texture.npz; null: a colour per vertex")
    texture_modes: int = Field(ge=1, le=200, description="of its 200")
    preset: str
    weights: TrackWeights
    presets: dict[str, TrackPreset]

    @model_validator(mode="after")
    def _preset_exists(self) -> "TrackParams":
        if self.preset not in self.presets:
            raise ValueError(
                f"track.preset: expected one of {sorted(self.presets)}, got {self.preset!r}"
            )
        return self


class RenderParams(Section):
    """PNCC and offset maps of 300W-LP."""

    shards: int = Field(ge=1, description="fixed buckets: sha256(subject) mod shards")
    on_the_fly: bool = Field(description="store no maps; training draws them at its crops")
    max_failed_fraction: float = Field(ge=0, le=1, description="more failures stop the stage")
    max_landmark_error: float = Field(
        gt=0,
        description="mean distance of the 51 inner landmarks from the posed model's, as a fraction "
        "of their extent; labels farther off are flagged",
    )
    seconds_per_item: float = Field(gt=0, description="rough cost, decides whether Ray starts")
    previews: int = Field(ge=0, description="photographs shown with their maps")
    preview_px: int = Field(ge=64, le=1024, description="side of one shown picture, px")


class LandmarkModelParams(Section):
    """The 68-point predictor (Kazemi & Sullivan 2014, dlib's implementation)."""

    holdout: float = Field(gt=0, lt=1, description="fraction of subjects kept for measurement")
    max_images: int = Field(ge=10, description="training photographs, spread over the subjects")
    max_measured: int = Field(ge=1, description="held-out photographs that are measured")
    max_yaw_deg: float = Field(gt=0, le=90, description="training faces turned at most this far")
    measured_yaw_deg: float = Field(gt=0, le=90, description="the main error counts up to it")
    copies: int = Field(ge=1, description="per photograph, each mirrored too; the first as taken")
    copy_turn_deg: float = Field(ge=0, description="deviation of the other copies' rotation")
    box_shift: float = Field(ge=0, description="their deviation, fraction of the side")
    box_scale: float = Field(ge=0, description="their log scale deviation")
    cascades: int = Field(ge=1, description="levels of regression")
    trees: int = Field(ge=1, description="trees per level")
    tree_depth: int = Field(ge=1, le=8)
    nu: float = Field(gt=0, le=1, description="shrinkage")
    oversampling: int = Field(ge=1, description="random starting shapes per box")
    feature_pool: int = Field(ge=2, description="pixels sampled per level")
    test_splits: int = Field(ge=1, description="candidate splits per node")


class FaceAlignmentParams(Section):
    """The user's own weight files for face-alignment; nothing is ever downloaded."""

    fan: Path | None = Field(description="2DFAN4-11f355bf06.pth.tar")
    s3fd: Path | None = Field(description="s3fd-619a316812.pth")


class LandmarksParams(Section):
    """68 points per photograph."""

    provider: Literal["dlib", "face-alignment", "files"]
    providers: dict[str, Literal["dlib", "face-alignment", "files"]] = Field(
        description="data sets that use another provider"
    )
    face_alignment: FaceAlignmentParams
    detector_min_score: float = Field(description="weaker detections are not faces")
    detector_max_px: int = Field(ge=80, description="largest side that is searched")
    max_failed_fraction: float = Field(ge=0, le=1, description="more failures stop the stage")
    seconds_per_item: float = Field(gt=0, description="rough cost, decides whether Ray starts")


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: int = Field(ge=0, description="root of every random draw")
    compute: ComputeParams
    servers: ServersParams
    datasets: dict[str, DatasetParams]
    models: dict[str, ModelParams]
    synthesize: SynthesizeParams
    takedown: tuple[str, ...] = Field(description="subjects left out, as DATASET/subject")
    convert: ConvertParams
    pack: PackParams
    evaluate: EvaluateParams
    report: ReportParams
    registration: RegisterParams = Field(alias="register")  # BaseModel owns the plain name
    unify: UnifyParams
    recognizer: RecognizerParams
    train: TrainParams
    reconstruct: ReconstructParams
    track: TrackParams
    render: RenderParams
    landmark_model: LandmarkModelParams
    landmarks: LandmarksParams


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises:
        FileNotFoundError: There is no such file.
        pydantic.ValidationError: A key is unknown, missing or out of range.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; run from the root of the checkout")
    # libyaml's loader reads it in a tenth of the time; PyYAML is built with it nearly everywhere.
    text = path.read_text(encoding="utf-8")
    quick = hasattr(yaml, "CSafeLoader")
    content: dict[str, Any] = (
        yaml.load(text, Loader=yaml.CSafeLoader) if quick else yaml.safe_load(text)
    )
    return Params.model_validate(content)
