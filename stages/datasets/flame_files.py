"""FLAME's files as their owner gives them, read as data.

The model pickle (with or without chumpy objects), a plain ``.npz`` of the same keys, the vertex
masks, and the landmark embeddings in each of their published forms.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from models.face.flame import FlameArrays, LandmarkEmbedding
from stages.runtime.unpickle import read_npy, read_pickle

logger = logging.getLogger(__name__)

IDENTITY_MODES = 300
ROOT_PARENT = 2**32 - 1
MODEL_NAMES = (
    "generic_model.pkl",
    "flame2023.pkl",
    "flame2023_no_jaw.pkl",
    "FLAME_NEUTRAL.pkl",
)
MASK_NAME = "FLAME_masks.pkl"
EMBEDDING_NAME = "landmark_embedding.npy"
STATIC_NAME = "flame_static_embedding.pkl"
DYNAMIC_NAME = "flame_dynamic_embedding.npy"
FITTING_NAME = f"flame-fitting/{STATIC_NAME}"
"""Another edition: its brows and nose ridge lie up to 13 mm from the other's."""
_KEYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
_EXTENT_M = (0.1, 1.0)


class FlameFileError(ValueError):
    """A FLAME file cannot be used; the message names it and says why."""


def load_flame(path: Path | str) -> FlameArrays:
    """Read FLAME from a converted model, an ``.npz`` of the owner's keys, or the owner's pickle.

    Args:
        path: A converted folder or ``model.safetensors``; an ``.npz`` whose ``shapedirs`` hold
            identity then expression (split at ``n_shape`` if given, else at 300); the owner's
            ``.pkl``; or a folder with one of the owner's model pickles.

    Returns:
        The model, float32, metres, faces counter-clockwise seen from outside.

    Raises:
        FileNotFoundError: There is no such file.
        FlameFileError: A key is missing, a shape is wrong, or the unit is not the metre.
        stages.runtime.unpickle.UnsafePickleError: The pickle asks for something that is not data.
    """
    path = Path(path)
    if path.is_dir() and not (path / "model.safetensors").is_file():
        path = model_file(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return FlameArrays.load(path)
    if not path.is_file():
        raise FileNotFoundError(f"FLAME model: expected {path}, a .pkl, .npz or converted folder")
    return flame_arrays(_content(path), path)


def model_file(root: Path) -> Path:
    """The owner's model pickle in ``root``: the generic one of the newest name present.

    Raises:
        FileNotFoundError: None of the owner's names is there.
    """
    for name in MODEL_NAMES:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"FLAME model: expected one of {', '.join(MODEL_NAMES)} in {root}, found none; its owner "
        "gives it at flame.is.tue.mpg.de after sign-up"
    )


def _content(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError) as error:
            raise FlameFileError(f"{path} is not a readable .npz ({error})") from error
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise FlameFileError(f"{path} holds a {type(content).__name__}, expected a dict of arrays")
    return content


def _dense(value: Any) -> np.ndarray:  # noqa: ANN401 - arrays and scipy's sparse matrices
    return np.asarray(value.todense() if hasattr(value, "todense") else value)


def flame_arrays(content: Mapping[str, Any], path: Path) -> FlameArrays:
    """Check and name the arrays of one FLAME file.

    Args:
        content: The owner's keys.
        path: Where they come from, for messages.

    Raises:
        FlameFileError: A key is missing, a shape is wrong, or the unit is not the metre.
    """
    missing = sorted(set(_KEYS) - set(content))
    if missing:
        raise FlameFileError(f"{path} lacks {missing}; expected a FLAME model with keys {_KEYS}")
    raw = {key: _dense(content[key]) for key in _KEYS}
    wrong = sorted(key for key in _KEYS if raw[key].dtype.kind not in "iuf")
    if wrong:
        raise FlameFileError(f"{path}: {wrong} are not numeric arrays")
    directions = raw["shapedirs"]
    if directions.ndim != 3:
        raise FlameFileError(f"{path}: shapedirs is {directions.shape}, expected (V, 3, K)")
    split = int(_dense(content["n_shape"])) if "n_shape" in content else IDENTITY_MODES
    if directions.shape[2] <= split:
        logger.warning("%s has %d modes, all taken as identity", path, directions.shape[2])
    parents = raw["kintree_table"][0].astype(np.int64)
    parents[parents == ROOT_PARENT] = -1
    vertices = np.ascontiguousarray(raw["v_template"], dtype=np.float32)
    faces = raw["f"].astype(np.int64)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.min() < 0 or faces.max() >= len(vertices):
        raise FlameFileError(f"{path}: faces {faces.shape} do not index {len(vertices)} vertices")
    try:
        arrays = FlameArrays(
            v_template=vertices,
            faces=outward(vertices, faces),
            shapedirs=_float32(directions[:, :, :split]),
            exprdirs=_float32(directions[:, :, split:]),
            posedirs=_float32(raw["posedirs"]),
            joint_regressor=_float32(raw["J_regressor"]),
            weights=_float32(raw["weights"]),
            parents=parents,
        )
    except ValueError as error:
        raise FlameFileError(f"{path}: {error}") from error
    for key in _KEYS:
        if not np.isfinite(raw[key]).all():
            raise FlameFileError(f"{path}: {key} holds NaN or infinite values; the file is damaged")
    height = float(np.ptp(vertices[:, 1]))
    if not _EXTENT_M[0] < height < _EXTENT_M[1]:
        raise FlameFileError(
            f"{path}: the template is {height:g} tall, expected 0.1 to 1.0: FLAME is in metres"
        )
    return arrays


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)


def outward(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Int[np.ndarray, "f 3"]:
    """``faces``, rewound when they run clockwise seen from outside.

    Decided by the flux of the face normals away from a point in the middle of the surface's back
    plane: the enclosed volume of a closed head, and positive for an open face toward +z too.
    """
    corners = vertices[faces].astype(np.float64)
    low, high = vertices.min(0).astype(np.float64), vertices.max(0).astype(np.float64)
    inside = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flux = float((normals * (corners.mean(axis=1) - inside)).sum())
    return faces if flux >= 0 else np.ascontiguousarray(faces[:, [0, 2, 1]])


def read_masks(path: Path) -> dict[str, Int[np.ndarray, " n"]]:
    """Read ``FLAME_masks.pkl``: region name to vertex ids.

    Raises:
        FlameFileError: It is not a dict of integer arrays.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise FlameFileError(f"{path} holds a {type(content).__name__}, expected a dict of ids")
    out = {}
    for name, ids in sorted(content.items()):
        values = np.asarray(ids)
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise FlameFileError(f"{path}: mask {name!r} is not a list of vertex ids")
        out[str(name)] = values.astype(np.int64)
    return out


def read_static_embedding(
    path: Path,
) -> tuple[Int[np.ndarray, "51"], Float[np.ndarray, "51 3"]]:
    """Read the 51 inner landmarks from any published form of the embedding.

    Args:
        path: ``flame_static_embedding.pkl`` (either edition), ``landmark_embedding.npy``, or a
            converted ``embeddings.npz`` or ``embedding-<edition>.npz``.

    Returns:
        Triangle ids and barycentric weights.

    Raises:
        FlameFileError: The file holds no 51-point embedding.
    """
    if path.suffix == ".npz":
        names = ("static_faces", "static_bary")
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in names if name in arrays.files}
        return _embedding(stored, names, (51,), path)
    content: Any = read_npy(path) if path.suffix == ".npy" else read_pickle(path)
    if isinstance(content, dict) and "lmk_face_idx" in content:
        names = ("lmk_face_idx", "lmk_b_coords")
    else:
        names = ("static_lmk_faces_idx", "static_lmk_bary_coords")
    return _embedding(content, names, (51,), path)


def _embedding(
    content: Any,  # noqa: ANN401 - whatever the file held
    names: tuple[str, str],
    shape: tuple[int, ...],
    path: Path,
) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise FlameFileError(f"{path} has no {names[0]}; expected a FLAME landmark embedding")
    faces, bary = np.asarray(content[names[0]]), np.asarray(content[names[1]], dtype=np.float64)
    if faces.size != np.prod(shape) or bary.size != 3 * np.prod(shape):
        raise FlameFileError(
            f"{path}: {names[0]} {faces.shape} and {names[1]} {bary.shape}, expected {shape} and "
            f"{(*shape, 3)}"
        )
    bary = bary.reshape(*shape, 3)
    if not np.allclose(bary.sum(axis=-1), 1, atol=1e-3):
        raise FlameFileError(f"{path}: {names[1]} do not sum to one; the file is damaged")
    return faces.astype(np.int64).reshape(shape), bary


def edition_path(model: Path, edition: str) -> Path:
    """Where a converted model's folder has an edition of the 51 inner landmarks.

    Args:
        model: Folder that the convert stage wrote.
        edition: ``mica``, which RingNet and DECA share, or ``flame-fitting``.

    Raises:
        FileNotFoundError: The folder lacks it; says which raw file makes it.
    """
    path = model / ("embeddings.npz" if edition == "mica" else f"embedding-{edition}.npz")
    if not path.is_file():
        source = EMBEDDING_NAME if edition == "mica" else FITTING_NAME
        raise FileNotFoundError(
            f"expected the {edition} edition of FLAME's landmark embedding in {path}, got no such "
            f"file; run the stage convert@flame on a folder with {source}"
        )
    return path


def read_embedding(root: Path) -> LandmarkEmbedding:
    """Read the whole embedding of an owner's folder.

    From ``landmark_embedding.npy``; without it from the static pickle and the dynamic contour, the
    full set then being the contour of a frontal head and the static points.

    Raises:
        FlameFileError: A part is missing or of the wrong shape.
        FileNotFoundError: Neither form is there.
    """
    path = root / EMBEDDING_NAME
    if not path.is_file():
        return _embedding_of_parts(root)
    content = read_npy(path)
    static = _embedding(content, ("static_lmk_faces_idx", "static_lmk_bary_coords"), (51,), path)
    dynamic = _embedding(
        content, ("dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords"), (79, 17), path
    )
    full = _embedding(content, ("full_lmk_faces_idx", "full_lmk_bary_coords"), (68,), path)
    return LandmarkEmbedding(
        static_faces=static[0],
        static_bary=static[1],
        dynamic_faces=dynamic[0],
        dynamic_bary=dynamic[1],
        full_faces=full[0],
        full_bary=full[1],
    )


def _embedding_of_parts(root: Path) -> LandmarkEmbedding:
    static_path, dynamic_path = root / STATIC_NAME, root / DYNAMIC_NAME
    if not static_path.is_file() or not dynamic_path.is_file():
        raise FileNotFoundError(
            f"FLAME landmarks: expected {EMBEDDING_NAME}, or {STATIC_NAME} with {DYNAMIC_NAME}, in "
            f"{root}; they come with MICA, DECA and RingNet (flame.is.tue.mpg.de)"
        )
    faces, bary = read_static_embedding(static_path)
    names = ("lmk_face_idx", "lmk_b_coords")
    moving = _embedding(read_npy(dynamic_path), names, (79, 17), dynamic_path)
    return LandmarkEmbedding(
        static_faces=faces,
        static_bary=bary,
        dynamic_faces=moving[0],
        dynamic_bary=moving[1],
        full_faces=np.concatenate([moving[0][0], faces]),
        full_bary=np.concatenate([moving[1][0], bary]),
    )
