"""Losses of stage two as their papers write them: one anchor and one pair at a time, in Python's floats by autograd.

Each takes unit embeddings (B, D), labels (B,), the rows that are anchors, and the options by name; it returns a
scalar tensor. What the papers leave open is said at each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit(emb: Tensor) -> Tensor:
    """Rows of length 1; one of length 0 stays."""
    length = emb.detach().norm(dim=1, keepdim=True)
    return torch.where(length > 0, emb / emb.norm(dim=1, keepdim=True).clamp_min(1e-300), 0.0)


def mean(values: list[Tensor], emb: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else emb.sum() * 0


def sides(labels: Tensor, i: int) -> tuple[list[int], list[int]]:
    """Positives and negatives of an anchor."""
    others = [j for j in range(len(labels)) if j != i]
    return [j for j in others if labels[j] == labels[i]], [j for j in others if labels[j] != labels[i]]


def supcon(emb: Tensor, labels: Tensor, anchors: list[int], *, temperature: float = 0.1) -> Tensor:
    """Khosla et al. 2020, equation 2; an anchor without a positive is left out."""
    x, losses = unit(emb), []
    for i in anchors:
        positives, negatives = sides(labels, i)
        if not positives:
            continue
        below = torch.logsumexp(torch.stack([x[i] @ x[a] / temperature for a in positives + negatives]), 0)
        terms = [x[i] @ x[p] / temperature - below for p in positives]
        losses.append(-torch.stack(terms).sum() / len(positives))
    return mean(losses, emb)


def multi_similarity(
    emb: Tensor,
    labels: Tensor,
    anchors: list[int],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """Wang et al. 2019: pairs by equations 11 and 12, their loss by equation 16; all anchors count."""
    x, losses = unit(emb), []
    for i in anchors:
        positives, negatives = sides(labels, i)
        s = {j: x[i] @ x[j] for j in positives + negatives}
        if epsilon < 2:
            lowest = min((s[j] for j in positives), default=torch.tensor(torch.inf))
            highest = max((s[j] for j in negatives), default=torch.tensor(-torch.inf))
            negatives = [j for j in negatives if s[j] > lowest - epsilon]
            positives = [j for j in positives if s[j] < highest + epsilon]
        pull = sum((torch.exp(-alpha * (s[j] - base)) for j in positives), emb.sum() * 0)
        push = sum((torch.exp(beta * (s[j] - base)) for j in negatives), emb.sum() * 0)
        losses.append(torch.log(1 + pull) / alpha + torch.log(1 + push) / beta)
    return mean(losses, emb)


def circle(
    emb: Tensor, labels: Tensor, anchors: list[int], *, margin: float = 0.25, gamma: float = 80.0
) -> Tensor:
    """Sun et al. 2020, equation 6 with the optima and margins of section 3.2; anchors with both sides count."""
    x, losses = unit(emb), []
    for i in anchors:
        positives, negatives = sides(labels, i)
        if not positives or not negatives:
            continue
        push, pull = [], []
        for j in negatives:
            s = x[i] @ x[j]
            push.append(gamma * (s.detach() + margin).clamp_min(0) * (s - margin))
        for k in positives:
            s = x[i] @ x[k]
            pull.append(-gamma * (1 + margin - s.detach()).clamp_min(0) * (s - (1 - margin)))
        both = torch.logsumexp(torch.stack(push), 0) + torch.logsumexp(torch.stack(pull), 0)
        losses.append(torch.nn.functional.softplus(both))
    return mean(losses, emb)


def contrastive(emb: Tensor, labels: Tensor, anchors: list[int], *, margin: float = 1.0) -> Tensor:
    """Hadsell et al. 2006, equation 4 without its halves: the mean over genuine pairs, and that over the impostor
    pairs that cost something."""
    x, genuine, impostor = unit(emb), [], []
    for i in anchors:
        positives, negatives = sides(labels, i)
        genuine += [2 - 2 * (x[i] @ x[j]) for j in positives]
        for j in negatives:
            square = 2 - 2 * (x[i] @ x[j])
            if float(square.detach()) < 1e-14:
                impostor.append(torch.tensor(margin**2, dtype=emb.dtype))  # a copy: no direction, no gradient
            elif square.sqrt() < margin:
                impostor.append((margin - square.sqrt()) ** 2)
    return mean(genuine, emb) + mean(impostor, emb)


def proxy_anchor(
    emb: Tensor, labels: Tensor, proxies: Tensor, *, alpha: float = 32.0, delta: float = 0.1
) -> Tensor:
    """Kim et al. 2020, equation 4."""
    x, p = unit(emb), unit(proxies)
    pull, push = [], []
    for c in range(len(p)):
        own = [b for b in range(len(x)) if labels[b] == c]
        other = [b for b in range(len(x)) if labels[b] != c]
        if own:
            pull.append(torch.log(1 + sum(torch.exp(-alpha * (x[b] @ p[c] - delta)) for b in own)))
        push.append(
            torch.log(1 + sum((torch.exp(alpha * (x[b] @ p[c] + delta)) for b in other), emb.sum() * 0))
        )
    return mean(pull, emb) + mean(push, emb)


TWINS = {
    "supcon": supcon,
    "multi-similarity": multi_similarity,
    "circle": circle,
    "contrastive": contrastive,
}
