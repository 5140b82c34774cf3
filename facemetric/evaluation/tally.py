"""Millions of scores in small memory: a count on a fine grid, and the highest scores themselves.

Scores come multiplied by STEPS, a power of two, so that nothing is rounded and a step of the grid is 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import Scores

ROOT = 128.0  # both factors of the product carry one root
STEPS = ROOT * ROOT  # 16,384 steps to a cosine of 1: the counts, 256 KiB, stay in a core's cache
SLACK = 8  # float32 products of unit rows may leave -1..1 by some 1e-6; a step is 6e-5
OFFSET = int(STEPS) + SLACK
BINS = 2 * OFFSET
CHUNK = 1 << 18  # scores binned at once: 3 MiB of buffers


class Tally:
    """Takes scaled scores in pieces; `scores()` has all counts and the highest, `keep` to 2 x `keep`.

    Fewer where one step of the grid holds more than that: then the grid alone speaks for them.
    Memory: up to 2 x `keep` float32 and a few MiB. numpy on one thread by choice: torch would meet its other
    threads six times a piece, which a busy machine makes dear.
    """

    def __init__(self, total: int, keep: int) -> None:
        self.keep = keep
        self.count = np.zeros(BINS, dtype=np.int64)
        self.kept = np.empty(min(total, 2 * keep), dtype=np.float32)  # pages are touched as they fill
        self.used = 0
        self.lowest_bin = 0  # every score in this bin or above is in `kept`
        self.steps = np.empty(CHUNK, dtype=np.float32)
        self.bins = np.empty(CHUNK, dtype=np.intp)

    def add(self, piece: npt.NDArray[np.float32]) -> None:
        """Count a contiguous piece of scores and keep the high ones."""
        flat = piece.reshape(-1)
        for at in range(0, len(flat), CHUNK):
            part = flat[at : at + CHUNK]
            steps, bins = self.steps[: len(part)], self.bins[: len(part)]
            np.floor(part, out=steps)  # before the offset, whose sum rounds
            steps += OFFSET
            np.copyto(bins, steps, casting="unsafe")
            self.count += np.bincount(bins, minlength=BINS)
        fresh = flat if self.lowest_bin == 0 else flat[flat >= self.lowest_bin - OFFSET]
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

    def scores(self) -> Scores:
        """What was counted, in true units. The tally is used up."""
        kept = self.kept[: self.used]
        kept.sort()
        kept /= np.float32(STEPS)
        total = int(self.count.sum())
        edge = (np.arange(BINS) - OFFSET) / STEPS
        at_edge = self.count[::-1].cumsum()[::-1].copy()
        if self.lowest_bin == 0:
            return Scores(total, kept, -math.inf, edge, at_edge)
        # Ties beyond counting leave nothing exact: then the last edge, above every score, is the start.
        exact_from = float(edge[min(self.lowest_bin, BINS - 1)])
        return Scores(total, kept, exact_from, edge, at_edge)
