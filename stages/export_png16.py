"""Command `export_png16`. Reads rendered PNCC and offset records. Writes two 16-bit PNGs for each.

For tools that read pictures and not records; larger than these, and slower to read.
``<item>_pncc.png`` and ``<item>_offset.png`` are RGB pictures of the photograph's size, red x,
green y, blue z. A value v > 0 stands for origin + (v - 1) / 256 mm, with the origins that
``encoding.json`` gives; zero is a pixel that sees no face. The lengths are exactly those of the
records.

    python -m stages.export_png16 --rendered data/rendered/300w_lp --out pictures
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from models.rendering.pncc_codec import STEP_MM
from stages.render_sample import deep_picture, png_bytes
from stages.rendered import RenderedSet
from stages.runtime.artifacts import atomic_directory, write_bytes, write_json

logger = logging.getLogger(__name__)


def run(*, rendered: Path, out: Path, shard: str | None = None) -> int:
    """Export the photographs of one shard, or of all.

    Args:
        rendered: What stage ``render`` wrote.
        out: Folder to write.
        shard: File name of a shard; None exports all.

    Returns:
        How many photographs were exported.

    Raises:
        FileNotFoundError: There is no index.
        ValueError: The maps were left to be drawn on the fly, no photograph lies in ``shard``, or
            a record is damaged.
    """
    opened = RenderedSet.open(rendered)
    shards = {item: opened.rows[item]["shard"] for item in opened.item_ids}
    items = [item for item, own in shards.items() if shard is None or own == shard]
    if not items:
        raise ValueError(
            f"expected photographs in {shard or 'some shard'} of {rendered}, found none; "
            f"it has {sorted(set(shards.values()))}"
        )
    origin = np.array(opened.meta["origin_mm"])
    with atomic_directory(out) as scratch:
        for item in items:
            maps = opened.maps(item)
            for name, lengths, low in (
                ("pncc", maps.pncc_mm, origin[:3]),
                ("offset", maps.offset_mm, origin[3:]),
            ):
                picture = deep_picture(lengths, maps.mask, low)
                write_bytes(scratch / f"{item}_{name}.png", png_bytes(picture))
        write_json(
            {
                "items": items,
                "background": 0,
                "length_mm": "origin_mm + (value - 1) * step_mm",
                "step_mm": STEP_MM,
                "pncc_origin_mm": origin[:3].tolist(),
                "offset_origin_mm": origin[3:].tolist(),
                "channels": "red x, green y, blue z",
                "synthetic": opened.meta["synthetic"],
            },
            scratch / "encoding.json",
        )
    logger.info("exported %d photographs to %s", len(items), out)
    return len(items)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rendered", required=True, type=Path, help="what stage render wrote")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--shard", help="file name of one shard; all without it")
    arguments = parser.parse_args()

    from stages.runtime.process import begin

    begin("export_png16")
    run(rendered=arguments.rendered, out=arguments.out, shard=arguments.shard)


if __name__ == "__main__":
    main()
