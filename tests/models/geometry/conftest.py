"""The toy head, and scans made from it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from models.geometry.settings import FitSettings, QualityLimits
from models.geometry.template import RegistrationModel


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    path = Path(__file__).with_name("toy_head.py")
    spec = importlib.util.spec_from_file_location("toy_head", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_model(toy: ModuleType) -> RegistrationModel:
    arrays = toy.toy_head()
    return RegistrationModel.build(arrays, *toy.toy_landmarks(arrays))


@pytest.fixture(scope="session")
def settings() -> FitSettings:
    return FitSettings(
        crop_mm=160.0,
        surface_vertices=40000,
        sample_vertices=900,
        landmark_steps=2,
        icp_steps=4,
        data_weight_per_mm2=0.3,
        robust_start_mm=6.0,
        robust_end_mm=2.0,
        landmark_sigma_start_mm=1.5,
        landmark_sigma_end_mm=16.0,
        gate_factor=3.0,
        gate_angle_deg=60.0,
        pose_sigma_rad=0.2,
        smoothing_mm=(4.0, 1.5),
        template_to_scan=(True, False),
        steps_per_level=(2, 2),
        scan_samples=6000,
        template_share=0.3,
        tangential=0.02,
        pull=1e-3,
        scalp_weight=0.1,
        lip_gap_mm=1.5,
        lip_weight=1.0,
        mouth_support=0.9,
        solver_tolerance=1e-4,
    )


@pytest.fixture(scope="session")
def limits() -> QualityLimits:
    return QualityLimits(
        max_median_mm=0.5,
        max_q95_mm=3.0,
        max_landmark_rms_mm=8.0,
        max_landmark_drift_mm=6.0,
        min_coverage=0.5,
        min_lower_face=0.5,
        max_prior_energy=200.0,
        max_flipped_faces=20,
        min_score=0.0,
    )
