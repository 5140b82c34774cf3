"""The groups of a column (age, camera, ...): the rates of each at a threshold for all, and the gaps between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from facemetric.errors import plural
from facemetric.evaluation.figures import Figure, Heading, tar_name
from facemetric.evaluation.intervals.records import Interval

LEAST_PAIRS, LEAST_PEOPLE = 30, 10  # of each kind, below which a group's rates say nothing
UNSUPPORTED = "no FAR is supported"  # in place of a group's rates


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

    def sizes(self) -> str:
        """How much there is of it, in words."""
        return f"{plural(self.n_people, 'person', 'people')}, {self.n_genuine:,} + {self.n_impostor:,} pairs"


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

    def figures(self) -> list[Figure]:
        """TAR and FAR of each group at the threshold that gives everybody together a FAR, and the largest gaps.

        One figure that says why, where the column has no groups. The FAR next to 1e-2 is for the
        terminal too, the others for the report alone."""
        title = f"By {self.column}"
        if self.note:
            heading = Heading(title, f"Not sliced: {self.note}.")
            return [Figure(self.column, self.column, None, None, heading, self.note, in_heading=True)]
        wanted = list(dict.fromkeys(rates.wanted for group in self.groups for rates in group.rates))
        if not wanted:
            heading = Heading(title, names=self.column)
            return [
                Figure(
                    f"{self.column}.{g.name}",
                    g.name,
                    None,
                    None,
                    heading,
                    g.too_small or UNSUPPORTED,
                    g.sizes(),
                )
                for g in self.groups
            ]
        shown = min(wanted, key=lambda far: abs(far - 1e-2))
        return [row._replace(brief=far == shown) for far in wanted for row in self._figures_at(far)]

    def _figures_at(self, far: float) -> Iterator[Figure]:
        """The rows at one FAR: a too small group says so in the place of its TAR."""
        gaps = [gap for gap in self.gaps if gap.wanted == far]
        lead = " ".join(
            f"Largest gap in {gap.rate.upper()}: {gap.difference.value:.4f} [{gap.difference.low:.4f}, "
            f"{gap.difference.high:.4f}], {gap.low_group} to {gap.high_group}."
            for gap in gaps
        )
        heading = Heading(f"By {self.column}, at overall FAR = {far:g}", lead, self.column)
        for group in self.groups:
            key = f"{self.column}.{group.name}"
            rates = next((rates for rates in group.rates if rates.wanted == far), None)
            if rates is None:
                note = group.too_small or UNSUPPORTED
                yield Figure(
                    f"{key}.{tar_name(far)}", group.name, None, None, heading, note, group.sizes(), "TAR"
                )
                continue
            for name, rate in (("tar", rates.tar), ("far", rates.far)):
                yield Figure(
                    f"{key}.{name}_at_far_{far:g}",
                    group.name,
                    rate.value,
                    rate,
                    heading,
                    "",
                    group.sizes(),
                    name.upper(),
                    error=name == "far",
                )
        for gap in gaps:
            name = f"{self.column}.{gap.rate}_gap_at_far_{far:g}"
            note = f"{gap.low_group} to {gap.high_group}"
            label = f"Largest gap in {gap.rate.upper()}"
            yield Figure(name, label, gap.difference.value, gap.difference, heading, note, in_heading=True)


def sized_group(name: str, n_genuine: int, n_impostor: int, n_people: int) -> Group:
    """A group without rates, and why it has none where it is too small for them."""
    reason = ""
    if min(n_genuine, n_impostor) < LEAST_PAIRS or n_people < LEAST_PEOPLE:
        reason = (
            f"{n_genuine} genuine and {n_impostor} impostor pairs of {plural(n_people, 'person', 'people')}; "
            f"needed {LEAST_PAIRS} of each, of {LEAST_PEOPLE} people"
        )
    return Group(name, n_genuine, n_impostor, n_people, (), reason)
