"""What `data check` found: the findings, the figures behind them, and the table that the terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from facemetric.commands.checking.findings import (
    ACROSS,
    DUPLICATE,
    MISLABELLED,
    ONE_PERSON,
    TEST_IMAGE,
    TEST_NAME,
    TEST_PERSON,
    CopyFigures,
    Finding,
)
from facemetric.errors import plural
from facemetric.evaluation.audit.people import Alike
from facemetric.evaluation.verification import plain


class Search(NamedTuple):
    """A search for identities of one person. What is undefined is None."""

    threshold: float | None  # by how much they are nearer than their neighbours, at least
    expected_by_chance: float | None  # pairs of two people among those found
    share_of_halves_found: float | None  # of identities that were cut in two: how well the search finds

    @classmethod
    def of(cls, alike: Alike) -> Search:
        """The figures of a search."""
        return cls(plain(alike.threshold), plain(alike.expected), plain(alike.found_halves))

    def __str__(self) -> str:
        halves = self.share_of_halves_found
        sure = "" if halves is None else f"; it finds {halves:.0%} of the identities cut in halves"
        by = "any score" if self.threshold is None else f"{self.threshold:.3f}"  # of --chance 0
        expected = self.expected_by_chance or 0.0
        return f"nearer than their neighbours by {by}: chance brings {expected:.1f}{sure}"


@dataclass(frozen=True)
class PeopleFigures:
    """What embeddings tell of people and labels; None of what was not looked for."""

    one_person: Search | None = None
    judged: int | None = None  # images whose label was
    mislabelled_at_most: int | None = None
    person_in_test: Search | None = None


@dataclass(frozen=True)
class CheckFigures:
    """The figures behind the findings. `found` counts them by kind; `in_no_list` says why kinds are in no list."""

    images: int
    identities: int
    copies: CopyFigures
    people: PeopleFigures
    found: Mapping[str, int] = field(default_factory=dict)
    in_no_list: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures as check.json has them: one level, without what was not looked for."""
        copies, people = self.copies, self.people
        known = {
            "bits_test": copies.bits_test,
            "one_person": people.one_person and people.one_person._asdict(),
            "judged": people.judged,
            "mislabelled_at_most": people.mislabelled_at_most,
            "person_in_test": people.person_in_test and people.person_in_test._asdict(),
        }
        return {
            "bits_within": copies.bits_within,
            "bits_across": copies.bits_across,
            "pairs_cut": copies.pairs_cut,
            "cosine_of_duplicates": copies.cosine_of_duplicates,
            **{name: value for name, value in known.items() if value is not None},
            "images": self.images,
            "identities": self.identities,
            "found": dict(self.found),
            "in_no_list": dict(self.in_no_list),
        }


class Checked(NamedTuple):
    """The findings, the figures behind them, and where they were written."""

    findings: list[Finding]
    figures: CheckFigures
    out: Path

    def text(self) -> str:
        """The table that the terminal shows."""
        lines = [*self._copies(), *self._people(), *self._left_out()]
        width = max(len(name) for name, _ in lines)
        body = "\n".join(f"{name:<{width}}  {text}" for name, text in lines)
        return f"{body}\n{'written to':<{width}}  {self.out}"

    def _count(self, kind: str, one: str) -> str:
        return plural(self.figures.found.get(kind, 0), one)

    def _copies(self) -> Iterator[tuple[str, str]]:
        figures, copies = self.figures, self.figures.copies
        yield "checked", f"{plural(figures.images, 'image')} of {plural(figures.identities, 'identity')}"
        limits = {DUPLICATE: copies.bits_within, ACROSS: copies.bits_across, TEST_IMAGE: copies.bits_test}
        for kind, bits in limits.items():
            if bits is not None:
                yield kind, f"{self._count(kind, 'pair')}  (hashes differ in {bits} of 255 bits or less)"
        if copies.bits_test is not None:
            yield TEST_NAME, self._count(TEST_NAME, "identity")

    def _people(self) -> Iterator[tuple[str, str]]:
        people = self.figures.people
        for kind, search in ((ONE_PERSON, people.one_person), (TEST_PERSON, people.person_in_test)):
            if search is not None:
                yield kind, f"{self._count(kind, 'pair')}  ({search})"
        if people.judged is None:
            yield f"{ONE_PERSON}, {MISLABELLED}", "not looked for: needs --weights"
            return
        text = f"{self.figures.found.get(MISLABELLED, 0):,} of {plural(people.judged, 'image')}, for you to look at"
        yield MISLABELLED, f"{text}  ({people.mislabelled_at_most:,} are no nearer than strangers are)"

    def _left_out(self) -> Iterator[tuple[str, str]]:
        for kind, why in self.figures.in_no_list.items():
            yield (
                "weak",
                f"{kind}: {why}: look at them; they are in findings.csv and the sheets, in no list",
            )
        if cut := self.figures.copies.pairs_cut:
            yield "left out", f"{plural(cut, 'pair')} of images less alike than those listed"
