"""What an evaluation found: the record that metrics.json, the printed table and the report are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facemetric.data.index import ImageIndex
from facemetric.evaluation.identification import Identification
from facemetric.evaluation.intervals.records import Band, Interval
from facemetric.evaluation.retrieval import Retrieval
from facemetric.evaluation.slices import Slicing
from facemetric.evaluation.svm import SvmAccuracy
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import Verification

UNSUPPORTED = "no FAR is supported"  # in place of a group's rates


@dataclass(frozen=True)
class Comparison:
    """A second model on the same pairs and queries: its own figures, and second minus first.

    `differences` by the figure's name (`auc`, `tar_at_far_0.01`, `knn_accuracy_1`, ...): the same people are
    drawn for both, so an interval that leaves out 0 tells the models apart.
    """

    name: str
    verification: Verification | None
    neighbours: Retrieval | None
    differences: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        found: dict[str, Any] = {"second": self.name}
        if self.verification is not None:
            found["verification"] = self.verification.to_dict()
        if self.neighbours is not None:
            found["neighbours"] = self.neighbours.to_dict()
        differences = {
            name: {"difference": d.value, "low": d.low, "high": d.high}
            for name, d in self.differences.items()
        }
        return found | {"second_minus_first_95": differences}


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured; what was not asked for, or cannot be, is None or empty.

    Rows in `verification.hardest`, `neighbours.each` and `gallery.each` are rows of `table` (`nearest` of
    `gallery.each`: of `gallery_table`). `images` finds the picture of a row: `images.find(table.name(row))`.
    """

    out: Path
    table: EmbeddingTable
    images: ImageIndex | None = None
    pairs: str = ""
    """The pairs file, or "all" for all pairs of the table; empty where no pairs were scored."""
    verification: Verification | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of `auc`, `eer`, `tar_at_far_X` and, for listed pairs, `accuracy` of the verification."""
    band: Band | None = None
    """The interval of the TAR along the ROC."""
    slices: tuple[Slicing, ...] = ()
    neighbours: Retrieval | None = None
    neighbour_intervals: Mapping[str, Interval] = field(default_factory=dict)
    gallery: Retrieval | None = None
    gallery_intervals: Mapping[str, Interval] = field(default_factory=dict)
    gallery_table: EmbeddingTable | None = None
    identification: Identification | None = None
    identification_intervals: Mapping[str, Interval] = field(default_factory=dict)
    svm: SvmAccuracy | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
    """What the reader of the figures must know."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        found: dict[str, Any] = {}
        if self.verification is not None:
            found["verification"] = {"pairs": self.pairs} | with_intervals(self.verification, self.intervals)
        if self.slices:
            found["slices"] = [slicing.to_dict() for slicing in self.slices]
        if self.neighbours is not None:
            found["neighbours"] = with_intervals(self.neighbours, self.neighbour_intervals)
        if self.gallery is not None:
            found["gallery"] = with_intervals(self.gallery, self.gallery_intervals)
        if self.identification is not None:
            found["identification"] = with_intervals(self.identification, self.identification_intervals)
        if self.svm is not None:
            found["svm"] = self.svm.to_dict()
        if self.comparison is not None:
            found["comparison"] = self.comparison.to_dict()
        if self.notes:
            found["notes"] = list(self.notes)
        return found


def with_intervals(figures: Any, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """The figures' own dict, with the intervals by name."""
    bounds = {name: {"low": interval.low, "high": interval.high} for name, interval in intervals.items()}
    return figures.to_dict() | {"intervals_95": bounds}
