"""The reliability curve of the weights' probability: on the people it was chosen on, and on an evaluation's pairs."""

from __future__ import annotations

from collections.abc import Sequence

from facemetric.evaluation.answers import Probability, ReliabilityBin, reliability_of
from facemetric.evaluation.verification import Verification
from facemetric.report.page import Cell, Grid, Reliability, ReliabilityCurve

HEAD = ("Probability", "share of pairs", "predicted", "observed")


def reliability_section(probability: Probability | None, found: Verification | None) -> Reliability | None:
    """The section of the report; None where the weights hold no probability, or no pairs were scored."""
    if probability is None or found is None:
        return None
    here = reliability_of(probability, found.histogram)
    lead = (
        "verify gives a probability that two pictures show one person, where one and two are as likely beforehand. A "
        "point on the diagonal is a probability that holds: of the pairs of about that probability, as many are of one "
        f"person. On the pairs of this report it is off by {here.error:.3f} on average, its Brier score is "
        f"{here.brier:.4f} (0.25: nothing is known); on other people of the set that it was chosen on by "
        f"{probability.error:.3f}. Pairs of one and of two people weigh the same."
    )
    curves = (
        ReliabilityCurve("these pairs", points(here.bins)),
        ReliabilityCurve("where it was chosen", points(probability.reliability)),
    )
    rows = tuple(
        (
            Cell(
                f"{min(int(10 * one.predicted), 9) / 10:g} to {min(int(10 * one.predicted), 9) / 10 + 0.1:g}"
            ),
            Cell(f"{one.share:.1%}"),
            Cell(f"{one.predicted:.3f}"),
            Cell(f"{one.observed:.3f}"),
        )
        for one in here.bins
    )
    return Reliability(lead, curves, Grid("", HEAD, rows))


def points(bins: Sequence[ReliabilityBin]) -> tuple[tuple[float, float], ...]:
    """Where the curve goes, from 0 to 100 to the right and upwards."""
    return tuple((round(100 * one.predicted, 1), round(100 * one.observed, 1)) for one in bins)
