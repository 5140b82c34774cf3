"""Verification by group (age, camera, ...): what one threshold for all does to each group.

Shapes: P pairs, N images, W identities, B draws, K points, T their different thresholds, n pairs of one kind in a
group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric.errors import DataError
from facemetric.evaluation.curves import MANY_PAIRS, Floats, Ints, OperatingPoint
from facemetric.evaluation.intervals.all_pairs import EXACT, count_by_person
from facemetric.evaluation.intervals.counts import DrawnRates, ListedCells, PersonCounts
from facemetric.evaluation.intervals.draws import DRAWS, numbered_identities, pair_weights, person_weights
from facemetric.evaluation.intervals.records import Interval, newcombe, percentiles, wilson
from facemetric.evaluation.slices.records import Gap, Group, Rates, Slicing, sized_group

ACROSS = "(across groups)"  # pairs of images of two groups: shown, but no part of a gap
MOST_GROUPS = 50  # a column of more values names images or people, not groups


def groups_of_pairs(
    per_image: Mapping[str, npt.NDArray[np.str_]], rows_a: npt.ArrayLike, rows_b: npt.ArrayLike
) -> dict[str, npt.NDArray[np.str_]]:
    """Groups (P,) of pairs of images from groups (N,) of images: the value of both, ACROSS where they differ,
    "" where one has none. Raises DataError where images have ACROSS for their group.
    """
    found = {}
    for column, value_N in per_image.items():
        if (value_N == ACROSS).any():
            raise DataError(
                f"{(value_N == ACROSS).sum()} images have the {column} {ACROSS!r}, which names the pairs of two "
                "groups; give the group another name"
            )
        one, other = value_N[np.asarray(rows_a)], value_N[np.asarray(rows_b)]
        both = np.where(one == other, one, ACROSS)
        found[column] = np.where((one == "") | (other == ""), "", both)
    return found


class _Counted(NamedTuple):
    """Accepted pairs of a group at each point, (K, 2), of all its pairs (2,), and the shares of the draws
    (B, K, 2): genuine pairs (0) and impostor pairs (1).
    """

    accepted: Ints
    total: Ints
    drawn: Floats


Counts = list[tuple[Group, _Counted | None]]  # None: the group is too small, or no point is usable


def slice_pairs(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    identities: tuple[npt.ArrayLike, npt.ArrayLike],
    points: Sequence[OperatingPoint],
    columns: Mapping[str, npt.ArrayLike],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Slicing, ...]:
    """Slices of listed pairs: scores, `same` and both identities (P,), and the groups (P,) of each column.

    `points` are those of all pairs together: their thresholds are applied to every group. Pairs whose group is
    "" are in none, those of the group ACROSS in no gap. Intervals as `verification_intervals`; a share of none
    or all has Wilson's, and a gap of such a share Newcombe's.
    """
    listed = _Listed(
        np.asarray(score),
        np.asarray(same, dtype=bool),
        numbered_identities(identities, np.asarray(same, bool)),
    )
    (a_P, b_P), _ = listed.identities
    used, slicings = _usable(points), []
    for column, values in columns.items():
        names, note = _names(np.asarray(values))
        groups: list[tuple[Group, Ints]] = []
        for name in names.tolist():
            rows = np.flatnonzero(np.asarray(values) == name)
            n_genuine = int(listed.same_P[rows].sum())
            people = len(np.unique(np.concatenate([a_P[rows], b_P[rows]])))
            groups.append((sized_group(name, n_genuine, len(rows) - n_genuine, people), rows))
        measure = _count_groups if len(listed.same_P) > MANY_PAIRS else _weigh_groups
        found = measure(groups, listed, used, draws, seed)
        slicings.append(_slicing(column, found, used, note, no_gap=ACROSS))
    return tuple(slicings)


class _Listed(NamedTuple):
    """Scores and `same` (P,) of listed pairs; both identities as numbers (P,), and how many these are."""

    score_P: Floats
    same_P: npt.NDArray[np.bool_]
    identities: tuple[tuple[Ints, Ints], int]


def _weigh_groups(
    groups: list[tuple[Group, Ints]], listed: _Listed, used: list[OperatingPoint], draws: int, seed: int
) -> Counts:
    """The groups, of which each has its rows, by draws that weight every pair."""
    threshold_K = np.array([p.threshold for p in used])
    members: list[_Members | None] = []
    for group, rows in groups:
        same = listed.same_P[rows]
        large = used and not group.too_small
        kinds = rows[same], rows[~same]
        members.append(_Members(kinds, listed.score_P, threshold_K) if large else None)
    drawing = [m for m in members if m is not None]
    arguments = listed.score_P, listed.same_P, listed.identities[0]
    for weight_BP in pair_weights(*arguments, draws, seed) if drawing else ():
        for m in drawing:
            m.draw(weight_BP)
    return [(group, m.counted() if m else None) for (group, _), m in zip(groups, members, strict=True)]


def _count_groups(
    groups: list[tuple[Group, Ints]], listed: _Listed, used: list[OperatingPoint], draws: int, seed: int
) -> Counts:
    """The same by draws that weight the counts of each person, for very many pairs."""
    (a_P, b_P), number = listed.identities
    threshold_T, place_K = np.unique([p.threshold for p in used], return_inverse=True)
    found: Counts = []
    for group, rows in groups:
        if group.too_small or not used:
            found.append((group, None))
            continue
        present, identities = np.unique(np.concatenate([a_P[rows], b_P[rows]]), return_inverse=True)
        both = identities[: len(rows)], identities[len(rows) :]
        same = listed.same_P[rows]
        counts = ListedCells(listed.score_P[rows], same, both, len(present), threshold_T).counts()
        weights = (w_BW[:, present] for w_BW in person_weights(number, draws, seed))
        accepted_T2, drawn_BT2 = _draw([counts], weights)
        total_2 = np.array([same.sum(), (~same).sum()])
        found.append((group, _Counted(accepted_T2[place_K], total_2, drawn_BT2[:, place_K])))
    return found


class _Members:
    """The genuine and the impostor pairs of a group, rows (n,) of each, and which of them each threshold accepts."""

    def __init__(self, rows: tuple[Ints, Ints], score_P: Floats, threshold_K: Floats) -> None:
        self.rows = rows
        self.hits_nK = [(score_P[kind, None] >= threshold_K).astype(np.float64) for kind in rows]
        self.drawn_BK2: list[Floats] = []

    def draw(self, weight_BP: Floats) -> None:
        """Take in the shares of draws that give the pairs these weights."""
        shares = []
        for rows, hit_nK in zip(self.rows, self.hits_nK, strict=True):
            weight_Bn = weight_BP[:, rows]
            shares.append(weight_Bn @ hit_nK / weight_Bn.sum(1, keepdims=True))
        self.drawn_BK2.append(np.stack(shares, -1))

    def counted(self) -> _Counted:
        accepted_K2 = np.stack([hit_nK.sum(0) for hit_nK in self.hits_nK], -1).astype(np.int64)
        return _Counted(
            accepted_K2, np.array([len(kind) for kind in self.rows]), np.concatenate(self.drawn_BK2)
        )


def slice_all_pairs(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    points: Sequence[OperatingPoint],
    columns: Mapping[str, npt.ArrayLike],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[Slicing, ...]:
    """Slices of all pairs of images: embeddings (N, D), identities (N,) and the groups (N,) of each column.

    A group's pairs are those of two of its images; otherwise as `slice_pairs`. `device` as for
    `verify_all_pairs`.
    """
    emb_ND, label_N = np.asarray(embeddings), np.asarray(labels)
    identity_N = np.unique(label_N, return_inverse=True)[1]
    used = _usable(points)
    # Thresholds must rise, and two FARs may share one.
    threshold_T, place_K = np.unique([p.threshold for p in used], return_inverse=True)
    slicings = []
    for column, values in columns.items():
        names, note = _names(np.asarray(values))
        found: Counts = []
        for name in names.tolist():
            rows = np.flatnonzero(np.asarray(values) == name)
            present, sizes = np.unique(identity_N[rows], return_counts=True)
            n_genuine = int((sizes * (sizes - 1) // 2).sum())
            n_impostor = len(rows) * (len(rows) - 1) // 2 - n_genuine
            group, counted = sized_group(name, n_genuine, n_impostor, len(present)), None
            if used and not group.too_small:
                weights = (
                    w_BW[:, present] for w_BW in person_weights(int(identity_N.max()) + 1, draws, seed)
                )
                # Thresholds that are scores lie on no grid: so many at once can be counted.
                parts = [threshold_T[at : at + EXACT] for at in range(0, len(threshold_T), EXACT)]
                counts = [
                    count_by_person(emb_ND[rows], identity_N[rows], part, device=device) for part in parts
                ]
                accepted_T2, drawn_BT2 = _draw(counts, weights)
                total_2 = np.array([n_genuine, n_impostor])
                counted = _Counted(accepted_T2[place_K], total_2, drawn_BT2[:, place_K])
            found.append((group, counted))
        slicings.append(_slicing(column, found, used, note))
    return tuple(slicings)


def _draw(counts: list[PersonCounts], weights: Iterable[Floats]) -> tuple[Ints, Floats]:
    """Accepted pairs (T, 2) of a group, and shares (B, T, 2) with weights (B, W) of its people, at the thresholds of
    all the counts."""
    accepted = [np.stack([c.genuine.sum(0), c.impostor.sum(0) // 2], -1) for c in counts]
    rates = [DrawnRates(c) for c in counts]
    drawn = []
    for w_BW in weights:
        mean_1 = w_BW / w_BW.mean(1, keepdims=True)
        drawn.append(np.concatenate([np.stack(r.at(mean_1), -1) for r in rates], axis=1))
    return np.concatenate(accepted), np.concatenate(drawn)


def _usable(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    return [p for p in points if p.supported and np.isfinite(p.threshold)]


def _names(values: npt.NDArray) -> tuple[npt.NDArray, str]:
    names = np.unique(values[values != ""])
    if len(names) > MOST_GROUPS:
        return names[:0], f"{len(names)} values; at most {MOST_GROUPS} are taken as groups"
    return names, ""


def _slicing(column: str, found: Counts, used: list[OperatingPoint], note: str, no_gap: str = "") -> Slicing:
    """The record of a column. The group of the name `no_gap` is part of no gap."""
    groups, told_apart = [], []
    for group, counted in found:
        if counted is None:
            groups.append(group)
            continue
        rates = (Rates(p.wanted, _share(counted, k, 1), _share(counted, k, 0)) for k, p in enumerate(used))
        rated = replace(group, rates=tuple(rates))
        groups.append(rated)
        if group.name != no_gap:
            told_apart.append((rated, counted))
    return Slicing(column, tuple(groups), tuple(_gaps(told_apart, used)), note)


def _share(counted: _Counted, k: int, kind: int) -> Interval:
    accepted, total = int(counted.accepted[k, kind]), int(counted.total[kind])
    if accepted in (0, total):  # every draw says the same
        return wilson(accepted, total)
    return percentiles(accepted / total, counted.drawn[:, k, kind])


def _gaps(told_apart: list[tuple[Group, _Counted]], used: list[OperatingPoint]) -> Iterator[Gap]:
    if len(told_apart) < 2:
        return
    for k, point in enumerate(used):
        for kind, rate in ((0, "tar"), (1, "far")):
            shares = [(getattr(group.rates[k], rate), group.name, counted) for group, counted in told_apart]
            shares.sort(key=lambda s: s[0].value)
            (low, low_name, of_low), (high, high_name, of_high) = shares[0], shares[-1]
            if {low.value, high.value} & {0.0, 1.0}:  # draws of such a share do not move
                difference = newcombe(high, low)
            else:
                drawn_B = of_high.drawn[:, k, kind] - of_low.drawn[:, k, kind]
                difference = percentiles(high.value - low.value, drawn_B)
            yield Gap(point.wanted, rate, low_name, high_name, difference)
