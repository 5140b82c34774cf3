"""A verification as the page draws it: what the slider of thresholds counts, the bars of the scores, the curve."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import Floats, Ints, Roc
from facemetric.evaluation.intervals.records import Band
from facemetric.evaluation.verification import Verification
from facemetric.report.page import Curve, Mark, Thresholds

ROWS = 600  # thresholds that the slider meets, evenly over the scores
TAIL = 200  # and evenly over log FAR, where few impostors decide
POINTS = 400  # of a curve
BINS = 80  # bars of the histogram


def thresholds_of(found: Verification) -> Thresholds:
    """Counts at some of the ROC's thresholds, each exact, and the histogram of the scores."""
    threshold = found.roc.threshold[:0:-1]  # rising; accepting nothing, at inf, is no place for a slider
    genuine = np.rint(found.roc.tar[:0:-1] * found.n_genuine).astype(np.int64)
    impostor = np.rint(found.roc.far[:0:-1] * found.n_impostor).astype(np.int64)
    picked = np.searchsorted(threshold, np.linspace(threshold[0], threshold[-1], ROWS))
    tail = np.searchsorted(-impostor, -np.geomspace(1, found.n_impostor, TAIL).round())
    place = np.unique(np.clip(np.concatenate([picked, tail]), 0, len(threshold) - 1))
    counts = {
        float(t): (int(g), int(i))
        for t, g, i in zip(threshold[place], genuine[place], impostor[place], strict=True)
    }
    at_eer = min(int(np.searchsorted(threshold, found.eer_threshold)), len(threshold) - 1)
    counts[float(threshold[at_eer])] = int(genuine[at_eer]), int(impostor[at_eer])
    named = [("equal errors", float(threshold[at_eer]))]
    for p in found.points:
        if p.supported and math.isfinite(p.threshold):
            counts[float(p.threshold)] = round(p.true_rate * found.n_genuine), p.accepted_impostors
            named.append((f"FAR {p.wanted:g}", float(p.threshold)))
    rising = sorted(counts)
    row = {t: k for k, t in enumerate(rising)}
    edge, bin_genuine, bin_impostor = bars(threshold, genuine, impostor)
    return Thresholds(
        tuple(_short(rising)),
        tuple(counts[t][0] for t in rising),
        tuple(counts[t][1] for t in rising),
        found.n_genuine,
        found.n_impostor,
        tuple(Mark(label, row[t]) for label, t in named),
        row[named[0][1]],
        tuple(_short(edge)),
        tuple(bin_genuine.tolist()),
        tuple(bin_impostor.tolist()),
    )


def bars(threshold: Floats, genuine: Ints, impostor: Ints) -> tuple[Floats, Ints, Ints]:
    """Edges (H + 1,) and exact counts (H,) of about BINS bins, from counts accepted at rising thresholds (T,).

    An edge is the first threshold that is known from where it should be, so bins are not all of one width."""
    even = np.linspace(threshold[0], threshold[-1], BINS + 1)[:-1]
    place = np.unique(np.searchsorted(threshold, even))
    upper = max(threshold[-1], threshold[place[-1]] + 1e-3)  # some width, where all scores are alike
    edge = np.append(threshold[place], upper)
    return edge, -np.diff(genuine[place], append=0), -np.diff(impostor[place], append=0)


def roc_curve(name: str, roc: Roc, band: Band | None) -> Curve:
    """The highest TAR at each FAR from one impostor pair up, thinned evenly over log FAR."""
    far, first = np.unique(roc.far[::-1], return_index=True)
    tar = roc.tar[::-1][first]
    keep = far > 0
    far, tar = far[keep], tar[keep]
    place = np.unique(np.searchsorted(far, np.geomspace(far[0], far[-1], POINTS)).clip(0, len(far) - 1))
    bands: list[npt.NDArray] = [] if band is None else [band.far, band.low, band.high]
    return Curve(name, *(tuple(_short(x)) for x in (far[place], tar[place], *bands)))


def _short(values: npt.ArrayLike) -> list[float]:
    """Numbers of nine digits, which tell all float32 scores apart, in half the bytes of all sixteen."""
    return [float(f"{value:.9g}") for value in np.asarray(values).tolist()]
