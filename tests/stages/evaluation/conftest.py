"""A tiny face-like relief with seven landmarks, for tests of the benchmark stages."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.datasets.meshes import write_obj
from stages.runtime.artifacts import write_json, write_table
from stages.runtime.contracts import table_of

CHALLENGES = ("multiview_neutral", "multiview_expressions", "selfie")
SUBJECTS = ("FaMoS_001", "FaMoS_002")


def height(x, y):
    """A dome, a nose and two sockets in mm; no symmetry to slide along."""
    dome = 40 * np.exp(-(x**2 / 70**2 + y**2 / 90**2))
    nose = 22 * np.exp(-(x**2 / 12**2 + (y + 5) ** 2 / 22**2))
    sockets = -9 * np.exp(-((np.abs(x) - 32) ** 2 + (y - 28) ** 2) / 14**2)
    return dome + nose + sockets + 0.03 * x * np.sin(y / 15)


def relief(step: float, bump: float = 0.0):
    """Vertices (mm) and faces over a square grid of that step; ``bump`` raises one cheek."""
    axis = np.arange(-90.0, 90.0 + 1e-9, step)
    x, y = np.meshgrid(axis, axis)
    z = height(x, y) + bump * np.exp(-((x - 25) ** 2 + (y + 30) ** 2) / 20**2)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    index = np.arange(len(axis) ** 2).reshape(len(axis), len(axis))
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    return vertices, faces


def seven() -> np.ndarray:
    """The relief's NoW landmarks, mm."""
    xy = np.array(
        [[-45, 28], [-18, 28], [18, 28], [45, 28], [0, -28], [-25, -50], [25, -50]], np.float64
    )
    return np.column_stack([xy, height(xy[:, 0], xy[:, 1])])


def picked_points(points: np.ndarray, names: list[str] | None = None) -> str:
    """A MeshLab PickedPoints file: eight lines of header, then one line per point."""
    names = names or [str(number) for number in range(len(points))]
    lines = ["<!DOCTYPE PickedPoints>", "<PickedPoints>", " <DocumentData>"]
    lines += ['  <DateTime time="12:00:00" date="2018-04-24"/>', '  <User name="nobody"/>']
    lines += ['  <DataFileName name="scan.obj"/>', '  <templateName name=""/>', " </DocumentData>"]
    lines += [
        f' <point y="{p[1]}" z="{p[2]}" active="1" x="{p[0]}" name="{name}"/>'
        for p, name in zip(points, names, strict=True)
    ]
    return "\n".join([*lines, "</PickedPoints>"]) + "\n"


def images() -> list[str]:
    """Item names of the tiny benchmark: two subjects, three challenges, one image each."""
    return sorted(f"{s}/{c}/IMG_{k:04d}" for s in SUBJECTS for k, c in enumerate(CHALLENGES))


def submit(folder: Path, item: str, bump: float, unit_mm: float = 1000.0) -> None:
    """One prediction in the submission layout."""
    vertices, faces = relief(6.0, bump=bump)
    write_obj(folder / f"{item}.obj", vertices / unit_mm, faces, decimals=8)
    np.save(folder / f"{item}.npy", seven() / unit_mm)


def write_packed_now(folder: Path) -> None:
    """``data/packed/now`` as the pack stage leaves it; the last image is a failed row."""
    raw = {"source_path": "x", "source_sha256": "0", "split": "val", "attributes": "{}"}
    rows = []
    for number, item in enumerate(images()):
        failed = number == len(images()) - 1
        rows.append(
            raw
            | {
                "item_id": item,
                "subject_id": f"NOW/{item.split('/')[0]}",
                "status": "failed" if failed else "ok",
                "reason": "truncated image" if failed else "",
            }
        )
    scans = []
    for number, subject in enumerate(SUBJECTS):
        vertices, faces = relief(4.0, bump=2.0 * number)
        scans.append(
            raw
            | {
                "item_id": f"{subject}/scan",
                "subject_id": f"NOW/{subject}",
                "status": "ok",
                "reason": "",
                "vertices": vertices.ravel(),
                "faces": faces.ravel(),
                "unit": "mm",
                "landmarks": seven().ravel(),
                "landmark_order": "now7",
                "neutral": True,
                "capped": True,
            }
        )
    write_table(table_of(rows, "images"), folder / "images-00000.parquet")
    for number, scan in enumerate(scans):
        write_table(table_of([scan], "scans"), folder / f"scans-{number:05d}.parquet")


def write_predictions(folder: Path, bump: float = 1.0) -> None:
    """``data/predictions/<method>`` as the reconstruct stage leaves it."""
    rows = []
    for item in images()[:-1]:
        submit(folder / "now", item, bump)
        rows.append(
            {
                "item_id": item,
                "subject_id": f"NOW/{item.split('/')[0]}",
                "status": "ok",
                "reason": "",
                "benchmark": "now",
                "challenge": item.split("/")[1],
                "mesh": f"now/{item}.obj",
                "landmarks": f"now/{item}.npy",
                "provider": "dlib",
            }
        )
    write_table(table_of(rows, "predictions"), folder / "rows.parquet")
    write_json({"unit": "m", "synthetic": True, "weights": "random"}, folder / "meta.json")


def write_now_raw(folder: Path) -> None:
    """The same benchmark in the owners' layout."""
    for number, subject in enumerate(SUBJECTS):
        vertices, faces = relief(4.0, bump=2.0 * number)
        write_obj(folder / "scans" / subject / "scan.obj", vertices, faces)
        marks = folder / "scans_lmks_onlypp" / subject / "scan_picked_points.pp"
        marks.parent.mkdir(parents=True)
        marks.write_text(picked_points(seven()))
    listed = "".join(f"{item}.jpg\n" for item in images())
    (folder / "imagepathsvalidation.txt").write_text(listed)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The builders of this file."""
    return SimpleNamespace(
        relief=relief,
        height=height,
        seven=seven,
        picked_points=picked_points,
        images=images,
        submit=submit,
        write_packed_now=write_packed_now,
        write_predictions=write_predictions,
        write_now_raw=write_now_raw,
    )
