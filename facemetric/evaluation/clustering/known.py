"""What is known of images before they are grouped: groups that were confirmed or found before, and pairs.

A confirmed image stays in its group. Images of one group of an earlier run stay together, as far as the pairs and the
confirmed groups let them. Shapes: N images, C clusters found, P pairs.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from facemetric.errors import DataError, plural

Ints = npt.NDArray[np.int64]
NOBODY = -1
SHOWN = 3  # contradictions in one message


class Link(NamedTuple):
    """Two images (rows) that are one person, or two, and where that is written."""

    a: int
    b: int
    where: str


class Start(NamedTuple):
    """How the grouping starts. `together` (N,): images of one number begin as one cluster. `key` (N,): images of two
    keys are never in one cluster, those of NOBODY may be in any. `apart` (P, 2): rows that are never in one."""

    together: Ints
    key: Ints
    apart: Ints


@dataclass(frozen=True)
class KnownGroups:
    """`firm` (N,) and `earlier` (N,): the number of the group in which an image was confirmed, or was in an earlier
    run; NOBODY where there is none. `one` and `two`: pairs of one person, and of two. `names`: of the images, for
    messages; `written`: where a confirmed image (by row) is listed. `last`: the highest number that any list has, also
    for images that are gone: new groups are counted from there."""

    names: Sequence[str]
    firm: Ints
    earlier: Ints
    one: tuple[Link, ...] = ()
    two: tuple[Link, ...] = ()
    written: Mapping[int, str] = field(default_factory=dict)
    last: int = NOBODY

    def start(self) -> Start:
        """How the grouping starts. Raises DataError, with the lines, where the pairs and the confirmed groups
        contradict each other."""
        piece_N = self.pieces()
        self.check(piece_N)
        key_N = self.keys(piece_N)
        apart_P2 = np.array([(link.a, link.b) for link in self.two], np.int64).reshape(-1, 2)
        # A group that a pair parts is grouped again within itself, from the pieces that are sure.
        parted = [k for a, b in key_N[apart_P2].tolist() if (k := a) == b and k != NOBODY]
        whole_N = (key_N != NOBODY) & ~np.isin(key_N, parted)
        return Start(np.where(whole_N, len(key_N) + key_N, piece_N), key_N, apart_P2)

    def pieces(self) -> Ints:
        """The piece (N,) of each image: images that are one person for sure."""
        edges = [(link.a, link.b) for link in self.one]
        for rows in rows_by_number(self.firm).values():
            edges += [(int(rows[0]), int(row)) for row in rows[1:]]
        n = len(self.firm)
        a, b = np.array(edges, np.int64).reshape(-1, 2).T
        graph = csr_array((np.ones(len(a), bool), (a, b)), shape=(n, n))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def check(self, piece_N: Ints) -> None:
        """Raise DataError where one piece holds two confirmed groups, or a pair of two people."""
        faults = []
        for link in self.two:
            if piece_N[link.a] == piece_N[link.b]:
                faults.append(
                    f"{self.names[link.a]} and {self.names[link.b]} are two people by {link.where}, and one by "
                    f"{' with '.join(self.chain(link.a, link.b))}"
                )
        first: dict[int, int] = {}
        for rows in rows_by_number(self.firm).values():
            row = int(rows[0])
            other = first.setdefault(int(piece_N[row]), row)
            if other != row:
                faults.append(
                    f"{self.names[other]} and {self.names[row]} are in two groups by {self.written[other]} and "
                    f"{self.written[row]}, and one person by {' with '.join(self.chain(other, row))}"
                )
        if faults:
            more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
            raise DataError(
                f"{plural(len(faults), 'contradiction')}: {'; '.join(faults[:SHOWN])}{more}; take one of the lines out"
            )

    def chain(self, start: int, end: int) -> list[str]:
        """The shortest row of statements by which two images are one person."""
        steps: dict[int, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
        for link in self.one:
            steps[link.a].append((link.b, (link.where,)))
            steps[link.b].append((link.a, (link.where,)))
        groups = rows_by_number(self.firm)
        before: dict[int, tuple[int, tuple[str, ...]]] = {start: (start, ())}
        queue = deque([start])
        while end not in before:
            row = queue.popleft()
            mates = groups.get(int(self.firm[row]), ()) if self.firm[row] != NOBODY else ()
            same = [(int(mate), (self.written[row], self.written[int(mate)])) for mate in mates]
            for mate, where in (*steps[row], *same):
                if mate not in before:
                    before[mate] = row, where
                    queue.append(mate)
        found: list[str] = []
        while end != start:
            end, where = before[end]
            found = [*where, *found]
        return list(dict.fromkeys(found))

    def numbers(self) -> Ints:
        """The number (N,) that each image brings: of its confirmed group, or else of its earlier one."""
        return np.where(self.firm != NOBODY, self.firm, self.earlier)

    def keys(self, piece_N: Ints) -> Ints:
        """The key (N,) of each image: groups that a pair of one person joins have one key, unless both hold
        confirmed images. What such a pair joins then goes where it is most alike."""
        number_N = self.numbers()
        firm_P = np.full(len(piece_N), NOBODY, np.int64)
        np.maximum.at(firm_P, piece_N, self.firm)
        touched: dict[int, Counter[int]] = defaultdict(Counter)
        for row in np.flatnonzero(number_N != NOBODY).tolist():
            touched[int(piece_N[row])][int(number_N[row])] += 1
        joined = Joined(self.firm[self.firm != NOBODY].tolist())
        home: dict[int, int] = {}
        for piece, numbers in touched.items():
            sure = int(firm_P[piece])
            first = sure if sure != NOBODY else numbers.most_common(1)[0][0]
            agreed = [joined.join(first, other) for other in numbers]
            if sure != NOBODY or all(agreed):
                home[piece] = first
        return np.array([joined.root(home.get(piece, NOBODY)) for piece in piece_N.tolist()], np.int64)

    def numbered(self, start: Start, cluster_N: Ints) -> Ints:
        """The number (C,) of each cluster, given clusters (N,) 0..C-1, the largest first.

        A cluster keeps the number of the confirmed images in it, or else of the earlier group that most of its images
        are from; of a group that fell apart the largest part keeps it. Others get numbers that nobody had."""
        number_C = np.full(int(cluster_N.max()) + 1, NOBODY, np.int64)
        taken: set[int] = set()

        def give(cluster: int, number: int) -> None:
            if number_C[cluster] == NOBODY and number not in taken:
                number_C[cluster] = number
                taken.add(number)

        for number, rows in rows_by_number(self.firm).items():
            give(int(cluster_N[rows[0]]), number)
        brought_N = np.where(start.key != NOBODY, self.numbers(), NOBODY)
        have = brought_N != NOBODY
        counts = Counter(zip(cluster_N[have].tolist(), brought_N[have].tolist(), strict=True))
        for (cluster, number), _ in sorted(
            counts.items(), key=lambda item: (-item[1], item[0][1], item[0][0])
        ):
            give(cluster, number)
        fresh = max(self.last, self.firm.max(initial=NOBODY), self.earlier.max(initial=NOBODY)) + 1
        new = np.flatnonzero(number_C == NOBODY)
        number_C[new] = fresh + np.arange(len(new))
        return number_C


class Joined:
    """Groups (by number) that became one; no two of those that are `firm` do."""

    def __init__(self, firm: Iterable[int]) -> None:
        self.firm = set(firm)
        self.above: dict[int, int] = {}

    def root(self, number: int) -> int:
        """The number of all that are joined with this one; a firm one where there is one."""
        while (above := self.above.get(number, number)) != number:
            number = above
        return number

    def join(self, one: int, other: int) -> bool:
        """Join two groups; whether that could be."""
        a, b = self.root(one), self.root(other)
        if a == b:
            return True
        if {a, b} <= self.firm:
            return False
        keep, gone = (b, a) if b in self.firm else (a, b)
        self.above[gone] = keep
        return True


def rows_by_number(number_N: Ints) -> dict[int, Ints]:
    """The rows of each number but NOBODY, rising."""
    rows = np.flatnonzero(number_N != NOBODY)
    order = rows[np.argsort(number_N[rows], kind="stable")]
    values, first = np.unique(number_N[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}
