"""What the benchmarks measure: one record per protocol.

Sources: ``now`` Sanyal et al. 2019 (RingNet, section 5.1 and the public evaluation code);
``now-metric`` and the ``stirling-now`` pair Zielonka et al. 2022 (MICA, section 4.2);
``feng2018`` Feng et al. 2018 and the public competition code; ``micc-genova`` Genova et al. 2018
(section 5.3); ``micc-deng``, ``facewarehouse`` and ``bu3dfe`` Deng et al. 2019; ``micc-ganfit``
Gecer et al. 2019 by its public code. What a source leaves open is chosen here and said in
``docs/evaluation.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_type_hints

UNITS_MM: Final[Mapping[str, float]] = MappingProxyType({"m": 1000.0, "cm": 10.0, "mm": 1.0})
"""Millimetres per unit of length a prediction may be declared in."""

LANDMARK_NAMES: Final = (
    "right eye outer",
    "right eye inner",
    "left eye inner",
    "left eye outer",
    "nose bottom",
    "right mouth corner",
    "left mouth corner",
)
"""The seven landmarks in order; right and left are the subject's."""

Scale = Literal["estimated", "unit", "global"]
Direction = Literal["scan-to-prediction", "symmetric"]
Distance = Literal["surface", "plane"]
Statistic = Literal["vertices", "mean", "rmse"]
Landmarks = Literal["seven", "nose-tip", "correspondence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What distinguishes one protocol from another.

    Attributes:
        name: As on the command line.
        landmarks: What brings the prediction near the scan. ``seven``: those of
            :data:`LANDMARK_NAMES`. ``nose-tip``: 68 or 51 iBUG points, or the nose tip alone.
            ``correspondence``: vertex k of the scan is vertex k of the prediction.
        crop_factor: Radius of the kept sphere over the sum of the outer-eye distance and the
            nose length, both of the scan's seven landmarks; 0 keeps by ``crop_mm``.
        crop_mm: Radius of the kept sphere around the scan's nose tip; 0 keeps everything.
        forehead_mm: Height above the nose tip, along the face, from which the scan is cut;
            0 cuts nothing.
        scale: ``estimated``: scale comes from the start and is refined. ``unit``: it is the
            declared unit's and stays. ``global``: one given number for all predictions.
        refined: Whether the pose is refined on the surface after the start.
        direction: ``symmetric`` also measures from the prediction's vertices to the scan.
        distance: To the closest point of the surface, or to the plane of the closest triangle.
        overlap: Measure only where the closest point is no border point and both surfaces face
            the same way.
        statistic: The published figure. ``vertices``: over the vertices of all images together.
            ``mean``, ``rmse``: one number per image, then mean and deviation over images.
        best_of_scans: A subject's least error over all their scans counts.
    """

    name: str
    landmarks: Landmarks = "seven"
    crop_factor: float = 0.0
    crop_mm: float = 0.0
    forehead_mm: float = 0.0
    scale: Scale = "estimated"
    refined: bool = True
    direction: Direction = "scan-to-prediction"
    distance: Distance = "surface"
    overlap: bool = False
    statistic: Statistic = "vertices"
    best_of_scans: bool = False


_NOW: Final = Protocol(name="now", crop_factor=0.7)
_FENG: Final = Protocol(name="feng2018", crop_factor=0.6, refined=False, statistic="mean")
_MICC: Final = Protocol(name="micc-deng", landmarks="nose-tip", crop_mm=95.0)

PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            _NOW,
            replace(_NOW, name="now-metric", scale="unit"),
            _FENG,
            replace(_FENG, name="feng2018-metric", scale="unit"),
            replace(_NOW, name="stirling-now"),
            replace(_NOW, name="stirling-now-metric", scale="unit"),
            replace(
                _MICC,
                name="micc-genova",
                direction="symmetric",
                distance="plane",
                overlap=True,
                statistic="mean",
            ),
            replace(_MICC, forehead_mm=60.0, distance="plane", statistic="rmse"),
            replace(
                _MICC,
                name="micc-ganfit",
                direction="symmetric",
                statistic="mean",
                best_of_scans=True,
            ),
            Protocol(
                name="facewarehouse", landmarks="correspondence", refined=False, statistic="mean"
            ),
            Protocol(name="bu3dfe", landmarks="nose-tip", distance="plane", statistic="rmse"),
        )
    }
)
"""The named protocols."""

OPTIONS: Final = (
    "crop_factor", "crop_mm", "forehead_mm", "scale", "direction", "distance", "overlap",
    "statistic", "best_of_scans",
)  # fmt: skip
"""Fields that a user may set otherwise than a protocol does."""


def protocol_named(name: str) -> Protocol:
    """The preset of that name.

    Raises:
        ValueError: No such preset; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"expected a protocol among {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


def with_options(protocol: Protocol, options: Mapping[str, str]) -> Protocol:
    """The protocol with some of :data:`OPTIONS` set, from text.

    Raises:
        ValueError: Unknown option, or a value it cannot have.
    """
    kinds = get_type_hints(Protocol)
    known = [field.name for field in fields(Protocol) if field.name in OPTIONS]
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name not in known:
            raise ValueError(f"expected an option among {', '.join(known)}, got {name!r}")
        values[name] = _value(name, text, kinds[name])
    return replace(protocol, **values)


def _value(name: str, text: str, kind: Any) -> bool | float | str:  # noqa: ANN401 - a type
    if kind is bool:
        if text not in {"true", "false"}:
            raise ValueError(f"expected {name} true or false, got {text!r}")
        return text == "true"
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0.0 <= number < float("inf"):
            raise ValueError(f"expected {name} as a number from 0, got {text!r}")
        return number
    if text not in get_args(kind):
        raise ValueError(f"expected {name} among {', '.join(get_args(kind))}, got {text!r}")
    return text
