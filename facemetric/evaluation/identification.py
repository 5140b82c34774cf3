"""Who is it: open-set identification against a gallery.

Shapes: N gallery images, Q probe images, D embedding, M probes of people in the gallery, O of others, W people,
B draws, K wanted FPIRs, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError
from facemetric.evaluation.curves import Floats, Ints, OperatingPoint, Scores, tar_at_far
from facemetric.evaluation.figures import Figure, Heading, tpir_name
from facemetric.evaluation.intervals.draws import DRAWS, person_weights
from facemetric.evaluation.intervals.listed import Ranked, tar_at
from facemetric.evaluation.intervals.records import Interval, figure_intervals, mean_intervals
from facemetric.evaluation.nearest import nearest

NEVER = -2.0  # below every cosine: a known probe whose best match is wrong is identified at no threshold


@dataclass(frozen=True)
class Identification:
    """Open-set identification by the single best match in the gallery.

    `rank_1`: share of the M known probes whose best match is right, at any score. `points`: for each wanted
    FPIR (share of the O unknown probes that match anybody), `true_rate` is the TPIR (share of the M known ones
    whose best match is right and >= threshold), `false_rate` the FPIR reached. `best`, `score`, `right`, (Q,): the
    gallery row that each probe matched, how well, and whether it is the probe's person.
    """

    rank_1: float
    points: tuple[OperatingPoint, ...]
    known: int
    unknown: int
    best: Ints = field(compare=False, repr=False)
    score: npt.NDArray[np.float32] = field(compare=False, repr=False)
    right: npt.NDArray[np.bool_] = field(compare=False, repr=False)
    is_known: npt.NDArray[np.bool_] = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names; what is undefined is None."""
        fpir = {}
        for p in self.points:
            ok = p.supported
            fpir[f"{p.wanted:g}"] = {
                "supported": ok,
                "tpir": p.true_rate if ok else None,
                "fpir": p.false_rate if ok else None,
                "threshold": p.threshold if ok and np.isfinite(p.threshold) else None,
            }
        counts = {"known_probes": self.known, "unknown_probes": self.unknown}
        return {**counts, "rank_1": self.rank_1, "tpir_at_fpir": fpir}

    def figures(self, intervals: Mapping[str, Interval]) -> list[Figure]:
        """Rank 1 and TPIR at each FPIR, with their intervals by name; what lacks probes comes last."""
        lead = f"{self.known:,} probes of people in the gallery, {self.unknown:,} of strangers."
        heading = Heading("Open-set identification", lead)
        first = intervals.get("rank_1")
        rows = [
            Figure(
                "rank_1",
                "Rank 1",
                self.rank_1,
                first,
                heading,
                about="of probes of enrolled people, the share whose best match is right, at any score",
                headline=5,
            )
        ]
        measured = [p for p in self.points if p.supported]
        for p in measured + sorted((p for p in self.points if not p.supported), key=lambda p: -p.wanted):
            lacking = f"has {self.unknown:,} of {1 / p.wanted:,.0f} strangers"
            rows.append(
                Figure(
                    tpir_name(p.wanted),
                    f"TPIR at FPIR = {p.wanted:g}",
                    p.true_rate if p.supported else None,
                    intervals.get(tpir_name(p.wanted)),
                    heading,
                    f"threshold {p.threshold:.4f}" if p.supported else lacking,
                    "of probes of enrolled people, the share found where that share of strangers is taken for somebody",
                    series="TPIR at FPIR",
                )
            )
        return rows


def identify(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    fpirs: Sequence[float] = (1e-1, 1e-2),
) -> Identification:
    """TPIR at FPIR of probes (Q, D) against a gallery (N, D). Probes of people in the gallery are known ones.

    No probe may be in the gallery itself: leave such out (see `retrieval.same_images`), it would be found with 1.

    Source of the terms: ISO/IEC 19795-1. Raises DataError where known or unknown probes lack.
    """
    identity_N, identity_Q = np.asarray(gallery_labels), np.asarray(probe_labels)
    best = nearest(probe, gallery, 1)
    if identity_N.shape != (len(np.asarray(gallery)),) or identity_Q.shape != (len(best.rows),):
        raise DataError(
            f"labels of shapes {identity_N.shape} and {identity_Q.shape}; needed one an embedding"
        )
    known = np.isin(identity_Q, identity_N)
    if not known.any() or known.all():
        raise DataError(
            f"{known.sum()} known and {(~known).sum()} unknown probes; open-set identification needs both"
        )
    score, right = best.score[:, 0], identity_N[best.rows[:, 0]] == identity_Q
    # A known probe whose best match is someone else counts, but is not identified at any threshold.
    hits = Scores(int(known.sum()), np.sort(score[known & right]))
    points = (tar_at_far(hits, Scores.listed(score[~known]), f) for f in fpirs)
    return Identification(
        float(right[known].mean()),
        tuple(points),
        int(known.sum()),
        int((~known).sum()),
        best.rows[:, 0],
        score,
        right,
        known,
    )


class OpenSet(NamedTuple):
    """Rows of the gallery and of the probes, drawn so that some probes are of people who are not enrolled."""

    gallery: Ints
    probes: Ints


def draw_open_set(labels: npt.ArrayLike, *, seed: int = 0) -> OpenSet:
    """Half of the people (N,) with two images or more are enrolled with one image, drawn; all other images,
    theirs and everybody else's, are probes. Raises DataError where there are fewer than two such people.
    """
    names, identity_N, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    several = rng.permutation(np.flatnonzero(sizes >= 2))
    if len(several) < 2 or len(names) < 2:
        raise DataError(
            f"{len(several)} of {len(names)} people have two images or more; an open set needs two such people"
        )
    enrolled = np.zeros(len(names), bool)
    enrolled[several[: len(several) // 2]] = True
    order = rng.permutation(len(identity_N))
    first = np.unique(identity_N[order], return_index=True)[1]  # the first drawn image of each person
    gallery = np.sort(order[first[enrolled]])
    return OpenSet(gallery, np.setdiff1d(np.arange(len(identity_N)), gallery))


def identification_intervals(
    found: Identification,
    probe_labels: npt.ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of `rank_1` and `tpir_at_fpir_X`: the people of the probes (Q,) resampled, the gallery is kept."""
    identity_Q, known = np.asarray(probe_labels), found.is_known
    rank_1 = mean_intervals({"rank_1": found.right[known]}, identity_Q[known], draws=draws, seed=seed)
    points = [p for p in found.points if p.supported]
    drawn_BK = _drawn_tpir(found, identity_Q, [p.wanted for p in points], draws, seed)
    values = {tpir_name(p.wanted): p.true_rate for p in points}
    return rank_1 | figure_intervals(values, drawn_BK)


def _drawn_tpir(
    found: Identification, identity_Q: npt.NDArray, fpirs: Sequence[float], draws: int, seed: int
) -> Floats:
    """The TPIR (B, K) at each FPIR (K,), with the people (Q,) of the probes resampled."""
    wrong_Q = found.is_known & ~found.right
    ranked = Ranked(np.where(wrong_Q, NEVER, found.score), found.is_known)
    names, person_Q = np.unique(identity_Q, return_inverse=True)
    drawn = []
    for w_BW in person_weights(len(names), draws, seed, pairs=len(identity_Q)):
        tpir_BT, fpir_BT = ranked.rates(w_BW[:, person_Q])
        if wrong_Q.any():  # they count, but no threshold can be set that accepts them
            tpir_BT, fpir_BT = tpir_BT[:, :-1], fpir_BT[:, :-1]
        drawn.append(tar_at(tpir_BT, fpir_BT, fpirs))
    return np.concatenate(drawn)
