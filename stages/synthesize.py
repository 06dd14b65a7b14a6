"""Generate sources of the embedded corpus in their owners' formats.

Synthetic stand-ins for everything that would need a licence, labelled as such, and apart from them
the truth behind them, which no other stage reads. Bytes depend on the parameters alone.
"""

import argparse
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.corpus import (
    bfm2009,
    bfm2017,
    bp4d,
    bu3dfe,
    d3dfacs,
    facewarehouse,
    flame,
    florence,
    frgc,
    lyhm,
    now,
    stirling,
    three_ddfa,
    vggface2,
    w300lp,
)
from stages.corpus.files import write
from stages.corpus.order import NOTICE, Order
from stages.runtime.artifacts import atomic_directory
from stages.runtime.compute import map_ordered, session
from stages.runtime.params import ComputeParams, SynthesizeParams, load
from stages.runtime.process import begin

logger = logging.getLogger(__name__)

SOURCES: dict[str, tuple[str, Callable[[Order], None]]] = {
    "flame": ("FLAME", flame.build),
    "bfm2009": ("the Basel Face Model 2009", bfm2009.build),
    "bfm2017": ("the Basel Face Model 2017", bfm2017.build),
    "3ddfa": ("the 3DDFA basis", three_ddfa.build),
    "300w_lp": ("300W-LP and AFLW2000-3D", w300lp.build),
    "lyhm": ("LYHM / Headspace", lyhm.build),
    "stirling": ("Stirling/ESRC", stirling.build),
    "facewarehouse": ("FaceWarehouse", facewarehouse.build),
    "frgc": ("FRGC v2", frgc.build),
    "bu3dfe": ("BU-3DFE", bu3dfe.build),
    "bp4d": ("BP4D+", bp4d.build),
    "now": ("the NoW challenge", now.build),
    "vggface2": ("VGGFace2", vggface2.build),
    "d3dfacs": ("D3DFACS", d3dfacs.build),
    "florence": ("MICC Florence", florence.build),
}
FOLDERS = {source: source.upper() for source in SOURCES}
"""Name of each source's folder under the raw data."""
WHOLE = ("flame", "bfm2009", "bfm2017", "3ddfa")
"""Sources that are one piece of work each; the others map over their own items."""
SECONDS_PER_MODEL = 10.0
LABEL = "SYNTHETIC.txt"


def synthesize(
    source: str, out: Path, truth: Path, sizes: SynthesizeParams, compute: ComputeParams, seed: int
) -> None:
    """Write one source and its truth; each folder appears whole or not at all.

    Args:
        source: One of ``SOURCES``.
        out: Folder for the owner's files, replaced.
        truth: Folder for the truth, replaced.
        sizes: How much to make.
        compute: How maps over items run; never changes a byte.
        seed: Root of every draw.

    Raises:
        ValueError: An unknown source.
    """
    if source not in SOURCES:
        raise ValueError(f"expected a source among {', '.join(SOURCES)}, got {source!r}")
    name, build = SOURCES[source]
    with atomic_directory(truth) as truth_scratch, atomic_directory(out) as scratch:
        build(Order(scratch, truth_scratch, sizes, compute, seed))
        for folder in (scratch, truth_scratch):
            write(folder / LABEL, NOTICE.format(name=name))
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    logger.info("%s: %d files, %.0f MB", source, len(files), size)


def synthesize_all(
    sources: Sequence[str],
    raw: Path,
    truth: Path,
    sizes: SynthesizeParams,
    compute: ComputeParams,
    seed: int,
) -> None:
    """Write several sources on one set of workers; the bytes are those of one after the other.

    Args:
        sources: Names among ``SOURCES``.
        raw: Parent of the owners' folders, which are named as in ``FOLDERS``.
        truth: Parent of the truths, a folder per source.
        sizes: How much to make.
        compute: How maps over items run; never changes a byte.
        seed: Root of every draw.

    Raises:
        ValueError: An unknown source.
    """
    one = functools.partial(
        _synthesize_into, raw=raw, truth=truth, sizes=sizes, compute=compute, seed=seed
    )
    with session():
        if models := [source for source in sources if source in WHOLE]:
            map_ordered(
                one,
                models,
                compute=compute,
                seconds_per_item=SECONDS_PER_MODEL,
                label="face models",
            )
        for source in sources:
            if source not in WHOLE:
                one(source)


def _synthesize_into(
    source: str,
    *,
    raw: Path,
    truth: Path,
    sizes: SynthesizeParams,
    compute: ComputeParams,
    seed: int,
) -> None:
    if source not in SOURCES:
        raise ValueError(f"expected a source among {', '.join(SOURCES)}, got {source!r}")
    synthesize(source, raw / FOLDERS[source], truth / source, sizes, compute, seed)


def main() -> None:
    """Read the command line and generate the sources."""
    begin("synthesize")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sources", required=True, nargs="+", choices=sorted(SOURCES))
    parser.add_argument("--raw", required=True, type=Path, help="parent of the owners' folders")
    parser.add_argument("--truth", required=True, type=Path, help="parent of the truths")
    arguments = parser.parse_args()
    params = load()
    synthesize_all(
        arguments.sources,
        arguments.raw,
        arguments.truth,
        params.synthesize,
        params.compute,
        params.seed,
    )


if __name__ == "__main__":
    from stages.synthesize import main as imported_main  # Ray workers find it by name

    imported_main()
