"""Registration of head scans."""

from typing import Literal

from pydantic import Field, model_validator

from stages.runtime.params.section import Section


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
