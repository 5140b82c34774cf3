"""Speed and memory of the evaluation against its targets: `python tools/bench_eval.py`.

Prints one line a measure. Ours and the peer, or the floor, take turns in one process, since the machine may be
busy, and the best of each counts; each line has a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads distort a shared machine

import numpy as np
import torch

from facemetric.config import EvalConfig, make_config
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.identification import identification_intervals, identify
from facemetric.evaluation.intervals.all_pairs import all_pairs_intervals
from facemetric.evaluation.intervals.listed import verification_intervals
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.templates import TemplateRows, pool_templates
from facemetric.evaluation.verification import verify_pairs
from facemetric.mining.tiles import product_tiles

D = 128
# Images: the most MiB beyond what was there before, the most time as a multiple of the matrix product.
LIMITS: dict[int, tuple[int, float | None]] = {10_000: (200, None), 30_000: (300, 2.5), 100_000: (600, None)}
Clock = Callable[[], float]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(work: Callable[[], object], clock: Clock, repeats: int = 1) -> float:
    took = []
    for _ in range(repeats):
        start = clock()
        work()
        took.append(clock() - start)
    return min(took)


def in_turn(
    one: Callable[[], object], other: Callable[[], object], clock: Clock, repeats: int
) -> tuple[float, float]:
    """The best time of each, run in turn."""
    took = [(seconds(one, clock), seconds(other, clock)) for _ in range(repeats)]
    return min(a for a, _ in took), min(b for _, b in took)


def tell(what: str, figures: str, *targets: tuple[str, bool]) -> None:
    """A line of the table; each target with whether it was met."""
    judged = ", ".join(f"{target}: {'met' if met else 'MISSED'}" for target, met in targets)
    print(f"{what} | {figures} | {judged or '-'}", flush=True)


def faces(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings (images, D) of about seven images a person, and the persons."""
    rng = np.random.default_rng(seed)
    person = rng.integers(max(2, images // 7), size=images)
    centre = rng.standard_normal((person.max() + 1, D), dtype=np.float32)
    emb = centre[person] + 1.5 * rng.standard_normal((images, D), dtype=np.float32)
    return emb / np.linalg.norm(emb, axis=1, keepdims=True), person


def matmul_floor(emb: np.ndarray, device: torch.device | None) -> None:
    for _ in product_tiles(torch.from_numpy(emb).to(device or "cpu"), triangle=True):
        pass
    if device is not None:
        torch.cuda.synchronize()


def bench_all_pairs(images: int, device: torch.device | None, clock: Clock) -> None:
    """Figures, on a device where one is given, then their intervals, against the product that both must form."""
    emb, person = faces(images)
    found = verify_all_pairs(emb[:500], person[:500], device=device)
    all_pairs_intervals(emb[:500], person[:500], found, draws=100, device=device)
    before = peak_mib()
    took, floor = in_turn(
        lambda: verify_all_pairs(emb, person, device=device),
        lambda: matmul_floor(emb, device),
        clock,
        3 if images <= 30_000 else 1,
    )
    memory = peak_mib() - before
    found = verify_all_pairs(emb, person, device=device)
    intervals = seconds(lambda: all_pairs_intervals(emb, person, found, device=device), clock)
    figures = (
        f"{took:.2f} s, {took / floor:.2f} x the matrix product of {floor:.2f} s, {memory:.0f} MiB; "
        f"with intervals {took + intervals:.2f} s, {peak_mib() - before:.0f} MiB"
    )
    most_mib, most_times = LIMITS.get(images, (0, None))
    targets = [(f"<= {most_mib} MiB", memory <= most_mib)] if most_mib else []
    if most_times is not None:
        targets.append((f"<= {most_times} x the product", took <= most_times * floor))
    tell(f"all pairs of {images:,} x {D} on {device or 'the CPU'}", figures, *targets)


def bench_scikit_learn(images: int, clock: Clock) -> None:
    """scikit-learn's ROC of the explicit list, whose scores it is given; ours forms them as well."""
    from sklearn.metrics import roc_curve

    emb, person = faces(images)
    i, j = np.triu_indices(images, 1)
    score = np.concatenate(
        [(emb[a] * emb[b]).sum(1) for a, b in zip(np.array_split(i, 99), np.array_split(j, 99), strict=True)]
    )
    same = person[i] == person[j]
    del i, j
    ours, theirs = in_turn(
        lambda: verify_all_pairs(emb, person), lambda: roc_curve(same, score), clock, repeats=2
    )
    figures = f"scikit-learn's roc_curve {theirs:.2f} s, ours {ours:.2f} s: {theirs / ours:.1f} x"
    tell(f"all pairs of {images:,} as a list", figures, (">= 10 x", theirs >= 10 * ours))


def bench_listed(clock: Clock) -> None:
    rng = np.random.default_rng(0)
    same = np.arange(6000) % 600 < 300
    score = rng.normal(same.astype(float), 0.5)
    person = np.arange(6000), np.where(same, np.arange(6000), np.arange(6000) + 6000)
    fold = np.arange(6000) // 600
    figures = seconds(lambda: verify_pairs(score, same, fold=fold), clock, 3)
    bounds = seconds(lambda: verification_intervals(score, same, person), clock, 2)
    tell("6,000 pairs, ten folds", f"{1000 * figures:.1f} ms; intervals of 1,000 draws {bounds:.2f} s")


def bench_neighbours_on(device: torch.device, images: int, probes: int, clock: Clock) -> None:
    """Neighbours by tiles on a device against one matrix there and torch's topk of it."""
    gallery_ND, probe_QD = faces(images)[0], faces(probes, seed=1)[0]

    def dense() -> None:
        one, other = (torch.from_numpy(x).to(device) for x in (probe_QD, gallery_ND))
        (one @ other.T).topk(5).indices.cpu()

    nearest(probe_QD[:100], gallery_ND, 5, device=device)
    ours, theirs = in_turn(lambda: nearest(probe_QD, gallery_ND, 5, device=device), dense, clock, 5)
    tell(
        f"5 nearest of {images:,} for {probes:,} on {device}",
        f"{ours:.3f} s, one product and topk {theirs:.3f} s: {ours / theirs:.2f} x",
    )


def bench_neighbours(images: int, probes: int, clock: Clock) -> None:
    gallery, _ = faces(images)
    probe, _ = faces(probes, seed=1)
    what = f"5 nearest of {images:,} for {probes:,}"
    try:
        import faiss
    except ImportError:
        ours = seconds(lambda: nearest(probe, gallery, 5), clock, 5)
        tell(what, f"{ours:.2f} s; faiss is not installed to compare (pip install faiss-cpu)")
        return
    index = faiss.IndexFlatIP(D)
    index.add(gallery)
    assert (index.search(probe, 5)[1] == nearest(probe, gallery, 5).rows).mean() > 0.999
    ours, theirs = in_turn(lambda: nearest(probe, gallery, 5), lambda: index.search(probe, 5), clock, 7)
    figures = f"{ours:.2f} s, faiss {theirs:.2f} s: {ours / theirs:.2f} x"
    tell(what, figures, ("<= 1.5 x", ours <= 1.5 * theirs))


def bench_templates(templates: int, images: int, device: torch.device | None, clock: Clock) -> None:
    """As many probe as gallery templates of `images` images each: pooled, searched, and all pairs of probe and gallery
    ranked; half of the probes' people are not enrolled."""
    rng = np.random.default_rng(0)
    centre_WD = rng.standard_normal((templates * 3 // 2, D), dtype=np.float32)
    person_T = np.arange(2 * templates) % len(centre_WD)
    template_R = np.repeat(np.arange(2 * templates), images)
    emb_RD = 3 * rng.standard_normal((len(template_R), D), dtype=np.float32)
    emb_RD += centre_WD[person_T[template_R]]
    names = np.arange(2 * templates).astype(str)
    rows = TemplateRows(
        np.arange(len(template_R)),
        template_R,
        np.arange(len(template_R)) // 2,
        np.ones(len(template_R)),
        names,
        person_T.astype(str),
    )
    pooled: dict[str, np.ndarray] = {}
    took = [seconds(lambda: pooled.update(emb=pool_templates(emb_RD, rows, "media")), clock)]
    parts = pooled["emb"][:templates], person_T[:templates], pooled["emb"][templates:], person_T[templates:]
    found = identify(*parts, fpirs=[1e-2], device=device)
    took.append(seconds(lambda: identify(*parts, fpirs=[1e-2], device=device), clock))
    took.append(seconds(lambda: identification_intervals(found, parts[3]), clock))
    tell(
        f"1:N of {templates:,} probe templates against {templates:,}, {images} images each, on {device or 'the CPU'}",
        f"pooling {took[0]:.2f} s, ranks and FNIR at FPIR {took[1]:.2f} s, their intervals {took[2]:.2f} s; "
        f"{peak_mib():.0f} MiB at most in all",
        ("<= 60 s", sum(took) <= 60),
    )


def bench_share(weights: str, pairs: str, data: list[str], clock: Clock) -> None:
    """What an evaluation of listed pairs spends its time on, once Python has imported what it needs."""
    from facemetric.commands import embedding as door
    from facemetric.commands.evaluating import eval as command
    from facemetric.commands.evaluating import scores
    from facemetric.model.embedder import Embedder

    imports = time.process_time()
    spent: dict[str, float] = {}

    def timed(holder: Any, name: str, what: str) -> None:
        work = getattr(holder, name)

        def measured(*args: Any, **options: Any) -> Any:
            start = clock()
            try:
                return work(*args, **options)
            finally:
                spent[what] = spent.get(what, 0) + clock() - start

        setattr(holder, name, measured)

    timed(Embedder, "forward", "network")
    timed(door, "embed_index", "network, reading and decoding")
    timed(scores, "score_neighbours", "neighbours")
    timed(command, "write_report", "report.html")
    with tempfile.TemporaryDirectory() as out:
        config = make_config(EvalConfig, weights, pairs=pairs, data=data, out=out, workers=0)
        whole = seconds(lambda: command.run_evaluate(config), clock)
    parts = ", ".join(f"{what} {took:.1f} s ({100 * took / whole:.0f} %)" for what, took in spent.items())
    figures = f"{whole:.1f} s, of these {parts}; {imports:.1f} s of CPU time for Python's imports before"
    tell(f"eval of {pairs}", figures, ("> 80 % network", spent["network"] > 0.8 * whole))


def in_a_fresh_process(work: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=list(LIMITS), help="sizes of all pairs")
    parser.add_argument("--cpu", action="store_true", help="CPU time, where others use the same cores")
    parser.add_argument(
        "--device", default="cpu", help="of the tiles of all pairs, their intervals, nearest and templates"
    )
    parser.add_argument("--templates", type=int, default=20_000, help="probe templates, and gallery ones")
    parser.add_argument(
        "--gallery", type=int, default=20_000, help="rows in which a quarter as many look for neighbours"
    )
    parser.add_argument(
        "--share", nargs="+", metavar="ARG", help="WEIGHTS PAIRS DATA: where eval's time goes"
    )
    parser.add_argument(
        "--only", choices=("list", "pairs", "nearest", "templates", "all", "share"), help="one part alone"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    device = None if options.device == "cpu" else torch.device(options.device)
    parts: dict[str, list[Callable[[], None]]] = {
        "list": [partial(bench_scikit_learn, 10_000, clock)],
        "nearest": [
            partial(
                bench_neighbours if device is None else partial(bench_neighbours_on, device),
                options.gallery,
                options.gallery // 4,
                clock,
            )
        ],
        "pairs": [partial(bench_listed, clock)],
        "templates": [partial(bench_templates, options.templates, 5, device, clock)],
        "all": [partial(bench_all_pairs, images, device, clock) for images in options.images],
        "share": [],
    }
    if options.share:
        weights, pairs, *data = options.share
        parts["share"].append(partial(bench_share, weights, pairs, data, clock))
    for name, works in parts.items():
        for work in works if options.only in (None, name) else ():
            in_a_fresh_process(work)


if __name__ == "__main__":
    main()
