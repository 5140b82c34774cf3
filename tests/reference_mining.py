"""Slow twins of the miners: loops over triplets in float64, written from the formulas, sharing no code.

Distances nearer to each other than TIE are a tie: no negative is farther for rounding's sake, no triplet active.
Each returns (loss, triplets with a loss above 0, triplets looked at, gradient of the loss by autograd).
"""

import math

import torch

TIE = 1e-12  # of the distances


def pair_distance(x, y, distance):
    if distance == "squared":
        return ((x - y) ** 2).sum()
    if distance == "euclidean":
        square = ((x - y) ** 2).sum()
        return square.sqrt() if square > 0 else square * 0
    if distance == "cosine":
        lengths = x.norm() * y.norm()
        if lengths > 0:
            return 1 - (x * y).sum() / lengths
        return (x.sum() + y.sum()) * 0 + 0.5 * bool(x.any() or y.any())  # a zero row has no direction
    raise AssertionError(distance)


def pay(d_ap, d_an, margin):
    if margin == "soft":
        return torch.log1p(torch.exp(d_ap - d_an))
    return torch.clamp(d_ap - d_an + margin, min=0)


def is_active(d_ap, d_an, margin):
    """Whether a triplet has a loss above 0, to more than rounding."""
    return margin == "soft" or bool(pay(d_ap, d_an, margin) > TIE * (d_ap + d_an))


def groups(labels, anchor_labels=None, own=None):
    """(anchor, positives, negatives) for every anchor that has both."""
    labels = labels.tolist()
    asked = labels if anchor_labels is None else anchor_labels.tolist()
    own = list(range(len(labels))) if anchor_labels is None else own
    for a, label in enumerate(asked):
        positives = [j for j, other in enumerate(labels) if other == label and (own is None or own[a] != j)]
        negatives = [j for j, other in enumerate(labels) if other != label]
        if positives and negatives:
            yield a, positives, negatives


def triplets(kind, x, y, labels, asked, own, margin, distance, select):
    """(anchor, d_ap, d_an, weight) of every triplet that `kind` looks at."""
    for a, positives, negatives in groups(labels, asked, own):
        d_p = [pair_distance(x[a], y[p], distance) for p in positives]
        d_n = [pair_distance(x[a], y[n], distance) for n in negatives]
        if kind == "hard":
            yield a, max(d_p, key=torch.Tensor.item), min(d_n, key=torch.Tensor.item), 1.0
        for dp in d_p if kind != "hard" else ():
            if kind == "semihard":
                rounding = 1e-14 if distance == "cosine" else 0  # 1 - cos of one direction is not quite 0
                farther = [dn for dn in d_n if dn > dp + TIE * (dp + dn) + rounding]
                nearest = min(farther, key=torch.Tensor.item) if farther else None
                yield a, dp, max(d_n, key=torch.Tensor.item) if nearest is None else nearest, 1.0
                continue
            for dn in d_n:
                yield (
                    a,
                    dp,
                    dn,
                    float(is_active(dp, dn, margin))
                    if kind == "all"
                    else float(select(dp.detach(), dn.detach())),
                )


def twin(
    kind, embeddings, labels, margin=0.2, distance="squared", select=None, anchors=None, importance=None
):
    """`kind` is all, semihard, hard or select; `anchors` None, a slice, or (embeddings, labels); `importance`
    the weight of each anchor, 1 without it."""
    y = embeddings.double().detach().requires_grad_()
    x, asked, own = y, None, None
    if isinstance(anchors, slice):
        own = list(range(len(labels)))[anchors]
        x, asked = y[anchors], labels[anchors]
    elif anchors is not None:
        x, asked = anchors[0].double().detach().requires_grad_(), anchors[1]
    found = list(triplets(kind, x, y, labels, asked, own, margin, distance, select))
    importance = [1.0] * len(x) if importance is None else importance.tolist()
    terms, weights = (
        [pay(dp, dn, margin) for _, dp, dn, _ in found],
        [w * importance[a] for a, _, _, w in found],
    )
    total = math.fsum(weights)
    kept = [t * w / total for t, w in zip(terms, weights, strict=True) if w] if total else []
    loss = torch.stack(kept).sum() if kept else y.sum() * 0
    active = sum(1 for _, dp, dn, w in found if w and is_active(dp, dn, margin))
    wanted = [y] if not isinstance(anchors, tuple) else [y, x]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = [torch.zeros_like(v) if g is None else g for v, g in zip(wanted, grads, strict=True)]
    return loss.detach(), active, len(found), grads


def means(kind, embeddings, labels, margin=0.2, distance="squared", select=None):
    """Sum of the weights, and the means of d_ap and of d_an over the triplets, by weight."""
    y = embeddings.double()
    found = list(triplets(kind, y, y, labels, None, None, margin, distance, select))
    total = math.fsum(w for *_, w in found)
    return total, *(math.fsum(float(t[i]) * t[3] for t in found) / max(total, 1e-30) for i in (1, 2))


def cube(kind, embeddings, labels, margin=0.2, distance="squared", select=None):
    """`twin` of a whole batch as masks of a (B, B, B) cube: a hundred times faster, for small batches."""
    y = embeddings.double().detach().requires_grad_()
    rows = y
    if distance == "cosine":
        length = y.norm(dim=1, keepdim=True)
        rows = y / torch.where(length > 0, length, math.inf) * 0.5**0.5
    square = (rows[:, None] - rows[None]).square().sum(2)
    dist = torch.where(square > 0, square, 1.0).sqrt() * (square > 0) if distance == "euclidean" else square
    same = labels[:, None] == labels[None]
    other = ~same
    pair = same & ~torch.eye(len(y), dtype=torch.bool) & other.any(1, keepdim=True)
    d = dist.detach()
    a, p = pair.nonzero(as_tuple=True)
    if kind == "semihard":
        farther = other[a] & (d[a] > (d[a, p] + TIE * (d[a, p] + d[a].amax(1)))[:, None])
        nearest = torch.where(farther, d[a], math.inf).argmin(1)
        n = torch.where(farther.any(1), nearest, torch.where(other[a], d[a], -math.inf).argmax(1))
        weight = torch.ones(len(a), dtype=torch.float64)
    elif kind == "hard":
        a = pair.any(1).nonzero()[:, 0]
        p = torch.where(pair[a], d[a], -math.inf).argmax(1)
        n = torch.where(other[a], d[a], math.inf).argmin(1)
        weight = torch.ones(len(a), dtype=torch.float64)
    else:
        i, n = other[a].nonzero(as_tuple=True)
        a, p = a[i], p[i]
        tie = TIE * (d[a, p] + d[a, n])
        weight = (
            select(d[a, p], d[a, n]).double()
            if kind == "select"
            else (torch.ones(len(a)) if margin == "soft" else d[a, p] - d[a, n] + margin > tie).double()
        )
    gap = dist[a, p] - dist[a, n]
    value = torch.logaddexp(gap, gap * 0) if margin == "soft" else (gap + margin).clamp(min=0)
    loss = (value * weight).sum() / weight.sum() if weight.sum() else y.sum() * 0
    (grad,) = torch.autograd.grad(loss, y)
    active = int(((value > TIE * (dist[a, p] + dist[a, n]) * (margin != "soft")) & (weight != 0)).sum())
    return loss.detach(), active, len(a), [grad]
