"""The numbers of one registration, in the units that their names end with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FitSettings:
    """How a scan is registered.

    Attributes:
        crop_mm: Radius around the middle of the landmarks within which the scan is used.
        surface_vertices: Most scan vertices that are searched and measured; a scan with more is
            thinned evenly.
        sample_vertices: Template vertices that carry data in the parametric stage.
        landmark_steps: Gauss-Newton steps on landmarks alone.
        icp_steps: Gauss-Newton steps on landmarks and surface.
        data_weight_per_mm2: Weight of one squared surface residual against the unit prior.
        robust_start_mm: Scale of the robust loss at the first surface step.
        robust_end_mm: The same at the last step, and in the non-rigid stage.
        landmark_sigma_start_mm: Standard deviation of a landmark at the first surface step.
        landmark_sigma_end_mm: The same at the last step.
        gate_factor: Correspondences longer than this many robust scales are dropped.
        gate_angle_deg: Correspondences whose normals differ by more are dropped.
        pose_sigma_rad: Standard deviation of each component of the neck and jaw rotations.
        smoothing_mm: Smoothing length of each non-rigid level; the weight of the bi-Laplacian
            energy is its fourth power.
        template_to_scan: Per level, whether template vertices pull toward the scan (ICP-like
            start) or scan samples pull the template (which halves the residual).
        steps_per_level: Correspondence updates per level.
        scan_samples: Scan vertices that carry data in the non-rigid stage.
        template_share: Weight of the template's pull toward the scan in the levels in which the
            scan pulls the template, relative to it; it reaches what no sample is closest to.
        tangential: Weight of the tangential part of a residual relative to the normal part.
        pull: Weight of the distance to the parametric fit relative to the data.
        scalp_weight: Data weight of the scalp on heads with hair (1 where the head is capped).
        lip_gap_mm: A mouth whose lips are further apart in the parametric fit (median) is open;
            in a closed one, the robust scale of each pair's distance.
        lip_weight: Weight of facing lips staying together, relative to the data.
        mouth_support: Where less of the lower face is supported, other openings of the mouth are
            tried, without its landmarks.
        solver_tolerance: Relative residual at which the conjugate gradients stop.
    """

    crop_mm: float
    surface_vertices: int
    sample_vertices: int
    landmark_steps: int
    icp_steps: int
    data_weight_per_mm2: float
    robust_start_mm: float
    robust_end_mm: float
    landmark_sigma_start_mm: float
    landmark_sigma_end_mm: float
    gate_factor: float
    gate_angle_deg: float
    pose_sigma_rad: float
    smoothing_mm: tuple[float, ...]
    template_to_scan: tuple[bool, ...]
    steps_per_level: tuple[int, ...]
    scan_samples: int
    template_share: float
    tangential: float
    pull: float
    scalp_weight: float
    lip_gap_mm: float
    lip_weight: float
    mouth_support: float
    solver_tolerance: float

    def __post_init__(self) -> None:
        """Check that the three per-level tuples agree.

        Raises:
            ValueError: They differ in length.
        """
        lengths = {
            len(self.smoothing_mm),
            len(self.template_to_scan),
            len(self.steps_per_level),
        }
        if len(lengths) != 1:
            raise ValueError(
                "smoothing_mm, template_to_scan and steps_per_level need one entry per level, got "
                f"{len(self.smoothing_mm)}, {len(self.template_to_scan)} and "
                f"{len(self.steps_per_level)}"
            )


@dataclass(frozen=True)
class QualityLimits:
    """Beyond which a registration is rejected.

    Attributes:
        max_median_mm: Median scan-to-mesh distance over the face.
        max_q95_mm: Its 95th percentile.
        max_landmark_rms_mm: Root mean square landmark distance.
        max_landmark_drift_mm: Rigid part of the landmark distances, RMS: the face slid, or the
            landmarks are elsewhere.
        min_coverage: Share of the face's area that must lie on the scan.
        min_lower_face: Share of the lower face that the parametric fit must have on the scan.
        max_prior_energy: Sum of squared coefficients.
        max_flipped_faces: Triangles turned over by the refinement.
        min_score: Estimated probability of being right, where a score is given.
    """

    max_median_mm: float
    max_q95_mm: float
    max_landmark_rms_mm: float
    max_landmark_drift_mm: float
    min_coverage: float
    min_lower_face: float
    max_prior_energy: float
    max_flipped_faces: int
    min_score: float


@dataclass(frozen=True)
class CleaningSettings:
    """What of a scan is junk; shares of the largest piece's area, triangles and diagonal.

    Attributes:
        speck_area: A piece with less area is dropped wherever it is.
        speck_faces: So is a piece with fewer triangles.
        scrap_area: A piece with less area is dropped where it is far from the largest one.
        scrap_distance: How far that is.
        max_dropped: Where more of all triangles would go, nothing goes: a shattered scan is no
            junk.
        facing_area: A piece with more area is turned over where its seam faces the other way.
        seam_distance: How near to the largest piece a vertex belongs to the seam.
        seam_cosine: Mean cosine between the normals of both sides below minus which it does.
        cloud_neighbours: Points from which a point cloud's normals are estimated.
    """

    speck_area: float
    speck_faces: float
    scrap_area: float
    scrap_distance: float
    max_dropped: float
    facing_area: float
    seam_distance: float
    seam_cosine: float
    cloud_neighbours: int
