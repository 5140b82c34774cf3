"""Scores of pairs with many ties, and what tests of verification and of folds share."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

quick = settings(max_examples=60, deadline=None)


@st.composite
def scored(draw, most=40):
    """Scores out of a few values, so that ties within and across kinds are the rule; both kinds present."""
    n = draw(st.integers(2, most))
    score = draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    same = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    same[0], same[1] = True, False
    return np.array(score) / 4, np.array(same)


def whole(message):
    return f"^{re.escape(message)}$"
