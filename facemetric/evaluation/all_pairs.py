"""Verification over all pairs of N images, formed on tiles and never listed by index.

Shapes: N images, D embedding, R x C one tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric import distributed
from facemetric.errors import DataError
from facemetric.evaluation.curves import (
    CURVE_POINTS,
    Ints,
    Scores,
    check_counts,
)
from facemetric.evaluation.table import unit_rows
from facemetric.evaluation.verification import (
    FARS,
    HARDEST,
    Hardest,
    HardPairs,
    Verification,
    figures_of_scores,
)
from facemetric.machine import progress_bar
from facemetric.mining.kernels.choice import exact_products
from facemetric.mining.tiles import Tile, default_budget_mib, triangle_in_threads

ROOT = 128.0  # both factors of the product carry one root
STEPS = ROOT * ROOT  # 16,384 steps to a cosine of 1: the counts, 256 KiB, stay in a core's cache
SLACK = 8  # float32 products of unit rows may leave -1..1 by some 1e-6; a step is 6e-5
OFFSET = int(STEPS) + SLACK
BINS = 2 * OFFSET
LEFT_OUT = np.float32(-OFFSET)  # marks a pair that does not count: below all scores
CHUNK = 1 << 18  # scores binned at once: 2 MiB of buffers
TILE_MIB = 1.0  # of each thread: a tile that stays in a core's own cache
KEEP = 1 << 20  # highest scores of each kind kept one by one: 4 to 8 MiB


class Tally:
    """Counts scaled scores that come in pieces; `scores()` has all counts, and the highest scores themselves: all where
    they are at most 2 x `keep`, else about the `keep` highest.

    Fewer where one step of the grid holds more than that: then the grid alone speaks for them.
    Memory: up to 2 x `keep` float32 and a few MiB.
    """

    def __init__(self, total: int, keep: int) -> None:
        self.keep = keep
        self.count = np.zeros(BINS, dtype=np.int64)
        self.kept = np.empty(min(total, 2 * keep), dtype=np.float32)  # pages are touched as they fill
        self.used = 0
        self.lowest_bin = 0  # every score in this bin or above is in `kept`
        self.steps = np.empty(CHUNK, dtype=np.float32)
        self.bins = np.empty(CHUNK, dtype=np.int32)

    def add(self, piece: npt.NDArray[np.float32], left_out: int = 0) -> None:
        """Count a contiguous piece of scores and keep the high ones. `left_out` of them are LEFT_OUT."""
        flat = piece.reshape(-1)
        for at in range(0, len(flat), CHUNK):
            part = flat[at : at + CHUNK]
            steps, bins = self.steps[: len(part)], self.bins[: len(part)]
            np.floor(part, out=steps)  # before the offset, whose sum rounds
            steps += OFFSET
            np.copyto(bins, steps, casting="unsafe")
            # torch counts int32 as it is, which takes a third of numpy's time; on one thread, see `_count`.
            found = torch.bincount(torch.from_numpy(bins), minlength=BINS).numpy()
            self.count += found
            if self.lowest_bin == 0:
                self._keep(part[part != LEFT_OUT] if left_out else part)
            elif found[self.lowest_bin :].any():
                self._keep(part[part >= self.lowest_bin - OFFSET])
        self.count[0] -= left_out

    def add_tile(self, tile: torch.Tensor) -> None:
        """`add` of scores that lie on any device, counted there: the counts and the high scores alone leave it. Those
        that are LEFT_OUT are told by their bin, which has no others."""
        flat = tile.reshape(-1)
        bins = flat.floor().add_(OFFSET).to(torch.int32)
        found = torch.bincount(bins, minlength=BINS).cpu().numpy()
        found[0] = 0
        self.count += found
        if self.used + int(found[self.lowest_bin :].sum()) > len(self.kept):
            self._prune(self.kept[:0])
        if found[self.lowest_bin :].any():
            self._append(flat[flat >= max(self.lowest_bin, 1) - OFFSET].cpu().numpy())

    def _keep(self, fresh: npt.NDArray[np.float32]) -> None:
        if self.used + len(fresh) > len(self.kept):
            fresh = self._prune(fresh)
        self._append(fresh)

    def _append(self, scores: npt.NDArray[np.float32]) -> None:
        self.kept[self.used : self.used + len(scores)] = scores
        self.used += len(scores)

    def _prune(self, fresh: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Raise the lowest bin until at most `keep` scores stay."""
        from_top = self.count[::-1].cumsum()
        self.lowest_bin = BINS - int(np.searchsorted(from_top, self.keep, side="right"))
        kept = self.kept[: self.used]
        kept = kept[kept >= self.lowest_bin - OFFSET]
        self.used = 0
        self._append(kept)
        return fresh[fresh >= self.lowest_bin - OFFSET]

    def merge(self, other: Tally) -> None:
        """Add what another tally of the same `keep` has counted."""
        self.count += other.count
        self.lowest_bin = max(self.lowest_bin, other.lowest_bin)
        both = [t.kept[: t.used] for t in (self, other)]
        self.kept = np.concatenate([k[k >= self.lowest_bin - OFFSET] for k in both])
        self.used = len(self.kept)

    def trim(self) -> None:
        """Let go of what is only for counting on: a tally that is sent to another process is then small."""
        self.kept = self.kept[: self.used].copy()
        self.steps, self.bins = self.steps[:0], self.bins[:0]

    def scores(self) -> Scores:
        """What was counted, as cosines in -1..1, the same for any division into pieces. The tally is used up."""
        if int(self.count.sum()) > 2 * self.keep:
            self._prune(self.kept[:0])
        kept = self.kept[: self.used]
        kept.sort()
        kept /= np.float32(STEPS)
        kept.clip(-1, 1, out=kept)  # a rounded cosine beyond 1 is no threshold that anybody could set
        self.count[SLACK] += self.count[:SLACK].sum()  # those above 1 share its bin, those below -1 do not
        self.count[:SLACK] = 0
        total = int(self.count.sum())
        edge = (np.arange(BINS) - OFFSET) / STEPS
        at_edge = self.count[::-1].cumsum()[::-1].copy()
        if self.lowest_bin == 0:
            return Scores(total, kept, -math.inf, edge, at_edge)
        # Ties beyond counting leave nothing exact: then the last edge, above every score, is the start.
        exact_from = float(edge[min(self.lowest_bin, BINS - 1)])
        return Scores(total, kept, exact_from, edge, at_edge)


def verify_all_pairs(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    keep: int = KEEP,
    budget_mib: float | None = None,
    device: torch.device | None = None,
) -> Verification:
    """All N (N - 1) / 2 pairs of embeddings (N, D), same person where labels (N,) are equal.

    The score is the cosine similarity. The highest scores of each kind, `keep` to 2 x `keep`, are
    exact; below, thresholds lie on a grid of 2^-14, where counts are exact too: `Verification.exact_from`
    says where. `budget_mib` is the memory of a tile. `device`: where tiles are made and counted, such as a GPU; None
    uses the threads of the CPU. Raises DataError where genuine or impostor pairs lack.
    """
    by_person = sort_by_person(embeddings, labels)
    counters = _count(by_person, keep, budget_mib, device)
    (genuine, hard_genuine), (impostor, hard_impostor) = (
        (kind.tally.scores(), kind.hardest.pairs(by_person.order)) for kind in counters
    )
    return replace(
        figures_of_scores(genuine, impostor, fars, CURVE_POINTS),
        hardest=Hardest(hard_genuine, hard_impostor),
        exact_from=max(genuine.exact_from, impostor.exact_from),
    )


class ByPerson(NamedTuple):
    """Images sorted by person: all but the tiles near the diagonal then hold impostors only.

    `emb_ND`: unit rows times ROOT, so that products are scores in steps of the tally; `identity_N`: people
    numbered from 0, rising; `order` (N,): the row that each was.
    """

    emb_ND: npt.NDArray[np.float32]
    identity_N: Ints
    order: Ints
    n_genuine: int
    n_impostor: int


def sort_by_person(embeddings: npt.ArrayLike, labels: npt.ArrayLike) -> ByPerson:
    """Embeddings (N, D) and labels (N,), sorted. Raises DataError where genuine or impostor pairs lack."""
    emb_ND, label_N = unit_rows(embeddings), np.asarray(labels)
    if label_N.shape != (len(emb_ND),):
        raise DataError(f"labels of shape {label_N.shape}; {len(emb_ND)} embeddings need ({len(emb_ND)},)")
    identity_N, sizes = np.unique(label_N, return_inverse=True, return_counts=True)[1:]
    n_genuine = int((sizes * (sizes - 1) // 2).sum())
    n_impostor = len(identity_N) * (len(identity_N) - 1) // 2 - n_genuine
    check_counts(n_genuine, n_impostor)
    order = np.argsort(identity_N, kind="stable")
    emb_ND = emb_ND[order]
    emb_ND *= ROOT
    return ByPerson(emb_ND, identity_N[order], order, n_genuine, n_impostor)


class _Hardest:
    """The HARDEST pairs of the highest (sign 1) or lowest (sign -1) scores so far, ties by their places."""

    def __init__(self, sign: int) -> None:
        self.sign = np.float32(sign)
        self.hardness = np.empty(0, np.float32)
        self.places = np.empty((2, 0), np.int64)

    def add_tile(self, tile: torch.Tensor, rows: slice, cols: slice) -> None:
        """`add` of a tile that lies on any device, where the sign is 1: what may be among the hardest leaves it."""
        flat, bound = tile.reshape(-1), float(self._bound())
        if float(flat.max()) < bound:  # nearly always
            return
        least = flat.topk(min(HARDEST, len(flat))).values[-1].clamp(min=bound)
        at = (flat >= least).nonzero().squeeze(1)
        self.add(flat[at].cpu().numpy(), rows, cols, at.cpu().numpy())

    def add(
        self,
        score: npt.NDArray[np.float32],
        rows: slice,
        cols: slice,
        places: Ints | None = None,
    ) -> None:
        """Scores of a whole tile, or those of its `places`, rising, counted along its rows."""
        flat = score.reshape(-1)
        if not len(flat):
            return
        bound = self._bound()
        if (flat.max() if self.sign > 0 else -flat.min()) < bound:  # nearly always: one read of the tile
            return
        hardness = flat * self.sign
        found = np.flatnonzero(hardness > bound)
        if len(found) > HARDEST:
            bound = np.partition(hardness[found], -HARDEST)[-HARDEST]
            found = found[hardness[found] > bound]
        found = np.concatenate([found, np.flatnonzero(hardness == bound)[:HARDEST]])
        at = found if places is None else places[found]
        row, col = np.divmod(at, cols.stop - cols.start)
        self._merge(hardness[found], np.array([row + rows.start, col + cols.start]))

    def _bound(self) -> np.float32:
        """The hardness below which no pair is among the hardest: above that of LEFT_OUT."""
        return self.hardness.min() if len(self.hardness) == HARDEST else np.nextafter(LEFT_OUT, np.float32(0))

    def merge(self, other: _Hardest) -> None:
        self._merge(other.hardness, other.places)

    def _merge(self, hardness: npt.NDArray[np.float32], places: Ints) -> None:
        hardness = np.concatenate([self.hardness, hardness])
        places = np.concatenate([self.places, places], axis=1)
        best = np.lexsort((places[1], places[0], -hardness))[:HARDEST]
        self.hardness, self.places = hardness[best], places[:, best]

    def pairs(self, order: Ints) -> HardPairs:
        """The pairs with the rows that images had before they were sorted."""
        rows_a, rows_b = order[self.places]
        return HardPairs(rows_a, rows_b, (self.hardness * self.sign / np.float32(STEPS)).clip(-1, 1))


class _Kind(NamedTuple):
    """What is gathered of one kind of pairs."""

    tally: Tally
    hardest: _Hardest

    def merge(self, other: _Kind) -> None:
        self.tally.merge(other.tally)
        self.hardest.merge(other.hardest)


def walk_pairs(
    emb_ND: npt.NDArray[np.float32],
    work: Callable[[int, Tile], None],
    threads: int,
    budget_mib: float | None,
    what: str | None = None,
    device: torch.device | None = None,
) -> None:
    """`triangle_in_threads` with a progress bar; inside distributed.work_shared this process's rows of tiles alone,
    so that the caller merges what all of them counted."""
    share = (distributed.rank(), distributed.workers()) if distributed.workers() > 1 else (0, 1)
    pairs = len(emb_ND) ** 2 // 2 // share[1]
    with progress_bar(total=pairs, desc=what or "", unit="pair", unit_scale=True) as bar:

        def step(thread: int, tile: Tile) -> None:
            size = tile.values.numel()  # before the work, which may use the values up
            work(thread, tile)
            bar.update(size // 2 if tile.rows == tile.cols else size)

        if budget_mib is None:
            budget_mib = TILE_MIB * threads if device is None else default_budget_mib(device)
        emb = torch.from_numpy(emb_ND).to(device or "cpu")
        with exact_products(emb.device):
            triangle_in_threads(emb, step, threads=threads, budget_mib=budget_mib, share=share)


def walking_threads(n: int) -> int:
    """Threads for a walk over all pairs of n images: torch's, or one where there is little to do."""
    return torch.get_num_threads() if n >= 2048 else 1


def _count(
    by_person: ByPerson, keep: int, budget_mib: float | None, device: torch.device | None
) -> tuple[_Kind, _Kind]:
    """Genuine and impostor pairs, each thread by itself, then put together; a device has one thread."""
    emb_ND, identity_N = by_person.emb_ND, by_person.identity_N
    identity = torch.from_numpy(identity_N).to(device or "cpu")
    counters = [
        (
            _Kind(Tally(by_person.n_genuine, keep), _Hardest(-1)),
            _Kind(Tally(by_person.n_impostor, keep), _Hardest(1)),
        )
        for _ in range(walking_threads(len(emb_ND)) if device is None else 1)
    ]

    def work(thread: int, tile: Tile) -> None:
        rows, cols = tile.rows, tile.cols
        one_kind = identity_N[rows.stop - 1] < identity_N[cols.start]
        if device is not None:
            _count_on_device(counters[thread], tile, None if one_kind else identity)
            return
        score = tile.values.numpy()
        if one_kind:
            counters[thread][1].tally.add(score)
            counters[thread][1].hardest.add(score, rows, cols)
        else:
            _count_mixed(counters[thread], score, identity_N, rows, cols)

    walk_pairs(emb_ND, work, len(counters), budget_mib, device=device)
    merged = _merged(counters)
    return merged if distributed.workers() == 1 else _merged(distributed.from_all(merged))


def _merged(counters: Sequence[tuple[_Kind, _Kind]]) -> tuple[_Kind, _Kind]:
    """What several threads or processes have counted, put together in the first."""
    for other in counters[1:]:
        for kind, theirs in zip(counters[0], other, strict=True):
            kind.merge(theirs)
    for kind in counters[0]:
        kind.tally.trim()
    return counters[0]


def _count_mixed(
    kinds: tuple[_Kind, _Kind], score: npt.NDArray[np.float32], identity_N: Ints, rows: slice, cols: slice
) -> None:
    """A tile with pairs of both kinds, or on the diagonal, where each pair of images occurs twice."""
    genuine, impostor = kinds
    same = identity_N[rows, None] == identity_N[None, cols]
    if rows == cols:
        same = np.triu(same, 1)
    places = np.flatnonzero(same)
    some = score.reshape(-1)[places]
    genuine.tally.add(some)
    genuine.hardest.add(some, rows, cols, places)
    if rows == cols:
        same |= np.tri(len(same), dtype=bool)
    score[same] = LEFT_OUT
    impostor.tally.add(score, int(np.count_nonzero(same)))
    impostor.hardest.add(score, rows, cols)


def _count_on_device(kinds: tuple[_Kind, _Kind], tile: Tile, identity_N: torch.Tensor | None) -> None:
    """A tile where it lies; people (N,) where it may have pairs of both kinds, or is on the diagonal."""
    genuine, impostor = kinds
    rows, cols, score = tile
    if identity_N is not None:
        same = identity_N[rows, None] == identity_N[None, cols]
        left_out = same
        if rows == cols:
            left_out, same = same | torch.ones_like(same).tril(), same.triu(1)
        at = same.reshape(-1).nonzero().squeeze(1)
        some, places = score.reshape(-1)[at].cpu().numpy(), at.cpu().numpy()
        genuine.tally.add(some)
        genuine.hardest.add(some, rows, cols, places)
        score.masked_fill_(left_out, float(LEFT_OUT))
    impostor.tally.add_tile(score)
    impostor.hardest.add_tile(score, rows, cols)
