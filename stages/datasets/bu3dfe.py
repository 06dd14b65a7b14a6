"""BU-3DFE (Binghamton): 100 people, neutral and six expressions in four intensities.

``F0001_NE00WH_RAW.wrl`` names a person, an expression, its intensity, an ethnicity and a kind of
file. The uncropped ``RAW`` scans are read; where one is missing, the cropped ``F3D`` stands in and
the row says so. Millimetres.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

from stages.datasets.base import Adapter, ImageRow, ItemRef, ScanRow, inside, ordered, relative
from stages.datasets.binghamton import point_attributes
from stages.datasets.images import image_size
from stages.datasets.meshes import read_mesh
from stages.datasets.problems import Expected
from stages.datasets.vrml import read_vrml

_NAME = re.compile(
    r"^(?P<person>[FM]\d{4})_(?P<expression>NE|AN|DI|FE|HA|SA|SU)(?P<intensity>\d\d)"
    r"(?P<ethnicity>WH|AE|BL|LA|IN|AM)_(?P<kind>RAW|F3D|F2D)(?:_(?P<half>[01]))?$",
    re.IGNORECASE,
)
_CONVERTED = re.compile(r"^(?P<person>[FM]\d{4})_", re.IGNORECASE)
_PHOTOS = frozenset({".bmp", ".jpg", ".jpeg", ".png"})
CONVERTED = "raw_ne_data"  # MICA's folder of neutral scans as OBJ
_WHERE = "cs.binghamton.edu, 3DFE (signed agreement)"


class Bu3dfe(Adapter):
    """``F0001/F0001_NE00WH_RAW.wrl`` and its photographs; MICA's ``raw_ne_data/*.obj``."""

    name: ClassVar[str] = "bu3dfe"
    title: ClassVar[str] = "BU-3DFE"
    prefix: ClassVar[str] = "BU3DFE"
    licence: ClassVar[str] = "signed agreement (Binghamton University)"
    homepage: ClassVar[str] = (
        "https://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html"
    )
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            ("[FM][0-9][0-9][0-9][0-9]", "*/[FM][0-9][0-9][0-9][0-9]", CONVERTED),
            "scans and photographs of each person",
            _WHERE,
        ),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per scan (RAW, or else F3D) and per photograph."""
        scans: dict[str, dict[str, Path]] = {}
        refs = []
        for path in sorted(root.rglob("*")):
            stem, suffix = _parts(path)
            if suffix == ".obj" and path.parent.name == CONVERTED:
                refs += self._converted(root, path)
                continue
            name = _NAME.match(stem)
            if name is None:
                continue
            if suffix == ".wrl" and name["half"] is None and name["kind"].upper() != "F2D":
                recording = stem[: name.start("kind")].upper()
                scans.setdefault(recording, {}).setdefault(name["kind"].upper(), path)
            elif suffix in _PHOTOS:
                picture = stem[name.start("kind") :].upper()
                refs.append(self._ref(root, path, name, {"picture": picture}, {}))
        for kinds in scans.values():
            refs.append(self._scan(root, kinds))
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected scans such as F0001/F0001_NE00WH_RAW.wrl in {root}, found "
                f"none; {_WHERE}"
            )
        return ordered(refs)

    def _scan(self, root: Path, kinds: dict[str, Path]) -> ItemRef:
        path = kinds.get("RAW", kinds.get("F3D"))
        assert path is not None
        stem, _ = _parts(path)
        name = _NAME.match(stem)
        assert name is not None
        cropped = "RAW" not in kinds
        points = path.with_name(f"{stem}.bnd")
        facts = {"points": relative(root, points)} if cropped and points.is_file() else {}
        return self._ref(root, path, name, {"cropped": cropped}, facts)

    def _ref(
        self,
        root: Path,
        path: Path,
        name: "re.Match[str]",
        attributes: dict[str, Any],
        facts: dict[str, Any],
    ) -> ItemRef:
        person = name["person"].upper()
        scan = "cropped" in attributes
        return ItemRef(
            item_id=f"{person}/{name.string}{'' if scan else '_photo'}",
            subject_id=self.subject(person),
            kind="scan" if scan else "image",
            path=relative(root, path),
            attributes={
                "expression": name["expression"].upper(),
                "intensity": int(name["intensity"]),
                "ethnicity": name["ethnicity"].upper(),
                **attributes,
            },
            facts=facts,
        )

    def _converted(self, root: Path, path: Path) -> list[ItemRef]:
        """The item of one of MICA's converted neutral scans; none when the name is another's."""
        name = _CONVERTED.match(path.name)
        if name is None:
            return []
        person = name["person"].upper()
        return [
            ItemRef(
                item_id=f"{person}/{path.stem}",
                subject_id=self.subject(person),
                kind="scan",
                path=relative(root, path),
                attributes={"expression": "NE", "converted": True},
            )
        ]

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a scan (VRML, or OBJ where converted), or a photograph."""
        path = inside(root, ref.path)
        if ref.kind == "image":
            data = path.read_bytes()
            height, width = image_size(data)
            return ImageRow(data, height, width)
        mesh = read_mesh(path) if ref.attributes.get("converted") else read_vrml(path)
        return ScanRow(
            mesh.vertices,
            mesh.faces,
            self.unit,
            neutral=ref.attributes["expression"] == "NE",
            attributes=point_attributes(root, ref.facts),
        )


def _parts(path: Path) -> tuple[str, str]:
    """Stem and lower-case suffix, a closing ``.gz`` left out."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot else (name, "")
