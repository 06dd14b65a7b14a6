"""What the report reads: artefacts of other stages, each of which may be absent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stages.runtime.artifacts import read_json, read_table

BASELINE: Final = "mean"
METHOD_TITLES: Final[Mapping[str, str]] = {
    "mean": "Average head",
    "deng2019": "Deng et al. 2019",
    "mica": "MICA",
    "pix2face": "pix2face",
    "ringnet": "RingNet",
}
PROTOCOL_TITLES: Final[Mapping[str, str]] = {
    "now": "NoW",
    "now-metric": "NoW-metric",
    "stirling-now": "Stirling by NoW",
    "stirling-now-metric": "Stirling by NoW-metric",
    "feng2018": "Feng 2018",
    "feng2018-metric": "Feng 2018, metric",
    "micc-genova": "MICC by Genova",
    "micc-deng": "MICC by Deng",
    "micc-ganfit": "MICC by GANFit",
    "facewarehouse": "FaceWarehouse",
    "bu3dfe": "BU-3DFE",
}
DATASET_TITLES: Final[Mapping[str, str]] = {
    "300w_lp": "300W-LP",
    "bp4d": "BP4D+",
    "bu3dfe": "BU-3DFE",
    "d3dfacs": "D3DFACS",
    "facewarehouse": "FaceWarehouse",
    "florence": "MICC Florence",
    "frgc": "FRGC v2",
    "lyhm": "LYHM / Headspace",
    "now": "NoW",
    "stirling": "Stirling / ESRC",
    "vggface2": "VGGFace2",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One method's scores.

    Attributes:
        method: Its key.
        style: Number of its line style, the same throughout the page.
        synthetic: Whether it was computed on synthetic data; None when not recorded.
        weights: Where its weights come from, in words.
        protocols: Content of ``metrics.json`` by protocol.
        curves: Points of the cumulative curve by protocol.
        likeness: Content of ``likeness.json``; empty where it was not measured.
        others: Content of ``benchmarks.json``: by benchmark beside NoW, then protocol.
        landmarks: Content of ``landmarks.json`` by set; empty where the method predicts none.
    """

    method: str
    style: int
    synthetic: bool | None
    weights: str
    protocols: dict[str, dict[str, Any]]
    curves: dict[str, list[dict[str, float]]]
    likeness: dict[str, Any]
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    landmarks: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The method's name for people."""
        return METHOD_TITLES.get(self.method, self.method)


@dataclass(frozen=True, slots=True)
class Failure:
    """One input that could not be used."""

    item_id: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed data set.

    Attributes:
        name: Its key.
        meta: Content of ``meta.json``.
        subjects: How many.
        counts: Rows by (kind, usable): kind is ``images`` or ``scans``.
        failures: In order of kind and item.
    """

    name: str
    meta: dict[str, Any]
    subjects: int
    counts: dict[tuple[str, bool], int]
    failures: tuple[Failure, ...]

    @property
    def title(self) -> str:
        """The data set's name for people."""
        return DATASET_TITLES.get(self.name, self.name)


def json_or_none(path: Path) -> Any | None:  # noqa: ANN401 - any JSON document
    """A JSON document, or None where there is no file or no JSON in it."""
    try:
        return read_json(path)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def load_evaluations(data: Path) -> list[Evaluation]:
    """Scores of every evaluated method, the baseline first."""
    found: list[tuple[str, dict[str, Any], Path]] = []
    for path in sorted((data / "evaluation").glob("*/metrics.json")):
        metrics = json_or_none(path)
        if isinstance(metrics, dict) and isinstance(metrics.get("protocols"), dict):
            method = str(metrics.get("method", path.parent.name))
            found.append((method, metrics, path.parent))
    found.sort(key=lambda entry: (entry[0] != BASELINE, entry[0]))
    return [
        Evaluation(
            method,
            style,
            metrics.get("synthetic"),
            weights_in_words(metrics.get("weights"), method),
            metrics["protocols"],
            _object(folder / "curves.json"),
            _object(folder / "likeness.json"),
            _object(folder / "benchmarks.json"),
            _object(folder / "landmarks.json"),
        )
        for style, (method, metrics, folder) in enumerate(found)
    ]


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    content = json_or_none(path)
    return content if isinstance(content, dict) else {}


def load_packed(data: Path) -> list[Packed]:
    """Counts and failures of every packed data set, by name."""
    found = []
    for folder in sorted(path for path in (data / "packed").glob("*") if path.is_dir()):
        counts: dict[tuple[str, bool], int] = {}
        failures = []
        subjects = set()
        for kind in ("images", "scans"):
            for shard in sorted(folder.glob(f"{kind}-*.parquet")):
                columns = ["item_id", "subject_id", "status", "reason"]
                for row in read_table(shard, columns).to_pylist():
                    usable = row["status"] == "ok"
                    counts[kind, usable] = counts.get((kind, usable), 0) + 1
                    subjects.add(row["subject_id"])
                    if not usable:
                        failures.append(Failure(row["item_id"] or "?", kind[:-1], row["reason"]))
        failures.sort(key=lambda failure: (failure.kind, failure.item_id, failure.reason))
        meta = json_or_none(folder / "meta.json")
        found.append(
            Packed(
                folder.name,
                meta if isinstance(meta, dict) else {},
                len(subjects),
                counts,
                tuple(failures),
            )
        )
    return found


def weights_in_words(weights: object, method: str) -> str:
    """A weights record (a word, a mapping or nothing) as text."""
    if method == BASELINE:
        return "none: the same head for every photograph"
    if isinstance(weights, Mapping):
        kind = weights.get("kind") or weights.get("provenance") or weights.get("source")
        return str(kind) if kind else ", ".join(f"{k}: {v}" for k, v in sorted(weights.items()))
    return str(weights) if weights else "not recorded"


def flatten(content: object, prefix: str = "") -> list[tuple[str, object]]:
    """Scalar leaves of nested mappings with dotted names; lists are left out."""
    if isinstance(content, Mapping):
        return [
            leaf
            for key in sorted(content)
            for leaf in flatten(content[key], f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(content, list):
        return []
    return [(prefix, content)]
