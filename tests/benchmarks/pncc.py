# ruff: noqa: T201
"""PNCC ground truth in bulk: coefficients to shard, records against PNG, crops drawn on the fly.

Published mean face, triangles and poses; the 199 + 29 directions are smooth random stand-ins of the
published size, since the real ones are not public there. Each figure is the median over rounds of
CPU time in which all candidates take turns, so ratios hold on a busy machine.

    python tests/benchmarks/pncc.py --data ../shared/data/real_300wlp --json pncc.json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pncc_case import SIZE_PX, PlainChain, real_samples, stand_in_model
from threadpoolctl import threadpool_limits

from models.networks.encoders.square_crop import landmark_square
from models.rendering.pncc import PnccRenderer, Sample, Window, project_300w_lp
from models.rendering.pncc_codec import decode, encode_crop, origin_of
from stages.render_sample import deep_picture

BATCH = 64
PLAIN = 12
"""Samples that one round gives to the slow candidates."""
CROP_PX, CROP_SCALE = 256, 1.4


@dataclass(frozen=True)
class Figure:
    """One line of the table; ``limit`` begins with the sense of the comparison."""

    name: str
    value: float
    unit: str
    limit: str = ""

    @property
    def verdict(self) -> str:
        if not self.limit:
            return ""
        sense, bound = self.limit.split()
        good = self.value >= float(bound) if sense == ">=" else self.value <= float(bound)
        return "met" if good else "NOT MET"


def medians(
    candidates: dict[str, tuple[Callable[[], object], int]], rounds: int
) -> dict[str, float]:
    """CPU milliseconds per image of candidates that take turns; ``int`` images each."""
    for function, _ in candidates.values():
        function()
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, (function, images) in candidates.items():
            start = time.process_time()
            function()
            spent[name].append(1e3 * (time.process_time() - start) / images)
    return {name: float(np.median(times)) for name, times in spent.items()}


def windows(renderer: PnccRenderer, samples: list[Sample]) -> list[Window]:
    """A jittered square crop per sample around its mean face's projection."""
    rng = np.random.default_rng(2)
    found = []
    for sample in samples:
        pixels = project_300w_lp(renderer.mean_mm / renderer.to_mm, sample.pose, sample.height)
        centre, side = landmark_square(pixels)
        side *= rng.uniform(1.0, CROP_SCALE)
        left, top = centre - side / 2 + rng.uniform(-0.05, 0.05, 2) * side
        found.append(Window(float(left), float(top), float(side), CROP_PX))
    return found


def measured(data: Path, rounds: int, scratch: Path) -> list[Figure]:
    model, unit_m = stand_in_model(data)
    samples = real_samples(data, BATCH)
    renderer, plain = PnccRenderer(model, unit_m), PlainChain(model, unit_m)
    origin = origin_of(renderer.mean_mm)
    views = windows(renderer, samples)
    whole = [Window(0.0, 0.0, float(SIZE_PX), CROP_PX)] * BATCH
    some = samples[:PLAIN]
    crops, maps = list(renderer.crops(some)), renderer.render(some)
    records = [encode_crop(crop, origin).data for crop in crops]
    low = np.array(origin, np.float32)
    deep = [
        picture
        for drawn in maps
        for picture in (
            deep_picture(drawn.pncc_mm, drawn.mask, low[:3]),
            deep_picture(drawn.offset_mm, drawn.mask, low[3:]),
        )
    ]
    level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    pngs = [cv2.imencode(".png", picture, level)[1] for picture in deep]

    def shard() -> None:
        made = [encode_crop(crop, origin).data for crop in renderer.crops(samples)]
        (scratch / "maps.pncc").write_bytes(b"".join(made))

    ms = medians(
        {
            "shard": (shard, BATCH),
            "plain": (lambda: [plain.write(s, scratch / "png") for s in some], PLAIN),
            "plain painting": (lambda: [plain.painted(sample) for sample in some], PLAIN),
            "offsets": (lambda: renderer.offsets_mm(samples), BATCH),
            "drawing": (lambda: list(renderer.crops(samples)), BATCH),
            "encode": (lambda: [encode_crop(crop, origin) for crop in crops], PLAIN),
            "decode": (lambda: [decode(record) for record in records], PLAIN),
            "PNG16 encode": (
                lambda: [cv2.imencode(".png", picture, level) for picture in deep], PLAIN,
            ),
            "PNG16 decode": (
                lambda: [cv2.imdecode(png, cv2.IMREAD_UNCHANGED) for png in pngs], PLAIN,
            ),
            "on the fly": (lambda: renderer.render(samples, whole), BATCH),
            "on the fly, tight": (lambda: renderer.render(samples, views), BATCH),
        },
        rounds,
    )  # fmt: skip
    errors = [
        max(
            np.abs(drawn.pncc_mm - again.pncc_mm).max(),
            np.abs(drawn.offset_mm - again.offset_mm).max(),
        )
        for drawn, again in zip(maps, map(decode, records), strict=True)
    ]
    all_records = [encode_crop(crop, origin).data for crop in renderer.crops(samples)]
    kilobytes = sum(map(len, all_records)) / BATCH / 1e3
    png_kilobytes = sum(png.size for png in pngs) / PLAIN / 1e3
    used = sum(map(len, records))
    return [
        *(Figure(name, value, "ms") for name, value in ms.items()),
        Figure("covered", 100 * float(np.mean([drawn.mask.mean() for drawn in maps])), "%"),
        Figure("chain over plain", ms["plain"] / ms["shard"], "x", ">= 3.5"),
        Figure("images per CPU second", 1e3 / ms["shard"], "1/s", ">= 200"),
        Figure("size of a record", kilobytes, "KB", "<= 140"),
        Figure(
            "PNG16 over record, size",
            png_kilobytes * 1e3 * PLAIN / used,
            "x",
            ">= 2.2",
        ),
        Figure("largest error", float(max(errors)), "mm", "<= 0.002"),
        Figure("encode over PNG16", ms["PNG16 encode"] / ms["encode"], "x", ">= 8"),
        Figure("decode over PNG16", ms["PNG16 decode"] / ms["decode"], "x", ">= 4"),
        Figure("on the fly at 256 px", ms["on the fly"], "ms", "<= 2.6"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="real_300wlp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1):
        figures = measured(options.data, options.rounds, Path(scratch))
    for figure in figures:
        print(
            f"{figure.name:26} {figure.value:9.4g} {figure.unit:4} {figure.limit:12} "
            f"{figure.verdict}"
        )
    if options.json:
        rows = [
            {
                "name": f.name,
                "value": f.value,
                "unit": f.unit,
                "limit": f.limit,
                "verdict": f.verdict,
            }
            for f in figures
        ]
        options.json.write_text(
            json.dumps({"bases": "smooth random stand-ins", "figures": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
