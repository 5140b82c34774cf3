"""The k nearest of a gallery by cosine, exactly and in bounded memory: the one kNN of the house.

torch computes the products, on the threads of the CPU or on a GPU; a few queries in a process that has not imported it
go to numpy, which saves the seconds that the import takes.

Shapes: Q queries, N gallery rows, D embedding, K neighbours, C gallery rows of a tile, R queries of a tile on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError
from facemetric.evaluation.curves import Ints
from facemetric.evaluation.table import unit_rows
from facemetric.machine import MIB

if TYPE_CHECKING:
    import torch

BUDGET_MIB = 8.0  # the tile of each thread
LEAST_A_THREAD = 256  # queries; a product of fewer is shared by the threads itself
ROWS_A_THREAD = (
    32_768  # of a gallery in parts, 4 million products: below this a thread costs more than it brings
)
ROWS_OF_NUMPY = 16_384  # of a gallery, in a product by numpy: 8 MiB of 128 numbers
FEW = 16  # queries, so few that the product is faster with them as its rows
VERY_FEW = 8  # as its columns: half the time for one, a third for three, where MKL computes
MOST_IN_A_GROUP = 16  # gallery rows of which only the best is looked at first
KEY_BYTES = 32  # of a key on a GPU: int64, and what it is made of
NOBODY = np.iinfo(np.int64).max  # a key after all others
LOW = (1 << 32) - 1  # where a key holds the row

Whole = TypeVar("Whole", Ints, "torch.Tensor")  # whole numbers, here or on a device


class Neighbours(NamedTuple):
    """The K best of the gallery for each query, best first: `rows` int64 (Q, K), `score` float32 (Q, K)."""

    rows: Ints
    score: npt.NDArray[np.float32]


def nearest(
    queries: npt.ArrayLike, gallery: npt.ArrayLike, k: int, *, device: torch.device | None = None
) -> Neighbours:
    """The k most similar gallery rows (N, D) of each query (Q, D); equal scores: the lower row first.

    `device`: where tiles are made and searched, such as a GPU; None uses the threads of the CPU."""
    query_QD, searched = unit_rows(queries), SearchedRows(unit_rows(gallery), device)
    check_k([k], len(searched.rows_ND))
    return searched.nearest(query_QD, k)


class SearchedRows:
    """Unit rows (N, D) to be searched several times: by the threads of the CPU, or on a device, which has a copy."""

    def __init__(self, rows_ND: npt.NDArray[np.float32], device: torch.device | None = None) -> None:
        import torch  # here and below: not every question needs it

        self.rows_ND = rows_ND
        self.on_device = None if device is None else torch.from_numpy(rows_ND).to(device)

    def nearest(self, query_QD: npt.NDArray[np.float32], k: int) -> Neighbours:
        """The k best (Q, K) of unit rows (Q, D). Inside distributed.work_shared each process looks for some of them."""
        best_QK = np.full((len(query_QD), k), NOBODY)
        if self.on_device is None:
            _search(query_QD, self.rows_ND, best_QK)
        else:
            _search_on_device(query_QD, self.on_device, best_QK)
        return Neighbours(best_QK & LOW, _scores(best_QK).clip(-1, 1))  # rounded cosines pass 1


def _search(query_QD: npt.NDArray[np.float32], gallery_ND: npt.NDArray[np.float32], best_QK: Ints) -> None:
    """Fill the keys of the best (Q, K) by the threads of the CPU."""
    import torch

    from facemetric import distributed
    from facemetric.mining.tiles import in_threads, tile_shape

    height, width = tile_shape(len(gallery_ND), len(query_QD), budget_mib=BUDGET_MIB)
    if distributed.workers() > 1 and len(query_QD) > width:
        mine = distributed.own_share(range(0, len(query_QD), width))
        walks = [
            partial(_walk_group, query_QD, gallery_ND, best_QK, slice(at, at + width), height) for at in mine
        ]
        for each in range(0, len(walks), torch.get_num_threads()):
            in_threads(walks[each : each + torch.get_num_threads()])
        distributed.merged_rows(best_QK, _rows_of(mine, width, len(query_QD)))
        return
    parts = min(torch.get_num_threads(), -(-len(query_QD) // LEAST_A_THREAD))
    ends = [len(query_QD) * part // parts for part in range(parts + 1)]
    walks = [
        partial(_walk, query_QD[start:end], gallery_ND, best_QK[start:end]) for start, end in pairwise(ends)
    ]
    if parts == 1:
        walks[0]()
    else:
        in_threads(walks)


def _rows_of(starts: Sequence[int], size: int, rows: int) -> Ints:
    """The rows (M,) of groups of `size` that begin at `starts`, below `rows`."""
    return np.concatenate([np.arange(at, min(at + size, rows)) for at in starts] or [np.arange(0)])


def nearest_in_parts(queries: npt.ArrayLike, parts: Sequence[npt.NDArray[np.float32]], k: int) -> Neighbours:
    """`nearest` where the gallery lies in parts (N, D) of unit rows, such as memory-mapped files, which are not copied.

    Rows are counted through all parts in their order. A row that is not a unit vector has another score than its
    cosine: whoever stores them sees to that."""
    query_QD = unit_rows(queries)
    check_k([k], sum(map(len, parts)))
    starts = np.cumsum([0, *map(len, parts)])
    if "torch" not in sys.modules and len(query_QD) <= FEW:
        best_QK = np.full((len(query_QD), k), NOBODY)
        for first, part_ND in zip(starts.tolist(), parts, strict=False):
            for at in range(0, len(part_ND), ROWS_OF_NUMPY):
                _merge(best_QK, part_ND[at : at + ROWS_OF_NUMPY] @ query_QD.T, first + at)
        return Neighbours(best_QK & LOW, _scores(best_QK).clip(-1, 1))
    import torch

    from facemetric.mining.tiles import in_threads

    threads = max(1, min(torch.get_num_threads(), int(starts[-1]) // ROWS_A_THREAD))
    asked_QD = (
        np.repeat(query_QD, 2, axis=0) if len(query_QD) == 1 else query_QD
    )  # MKL: two take half as long as one
    best_TQK = np.full((threads, len(asked_QD), k), NOBODY)
    works = [
        partial(_walk_pieces, asked_QD, _rows_between(parts, starts, low, high), best_TQK[thread])
        for thread, (low, high) in enumerate(
            pairwise([int(starts[-1]) * thread // threads for thread in range(threads + 1)])
        )
    ]
    in_threads(works)
    best_QK = np.sort(best_TQK.transpose(1, 0, 2).reshape(len(asked_QD), -1), axis=1)[: len(query_QD), :k]
    return Neighbours(best_QK & LOW, _scores(best_QK).clip(-1, 1))


def _rows_between(
    parts: Sequence[npt.NDArray[np.float32]], starts: Ints, low: int, high: int
) -> list[tuple[int, npt.NDArray[np.float32]]]:
    """The pieces of the parts that hold the rows [low, high), each with the number of its first row."""
    pieces = []
    for start, part in zip(starts.tolist(), parts, strict=False):
        first, end = max(low, start), min(high, start + len(part))
        if first < end:
            pieces.append((first, part[first - start : end - start]))
    return pieces


def _walk_pieces(
    query_QD: npt.NDArray[np.float32],
    pieces: Sequence[tuple[int, npt.NDArray[np.float32]]],
    best_QK: Ints,
) -> None:
    """Fill the keys of the best (Q, K) of some pieces of a gallery."""
    import torch

    from facemetric.mining.tiles import product_tiles

    for first, piece_ND in pieces:
        if len(query_QD) > FEW:
            _walk(query_QD, piece_ND, best_QK, first)
            continue
        query, piece = torch.from_numpy(query_QD), torch.from_numpy(piece_ND)
        if len(query_QD) > VERY_FEW:
            for rows, cols, values in product_tiles(query, piece, budget_mib=BUDGET_MIB):
                _merge(best_QK[rows], values.numpy().T, first + cols.start)
            continue
        for rows, cols, values in product_tiles(piece, query, budget_mib=BUDGET_MIB):
            _merge(best_QK[cols], values.T.contiguous().numpy().T, first + rows.start)


def _walk_group(
    query_QD: npt.NDArray[np.float32],
    gallery_ND: npt.NDArray[np.float32],
    best_QK: Ints,
    group: slice,
    height: int,
) -> None:
    """`_walk` of one group of the queries, with tiles as high as they are for all queries together: the last bits of a
    product may depend on that."""
    queries = query_QD[group]
    _walk(queries, gallery_ND, best_QK[group], budget_mib=(4 * height * len(queries) + 2) / MIB)


def _walk(
    query_QD: npt.NDArray[np.float32],
    gallery_ND: npt.NDArray[np.float32],
    best_QK: Ints,
    start: int = 0,
    budget_mib: float = BUDGET_MIB,
) -> None:
    """Fill the keys of the best (Q, K); the gallery's first row is number `start`. Square tiles: a product of few
    rows with all columns takes a third longer.

    The gallery goes down, so that the best of a group of its rows is found for all queries in the order of memory.
    """
    import torch

    from facemetric.mining.tiles import product_tiles

    for rows, cols, values in product_tiles(
        torch.from_numpy(gallery_ND), torch.from_numpy(query_QD), budget_mib=budget_mib
    ):
        _merge(best_QK[cols], values.numpy(), start + rows.start)


def _search_on_device(query_QD: npt.NDArray[np.float32], gallery_ND: torch.Tensor, best_QK: Ints) -> None:
    """Fill the keys of the best (Q, K) where the gallery (N, D) lies, one group of queries after the other: these
    go there, the keys come back, and between nothing waits."""
    import torch

    from facemetric import distributed
    from facemetric.mining.kernels.choice import exact_products
    from facemetric.mining.tiles import product_tiles

    device, k = gallery_ND.device, best_QK.shape[1]
    height, width = _shape_on_device(len(query_QD), len(gallery_ND), k, device)
    mine = distributed.own_share(range(0, len(query_QD), height))
    with exact_products(device):
        for at in mine:
            query_RD = torch.from_numpy(query_QD[at : at + height]).to(device)
            best_RK = torch.full((len(query_RD), k), int(NOBODY), device=device)
            budget_mib = (4 * len(query_RD) * width + 2) / MIB
            for _, cols, score in product_tiles(query_RD, gallery_ND, budget_mib=budget_mib):
                best_RK = _merged_on_device(best_RK, score, cols.start)
            best_QK[at : at + height] = best_RK.cpu().numpy()
    distributed.merged_rows(best_QK, _rows_of(mine, height, len(query_QD)))


def _shape_on_device(queries: int, gallery: int, k: int, device: torch.device) -> tuple[int, int]:
    """Queries and gallery rows of a tile there, so that its scores and all keys made of them fit in the budget."""
    from facemetric.mining.tiles import budget_bytes, default_budget_mib, tile_shape

    budget_mib = default_budget_mib(device)
    height, width = tile_shape(queries, gallery, budget_mib=budget_mib, buffers=4)
    group = _group(width, k)
    keys = width // group + k * (1 + group) + group
    return max(min(height, budget_bytes(budget_mib) // (4 * width + KEY_BYTES * keys)), 1), width


def _group(rows: int, k: int) -> int:
    """How many gallery rows of a tile are first looked at as one."""
    return min(max(rows // (8 * k), 1), MOST_IN_A_GROUP)


def _merged_on_device(best_RK: torch.Tensor, score_RC: torch.Tensor, first: int) -> torch.Tensor:
    """The best keys (R, K) so far and of a tile, whose gallery rows are `first` and up.

    The k best rows are among the k groups whose best come first: each other group has k rows before all of its own."""
    import torch

    C, k = score_RC.shape[1], best_RK.shape[1]
    group = _group(C, k)
    whole = C // group * group
    score_RGg = score_RC[:, :whole].unflatten(1, (-1, group))
    number_C = torch.arange(C, device=score_RC.device)
    keys_RG = _keys_on_device(score_RGg.amax(2), number_C[: whole // group])
    chosen = keys_RG.topk(min(k, whole // group), dim=1, largest=False, sorted=False).values[:, :, None] & LOW
    fresh = score_RGg.gather(1, chosen.expand(-1, -1, group))
    fresh = _keys_on_device(fresh, chosen * group + number_C[:group] + first).flatten(1)
    rest = _keys_on_device(score_RC[:, whole:], number_C[whole:] + first)
    return torch.cat([best_RK, fresh, rest], 1).topk(k, dim=1, largest=False).values


def _merge(best_QK: Ints, score_CQ: npt.NDArray[np.float32], first: int) -> None:
    """Put the scores of a tile, whose gallery rows are `first` and up, among the best keys so far, in place."""
    C, k = len(score_CQ), best_QK.shape[1]
    group = _group(C, k)
    best_GQ = _best_of_groups(score_CQ, group)
    if len(best_GQ) >= k and (best_QK == NOBODY).all():  # at least k rows reach the k-th best of the groups
        kth_Q = np.partition(best_GQ, len(best_GQ) - k, axis=0)[-k]
        bound_Q = np.nextafter(kth_Q, np.float32(-np.inf))
    else:
        bound_Q = _scores(best_QK[:, -1])
    G, Q = best_GQ.shape
    query, start = np.divmod(np.flatnonzero((best_GQ > bound_Q).T), G)
    row, query = np.add.outer(start * group, np.arange(group)).ravel(), query.repeat(group)
    if G * group > C:
        row, query = row[row < C], query[row < C]
    score = score_CQ.ravel().take(row * Q + query) if score_CQ.flags.c_contiguous else score_CQ[row, query]
    keep = score > bound_Q[query]
    row, query, score = row[keep], query[keep], score[keep]
    count_Q = np.bincount(query, minlength=len(best_QK))
    touched = np.flatnonzero(count_Q)
    if not len(touched):
        return
    count = count_Q[touched]
    pool = np.full((len(touched), k + count.max()), NOBODY)
    pool[:, :k] = best_QK[touched]
    place = np.arange(len(query)) - (np.cumsum(count) - count).repeat(count)
    pool[np.arange(len(touched)).repeat(count), k + place] = _keys(score, first + row)
    pool.sort(axis=1)
    best_QK[touched] = pool[:, :k]


def _best_of_groups(score_CQ: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float32]:
    """The highest of each `group` rows that follow each other; the last group may be smaller."""
    whole = len(score_CQ) // group * group
    if (
        score_CQ.T.flags.c_contiguous and "torch" in sys.modules
    ):  # numpy takes ten times as long over a short axis
        import torch

        grouped = torch.from_numpy(score_CQ.T)[:, :whole].unflatten(1, (-1, group))
        best_GQ = grouped.amax(2).numpy().T
    else:
        best_GQ = score_CQ[:whole].reshape(-1, group, score_CQ.shape[1]).max(1)
    return best_GQ if whole == len(score_CQ) else np.concatenate([best_GQ, score_CQ[whole:].max(0)[None]])


def _keys(score: npt.NDArray[np.float32], row: Ints) -> Ints:
    """Whole numbers that rise as scores fall, and where scores are equal as rows rise: sorted in one go.

    The bits of a positive float32 rise with it; those of a negative one fall, so all but its sign are turned.
    """
    bits = (score + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: minus zero equals zero
    return _packed(bits, row)


def _keys_on_device(score: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """`_keys` of tensors of any shape."""
    import torch

    return _packed((score + 0.0).view(torch.int32).to(torch.int64), row)


def _packed(bits: Whole, row: Whole) -> Whole:
    """Keys of the bits of scores and of rows."""
    return (~(bits ^ ((bits >> 63) & 0x7FFFFFFF)) << 32) | row


def _scores(key: Ints) -> npt.NDArray[np.float32]:
    """The scores in such numbers; that of nobody is below all others."""
    bits = ~(key >> 32)
    score = (bits ^ ((bits >> 63) & 0x7FFFFFFF)).astype(np.int32).view(np.float32)
    return np.where(key == NOBODY, np.float32(-np.inf), score)


def check_k(ks: Sequence[int], n: int) -> None:
    for k in ks:
        if not 1 <= k <= n:
            raise ConfigError(f"k = {k} neighbours of {n} images; needed 1 to {n}")
