"""What a step changes where its miner picks in TF32 or bfloat16: the picks, the loss and the gradient.

    python tools/compare_picking.py                                  # drawn rows, emulated on the CPU
    python tools/compare_picking.py --tables faces=lfw.npz,fiw.npz   # and batches of embeddings (`facemetric embed`)
    python tools/compare_picking.py --device cuda                    # by the kernels themselves

On CUDA the fused kernels pick (`choice.picking`). On a CPU they are emulated: rows less their mean, rounded as the
kernels round them, multiplied and added up in float32. Whatever picks, the triplets are paid in float32 here as there.
batch-all stays in float32 (it weighs every distance): what rounding would change of it is emulated only.

Columns: `other` is the share of picks (an anchor of hard, else an anchor and its positive; of `all` the active
triplets, those that come and those that go) which float32 does not make, `wrong` the share that breaks the miner's
rule by distances in float64: hard, not the nearest negative; semihard, not farther than the positive where one is; all,
not within the margin. `moved` is the mean size of the change of the picked negative's squared distance over the other
picks, `loss` the change of the loss in parts of it, `1 - cos` how far the gradient turns. Means over --batches.

Rows that are drawn: `random` unit vectors, as pairs of an untrained network are in the worst case; `narrow`, the same
within a cone (all cosines 0.99); `people`, rows around a centre for each identity.

Shapes: B rows, D embedding, K positives of an anchor (one for hard), T triplets, R anchors at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facemetric.evaluation.table import EmbeddingTable
from facemetric.mining import MINERS, triplet_losses
from facemetric.mining.kernels import choice
from facemetric.mining.kernels.common import slack
from facemetric.mining.kernels.settle import UNSURE

MARGIN = 0.2
MINED = ("hard", "semihard", "distance-weighted", "all")
ROWS = 256  # anchors whose triplets with every negative are held at once


def rounded(rows: Tensor, precision: str) -> Tensor:
    """float32 rows as an operand of a product: to the nearest of so many bits, ties to even for bfloat16, away from 0
    for TF32; "tf32-cut" drops the bits instead, as a tensor core does with those that it is handed."""
    if precision == "bfloat16":
        return rows.bfloat16().float()
    if precision == "float32":
        return rows
    half = 0 if precision == "tf32-cut" else 1 << 12
    return (rows.contiguous().view(torch.int32) + half).bitwise_and_(-(1 << 13)).view(torch.float32)


# --- batches

Batch = tuple[Tensor, Tensor]


def drawn(kind: str, rows: int, images: int, dim: int, generator: torch.Generator) -> Batch:
    """Unit rows (B, D) and labels (B,)."""
    labels = (torch.arange(rows) // images)[torch.randperm(rows, generator=generator)]
    own = torch.randn(rows, dim, generator=generator)
    if kind == "narrow":
        own = torch.randn(1, dim, generator=generator) + 0.1 * own
    if kind == "people":
        own = torch.randn(rows, dim, generator=generator)[labels] + 1.5 * own
    return functional.normalize(own, dim=1), labels


def from_table(table: EmbeddingTable, rows: int, images: int, generator: torch.Generator) -> Batch:
    """`images` rows of each of some identities that have them."""
    names, who_N, count = np.unique(table.identities, return_inverse=True, return_counts=True)
    able = np.flatnonzero(count >= images)
    if len(able) * images < rows:
        raise SystemExit(
            f"{len(able)} of {len(names)} identities have {images} images, a batch of {rows} needs {rows // images}"
        )
    chosen = able[torch.randperm(len(able), generator=generator)[: rows // images].numpy()]
    at = []
    for identity in chosen:
        own = np.flatnonzero(who_N == identity)
        at.append(own[torch.randperm(len(own), generator=generator)[:images].numpy()])
    emb = functional.normalize(
        torch.from_numpy(table.embeddings[np.concatenate(at)].astype(np.float32)), dim=1
    )
    return emb, torch.arange(rows // images).repeat_interleave(images)


def read(files: str) -> EmbeddingTable:
    """Tables as one; an identity of one of them is nobody of another."""
    tables = [EmbeddingTable.load(Path(file)) for file in files.split(",")]
    return EmbeddingTable(
        np.concatenate([table.embeddings for table in tables]),
        np.concatenate([np.char.add(f"{i}/", t.identities.astype(str)) for i, t in enumerate(tables)]),
        np.concatenate([table.paths.astype(str) for table in tables]),
    )


# --- who picks


def positives(labels_B: Tensor) -> Tensor:
    """(B, K) rows of each anchor's positives, in rising order; every identity has as many images."""
    same_BB = labels_B[:, None] == labels_B
    return same_BB.fill_diagonal_(False).nonzero()[:, 1].view(len(labels_B), -1)


def by_miner(miner: str, batch: Batch, precision: str) -> Tensor:
    """(T, 3) triplets of our miner, by anchor and positive; the seed of the draws is always the same."""
    seed = {"seed": 0} if miner == "distance-weighted" else {}
    with choice.picking(precision):
        triplets_T3 = MINERS[miner](*batch, margin=MARGIN, **seed).triplets
    return triplets_T3[(triplets_T3[:, 0] * len(batch[0]) + triplets_T3[:, 1]).argsort()]


class Emulated:
    """All squared distances of a batch as the kernels find them, and the picks by them."""

    def __init__(self, batch: Batch, precision: str) -> None:
        self.rows_BD, self.labels_B = batch
        self.p_BK = positives(self.labels_B)
        centred_BD = self.rows_BD - self.rows_BD.mean(0)
        self.square_B = torch.linalg.vecdot(centred_BD, centred_BD)
        operand_BD = rounded(centred_BD, precision)
        self.dist_BB = (self.square_B[:, None] + self.square_B) - 2 * (operand_BD @ operand_BD.T)
        self.dist_BB.masked_fill_(self.labels_B[:, None] == self.labels_B, torch.inf)
        self.d_ap_BK = (self.rows_BD[:, None] - self.rows_BD[self.p_BK]).square_().sum(2)

    def triplets(self, miner: str) -> Tensor:
        """(T, 3), by anchor and positive."""
        p_BK, n_BK = self.p_BK, getattr(self, miner.replace("-", "_"))()
        if miner == "hard":
            p_BK = p_BK.gather(1, self.d_ap_BK.argmax(1, keepdim=True))
        a_BK = torch.arange(len(p_BK))[:, None].expand_as(p_BK)
        return torch.stack([a_BK, p_BK, n_BK], 2).view(-1, 3)

    def hard(self) -> Tensor:
        return self.dist_BB.argmin(1, keepdim=True)

    def semihard(self) -> Tensor:
        roundings_B = UNSURE * slack(self.square_B, self.square_B, self.rows_BD.shape[1])
        dist_BB, column_BB = self.dist_BB.sort(1)
        place_BK = torch.searchsorted(dist_BB, self.d_ap_BK + roundings_B[:, None], right=True)
        last = len(dist_BB) - self.p_BK.shape[1] - 2
        return column_BB.gather(1, place_BK.clamp_(max=last))

    def distance_weighted(self) -> Tensor:
        D = self.rows_BD.shape[1]
        dist_BB = self.dist_BB.clamp(0.25, 2.0)
        log_weight_BB = dist_BB.log() * ((2 - D) / 2) + torch.log1p(-dist_BB / 4) * ((3 - D) / 2)
        log_weight_BB.masked_fill_(self.dist_BB.isinf(), -torch.inf)
        below_BB = log_weight_BB.double().softmax(1).cumsum_(1)
        draw_BK = torch.rand(self.p_BK.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return torch.searchsorted(below_BB, draw_BK * below_BB[:, -1:], right=True)


def picks(miner: str, batch: Batch, precision: str) -> Tensor:
    """(T, 3) triplets, by anchor and positive: by the kernels where they serve, else emulated."""
    rows_BD = batch[0]
    exact = precision == "float32" and miner != "distance-weighted"  # its draws are those of the emulation
    if exact or choice.fused(rows_BD.device, rows_BD.dtype):
        return by_miner(miner, batch, precision)
    return Emulated(batch, precision).triplets(miner)


# --- what it changes


class Change(NamedTuple):
    """Of a batch, against float32; a line of the table."""

    other: float
    wrong: float
    moved: float
    loss: float
    turn: float


def paid(rows_BD: Tensor, triplets_T3: Tensor) -> tuple[float, Tensor]:
    """The loss of triplets, and its gradient."""
    rows_BD = rows_BD.clone().requires_grad_()
    loss = triplet_losses(rows_BD, triplets_T3, margin=MARGIN).mean()
    loss.backward()
    assert rows_BD.grad is not None
    return float(loss.detach()), rows_BD.grad


def change_of_picks(miner: str, batch: Batch, known_T3: Tensor, precision: str) -> Change:
    rows_BD = batch[0]
    found_T3 = picks(miner, batch, precision)
    assert torch.equal(known_T3[:, :2], found_T3[:, :2])
    other_T = known_T3[:, 2] != found_T3[:, 2]
    wide_BD = rows_BD.double()
    d_ap_T, before_T = (squared(wide_BD, known_T3[:, [0, end]]) for end in (1, 2))
    after_T = squared(wide_BD, found_T3[:, ::2])
    if miner == "hard":
        wrong_T = after_T > before_T
    elif miner == "semihard":
        wrong_T = (after_T <= d_ap_T) & (before_T > d_ap_T)
    else:
        wrong_T = torch.zeros_like(other_T)
    (loss, grad_BD), (other_loss, other_grad_BD) = (paid(rows_BD, t) for t in (known_T3, found_T3))
    moved = float((after_T - before_T)[other_T].abs().mean()) if bool(other_T.any()) else 0.0
    shares = float(other_T.double().mean()), float(wrong_T.double().mean())
    return Change(*shares, moved, relative(loss, other_loss), turn(grad_BD, other_grad_BD))


def squared(rows_BD: Tensor, pairs_T2: Tensor) -> Tensor:
    """Squared distances (T,) by direct difference, some at a time."""
    return torch.cat(
        [(rows_BD[a] - rows_BD[b]).square_().sum(1) for a, b in (p.T for p in pairs_T2.split(8192))]
    )


def relative(before: float, after: float) -> float:
    """The change of a loss in parts of it; of a loss of 0 the change itself."""
    return (after - before) / (before or 1.0)


def turn(grad_BD: Tensor, other_BD: Tensor) -> float:
    """1 - cos of the angle between two gradients."""
    a, b = (functional.normalize(g.double().flatten(), dim=0) for g in (grad_BD, other_BD))
    return float((a - b).square().sum() / 2)


def change_of_all(batch: Batch, precision: str) -> Change:
    """batch-all whose active triplets are told by rounded distances, and paid in float64."""
    known, found = (Emulated(batch, p) for p in ("float32", precision))
    came = went = total = 0
    sums = []
    for at in (known, found):
        sums.append([torch.zeros_like(at.d_ap_BK), torch.zeros_like(at.dist_BB)])
    for top in range(0, len(known.dist_BB), ROWS):
        rows = slice(top, top + ROWS)
        edge_RK1 = (known.d_ap_BK[rows] + MARGIN)[:, :, None]
        active_2RKB = [at.dist_BB[rows, None] < edge_RK1 for at in (known, found)]
        came += int((active_2RKB[1] & ~active_2RKB[0]).sum())
        went += int((active_2RKB[0] & ~active_2RKB[1]).sum())
        total += int(active_2RKB[0].sum())
        for (of_positive_BK, of_pair_BB), active_RKB in zip(sums, active_2RKB, strict=True):
            of_positive_BK[rows], of_pair_BB[rows] = active_RKB.sum(2), active_RKB.sum(1)
    (loss, grad_BD), (other_loss, other_grad_BD) = (paid_by_count(batch, known.p_BK, *each) for each in sums)
    count = max(total, 1)
    return Change(
        (came + went) / count, came / count, 0.0, relative(loss, other_loss), turn(grad_BD, other_grad_BD)
    )


def paid_by_count(
    batch: Batch, p_BK: Tensor, of_positive_BK: Tensor, of_pair_BB: Tensor
) -> tuple[float, Tensor]:
    """Mean loss of the active triplets of which so many have a positive and so many a negative, and its gradient."""
    rows_BD = batch[0].double().requires_grad_()
    square_B = torch.linalg.vecdot(rows_BD, rows_BD)
    dist_BB = (square_B[:, None] + square_B) - 2 * (rows_BD @ rows_BD.T)
    total = of_pair_BB.sum(dtype=torch.float64).clamp(min=1)
    loss = (dist_BB.gather(1, p_BK) * of_positive_BK).sum() - (dist_BB * of_pair_BB).sum()
    loss = loss / total + MARGIN
    loss.backward()
    assert rows_BD.grad is not None
    return float(loss.detach()), rows_BD.grad


def changes(miner: str, batches: list[Batch], precisions: list[str]) -> dict[str, Change]:
    """For each precision the mean over batches."""
    found: dict[str, list[Change]] = {precision: [] for precision in precisions}
    for batch in batches:
        if miner == "all":
            for precision in precisions:
                found[precision].append(change_of_all(batch, precision))
            continue
        known_T3 = picks(miner, batch, "float32")
        for precision in precisions:
            found[precision].append(change_of_picks(miner, batch, known_T3, precision))
    return {name: Change(*np.mean(each, 0).tolist()) for name, each in found.items()}


def line(name: str, size: int, images: int, miner: str, precision: str, change: Change) -> str:
    shares = f"{change.other:.3%} | {change.wrong:.3%} | {change.moved:.1e}"
    return f"| {name} | {size} | {images} | {miner} | {precision} | {shares} | {change.loss:+.1e} | {change.turn:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--images", type=int, nargs="+", default=[4, 32], help="images an identity")
    parser.add_argument("--dim", type=int, default=128, help="of drawn rows")
    parser.add_argument("--miners", nargs="+", choices=MINED, default=MINED)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="*", choices=["random", "narrow", "people"], default=["random", "narrow", "people"]
    )
    parser.add_argument(
        "--tables", nargs="+", default=[], metavar="NAME=FILE[,FILE]", help=".npz, .parquet or .csv"
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=["tf32", "tf32-cut", "bfloat16"], default=["tf32", "bfloat16"]
    )
    options = parser.parse_args()
    if uneven := [(size, images) for size in options.sizes for images in options.images if size % images]:
        parser.error(f"a batch of {uneven[0][0]} is not a multiple of {uneven[0][1]} images an identity")
    tables = {name: read(files) for name, _, files in (each.partition("=") for each in options.tables)}
    print("| rows | B | images | miner | picked in | other | wrong | moved | loss | 1 - cos |")
    print("|" + "---|" * 10)
    for name in [*options.rows, *tables]:
        for size, images in ((size, images) for size in options.sizes for images in options.images):
            generator = torch.Generator().manual_seed(size + images)
            batches = []
            for _ in range(options.batches):
                emb, labels = (
                    from_table(tables[name], size, images, generator)
                    if name in tables
                    else drawn(name, size, images, options.dim, generator)
                )
                batches.append((emb.to(options.device), labels.to(options.device)))
            for miner in options.miners:
                if miner == "all" and options.device == "cuda":
                    continue
                for precision, change in changes(miner, batches, options.precisions).items():
                    print(line(name, size, images, miner, precision, change), flush=True)


if __name__ == "__main__":
    main()
