"""Linear face models as their owners give them: Basel 2009 and 2017, and 3DDFA's basis.

Each reader returns the same dictionary of arrays (the keys of a converted ``model.safetensors``) in
the model's own unit: shapes (V, 3), bases (V, 3, K), standard deviations (K,), faces 0-based and
counter-clockwise seen from outside, ``keypoints`` (68,) in the iBUG order, or empty where the owner
does not give all 68 (then ``named_landmarks`` (68,) holds those he names, -1 elsewhere).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stages.datasets.flame_files import outward
from stages.datasets.matlab import MatError, numeric, read_mat

logger = logging.getLogger(__name__)

BFM2009_UNIT_M = 1e-6
BFM2017_UNIT_M = 1e-3
THREE_DDFA_UNIT_M = 1e-6
BFM2009_MODEL = "01_MorphableModel.mat"
BFM2009_EXPRESSION = "Exp_Pca.bin"
BFM2009_EXPRESSION_SIGMA = "std_exp.txt"
BFM2009_TRIM = "BFM_exp_idx.mat"
BFM2009_FRONT = "BFM_front_idx.mat"
BFM2009_FACE_INFO = "facemodel_info.mat"
BFM2017_MODELS = ("model2017-1_bfm_nomouth.h5", "model2017-1_face12_nomouth.h5")
SHAPE_3DDFA, EXPRESSION_3DDFA, INFO_3DDFA = (
    "Model_Shape.mat",
    "Model_Expression.mat",
    "model_info.mat",
)
_HEIGHT_M = (0.1, 0.6)
_LANDMARK_NAMES_2017 = {
    "center.chin.tip": 8,
    "center.nose.tip": 30,
    "center.nose.attachement_to_philtrum": 33,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "center.lips.upper.outer": 51,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
}


class MorphableFileError(ValueError):
    """A morphable model's file cannot be used; the message names it and says why."""


def _points(flat: np.ndarray) -> Float[np.ndarray, "v 3"]:
    """A vector x1 y1 z1 x2 ... as rows."""
    return np.ascontiguousarray(flat.reshape(-1, 3), dtype=np.float32)


def _basis(columns: np.ndarray) -> Float[np.ndarray, "v 3 k"]:
    """A (3V, K) basis of interleaved vectors."""
    return np.ascontiguousarray(columns.reshape(-1, 3, columns.shape[1]), dtype=np.float32)


def check_model(arrays: Mapping[str, np.ndarray], unit_m: float, path: Path) -> None:
    """Refuse arrays that contradict each other or the unit.

    Raises:
        MorphableFileError: With the file, what was expected and what was found.
    """
    vertices = len(arrays["mean_shape"])
    for part, names in {
        "shape": ("shape_basis", "shape_sigma"),
        "expression": ("expression_basis", "expression_sigma"),
        "texture": ("texture_basis", "texture_sigma"),
    }.items():
        if names[0] not in arrays:
            continue
        basis, sigma = arrays[names[0]], arrays[names[1]]
        if basis.shape[:2] != (vertices, 3) or sigma.shape != basis.shape[2:]:
            raise MorphableFileError(
                f"{path}: {part} basis {basis.shape} and sigma {sigma.shape} do not fit "
                f"{vertices} vertices; the files belong to different vertex sets"
            )
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise MorphableFileError(f"{path}: {name} holds NaN or infinite values")
    faces = arrays["faces"]
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= vertices:
        raise MorphableFileError(f"{path}: faces do not index {vertices} vertices")
    height = float(np.ptp(arrays["mean_shape"][:, 1])) * unit_m
    if not _HEIGHT_M[0] < height < _HEIGHT_M[1]:
        raise MorphableFileError(
            f"{path}: the mean face is {height:g} m tall, expected 0.1 to 0.6; wrong unit"
        )


def leading_mode_mm(arrays: Mapping[str, np.ndarray], unit_m: float) -> float:
    """Rms displacement of a vertex by one standard deviation of the first shape mode, mm.

    A variance taken for a deviation, or a wrong unit, makes it absurd.
    """
    if not arrays["shape_sigma"].size:
        return 0.0
    column = arrays["shape_basis"][:, :, 0].astype(np.float64) * float(arrays["shape_sigma"][0])
    return float(np.sqrt((column**2).sum(axis=1).mean())) * unit_m * 1000


def _matrix(content: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in content:
        raise MatError(f"{path} has no {name}; it holds {sorted(content)}")
    value = content[name]
    if value.ndim != 2 or value.dtype.kind not in "iuf":
        raise MatError(f"{path}: {name} is {value.shape} of {value.dtype}, expected a matrix")
    return value


def _triangles(raw: np.ndarray, first: int, path: Path) -> Int[np.ndarray, "f 3"]:
    rows = raw if raw.shape[1] == 3 and raw.shape[0] != 3 else raw.T
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise MorphableFileError(f"{path}: triangles are {raw.shape}, expected (3, F) or (F, 3)")
    return np.ascontiguousarray(rows.astype(np.int64) - first)


def read_bfm2009(root: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Read the Basel Face Model 2009 with the expression basis that circulates with it.

    Shape and texture come on 53,490 vertices, expressions on the 53,215 of ``trimIndex``; the
    converted model is on the trimmed set when the expression files are there. ``shapeEV`` holds
    standard deviations. Texture becomes 0-1.

    Returns:
        The arrays, with ``trim_index`` (positions in the full set) and, where given,
        ``front_index`` (the 35,709 frontal vertices' positions in the trimmed set); and the files.

    Raises:
        MatError, MorphableFileError: A file is damaged, or the files do not fit together.
        FileNotFoundError: A file is missing.
    """
    path = root / BFM2009_MODEL
    names = ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl")
    content = read_mat(path, names)
    get = {name: _matrix(content, name, path) for name in names}
    faces = _triangles(get["tl"], 1, path)
    arrays = {
        "mean_shape": _points(get["shapeMU"]),
        "shape_basis": _basis(get["shapePC"]),
        "shape_sigma": get["shapeEV"].ravel().astype(np.float32),
        "texture_mean": _points(get["texMU"] / 255.0),
        "texture_basis": _basis(get["texPC"]),
        "texture_sigma": (get["texEV"].ravel() / 255.0).astype(np.float32),
    }
    vertices, files = len(arrays["mean_shape"]), [path]
    trim = np.arange(vertices)
    if (root / BFM2009_EXPRESSION).is_file():
        trim_path = root / BFM2009_TRIM
        trim = indices_of(trim_path, "trimIndex", vertices)
        arrays = {
            name: values[trim] if not name.endswith("_sigma") else values
            for name, values in arrays.items()
        }
        faces = _keep_faces(faces, trim, vertices)
        arrays |= _expressions_2009(root, len(trim))
        files += [trim_path, root / BFM2009_EXPRESSION, root / BFM2009_EXPRESSION_SIGMA]
    else:
        logger.warning("%s has no %s: the model has no expressions", root, BFM2009_EXPRESSION)
        arrays |= _no_expressions(vertices)
    arrays["trim_index"] = trim.astype(np.int64)
    arrays["keypoints"] = np.zeros(0, dtype=np.int64)
    if (root / BFM2009_FRONT).is_file():
        front = indices_of(root / BFM2009_FRONT, "idx", len(trim))
        arrays["front_index"] = front
        files.append(root / BFM2009_FRONT)
        if (root / BFM2009_FACE_INFO).is_file():
            arrays["keypoints"] = front[
                indices_of(root / BFM2009_FACE_INFO, "keypoints", len(front), count=68)
            ]
            files.append(root / BFM2009_FACE_INFO)
    arrays["faces"] = outward(arrays["mean_shape"], faces)
    check_model(arrays, BFM2009_UNIT_M, path)
    return arrays, files


def indices_of(
    path: Path, name: str, limit: int, count: int | None = None
) -> Int[np.ndarray, " n"]:
    """1-based indices of a .mat variable as 0-based int64, each below ``limit``."""
    raw = _matrix(read_mat(path, [name]), name, path).ravel()
    indices = raw.astype(np.int64) - 1
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= limit:
        raise MorphableFileError(f"{path}: {name} does not count from 1 to at most {limit}")
    if count is not None and len(indices) != count:
        raise MorphableFileError(f"{path}: {name} has {len(indices)} entries, expected {count}")
    return indices


def _keep_faces(
    faces: Int[np.ndarray, "f 3"], kept: Int[np.ndarray, " n"], vertices: int
) -> Int[np.ndarray, "g 3"]:
    """Faces whose corners are all kept, renumbered."""
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= vertices:
        raise MorphableFileError(f"triangles do not index {vertices} vertices")
    place = np.full(vertices, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    moved = place[faces]
    return np.ascontiguousarray(moved[(moved >= 0).all(axis=1)])


def _expressions_2009(root: Path, vertices: int) -> dict[str, np.ndarray]:
    """``Exp_Pca.bin`` (int32 count, mean, components one after the other) and ``std_exp.txt``."""
    path, sigma_path = root / BFM2009_EXPRESSION, root / BFM2009_EXPRESSION_SIGMA
    raw = path.read_bytes()
    count = int.from_bytes(raw[:4], "little", signed=True)
    expected = 4 + 4 * 3 * vertices * (1 + max(count, 0))
    if len(raw) != expected or count < 1:
        raise MorphableFileError(
            f"{path} has {len(raw)} bytes and announces {count} components; expected {expected} "
            f"bytes for {vertices} vertices"
        )
    numbers = np.frombuffer(raw, "<f4", offset=4).reshape(count + 1, 3 * vertices)
    if not sigma_path.is_file():
        raise FileNotFoundError(f"expected {sigma_path}, the deviations that go with {path.name}")
    try:
        sigma = np.array(sigma_path.read_text(encoding="ascii").split(), dtype=np.float32)
    except ValueError as error:
        raise MorphableFileError(f"{sigma_path} is not a list of numbers ({error})") from error
    if len(sigma) < count:
        raise MorphableFileError(f"{sigma_path} has {len(sigma)} numbers, expected {count}")
    return {
        "mean_expression": _points(numbers[0]),
        "expression_basis": _basis(numbers[1:].T),
        "expression_sigma": sigma[:count],
    }


def _no_expressions(vertices: int) -> dict[str, np.ndarray]:
    return {
        "mean_expression": np.zeros((vertices, 3), np.float32),
        "expression_basis": np.zeros((vertices, 3, 0), np.float32),
        "expression_sigma": np.zeros(0, np.float32),
    }


def bfm2017_file(root: Path) -> Path:
    """The 2017 model in ``root``, the larger of the two published crops first.

    Raises:
        FileNotFoundError: Neither is there.
    """
    for name in BFM2017_MODELS:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"Basel Face Model 2017: expected {' or '.join(BFM2017_MODELS)} in {root}; its owner gives "
        "it at faces.dmi.unibas.ch after a signed form"
    )


def read_bfm2017(root: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Read the Basel Face Model 2017 (HDF5, mm, colour 0-1).

    ``pcaVariance`` holds variances. The file names a few landmarks by coordinates; each goes to
    the nearest vertex of the mean.

    Raises:
        MorphableFileError: The file is damaged or not this model.
        FileNotFoundError: The file is missing.
    """
    import h5py

    path = bfm2017_file(root)
    try:
        with h5py.File(path, "r") as file:
            parts = {
                part: {
                    name: np.asarray(file[f"{part}/model/{name}"])
                    for name in ("mean", "pcaBasis", "pcaVariance")
                }
                for part in ("shape", "expression", "color")
            }
            cells = np.asarray(file["shape/representer/cells"])
            marks = (
                file["metadata/landmarks/json"][()] if "metadata/landmarks/json" in file else None
            )
    except (OSError, KeyError) as error:
        raise MorphableFileError(f"{path} is not a readable 2017 model ({error})") from error
    arrays = {}
    for part, (offset, stem) in {
        "shape": ("mean_shape", "shape"),
        "expression": ("mean_expression", "expression"),
        "color": ("texture_mean", "texture"),
    }.items():
        variance = parts[part]["pcaVariance"].ravel().astype(np.float64)
        if (variance < 0).any():
            raise MorphableFileError(f"{path}: {part}/model/pcaVariance has negative entries")
        arrays[offset] = _points(parts[part]["mean"])
        arrays[f"{stem}_basis"] = _basis(parts[part]["pcaBasis"])
        arrays[f"{stem}_sigma"] = np.sqrt(variance).astype(np.float32)
    arrays["faces"] = outward(arrays["mean_shape"], _triangles(cells, 0, path))
    arrays["named_landmarks"] = _named_2017(marks, arrays["mean_shape"], path)
    arrays["keypoints"] = np.zeros(0, dtype=np.int64)
    check_model(arrays, BFM2017_UNIT_M, path)
    return arrays, [path]


def _named_2017(
    raw: Any,  # noqa: ANN401 - bytes, str or an int8 array, by edition
    mean: Float[np.ndarray, "v 3"],
    path: Path,
) -> Int[np.ndarray, "68"]:
    keypoints = np.full(68, -1, dtype=np.int64)
    if raw is None:
        return keypoints
    text = raw.tobytes() if isinstance(raw, np.ndarray) else raw
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            named = {name: spot for name, spot in content.items() if name in _LANDMARK_NAMES_2017}
        else:
            named = {entry["id"]: entry["coordinates"] for entry in content}
        for name, place in _LANDMARK_NAMES_2017.items():
            if name in named:
                spot = named[name]
                spot = spot["coordinates"] if isinstance(spot, dict) else spot
                offset = mean - np.asarray(spot, dtype=np.float64)
                keypoints[place] = int((offset**2).sum(axis=1).argmin())
    except (ValueError, KeyError, TypeError) as error:
        raise MorphableFileError(f"{path}: metadata/landmarks/json is damaged ({error})") from error
    return keypoints


def read_3ddfa(root: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Read the basis that 300W-LP's coefficients refer to (53,215 vertices, micrometres).

    Coefficients are *not* divided by sigma. Triangles come 1-based and clockwise.

    Raises:
        MatError, MorphableFileError: A file is damaged, or the files do not fit together.
        FileNotFoundError: A file is missing.
    """
    path, expression_path = root / SHAPE_3DDFA, root / EXPRESSION_3DDFA
    content = read_mat(path)
    expression = read_mat(expression_path)
    files = [path, expression_path]
    info_path = root / INFO_3DDFA
    extra = content
    if ("tri" not in content or "keypoints" not in content) and info_path.is_file():
        extra = {**read_mat(info_path, ["tri", "keypoints"]), **content}
        files.append(info_path)
    mean = numeric(content, "mu_shape", path, content.get("mu_shape", np.zeros(0)).size)
    arrays = {
        "mean_shape": _points(mean),
        "shape_basis": _basis(_matrix(content, "w", path)),
        "shape_sigma": _matrix(content, "sigma", path).ravel().astype(np.float32),
        "mean_expression": _points(numeric(expression, "mu_exp", expression_path, mean.size)),
        "expression_basis": _basis(_matrix(expression, "w_exp", expression_path)),
        "expression_sigma": _matrix(expression, "sigma_exp", expression_path)
        .ravel()
        .astype(np.float32),
    }
    tri = _triangles(_matrix(extra, "tri", path), 1, path)
    keypoints = numeric(extra, "keypoints", path, 68).astype(np.int64) - 1
    if keypoints.min() < 0 or keypoints.max() >= len(arrays["mean_shape"]):
        raise MorphableFileError(f"{path}: keypoints do not index the model's vertices")
    arrays["keypoints"] = keypoints
    if tri.min() < 0 or tri.max() >= len(arrays["mean_shape"]):
        raise MorphableFileError(f"{path}: tri does not index {len(arrays['mean_shape'])} vertices")
    arrays["faces"] = outward(arrays["mean_shape"], tri)
    check_model(arrays, THREE_DDFA_UNIT_M, path)
    return arrays, files
