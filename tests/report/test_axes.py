"""Intervals on an axis: errors on whole decades, differences around 0."""

from __future__ import annotations

import pytest

from facemetric.evaluation.figures import DIFFERENCE, Figure
from facemetric.evaluation.intervals.records import Interval
from facemetric.report.axes import drawn
from facemetric.report.figures import percent


def figure(value: float, low: float, high: float, **others: object) -> Figure:
    return Figure("f", "F", value, Interval(value, low, high), **others)  # type: ignore[arg-type]


def test_errors_lie_on_whole_decades_and_fewer_are_further_left() -> None:
    axis, (good, better, eer, none) = drawn(
        [
            figure(0.9, 0.8, 0.99),
            figure(0.99, 0.9, 0.999),
            figure(0.1, 0.01, 0.2, error=True),
            Figure("g", "G", 0.5),
        ]
    )
    assert axis is not None
    assert [(round(tick.at, 6), tick.text) for tick in axis.ticks] == [
        (0, "0.1 %"),
        (33.333333, "1 %"),
        (66.666667, "10 %"),
        (100, "100 %"),
    ]
    assert good is not None
    assert better is not None
    assert good.value == pytest.approx(200 / 3)
    assert (better.value, better.low, better.high) == pytest.approx((100 / 3, 0, 200 / 3), abs=1e-6)
    assert eer is not None
    assert eer.value == pytest.approx(good.value)
    assert none is None


def test_no_errors_at_all_lie_at_the_left_edge() -> None:
    axis, (perfect, good) = drawn([figure(1.0, 0.99, 1.0), figure(0.9, 0.9, 0.9)])
    assert axis is not None
    assert perfect is not None
    assert good is not None
    assert [tick.text for tick in axis.ticks] == [
        "0",
        "1 %",
        "10 %",
        "100 %",
    ]  # a decade more, so that 1 % is not 0
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((0, 0, 100 / 3))
    assert good.value == pytest.approx(200 / 3)


def test_both_ends_have_a_text_however_many_decades_there_are() -> None:
    for power in range(1, 8):
        for high in (1.0, 1 - 10.0**-power):
            axis, _ = drawn([figure(0.9, 0.5, high)])
            assert axis is not None
            assert [axis.ticks[0].at, axis.ticks[-1].at] == [0, 100]
            assert axis.ticks[0].text
            assert axis.ticks[-1].text == "100 %"
            assert sum(bool(tick.text) for tick in axis.ticks) <= 5


def test_differences_lie_around_0_and_say_whether_they_leave_it_out() -> None:
    axis, (apart, alike) = drawn(
        [figure(-0.2, -0.35, -0.1, column=DIFFERENCE), figure(0.1, -0.1, 0.2, column=DIFFERENCE)]
    )
    assert axis is not None
    assert [(tick.at, tick.text) for tick in axis.ticks] == [(0, "-0.5"), (50, "0"), (100, "+0.5")]
    assert apart is not None
    assert alike is not None
    assert (apart.low, apart.value, apart.high, apart.apart) == pytest.approx((15, 30, 40, True))
    assert not alike.apart


def test_percents_keep_the_digits_that_count() -> None:
    shown = [
        percent(share).replace("\N{NO-BREAK SPACE}", " ")
        for share in (0.358, 0.9, 0.987, 0.0042, 0.9996, 1.0)
    ]
    assert shown == ["36 %", "90 %", "98.7 %", "0.42 %", "99.96 %", "100 %"]
