"""LYHM / Headspace (York, Alder Hey): 3dMD head scans under a latex cap, with photographs.

Scans are in millimetres and *not* frontal: nothing here turns them, registration aligns them by
their landmarks.
"""

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
    ordered,
    relative,
)
from stages.datasets.images import image_size
from stages.datasets.meshes import read_mesh
from stages.datasets.problems import Expected

_WHERE = "www-users.york.ac.uk/~np7/research/Headspace (signed agreement, academics)"
_COLOUR_VIEWS = ("1C", "2C")


class Lyhm(Adapter):
    """Headspace scans (``headspaceOnline``) and photographs (``headspacePngTka``)."""

    name: ClassVar[str] = "lyhm"
    title: ClassVar[str] = "LYHM / Headspace"
    prefix: ClassVar[str] = "LYHM"
    licence: ClassVar[str] = "signed agreement, academic and non-commercial (York, Alder Hey)"
    homepage: ClassVar[str] = "https://www-users.york.ac.uk/~np7/research/Headspace/"
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            ("headspaceOnline/subjects", "subjects"), "head scans and their landmarks", _WHERE
        ),
        Expected(
            ("headspacePngTka/subjects",),
            "photographs of the scanned people (MICA's training images)",
            _WHERE,
            required=False,
        ),
    )

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per scan and per colour photograph."""
        scans = self.layout[0].found(root)
        if scans is None:
            raise FileNotFoundError(
                f"{self.title}: expected {root / 'headspaceOnline/subjects'}; {_WHERE}"
            )
        refs = []
        for path in sorted(scans.glob("*/*.obj")):
            if "model_fit" in path.stem:
                continue
            person = path.parent.name
            facts: dict[str, Any] = {}
            landmarks = path.with_name(f"ldmks{path.stem}.txt")
            if landmarks.is_file():
                facts["landmarks"] = relative(root, landmarks)
            metadata = [p for p in path.parent.glob("*.txt") if not p.name.startswith("ldmks")]
            if metadata:
                facts["metadata"] = relative(root, min(metadata))
            refs.append(
                ItemRef(
                    item_id=f"{person}/{path.stem}",
                    subject_id=self.subject(person),
                    kind="scan",
                    path=relative(root, path),
                    facts=facts,
                )
            )
        photographs = root / "headspacePngTka" / "subjects"
        for view in _COLOUR_VIEWS:
            for path in sorted(photographs.glob(f"*/*/{view}.png")):
                person, capture = path.parts[-3], path.parts[-2]
                refs.append(
                    ItemRef(
                        item_id=f"{person}/{capture}_{view}",
                        subject_id=self.subject(person),
                        kind="image",
                        path=relative(root, path),
                        attributes={"view": view, "capture": capture},
                    )
                )
        return ordered(refs)

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a scan with its landmarks and metadata, or a photograph."""
        path = inside(root, ref.path)
        if ref.kind == "image":
            data = path.read_bytes()
            height, width = image_size(data)
            return ImageRow(data, height, width)
        mesh = read_mesh(path)
        attributes: dict[str, Any] = {}
        if "metadata" in ref.facts:
            attributes = read_metadata(inside(root, ref.facts["metadata"]))
        landmarks = None
        if "landmarks" in ref.facts:
            landmarks = read_index_landmarks(inside(root, ref.facts["landmarks"]), mesh.vertices)
        return ScanRow(
            vertices=mesh.vertices,
            faces=mesh.faces,
            colors=mesh.colors,
            unit=self.unit,
            landmarks=landmarks,
            landmark_order="ibug68" if landmarks is not None else "",
            neutral=attributes.get("expression", "").strip().lower() == "neutral",
            capped=True,
            attributes=attributes,
        )


def read_metadata(path: Path) -> dict[str, str]:
    """Read a subject's text file of ``key:value`` lines; values may be empty."""
    pairs = (
        line.partition(":")
        for line in path.read_text(encoding="latin1").splitlines()
        if ":" in line
    )
    return {key.strip(): value.strip() for key, _, value in pairs}


def read_index_landmarks(
    path: Path, vertices: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "68 3"]:
    """Read 68 lines of 1-based vertex indices and return those vertices.

    Raises:
        ItemError: Not 68 lines, a line is no integer, or an index is out of range.
    """
    lines = path.read_text(encoding="latin1").split()
    if len(lines) != 68:
        raise ItemError(f"{path.name} has {len(lines)} landmarks, expected 68 (one per line)")
    try:
        indices = np.array([int(line) for line in lines]) - 1
    except ValueError as error:
        raise ItemError(f"{path.name}: expected vertex indices ({error})") from error
    if indices.min() < 0 or indices.max() >= len(vertices):
        raise ItemError(
            f"{path.name}: indices {indices.min() + 1} to {indices.max() + 1} for a scan of "
            f"{len(vertices)} vertices; expected 1 to {len(vertices)}"
        )
    return vertices[indices]
