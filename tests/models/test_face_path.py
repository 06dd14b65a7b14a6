"""Boxes and landmarks along a video: closed forms."""

import numpy as np
import pytest

from models.face.face_path import acceleration_px, fill_boxes, gaps_of, nearest_faces, smooth_points


def box(x: float, side: float = 10.0) -> np.ndarray:
    return np.array([x, 0.0, x + side, side])


def test_the_nearest_face_is_followed_in_both_directions_whatever_the_order() -> None:
    me, other = [0.0, 2.0, 4.0, 6.0], [50.0, 48.0, 46.0, 44.0]
    found = [[box(o, 9.0), box(m)] if k % 2 else [box(m), box(o, 9.0)]
             for k, (m, o) in enumerate(zip(me, other, strict=True))]  # fmt: skip
    found[2][0 if found[2][0][2] - found[2][0][0] == 10 else 1] = box(4.0, 12.0)  # largest: start
    path = nearest_faces(found)
    np.testing.assert_array_equal(path[:, 0], me)


def test_a_face_that_was_missed_is_found_again_by_the_last_box() -> None:
    path = nearest_faces([[box(0.0, 11)], [], [], [box(40.0), box(3.0)]])
    np.testing.assert_array_equal(path[:, 0], [0.0, np.nan, np.nan, 3.0])
    assert np.isnan(nearest_faces([[], []])).all()


def test_missing_boxes_lie_on_the_line_and_ends_are_held() -> None:
    boxes = np.full((9, 4), np.nan)
    boxes[1], boxes[5], boxes[6] = [0, 0, 10, 10], [8, 4, 26, 22], [9, 9, 9, 9]
    filled = fill_boxes(boxes, longest_gap=3)
    np.testing.assert_allclose(filled.boxes_px[2], [2, 1, 14, 13])
    np.testing.assert_allclose(filled.boxes_px[4], [6, 3, 22, 19])
    np.testing.assert_array_equal(filled.boxes_px[0], boxes[1])
    np.testing.assert_array_equal(filled.boxes_px[7:], boxes[[6, 6]])
    assert filled.sources == (
        "held", "detected", *["interpolated"] * 3, "detected", "detected", "held", "held",
    )  # fmt: skip


def test_too_long_a_gap_stays_missing_as_a_whole() -> None:
    boxes = np.full((6, 4), np.nan)
    boxes[0] = boxes[5] = [0, 0, 10, 10]
    assert fill_boxes(boxes, 3).sources[1:5] == ("missing",) * 4
    assert np.isnan(fill_boxes(boxes, 3).boxes_px[1:5]).all()
    assert fill_boxes(boxes, 4).sources[1:5] == ("interpolated",) * 4
    assert fill_boxes(np.full((3, 4), np.nan), 9).sources == ("missing",) * 3


def test_gaps() -> None:
    assert gaps_of(np.array([False, True, False, False, True])) == [(0, 1), (2, 4)]
    assert gaps_of(np.array([True, True])) == []
    assert gaps_of(np.array([False])) == [(0, 1)]


def test_moving_average_of_three_frames() -> None:
    x = np.array([0.0, 3.0, 0.0, np.nan, 6.0, 0.0, 3.0])
    points = np.repeat(x, 4).reshape(-1, 2, 2)
    got = smooth_points(points, 3)[:, 0, 0]
    np.testing.assert_allclose(got, [1.5, 1.0, 1.5, np.nan, 3.0, 3.0, 1.5])
    np.testing.assert_array_equal(smooth_points(points, 1), points)
    with pytest.raises(ValueError, match="odd window"):
        smooth_points(points, 2)


def test_straight_motion_is_not_changed_inside_and_has_no_acceleration() -> None:
    points = np.arange(8.0)[:, None, None] * np.array([[1.0, -2.0]]) + 5.0
    np.testing.assert_allclose(smooth_points(points, 3)[1:-1], points[1:-1])
    assert acceleration_px(points) == pytest.approx(0.0, abs=1e-12)


def test_acceleration_of_a_zigzag_and_what_smoothing_leaves_of_it() -> None:
    zigzag = np.zeros((9, 1, 2))
    zigzag[::2, 0, 0] = 3.0  # 3 0 3 0 ...: second difference 6
    assert acceleration_px(zigzag) == pytest.approx(6.0)
    assert acceleration_px(smooth_points(zigzag, 3)[1:-1]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="three neighbouring frames"):
        acceleration_px(zigzag[:2])
