"""Who is it: open-set identification against a gallery, and a linear SVM on the embeddings.

Shapes: N gallery images, Q probe images, D embedding, M probes of people in the gallery, O of others.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError
from facemetric.evaluation.curves import FarPoint, Ints, Scores, tar_at_far
from facemetric.evaluation.intervals import Interval, mean_intervals, open_set_intervals
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.verification import unit_rows

NEVER = -2.0  # below every cosine: a known probe whose best match is wrong is identified at no threshold

# People and images of each that an SVM is trained on: five folds then take about half a minute of one core.
SVM_MOST = (200, 30)


@dataclass(frozen=True)
class Identification:
    """Open-set identification by the single best match in the gallery.

    `rank_1`: share of the M known probes whose best match is right, at any score. `points`: for each wanted
    FPIR (share of the O unknown probes that match anybody), `tar` is the TPIR (share of the M known ones
    whose best match is right and >= threshold), `far` the FPIR reached. `best`, `score`, `right`, (Q,): the
    gallery row that each probe matched, how well, and whether it is the probe's person.
    """

    rank_1: float
    points: tuple[FarPoint, ...]
    known: int
    unknown: int
    best: Ints = field(compare=False, repr=False)
    score: npt.NDArray[np.float32] = field(compare=False, repr=False)
    right: npt.NDArray[np.bool_] = field(compare=False, repr=False)
    is_known: npt.NDArray[np.bool_] = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names; what is undefined is None."""
        fpir = {}
        for p in self.points:
            ok = p.supported
            fpir[f"{p.wanted:g}"] = {
                "supported": ok,
                "tpir": p.tar if ok else None,
                "fpir": p.far if ok else None,
                "threshold": p.threshold if ok and np.isfinite(p.threshold) else None,
            }
        counts = {"known_probes": self.known, "unknown_probes": self.unknown}
        return {**counts, "rank_1": self.rank_1, "tpir_at_fpir": fpir}


def identify(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    fpirs: Sequence[float] = (1e-1, 1e-2),
) -> Identification:
    """TPIR at FPIR of probes (Q, D) against a gallery (N, D). Probes of people in the gallery are known ones.

    Source of the terms: ISO/IEC 19795-1. Raises DataError where known or unknown probes lack.
    """
    who_N, who_Q = np.asarray(gallery_labels), np.asarray(probe_labels)
    best = nearest(probe, gallery, 1)
    if who_N.shape != (len(np.asarray(gallery)),) or who_Q.shape != (len(best.rows),):
        raise DataError(f"labels of shapes {who_N.shape} and {who_Q.shape}; needed one an embedding")
    known = np.isin(who_Q, who_N)
    if not known.any() or known.all():
        raise DataError(
            f"{known.sum()} known and {(~known).sum()} unknown probes; open-set identification needs both"
        )
    score, right = best.score[:, 0], who_N[best.rows[:, 0]] == who_Q
    # A known probe whose best match is someone else counts, but is not identified at any threshold.
    hits = Scores(int(known.sum()), np.sort(score[known & right]))
    points = (tar_at_far(hits, Scores.listed(score[~known]), f) for f in fpirs)
    return Identification(
        float(right[known].mean()),
        tuple(points),
        int(known.sum()),
        int((~known).sum()),
        best.rows[:, 0],
        score,
        right,
        known,
    )


class OpenSet(NamedTuple):
    """Rows of the gallery and of the probes, drawn so that some probes are of people who are not enrolled."""

    gallery: Ints
    probes: Ints


def draw_open_set(labels: npt.ArrayLike, *, seed: int = 0) -> OpenSet:
    """Half of the people (N,) with two images or more are enrolled with one image, drawn; all other images,
    theirs and everybody else's, are probes. Raises DataError where there are fewer than two such people.
    """
    names, who_N, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    several = rng.permutation(np.flatnonzero(sizes >= 2))
    if len(several) < 2 or len(names) < 2:
        raise DataError(
            f"{len(several)} of {len(names)} people have two images or more; an open set needs two such people"
        )
    enrolled = np.zeros(len(names), bool)
    enrolled[several[: len(several) // 2]] = True
    order = rng.permutation(len(who_N))
    first = np.unique(who_N[order], return_index=True)[1]  # the first drawn image of each person
    gallery = np.sort(order[first[enrolled]])
    return OpenSet(gallery, np.setdiff1d(np.arange(len(who_N)), gallery))


def identification_intervals(
    found: Identification, probe_labels: npt.ArrayLike, *, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of `rank_1` and `tpir_at_fpir_X`: the people of the probes (Q,) drawn anew, the gallery stays."""
    who_Q, known = np.asarray(probe_labels), found.is_known
    rank_1 = mean_intervals({"rank_1": found.right[known]}, who_Q[known], seed=seed)
    score_known = np.where(found.right[known], found.score[known], NEVER)
    fpirs = [p.wanted for p in found.points]
    scores = (score_known, who_Q[known], found.score[~known], who_Q[~known])
    return rank_1 | open_set_intervals(*scores, fpirs, seed=seed)


class SvmAccuracy(NamedTuple):
    """Accuracy 0..1 of a linear SVM: the mean over `folds`, the sample deviation, and who took part.

    `people_left_out` have fewer images than folds; `people_not_drawn` and `images_not_drawn` (of those drawn)
    would have made it take too long. `folds` 0: it learned from a gallery, without a deviation (0);
    `people_left_out` are not in it. `interval`: of the share of images that are right, people drawn anew.
    """

    mean: float
    deviation_sample: float
    folds: int
    people: int
    people_left_out: int
    people_not_drawn: int
    images: int
    images_not_drawn: int
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        return {
            "accuracy": self.mean,
            "standard_deviation_sample": self.deviation_sample,
            "folds": self.folds,
            "people": self.people,
            "people_left_out": self.people_left_out,
            "people_not_drawn": self.people_not_drawn,
            "images": self.images,
            "images_not_drawn": self.images_not_drawn,
            "intervals_95": {"accuracy": {"low": self.interval.low, "high": self.interval.high}},
        }

    def took_part(self) -> str:
        """Whose images were classified, in words."""
        how = f"{self.folds} folds" if self.folds else "learned from the gallery"
        parts = [f"{self.images:,} images of {self.people:,} people, {how}"]
        if self.people_left_out:
            why = "of fewer images" if self.folds else "who are not in it"
            parts.append(f"{self.people_left_out:,} people {why} left out")
        if self.people_not_drawn or self.images_not_drawn:
            parts.append(
                f"drawn from {self.people + self.people_not_drawn:,} people, with {self.images_not_drawn:,} more "
                "images of those drawn"
            )
        return "; ".join(parts)


def svm_accuracy(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    folds: int = 5,
    c: float = 1.0,
    most: tuple[int, int] = SVM_MOST,
    seed: int = 0,
) -> SvmAccuracy:
    """Closed-set accuracy of scikit-learn's LinearSVC on unit embeddings (N, D), in stratified folds.

    Each image is judged by an SVM that saw other images of its person, never this one. People with fewer than
    `folds` images are left out and counted. `c` is the SVM's C. One SVM a person sees every image, so the time
    grows as people x images: `most` (people, images of each) are drawn where there are more, and the record says
    so; more people are harder to tell apart, so compare figures of as many.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.svm import LinearSVC

    emb_ND = unit_rows(embeddings)
    names, who_N, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(who_N) != len(emb_ND):
        raise DataError(f"{len(who_N)} labels for {len(emb_ND)} embeddings; needed one each")
    enough = np.flatnonzero(sizes >= folds)
    if len(enough) < 2:
        raise DataError(
            f"{len(enough)} of {len(names)} people have {folds} images or more; an SVM needs two people"
        )
    rng = np.random.default_rng(seed)
    people = enough if len(enough) <= most[0] else rng.choice(enough, most[0], replace=False)
    rows = draw_of_each(np.where(np.isin(who_N, people), who_N, -1), max(folds, most[1]), rng)
    emb_MD, who_M = emb_ND[rows], who_N[rows]
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # The default 1,000 rounds end before the last digit settles; the accuracy does not feel it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        right = cross_val_predict(LinearSVC(C=c, random_state=seed), emb_MD, who_M, cv=split) == who_M
    shares = np.array([right[test].mean() for _, test in split.split(emb_MD, who_M)])
    return SvmAccuracy(
        float(shares.mean()),
        float(shares.std(ddof=1)),
        folds,
        len(people),
        len(names) - len(enough),
        len(enough) - len(people),
        len(who_M),
        int(sizes[people].sum()) - len(who_M),
        mean_intervals({"accuracy": right}, who_M, seed=seed)["accuracy"],
    )


def draw_of_each(who_N: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Rows of at most `most` images of each person (N,), drawn, rising; -1 is nobody."""
    shuffled = rng.permutation(np.flatnonzero(who_N >= 0))
    order = shuffled[np.argsort(who_N[shuffled], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(who_N[order], who_N[order])
    return np.sort(order[place < most])


def svm_of_gallery(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    c: float = 1.0,
    seed: int = 0,
) -> SvmAccuracy:
    """Closed-set accuracy on unit embeddings (N, D) of a LinearSVC that learned all of a gallery (G, D).

    Images of people who are not in the gallery are left out, and these people counted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    who_G, who_N = np.asarray(gallery_labels), np.asarray(labels)
    known_N = np.isin(who_N, who_G)
    if len(np.unique(who_G)) < 2 or not known_N.any():
        raise DataError("an SVM needs a gallery of two people, and images of people who are in it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as above
        machine = LinearSVC(C=c, random_state=seed).fit(unit_rows(gallery), who_G)
    right = machine.predict(unit_rows(embeddings)[known_N]) == who_N[known_N]
    return SvmAccuracy(
        float(right.mean()),
        0.0,
        0,
        len(np.unique(who_G)),
        len(np.unique(who_N[~known_N])),
        0,
        int(known_N.sum()),
        0,
        mean_intervals({"accuracy": right}, who_N[known_N], seed=seed)["accuracy"],
    )
