"""300W-LP and AFLW2000-3D (CBSR, Zhu et al.): photographs with fitted 3DMM coefficients.

MATLAB counts pixels from 1 at their centres, so a stored position p is ``p - 0.5`` here, where the
centre of the first pixel is at (0.5, 0.5). On the published samples this leaves the projected
coefficients without bias.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from stages.datasets.base import Adapter, ImageRow, ItemError, ItemRef, inside, ordered, relative
from stages.datasets.images import image_size
from stages.datasets.matlab import numeric, read_mat
from stages.datasets.problems import Expected

SUBSETS = ("AFW", "HELEN", "IBUG", "LFPW")
MATLAB_TO_PX = -0.5
_VIEW = re.compile(r"^(?P<source>.+)_(?P<view>\d+)$")
_AGREE_PX = 5.0
_MIRROR_68 = np.concatenate(
    [
        np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1],
        [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40],
        np.r_[54:47:-1, 59:54:-1, 64:59:-1, 67:64:-1],
    ]
)
"""iBUG-68 points of the mirror image in the order of the original."""
_WHERE = "www.cbsr.ia.ac.cn, Face Profiling (no form)"


class W300LP(Adapter):
    """300W-LP (training) with AFLW2000-3D (test) where it lies beside or below it."""

    name: ClassVar[str] = "300w_lp"
    title: ClassVar[str] = "300W-LP and AFLW2000-3D"
    prefix: ClassVar[str] = "300W_LP"
    licence: ClassVar[str] = "academic use (CBSR); photographs from AFW, HELEN, IBUG, LFPW, AFLW"
    homepage: ClassVar[str] = "http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            tuple(f"{top}{subset}" for top in ("", "300W_LP/") for subset in SUBSETS),
            "photographs with pose, identity and expression coefficients",
            _WHERE,
        ),
        Expected(
            ("landmarks", "300W_LP/landmarks"), "cross-checks of the landmarks", _WHERE, False
        ),
        Expected(("AFLW2000",), "test photographs with 3D landmarks", _WHERE, required=False),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per JPEG of the subsets, their flips, and AFLW2000."""
        top = root / "300W_LP" if (root / "300W_LP").is_dir() else root
        refs = []
        for subset in SUBSETS:
            for folder in (subset, f"{subset}_Flip"):
                refs += [self._ref(root, top, subset, path) for path in _images(top / folder)]
        refs += [
            ItemRef(
                item_id=f"AFLW2000/{path.stem}",
                subject_id=f"AFLW2000/{path.stem}",
                kind="image",
                path=relative(root, path),
                split="test",
                attributes={"subset": "AFLW2000"},
            )
            for path in _images(root / "AFLW2000")
        ]
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected folders {', '.join(SUBSETS)} of JPEG and .mat pairs in "
                f"{root}, found none; {_WHERE}"
            )
        return ordered(refs)

    def _ref(self, root: Path, top: Path, subset: str, path: Path) -> ItemRef:
        view = _VIEW.match(path.stem)
        source = view["source"] if view else path.stem
        points = top / "landmarks" / subset / f"{path.stem}_pts.mat"
        flipped = path.parent.name.endswith("_Flip")
        facts = {"points": relative(root, points)} if points.is_file() else {}
        return ItemRef(
            item_id=f"{path.parent.name}/{path.stem}",
            subject_id=self.subject(source),
            kind="image",
            path=relative(root, path),
            split="train",
            attributes={
                "subset": subset,
                "view": int(view["view"]) if view else 0,
                "flipped": flipped,
            },
            facts=facts,
        )

    def read(self, root: Path, ref: ItemRef) -> ImageRow:
        """Read a JPEG with the coefficients and landmarks of its ``.mat``."""
        data = inside(root, ref.path).read_bytes()
        height, width = image_size(data)
        path = inside(root, str(Path(ref.path).with_suffix(".mat").as_posix()))
        content = read_mat(path)
        shape = numeric(content, "Shape_Para", path, 199)
        expression = numeric(content, "Exp_Para", path, 29)
        pose = numeric(content, "Pose_Para", path, 7)
        attributes: dict[str, Any] = {}
        if "roi" in content:
            attributes["roi"] = numeric(content, "roi", path, 4).astype(int).tolist()
        if ref.split == "test":
            points = numeric(content, "pt3d_68", path, 204).reshape(3, 68)[:2].T
            attributes["landmarks"] = "pt3d_68"
        else:
            points = numeric(content, "pt2d", path, 136).reshape(2, 68).T
            points, attributes["landmarks"], flags = _cross_checked(
                root, ref, points, height, width
            )
            if flags:
                attributes["label_flags"] = flags
        if pose[6] <= 0:
            raise ItemError(f"{path.name}: Pose_Para has scale {pose[6]:g}, expected above 0")
        return ImageRow(
            image=data,
            height_px=height,
            width_px=width,
            landmarks_px=points + MATLAB_TO_PX,
            landmark_order="ibug68",
            shape_para=shape,
            exp_para=expression,
            pose_para=pose,
            attributes=attributes,
        )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".jpg")


def _cross_checked(
    root: Path, ref: ItemRef, points: Float[np.ndarray, "68 2"], height: int, width: int
) -> tuple[Float[np.ndarray, "68 2"], str, list[str]]:
    """The landmarks to trust, the variable they come from, and what is wrong with others.

    Some copies of the data set hold the same ``pt2d`` for every view of a photograph, or one with
    y upward. The separate landmark file has the visible points and the projection of the 3D ones;
    where ``pt2d`` is far from the projection, the file's visible points are taken, or the
    projection itself. Flipped photographs have no file of their own: they are held against the
    mirror image of the original's.
    """
    if "points" not in ref.facts:
        return points, "pt2d", []
    path = inside(root, str(ref.facts["points"]))
    content = read_mat(path)
    solid = numeric(content, "pts_3d", path, 136).reshape(68, 2)
    visible = numeric(content, "pts_2d", path, 136).reshape(68, 2)
    if ref.attributes["flipped"]:
        solid, visible = _mirrored(solid, width), _mirrored(visible, width)
    if _distance(points, solid) <= _AGREE_PX:
        return points, "pt2d", []
    turned = np.stack([points[:, 0], height + 1 - points[:, 1]], axis=1)
    upside_down = _distance(turned, solid) <= _AGREE_PX
    flags = ["pt2d upside down" if upside_down else "pt2d far from the projection"]
    if _distance(visible, solid) <= _AGREE_PX:
        return visible, "pts_2d", flags
    return solid, "pts_3d", [*flags, "pts_2d far from the projection"]


def _mirrored(points: Float[np.ndarray, "68 2"], width: int) -> Float[np.ndarray, "68 2"]:
    """1-based points of the flipped photograph, in iBUG order again."""
    flipped = points[_MIRROR_68]
    return np.stack([width + 1 - flipped[:, 0], flipped[:, 1]], axis=1)


def _distance(a: Float[np.ndarray, "68 2"], b: Float[np.ndarray, "68 2"]) -> float:
    """Mean distance of the 51 inner points, which do not depend on the contour's definition."""
    return float(np.linalg.norm(a[17:] - b[17:], axis=1).mean())
