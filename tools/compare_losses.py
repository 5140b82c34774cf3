"""Every loss of stage two on the same features with the same steps: its best of a small sweep, with intervals.

    facemetric embed DATA --weights faces-112 ... -> features.npz, or any table of embeddings and identities
    python tools/compare_losses.py features.npz
    python tools/compare_losses.py features.npz --losses triplet supcon --alike 0 8 --steps 300

A linear projection to 128 numbers, begun at the PCA of the features, learns on half of the identities. A fifth chooses
the arguments of each loss; the rest, seen by nobody, gives the figures: TAR at FAR 1e-3 over all their pairs, and the
difference to the start, with intervals at 95 % over identities that are resampled alike for both.
"""

from __future__ import annotations

import os

# Before torch: threads that spin stall each other when shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import time
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from facemetric.data.batches import IdentityBatches
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences
from facemetric.mining import LossOptions, resolve_loss
from facemetric.training.tasks.on_features import most_alike

SWEEP: dict[str, list[LossOptions]] = {
    "triplet": [LossOptions("semihard", margin=m) for m in (0.1, 0.2, 0.4)]
    + [LossOptions("all", margin=m) for m in (0.2, 0.4)],
    "contrastive": [LossOptions(arguments={"margin": m}) for m in (0.8, 1.0, 1.2)],
    "supcon": [LossOptions(arguments={"temperature": t}) for t in (0.05, 0.1, 0.2)],
    "multi-similarity": [
        LossOptions(arguments={"beta": b, "base": s}) for b, s in ((50, 0.5), (20, 0.5), (50, 0.3))
    ],
    "circle": [
        LossOptions(arguments={"gamma": g, "margin": m}) for g, m in ((80, 0.25), (32, 0.25), (80, 0.4))
    ],
    "proxy-anchor": [
        LossOptions(arguments={"alpha": a, "delta": d}) for a, d in ((32, 0.1), (16, 0.1), (32, 0.0))
    ],
}
SIZE, P, K, FAR = 128, 64, 4, 1e-3


class Part(NamedTuple):
    """Features and identities 0..C - 1."""

    features: torch.Tensor
    labels: np.ndarray


def parts_of(features: np.ndarray, names: np.ndarray, seed: int) -> list[Part]:
    """To learn from, to choose by, to report: half, a fifth and the rest of the identities with two images."""
    _, label_N, counts = np.unique(names, return_inverse=True, return_counts=True)
    kept = np.random.default_rng(seed).permutation(np.flatnonzero(counts >= 2))
    cuts = np.split(kept, [len(kept) // 2, len(kept) * 7 // 10])
    found = []
    for cut in cuts:
        rows = np.flatnonzero(np.isin(label_N, cut))
        found.append(Part(torch.from_numpy(features[rows]), np.unique(label_N[rows], return_inverse=True)[1]))
    return found


def train(
    part: Part, start: torch.Tensor, name: str, options: LossOptions, *, steps: int, alike: int, seed: int
) -> torch.Tensor:
    """A projection (128, F) after so many steps of AdamW with a cosine schedule."""
    torch.manual_seed(seed)
    weight = torch.nn.Parameter(start.clone())
    labels = torch.from_numpy(part.labels)
    people = int(labels.max()) + 1
    loss = resolve_loss(name, options)
    loss.prepare(people, SIZE)
    groups = [{"params": [weight], "lr": 1e-3}]
    if loss.weights is not None:
        loss.weights.start_from(torch.from_numpy(means(part, weight)))
        groups.append({"params": list(loss.weights.parameters()), "lr": 0.1})
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = IdentityBatches(part.labels, min(P, people), K, seed)
    step = epoch = 0
    while step < steps:
        near = most_alike(means(part, weight), alike) if alike else None
        for rows in batches.epoch(epoch, near, alike):
            emb = functional.normalize(part.features[rows] @ weight.T, dim=1)
            optimizer.zero_grad()
            loss(emb, labels[rows], seed=step).loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == steps:
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help=".npz with embeddings (N, F) and identities (N,)")
    parser.add_argument("--losses", nargs="+", choices=list(SWEEP), default=list(SWEEP))
    parser.add_argument("--alike", type=int, nargs="+", default=[0], help="sizes of groups that look alike")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with np.load(options.table) as table:
        features, names = table["embeddings"].astype(np.float32), table["identities"]
    learn, choose, report = parts_of(features, names, options.seed)
    centred = learn.features - learn.features.mean(0)
    start = torch.linalg.svd(centred, full_matrices=False).Vh[:SIZE].contiguous()
    before = embedded(report, start)
    first = verify_all_pairs(before, report.labels, fars=[FAR])
    sizes = [f"{len(part.labels)} images of {part.labels.max() + 1}" for part in (learn, choose, report)]
    print("learn {}, choose {}, report {}".format(*sizes))
    print(f"start: TAR at FAR {FAR:g} {first.points[0].true_rate:.4f}")
    for name in options.losses:
        for alike in options.alike:
            began, best, tried = time.perf_counter(), (-1.0, start, LossOptions()), SWEEP[name]
            for each in tried:
                weight = train(learn, start, name, each, steps=options.steps, alike=alike, seed=options.seed)
                figure = (
                    verify_all_pairs(embedded(choose, weight), choose.labels, fars=[FAR]).points[0].true_rate
                )
                best = max(best, (float(figure), weight, each), key=lambda found: found[0])
            seconds = (time.perf_counter() - began) / len(tried)
            after = embedded(report, best[1])
            found = verify_all_pairs(after, report.labels, fars=[FAR])
            gains = all_pairs_differences((before, after), report.labels, (first, found), seed=options.seed)
            gain = next(value for key, value in gains.items() if key.startswith("tar"))
            chosen = dict(best[2].arguments) or {"miner": best[2].miner, "margin": best[2].margin}
            print(
                f"{name:17} alike {alike:2}: TAR {found.points[0].true_rate:.4f}, gain [{gain.low:+.4f}, "
                f"{gain.high:+.4f}], {seconds:.1f} s a run; {chosen}",
                flush=True,
            )


if __name__ == "__main__":
    main()
