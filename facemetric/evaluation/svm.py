"""A linear SVM on the embeddings: how well people can be told apart once some images of each are known.

Shapes: N images, G gallery images, D embedding, M images that are drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError, plural
from facemetric.evaluation.curves import Ints
from facemetric.evaluation.figures import Figure, Heading
from facemetric.evaluation.intervals.records import Interval, mean_intervals
from facemetric.evaluation.table import unit_rows

# People and images of each that an SVM is trained on: five folds then take about half a minute of one core.
SVM_MOST = (200, 30)


class SvmAccuracy(NamedTuple):
    """Accuracy 0..1 of a linear SVM: the mean over `folds`, the sample deviation, and who took part.

    `people_left_out` have fewer images than folds; `people_not_drawn` and `images_not_drawn` (of those drawn)
    would have made it take too long. `folds` 0: it learned from a gallery, without a deviation (0);
    `people_left_out` are not in it. `interval`: of the share of images that are right, people resampled;
    None where all are of one person.
    """

    mean: float
    deviation_sample: float
    folds: int
    people: int
    people_left_out: int
    people_not_drawn: int
    images: int
    images_not_drawn: int
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        bounds = self.interval
        return {
            "accuracy": self.mean,
            "standard_deviation_sample": self.deviation_sample,
            "folds": self.folds,
            "people": self.people,
            "people_left_out": self.people_left_out,
            "people_not_drawn": self.people_not_drawn,
            "images": self.images,
            "images_not_drawn": self.images_not_drawn,
            "intervals_95": {"accuracy": {"low": bounds.low, "high": bounds.high}} if bounds else {},
        }

    def figures(self) -> list[Figure]:
        """The accuracy as a row."""
        note = f"standard deviation over {self.folds} folds {self.deviation_sample:.4f}" if self.folds else ""
        heading = Heading("Classification", f"{self.took_part()}.")
        return [Figure("accuracy", "Accuracy of a linear SVM", self.mean, self.interval, heading, note)]

    def took_part(self) -> str:
        """Whose images were classified, in words."""
        trained = f"{self.folds} folds" if self.folds else "learned from the gallery"
        parts = [f"{plural(self.images, 'image')} of {plural(self.people, 'person', 'people')}, {trained}"]
        if self.people_left_out:
            why = "of fewer images" if self.folds else "who are not in it"
            parts.append(f"{plural(self.people_left_out, 'person', 'people')} {why} left out")
        if self.people_not_drawn or self.images_not_drawn:
            before = plural(self.people + self.people_not_drawn, "person", "people")
            parts.append(f"drawn from {before}, with {self.images_not_drawn:,} more images of those drawn")
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
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.svm import LinearSVC

    emb_ND = unit_rows(embeddings)
    names, identity_N, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(identity_N) != len(emb_ND):
        raise DataError(f"{len(identity_N)} labels for {len(emb_ND)} embeddings; needed one each")
    enough = np.flatnonzero(sizes >= folds)
    if len(enough) < 2:
        raise DataError(
            f"{len(enough)} of {len(names)} people have {folds} images or more; an SVM needs two people"
        )
    rng = np.random.default_rng(seed)
    people = enough if len(enough) <= most[0] else rng.choice(enough, most[0], replace=False)
    rows = draw_of_each(_only(people, identity_N), max(folds, most[1]), rng)
    emb_MD, identity_M = emb_ND[rows], identity_N[rows]
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with _rounds_may_run_out():
        right = (
            cross_val_predict(LinearSVC(C=c, random_state=seed), emb_MD, identity_M, cv=split) == identity_M
        )
    shares = np.array([right[test].mean() for _, test in split.split(emb_MD, identity_M)])
    return SvmAccuracy(
        float(shares.mean()),
        float(shares.std(ddof=1)),
        folds,
        len(people),
        len(names) - len(enough),
        len(enough) - len(people),
        len(identity_M),
        int(sizes[people].sum()) - len(identity_M),
        mean_intervals({"accuracy": right}, identity_M, seed=seed)["accuracy"],
    )


def svm_of_gallery(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    c: float = 1.0,
    most: tuple[int, int] = SVM_MOST,
    seed: int = 0,
) -> SvmAccuracy:
    """Closed-set accuracy on unit embeddings (N, D) of a LinearSVC that learned from a gallery (G, D).

    Images of people who are not in the gallery are left out, and these people counted. `most` (people, gallery
    images of each) are drawn where there are more, as in `svm_accuracy`: people who are asked for come first.
    """
    from sklearn.svm import LinearSVC

    emb_GD, emb_ND = unit_rows(gallery), unit_rows(embeddings)
    identities = np.unique(
        np.concatenate([np.asarray(gallery_labels), np.asarray(labels)]), return_inverse=True
    )[1]
    if len(identities) != len(emb_GD) + len(emb_ND):
        raise DataError(
            f"{len(identities)} labels for {len(emb_GD) + len(emb_ND)} embeddings; needed one each"
        )
    identity_G, identity_N = identities[: len(emb_GD)], identities[len(emb_GD) :]
    known_N, learned = np.isin(identity_N, identity_G), np.unique(identity_G)
    if len(learned) < 2 or not known_N.any():
        raise DataError("an SVM needs a gallery of two people, and images of people who are in it")
    rng = np.random.default_rng(seed)
    asked = np.unique(identity_N[known_N])
    in_turn = np.concatenate([rng.permutation(asked), rng.permutation(np.setdiff1d(learned, asked))])
    people = in_turn[: most[0]]
    rows = draw_of_each(_only(people, identity_G), most[1], rng)
    judged_N = np.isin(identity_N, people)
    with _rounds_may_run_out():
        machine = LinearSVC(C=c, random_state=seed).fit(emb_GD[rows], identity_G[rows])
    right = machine.predict(emb_ND[judged_N]) == identity_N[judged_N]
    return SvmAccuracy(
        float(right.mean()),
        0.0,
        0,
        len(people),
        len(np.unique(identity_N[~known_N])),
        len(learned) - len(people),
        len(right),
        int(np.isin(identity_G, people).sum()) - len(rows),
        mean_intervals({"accuracy": right}, identity_N[judged_N], seed=seed).get("accuracy"),
    )


def draw_of_each(identity_N: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Rows of at most `most` images of each person (N,), drawn, rising; -1 is nobody."""
    shuffled = rng.permutation(np.flatnonzero(identity_N >= 0))
    order = shuffled[np.argsort(identity_N[shuffled], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(identity_N[order], identity_N[order])
    return np.sort(order[place < most])


def _only(people: Ints, identity_N: Ints) -> Ints:
    """Identities (N,), -1 in place of all but these people."""
    return np.where(np.isin(identity_N, people), identity_N, -1)


@contextmanager
def _rounds_may_run_out() -> Iterator[None]:
    """The default 1,000 rounds end before the last digit settles; the accuracy does not feel it."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
