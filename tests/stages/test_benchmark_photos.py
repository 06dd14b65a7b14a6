"""Which photographs make which mesh, and the reconstruct stage on every benchmark."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from models.methods.pose import ScaledOrthographic
from stages import reconstruct
from stages.benchmarks.benchmark_photos import BENCHMARKS, Job, Photo, benchmark_jobs
from stages.datasets.meshes import read_mesh
from stages.inference.types import Reconstruction
from stages.reconstruct import reconstruct_job, write_answer
from stages.runtime.artifacts import read_json, read_table, write_bytes, write_table
from stages.runtime.contracts import schema, table_of
from stages.runtime.params import BenchmarkSizes, ComputeParams, load

FACES = np.array([[0, 1, 2]])
CLIPS = ("Indoor-Cooperative", "PTZ-Indoor")


def packed(folder: Path, rows: list[tuple[str, dict[str, object], str]]) -> None:
    """Packed photographs and landmarks; each photograph's byte and first point is its number."""
    images, points = [], []
    for number, (item, attributes, trouble) in enumerate(rows):
        row = {
            "item_id": item, "subject_id": f"X/{item.split('/')[0]}", "source_path": item,
            "status": "failed" if trouble == "truncated" else "ok", "split": "",
            "reason": trouble if trouble == "truncated" else "", "source_sha256": "",
            "attributes": json.dumps(attributes), "image": bytes([number]),
        }  # fmt: skip
        images.append(row)
        kept = {key: row[key] for key in ("item_id", "subject_id")}
        face = trouble != "no face"
        points.append(
            {
                **kept,
                "status": "ok" if face else "failed",
                "reason": "" if face else trouble,
                "points_px": np.full(136, float(number)) if face else None,
                "provider": "dlib",
            }
        )
    name = folder.name
    root = folder.parents[1]
    write_table(table_of(images, "images"), folder / "images-00000.parquet")
    write_table(table_of(points, "landmarks"), root / "landmarks" / name / "landmarks.parquet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "packed"
    packed(root / "now", [("A/selfie/1.jpg", {}, ""), ("A/selfie/0", {}, "truncated")])
    stirling = [("M1/M1_001", {"quality": "HQ"}, ""), ("M1/M1_002", {"quality": "LQ"}, "no face")]
    packed(root / "stirling", stirling)
    frames = [
        (f"subject_0{s}/{clip}/frame_{f}", {"clip": clip}, "no face" if (s, f) == (2, 1) else "")
        for s in (2, 1)
        for clip in CLIPS
        for f in (1, 0)
    ]
    packed(root / "florence", frames)
    poses = [(f"Tester_1/pose_{k}_photo", {"pose": k}, "") for k in (10, 2, 0)]
    packed(root / "facewarehouse", poses)
    pictures = [
        ("F1/F1_NE00WH_F2D_photo", {"expression": "NE", "picture": "F2D"}, ""),
        ("F1/F1_NE00WH_RAW_photo", {"expression": "NE", "picture": "RAW"}, ""),
        ("F1/F1_SU01WH_F2D_photo", {"expression": "SU", "picture": "F2D"}, ""),
    ]
    packed(root / "bu3dfe", pictures)
    return tmp_path


def targets(jobs: list[Job]) -> list[str]:
    return [job.target for job in jobs]


def test_names_are_those_of_the_submissions(data: Path) -> None:
    found = {name: targets(benchmark_jobs(data, name, True)) for name in BENCHMARKS}
    assert found == {
        "now": ["A/selfie/0", "A/selfie/1"],
        "stirling": ["HQ/M1_001", "LQ/M1_002"],
        "florence": [f"subject_0{s}/{clip}" for s in (1, 2) for clip in CLIPS],
        "facewarehouse": [f"Tester_1/pose_{k}" for k in (0, 10, 2)],
        "bu3dfe": ["F1/F1_NE00WH_RAW"],
    }
    now = benchmark_jobs(data, "now", True)
    assert [job.item_id for job in now] == ["A/selfie/0", "A/selfie/1.jpg"]  # as packed
    assert {job.challenge for job in now} == {"selfie"}
    assert [job.challenge for job in benchmark_jobs(data, "stirling", True)] == ["HQ", "LQ"]


def test_reasons_photographs_and_providers(data: Path) -> None:
    broken, whole = benchmark_jobs(data, "now", True)
    assert broken.photos == (Photo(b"", None, "", "truncated"),)
    assert whole.photos[0].image == b"\x00"
    assert whole.photos[0].provider == "dlib"
    assert whole.photos[0].points_px is not None
    faceless = benchmark_jobs(data, "stirling", True)[1]
    assert faceless.photos[0].reason == "no landmarks: no face"
    blind = benchmark_jobs(data, "stirling", False)[1]
    assert blind.photos == (Photo(b"", None, "", ""),)
    video = benchmark_jobs(data, "florence", True)[2]
    assert [photo.reason for photo in video.photos] == ["", "no landmarks: no face"]


def test_which_are_chosen_does_not_depend_on_what_else_there_is(data: Path) -> None:
    few = targets(benchmark_jobs(data, "facewarehouse", True, 2))
    assert len(few) == 2
    folder = data / "packed" / "facewarehouse"
    rows = [(f"Tester_1/pose_{k}_photo", {"pose": k}, "") for k in (10, 2, 0)]
    packed(folder, [rows[2], rows[0], rows[1]])
    assert targets(benchmark_jobs(data, "facewarehouse", True, 2)) == few
    packed(folder, [row for row in rows if row[0].removesuffix("_photo") in few])
    assert targets(benchmark_jobs(data, "facewarehouse", True, 2)) == few


class Copies:
    """Answers the number of the photograph."""

    needs_landmarks = True

    def __init__(self) -> None:
        self.facts: dict[str, object] = {}

    def __call__(self, image: np.ndarray, points_px: np.ndarray) -> Reconstruction:
        k = float(points_px[0, 0])
        if k == 99:
            raise ValueError("99 shows too little")
        vertices = np.full((3, 3), k)
        camera = ScaledOrthographic(np.eye(3), 1.0, np.zeros(2))
        return Reconstruction(vertices, FACES, np.full((51, 3), k), vertices + 0.5, camera)


def job(benchmark: str, *numbers: float, expression: bool = False) -> Job:
    photos = tuple(Photo(PNG, np.full((68, 2), k), "dlib", "") for k in numbers)
    return Job(benchmark, "a/b", "a/b", "X/a", "b", expression, photos)


def made(wanted: Job, folder: Path) -> dict[str, Any]:
    return write_answer(wanted, reconstruct_job(wanted, Copies), folder=folder)


PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()


def test_a_video_gives_the_mean_of_its_frames(tmp_path: Path) -> None:
    row = made(job("florence", 1.0, 99.0, 4.0), tmp_path)
    assert (row["status"], row["photographs"]) == ("ok", 2)
    assert row["reason"] == "1 of 3 photographs left out: 99 shows too little"
    assert read_mesh(tmp_path / row["mesh"]).vertices == pytest.approx(2.5)
    assert np.load(tmp_path / row["landmarks"]) == pytest.approx(2.5)
    lost = made(job("florence", 99.0, 99.0), tmp_path)
    assert (lost["status"], lost["reason"]) == ("failed", "99 shows too little")
    table_of([row, lost], "predictions")


def test_expression_is_kept_where_the_benchmark_wants_it(tmp_path: Path) -> None:
    row = made(job("facewarehouse", 3.0, expression=True), tmp_path)
    assert row["mesh"] == "facewarehouse/a/b.obj"
    assert "landmarks" not in row  # those of the neutral face would lie beside it
    assert read_mesh(tmp_path / row["mesh"]).vertices == pytest.approx(3.5)


def test_the_stage_does_what_the_parameters_name(
    data: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = load(repository / "params.yaml").reconstruct
    assert {name for name, _ in section.photographs} == set(BENCHMARKS)
    wanted = BenchmarkSizes(now=None, stirling=0, florence=3, facewarehouse=0, bu3dfe=None)
    section = section.model_copy(update={"photographs": wanted, "max_failed_fraction": 0.5})
    write_bytes(data / "models/flame/model.safetensors", b"decides the meshes")
    mean = Copies()
    mean.needs_landmarks = False
    monkeypatch.setattr(reconstruct, "load_method", lambda *_: mean)
    compute = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
    out = data / "predictions" / "mean"
    reconstruct.run(section, compute, method="mean", data=data, out=out, work=data / ".work")
    table = read_table(out / "rows.parquet")
    assert table.schema.equals(schema("predictions"), check_metadata=False)
    counts = read_json(out / "meta.json")["benchmarks"]
    assert counts == {
        "now": {"meshes": 2, "failed": 1},
        "florence": {"meshes": 3, "failed": 0},
        "bu3dfe": {"meshes": 1, "failed": 0},
    }
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["bu3dfe", "florence", "now"]
    strict = section.model_copy(update={"max_failed_fraction": 0.4})
    with pytest.raises(ValueError, match=r"60% of now .* got 1 of 2: truncated"):
        reconstruct.run(strict, compute, method="mean", data=data, out=out, work=data / ".work")
