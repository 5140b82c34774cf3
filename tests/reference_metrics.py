"""Slow float64 twins of the metrics: explicit loops over pairs, thresholds and neighbours."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np


def all_pairs(embeddings, labels):
    """Scores and same-flags of all pairs, one at a time."""
    unit = [np.asarray(e, float) / np.linalg.norm(np.asarray(e, float)) for e in embeddings]
    score, same = [], []
    for i in range(len(unit)):
        for j in range(i + 1, len(unit)):
            score.append(float(np.dot(unit[i], unit[j])))
            same.append(bool(labels[i] == labels[j]))
    return np.array(score), np.array(same)


def auc(score, same):
    wins = 0.0
    genuine = [s for s, y in zip(score, same, strict=False) if y]
    impostor = [s for s, y in zip(score, same, strict=False) if not y]
    for g in genuine:
        for i in impostor:
            wins += 1.0 if g > i else 0.5 if g == i else 0.0
    return wins / len(genuine) / len(impostor)


def rates(score, same, threshold):
    genuine = [s for s, y in zip(score, same, strict=False) if y]
    impostor = [s for s, y in zip(score, same, strict=False) if not y]
    return (
        sum(s >= threshold for s in impostor) / len(impostor),
        sum(s >= threshold for s in genuine) / len(genuine),
    )


def eer(score, same):
    """Walk the ROC's straight pieces to the one that crosses FAR = 1 - TAR."""
    points = [(0.0, 0.0)] + [rates(score, same, t) for t in sorted(set(score), reverse=True)]
    for (far_0, tar_0), (far_1, tar_1) in itertools.pairwise(points):
        before, after = far_0 - (1 - tar_0), far_1 - (1 - tar_1)
        if before < 0 <= after:
            return far_0 + (far_1 - far_0) * before / (before - after)
    raise AssertionError("a ROC always crosses")


def tar_at_far(score, same, wanted):
    """(tar, far, threshold) at the lowest score allowed."""
    best = (0.0, 0.0, float("inf"))
    for threshold in sorted(set(score), reverse=True):
        far, tar = rates(score, same, threshold)
        if far > wanted:
            break
        best = (tar, far, threshold)
    return best


def fold_accuracies(score, same, fold):
    """Accuracy of each fold at the threshold of the others: halfway below the lowest score that is best accepted."""
    accuracies, best_thresholds = [], []
    for f in sorted(set(fold)):
        train = [(s, y) for s, y, k in zip(score, same, fold, strict=False) if k != f]
        test = [(s, y) for s, y, k in zip(score, same, fold, strict=False) if k == f]
        right = {t: sum((s >= t) == y for s, y in train) for t in [float("inf"), *{s for s, _ in train}]}
        best = sorted((t for t, n in right.items() if n == max(right.values())), reverse=True)
        threshold = halfway_below(best[len(best) // 2], [s for s, _ in train])
        accuracies.append(sum((s >= threshold) == y for s, y in test) / len(test))
        best_thresholds.append(threshold)
    return accuracies, best_thresholds


def halfway_below(lowest, scores):
    """Halfway from the lowest accepted score to the next one below; it itself where there is none."""
    below = [s for s in scores if s < lowest]
    return (lowest + max(below)) / 2 if below and lowest < float("inf") else lowest


def ranking(query, gallery, own=None):
    """Gallery rows by falling score, ties by row; `own` is left out."""
    unit = [np.asarray(g, float) / np.linalg.norm(np.asarray(g, float)) for g in gallery]
    q = np.asarray(query, float) / np.linalg.norm(np.asarray(query, float))
    rows = [(-float(np.dot(q, g)), i) for i, g in enumerate(unit) if i != own]
    return [(i, -s) for s, i in sorted(rows)]


def retrieval(queries, query_labels, gallery, gallery_labels, knn, recall, own=None):
    """knn, recall (dicts), R-precision, MAP@R and the number of queries, query by query."""
    votes, hits = Counter(), Counter()
    precision, mean_precision, n = 0.0, 0.0, 0
    for q, (query, person) in enumerate(zip(queries, query_labels, strict=False)):
        ranked = ranking(query, gallery, None if own is None else own[q])
        right = [gallery_labels[i] == person for i, _ in ranked]
        total = sum(right)
        if total == 0:
            continue
        n += 1
        for k in knn:
            tally: dict = {}
            for place, (i, s) in enumerate(ranked[:k]):
                count, sum_, first = tally.get(gallery_labels[i], (0, 0.0, -place))
                tally[gallery_labels[i]] = (count + 1, sum_ + s, first)
            votes[k] += max(tally, key=lambda name: tally[name]) == person
        for k in recall:
            hits[k] += any(right[:k])
        precision += sum(right[:total]) / total
        mean_precision += sum(sum(right[: i + 1]) / (i + 1) for i in range(total) if right[i]) / total
    return (
        {k: votes[k] / n for k in knn},
        {k: hits[k] / n for k in recall},
        precision / n,
        mean_precision / n,
        n,
    )


def person_counts(score, same, persons, thresholds):
    """Accepted genuine and impostor pairs of each person at each threshold, and the sum over pairs of persons of
    (accepted - FAR x pairs) ** 2, pair by pair. `persons`: both of each pair."""
    people = sorted(set(persons[0]) | set(persons[1]))
    genuine, impostor = (np.zeros((len(people), len(thresholds)), int) for _ in range(2))
    totals = np.zeros((2, len(people)), int)
    by_two: dict = {}
    for s, y, a, b in zip(score, same, *persons, strict=True):
        hit = np.array([s >= t for t in thresholds])
        for person in {a, b}:
            (genuine if y else impostor)[people.index(person)] += hit
            totals[0 if y else 1, people.index(person)] += 1
        if not y:
            accepted, pairs = by_two.get(frozenset((a, b)), (0, 0))
            by_two[frozenset((a, b))] = (accepted + hit, pairs + 1)
    far = impostor.sum(0) / totals[1].sum()
    alone = sum((accepted - far * pairs) ** 2 for accepted, pairs in by_two.values())
    return genuine, totals[0], impostor, totals[1], alone


def search(gallery, gallery_labels, probes, probe_labels):
    """(rank, own score) of each probe whose person is enrolled, and the best score of each other probe. The rank is
    among people, each by the best image; of equal scores the lower gallery row is first."""
    known, unknown = [], []
    for probe, person in zip(probes, probe_labels, strict=True):
        order = ranking(probe, gallery)
        people = list(dict.fromkeys(gallery_labels[row] for row, _ in order))
        if person in people:
            own = next(score for row, score in order if gallery_labels[row] == person)
            known.append((people.index(person) + 1, own))
        else:
            unknown.append(order[0][1])
    return known, unknown


def fnir_at_fpir(mates, strangers, wanted):
    """(FNIR, FPIR, threshold) at the lowest score whose FPIR is allowed."""
    best = (1.0, 0.0, float("inf"))
    for threshold in sorted({*mates, *strangers}, reverse=True):
        fpir = sum(s >= threshold for s in strangers) / len(strangers)
        if fpir > wanted:
            break
        best = (sum(s < threshold for s in mates) / len(mates), fpir, threshold)
    return best


def pooled(embeddings, media, weights=None):
    """One template by media (or by weights, each image its own medium): a loop in float64."""
    unit = [np.asarray(e, float) / np.linalg.norm(np.asarray(e, float)) for e in embeddings]
    if weights is not None:
        total = sum(w * u for w, u in zip(weights, unit, strict=True))
    else:
        by_medium: dict = {}
        for i, (medium, u) in enumerate(zip(media, unit, strict=True)):
            by_medium.setdefault(medium or ("alone", i), []).append(u)
        total = sum(sum(of_one) / len(of_one) for of_one in by_medium.values())
    return total / np.linalg.norm(total)


def s_norm(one, other, cohort, top):
    """Adaptive s-norm of one pair, by sorting each image's cohort scores."""
    unit = [np.asarray(e, float) / np.linalg.norm(np.asarray(e, float)) for e in (one, other)]
    rows = [np.asarray(c, float) / np.linalg.norm(np.asarray(c, float)) for c in cohort]
    score, parts = float(unit[0] @ unit[1]), []
    for u in unit:
        highest = sorted((float(u @ c) for c in rows), reverse=True)[:top]
        mean = sum(highest) / len(highest)
        deviation = (sum((h - mean) ** 2 for h in highest) / len(highest)) ** 0.5
        parts.append((score - mean) / deviation)
    return sum(parts) / 2


def cllr(ratio, same):
    """In bits, by a loop."""
    genuine = [np.log2(1 + np.exp(-r)) for r, y in zip(ratio, same, strict=True) if y]
    impostor = [np.log2(1 + np.exp(r)) for r, y in zip(ratio, same, strict=True) if not y]
    return (sum(genuine) / len(genuine) + sum(impostor) / len(impostor)) / 2


def min_cllr(score, same, weight=None):
    """By pooling adjacent violators, block by block."""
    weight = np.ones(len(score)) if weight is None else weight
    total = [sum(w for w, y in zip(weight, same, strict=True) if bool(y) == kind) for kind in (True, False)]
    blocks: list = []
    for s in sorted(set(score)):
        here = [(w, y) for t, w, y in zip(score, weight, same, strict=True) if t == s]
        blocks.append([sum(w for w, y in here if y) / total[0], sum(w for w, y in here if not y) / total[1]])
        while len(blocks) > 1 and blocks[-2][0] * sum(blocks[-1]) >= blocks[-1][0] * sum(blocks[-2]):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    bits = 0.0
    for genuine, impostor in blocks:
        both = genuine + impostor
        bits -= genuine * np.log2(genuine / both) if genuine else 0
        bits -= impostor * np.log2(impostor / both) if impostor else 0
    return bits / 2


def min_dcf(score, same, prior):
    """Over every threshold, accepting nothing as well."""
    points = [(0.0, 0.0)] + [rates(score, same, t) for t in set(score)]
    return min(prior * (1 - tar) + (1 - prior) * far for far, tar in points) / min(prior, 1 - prior)
