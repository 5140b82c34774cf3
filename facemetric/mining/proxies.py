"""Losses against one learned row an identity, a proxy: exact, with a gradient for embeddings and proxies alike.

    loss = ProxyAnchor(identities=1000, embedding_size=128)
    loss(embeddings, labels).loss.backward()                # loss.proxies.grad too

Shapes: B rows of a batch, C proxies, D embedding, r proxies and columns of one tile.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, DataError
from facemetric.mining.kernels.common import add_rows
from facemetric.mining.known_gradient import attach
from facemetric.mining.mine import CPU_MINING_MIB
from facemetric.mining.on_cosines import unit_rows, within
from facemetric.mining.record import LossRecord
from facemetric.mining.rows import check_rows, check_shapes
from facemetric.mining.tiles import CUDA_BUDGET_MIB, product_tiles
from facemetric.mining.uncompiled import uncompiled


@uncompiled
def proxy_anchor(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    proxies_CD: Tensor,
    *,
    alpha: float = 32.0,
    delta: float = 0.1,
    budget_mib: float | None = None,
) -> LossRecord:
    """The mean over the batch's identities of log(1 + sum e^(-alpha (s - delta))) of their images + the mean over all
    proxies of log(1 + sum e^(alpha (s + delta))) of the other images, s their cosine with the proxy.

    embeddings (B, D) and proxies (C, D) floating, labels (B,) integers 0..C - 1. alpha above 0 to 300, delta 0 to 1.
    Memory grows as B + C. Figures: the mean cosine of an image with its own proxy.
    Errors: DataError for shapes that do not meet, labels without a proxy, rows that are not finite; ConfigError for
    options. Source: Kim et al. 2020, arXiv:2003.13911, equation 4.
    """
    within("alpha", alpha, 0.01, 300)
    within("delta", delta, 0, 1)
    kind = embeddings_BD.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return proxy_anchor(
                embeddings_BD, labels_B, proxies_CD, alpha=alpha, delta=delta, budget_mib=budget_mib
            )
    check_shapes(embeddings_BD, labels_B, "embeddings")
    label_B = _proxy_of(labels_B.to(embeddings_BD.device), embeddings_BD, proxies_CD)
    widest = alpha * (1 + delta) + 10  # sums of exponentials above 1
    y_BD, p_CD = unit_rows(embeddings_BD, widest), unit_rows(proxies_CD, widest)
    dtype = torch.promote_types(p_CD.dtype, y_BD.dtype)
    p_CD, y_BD = p_CD.to(dtype), y_BD.to(dtype)
    check_rows(y_BD, "embeddings")
    check_rows(p_CD, "proxies")
    budget = (CPU_MINING_MIB if kind == "cpu" else CUDA_BUDGET_MIB) if budget_mib is None else budget_mib
    with torch.no_grad():
        loss, own, grad_BD, grad_CD = _sums(y_BD.detach(), p_CD.detach(), label_B, alpha, delta, budget)
    loss = attach(loss.to(y_BD.dtype), grad_BD, y_BD, grad_CD, p_CD)
    return LossRecord(loss, 1.0, {"mean_own_proxy": own})


def _sums(
    y_BD: Tensor, p_CD: Tensor, label_B: Tensor, alpha: float, delta: float, budget: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, mean cosine with the own proxy, and the two gradients."""
    C, grad_BD, grad_CD = len(p_CD), torch.zeros_like(y_BD), torch.zeros_like(p_CD)
    own_BD = p_CD.index_select(0, label_B)
    own_B = torch.linalg.vecdot(y_BD, own_BD)
    power_B = ((own_B - delta) * -alpha).exp_()
    pull_C = torch.zeros(C, dtype=torch.float64, device=y_BD.device)
    pull_C.index_add_(0, label_B, power_B.double())
    present = max(int((torch.bincount(label_B, minlength=C) > 0).sum()), 1)
    factor_B = (power_B.double() / (1 + pull_C[label_B]) * (-alpha / present)).to(y_BD.dtype)
    grad_BD += factor_B[:, None] * own_BD
    add_rows(grad_CD, label_B, factor_B[:, None] * y_BD)
    loss = pull_C.log1p().sum() / present
    left_CE = torch.cat([p_CD * alpha, p_CD.new_full((C, 1), alpha * delta)], 1)
    right_BE = torch.cat([y_BD, y_BD.new_ones(len(y_BD), 1)], 1)
    for rows, _, values_rB in product_tiles(left_CE, right_BE, budget_mib=budget, buffers=2, whole_rows=True):
        values_rB.exp_()
        own = (label_B >= rows.start) & (label_B < rows.stop)
        at_b = own.nonzero()[:, 0]
        values_rB[label_B[at_b] - rows.start, at_b] = 0
        push_r = values_rB.sum(1, dtype=torch.float64)
        loss += push_r.log1p().sum() / C
        values_rB *= (alpha / C / (1 + push_r)).to(values_rB.dtype)[:, None]
        grad_CD[rows].addmm_(values_rB, y_BD)
        grad_BD.addmm_(values_rB.T, p_CD[rows])
    return loss, own_B.mean() if len(own_B) else loss * 0, grad_BD, grad_CD


def _proxy_of(labels_B: Tensor, embeddings_BD: Tensor, proxies_CD: Tensor) -> Tensor:
    """The labels as int64. DataError for those without a proxy, or proxies of another size."""
    if proxies_CD.dim() != 2 or proxies_CD.shape[1] != embeddings_BD.shape[1]:
        raise DataError(
            f"proxies are {tuple(proxies_CD.shape)}, embeddings {tuple(embeddings_BD.shape)}: needed are (C, D), (B, D)"
        )
    if labels_B.dtype.is_floating_point or labels_B.dtype == torch.bool:
        raise DataError(f"labels are {labels_B.dtype}, needed are integers: the rows of their proxies")
    label_B = labels_B.to(torch.int64)
    if len(label_B):
        low, high = (int(v) for v in label_B.aminmax())
        if low < 0 or high >= len(proxies_CD):
            raise DataError(
                f"a label is {low if low < 0 else high}, and there are {len(proxies_CD)} proxies, one an identity: "
                f"labels must be 0 to {len(proxies_CD) - 1}"
            )
    return label_B


class ProxyAnchor(nn.Module):
    """`proxy_anchor` with the proxies that it learns; they begin at random, by torch's seed."""

    def __init__(
        self, *, identities: int, embedding_size: int, alpha: float = 32.0, delta: float = 0.1
    ) -> None:
        super().__init__()
        if identities < 1 or embedding_size < 1:
            raise ConfigError(f"{identities} proxies of {embedding_size} numbers: both must be at least 1")
        within("alpha", alpha, 0.01, 300)
        within("delta", delta, 0, 1)
        self.alpha, self.delta = alpha, delta
        self.proxies = nn.Parameter(torch.randn(identities, embedding_size) * (2 / identities) ** 0.5)

    @torch.no_grad()
    def start_from(self, means_CD: Tensor) -> None:
        """Begin at the identities' mean embeddings instead; a mean of 0 leaves its proxy as it is."""
        known = means_CD.ne(0).any(1)
        self.proxies[known] = means_CD[known].to(self.proxies)

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor) -> LossRecord:
        """The loss of a batch; its labels are rows of the proxies."""
        return proxy_anchor(embeddings_BD, labels_B, self.proxies, alpha=self.alpha, delta=self.delta)

    def extra_repr(self) -> str:
        """The options."""
        return f"{tuple(self.proxies.shape)}, alpha={self.alpha}, delta={self.delta}"
