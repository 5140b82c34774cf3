"""What a stage says of its validation identities when it ends: the thresholds to use, and what stage two gained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from facemetric import distributed
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.index import ImageIndex
from facemetric.distributed import say
from facemetric.errors import DataError, plural
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.answers import choose_answers, store_answers
from facemetric.evaluation.embed import embed_index, usual_size
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.evaluation.thresholds import Stored, choose_thresholds, store_thresholds, supported_fars
from facemetric.model.embedder import Embedder
from facemetric.model.weights.save_load import load_embedder
from facemetric.training.run.run import Run
from facemetric.training.split import Split

VAL_FARS = (1e-2, 1e-3)
FARS = (1e-1, 1e-2, 1e-3, 1e-4)  # of the thresholds that are kept
CHOSEN_ON = "the training's validation identities, which also chose its best epoch"
CHOSEN_ON_CLOSED = (
    "other images of the identities that the weights were trained on, which also chose the best epoch"
)
CHOSEN_ON_KNOWN = "validation identities, on some of which the weights may have been trained"
COLLAPSED = 0.05  # spread: the mean angle to the mean is under 13 degrees

# Embeddings (N, D) and identities (N,) of the validation images for an embedder.
Embeddings = Callable[[Embedder], tuple[np.ndarray, np.ndarray]]


class OpenSet:
    """Validation by identities never trained on: verification over all pairs, and nearest neighbours."""

    def __init__(self, val: ImageIndex | None, *, workers: int, bad_images: BadImageLog) -> None:
        self.val, self.workers, self.bad_images = val, workers, bad_images

    def __call__(self, embedder: Embedder) -> dict[str, float]:
        """TAR at FAR 1e-2 and 1e-3, EER and leave-one-out 1-NN accuracy, all 0..1; {} without validation data."""
        if self.val is None:
            return {}
        return open_set_figures(*self.embeddings(embedder))

    def embeddings(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and identities (N,) of the validation images that can be read."""
        assert self.val is not None
        embedded = embed_index(embedder, self.val, workers=self.workers, progress="validating")
        note_bad(self.bad_images, self.val, embedded.bad)
        return embedded.table.embeddings, embedded.table.identities


def open_set_figures(embeddings: np.ndarray, identities: np.ndarray) -> dict[str, float]:
    """The validation figures of embeddings (N, D) and identities (N,); no TAR at a FAR that they cannot support."""
    found = verify_all_pairs(embeddings, identities, fars=VAL_FARS)
    figures = {f"val_tar_at_far_{p.wanted:g}": float(p.true_rate) for p in found.points if p.supported}
    figures["val_eer"] = float(found.eer)
    figures["val_auc"] = float(found.auc)
    figures["val_knn_accuracy"] = leave_one_out(embeddings, identities, knn=(1,), recall=(1,)).knn[1]
    return figures


def sum_up(
    run: Run,
    split: Split,
    embeddings: Embeddings,
    device: torch.device,
    seed: int,
    *,
    before: Embedder | None = None,
) -> None:
    """Embed the validation images once with the run's best weights; say what they gain on `before`, where that is
    another embedder, and keep their thresholds. All processes embed, process 0 says and keeps; nothing without
    validation images."""
    if split.val is None:
        return
    distributed.barrier()  # process 0 has written the best weights
    with distributed.work_shared():
        emb_ND, label_N = embeddings(load_embedder(run.best, device))
        first_ND = embeddings(before)[0] if before is not None else None
    if distributed.rank() > 0:
        return
    if first_ND is not None:
        show_gain(run, first_ND, emb_ND, label_N, seed)
    keep_thresholds(run, split, emb_ND, label_N, seed)


def keep_thresholds(run: Run, split: Split, emb_ND: np.ndarray, label_N: np.ndarray, seed: int) -> None:
    """Store a threshold for each of FARS that the validation identities support with the run's best weights."""
    assert split.val is not None
    fars = supported_fars(label_N, FARS)
    try:
        kept = choose_thresholds(emb_ND, label_N, fars, seed=seed) if fars else ()
    except DataError as error:  # the weights are there all the same
        spread = spread_of(emb_ND)
        collapsed = (
            f"the embeddings have collapsed to nearly one point (spread {spread:.3f}); train longer if it has hardly "
            "begun, else lower --lr and start again"
        )
        say(f"no threshold is stored: {collapsed if spread < COLLAPSED else error}")
        return
    size = usual_size(split.val)
    chosen_on = CHOSEN_ON_CLOSED if split.closed else CHOSEN_ON_KNOWN if split.known else CHOSEN_ON
    mark = split.val.fingerprint
    store_thresholds(run.best, [Stored(t, False, chosen_on, mark, size) for t in kept])
    if kept:
        answers = choose_answers(emb_ND, label_N, flip=False, data_fingerprint=mark, seed=seed)
        store_answers(run.best, answers)
    found = ", ".join(f"{t.threshold.value:.4f} at FAR {t.wanted_far:g}" for t in kept) or "none"
    unsupported = [f"{far:g}" for far in FARS if far not in fars]
    note = f" (too few pairs for FAR {', '.join(unsupported)})" if unsupported else ""
    say(f"thresholds from {plural(len(label_N), 'validation image')}: {found}{note}")


def spread_of(emb_ND: np.ndarray) -> float:
    """1 - |mean|^2 of embeddings brought to unit length: 0 where they are one point, near 1 all over the sphere."""
    length_N1 = np.maximum(np.linalg.norm(emb_ND, axis=1, keepdims=True), 1e-30)
    return max(0.0, 1.0 - float(np.square((emb_ND / length_N1).mean(axis=0, dtype=np.float64)).sum()))


def show_gain(
    run: Run, first_ND: np.ndarray, second_ND: np.ndarray, label_N: np.ndarray, seed: int
) -> dict[str, Interval]:
    """Say and log what the second embeddings gain on the first: differences over all validation pairs, with
    intervals at 95 % over identities, which are resampled alike for both."""
    fars = supported_fars(label_N, FARS[1:3])
    found = [verify_all_pairs(emb_ND, label_N, fars=fars) for emb_ND in (first_ND, second_ND)]
    gains = all_pairs_differences((first_ND, second_ND), label_N, (found[0], found[1]), seed=seed)
    shown = [f"{name} {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for name, gain in gains.items()]
    people = plural(len(set(label_N)), "person", "people")
    say(f"gain on the weights it began with [95 % over {people} of validation]: {', '.join(shown)}")
    run.log("gain", 0, **{name: list(gain) for name, gain in gains.items()})
    return gains
