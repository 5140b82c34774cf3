"""Words of error messages."""

from __future__ import annotations

import pytest

from facemetric.errors import did_you_mean, first_few, plural


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, "0 identities"), (1, "1 identity"), (2, "2 identities"), (12345, "12,345 identities")],
)
def test_a_number_and_its_noun(n: int, expected: str) -> None:
    assert plural(n, "identity", "identities") == expected


def test_a_noun_takes_an_s_where_no_plural_is_given() -> None:
    assert (plural(1, "pair"), plural(2, "pair")) == ("1 pair", "2 pairs")


def test_the_first_few_names() -> None:
    assert first_few([]) == "none"
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few("abcdefg") == "a, b, c and 4 more"
    assert first_few([1, 2, 3], n=1) == "1 and 2 more"


def test_a_misspelt_name_gets_the_nearest_or_the_choices() -> None:
    assert did_you_mean("semi", ["semihard", "hard"]) == ": did you mean 'semihard'?"
    assert did_you_mean("xyz", ["semihard", "hard"]) == ": choose from semihard, hard"


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, ("identity",), "1 identity"),
        (0, ("identity",), "0 identities"),
        (2, ("identity",), "2 identities"),
        (1, ("image",), "1 image"),
        (3, ("image",), "3 images"),
        (2, ("day",), "2 days"),
        (1, ("pipe or device", "pipes and devices"), "1 pipe or device"),
        (2, ("pipe or device", "pipes and devices"), "2 pipes and devices"),
    ],
)
def test_a_noun_has_its_plural(count: int, noun: tuple[str, ...], text: str) -> None:
    assert plural(count, *noun) == text
