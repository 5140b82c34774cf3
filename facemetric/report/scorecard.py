"""What `facemetric eval` does: embed, score pairs, neighbours and identities, print the table, write the files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.config import (
    EvalConfig,
    check_least,
    config_command,
    config_dict,
    config_toml,
    make_config,
    require,
)
from facemetric.data.pairs import Ints, Pairs, read_pairs
from facemetric.data.resolve import resolve
from facemetric.evaluation.allpairs import verify_all_pairs
from facemetric.evaluation.allpairs_intervals import all_pairs_differences, all_pairs_intervals
from facemetric.evaluation.embed import EmbeddingTable
from facemetric.evaluation.identification import (
    draw_open_set,
    identification_intervals,
    identify,
    svm_accuracy,
    svm_of_gallery,
)
from facemetric.evaluation.intervals import (
    Interval,
    mean_intervals,
    paired_differences,
    persons_of_pairs,
    verification_intervals,
)
from facemetric.evaluation.neighbours import Retrieval, gallery_probe, leave_one_out
from facemetric.evaluation.slices import groups_of_pairs, slice_all_pairs, slice_pairs
from facemetric.evaluation.verification import Verification, hardest_pairs, pair_scores, verify_pairs
from facemetric.model.weights import find_weights, read_config
from facemetric.report.origin import origin_of
from facemetric.report.page_facts import write_report
from facemetric.report.plots import draw_det, draw_roc, draw_scores, write_roc_csv
from facemetric.report.printed import table_text
from facemetric.report.record import Comparison, Evaluation
from facemetric.report.tables import Tables, is_stored, read_tables
from facemetric.training.folder import BAD_IMAGES

KNN, RECALL, FPIRS = (1, 5), (1, 5, 10), (1e-1, 1e-2, 1e-3)


def evaluate(*positional: Any, **options: Any) -> Evaluation:
    """Score weights on pairs and on nearest neighbours; the options are those of EvalConfig.

    `evaluate("runs/finetune", pairs="pairs.csv")` is `facemetric eval --weights runs/finetune --pairs pairs.csv`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_evaluate(make_config(EvalConfig, *positional, **options))


def run_evaluate(config: EvalConfig) -> Evaluation:
    """evaluate, from a config."""
    check_options(config)
    pairs = read_pairs(config.pairs) if config.pairs else None
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / BAD_IMAGES).unlink(missing_ok=True)  # of an evaluation before
    tables = read_tables(config, pairs)
    listed = list_pairs(config, pairs, tables.table) if pairs is not None else None
    found: dict[str, Any] = {"images": tables.images, "gallery_table": tables.gallery}
    if listed is not None:
        found |= score_listed(config, listed, tables.table)
    elif config.all_pairs:
        found |= score_all_pairs(config, tables.table)
    if config.data or config.embeddings:
        found |= score_neighbours(config, tables.table)
        found |= score_identities(config, tables)
    if tables.second is not None:
        found["comparison"] = compare(config, tables, listed, found)
    evaluation = Evaluation(config.out, tables.table, **found)
    write_files(config, evaluation)
    print(table_text(evaluation))
    if config.report:
        print(f"report at {report(config, evaluation)}")
    return evaluation


def check_options(config: EvalConfig) -> None:
    """Raise ConfigError where options do not go together."""
    require(bool(config.weights) != bool(config.embeddings), "give one of --weights and --embeddings")
    require(not (config.pairs and config.all_pairs), "give one of --pairs and --all-pairs")
    images = bool(config.data or config.embeddings)
    require(bool(config.pairs) or images, "nothing to score: give --pairs or --data")
    for name in ("all_pairs", "gallery", "svm"):
        require(
            images or not getattr(config, name),
            f"--{name.replace('_', '-')} needs images: give --data or --embeddings",
        )
    for far in config.fars:
        require(0 < far <= 1, f"--fars has {far:g}; needed shares above 0, at most 1, such as 1e-3")
    check_least(config, {"folds": 2, "batch_size": 1, "seed": 0, "workers": -1})


class Listed(NamedTuple):
    """Listed pairs found in the table: rows, persons and groups of each, (P,). `note` says where persons lack."""

    pairs: Pairs
    rows_a: Ints
    rows_b: Ints
    persons: tuple[Any, Any] | None
    groups: Mapping[str, npt.NDArray]
    note: str = ""


def list_pairs(config: EvalConfig, pairs: Pairs, table: EmbeddingTable) -> Listed:
    """The rows of the pairs, whose persons are the table's identities, or else what genuine pairs link."""
    rows_a, rows_b = resolve(pairs, table, missing_list=config.out / "missing_images.txt")
    groups = groups_of_pairs(table.groups, rows_a, rows_b) | pairs.groups
    persons: tuple[Any, Any] = table.identities[rows_a], table.identities[rows_b]
    note = ""
    if np.any((persons[0] == persons[1]) != pairs.same):  # folders that are no identities
        persons = persons_of_pairs(rows_a, rows_b, pairs.same)
        note = "the identities do not fit the pairs: for the intervals, people are what genuine pairs link"
        wrong = int(((persons[0] == persons[1]) != pairs.same).sum())
        if wrong:
            note = f"no intervals: {wrong} pairs contradict others about who is who"
            return Listed(pairs, rows_a, rows_b, None, groups, note)
    return Listed(pairs, rows_a, rows_b, persons, groups, note)


def score_listed(config: EvalConfig, listed: Listed, table: EmbeddingTable) -> dict[str, Any]:
    """Verification of listed pairs, its intervals over persons, its slices."""
    score, verification = verify_listed(config, listed, table)
    found = {"pairs": str(config.pairs), "verification": verification}
    found["notes"] = (listed.note,) if listed.note else ()
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
    """Leave-one-out neighbours over the table; nothing, and said, where no identity has two images."""
    _, counts = np.unique(table.identities, return_counts=True)
    if counts.max() < 2 or len(counts) < 2:
        print("no nearest neighbours: at least two identities, one with two images, are needed")
        return {}
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


def score_identities(config: EvalConfig, tables: Tables) -> dict[str, Any]:
    """Retrieval from the gallery and open-set identification: against it, or against people who are drawn."""
    table, gallery = tables.table, tables.gallery
    found: dict[str, Any] = {}
    if config.svm:
        own = table.embeddings, table.identities
        found["svm"] = (
            svm_accuracy(*own, seed=config.seed)
            if gallery is None
            else svm_of_gallery(gallery.embeddings, gallery.identities, *own, seed=config.seed)
        )
    probes = table
    if gallery is not None:
        near = gallery_probe(
            gallery.embeddings,
            gallery.identities,
            table.embeddings,
            table.identities,
            knn=up_to(len(gallery), KNN),
            recall=up_to(len(gallery), RECALL),
        )
        found |= {"gallery": near, "gallery_intervals": retrieval_intervals(near, table, config.seed)}
        if np.isin(table.identities, gallery.identities).all():
            print("no open-set identification: every image is of a person in the gallery")
            return found
    else:
        sizes = np.unique(table.identities, return_counts=True)[1]
        if (sizes >= 2).sum() < 2:
            print("no identification: at least two identities with two images are needed, or a --gallery")
            return found
        split = draw_open_set(table.identities, seed=config.seed)
        gallery, probes = table.rows(split.gallery), table.rows(split.probes)
    identified = identify(
        gallery.embeddings, gallery.identities, probes.embeddings, probes.identities, fpirs=FPIRS
    )
    bounds = identification_intervals(identified, probes.identities, seed=config.seed)
    return found | {"identification": identified, "identification_intervals": bounds}


def compare(
    config: EvalConfig, tables: Tables, listed: Listed | None, found: Mapping[str, Any]
) -> Comparison:
    """The second model on the same pairs and the same queries."""
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
    return Comparison(config.compare, verification, neighbours, differences)


def write_files(config: EvalConfig, evaluation: Evaluation) -> None:
    """metrics.json, and the curves of both models as csv and pictures."""
    write_metrics(config, evaluation)
    found, other = evaluation.verification, evaluation.comparison
    if found is None:
        return
    curves = {config.weights or str(config.embeddings): found.roc}
    if other is not None and other.verification is not None:
        curves[other.name] = other.verification.roc
    write_roc_csv(config.out / "roc.csv", curves)
    draw_roc(config.out / "roc.png", curves)
    draw_det(config.out / "det.png", curves)
    threshold = {"threshold of equal errors": found.eer_threshold}
    draw_scores(config.out / "scores.png", found.histogram, thresholds=threshold)


def write_metrics(config: EvalConfig, evaluation: Evaluation) -> None:
    """metrics.json: the figures, the options, and what the weights say of themselves."""
    record: dict[str, Any] = evaluation.to_dict() | {"options": config_dict(config)}
    for name, key in ((config.weights, "weights"), (config.compare, "second_weights")):
        if name and not is_stored(name):
            weights = read_config(find_weights(name))
            record[key] = {"architecture": weights["architecture"], "sha256": weights.get("sha256")}
    path = config.out / "metrics.json"
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(staged, path)


def report(config: EvalConfig, evaluation: Evaluation) -> Path:
    """report.html, with the command and the weights it came from."""
    folder = find_weights(config.weights) if config.weights else None
    origin = origin_of(
        evaluation,
        command=config_command("eval", config),
        options=config_dict(config),
        toml=config_toml(config),
        weights=(folder, read_config(folder)) if folder is not None else None,
    )
    return write_report(evaluation, config.weights or str(config.embeddings), origin, seed=config.seed)
