"""Every head of stage one behind one linear layer on the same features, with right labels and with wrong ones.

    python tools/compare_heads_on_features.py features.npz --learn learn.txt --choose choose.txt --noise 0 0.2

Minutes in place of the hours of `compare_heads.py`, which trains networks: only a projection to 128 numbers, begun at
the PCA, and the head learn. The table and its parts are as for `compare_losses.py`. Of the margins of a small sweep
each head keeps the one that is best on the people to choose by; the others, seen by nobody, give the figures: TAR at
--far over all their pairs, with intervals at 95 % over people, and what it is above softmax's, for which the same
people are drawn. Wrong labels are planted, and lists of them compared, as in `compare_heads.py`.
"""

from __future__ import annotations

import os

# Before torch: threads that spin stall each other when shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from compare_heads import Planted, agreement, shown, wrong_labels
from compare_losses import SIZE, Measured, Part, measured, part_of, parts_of
from torch.nn import functional

from facemetric.config import CheckConfig
from facemetric.evaluation.audit.labels import centred, judge_images
from facemetric.evaluation.figures import tar_name
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences, all_pairs_intervals
from facemetric.model.heads import HEADS, Head, SubcentreArcFaceHead, make_head
from facemetric.training.tasks.label_noise import FARTHEST, dominant_centres

SCALE = 24.0
BATCH = 256


class Tried(NamedTuple):
    """A projection (128, F) with the head it was trained behind, and the margin."""

    weight: torch.Tensor
    head: Head
    margin: float


def train(part: Part, start: torch.Tensor, kind: str, margin: float, options: argparse.Namespace) -> Tried:
    """AdamW with a cosine schedule; the margin grows from 0 over the first third, as in stage one."""
    torch.manual_seed(options.seed)
    weight = torch.nn.Parameter(start.clone())
    people = int(part.labels.max()) + 1
    head = make_head(kind, SIZE, people, scale=SCALE, margin=margin)
    labels, count = torch.from_numpy(part.labels), len(part.labels)
    optimizer = torch.optim.AdamW([weight, *head.parameters()], lr=options.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    order = torch.empty(0, dtype=torch.long)
    for step in range(options.steps):
        if len(order) < BATCH:
            order = torch.randperm(count)
        rows, order = order[:BATCH], order[BATCH:]
        emb = part.features[rows] @ weight.T
        strength = min(1.0, 3 * step / options.steps)
        logits = head.with_margin(head(emb), labels[rows], strength, emb_BD=emb)
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return Tried(weight.detach(), head.eval(), margin)


def best_of(parts: tuple[Part, Part], start: torch.Tensor, kind: str, options: argparse.Namespace) -> Tried:
    """The try whose TAR is highest on the people to choose by."""
    learn, choose = parts
    margins = options.margins if kind != "softmax" else [0.0]
    tried = [train(learn, start, kind, margin, options) for margin in margins]
    figures = [measured(choose, each.weight, options).found.points[0].true_rate for each in tried]
    return tried[int(np.argmax(figures))]


def line(kind: str, own: Measured, softmax: Measured, labels: np.ndarray, options: argparse.Namespace) -> str:
    key = tar_name(options.far)
    bounds = all_pairs_intervals(own.emb, labels, own.found, seed=options.seed).figures[key]
    both = (softmax.emb, own.emb), labels, (softmax.found, own.found)
    above = all_pairs_differences(*both, seed=options.seed)[key]
    return f"{kind:18} {bounds.value:.4f} {shown(bounds)}, above softmax {shown(above, '+')}"


def lists(learn: Part, truth_N: np.ndarray, tried: Tried) -> list[str]:
    """How the images that data check would list, and those that a head with several centres lists, agree with those
    that were planted."""
    planted = Planted(Path(), frozenset(map(str, np.flatnonzero(learn.labels != truth_N))))
    with torch.no_grad():
        emb = learn.features @ tried.weight.T
        unit_ND = functional.normalize(emb, dim=1).numpy()
    judged = judge_images(centred(unit_ND), learn.labels)
    checked = np.flatnonzero(judged.above > CheckConfig.mislabelled)
    found = [agreement("  data check by its embeddings", set(map(str, checked)), planted)]
    if isinstance(tried.head, SubcentreArcFaceHead):
        cosine_NK = tried.head.own_cosines(emb, torch.from_numpy(learn.labels)).numpy()
        own_N = dominant_centres(cosine_NK, learn.labels)[1]
        far = np.flatnonzero(own_N < math.cos(math.radians(FARTHEST)))
        found.append(agreement("  farther than 75 degrees", set(map(str, far)), planted))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help=".npz with embeddings (N, F) and identities (N,)")
    parser.add_argument("--learn", help="text file of the identities to learn from; needs --choose")
    parser.add_argument("--choose", help="text file of those to choose margins by; the others are reported")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2], help="shares of wrong labels")
    parser.add_argument("--margins", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--far", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if bool(options.learn) != bool(options.choose):
        parser.error("--learn and --choose go together; give both, or none")
    options.families = None
    with np.load(options.table) as table:
        features, names = table["embeddings"].astype(np.float32), table["identities"]
    learn, choose, report = (part_of(features, names, None, rows) for rows in parts_of(names, options)[0])
    centred_NF = learn.features - learn.features.mean(0)
    start = torch.linalg.svd(centred_NF, full_matrices=False).Vh[:SIZE].contiguous()
    sizes = [f"{len(part.labels)} images of {part.labels.max() + 1}" for part in (learn, choose, report)]
    print(f"learn {sizes[0]}, choose {sizes[1]}, report {sizes[2]}; TAR at FAR {options.far:g}")
    at_start = measured(report, start, options)
    print(line("start (PCA)", at_start, at_start, report.labels, options), flush=True)
    for share in options.noise:
        print(f"\n{share:.0%} of the labels are wrong", flush=True)
        noisy = learn._replace(labels=wrong_labels(learn.labels, share, options.seed))
        softmax: Measured | None = None
        for kind in dict.fromkeys(["softmax", *options.heads]):
            began = time.process_time()
            tried = best_of((noisy, choose), start, kind, options)
            seconds = time.process_time() - began
            own = measured(report, tried.weight, options)
            softmax = softmax or own
            print(
                f"{line(kind, own, softmax, report.labels, options)}, margin {tried.margin:g}, {seconds:.0f} s of CPU",
                flush=True,
            )
            if share:
                print("\n".join(lists(noisy, learn.labels, tried)), flush=True)


if __name__ == "__main__":
    main()
