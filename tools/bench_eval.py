"""Speed, memory and coverage of the evaluation: `python tools/bench_eval.py --peers --nearest --listed`.

Prints one line a measure; ratios are taken within one run, since the machine may be busy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads distort a shared machine

import numpy as np
import torch

from facemetric.config import EvalConfig, make_config
from facemetric.evaluation.allpairs import verify_all_pairs
from facemetric.evaluation.allpairs_intervals import all_pairs_intervals
from facemetric.evaluation.intervals import tar_name, verification_intervals
from facemetric.evaluation.neighbours import nearest
from facemetric.evaluation.verification import Verification, verify_pairs
from facemetric.mining.tiles import product_tiles
from facemetric.model.embedder import Embedder
from facemetric.report import scorecard, tables

D = 128


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)


def interleaved(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The best time of each, run in turn: the machine may slow down meanwhile."""
    took = [(seconds(one, 1), seconds(other, 1)) for _ in range(repeats)]
    return min(a for a, _ in took), min(b for _, b in took)


def faces(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings (images, D) of about seven images a person, and the persons."""
    rng = np.random.default_rng(seed)
    person = rng.integers(max(2, images // 7), size=images)
    centre = rng.standard_normal((person.max() + 1, D), dtype=np.float32)
    emb = centre[person] + 1.5 * rng.standard_normal((images, D), dtype=np.float32)
    return emb / np.linalg.norm(emb, axis=1, keepdims=True), person


def matmul_floor(emb: np.ndarray) -> None:
    for _ in product_tiles(torch.from_numpy(emb), triangle=True):
        pass


def bench_all_pairs(images: int) -> None:
    """Figures, then their intervals, against the product that both must form; in a fresh process."""
    emb, person = faces(images)
    repeats = 3 if images <= 30_000 else 1
    found = verify_all_pairs(emb[:500], person[:500])
    all_pairs_intervals(emb[:500], person[:500], found, draws=100)
    before = peak_mib()
    took, floor = interleaved(lambda: verify_all_pairs(emb, person), lambda: matmul_floor(emb), repeats)
    memory = peak_mib() - before
    found = verify_all_pairs(emb, person)
    intervals = seconds(lambda: all_pairs_intervals(emb, person, found), 1)
    print(
        f"all pairs of {images:,} x {D}: {took:.2f} s, {took / floor:.2f} x the matmul of {floor:.2f} s, "
        f"{memory:.0f} MiB more than before; their intervals {intervals:.2f} s, {peak_mib() - before:.0f} MiB",
        flush=True,
    )


def bench_scikit_learn(images: int) -> None:
    from sklearn.metrics import roc_curve

    emb, person = faces(images)
    i, j = np.triu_indices(images, 1)
    score = np.concatenate(
        [(emb[a] * emb[b]).sum(1) for a, b in zip(np.array_split(i, 99), np.array_split(j, 99), strict=True)]
    )
    same = person[i] == person[j]
    del i, j
    theirs = seconds(lambda: roc_curve(same, score), 1)
    ours = seconds(lambda: verify_all_pairs(emb, person), 1)
    print(
        f"all pairs of {images:,}: scikit-learn's roc_curve on the ready list {theirs:.2f} s, "
        f"ours with the scores {ours:.2f} s, {theirs / ours:.1f} x"
    )


def bench_listed() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(6000) % 600 < 300
    score = rng.normal(same.astype(float), 0.5)
    person = np.arange(6000), np.where(same, np.arange(6000), np.arange(6000) + 6000)
    fold = np.arange(6000) // 600
    print(f"6,000 pairs, ten folds: {1000 * seconds(lambda: verify_pairs(score, same, fold=fold)):.1f} ms")
    took = seconds(lambda: verification_intervals(score, same, person), 1)
    print(f"6,000 pairs, intervals of 1,000 draws: {took:.2f} s")


def bench_neighbours() -> None:
    gallery, _ = faces(20_000)
    probe, _ = faces(5_000, seed=1)
    try:
        import faiss
    except ImportError:
        ours = seconds(lambda: nearest(probe, gallery, 5))
        print(f"5 nearest of 20,000 for 5,000: {ours:.2f} s (faiss-cpu is not installed to compare)")
        return
    index = faiss.IndexFlatIP(D)
    index.add(gallery)
    assert (index.search(probe, 5)[1] == nearest(probe, gallery, 5).rows).mean() > 0.999
    ours, theirs = interleaved(lambda: nearest(probe, gallery, 5), lambda: index.search(probe, 5), 5)
    print(f"5 nearest of 20,000 for 5,000: {ours:.2f} s, faiss {theirs:.2f} s, {ours / theirs:.2f} x")


def bench_share(weights: str, pairs: str, data: list[str]) -> None:
    """What an evaluation of listed pairs spends its time on."""
    spent: dict[str, float] = {}

    def timed(holder: Any, name: str, what: str) -> None:
        work = getattr(holder, name)

        def measured(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                spent[what] = spent.get(what, 0) + time.perf_counter() - start

        setattr(holder, name, measured)

    timed(Embedder, "forward", "network")
    timed(tables, "embed_index", "network, reading and decoding")
    timed(scorecard, "report", "report.html")
    with tempfile.TemporaryDirectory() as out:
        config = make_config(EvalConfig, weights, pairs=pairs, data=data, out=out, workers=0)
        whole = seconds(lambda: scorecard.run_evaluate(config), 1)
    parts = ", ".join(f"{what} {took:.1f} s ({100 * took / whole:.0f} %)" for what, took in spent.items())
    print(f"eval of {pairs}: {whole:.1f} s, of these {parts}")


def population(people: int) -> np.ndarray:
    """Unit embeddings (people, 4 images, 24) of people of whom some are alike and some are hard."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(people, 1, 24))
    centre[:, :, :3] += 0.6 * rng.normal(size=(people, 1, 1))
    noise = 1.15 * np.exp(0.3 * rng.normal(size=(people, 1, 1)))
    emb = (centre + noise * rng.normal(size=(people, 4, 24))).astype(np.float32)
    return emb / np.linalg.norm(emb, axis=2, keepdims=True)


def figures_of(found: Verification) -> dict[str, float]:
    return {"auc": found.auc, "eer": found.eer} | {tar_name(p.wanted): p.tar for p in found.points}


def bench_coverage(draws: int) -> None:
    """How often the 95 % interval of a drawn sample of people holds the figure of the whole population."""
    emb = population(20_000)
    fars = (0.1, 0.01)
    truth = figures_of(verify_pairs(*_pairs(emb, 1_000_000, np.random.default_rng(1))[:2], fars=fars))
    for persons, each in ((400, 1000), (3000, 1000)):
        hits = dict.fromkeys(truth, 0)
        for draw in range(draws):
            rng = np.random.default_rng(draw)
            sample = emb[rng.choice(len(emb), persons, replace=False)]
            score, same, who = _pairs(sample, each, rng)
            found = verification_intervals(score, same, who, fars=fars, draws=500, seed=draw).figures
            for name, value in truth.items():
                hits[name] += found[name].low <= value <= found[name].high
        _print_coverage(f"{persons} people, {2 * each:,} listed pairs", hits, draws)


def bench_coverage_all_pairs(draws: int) -> None:
    """The same for all pairs of a sample: one to four images of each person."""
    emb = population(20_000)
    fars = (0.1, 0.01, 1e-3, 1e-4)
    who = np.arange(20_000)
    images = 1 + who % 4
    taken = np.arange(4) < images[:, None]
    truth = figures_of(verify_all_pairs(emb[taken], np.repeat(who, images), fars=fars))
    hits = dict.fromkeys(truth, 0)
    for draw in range(draws):
        people = np.random.default_rng(draw).choice(20_000, 400, replace=False)
        sample, labels = emb[people][taken[people]], np.repeat(people, images[people])
        verified = verify_all_pairs(sample, labels, fars=fars)
        found = all_pairs_intervals(sample, labels, verified, draws=500, seed=draw).figures
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
    _print_coverage("400 people, about 1,000 images, all pairs", hits, draws)


def _print_coverage(what: str, hits: dict[str, int], draws: int) -> None:
    shares = ", ".join(f"{name} {n / draws:.3f}" for name, n in hits.items())
    print(f"coverage of 95 %, {what}, {draws} samples: {shares}", flush=True)


def _pairs(
    emb: np.ndarray, each: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    people, images = emb.shape[:2]
    i, j = rng.integers(people, size=(2, each))
    k = (j + 1 + rng.integers(people - 1, size=each)) % people
    a, c, d = rng.integers(images, size=(3, each))
    b = (a + 1 + rng.integers(images - 1, size=each)) % images
    score = np.concatenate([(emb[i, a] * emb[i, b]).sum(1), (emb[j, c] * emb[k, d]).sum(1)])
    return score, np.arange(2 * each) < each, (np.concatenate([i, j]), np.concatenate([i, k]))


def in_a_fresh_process(work: Callable[..., None], *arguments: Any) -> None:
    """So that the peak of memory is this measure's own."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 30_000])
    parser.add_argument("--peers", action="store_true", help="scikit-learn on 10,000 images: 2 GiB, a minute")
    parser.add_argument("--nearest", action="store_true", help="kNN, against faiss-cpu where it is installed")
    parser.add_argument("--listed", action="store_true", help="6,000 pairs")
    parser.add_argument("--coverage", type=int, default=0, metavar="SAMPLES")
    parser.add_argument(
        "--share", nargs="+", metavar=("WEIGHTS", "PAIRS DATA"), help="where eval's time goes"
    )
    options = parser.parse_args()
    for images in options.images:
        in_a_fresh_process(bench_all_pairs, images)
    if options.peers:
        bench_scikit_learn(10_000)
    if options.nearest:
        bench_neighbours()
    if options.listed:
        bench_listed()
    if options.coverage:
        bench_coverage_all_pairs(options.coverage)
        bench_coverage(options.coverage)
    if options.share:
        bench_share(options.share[0], options.share[1], options.share[2:])


if __name__ == "__main__":
    main()
