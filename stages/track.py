"""``faceline track``: a face through a video.

Reads a video (or a folder of frames), the 68-point predictor, a method's weights and face model.
Writes ``frames.parquet`` (one row per frame, failures too), ``parameters.safetensors`` (one row per
tracked frame), ``overlay.mp4``, ``meta.json`` and, when asked, ``meshes/NNNNN.obj`` (mm).

What was computed for a frame is kept in the work folder until the video is done, under a name made
of the inputs, the code and the parameters: a run that was killed goes on after the last frame, and
ends with the bytes of a run that was not. Not a stage of the graph, which reads no videos.
"""

import contextlib
import itertools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from models.face.face_path import acceleration_px, smooth_points
from models.methods.tracker import Frame, StartError
from models.metrics.images import depth_rmse, photometric_rmse
from stages.landmarking.landmark_predictor import FILE_NAME
from stages.runtime import params
from stages.runtime.artifacts import (
    atomic_directory,
    read_safetensors,
    sha256_file,
    sha256_json,
    write_json,
    write_safetensors,
    write_table,
)
from stages.runtime.contracts import table_of
from stages.runtime.fingerprint import hash_code
from stages.tracking.faces import FacePath, Tell, find_faces
from stages.tracking.types import Arrays, VideoMethod
from stages.video import Video, write_video

logger = logging.getLogger(__name__)

METHODS = ("mica", "pix2face")
Row = dict[str, Any]
POINT_RGB = {"detected": (255, 196, 0), "fitted": (40, 220, 90)}
FOUND = "faces"
BEGUN = "begin"


def track_video(
    path: Path,
    out: Path,
    *,
    method: str,
    loaded: params.Params,
    data: Path,
    work: Path,
    checkpoint: Path | None = None,
    focal_px: float | None = None,
    shape: Path | None = None,
    depth: Path | None = None,
    meshes: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> Row:
    """Track the face of one video.

    Args:
        path: Video file, or a folder of pictures in the order of their names.
        out: Replaced when all is done.
        method: One of ``METHODS``.
        loaded: Parameters; ``track`` and, for pix2face, ``reconstruct`` count.
        data: Folder of all stages' outputs: models, checkpoints, the landmark predictor.
        work: Folder of what is kept until the video is done.
        checkpoint: ``model.safetensors`` or its folder; None takes the trained one below ``data``.
        focal_px: The camera's focal length in pixels; None fits it (MICA).
        shape: A known person's ``beta`` (MICA), see :class:`stages.tracking.mica.MicaTracking`.
        depth: Folder of reference depths, one file per frame in the order of their names: ``.npy``
            in mm (NaN: none) or 16-bit PNG in mm (0: none).
        meshes: Write a mesh per frame.
        tell: Progress.

    Returns:
        What ``meta.json`` holds: counts, means, camera, inputs. ``status`` is failed where too many
        frames are.

    Raises:
        FileNotFoundError: The video, a model or a checkpoint is missing.
        ValueError: The video cannot be used, an option does not fit, or no frame can be started on.
    """
    if method not in METHODS:
        raise ValueError(f"expected a method among {', '.join(METHODS)}, got {method!r}")
    if focal_px is not None and not 0.0 < focal_px < np.inf:
        raise ValueError(f"expected a focal length above 0 px, got {focal_px}")
    video = Video(path)
    predictor = data / "landmark_model" / FILE_NAME
    if not predictor.is_file():
        raise FileNotFoundError(
            f"expected the 68-point predictor at {predictor}; make it: faceline run landmark_model"
        )
    if out.exists() and any(out.iterdir()) and not (out / "frames.parquet").is_file():
        raise ValueError(
            f"expected a new or empty folder, or one that an earlier run wrote, got {out}; it "
            "would be replaced"
        )
    references = None if depth is None else _references(depth)
    runner = load_method(method, loaded, data, checkpoint, focal_px, shape)
    section = loaded.track
    detected, answered = (
        (section.smooth.mica, 1) if method == "mica" else (1, section.smooth.pix2face)
    )
    key = {
        "code": hash_code("stages.track"),
        "video": [sha256_file(file) for file in video.files],
        "inputs": runner.facts.inputs,
        "predictor": sha256_file(predictor),
        "section": section.model_dump(mode="json"),
        "pix2face": loaded.reconstruct.pix2face.model_dump(mode="json")
        if method == "pix2face"
        else {},
        "focal_px": focal_px,
        "method": method,
    }
    store = Store(work / "track" / sha256_json(key)[:20])
    found = _kept_faces(store, video, predictor.parent, section, tell, detected)
    if references is not None and len(references) != len(found.names):
        raise ValueError(
            f"expected one reference depth per frame ({len(found.names)}), got {len(references)} "
            f"in {depth}"
        )
    states, reasons = _fit(video, found, runner, store, tell)
    rows = _rows(video, found, reasons)
    parameters: dict[int, Arrays] = {}
    with atomic_directory(out) as scratch:
        pictures = _written(
            video, found, states, rows, parameters, runner, references,
            scratch if meshes else None, answered, tell,
        )  # fmt: skip
        write_video(scratch / "overlay.mp4", pictures, video.fps)
        write_table(table_of(rows, "tracked_frames"), scratch / "frames.parquet")
        meta = _meta(path, found, rows, runner, video.fps, section) | {
            "method": method,
            "smooth": max(detected, answered),
        }
        if parameters:
            stacked = {
                name: np.stack([parameters[index][name] for index in sorted(parameters)])
                for name in next(iter(parameters.values()))
            }
            stacked["frame"] = np.array(sorted(parameters), np.int64)
            facts = {name: meta[name] for name in ("method", "weights", "synthetic", "inputs")}
            write_safetensors(stacked, scratch / "parameters.safetensors", facts)
        write_json(meta, scratch / "meta.json")
    store.clear()
    return meta


def load_method(
    method: str,
    loaded: params.Params,
    data: Path,
    checkpoint: Path | None,
    focal_px: float | None,
    shape: Path | None,
) -> VideoMethod:
    """A method with its weights."""
    weights = checkpoint or data / "checkpoints" / method / "model.safetensors"
    if weights.is_dir():
        weights = weights / "model.safetensors"
    if method == "pix2face":
        if focal_px is not None or shape is not None:
            raise ValueError(
                "expected neither focal length nor shape for pix2face, which uses none"
            )
        from stages.tracking.pix2face import Pix2FaceTracking

        return Pix2FaceTracking(weights, data / "models" / "3ddfa", loaded.reconstruct.pix2face)
    from stages.tracking.mica import MicaTracking

    flame = data / "models" / "flame"
    return MicaTracking(weights, flame, loaded.track, focal_px=focal_px, shape=shape)


class Store:
    """What a run has computed, one file per frame; whole or not there at all."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made with the first file."""
        self.folder = folder

    def get(self, name: str) -> tuple[Arrays, Row] | None:
        """What was kept, or None."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            return read_safetensors(file)
        except ValueError as error:
            logger.warning("%s is computed again: %s", name, error)
            return None

    def put(self, name: str, arrays: Arrays, facts: Row) -> None:
        """Keep it."""
        write_safetensors(arrays, self.folder / f"{name}.safetensors", facts)

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _kept_faces(
    store: Store,
    video: Video,
    predictor: Path,
    section: params.TrackParams,
    tell: Tell,
    smooth: int,
) -> FacePath:
    """The face path, from the store where an earlier run has got that far."""
    if (kept := store.get(FOUND)) is not None:
        values, facts = kept
        height, width = facts["size"]
        return FacePath(
            tuple(facts["names"]), (height, width), values["boxes_px"], tuple(facts["sources"]),
            tuple(facts["counts"]), values["scores"], values["raw_px"], values["points_px"],
            tuple(facts["reasons"]),
        )  # fmt: skip
    found = find_faces(video, predictor, section, tell, smooth=smooth)
    arrays = {name: getattr(found, name) for name in ("boxes_px", "scores", "raw_px", "points_px")}
    lists = {
        name: list(getattr(found, name))
        for name in ("names", "size", "sources", "counts", "reasons")
    }
    store.put(FOUND, arrays, lists)
    return found


def _fit(
    video: Video, found: FacePath, runner: VideoMethod, store: Store, tell: Tell
) -> tuple[dict[int, Arrays], list[str]]:
    """States of the frames that could be fitted, and the reason of every other one."""
    reasons, states = list(found.reasons), {}
    if not found.usable:
        return {}, reasons
    begun, lost = _begin(video, found, runner, store)
    for index, reason in lost.items():
        reasons[index] = reason
    usable = [index for index in found.usable if index not in lost]
    before, last = begun, usable[0] - 1
    known = {k: kept for k in usable if (kept := store.get(_name(k))) is not None}
    missing = _frames(video, found, set(usable) - set(known))
    for index in usable:
        kept = known.get(index)
        if kept is None:
            at, frame = next(missing)
            assert at == index, "frames come in order"
            try:
                state = runner.fit(before, frame, jumped=index != last + 1)
            except ValueError as error:
                kept = {}, {"reason": str(error)}
            else:
                own = {name: v for name, v in state.items() if name not in runner.per_video}
                kept = own, {"reason": ""}
            store.put(_name(index), *kept)
        own, facts = kept
        if facts["reason"]:
            reasons[index] = facts["reason"]
        else:
            before = states[index] = begun | own
            last = index
        tell("tracking", index + 1, len(found.names))
    return states, reasons


def _begin(
    video: Video, found: FacePath, runner: VideoMethod, store: Store
) -> tuple[Arrays, dict[int, str]]:
    """The state to start from, and why frames before it cannot be started on.

    A frame at fault is left out and the next one takes its place among the first.

    Raises:
        ValueError: No frame can be started on; of the first one's reason.
    """
    if (kept := store.get(BEGUN)) is not None:
        return kept[0], dict(kept[1]["lost"])
    lost: dict[int, str] = {}
    first: list[tuple[int, Frame]] = []
    ahead = _frames(video, found, set(found.usable))
    failure: ValueError | None = None
    while True:
        first += itertools.islice(ahead, runner.first_frames - len(first))
        if failure is not None and not first:
            raise failure
        try:
            begun = runner.begin([frame for _, frame in first])
        except ValueError as error:
            if not first:
                raise
            failure = failure or error
            index, _ = first.pop(error.frame if isinstance(error, StartError) else 0)
            lost[index] = str(error)
        else:
            store.put(BEGUN, begun, {"lost": sorted(lost.items())})
            return begun, lost


def _name(index: int) -> str:
    return f"{index:06d}"


def _frames(video: Video, found: FacePath, wanted: set[int]) -> Iterator[tuple[int, Frame]]:
    """Wanted frames with their smoothed landmarks; reading ends after the last one."""
    if not wanted:
        return
    for frame in video:
        if frame.index in wanted and frame.image is not None:
            yield frame.index, Frame(frame.image, found.points_px[frame.index])
        if frame.index >= max(wanted):
            return


def _rows(video: Video, found: FacePath, reasons: list[str]) -> list[Row]:
    """Table rows without what the fit says."""
    rows = []
    for index, name in enumerate(found.names):
        known = np.isfinite(found.boxes_px[index]).all()
        marked = np.isfinite(found.points_px[index]).all()
        rows.append(
            {
                "frame": index,
                "name": name,
                "time_s": index / video.fps,
                "status": "failed" if reasons[index] else "ok",
                "reason": reasons[index],
                "box_px": found.boxes_px[index].tolist() if known else None,
                "box_source": found.sources[index],
                "faces": found.counts[index],
                "score": float(found.scores[index]) if np.isfinite(found.scores[index]) else None,
                "landmarks_px": found.points_px[index].ravel().tolist() if marked else None,
            }
        )
    return rows


def _written(
    video: Video,
    found: FacePath,
    states: dict[int, Arrays],
    rows: list[Row],
    parameters: dict[int, Arrays],
    runner: VideoMethod,
    references: list[Path] | None,
    meshes: Path | None,
    smooth: int,
    tell: Tell,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Pictures of the overlay; fills rows and parameters and writes meshes on the way."""
    from stages.datasets.meshes import write_obj

    fitted = np.full((len(found.names), 68, 2), np.nan)
    for index, state in states.items():
        fitted[index] = runner.points_px(state, found.size)
    fitted = smooth_points(fitted, smooth)
    blank = np.zeros((*found.size, 3), np.uint8)
    for frame in video:
        index, row = frame.index, rows[frame.index]
        image = blank if frame.image is None else frame.image
        left = _marked(image, found.points_px[index], POINT_RGB["detected"])
        if index not in states:
            yield np.concatenate([left, image // 3], axis=1)
            continue
        answer = runner.answer(states[index], found.size)
        parameters[index] = dict(answer.parameters)
        row["fitted_px"] = fitted[index].ravel().tolist()
        apart = np.linalg.norm(fitted[index] - found.points_px[index], axis=1)
        row["landmark_rms_px"] = float(np.sqrt(np.mean(apart**2)))
        if answer.colours is not None:
            mask = np.isfinite(answer.colours).all(axis=2)
            if mask.any():
                row["photometric_rmse"] = photometric_rmse(answer.colours, image * 1.0, mask)
        if references is not None and answer.depth_mm is not None:
            row.update(_depth_errors(answer.depth_mm, read_depth(references[index])))
        if meshes is not None:
            write_obj(
                meshes / "meshes" / f"{index:06d}.obj", answer.vertices_mm, runner.faces, decimals=4
            )
        drawn = _marked(runner.draw(states[index], image), fitted[index], POINT_RGB["fitted"])
        yield np.concatenate([left, drawn], axis=1)
        tell("writing", index + 1, len(found.names))


def _depth_errors(
    fitted_mm: Float[np.ndarray, "h w"], reference_mm: Float[np.ndarray, "h w"]
) -> Row:
    if reference_mm.shape != fitted_mm.shape:
        raise ValueError(
            f"expected reference depths of {fitted_mm.shape} (height, width) like the frames, got "
            f"{reference_mm.shape}"
        )
    both = np.isfinite(fitted_mm) & np.isfinite(reference_mm)
    if not both.any():
        return {}
    bias = float((fitted_mm[both] - reference_mm[both]).mean())
    return {"depth_rmse_mm": depth_rmse(fitted_mm, reference_mm, both), "depth_bias_mm": bias}


def _references(folder: Path) -> list[Path]:
    """Files of reference depth in the order of their names.

    Raises:
        FileNotFoundError: There is no such folder, or none in it.
    """
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".npy", ".png"))
    if not files:
        raise FileNotFoundError(
            f"expected depth maps (.npy or 16-bit .png, mm) in {folder}, got none"
        )
    return files


def read_depth(file: Path) -> Float[np.ndarray, "h w"]:
    """One depth map in mm, NaN where there is none.

    Raises:
        ValueError: It is neither a 2-D array nor a 16-bit picture.
    """
    if file.suffix.lower() == ".npy":
        depth = np.load(file, allow_pickle=False)
        if depth.ndim != 2 or depth.dtype.kind not in "fiu":
            raise ValueError(
                f"expected a 2-D array of mm in {file}, got {depth.shape} {depth.dtype}"
            )
        return depth.astype(np.float64)
    import cv2

    picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 2 or picture.dtype != np.uint16:
        raise ValueError(f"expected a 16-bit grey picture of mm in {file}")
    return np.where(picture > 0, picture.astype(np.float64), np.nan)


def _marked(
    image: UInt8[np.ndarray, "h w 3"],
    points: Float[np.ndarray, "68 2"],
    colour: tuple[int, int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy with a dot per landmark."""
    import cv2

    drawn = image.copy()
    if np.isfinite(points).all():
        radius = max(1, round(min(image.shape[:2]) / 256))
        for x, y in points - 0.5:
            at = (round(float(x)), round(float(y)))
            cv2.circle(drawn, at, radius, colour, -1, cv2.LINE_AA)
    return drawn


def _meta(
    path: Path,
    found: FacePath,
    rows: list[Row],
    runner: VideoMethod,
    fps: float,
    section: params.TrackParams,
) -> Row:
    """Counts, means and where everything came from."""
    good = [row for row in rows if row["status"] == "ok"]
    failed = len(rows) - len(good)
    lost = sorted({row["reason"] for row in rows if row["reason"]})
    too_many = not good or failed > section.max_failed_fraction * len(rows)
    meta: Row = {
        "video": path.name,
        "status": "failed" if too_many else "ok",
        "reason": "; ".join(lost[:3]) if too_many else "",
        "frames": len(rows),
        "tracked": len(good),
        "failed": failed,
        "interpolated": sum(s in ("interpolated", "held") for s in found.sources),
        "height_px": found.size[0],
        "width_px": found.size[1],
        "fps": fps,
        "weights": runner.facts.weights,
        "synthetic": runner.facts.synthetic,
        "inputs": runner.facts.inputs,
        **runner.facts.more,
    }
    for name in ("landmark_rms_px", "photometric_rmse", "depth_rmse_mm", "depth_bias_mm"):
        values = [row[name] for row in good if row.get(name) is not None]
        if values:
            meta[f"{name}_mean"] = float(np.mean(values))
    blank = [np.nan] * 136
    points = np.array([row.get("fitted_px") or blank for row in rows], np.float64)
    with contextlib.suppress(ValueError):  # no three neighbouring frames
        meta["jitter_px"] = acceleration_px(points.reshape(len(rows), 68, 2))
    return meta
