"""Lists of identities in text files (to validate on, to leave out, to merge), and checks before training."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.data.index import ImageIndex
from facemetric.data.store import composed
from facemetric.errors import DataError, did_you_mean, first_few, plural

CHAIN = 0.5  # share of listed pairs below which a group of names looks like a chain of look-alikes

_HASH = re.compile(r"\\*#")  # a backslash before it says that it begins a name and no comment


class Largest(NamedTuple):
    """The identity that most names went into, how many these are, and of the pairs among them the share that was
    given, 0..1: pairs that lie near each other by some measure make chains of people who are not alike, of whom few
    pairs are listed."""

    name: str
    names: int
    listed: float


class Merged(NamedTuple):
    """The index after a merge, how many identities went into others, the names it does not hold, and the largest
    group of those that it joined."""

    joined: ImageIndex
    merged: int
    unknown: tuple[str, ...]
    largest: Largest


class Enough(NamedTuple):
    """The images of identities with enough of them, and the names of the others."""

    kept: ImageIndex
    left_out: tuple[str, ...]


def read_identity_list(path: str | Path) -> list[str]:
    """Names, one a line; blank lines and those that start with `#` do not count: write a name that does `\\#name`.

    DataError where no text."""
    names = [line.strip() for line in _lines(path)]
    listed = (name for name in names if name and not name.startswith("#"))
    return list(dict.fromkeys(name[1:] if _HASH.match(name) else name for name in listed))


def list_line(name: str) -> str:
    """A name as a line of a list that `read_identity_list` reads back."""
    return f"\\{name}" if _HASH.match(name) else name


def read_merges(path: str | Path) -> list[tuple[str, ...]]:
    """Groups of names of one person: lines `a,b[,c...]`, or a csv with the columns identity_a and identity_b.

    Other columns of the csv (a distance) are skipped. DataError where a line names fewer than two.
    """
    # A quoted name may span lines, so comments are emptied and not taken out: the reader counts them.
    lines = ["" if line.lstrip().startswith("#") else line.strip() for line in _lines(path)]
    reader = csv.reader(line + "\n" for line in lines)
    try:
        found = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row and row != [""]]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: is no csv ({error}); write a,b") from None
    numbers, cells = [number for number, _ in found], [row for _, row in found]
    header = cells[0] if cells else []
    if {"identity_a", "identity_b"} <= set(header):
        places = [header.index("identity_a"), header.index("identity_b")]
        cells = [[row[i] for i in places if i < len(row)] for row in cells[1:]]
        numbers = numbers[1:]
    groups = [tuple(name for name in row if name) for row in cells]
    for number, group in zip(numbers, groups, strict=True):
        if len(group) < 2:
            raise DataError(
                f"{path} line {number}: names {plural(len(group), 'identity')}, a merge needs two: write a,b"
            )
    return groups


def merge_identities(
    index: ImageIndex, groups: Sequence[Sequence[str]], *, skip_unknown: bool = False
) -> Merged:
    """Makes one identity of each group, transitively; it keeps the first of its names in sorted order.

    Merge before splitting: the lists may then go on using any of the names. A name the index does not have
    is a DataError, or with `skip_unknown` handed back.
    """
    parent = np.arange(len(index.identities))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    missing: dict[str, None] = {}
    pairs: set[tuple[int, int]] = set()
    for group in groups:
        numbers, unknown = index.identity_numbers(group)
        missing.update(dict.fromkeys(unknown))
        pairs.update(combinations(sorted(set(numbers)), 2))
        for one, other in pairwise(numbers):
            low, high = sorted((root(one), root(other)))
            parent[high] = low  # names are sorted, so the root is the first of its group
    if missing and not skip_unknown:
        first = next(iter(missing))
        raise DataError(
            f"{plural(len(missing), 'identity', 'identities')} to merge not in the data, first {first!r}"
            f"{did_you_mean(first, index.identities)}"
        )
    roots = np.array([root(i) for i in range(len(parent))])
    kept, number = np.unique(roots, return_inverse=True)
    names = [index.identities[i] for i in kept]
    aliases = {index.identities[i]: index.identities[r] for i, r in enumerate(roots) if i != r}
    older = {old: aliases[name] for old, name in index.aliases.items() if name in aliases}
    joined = index.relabel(number[index.identity], names, {**older, **aliases})
    return Merged(joined, len(aliases), tuple(missing), largest_group(index, roots, pairs))


def read_families(index: ImageIndex, path: Path) -> tuple[np.ndarray, str]:
    """(C,) the number of each identity's family in a list in the form of `read_merges`, and a note of what it has.

    An identity that is not listed is a family of its own; those that share a line, or a chain of lines, are of one.
    The number is that of the family's first identity."""
    merged = merge_identities(index, read_merges(path), skip_unknown=True)
    number = {name: i for i, name in enumerate(index.identities)}
    first = [merged.joined.aliases.get(name, name) for name in index.identities]
    family_C = np.array([number[name] for name in first], dtype=np.int64)
    sizes = np.bincount(family_C)
    related, families = int(sizes[sizes > 1].sum()), int((sizes > 1).sum())
    who = f"{plural(related, 'identity', 'identities')} of {plural(families, 'family', 'families')}"
    return family_C, f"{who} of two and more{unknown_note(merged.unknown, path)}"


def largest_group(
    index: ImageIndex, roots: npt.NDArray[np.int64], pairs: Iterable[tuple[int, int]]
) -> Largest:
    """The largest group of the names of the index; roots[i] is the first name of the group of name i."""
    sizes = np.bincount(roots)
    largest, names = int(sizes.argmax()), int(sizes.max())
    listed = sum(roots[one] == largest for one, _ in pairs)
    return Largest(index.identities[largest], names, float(listed / max(names * (names - 1) / 2, 1)))


def without_images(index: ImageIndex, names: Sequence[str]) -> tuple[ImageIndex, tuple[str, ...]]:
    """The index without the images of these names, and the names that it does not have. DataError if none is left."""
    rows = [index.find(name) for name in names]
    keep = np.ones(len(index), bool)
    keep[[row for row in rows if row is not None]] = False
    if not keep.any():
        raise DataError(f"the list leaves out all {plural(len(index), 'image')}; shorten it")
    unknown = tuple(str(name) for name, row in zip(names, rows, strict=True) if row is None)
    return (index if keep.all() else index.select(keep)), unknown


def apply_lists(
    index: ImageIndex,
    merge: Path | None,
    leave_out: Path | None,
    leave_out_images: Path | None,
    say: Callable[[str], None],
) -> ImageIndex:
    """The index after the user's lists, in this order: images left out, identities merged, identities left out."""
    if leave_out_images:
        before = len(index)
        index, unknown = without_images(index, read_identity_list(leave_out_images))
        say(f"left out {plural(before - len(index), 'image')}{unknown_note(unknown, leave_out_images)}")
    if merge:
        merged = merge_identities(index, read_merges(merge), skip_unknown=True)
        index = merged.joined
        notes = largest_note(merged.largest) + unknown_note(merged.unknown, merge)
        say(f"merged {plural(merged.merged, 'identity', 'identities')} into others{notes}")
    if leave_out:
        parted = index.split_identities(read_identity_list(leave_out), skip_unknown=True)
        index = parted.rest
        say(
            f"left out {plural(len(parted.picked.identities), 'identity')}{unknown_note(parted.unknown, leave_out)}"
        )
    return index


def largest_note(largest: Largest) -> str:
    """The end of a sentence that says how many names the identity of most names has, and whether they are a chain."""
    if largest.names < 2:
        return ""
    chain = (
        f"; only {largest.listed:.0%} of the pairs of its names are listed, so it is a chain and may join many people: "
        "keep the surest pairs alone"
    )
    return f", at most {largest.names} into one ({largest.name!r}{chain if largest.listed < CHAIN else ''})"


def unknown_note(unknown: Iterable[str], path: Path) -> str:
    """The end of a sentence that says how many listed names the data does not have."""
    unknown = list(unknown)
    return (
        f" ({plural(len(unknown), 'name')} of {path} not in the data, first {unknown[0]!r})"
        if unknown
        else ""
    )


def with_at_least(index: ImageIndex, images: int) -> Enough:
    """The identities that have so many images, and the names of those left out."""
    enough = index.counts() >= images
    if enough.all():
        return Enough(index, ())
    return Enough(
        index.select(enough[index.identity]), tuple(index.identities[i] for i in np.flatnonzero(~enough))
    )


def check_identities(index: ImageIndex, *, least: int = 2, allow_case_twins: bool = False) -> None:
    """DataError where there are fewer than `least` identities, or two that differ in letter case alone.

    `Anna` and `anna` are one person whose folder was typed twice far more often than two people; trained as
    two, they teach the model to tell a face from itself. Names that are such codes on purpose:
    `allow_case_twins`. Unicode's composed and decomposed forms of a letter count as the same.
    """
    if len(index.identities) < least:
        found = f" ({', '.join(map(repr, index.identities))})" if index.identities else ""
        raise DataError(
            f"{plural(len(index.identities), 'identity', 'identities')} with images{found}, {least} are needed; "
            "the layout is identity/image.jpg, one folder for each identity, without a folder around them all"
        )
    if allow_case_twins:
        return
    seen: dict[str, str] = {}
    twins: list[str] = []
    for name in index.identities:
        other = seen.setdefault(composed(name).casefold(), name)
        if other != name:
            twins.append(f"{other!r} and {name!r}")
    if twins:
        raise DataError(
            f"{plural(len(twins), 'pair')} of identities that differ in letter case alone: {first_few(twins, 5)}; "
            "merge them (--merge), or where they are different people, say so with --case-twins"
        )


def _lines(path: str | Path) -> list[str]:
    try:
        # Names of files may be no UTF-8, and are then read as Python reads them from a folder.
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a text file of identities"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: is no UTF-8 text; give a text file with one identity a line")
    return text.splitlines()
