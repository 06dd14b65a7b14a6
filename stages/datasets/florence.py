"""MICC Florence 2D/3D: 53 people, 3dMD scans at rest and three videos of each.

Scans are in millimetres, without landmarks: ``subject_01/Model/frontal1/obj/<12 digits>.obj``. The
ground truth of a person is the frontal1 scan, or frontal2 where that is absent or cannot be read;
``ground_truth`` in a scan's attributes says which it is. The one-sided scans (``sidel``, ``sider``)
show half a face and are left out, as are the frames of the PTZ-Outdoor video, which MICA excludes;
both are counted in the attributes of the person's scans.

The videos are not read: their user extracts frames to ``images/subject_01/<video>/*.jpg``.
"""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from stages.datasets.base import Adapter, ImageRow, ItemRef, ScanRow, inside, ordered, relative
from stages.datasets.images import image_size
from stages.datasets.meshes import MeshError, read_mesh
from stages.datasets.nose_tips import EXPECTED, check_on_scan, problems, read_nose_tips
from stages.datasets.problems import Expected, Problem

logger = logging.getLogger(__name__)

FRONTAL = ("frontal1", "frontal2")
SIDES = ("sidel", "sider")
VIDEOS = frozenset({".mjpg", ".mjpeg"})
LEFT_OUT = "PTZ-Outdoor"
_SUBJECT = re.compile(r"^subject_?0*(\d{1,3})$", re.IGNORECASE)
_PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png"})
_EXTRACT = (
    "your own extraction, e.g. ffmpeg -i Indoor-Cooperative.mjpg "
    "images/subject_01/Indoor-Cooperative/frame_%04d.jpg"
)
_WHERE = "www.micc.unifi.it (request form)"


class Florence(Adapter):
    """Frontal scans and extracted video frames."""

    name: ClassVar[str] = "florence"
    title: ClassVar[str] = "MICC Florence"
    prefix: ClassVar[str] = "FLORENCE"
    licence: ClassVar[str] = "on request, research (MICC, University of Florence)"
    homepage: ClassVar[str] = "https://www.micc.unifi.it/resources/datasets/florence-3d-faces/"
    unit: ClassVar[str] = "mm"
    layout: ClassVar[tuple[Expected, ...]] = (
        Expected(("subject_*/Model", "*/subject_*/Model"), "scans of each person", _WHERE),
        Expected(
            ("images/subject_*", "*/images/subject_*"),
            "photographs (MICA's validation images)",
            "frames of the videos, extracted by you to images/subject_01/<video>/frame_0001.jpg",
            required=False,
        ),
        EXPECTED,
    )

    def validate(self, root: Path) -> list[Problem]:
        """Also unreadable nose tips, and videos of which there are no frames."""
        found = super().validate(root) + problems(root)
        if not root.is_dir() or self.layout[1].found(root) is not None:
            return found
        films = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in VIDEOS]
        reason = f"{len(films)} videos, no extracted frames"
        said = [Problem(films[0], reason, "photographs", _EXTRACT, required=False)] if films else []
        return found + said

    def discover(self, root: Path) -> list[ItemRef]:
        """One item per frontal scan and per extracted frame, but those of PTZ-Outdoor."""
        tips = {_person(name) or name: tip for name, tip in read_nose_tips(root).items()}
        frames, outdoor = self._frames(root)
        refs = []
        for model in sorted(root.rglob("Model")):
            person = _person(model.parent.name)
            if person is None:
                continue
            scans = [path for view in FRONTAL for path in _scans(model / view)]
            counts: dict[str, Any] = {view: len(_scans(model / view)) for view in SIDES}
            counts[LEFT_OUT] = outdoor[person]
            films = sorted(
                relative(root, path)
                for path in (model.parent / "Video").glob("*")
                if path.suffix.lower() in VIDEOS
            )
            for place, path in enumerate(scans):
                facts: dict[str, Any] = {"before": [relative(root, p) for p in scans[:place]]}
                if person in tips:
                    facts["nose_tip"] = tips[person]
                refs.append(
                    ItemRef(
                        item_id=f"{person}/{path.stem}",
                        subject_id=self.subject(person),
                        kind="scan",
                        path=relative(root, path),
                        attributes={
                            "view": path.relative_to(model).parts[0],
                            "left_out": {name: n for name, n in counts.items() if n},
                            "videos": films,
                        },
                        facts=facts,
                    )
                )
        if not refs:
            raise FileNotFoundError(
                f"{self.title}: expected subject_01/Model/frontal1/obj/<12 digits>.obj in {root}, "
                f"found none; {_WHERE}"
            )
        for person in sorted(tips.keys() - {ref.subject_id.split("/")[-1] for ref in refs}):
            logger.warning("%s: a nose tip of %s, who has no scan", self.title, person)
        if outdoor:
            logger.info("%s: %d frames of %s left out", self.title, sum(outdoor.values()), LEFT_OUT)
        return ordered(refs + frames)

    def _frames(self, root: Path) -> tuple[list[ItemRef], Counter[str]]:
        """The extracted frames, and how many of each person are left out."""
        refs: list[ItemRef] = []
        outdoor: Counter[str] = Counter()
        found = self.layout[1].found(root)
        for folder in [] if found is None else sorted(found.parent.iterdir()):
            person = _person(folder.name)
            if person is None:
                continue
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() not in _PHOTOGRAPHS:
                    continue
                clip = "/".join(path.relative_to(folder).parts[:-1])
                if _plain(LEFT_OUT) in _plain(clip):
                    outdoor[person] += 1
                    continue
                refs.append(
                    ItemRef(
                        item_id=f"{person}/{clip}/{path.stem}" if clip else f"{person}/{path.stem}",
                        subject_id=self.subject(person),
                        kind="image",
                        path=relative(root, path),
                        attributes={"clip": clip},
                    )
                )
        return refs, outdoor

    def read(self, root: Path, ref: ItemRef) -> ImageRow | ScanRow:
        """Read a frame, or a scan; an earlier scan that can be read is the ground truth."""
        path = inside(root, ref.path)
        if ref.kind == "image":
            data = path.read_bytes()
            height, width = image_size(data)
            return ImageRow(data, height, width)
        mesh = read_mesh(path)
        truth = not any(_readable(root, earlier) for earlier in ref.facts["before"])
        attributes: dict[str, Any] = {"ground_truth": truth}
        if truth and "nose_tip" in ref.facts:
            check_on_scan(ref.facts["nose_tip"], mesh.vertices, unit_mm=1.0)
            attributes["nose_tip"] = list(ref.facts["nose_tip"])
        return ScanRow(
            vertices=mesh.vertices,
            faces=mesh.faces,
            colors=mesh.colors,
            unit=self.unit,
            neutral=True,
            attributes=attributes,
        )


def _person(folder: str) -> str | None:
    """``subject_01`` of a folder's name; None where it is no subject's."""
    number = _SUBJECT.match(folder)
    return None if number is None else f"subject_{int(number[1]):02d}"


def _scans(view: Path) -> list[Path]:
    """The OBJ files of one view."""
    return sorted(path for path in view.glob("obj/*") if path.suffix.lower() == ".obj")


def _plain(name: str) -> str:
    """A folder's name without case and punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())


def _readable(root: Path, scan: str) -> bool:
    try:
        read_mesh(inside(root, scan))
    except (MeshError, ValueError, OSError):
        return False
    return True
