"""A backbone that trains in less time or memory: compiled, or with activations that are computed again in backward.

Neither changes what the weights are, nor their names."""

from __future__ import annotations

import torch

from facemetric.errors import ConfigError
from facemetric.model.embedder import Embedder

BACKEND = "inductor"  # of torch.compile


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError where torch.compile does not work on this machine: it compiles a sum, to see."""
    try:
        torch.compile(lambda x: x + 1, backend=BACKEND)(torch.zeros(2, device=device))
    except Exception as error:  # a compiler, Triton or a header that is missing, each an error of its own
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        needed = "Triton, and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise ConfigError(
            f"--compile does not work here ({reason}); torch.compile needs {needed}: install it, or leave out --compile"
        ) from error


def compile_backbone(embedder: Embedder) -> None:
    """Compile the backbone for training; in evaluation it runs as it is, with the same figures as without."""
    embedder.compiled = True
    embedder.backbone.compile(backend=BACKEND)


def checkpoint_activations(embedder: Embedder) -> None:
    """Keep only some activations of the backbone for backward, and compute the others again.

    Source: Chen et al. 2016, arXiv:1604.06174. Raises ConfigError for a backbone that timm cannot do this with."""
    try:
        embedder.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--checkpoint-activations: timm's {embedder.arch} cannot compute its activations again; use --microbatch, "
            "or choose another --arch"
        ) from error
