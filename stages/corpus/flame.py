"""FLAME as its owner distributes it: Python 2 pickles, masks, landmark embeddings, template.

``generic_model.pkl`` holds plain arrays; ``female_model.pkl`` holds chumpy objects, as some of the
released files do. Two editions of the static landmark embedding exist in the wild; both are here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stages.corpus import studio
from stages.corpus.files import obj_text, write
from stages.corpus.old_pickle import Instance, TorchTensor, chumpy, csc_matrix, dumps, npy_object
from stages.corpus.order import Order
from stages.runtime.artifacts import write_npz
from stages.runtime.compute import item_rng

ROOT_PARENT = 2**32 - 1  # what the owner's files give the root joint as its parent
MOVED_LANDMARKS = 14  # brows and nose bridge differ between the two editions


@dataclass(frozen=True, slots=True)
class FlameFiles:
    """The arrays behind one FLAME release, metres.

    Attributes:
        v_template: Mean head (V, 3).
        faces: 0-based triangles (F, 3).
        shapedirs: 300 identity then 100 expression directions (V, 3, 400).
        posedirs: Pose correctives (V, 3, 36).
        joint_regressor: (5, V).
        weights: Skinning weights (V, 5).
        parents: Parent of each joint (5,), root -1.
    """

    v_template: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    shapedirs: Float[np.ndarray, "v 3 k"]
    posedirs: Float[np.ndarray, "v 3 p"]
    joint_regressor: Float[np.ndarray, "j v"]
    weights: Float[np.ndarray, "v j"]
    parents: Int[np.ndarray, "j"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """iBUG landmarks as points of triangles.

    Attributes:
        static_faces: Inner landmarks (51,).
        static_bary: (51, 3).
        dynamic_faces: Contour per yaw row (79, 17): 0..39 degrees, then -1..-39.
        dynamic_bary: (79, 17, 3).
        full_faces: All 68 (68,).
        full_bary: (68, 3).
    """

    static_faces: Int[np.ndarray, "51"]
    static_bary: Float[np.ndarray, "51 3"]
    dynamic_faces: Int[np.ndarray, "79 17"]
    dynamic_bary: Float[np.ndarray, "79 17 3"]
    full_faces: Int[np.ndarray, "68"]
    full_bary: Float[np.ndarray, "68 3"]


def model_pickle(model: FlameFiles, *, chumpy_objects: bool) -> bytes:
    """Return ``{generic,female}_model.pkl``: a protocol 2 pickle of Python 2.

    Args:
        model: The arrays.
        chumpy_objects: Store template and directions as ``chumpy`` objects.
    """
    parents = np.where(model.parents < 0, ROOT_PARENT, model.parents).astype(np.uint32)
    joints = model.joint_regressor @ model.v_template
    shapedirs = model.shapedirs.astype(np.float64)

    def maybe(values: np.ndarray) -> np.ndarray | Instance:
        return chumpy(values) if chumpy_objects else values

    content: dict[str, Any] = {
        "J_regressor": csc_matrix(model.joint_regressor),
        "f": model.faces.astype(np.uint32),
        "kintree_table": np.stack([parents, np.arange(len(parents), dtype=np.uint32)]),
        "J": joints,
        "weights": model.weights.astype(np.float64),
        "posedirs": model.posedirs.astype(np.float64),
        "bs_style": "lbs",
        "v_template": maybe(model.v_template.astype(np.float64)),
        "shapedirs": maybe(shapedirs),
        "bs_type": "lrotmin",
    }
    return dumps(content, protocol=2, python=2)


def masks_pickle(masks: Mapping[str, Int[np.ndarray, "n"]]) -> bytes:
    """Return ``FLAME_masks.pkl``: a protocol 0 pickle of vertex lists."""
    return dumps({name: ids.astype(np.int64) for name, ids in masks.items()}, protocol=0)


def static_pickle(faces: Int[np.ndarray, "51"], bary: Float[np.ndarray, "51 3"]) -> bytes:
    """Return ``flame_static_embedding.pkl``: protocol 0."""
    content = {"lmk_face_idx": faces.astype(np.uint32), "lmk_b_coords": bary.astype(np.float64)}
    return dumps(content, protocol=0)


def dynamic_npy(embeddings: Embeddings) -> bytes:
    """Return ``flame_dynamic_embedding.npy``: 79 small arrays in lists, as from Python 2."""
    content = {
        "lmk_face_idx": [row.astype(np.uint32) for row in embeddings.dynamic_faces],
        "lmk_b_coords": [
            np.asfortranarray(row.astype(np.float64)) for row in embeddings.dynamic_bary
        ],
    }
    return npy_object(content, protocol=2, python=2)


def landmark_npy(embeddings: Embeddings) -> bytes:
    """Return ``landmark_embedding.npy``: protocol 3, torch tensors for the dynamic contour."""
    content = {
        "static_lmk_faces_idx": embeddings.static_faces.astype(np.int64),
        "static_lmk_bary_coords": embeddings.static_bary.astype(np.float64),
        "dynamic_lmk_faces_idx": TorchTensor(embeddings.dynamic_faces.astype(np.int64)),
        "dynamic_lmk_bary_coords": TorchTensor(embeddings.dynamic_bary.astype(np.float64)),
        "full_lmk_faces_idx": embeddings.full_faces[None].astype(np.int64),
        "full_lmk_bary_coords": embeddings.full_bary[None].astype(np.float32),
    }
    return npy_object(content, protocol=3, python=3)


def moved_edition(embeddings: Embeddings, rng: np.random.Generator) -> Embeddings:
    """Return the other static edition: landmarks 0-13 sit elsewhere in their triangles."""
    bary = embeddings.static_bary.copy()
    bary[:MOVED_LANDMARKS] = rng.dirichlet([1.0, 1.0, 1.0], MOVED_LANDMARKS)
    return Embeddings(
        embeddings.static_faces,
        bary,
        embeddings.dynamic_faces,
        embeddings.dynamic_bary,
        embeddings.full_faces,
        embeddings.full_bary,
    )


def write_release(
    root: Path,
    generic: FlameFiles,
    female: FlameFiles,
    masks: Mapping[str, Int[np.ndarray, "n"]],
    embeddings: Embeddings,
    rng: np.random.Generator,
) -> None:
    """Write a whole release into ``root``."""
    other = moved_edition(embeddings, rng)
    write(root / "generic_model.pkl", model_pickle(generic, chumpy_objects=False))
    write(root / "female_model.pkl", model_pickle(female, chumpy_objects=True))
    write(root / "FLAME_masks.pkl", masks_pickle(masks))
    static = static_pickle(embeddings.static_faces, embeddings.static_bary)
    write(root / "flame_static_embedding.pkl", static)
    fitting = root / "flame-fitting" / "flame_static_embedding.pkl"
    write(fitting, static_pickle(other.static_faces, other.static_bary))
    write(root / "flame_dynamic_embedding.npy", dynamic_npy(embeddings))
    write(root / "landmark_embedding.npy", landmark_npy(embeddings))
    write(root / "head_template.obj", obj_text(generic.v_template, generic.faces))


def build(order: Order) -> None:
    """Generate the stand-in from the procedural head; the truth is the map to its coefficients."""
    from models.procedural.identity import Identity
    from models.procedural.regions import REGION_COUNTS
    from models.procedural.rig import build_flame, identity_modes

    arrays = build_flame(seed=order.seed)
    head = studio.head()
    generic = FlameFiles(
        v_template=arrays.v_template,
        faces=arrays.faces,
        shapedirs=np.concatenate([arrays.shapedirs, arrays.exprdirs], axis=2),
        posedirs=arrays.posedirs,
        joint_regressor=arrays.joint_regressor,
        weights=arrays.weights,
        parents=arrays.parents,
    )
    woman = np.asarray(head.vertices(Identity.mean("woman")), dtype=np.float64)
    points = head.embeddings
    embeddings = Embeddings(
        points.static_faces,
        points.static_bary,
        points.dynamic_faces,
        points.dynamic_bary,
        points.full_faces,
        points.full_bary,
    )
    write_release(
        order.out,
        generic,
        replace(generic, v_template=woman),
        {name: head.masks[name] for name in REGION_COUNTS},
        embeddings,
        item_rng(order.seed, "flame/editions"),
    )
    _, _, projector = identity_modes(head, arrays.shapedirs.shape[2])
    write_npz({"beta_from_shape": projector}, order.truth / "identity.npz")
