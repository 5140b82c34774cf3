"""What `facemetric eval` does: embed, score (scoring.py), print the table, write the files."""

from __future__ import annotations

import json
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

from facemetric.commands.embedding import check_config, is_stored, remove_lists
from facemetric.commands.eval_inputs import read_tables
from facemetric.commands.eval_scores import (
    compare,
    list_pairs,
    score_all_pairs,
    score_identities,
    score_listed,
    score_neighbours,
    score_svm,
)
from facemetric.config import (
    EvalConfig,
    check_least,
    config_command,
    config_dict,
    config_toml,
    require,
)
from facemetric.config.calls import takes_options
from facemetric.data.pairs import read_pairs
from facemetric.files import write_whole
from facemetric.model.weights_folder import file_hash, find_weights, provenance, read_config
from facemetric.report.figures import table_text
from facemetric.report.page import Origin
from facemetric.report.page_sections import write_report
from facemetric.report.plots import draw_det, draw_roc, draw_scores, write_roc_csv
from facemetric.report.record import Evaluation


def origin_of(
    found: Evaluation,
    *,
    command: str,
    options: dict[str, Any],
    toml: str,
    weights: tuple[Path, dict[str, Any]] | None,
) -> Origin:
    """The origin of an evaluation. `weights`: their folder and its config.json; None for embeddings from elsewhere."""
    index = found.images
    fingerprint = index.fingerprint if index is not None else ""
    people = len(set(found.table.identities.tolist()))
    here = provenance(data=fingerprint, images=len(found.table), identities=people, options=options)
    facts = [*weights_facts(*weights)] if weights is not None else []
    facts += [
        ("Scored", f"{here['images']:,} images of {here['identities']:,} identities"),
        ("Data fingerprint", fingerprint),
        ("Pairs", found.pairs),
        ("Pairs sha256", file_hash(Path(found.pairs)) if found.pairs and Path(found.pairs).is_file() else ""),
        ("Seed", str(here["seed"])),
        ("facemetric", " ".join(filter(None, (here["facemetric"], here["git_commit"])))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in here["versions"].items())),
        ("Machine", f"{platform.system()} {platform.machine()}"),
        ("Written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")),
    ]
    return Origin(command, tuple((name, value) for name, value in facts if value), toml)


def weights_facts(folder: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    """What config.json says of the weights."""
    ours = config["facemetric"]
    origin = ours.get("provenance") or {}
    trained = ""
    if origin.get("images"):
        trained = f"{origin['images']:,} images of {origin.get('identities', 0):,} identities"
    height, width = ours["preprocess"].get("size", ("?", "?"))
    return [
        ("Weights", str(folder)),
        ("Weights sha256", str(config.get("sha256") or "")),
        (
            "Architecture",
            f"{config['architecture']}, {ours['embedding_size']} numbers, {width} x {height} pixels",
        ),
        ("Trained on", trained),
        ("Training data fingerprint", str(origin.get("data_fingerprint") or "")),
        ("Training commit", str(origin.get("git_commit") or "")),
    ]


@takes_options(EvalConfig)
def evaluate(config: EvalConfig) -> Evaluation:
    """Score weights on pairs and on nearest neighbours; the options are those of EvalConfig.

    `evaluate("runs/finetune", pairs="pairs.csv")` is `facemetric eval --weights runs/finetune --pairs pairs.csv`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_evaluate(config)


def run_evaluate(config: EvalConfig) -> Evaluation:
    """evaluate, from a config."""
    check_options(config)
    pairs = read_pairs(config.pairs) if config.pairs else None
    config.out.mkdir(parents=True, exist_ok=True)
    remove_lists(config.out)
    tables = read_tables(config, pairs)
    listed = list_pairs(config, pairs, tables.table) if pairs is not None else None
    found: dict[str, Any] = {"images": tables.images, "gallery_table": tables.gallery}
    if listed is not None:
        found = joined(found, score_listed(config, listed, tables.table))
    elif config.all_pairs:
        found = joined(found, score_all_pairs(config, tables.table))
    if config.data or config.embeddings:
        found = joined(found, score_neighbours(config, tables.table))
        found = joined(found, score_identities(config, tables))
        found = joined(found, score_svm(config, tables))
    if tables.second is not None:
        found = joined(found, compare(config, tables, listed, found))
    evaluation = Evaluation(config.out, tables.table, **found)
    write_files(config, evaluation)
    print(table_text(evaluation))
    if config.report:
        print(f"report at {report(config, evaluation)}")
    return evaluation


def joined(found: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both, with the notes of both."""
    return found | more | {"notes": (*found.get("notes", ()), *more.get("notes", ()))}


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
    require(
        len(config.gallery) < 2 or not any(map(is_stored, config.gallery)),
        f"--gallery names {len(config.gallery)} things, one of them embeddings; give images, or one file of embeddings",
    )
    check_least(config, {"folds": 2})
    check_config(config)


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
    text = json.dumps(record, indent=2) + "\n"
    write_whole(config.out / "metrics.json", lambda staged: staged.write_text(text))


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
