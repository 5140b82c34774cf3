"""Verification by group (age, camera, ...): what one threshold for all does to each group.

Shapes: P pairs, W persons, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from facemetric.evaluation.intervals import Interval


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
    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]

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
        return {"column": self.column, "groups": groups, "largest_gaps": gaps}
