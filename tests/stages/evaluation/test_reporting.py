"""Building blocks of the report: markup, charts, pictures, choice of examples."""

import re
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest

from stages.reporting.charts import Line, dot_chart, histogram, key, line_chart
from stages.reporting.faces import choose_examples
from stages.reporting.inputs import flatten, json_or_none, weights_in_words
from stages.reporting.markup import Cell, name, number, table, text
from stages.reporting.pictures import (
    clay,
    error_colours,
    from_file,
    photograph,
    scan_colours,
    view_from_landmarks,
)
from stages.reporting.production import history_lines


def drawn(chart: str):
    return ET.fromstring(chart)


def ticks(chart: str, anchor: str) -> list[str]:
    found = drawn(chart).iter("text")
    return [t.text for t in found if t.get("class") == "tick" and t.get("text-anchor") == anchor]


def test_charts_are_wellformed_and_tell_lines_apart_without_colour():
    lines = [Line(f"a<{k}&", [0.0, 1.0, 2.0], [k + 0.0, k + 1.0, k + 2.0], k) for k in range(6)]
    root = drawn(line_chart("x < y", lines, "x", "y"))
    paths = [e for e in root.iter("path") if "line" in e.get("class", "")]
    dashes = [path.get("stroke-dasharray") for path in paths[:6]]
    assert len(set(dashes)) == 6
    assert {t.text for t in root.iter("text")} >= {"a<0&", "a<5&", "x < y"}
    assert drawn(re.search("<svg.*</svg>", key(3))[0]) is not None


def test_chart_places_values_linearly():
    chart = line_chart(
        "t", [Line("l", [0.0, 8.0], [0.0, 100.0], 0)], "mm", "%", y_range=(0.0, 100.0)
    )
    path = next(e for e in drawn(chart).iter("path") if "line" in e.get("class", ""))
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", path.get("d")))
    assert (x0, y0) == (52.0, 284.0)
    assert (x1, y1) == (506.0, 34.0)
    assert ticks(chart, "middle") == ["0", "2", "4", "6", "8"]
    assert ticks(chart, "end") == ["0", "20", "40", "60", "80", "100"]


def test_chart_turns_logarithmic_for_wide_positive_ranges():
    wide = line_chart("t", [Line("l", [1.0, 2.0, 3.0], [100.0, 1.0, 0.1], 0)], "step", "loss")
    assert ticks(wide, "end") == ["0.1", "0.3", "1", "3", "10", "30", "100"]
    narrow = line_chart("t", [Line("l", [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 0)], "step", "loss")
    assert ticks(narrow, "end")[0] == "0"


def test_dots_lie_on_their_rows_at_their_values():
    chart = dot_chart("t", [("a&b", [(1.0, 0), (2.0, 1)]), ("none", [])], "mm")
    root = drawn(chart)
    circle, square = next(root.iter("circle")), next(root.iter("rect"))
    full = 190 + (520 + 180 - 190 - 14) / 1.05
    assert float(square.get("x")) + 3.2 == pytest.approx(full, abs=0.1)
    assert float(circle.get("cx")) == pytest.approx((190 + full) / 2, abs=0.1)
    assert float(circle.get("cy")) == 45.0
    assert {t.text for t in root.iter("text")} >= {"a&b", "none", "0", "2"}


def test_a_histogram_counts_every_value_once_and_stacks_groups():
    rng = np.random.default_rng(3)
    accepted, rejected = rng.gamma(4, 0.03, 300), rng.gamma(9, 0.05, 40)
    chart = histogram("t", [("a&", accepted, 1), ("b", rejected, 2)], "mm", "scans")
    bars = [rect for rect in drawn(chart).iter("rect") if rect.get("width") != "12"]
    counts = [float(tick) for tick in ticks(chart, "end")]
    lines = [float(g.get("y1")) for g in drawn(chart).iter("line") if g.get("class") == "grid"]
    per_scan = (lines[0] - lines[-1]) / (counts[-1] - counts[0])
    for style, values in (("f1", accepted), ("f2", rejected)):
        heights = [float(bar.get("height")) for bar in bars if bar.get("class") == style]
        assert sum(heights) / per_scan == pytest.approx(len(values), rel=0.02)
    places: dict[str, list] = {}
    for bar in bars:
        places.setdefault(bar.get("x"), []).append(bar)
    stacked = [pair for pair in places.values() if len(pair) == 2]
    assert stacked
    for lower, upper in stacked:
        bottom = float(upper.get("y")) + float(upper.get("height"))
        assert bottom == pytest.approx(float(lower.get("y")), abs=0.2)
    assert {t.text for t in drawn(chart).iter("text")} >= {"a&", "b", "mm", "scans", "0"}


@pytest.mark.parametrize("values", [[0.0], [1e-9, 5.0], [3.0] * 9])
def test_a_histogram_survives_flat_and_extreme_values(values):
    bars = list(drawn(histogram("t", [("a", values, 1)], "x", "y")).iter("rect"))
    assert len(bars) == 1 + len({min(value, 1.0) for value in values})


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-1.0, -1.0], [1e-9, 2e9]])
def test_chart_survives_flat_and_extreme_values(values):
    assert drawn(line_chart("t", [Line("l", [3.0, 3.0], values, 0)], "x", "y")) is not None


def test_tables_escape_text_and_align_numbers():
    shown = table([Cell("Name"), Cell("v", "num")], [[name("<b>"), number(None)]])
    assert "&lt;b&gt;" in shown
    assert '<td class="num">–</td>' in shown
    assert number(1234.5678, 1).html == "1,234.6"
    assert text('"') == "&quot;"


def test_error_colours_darken_with_error():
    """Luminance falls strictly, so the map reads without hue; beyond its end it stays."""
    luminance = error_colours(np.linspace(0, 5, 40)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()
    np.testing.assert_array_equal(*error_colours(np.array([5.0, 50.0])))
    colours = scan_colours(4, np.array([1, 3]), np.array([0.0, 5.0]))
    np.testing.assert_array_equal(colours[0], colours[2])
    assert colours[1].sum() > colours[3].sum()


def test_view_is_rigid_and_puts_the_face_upright(kit):
    view = view_from_landmarks(kit.seven())
    np.testing.assert_allclose(view[:3, :3] @ view[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view[:3, :3]) == pytest.approx(1)
    seen = kit.seven() @ view[:3, :3].T + view[:3, 3]
    assert seen[0, 0] < seen[3, 0]  # right eye left in the picture
    assert seen[:4, 1].min() > seen[5:, 1].max()  # eyes above the mouth
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], float)
    moved = kit.seven() @ turn.T + 300
    again = moved @ view_from_landmarks(moved)[:3, :3].T + view_from_landmarks(moved)[:3, 3]
    np.testing.assert_allclose(again, seen, atol=1e-9)


def test_clay_shows_the_surface_on_a_clear_ground(kit):
    vertices, faces = kit.relief(6.0)
    view = view_from_landmarks(kit.seven())
    picture = clay(vertices, faces, view, 80)
    image = cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == (80, 80, 4)
    assert image[40, 40, 3] == 255
    assert image[0, 0, 3] == 0
    assert image[image[..., 3] == 255][:, :3].std() > 5
    assert clay(vertices, faces, view, 80).png == picture.png


def test_photographs_are_cut_square_around_the_box(tmp_path):
    image = np.zeros((120, 200, 3), np.uint8)
    image[40:80, 100:140] = 255
    encoded = cv2.imencode(".png", image)[1].tobytes()
    box = np.array([100.0, 40.0, 140.0, 80.0])
    picture = photograph(encoded, box, 68)
    cut = cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_COLOR)
    assert cut.shape == (68, 68, 3)
    rows = np.flatnonzero(cut.max(axis=(1, 2)) > 128)
    assert rows[0] == pytest.approx(14, abs=1)
    assert rows[-1] == pytest.approx(53, abs=1)
    assert photograph(encoded, None, 50).width == 50
    assert photograph(encoded, np.array([-50.0, -50, 400, 400]), 50).height == 50
    assert photograph(b"not an image", None, 50) is None
    path = tmp_path / "wide.png"
    path.write_bytes(encoded)
    small = from_file(path, 100)
    assert (small.width, small.height) == (100, 60)
    path.write_bytes(b"")
    assert from_file(path, 100) is None


def test_examples_cover_people_and_end_with_the_worst():
    items = {
        (f"NOW/{s}", f"{s}/{c}/IMG"): 1.0 for s in "abc" for c in ("multiview_neutral", "selfie")
    }
    good = dict(items) | {("NOW/b", "b/selfie/IMG"): 9.0}
    medians = {"mean": items, "mica": good, "other": {key: 20.0 for key in items}}
    chosen = choose_examples(medians, 4)
    assert chosen[-1].item_id == "b/selfie/IMG"
    assert chosen[-1].why == "largest error"
    assert [example.subject_id for example in chosen[:3]] == ["NOW/a", "NOW/b", "NOW/c"]
    challenges = {example.item_id.split("/")[1] for example in chosen[:3]}
    assert challenges == {"multiview_neutral", "selfie"}
    assert len(choose_examples(medians, 99)) == 6
    assert choose_examples(medians, 0) == []
    assert choose_examples({"mean": items, "mica": {}}, 4) == []
    assert len(choose_examples({"mean": items}, 4)) == 4


def test_histories_become_lines():
    rows = [
        {"step": k, "train": {"loss": 1 / k, "z": 0}, "validation": {"face_mm": k, "auc": 0.5}}
        for k in (1, 2)
    ]
    training, held_out = history_lines(rows)
    assert training[:2] == ("training", "loss")
    assert [(line.label, line.x, line.y) for line in training[2]] == [
        ("training", [1.0, 2.0], [1.0, 0.5])
    ]
    assert held_out[:2] == ("held out", "mm")
    assert [(line.label, line.y) for line in held_out[2]] == [("face", [1.0, 2.0])]
    assert history_lines({"history": rows}) == history_lines(rows)
    assert history_lines(None) == history_lines([]) == history_lines([{"step": 1}]) == []


def test_held_out_losses_share_the_chart_and_shares_have_their_own():
    rows = [{"step": 1, "train": {"loss": 2.0}, "validation": {"loss": 3.0, "auc": 0.5}}]
    (_, _, losses), (_, label, shares) = history_lines(rows)
    assert [line.label for line in losses] == ["training", "held out"]
    assert (label, shares[0].label) == ("share", "auc")


def test_inputs_are_tolerant(tmp_path):
    assert json_or_none(tmp_path / "no.json") is None
    (tmp_path / "bad.json").write_text("{")
    assert json_or_none(tmp_path / "bad.json") is None
    assert flatten({"b": {"c": 1, "a": [1]}, "a": None}) == [("a", None), ("b.c", 1)]
    assert weights_in_words("random", "mica") == "random"
    assert weights_in_words({"kind": "user-supplied", "sha256": "0"}, "mica") == "user-supplied"
    assert weights_in_words(None, "mica") == "not recorded"
    assert weights_in_words("random", "mean").startswith("none")
