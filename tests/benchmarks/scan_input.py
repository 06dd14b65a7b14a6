# ruff: noqa: T201
"""What it costs to read a scan and to find that it is clean.

    python -m tests.benchmarks.scan_input SCAN.obj

Both sides take turns in one process: our OBJ reader against trimesh's, the checks of `clean_scan`
on a mesh without damage against one pass over its triangles (`face_normals`).
Prints one JSON document: the least CPU seconds of each and the ratios.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh

from models.geometry.cleaning import clean_scan
from models.geometry.mesh import face_normals
from models.geometry.settings import CleaningSettings
from stages.datasets.meshes import read_mesh
from stages.runtime import params


def least_seconds(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Least CPU seconds of each, taking turns."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for own, work in zip(spent, works, strict=True):
            started = time.process_time()
            work()
            own.append(time.process_time() - started)
    return [min(own) for own in spent]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    mesh = read_mesh(options.scan)
    section = params.load().registration.cleaning
    junk = CleaningSettings(**section.model_dump())
    clean = clean_scan(mesh.vertices, mesh.faces, junk)
    vertices, faces = clean.vertices, clean.faces
    ours, theirs = least_seconds(
        options.rounds,
        lambda: read_mesh(options.scan),
        lambda: trimesh.load(options.scan, process=False),
    )
    checks, one_pass = least_seconds(
        options.rounds,
        lambda: clean_scan(vertices, faces, junk),
        lambda: face_normals(np.asarray(vertices), np.asarray(faces)),
    )
    print(
        json.dumps(
            {
                "vertices": len(vertices),
                "read_s": ours,
                "trimesh_read_s": theirs,
                "read_of_trimesh": ours / theirs,
                "clean_s": checks,
                "pass_s": one_pass,
                "clean_of_pass": checks / one_pass,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
