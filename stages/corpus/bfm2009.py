"""The Basel Face Model 2009 and the expression files that circulate with it.

``01_MorphableModel.mat`` counts in micrometres, stores standard deviations under the name EV and
winds its triangles clockwise. The expression basis (79 components) lives on a trimmed vertex set.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from stages.corpus import basel_source, basel_topology
from stages.corpus.files import mat_bytes, write
from stages.corpus.linear_files import LinearFiles
from stages.corpus.order import Order

EXPRESSIONS = 79
UM_PER_DM = 1e5


def expression_bin(mean: Float[np.ndarray, "n"], basis: Float[np.ndarray, "n 79"]) -> bytes:
    """Return ``Exp_Pca.bin``: the count, the mean, then one component after the other (float32)."""
    count = np.array([basis.shape[1]], dtype="<i4").tobytes()
    components = np.ascontiguousarray(basis.T, dtype="<f4").tobytes()
    return count + mean.astype("<f4").tobytes() + components


def model_mat(model: LinearFiles, segments: Int[np.ndarray, "v 4"]) -> bytes:
    """Return ``01_MorphableModel.mat`` from a model in micrometres."""
    clockwise = model.faces[:, [0, 2, 1]] + 1
    return mat_bytes(
        {
            "shapeMU": model.mean_shape[:, None].astype(np.float32),
            "shapePC": model.shape_basis.astype(np.float32),
            "shapeEV": model.shape_sigma[:, None].astype(np.float32),
            "texMU": (255.0 * model.texture_mean[:, None]).astype(np.float32),
            "texPC": model.texture_basis.astype(np.float32),
            "texEV": (255.0 * model.texture_sigma[:, None]).astype(np.float32),
            "tl": clockwise.astype(np.int32),
            "segbin": segments.astype(np.uint8),
        },
        compress=False,
    )


def face_info(
    mean: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], keypoints: Int[np.ndarray, "68"]
) -> dict[str, np.ndarray]:
    """Return the variables of ``facemodel_info.mat`` for the frontal face.

    Args:
        mean: Frontal vertices.
        faces: 0-based triangles of the frontal face.
        keypoints: 0-based landmarks among the frontal vertices.
    """
    corner = faces[:, [0, 2, 1]]
    order = np.argsort(corner.ravel(), kind="stable")
    owner = corner.ravel()[order]
    first = np.searchsorted(owner, np.arange(len(mean)))
    slot = np.arange(len(owner)) - first[owner]
    buffer = np.full((len(mean), 8), len(faces) + 1)  # the dummy triangle has a zero normal
    near = slot < 8
    buffer[owner[near], slot[near]] = order[near] // 3 + 1
    radius = np.linalg.norm((mean - mean[keypoints[30]])[:, :2], axis=1)
    inner = radius < np.quantile(radius, 0.77)
    skin = radius < np.quantile(radius, 0.27)
    return {
        "tri": (corner + 1).astype(np.float32),
        "point_buf": buffer.astype(np.float32),
        "keypoints": (keypoints + 1)[None].astype(np.float32),
        "frontmask2": inner[None].astype(np.float32),
        "frontmask2_idx": (np.flatnonzero(inner) + 1)[:, None].astype(np.float32),
        "tri_mask2": (corner[inner[corner].all(axis=1)] + 1).astype(np.float32),
        "skinmask": skin[None].astype(np.float32),
    }


def write_release(
    root: Path,
    model: LinearFiles,
    segments: Int[np.ndarray, "v 4"],
    trim: Int[np.ndarray, "n"],
    front: Int[np.ndarray, "m"],
) -> None:
    """Write the folder.

    Args:
        root: Destination.
        model: Full vertex set for shape and texture, trimmed set for expression, micrometres.
        segments: 0/1 regions (V, 4): nose, eyes, mouth, rest.
        trim: 0-based ascending vertices of the trimmed set.
        front: 0-based ascending positions in the trimmed set of the frontal face.
    """
    write(root / "01_MorphableModel.mat", model_mat(model, segments))
    expressions = expression_bin(model.mean_expression, model.expression_basis)
    write(root / "Exp_Pca.bin", expressions)
    write(root / "std_exp.txt", " ".join(f"{value:g}" for value in model.expression_sigma))
    indices: dict[str, dict[str, np.ndarray]] = {
        "BFM_exp_idx.mat": {"trimIndex": (trim + 1)[:, None].astype(np.uint16)},
        "BFM_front_idx.mat": {"idx": (front + 1)[:, None].astype(np.float32)},
        "select_vertex_id.mat": {"select_id": (trim[front] + 1)[:, None].astype(np.uint16)},
    }
    mean = model.mean_shape.reshape(-1, 3)
    place = np.full(len(mean), -1)
    place[trim[front]] = np.arange(len(front))
    inside = place[model.faces]
    nearest = np.linalg.norm(
        mean[model.keypoints][:, None] - mean[trim[front]][None], axis=2
    ).argmin(axis=1)
    indices["facemodel_info.mat"] = face_info(
        mean[trim[front]], inside[(inside >= 0).all(axis=1)], nearest
    )
    landmarks = mean[model.keypoints] / UM_PER_DM
    indices["similarity_Lm3D_all.mat"] = {"lm": landmarks.astype(np.float32)}
    for name, variables in indices.items():
        write(root / name, mat_bytes(variables, compress=True))


def build(order: Order) -> None:
    """Generate and write the stand-in; the truth is the companion basis on the head."""
    sizes, seed = order.sizes.morphable, order.seed
    built = basel_source.model(seed, "bfm2009", sizes.heads, sizes.modes_2009, EXPRESSIONS)
    colours = basel_source.texture(seed, "2009", built.anchors, sizes.modes_2009)
    model = basel_source.linear_files(built, basel_topology.full().faces, colours, 1.0)
    write_release(
        order.out,
        model,
        basel_source.segments(built.anchors),
        basel_topology.trim_indices(),
        basel_topology.front_indices(),
    )
    basel_source.write_truth(built, order.truth)
