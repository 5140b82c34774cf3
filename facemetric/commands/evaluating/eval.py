"""What `facemetric eval` does: open the inputs, score them (scores.py), write the files."""

from __future__ import annotations

import contextlib
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from facemetric import distributed
from facemetric.commands.embedding import check_config, is_stored
from facemetric.commands.evaluating.inputs import EvalInputs, open_inputs
from facemetric.commands.evaluating.scores import NEED_IMAGES, score
from facemetric.commands.out_folder import file_hashes, results_come
from facemetric.config import (
    EvalConfig,
    check_least,
    config_command,
    config_dict,
    config_toml,
    require,
)
from facemetric.config.calls import takes_options
from facemetric.evaluation.answers import answers_in
from facemetric.faces.finder import face_finder
from facemetric.files import file_hash, write_text_whole
from facemetric.model.weights.folder import provenance
from facemetric.model.weights.opened import Weights
from facemetric.report.page import Origin, write_page
from facemetric.report.page_sections import REPORT, page_of
from facemetric.report.plots import draw_det, draw_roc, draw_scores, write_roc_csv
from facemetric.report.record import Evaluation
from facemetric.training import peers


@takes_options(EvalConfig)
def evaluate(config: EvalConfig) -> Evaluation:
    """Score weights on pairs and on nearest neighbours; the options are those of EvalConfig.

    `evaluate("runs/finetune", pairs="pairs.csv")` is `facemetric eval --weights runs/finetune --pairs pairs.csv`,
    which prints `report.figures.evaluation_text` of what this returns.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_evaluate(config)


def run_evaluate(config: EvalConfig) -> Evaluation:
    """evaluate, from a config: what was found, after metrics.json, the curves and the report were written."""
    check_options(config)
    with peers.joined(config.device) as device:
        peers.same_program(config)
        if distributed.together():
            distributed.check_alike(file_hashes(config))
        with distributed.work_shared(), own_out(replace(config, device=device)) as mine:
            inputs = open_inputs(mine)
            found = score(mine, inputs)
    if distributed.rank() > 0:
        return found
    write_files(config, inputs, found)
    return replace(found, report=write_report(config, inputs, found)) if config.report else found


@contextlib.contextmanager
def own_out(config: EvalConfig) -> Iterator[EvalConfig]:
    """The options; in all processes but the first with an --out that is thrown away: the first one writes."""
    if distributed.rank() == 0:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        yield replace(config, out=Path(folder))


def check_options(config: EvalConfig) -> None:
    """Raise ConfigError where options do not go together."""
    require(bool(config.weights) != bool(config.embeddings), "give one of --weights and --embeddings")
    require(not (config.pairs and config.all_pairs), "give one of --pairs and --all-pairs")
    images = bool(config.data or config.embeddings)
    require(bool(config.pairs) or images, "nothing to score: give --pairs or --data")
    for name in NEED_IMAGES:
        require(
            images or not getattr(config, name),
            f"--{name.replace('_', '-')} needs images: give --data or --embeddings",
        )
    for option, given in (("gallery", config.gallery), ("cohort", config.cohort)):
        require(
            len(given) < 2 or not any(map(is_stored, given)),
            f"--{option} names {len(given)} things, one of them embeddings; give images, or one file of embeddings",
        )
    check_templates(config)
    require(
        config.pairs is not None or not (config.cohort or config.calibration != "off"),
        "--cohort and --calibration work on the scores of listed pairs: give --pairs",
    )
    require(
        not (config.cohort and config.calibration == "stored"),
        "--calibration stored is of plain cosines: leave --cohort out, or choose --calibration people",
    )
    check_least(config, {"folds": 2})
    check_config(config)


def check_templates(config: EvalConfig) -> None:
    """Raise ConfigError where options of templates do not go together."""
    images = bool(config.data or config.embeddings)
    require(images or not config.templates, "--templates names images: give --data or --embeddings")
    require(
        bool(config.templates) or not config.gallery_templates,
        "--gallery-templates are searched for those of --templates: give these too",
    )
    require(
        not (config.gallery and config.gallery_templates), "give one of --gallery and --gallery-templates"
    )
    require(
        not (config.embeddings and config.data and config.templates),
        "templates are of the images of --data or of --embeddings: give one of them",
    )


def write_files(config: EvalConfig, inputs: EvalInputs, evaluation: Evaluation) -> None:
    """metrics.json, and the curves of both models as csv and pictures."""
    results_come(config)
    write_metrics(config, inputs, evaluation)
    found, searched = evaluation.verification, evaluation.identification
    if searched is not None and searched.det is not None:
        curves = {inputs.name: searched.det}
        draw_det(config.out / "identification.png", curves, names=("FPIR", "FNIR"))
        write_roc_csv(config.out / "identification.csv", curves, names=("fpir", "tpir_any_rank"))
    if found is None:
        return
    curves = {inputs.name: found.roc}
    for other in evaluation.comparisons:
        if other.verification is not None:
            curves[other.name] = other.verification.roc
    if evaluation.normalized is not None:
        curves[evaluation.normalized.name] = evaluation.normalized.verified.verification.roc
    write_roc_csv(config.out / "roc.csv", curves)
    draw_roc(config.out / "roc.png", curves)
    draw_det(config.out / "det.png", curves)
    threshold = {"threshold of equal errors": found.eer_threshold}
    draw_scores(config.out / "scores.png", found.histogram, thresholds=threshold)


def write_metrics(config: EvalConfig, inputs: EvalInputs, evaluation: Evaluation) -> None:
    """metrics.json: the figures, the options, and what the weights say of themselves."""
    record: dict[str, Any] = evaluation.to_dict() | {"options": config_dict(config)}
    if inputs.weights is not None:
        record["weights"] = weights_record(inputs.weights)
    for number, other in enumerate(inputs.others, 2):
        if other.weights is not None:
            record["second_weights" if number == 2 else f"weights_{number}"] = weights_record(other.weights)
    write_text_whole(config.out / "metrics.json", json.dumps(record, indent=2) + "\n")


def weights_record(weights: Weights) -> dict[str, Any]:
    """Which weights made embeddings."""
    return {"architecture": weights.config["architecture"], "sha256": weights.config.get("sha256")}


def write_report(config: EvalConfig, inputs: EvalInputs, evaluation: Evaluation) -> Path:
    """report.html, with the command and the weights it came from."""
    origin, weights = origin_of(config, inputs, evaluation), inputs.weights
    # A probability is of embeddings with the mirror image averaged in, or without.
    answers = answers_in(weights.config, weights.folder) if weights is not None else None
    probability = answers.probability if answers is not None and answers.flip == config.flip else None
    finder = None
    if weights is not None:
        finder = face_finder(
            "crops" if weights.pictures else "off", pictures=weights.pictures, size=weights.crop_side
        )
    page = page_of(evaluation, inputs.name, origin, seed=config.seed, probability=probability, finder=finder)
    return write_page(config.out / REPORT, page)


def origin_of(config: EvalConfig, inputs: EvalInputs, found: Evaluation) -> Origin:
    """Where an evaluation comes from: its command, weights, images, pairs, versions and machine."""
    index, table = inputs.images, inputs.table
    fingerprint = index.fingerprint if index is not None else ""
    people = len(set(table.identities.tolist()))
    here = provenance(data=fingerprint, images=len(table), identities=people, options=config_dict(config))
    pairs = found.verified.pairs if found.verified is not None else ""
    facts = weights_facts(inputs.weights) if inputs.weights is not None else []
    facts += [
        ("Scored", f"{here['images']:,} images of {here['identities']:,} identities"),
        ("Data fingerprint", fingerprint),
        ("Pairs", pairs),
        ("Pairs sha256", file_hash(Path(pairs)) if pairs and Path(pairs).is_file() else ""),
        ("Seed", str(here["seed"])),
        ("facemetric", " ".join(filter(None, (here["facemetric"], here["git_commit"])))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in here["versions"].items())),
        ("Machine", f"{platform.system()} {platform.machine()}"),
        ("Written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")),
    ]
    told = tuple((name, value) for name, value in facts if value)
    return Origin(config_command("eval", config), told, config_toml(config))


def weights_facts(weights: Weights) -> list[tuple[str, str]]:
    """What config.json says of the weights."""
    config = weights.config
    ours = config["facemetric"]
    origin = ours.get("provenance") or {}
    trained = ""
    if origin.get("images"):
        trained = f"{origin['images']:,} images of {origin.get('identities', 0):,} identities"
    height, width = ours["preprocess"].get("size", ("?", "?"))
    return [
        ("Weights", str(weights.folder)),
        ("Weights sha256", str(config.get("sha256") or "")),
        (
            "Architecture",
            f"{config['architecture']}, {ours['embedding_size']} numbers, {width} x {height} pixels",
        ),
        ("Trained on", trained),
        ("Training data fingerprint", str(origin.get("data_fingerprint") or "")),
        ("Training commit", str(origin.get("git_commit") or "")),
    ]
