"""Every loss of stage two on the same features with the same steps: its best of a small sweep, with intervals.

    facemetric embed DATA --weights faces-112 ... -> features.npz, or any table of embeddings and identities
    python tools/compare_losses.py features.npz
    python tools/compare_losses.py features.npz --losses triplet supcon --alike 0 8 --steps 300
    python tools/compare_losses.py features.npz --learn learn.txt --choose choose.txt --far 0.01
    python tools/compare_losses.py features.npz --losses triplet --alike 8 --families families.csv

A linear projection to 128 numbers, begun at the PCA of the features, learns on half of the identities. A fifth chooses
the arguments of each loss; the rest, seen by nobody, gives the figures: TAR at --far over all their pairs, the share of
images whose nearest is of their identity (recall at 1), and the gains over the start, with intervals at 95 % over
identities that are resampled alike for both. A family is never in two of the parts.
"""

from __future__ import annotations

import os

# Before torch: threads that spin stall each other when shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from compare_heads import shown
from torch.nn import functional

from facemetric.data.batches import IdentityBatches
from facemetric.data.lists import read_identity_list, read_merges
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences
from facemetric.evaluation.intervals.records import mean_intervals
from facemetric.evaluation.retrieval import Queries, leave_one_out
from facemetric.evaluation.verification import Verification
from facemetric.mining import LossOptions, resolve_loss
from facemetric.training.tasks.on_features import most_alike

SWEEP: dict[str, list[LossOptions]] = {
    "triplet": [LossOptions("semihard", margin=m) for m in (0.1, 0.2, 0.4)]
    + [LossOptions("all", margin=m) for m in (0.2, 0.4)],
    "contrastive": [LossOptions(arguments={"margin": m}) for m in (0.8, 1.0, 1.2, 1.4)],
    "supcon": [LossOptions(arguments={"temperature": t}) for t in (0.05, 0.1, 0.2, 0.4)],
    "multi-similarity": [
        LossOptions(arguments={"beta": b, "base": s}) for b, s in ((50, 0.5), (20, 0.5), (10, 0.5), (50, 0.3))
    ],
    "circle": [
        LossOptions(arguments={"gamma": g, "margin": m})
        for g, m in ((80, 0.25), (32, 0.25), (16, 0.25), (80, 0.4))
    ],
    "proxy-anchor": [
        LossOptions(arguments={"alpha": a, "delta": d})
        for a, d in ((32, 0.1), (16, 0.1), (8, 0.1), (32, 0.0))
    ],
}
SIZE = 128


class Part(NamedTuple):
    """Features, identities 0..C - 1, and the family (C,) of each identity, where families are known."""

    features: torch.Tensor
    labels: np.ndarray
    family: np.ndarray | None


class Measured(NamedTuple):
    """Embeddings of a part, its pairs, and whether the nearest image of each is of its identity."""

    emb: np.ndarray
    found: Verification
    queries: Queries


def parts_of(names: np.ndarray, options: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The rows to learn from, to choose by, to report, and the family of each row where there are any.

    Of identities with two images: those of the lists and all others, or half, a fifth and the rest, by families."""
    known, label_N, counts = np.unique(names, return_inverse=True, return_counts=True)
    family_C = np.arange(len(known))
    if options.families:
        place = {name: number for number, name in enumerate(known.tolist())}
        for group in read_merges(options.families):
            members = [place[name] for name in group if name in place]
            if members:
                family_C[np.isin(family_C, family_C[members])] = family_C[members[0]]
    if options.learn:
        lists = [read_identity_list(path) for path in (options.learn, options.choose)]
        taken = [np.isin(known, names) for names in lists]
        cuts = [*taken, ~(taken[0] | taken[1])]
    else:
        families = np.random.default_rng(options.seed).permutation(np.unique(family_C[counts >= 2]))
        parts = np.split(families, [len(families) // 2, len(families) * 7 // 10])
        cuts = [np.isin(family_C, part) for part in parts]
    rows = [np.flatnonzero((cut & (counts >= 2))[label_N]) for cut in cuts]
    return rows, family_C[label_N] if options.families else None


def part_of(features: np.ndarray, names: np.ndarray, family_N: np.ndarray | None, rows: np.ndarray) -> Part:
    """The rows as a part of their own."""
    _, first, label_N = np.unique(names[rows], return_index=True, return_inverse=True)
    family_C = None if family_N is None else family_N[rows][first]
    return Part(torch.from_numpy(features[rows]), label_N, family_C)


def train(
    part: Part,
    start: torch.Tensor,
    name: str,
    arguments: LossOptions,
    alike: int,
    options: argparse.Namespace,
) -> torch.Tensor:
    """A projection (128, F) after so many steps of AdamW with a cosine schedule."""
    torch.manual_seed(options.seed)
    weight = torch.nn.Parameter(start.clone())
    labels = torch.from_numpy(part.labels)
    people = int(labels.max()) + 1
    loss = resolve_loss(name, arguments)
    loss.prepare(people, SIZE)
    groups = [{"params": [weight], "lr": 1e-3}]
    learned: Any = loss.weights
    if learned is not None:
        learned.start_from(torch.from_numpy(means(part, weight)))
        groups.append({"params": list(learned.parameters()), "lr": 0.1})
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    batches = IdentityBatches(part.labels, min(options.identities, people), options.images, options.seed)
    step = epoch = 0
    while step < options.steps:
        near = most_alike(means(part, weight), alike, part.family) if alike else None
        for rows in batches.epoch(epoch, near, alike):
            emb = functional.normalize(part.features[rows] @ weight.T, dim=1)
            optimizer.zero_grad()
            loss(emb, labels[rows], seed=step).loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == options.steps:
                break
        epoch += 1
    return weight.detach()


@torch.no_grad()
def means(part: Part, weight: torch.Tensor) -> np.ndarray:
    """Unit mean embeddings (C, 128)."""
    emb = functional.normalize(part.features @ weight.T, dim=1)
    sums = torch.zeros(int(part.labels.max()) + 1, SIZE).index_add_(0, torch.from_numpy(part.labels), emb)
    return functional.normalize(sums, dim=1).numpy()


def embedded(part: Part, weight: torch.Tensor) -> np.ndarray:
    found: np.ndarray = functional.normalize(part.features @ weight.T, dim=1).numpy()
    return found


def measured(part: Part, weight: torch.Tensor, options: argparse.Namespace) -> Measured:
    emb = embedded(part, weight)
    queries = leave_one_out(emb, part.labels, knn=[1], recall=[1]).each
    return Measured(emb, verify_all_pairs(emb, part.labels, fars=[options.far]), queries)


def gains(part: Part, before: Measured, after: Measured, seed: int) -> str:
    """TAR and recall at 1 of `after`, and what they are above those of `before`, with intervals."""
    both = (before.emb, after.emb), part.labels, (before.found, after.found)
    of_tar = next(v for key, v in all_pairs_differences(*both, seed=seed).items() if key.startswith("tar"))
    recalls = [each.queries.figures["recall_at_1"] for each in (before, after)]
    above = {"gain": recalls[1] - recalls[0]}
    of_recall = mean_intervals(above, part.labels[after.queries.rows], seed=seed)["gain"]
    return (
        f"TAR {after.found.points[0].true_rate:.4f} {shown(of_tar, '+')}, "
        f"recall at 1 {recalls[1].mean():.4f} {shown(of_recall, '+')}"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help=".npz with embeddings (N, F) and identities (N,)")
    parser.add_argument("--losses", nargs="+", choices=list(SWEEP), default=list(SWEEP))
    parser.add_argument("--alike", type=int, nargs="+", default=[0], help="sizes of groups that look alike")
    parser.add_argument("--families", help="families, as for finetune: relatives come in one group first")
    parser.add_argument("--learn", help="text file of the identities to learn from; needs --choose")
    parser.add_argument("--choose", help="text file of those to choose arguments by; the others are reported")
    parser.add_argument("--identities", type=int, default=64, help="identities of a batch, at most")
    parser.add_argument("--images", type=int, default=4, help="images of an identity in a batch, at most")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--far", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if bool(options.learn) != bool(options.choose):
        parser.error("--learn and --choose go together; give both, or none")
    return options


def main() -> None:
    options = parsed()
    with np.load(options.table) as table:
        features, names = table["embeddings"].astype(np.float32), table["identities"]
    rows, family_N = parts_of(names, options)
    learn, choose, report = (part_of(features, names, family_N, part) for part in rows)
    centred = learn.features - learn.features.mean(0)
    start = torch.linalg.svd(centred, full_matrices=False).Vh[:SIZE].contiguous()
    before = measured(report, start, options)
    sizes = [f"{len(part.labels)} images of {part.labels.max() + 1}" for part in (learn, choose, report)]
    print("learn {}, choose {}, report {}".format(*sizes))
    print(f"at FAR {options.far:g}; gains over the start in brackets")
    print(f"{'start':27}: {gains(report, before, before, options.seed)}", flush=True)
    for name in options.losses:
        for alike in options.alike:
            began, best, tried = time.process_time(), (-1.0, start, LossOptions()), SWEEP[name]
            for each in tried:
                weight = train(learn, start, name, each, alike, options)
                chosen = verify_all_pairs(embedded(choose, weight), choose.labels, fars=[options.far])
                best = max(
                    best, (float(chosen.points[0].true_rate), weight, each), key=lambda found: found[0]
                )
            seconds = (time.process_time() - began) / len(tried)
            found = gains(report, before, measured(report, best[1], options), options.seed)
            arguments = dict(best[2].arguments) or {"miner": best[2].miner, "margin": best[2].margin}
            print(
                f"{name:17} alike {alike:2}: {found}, {seconds:.1f} s of CPU a run; {arguments}",
                flush=True,
            )


if __name__ == "__main__":
    main()
