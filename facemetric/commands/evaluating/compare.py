"""Other models on the pairs and queries of the first: their figures, and the differences with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facemetric.commands.evaluating.inputs import EvalInputs, Model
from facemetric.config import EvalConfig
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences, all_pairs_intervals
from facemetric.evaluation.intervals.listed import paired_differences, verification_intervals
from facemetric.evaluation.intervals.records import Interval, mean_intervals
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.evaluation.verification import pair_scores
from facemetric.report.models import Comparison, Comparisons, side_by_side
from facemetric.report.record import NEIGHBOURS, Retrieved, Verified

if TYPE_CHECKING:
    from facemetric.commands.evaluating.scores import PairIdentities, Scored  # which imports this file

COMPARED = ("verification", "neighbours")  # families that other models have too
IN_WORDS = {
    "slices": "groups",
    "svm": "linear SVM",
    "normalized": "normalized scores",
}  # of the other families
SILENT = ("templates",)  # families that are no figures


def compare(
    config: EvalConfig, inputs: EvalInputs, identities: PairIdentities | None, scored: Scored
) -> None:
    """All other models; a note says which figures are the first's alone."""
    found = []
    for model in inputs.others:
        verified, verification_differences = compare_pairs(config, inputs, identities, scored, model)
        neighbours, neighbour_differences = compare_neighbours(config, inputs, scored, model)
        differences = verification_differences | neighbour_differences
        found.append(Comparison(model.name, verified, neighbours, differences))
    alone = " and ".join(
        IN_WORDS.get(name, name) for name in scored.families if name not in (*COMPARED, *SILENT)
    )
    if alone:
        whom = "the second is" if len(found) == 1 else "the others are"
        scored.notes.append(f"{alone}: of the first model alone, {whom} not compared by them")
    own = [row for name in COMPARED if name in scored.families for row in scored.families[name].figures()]
    scored.families["comparison"] = Comparisons(tuple(found))
    scored.families["models"] = side_by_side(inputs.name, own, found)


def compare_pairs(
    config: EvalConfig,
    inputs: EvalInputs,
    identities: PairIdentities | None,
    scored: Scored,
    model: Model,
) -> tuple[Verified | None, dict[str, Interval]]:
    """Verification of the same pairs, and its differences from the first model's."""
    from facemetric.commands.evaluating.scores import fold_of, verify_listed

    first, listed, verified = inputs.table, inputs.listed, scored.families.get("verification")
    if listed is not None and identities is not None:
        score, verification = verify_listed(config, listed, model.table)
        if not identities.agree:
            return Verified(str(config.pairs), verification), {}
        who, fold = (identities.of_a, identities.of_b), fold_of(verification)
        bounds = verification_intervals(
            score, listed.pairs.same, who, fars=config.fars, fold=fold, seed=config.seed
        )
        scores = pair_scores(first.embeddings, listed.rows_a, listed.rows_b), score
        differences = paired_differences(
            scores, listed.pairs.same, who, fars=config.fars, fold=fold, seed=config.seed
        )
        return Verified(str(config.pairs), verification, bounds.figures, bounds.band), differences
    if not isinstance(verified, Verified):
        return None, {}
    arguments = model.table.embeddings, first.identities
    verification = verify_all_pairs(*arguments, fars=config.fars)
    bounds = all_pairs_intervals(*arguments, verification, seed=config.seed)
    differences = all_pairs_differences(
        (first.embeddings, model.table.embeddings),
        first.identities,
        (verified.verification, verification),
        seed=config.seed,
    )
    return Verified("all", verification, bounds.figures, bounds.band), differences


def compare_neighbours(
    config: EvalConfig, inputs: EvalInputs, scored: Scored, model: Model
) -> tuple[Retrieved | None, dict[str, Interval]]:
    """Nearest neighbours of the same queries, and their differences from the first model's."""
    retrieved = scored.families.get("neighbours")
    if not isinstance(retrieved, Retrieved):
        return None, {}
    before, first = retrieved.retrieval, inputs.table
    found = leave_one_out(
        model.table.embeddings, first.identities, knn=list(before.knn), recall=list(before.recall)
    )
    people = first.identities[before.each.rows]
    intervals = mean_intervals(found.each.figures, people, seed=config.seed)
    changes = {name: v - before.each.figures[name] for name, v in found.each.figures.items()}
    return Retrieved(found, intervals, NEIGHBOURS, retrieved.thing), mean_intervals(
        changes, people, seed=config.seed
    )
