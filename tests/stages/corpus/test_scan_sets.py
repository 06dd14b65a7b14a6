"""FRGC, BU-3DFE and BP4D+ as generated: what their readers give is the head, where it stood."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from stages.corpus import binghamton, frgc
from stages.datasets.base import ScanRow
from stages.datasets.meshes import triangulate
from stages.datasets.range_image import read_range_image
from stages.datasets.registry import DATASETS
from stages.runtime.artifacts import read_table
from stages.synthesize import synthesize
from tests.stages.datasets.raw_trees import write
from tests.stages.test_synthesize import COMPUTE, SEED, SIZES, digest, made

SETS = ("frgc", "bu3dfe", "bp4d")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


def scans(root: Path, source: str) -> dict[str, ScanRow]:
    found = {}
    for ref in DATASETS[source].discover(root):
        if ref.kind == "scan":
            try:
                row = DATASETS[source].read(root, ref)
            except ValueError:
                continue
            assert isinstance(row, ScanRow)
            found[ref.item_id] = row
    return found


@pytest.mark.parametrize("source", SETS)
def test_read_scans_lie_on_the_landmarks_of_the_truth(corpus: Path, source: str) -> None:
    rows = scans(made(corpus, source), source)
    truth = read_table(corpus / "truth" / source / "scans.parquet").to_pylist()
    faceless = max(row["subject"] for row in truth) if source == "frgc" else ""  # the last kind
    checked = 0
    for row in truth:
        names = [row["item"], row["item"] + f"@{row['subject']}"]
        scan = next((rows[name] for name in names if name in rows), None)
        if scan is None or row["subject"] == faceless:
            continue
        landmarks = np.reshape(row["landmarks"], (68, 3))[17:]
        distance = cKDTree(scan.vertices).query(landmarks)[0]
        assert np.median(distance) < 3.0, row["item"]
        assert not (scan.neutral and row["expression"]), row["item"]
        centre = scan.vertices[scan.faces].mean(axis=1)
        corners = scan.vertices[scan.faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        face = np.linalg.norm(centre - landmarks.mean(axis=0), axis=1) < 50.0
        rotation = np.reshape(row["rotation"], (3, 3))
        assert ((normal[face] @ rotation[:, 2]) > 0).mean() > 0.9  # outward: along the gaze
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("source", SETS)
def test_every_sound_subject_has_a_neutral_scan_and_a_photograph(corpus: Path, source: str) -> None:
    root = made(corpus, source)
    neutral = {item.split("/")[0] for item, row in scans(root, source).items() if row.neutral}
    people = read_table(corpus / "truth" / source / "people.parquet")["subject"].to_pylist()
    assert len(neutral) >= len(people) - 4
    photos = {ref.subject_id for ref in DATASETS[source].discover(root) if ref.kind == "image"}
    assert {f"{DATASETS[source].prefix}/{name}" for name in neutral} - photos == set()
    assert DATASETS[source].validate(root) == []


@pytest.mark.parametrize("source", SETS)
def test_same_bytes_again(corpus: Path, tmp_path: Path, source: str) -> None:
    first = digest(made(corpus, source))
    synthesize(source, tmp_path / "raw", tmp_path / "truth", SIZES, COMPUTE, SEED)
    assert digest(tmp_path / "raw") == first
    assert digest(tmp_path / "truth") == digest(corpus / "truth" / source)


def test_range_images_are_seen_from_their_camera(corpus: Path) -> None:
    """Every pixel's point lies on the ray through that pixel."""
    made(corpus, "frgc")
    root = corpus / "raw" / "frgc"
    cameras = {
        row["item"]: row
        for row in read_table(corpus / "truth" / "frgc" / "images.parquet").to_pylist()
    }
    checked = 0
    for path in sorted(root.rglob("*.abs*")):
        subject, _, number = path.name.split(".")[0].partition("d")
        camera = cameras.get(f"{subject}/{subject}d{int(number) + 1}")
        if camera is None:
            continue
        image = read_range_image(path)
        assert image.valid.shape == (480, 640)
        row, column = np.nonzero(image.valid)
        x, y, z = image.points[image.valid].T
        assert (z < -1000).all()
        u = camera["centre_px"][0] + camera["scale_px"] * x / -z
        v = camera["centre_px"][1] - camera["scale_px"] * y / -z
        np.testing.assert_allclose(u, column + 0.5, atol=0.01)
        np.testing.assert_allclose(v, row + 0.5, atol=0.01)
        checked += 1
    assert checked >= 6


def test_the_dirt_is_there(corpus: Path) -> None:
    root = made(corpus, "frgc")
    assert {p.name.partition(".")[2] for p in root.rglob("*d*.*")} >= {
        "abs", "abs.gz", "jpg", "ppm.gz",
    }  # fmt: skip
    assert list((root / "nd1").glob("Spring2003range/*.abs*"))
    heads = [path.read_bytes()[:40] for path in root.rglob("*.abs")]
    assert any(head.startswith(b"480 rows\n640 columns\n") for head in heads)
    root = made(corpus, "bu3dfe")
    texts = [path.read_text("latin1") for path in sorted(root.rglob("*_RAW.wrl"))]
    lines = [text.rpartition("coordIndex")[2].splitlines() for text in texts]
    assert any("\r\n" in text for text in texts) or any(t.startswith("\xef\xbb\xbf") for t in texts)
    assert any(len(line.split()) == 5 for found in lines for line in found)  # quads
    assert list(root.glob("raw_ne_data/*.obj"))
    assert list(root.rglob("*_RAW_0.jpg"))
    lonely = [p for p in root.rglob("*_F3D.wrl")
              if not p.with_name(p.name.replace("F3D", "RAW")).exists()]  # fmt: skip
    assert lonely
    listed = (made(corpus, "bp4d") / "neutral_frames.csv").read_text().split()
    assert {"/" in line for line in listed[1:]} == {True, False}


def test_abs_text_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    points, valid = rng.normal(0.0, 500.0, (4, 5, 3)), rng.random((4, 5)) < 0.7
    for variant, digits in ((0, 6), (5, 3)):
        image = read_range_image(
            write(tmp_path / "a.abs", frgc.abs_text(points, valid, variant=variant))
        )
        np.testing.assert_array_equal(image.valid, valid)
        np.testing.assert_allclose(image.points[valid], points[valid], atol=0.6 * 10.0**-digits)


def test_quads_fan_back_into_the_triangles() -> None:
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [9, 7, 8], [9, 8, 3], [1, 4, 7]])
    quads, rest = binghamton.with_quads(faces)
    assert len(quads) == 2
    assert len(rest) == 2
    fanned = triangulate(np.full(len(quads), 4), quads.ravel())

    def turned(rows: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(tuple(np.roll(row, -row.argmin()).tolist()) for row in rows)

    assert turned(np.concatenate([fanned, rest])) == turned(faces)


def test_83_points_pass_through_the_corners() -> None:
    landmarks = np.random.default_rng(0).normal(0.0, 40.0, (68, 3))
    points = binghamton.points83(landmarks)
    assert points.shape == (83, 3)
    for place in (36, 42, 17, 21, 22, 26, 27, 35, 0, 16, 48, 60):
        assert np.isclose(points, landmarks[place]).all(axis=1).any(), place
    moved = binghamton.points83(landmarks * 2.0 + 5.0)
    np.testing.assert_allclose(moved, points * 2.0 + 5.0)
