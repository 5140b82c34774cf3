"""What eval measures: listed pairs or all, neighbours, identities, and other models beside the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric.commands.evaluating.compare import compare
from facemetric.commands.evaluating.inputs import EvalInputs, ListedPairs
from facemetric.commands.evaluating.overlap import overlap_notes
from facemetric.config import EvalConfig, require
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.answers import stored_answers
from facemetric.evaluation.calibration import (
    CohortStatistics,
    Logistic,
    adaptive_s_norm,
    calibrate_across_people,
    calibrated,
    cohort_statistics,
)
from facemetric.evaluation.curves import Floats
from facemetric.evaluation.identification import (
    draw_open_set,
    identification_intervals,
    identify,
)
from facemetric.evaluation.intervals.all_pairs import all_pairs_intervals
from facemetric.evaluation.intervals.draws import identities_of_pairs
from facemetric.evaluation.intervals.listed import paired_differences, verification_intervals
from facemetric.evaluation.intervals.records import Interval, mean_intervals
from facemetric.evaluation.retrieval import Retrieval, gallery_probe, leave_one_out, same_images
from facemetric.evaluation.slices.measure import groups_of_pairs, slice_all_pairs, slice_pairs
from facemetric.evaluation.svm import svm_accuracy, svm_of_gallery
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import Verification, hardest_pairs, pair_scores, verify_pairs
from facemetric.machine import pick_device
from facemetric.report.record import (
    GALLERY,
    NEIGHBOURS,
    Evaluation,
    Family,
    Identified,
    Normalized,
    Retrieved,
    Sliced,
    Verified,
)

KNN, RECALL, FPIRS = (1, 5), (1, 5, 10), (1e-1, 1e-2, 1e-3)
COSINES = "cosines"  # what is calibrated
NEED_IMAGES = ("all_pairs", "gallery", "svm")  # options that score the images themselves, beside neighbours


@dataclass
class Scored:
    """Families of figures by name, and notes, as they gather."""

    families: dict[str, Family] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score(config: EvalConfig, inputs: EvalInputs) -> Evaluation:
    """Everything that is asked for, family by family."""
    scored = Scored(notes=list(inputs.warnings))
    if inputs.pooled is not None:
        scored.families["templates"] = inputs.pooled
    identities = identities_in(inputs) if inputs.listed is not None else None
    if identities is not None:
        score_listed(config, inputs, identities, scored)
        calibrate_listed(config, inputs, identities, scored)
    elif config.all_pairs:
        score_all_pairs(config, inputs, scored)
    if config.data or config.embeddings:
        score_neighbours(config, inputs, scored)
        score_gallery(config, inputs, scored)
        score_open_set(config, inputs, scored)
        score_svm(config, inputs, scored)
    if inputs.others:
        compare(config, inputs, identities, scored)
    return Evaluation(
        config.out, inputs.table, inputs.images, inputs.gallery, scored.families, tuple(scored.notes)
    )


class PairIdentities(NamedTuple):
    """The identities (P,) of the first and the second image of each listed pair; and a note about them."""

    of_a: npt.NDArray
    of_b: npt.NDArray
    note: str = ""
    agree: bool = True
    """Whether the pairs agree about who is who: without that there are no intervals."""


def identities_in(inputs: EvalInputs) -> PairIdentities:
    """The identities of the listed pairs: the table's identities, or else what genuine pairs link."""
    listed, table = inputs.listed, inputs.table
    assert listed is not None
    rows_a, rows_b, same = listed.rows_a, listed.rows_b, listed.pairs.same
    # Names of millions of pairs are gigabytes.
    number_N = np.unique(table.identities, return_inverse=True)[1].astype(np.int32)
    of_a, of_b = number_N[rows_a], number_N[rows_b]
    misfit = np.flatnonzero((of_a == of_b) != same)
    if not len(misfit):
        return PairIdentities(of_a, of_b)
    # Folders that are no identities, or a wrong label.
    first = " and ".join(table.name(int(rows[misfit[0]])) for rows in (rows_a, rows_b))
    note = f"the identities do not fit {len(misfit):,} of {len(same):,} pairs (first {first})"
    linked_a, linked_b = identities_of_pairs(rows_a, rows_b, same)
    wrong = int(((linked_a == linked_b) != same).sum())
    if wrong:
        lost = "no intervals, and nothing by group" if groups_in(inputs) else "no intervals"
        note = f"{lost}: {note}, and {wrong:,} pairs contradict others about who is who"
        return PairIdentities(linked_a, linked_b, note, agree=False)
    return PairIdentities(
        linked_a, linked_b, f"{note}: for the intervals, people are what genuine pairs link"
    )


def groups_in(inputs: EvalInputs) -> Mapping[str, npt.NDArray]:
    """The groups of the listed pairs by column: those of the images, and those of the pairs' own file."""
    listed = inputs.listed
    assert listed is not None
    return groups_of_pairs(inputs.table.groups, listed.rows_a, listed.rows_b) | listed.pairs.groups


def score_listed(config: EvalConfig, inputs: EvalInputs, identities: PairIdentities, scored: Scored) -> None:
    """Verification of listed pairs, its intervals over people, its slices."""
    listed = inputs.listed
    assert listed is not None
    groups = groups_in(inputs)
    score, verification = verify_listed(config, listed, inputs.table)
    scored.notes += [*listed.notes, *filter(None, [identities.note])]
    if not identities.agree:
        scored.families["verification"] = Verified(str(config.pairs), verification)
        return
    arguments = score, listed.pairs.same, (identities.of_a, identities.of_b)
    fold = fold_of(verification)
    bounds = verification_intervals(*arguments, fars=config.fars, fold=fold, seed=config.seed)
    slices = slice_pairs(*arguments, verification.points, groups, seed=config.seed)
    scored.families["verification"] = Verified(str(config.pairs), verification, bounds.figures, bounds.band)
    if slices:
        scored.families["slices"] = Sliced(slices)


def calibrate_listed(
    config: EvalConfig, inputs: EvalInputs, identities: PairIdentities, scored: Scored
) -> None:
    """The scores of listed pairs normalized by a cohort, and calibrated; a note alone where people are too few."""
    listed, table = inputs.listed, inputs.table
    assert listed is not None
    score: Floats = pair_scores(table.embeddings, listed.rows_a, listed.rows_b)
    what = COSINES
    if inputs.cohort is not None:
        what = f"cosines after adaptive s-norm with {len(inputs.cohort):,} images"
        score = normalize_listed(config, inputs, identities, scored, score)
    if config.calibration == "off":
        return
    who = (identities.of_a, identities.of_b)
    try:
        if config.calibration == "stored":
            curves = [stored_curve(config, inputs)]
            ratio = curves[0].ratios(score)
        else:
            if not identities.agree:
                raise DataError("the pairs contradict one another about who is who")
            ratio, curves = calibrate_across_people(score, listed.pairs.same, who, seed=config.seed)
    except DataError as error:
        scored.notes.append(f"no calibration: {error}")
        return
    scored.families["calibration"] = calibrated(
        ratio,
        listed.pairs.same,
        curves,
        how=config.calibration,
        scores=what,
        identities=who if identities.agree else None,
        seed=config.seed,
    )


def normalize_listed(
    config: EvalConfig,
    inputs: EvalInputs,
    identities: PairIdentities,
    scored: Scored,
    score: Floats,
) -> Floats:
    """Scores (P,) after adaptive s-norm; their verification goes beside that of the cosines."""
    listed, table, cohort = inputs.listed, inputs.table, inputs.cohort
    assert listed is not None
    assert cohort is not None
    if shared := same_images(table.embeddings, cohort.embeddings).images():
        raise DataError(
            f"{shared:,} of the {len(table):,} images are in the cohort too; give a cohort of other images, of other "
            "people"
        )
    found = cohort_statistics(table.embeddings, cohort.embeddings, config.cohort_top)
    sides = [
        CohortStatistics(found.mean[rows], found.deviation[rows]) for rows in (listed.rows_a, listed.rows_b)
    ]
    normed = adaptive_s_norm(score, *sides)
    same, fold = listed.pairs.same, listed.pairs.fold
    verification = replace(
        verify_pairs(normed, same, fold=fold, fars=config.fars, folds=config.folds, seed=config.seed),
        score="cosine similarity after adaptive s-norm",
    )
    name = f"s-norm, top {min(config.cohort_top, len(cohort))} of {len(cohort):,}"
    if not identities.agree:
        scored.families["normalized"] = Normalized(name, Verified(str(config.pairs), verification))
        return normed
    who, folds = (identities.of_a, identities.of_b), fold_of(verification)
    bounds = verification_intervals(normed, same, who, fars=config.fars, fold=folds, seed=config.seed)
    differences = paired_differences(
        (score, normed), same, who, fars=config.fars, fold=folds, seed=config.seed
    )
    verified = Verified(str(config.pairs), verification, bounds.figures, bounds.band)
    scored.families["normalized"] = Normalized(name, verified, differences)
    return normed


def stored_curve(config: EvalConfig, inputs: EvalInputs) -> Logistic:
    """The curve that the weights keep, which was fitted on the people that they were calibrated on."""
    weights = inputs.weights
    found = None if weights is None or weights.onnx is not None else stored_answers(weights.folder)
    probability = None if found is None else found.probability
    if found is None or probability is None:
        raise ConfigError(
            "--calibration stored: these weights keep no probability; run facemetric calibrate on them, or choose "
            "--calibration people"
        )
    require(
        found.flip == config.flip,
        f"--calibration stored: the stored curve is of embeddings {'with' if found.flip else 'without'} --flip",
    )
    return Logistic(probability.slope, probability.intercept)


def verify_listed(
    config: EvalConfig, listed: ListedPairs, table: EmbeddingTable
) -> tuple[npt.NDArray[np.float64], Verification]:
    """Scores and figures of the pairs by one model."""
    pairs = listed.pairs
    score = pair_scores(table.embeddings, listed.rows_a, listed.rows_b)
    found = verify_pairs(
        score, pairs.same, fold=pairs.fold, fars=config.fars, folds=config.folds, seed=config.seed
    )
    return score, replace(found, hardest=hardest_pairs(score, pairs.same, listed.rows_a, listed.rows_b))


def fold_of(found: Verification) -> npt.NDArray:
    """The fold of each listed pair."""
    assert found.accuracy is not None
    return found.accuracy.fold


def score_all_pairs(config: EvalConfig, inputs: EvalInputs, scored: Scored) -> None:
    """Verification of all pairs, its intervals over people, its slices."""
    arguments = inputs.table.embeddings, inputs.table.identities
    found = verify_all_pairs(*arguments, fars=config.fars, device=device_of_tiles(config.device))
    bounds = all_pairs_intervals(*arguments, found, seed=config.seed)
    slices = slice_all_pairs(*arguments, found.points, inputs.table.groups, seed=config.seed)
    scored.families["verification"] = Verified("all", found, bounds.figures, bounds.band)
    if slices:
        scored.families["slices"] = Sliced(slices)


def device_of_tiles(wanted: str) -> torch.device | None:
    """The GPU that makes and counts the tiles of all pairs, where --device is one; None for the threads of the CPU."""
    device = pick_device(wanted)
    return device if device.type == "cuda" else None


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
        table.embeddings, table.identities, knn=up_to(most, KNN), recall=up_to(most, RECALL)
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
    identified = identify(*arguments, fpirs=FPIRS, closed=closed)
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
