"""Every head of stage one on the same people, with labels as they are and with wrong ones planted among them.

    python tools/compare_heads.py celeba.tar --out heads
    python tools/compare_heads.py celeba.tar --out heads --weights runs/start --people 200 --noise 0 0.2

Some people with many images are trained on, once for each head and share of wrong labels: the same images, steps,
learning rate, margin and first weights. All others give the figures: TAR over all their pairs, with intervals at 95 %
over people, and the difference to the softmax head, for which the same people are drawn.

A wrong label is another of the training people, drawn at random. Where labels are wrong, the images that
subcentre-arcface lists and those that `data check` lists with the weights of that run and with softmax's are compared
with those planted: precision, the share of the listed that were planted, and recall, the share of the planted that
are listed. A run that is in --out already is not made again.
"""

from __future__ import annotations

import os

# Before torch: threads that spin stall each other when shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import csv
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facemetric import check_data, pretrain
from facemetric.commands.checking.findings import MISLABELLED
from facemetric.data.index import ImageIndex, read_index
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.figures import tar_name
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences, all_pairs_intervals
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import Verification
from facemetric.model.heads import HEADS
from facemetric.model.weights.save_load import load_embedder
from facemetric.training.tasks.label_noise import NOISE

FARS = (1e-2, 1e-3)


class Planted(NamedTuple):
    """A folder of identity folders, and the names in it of the images whose label is wrong."""

    folder: Path
    wrong: frozenset[str]


class Reported(NamedTuple):
    """Embeddings of the people that no run has seen, and what all their pairs say."""

    table: EmbeddingTable
    found: Verification


def draw_people(index: ImageIndex, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, at most --images of each of --people, and the rows of all others with two images."""
    rng, counts = np.random.default_rng(options.seed), index.counts()
    enough = np.flatnonzero(counts >= options.least)
    if len(enough) < options.people:
        raise SystemExit(f"{len(enough)} people have {options.least} images; lower --people or --least")
    people = rng.choice(enough, options.people, replace=False)
    rows = [rng.permutation(np.flatnonzero(index.identity == person))[: options.images] for person in people]
    others = ~np.isin(index.identity, people) & (counts >= 2)[index.identity]
    return np.sort(np.concatenate(rows)), np.flatnonzero(others)


def wrong_labels(label_N: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels (N,) from 0 up, of which a share is another of the people's, drawn at random."""
    rng = np.random.default_rng([seed, 1])
    moved = rng.permutation(len(label_N))[: round(share * len(label_N))]
    people, planted_N = int(label_N.max()) + 1, label_N.copy()
    planted_N[moved] = (label_N[moved] + rng.integers(1, people, len(moved))) % people
    return planted_N


def plant(index: ImageIndex, rows: np.ndarray, share: float, folder: Path, seed: int) -> Planted:
    """Write the images as a folder of identities; a share of them goes to somebody else's."""
    own_N = np.unique(index.identity[rows].astype(np.int64), return_inverse=True)[1]
    given_N = wrong_labels(own_N, share, seed)
    names = [f"p{given:05d}/{row:07d}.jpg" for given, row in zip(given_N, rows, strict=True)]
    for row, name in zip(rows.tolist(), names, strict=True):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(index.read(row))
    return Planted(folder, frozenset(names[i] for i in np.flatnonzero(given_N != own_N)))


def train(head: str, planted: Planted, run: Path, options: argparse.Namespace) -> float:
    """Seconds of CPU of a run; 0 where it is there already."""
    if (run / "best").exists():
        return 0.0
    began = time.process_time()
    pretrain(
        planted.folder,
        out=run,
        head=head,
        weights=options.weights,
        arch=options.arch,
        arch_args=options.arch_args,
        image_size=options.image_size,
        embedding_size=options.embedding_size,
        margin=options.margin,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        val_fraction=0.0,
        closed_set_fraction=0.0,
        workers=0,
    )
    return time.process_time() - began


def report(run: Path, others: ImageIndex) -> Reported:
    table = embed_index(load_embedder(run), others, progress="embedding").table
    return Reported(table, verify_all_pairs(table.embeddings, table.identities, fars=FARS))


def line(name: str, own: Reported, softmax: Reported, seconds: float, seed: int) -> str:
    """TAR at each FAR with its interval, and what it is above softmax's."""
    labels = own.table.identities
    bounds = all_pairs_intervals(own.table.embeddings, labels, own.found, seed=seed).figures
    both = (softmax.table.embeddings, own.table.embeddings)
    above = all_pairs_differences(both, labels, (softmax.found, own.found), seed=seed)
    cells = [
        f"{bounds[key].value:.4f} {shown(bounds[key])} above softmax {shown(above[key], '+')}"
        for key in map(tar_name, FARS)
        if key in bounds
    ]
    return f"{name:18} {' | '.join(cells)} | {seconds:.0f} s of CPU"


def shown(interval: Interval, sign: str = "") -> str:
    return f"[{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def listed_by_centres(run: Path) -> set[str]:
    with open(run / NOISE, encoding="utf-8", newline="") as file:
        return {row["path"] for row in csv.DictReader(file)}


def agreement(name: str, listed: set[str], planted: Planted) -> str:
    hits = len(listed & planted.wrong)
    precision = f"{hits / len(listed):.3f}" if listed else "-"
    return (
        f"{name}: {len(listed)} listed, {hits} of {len(planted.wrong)} planted; precision {precision}, recall "
        + (f"{hits / len(planted.wrong):.3f}")
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="images, as for pretrain")
    parser.add_argument("--out", type=Path, required=True, help="folder of the planted labels and the runs")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2], help="shares of wrong labels")
    parser.add_argument("--people", type=int, default=200, help="people to train on")
    parser.add_argument("--least", type=int, default=20, help="images that one of them has at least")
    parser.add_argument("--images", type=int, default=40, help="images of one of them, at most")
    parser.add_argument(
        "--weights", default="", help="weights that every run starts from; they must know nobody"
    )
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--arch-args", default="channels = [32, 64, 128, 256], layers = [1, 1, 1, 1]")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--embedding-size", type=int, default=128)
    parser.add_argument("--margin", type=float, default=0.2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.weights:  # they say what the network is
        options.arch, options.arch_args = "mobilenetv4_conv_small", ""
        options.image_size = options.embedding_size = 0
    return options


def main() -> None:
    options = parsed()
    index = read_index(options.data)
    rows, others = draw_people(index, options)
    unseen = index.select(others)
    print(
        f"training on {len(rows):,} images of {options.people} people; {len(others):,} images of "
        f"{len(np.unique(unseen.identity))} others give the TAR at FAR {' and '.join(map(str, FARS))}"
    )
    for share in options.noise:
        planted = plant(index, rows, share, options.out / f"labels_{share:g}", options.seed)
        print(f"\n{share:.0%} of the labels are wrong", flush=True)
        runs = {head: options.out / f"{head}_{share:g}" for head in ("softmax", *options.heads)}
        softmax = None
        for head, run in runs.items():
            seconds = train(head, planted, run, options)
            own = report(run, unseen)
            softmax = softmax or own
            print(line(head, own, softmax, seconds, options.seed), flush=True)
        if planted.wrong:
            print_lists(runs, planted, options.out)


def print_lists(runs: dict[str, Path], planted: Planted, out: Path) -> None:
    """How the lists of wrong labels agree with those that were planted."""
    if "subcentre-arcface" in runs:
        print(
            agreement("subcentre-arcface", listed_by_centres(runs["subcentre-arcface"]), planted), flush=True
        )
    for head in sorted(runs.keys() & {"softmax", "subcentre-arcface"}):
        folder = out / f"check_{runs[head].name}"
        found = check_data(planted.folder, weights=runs[head], out=folder, sheets=0, faces="off", workers=0)
        listed = {finding.image_a for finding in found.findings if finding.kind == MISLABELLED}
        print(agreement(f"data check by the weights of {head}", listed, planted), flush=True)


if __name__ == "__main__":
    main()
