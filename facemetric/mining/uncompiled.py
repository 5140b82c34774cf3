"""Keeps torch.compile out of the miners: one graph break, and the gradient of eager mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs in eager mode, with all that it calls, where a compiled one calls it.

    A miner decides by numbers what it computes next, and knows its gradient before backward: traced, it broke into
    as many as 21 graphs, and the gradient was lost between them. The graphs before and after it stay compiled.
    `torch.compiler.disable` says the same, but brings the compiler along (2 s) where nobody compiles.
    """
    eager = torch._disable_dynamo(function)  # type: ignore[attr-defined]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # true while a caller is traced
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return call
