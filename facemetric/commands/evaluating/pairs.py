"""Verification of listed pairs or of all: the figures of one model's scores, with intervals over people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.commands.evaluating.inputs import EvalInputs, ListedPairs
from facemetric.config import EvalConfig
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.curves import Floats
from facemetric.evaluation.intervals.all_pairs import all_pairs_intervals
from facemetric.evaluation.intervals.draws import identities_of_pairs
from facemetric.evaluation.intervals.listed import paired_differences, verification_intervals
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.slices.measure import groups_of_pairs, slice_all_pairs, slice_pairs
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import Verification, hardest_pairs, pair_scores, verify_pairs
from facemetric.report.record import Family, Sliced, Verified


@dataclass
class Scored:
    """Families of figures by name, and notes, as they gather."""

    families: dict[str, Family] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class PairIdentities(NamedTuple):
    """The identities (P,) of the first and the second image of each listed pair; and a note about them."""

    of_a: npt.NDArray
    of_b: npt.NDArray
    note: str = ""
    agree: bool = True
    """Whether the pairs agree about who is who: without that there are no intervals."""

    @property
    def both(self) -> tuple[npt.NDArray, npt.NDArray]:
        """Of the first and of the second image."""
        return self.of_a, self.of_b


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


def verify_scores(
    config: EvalConfig, listed: ListedPairs, identities: PairIdentities, score: Floats
) -> Verified:
    """Verification of listed pairs by their scores (P,); no intervals where the pairs do not agree about people."""
    same, found = listed.pairs.same, str(config.pairs)
    verification = verify_pairs(
        score, same, fold=listed.pairs.fold, fars=config.fars, folds=config.folds, seed=config.seed
    )
    if not identities.agree:
        return Verified(found, verification)
    fold = fold_of(verification)
    bounds = verification_intervals(
        score, same, identities.both, fars=config.fars, fold=fold, seed=config.seed
    )
    return Verified(found, verification, bounds.figures, bounds.band)


def verify_model(
    config: EvalConfig, listed: ListedPairs, identities: PairIdentities, score: Floats
) -> Verified:
    """The same of a model's cosines, with the hardest pairs."""
    found = verify_scores(config, listed, identities, score)
    hardest = hardest_pairs(score, listed.pairs.same, listed.rows_a, listed.rows_b)
    return found._replace(verification=replace(found.verification, hardest=hardest))


def listed_scores(listed: ListedPairs, table: EmbeddingTable) -> Floats:
    """The cosine (P,) of each listed pair."""
    return pair_scores(table.embeddings, listed.rows_a, listed.rows_b)


def listed_differences(
    config: EvalConfig,
    listed: ListedPairs,
    identities: PairIdentities,
    scores: tuple[Floats, Floats],
    second: Verified,
) -> dict[str, Interval]:
    """How much the second scores differ from the first; nothing where the pairs do not agree about people."""
    if not identities.agree:
        return {}
    fold, same = fold_of(second.verification), listed.pairs.same
    return paired_differences(scores, same, identities.both, fars=config.fars, fold=fold, seed=config.seed)


def fold_of(found: Verification) -> npt.NDArray:
    """The fold of each listed pair."""
    assert found.accuracy is not None
    return found.accuracy.fold


def verify_all(config: EvalConfig, inputs: EvalInputs, table: EmbeddingTable) -> Verified:
    """Verification of all pairs of a table whose rows are the images of the first."""
    arguments = table.embeddings, inputs.table.identities
    found = verify_all_pairs(*arguments, fars=config.fars, device=inputs.device)
    bounds = all_pairs_intervals(*arguments, found, seed=config.seed, device=inputs.device)
    return Verified("all", found, bounds.figures, bounds.band)


def score_listed(
    config: EvalConfig, inputs: EvalInputs, identities: PairIdentities, score: Floats, scored: Scored
) -> None:
    """Verification of listed pairs, and its slices."""
    listed = inputs.listed
    assert listed is not None
    verified = verify_model(config, listed, identities, score)
    scored.notes += [*listed.notes, *filter(None, [identities.note])]
    scored.families["verification"] = verified
    if not identities.agree:
        return
    arguments = score, listed.pairs.same, identities.both
    slices = slice_pairs(*arguments, verified.verification.points, groups_in(inputs), seed=config.seed)
    if slices:
        scored.families["slices"] = Sliced(slices)


def score_all_pairs(config: EvalConfig, inputs: EvalInputs, scored: Scored) -> None:
    """Verification of all pairs, and its slices."""
    table = inputs.table
    verified = scored.families["verification"] = verify_all(config, inputs, table)
    slices = slice_all_pairs(
        table.embeddings,
        table.identities,
        verified.verification.points,
        table.groups,
        seed=config.seed,
        device=inputs.device,
    )
    if slices:
        scored.families["slices"] = Sliced(slices)
