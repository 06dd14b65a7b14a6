"""One 300W-LP or AFLW2000-3D sample to PNCC, offset and overlay pictures."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from models.face.morphable import LinearModel
from models.rendering.pncc import PnccMaps, PnccRenderer, Sample, project_300w_lp
from models.rendering.pncc_codec import STEP_MM, origin_of
from stages.datasets.matlab import numeric, read_mat
from stages.runtime.artifacts import read_json, write_bytes, write_json

logger = logging.getLogger(__name__)

MICROMETRE = 1e-6
OFFSET_SHOWN_MM = 25.0
OVERLAY_SHARE = 0.65
PIECES = ("bfm_u_shp.npy", "bfm_u_exp.npy", "bfm_tri.mat", "bfm_keypoints_sim.npy")
SPARSE = "bfm_68_landmarks.npz"


@dataclass(frozen=True, slots=True)
class SparseBases:
    """Leading directions at the 68 landmarks alone.

    Attributes:
        mean: Landmarks of the mean face.
        shapes: Displacements per identity coefficient, rows x0 y0 z0 x1 ...
        expressions: Displacements per expression coefficient.
    """

    mean: Float[np.ndarray, "68 3"]
    shapes: Float[np.ndarray, "204 k"]
    expressions: Float[np.ndarray, "204 e"]

    def points(
        self, alpha: Float[np.ndarray, " n"], beta: Float[np.ndarray, " m"]
    ) -> Float[np.ndarray, "68 3"]:
        """Landmarks of a face from the directions at hand."""
        k, e = self.shapes.shape[1], self.expressions.shape[1]
        moved = self.shapes @ alpha[:k] + self.expressions @ beta[:e]
        return self.mean + moved.reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class SampleModel:
    """A 3DMM for drawing samples.

    Attributes:
        model: The linear model; without directions when only the mean is at hand.
        unit_m: Metres per unit.
        note: What the pictures leave out, empty if nothing.
        sparse: Landmark directions that stand in for missing dense ones.
    """

    model: LinearModel
    unit_m: float
    note: str = ""
    sparse: SparseBases | None = None

    def landmarks(
        self, alpha: Float[np.ndarray, " n"], beta: Float[np.ndarray, " m"]
    ) -> Float[np.ndarray, "68 3"]:
        """The 68 landmarks in model units, from every direction at hand."""
        if self.sparse is not None:
            return self.sparse.points(alpha, beta)
        if self.model.shape_basis.shape[2] == 0:
            return self.model.mean[self.model.keypoints].astype(np.float64)
        return self.model.shape(alpha, beta)[self.model.keypoints]


def _from_pieces(folder: Path) -> SampleModel:
    """The published mean, triangles and keypoints without dense bases."""
    from stages.datasets.matlab import MatError

    missing = [name for name in PIECES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"expected {', '.join(missing)} beside {PIECES[0]} in {folder}")
    shape, expression = (
        np.load(folder / name, allow_pickle=False).reshape(-1, 3) for name in PIECES[:2]
    )
    content = read_mat(folder / PIECES[2], ["tri"])
    if "tri" not in content or content["tri"].shape[0] != 3:
        raise MatError(f"{folder / PIECES[2]}: expected tri of shape (3, F), 1-based")
    triangles = content["tri"].T.astype(np.int64) - 1
    keypoints = np.load(folder / PIECES[3], allow_pickle=False).reshape(68, 3)[:, 0] // 3
    count = len(shape)
    model = LinearModel(
        mean_shape=shape.astype(np.float32),
        shape_basis=np.zeros((count, 3, 0), np.float32),
        shape_sigma=np.zeros(0, np.float32),
        mean_expression=expression.astype(np.float32),
        expression_basis=np.zeros((count, 3, 0), np.float32),
        expression_sigma=np.zeros(0, np.float32),
        faces=np.ascontiguousarray(triangles[:, ::-1]),  # stored clockwise
        keypoints=keypoints.astype(np.int64),
    )
    note = "the folder has no dense bases: the mean face is drawn under the sample's pose"
    if not (folder / SPARSE).is_file():
        return SampleModel(model, MICROMETRE, note)
    with np.load(folder / SPARSE, allow_pickle=False) as stored:
        sparse = SparseBases(
            stored["u_base"].astype(np.float64).reshape(68, 3),
            stored["w_shp_base"].astype(np.float64),
            stored["w_exp_base"].astype(np.float64),
        )
    note += (
        f"; landmarks use the {sparse.shapes.shape[1]} + {sparse.expressions.shape[1]} "
        "directions at hand"
    )
    return SampleModel(model, MICROMETRE, note, sparse)


def load_sample_model(folder: Path) -> SampleModel:
    """Read a 3DMM: converted, as 3DDFA's owner gives it, or its published pieces.

    Raises:
        FileNotFoundError: The folder holds none of these; says what each would look like.
    """
    if (folder / "model.safetensors").is_file():
        return SampleModel(
            LinearModel.load(folder), float(read_json(folder / "meta.json")["unit_m"])
        )
    if (folder / "Model_Shape.mat").is_file():
        from stages.datasets.morphable_files import read_3ddfa

        arrays, _ = read_3ddfa(folder)
        return SampleModel(LinearModel(**arrays), MICROMETRE)
    if (folder / PIECES[0]).is_file():
        return _from_pieces(folder)
    raise FileNotFoundError(
        f"expected a 3DMM in {folder}: model.safetensors and meta.json (stage convert), "
        f"Model_Shape.mat and Model_Expression.mat (3DDFA, as its owner gives it), or "
        f"{', '.join(PIECES)}"
    )


def read_sample(path: Path, height: int, width: int) -> tuple[Sample, Float[np.ndarray, "68 2"]]:
    """Coefficients, pose and published landmarks of one ``.mat``.

    Args:
        path: The sample's ``.mat``.
        height: Rows of its photograph.
        width: Columns.

    Returns:
        The sample and its 68 landmarks in our pixels; NaN when the file has none.

    Raises:
        MatError: The file is damaged or lacks Shape_Para, Exp_Para or Pose_Para.
    """
    from stages.datasets.matlab import MatError

    content = read_mat(path)
    for name in ("Pose_Para", "Shape_Para", "Exp_Para"):
        if name not in content:
            raise MatError(
                f"{path} has no {name}; expected a 300W-LP or AFLW2000-3D sample, "
                f"got {sorted(content)}"
            )
    sample = Sample(
        shape=numeric(content, "Shape_Para", path, content["Shape_Para"].size),
        expression=numeric(content, "Exp_Para", path, content["Exp_Para"].size),
        pose=numeric(content, "Pose_Para", path, 7),
        height=height,
        width=width,
    )
    if not sample.pose[6] > 0:
        raise MatError(f"{path}: the scale in Pose_Para is {sample.pose[6]}, expected > 0")
    points = np.full((68, 2), np.nan)
    if "pt3d_68" in content and content["pt3d_68"].shape == (3, 68):
        points = content["pt3d_68"][:2].T.astype(np.float64) - 0.5
    elif "pt2d" in content and content["pt2d"].shape == (2, 68):
        points[17:] = content["pt2d"].T[17:].astype(np.float64) - 0.5
    return sample, points


def offset_picture(maps: PnccMaps) -> UInt8[np.ndarray, "h w 3"]:
    """Offsets as colours: mid-grey is none, +-25 mm the ends, black is background."""
    shown = np.clip(0.5 + 0.5 * maps.offset_mm / OFFSET_SHOWN_MM, 0.0, 1.0)
    picture: np.ndarray = np.rint(255.0 * shown * maps.mask[..., None]).astype(np.uint8)
    return picture


def overlay_picture(
    image: UInt8[np.ndarray, "h w 3"],
    colours: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    landmarks_px: Float[np.ndarray, "n 2"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """PNCC colours over the photograph, landmarks as white dots."""
    import cv2

    blended = (1.0 - OVERLAY_SHARE) * image + OVERLAY_SHARE * 255.0 * colours
    picture: np.ndarray = np.where(mask[..., None], np.rint(blended), image).astype(np.uint8)
    for x, y in landmarks_px if landmarks_px is not None else ():
        centre = round(16 * (float(x) - 0.5)), round(16 * (float(y) - 0.5))
        cv2.circle(picture, centre, 24, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return picture


def png_bytes(picture: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]) -> bytes:
    """An RGB picture as PNG, 8 or 16 bits."""
    import cv2

    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise ValueError(f"expected a picture that PNG can hold, got {picture.shape}")
    return data.tobytes()


def deep_picture(
    lengths_mm: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], origin_mm: np.ndarray
) -> UInt16[np.ndarray, "h w 3"]:
    """Lengths as 16-bit colours: 1 + 256 (mm - origin), zero is background.

    Raises:
        ValueError: A seen length has no such colour.
    """
    codes = 1.0 + np.rint((lengths_mm.astype(np.float64) - origin_mm) / STEP_MM)
    codes = np.where(mask[..., None], codes, 0)
    if not (np.isfinite(codes).all() and codes.min() >= 0 and codes.max() <= 0xFFFF):
        raise ValueError(
            f"16-bit colours hold lengths within {0xFFFE * STEP_MM:.0f} mm above {origin_mm}, got "
            f"{lengths_mm[mask].min():.1f}..{lengths_mm[mask].max():.1f} mm"
        )
    picture: np.ndarray = codes.astype(np.uint16)
    return picture


def read_photo(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a photograph as RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, or truncated.
    """
    import cv2

    if not path.is_file():
        raise FileNotFoundError(f"expected the photograph {path} beside its .mat")
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError(f"expected an image that decodes, got {path}; fetch it again")
    return np.asarray(pixels, dtype=np.uint8)


def _photo_of(sample: Path) -> Path:
    for suffix in (".jpg", ".png", ".jpeg", ".JPG"):
        if sample.with_suffix(suffix).is_file():
            return sample.with_suffix(suffix)
    return sample.with_suffix(".jpg")


def render_sample_files(sample_mat: Path, model_dir: Path, out: Path) -> dict[str, Any]:
    """Draw one sample: ``pncc.png``, ``offset.png``, ``overlay.png``, their 16-bit forms, a report.

    Args:
        sample_mat: The sample's ``.mat``, its photograph beside it.
        model_dir: 3DMM folder; see :func:`load_sample_model`.
        out: Folder to write to.

    Returns:
        What ``report.json`` holds: pixels covered, landmark error where the sample
        publishes landmarks, and what the model lacks.

    Raises:
        FileNotFoundError: The sample, its photograph or the model is missing.
        ValueError: One of them is damaged, or they do not fit together.
    """
    loaded = load_sample_model(model_dir)
    photo = _photo_of(sample_mat)
    if not sample_mat.is_file():
        raise FileNotFoundError(f"expected a 300W-LP sample (.mat), there is no {sample_mat}")
    image = read_photo(photo)
    sample, published = read_sample(sample_mat, *image.shape[:2])
    renderer = PnccRenderer(loaded.model, loaded.unit_m)
    maps = renderer.render([sample])[0]
    colours, mask = renderer.colours(sample)
    if not mask.any():
        raise ValueError(f"{sample_mat}: the posed face lies outside its photograph")
    landmarks = project_300w_lp(
        loaded.landmarks(sample.shape, sample.expression), sample.pose, sample.height
    )
    origin = np.array(origin_of(renderer.mean_mm))
    pictures = {
        "pncc.png": np.rint(255.0 * colours).astype(np.uint8),
        "offset.png": offset_picture(maps),
        "overlay.png": overlay_picture(image, colours, mask, landmarks),
        "pncc_16.png": deep_picture(maps.pncc_mm, mask, origin[:3]),
        "offset_16.png": deep_picture(maps.offset_mm, mask, origin[3:]),
    }
    for name, picture in pictures.items():
        write_bytes(out / name, png_bytes(picture))
    errors = np.linalg.norm(landmarks - published, axis=1)
    known = np.isfinite(errors)
    report: dict[str, Any] = {
        "sample": sample_mat.name,
        "covered_px": int(mask.sum()),
        "covered_fraction": round(float(mask.mean()), 4),
        "largest_offset_mm": round(float(np.linalg.norm(maps.offset_mm, axis=2).max()), 3),
        "landmarks_compared": int(known.sum()),
        "note": loaded.note,
        "origin_16_mm": [round(float(length), 3) for length in origin],
        "step_16_mm": STEP_MM,
    }
    if known.any():
        bias = (landmarks - published)[known].mean(axis=0)
        report["landmark_error_px"] = round(float(errors[known].mean()), 3)
        report["landmark_bias_px"] = [round(float(part), 3) for part in bias]
    write_json(report, out / "report.json")
    return {**report, "out": str(out)}
