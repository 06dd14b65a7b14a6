"""Tracking a synthetic clip of known truth: errors, time, resume. Prints one JSON document.

Run from a checkout whose graph is built:
``python tests/benchmarks/tracking.py --data data --subjects 4 --frames 16``. Time is processor
time of one thread. Everything measured here is synthetic.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from models.face.face_path import acceleration_px
from models.face.flame import FlameArrays
from models.metrics.images import landmark_nme
from stages.corpus.clip import write_clip
from stages.runtime import params
from stages.runtime.artifacts import read_table
from stages.runtime.process import use_one_thread
from stages.track import track_video

ROOT = Path(__file__).parents[2]
SEED = 20240


class Clock:
    """Processor seconds between the reports of each part of the work."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._last = time.process_time()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Charge what has passed since the last report."""
        now = time.process_time()
        self.spent[what] += now - self._last
        self._last = now


def known_shape(clip: Path, data: Path) -> Path:
    """The coefficients nearest to the person's true neutral head."""
    arrays = FlameArrays.load(data / "models" / "flame")
    with np.load(clip / "truth" / "truth.npz") as truth:
        offset = (truth["neutral"] - arrays.v_template).reshape(-1)
    S = arrays.shapedirs.shape[2]
    beta = np.linalg.lstsq(arrays.shapedirs.reshape(-1, S), offset, rcond=None)[0]
    np.save(clip / "truth" / "beta.npy", beta)
    return clip / "truth" / "beta.npy"


def measured(
    clip: Path, scratch: Path, data: Path, loaded: params.Params, *, shape: Path | None = None,
    method: str = "mica", focal: bool = True, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Track one clip and hold it against the truth."""
    section = params.TrackParams.model_validate(loaded.track.model_dump() | changes)
    out, clock = scratch / "out", Clock()
    with np.load(clip / "truth" / "truth.npz") as arrays:
        truth = arrays["landmarks_px"]
        focal_px = float(arrays["focal_px"][0])
    meta = track_video(
        clip / "frames", out, method=method, loaded=loaded.model_copy(update={"track": section}),
        data=data, work=scratch / ".work", shape=shape, depth=clip / "truth" / "depth",
        focal_px=focal_px if focal and method == "mica" else None, tell=clock,
    )  # fmt: skip
    rows = read_table(out / "frames.parquet").to_pylist()
    good = [row for row in rows if row["status"] == "ok"]
    fitted = np.array([row["fitted_px"] for row in good]).reshape(-1, 68, 2)
    detected = np.array([row["landmarks_px"] for row in good]).reshape(-1, 68, 2)
    true = truth[[row["frame"] for row in good]]
    return {
        "tracked": meta["tracked"],
        "frames": meta["frames"],
        "depth_rmse_mm": meta.get("depth_rmse_mm_mean"),
        "depth_bias_mm": meta.get("depth_bias_mm_mean"),
        "photometric_rmse": meta.get("photometric_rmse_mean"),
        "fitted_nme": float(landmark_nme(fitted, true).mean()),
        "fitted_jitter_px": acceleration_px(fitted),
        "detected_nme": float(landmark_nme(detected, true).mean()),
        "detected_jitter_px": acceleration_px(detected),
        "true_jitter_px": acceleration_px(true),
        "cpu_s_per_frame": {
            name: spent / meta["frames"] for name, spent in clock.spent.items()
        },
    }  # fmt: skip


def profile(clip: Path, scratch: Path, data: Path, loaded: params.Params) -> dict[str, float]:
    """Shares of the tracking's processor time, by wrapping its parts."""
    import torch

    from models.methods.tracker import Tracker
    from models.methods.tracker_energy import Energy

    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, label: str) -> None:
        whole = getattr(owner, name)

        def wrapped(*given: Any, **more: Any) -> Any:
            start = time.process_time()
            try:
                return whole(*given, **more)
            finally:
                spent[label] += time.process_time() - start

        setattr(owner, name, wrapped)

    parts = (
        (Tracker, "_levels", "all"), (Energy, "visible", "rasterise"), (Energy, "terms", "energy"),
        (torch.Tensor, "backward", "gradient"), (torch.optim.Adam, "step", "Adam"),
    )  # fmt: skip
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    for owner, name, label in parts:
        timed(owner, name, label)
    measured(clip, scratch, data, loaded, shape_init="mean")
    for owner, name, original in originals:
        setattr(owner, name, original)
    shares = {label: spent[label] / spent["all"] for _, _, label in parts[1:]}
    return shares | {"other": 1.0 - sum(shares.values())}


def killed(clip: Path, scratch: Path, data: Path, loaded: params.Params) -> dict[str, Any]:
    """SIGKILL a run in its tracking, run it again, compare every byte with an undisturbed run."""
    root = scratch / "checkout"
    root.mkdir()
    (root / "data").symlink_to(data.resolve())
    (root / "params").mkdir()
    for name in ["dvc.yaml", "params.yaml", *params.section_files(ROOT / "params.yaml").values()]:
        shutil.copy(ROOT / name, root / name)
    command = [sys.executable, "-m", "pipelines.cli", "track", str(clip / "frames"), "--out"]
    rest = ["--shape-init", "mean"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([*command, "b", *rest], cwd=root, env=environment)
    while run.poll() is None and len(list((root / ".work").rglob("00*.safetensors"))) < 3:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = len(list((root / ".work").rglob("00*.safetensors")))
    for name in ("b", "a"):
        subprocess.run([*command, name, *rest], cwd=root, env=environment, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    one, other = (
        {path.name: path.read_bytes() for path in sorted((root / name).rglob("*"))} for name in "ab"
    )
    return {"status_of_killed": run.returncode, "frames_kept": kept, "same_bytes": one == other}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--only", choices=("shapes", "switches", "smooth", "profile", "kill"))
    given = parser.parse_args()
    use_one_thread()
    loaded = params.load(ROOT / "params.yaml")
    result: dict[str, Any] = {"synthetic": True, "seed": SEED, "shapes": [], "switches": {}}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        clips = []
        for number in range(1, given.subjects + 1):
            clip = scratch / f"clip{number:04d}"
            write_clip(clip, frames=given.frames, size_px=given.size_px, seed=SEED,
                       subject=f"{number:04d}")  # fmt: skip
            clips.append(clip)
        common = (scratch, given.data, loaded)
        if given.only in (None, "shapes"):
            for clip in clips:
                row = {
                    "mean": measured(clip, *common, shape_init="mean"),
                    "mica": measured(clip, *common, shape_init="mica"),
                    "true": measured(clip, *common, shape=known_shape(clip, given.data)),
                }
                result["shapes"].append(row)
            means = {
                name: float(np.mean([row[name]["depth_rmse_mm"] for row in result["shapes"]]))
                for name in ("mean", "mica", "true")
            }
            result["depth_rmse_mm"] = means | {"mica_over_mean": means["mica"] / means["mean"]}
        if given.only in (None, "switches"):
            result["switches"] = {
                "sparse": measured(clips[0], *common, dense=False),
                "free": measured(clips[0], *common, shape_init="free"),
                "unknown focal length": measured(clips[0], *common, focal=False),
            }
        if given.only in (None, "smooth"):
            result["smooth"] = {
                f"{method}, {frames}": measured(
                    clips[0], *common, method=method, smooth={"mica": frames, "pix2face": frames}
                )
                for method in ("mica", "pix2face")
                for frames in (1, 3)
            }
        if given.only in (None, "profile"):
            result["profile"] = profile(clips[0], *common)
        if given.only in (None, "kill"):
            result["killed"] = killed(clips[0], *common)
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
