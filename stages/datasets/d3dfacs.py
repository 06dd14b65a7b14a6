"""D3DFACS (Bath): 3dMD sequences of ten people, each performing one combination of action units.

Scans are in millimetres: ``<Actor>/<AU>/<AU>_<frame>.obj``, e.g. ``Adrian/1+2/1+2_175.obj``. The
set does not say which scans are neutral. ``neutral_frames.csv`` does where there is one; without
it the first frame of a sequence is assumed to be the onset, at rest, and its row says that this is
an assumption.

FLAME's authors give registrations of the same frames (``d3dfacs_alignments``), MICA's one per
person (``processed/registrations``): both in FLAME's topology, metres. They stand in as scans only
for people without a single raw scan; elsewhere the raw scan's row names the registration.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stages.datasets.base import Adapter, ImageRow, ItemRef, ScanRow, inside, ordered, relative
from stages.datasets.images import image_size
from stages.datasets.meshes import read_mesh
from stages.datasets.neutral_frames import FILE_NAME, problems, read_neutral_frames
from stages.datasets.problems import Expected, Problem

ALIGNMENTS = "d3dfacs_alignments"
PROCESSED = "processed"
_FRAME = re.compile(r"^(?P<sequence>.+)_(?P<frame>\d+)$")
_PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png"})
_WHERE = "D3DFACS (University of Bath, signed agreement)"
_ASSUMED = "first frame of its sequence, assumed"


@dataclass(frozen=True, slots=True)
class _Frame:
    """One mesh of a sequence."""

    actor: str
    sequence: str
    number: int
    path: Path


class D3dFacs(Adapter):
    """Sequences of scans by action units, with MICA's photographs of the same people."""

    name: ClassVar[str] = "d3dfacs"
    title: ClassVar[str] = "D3DFACS"
    prefix: ClassVar[str] = "D3DFACS"
    licence: ClassVar[str] = "signed agreement (University of Bath)"
    homepage: ClassVar[str] = "https://www.cs.bath.ac.uk/~dpc/D3DFACS/"
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(
            ("*/*/*_*.obj", "*/*/*/*_*.obj", f"{ALIGNMENTS}/*/*/*.ply"),
            "sequences of scans, <Actor>/<AU>/<AU>_<frame>.obj",
            _WHERE,
        ),
        Expected(
            (FILE_NAME,),
            "knowing which scans are neutral; without it the first frame of each sequence is "
            "assumed to be",
            "your own selection: the header subject,scan, then lines such as Adrian,1+2_175",
            required=False,
        ),
        Expected(
            (f"{PROCESSED}/images", "images"),
            "photographs of the scanned people (MICA's training images)",
            "frames of the colour cameras, as MICA lays them out",
            required=False,
        ),
    )

    def validate(self, root: Path) -> list[Problem]:
        """Also a list of neutral scans that cannot be read."""
        return super().validate(root) + problems(root)

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per scan of a sequence and per photograph."""
        raw = _frames(
            path
            for path in sorted(root.rglob("*.obj"))
            if not {ALIGNMENTS, PROCESSED} & set(path.relative_to(root).parts)
        )
        aligned = _frames(sorted(root.rglob("*.ply")))
        listed = read_neutral_frames(root)
        places = {(one.actor, one.path.stem): relative(root, one.path) for one in aligned}
        filmed = {one.actor for one in raw}
        refs = []
        for one, onset in _with_onsets(raw):
            place = places.get((one.actor, one.path.stem))
            extra = {} if place is None else {"flame_alignment": place}
            refs.append(self._scan(root, one, _neutral(one, onset, listed), extra))
        for one, onset in _with_onsets(one for one in aligned if one.actor not in filmed):
            extra = {"topology": "flame"}
            refs.append(self._scan(root, one, _neutral(one, onset, listed), extra))
        known = filmed | {one.actor for one in aligned}
        refs += self._processed(root, known)
        refs += self._unfound(refs, listed or {})
        if not any(ref.kind == "scan" for ref in refs):
            raise FileNotFoundError(
                f"{self.title}: expected scans such as Adrian/1+2/1+2_175.obj in {root}, found "
                f"none; {_WHERE}"
            )
        return ordered(refs + self._photographs(root))

    def _scan(self, root: Path, one: _Frame, neutral: str, extra: Mapping[str, Any]) -> ItemRef:
        return ItemRef(
            item_id=f"{one.actor}/{one.path.stem}",
            subject_id=self.subject(one.actor),
            kind="scan",
            path=relative(root, one.path),
            attributes={
                "sequence": one.sequence,
                "frame": one.number,
                "neutral_by": neutral,
                **extra,
            },
        )

    def _processed(self, root: Path, known: set[str]) -> list[ItemRef]:
        """MICA's registrations of people of whom there is nothing else."""
        refs = []
        for path in sorted((root / PROCESSED / "registrations").glob("*_*.obj")):
            actor = path.stem.split("_", 1)[0]
            if actor not in known:
                attributes = {"topology": "flame", "neutral_by": "MICA's choice"}
                refs.append(
                    ItemRef(
                        item_id=f"{actor}/{path.stem}",
                        subject_id=self.subject(actor),
                        kind="scan",
                        path=relative(root, path),
                        attributes=attributes,
                    )
                )
        return refs

    def _unfound(self, refs: list[ItemRef], listed: Mapping[str, frozenset[str]]) -> list[ItemRef]:
        """Listed neutral scans that are not there: rows that fail when they are read."""
        found = {ref.item_id for ref in refs}
        return [
            ItemRef(
                item_id=f"{actor}/{stem}",
                subject_id=self.subject(actor),
                kind="scan",
                path=f"{actor}/{stem.rpartition('_')[0]}/{stem}.obj",
                attributes={"neutral_by": FILE_NAME},
            )
            for actor, stems in listed.items()
            for stem in stems
            if f"{actor}/{stem}" not in found
        ]

    def _photographs(self, root: Path) -> list[ItemRef]:
        folder = self.layout[2].found(root)
        paths = [] if folder is None else sorted(folder.glob("*/*"))
        return [
            ItemRef(
                item_id=f"{path.parent.name}/{path.stem}",
                subject_id=self.subject(path.parent.name),
                kind="image",
                path=relative(root, path),
            )
            for path in paths
            if path.suffix.lower() in _PHOTOGRAPHS
        ]

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a scan or a photograph."""
        path = inside(root, ref.path)
        if ref.kind == "image":
            data = path.read_bytes()
            height, width = image_size(data)
            return ImageRow(data, height, width)
        mesh = read_mesh(path)
        return ScanRow(
            vertices=mesh.vertices,
            faces=mesh.faces,
            colors=mesh.colors,
            unit="m" if ref.attributes.get("topology") == "flame" else self.unit,
            neutral=bool(ref.attributes["neutral_by"]),
        )


def _frames(paths: Iterable[Path]) -> list[_Frame]:
    """The meshes that are named as frames of a sequence."""
    found = []
    for path in paths:
        name = _FRAME.match(path.stem)
        if name is not None:
            actor = path.parent.parent.name
            found.append(_Frame(actor, path.parent.name, int(name["frame"]), path))
    return found


def _with_onsets(frames: Iterable[_Frame]) -> list[tuple[_Frame, bool]]:
    """Every frame, and whether no other of its sequence has a lower number."""
    every = list(frames)
    sequences: dict[Path, list[int]] = defaultdict(list)
    for one in every:
        sequences[one.path.parent].append(one.number)
    first = {folder: min(numbers) for folder, numbers in sequences.items()}
    return [(one, one.number == first[one.path.parent]) for one in every]


def _neutral(one: _Frame, onset: bool, listed: Mapping[str, frozenset[str]] | None) -> str:
    """Why a scan counts as neutral; empty where it does not."""
    if listed is not None:
        return FILE_NAME if one.path.stem in listed.get(one.actor, frozenset()) else ""
    return _ASSUMED if onset else ""
