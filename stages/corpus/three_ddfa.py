"""The 3DDFA / Face-Profiling basis files (CBSR), which 300W-LP's coefficients refer to.

Micrometres. ``w`` has unit-norm columns and coefficients are *not* divided by sigma;
``w_exp`` columns carry the scale, so that expression coefficients are of order one.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from stages.corpus import basel_source, basel_topology
from stages.corpus.files import mat_bytes, write
from stages.corpus.linear_files import LinearFiles
from stages.corpus.order import Order
from stages.runtime.params import MorphableSizes

EXPRESSIONS = 29
SHAPES = 199


def expression_coefficient_sigma(count: int) -> Float[np.ndarray, "e"]:
    """Return the spread of published expression coefficients: 1.5, 1.4, 0.5, then decaying."""
    tail = 0.5 * 0.93 ** np.arange(max(count - 2, 0))
    return np.concatenate([[1.5, 1.4][:count], tail])


def scaled_expressions(model: LinearFiles) -> Float[np.ndarray, "n e"]:
    """Return ``w_exp``: unit columns times sigma over the coefficients' spread."""
    spread = expression_coefficient_sigma(len(model.expression_sigma))
    return model.expression_basis * (model.expression_sigma / spread)


def vertex_code(mean_shape: Float[np.ndarray, "n"]) -> Float[np.ndarray, "v 3"]:
    """Return the PNCC code: per-axis min-max of ``mu_shape`` alone over all vertices."""
    points = mean_shape.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    return (points - low) / (high - low)


def write_release(
    root: Path, model: LinearFiles, trim: Int[np.ndarray, "v"], segments: Int[np.ndarray, "v 4"]
) -> None:
    """Write the folder.

    Args:
        root: Destination.
        model: Trimmed vertex set, micrometres.
        trim: 0-based vertices of the trimmed set in the full Basel set.
        segments: 0/1 regions of the trimmed set.
    """
    tri = (model.faces[:, [0, 2, 1]] + 1).T.astype(np.uint16)
    keypoints = (model.keypoints + 1)[None].astype(np.uint16)
    sigma_exp = expression_coefficient_sigma(len(model.expression_sigma))
    files: dict[str, dict[str, np.ndarray]] = {
        "Model_Shape.mat": {
            "mu_shape": model.mean_shape[:, None].astype(np.float32),
            "w": model.shape_basis.astype(np.float32),
            "sigma": model.shape_sigma[:, None].astype(np.float32),
            "tri": tri,
            "keypoints": keypoints,
        },
        "Model_Expression.mat": {
            "mu_exp": model.mean_expression[:, None].astype(np.float32),
            "w_exp": scaled_expressions(model).astype(np.float32),
            "sigma_exp": sigma_exp[:, None].astype(np.float32),
        },
        "model_info.mat": {
            "trimIndex": (trim + 1)[:, None].astype(np.uint16),
            "tri": tri,
            "keypoints": keypoints,
            "segbin": segments.T.astype(np.uint8),
        },
        "vertex_code.mat": {"vertex_code": vertex_code(model.mean_shape).T.astype(np.float32)},
    }
    for name, variables in files.items():
        write(root / name, mat_bytes(variables, compress=False))


def source_model(sizes: MorphableSizes, seed: int) -> basel_source.Model:
    """Return the model behind the files, which 300W-LP's coefficients refer to."""
    return basel_source.model(seed, "3ddfa", sizes.heads, SHAPES, EXPRESSIONS)


def build(order: Order) -> None:
    """Generate and write the stand-in; the truth is the companion basis on the head."""
    sizes, seed = order.sizes.morphable, order.seed
    built = source_model(sizes, seed)
    empty = np.zeros(0), np.zeros((0, 0)), np.zeros(0)
    model = basel_source.linear_files(built, basel_topology.trimmed_faces(), empty, 1.0)
    trim = basel_topology.trim_indices()
    write_release(order.out, model, trim, basel_source.segments(built.anchors))
    basel_source.write_truth(built, order.truth)
