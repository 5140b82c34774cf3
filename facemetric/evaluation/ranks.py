"""Where each probe's own person comes among all people of a gallery, from tiles of probes x gallery.

Shapes: N gallery images, Q probe images, D embedding, R x C probes and gallery rows of a tile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric import distributed
from facemetric.evaluation.curves import Ints
from facemetric.evaluation.table import unit_rows
from facemetric.mining.kernels.choice import exact_products
from facemetric.mining.tiles import budget_bytes, default_budget_mib, product_tiles

NEVER = -2.0  # below every cosine: who is not there, or has a wrong best match, is found at no threshold
ROWS, COLS = 1024, 2048  # probes and gallery rows of one tile: 8 MiB
TILE_BYTES = 32  # of a score on a GPU, with the masks and counts made of it


class OwnRanks(NamedTuple):
    """Of each probe (Q,): the place of its own person among the people of the gallery, 0 where it is not there, and
    the score of that person's best image, NEVER where it is not there."""

    rank: Ints
    mate: npt.NDArray[np.float32]


def own_ranks(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    device: torch.device | None = None,
) -> OwnRanks:
    """Where each probe's (Q, D) own person comes among all people of a gallery (N, D), each by the best image.

    Of people with equal scores the one of the lower gallery row comes first. Two walks over the tiles of
    probes x gallery, the first only where somebody's own person is: their products are the same to the bit.
    `device` as for `nearest`.
    """
    gallery_ND, probe_QD = unit_rows(gallery), unit_rows(probe)
    people, code_N = np.unique(np.asarray(gallery_labels), return_inverse=True)
    code_Q = np.searchsorted(people, np.asarray(probe_labels)).clip(max=len(people) - 1)
    asked = np.flatnonzero(people[code_Q] == np.asarray(probe_labels))
    asked = asked[np.argsort(code_Q[asked], kind="stable")]  # both sides in the order of people
    order = np.argsort(code_N, kind="stable")
    sides = _Sides(probe_QD[asked], code_Q[asked], gallery_ND[order], code_N[order], order)
    walk = _Walk(sides) if device is None else _WalkOnDevice(sides, device)
    mate, row = walk.mates()
    rank_Q, mate_Q = np.zeros(len(probe_QD), np.int64), np.full(len(probe_QD), NEVER, np.float32)
    rank_Q[asked], mate_Q[asked] = 1 + walk.ahead(mate, row), mate.clip(-1, 1)
    return OwnRanks(rank_Q, mate_Q)


class _Sides(NamedTuple):
    """Probes and gallery, both in the order of their people; `row` (N,): where each gallery row was before."""

    probe_QD: npt.NDArray[np.float32]
    code_Q: Ints
    gallery_ND: npt.NDArray[np.float32]
    code_N: Ints
    row: Ints

    def blocks(self, cols: int) -> list[tuple[int, int]]:
        """Pieces of about so many gallery rows, no person in two of them."""
        starts = np.append(np.flatnonzero(np.diff(self.code_N, prepend=-1)), len(self.code_N))
        wanted = np.arange(0, len(self.code_N), cols)
        ends = np.unique(np.append(starts[np.searchsorted(starts, wanted)], len(self.code_N)))
        return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))

    def asking(self, low: int, high: int) -> tuple[int, int]:
        """The probes [first, last) whose own people are in a block."""
        first, last = np.searchsorted(self.code_Q, [self.code_N[low], self.code_N[high - 1] + 1]).tolist()
        return first, last


class _Walk:
    """The tiles of probes x gallery on the CPU."""

    def __init__(self, sides: _Sides) -> None:
        self.sides = sides
        self.probe_QD, self.code_Q, self.gallery_ND, self.code_N, self.row = sides

    def tile(self, at: int, low: int, high: int) -> npt.NDArray[np.float32]:
        """Scores (R, C) of ROWS probes from `at` on with a block."""
        probe, block = (
            torch.from_numpy(x) for x in (self.probe_QD[at : at + ROWS], self.gallery_ND[low:high])
        )
        size = max(len(probe) * len(block) * 4 / 2**20, 1e-3)
        ((_, _, score),) = product_tiles(probe, block, budget_mib=2 * size, whole_rows=True)
        return score.numpy()

    def mates(self) -> tuple[npt.NDArray[np.float32], Ints]:
        """Score and row of the best image of each probe's own person (Q,)."""
        best, row = np.full(len(self.code_Q), np.float32(-np.inf)), np.zeros(len(self.code_Q), np.int64)
        own = np.zeros(len(self.code_Q), bool)
        for low, high in self.sides.blocks(COLS):
            first, last = self.sides.asking(low, high)
            for at in distributed.own_share(range(first // ROWS * ROWS, last, ROWS)):
                score = self.tile(at, low, high)
                q = np.arange(max(first, at), min(last, at + ROWS))
                own[q] = True
                start, end = (
                    np.searchsorted(self.code_N, self.code_Q[q], side=side) for side in ("left", "right")
                )
                for k in range(int((end - start).max(initial=0))):
                    held = start + k < end
                    col = (start + k)[held]
                    value = score[q[held] - at, col - low]
                    better = value > best[q[held]]
                    best[q[held][better]] = value[better]
                    row[q[held][better]] = self.row[col[better]]
        for values in (best, row):
            distributed.merged_rows(values, np.flatnonzero(own))
        return best, row

    def ahead(self, mate: npt.NDArray[np.float32], row: Ints) -> Ints:
        """How many other people come before each probe's own (Q,)."""
        count = np.zeros(len(self.code_Q), np.int64)
        for low, high in self.sides.blocks(COLS):
            alone = np.diff(self.code_N[low:high]).all()  # one image of each person
            for at in distributed.own_share(range(0, len(self.code_Q), ROWS)):
                score = self.tile(at, low, high)
                part = slice(at, at + len(score))
                r, c = np.nonzero(score >= mate[part, None])
                before = (score[r, c] > mate[part][r]) | (self.row[low:high][c] < row[part][r])
                before &= self.code_N[low:high][c] != self.code_Q[part][r]
                r, person = r[before], self.code_N[low:high][c[before]]
                if not alone:
                    r = np.unique(np.stack([r, person]), axis=1)[0]
                count[part] += np.bincount(r, minlength=len(score))
        return distributed.summed(count)


class _WalkOnDevice:
    """The same on a device, in large tiles: what is found of each probe leaves it at the end, and nothing waits."""

    def __init__(self, sides: _Sides, device: torch.device) -> None:
        self.sides, self.device = sides, device
        # Where each gallery row's person begins.
        start_N = np.searchsorted(sides.code_N, sides.code_N)
        self.probe_QD, self.code_Q, self.gallery_ND, self.code_N, self.row, self.start = (
            torch.from_numpy(x).to(device) for x in (*sides, start_N)
        )
        self.side = max(math.isqrt(budget_bytes(default_budget_mib(device)) // TILE_BYTES), 1)

    def height(self, low: int, high: int) -> int:
        """Probes of a tile of this block: fewer where it is wide, as where a person has very many images."""
        return max(min(self.side, self.side**2 // (high - low)), 1)

    def tile(self, at: int, low: int, high: int) -> torch.Tensor:
        """Scores (R, C) of the probes from `at` on with a block."""
        with exact_products(self.device):
            return self.probe_QD[at : at + self.height(low, high)] @ self.gallery_ND[low:high].T

    def mates(self) -> tuple[npt.NDArray[np.float32], Ints]:
        """Score and row of the best image of each probe's own person (Q,)."""
        best = torch.full((len(self.code_Q),), -math.inf, device=self.device)
        row, own = torch.zeros_like(self.code_Q), np.zeros(len(self.code_Q), bool)
        for low, high in self.sides.blocks(self.side):
            (first, last), height = self.sides.asking(low, high), self.height(low, high)
            for at in distributed.own_share(range(first // height * height, last, height)):
                part = slice(max(first, at), min(last, at + height))
                other = self.code_Q[part, None] != self.code_N[low:high]
                score = self.tile(at, low, high)[part.start - at : part.stop - at].masked_fill(
                    other, -math.inf
                )
                best[part] = score.amax(1)
                row[part] = torch.where(score == best[part, None], self.row[low:high], len(self.row)).amin(1)
                own[part] = True
        found = best.cpu().numpy(), row.cpu().numpy()
        for values in found:
            distributed.merged_rows(values, np.flatnonzero(own))
        return found

    def ahead(self, mate: npt.NDArray[np.float32], row: Ints) -> Ints:
        """How many other people come before each probe's own (Q,)."""
        mate_Q, row_Q = (torch.from_numpy(x).to(self.device) for x in (mate, row))
        count = torch.zeros_like(self.code_Q)
        for low, high in self.sides.blocks(self.side):
            alone = np.diff(self.sides.code_N[low:high]).all()  # one image of each person
            height = self.height(low, high)
            for at in distributed.own_share(range(0, len(self.code_Q), height)):
                part = slice(at, at + height)
                score, own = self.tile(at, low, high), mate_Q[part, None]
                # Never one of its own person: `own` and `row_Q` are of the first of these.
                before = (score > own) | ((score == own) & (self.row[low:high] < row_Q[part, None]))
                if not alone:  # of each person the first image alone
                    ones = before.to(torch.int32)
                    earlier = ones.cumsum(1, dtype=torch.int32) - ones
                    before &= earlier == earlier.index_select(1, self.start[low:high] - low)
                count[part] += before.sum(1)
        return distributed.summed(count.cpu().numpy())
