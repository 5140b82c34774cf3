"""Who is it: identification against a gallery, closed set (ranks) and open set (TPIR and FNIR at FPIR).

Shapes: N gallery images, Q probe images, D embedding, M probes of people in the gallery, O of others, W people,
B draws, K wanted FPIRs, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric.errors import DataError
from facemetric.evaluation.curves import (
    CURVE_POINTS,
    Ints,
    OperatingPoint,
    Roc,
    Scores,
    roc,
    tar_at_far,
)
from facemetric.evaluation.figures import Figure, Heading, fnir_name, tpir_name
from facemetric.evaluation.intervals.draws import DRAWS, person_weights
from facemetric.evaluation.intervals.listed import Ranked, tar_at
from facemetric.evaluation.intervals.records import Interval, figure_intervals, mean_intervals
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.ranks import NEVER, own_ranks

RANKS = (5, 10, 20)  # beside 1
FNIR_FPIRS = (1e-2, 3e-3, 1e-3)  # 0.003 is that of NIST's FRTE tables


@dataclass(frozen=True)
class Identification:
    """Identification by the best matches in the gallery.

    `rank_1`: share of the M known probes whose best match is right, at any score; `ranks`: the share of them whose
    person is among the k best people, by k. `points`: for each wanted FPIR (share of the O unknown probes that match
    anybody), `true_rate` is the TPIR (share of the M known ones whose best match is right and >= threshold),
    `false_rate` the FPIR reached. `misses`: where `1 - true_rate` is the FNIR of NIST's FRTE: the share of the
    known probes whose own person scores below the threshold, whoever else scores higher. `points` and `misses` are ()
    without unknown probes (closed set). `det`: FNIR and FPIR along all thresholds, `tar` of it is 1 - FNIR.

    `best`, `score`, `right`, (Q,): the gallery row that each probe matched, how well, and whether it is the probe's
    person. `rank` and `mate` (Q,): the place of the probe's own person among all people, 0 for unknown probes, and
    the score of that person's best image.
    """

    rank_1: float
    points: tuple[OperatingPoint, ...]
    known: int
    unknown: int
    best: Ints = field(compare=False, repr=False)
    score: npt.NDArray[np.float32] = field(compare=False, repr=False)
    right: npt.NDArray[np.bool_] = field(compare=False, repr=False)
    is_known: npt.NDArray[np.bool_] = field(compare=False, repr=False)
    ranks: Mapping[int, float]
    misses: tuple[OperatingPoint, ...]
    rank: Ints = field(compare=False, repr=False)
    mate: npt.NDArray[np.float32] = field(compare=False, repr=False)
    det: Roc | None = field(default=None, compare=False, repr=False)

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
        fnir = {}
        for p in self.misses:
            ok = p.supported
            fnir[f"{p.wanted:g}"] = {
                "supported": ok,
                "fnir": 1 - p.true_rate if ok else None,
                "fpir": p.false_rate if ok else None,
                "threshold": p.threshold if ok and np.isfinite(p.threshold) else None,
            }
        counts = {"known_probes": self.known, "unknown_probes": self.unknown}
        ranks = {"rank_1": self.rank_1} | {f"rank_{k}": share for k, share in self.ranks.items()}
        return {**counts, **ranks, "tpir_at_fpir": fpir, "fnir_at_fpir": fnir}

    def figures(self, intervals: Mapping[str, Interval]) -> list[Figure]:
        """Ranks, TPIR and FNIR at each FPIR, with their intervals by name; what lacks probes comes last."""
        lead = f"{self.known:,} probes of people in the gallery, {self.unknown:,} of strangers."
        heading = Heading(f"{'Open' if self.unknown else 'Closed'}-set identification", lead)
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
        for k, share in self.ranks.items():
            about = f"the same among the {k} best people"
            name = f"rank_{k}"
            rows.append(Figure(name, f"Rank {k}", share, intervals.get(name), heading, about=about))
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
        return rows + self._missed(heading, intervals)

    def _missed(self, heading: Heading, intervals: Mapping[str, Interval]) -> list[Figure]:
        """FNIR at each FPIR; those that lack strangers come last."""
        return [
            Figure(
                fnir_name(p.wanted),
                f"FNIR at FPIR = {p.wanted:g}",
                1 - p.true_rate if p.supported else None,
                intervals.get(fnir_name(p.wanted)),
                heading,
                f"threshold {p.threshold:.4f}"
                if p.supported
                else f"has {self.unknown:,} of {1 / p.wanted:,.0f} strangers",
                "of probes of enrolled people, the share whose own person scores below that threshold, at any rank",
                series="FNIR at FPIR",
                error=True,
            )
            for p in sorted(self.misses, key=lambda p: (not p.supported, -p.wanted))
        ]


def identify(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    fpirs: Sequence[float] = (1e-1, 1e-2),
    closed: bool = False,
    device: torch.device | None = None,
) -> Identification:
    """Ranks, and TPIR and FNIR at FPIR, of probes (Q, D) against a gallery (N, D). Probes of people in the gallery are
    known ones.

    No probe may be in the gallery itself: leave such out (see `retrieval.same_images`), it would be found with 1.
    `closed`: there may be no unknown probes, and then there is nothing at FPIRs. `device` as for `nearest`.

    Source of the terms: ISO/IEC 19795-1; of FNIR at FPIR, NIST IR 8271. Raises DataError where known or unknown probes
    lack.
    """
    identity_N, identity_Q = np.asarray(gallery_labels), np.asarray(probe_labels)
    best = nearest(probe, gallery, 1, device=device)
    if identity_N.shape != (len(np.asarray(gallery)),) or identity_Q.shape != (len(best.rows),):
        raise DataError(
            f"labels of shapes {identity_N.shape} and {identity_Q.shape}; needed one an embedding"
        )
    known = np.isin(identity_Q, identity_N)
    if not known.any() or (known.all() and not closed):
        raise DataError(
            f"{known.sum()} known and {(~known).sum()} unknown probes; open-set identification needs both"
        )
    score, right = best.score[:, 0], identity_N[best.rows[:, 0]] == identity_Q
    own = own_ranks(gallery, identity_N, probe, identity_Q, device=device)
    # `nearest` decides who is first, to the bit.
    rank = np.where(right, 1, np.maximum(own.rank, 2 * known))
    mate = np.where(right, score, np.minimum(own.mate, score)).astype(np.float32)
    # A known probe whose best match is someone else counts, but is not identified at any threshold.
    hits, mates = (
        Scores(int(known.sum()), np.sort(score[known & right])),
        Scores.listed(mate[known]),
    )
    strangers = Scores.listed(score[~known])
    points, misses = (
        tuple(tar_at_far(found, strangers, f) for f in wanted) if strangers.total else ()
        for found, wanted in ((hits, fpirs), (mates, FNIR_FPIRS))
    )
    most = len(np.unique(identity_N))
    return Identification(
        float(right[known].mean()),
        points,
        int(known.sum()),
        int((~known).sum()),
        best.rows[:, 0],
        score,
        right,
        known,
        {k: float((rank[known] <= k).mean()) for k in RANKS if k <= most},
        misses,
        rank,
        mate,
        roc(mates, strangers, CURVE_POINTS) if strangers.total else None,
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
    """Intervals of `rank_1`, `rank_5`, ..., `tpir_at_fpir_X` and `fnir_at_fpir_X`: the people of the probes (Q,)
    resampled, the gallery is kept."""
    identity_Q, known = np.asarray(probe_labels), found.is_known
    shares = {"rank_1": found.right[known]} | {f"rank_{k}": found.rank[known] <= k for k in found.ranks}
    bounds = mean_intervals(shares, identity_Q[known], draws=draws, seed=seed)
    points, misses = ([p for p in of if p.supported] for of in (found.points, found.misses))
    if not points and not misses:
        return bounds
    wrong_Q = known & ~found.right
    hits = Ranked(np.where(wrong_Q, NEVER, found.score), known)
    mates = Ranked(np.where(known, found.mate, found.score), known)
    names, person_Q = np.unique(identity_Q, return_inverse=True)
    drawn = []
    for w_BW in person_weights(len(names), draws, seed, pairs=len(identity_Q)):
        w_BQ = w_BW[:, person_Q]
        tpir_BT, fpir_BT = hits.rates(w_BQ)
        if wrong_Q.any():  # they count, but no threshold can be set that accepts them
            tpir_BT, fpir_BT = tpir_BT[:, :-1], fpir_BT[:, :-1]
        tpir_BK = tar_at(tpir_BT, fpir_BT, [p.wanted for p in points])
        fnir_BK = 1 - tar_at(*mates.rates(w_BQ), [p.wanted for p in misses])
        drawn.append(np.concatenate([tpir_BK, fnir_BK], axis=1))
    values = {tpir_name(p.wanted): p.true_rate for p in points}
    values |= {fnir_name(p.wanted): 1 - p.true_rate for p in misses}
    return bounds | figure_intervals(values, np.concatenate(drawn))
