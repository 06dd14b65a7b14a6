"""The picture: size, columns, and colours that mean the residual."""

import numpy as np
import pytest

from models.geometry.sheet import (
    HEAT_RGB,
    NO_DATA_RGB,
    Cell,
    _heat,
    registration_cell,
    registration_sheet,
    worst_sheet,
)


def test_heat_runs_from_the_first_to_the_last_colour() -> None:
    colors = _heat(np.array([0.0, 1.0, 7.0, np.nan]), 1.0)
    np.testing.assert_allclose(colors[0], HEAT_RGB[0])
    np.testing.assert_allclose(colors[1], HEAT_RGB[-1])
    np.testing.assert_allclose(colors[2], HEAT_RGB[-1])
    np.testing.assert_allclose(colors[3], NO_DATA_RGB)


# Linear RGB as seen without red or green cones: Vienot, Brettel, Mollon (1999), equations 3 to 6.
LMS = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
BLIND = {
    "protan": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "deutan": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
    "everybody": np.eye(3),
}


def seen_by(kind: str, srgb: np.ndarray) -> np.ndarray:
    """CIE Lab of what a viewer sees."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ (np.linalg.inv(LMS) @ BLIND[kind] @ LMS).T, 0, 1)
    xyz = (
        linear
        @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
        / [0.9505, 1.0, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("kind", BLIND)
def test_heat_reads_without_red_or_green_cones(kind) -> None:
    """Lightness falls all the way, and no colour of the ramp is taken for "not measured"."""
    lab = seen_by(kind, _heat(np.linspace(0, 1, 60), 1.0))
    assert (np.diff(lab[:, 0]) < 0).all()
    assert lab[0, 0] - lab[-1, 0] > 70
    absent = seen_by(kind, np.array([NO_DATA_RGB]))
    assert np.linalg.norm(lab - absent, axis=1).min() > 20


def test_sheet_shows_scan_mesh_both_and_residuals(toy, toy_model) -> None:
    arrays = toy_model.arrays
    vertices = arrays.v_template.astype(np.float64)
    residuals = np.where(toy_model.face, 1.0, np.nan)
    sheet = registration_sheet(
        vertices, arrays.faces, vertices, arrays.faces, residuals, size_px=96, heat_max_mm=1.0
    )
    assert sheet.shape == (192, 384, 3)
    assert sheet.dtype == np.uint8
    assert (sheet[95, 0] == 255).all()
    scan, mesh, _, heat = (sheet[48, 96 * k + 48].astype(int) for k in range(4))
    assert scan[2] > scan[0]  # bluish
    assert mesh[0] > mesh[2]  # skin
    assert heat[0] > 2 * heat[1]  # red where the residual is large


@pytest.fixture
def cell(toy_model):
    """Pictures of the head whose face is off by half a millimetre, as drawn for the page."""
    arrays = toy_model.arrays
    vertices = arrays.v_template.astype(np.float64)
    residuals = np.where(toy_model.face, 0.5, np.nan)

    def draw(offset=(0.0, 0.0, 0.0), values=residuals):
        moved = vertices + offset
        face = np.asarray(toy_model.face, bool)
        return registration_cell(
            moved, arrays.faces, moved, arrays.faces, values, face, size_px=96, heat_max_mm=1.0
        )

    return draw


def test_a_cell_shows_scan_mesh_and_residuals_of_the_face(cell, toy_model) -> None:
    picture = cell()
    assert picture.shape == (96, 288, 3)
    scan, mesh, heat = (picture[40:56, 96 * k + 40 : 96 * k + 56].mean((0, 1)) for k in range(3))
    assert scan[2] > scan[0]  # bluish
    assert mesh[0] > mesh[2]  # skin
    ramp = _heat(np.linspace(0, 1, 101), 1.0)
    hue = heat / heat.sum()
    nearest = np.linalg.norm(ramp / ramp.sum(1, keepdims=True) - hue, axis=1).argmin()
    assert abs(nearest - 50) <= 12  # half of the scale, but for the shade
    absent = cell(values=np.full(len(toy_model.template), np.nan))[40:56, 232:248].mean((0, 1))
    assert absent[2] > absent[0]


def test_a_cell_follows_the_head_and_comes_out_the_same(cell) -> None:
    np.testing.assert_array_equal(cell(), cell())
    difference = np.abs(cell().astype(int) - cell(offset=(0.3, -0.2, 0.1)).astype(int))
    assert np.percentile(difference, 99) <= 2


def small(name: str, verdict: str = "ok", median: float | None = 0.1, reason: str = "") -> Cell:
    return Cell(np.full((32, 384, 3), 7, np.uint8), name, verdict, median, median, reason)


def test_the_page_places_cells_in_reading_order() -> None:
    page = worst_sheet([small(str(k)) for k in range(5)], "title", heat_max_mm=1.0)
    assert page.shape == (64 + 3 * 112, 28 + 2 * 412, 3)
    inside = (page == 7).all(axis=2)
    assert inside.sum() == 5 * 32 * 384
    assert inside[64 + 52 : 64 + 84, 28:412].all()
    assert inside[288 + 52 : 288 + 84, 28:412].all()
    assert not inside[288:, 440:].any()


def test_the_page_shows_its_scale_and_what_was_said() -> None:
    page = worst_sheet([small("a")], "title", heat_max_mm=1.0)
    bar = page[25, : page.shape[1] - 58][-260:] / 255
    np.testing.assert_allclose(bar, _heat(np.linspace(0, 1, 260), 1.0), atol=1 / 255)
    said = worst_sheet([small("a", "rejected", None, "why " * 200)], "title", heat_max_mm=1.0)
    assert (said[64 + 24 : 64 + 52, 28:412] < 200).any()
    assert not (page[64 + 24 : 64 + 52, 28:412] < 200).any()  # no reason, no ink
    assert (said[64:, 412:440] == 255).all()  # a long reason stays in its cell
    long = worst_sheet([small("name " * 99)], "title", heat_max_mm=1.0)
    assert (long[64:, 412:440] == 255).all()
    with pytest.raises(ValueError, match="at least one cell"):
        worst_sheet([], "title", heat_max_mm=1.0)
