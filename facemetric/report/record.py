"""What an evaluation found: the record that metrics.json, the printed figures and the report are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from facemetric.data.index import ImageIndex
from facemetric.errors import ConfigError, did_you_mean, plural
from facemetric.evaluation.calibration import Calibrated
from facemetric.evaluation.figures import DIFFERENCE, Figure, Heading, headline, to_frame
from facemetric.evaluation.identification import Identification
from facemetric.evaluation.intervals.records import Band, Interval
from facemetric.evaluation.retrieval import Retrieval
from facemetric.evaluation.slices.records import Slicing
from facemetric.evaluation.svm import SvmAccuracy
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.templates import Pooled
from facemetric.evaluation.verification import Verification
from facemetric.report.models import ALIKE, APART, Comparison, Comparisons, SideBySide, told_apart

if TYPE_CHECKING:
    import pandas as pd

NEIGHBOURS = "Nearest neighbours, each image against all others"
GALLERY = "Nearest neighbours, probes against the gallery"
NONE: Mapping[str, Interval] = MappingProxyType({})


class Family(Protocol):
    """Figures that are measured together: plain values for metrics.json, and rows to show."""

    def to_dict(self) -> Any: ...
    def figures(self) -> list[Figure]: ...


Part = TypeVar("Part", bound=Family)


class Verified(NamedTuple):
    """Verification of listed pairs (`pairs` is their file) or of all pairs ("all"), and its intervals."""

    pairs: str
    verification: Verification
    intervals: Mapping[str, Interval] = NONE
    """Of `auc`, `eer`, `tar_at_far_X` and, for listed pairs, `accuracy`; empty where identities are not known."""
    band: Band | None = None
    """The interval of the TAR along the ROC."""

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        return {"pairs": self.pairs} | with_intervals(self.verification, self.intervals)

    def figures(self) -> list[Figure]:
        """As rows."""
        return self.verification.figures(self.intervals)


class Sliced(NamedTuple):
    """The verification by groups, column by column."""

    slices: tuple[Slicing, ...]

    def to_dict(self) -> list[dict[str, Any]]:
        """As in metrics.json."""
        return [slicing.to_dict() for slicing in self.slices]

    def figures(self) -> list[Figure]:
        """As rows."""
        return [figure for slicing in self.slices for figure in slicing.figures()]


class Retrieved(NamedTuple):
    """Nearest neighbours, and their intervals. `title`: who looked for whom."""

    retrieval: Retrieval
    intervals: Mapping[str, Interval] = NONE
    title: str = NEIGHBOURS
    thing: str = "image"
    """What the rows are: images, or templates."""

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        return with_intervals(self.retrieval, self.intervals)

    def figures(self) -> list[Figure]:
        """As rows."""
        rows = self.retrieval.figures(self.title, self.intervals)
        if self.thing == "image":
            return rows
        return [
            row._replace(
                heading=Heading(*(text.replace("image", self.thing) for text in row.heading)),
                about=row.about.replace("image", self.thing),
            )
            for row in rows
        ]


class Identified(NamedTuple):
    """Open-set identification, and its intervals."""

    identification: Identification
    intervals: Mapping[str, Interval] = NONE

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        return with_intervals(self.identification, self.intervals)

    def figures(self) -> list[Figure]:
        """As rows."""
        return self.identification.figures(self.intervals)


def with_intervals(figures: Any, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """The figures' own dict, with the intervals by name."""
    bounds = {name: {"low": interval.low, "high": interval.high} for name, interval in intervals.items()}
    return figures.to_dict() | {"intervals_95": bounds}


class Normalized(NamedTuple):
    """Verification of the listed pairs by scores that a cohort normalized, and what that changed.

    `differences` by the figure's name, normalized minus plain: the same people are drawn for both."""

    name: str
    verified: Verified
    differences: Mapping[str, Interval] = NONE

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        changes = {
            name: {"difference": d.value, "low": d.low, "high": d.high}
            for name, d in self.differences.items()
        }
        return {"by": self.name} | self.verified.to_dict() | {"normalized_minus_plain_95": changes}

    def figures(self) -> list[Figure]:
        """As rows: each figure, and what it is more than that of the cosines."""
        heading = Heading(
            "Normalized scores", f"{self.name} images of the cohort; differences from the cosines."
        )
        rows = []
        for row in self.verified.figures():
            if row.value is None:
                continue
            rows.append(row._replace(heading=heading, headline=0, note="", series=""))
            d = self.differences.get(row.key)
            if d is not None:
                note = APART if told_apart(d) else ALIKE
                key = f"{row.key}.difference"
                rows.append(Figure(key, row.label, d.value, d, heading, note, column=DIFFERENCE))
        return rows


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Everything that was measured: a family of figures for each thing, and what the reader of them must know.

    Rows in `verification.hardest`, `neighbours.each` and `gallery.each` are rows of `table` (`nearest` of
    `gallery.each`: of `gallery_table`). `images` finds the picture of a row: `images.find(table.name(row))`.
    """

    out: Path
    table: EmbeddingTable
    images: ImageIndex | None = None
    gallery_table: EmbeddingTable | None = None
    families: Mapping[str, Family] = field(default_factory=dict)
    """By their name in metrics.json: templates, verification, normalized, calibration, slices, neighbours, gallery,
    identification, svm, comparison, models."""
    notes: tuple[str, ...] = ()
    report: Path | None = None
    """The report, where one was written."""

    def __repr__(self) -> str:
        leading = "".join(f", {f.label} {f.text()}" for f in self.headline())
        return f"Evaluation({size_of(self.table)}{leading}, out={str(self.out)!r})"

    def figures(self) -> list[Figure]:
        """Every figure as a row, its key with the family's name before it: `verification.auc`."""
        return [
            figure._replace(key=f"{name}.{figure.key}")
            for name, family in self.families.items()
            for figure in family.figures()
        ]

    def figure(self, key: str) -> Figure:
        """The figure of a key such as `neighbours.knn_accuracy_1`. Raises ConfigError where there is none."""
        rows = {figure.key: figure for figure in self.figures()}
        if key not in rows:
            raise ConfigError(f"no figure {key!r}{did_you_mean(key, rows)}")
        return rows[key]

    def headline(self) -> list[Figure]:
        """The three figures to read first, or fewer where fewer were measured."""
        return headline(self.figures())

    def to_frame(self) -> pd.DataFrame:
        """A row for each figure: key, label, value, low and high of the 95 % interval, note."""
        return to_frame(self.figures())

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        found = {name: family.to_dict() for name, family in self.families.items()}
        return found | {"notes": list(self.notes)} if self.notes else found

    def family(self, name: str, kind: type[Part]) -> Part | None:
        """A family of figures by its name; None where it was not measured."""
        found = self.families.get(name)
        return found if isinstance(found, kind) else None

    @property
    def verified(self) -> Verified | None:
        """Verification with its pairs, intervals and band."""
        return self.family("verification", Verified)

    @property
    def verification(self) -> Verification | None:
        """Verification of pairs."""
        return None if self.verified is None else self.verified.verification

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """Intervals of the verification by name."""
        return {} if self.verified is None else self.verified.intervals

    @property
    def band(self) -> Band | None:
        """The interval of the TAR along the ROC."""
        return None if self.verified is None else self.verified.band

    @property
    def slices(self) -> tuple[Slicing, ...]:
        """The verification by groups."""
        found = self.family("slices", Sliced)
        return () if found is None else found.slices

    @property
    def neighbours(self) -> Retrieval | None:
        """Nearest neighbours of each image among all others."""
        found = self.family("neighbours", Retrieved)
        return None if found is None else found.retrieval

    @property
    def gallery(self) -> Retrieval | None:
        """Nearest neighbours of the images in the gallery."""
        found = self.family("gallery", Retrieved)
        return None if found is None else found.retrieval

    @property
    def identification(self) -> Identification | None:
        """Open-set identification."""
        found = self.family("identification", Identified)
        return None if found is None else found.identification

    @property
    def svm(self) -> SvmAccuracy | None:
        """The linear SVM."""
        return self.family("svm", SvmAccuracy)

    @property
    def comparison(self) -> Comparison | None:
        """The second model: the first of those that were compared."""
        return self.comparisons[0] if self.comparisons else None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every other model."""
        found = self.family("comparison", Comparisons)
        return () if found is None else found.models

    @property
    def models(self) -> SideBySide | None:
        """All models in one table."""
        return self.family("models", SideBySide)

    @property
    def normalized(self) -> Normalized | None:
        """The pairs by scores that a cohort normalized."""
        return self.family("normalized", Normalized)

    @property
    def calibration(self) -> Calibrated | None:
        """What calibrated scores are worth."""
        return self.family("calibration", Calibrated)

    @property
    def templates(self) -> Pooled | None:
        """What templates were made of; None where images were scored."""
        return self.family("templates", Pooled)

    def subtitle(self) -> str:
        """How much was scored."""
        parts = []
        if self.verified is not None:
            v, pairs = self.verified.verification, self.verified.pairs
            count = plural(v.n_genuine + v.n_impostor, "pair")
            which = f"all {count}" if pairs == "all" else f"{count} of {Path(pairs).name}"
            parts.append(f"{which}: {v.n_genuine:,} genuine, {v.n_impostor:,} impostor")
        pooled = self.templates
        if pooled is None:
            return "; ".join([*parts, size_of(self.table)])
        people = plural(len(set(self.table.identities.tolist())), "identity")
        return "; ".join([*parts, f"{pooled.text()}, of {people}"])


def size_of(table: EmbeddingTable) -> str:
    """How much a table holds, in words."""
    people = len(set(table.identities.tolist()))
    return f"{plural(len(table), 'image')} of {plural(people, 'identity')}"
