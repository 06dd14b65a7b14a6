"""Scans for the benchmark of registration without landmarks: fresh heads in any position."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from models.geometry.registration import Scan

SEED = 7_001
"""Of people that no data set of the corpus holds."""
COVERINGS = ("cap", "hair", "none")
VERTICES = 20_000


@dataclass(frozen=True, slots=True)
class Case:
    """One scan in a random position.

    Attributes:
        name: For the table.
        scan: As a stage would get it.
        marks: Its true landmarks, scan frame.
        colors: RGB per vertex, or None.
        rotation: (3, 3) R_scan_from_head.
    """

    name: str
    scan: Scan
    marks: np.ndarray
    colors: np.ndarray | None
    rotation: np.ndarray


def synthetic_cases(count: int, start: int = 0) -> Iterator[Case]:
    """Procedural heads, capped, with hair or bare, front halves and whole, some with colours."""
    from models.procedural.expression import sample_expression
    from stages.corpus import studio
    from stages.corpus.people import person
    from stages.corpus.scan import Placement, Scanner
    from stages.runtime.compute import item_rng

    kinds = list(itertools.product(COVERINGS, (True, False), (False, True)))
    for number in range(start, start + count):
        covering, back, colored = kinds[number % len(kinds)]
        who = person(SEED, "unmarked", f"{number:04d}")
        rng = item_rng(SEED, f"unmarked/{number}")
        face = sample_expression(rng, 0.7) if number % 4 == 3 else None
        vertices = np.asarray(studio.head().vertices(who.identity, face))
        turn = Rotation.random(rng=rng).as_matrix()
        scanner = Scanner(
            vertices=VERTICES,
            back=back,
            covering=covering,
            hair_mm=float(np.clip(who.appearance.hair.volume_mm, 2.0, 14.0)),
            noise_mm=float(rng.uniform(0.1, 0.2)),
            holes=int(rng.integers(0, 5)),
            chin_hole=bool(rng.random() < 0.25),
            scraps=int(rng.integers(0, 4)),
            shoulders=bool(rng.random() < 0.5),
        )
        frame = Placement(1.0, turn, rng.normal(0.0, 100.0, 3))
        placed = studio.scan_person(who, vertices, scanner, frame, rng)
        yield Case(
            f"{number:02d} {covering} {'whole' if back else 'front'}"
            f"{' colour' if colored else ''}{' expression' if face is not None else ''}",
            Scan(placed.vertices, placed.faces, unit="mm", bald=covering != "hair"),
            placed.landmarks[17:],
            placed.colours if colored else None,
            turn,
        )


def real_cases(folder: Path, count: int) -> Iterator[Case]:
    """The real scan of ``../shared/data/real_scan`` in random positions, without colours."""
    from stages.datasets.meshes import read_mesh

    mesh = read_mesh(folder / "scan.obj")
    marks = np.load(folder / "scan_lmks51.npy", allow_pickle=False)
    for number in range(count):
        turn = Rotation.random(rng=np.random.default_rng([SEED, number])).as_matrix()
        yield Case(
            f"real {number}",
            Scan(1e3 * mesh.vertices @ turn.T + 40, mesh.faces, unit="mm"),
            1e3 * marks @ turn.T + 40,
            None,
            turn,
        )
