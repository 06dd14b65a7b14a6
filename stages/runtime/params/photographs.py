"""From photographs and videos to landmarks, maps, meshes and tracks."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stages.runtime.params.section import Section


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


class Deng2019FitParams(Section):
    """What Deng et al. make of several photographs of a person."""

    aggregate: Literal["element", "scalar", "mean"] = Field(
        description="shapes weighed number by number by C-Net, photograph by photograph, or not"
    )


class ReconstructParams(Section):
    """From photographs to meshes."""

    photographs: BenchmarkSizes
    deng2019: Deng2019FitParams
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
