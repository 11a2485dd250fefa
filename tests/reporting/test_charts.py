"""Curves as SVG: round axes, every finite point where it belongs, text that cannot leave its place."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from smallr.reporting.charts import HEIGHT, WIDTH, Series, chart, short, ticks


def parsed(series, title="loss"):
    return ET.fromstring(chart(title, series))


def points_of(line):
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.61, 0.69, [0.6, 0.62, 0.64, 0.66, 0.68, 0.7]),
        (-3.0, 12.0, [-5, 0, 5, 10, 15]),
        (2.0, 2.0, [1.8, 1.9, 2.0, 2.1, 2.2]),
        (0.0, 0.0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_axes_have_round_numbers_around_the_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_points_are_at_their_places():
    (line,) = parsed([Series("a", "red", [(0, 0.0), (50, 0.5), (100, 1.0)])]).iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = points_of(line)
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.11)
    assert x0 < x2 <= WIDTH
    assert 0 <= y2 < y0 <= HEIGHT


def test_what_is_not_finite_breaks_the_line_and_spoils_no_axis():
    lines = list(
        parsed([Series("a", "red", [(1, 1.0), (2, 2.0), (3, math.nan), (4, math.inf), (5, 3.0)])]).iter("polyline")
    )
    assert [len(points_of(line)) for line in lines] == [2, 1]
    assert chart("loss", [Series("a", "red", [(1, math.nan)])]) == ""


def test_a_long_line_is_thinned_but_keeps_its_ends():
    (line,) = parsed([Series("a", "red", [(i, float(i)) for i in range(10_000)])]).iter("polyline")
    assert 500 < len(points_of(line)) <= 600
    assert [title.text for title in parsed([Series("a", "red", [(i, 1.0 * i) for i in range(10_000)])]).iter("title")][
        -1
    ] == ("a, step 9,999: 9999")


def test_text_is_escaped():
    svg = chart('"><script>', [Series("<b>", 'red"><script>', [(1, 1.0), (2, 2.0)])])
    assert "<script>" not in svg
    assert "<b>" not in svg


def test_numbers_are_short():
    assert [short(x) for x in (0, 0.25, 1500, 123456, 3e-6, 2e9)] == ["0", "0.25", "1,500", "123,456", "3e-06", "2e+09"]
