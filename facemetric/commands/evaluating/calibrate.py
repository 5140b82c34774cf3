"""Scores of listed pairs normalized by a cohort, and calibrated."""

from __future__ import annotations

from dataclasses import replace

from facemetric.commands.evaluating.inputs import EvalInputs
from facemetric.commands.evaluating.pairs import PairIdentities, Scored, listed_differences, verify_scores
from facemetric.config import EvalConfig, require
from facemetric.errors import ConfigError, DataError
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
from facemetric.evaluation.retrieval import same_images
from facemetric.report.record import Normalized

COSINES = "cosines"  # what is calibrated


def calibrate_listed(
    config: EvalConfig, inputs: EvalInputs, identities: PairIdentities, score: Floats, scored: Scored
) -> None:
    """The scores of listed pairs normalized by a cohort, and calibrated; a note alone where people are too few."""
    listed, what = inputs.listed, COSINES
    assert listed is not None
    if inputs.cohort is not None:
        what = f"cosines after adaptive s-norm with {len(inputs.cohort):,} images"
        score = normalize_listed(config, inputs, identities, score, scored)
    if config.calibration == "off":
        return
    try:
        if config.calibration == "stored":
            curves = [stored_curve(config, inputs)]
            ratio = curves[0].ratios(score)
        else:
            if not identities.agree:
                raise DataError("the pairs contradict one another about who is who")
            ratio, curves = calibrate_across_people(
                score, listed.pairs.same, identities.both, seed=config.seed
            )
    except DataError as error:
        scored.notes.append(f"no calibration: {error}")
        return
    scored.families["calibration"] = calibrated(
        ratio,
        listed.pairs.same,
        curves,
        how=config.calibration,
        scores=what,
        identities=identities.both if identities.agree else None,
        seed=config.seed,
    )


def normalize_listed(
    config: EvalConfig,
    inputs: EvalInputs,
    identities: PairIdentities,
    score: Floats,
    scored: Scored,
) -> Floats:
    """Scores (P,) after adaptive s-norm; their verification goes beside that of the cosines."""
    listed, table, cohort = inputs.listed, inputs.table, inputs.cohort
    assert listed is not None
    assert cohort is not None
    if shared := same_images(table.embeddings, cohort.embeddings, device=inputs.device).images():
        raise DataError(
            f"{shared:,} of the {len(table):,} images are in the cohort too; give a cohort of other images, of other "
            "people"
        )
    found = cohort_statistics(table.embeddings, cohort.embeddings, config.cohort_top, device=inputs.device)
    sides = [
        CohortStatistics(found.mean[rows], found.deviation[rows]) for rows in (listed.rows_a, listed.rows_b)
    ]
    normed = adaptive_s_norm(score, *sides)
    verified = verify_scores(config, listed, identities, normed)
    verification = replace(verified.verification, score="cosine similarity after adaptive s-norm")
    verified = verified._replace(verification=verification)
    name = f"s-norm, top {min(config.cohort_top, len(cohort))} of {len(cohort):,}"
    differences = listed_differences(config, listed, identities, (score, normed), verified)
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
