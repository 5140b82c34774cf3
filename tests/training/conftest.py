"""The fixtures of stages.py."""

from stages import small, some_single, stage_one, toy

__all__ = ["small", "some_single", "stage_one", "toy"]
