"""Where the smallest number of a row or a column is, by its bits: positive floats order as integers do.

Shapes: R and C rows and columns of a tile, K chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Two levels of minimum find an index in half the time of argmin, which does not vectorise on a CPU.
CHUNK = 32

# numpy's argmin is vectorised, but runs on one core: up to this many entries it is the fastest.
NUMPY_ENTRIES = 2**18

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def argmin_rows(bits_RC: Tensor) -> Tensor:
    """Column (R,) of the minimum of each row; integers only, where it is fastest."""
    C = bits_RC.shape[1]
    if bits_RC.device.type == "cpu" and bits_RC.numel() <= NUMPY_ENTRIES:
        return torch.from_numpy(bits_RC.numpy().argmin(1))
    if C < 4 * CHUNK:
        return bits_RC.argmin(1)
    full = C - C % CHUNK
    best_RK = bits_RC[:, :full].unflatten(1, (-1, CHUNK)).amin(2)
    if full < C:  # the last chunk reaches back, so that all have one width
        best_RK = torch.cat([best_RK, bits_RC[:, C - CHUNK :].amin(1, keepdim=True)], 1)
    start_R1 = (best_RK.argmin(1, keepdim=True) * CHUNK).clamp_(max=C - CHUNK)
    at_R = bits_RC.gather(1, start_R1 + torch.arange(CHUNK, device=bits_RC.device)).argmin(1)
    return start_R1[:, 0] + at_R


def argmin_columns(bits_RC: Tensor) -> Tensor:
    """Row (C,) of the minimum of each column."""
    R, C = bits_RC.shape
    if R < 4 * CHUNK:
        return argmin_rows(bits_RC.T.contiguous())
    full = R - R % CHUNK
    best_KC = bits_RC[:full].unflatten(0, (-1, CHUNK)).amin(1)
    if full < R:
        best_KC = torch.cat([best_KC, bits_RC[R - CHUNK :].amin(0, keepdim=True)])
    start_C1 = (best_KC.T.contiguous().argmin(1, keepdim=True) * CHUNK).clamp_(max=R - CHUNK)
    step = torch.arange(CHUNK, device=bits_RC.device)
    at_C = bits_RC[start_C1 + step, torch.arange(C, device=step.device)[:, None]].argmin(1)
    return start_C1[:, 0] + at_C
