"""Our figures agree with other people's code, and a figure that does not is seen."""

from __future__ import annotations

from compare_figures import Line, as_table, compare, drawn_table


def test_every_figure_agrees() -> None:
    lines = compare(drawn_table(people=110, images=4))
    assert len(lines) == 16
    for line in lines:
        assert abs(line.ours - line.theirs) < (1e-4 if line.who == "scipy" else 1e-6), line
        assert 0 < line.ours <= 1, line


def test_the_table_shows_the_difference() -> None:
    assert "| AUC | 0.50000000 | 0.25000000 | 2.5e-01 | somebody |" in as_table(
        [Line("AUC", 0.5, 0.25, "somebody")]
    )
