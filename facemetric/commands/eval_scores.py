"""What eval measures: listed pairs or all, neighbours, identities, and a second model beside the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.commands.eval_inputs import Tables
from facemetric.config import EvalConfig
from facemetric.data.pair_images import distinct_pairs, resolve
from facemetric.data.pairs import Ints, Pairs
from facemetric.errors import DataError
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.identification import (
    draw_open_set,
    identification_intervals,
    identify,
)
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences, all_pairs_intervals
from facemetric.evaluation.intervals.draws import persons_of_pairs
from facemetric.evaluation.intervals.listed import paired_differences, verification_intervals
from facemetric.evaluation.intervals.records import Interval, mean_intervals
from facemetric.evaluation.retrieval import (
    NO_OVERLAP,
    Overlap,
    Retrieval,
    gallery_probe,
    leave_one_out,
    same_images,
)
from facemetric.evaluation.slices import groups_of_pairs, slice_all_pairs, slice_pairs
from facemetric.evaluation.svm import svm_accuracy, svm_of_gallery
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import (
    Verification,
    check_folds,
    hardest_pairs,
    pair_scores,
    verify_pairs,
)
from facemetric.report.record import Comparison

KNN, RECALL, FPIRS = (1, 5), (1, 5, 10), (1e-1, 1e-2, 1e-3)
ALONE = {"slices": "groups", "gallery": "gallery", "identification": "identification", "svm": "linear SVM"}


class Listed(NamedTuple):
    """Listed pairs found in the table, each once: rows, persons (as numbers) and groups of each, (P,). `notes` say
    what was left out, where folds hold one kind alone, and where persons lack."""

    pairs: Pairs
    rows_a: Ints
    rows_b: Ints
    persons: tuple[Any, Any] | None
    groups: Mapping[str, npt.NDArray]
    notes: tuple[str, ...] = ()


def list_pairs(config: EvalConfig, pairs: Pairs, table: EmbeddingTable) -> Listed:
    """The rows of the pairs, whose persons are the table's identities, or else what genuine pairs link."""
    listed = distinct_pairs(pairs, *resolve(pairs, table, missing_list=config.out / "missing_images.txt"))
    pairs, rows_a, rows_b = listed[:3]
    notes = [*listed.notes(), check_folds(pairs.same, pairs.fold) if pairs.fold is not None else ""]
    groups = groups_of_pairs(table.groups, rows_a, rows_b) | pairs.groups
    who = np.unique(table.identities, return_inverse=True)[
        1
    ]  # numbers: names of millions of pairs are gigabytes
    persons: tuple[Any, Any] | None = (who[rows_a], who[rows_b])
    misfit = np.flatnonzero((who[rows_a] == who[rows_b]) != pairs.same)
    if len(misfit):  # folders that are no identities, or a wrong label
        first = " and ".join(table.name(int(rows[misfit[0]])) for rows in (rows_a, rows_b))
        note = f"the identities do not fit {len(misfit):,} of {len(pairs.same):,} pairs (first {first})"
        linked = persons_of_pairs(rows_a, rows_b, pairs.same)
        wrong = int(((linked[0] == linked[1]) != pairs.same).sum())
        if wrong:
            lost = "no intervals, and nothing by group" if groups else "no intervals"
            notes.append(f"{lost}: {note}, and {wrong:,} pairs contradict others about who is who")
        else:
            notes.append(note + ": for the intervals, people are what genuine pairs link")
        persons = None if wrong else linked
    return Listed(pairs, rows_a, rows_b, persons, groups, tuple(filter(None, notes)))


def score_listed(config: EvalConfig, listed: Listed, table: EmbeddingTable) -> dict[str, Any]:
    """Verification of listed pairs, its intervals over persons, its slices."""
    score, verification = verify_listed(config, listed, table)
    found = {"pairs": str(config.pairs), "verification": verification}
    found["notes"] = listed.notes
    if listed.persons is None:
        return found
    arguments = score, listed.pairs.same, listed.persons
    fold = fold_of(verification)
    bounds = verification_intervals(*arguments, fars=config.fars, fold=fold, seed=config.seed)
    slices = slice_pairs(*arguments, verification.points, listed.groups, seed=config.seed)
    return found | {"intervals": bounds.figures, "band": bounds.band, "slices": slices}


def verify_listed(
    config: EvalConfig, listed: Listed, table: EmbeddingTable
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


def score_all_pairs(config: EvalConfig, table: EmbeddingTable) -> dict[str, Any]:
    """Verification of all pairs, its intervals over persons, its slices."""
    arguments = table.embeddings, table.identities
    found = verify_all_pairs(*arguments, fars=config.fars)
    bounds = all_pairs_intervals(*arguments, found, seed=config.seed)
    slices = slice_all_pairs(*arguments, found.points, table.groups, seed=config.seed)
    return {
        "pairs": "all",
        "verification": found,
        "intervals": bounds.figures,
        "band": bounds.band,
        "slices": slices,
    }


def score_neighbours(config: EvalConfig, table: EmbeddingTable) -> dict[str, Any]:
    """Leave-one-out neighbours over the table; a note alone where no identity has two images."""
    _, counts = np.unique(table.identities, return_counts=True)
    if counts.max() < 2 or len(counts) < 2:
        return {"notes": ("no nearest neighbours: at least two identities, one with two images, are needed",)}
    most = len(table) - 1
    found = leave_one_out(
        table.embeddings, table.identities, knn=up_to(most, KNN), recall=up_to(most, RECALL)
    )
    return {"neighbours": found, "neighbour_intervals": retrieval_intervals(found, table, config.seed)}


def up_to(most: int, ks: tuple[int, ...]) -> list[int]:
    return [k for k in ks if k <= most]


def retrieval_intervals(found: Retrieval, queries: EmbeddingTable, seed: int) -> dict[str, Interval]:
    """Intervals of the figures of retrieval: the people who ask are drawn anew, the gallery stays."""
    return mean_intervals(found.each.figures, queries.identities[found.each.rows], seed=seed)


def overlap_of(tables: Tables) -> Overlap:
    """The images that are in the gallery too, by what the model makes of them: the same file, or a copy."""
    if tables.gallery is None:
        return NO_OVERLAP
    return same_images(tables.table.embeddings, tables.gallery.embeddings)


def without(table: EmbeddingTable, overlap: Overlap) -> EmbeddingTable | None:
    """The rows that are not in the gallery; None where there are none."""
    rows = np.setdiff1d(np.arange(len(table)), overlap.probes)
    return table.rows(rows) if len(rows) else None


def score_identities(config: EvalConfig, tables: Tables) -> dict[str, Any]:
    """Retrieval from the gallery and open-set identification: against it, or against people who are drawn."""
    table, gallery = tables.table, tables.gallery
    found: dict[str, Any] = {}
    probes: EmbeddingTable | None = table
    notes: tuple[str, ...] = ()
    if gallery is not None:
        overlap = overlap_of(tables)
        near = gallery_probe(
            gallery.embeddings,
            gallery.identities,
            table.embeddings,
            table.identities,
            knn=up_to(len(gallery), KNN),
            recall=up_to(len(gallery), RECALL),
            itself=overlap,
        )
        found |= {"gallery": near, "gallery_intervals": retrieval_intervals(near, table, config.seed)}
        if overlap.images():
            notes = (
                f"{overlap.images():,} of {len(table):,} images are in the gallery too: none finds itself there, and "
                "they are left out of identification",
            )
        probes = without(table, overlap)
        if probes is None or np.isin(probes.identities, gallery.identities).all():
            note = "no open-set identification: every image is of a person in the gallery"
            return found | {"notes": (*notes, note)}
        if not np.isin(probes.identities, gallery.identities).any():
            note = "no open-set identification: every image that is not in the gallery is of somebody else"
            return found | {"notes": (*notes, note)}
    else:
        sizes = np.unique(table.identities, return_counts=True)[1]
        if (sizes >= 2).sum() < 2:
            note = "no identification: at least two identities with two images are needed, or a --gallery"
            return found | {"notes": (note,)}
        split = draw_open_set(table.identities, seed=config.seed)
        gallery, probes = table.rows(split.gallery), table.rows(split.probes)
    identified = identify(
        gallery.embeddings, gallery.identities, probes.embeddings, probes.identities, fpirs=FPIRS
    )
    bounds = identification_intervals(identified, probes.identities, seed=config.seed)
    return found | {"identification": identified, "identification_intervals": bounds, "notes": notes}


def score_svm(config: EvalConfig, tables: Tables) -> dict[str, Any]:
    """The linear SVM where --svm asks for it; a note alone where there are too few people or images for one."""
    if not config.svm:
        return {}
    own, gallery = tables.table, tables.gallery
    try:
        if gallery is None:
            return {"svm": svm_accuracy(own.embeddings, own.identities, seed=config.seed)}
        judged = without(own, overlap_of(tables))  # an SVM knows what it learned from
        if judged is None:
            return {"notes": ("no linear SVM: every image is in the gallery that it learns from",)}
        arguments = gallery.embeddings, gallery.identities, judged.embeddings, judged.identities
        return {"svm": svm_of_gallery(*arguments, seed=config.seed)}
    except DataError as error:
        return {"notes": (f"no linear SVM: {error}",)}


def compare(
    config: EvalConfig, tables: Tables, listed: Listed | None, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The second model on the same pairs and the same queries; a note says which figures are the first's alone."""
    first, second = tables.table, tables.second
    assert second is not None
    verification, neighbours = None, None
    differences: dict[str, Interval] = {}
    if listed is not None:
        score, verification = verify_listed(config, listed, second)
        if listed.persons is not None:
            differences |= paired_differences(
                (pair_scores(first.embeddings, listed.rows_a, listed.rows_b), score),
                listed.pairs.same,
                listed.persons,
                fars=config.fars,
                fold=fold_of(verification),
                seed=config.seed,
            )
    elif config.all_pairs:
        verification = verify_all_pairs(second.embeddings, second.identities, fars=config.fars)
        differences |= all_pairs_differences(
            (first.embeddings, second.embeddings),
            first.identities,
            (found["verification"], verification),
            seed=config.seed,
        )
    if "neighbours" in found:
        before = found["neighbours"]
        neighbours = leave_one_out(
            second.embeddings, second.identities, knn=list(before.knn), recall=list(before.recall)
        )
        changes = {name: v - before.each.figures[name] for name, v in neighbours.each.figures.items()}
        people = first.identities[before.each.rows]
        differences |= mean_intervals(changes, people, seed=config.seed)
    alone = " and ".join(name for key, name in ALONE.items() if found.get(key))
    notes = (f"{alone}: of the first model alone, the second is not compared by them",) if alone else ()
    return {"comparison": Comparison(config.compare, verification, neighbours, differences), "notes": notes}
