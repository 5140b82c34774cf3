"""Other models on the pairs and queries of the first: their figures, and the differences with intervals."""

from __future__ import annotations

from facemetric.commands.evaluating.inputs import EvalInputs, Model
from facemetric.commands.evaluating.pairs import (
    PairIdentities,
    Scored,
    listed_differences,
    listed_scores,
    verify_all,
    verify_model,
)
from facemetric.config import EvalConfig
from facemetric.evaluation.curves import Floats
from facemetric.evaluation.intervals.all_pairs import all_pairs_differences
from facemetric.evaluation.intervals.records import Interval, mean_intervals
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.report.models import Comparison, Comparisons, side_by_side
from facemetric.report.record import NEIGHBOURS, Retrieved, Verified

COMPARED = ("verification", "neighbours")  # families that other models have too
IN_WORDS = {
    "slices": "groups",
    "svm": "linear SVM",
    "normalized": "normalized scores",
}  # of the other families
SILENT = ("templates",)  # families that are no figures


def compare(
    config: EvalConfig,
    inputs: EvalInputs,
    identities: PairIdentities | None,
    cosines: Floats | None,
    scored: Scored,
) -> None:
    """All other models; a note says which figures are the first's alone."""
    found = []
    for model in inputs.others:
        verified, verification_differences = compare_pairs(config, inputs, identities, cosines, scored, model)
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
    cosines: Floats | None,
    scored: Scored,
    model: Model,
) -> tuple[Verified | None, dict[str, Interval]]:
    """Verification of the same pairs, and its differences from the first model's."""
    first, listed, before = inputs.table, inputs.listed, scored.families.get("verification")
    if listed is not None and identities is not None and cosines is not None:
        score = listed_scores(listed, model.table)
        verified = verify_model(config, listed, identities, score)
        return verified, listed_differences(config, listed, identities, (cosines, score), verified)
    if not isinstance(before, Verified):
        return None, {}
    verified = verify_all(config, inputs, model.table)
    differences = all_pairs_differences(
        (first.embeddings, model.table.embeddings),
        first.identities,
        (before.verification, verified.verification),
        seed=config.seed,
        device=inputs.device,
    )
    return verified, differences


def compare_neighbours(
    config: EvalConfig, inputs: EvalInputs, scored: Scored, model: Model
) -> tuple[Retrieved | None, dict[str, Interval]]:
    """Nearest neighbours of the same queries, and their differences from the first model's."""
    retrieved = scored.families.get("neighbours")
    if not isinstance(retrieved, Retrieved):
        return None, {}
    before, first = retrieved.retrieval, inputs.table
    found = leave_one_out(
        model.table.embeddings,
        first.identities,
        knn=list(before.knn),
        recall=list(before.recall),
        device=inputs.device,
    )
    people = first.identities[before.each.rows]
    intervals = mean_intervals(found.each.figures, people, seed=config.seed)
    changes = {name: v - before.each.figures[name] for name, v in found.each.figures.items()}
    return Retrieved(found, intervals, NEIGHBOURS, retrieved.thing), mean_intervals(
        changes, people, seed=config.seed
    )
