"""How far a reconstructed face is from a scan: alignment, distances, protocols, statistics."""

from models.metrics.measurement import (
    SCALE_RANGE,
    Measurement,
    Target,
    align_and_measure,
    scan_to_mesh,
)
from models.metrics.protocols import (
    LANDMARK_NAMES,
    OPTIONS,
    PROTOCOLS,
    UNITS_MM,
    Protocol,
    protocol_named,
    with_options,
)
from models.metrics.region import crop_scan, crop_sphere
from models.metrics.statistics import (
    Statistics,
    cumulative_curve,
    image_error,
    pooled_statistics,
)

__all__ = [
    "LANDMARK_NAMES",
    "OPTIONS",
    "PROTOCOLS",
    "SCALE_RANGE",
    "UNITS_MM",
    "Measurement",
    "Protocol",
    "Statistics",
    "Target",
    "align_and_measure",
    "crop_scan",
    "crop_sphere",
    "cumulative_curve",
    "image_error",
    "pooled_statistics",
    "protocol_named",
    "scan_to_mesh",
    "with_options",
]
