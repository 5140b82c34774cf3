"""The table that `facemetric eval` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from facemetric.evaluation.intervals.records import Interval, tar_name, tpir_name
from facemetric.evaluation.retrieval import Retrieval
from facemetric.evaluation.slices import Rates, Slicing
from facemetric.evaluation.verification import Verification
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
