"""Random batches, options and calls that the tests of the miners share."""

import torch
from hypothesis import strategies as st

from facemetric.mining import MINERS, batch_select, distance_weighted
from facemetric.mining.tiles import MIB

DISTANCES = ("squared", "euclidean", "cosine")


TRIO = ("all", "semihard", "hard")


def window(d_ap, d_an):
    return (d_an > d_ap) & (d_an < d_ap + 0.5)


def batch(rows, classes, *, dim=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype))
    return emb, torch.randint(classes, (rows,), generator=generator)


def run(kind, emb, labels, **options):
    emb = emb.clone().requires_grad_()
    if kind == "select":
        mined = batch_select(emb, labels, select=window, **options)
    else:
        mined = MINERS[kind](emb, labels, **options)
    mined.loss.backward()
    return mined, emb.grad


@st.composite
def batches(draw):
    """Uneven classes, and rows repeated under the same and under another label."""
    rows = draw(st.integers(1, 22))
    emb, labels = batch(
        rows, draw(st.integers(1, 6)), dim=draw(st.integers(2, 5)), seed=draw(st.integers(0, 10**6))
    )
    if rows > 3 and draw(st.booleans()):
        emb[1], labels[1] = emb[0], labels[0]  # a duplicate image
    return emb, labels


OPTIONS = st.fixed_dictionaries(
    {
        "margin": st.sampled_from([0.0, 0.2, 0.9, -0.3, "soft"]),
        "distance": st.sampled_from(DISTANCES),
        "budget_mib": st.sampled_from([8 * 30 / MIB, 8 * 700 / MIB, 1.0, None]),
    }
)


def apart_or_equal(x, y):
    """1 / d of a tile's d has an error of about 1e-16 / d^2: 1e-12 is for rows not nearer than 0.05."""
    dist = (x[:, None] - y[None]).detach().norm(dim=2)
    return bool(((dist == 0) | (dist > 0.05)).all())


def folded(grad, emb):
    """Which of two equal rows takes the gradient is open: their sum is compared."""
    return (
        torch.cat([grad[:1] + grad[1:2], grad[2:]]) if len(emb) > 1 and torch.equal(emb[0], emb[1]) else grad
    )


def drawn_shares(distance, device="cpu", dtype=torch.float32):
    """Of 3,000 draws of `distance_weighted` the shares of negatives at four distances, and what they may be: those of
    the inverse density of distances on the sphere of 4 dimensions, held within d = 0.5 to sqrt(2), and 5 deviations."""
    squares, copies, draws = (
        torch.tensor([0.1, 1.0, 1.98, 3.9], dtype=dtype),
        torch.tensor([1, 2, 4, 4]),
        3000,
    )
    cosine = 1 - squares / 2
    negative = torch.nn.functional.pad(torch.stack([cosine, (1 - cosine**2).sqrt()], 1), (0, 2))
    anchor = torch.eye(4, dtype=dtype)[:1]
    rows = torch.cat([anchor, anchor, negative.repeat_interleave(copies, 0)]).to(device)
    labels = torch.tensor([0, 0, *range(1, 12)], device=device)
    anchors = (anchor.repeat(draws, 1).to(device), torch.zeros(draws, dtype=torch.int64, device=device))
    found = distance_weighted(rows, labels, seed=7, distance=distance, anchors=anchors)
    counted = torch.bincount(found.triplets[:, 2].cpu(), minlength=len(rows)).double()
    assert not counted[:2].any()
    share = torch.zeros(4, dtype=torch.float64)
    share.index_add_(0, torch.arange(4).repeat_interleave(copies), counted[2:] / counted.sum())
    held = squares.double().clamp(0.25, 2.0)
    weight = copies * held**-1.0 * (1 - held / 4) ** -0.5  # d^-(D - 2) (1 - d^2 / 4)^-((D - 3) / 2)
    expected = weight / weight.sum()
    return share, expected, 5 * (expected * (1 - expected) / counted.sum()).sqrt()
