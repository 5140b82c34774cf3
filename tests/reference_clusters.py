"""Slow twins of the clusterings and of their figures, from the definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np


def cosines(embeddings):
    unit = np.asarray(embeddings, float)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def components(score, threshold):
    """Flood fill over pairs at or above the threshold."""
    label = [-1] * len(score)
    for start in range(len(score)):
        if label[start] >= 0:
            continue
        todo = [start]
        while todo:
            i = todo.pop()
            if label[i] < 0:
                label[i] = start
                todo += [j for j in range(len(score)) if score[i][j] >= threshold]
    return label


def dbscan(score, threshold, least):
    """(core images, their components); border images may belong to any of the clusters around them."""
    core = [i for i in range(len(score)) if sum(s >= threshold for s in score[i]) >= least]
    inner = [[score[i][j] for j in core] for i in core]
    return core, components(inner, threshold)


def pieces(n, pairs):
    """Which images pairs link, directly or by others."""
    score = np.eye(n)
    for a, b in pairs:
        score[a, b] = score[b, a] = 1
    return components(score, 1)


def average_linkage(score, threshold, one=(), two=()):
    """Join the two clusters of the highest mean of all their pairs, again and again. Images that the pairs `one` link
    begin together; clusters with the images of a pair of `two` are never joined."""
    piece = pieces(len(score), one)
    groups = [[i for i in range(len(score)) if piece[i] == p] for p in sorted(set(piece))]

    def mean_of(a, b):
        if any((i, j) in two or (j, i) in two for i in groups[a] for j in groups[b]):
            return -np.inf
        return np.mean([score[i][j] for i in groups[a] for j in groups[b]])

    while len(groups) > 1:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        mean = [mean_of(a, b) for a, b in pairs]
        best = int(np.argmax(mean))
        if mean[best] < threshold:
            break
        a, b = pairs[best]
        groups[b] += groups.pop(a)
    label = [0] * len(score)
    for number, group in enumerate(groups):
        for i in group:
            label[i] = number
    return label


def bcubed(cluster, identity):
    """(precision, recall, F), image by image. Source: Bagga and Baldwin 1998."""
    n = len(cluster)
    precision = recall = 0.0
    for i in range(n):
        mates = [j for j in range(n) if cluster[j] == cluster[i]]
        own = [j for j in range(n) if identity[j] == identity[i]]
        both = len(set(mates) & set(own))
        precision += both / len(mates) / n
        recall += both / len(own) / n
    return precision, recall, 2 * precision * recall / (precision + recall)


def purity(cluster, identity):
    """Share of images of the most frequent identity of their cluster."""
    right = 0
    for name in set(cluster):
        right += max(Counter(p for c, p in zip(cluster, identity, strict=True) if c == name).values())
    return right / len(cluster)
