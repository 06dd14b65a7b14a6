"""Which registrations are drawn, and their pictures as files: one scan's, and the worst ones'."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from models.geometry.registration import Scan
from models.geometry.sheet import Cell, registration_cell, registration_sheet, worst_sheet
from models.geometry.template import RegistrationModel
from stages.runtime.artifacts import sha256_json
from stages.runtime.params import RegisterParams

CELLS_PER_PAGE = 20


def chosen(ids: Iterable[str], count: int) -> frozenset[str]:
    """At most ``count`` of the ids, at random but the same ones when others come and go."""
    return frozenset(sorted(ids, key=lambda name: sha256_json(name))[:count])


def wanted_pictures(
    rows: Sequence[Mapping[str, Any]], section: RegisterParams
) -> dict[int, tuple[bool, bool]]:
    """Which rows are drawn: as a picture of their own, as a cell of the page of the worst.

    Returns:
        Position of a row to the two, the worst first: rejected ones before accepted ones, each by
        median residual. Rows without a mesh are not drawn.
    """

    def rank(at: int) -> tuple[bool, float, str]:
        row = rows[at]
        residual = row["residual_median_mm"]
        worst = -np.inf if residual is None else -float(residual)
        return row["status"] == "ok", worst, row["item_id"]

    drawable = sorted((at for at, row in enumerate(rows) if row["status"] != "failed"), key=rank)
    rejected = [at for at in drawable if rows[at]["status"] != "ok"]
    by_residual = sorted(drawable, key=lambda at: rank(at)[1:])
    cells = {*by_residual[: section.qa_worst], *rejected[: section.qa_rejected]}
    named = chosen((rows[at]["item_id"] for at in drawable), section.qa_pictures)
    alone = {at for at in drawable if rows[at]["item_id"] in named} | set(rejected)
    return {at: (at in alone, at in cells) for at in drawable if at in alone | cells}


def picture_key(key: str, kinds: tuple[bool, bool], section: RegisterParams) -> str:
    """Key of what :func:`draw_rows` makes of a row."""
    sizes = [section.qa_size_px, section.qa_cell_px, section.qa_heat_max_mm]
    return sha256_json({"picture of": key, "kinds": kinds, "sizes": sizes})


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the worst registrations.

    Attributes:
        first: Number of its first cell among all, from 0.
        rows: The registrations' columns.
        images: Their cells.
        key: Hash of all that is drawn.
    """

    first: int
    rows: tuple[Mapping[str, Any], ...]
    images: tuple[np.ndarray, ...]
    key: str

    @property
    def file_name(self) -> str:
        """``worst.png``, ``worst-2.png`` and so on."""
        number = self.first // CELLS_PER_PAGE + 1
        return f"worst-{number}.png" if self.first else "worst.png"


def pages_of(cells: Sequence[tuple[str, Mapping[str, Any], np.ndarray]]) -> list[Page]:
    """Cells (key, columns, image), the worst first, in pages."""
    pages = []
    for first in range(0, len(cells), CELLS_PER_PAGE):
        keys, rows, images = zip(*cells[first : first + CELLS_PER_PAGE], strict=True)
        pages.append(Page(first, rows, images, sha256_json({"page": keys, "first": first})))
    return pages


def draw_pages(
    pages: Sequence[Page], *, dataset: str, section: RegisterParams
) -> Iterator[dict[str, Any]]:
    """Each page as a PNG."""
    import cv2

    for page in pages:
        cells = [
            Cell(
                image,
                row["item_id"],
                row["status"],
                row["residual_median_mm"],
                row["residual_q95_mm"],
                row["reason"],
            )
            for row, image in zip(page.rows, page.images, strict=True)
        ]
        title = f"{dataset}: worst {page.first + 1} to {page.first + len(cells)}"
        sheet = worst_sheet(cells, title, heat_max_mm=section.qa_heat_max_mm)
        yield {"page": cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()}


def qa_picture(
    scan: Scan,
    found: Mapping[str, Any],
    model: RegistrationModel,
    section: RegisterParams,
) -> bytes:
    """PNG of scan, registered head, both, and residuals, from two sides.

    Args:
        scan: What was registered.
        found: Columns of its registration and ``residuals_mm``.
        model: The prepared model.
        section: Sizes.
    """
    import cv2

    sheet = registration_sheet(
        *_drawable(scan, found, model),
        size_px=section.qa_size_px,
        heat_max_mm=section.qa_heat_max_mm,
    )
    return bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())


def qa_cell(
    scan: Scan,
    found: Mapping[str, Any],
    model: RegistrationModel,
    section: RegisterParams,
) -> UInt8[np.ndarray, "s w 3"]:
    """Cell of the page of the worst; arguments as for :func:`qa_picture`."""
    return registration_cell(
        *_drawable(scan, found, model),
        np.asarray(model.face, bool),
        size_px=section.qa_cell_px,
        heat_max_mm=section.qa_heat_max_mm,
    )


def _drawable(
    scan: Scan, found: Mapping[str, Any], model: RegistrationModel
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scan and mesh in FLAME's frame, metres, with their triangles, and the residuals, mm."""
    rotation = np.asarray(found["rotation"], np.float64).reshape(3, 3)
    placed = found["scale"] * np.asarray(scan.vertices, np.float64) @ rotation.T
    return (
        placed + found["translation"],
        np.asarray(scan.faces, np.int64),
        np.asarray(found["vertices"], np.float64).reshape(-1, 3),
        np.asarray(model.arrays.faces, np.int64),
        np.asarray(found["residuals_mm"], np.float64),
    )
