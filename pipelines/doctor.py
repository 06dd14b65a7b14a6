"""What is installed, which licensed inputs are attached, and what to do about what is not."""

import ctypes.util
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "torch",
    "numpy",
    "open3d",
    "pymeshlab",
    "face_alignment",
    "ray",
    "pyarrow",
    "dvc",
    "prefect",
    "dlib-bin",
    "opencv-python",
    "numba",
    "scipy",
)
SYSTEM_LIBRARIES = {"usb-1.0": "libusb-1.0-0", "GL": "libgl1", "gomp": "libgomp1"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        group: ``package``, ``system``, ``data set`` or ``model``.
        name: What was looked at.
        good: Whether it is usable.
        detail: Version or folder when good; otherwise what to do.
    """

    group: str
    name: str
    good: bool
    detail: str


def examine(params_path: Path = Path("params.yaml")) -> list[Finding]:
    """Look at packages, system libraries, raw data sets and raw models.

    Relative roots count from the folder of ``params_path``.
    """
    return [*_packages(), *_system(), *_inputs(params_path)]


def _packages() -> list[Finding]:
    findings = [Finding("package", "python", True, sys.version.split()[0])]
    for name in PACKAGES:
        try:
            findings.append(Finding("package", name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            todo = "not installed; run: pip install -r requirements.lock"
            findings.append(Finding("package", name, False, todo))
    return findings


def _system() -> list[Finding]:
    findings = []
    for library, package in SYSTEM_LIBRARIES.items():
        found = ctypes.util.find_library(library)
        detail = found or f"missing; as root: apt-get install -y {package}"
        findings.append(Finding("system", package, found is not None, detail))
    return findings


def _inputs(params_path: Path) -> list[Finding]:
    from stages.datasets.models import MODEL_SOURCES
    from stages.datasets.registry import DATASETS
    from stages.runtime.params import load

    params = load(params_path)
    findings = []
    roots = {
        **{name: ("data set", entry.root) for name, entry in params.datasets.items()},
        **{name: ("model", entry.root) for name, entry in params.models.items()},
    }
    validate = {name: source.validate for name, source in DATASETS.items()}
    validate.update({name: source.validate for name, source in MODEL_SOURCES.items()})
    for name, (group, folder) in roots.items():
        root = params_path.parent / folder
        if name not in validate:
            todo = f"unknown name in params.yaml; expected one of {', '.join(sorted(validate))}"
            findings.append(Finding(group, name, False, todo))
            continue
        problems = validate[name](root)
        label = " (synthetic)" if (root / "SYNTHETIC.txt").is_file() else ""
        if problems:
            findings += [Finding(group, name, False, str(problem)) for problem in problems]
        else:
            findings.append(Finding(group, name, True, f"{root}{label}"))
    return findings
