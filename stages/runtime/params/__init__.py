"""Every number of the pipeline, read from ``params.yaml`` and ``params/`` beside it, and checked.

Only this package reads YAML. Unknown keys are refused, so a typing error cannot silently fall back
to a default; no default lives here, so every number stands in one file: the section ``render`` in
``params/render.yaml``, what several stages share in ``params.yaml``.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stages.runtime.params.corpus import MorphableSizes, SynthesizeParams
from stages.runtime.params.machine import ComputeParams, DatasetParams, ModelParams, ServersParams
from stages.runtime.params.photographs import (
    BenchmarkSizes,
    Deng2019FitParams,
    FaceAlignmentParams,
    LandmarkModelParams,
    LandmarksParams,
    Pix2FaceFitParams,
    ReconstructParams,
    RenderParams,
    SmoothParams,
    TrackParams,
    TrackPreset,
)
from stages.runtime.params.scans import (
    FitPreset,
    QualityParams,
    RegisterParams,
    ScanFitParams,
    ScanLandmarksParams,
    ViewsParams,
)
from stages.runtime.params.section import Section
from stages.runtime.params.training import (
    AugmentParams,
    Deng2019Params,
    EncoderParams,
    LandmarkChoiceParams,
    LoopParams,
    MicaParams,
    Pix2FaceParams,
    RecognizerParams,
    RecognizerVariant,
    RingNetParams,
    SirenParams,
    TrainParams,
)

__all__ = [
    "AugmentParams",
    "BenchmarkSizes",
    "ComputeParams",
    "ConvertParams",
    "Deng2019FitParams",
    "Deng2019Params",
    "EncoderParams",
    "EvaluateParams",
    "FaceAlignmentParams",
    "FitPreset",
    "LandmarkChoiceParams",
    "LandmarkModelParams",
    "LandmarksParams",
    "LoopParams",
    "MicaParams",
    "MorphableSizes",
    "PackParams",
    "Params",
    "Pix2FaceFitParams",
    "Pix2FaceParams",
    "QualityParams",
    "RecognizerVariant",
    "ReconstructParams",
    "RegisterParams",
    "RenderParams",
    "ReportParams",
    "RingNetParams",
    "ScanFitParams",
    "ScanLandmarksParams",
    "ServersParams",
    "SirenParams",
    "SmoothParams",
    "SynthesizeParams",
    "TrackParams",
    "TrackPreset",
    "UnifyParams",
    "ViewsParams",
    "document",
    "load",
    "located",
    "section_files",
]


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


class UnifyParams(Section):
    """One neutral FLAME mesh per subject in MICA's layout."""

    arcface_size_px: int = Field(ge=64, description="side of the recogniser's input")
    images_per_subject: int = Field(ge=1, description="photographs kept per subject")
    min_landmark_score: float = Field(ge=0, le=1, description="detections below it are not used")


class Params(Section):
    """The whole of ``params.yaml`` and ``params/``."""

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
        ValueError: A section's own file repeats what ``path`` says of it.
    """
    return Params.model_validate(document(path))


def document(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Read the parameters unchecked, with the sections' own files put in their places.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A section's own file repeats what ``path`` says of it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; run from the root of the checkout")
    content = _read(path)
    for section, name in section_files(path).items():
        here, rest = content.setdefault(section, {}), _read(path.parent / name)
        if twice := sorted(here.keys() & rest.keys()):
            raise ValueError(f"expected {twice} of {section} in {path} or in {name}, got both")
        here |= rest
    return content


def section_files(path: Path = Path("params.yaml")) -> dict[str, str]:
    """The sections' own files, by section, relative to the folder of ``path``."""
    return {
        file.stem: f"{file.parent.name}/{file.name}"
        for file in sorted((path.parent / "params").glob("*.yaml"))
    }


def located(name: str, path: Path = Path("params.yaml")) -> tuple[str, str]:
    """Where a parameter stands: its file, relative to the folder of ``path``, and its name there.

    Args:
        name: Dotted, as in :func:`document`, e.g. ``train.mica.n_shape``.
        path: The parameters.
    """
    section, _, rest = name.partition(".")
    file = section_files(path).get(section)
    if file is None or not rest or rest.split(".")[0] in _read(path).get(section, {}):
        return path.name, name
    return file, rest


def _read(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; libyaml, where PyYAML has it, reads it in a tenth of the time."""
    import yaml

    text = path.read_text(encoding="utf-8")
    quick = hasattr(yaml, "CSafeLoader")
    content: dict[str, Any] | None = (
        yaml.load(text, Loader=yaml.CSafeLoader) if quick else yaml.safe_load(text)
    )
    return content or {}
