"""Counts in messages."""

from __future__ import annotations

import pytest

from facemetric.errors import plural


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
def test_plural(count: int, noun: tuple[str, ...], text: str) -> None:
    assert plural(count, *noun) == text
