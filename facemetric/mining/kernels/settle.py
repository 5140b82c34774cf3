"""Semihard negatives that float32 cannot tell from a tie: looked at one by one, or in float64.

Shapes: M anchors, N reference rows, D embedding, T doubtful pairs of anchor and positive, n of them, K rows of a label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.kernels.argmin import INTEGER, argmin_rows
from facemetric.mining.kernels.common import slack
from facemetric.mining.tiles import budget_bytes, row_distance

# In float32 the product's distances choose, but for what lies within so many slacks of d_ap, and negatives so near
# that rounding orders them: those are chosen in float64.
UNSURE = 1.25
UNSURE_NEAR = 100


class Doubt(NamedTuple):
    """T anchors and positives whose semihard negative lies so near d_ap that float32 cannot tell on which side."""

    anchor_T: Tensor
    p_T: Tensor
    at_T: Tensor  # the choice of float32: the nearest with d_an > bound
    bound_T: Tensor  # squared d_ap less what rounding can do
    band_T: Tensor  # a negative with d_an > bound + band is farther for certain
    near_T: (
        Tensor | None
    )  # so near to the anchor that rounding orders all negatives; None where that is left alone
    same_TK: Tensor  # rows of the anchor's label

    def some(self, t: Tensor) -> Doubt:
        """Those alone."""
        return Doubt(*(None if v is None else v[t] for v in self))  # type: ignore[arg-type]


# Up to so many differences are formed at once.
FEW_NUMBERS = 2**18

# So many choices are looked at one by one; where as many negatives tie, float64 looks at all of them at once.
TRIES = 3


def settle(
    x_MD: Tensor, y_ND: Tensor, doubt: Doubt, panel: Callable[[Tensor], Tensor], budget_mib: float
) -> Tensor:
    """The semihard negative (T,) of each doubtful pair: the first choice that is farther than p in float64.

    `panel` gives the squared distances (n, N) of some of the pairs' anchors in float32.
    """
    at_T = doubt.at_T.clone()
    farther_T = _farther(x_MD, y_ND, doubt)
    if doubt.near_T is not None:
        farther_T &= ~doubt.near_T
    step = max(budget_bytes(budget_mib) // (2 * 4 * len(y_ND)), 1)
    for t in (~farther_T).nonzero()[:, 0].split(step):
        if len(t):
            at_T[t] = _settle_panel(x_MD, y_ND, doubt.some(t), panel(t), budget_mib)
    return at_T


def choose_directly(x_TD: Tensor, y_ND: Tensor, p_T: Tensor, same_TK: Tensor) -> Tensor:
    """`choose_in_float64` of few pairs in the fewest calls: every difference is formed."""
    away_TND = y_ND.double() - x_TD[:, None]
    squared_TN = torch.linalg.vecdot(away_TND, away_TND)
    gap_TN = squared_TN.gather(1, p_T[:, None]) * (1 + 1e-14) - squared_TN
    return argmin_rows(gap_TN.scatter_(1, same_TK, torch.inf).view(torch.int64))


def _settle_panel(x_MD: Tensor, y_ND: Tensor, doubt: Doubt, dist_nN: Tensor, budget_mib: float) -> Tensor:
    found_T = doubt.at_T.clone()
    t = torch.arange(len(found_T), device=found_T.device)
    gap_nN = torch.sub(doubt.bound_T[:, None], dist_nN, out=dist_nN).scatter_(1, doubt.same_TK, torch.inf)
    tie = torch.finfo(gap_nN.dtype).tiny  # not farther, but farther than all that is nearer
    for _ in range(TRIES):
        if doubt.near_T is not None and bool(doubt.near_T.any()):
            break
        gap_nN.scatter_(1, doubt.at_T[:, None], tie)
        at_n = argmin_rows(gap_nN.view(INTEGER[gap_nN.dtype]))
        found_T[t] = at_n
        gap_n = gap_nN.gather(1, at_n[:, None])[:, 0]
        doubt = doubt._replace(at_T=at_n)
        open_n = ((gap_n < 0) & (gap_n >= -doubt.band_T)).nonzero()[:, 0]
        open_n = open_n[~_farther(x_MD, y_ND, doubt.some(open_n))] if len(open_n) else open_n
        if not len(open_n):
            return found_T
        t, doubt, gap_nN = t[open_n], doubt.some(open_n), gap_nN[open_n]
    x_TD = x_MD[doubt.anchor_T].double()
    squared_T = row_distance(x_TD, y_ND[doubt.p_T].double())
    found_T[t] = choose_in_float64(x_TD, y_ND, squared_T, doubt.same_TK, budget_mib)
    return found_T


def _farther(x_MD: Tensor, y_ND: Tensor, doubt: Doubt) -> Tensor:
    """Whether each choice (T,) is farther than the positive, by direct difference in float64."""
    x_TD = x_MD[doubt.anchor_T].double()
    ends_2TD = y_ND[torch.stack([doubt.p_T, doubt.at_T])].double().sub_(x_TD)
    squared_ap_T, squared_an_T = torch.linalg.vecdot(ends_2TD, ends_2TD)
    return squared_an_T > squared_ap_T * (1 + 1e-14)


def choose_in_float64(
    x_TD: Tensor, y_ND: Tensor, squared_ap_T: Tensor | None, same_TK: Tensor, budget_mib: float
) -> Tensor:
    """Reference row (T,) of the semihard negative of each pair, a tie within rounding; without d_ap, the nearest."""
    mean_D = y_ND.mean(0).double()
    y_ND, x_TD = y_ND - mean_D, x_TD - mean_D
    y_square_N, x_square_T = torch.linalg.vecdot(y_ND, y_ND), torch.linalg.vecdot(x_TD, x_TD)
    bound_T = None if squared_ap_T is None else squared_ap_T + slack(x_square_T, y_square_N, y_ND.shape[1])
    picked = []
    step = max(budget_bytes(budget_mib) // (2 * 8 * len(y_ND)), 1)
    for top in range(0, len(x_TD), step):
        part = slice(top, top + step)
        dist_nN = torch.addmm(y_square_N, x_TD[part], y_ND.T, alpha=-2).add_(x_square_T[part, None])
        if bound_T is None:
            dist_nN.clamp_(min=0)
        else:
            torch.sub(bound_T[part, None], dist_nN, out=dist_nN)
        dist_nN.scatter_(1, same_TK[part], torch.inf)
        picked.append(argmin_rows(dist_nN.view(torch.int64)))
    return torch.cat(picked)
