"""What losses of pairs share: cosines in tiles, genuine pairs in blocks, and the gradient that is added up.

A loss of pairs knows dL/d(cosine) of every pair; the gradient of a row is the sum of the others, each times that
number. In a whole batch a tile above the diagonal serves (i, j) and (j, i).

Shapes: B rows of a batch, M anchors, N reference rows, D embedding, R and C rows and columns of one tile, n and w
those of a block of genuine pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.kernels.common import add_rows
from facemetric.mining.order import Runs
from facemetric.mining.tiles import MIB, Tile, budget_bytes, product_tiles, row_distance

# Tiles of the first of two walks are kept for the second where they fit in so many MiB: a number, however large B is.
KEPT_MIB = {"cpu": 64.0, "cuda": 512.0}
BLOCK_WIDTH = {
    "cpu": 128,
    "cuda": 1024,
}  # columns of a block of genuine pairs: launches are the cost on a GPU


class Block(NamedTuple):
    """A piece of the matrix that holds all genuine pairs of its rows, and others."""

    rows: slice
    cols: slice
    cosine_nw: Tensor
    genuine_nw: Tensor  # booleans


class Cosines:
    """Unit rows in runs of one label, and the gradient of a loss of their cosines."""

    def __init__(self, unit_BD: Tensor, runs: Runs, budget_mib: float) -> None:
        self.runs, self.budget_mib = runs, budget_mib
        self.y_ND = unit_BD.index_select(0, runs.reference_N)
        self.x_MD = self.y_ND if runs.whole else unit_BD.index_select(0, runs.anchors_M)
        self.grad_ND = torch.zeros_like(self.y_ND)
        self.grad_MD = self.grad_ND if runs.whole else torch.zeros_like(self.x_MD)
        self.runs_ND: Tensor | None = None

    def walk(self, scale: float, shift: float, *, twice: bool = True) -> Walk:
        """The tiles of scale * cosine + shift, to be walked over once or twice."""
        left_ME = torch.cat([self.x_MD * scale, self.x_MD.new_full((len(self.x_MD), 1), shift)], 1)
        right_NE = torch.cat([self.y_ND, self.y_ND.new_ones(len(self.y_ND), 1)], 1)
        return Walk(left_ME, right_NE, self.runs.whole, self.budget_mib, twice)

    def add(self, rows: slice, cols: slice, coefficient_RC: Tensor) -> None:
        """The gradient of sum(coefficient * cosine) of a tile or a block; in a whole batch, a tile's coefficients
        are those of (i, j) and (j, i) together."""
        self.grad_MD[rows].addmm_(coefficient_RC, self.y_ND[cols])
        if not (self.runs.whole and rows == cols):
            self.grad_ND[cols].addmm_(coefficient_RC.T, self.x_MD[rows])

    def add_block(self, block: Block, coefficient_nw: Tensor) -> None:
        """The same of a block, whose coefficients are those of (i, j) alone."""
        self.grad_MD[block.rows].addmm_(coefficient_nw, self.y_ND[block.cols])
        self.grad_ND[block.cols].addmm_(coefficient_nw.T, self.x_MD[block.rows])

    def genuine(self) -> Iterator[Block]:
        """Every genuine pair, in blocks."""
        elements = budget_bytes(self.budget_mib) // (4 * self.x_MD.element_size())
        for rows, cols in self.runs.blocks(BLOCK_WIDTH[self.y_ND.device.type], max(elements, 1)):
            same, own = self.runs.same(rows, cols), self.runs.itself(rows, cols)
            assert same is not None
            assert own is not None
            yield Block(rows, cols, self.x_MD[rows] @ self.y_ND[cols].T, same & ~own)

    def run_sums(self) -> Tensor:
        """(M, D): the sum of the anchor's positives."""
        if self.runs_ND is None:
            self.runs_ND = torch.zeros_like(self.y_ND)
            add_rows(self.runs_ND, self.runs.run_N.long(), self.y_ND)
        return self.runs_ND.index_select(0, self.runs.run_M) - self.x_MD

    def positive_sums(self) -> Tensor:
        """(M,) the sum of the cosines of each anchor with its positives."""
        return torch.linalg.vecdot(self.x_MD, self.run_sums())

    def pull(self, weight_M: Tensor) -> None:
        """The gradient of the sum over anchors of weight * sum of the cosines with their positives."""
        weight_M1 = weight_M[:, None]
        self.grad_MD += weight_M1 * self.run_sums()
        pulling_MD = weight_M1 * self.x_MD
        sums_ND = torch.zeros_like(self.y_ND)
        add_rows(sums_ND, self.runs.run_M.long(), pulling_MD)
        self.grad_ND += sums_ND.index_select(0, self.runs.run_N)
        add_rows(self.grad_ND, self.runs.self_M.long(), pulling_MD.neg_())

    def pairs(self) -> dict[str, int]:
        """How many pairs the figures are means of."""
        return {
            "mean_positive": int(self.runs.positives.sum()),
            "mean_negative": int(self.runs.negatives.sum()),
        }

    def figures(self) -> dict[str, Tensor]:
        """The mean cosine of genuine pairs and of impostor pairs; 0 where there is no pair."""
        genuine, impostor = self.pairs().values()
        own = torch.linalg.vecdot(self.x_MD, self.x_MD).double().sum()
        positive = self.positive_sums().double().sum()
        every = self.x_MD.sum(0, dtype=torch.float64) @ self.y_ND.sum(0, dtype=torch.float64)
        return {
            "mean_positive": positive / max(genuine, 1),
            "mean_negative": (every - own - positive) / max(impostor, 1) * (impostor > 0),
        }

    def gradient(self) -> Tensor:
        """(B, D) in the order of the rows handed in."""
        grad_BD = torch.empty_like(self.grad_ND).index_copy_(0, self.runs.reference_N, self.grad_ND)
        if not self.runs.whole:
            grad_BD.index_add_(0, self.runs.anchors_M, self.grad_MD)
        return grad_BD


class Some:
    """The pairs of a tile of squared distances that are nearer than a limit: by direct difference, one at a time."""

    def __init__(self, cos: Cosines, tile: Tile, limit: float) -> None:
        self.cos, self.one_side = cos, cos.runs.whole and tile.rows == tile.cols  # the tile has (j, i) too
        self.i, self.j = (tile.values < limit).nonzero(as_tuple=True)
        step = max(budget_bytes(cos.budget_mib) // (4 * max(cos.y_ND[:1].nbytes, 1)), 1)
        anchors, others = (self.i + tile.rows.start).split(step), (self.j + tile.cols.start).split(step)
        self.parts = list(zip(anchors, others, strict=True))
        squared = [row_distance(cos.x_MD[a], cos.y_ND[b]) for a, b in self.parts]
        self.distance_P = torch.cat([*squared, cos.x_MD.new_empty(0)]).sqrt_()

    def add(self, coefficient_P: Tensor) -> None:
        """The gradient of sum(coefficient * cosine), as differences."""
        top = 0
        for a, b in self.parts:
            away_PD = self.cos.y_ND[b] - self.cos.x_MD[a]
            away_PD *= coefficient_P[top : top + len(a), None]
            add_rows(self.cos.grad_MD, a, away_PD)
            if not self.one_side:
                add_rows(self.cos.grad_ND, b, away_PD.neg_())
            top += len(a)


class Walk:
    """Tiles to walk over twice: the second time those are handed out that were kept from the first.

    What the first walk writes into a tile is there in the second only where `kept`; both must do it.
    """

    def __init__(
        self, left_ME: Tensor, right_NE: Tensor, whole: bool, budget_mib: float, twice: bool
    ) -> None:
        self.left_ME, self.right_NE, self.whole, self.budget_mib = left_ME, right_NE, whole, budget_mib
        pairs = len(left_ME) * len(right_NE)
        room = min(KEPT_MIB[left_ME.device.type], 16 * budget_mib) * MIB
        self.keeps = twice and pairs * left_ME.element_size() * (0.7 if whole else 1.0) <= room
        self.tiles: list[Tile] = []
        self.spare = left_ME.new_empty(0)

    @property
    def kept(self) -> bool:
        """Whether this walk goes over tiles that another one has written to."""
        return bool(self.tiles)

    def __iter__(self) -> Iterator[Tile]:
        if self.tiles:
            yield from self.tiles
            return
        kept = []
        for tile in product_tiles(
            self.left_ME,
            self.right_NE,
            budget_mib=self.budget_mib,
            buffers=3,
            triangle=self.whole and len(self.left_ME) > 0,
            keep=self.keeps,
        ):
            if self.keeps:
                kept.append(tile)
            yield tile
        self.tiles = kept

    def buffer(self, like_RC: Tensor) -> Tensor:
        """Room for numbers of a tile, which the next tile uses again."""
        if len(self.spare) < like_RC.numel():
            self.spare = like_RC.new_empty(like_RC.numel())
        return self.spare[: like_RC.numel()].view(like_RC.shape)

    def both(self, tile: Tile) -> bool:
        """Whether the tile serves its columns' anchors as well: above the diagonal of a whole batch."""
        return self.whole and tile.rows != tile.cols

    def add_up(self, sums_M: Tensor, tile: Tile, values_RC: Tensor) -> None:
        """Row sums of a tile, and its column sums where the columns are anchors too."""
        sums_M[tile.rows] += values_RC.sum(1)
        if self.both(tile):
            sums_M[tile.cols] += values_RC.sum(0)

    def scale(self, tile: Tile, values_RC: Tensor, weight_M: Tensor) -> Tensor:
        """Values times the weight of their anchor: in a whole batch, of both their anchors."""
        if not self.whole:
            return values_RC.mul_(weight_M[tile.rows, None])
        weight_RC = self.buffer(values_RC)
        torch.add(weight_M[tile.rows, None], weight_M[None, tile.cols], out=weight_RC)
        return values_RC.mul_(weight_RC)
