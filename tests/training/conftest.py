"""The fixtures of stages.py."""

from stages import small, stage_one, toy

__all__ = ["small", "stage_one", "toy"]
