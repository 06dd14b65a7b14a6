"""Published results on the real NoW test set, for orientation beside the report's own.

Medians, means and standard deviations in mm over the 80 test subjects, as tabulated by the RingNet
(Sanyal et al. 2019) and MICA (Zielonka et al. 2022) papers and the authors of Deng et al. 2019.
"""

from typing import Final

Triple = tuple[float, float, float]

NOW_TEST: Final[tuple[tuple[str, Triple, Triple | None], ...]] = (
    ("FLAME average face", (1.21, 1.53, 1.31), (1.49, 1.92, 1.68)),
    ("PRNet", (1.50, 1.98, 1.88), None),
    ("RingNet", (1.21, 1.53, 1.31), (1.50, 1.98, 1.77)),
    ("Deng et al. (PyTorch)", (1.11, 1.41, 1.21), (1.62, 2.21, 2.08)),
    ("DECA", (1.09, 1.38, 1.18), (1.35, 1.80, 1.64)),
    ("MICA", (0.90, 1.11, 0.92), (1.08, 1.37, 1.17)),
)
"""Method, NoW (scale estimated), NoW-metric (no scale freedom)."""
