"""Thresholds from the validation identities, kept with the weights that a stage leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from facemetric.data.index import ImageIndex
from facemetric.errors import DataError
from facemetric.evaluation.inference import usual_size
from facemetric.evaluation.stored import Stored, store_thresholds
from facemetric.evaluation.thresholds import choose_thresholds, supported_fars
from facemetric.model.embedder import Embedder
from facemetric.model.weights import load_weights
from facemetric.training import distributed
from facemetric.training.distributed import say
from facemetric.training.run import Run

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
CHOSEN_ON = "the training's validation identities, which also chose its best epoch"


def keep_thresholds(
    run: Run,
    val: ImageIndex | None,
    embeddings: Callable[[Embedder], tuple[np.ndarray, np.ndarray]],
    device: torch.device,
    seed: int,
) -> None:
    """Store a threshold for each of FARS that the validation identities support with the run's best weights.

    `embeddings` gives the embeddings (N, D) and identities (N,) of `val` for an embedder."""
    if val is None or distributed.rank() > 0:
        return
    emb_ND, who_N = embeddings(load_weights(run.best, device))
    fars = supported_fars(who_N, FARS)
    try:
        kept = choose_thresholds(emb_ND, who_N, fars, seed=seed) if fars else ()
    except DataError as error:  # a training ends well all the same
        say(f"no threshold is stored: {error}")
        return
    size = usual_size(val)
    store_thresholds(run.best, [Stored(t, False, CHOSEN_ON, val.fingerprint, size) for t in kept])
    said = ", ".join(f"{t.threshold.value:.4f} at FAR {t.wanted_far:g}" for t in kept) or "none"
    few = [f"{far:g}" for far in FARS if far not in fars]
    note = f" (too few pairs for FAR {', '.join(few)})" if few else ""
    say(f"thresholds from {len(who_N):,} validation images: {said}{note}")
