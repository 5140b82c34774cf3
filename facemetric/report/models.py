"""Several models on the same pairs and queries: what each measured, and what tells it from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from facemetric.evaluation.figures import DIFFERENCE, Figure, Heading, headline
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.verification import Verification

if TYPE_CHECKING:
    from facemetric.report.record import Retrieved, Verified  # which imports this file

APART, ALIKE = "the interval leaves out 0", "not told apart: the interval holds 0"


@dataclass(frozen=True)
class Comparison:
    """Another model on the same pairs and queries: its own figures, and that model minus the first.

    `differences` by the figure's name (`auc`, `tar_at_far_0.01`, `knn_accuracy_1`, ...): the same people are
    drawn for both, so an interval that leaves out 0 tells the models apart.
    """

    name: str
    verified: Verified | None
    neighbours: Retrieved | None
    differences: Mapping[str, Interval]

    @property
    def verification(self) -> Verification | None:
        """Its verification of the same pairs."""
        return None if self.verified is None else self.verified.verification

    def own_figures(self) -> list[Figure]:
        """What it measured itself, as rows."""
        rows = [] if self.verified is None else self.verified.figures()
        return rows + ([] if self.neighbours is None else self.neighbours.figures())

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        found: dict[str, Any] = {"second": self.name}
        if self.verified is not None:
            own = self.verified.to_dict()
            found["verification"] = {name: value for name, value in own.items() if name != "pairs"}
        if self.neighbours is not None:
            found["neighbours"] = self.neighbours.to_dict()
        differences = {
            name: {"difference": d.value, "low": d.low, "high": d.high}
            for name, d in self.differences.items()
        }
        return found | {"second_minus_first_95": differences}

    def figures(self, *, brief: bool = True) -> list[Figure]:
        """The differences of all figures that have a row, under the labels that they have there."""
        heading = Heading(
            "Comparison",
            f"{self.name} minus this model, on the same pairs and queries, the same people drawn for both.",
        )
        found = []
        for row in self.own_figures():
            d = self.differences.get(row.key)
            if d is not None:
                found.append(
                    Figure(
                        row.key,
                        row.label,
                        d.value,
                        d,
                        heading,
                        APART if told_apart(d) else ALIKE,
                        column=DIFFERENCE,
                        brief=brief,
                    )
                )
        return found


def told_apart(difference: Interval) -> bool:
    """Whether an interval of a difference leaves out 0."""
    return difference.low > 0 or difference.high < 0


@dataclass(frozen=True)
class Comparisons:
    """Other models, each beside the first, in the order in which they were named."""

    models: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json: one other model is `comparison` itself, several are its `models`."""
        if len(self.models) == 1:
            return self.models[0].to_dict()
        return {"models": [model.to_dict() for model in self.models]}

    def figures(self) -> list[Figure]:
        """The differences; of several models the keys begin with the model, and the terminal has the table of
        `SideBySide` alone."""
        if len(self.models) == 1:
            return self.models[0].figures()
        return [
            figure._replace(key=f"{model.name}.{figure.key}")
            for model in self.models
            for figure in model.figures(brief=False)
        ]


class OneModel(NamedTuple):
    """A model's figure, and what it is more than the first model's; None for the first itself."""

    value: float | None
    interval: Interval | None
    difference: Interval | None


@dataclass(frozen=True)
class SideRow:
    """A figure of every model: `cells` in the order of the models."""

    figure: Figure
    cells: tuple[OneModel, ...]


@dataclass(frozen=True)
class SideBySide:
    """One table of all models: every figure that they share, the first model first."""

    models: tuple[str, ...]
    rows: tuple[SideRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json: a list for each figure, in the order of the models."""
        return {
            "models": list(self.models),
            "figures": {row.figure.key: [cell_dict(cell) for cell in row.cells] for row in self.rows},
        }

    def figures(self) -> list[Figure]:
        """A table for each figure, a row for each model. The terminal shows those that lead, of three models and more:
        of two it shows the differences."""
        names = short_names(self.models)
        leading = (
            {row.key for row in headline([row.figure for row in self.rows])} if len(names) > 2 else set()
        )
        found = []
        for row in self.rows:
            own = row.figure
            heading = Heading(f"{own.label}, by model", f"{own.about}." if own.about else "", "model")
            for name, cell in zip(names, row.cells, strict=True):
                key, brief = f"{own.key}.{name}", own.key in leading
                found.append(
                    Figure(key, name, cell.value, cell.interval, heading, brief=brief, error=own.error)
                )
                d = cell.difference
                if d is not None:
                    note = APART if told_apart(d) else ALIKE
                    found.append(
                        Figure(
                            f"{key}.minus_first",
                            name,
                            d.value,
                            d,
                            heading,
                            note,
                            column=DIFFERENCE,
                            brief=brief,
                        )
                    )
        return found

    def best(self, key: str) -> int:
        """The number of the model that has the best value of a figure."""
        row = next(row for row in self.rows if row.figure.key == key)
        sign = -1 if row.figure.error else 1
        values = [-2.0 if cell.value is None else sign * cell.value for cell in row.cells]
        return values.index(max(values))


def cell_dict(cell: OneModel) -> dict[str, Any]:
    """A model's figure as plain numbers."""
    found: dict[str, Any] = {"value": cell.value}
    for name, interval in (("interval_95", cell.interval), ("minus_first_interval_95", cell.difference)):
        if interval is not None:
            found |= {"minus_first": interval.value} if name.startswith("minus") else {}
            found[name] = {"low": interval.low, "high": interval.high}
    return found


def side_by_side(first: str, own: Sequence[Figure], others: Sequence[Comparison]) -> SideBySide:
    """The table of a first model, whose figures are `own`, and of others."""
    of_others = [{figure.key: figure for figure in other.own_figures()} for other in others]
    rows = []
    for figure in own:
        if figure.value is None:
            continue
        cells = [OneModel(figure.value, figure.interval, None)]
        for other, theirs in zip(others, of_others, strict=True):
            same = theirs.get(figure.key)
            value, interval = (None, None) if same is None else (same.value, same.interval)
            cells.append(OneModel(value, interval, other.differences.get(figure.key)))
        rows.append(SideRow(figure, tuple(cells)))
    return SideBySide((first, *(other.name for other in others)), tuple(rows))


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of some paths, as many as tell them apart; equal names are numbered."""
    parts = [PurePath(name).parts or (name,) for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = [str(PurePath(*part[-count:])) for part in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
