"""A gallery's speed with a million faces, and the FPIR that its thresholds really give.

    python tools/bench_gallery.py --faces 1000000 --folder /tmp/million
    python tools/bench_gallery.py --table LFW.npz --weights faces-112

The first enrolls random embeddings (kept in the folder for the next time) and asks for the three most similar people:
ours and the plain matrix product with all embeddings take turns; the clock, and the CPU time of all threads. Good: 50
ms on two cores of its own, or twice the plain product where the machine is shared.

The second enrolls people drawn from a table of embeddings (`facemetric eval --data` writes one) and asks for others,
drawn too: how many of them are named, beside the share that was wanted. Good: the share that was wanted lies in the
range of draws. The table's people must be none that the weights were trained or calibrated on.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from facemetric.evaluation.table import EmbeddingTable, unit_rows
from facemetric.gallery import threshold as thresholds
from facemetric.gallery.folder import LIST, GalleryFolder, GalleryList
from facemetric.gallery.parts import Rows
from facemetric.gallery.search import Enrolled, find_people
from facemetric.gallery.threshold import StoredCurve, best_of_others, choose_threshold
from facemetric.machine import resident_peak
from facemetric.model.weights.folder import find_weights, read_config

SIZE = 128
SETTINGS = (
    (5, 1),
    (20, 1),
    (100, 1),
    (500, 1),
    (2000, 1),
    (20, 3),
    (100, 3),
    (500, 3),
)  # people, faces of each
CHOICES = {"the weights alone": math.inf, "the enrolled alone": 0.0, "both (ours)": thresholds.PRIOR}
FPIRS = (0.1, 0.03, 0.01)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the clock, and of all threads' CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def told(name: str, times: list[tuple[float, float]]) -> None:
    """The least and the median of each clock."""
    wall, cpu = zip(*times, strict=True)
    print(
        f"{name:44} clock {min(wall):7.1f} ms (median {statistics.median(wall):7.1f}), "
        f"CPU {min(cpu):7.1f} ms (median {statistics.median(cpu):7.1f})",
        flush=True,
    )


def fill(folder: Path, faces: int) -> None:
    """Enroll random embeddings of so many people, in a folder that is made where it is not there."""
    if (folder / LIST).exists():
        return
    made = GalleryFolder.create(folder, GalleryList("0" * 64, "random numbers", SIZE))
    rng = np.random.default_rng(0)
    chunk = 65_536
    for start in range(0, faces, chunk):
        count = min(chunk, faces - start)
        names = [f"person {start + i}" for i in range(count)]
        emb = unit_rows(rng.standard_normal((count, SIZE), dtype=np.float32))
        hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
        made.append(Rows(emb, names, names, hashes, np.ones(count, np.float32), [b""] * count))


def speed(folder: Path, faces: int, rounds: int) -> None:
    """Opening, asking, enrolling one more."""
    told("enrolling all, 0 where they are there", [timed(lambda: fill(folder, faces))])
    opened: list[Enrolled] = []
    told(
        "opening, every hash checked",
        [timed(lambda: opened.append(Enrolled(tuple(GalleryFolder(folder).parts))))],
    )
    enrolled = opened[0]
    told("the first question", [timed(lambda: find_people(enrolled, np.ones((1, SIZE)), 3))])
    whole = torch.from_numpy(np.concatenate(enrolled.embeddings))
    rng = np.random.default_rng(1)
    for probes in (1, 3, 16):
        query = unit_rows(rng.standard_normal((probes, SIZE), dtype=np.float32))
        ours, plain = [], []
        for _ in range(rounds):
            ours.append(timed(partial(find_people, enrolled, query, 3)))
            plain.append(timed(partial(torch.matmul, torch.from_numpy(query), whole.T)))
        told(f"{probes} faces, the 3 most similar people", ours)
        told(f"{probes} faces, the plain matrix product", plain)
        ratios = [min(one[side] for one in ours) / min(one[side] for one in plain) for side in (0, 1)]
        print(f"{'':44} ours / plain: clock {ratios[0]:.2f}, CPU {ratios[1]:.2f}", flush=True)
    del whole
    told("trying 2,000 faces for the threshold", [timed(lambda: best_of_others(enrolled))])
    row = Rows(
        unit_rows(rng.standard_normal((1, SIZE))),
        ["one more"],
        [""],
        np.zeros((1, 32), np.uint8),
        np.ones(1, np.float32),
        [b""],
    )
    mine = GalleryFolder(folder)
    told("enrolling one more", [timed(lambda: mine.append(row))])
    told(
        "removing one",
        [timed(lambda: mine.remove(lambda part: np.array(part.names, object)[part.person] == "one more"))],
    )
    copy = len(enrolled) * SIZE * 4 / 2**20
    print(f"peak memory {resident_peak() / 2**20:,.0f} MiB, of it {copy:,.0f} a copy for the plain product")


class Drawn:
    """People of a table, enrolled and asked for at random."""

    def __init__(self, table: EmbeddingTable, seed: int) -> None:
        self.emb = unit_rows(table.embeddings)
        names, self.person = np.unique(table.identities, return_inverse=True)
        self.count = np.bincount(self.person, minlength=len(names))
        self.order = np.argsort(self.person, kind="stable")
        self.start = np.cumsum([0, *self.count])
        self.rng = np.random.default_rng(seed)

    def rows_of(self, person: int, most: int) -> np.ndarray:
        rows = self.order[self.start[person] : self.start[person + 1]]
        return self.rng.permutation(rows)[:most]

    def gallery(self, people: int, each: int) -> tuple[Enrolled, np.ndarray, np.ndarray, np.ndarray]:
        """A gallery in memory, one face of each stranger (up to 3,000), one more of each enrolled person who has one,
        and who these are."""
        chosen = self.rng.choice(np.flatnonzero(self.count >= each), people, replace=False)
        taken = [self.rows_of(person, each + 1) for person in chosen]
        rows = np.concatenate([some[:each] for some in taken])
        mates = np.array([some[each] for some in taken if len(some) > each], int)
        rest = self.rng.permutation(np.setdiff1d(np.arange(len(self.count)), chosen))[:3000]
        strangers = np.array([self.rows_of(person, 1)[0] for person in rest])
        with tempfile.TemporaryDirectory() as folder:
            made = GalleryFolder.create(Path(folder) / "g", GalleryList("0" * 64, "drawn", self.emb.shape[1]))
            names = [str(self.person[row]) for row in rows]
            zeros, ones = np.zeros((len(rows), 32), np.uint8), np.ones(len(rows), np.float32)
            made.append(Rows(self.emb[rows], names, names, zeros, ones, [b""] * len(rows)))
            return Enrolled(tuple(made.parts)), strangers, mates, self.person[mates].astype(str)


def fpir(table: EmbeddingTable, weights: str, draws: int, seed: int) -> None:
    """Wanted and seen FPIR, and the TPIR that goes with it."""
    curve = StoredCurve.of(read_config(find_weights(weights)), flip=False)
    drawn = Drawn(table, seed)
    print("| enrolled | wanted | " + " | ".join(CHOICES) + " | TPIR | interval held it |\n|" + "---|" * 7)
    for people, each in SETTINGS:
        times = max(2, draws // max(1, people * each // 50))
        seen: dict[tuple[float, str], list[float]] = {}
        hits: dict[float, list[float]] = {}
        held: dict[float, list[bool]] = {}
        for _ in range(times):
            enrolled, strangers, mates, names = drawn.gallery(people, each)
            own = best_of_others(enrolled)
            best = np.array([found[0].score for found in find_people(enrolled, drawn.emb[strangers], 1)])
            known = find_people(enrolled, drawn.emb[mates], 1) if len(mates) else []
            for wanted in FPIRS:
                for name, prior in CHOICES.items():
                    thresholds.PRIOR = prior if math.isfinite(prior) else 1e9
                    chosen = choose_threshold(own, curve, wanted)
                    share = float((best >= chosen.cosine).mean())
                    seen.setdefault((wanted, name), []).append(share)
                right = [
                    f[0].name == n and f[0].score >= chosen.cosine for f, n in zip(known, names, strict=True)
                ]
                hits.setdefault(wanted, []).append(float(np.mean(right)) if right else math.nan)
                if chosen.seen is not None:
                    held.setdefault(wanted, []).append(chosen.seen.low <= share <= chosen.seen.high)
        for wanted in FPIRS:
            cells = [
                f"{np.mean(found):.3f} [{np.quantile(found, 0.025):.3f}, {np.quantile(found, 0.975):.3f}]"
                for found in (seen[wanted, name] for name in CHOICES)
            ]
            tpir, inside = (
                np.nanmean([math.nan if math.isnan(x) else x for x in hits[wanted]] or [math.nan]),
                held.get(wanted, []),
            )
            print(
                f"| {people:,} people, {each} each ({times} draws) | {wanted:g} | {' | '.join(cells)} | {tpir:.2f} | "
                f"{sum(inside)} of {len(inside)} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faces", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "bench_gallery"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--weights", default="faces-112")
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.faces:
        speed(args.folder, args.faces, args.rounds)
    if args.table is not None:
        fpir(EmbeddingTable.load(args.table), args.weights, args.draws, args.seed)


if __name__ == "__main__":
    main()
