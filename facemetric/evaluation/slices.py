"""Verification by group (age, camera, ...): what one threshold for all does to each group.

Shapes: P pairs, W persons, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.allpairs_intervals import DrawnRates
from facemetric.evaluation.curves import FarPoint, Floats
from facemetric.evaluation.intervals import Interval, figure_intervals, wilson
from facemetric.evaluation.person_counts import count_by_person
from facemetric.evaluation.person_draws import DRAWS, pair_weights, person_weights

LEAST_PAIRS, LEAST_PEOPLE = 30, 10  # of each kind, below which a group's rates say nothing
MOST_GROUPS = 50  # a column of more values names images or people, not groups
MIXED = "mixed"  # pairs of two groups: shown, but no part of a gap


class Rates(NamedTuple):
    """FAR and TAR of a group at the threshold that gives everybody together the FAR `wanted`."""

    wanted: float
    far: Interval
    tar: Interval


class Gap(NamedTuple):
    """The largest difference of two groups' rates at the threshold of one wanted FAR, 0..1.

    `low_group` has the lower rate, `high_group` the higher; the interval is that of these two groups.
    """

    wanted: float
    rate: str
    """"tar" or "far"."""
    low_group: str
    high_group: str
    difference: Interval


@dataclass(frozen=True)
class Group:
    """One value of a column. `too_small` says why it has no rates; empty where it has."""

    name: str
    n_genuine: int
    n_impostor: int
    n_people: int
    rates: tuple[Rates, ...]
    too_small: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        at = {
            f"{r.wanted:g}": {
                "far": r.far.value,
                "far_95": [r.far.low, r.far.high],
                "tar": r.tar.value,
                "tar_95": [r.tar.low, r.tar.high],
            }
            for r in self.rates
        }
        counts = {"genuine_pairs": self.n_genuine, "impostor_pairs": self.n_impostor, "people": self.n_people}
        return counts | {"too_small": self.too_small or None, "at_overall_far": at}


@dataclass(frozen=True)
class Slicing:
    """The groups of one column, and the largest gaps among those that are large enough."""

    column: str
    groups: tuple[Group, ...] = ()
    gaps: tuple[Gap, ...] = ()
    note: str = ""
    """Why the column has no groups; empty where it has."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        gaps = [
            {
                "rate": gap.rate,
                "overall_far": gap.wanted,
                "low_group": gap.low_group,
                "high_group": gap.high_group,
                "difference": gap.difference.value,
                "difference_95": [gap.difference.low, gap.difference.high],
            }
            for gap in self.gaps
        ]
        groups = {group.name: group.to_dict() for group in self.groups}
        return {"column": self.column, "groups": groups, "largest_gaps": gaps, "note": self.note or None}


def groups_of_pairs(
    per_image: Mapping[str, npt.NDArray[np.str_]], rows_a: npt.ArrayLike, rows_b: npt.ArrayLike
) -> dict[str, npt.NDArray[np.str_]]:
    """Groups (P,) of pairs of images from groups (N,) of images: the value of both, MIXED where they differ,
    "" where one has none.
    """
    found = {}
    for column, value_N in per_image.items():
        one, other = value_N[np.asarray(rows_a)], value_N[np.asarray(rows_b)]
        both = np.where(one == other, one, MIXED)
        found[column] = np.where((one == "") | (other == ""), "", both)
    return found


def slice_pairs(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    persons: tuple[npt.ArrayLike, npt.ArrayLike],
    points: Sequence[FarPoint],
    columns: Mapping[str, npt.ArrayLike],
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Slicing, ...]:
    """Slices of listed pairs: scores, `same` and both persons (P,), and the groups (P,) of each column.

    `points` are those of all pairs together: their thresholds are applied to every group. Pairs whose group is
    "" are in none. Intervals as `verification_intervals`; a share of none or all has Wilson's.
    """
    score_P, same_P = np.asarray(score), np.asarray(same, dtype=bool)
    kinds_2P = np.array([same_P, ~same_P])
    person_2P = np.array([np.asarray(p) for p in persons])
    used = _usable(points)
    accepted_KP = np.array([score_P >= p.threshold for p in used]).reshape(len(used), len(score_P))
    slicings = []
    for column, values in columns.items():
        names, note = _names(np.asarray(values))
        inside_GP = np.asarray(values) == names[:, None]
        cells = [
            _Cell(
                str(name),
                int((inside & same_P).sum()),
                int((inside & ~same_P).sum()),
                len(np.unique(person_2P[:, inside])),
            )
            for name, inside in zip(names, inside_GP, strict=True)
        ]
        large = np.array([not c.too_small for c in cells], dtype=bool)
        table = None
        if large.any() and used:
            of_GK2P = np.broadcast_to(
                inside_GP[large][:, None, None] & kinds_2P, (large.sum(), len(used), *kinds_2P.shape)
            )
            hit_GK2P = of_GK2P & accepted_KP[:, None]
            drawn = [
                _sums(weight_BP, hit_GK2P) / _sums(weight_BP, of_GK2P)
                for weight_BP in pair_weights(score_P, same_P, persons, draws, seed)
            ]
            table = _Table(hit_GK2P.sum(-1), of_GK2P.sum(-1), np.concatenate(drawn))
        slicings.append(_slicing(column, cells, used, table, level, note))
    return tuple(slicings)


def _sums(weight_BP: Floats, mask_GK2P: npt.NDArray[np.bool_]) -> Floats:
    """Weights of the pairs in each mask, (B, G, K, 2)."""
    shape = mask_GK2P.shape
    return (weight_BP @ mask_GK2P.reshape(-1, shape[-1]).T.astype(np.float64)).reshape(-1, *shape[:-1])


def slice_all_pairs(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    points: Sequence[FarPoint],
    columns: Mapping[str, npt.ArrayLike],
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Slicing, ...]:
    """Slices of all pairs of images: embeddings (N, D), persons (N,) and the groups (N,) of each column.

    A group's pairs are those of two of its images; otherwise as `slice_pairs`.
    """
    emb_ND, label_N = np.asarray(embeddings), np.asarray(labels)
    who_N = np.unique(label_N, return_inverse=True)[1]
    used = _usable(points)
    # Thresholds must rise, and two FARs may share one.
    threshold, place = np.unique([p.threshold for p in used], return_inverse=True)
    slicings = []
    for column, values in columns.items():
        names, note = _names(np.asarray(values))
        cells, tables = [], []
        for name in names:
            rows = np.flatnonzero(np.asarray(values) == name)
            present, sizes = np.unique(who_N[rows], return_counts=True)
            n_genuine = int((sizes * (sizes - 1) // 2).sum())
            n_impostor = len(rows) * (len(rows) - 1) // 2 - n_genuine
            cells.append(_Cell(str(name), n_genuine, n_impostor, len(present)))
            if used and not cells[-1].too_small:
                counts = count_by_person(emb_ND[rows], who_N[rows], threshold)
                drawn = [
                    _drawn_rates(DrawnRates(counts), w_BW[:, present])[:, place]
                    for w_BW in person_weights(int(who_N.max()) + 1, draws, seed)
                ]
                accepted_T2 = np.stack([counts.genuine.sum(0), counts.impostor.sum(0) // 2], -1)
                total_K2 = np.broadcast_to([n_genuine, n_impostor], (len(used), 2))
                tables.append(_Table(accepted_T2[place], total_K2, np.concatenate(drawn)))
        table = None
        if tables:
            accepted, total, shares = zip(*tables, strict=True)
            table = _Table(np.array(accepted), np.array(total), np.stack(shares, 1))
        slicings.append(_slicing(column, cells, used, table, level, note))
    return tuple(slicings)


def _drawn_rates(rates: DrawnRates, w_BW: Floats) -> Floats:
    """TAR and FAR (B, T, 2) of a group whose people have these weights."""
    return np.stack(rates.at(w_BW / w_BW.mean(1, keepdims=True)), -1)


class _Cell(NamedTuple):
    name: str
    n_genuine: int
    n_impostor: int
    n_people: int

    @property
    def too_small(self) -> str:
        if min(self.n_genuine, self.n_impostor) >= LEAST_PAIRS and self.n_people >= LEAST_PEOPLE:
            return ""
        return (
            f"{self.n_genuine} genuine and {self.n_impostor} impostor pairs of {self.n_people} people; "
            f"needed {LEAST_PAIRS} of each, of {LEAST_PEOPLE} people"
        )


class _Table(NamedTuple):
    """Counts of G large groups at K thresholds for genuine (0) and impostor pairs (1): (G, K, 2), and the
    shares of B draws (B, G, K, 2).
    """

    accepted: npt.NDArray
    total: npt.NDArray
    drawn: Floats


def _usable(points: Sequence[FarPoint]) -> list[FarPoint]:
    return [p for p in points if p.supported and np.isfinite(p.threshold)]


def _names(values: npt.NDArray) -> tuple[npt.NDArray, str]:
    names = np.unique(values[values != ""])
    if len(names) > MOST_GROUPS:
        return names[:0], f"{len(names)} values; at most {MOST_GROUPS} are taken as groups"
    return names, ""


def _slicing(
    column: str,
    cells: list[_Cell],
    used: list[FarPoint],
    table: _Table | None,
    level: float,
    note: str,
) -> Slicing:
    large = [c for c in cells if not c.too_small]
    groups = []
    for cell in cells:
        rates = []
        if table is not None and not cell.too_small:
            g = large.index(cell)
            rates = [
                Rates(p.wanted, _share(table, g, k, 1, level), _share(table, g, k, 0, level))
                for k, p in enumerate(used)
            ]
        groups.append(Group(*cell, tuple(rates), cell.too_small))
    gaps = tuple(_gaps(large, used, table, level)) if table is not None else ()
    return Slicing(column, tuple(groups), gaps, note)


def _share(table: _Table, g: int, k: int, kind: int, level: float) -> Interval:
    accepted, total = int(table.accepted[g, k, kind]), int(table.total[g, k, kind])
    if accepted in (0, total):  # every draw says the same
        return wilson(accepted, total, level)
    return figure_intervals({"": accepted / total}, table.drawn[:, g, k, kind, None], level)[""]


def _gaps(large: list[_Cell], used: list[FarPoint], table: _Table, level: float) -> Iterator[Gap]:
    share = table.accepted / table.total
    told_apart = [g for g, cell in enumerate(large) if cell.name != MIXED]
    if len(told_apart) < 2:
        return
    for k, point in enumerate(used):
        for kind, rate in ((0, "tar"), (1, "far")):
            ordered = sorted(told_apart, key=lambda g: share[g, k, kind])
            low, high = ordered[0], ordered[-1]
            value = float(share[high, k, kind] - share[low, k, kind])
            drawn_B1 = (table.drawn[:, high, k, kind] - table.drawn[:, low, k, kind])[:, None]
            difference = figure_intervals({"": value}, drawn_B1, level)[""]
            yield Gap(point.wanted, rate, large[low].name, large[high].name, difference)
