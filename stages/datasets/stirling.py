"""Stirling/ESRC 3D faces and the FG2018 photographs of the same people.

Names are ``F1001_N`` or ``m1001_N`` (case varies), with a letter or ``_2`` for repeated sessions.
The subject is the first five characters in capitals. ``_N`` and ``_NH`` scans are neutral.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from stages.datasets.base import (
    Adapter,
    ImageRow,
    ItemError,
    ItemRef,
    ScanRow,
    inside,
    number_rows,
    ordered,
    relative,
)
from stages.datasets.images import image_size
from stages.datasets.meshes import read_mesh
from stages.datasets.problems import Expected

_SCAN = re.compile(r"^(?P<subject>[FfMm]\d{4})(?P<variant>[A-Za-z]?)(?:_\d)?_(?P<code>[A-Za-z]+)$")
_PHOTO = re.compile(r"^(?P<subject>[FfMm]\d{4})_\d+$")
_NEUTRAL = frozenset({"N", "NH"})
_WHERE = "pics.stir.ac.uk (free for research, on request)"


class Stirling(Adapter):
    """Scans (``F_3D_N``, ``M_3D_N``, ``scans/*``) and FG2018 photographs."""

    name: ClassVar[str] = "stirling"
    title: ClassVar[str] = "Stirling/ESRC"
    prefix: ClassVar[str] = "STIRLING"
    licence: ClassVar[str] = "free for research on request (University of Stirling)"
    homepage: ClassVar[str] = "http://pics.stir.ac.uk/ESRC/"
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(("F_3D_N", "M_3D_N", "scans", "*/F_3D_N", "*/M_3D_N", "*/scans"), "scans", _WHERE),
        Expected(
            ("Real_images__Subset_2D_FG2018", "*/Real_images__Subset_2D_FG2018", "images"),
            "photographs of the scanned people",
            _WHERE,
            required=False,
        ),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per OBJ and per photograph whose name is a subject's."""
        landmarks = {path.stem.lower(): relative(root, path) for path in root.rglob("*.lnd")}
        refs = []
        for path in root.rglob("*"):
            suffix = path.suffix.lower()
            scan = _SCAN.match(path.stem) if suffix == ".obj" else None
            photo = _PHOTO.match(path.stem) if suffix in {".jpg", ".jpeg", ".png"} else None
            if scan is not None:
                code, variant = scan["code"].upper(), scan["variant"].lower()
                marks = landmarks.get(path.stem.lower())
                refs.append(
                    self._ref(
                        root,
                        path,
                        scan["subject"].upper(),
                        {"code": code, "variant": variant},
                        {} if marks is None else {"landmarks": marks},
                    )
                )
            elif photo is not None:
                person, quality = photo["subject"].upper(), {"quality": path.parent.name}
                refs.append(self._ref(root, path, person, quality, {}))
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected scans such as F_3D_N/F1001_N.obj in {root}, found none; "
                f"{_WHERE}"
            )
        return ordered(refs)

    def _ref(
        self,
        root: Path,
        path: Path,
        person: str,
        attributes: dict[str, Any],
        facts: dict[str, Any],
    ) -> ItemRef:
        return ItemRef(
            item_id=f"{person}/{path.stem}",
            subject_id=self.subject(person),
            kind="scan" if path.suffix.lower() == ".obj" else "image",
            path=relative(root, path),
            attributes=attributes,
            facts=facts,
        )

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a scan with its seven landmarks where given, or a photograph."""
        path = inside(root, ref.path)
        if ref.kind == "image":
            data = path.read_bytes()
            height, width = image_size(data)
            return ImageRow(data, height, width)
        mesh = read_mesh(path)
        landmarks = None
        if "landmarks" in ref.facts:
            landmarks = read_lnd(inside(root, ref.facts["landmarks"]))
        return ScanRow(
            vertices=mesh.vertices,
            faces=mesh.faces,
            colors=mesh.colors,
            unit=self.unit,
            landmarks=landmarks,
            landmark_order="now7" if landmarks is not None else "",
            neutral=ref.attributes["code"] in _NEUTRAL,
            capped=False,
        )


def read_lnd(path: Path) -> Float[np.ndarray, "7 3"]:
    """Read a ``.lnd``: seven rows ``k x y z`` in scan coordinates, the NoW seven in order.

    Raises:
        ItemError: Not seven rows of four numbers.
    """
    rows = number_rows(path, columns=4)
    if len(rows) != 7:
        raise ItemError(f"{path.name} has {len(rows)} landmarks, expected 7")
    return np.ascontiguousarray(rows[:, 1:])
