"""What `facemetric eval` does: embed, score pairs and neighbours, print the table, write the files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from facemetric.config import (
    EvalConfig,
    check_least,
    config_command,
    config_dict,
    config_toml,
    make_config,
    require,
)
from facemetric.data.index import ImageIndex, index_files, read_index
from facemetric.data.loader import BadImageLog
from facemetric.data.pairs import Pairs, read_pairs, resolve
from facemetric.errors import DataError
from facemetric.evaluation.embed import EmbeddingTable
from facemetric.evaluation.inference import embed_index
from facemetric.evaluation.intervals import (
    Bounds,
    Interval,
    mean_intervals,
    persons_of_pairs,
    tar_name,
    verification_intervals,
)
from facemetric.evaluation.neighbours import Retrieval, leave_one_out
from facemetric.evaluation.verification import Verification, hardest_pairs, pair_scores, verify_pairs
from facemetric.model.weights import find_weights, load_weights, read_config
from facemetric.report.origin import origin_of
from facemetric.report.page_facts import write_report
from facemetric.report.plots import draw_det, draw_roc, draw_scores, write_roc_csv
from facemetric.report.record import Evaluation
from facemetric.training.run import BAD_IMAGES
from facemetric.training.setup import pick_device, pick_workers

FARS = (1e-1, 1e-2, 1e-3)


def evaluate(*positional: Any, **options: Any) -> Evaluation:
    """Score weights on pairs and on nearest neighbours; the options are those of EvalConfig.

    `evaluate("runs/finetune", pairs="pairs.csv")` is `facemetric eval --weights runs/finetune --pairs pairs.csv`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_evaluate(make_config(EvalConfig, *positional, **options))


def run_evaluate(config: EvalConfig) -> Evaluation:
    """evaluate, from a config."""
    require(bool(config.weights) != bool(config.embeddings), "give one of --weights and --embeddings")
    require(
        bool(config.pairs or config.data or config.embeddings), "nothing to score: give --pairs or --data"
    )
    check_least(config, {"folds": 2, "batch_size": 1, "seed": 0, "workers": -1})
    pairs = read_pairs(config.pairs) if config.pairs else None
    if config.weights:
        find_weights(config.weights)  # before images are read
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / BAD_IMAGES).unlink(missing_ok=True)  # of an evaluation before
    images, table = read_table(config, pairs)
    found: dict[str, Any] = {}
    if pairs is not None:
        verification, bounds = score_pairs(config, pairs, table)
        found |= {"pairs": str(config.pairs), "verification": verification}
        found |= {"intervals": bounds.figures, "band": bounds.band}
    if config.data or config.embeddings:
        neighbours = score_neighbours(table)
        found["neighbours"] = neighbours
        if neighbours is not None:
            found["neighbour_intervals"] = retrieval_intervals(neighbours, table, config.seed)
    evaluation = Evaluation(config.out, table, images, **found)
    write_metrics(config, evaluation)
    print(table_text(evaluation))
    if config.report:
        print(f"report at {report(config, evaluation)}")
    return evaluation


def read_table(config: EvalConfig, pairs: Pairs | None) -> tuple[ImageIndex | None, EmbeddingTable]:
    """The images, those of `data` or else those that the pairs name, and their embeddings.

    Beside embeddings that were given, `data` only lends its pictures to the report."""
    index = None
    if config.data:
        index = read_index(config.data)
        for note in index.notes:
            print(note)
    if config.embeddings:
        return index, EmbeddingTable.load(config.embeddings)
    if index is None:
        assert pairs is not None
        index = index_files(pairs.paths(), Path(pairs.source).parent)
    return index, embed(config, index, pairs)


def embed(config: EvalConfig, index: ImageIndex, pairs: Pairs | None) -> EmbeddingTable:
    """Embed the images and keep the table in the out folder."""
    if pairs is not None:
        resolve(pairs, index, missing_list=config.out / "missing_images.txt")  # before the long work
    embedder = load_weights(config.weights, pick_device(config.device))
    embedded = embed_index(
        embedder,
        index,
        batch_size=config.batch_size,
        workers=pick_workers(config.workers),
        flip=config.flip,
        progress="embedding",
    )
    check_readable(config, index, embedded.bad, pairs)
    embedded.table.save(config.out / "embeddings.npz")
    return embedded.table


def check_readable(
    config: EvalConfig, index: ImageIndex, bad: list[tuple[int, str]], pairs: Pairs | None
) -> None:
    """List the bad images; raises DataError where a pair names one, or where they are more than --max-bad."""
    if not bad:
        return
    if pairs is not None:
        named = set(np.concatenate(resolve(pairs, index)).tolist())
        broken = [(index.name(row), reason) for row, reason in bad if row in named]
        if broken:
            shown = ", ".join(f"{name} ({reason})" for name, reason in broken[:10])
            more = ", ..." if len(broken) > 10 else ""
            raise DataError(
                f"{len(broken)} of {len(named)} images that the pairs name cannot be read: {shown}{more}; "
                "mend the images or take their pairs out"
            )
    log = BadImageLog(config.out / BAD_IMAGES, len(index), config.max_bad)
    for row, reason in bad:
        log.add(index.name(row), reason)
    print(f"{len(bad)} of {len(index)} images cannot be read and are not scored: {log.path}")


def score_pairs(config: EvalConfig, pairs: Pairs, table: EmbeddingTable) -> tuple[Verification, Bounds]:
    """Verification of the pairs, and its intervals over persons; writes the curve and its pictures."""
    rows_a, rows_b = resolve(pairs, table, missing_list=config.out / "missing_images.txt")
    score = pair_scores(table.embeddings, rows_a, rows_b)
    found = verify_pairs(score, pairs.same, fold=pairs.fold, fars=FARS, folds=config.folds, seed=config.seed)
    found = replace(found, hardest=hardest_pairs(score, pairs.same, rows_a, rows_b))
    name = config.weights or str(config.embeddings)
    write_roc_csv(config.out / "roc.csv", {name: found.roc})
    draw_roc(config.out / "roc.png", {name: found.roc})
    draw_det(config.out / "det.png", {name: found.roc})
    draw_scores(
        config.out / "scores.png",
        score,
        pairs.same,
        thresholds={"threshold of equal errors": found.eer_threshold},
    )
    persons: tuple[Any, Any] = table.identities[rows_a], table.identities[rows_b]
    if np.any((persons[0] == persons[1]) != pairs.same):  # folders that are no identities
        persons = persons_of_pairs(rows_a, rows_b, pairs.same)
    return found, verification_intervals(score, pairs.same, persons, fars=FARS, seed=config.seed)


def score_neighbours(table: EmbeddingTable) -> Retrieval | None:
    """Leave-one-out neighbours over the table; None, and said, where no identity has two images."""
    _, counts = np.unique(table.identities, return_counts=True)
    if counts.max() < 2 or len(counts) < 2:
        print("no nearest neighbours: at least two identities, one with two images, are needed")
        return None
    most = len(table) - 1
    return leave_one_out(
        table.embeddings,
        table.identities,
        knn=[k for k in (1, 5) if k <= most],
        recall=[k for k in (1, 5, 10) if k <= most],
    )


def retrieval_intervals(found: Retrieval, queries: EmbeddingTable, seed: int) -> dict[str, Interval]:
    """Intervals of the figures of retrieval: the people who ask are drawn anew, the gallery stays."""
    return mean_intervals(found.each.figures, queries.identities[found.each.rows], seed=seed)


def write_metrics(config: EvalConfig, evaluation: Evaluation) -> None:
    """metrics.json: the figures, the options, and what the weights say of themselves."""
    record: dict[str, Any] = evaluation.to_dict() | {"options": config_dict(config)}
    if config.weights:
        weights = read_config(find_weights(config.weights))
        record["weights"] = {"architecture": weights["architecture"], "sha256": weights.get("sha256")}
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


def table_text(evaluation: Evaluation) -> str:
    """The table that is printed."""
    lines: list[tuple[str, str]] = []

    def between(name: str, intervals: Mapping[str, Interval] = evaluation.intervals) -> str:
        interval = intervals.get(name)
        return f"  95 % [{interval.low:.4f}, {interval.high:.4f}]" if interval else ""

    found = evaluation.verification
    if found is not None:
        lines.append(("pairs", f"{found.n_genuine:,} genuine, {found.n_impostor:,} impostor"))
        if found.accuracy is not None:
            a = found.accuracy
            drawn = ", folds drawn at random" if a.drawn else ""
            lines.append(
                (
                    f"accuracy, mean of {len(a.accuracies)} folds",
                    f"{a.mean:.4f}  (standard deviation over folds {a.deviation_sample:.4f}, "
                    f"standard error {a.standard_error:.4f}{drawn})",
                )
            )
        lines += [("AUC", f"{found.auc:.4f}{between('auc')}"), ("EER", f"{found.eer:.4f}{between('eer')}")]
        for p in found.points:
            text = f"{p.tar:.4f}{between(tar_name(p.wanted))}"
            text += f"  (threshold {p.threshold:.4f}, {p.accepted_impostors} impostors accepted)"
            if not p.supported:
                text = f"not measured: needs {1 / p.wanted:.0f} impostor pairs, there are {found.n_impostor}"
            lines.append((f"TAR @ FAR={p.wanted:g}", text))
    near = evaluation.neighbours
    if near is not None:
        left = f"  ({near.left_out} images are their identity's only one)" if near.left_out else ""
        bounds = evaluation.neighbour_intervals
        for k, value in near.knn.items():
            text = f"{value:.4f}{between(f'knn_accuracy_{k}', bounds)}{left if k == 1 else ''}"
            lines.append((f"kNN accuracy, k={k}", text))
        lines.append(("MAP@R", f"{near.map_at_r:.4f}{between('map_at_r', bounds)}"))
    width = max((len(name) for name, _ in lines), default=0)
    body = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    return f"{body}\n{'written to':<{width}}  {evaluation.out}"
