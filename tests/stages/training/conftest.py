"""Tiny stand-ins for the training stages' inputs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from models.networks.encoders.arcface_crop import TEMPLATE_PX
from stages.runtime.artifacts import write_json, write_table
from stages.runtime.contracts import table_of
from stages.runtime.params import (
    AugmentParams,
    ComputeParams,
    EncoderParams,
    LoopParams,
    Pix2FaceFitParams,
    RecognizerVariant,
)

AUGMENT = {
    "shift": 0.02, "zoom": 0.02, "rotate_deg": 2, "gamma": 0.2, "gain": 0.05, "noise": 2,
    "occlude": 0.2,
}  # fmt: skip
ENCODER = {"layers": (1, 1, 1, 1), "widths": (4, 4, 6, 8), "embedding": 8, "input_px": 28}


def landmarks_68() -> np.ndarray:
    """68 points whose five are the template, spread like a face on a 140 px photograph."""
    rng = np.random.default_rng(0)
    points = rng.uniform(40, 100, (68, 2))
    points[36:42], points[42:48] = TEMPLATE_PX[0] + 14, TEMPLATE_PX[1] + 14
    points[[30, 48, 54]] = TEMPLATE_PX[2:] + 14
    return points


def image_row(item: str, subject: str, image: np.ndarray, **more: object) -> dict[str, object]:
    ok, data = cv2.imencode(".png", image[..., ::-1])
    assert ok
    return {
        "item_id": item, "subject_id": subject, "status": "ok", "reason": "", "source_path": item,
        "source_sha256": "", "split": "", "attributes": "{}", "image": data.tobytes(),
        "height_px": image.shape[0], "width_px": image.shape[1], "landmark_order": "", **more,
    }  # fmt: skip


def failed_row(item: str) -> dict[str, object]:
    return {
        "item_id": item, "subject_id": "S/none", "status": "failed", "reason": "truncated",
        "source_path": item, "source_sha256": "", "split": "", "attributes": "{}",
        "landmark_order": "",
    }  # fmt: skip


@pytest.fixture
def compute() -> ComputeParams:
    return ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)


@pytest.fixture
def loop() -> LoopParams:
    return LoopParams(
        workers=0, gpu=False, loaders=0, steps=6, batch=4, learning_rate=1e-3, final_rate=0.1,
        schedule="cosine", weight_decay=0.0, betas=(0.9, 0.999), clip_norm=0.0, report_every=3,
        checkpoint_every=2, keep="best", window=3,
    )  # fmt: skip


@pytest.fixture
def pix2face_fit() -> Pix2FaceFitParams:
    return Pix2FaceFitParams(
        box_scale=1.4, gate_mm=1e4, coefficient_prior=1.0, min_correspondences=10,
        most_vertices=3000, camera="pinhole", joint=1, landmark_photographs=None,
    )  # fmt: skip


@pytest.fixture
def variant(loop: LoopParams) -> RecognizerVariant:
    return RecognizerVariant(
        weights=None, encoder=EncoderParams(**ENCODER), scale=16, margin=0.1, holdout=0.25,
        seed_offset=1, augment=AugmentParams(**AUGMENT, flip=True), fit=loop,
    )  # fmt: skip


@pytest.fixture
def identities(tmp_path: Path) -> tuple[Path, Path]:
    """Packed photographs of six flat-coloured "people", one damaged, and their landmarks."""
    rng = np.random.default_rng(1)
    rows, found = [failed_row("n9/broken")], []
    for person in range(6):
        colour = rng.integers(0, 255, 3)
        for shot in range(3):
            image = np.clip(rng.normal(colour, 20, (140, 140, 3)), 0, 255).astype(np.uint8)
            item = f"n{person}/{shot}"
            rows.append(image_row(item, f"V/n{person}", image))
            found.append(
                {
                    "item_id": item,
                    "subject_id": f"V/n{person}",
                    "status": "ok",
                    "reason": "",
                    "points_px": landmarks_68().ravel(),
                    "score": 1.0,
                    "box_px": [20, 20, 120, 120],
                    "provider": "test",
                }
            )
    packed, landmarks = tmp_path / "packed", tmp_path / "landmarks"
    write_table(table_of(rows[:7], "images"), packed / "images-00000.parquet")
    write_table(table_of(rows[7:], "images"), packed / "images-00001.parquet")
    write_json({"synthetic": True}, packed / "meta.json")
    write_table(table_of(found, "landmarks"), landmarks / "landmarks.parquet")
    return packed, landmarks


@pytest.fixture
def flame_folder(tmp_path: Path) -> Path:
    """A 40-vertex FLAME-shaped model as convert@flame leaves it."""
    rng = np.random.default_rng(2)
    V = 40
    folder = tmp_path / "data" / "models" / "flame"
    folder.mkdir(parents=True)
    weights = rng.random((V, 5))
    tensors = {
        "v_template": rng.normal(size=(V, 3)) * 0.05,
        "shapedirs": rng.normal(size=(V, 3, 10)) * 0.002,
        "exprdirs": rng.normal(size=(V, 3, 4)) * 0.002,
        "posedirs": np.zeros((V, 3, 36)),
        "J_regressor": np.full((5, V), 1 / V),
        "weights": weights / weights.sum(1, keepdims=True),
    }
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    tensors["faces"] = rng.integers(0, V, (60, 3)).astype(np.int64)
    tensors["parents"] = np.array([-1, 0, 1, 1, 1])
    save_file(tensors, folder / "model.safetensors")
    parts = ("left_eyeball", "right_eyeball", "left_ear", "right_ear", "face")
    np.savez(
        folder / "masks.npz", **{name: np.arange(8 * i, 8 * i + 8) for i, name in enumerate(parts)}
    )
    bary = np.full((68, 3), 1 / 3)
    np.savez(
        folder / "embeddings.npz", static_faces=np.arange(51), static_bary=bary[:51],
        dynamic_faces=np.zeros((79, 17), int), dynamic_bary=np.full((79, 17, 3), 1 / 3),
        full_faces=np.arange(60).repeat(2)[:68], full_bary=bary,
    )  # fmt: skip
    (folder / "meta.json").write_text(json.dumps({"synthetic": True, "unit": "m"}))
    return folder
