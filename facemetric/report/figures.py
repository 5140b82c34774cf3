"""The tables of the page: an evaluation's figures with their intervals, as rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from facemetric.evaluation.identification import Identification
from facemetric.evaluation.intervals.records import Interval, tar_name, tpir_name
from facemetric.evaluation.retrieval import Retrieval
from facemetric.evaluation.slices import Group, Rates, Slicing
from facemetric.evaluation.svm import SvmAccuracy
from facemetric.evaluation.verification import Verification
from facemetric.report.page import Cell, Grid
from facemetric.report.record import UNSUPPORTED, Comparison, Evaluation

Line = tuple[str, str]


def table_text(evaluation: Evaluation) -> str:
    """Lines `name  figure  95 % [low, high]`."""
    lines: list[Line] = []
    if evaluation.verification is not None:
        lines += verification_lines(evaluation.verification, evaluation.intervals)
    for slicing in evaluation.slices:
        lines += slice_lines(slicing)
    if evaluation.neighbours is not None:
        lines += retrieval_lines(evaluation.neighbours, evaluation.neighbour_intervals, "")
    if evaluation.gallery is not None:
        lines += retrieval_lines(evaluation.gallery, evaluation.gallery_intervals, "gallery: ")
    if evaluation.identification is not None:
        lines += identification_lines(evaluation)
    if evaluation.svm is not None:
        svm = evaluation.svm
        lines.append(("linear SVM accuracy", f"{svm.mean:.4f}{between(svm.interval)}  ({svm.took_part()})"))
    if evaluation.comparison is not None:
        lines += comparison_lines(evaluation.comparison)
    lines += [("note", note) for note in evaluation.notes]
    width = max((len(name) for name, _ in lines), default=0)
    body = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    return f"{body}\n{'written to':<{width}}  {evaluation.out}"


def between(interval: Interval | None) -> str:
    return f"  95 % [{interval.low:.4f}, {interval.high:.4f}]" if interval else ""


def verification_lines(found: Verification, intervals: Mapping[str, Interval]) -> Iterator[Line]:
    yield "pairs", f"{found.n_genuine:,} genuine, {found.n_impostor:,} impostor"
    if found.accuracy is not None:
        a = found.accuracy
        yield (
            f"accuracy, mean of {len(a.accuracies)} folds",
            f"{a.mean:.4f}{between(intervals.get('accuracy'))}  (deviation over folds: sample "
            f"{a.deviation_sample:.4f}, population {a.deviation_population:.4f}, standard error "
            f"{a.standard_error:.4f}{'; folds drawn at random' if a.drawn else ''})",
        )
    yield "AUC", f"{found.auc:.4f}{between(intervals.get('auc'))}"
    yield "EER", f"{found.eer:.4f}{between(intervals.get('eer'))}"
    for p in found.points:
        if p.supported:
            bounds = between(intervals.get(tar_name(p.wanted)))
            how = f"threshold {p.threshold:.4f}, {p.accepted_impostors:,} impostors accepted"
            yield f"TAR @ FAR={p.wanted:g}", f"{p.tar:.4f}{bounds}  ({how})"
        else:
            yield (
                f"TAR @ FAR={p.wanted:g}",
                f"not measured: needs {1 / p.wanted:,.0f} impostor pairs, there are {found.n_impostor:,} "
                f"(lowest FAR {1 / found.n_impostor:.2g})",
            )


def slice_lines(slicing: Slicing) -> Iterator[Line]:
    """One line a group at the lowest FAR that it has, then the gaps there."""
    title = f"by {slicing.column}"
    if slicing.note:
        yield title, f"not sliced: {slicing.note}"
    for group in slicing.groups:
        if group.too_small:
            yield f"{title}: {group.name}", f"too small: {group.too_small}"
            continue
        rate = shown_rate(group.rates)
        if rate is None:
            yield f"{title}: {group.name}", UNSUPPORTED
            continue
        yield (
            f"{title}: {group.name}",
            f"TAR {rate.tar.value:.4f}{between(rate.tar)}, FAR {rate.far.value:.2g} "
            f"[{rate.far.low:.2g}, {rate.far.high:.2g}] at everybody's FAR={rate.wanted:g}",
        )
    large = next((group for group in slicing.groups if group.rates), None)
    wanted = shown_rate(large.rates) if large is not None else None
    for gap in slicing.gaps:
        if wanted is not None and gap.wanted == wanted.wanted:
            d = gap.difference
            yield (
                f"{title}: largest gap, {gap.rate.upper()}",
                f"{d.value:.2g}  95 % [{d.low:.2g}, {d.high:.2g}]  ({gap.low_group} to {gap.high_group})",
            )


def shown_rate(rates: tuple[Rates, ...]) -> Rates | None:
    """The rates at FAR = 1e-2, or else at the nearest: the others are in metrics.json."""
    return min(rates, key=lambda r: abs(r.wanted - 1e-2), default=None)


def retrieval_lines(found: Retrieval, intervals: Mapping[str, Interval], where: str) -> Iterator[Line]:
    left = ""
    if found.left_out:
        why = "are of people who are not in it" if where else "are their identity's only one"
        left = f"  ({found.left_out:,} images {why})"
    for k, value in found.knn.items():
        yield f"{where}kNN accuracy, k={k}", f"{value:.4f}{between(intervals.get(f'knn_accuracy_{k}'))}{left}"
        left = ""
    for k, value in found.recall.items():
        yield f"{where}recall@{k}", f"{value:.4f}{between(intervals.get(f'recall_at_{k}'))}"
    yield f"{where}R-precision", f"{found.r_precision:.4f}{between(intervals.get('r_precision'))}"
    yield f"{where}MAP@R", f"{found.map_at_r:.4f}{between(intervals.get('map_at_r'))}"


def identification_lines(evaluation: Evaluation) -> Iterator[Line]:
    found, intervals = evaluation.identification, evaluation.identification_intervals
    assert found is not None
    who = f"  ({found.known:,} probes of enrolled people, {found.unknown:,} of others)"
    yield "rank-1 identification", f"{found.rank_1:.4f}{between(intervals.get('rank_1'))}{who}"
    for p in found.points:
        name = f"TPIR @ FPIR={p.wanted:g}"
        if p.supported:
            yield name, f"{p.tar:.4f}{between(intervals.get(tpir_name(p.wanted)))}"
        else:
            yield name, f"not measured: needs {1 / p.wanted:,.0f} unknown probes, there are {found.unknown:,}"


def comparison_lines(found: Comparison) -> Iterator[Line]:
    yield "second minus first", found.name
    for name, d in found.differences.items():
        told = "" if d.low <= 0 <= d.high else "  *"
        yield f"  {name}", f"{d.value:+.4f}  95 % [{d.low:+.4f}, {d.high:+.4f}]{told}"


HEAD = ("", "value, 95 % interval")


NAMES = {
    "accuracy": "Accuracy",
    "auc": "AUC",
    "eer": "EER",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
}


STARTS = {
    "tar_at_far_": "TAR at FAR = ",
    "knn_accuracy_": "kNN accuracy, k = ",
    "recall_at_": "Recall at ",
    "tpir_at_fpir_": "TPIR at FPIR = ",
}


Row = tuple[Cell, ...]


Intervals = Mapping[str, Interval]


def figure_tables(found: Evaluation) -> tuple[Grid, ...]:
    """A table for each thing that was measured."""
    tables = []
    if found.verification is not None:
        tables.append(
            Grid("Verification", HEAD, tuple(verification_rows(found.verification, found.intervals)))
        )
    for title, retrieval, intervals in (
        ("Nearest neighbours, each image against all others", found.neighbours, found.neighbour_intervals),
        ("Nearest neighbours, probes against the gallery", found.gallery, found.gallery_intervals),
    ):
        if retrieval is not None:
            left = f"{retrieval.queries:,} images look for their person"
            left += (
                f"; {retrieval.left_out:,} have nobody to find and ask nothing" if retrieval.left_out else ""
            )
            tables.append(Grid(title, HEAD, tuple(retrieval_rows(retrieval, intervals)), left + "."))
    if found.identification is not None:
        tables.append(identification_table(found.identification, found.identification_intervals))
    if found.svm is not None:
        tables.append(svm_table(found.svm))
    if found.comparison is not None:
        tables.append(comparison_table(found.comparison))
    return tuple(tables)


def figure(
    name: str, value: float, intervals: Intervals, key: str, *, note: str = "", about: str = ""
) -> Row:
    """A row: the figure's name, `about` it, its value with the interval that has the name `key`, and a note."""
    bounds = intervals.get(key)
    if bounds is None:
        return Cell(name, about), Cell(f"{value:.4f}", note)
    return Cell(name, about), Cell(f"{value:.4f}", note, value, bounds.low, bounds.high)


def verification_rows(found: Verification, intervals: Intervals) -> Iterable[Row]:
    """TAR at each FAR, EER, AUC, accuracy."""
    for p in found.points:
        if not p.supported:
            continue
        name = f"TAR at FAR = {p.wanted:g}"
        several = "" if p.accepted_impostors == 1 else "s"
        note = f"threshold {p.threshold:.4f}, {p.accepted_impostors:,} false accept{several}"
        yield figure(name, p.tar, intervals, tar_name(p.wanted), note=note)
    beyond = [p.wanted for p in found.points if not p.supported]
    if beyond:
        most = max(beyond)
        need = f"{most:g} needs {1 / most:,.0f} pairs of two persons, there are {found.n_impostor:,}"
        yield Cell(f"TAR at FAR = {', '.join(f'{far:g}' for far in beyond)}"), Cell("not measured", need)
    yield figure("EER", found.eer, intervals, "eer", about="equal error rate; lower is better")
    yield figure("AUC", found.auc, intervals, "auc", about="area under the ROC")
    if found.accuracy is not None:
        a = found.accuracy
        note = (
            f"deviation over folds: sample {a.deviation_sample:.4f}, population {a.deviation_population:.4f}, "
            f"standard error {a.standard_error:.4f}"
        )
        note += ", folds drawn at random" if a.drawn else ""
        about = f"mean of {len(a.accuracies)} folds"
        yield figure("Accuracy", a.mean, intervals, "accuracy", note=note, about=about)


def retrieval_rows(found: Retrieval, intervals: Intervals) -> Iterable[Row]:
    """kNN, recall, R-precision, MAP@R."""
    for k, value in found.knn.items():
        yield figure(f"kNN accuracy, k = {k}", value, intervals, f"knn_accuracy_{k}")
    for k, value in found.recall.items():
        if k > 1 or 1 not in found.knn:  # recall at 1 is the accuracy of one neighbour
            yield figure(f"Recall at {k}", value, intervals, f"recall_at_{k}")
    yield figure("R-precision", found.r_precision, intervals, "r_precision")
    yield figure("MAP@R", found.map_at_r, intervals, "map_at_r")


def identification_table(found: Identification, intervals: Intervals) -> Grid:
    """Rank 1, and TPIR at each FPIR."""
    rows = [figure("Rank 1", found.rank_1, intervals, "rank_1", about="at any score")]
    for p in found.points:
        name = f"TPIR at FPIR = {p.wanted:g}"
        if p.supported:
            note = f"threshold {p.threshold:.4f}"
            rows.append(figure(name, p.tar, intervals, tpir_name(p.wanted), note=note))
        else:
            need = f"needs {1 / p.wanted:,.0f} probes of strangers, there are {found.unknown:,}"
            rows.append((Cell(name), Cell("not measured", need)))
    lead = f"{found.known:,} probes of people in the gallery, {found.unknown:,} of strangers."
    return Grid("Open-set identification", HEAD, tuple(rows), lead)


def svm_table(found: SvmAccuracy) -> Grid:
    """The linear SVM."""
    note = f"standard deviation over {found.folds} folds {found.deviation_sample:.4f}" if found.folds else ""
    lead = f"{found.took_part()}."
    row = figure(
        "Accuracy of a linear SVM", found.mean, {"": found.interval} if found.interval else {}, "", note=note
    )
    return Grid("Classification", HEAD, (row,), lead)


def comparison_table(found: Comparison) -> Grid:
    """Second model minus first."""
    rows = []
    for name, d in found.differences.items():
        told = (
            "the interval leaves out 0" if d.low > 0 or d.high < 0 else "not told apart: the interval holds 0"
        )
        rows.append((Cell(written_out(name)), Cell(f"{d.value:+.4f}  [{d.low:+.4f}, {d.high:+.4f}]", told)))
    lead = f"{found.name} minus this model, on the same pairs and queries, the same people drawn for both."
    return Grid("Comparison", ("", "difference, 95 % interval"), tuple(rows), lead)


def written_out(key: str) -> str:
    """The name that a figure of metrics.json has in the tables."""
    if key in NAMES:
        return NAMES[key]
    for start, name in STARTS.items():
        if key.startswith(start):
            return name + key.removeprefix(start)
    return key


def slice_tables(found: Slicing) -> list[Grid]:
    """The groups of a column: TAR and FAR at the threshold that gives everybody together a FAR, a table each.

    One without rows, that says why, where the column has no groups."""
    title = f"By {found.column}"
    if found.note:
        return [Grid(title, (), (), f"Not sliced: {found.note}.")]
    wanted = dict.fromkeys(rates.wanted for group in found.groups for rates in group.rates)
    if not wanted:
        rows = ((group_cell(g), Cell("not measured", g.too_small or UNSUPPORTED)) for g in found.groups)
        return [Grid(title, (found.column, ""), tuple(rows))]
    tables = []
    for far in wanted:
        gaps = [
            f"Largest gap in {g.rate.upper()}: {g.difference.value:.4f} [{g.difference.low:.4f}, "
            f"{g.difference.high:.4f}], {g.low_group} to {g.high_group}."
            for g in found.gaps
            if g.wanted == far
        ]
        groups = tuple(group_row(group, far) for group in found.groups)
        head = (found.column, "TAR, 95 % interval", "FAR, 95 % interval")
        tables.append(Grid(f"{title}, at overall FAR = {far:g}", head, groups, " ".join(gaps)))
    return tables


def group_row(group: Group, far: float) -> Row:
    """One group's row; a group that is too small says so."""
    rates = next((rates for rates in group.rates if rates.wanted == far), None)
    if rates is None:
        return group_cell(group), Cell("not measured", group.too_small), Cell("")
    cells = (Cell(f"{r.value:.4f}", "", r.value, r.low, r.high) for r in (rates.tar, rates.far))
    return group_cell(group), *cells


def group_cell(group: Group) -> Cell:
    """A group's name, its people, its genuine and impostor pairs."""
    pairs = f"{group.n_genuine:,} + {group.n_impostor:,} pairs"
    return Cell(group.name, f"{group.n_people:,} people, {pairs}")
