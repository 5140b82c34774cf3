"""The cosine of embeddings, whoever made them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError


def similarity(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Cosine of every embedding in `a` (N, D) with every one in `b` (M, D): (N, M), float32, -1..1.

    Of two single embeddings (D,) it is one number, an array of shape (); one beside several counts as (1, D). Lengths
    do not matter. Raises DataError where sizes differ, where a number is
    not finite, or where an embedding is all zeros and has no direction."""
    a_ND, b_MD = _unit(a, "a"), _unit(b, "b")
    if a_ND.shape[1] != b_MD.shape[1]:
        raise DataError(
            f"embeddings have {a_ND.shape[1]} and {b_MD.shape[1]} numbers; both must be of one model"
        )
    cosine_NM = np.clip(a_ND @ b_MD.T, -1, 1)
    return cosine_NM.reshape(()) if np.ndim(a) == np.ndim(b) == 1 else cosine_NM


def _unit(rows: npt.ArrayLike, name: str) -> npt.NDArray[np.float32]:
    """Rows (N, D) at length 1. Raises DataError for a row without a direction."""
    rows_ND = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    if rows_ND.ndim != 2:
        raise DataError(f"{name} is of shape {rows_ND.shape}; needed are embeddings (N, D), or one (D,)")
    largest_N1 = np.abs(rows_ND).max(axis=1, keepdims=True, initial=0.0)  # else the square of 1e200 overflows
    wrong = np.flatnonzero(~(np.isfinite(largest_N1) & (largest_N1 > 0)))
    if len(wrong):
        raise DataError(f"embedding {wrong[0]} of {name} is all zeros or not finite: leave it out")
    rows_ND = rows_ND / largest_N1
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)
