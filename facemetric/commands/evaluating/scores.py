"""What eval measures: listed pairs or all, neighbours, identities, and other models beside the first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from facemetric.commands.evaluating.calibrate import calibrate_listed
from facemetric.commands.evaluating.compare import compare
from facemetric.commands.evaluating.inputs import EvalInputs
from facemetric.commands.evaluating.overlap import overlap_notes
from facemetric.commands.evaluating.pairs import (
    Scored,
    identities_in,
    listed_scores,
    score_all_pairs,
    score_listed,
)
from facemetric.config import EvalConfig
from facemetric.errors import DataError
from facemetric.evaluation.identification import (
    draw_open_set,
    identification_intervals,
    identify,
)
from facemetric.evaluation.intervals.records import Interval, mean_intervals
from facemetric.evaluation.retrieval import Retrieval, gallery_probe, leave_one_out
from facemetric.evaluation.svm import svm_accuracy, svm_of_gallery
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.record import (
    GALLERY,
    NEIGHBOURS,
    Evaluation,
    Identified,
    Retrieved,
)

KNN, RECALL, FPIRS = (1, 5), (1, 5, 10), (1e-1, 1e-2, 1e-3)
NEED_IMAGES = ("all_pairs", "gallery", "svm")  # options that score the images themselves, beside neighbours


def score(config: EvalConfig, inputs: EvalInputs) -> Evaluation:
    """Everything that is asked for, family by family."""
    scored = Scored(notes=list(inputs.warnings))
    if inputs.pooled is not None:
        scored.families["templates"] = inputs.pooled
    identities, cosines = None, None
    if inputs.listed is not None:
        identities, cosines = identities_in(inputs), listed_scores(inputs.listed, inputs.table)
        score_listed(config, inputs, identities, cosines, scored)
        calibrate_listed(config, inputs, identities, cosines, scored)
    elif config.all_pairs:
        score_all_pairs(config, inputs, scored)
    if config.data or config.embeddings:
        score_neighbours(config, inputs, scored)
        score_gallery(config, inputs, scored)
        score_open_set(config, inputs, scored)
        score_svm(config, inputs, scored)
    if inputs.others:
        compare(config, inputs, identities, cosines, scored)
    return Evaluation(
        config.out, inputs.table, inputs.images, inputs.gallery, scored.families, tuple(scored.notes)
    )


def score_neighbours(config: EvalConfig, inputs: EvalInputs, scored: Scored) -> None:
    """Leave-one-out neighbours over the table; a note alone where no identity has two images."""
    table = inputs.table
    _, counts = np.unique(table.identities, return_counts=True)
    if counts.max() < 2 or len(counts) < 2:
        scored.notes.append(
            f"no nearest neighbours: at least two identities, one with two {thing_of(inputs)}s, are needed"
        )
        return
    most = len(table) - 1
    found = leave_one_out(
        table.embeddings,
        table.identities,
        knn=up_to(most, KNN),
        recall=up_to(most, RECALL),
        device=inputs.device,
    )
    intervals = retrieval_intervals(found, table, config.seed)
    scored.families["neighbours"] = Retrieved(found, intervals, NEIGHBOURS, thing_of(inputs))


def thing_of(inputs: EvalInputs) -> str:
    """What is scored."""
    return "image" if inputs.pooled is None else "template"


def up_to(most: int, ks: tuple[int, ...]) -> list[int]:
    """Those of some numbers of neighbours that there are images for."""
    return [k for k in ks if k <= most]


def retrieval_intervals(found: Retrieval, queries: EmbeddingTable, seed: int) -> dict[str, Interval]:
    """Intervals of the figures of retrieval: the people who ask are resampled, the gallery stays."""
    return mean_intervals(found.each.figures, queries.identities[found.each.rows], seed=seed)


def not_enrolled(inputs: EvalInputs) -> EmbeddingTable | None:
    """The images that are not in the gallery; None where there are none."""
    rows = np.setdiff1d(np.arange(len(inputs.table)), inputs.overlap.probes)
    return inputs.table.rows(rows) if len(rows) else None


def score_gallery(config: EvalConfig, inputs: EvalInputs, scored: Scored) -> None:
    """Retrieval from the gallery, where there is one; a note alone where every image finds only itself there."""
    table, gallery = inputs.table, inputs.gallery
    if gallery is None:
        return
    scored.notes += overlap_notes(inputs.overlap, len(table))
    try:
        near = gallery_probe(
            gallery.embeddings,
            gallery.identities,
            table.embeddings,
            table.identities,
            knn=up_to(len(gallery), KNN),
            recall=up_to(len(gallery), RECALL),
            itself=inputs.overlap,
            device=inputs.device,
        )
    except DataError as error:
        if not inputs.overlap.images():  # nobody has a name of the gallery: most often a slip in the names
            raise
        scored.notes.append(f"no retrieval from the gallery: {error}")
        return
    intervals = retrieval_intervals(near, table, config.seed)
    scored.families["gallery"] = Retrieved(near, intervals, GALLERY, thing_of(inputs))


class OpenSet(NamedTuple):
    """Who is enrolled, and who is looked for: some of them people who are not enrolled."""

    gallery: EmbeddingTable
    probes: EmbeddingTable


def score_open_set(config: EvalConfig, inputs: EvalInputs, scored: Scored) -> None:
    """Open-set identification; a note alone where there is nobody to find, or no stranger."""
    sets = open_set(config, inputs)
    if isinstance(sets, str):
        scored.notes.append(sets)
        return
    gallery, probes = sets
    arguments = gallery.embeddings, gallery.identities, probes.embeddings, probes.identities
    closed = bool(np.isin(probes.identities, gallery.identities).all())
    if closed:
        scored.notes.append("no open-set identification: every image is of a person in the gallery")
    identified = identify(*arguments, fpirs=FPIRS, closed=closed, device=inputs.device)
    bounds = identification_intervals(identified, probes.identities, seed=config.seed)
    scored.families["identification"] = Identified(identified, bounds)


def open_set(config: EvalConfig, inputs: EvalInputs) -> OpenSet | str:
    """The gallery and the images that are not in it, or else people who are drawn; or why there is no such set."""
    table, gallery = inputs.table, inputs.gallery
    if gallery is None:
        sizes = np.unique(table.identities, return_counts=True)[1]
        if (sizes >= 2).sum() < 2:
            return "no identification: at least two identities with two images are needed, or a --gallery"
        split = draw_open_set(table.identities, seed=config.seed)
        return OpenSet(table.rows(split.gallery), table.rows(split.probes))
    probes = not_enrolled(inputs)
    if probes is None:
        return "no open-set identification: every image is of a person in the gallery"
    if not np.isin(probes.identities, gallery.identities).any():
        return "no open-set identification: every image that is not in the gallery is of somebody else"
    return OpenSet(gallery, probes)


def score_svm(config: EvalConfig, inputs: EvalInputs, scored: Scored) -> None:
    """The linear SVM where --svm asks for it; a note alone where there are too few people or images for one."""
    if not config.svm:
        return
    own, gallery = inputs.table, inputs.gallery
    try:
        if gallery is None:
            scored.families["svm"] = svm_accuracy(own.embeddings, own.identities, seed=config.seed)
            return
        judged = not_enrolled(inputs)  # an SVM knows what it learned from
        if judged is None:
            scored.notes.append("no linear SVM: every image is in the gallery that it learns from")
            return
        arguments = gallery.embeddings, gallery.identities, judged.embeddings, judged.identities
        scored.families["svm"] = svm_of_gallery(*arguments, seed=config.seed)
    except DataError as error:
        scored.notes.append(f"no linear SVM: {error}")
