"""The fixtures of small_trainings.py."""

from small_trainings import small, some_single, stage_one, toy

__all__ = ["small", "some_single", "stage_one", "toy"]
