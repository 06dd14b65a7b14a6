"""The picture: size, columns, and colours that mean the residual."""

import numpy as np

from models.geometry.sheet import HEAT_RGB, _heat, registration_sheet


def test_heat_runs_from_the_first_to_the_last_colour() -> None:
    colors = _heat(np.array([0.0, 1.0, 7.0, np.nan]), 1.0)
    np.testing.assert_allclose(colors[0], HEAT_RGB[0])
    np.testing.assert_allclose(colors[1], HEAT_RGB[-1])
    np.testing.assert_allclose(colors[2], HEAT_RGB[-1])
    assert len(set(colors[3])) == 1


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
