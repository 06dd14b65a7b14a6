"""Every number of the pipeline, read from ``params.yaml`` and checked.

Only this module reads YAML. Unknown keys are refused, so a typing error cannot silently fall back
to a default; no default lives here, so every number stands in ``params.yaml`` once.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


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
        ge=0, description="below this estimate the work stays in process"
    )
    object_store_mb: int = Field(ge=80, description="Ray object store when no head is attached, MB")


# Sections of single stages, each owned by its stage.


class EvaluateParams(Section):
    """Scores against the NoW scans."""

    protocols: tuple[str, ...] = Field(min_length=1, description="names in models.metrics")
    curve_max_mm: float = Field(gt=0, description="end of the cumulative error curve, mm")
    curve_step_mm: float = Field(gt=0, description="its step, mm")
    max_unscored_fraction: float = Field(ge=0, le=1, description="more missing images stop it")

    @field_validator("protocols")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("now", "now-metric")
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"expected protocols among {', '.join(known)}, got {unknown}")
        return names


class ReportParams(Section):
    """How much the report shows."""

    reconstructions: int = Field(ge=0, description="photographs shown with their reconstructions")
    qa_pictures: int = Field(ge=0, description="registration pictures per data set")
    pncc_pictures: int = Field(ge=0, description="PNCC previews")
    picture_px: int = Field(ge=64, le=512, description="longest side of a picture, px")


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: int = Field(ge=0, description="root of every random draw")
    compute: ComputeParams
    datasets: dict[str, DatasetParams]
    models: dict[str, ModelParams]
    evaluate: EvaluateParams
    report: ReportParams


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises:
        FileNotFoundError: There is no such file.
        pydantic.ValidationError: A key is unknown, missing or out of range.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; run from the root of the checkout")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Params.model_validate(content)
