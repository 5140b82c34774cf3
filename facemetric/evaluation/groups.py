"""What slices are made of: the groups of a column, their rates, and the gaps between them.

Shapes: N images, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError
from facemetric.evaluation.intervals import Interval

LEAST_PAIRS, LEAST_PEOPLE = 30, 10  # of each kind, below which a group's rates say nothing
ACROSS = "(across groups)"  # pairs of images of two groups: shown, but no part of a gap


class Rates(NamedTuple):
    """FAR and TAR of a group at the threshold that gives everybody together the FAR `wanted`."""

    wanted: float
    far: Interval
    tar: Interval


class Gap(NamedTuple):
    """The largest difference of two groups' rates at the threshold of one wanted FAR, 0..1.

    `low_group` has the lower rate, `high_group` the higher; the interval is that of these two groups.
    """

    wanted: float
    rate: str
    """"tar" or "far"."""
    low_group: str
    high_group: str
    difference: Interval


@dataclass(frozen=True)
class Group:
    """One value of a column. `too_small` says why it has no rates; empty where it has."""

    name: str
    n_genuine: int
    n_impostor: int
    n_people: int
    rates: tuple[Rates, ...]
    too_small: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        at = {
            f"{r.wanted:g}": {
                "far": r.far.value,
                "far_95": [r.far.low, r.far.high],
                "tar": r.tar.value,
                "tar_95": [r.tar.low, r.tar.high],
            }
            for r in self.rates
        }
        counts = {"genuine_pairs": self.n_genuine, "impostor_pairs": self.n_impostor, "people": self.n_people}
        return counts | {"too_small": self.too_small or None, "at_overall_far": at}


@dataclass(frozen=True)
class Slicing:
    """The groups of one column, and the largest gaps among those that are large enough."""

    column: str
    groups: tuple[Group, ...] = ()
    gaps: tuple[Gap, ...] = ()
    note: str = ""
    """Why the column has no groups; empty where it has."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        gaps = [
            {
                "rate": gap.rate,
                "overall_far": gap.wanted,
                "low_group": gap.low_group,
                "high_group": gap.high_group,
                "difference": gap.difference.value,
                "difference_95": [gap.difference.low, gap.difference.high],
            }
            for gap in self.gaps
        ]
        groups = {group.name: group.to_dict() for group in self.groups}
        return {"column": self.column, "groups": groups, "largest_gaps": gaps, "note": self.note or None}


def sized_group(name: str, n_genuine: int, n_impostor: int, n_people: int) -> Group:
    """A group without rates, and why it has none where it is too small for them."""
    reason = ""
    if min(n_genuine, n_impostor) < LEAST_PAIRS or n_people < LEAST_PEOPLE:
        reason = (
            f"{n_genuine} genuine and {n_impostor} impostor pairs of {n_people} people; "
            f"needed {LEAST_PAIRS} of each, of {LEAST_PEOPLE} people"
        )
    return Group(name, n_genuine, n_impostor, n_people, (), reason)


def groups_of_pairs(
    per_image: Mapping[str, npt.NDArray[np.str_]], rows_a: npt.ArrayLike, rows_b: npt.ArrayLike
) -> dict[str, npt.NDArray[np.str_]]:
    """Groups (P,) of pairs of images from groups (N,) of images: the value of both, ACROSS where they differ,
    "" where one has none. Raises DataError where images have ACROSS for their group.
    """
    found = {}
    for column, value_N in per_image.items():
        if (value_N == ACROSS).any():
            raise DataError(
                f"{(value_N == ACROSS).sum()} images have the {column} {ACROSS!r}, which names the pairs of two "
                "groups; give the group another name"
            )
        one, other = value_N[np.asarray(rows_a)], value_N[np.asarray(rows_b)]
        both = np.where(one == other, one, ACROSS)
        found[column] = np.where((one == "") | (other == ""), "", both)
    return found
