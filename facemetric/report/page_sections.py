"""From what an evaluation found to what the page shows: pictures, mistakes, the map, all in plain records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from facemetric.evaluation.answers import Probability
from facemetric.evaluation.curves import Ints
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.retrieval import Queries
from facemetric.evaluation.table import unit_rows
from facemetric.evaluation.verification import HardPairs
from facemetric.faces.finder import FaceFinder
from facemetric.report.figures import grids, large, percent
from facemetric.report.map import choose_images, lay_out, most_of_one
from facemetric.report.models import short_names, told_apart
from facemetric.report.page import (
    Case,
    Curve,
    Gallery,
    Map,
    Origin,
    Page,
    Picture,
)
from facemetric.report.page_clusters import groups_of
from facemetric.report.page_curves import roc_curve, thresholds_of
from facemetric.report.pictures import SPRITE_QUALITY, Pictures, jpeg_uri, make_sprite
from facemetric.report.record import Evaluation
from facemetric.report.reliability import reliability_section

REPORT = "report.html"
SLICES = "slices."  # keys of the figures that have a section of their own
MODELS = ("models.", "comparison.")  # the same; the first has what the second has
FAILURES = 24
MAP_IMAGES = 800  # t-SNE of so many takes less than a second of one core
CELL = 64  # pixels of a picture in the map's sprite: 800 of them are 1.1 MB of text


def page_of(
    found: Evaluation,
    name: str,
    origin: Origin,
    *,
    seed: int = 0,
    probability: Probability | None = None,
    finder: FaceFinder | None = None,
) -> Page:
    """The page of an evaluation; what it does not hold is not on it. `name`: what was evaluated; `probability`: what
    its weights hold; `finder`: who looks at the hardest pairs for their quality, where they are of faces."""
    pooled = found.templates
    pictures = Pictures(found.table, found.images, pooled.first if pooled is not None else None, finder)
    verification = found.verification
    notes = list(found.notes)
    if found.images is None:
        notes.append(
            "There are no pictures here: the embeddings came without their images (--data adds them)."
        )
    shown = choose_images(found.table.identities, MAP_IMAGES, seed)
    cluster_figures, clusters = groups_of(found, pictures, shown, seed)
    return Page(
        name,
        found.subtitle(),
        origin,
        sentence=sentence(found),
        headline=tuple(map(large, found.headline())),
        figures=grids([f for f in found.figures() if not f.key.startswith((SLICES, *MODELS))]),
        models=grids([f for f in found.figures() if f.key.startswith(MODELS[0])]),
        models_lead=models_lead(found),
        thresholds=thresholds_of(verification) if verification is not None else None,
        curves=curves(found, name),
        reliability=reliability_section(probability, verification),
        search=search_curve(found),
        mistakes=mistakes(found, pictures),
        failures=failures(found, pictures),
        slices=grids([f for f in found.figures() if f.key.startswith(SLICES)]),
        cluster_figures=cluster_figures,
        clusters=clusters,
        map=map_of(found, pictures, shown, seed) if len(shown) > 1 else None,
        notes=tuple(notes),
    )


def sentence(found: Evaluation) -> str:
    """What was found, in one sentence for everybody, and in a second one how other models compare; "" where no figure
    leads."""
    leading = found.headline()
    if not leading:
        return ""
    first = leading[0]
    assert first.value is not None
    share = percent(first.value)
    if first.interval is not None:
        share += f" (95\N{NO-BREAK SPACE}% interval {percent(first.interval.low)} to {percent(first.interval.high)})"
    things = "images" if found.templates is None else "templates"
    name = first.key.partition(".")[2]
    if name.startswith("tar_at_far_"):
        far = float(name.removeprefix("tar_at_far_"))
        text = (
            f"Where 1 of {1 / far:,.0f} pairs of two people is taken for one person, "
            f"{share} of the pairs of one person are recognised."
        )
    else:
        similar = f"For {share} of the {things}, the most similar"
        known = {
            "verification.accuracy": f"Of the pairs, {share} are told rightly to be of one person or of two.",
            "verification.eer": f"Where both errors are as frequent, {share} of the pairs are told wrongly.",
            "verification.auc": f"In {share} of all cases a pair of one person scores higher than a pair of two.",
            "neighbours.knn_accuracy_1": f"{similar} other one is of the same person.",
            "gallery.knn_accuracy_1": f"{similar} one in the gallery is of the same person.",
            "identification.rank_1": f"Of the {things} of people in the gallery, {share} find their own person first.",
        }
        text = known.get(
            first.key, f"{first.label}: {share}" + (f" ({first.about})." if first.about else ".")
        )
    return " ".join(filter(None, [text, other_models(found, first.key)]))


def other_models(found: Evaluation, key: str) -> str:
    """How other models compare with the first by the leading figure, in a sentence."""
    side = found.models
    rows = [] if side is None else [row for row in side.rows if f".{row.figure.key}" == key[key.find(".") :]]
    if side is None or not rows:
        return ""
    names, cells = short_names(side.models), rows[0].cells
    sign = -1 if rows[0].figure.error else 1
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "not told apart from it": []}
    for name, cell in zip(names[1:], cells[1:], strict=True):
        if cell.difference is None:
            continue
        apart = told_apart(cell.difference)
        better = "better" if sign * cell.difference.value > 0 else "worse"
        kinds[better if apart else "not told apart from it"].append(f"{name} {percent(cell.value or 0)}")
    told = [
        f"{'; '.join(models)} ({kind}{', by more than chance' if 'told' not in kind else ''})"
        for kind, models in kinds.items()
        if models
    ]
    return f"Beside it: {', '.join(told)}." if told else ""


def models_lead(found: Evaluation) -> str:
    """What the tables of models show."""
    side = found.models
    if side is None:
        return ""
    return (
        f"{len(side.models)} models on the same pairs and queries. Intervals are of each alone; the differences from "
        f"{short_names(side.models)[0]} are of the same people drawn for both, and tell two models apart where they "
        "leave out 0, even where the models' own intervals overlap."
    )


def curves(found: Evaluation, name: str) -> tuple[Curve, ...]:
    """The model's curve with its band, those of other models, and that of normalized scores; a second curve alone has a
    band too."""
    if found.verification is None:
        return ()
    others = [(other.name, other.verified) for other in found.comparisons]
    if found.normalized is not None:
        others.append((found.normalized.name, found.normalized.verified))
    drawn = [roc_curve(name, found.verification.roc, found.band)]
    for other, verified in others:
        if verified is not None:
            drawn.append(
                roc_curve(other, verified.verification.roc, verified.band if len(others) == 1 else None)
            )
    labels = short_names([curve.name for curve in drawn])
    return tuple(replace(curve, name=label) for curve, label in zip(drawn, labels, strict=True))


def search_curve(found: Evaluation) -> Curve | None:
    """FNIR over FPIR of the identification."""
    searched = found.identification
    if searched is None or searched.det is None:
        return None
    return roc_curve("identification", searched.det, None)


def mistakes(found: Evaluation, pictures: Pictures) -> tuple[Gallery, ...]:
    """The hardest genuine and impostor pairs."""
    hardest = found.verification.hardest if found.verification is not None else None
    if hardest is None:
        return ()
    return (
        Gallery(
            "False rejects",
            f"One person twice: the {len(hardest.genuine.score)} pairs with the lowest scores. "
            "Pairs that the chosen threshold gets right are pale.",
            pair_cases(found, pictures, hardest.genuine),
            "genuine",
        ),
        Gallery(
            "False accepts",
            f"Two people: the {len(hardest.impostor.score)} pairs with the highest scores. "
            "Look first for one person under two names.",
            pair_cases(found, pictures, hardest.impostor),
            "impostor",
        ),
    )


def pair_cases(found: Evaluation, pictures: Pictures, pairs: HardPairs) -> tuple[Case, ...]:
    """A case for each pair; the name of one person is given once."""
    cases = []
    quality = pictures.qualities([*pairs.rows_a.tolist(), *pairs.rows_b.tolist()])
    for a, b, score in zip(pairs.rows_a.tolist(), pairs.rows_b.tolist(), pairs.score.tolist(), strict=True):
        one, other = (str(found.table.identities[row]) for row in (a, b))
        labels = ("", "") if one == other else (one, other)
        both = (
            shown(found, pictures, row, label, quality.get(row, ""))
            for row, label in zip((a, b), labels, strict=True)
        )
        cases.append(Case(tuple(both), score, one if one == other else ""))
    return tuple(cases)


def shown(found: Evaluation, pictures: Pictures, row: int, label: str = "", caption: str = "") -> Picture:
    """The picture of a row of the table."""
    return Picture(found.table.name(row), pictures.uri(row), label, caption)


def failures(found: Evaluation, pictures: Pictures) -> Gallery | None:
    """Images whose nearest neighbour is somebody else, those first where that one's score is highest; two
    people are there once."""
    if found.neighbours is None:
        return None
    each, identities = found.neighbours.each, found.table.identities
    wrong = np.flatnonzero(identities[each.nearest] != identities[each.rows])
    cases: list[Case] = []
    seen: set[frozenset[str]] = set()
    for k in wrong[np.argsort(-each.score[wrong], kind="stable")]:
        row, other = int(each.rows[k]), int(each.nearest[k])
        people = frozenset((str(identities[row]), str(identities[other])))
        if people in seen:
            continue
        seen.add(people)
        own, own_score = best_of_own(found, row)
        cases.append(
            Case(
                (
                    shown(found, pictures, row, str(identities[row]), "probe"),
                    shown(found, pictures, other, str(identities[other]), f"found {each.score[k]:.4f}"),
                    shown(found, pictures, own, "", f"right {own_score:.4f}"),
                )
            )
        )
        if len(cases) == FAILURES:
            break
    if not cases:
        return None
    lead = (
        f"{len(wrong):,} of {len(each.rows):,} images have somebody else for a nearest neighbour. Shown are the "
        "most confident ones, two people once: the probe, whom it found, and the nearest of its own."
    )
    return Gallery("Wrong neighbours", lead, tuple(cases))


def best_of_own(found: Evaluation, row: int) -> tuple[int, float]:
    """The most similar other image of a row's person, and its score."""
    table = found.table
    own = np.flatnonzero(table.identities == table.identities[row])
    own = own[own != row]
    best = nearest(table.embeddings[[row]], table.embeddings[own], 1)
    return int(own[best.rows[0, 0]]), float(best.score[0, 0])


def map_of(found: Evaluation, pictures: Pictures, rows: Ints, seed: int) -> Map:
    """The embeddings of some rows in the plane."""
    table = found.table
    place = np.round(lay_out(table.embeddings[rows], seed=seed, quick=True), 4)
    people, person = np.unique(table.identities[rows], return_inverse=True)
    sprite = make_sprite(pictures.squares(rows.tolist(), CELL), len(rows), CELL)
    layout = (
        "laid out by t\N{NON-BREAKING HYPHEN}SNE"
        if table.embeddings.shape[1] != 2
        else "as the two numbers of the embeddings"
    )
    lead = f"{len(rows):,} images of {len(people):,} people, {layout}."
    if len(rows) < len(table):
        lead += (
            f" Whole people were drawn from all {len(table):,} images with seed {seed}, those with two images "
            f"and more first, {most_of_one(table.identities, MAP_IMAGES)} images of one at most."
        )
    if sprite is not None:
        lead += " A point shows its picture, and where the same person is."
    return Map(
        tuple(place[:, 0].tolist()),
        tuple(place[:, 1].tolist()),
        tuple(person.tolist()),
        tuple(people.tolist()),
        tuple(table.name(row) for row in rows.tolist()),
        tuple(bad_neighbour(found, rows).tolist()),
        lead,
        *(
            (jpeg_uri(sprite.image, SPRITE_QUALITY), CELL, sprite.columns)
            if sprite is not None
            else ("", 0, 1)
        ),
    )


def bad_neighbour(found: Evaluation, rows: Ints) -> np.ndarray:
    """(M,) bool: the nearest image of all is of somebody else."""
    identities = found.table.identities
    near = np.full(len(identities), -1)
    if found.neighbours is not None:
        each: Queries = found.neighbours.each
        near[each.rows] = each.nearest
    left = rows[near[rows] < 0]
    if len(left):
        unit_ND = unit_rows(found.table.embeddings)
        two = nearest(unit_ND[left], unit_ND, 2).rows
        near[left] = np.where(two[:, 0] == left, two[:, 1], two[:, 0])
    return identities[near[rows]] != identities[rows]
