"""Time and memory of the miners beside the other ways to mine, in one run.

    python tools/bench_mining.py                              # the table of the README, some ten minutes
    python tools/bench_mining.py --sizes 64 256 --miners hard --measure time
    python tools/bench_mining.py --sizes 8192 16384 32768 --contenders facemetric
    python tools/bench_mining.py --device cuda --sizes 1024 4096 16384 65536 --dim 128 512 --images 4 32

A figure is the median over rounds of forward plus backward; a round gives every contender a turn, in an order
that changes, so that a busy machine slows all of them alike: read the ratios. A turn is one call and, where that
took less than 200 ms, three more, or nine where it took less than 10 ms, which count in its place. A contender
that took longer than --patience seconds, or ran out of memory, is left out of larger sizes. Memory is the peak
above what was there before the call, each contender in a process of its own. `floor` is the matrix product that
the definition cannot do without: 2 B^2 D operations for semihard and hard, 3 B^2 D for all, whose gradient needs
two more halves.

The peers: plain torch as one would write it, the same by torch.compile (`--compiled`, on CUDA always),
pytorch-metric-learning, and open-metric-learning. The latter pins
numpy below 2 and more; these few packages are all that its losses and miners import:

    pip install --target peers --no-deps open-metric-learning
    pip install --target peers gdown omegaconf validators
    PYTHONPATH=peers python tools/bench_mining.py

It measures plain Euclidean distances, and has no semihard miner.
"""

from __future__ import annotations

import os

# Before torch: threads that spin stall each other when shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import itertools
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from facemetric.mining import MINERS
from facemetric.mining.kernels import choice

Loss = Callable[[Tensor, Tensor], Tensor]
Clock = Callable[[], float]
MARGIN = 0.2
MORE_CALLS = {0.01: 9, 0.2: 3}  # seconds of a first call below which so many more are made and count

left_out: dict[str, str] = {}  # library -> why it does not import


def batch(rows: int, dim: int, images: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    embeddings = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator))
    labels = (torch.arange(rows) // images)[torch.randperm(rows, generator=generator)]
    return embeddings.to(device), labels.to(device)


# --- the same definitions in plain torch, as one would write them


def squared(embeddings: Tensor) -> Tensor:
    return 2 - 2 * (embeddings @ embeddings.T)


def plain_all(embeddings: Tensor, labels: Tensor) -> Tensor:
    dist, same = squared(embeddings), labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    loss = (dist[:, :, None] - dist[:, None] + MARGIN).clamp(min=0) * (positive[:, :, None] & ~same[:, None])
    return loss.sum() / (loss > 0).sum().clamp(min=1)


def plain_semihard(embeddings: Tensor, labels: Tensor) -> Tensor:
    dist, same = squared(embeddings), labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    farther = (dist[:, None] > dist[:, :, None]) & ~same[:, None]
    nearest = torch.where(farther, dist[:, None], torch.inf).amin(2)
    farthest = dist.masked_fill(same, -torch.inf).amax(1, keepdim=True)
    d_an = torch.where(nearest.isinf(), farthest, nearest)
    return ((dist - d_an + MARGIN).clamp(min=0) * positive).sum() / positive.sum()


def plain_hard(embeddings: Tensor, labels: Tensor) -> Tensor:
    dist, same = squared(embeddings), labels[:, None] == labels
    d_ap, d_an = (dist * same).amax(1), (dist + 1e9 * same).amin(1)
    return (d_ap - d_an + MARGIN).clamp(min=0).mean()


def plain_cdist_hard(embeddings: Tensor, labels: Tensor) -> Tensor:
    dist, same = torch.cdist(embeddings, embeddings), labels[:, None] == labels
    d_ap, d_an = (dist * same).amax(1), dist.masked_fill(same, torch.inf).amin(1)
    return (d_ap - d_an + MARGIN).clamp(min=0).mean()


def contenders(miner: str, *, compiled: bool = False, picking: str = "float32") -> dict[str, Loss]:
    """Ours first; libraries that are not installed are left out, and `left_out` says why."""

    def ours(emb: Tensor, labels: Tensor) -> Tensor:
        with choice.picking(picking):
            return MINERS[miner](emb, labels, margin=MARGIN).loss

    found: dict[str, Loss] = {"facemetric": ours}
    plain = {"all": plain_all, "semihard": plain_semihard, "hard": plain_hard}
    found["plain torch"] = plain[miner]
    if compiled:
        found["compiled"] = torch.compile(plain[miner])
    if miner == "hard":
        found["plain cdist"] = plain_cdist_hard
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError as error:
        left_out["pytorch-metric-learning"] = str(error)
    else:
        distance = distances.LpDistance(normalize_embeddings=False, power=2)
        loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance)
        if miner == "all":
            found["pml"] = loss
        elif miner == "hard":
            pick_hard = miners.BatchHardMiner(distance=distance)
            found["pml"] = lambda e, y: loss(e, y, pick_hard(e, y))
        else:  # every negative inside the margin: not the same definition, the nearest there is
            pick = miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=distance)
            found["pml"] = lambda e, y: loss(e, y, pick(e, y))
    try:
        from oml.losses.triplet import TripletLossWithMiner
        from oml.miners.inbatch_all_tri import AllTripletsMiner
        from oml.miners.inbatch_hard_tri import HardTripletsMiner
    except ImportError as error:
        left_out["open-metric-learning"] = str(error)
    else:
        if miner != "semihard":  # it has none
            oml = TripletLossWithMiner(MARGIN, HardTripletsMiner() if miner == "hard" else AllTripletsMiner())
            found["oml"] = oml
    return found


def chosen(miner: str, options: argparse.Namespace) -> dict[str, Loss]:
    """The contenders that the options ask for."""
    found = contenders(miner, compiled=options.compiled, picking=options.picking)
    return {
        name: loss for name, loss in found.items() if options.contenders is None or name in options.contenders
    }


# --- measuring


def once(loss: Loss, embeddings: Tensor, labels: Tensor, clock: Clock = time.perf_counter) -> float:
    rows = embeddings.clone().requires_grad_()
    wait(rows)
    start = clock()
    loss(rows, labels).backward()
    wait(rows)
    return clock() - start


def turn(loss: Loss, embeddings: Tensor, labels: Tensor, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of one call, or of warm ones after it where it is short."""
    first = once(loss, embeddings, labels, clock)
    more = next((count for limit, count in MORE_CALLS.items() if first < limit), 0)
    return [once(loss, embeddings, labels, clock) for _ in range(more)] or [first]


def wait(rows: Tensor) -> None:
    if rows.device.type == "cuda":
        torch.cuda.synchronize()


def floor(miner: str, embeddings: Tensor) -> float:
    """Seconds for the product alone, in row blocks of a tile's size."""
    share = 1.5 if miner == "all" else 1.0
    step = max(2**20 // len(embeddings), 256) if embeddings.device.type == "cpu" else 8192
    out = embeddings.new_empty(min(step, len(embeddings)), len(embeddings))
    wait(embeddings)
    start = time.perf_counter()
    for top in range(0, len(embeddings), step):
        rows = embeddings[top : top + step]
        torch.mm(rows, embeddings.T, out=out[: len(rows)])
    wait(embeddings)
    return (time.perf_counter() - start) * share


def peak_mib(miner: str, name: str, rows: int, options: argparse.Namespace) -> float:
    """MiB above what the process held when the inputs were there and a small batch had been mined."""
    dim, images, device = options.dim, options.images, options.device
    loss = chosen(miner, options)[name]
    once(loss, *batch(64, dim, images, device))
    embeddings, labels = batch(rows, dim, images, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(loss, embeddings, labels)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with open("/proc/self/clear_refs", "w") as file:  # 5 sets the peak back to what is held now
        file.write("5")
    before = resident("VmHWM")
    once(loss, embeddings, labels)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """KiB, of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def memory(miner: str, name: str, rows: int, options: argparse.Namespace) -> str:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(send, miner, name, rows, options))
    process.start()
    send.close()
    try:
        figure = receive.recv()
    except EOFError:  # killed: no memory left
        figure = None
    process.join()
    return "out" if figure is None else f"{figure:.0f}"


def _report(send: Connection, miner: str, name: str, rows: int, options: argparse.Namespace) -> None:
    limit_memory(options)
    try:
        send.send(peak_mib(miner, name, rows, options))
    except (RuntimeError, MemoryError):
        send.send(None)


def limit_memory(options: argparse.Namespace) -> None:
    """A peer that wants more fails, instead of taking the machine with it."""
    if options.device == "cpu":
        limit = int(options.memory_limit * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def times(miner: str, rows: int, options: argparse.Namespace, given_up: set[str]) -> dict[str, float]:
    """Median seconds of each contender and of the floor."""
    embeddings, labels = batch(rows, options.dim, options.images, options.device)
    runs = {name: loss for name, loss in chosen(miner, options).items() if name not in given_up}
    taken: dict[str, list[float]] = {name: [] for name in [*runs, "floor"]}
    # What is compiled for a size on a GPU, ours and torch.compile's, is compiled before the rounds.
    for round_ in range(-1 if options.device == "cuda" else 0, options.rounds + 1):
        if round_ <= 0:
            started = time.perf_counter()
        if round_ > 2 and time.perf_counter() - started > options.patience * 2:
            break
        order = list(runs.items())
        random.Random(round_).shuffle(order)  # who follows whom decides what the caches hold
        for name, loss in order:
            try:
                seconds = turn(loss, embeddings, labels)
            except (RuntimeError, MemoryError):
                if name == "facemetric":
                    raise
                del runs[name], taken[name]
                given_up.add(name)
                continue
            if round_ < 0:
                continue
            if round_ or seconds[0] > options.patience:  # the first round warms up
                taken[name] += seconds
            if seconds[0] > options.patience:
                del runs[name]
                given_up.add(name)
        taken["floor"].append(floor(miner, embeddings))
    return {name: statistics.median(found) for name, found in taken.items() if found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512, 1024, 4096])
    parser.add_argument(
        "--miners", nargs="+", choices=["all", "semihard", "hard"], default=["all", "semihard", "hard"]
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dim", type=int, nargs="+", default=[128])
    parser.add_argument("--images", type=int, nargs="+", default=[4], help="images an identity")
    parser.add_argument("--compiled", action="store_true", help="plain torch by torch.compile too")
    parser.add_argument(
        "--picking", choices=list(choice.PRECISIONS), default="float32", help="of ours, on CUDA"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds for one call")
    parser.add_argument(
        "--memory-limit", type=float, default=12.0, help="GiB of address space for one contender"
    )
    parser.add_argument("--measure", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--contenders", nargs="+", help="measure these alone (default: all)")
    options = parser.parse_args()
    options.compiled = options.compiled or options.device == "cuda"
    limit_memory(options)
    contenders(options.miners[0])
    for library, reason in left_out.items():
        print(f"{library} is left out: {reason}")
    for dim, images in itertools.product(options.dim, options.images):
        tables(argparse.Namespace(**(vars(options) | {"dim": dim, "images": images})))


def tables(options: argparse.Namespace) -> None:
    """A table for each miner."""
    print(
        f"\ntorch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, D = {options.dim}, "
        f"{options.images} images an identity, picked in {options.picking}; ms forward + backward, medians over "
        f"{options.rounds} rounds"
    )
    for miner in options.miners:
        names = list(chosen(miner, options))
        head = ["B"]
        if "time" in options.measure:
            head += [*names, "product", "best peer / ours", "ours / floor"]
        if "memory" in options.measure:
            head += [f"MiB {name}" for name in names]
        print(f"\n**{miner}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
        given_up: set[str] = set()
        for rows in options.sizes:
            line = [str(rows)]
            if "time" in options.measure:
                line += time_cells(names, times(miner, rows, options, given_up))
            if "memory" in options.measure:
                line += [memory(miner, n, rows, options) if n not in given_up else "-" for n in names]
            print(f"| {' | '.join(line)} |", flush=True)


def time_cells(names: list[str], found: dict[str, float]) -> list[str]:
    cells = [f"{found[name] * 1e3:.2f}" if name in found else "-" for name in names]
    cells.append(f"{found['floor'] * 1e3:.2f}")
    ours = found.get("facemetric")
    peers = [seconds for name, seconds in found.items() if name not in ("facemetric", "floor")]
    ratio = f"{min(peers) / ours:.2f}" if peers and ours else "-"
    return [*cells, ratio, f"{ours / found['floor']:.2f}" if ours else "-"]


if __name__ == "__main__":
    main()
