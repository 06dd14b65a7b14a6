# ruff: noqa: T201
"""What follows pix2face's network: camera and coefficients of one photograph, and of eight jointly.

Published mean face and triangles (53,215 vertices) with smooth random stand-ins for the 199 + 29
directions, which are not public there; maps of 256 x 256 pixels are rendered from them, so the
truth is known. CPU time, median over rounds. The floor is what no implementation with these
libraries undercuts: the nearest-vertex search and the symmetric product behind the normal matrix.

    python tests/benchmarks/pix2face.py --data ../shared/data/real_300wlp --json pix2face.json
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pncc_case import real_samples, stand_in_model
from threadpoolctl import threadpool_limits

from models.methods.pix2face import face_pixels
from models.methods.pix2face_camera import fit_pinhole, thinned
from models.methods.pix2face_fit import ModelFit, Moves
from models.networks.encoders.square_crop import landmark_square
from models.rendering.pncc import PnccMaps, PnccRenderer, Window, project_300w_lp

SIZE_PX, JOINT, GATE_MM, MOST = 256, 8, 4.0, 3000
PRIOR_MM = 0.025


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        return "met" if self.value <= self.limit else "NOT MET"


def cpu_ms(function: Callable[[], object], rounds: int) -> float:
    """Median CPU milliseconds."""
    function()
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        spent.append(1e3 * (time.process_time() - start))
    return float(np.median(spent))


def crops(data: Path) -> tuple[ModelFit, list[PnccMaps]]:
    """The model and eight rendered crops."""
    model, unit_m = stand_in_model(data)
    renderer = PnccRenderer(model, unit_m, JOINT)
    samples = real_samples(data, JOINT)
    windows = []
    for sample in samples:
        pixels = project_300w_lp(renderer.mean_mm / renderer.to_mm, sample.pose, sample.height)
        centre, side = landmark_square(pixels)
        left, top = centre - 0.6 * side
        windows.append(Window(float(left), float(top), 1.2 * float(side), SIZE_PX))
    return ModelFit(model, unit_m), renderer.render(samples, windows)


def measured(data: Path, rounds: int) -> list[Figure]:
    fit, maps = crops(data)
    centre = np.full(2, SIZE_PX / 2)

    def seen(one: PnccMaps) -> Moves:
        return fit.moves(one.pncc_mm, one.offset_mm, face_pixels(one.pncc_mm), GATE_MM)

    def camera(moves: Moves) -> object:
        points = fit.mean_mm[moves.vertices] + moves.offset_mm
        return fit_pinhole(points, moves.pixels[:, ::-1] + 0.5, centre)

    def together(some: list[PnccMaps], most: int | None) -> object:
        moves = [seen(one) for one in some]
        return [camera(one) for one in moves], fit.solve(moves, PRIOR_MM, most=most)

    first = seen(maps[0])
    queries = maps[0].pncc_mm[face_pixels(maps[0].pncc_mm)]
    chosen = first.vertices[thinned(len(first.vertices), MOST)]
    rows = fit._basis[chosen].reshape(-1, fit._basis.shape[2]).astype(np.float64)
    ms = {
        "camera, one image": lambda: camera(first),
        "vertices of pixels, one image": lambda: seen(maps[0]),
        "solve, one image": lambda: fit.solve([first], PRIOR_MM, most=MOST),
        "solve, one image, every vertex": lambda: fit.solve([first], PRIOR_MM),
        "floor: nearest-vertex search": lambda: fit._tree.query(queries),
        "floor: normal matrix": lambda: rows.T @ rows,
        "one image": lambda: together(maps[:1], MOST),
        f"{JOINT} images jointly": lambda: together(maps, MOST),
        f"{JOINT} images jointly, every vertex": lambda: together(maps, None),
    }
    limits = {"one image": 60.0, f"{JOINT} images jointly": 500.0}
    figures = [
        Figure("vertices of the model", len(fit.mean_mm), ""),
        Figure("face pixels, one image", len(queries), ""),
        Figure("vertices seen, one image", len(first.vertices), ""),
        Figure("vertices that count", len(chosen), ""),
    ]
    return figures + [
        Figure(name, cpu_ms(function, rounds), "ms CPU", limits.get(name))
        for name, function in ms.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/real_300wlp"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"expected real 300W-LP samples at {args.data}, found none")
    with threadpool_limits(1):
        figures = measured(args.data, args.rounds)
    for figure in figures:
        limit = "" if figure.limit is None else f"<= {figure.limit:g}"
        print(f"{figure.name:38} {figure.value:10,.1f} {figure.unit:7} {limit:8} {figure.verdict}")
    if args.json:
        rows = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
