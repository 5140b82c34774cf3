"""Time and memory of the losses of pairs and proxies beside pytorch-metric-learning, in one run.

    python tools/bench_losses.py                              # B = 512, 1024, 4096, D = 128
    python tools/bench_losses.py --sizes 1024 --losses supcon circle --measure time
    python tools/bench_losses.py --device cuda
    python tools/bench_losses.py --sizes 8192 32768 --contenders facemetric --measure memory
    OMP_NUM_THREADS=1 python tools/bench_losses.py --sizes 1024 --measure time --cpu    # where others use the cores

A figure is the median over rounds of forward plus backward; a round gives each a turn, in an order that changes, so
that a busy machine slows them alike: read the ratios. With --cpu it is the least CPU time of all threads. `products`
are the matrix products alone that ours cannot do without: the cosines once, and the gradient of both sides. Memory is
the peak above what was there before the call, each in a process of its own. The definitions agree
(tests/mining/test_pairwise.py compares their digits), but for contrastive, whose terms are squares in ours, as in its
paper, and plain distances in the peer's.
"""

from __future__ import annotations

import os

# Before torch: threads that spin stall each other when shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import multiprocessing
import random
import statistics
import time
from multiprocessing.connection import Connection

import torch
from bench_mining import Loss, batch, limit_memory, once, resident, turn
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor

from facemetric.mining import ProxyAnchor, circle, contrastive, multi_similarity, supcon
from facemetric.mining.kernels.cosines import Cosines
from facemetric.mining.mine import CPU_MINING_MIB
from facemetric.mining.order import sort_runs

LOSSES = ("contrastive", "supcon", "multi-similarity", "circle", "proxy-anchor")
DIM = 128


def contenders(name: str, rows: int, images: int, device: str) -> dict[str, Loss]:
    """Ours and the peer's of the same definition and options."""
    if name == "proxy-anchor":
        sizes = {"identities": rows // images, "embedding_size": DIM}
        torch.manual_seed(0)
        ours = ProxyAnchor(**sizes).to(device)
        theirs = losses.ProxyAnchorLoss(rows // images, DIM).to(device)
        return {"facemetric": lambda e, y: ours(e, y).loss, "pml": theirs}
    if name == "multi-similarity":
        loss, mine = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
        return {
            "facemetric": lambda e, y: multi_similarity(e, y).loss,
            "pml": lambda e, y: loss(e, y, mine(e, y)),
        }
    if name == "circle":
        return {
            "facemetric": lambda e, y: circle(e, y, margin=0.25, gamma=80.0).loss,
            "pml": losses.CircleLoss(m=0.25, gamma=80),
        }
    if name == "supcon":
        return {"facemetric": lambda e, y: supcon(e, y).loss, "pml": losses.SupConLoss()}
    far = losses.ContrastiveLoss(neg_margin=1.3, distance=distances.LpDistance())
    return {"facemetric": lambda e, y: contrastive(e, y, margin=1.3).loss, "pml": far}


def products(name: str, rows: int, images: int, device: str) -> Loss:
    """The matrix products of a loss of ours, each in the tiles that it takes, without what is done to a tile."""
    if name == "proxy-anchor":
        proxies_CD = torch.randn(rows // images, DIM, device=device)

        def of_proxies(emb_BD: Tensor, _: Tensor) -> Tensor:
            emb_BD = emb_BD.detach()
            score_CB = proxies_CD @ emb_BD.T
            return ((score_CB @ emb_BD).sum() + (score_CB.T @ proxies_CD).sum()).requires_grad_()

        return of_proxies

    def of_pairs(emb_BD: Tensor, labels_B: Tensor) -> Tensor:
        cos = Cosines(emb_BD.detach(), sort_runs(labels_B, None), CPU_MINING_MIB)
        for tile in cos.walk(1.0, 0.0, twice=False):
            cos.add(tile.rows, tile.cols, tile.values)
        return cos.gradient().sum().requires_grad_()

    return of_pairs


def times(name: str, rows: int, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each, or its least CPU time."""
    embeddings, labels = batch(rows, DIM, options.images, options.device)
    made = contenders(name, rows, options.images, options.device)
    runs = {who: loss for who, loss in made.items() if who in options.contenders}
    runs["products"] = products(name, rows, options.images, options.device)
    clock = time.process_time if options.cpu else time.perf_counter
    taken: dict[str, list[float]] = {who: [] for who in runs}
    for round_ in range(options.rounds + 1):
        order = list(runs.items())
        random.Random(round_).shuffle(order)
        for who, loss in order:
            try:
                seconds = turn(loss, embeddings, labels, clock)
            except (RuntimeError, MemoryError):
                if who != "pml":
                    raise
                del runs[who], taken[who]  # too little memory
                continue
            if round_:  # the first round warms up
                taken[who] += seconds
    return {who: (min if options.cpu else statistics.median)(found) for who, found in taken.items()}


def memory(name: str, who: str, rows: int, options: argparse.Namespace) -> float | None:
    """Peak MiB of a call in a process of its own; None where there was not enough."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(send, name, who, rows, options))
    process.start()
    send.close()
    try:
        figure: float | None = receive.recv()
    except EOFError:  # killed: no memory left
        figure = None
    process.join()
    return figure


def _report(send: Connection, name: str, who: str, rows: int, options: argparse.Namespace) -> None:
    limit_memory(options)
    try:
        once(
            contenders(name, 64, options.images, options.device)[who],
            *batch(64, DIM, options.images, options.device),
        )
        loss = contenders(name, rows, options.images, options.device)[who]
        embeddings, labels = batch(rows, DIM, options.images, options.device)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            once(loss, embeddings, labels)
            send.send((torch.cuda.max_memory_allocated() - held) / 2**20)
            return
        with open("/proc/self/clear_refs", "w") as file:  # 5 sets the peak back to what is held now
            file.write("5")
        before = resident("VmHWM")
        once(loss, embeddings, labels)
        send.send((resident("VmHWM") - before) / 1024)
    except (RuntimeError, MemoryError):
        send.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument(
        "--contenders", nargs="+", choices=["facemetric", "pml"], default=["facemetric", "pml"]
    )
    parser.add_argument("--measure", choices=["time", "memory", "both"], default="both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--images", type=int, default=4, help="images an identity")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="CPU time, where others use the same cores")
    parser.add_argument(
        "--memory-limit", type=float, default=16.0, help="GiB of a process that measures memory"
    )
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, "
        f"D = {DIM}, K = {options.images}"
    )
    print(
        f"{'loss':17} {'B':>6} {'ms: facemetric':>15} {'pml':>9} {'ratio':>6} {'products':>9} {'MiB: facemetric':>16} "
        f"{'pml':>7}"
    )
    for name in options.losses:
        for rows in options.sizes:
            found = times(name, rows, options) if options.measure != "memory" else {}
            who_first = ("facemetric", "pml", "products")
            cells = [f"{found[who] * 1e3:.1f}" if who in found else "-" for who in who_first]
            ratio = f"{found['pml'] / found['facemetric']:.1f}" if len(found) == 3 else "-"
            peaks = ["-", "-"]
            if options.measure != "time":
                peak = {who: memory(name, who, rows, options) for who in options.contenders}
                peaks = [
                    "-" if who not in peak else "out" if peak[who] is None else f"{peak[who]:.0f}"
                    for who in ("facemetric", "pml")
                ]
            print(
                f"{name:17} {rows:6} {cells[0]:>15} {cells[1]:>9} {ratio:>6} {cells[2]:>9} {peaks[0]:>16} "
                f"{peaks[1]:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
