"""The fixtures of untrained_weights.py, and the browser."""

from browsers import browser
from untrained_weights import own_weights, pairs, table, untrained

__all__ = ["browser", "own_weights", "pairs", "table", "untrained"]
