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
    entries_of,
    folders_in,
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
        home = relative(root, scans)
        for person in folders_in(scans):
            inner = {entry.name: entry for entry in entries_of(person.path)}
            texts = [n for n in inner if n.endswith(".txt") and not n.startswith("ldmks")]
            for name in inner:
                stem = name[:-4] or name
                if not name.endswith(".obj") or "model_fit" in stem:
                    continue
                facts: dict[str, Any] = {}
                landmarks = inner.get(f"ldmks{stem}.txt")
                if landmarks is not None and landmarks.is_file():
                    facts["landmarks"] = f"{home}/{person.name}/{landmarks.name}"
                if texts:
                    facts["metadata"] = f"{home}/{person.name}/{texts[0]}"
                refs.append(
                    ItemRef(
                        item_id=f"{person.name}/{stem}",
                        subject_id=self.subject(person.name),
                        kind="scan",
                        path=f"{home}/{person.name}/{name}",
                        facts=facts,
                    )
                )
        photographs = "headspacePngTka/subjects"
        for person in folders_in(root / photographs):
            for capture in folders_in(person.path):
                for view in _COLOUR_VIEWS:
                    if Path(capture.path, f"{view}.png").exists():
                        refs.append(
                            ItemRef(
                                item_id=f"{person.name}/{capture.name}_{view}",
                                subject_id=self.subject(person.name),
                                kind="image",
                                path=f"{photographs}/{person.name}/{capture.name}/{view}.png",
                                attributes={"view": view, "capture": capture.name},
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
