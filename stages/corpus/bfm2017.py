"""The Basel Face Model 2017: one HDF5 file, millimetres, variances instead of deviations."""

import io
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stages.corpus import basel_source, basel_topology
from stages.corpus.files import write
from stages.corpus.linear_files import LinearFiles
from stages.corpus.order import Order

FILE_NAME = "model2017-1_bfm_nomouth.h5"
NOISE_VARIANCE = 0.0
# Names the owner gives to landmarks, with their place in the iBUG order.
LANDMARK_NAMES = {
    "center.nose.tip": 30,
    "center.nose.attachement_to_philtrum": 33,
    "center.lips.upper.outer": 51,
    "center.lips.lower.outer": 57,
    "center.chin.tip": 8,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "left.lips.corner": 54,
}


def landmarks_json(model: LinearFiles) -> str:
    """Return the list edition of ``metadata/landmarks/json``: names with coordinates (mm)."""
    mean = model.mean_shape.reshape(-1, 3)
    content = [
        {
            "id": name,
            "coordinates": [round(float(c), 4) for c in mean[model.keypoints[place]]],
            "uncertainty": {"stddevs": [1.0, 1.0, 1.0]},
        }
        for name, place in LANDMARK_NAMES.items()
    ]
    return json.dumps(content)


def model_h5(model: LinearFiles) -> bytes:
    """Return the file of a model in millimetres (texture 0-1)."""
    import h5py

    stream = io.BytesIO()
    mean = model.mean_shape.reshape(-1, 3)
    color_mean = model.texture_mean.reshape(-1, 3)
    parts = {
        "shape": (model.mean_shape, model.shape_basis, model.shape_sigma, mean),
        "color": (model.texture_mean, model.texture_basis, model.texture_sigma, color_mean),
        "expression": (
            model.mean_expression,
            model.expression_basis,
            model.expression_sigma,
            model.mean_expression.reshape(-1, 3),
        ),
    }
    with h5py.File(stream, "w") as file:
        for name, (offset, basis, sigma, points) in parts.items():
            _write_part(file, name, offset, basis, sigma, points, model)
        file["version/majorVersion"] = np.int32(0)
        file["version/minorVersion"] = np.int32(9)
        text = landmarks_json(model).encode()
        file["metadata/landmarks/json"] = np.frombuffer(text, dtype=np.int8)
        file["metadata/landmarks/text"] = np.bytes_(b"")
    return stream.getvalue()


def _write_part(
    file: object,
    name: str,
    offset: Float[np.ndarray, "n"],
    basis: Float[np.ndarray, "n k"],
    sigma: Float[np.ndarray, "k"],
    points: Float[np.ndarray, "v 3"],
    model: LinearFiles,
) -> None:
    group = file.create_group(name)  # type: ignore[attr-defined]
    group["model/mean"] = offset.astype(np.float32)
    group["model/pcaBasis"] = basis.astype(np.float32)
    group["model/pcaVariance"] = (sigma**2).astype(np.float32)
    group["model/noiseVariance"] = np.array([NOISE_VARIANCE], dtype=np.float32)
    group["representer/points"] = points.T.astype(np.float32)
    group["representer/cells"] = model.faces.T.astype(np.int32)
    group["representer"].attrs["name"] = "gravis::MeshShape"
    group["modelinfo/scores"] = np.zeros((basis.shape[1], 1), dtype=np.float32)
    group["version/majorVersion"] = np.int32(0)
    group["version/minorVersion"] = np.int32(9)


def write_release(root: Path, model: LinearFiles) -> None:
    """Write the folder."""
    write(root / FILE_NAME, model_h5(model))


def build(order: Order) -> None:
    """Generate and write the stand-in; the truth is the companion basis on the head."""
    sizes, seed = order.sizes.morphable, order.seed
    built = basel_source.model(
        seed, "bfm2017", sizes.heads, sizes.modes_2017, sizes.expressions_2017
    )
    colours = basel_source.texture(seed, "2017", built.anchors, sizes.modes_2017)
    faces = basel_topology.edition_2017().faces
    write_release(order.out, basel_source.linear_files(built, faces, colours, 1000.0))
    basel_source.write_truth(built, order.truth)
