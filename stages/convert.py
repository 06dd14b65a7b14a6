"""Stage `convert`. Reads a face model in its owner's files. Writes safetensors, npz and JSON.

Nothing an owner gives is executed (pickles go through ``stages.runtime.unpickle``). The converted
model keeps its own unit; ``meta.json`` says which, where the files came from (SHA-256), under which
kind of licence, and whether they are synthetic.

FLAME: ``model.safetensors`` (v_template, faces, shapedirs, exprdirs, posedirs, J_regressor,
weights, parents; metres), ``embeddings.npz`` (landmarks), ``masks.npz`` (vertex ids by region).
Morphable models: ``model.safetensors`` (mean_shape, shape_basis, shape_sigma, ...), and for 3DDFA
``pncc_code.npz``. Standard deviations, never variances; faces counter-clockwise seen from outside.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from models.face.flame import FlameArrays, LandmarkEmbedding, surface_points
from models.face.morphable import pncc_code
from stages.datasets.flame_files import (
    DYNAMIC_NAME,
    EMBEDDING_NAME,
    FITTING_NAME,
    MASK_NAME,
    STATIC_NAME,
    load_flame,
    model_file,
    read_embedding,
    read_masks,
    read_static_embedding,
)
from stages.datasets.models import MODEL_SOURCES, is_synthetic
from stages.datasets.morphable_files import (
    MorphableFileError,
    leading_mode_mm,
    read_3ddfa,
    read_bfm2009,
    read_bfm2017,
)
from stages.runtime.artifacts import (
    atomic_directory,
    sha256_file,
    write_json,
    write_npz,
    write_safetensors,
)
from stages.runtime.params import ConvertParams, load

__all__ = ["convert", "load_flame", "run"]

logger = logging.getLogger(__name__)

_READERS: dict[str, Callable[[Path], tuple[dict[str, np.ndarray], list[Path]]]] = {
    "bfm2009": read_bfm2009,
    "bfm2017": read_bfm2017,
    "3ddfa": read_3ddfa,
}
_TEXTURE = ("texture_mean", "texture_basis", "texture_sigma")


def flame_tensors(model: FlameArrays) -> dict[str, np.ndarray]:
    """The tensors of a converted FLAME by their stored names."""
    return {
        "v_template": model.v_template,
        "faces": model.faces,
        "shapedirs": model.shapedirs,
        "exprdirs": model.exprdirs,
        "posedirs": model.posedirs,
        "J_regressor": model.joint_regressor,
        "weights": model.weights,
        "parents": model.parents,
    }


def traced_embedding(
    model: FlameArrays,
    static_faces: Int[np.ndarray, "51"],
    static_bary: Float[np.ndarray, "51 3"],
    face: Int[np.ndarray, " n"],
) -> LandmarkEmbedding:
    """The whole embedding where the owner gave the inner landmarks alone.

    Args:
        model: The head.
        static_faces: Triangles of the 51 inner landmarks.
        static_bary: Their weights.
        face: Vertex ids of the mask ``face``, on whose triangles the contour is traced.

    Raises:
        ValueError: The contour cannot be traced on that mask.
    """
    from models.face.contour import dynamic_contour

    vertices = model.v_template.astype(np.float64)
    region = np.flatnonzero(np.isin(model.faces, face).all(axis=1))
    inner = surface_points(vertices, model.faces, static_faces, static_bary)
    ids, bary = dynamic_contour(vertices, model.faces, region, inner)
    return LandmarkEmbedding(
        static_faces=static_faces,
        static_bary=static_bary,
        dynamic_faces=ids,
        dynamic_bary=bary,
        full_faces=np.concatenate([ids[0], static_faces]),
        full_bary=np.concatenate([bary[0], static_bary]),
    )


def _convert_flame(raw: Path, out: Path) -> list[Path]:
    source = model_file(raw)
    model = load_flame(source)
    masks = read_masks(raw / MASK_NAME)
    if contour_source(raw) == "owner":
        whole = (raw / EMBEDDING_NAME).is_file()
        names = (EMBEDDING_NAME,) if whole else (STATIC_NAME, DYNAMIC_NAME)
        sources = [source, *(raw / name for name in names)]
        embedding = read_embedding(raw)
    else:
        sources = [source, raw / STATIC_NAME]
        logger.warning("%s has no contour of a turned head; it is traced on the template", raw)
        static = read_static_embedding(raw / STATIC_NAME)
        if "face" not in masks:
            raise ValueError(
                f"{raw / MASK_NAME}: expected a mask 'face' to trace the contour on, got "
                f"{sorted(masks)}; or add {DYNAMIC_NAME}"
            )
        embedding = traced_embedding(model, *static, masks["face"])
    vertices, faces = len(model.v_template), len(model.faces)
    for name in ("static_faces", "dynamic_faces", "full_faces"):
        ids = getattr(embedding, name)
        if ids.min() < 0 or ids.max() >= faces:
            raise ValueError(f"{raw}: landmark embedding {name} refers beyond {faces} triangles")
    write_safetensors(flame_tensors(model), out / "model.safetensors")
    named = {name: getattr(embedding, name) for name in embedding.__dataclass_fields__}
    write_npz(named, out / "embeddings.npz")
    other = raw / FITTING_NAME
    if other.is_file():
        ids, weights = read_static_embedding(other)
        if ids.min() < 0 or ids.max() >= faces:
            raise ValueError(f"{other}: the embedding refers beyond {faces} triangles")
        edition = {"static_faces": ids, "static_bary": weights}
        write_npz(edition, out / "embedding-flame-fitting.npz")
        sources.append(other)
    for name, ids in masks.items():
        if len(ids) and (ids.min() < 0 or ids.max() >= vertices):
            raise ValueError(f"{raw / MASK_NAME}: mask {name!r} refers beyond {vertices} vertices")
    write_npz(masks, out / "masks.npz")
    return [*sources, raw / MASK_NAME]


def contour_source(raw: Path) -> str:
    """``owner`` where the folder has the contour of a turned head, else ``traced``."""
    given = (raw / EMBEDDING_NAME).is_file() or (raw / DYNAMIC_NAME).is_file()
    return "owner" if given else "traced"


def _convert_morphable(kind: str, raw: Path, out: Path, p: ConvertParams) -> list[Path]:
    arrays, files = _READERS[kind](raw)
    if not p.texture:
        arrays = {name: values for name, values in arrays.items() if name not in _TEXTURE}
    moved = leading_mode_mm(arrays, MODEL_SOURCES[kind].unit_m)
    if not p.leading_mode_min_mm <= moved <= p.leading_mode_max_mm:
        raise MorphableFileError(
            f"{files[0]}: the first shape mode moves vertices by {moved:g} mm per standard "
            f"deviation, expected {p.leading_mode_min_mm} to {p.leading_mode_max_mm}; are these "
            "variances, or another unit?"
        )
    write_safetensors(arrays, out / "model.safetensors")
    if kind == "3ddfa":
        write_npz({"code": pncc_code(arrays["mean_shape"])}, out / "pncc_code.npz")
    return files


def convert(kind: str, raw: Path, out: Path, p: ConvertParams) -> None:
    """Convert one model into the existing folder ``out``.

    Args:
        kind: ``flame``, ``bfm2009``, ``bfm2017`` or ``3ddfa``.
        raw: Folder with the owner's files.
        out: Folder to fill.
        p: The stage's parameters.

    Raises:
        KeyError: Unknown kind.
        FileNotFoundError: Files are missing; says which, what for and where their owner gives them.
        ValueError: A file is damaged or contradicts another.
    """
    source = MODEL_SOURCES[kind]
    problems = [problem for problem in source.validate(raw) if problem.required]
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise FileNotFoundError(f"{source.title}: files are missing in {raw}:\n{listing}")
    flame = kind == "flame"
    files = _convert_flame(raw, out) if flame else _convert_morphable(kind, raw, out, p)
    write_json(
        {
            "kind": kind,
            "title": source.title,
            "unit": source.unit,
            "unit_m": source.unit_m,
            "synthetic": is_synthetic(raw),
            "licence": source.licence,
            "homepage": source.homepage,
            **({"contour": contour_source(raw)} if flame else {}),
            "sources": [
                {"path": file.relative_to(raw).as_posix(), "sha256": sha256_file(file)}
                for file in files
            ],
        },
        out / "meta.json",
    )


def run(p: ConvertParams, *, model: str, raw: Path, out: Path) -> None:
    """Convert ``model`` from ``raw`` into ``out``, whole or not at all."""
    with atomic_directory(out) as scratch:
        convert(model, raw, scratch, p)
    logger.info("converted %s from %s", model, raw)


def main() -> None:
    """Command line: names and paths only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, choices=sorted(MODEL_SOURCES))
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()

    from stages.runtime.process import begin

    begin("convert")
    try:
        run(load().convert, model=arguments.model, raw=arguments.raw, out=arguments.out)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"convert: {error}") from error


if __name__ == "__main__":
    from stages.convert import main as imported_main  # Ray workers find it by name

    imported_main()
