"""Landmark errors from the table of predictions, and which photographs are predicted."""

from pathlib import Path

import numpy as np
import pytest

from stages.landmarking.landmark_scores import TABLE, finished, labelled_photos, score_landmarks
from stages.reporting.inputs import Evaluation
from stages.reporting.landmark_errors import landmark_error_section
from stages.runtime.artifacts import write_table
from stages.runtime.contracts import table_of
from tests.stages.training.conftest import failed_row, image_row


def annotated(tmp_path: Path) -> Path:
    """Two people with two photographs each, two of AFLW2000-3D, and rows of no use."""
    points = np.random.default_rng(0).uniform(20, 60, 136)
    picture = np.zeros((80, 80, 3), np.uint8)
    rows = [failed_row("AFW/broken")]
    for person in "ab":
        for shot in range(2):
            rows.append(
                image_row(f"AFW/{person}{shot}", f"W/{person}", picture, landmarks_px=points)
            )
    for number in range(2):
        item = f"AFLW2000/{number}"
        rows.append({**image_row(item, item, picture, landmarks_px=points), "split": "test"})
    rows.append(image_row("AFW/unlabelled", "W/a", picture))
    write_table(table_of(rows, "images"), tmp_path / "images-00000.parquet")
    return tmp_path


def test_only_photographs_that_nothing_learned_from(tmp_path: Path) -> None:
    packed = annotated(tmp_path)
    photos = labelled_photos(packed, frozenset({"W/a"}), None)
    assert [photo.item_id for photo in photos] == [
        "AFLW2000/0",
        "AFLW2000/1",
        "AFW/a0",
        "AFW/a1",
    ]
    assert [photo.set for photo in photos] == ["aflw2000"] * 2 + ["300w_lp"] * 2
    few = labelled_photos(packed, frozenset({"W/a"}), 1)
    assert sorted(photo.set for photo in few) == ["300w_lp", "aflw2000"]
    assert len({photo.key for photo in photos}) == 1  # same picture, same labels


def test_errors_written_out(tmp_path: Path) -> None:
    photos = labelled_photos(annotated(tmp_path), frozenset({"W/a"}), None)
    rng = np.random.default_rng(1)
    rows, nmes, far = [], [], []
    for number, photo in enumerate(photos):
        if number == 3:
            rows.append(finished(photo, {"reason": "pix2face needs >= 10 vertices seen, got 2"}))
            continue
        px = photo.points_px + rng.normal(size=(68, 2))
        mm = rng.normal(size=(68, 3))
        found = {"reason": "", "points_px": px, "points_mm": mm}
        if number != 1:
            found["true_mm"] = mm + np.array([0, 0, 2.0 + number])
            far.append((photo.set, 2.0 + number))
        corners = np.linalg.norm(photo.points_px[36] - photo.points_px[45])
        error = np.linalg.norm(px - photo.points_px, axis=1).mean() / corners
        nmes.append((photo.set, error))
        rows.append(finished(photo, found))
    write_table(table_of(rows, "landmark_predictions"), tmp_path / TABLE)
    scores = score_landmarks(tmp_path)
    assert set(scores) == {"300w_lp", "aflw2000"}
    lp = scores["300w_lp"]
    assert (lp["photographs"], lp["scored"], lp["people"]) == (2, 1, 1)
    assert lp["failed"] == {"pix2face needs >= 10 vertices seen, got 2": 1}
    for name, part in scores.items():
        expected = np.mean([error for where, error in nmes if where == name])
        assert part["nme_mean"] == pytest.approx(expected, abs=1e-4)
        assert part["mm_mean"] == pytest.approx(
            np.mean([error for where, error in far if where == name]), abs=1e-4
        )
    assert lp["mm_percent"][-1] == 50.0  # the failed photograph is never reached
    assert lp["mm_grid"][16] == 4.0
    assert (lp["mm_percent"][15], lp["mm_percent"][16]) == (0.0, 50.0)
    assert scores["aflw2000"]["mm_percent"][-1] == 100.0


def test_report_shows_table_curves_and_reasons() -> None:
    facts = {
        "photographs": 4, "people": 2, "scored": 3, "failed": {"no <face>": 1},
        "nme_mean": 0.0512, "nme_median": 0.05, "nme_inner_mean": 0.0433,
        "nme_grid": [0.0, 0.1], "nme_percent": [0.0, 75.0], "mm_mean": 3.21, "mm_inner_mean": 2.5,
        "mm_grid": [0.0, 15.0], "mm_percent": [0.0, 75.0],
    }  # fmt: skip
    lost = {"photographs": 1, "people": 1, "scored": 0, "failed": {"flat": 1}}
    sets = {"300w_lp": facts, "aflw2000": lost}
    one = Evaluation("pix2face", 2, True, "synthetic-trained", {}, {}, {}, {}, sets)
    body = landmark_error_section([one]).body
    for words in (
        "5.12",
        "4.33",
        "3.21",
        "no &lt;face&gt;",
        "300W-LP, people held out",
        "AFLW2000",
    ):
        assert words in body
    assert body.count("<svg") == 2
    none = Evaluation("mica", 1, True, "synthetic-trained", {}, {}, {})
    assert "landmarks.json" in landmark_error_section([none]).body
