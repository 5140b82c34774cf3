"""Intervals of verification over all pairs: identities resampled, without listing a pair (see `counts.py`).

Shapes: N images, W identities, B draws, T thresholds, R x C one tile.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch

from facemetric import distributed
from facemetric.errors import DataError
from facemetric.evaluation.all_pairs import (
    BINS,
    OFFSET,
    STEPS,
    ByPerson,
    sort_by_person,
    walk_pairs,
    walking_threads,
)
from facemetric.evaluation.curves import Floats, Ints, Roc
from facemetric.evaluation.figures import tar_name
from facemetric.evaluation.intervals.counts import (
    MOST_THRESHOLDS,
    CountedFigures,
    Measured,
    PersonCounts,
    band_fars,
    squared_errors,
    thresholds_at,
    watched_fars,
)
from facemetric.evaluation.intervals.draws import DRAWS
from facemetric.evaluation.intervals.records import Bounds, Interval, figure_intervals
from facemetric.evaluation.verification import Verification
from facemetric.mining.tiles import Tile, default_budget_mib

EXACT = 8  # thresholds that are compared one by one, wherever they lie
MOST_CELLS = 255  # thresholds: the cell of a score is one byte
TILE_BYTES = 56  # of a score on a GPU, with the codes made of it and its place among those that are listed
LISTED = 1 << 20  # accepted impostor pairs that are looked at one by one: some 40 MiB


def curve_thresholds(curve: Roc, fars: Floats) -> Floats:
    """Thresholds on the grid of the tally, rising, whose FARs are about `fars`; at most MOST_THRESHOLDS of them."""
    found = thresholds_at(curve, fars)
    return np.unique(np.ceil(found * STEPS) / STEPS).clip(-1, 1)[-MOST_THRESHOLDS:]


def count_by_person(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    threshold: Floats,
    *,
    budget_mib: float | None = None,
    device: torch.device | None = None,
) -> PersonCounts:
    """Counts over all pairs of embeddings (N, D) of the identities labels (N,), at rising thresholds (T,).

    More than EXACT thresholds must lie on the grid of the tally, and be at most MOST_CELLS.
    Identities are in the order of their sorted labels. `alone` is exact up to LISTED accepted impostor pairs;
    where there are more, the accepted pairs are taken to share identities as the highest LISTED do.
    `budget_mib` and `device` as for `verify_all_pairs`.
    """
    steps = np.asarray(threshold) * STEPS
    assert len(steps) <= EXACT or (len(steps) <= MOST_CELLS and (steps == np.floor(steps)).all()), (
        "off the grid"
    )
    assert (np.diff(steps) >= 0).all(), "thresholds must rise"
    by_person = sort_by_person(embeddings, labels)
    identity_N = by_person.identity_N
    W, cells = int(identity_N[-1]) + 1, len(threshold) + 1
    counts = np.zeros((2, W, cells), np.int64)
    tail = _Tail()
    if device is None:
        _walk(by_person, _Cells(threshold), counts, tail, budget_mib)
    else:
        _walk_on_device(by_person, _Cells(threshold), counts, tail, budget_mib, device)
    counts = distributed.summed(counts)
    if distributed.workers() > 1:
        parts = distributed.from_all(tail)
        tail = parts[0]
        for other in parts[1:]:
            tail.merge(other)
    # Cell c holds the scores between threshold c - 1 and c: accepted at t are those in cells above t.
    genuine, impostor = (kind[:, ::-1].cumsum(1)[:, ::-1] for kind in counts)
    total = by_person.n_impostor
    far_T = impostor[:, 1:].sum(0) / 2 / total
    return PersonCounts(
        threshold,
        genuine[:, 1:] // 2,
        genuine[:, 0] // 2,
        impostor[:, 1:],
        impostor[:, 0],
        tail.alone(far_T, impostor[:, 1:].sum(0) // 2, np.bincount(identity_N)),
    )


class _Cells:
    """The cell of each score: how many thresholds it reaches. A threshold of -1 is reached by rounded ones too."""

    def __init__(self, threshold: Floats) -> None:
        edge = ((np.arange(BINS) - OFFSET) / STEPS).clip(-1)
        self.of_bin = np.searchsorted(threshold, edge, side="right").astype(np.uint8)
        self.steps = np.where(threshold > -1, threshold * STEPS, -OFFSET).astype(np.float32)
        self.exact = self.steps if len(threshold) <= EXACT else None

    def of(self, score: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Cells (R, C) of scores in steps (R, C), which are used up."""
        if self.exact is not None:
            cell = np.zeros(score.shape, np.uint8)
            for threshold in self.exact:
                cell += score >= threshold
            return cell
        np.floor(score, out=score)
        score += OFFSET
        return self.of_bin[score.astype(np.intp)]


class _Tail:
    """The impostor pairs of the highest scores, one by one: cell and both identities."""

    def __init__(self) -> None:
        self.lowest = 1  # cells from here up are listed whole
        self.cell: list[npt.NDArray[np.uint8]] = []
        self.pair: list[Ints] = []
        self.used = 0

    def add(
        self,
        cell: npt.NDArray[np.uint8],
        identity_R: npt.NDArray[np.int32],
        identity_C: npt.NDArray[np.int32],
        identities: int,
        lock: threading.Lock,
    ) -> None:
        """Cells (R, C) of impostor pairs; 0 is below all thresholds."""
        at = np.flatnonzero(cell >= self.lowest)
        if len(at):
            row, col = np.divmod(at, cell.shape[1])
            pair = identity_R[row].astype(np.int64) * identities + identity_C[col]
            with lock:
                self.add_listed(cell.reshape(-1)[at], pair)

    def add_listed(self, high: npt.NDArray[np.uint8], pair: Ints) -> None:
        """Cells (I,) of impostor pairs from `lowest` up, and the number (I,) of both identities of each."""
        self.cell.append(high)
        self.pair.append(pair)
        self.used += len(high)
        if self.used > 2 * LISTED:
            self._prune()

    def merge(self, other: _Tail) -> None:
        """Add what another process has listed."""
        self.lowest = max(self.lowest, other.lowest)
        for cell, pair in zip(other.cell, other.pair, strict=True):
            self.cell.append(cell)
            self.pair.append(pair)
        kept = [cell >= self.lowest for cell in self.cell]
        self.cell = [cell[keep] for cell, keep in zip(self.cell, kept, strict=True)]
        self.pair = [pair[keep] for pair, keep in zip(self.pair, kept, strict=True)]
        self.used = sum(map(len, self.cell))

    def _prune(self) -> None:
        cell, pair = np.concatenate(self.cell), np.concatenate(self.pair)
        from_top = np.bincount(cell, minlength=256)[::-1].cumsum()[::-1]
        self.lowest = max(self.lowest, int(np.argmax(from_top <= LISTED)))
        kept = cell >= self.lowest
        self.cell, self.pair, self.used = [cell[kept]], [pair[kept]], int(kept.sum())

    def alone(self, far_T: Floats, accepted_T: Ints, sizes_W: Ints) -> Floats:
        """`PersonCounts.alone`, from the images (W,) of each person."""
        if self.used > LISTED:
            self._prune()
        alone_T = np.full(len(far_T), np.nan)
        if self.used:
            size_W = sizes_W.astype(np.float64)
            all_squares = ((size_W**2).sum() ** 2 - (size_W**4).sum()) / 2
            cell, pair = np.concatenate(self.cell), np.concatenate(self.pair)
            pairs, which = np.unique(pair, return_inverse=True)
            possible = size_W[pairs // len(size_W)] * size_W[pairs % len(size_W)]
            alone_T = squared_errors(cell, which, possible, all_squares, far_T, self.lowest)
        binomial_T = accepted_T * (1 - far_T)  # what `alone` is where no two pairs share both identities
        known = np.isfinite(alone_T) & (binomial_T > 0)
        share = alone_T[known][0] / binomial_T[known][0] if known.any() else 1.0
        return np.where(np.isfinite(alone_T), alone_T, share * binomial_T)


def _walk(
    by_person: ByPerson,
    cells_of: _Cells,
    counts: npt.NDArray[np.int64],
    tail: _Tail,
    budget_mib: float | None,
) -> None:
    emb_ND, identity_N = by_person.emb_ND, by_person.identity_N.astype(np.int32)
    lock = threading.Lock()

    def work(_: int, tile: Tile) -> None:
        cell = cells_of.of(tile.values.numpy())
        identity_R, identity_C = identity_N[tile.rows], identity_N[tile.cols]
        if identity_R[-1] < identity_C[0]:
            _add(counts[1], cell, identity_R, identity_C, lock)
        else:
            same = identity_R[:, None] == identity_C[None, :]
            other = ~same
            if tile.rows == tile.cols:
                same, other = np.triu(same, 1), np.triu(other, 1)
            for kind, mask in zip(counts, (same, other), strict=True):
                _add(kind, cell, identity_R, identity_C, lock, mask)
            cell = np.where(other, cell, 0).astype(np.uint8)
        tail.add(cell, identity_R, identity_C, counts.shape[1], lock)

    walk_pairs(emb_ND, work, walking_threads(len(emb_ND)), budget_mib, "intervals")


def _add(
    counts: npt.NDArray[np.int64],
    cell: npt.NDArray[np.uint8],
    identity_R: npt.NDArray[np.int32],
    identity_C: npt.NDArray[np.int32],
    lock: threading.Lock,
    mask: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Count the cells (R, C) of a tile, or those where `mask` holds, for the identities of rows and columns."""
    cells = np.int32(counts.shape[1])
    for identity, first in ((identity_R[:, None], identity_R[0]), (identity_C[None, :], identity_C[0])):
        code = (identity - first) * cells + cell
        code = code.reshape(-1) if mask is None else code[mask]
        found = torch.bincount(torch.from_numpy(code), minlength=int(cells)).numpy()
        found = np.concatenate([found, np.zeros(-len(found) % cells, np.int64)]).reshape(-1, cells)
        with lock:
            counts[first : first + len(found)] += found


def _walk_on_device(
    by_person: ByPerson,
    cells_of: _Cells,
    counts: npt.NDArray[np.int64],
    tail: _Tail,
    budget_mib: float | None,
    device: torch.device,
) -> None:
    """`_walk` where the tiles are made and counted on a device; the pairs of the tail leave it, and the counts at the
    end."""
    W, cells = counts.shape[1:]
    steps, identity_N = (
        torch.from_numpy(values).to(device) for values in (cells_of.steps, by_person.identity_N)
    )
    found = torch.zeros(counts.size, dtype=torch.int64, device=device)
    one = torch.ones((), dtype=torch.int64, device=device)

    def work(_: int, tile: Tile) -> None:
        cell = torch.bucketize(tile.values, steps, right=True, out_int32=True)
        identity_R1, identity_1C = identity_N[tile.rows, None], identity_N[None, tile.cols]
        other = identity_R1 != identity_1C
        counted = one.expand_as(cell)
        if tile.rows == tile.cols:
            counted = torch.ones_like(cell, dtype=torch.int64).triu(1)
        for identity in (identity_R1, identity_1C):
            code = (other * W + identity) * cells + cell
            found.scatter_add_(0, code.reshape(-1), counted.reshape(-1))
        at = (cell.mul_(other & (counted > 0)) >= tail.lowest).reshape(-1).nonzero().squeeze(1)
        if len(at):
            row, col = at // cell.shape[1], at % cell.shape[1]
            pair = identity_R1[row, 0] * W + identity_1C[0, col]
            high = cell.reshape(-1)[at].to(torch.uint8)
            tail.add_listed(high.cpu().numpy(), pair.cpu().numpy())

    if budget_mib is None:
        budget_mib = default_budget_mib(device) * 4 / TILE_BYTES
    walk_pairs(by_person.emb_ND, work, 1, budget_mib, "intervals", device)
    counts += found.cpu().numpy().reshape(counts.shape)


def all_pairs_intervals(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    found: Verification,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    device: torch.device | None = None,
) -> Bounds:
    """Intervals of the figures that `verify_all_pairs` found for the same embeddings and labels, there where they
    were found (`device`)."""
    figures = _counted(embeddings, labels, found, device)
    return figures.bounds(figures.draws(draws, seed))


def all_pairs_differences(
    embeddings: tuple[npt.ArrayLike, npt.ArrayLike],
    labels: npt.ArrayLike,
    found: tuple[Verification, Verification],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, Interval]:
    """Second model minus first over all pairs of the same images: the same people are drawn for both."""
    if found[0].n_genuine != found[1].n_genuine or found[0].n_impostor != found[1].n_impostor:
        raise DataError(
            f"{found[0].n_genuine + found[0].n_impostor} pairs of the first model and "
            f"{found[1].n_genuine + found[1].n_impostor} of the second; needed the same images"
        )
    first, second = (_counted(e, labels, f, device) for e, f in zip(embeddings, found, strict=True))
    before = first.measured.values
    values = {name: value - before[name] for name, value in second.measured.values.items()}
    draws_BF = second.draws(draws, seed) - first.draws(draws, seed)
    return figure_intervals(values, draws_BF[:, : len(values)])


def _counted(
    embeddings: npt.ArrayLike, labels: npt.ArrayLike, found: Verification, device: torch.device | None
) -> CountedFigures:
    fars = band_fars(found.n_impostor)
    threshold_T = curve_thresholds(found.roc, watched_fars(found.roc, found.n_impostor))
    supported = [p for p in found.points if p.supported]
    values = {"auc": found.auc, "eer": found.eer} | {tar_name(p.wanted): p.true_rate for p in supported}
    place = np.searchsorted(found.roc.far, fars * (1 + 1e-9), side="right") - 1
    measured = Measured(values, np.array([p.wanted for p in supported]), fars, found.roc.tar[place])
    return CountedFigures(measured, count_by_person(embeddings, labels, threshold_T, device=device))
