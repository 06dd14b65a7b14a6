"""FRGC v2 (Notre Dame): range images of faces and photographs.

Names are ``<5 digits of the subject>d<number>``; the photograph registered with range image n is
usually n + 1. The tree has no label of expression: a list of neutral scans is the user's (see
``neutral_frames``). Range images are in millimetres.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

from stages.datasets import neutral_frames
from stages.datasets.base import Adapter, ImageRow, ItemRef, ScanRow, inside, ordered, relative
from stages.datasets.images import image_size
from stages.datasets.ppm import png_of_ppm
from stages.datasets.problems import Expected, Problem, missing
from stages.datasets.range_image import read_range_surface

_NAME = re.compile(
    r"^(?P<subject>\d{5})d(?P<number>\d+)\.(?P<kind>abs|ppm|jpg|jpeg|png)(?:\.gz)?$", re.IGNORECASE
)
_DROPPED = "spring2003range"  # MICA leaves this session out
_WHERE = "cvrl.nd.edu (institutional licence)"


class Frgc(Adapter):
    """``<session>/04203d436.abs.gz`` and ``04203d437.ppm.gz`` or ``.jpg`` at any depth."""

    name: ClassVar[str] = "frgc"
    title: ClassVar[str] = "FRGC v2"
    prefix: ClassVar[str] = "FRGC"
    licence: ClassVar[str] = "institutional licence (University of Notre Dame)"
    homepage: ClassVar[str] = "https://cvrl.nd.edu/projects/data/"
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            tuple(f"{above}*range" for above in ("", "nd1/", "FRGC-2.0-dist/nd1/", "*/", "*/*/")),
            "range images of Fall2003range, Spring2004range and Spring2003range",
            _WHERE,
        ),
        neutral_frames.expected("04203,04203d436"),
    )

    def validate(self, root: Path) -> list[Problem]:
        """Missing folders; a list of neutral scans that is missing or cannot be read."""
        return [*missing(root, self.layout), *neutral_frames.problems(root)]

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per range image and photograph whose name is a recording's."""
        listed = neutral_frames.read_neutral_frames(root)
        present: dict[str, set[str]] = defaultdict(set)
        refs = []
        for path in root.rglob("*"):
            name = _NAME.match(path.name)
            if name is None or not path.is_file():
                continue
            person, stem = name["subject"], path.name.split(".")[0]
            session = path.parent.name
            attributes: dict[str, Any] = {"session": session, "number": int(name["number"])}
            dropped = session.lower() == _DROPPED
            if dropped:
                attributes["dropped_by_mica"] = True
            scan = name["kind"].lower() == "abs"
            neutral = stem in (listed or {}).get(person, ())
            if scan:
                present[person].add(stem)
                attributes["expression"] = "neutral" if neutral else "unknown"
            refs.append(
                ItemRef(
                    item_id=f"{person}/{stem}",
                    subject_id=self.subject(person),
                    kind="scan" if scan else "image",
                    path=relative(root, path),
                    attributes=attributes,
                    facts={"neutral": scan and neutral and not dropped},
                )
            )
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected range images such as Fall2003range/04203d436.abs.gz in "
                f"{root}, found none; {_WHERE}"
            )
        neutral_frames.warn_unmatched(listed, present)
        return ordered(refs)

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a range image as a surface, or a photograph (PPM becomes PNG)."""
        path = inside(root, ref.path)
        if ref.kind == "scan":
            mesh = read_range_surface(path)
            return ScanRow(mesh.vertices, mesh.faces, self.unit, neutral=ref.facts["neutral"])
        data = path.read_bytes()
        if path.name.lower().endswith((".ppm", ".gz")):
            data = png_of_ppm(data)
        height, width = image_size(data)
        return ImageRow(data, height, width)
