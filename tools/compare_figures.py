"""Our figures and other people's code on the same embeddings, side by side, difference by difference.

    python tools/compare_figures.py                      # drawn embeddings: 300 people, 6 images of each
    python tools/compare_figures.py embeddings.npz       # anybody's table

The others: scikit-learn (ROC, AUC, isotonic regression), pytorch-metric-learning (precision at 1, R-precision, MAP@R),
scipy (the logistic fit), and plain float64 loops of NumPy where no package has the figure (TPIR, FNIR, ranks, minDCF).
Good: no difference beyond 1e-6, the width of float32 scores; the logistic fit within 1e-4.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score, roc_curve

from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.calibration import RisingFit, cllr, detection_cost, fit_logistic
from facemetric.evaluation.identification import draw_open_set, identify
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.evaluation.table import EmbeddingTable

FPIR, PRIOR = 1e-2, 0.01
Rows = npt.NDArray[np.float64]


class Line(NamedTuple):
    """A figure by both."""

    name: str
    ours: float
    theirs: float
    who: str


def drawn_table(people: int = 300, images: int = 6, seed: int = 0) -> EmbeddingTable:
    """Embeddings of drawn people, about as hard as faces."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), images)
    emb = rng.normal(size=(people, 64))[who] + 1.2 * rng.normal(size=(len(who), 64))
    return EmbeddingTable(emb.astype(np.float32), who.astype(str), np.arange(len(who)).astype(str))


def verification_lines(table: EmbeddingTable, unit_ND: Rows) -> Iterator[Line]:
    """All pairs, against scikit-learn on the listed pairs."""
    found = verify_all_pairs(table.embeddings, table.identities)
    a, b = np.triu_indices(len(table), 1)
    score, same = np.einsum("pd,pd->p", unit_ND[a], unit_ND[b]), table.identities[a] == table.identities[b]
    far, tar, _ = roc_curve(same, score, drop_intermediate=False)
    yield Line("AUC, all pairs", found.auc, float(roc_auc_score(same, score)), "scikit-learn")
    for point in found.points:
        if point.supported:
            theirs = float(tar[far <= point.wanted].max())
            yield Line(f"TAR at FAR = {point.wanted:g}", point.true_rate, theirs, "scikit-learn")
    rng = np.random.default_rng(0)  # as many pairs of both kinds: the fits of 1.6 million pairs take long
    genuine, impostor = np.flatnonzero(same), rng.choice(np.flatnonzero(~same), same.sum(), replace=False)
    rows = np.concatenate([genuine, impostor])
    yield from calibration_lines(score[rows], same[rows])


def calibration_lines(score: Rows, same: npt.NDArray[np.bool_]) -> Iterator[Line]:
    """Cllr, min Cllr and minDCF."""
    curve = fit_logistic(score, same, ~same)

    def cost(at: Rows) -> float:
        return cllr(at[0] * score + at[1], same)

    other = minimize(cost, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    yield Line("Cllr of the fit", cllr(curve.ratios(score), same), float(other.fun), "scipy")
    weight = np.where(same, 1 / same.sum(), 1 / (~same).sum())
    share = IsotonicRegression(y_min=0, y_max=1).fit_transform(
        score, same.astype(float), sample_weight=weight
    )
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.where(same, share, 1 - share))
    theirs = float((weight * bits).sum() / 2)
    yield Line("min Cllr", RisingFit(score, same).cost(), theirs, "scikit-learn")
    far, tar, _ = roc_curve(same, score, drop_intermediate=False)
    order = np.argsort(-score)
    tars, fars = (np.append(0, np.cumsum(kind[order]) / kind.sum()) for kind in (same, ~same))
    ours = float(detection_cost(tar, far, PRIOR).min())
    theirs = float(((PRIOR * (1 - tars) + (1 - PRIOR) * fars) / PRIOR).min())
    yield Line(f"minDCF at P = {PRIOR:g}", ours, theirs, "NumPy")


def retrieval_lines(table: EmbeddingTable) -> Iterator[Line]:
    """Neighbours, against pytorch-metric-learning."""
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    found = leave_one_out(table.embeddings, table.identities, knn=[1], recall=[1])
    labels = torch.from_numpy(np.unique(table.identities, return_inverse=True)[1])
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    theirs = calculator.get_accuracy(torch.from_numpy(table.embeddings), labels)
    ours = (found.knn[1], found.each.figures["r_precision"].mean(), found.each.figures["map_at_r"].mean())
    for name, label, value in zip(names, ("kNN accuracy, k = 1", "R-precision", "MAP@R"), ours, strict=True):
        yield Line(label, float(value), float(theirs[name]), "pytorch-metric-learning")


def search_lines(table: EmbeddingTable, unit_ND: Rows) -> Iterator[Line]:
    """Closed and open set, against loops in float64."""
    gallery, probes = draw_open_set(table.identities, seed=0)
    who_g, who_p = table.identities[gallery], table.identities[probes]
    arguments = table.embeddings[gallery], who_g, table.embeddings[probes], who_p
    found = identify(*arguments, fpirs=(FPIR,))
    ranks, mates, tops, strangers = [], [], [], []
    for row, person in zip(probes, who_p, strict=True):
        score = unit_ND[gallery] @ unit_ND[row]
        own = np.flatnonzero(who_g == person)
        if len(own):
            mate = score[own].max()
            ranks.append(1 + int((score > mate).sum()))  # one image of each person
            mates.append(mate)
            tops.append(ranks[-1] == 1)
        else:
            strangers.append(score.max())
    for k, share in {1: found.rank_1, **found.ranks}.items():
        yield Line(f"Rank {k}", share, float(np.mean(np.array(ranks) <= k)), "NumPy, float64")
    scores = np.array(mates)
    allowed = [t for t in {*mates, *strangers} if np.mean(np.array(strangers) >= t) <= FPIR]
    tpir = max((float(np.mean((scores >= t) & np.array(tops))) for t in allowed), default=0.0)
    fnir = min((float(np.mean(scores < t)) for t in allowed), default=1.0)
    missed = next(p for p in found.misses if p.wanted == FPIR)
    if missed.supported:
        yield Line(f"TPIR at FPIR = {FPIR:g}", found.points[0].true_rate, tpir, "NumPy, float64")
        yield Line(f"FNIR at FPIR = {FPIR:g}", 1 - missed.true_rate, fnir, "NumPy, float64")


def compare(table: EmbeddingTable) -> list[Line]:
    """Every figure by both."""
    unit_ND = table.embeddings.astype(np.float64)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    return [
        *verification_lines(table, unit_ND),
        *retrieval_lines(table),
        *search_lines(table, unit_ND),
    ]


def as_table(lines: list[Line]) -> str:
    """The lines as a table of Markdown."""
    rows = [
        f"| {each.name} | {each.ours:.8f} | {each.theirs:.8f} | {abs(each.ours - each.theirs):.1e} | {each.who} |"
        for each in lines
    ]
    return "\n".join(["| figure | ours | theirs | difference | whose |", "|---|---|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "embeddings", type=Path, nargs="?", help="a table, .npz or .parquet; drawn where none is named"
    )
    file = parser.parse_args().embeddings
    print(as_table(compare(EmbeddingTable.load(file) if file is not None else drawn_table())))


if __name__ == "__main__":
    main()
