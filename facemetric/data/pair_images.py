"""The images of listed pairs in an index, each pair once; and new pairs, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from facemetric.data.pair_list import Ints, Pairs
from facemetric.data.store import composed
from facemetric.errors import DataError, first_few

SHOWN = 10  # missing images named in the message; the rest go to a file


class Names(Protocol):
    """What `resolve` asks of an index (`ImageIndex` fits)."""

    def __len__(self) -> int: ...
    def name(self, i: int, /) -> str: ...
    def find(self, name: str, /) -> int | None: ...


def resolve(pairs: Pairs, index: Names, *, missing_list: str | Path | None = None) -> tuple[Ints, Ints]:
    """Rows of both images of each pair: two int64 (P,).

    A path fits a name of the index when they are equal, or one ends with the whole of the other, folder by
    folder (`/data/lfw/A/1.jpg` fits `A/1.jpg`, a bare `1.jpg` fits `A/1.jpg`). LFW names fit any extension.
    Raises DataError that counts every missing or ambiguous path, names the first ten and, with
    `missing_list`, writes them all there.
    """
    wanted = pairs.paths()
    row = {p: found for p in wanted if (found := index.find(p)) is not None}
    if len(row) < len(wanted):
        hits = _by_ending([p for p in wanted if p not in row], index, bare=pairs.bare)
        row.update({p: rows[0] for p, rows in hits.items() if len(rows) == 1})
        bad = [(p, len(hits.get(p, ()))) for p in wanted if p not in row]
        if bad:
            raise DataError(_missing_message(pairs.source, bad, len(wanted), missing_list))
    row_U = np.fromiter((row.get(p, -1) for p in pairs.names), dtype=np.int64, count=len(pairs.names))
    return row_U[pairs.a], row_U[pairs.b]


def _parts(path: str, bare: bool) -> tuple[str, ...]:
    parts = [p for p in composed(path).replace("\\", "/").split("/") if p not in ("", ".")]
    if bare and parts:
        parts[-1] = PurePosixPath(parts[-1]).stem if "." in parts[-1] else parts[-1]
    return tuple(parts)


def _by_ending(paths: list[str], index: Names, *, bare: bool) -> dict[str, list[int]]:
    """Rows whose name ends with the path or is its end; longest common endings only. One walk over all."""
    by_last: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for path in paths:
        # An LFW path has no extension to strip: `Name_0001`, and a dot in a name must stay.
        parts = _parts(path, bare=False)
        if parts:
            by_last.setdefault(parts[-1], []).append((path, parts))
    best: dict[str, tuple[int, list[int]]] = {}
    for i in range(len(index)):
        name = _parts(index.name(i), bare)
        for path, parts in by_last.get(name[-1], ()) if name else ():
            common = min(len(name), len(parts))
            if name[-common:] != parts[-common:]:
                continue
            length, rows = best.get(path, (0, []))
            if common > length:
                best[path] = (common, [i])
            elif common == length:
                rows.append(i)
    return {path: rows for path, (_, rows) in best.items()}


def _missing_message(
    source: str, bad: list[tuple[str, int]], total: int, missing_list: str | Path | None
) -> str:
    def why(hits: int) -> str:
        return f" (fits {hits} images)" if hits else ""

    where = ""
    if missing_list is not None:
        file = Path(missing_list)
        file.write_text(
            "".join(f"{p}\t{'ambiguous' if hits else 'missing'}\n" for p, hits in bad), encoding="utf-8"
        )
        where = f"; all of them are in {file}"
    shown = first_few((f"{p}{why(hits)}" for p, hits in bad), SHOWN)
    ambiguous = sum(hits > 0 for _, hits in bad)
    counts = f"{len(bad) - ambiguous} missing" + (f" and {ambiguous} ambiguous" if ambiguous else "")
    return (
        f"{source}: {counts} of the {total} images it names: {shown}{where}; "
        "add the images or take the pairs out"
    )


class Distinct(NamedTuple):
    """Pairs of two images, each once: the pairs and the rows of both images, int64 (P,).

    `itself`: listed pairs of an image with itself, left out. `repeated`: pairs listed before, as they are or the
    other way round, left out; `moved` of these are in another fold than the one that is kept.
    """

    pairs: Pairs
    rows_a: Ints
    rows_b: Ints
    itself: int = 0
    repeated: int = 0
    moved: int = 0

    def notes(self) -> tuple[str, ...]:
        """What was left out, in sentences."""
        listed = len(self.pairs) + self.itself + self.repeated
        notes = []
        if self.itself:
            notes.append(f"{self.itself:,} of {listed:,} listed pairs hold an image with itself: left out")
        if self.repeated:
            moved = f", {self.moved:,} of them in another fold" if self.moved else ""
            notes.append(
                f"{self.repeated:,} of {listed:,} listed pairs repeat one before, as it is or the other way round"
                f"{moved}: counted once"
            )
        return tuple(notes)


def distinct_pairs(pairs: Pairs, rows_a: Ints, rows_b: Ints) -> Distinct:
    """The pairs of two images, the first of each, by the rows that `resolve` found: a path may have two spellings.

    An image beside itself says nothing about a model, and a pair that is listed twice is no second observation: it
    would support a lower FAR than there are pairs for, and in another fold choose its own threshold.
    Raises DataError where two listings of a pair disagree about `same`.
    """
    key = np.minimum(rows_a, rows_b) * (int(max(rows_a.max(initial=0), rows_b.max(initial=0))) + 1)
    key += np.maximum(rows_a, rows_b)
    apart = rows_a != rows_b
    if apart.all():
        ordered = np.sort(key)
        if (
            ordered[1:] != ordered[:-1]
        ).all():  # nearly always, and with millions of pairs the rest takes memory
            return Distinct(pairs, rows_a, rows_b)
    real = np.flatnonzero(apart)
    first, place = np.unique(key[real], return_index=True, return_inverse=True)[1:]
    earlier = real[first[place]]  # of each pair of two images, where it is listed first
    differs = pairs.same[real] != pairs.same[earlier]
    if differs.any():
        at = int(differs.argmax())
        names = " and ".join(pairs.names[column[real[at]]] for column in (pairs.a, pairs.b))
        raise DataError(
            f"{pairs.source}: pairs {earlier[at] + 1} and {real[at] + 1} are of the same two images ({names}), once "
            "labelled same and once different; take one of them out"
        )
    moved = 0 if pairs.fold is None else int((pairs.fold[real] != pairs.fold[earlier]).sum())
    kept = np.sort(real[first])
    return Distinct(
        pairs.select(kept),
        rows_a[kept],
        rows_b[kept],
        len(key) - len(real),
        len(real) - len(kept),
        moved,
    )


class PairRows(NamedTuple):
    """P drawn pairs: rows of both images int64 (P,), `same` bool (P,), `fold` int64 (P,)."""

    a: Ints
    b: Ints
    same: npt.NDArray[np.bool_]
    fold: Ints


def make_pairs(identity: npt.ArrayLike, *, count: int, folds: int = 10, seed: int = 0) -> PairRows:
    """Draw `count` different pairs from identity labels (N,): half of one person, half of two, in folds.

    No person is in two folds. Pairs of one person are spread over people as evenly as their images
    allow. The same labels, numbers and seed give the same pairs. Raises DataError where the images do not
    give so many.
    """
    _, numbers = np.unique(np.asarray(identity), return_inverse=True)
    sizes = np.bincount(numbers)
    if folds < 1 or count < 2 * folds or count % (2 * folds):
        raise DataError(
            f"{count} pairs in {folds} folds; needed a multiple of {2 * folds}, as many of each kind a fold"
        )
    each = count // folds // 2
    rng = np.random.default_rng(seed)
    # People with most images are dealt out first, so that every fold gets its share of them.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of = np.empty(len(sizes), dtype=np.int64)
    fold_of[order] = np.arange(len(sizes)) % folds
    parts = []
    for fold in range(folds):
        rows = np.flatnonzero(fold_of[numbers] == fold)
        for kind, draw in (("of one person", _draw_genuine), ("of two people", _draw_impostor)):
            a, b, possible = draw(rows, numbers[rows], each, rng)
            if len(a) < each:
                raise DataError(
                    f"fold {fold + 1} of {folds} gives {possible} pairs {kind}, {each} were asked; "
                    f"ask for at most {2 * folds * possible} pairs, or for fewer folds"
                )
            parts.append((a, b, np.full(each, kind == "of one person"), np.full(each, fold)))
    return PairRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _draw_genuine(rows: Ints, identity: Ints, each: int, rng: np.random.Generator) -> tuple[Ints, Ints, int]:
    by_identity = rows[np.argsort(identity, kind="stable")]
    sizes = np.unique(identity, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    pairs = sizes * (sizes - 1) // 2
    if pairs.sum() < each:
        return rows[:0], rows[:0], int(pairs.sum())
    quota = next(q for q in _quotas(each, pairs) if np.minimum(pairs, q).sum() >= each)
    first, second = [], []
    for start, possible in zip(starts, pairs, strict=True):
        if possible:
            chosen = rng.choice(possible, size=min(quota, int(possible)), replace=False)
            # Pair number c of a triangle: row j has j pairs (i, j) with i < j.
            j = ((1 + np.sqrt(1 + 8 * chosen.astype(np.float64))) // 2).astype(np.int64)
            first.append(by_identity[start + chosen - j * (j - 1) // 2])
            second.append(by_identity[start + j])
    keep = np.sort(rng.permutation(sum(map(len, first)))[:each])
    return np.concatenate(first)[keep], np.concatenate(second)[keep], int(pairs.sum())


def _quotas(each: int, pairs: Ints) -> Iterator[int]:
    """Growing numbers of pairs a person, from an even share up."""
    quota = max(1, -(-each // max(1, int((pairs > 0).sum()))))
    while True:
        yield quota
        quota += max(1, quota // 4)


def _draw_impostor(rows: Ints, identity: Ints, each: int, rng: np.random.Generator) -> tuple[Ints, Ints, int]:
    order = np.argsort(identity, kind="stable")
    rows, identity = rows[order], identity[order]
    n = len(rows)
    start, end = np.searchsorted(identity, identity), np.searchsorted(identity, identity, side="right")
    others = n - (end - start)
    possible = int(others.sum() // 2)
    if possible < each:
        return rows[:0], rows[:0], possible
    keys = np.empty(0, dtype=np.int64)
    share = others.cumsum()
    while len(keys) < each:
        # Uniform over (image, image of another person): skip the image's own block of the sorted rows.
        ticket = rng.integers(share[-1], size=2 * (each - len(keys)) + 16)
        i = np.searchsorted(share, ticket, side="right")
        j = ticket - (share[i] - others[i])
        j = np.where(j >= start[i], j + (end - start)[i], j)
        drawn = np.concatenate([keys, np.minimum(i, j) * n + np.maximum(i, j)])
        keys = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    keys = keys[:each]
    return rows[keys // n], rows[keys % n], possible


def name_pairs(drawn: PairRows, names: Names | Sequence[str], *, source: str = "drawn pairs") -> Pairs:
    """Drawn rows as Pairs with the names of an index (or a list of names), ready for `write_pairs`."""
    name = names.__getitem__ if isinstance(names, Sequence) else names.name

    def named(rows: Iterable[int]) -> tuple[str, ...]:
        return tuple(name(int(i)) for i in rows)

    return Pairs.of(named(drawn.a), named(drawn.b), drawn.same, drawn.fold, source=source)
