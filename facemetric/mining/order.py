"""Sorts a batch by label once: the positives of an anchor are then a short run, and no B x B mask is needed.

Shapes: M anchors, N reference rows, R and C rows and columns of one tile, n rows with enough positives.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Up to this many images of an identity one scatter marks them in a tile; above it, a slice for each class.
SCATTER_RUN = 64


class Order(NamedTuple):
    """Anchors, most positives first, and reference rows, both in runs of one label.

    Anchors come most positives first, therefore those which have a k-th positive are the first `prefix[k]`.
    """

    anchors_M: Tensor  # sorted anchor -> row of the anchors handed in
    reference_N: Tensor  # sorted reference row -> row of the reference handed in
    start_M: Tensor  # first sorted reference row with the anchor's label
    count_M: Tensor  # how many there are, the anchor itself included
    self_M: Tensor  # the anchor's own sorted reference row, N where it has none
    prefix: list[int]  # prefix[k]: how many anchors have more than k positives (and a negative)
    runs: np.ndarray  # (2, M) on the host: start and end of each anchor's run
    whole: bool  # the anchors are the reference, row for row
    own: np.ndarray  # self_M on the host

    def positive(self, k: int, rows: slice) -> Tensor:
        """Sorted reference row (n,) of the k-th positive of the anchors in `rows` that have one."""
        rows = slice(rows.start, max(rows.start, min(rows.stop, self.prefix[k])))
        row = self.start_M[rows] + k
        return row + (row >= self.self_M[rows])

    def having(self, k: int, rows: slice) -> int:
        """How many of the anchors in `rows` have a k-th positive: the first ones."""
        return min(max(self.prefix[k] - rows.start, 0), rows.stop - rows.start)

    def fill_same(self, values_RC: Tensor, rows: slice, cols: slice, value: float) -> None:
        """Overwrite the entries of a tile whose anchor and reference row share a label, itself included.

        Every anchor of the tile has one such row at least.
        """
        start, end = self.runs[0, rows], self.runs[1, rows]
        first, last = int(start.min()), int(end.max())
        if last <= cols.start or first >= cols.stop:
            return
        n = int((end - start > SCATTER_RUN).sum())  # the first ones: anchors come longest run first
        edges = np.flatnonzero(np.diff(start[:n], prepend=-1, append=-1))
        for i, j in pairwise(edges.tolist()):
            left, right = max(int(start[i]) - cols.start, 0), max(int(end[i]) - cols.start, 0)
            values_RC[i:j, left:right] = value
        if n == len(start):
            return
        longest = int((end[n:] - start[n:]).max())
        step = torch.arange(longest, device=values_RC.device)
        count = self.count_M[rows][n:, None]
        at = self.start_M[rows][n:, None] + torch.minimum(step, count - 1) - cols.start
        if first >= cols.start and last <= cols.stop:
            values_RC[n:].scatter_(1, at, value)
        else:
            row, k = ((at >= 0) & (at < cols.stop - cols.start)).nonzero(as_tuple=True)
            values_RC[n:][row, at[row, k]] = value


class Runs(NamedTuple):
    """Anchors and reference rows, both in ascending order of their labels: tiles far from the diagonal hold
    impostor pairs alone."""

    anchors_M: Tensor  # sorted anchor -> row of the batch
    reference_N: Tensor  # sorted reference row -> row of the batch
    run_M: Tensor  # int32: first sorted reference row with the anchor's label, which names its identity
    run_N: Tensor  # the same of the reference rows
    self_M: Tensor  # int32: the anchor's own sorted reference row
    bounds: np.ndarray  # (2, M) on the host: start and end of each anchor's run
    whole: bool  # the anchors are the reference, row for row

    def same(self, rows: slice, cols: slice) -> Tensor | None:
        """(R, C) booleans of a tile: which pairs share a label; None where none does."""
        if self.bounds[1, rows.stop - 1] <= cols.start or self.bounds[0, rows.start] >= cols.stop:
            return None
        return self.run_M[rows, None] == self.run_N[None, cols]

    def itself(self, rows: slice, cols: slice) -> Tensor | None:
        """(R, C) booleans of a tile: where an anchor meets its own row; None where none does."""
        if self.bounds[1, rows.stop - 1] <= cols.start or self.bounds[0, rows.start] >= cols.stop:
            return None
        here_C = torch.arange(cols.start, cols.stop, dtype=torch.int32, device=self.self_M.device)
        return self.self_M[rows, None] == here_C

    def blocks(self, width: int, elements: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of blocks that hold every genuine pair: the whole runs of their rows, of at most
        `elements` pairs, and about `width` wide where runs are shorter."""
        start, end = self.bounds
        top = 0
        while top < len(start):
            wide = max(width, int(end[top] - start[top]))
            stop = int(np.searchsorted(end, start[top] + wide, side="right"))
            stop = max(min(stop, top + elements // wide), top + 1)
            yield slice(top, stop), slice(int(start[top]), int(end[stop - 1]))
            top = stop

    @property
    def positives(self) -> np.ndarray:
        """(M,) how many positives each anchor has."""
        return self.bounds[1] - self.bounds[0] - 1

    @property
    def negatives(self) -> np.ndarray:
        """(M,) how many negatives each anchor has."""
        return len(self.reference_N) - self.positives - 1


def sort_runs(labels_N: Tensor, anchors: slice | None) -> Runs:
    """The batch by ascending label; `anchors` are the rows that are anchors, all where it is None."""
    sorted_N, perm_N = sortable(labels_N).sort(stable=True)
    run_N = torch.searchsorted(sorted_N, sorted_N)
    place_N = torch.arange(len(labels_N), device=labels_N.device)
    if anchors is None:
        anchors_M, self_M = perm_N, place_N
    else:
        place_N = torch.empty_like(perm_N).index_copy_(0, perm_N, place_N)
        self_M = place_N[anchors].sort().values
        anchors_M = perm_N[self_M]
    start_M = run_N[self_M]
    end_M = torch.searchsorted(sorted_N, sorted_N[self_M], right=True)
    bounds = torch.stack([start_M, end_M]).cpu().numpy()
    run_M, run_N, self_M = (v.to(torch.int32) for v in (start_M, run_N, self_M))
    return Runs(anchors_M, perm_N, run_M, run_N, self_M, bounds, anchors is None)


def sortable(labels: Tensor) -> Tensor:
    """Labels of any dtype as one that torch sorts on every device; equal stays equal, and only equal."""
    if labels.dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        return labels
    return labels.to(torch.float32 if labels.dtype.is_floating_point else torch.int64)


def order_whole(labels_N: Tensor) -> Order:
    """The order of a batch in which every row is an anchor and a reference row."""
    N = len(labels_N)
    sorted_N, perm_N = sortable(labels_N).sort(stable=True)
    start_N = torch.searchsorted(sorted_N, sorted_N)
    count_N = torch.searchsorted(sorted_N, sorted_N, right=True) - start_N
    by_count_N = count_N.argsort(descending=True, stable=True)
    here_N = torch.arange(N, device=labels_N.device)
    start_sorted_N = here_N - (by_count_N - start_N.index_select(0, by_count_N))
    rows_N = perm_N.index_select(0, by_count_N)
    return _finish(rows_N, rows_N, start_sorted_N, count_N.index_select(0, by_count_N), here_N, whole=True)


def order_against(labels_M: Tensor, labels_N: Tensor, own_M: Tensor | None) -> Order:
    """The order of anchors against a reference; `own_M` is each anchor's reference row, None when apart."""
    N = len(labels_N)
    dtype = torch.promote_types(sortable(labels_M).dtype, sortable(labels_N).dtype)
    sorted_N, perm_N = labels_N.to(dtype).sort(stable=True)
    asked_M = labels_M.to(dtype).contiguous()
    start_M = torch.searchsorted(sorted_N, asked_M)
    count_M = torch.searchsorted(sorted_N, asked_M, right=True) - start_M
    if own_M is None:
        self_M = torch.full_like(start_M, N)
    else:
        place_N = torch.empty_like(perm_N)
        place_N[perm_N] = torch.arange(N, device=perm_N.device)
        self_M = place_N[own_M]
    positives_M = count_M - (self_M < N).to(count_M.dtype)
    rank_M = (positives_M * -(N + 1) + start_M).argsort(stable=True)
    return _finish(rank_M, perm_N, start_M[rank_M], count_M[rank_M], self_M[rank_M], whole=False)


def _finish(
    anchors_M: Tensor, reference_N: Tensor, start_M: Tensor, count_M: Tensor, self_M: Tensor, *, whole: bool
) -> Order:
    host = torch.stack([start_M, count_M, self_M]).cpu().numpy()
    return _on_both(anchors_M, reference_N, (start_M, count_M, self_M), tuple(host), whole=whole)


def _on_both(
    anchors_M: Tensor,
    reference_N: Tensor,
    runs: tuple[Tensor, Tensor, Tensor],
    host: tuple[np.ndarray, ...],
    *,
    whole: bool,
) -> Order:
    """The order, of start, count and own place of each anchor on the device and on the host."""
    (start, count, own), N = host, len(reference_N)
    positives = np.where(count < N, count - (own < N), 0)  # a run of all N rows leaves no negative
    assert not (np.diff(positives) > 0).any()
    steps = -np.arange(positives[0] if len(positives) else 0)
    prefix = np.searchsorted(-positives, steps, side="left").tolist()
    bounds = np.stack([start, start + count])
    return Order(anchors_M, reference_N, *runs, prefix, bounds, whole, own)


class Facts(NamedTuple):
    """What the host has to know of a batch on a GPU, in one transfer."""

    labels_N: np.ndarray
    asked_M: np.ndarray | None  # labels of anchors apart from the batch
    lengths: list[float]  # the length of all rows together, in float64; of anchors apart as well
    first_D: list[float]  # the first row, where it was asked for


def fetch(rows: list[Tensor], labels: list[Tensor], *, first: bool) -> Facts:
    """The facts of a batch, and of anchors apart behind it: one synchronisation. `first`: the first row too."""
    dtype = labels[0].dtype if len(labels) == 1 else torch.promote_types(*(sortable(v).dtype for v in labels))
    keys = [sortable(v.detach().to(dtype)) for v in labels]
    floating = keys[0].dtype.is_floating_point
    packed = [
        (v.double().view(torch.int64) if floating else v.to(torch.int64))
        for v in keys
        if v.device.type != "cpu"
    ]
    n_labels = sum(len(v) for v in packed)
    lengths = [torch.linalg.vector_norm(v.detach(), dtype=torch.float64).view(1) for v in rows]
    packed += [v.view(torch.int64) for v in lengths]
    if first and len(rows[0]):
        packed.append(rows[0].detach()[0].double().view(torch.int64))
    host = torch.cat(packed).cpu().numpy()
    known, numbers = host[:n_labels], host[n_labels:].view(np.float64).tolist()
    known = known.view(np.float64) if floating else known
    found = []
    for key in keys:
        on_host = key.device.type == "cpu"
        found.append(key.numpy() if on_host else known[: len(key)])
        known = known if on_host else known[len(key) :]
    return Facts(found[0], found[1] if len(found) > 1 else None, numbers[: len(rows)], numbers[len(rows) :])


def upload(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of int64 on a device, in one transfer that nothing waits for."""
    flat = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":  # pragma: no cover - memory that a GPU reads itself
        flat = flat.pin_memory()
    flat = flat.to(device, non_blocking=True)
    return list(flat.split([len(v) for v in arrays]))


def order_on_host(facts: Facts, own_M: np.ndarray | None, device: torch.device) -> Order:
    """As `order_whole` (`own_M` None and no labels asked for) and `order_against`, from labels on the host."""
    labels_N, asked_M = facts.labels_N, facts.asked_M
    N, whole = len(labels_N), own_M is None and asked_M is None
    perm_N = labels_N.argsort(kind="stable")
    sorted_N = labels_N[perm_N]
    if whole:
        start = np.searchsorted(sorted_N, sorted_N)
        count = np.searchsorted(sorted_N, sorted_N, side="right") - start
        by_count = (-count).argsort(kind="stable")
        start, count, own = np.arange(N) - (by_count - start[by_count]), count[by_count], np.arange(N)
        anchors_M = reference_N = perm_N[by_count]
    else:
        asked_M = labels_N[own_M] if asked_M is None else asked_M
        start = np.searchsorted(sorted_N, asked_M)
        count = np.searchsorted(sorted_N, asked_M, side="right") - start
        own = np.full(len(asked_M), N)
        if own_M is not None:
            place_N = np.empty(N, dtype=np.int64)
            place_N[perm_N] = np.arange(N)
            own = place_N[own_M]
        anchors_M = ((count - (own < N)) * -(N + 1) + start).argsort(kind="stable")
        start, count, own, reference_N = start[anchors_M], count[anchors_M], own[anchors_M], perm_N
    sides = [anchors_M] if whole else [anchors_M, reference_N]
    *rows, start_M, count_M, self_M = upload([*sides, start, count, own], device)
    return _on_both(rows[0], rows[-1], (start_M, count_M, self_M), (start, count, own), whole=whole)
