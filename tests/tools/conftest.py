"""The fixtures of untrained_weights.py."""

from untrained_weights import pairs, table, untrained

__all__ = ["pairs", "table", "untrained"]
