"""Millions of scores in small memory: a count on a fine grid, and the highest scores themselves.

Scores come multiplied by STEPS, a power of two, so that nothing is rounded and a step of the grid is 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from facemetric.evaluation.curves import Scores

ROOT = 128.0  # both factors of the product carry one root
STEPS = ROOT * ROOT  # 16,384 steps to a cosine of 1: the counts, 256 KiB, stay in a core's cache
SLACK = 8  # float32 products of unit rows may leave -1..1 by some 1e-6; a step is 6e-5
OFFSET = int(STEPS) + SLACK
BINS = 2 * OFFSET
LEFT_OUT = np.float32(-OFFSET)  # in the place of a score that is none: below all others
CHUNK = 1 << 18  # scores binned at once: 2 MiB of buffers


class Tally:
    """Takes scaled scores in pieces; `scores()` has all counts, and the highest scores themselves: all where
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

    def take(self, other: Tally) -> None:
        """Add what another tally of the same `keep` has counted."""
        self.count += other.count
        self.lowest_bin = max(self.lowest_bin, other.lowest_bin)
        both = [t.kept[: t.used] for t in (self, other)]
        self.kept = np.concatenate([k[k >= self.lowest_bin - OFFSET] for k in both])
        self.used = len(self.kept)

    def scores(self) -> Scores:
        """What was counted, as cosines in -1..1, the same in whatever pieces it came. The tally is used up."""
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
