"""Groups that stay: what `cluster` is told of its images (an earlier run, corrections, pairs), and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.config import ClusterConfig, require
from facemetric.data.group_lists import (
    GroupList,
    Member,
    NamedPair,
    read_clusters,
    read_corrections,
    read_link_pairs,
)
from facemetric.data.store import composed
from facemetric.errors import DataError, first_few, plural
from facemetric.evaluation.clustering.clusters import AVERAGE, Clusters, find_clusters
from facemetric.evaluation.clustering.known import NOBODY, KnownGroups, Link, Start
from facemetric.evaluation.table import EmbeddingTable

Ints = npt.NDArray[np.int64]


class Given(NamedTuple):
    """The files that the options name, read but not yet looked up."""

    earlier: GroupList | None = None
    corrections: GroupList | None = None
    one: Sequence[NamedPair] = ()
    two: Sequence[NamedPair] = ()


@dataclass(frozen=True)
class Groups:
    """What a clustering's numbers are called.

    `number` (C,) of each cluster, as clusters.csv has it, `name` (C,), "" where nobody gave one; `confirmed` (N,):
    the image was put, or left, in its group by a person. `kept` (N,): the image was in a group of the earlier run, and
    is in that one still; `new` (N,): it was in no group that is known. `gone`: images of the lists that are not there.
    """

    number: Ints
    name: tuple[str, ...]
    confirmed: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    new: npt.NDArray[np.bool_]
    gone: tuple[str, ...] = ()
    old: frozenset[int] = field(default=frozenset(), repr=False)
    """Numbers that groups had before."""
    last: int = NOBODY
    """The highest of them, also of groups that are gone."""

    def to_dict(self, clusters: Clusters) -> dict[str, Any]:
        """Plain numbers under plain names."""
        return {
            "named": sum(bool(name) for name in self.name),
            "images_confirmed": int(self.confirmed.sum()),
            "images_kept": int(self.kept.sum()),
            "images_moved": int((~self.new & ~self.kept).sum()),
            "images_new": int(self.new.sum()),
            "images_new_in_groups_that_were_there": self.joined(clusters),
            "groups_new": int(sum(number not in self.old for number in self.number.tolist())),
            "images_gone": len(self.gone),
        }

    def joined(self, clusters: Clusters) -> int:
        """How many new images went into groups that were there."""
        old_C = np.isin(self.number, list(self.old))
        return int((self.new & old_C[clusters.number]).sum())

    def text(self, clusters: Clusters) -> list[str]:
        """Lines about what stayed; none where nothing was known."""
        if not self.old and not self.confirmed.any():
            return []
        record = self.to_dict(clusters)
        moved = f", {record['images_moved']:,} moved" if record["images_moved"] else ""
        joined = record["images_new_in_groups_that_were_there"]
        return [
            f"{plural(record['images_kept'], 'image')} kept their group{moved}, {record['images_confirmed']:,} of all "
            f"are confirmed; {record['images_new']:,} new: {joined:,} in groups that were there, "
            f"{plural(record['groups_new'], 'group')} of new numbers"
        ]


def read_given(config: ClusterConfig) -> Given:
    """The lists that the options name. What is wrong in a file is told before images are read."""
    lists = (config.onto, config.corrections, config.must_link, config.cannot_link)
    require(
        config.method == AVERAGE or not any(lists),
        f"--onto, --corrections, --must-link and --cannot-link need --method {AVERAGE}, not {config.method}",
    )
    return Given(
        read_clusters(config.onto) if config.onto else None,
        read_corrections(config.corrections) if config.corrections else None,
        read_link_pairs(config.must_link) if config.must_link else (),
        read_link_pairs(config.cannot_link) if config.cannot_link else (),
    )


class Rows:
    """The rows of a table by an image's name, and the names that were asked for in vain."""

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table
        self.gone: dict[str, None] = {}
        self._other: dict[str, int] | None = None

    def find(self, name: str) -> int | None:
        """The row of a name, which a csv may hold with escapes for bytes that are no text, and a page with its accents
        beside their letters."""
        row = self.table.find(name)
        if row is None:
            if self._other is None:
                self._other = {written(path): i for i, path in enumerate(self.table.paths.tolist())}
            row = self._other.get(written(name))
        if row is None:
            self.gone[name] = None
        return row

    def links(self, pairs: Iterable[NamedPair]) -> tuple[Link, ...]:
        """The pairs whose images are both there."""
        found = []
        for pair in pairs:
            a, b = self.find(pair.path_a), self.find(pair.path_b)
            if a is not None and b is not None:
                found.append(Link(a, b, pair.where))
        return tuple(found)


def written(name: str) -> str:
    """A name as files of text have it."""
    return composed(name).encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Known:
    """What is known of the rows of a table. `start`: how the grouping starts; None where nothing is known."""

    groups: KnownGroups
    names: dict[int, str]
    gone: tuple[str, ...]
    start: Start | None


def look_up(given: Given, table: EmbeddingTable) -> Known:
    """The lists in a table. Raises DataError where they contradict each other, or an earlier run is of other images."""
    rows, names = Rows(table), dict[int, str]()
    firm, earlier = (np.full(len(table), NOBODY, np.int64) for _ in range(2))
    place: dict[int, str] = {}
    last = NOBODY
    for listed in filter(None, (given.earlier, given.corrections)):
        members = numbered_members(listed.members, names, last)
        last = max([last, *(member.number for member in members)])
        for member in members:
            row = rows.find(member.path)
            if row is None:
                continue
            names[member.number] = member.name
            if member.confirmed:
                firm[row], place[row] = member.number, listed.where(member)
            if listed is given.earlier:
                earlier[row] = member.number
    if given.earlier is not None and (earlier == NOBODY).all():
        raise DataError(
            f"none of the {plural(len(given.earlier.members), 'image')} of {given.earlier.file} is there (first "
            f"{given.earlier.members[0].path if given.earlier.members else 'none'}); name the images of the earlier "
            "run, old and new, in the same way"
        )
    known = KnownGroups(
        table.paths.tolist(), firm, earlier, rows.links(given.one), rows.links(given.two), place, last
    )
    told = last != NOBODY or known.one or known.two
    return Known(known, names, tuple(rows.gone), known.start() if told else None)


def numbered_members(members: Sequence[Member], names: dict[int, str], last: int) -> list[Member]:
    """The members, a number for each: a group that is known by its name alone has the number of that name, or else
    one that nobody had."""
    number_of = {name: number for number, name in names.items() if name}
    last = max([last, *(member.number for member in members)])
    found = []
    for member in members:
        if member.number < 0:
            if member.name not in number_of:
                last += 1
                number_of[member.name] = last
            member = member._replace(number=number_of[member.name])
        found.append(member)
    return found


def group(
    config: ClusterConfig, table: EmbeddingTable, threshold: float, known: Known
) -> tuple[Clusters, Groups]:
    """The clusters of a table, by what is known of it, and what they are called."""
    options: dict[str, Any] = {"method": config.method, "min_images": config.min_images}
    clusters = find_clusters(table.embeddings, threshold, start=known.start, **options)
    before_N = known.groups.numbers()
    if known.start is None:
        number_C = np.arange(len(clusters.sizes()))
    else:
        number_C = known.groups.numbered(known.start, clusters.number)
    number_N = number_C[clusters.number]
    have = before_N != NOBODY
    old = frozenset(before_N[have].tolist())
    name = tuple(known.names.get(number, "") if number in old else "" for number in number_C.tolist())
    kept = have & (known.groups.earlier == number_N)
    confirmed = known.groups.firm != NOBODY
    last = known.groups.last
    return clusters, Groups(number_C, name, confirmed, kept, ~have, known.gone, old, last)


def gone_note(known: Known) -> str:
    """A sentence about listed images that are not there; "" where all are."""
    gone = known.gone
    if not gone:
        return ""
    return f"{plural(len(gone), 'image')} of the lists not there and of no effect: {first_few(gone, 5)}"
