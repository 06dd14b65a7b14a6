"""The face models that can be plugged in: which files, what for, where their owners give them."""

from dataclasses import dataclass
from pathlib import Path

from stages.datasets.flame_files import (
    DYNAMIC_NAME,
    EMBEDDING_NAME,
    MASK_NAME,
    MODEL_NAMES,
    STATIC_NAME,
)
from stages.datasets.morphable_files import (
    BFM2009_EXPRESSION,
    BFM2009_EXPRESSION_SIGMA,
    BFM2009_FACE_INFO,
    BFM2009_FRONT,
    BFM2009_MODEL,
    BFM2009_TRIM,
    BFM2009_UNIT_M,
    BFM2017_MODELS,
    BFM2017_UNIT_M,
    EXPRESSION_3DDFA,
    INFO_3DDFA,
    SHAPE_3DDFA,
    THREE_DDFA_UNIT_M,
)
from stages.datasets.problems import Expected, Problem, is_synthetic, missing

__all__ = ["MODEL_SOURCES", "ModelSource", "is_synthetic"]

_FLAME = "flame.is.tue.mpg.de (sign-up)"
_BASEL = "faces.dmi.unibas.ch (signed form)"
_COARSE = "the CoarseData release of Guo et al., as Deep3DFaceReconstruction's readme says"
_CBSR = "cbsr.ia.ac.cn, Face Profiling (Zhu et al.), Code/ModelGeneration and 3DDFA"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One face model.

    Attributes:
        title: What people call it.
        unit: Name of the length unit of its files.
        unit_m: That unit in metres.
        licence: Kind of licence.
        homepage: Where its owner gives it.
        files: What its folder holds.
    """

    title: str
    unit: str
    unit_m: float
    licence: str
    homepage: str
    files: tuple[Expected, ...]

    def validate(self, root: Path) -> list[Problem]:
        """Files that ``root`` lacks; empty when the model can be converted in full."""
        return missing(root, self.files)


MODEL_SOURCES = {
    "flame": ModelSource(
        title="FLAME",
        unit="m",
        unit_m=1.0,
        licence="non-commercial research (MPI); the 2023 open edition CC-BY-4.0",
        homepage="https://flame.is.tue.mpg.de",
        files=(
            Expected(MODEL_NAMES, "the head model itself", _FLAME),
            Expected((MASK_NAME,), "vertex regions for registration and reports", _FLAME),
            Expected(
                (EMBEDDING_NAME, STATIC_NAME),
                "the 68 landmarks on the head's surface",
                "the DECA, MICA or RingNet repositories",
            ),
            Expected(
                (EMBEDDING_NAME, DYNAMIC_NAME),
                "the jaw contour of a turned head; traced on the template where missing",
                "the DECA, MICA or RingNet repositories",
                required=False,
            ),
        ),
    ),
    "bfm2009": ModelSource(
        title="Basel Face Model 2009",
        unit="um",
        unit_m=BFM2009_UNIT_M,
        licence="non-commercial, signed form (University of Basel)",
        homepage="https://faces.dmi.unibas.ch/bfm/",
        files=(
            Expected((BFM2009_MODEL,), "identity and texture", _BASEL),
            Expected((BFM2009_EXPRESSION,), "expressions", _COARSE, required=False),
            Expected((BFM2009_EXPRESSION_SIGMA,), "expressions' spread", _COARSE, required=False),
            Expected((BFM2009_TRIM,), "the expressions' vertex set", _COARSE, required=False),
            Expected((BFM2009_FRONT,), "the frontal vertex set", _COARSE, required=False),
            Expected((BFM2009_FACE_INFO,), "the 68 keypoints", _COARSE, required=False),
        ),
    ),
    "bfm2017": ModelSource(
        title="Basel Face Model 2017",
        unit="mm",
        unit_m=BFM2017_UNIT_M,
        licence="non-commercial, signed form (University of Basel)",
        homepage="https://faces.dmi.unibas.ch/bfm/bfm2017.html",
        files=(Expected(BFM2017_MODELS, "the model itself", _BASEL),),
    ),
    "3ddfa": ModelSource(
        title="3DDFA basis",
        unit="um",
        unit_m=THREE_DDFA_UNIT_M,
        licence="academic use (CBSR; contains Basel Face Model 2009)",
        homepage="http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm",
        files=(
            Expected((SHAPE_3DDFA,), "identity behind 300W-LP's coefficients", _CBSR),
            Expected((EXPRESSION_3DDFA,), "expression behind 300W-LP's coefficients", _CBSR),
            Expected((INFO_3DDFA,), "triangles and keypoints", _CBSR, required=False),
        ),
    ),
}
