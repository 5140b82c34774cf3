"""The fixtures of untrained_weights.py."""

from untrained_weights import own_weights, untrained

__all__ = ["own_weights", "untrained"]
